#!/usr/bin/env bash
# Birds, and where five people looked at them: gaze to maps, a network trained without and then with those maps.
#
#   HKMAP_DATA=path/to/data bash examples/cub_gaze.sh
#
# $HKMAP_DATA/cub10 holds CUB_200_2011 (the release, or ten of its classes) and gaze/Fixation_run1.txt to 5 (CUB-GHA).
# Everything is written below OUT. EVERY=1 takes all images, EVERY=20 a few. EPOCHS (training),
# FINETUNE_EPOCHS and NETWORK can be set too. From scratch, a few epochs on a few hundred birds teach little. With
# ImageNet weights the numbers begin to mean something: NETWORK="--arch resnet18+abn --weights resnet18.pth" EPOCHS=30.
set -euo pipefail      # pipefail: a pipe fails if any of its stages does, awk and grep included
: "${HKMAP_DATA:?is not set; expected the folder that holds cub10/, such as HKMAP_DATA=path/to/data}"
[ -d "$HKMAP_DATA/cub10" ] || { echo "$HKMAP_DATA/cub10: no such folder; HKMAP_DATA must hold cub10/" >&2; exit 2; }
OUT=${OUT:-runs/cub_gaze}
EVERY=${EVERY:-1}
EPOCHS=${EPOCHS:-8}
FINETUNE_EPOCHS=${FINETUNE_EPOCHS:-4}
NETWORK=${NETWORK:---arch resnet18+abn --image-size 160}
[ ! -e "$OUT" ] || { echo "$OUT: exists already; remove it, or choose another OUT" >&2; exit 2; }
mkdir -p "$OUT"

set -v                 # from here on the shell shows each command before it runs it

# Each gaze file is one annotator. The birds' official split gives training and test images.
cub=$HKMAP_DATA/cub10/CUB_200_2011
gaze=(); for file in "$HKMAP_DATA"/cub10/gaze/Fixation_run*.txt; do gaze+=(--gaze "$file"); done
hkmap cub "$cub" --split train "${gaze[@]}" > "$OUT/official-train.jsonl"
hkmap cub "$cub" --split test "${gaze[@]}" > "$OUT/official-test.jsonl"

# First, look: do the maps lie on the birds? A few test images; one of them, 448, is greyscale.
awk 'NR % 27 == 7 || /^{"id": "448"/' "$OUT/official-test.jsonl" > "$OUT/look.jsonl"
hkmap bubbles2map "$OUT/look.jsonl" --out "$OUT/look" | hkmap show --out "$OUT/maps.png"

# The same birds with their parts (beak, crown, tail, ...), which other people clicked, beside the map of the gaze.
# A record is a line of text: sed adds the key "map" with the name of the map that was made above.
cut -d '"' -f 4 "$OUT/look.jsonl" | sed 's/.*/^{"id": "&"/' > "$OUT/look.ids"
hkmap cub "$cub" --split test --parts | grep -f "$OUT/look.ids" \
    | sed "s|^{\"id\": \"\([0-9]*\)\"|&, \"map\": \"$OUT/look/\1.npy\"|" \
    | hkmap show --out "$OUT/parts.png"

# Every fifth training image is held out for validation: the best epoch of the training is chosen on these, never on
# the test images; fine-tuning keeps its last epoch.
# The images come class by class, so counting lines gives every class its share.
awk -v every="$EVERY" 'NR % every == 0' "$OUT/official-train.jsonl" > "$OUT/chosen.jsonl"
awk 'NR % 5 != 0' "$OUT/chosen.jsonl" > "$OUT/train.jsonl"
awk 'NR % 5 == 0' "$OUT/chosen.jsonl" > "$OUT/val.jsonl"
# Insertion and deletion take 58 forward passes per image, so only every fourth test image is used.
awk -v every="$EVERY" 'NR % (4 * every) == 0' "$OUT/official-test.jsonl" > "$OUT/test.jsonl"

# Gaze to maps of 224 x 224, to 14 x 14 as in the paper, to shards.
for split in train val test; do
    hkmap bubbles2map "$OUT/$split.jsonl" --out "$OUT/maps-$split.h5" \
        | hkmap resize --size 14 --normalise max --out "$OUT/maps14-$split.h5" \
        | hkmap pack "$OUT/$split.h5"
done

# First labels alone; then, with the extractor frozen, labels and the maps of where people look.
hkmap train "$OUT/train.h5" --val "$OUT/val.h5" $NETWORK --epochs "$EPOCHS" --out "$OUT/run"
hkmap finetune "$OUT/train.h5" --val "$OUT/val.h5" --from "$OUT/run" --gamma 1 --epochs "$FINETUNE_EPOCHS" \
    --out "$OUT/run-ft"

# Before and after: more accurate, and more honest? One JSON object per line in eval.json.
for run in run run-ft; do
    hkmap eval "$OUT/test.h5" --from "$OUT/$run" \
        --metric top1 --metric top5 --metric mse --metric insertion --metric deletion >> "$OUT/eval.json"
done
hkmap unpack "$OUT/test.h5" | awk 'NR % 6 == 1' \
    | hkmap predict --from "$OUT/run" --key before --out "$OUT/before" \
    | hkmap predict --from "$OUT/run-ft" --key after --out "$OUT/after" \
    | hkmap show --map map --map before --map after --columns 2 --out "$OUT/sheet.png"
