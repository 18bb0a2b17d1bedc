#!/usr/bin/env bash
# The main task on built-in data, as a user would type it: digits with a decoy, people's bubbles, three arms, a table.
#
#   make demo                                         seeds 0, 1 and 2
#   make demo SEEDS="10 11 12 13 14 15 16 17 18 19"   ten others; the end says in how many human maps win
#
# All seeds have the same images. A seed is the network's weights, the order of the samples, and which maps the sham
# gets. Everything is written below DEMO (default: demo); the folder of an earlier demo is replaced.
set -euo pipefail
DEMO=${DEMO:-demo}
SEEDS=${SEEDS:-0 1 2}
JOBS=${JOBS:-2}
DIGITS=${DIGITS:---seed 0 --train 1200 --test 597 --decoys 0.98 --anywhere}
NETWORK=${NETWORK:---arch resnet8+abn --stem small --width 8 --gate product --image-size 32}
OPTIMISING=${OPTIMISING:---epochs 8 --lr 0.05 --schedule cosine}
# The network is so small that a second thread waits more than it helps; so JOBS commands run side by side.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
here=$(cd "$(dirname "$0")" && pwd)

step() {     # show a command, then run it
    printf '\n$ %s\n' "$1" >&2
    eval "$1"
}

side_by_side() {     # show commands, then run them, JOBS at a time, and keep what they print; fail if one fails
    printf '\n' >&2
    printf '$ %s &\n' "$@" >&2
    printf '%s\0' "$@" | xargs -0 -n 1 -P "$JOBS" bash -euo pipefail -c >> "$DEMO/printed.jsonl"
}

# Remove only a folder that an earlier demo made.
[ ! -e "$DEMO" ] || [ -e "$DEMO/.made-by-demo" ] || { echo "$DEMO: exists, and no demo made it; use DEMO=..." >&2; exit 2; }
rm -rf "$DEMO"
mkdir -p "$DEMO"
touch "$DEMO/.made-by-demo"
step "python $here/decoy_digits.py $DEMO/digits $DIGITS"
for split in train test; do
    step "hkmap cub $DEMO/digits --bubbles $DEMO/digits/bubbles.csv --split $split \\
    | hkmap bubbles2map --bandwidth radius --size 32 --out $DEMO/maps-$split.h5 \\
    | hkmap resize --size 16 --normalise max --out $DEMO/maps16-$split.h5 \\
    | hkmap pack $DEMO/$split.h5"
done

trainings=() finetunings=() evaluations=()
for seed in $SEEDS; do
    train="$DEMO/train.h5 $OPTIMISING --seed $seed --quiet"
    trainings+=("hkmap train $train $NETWORK --out $DEMO/run-$seed")
    finetune="hkmap finetune $train --from $DEMO/run-$seed --cache-features"
    finetunings+=("$finetune --gamma 0 --out $DEMO/labels-$seed")
    finetunings+=("$finetune --gamma 1 --out $DEMO/human-$seed")
    finetunings+=("$finetune --gamma 1 --control shuffled --out $DEMO/shuffled-$seed")
    for arm in labels human shuffled; do
        run=$DEMO/$arm-$seed
        evaluations+=("hkmap eval $DEMO/test.h5 --from $run --metric top1,mse,insertion --step 128 --out $run/eval --quiet")
    done
done
side_by_side "${trainings[@]}"
side_by_side "${finetunings[@]}"
side_by_side "${evaluations[@]}"
step "hkmap compare 'labels=$DEMO/labels-*' 'human=$DEMO/human-*' 'shuffled=$DEMO/shuffled-*' \\
    --metric top1 --format table"

seed=${SEEDS%% *}
looks=()
for arm in labels human; do
    predict="hkmap predict --from $DEMO/$arm-$seed --out $DEMO/looks-$arm.h5"
    looks+=("hkmap unpack $DEMO/test.h5 | $predict > $DEMO/$arm.jsonl")
done
side_by_side "${looks[@]}"
step "python $here/demo_picture.py $DEMO/labels.jsonl $DEMO/human.jsonl $DEMO/picture.png"
step "python $here/demo_table.py $DEMO"
