#!/usr/bin/env bash
# The paper's loop on built-in data: train on labels, have a person edit the attention of what was misclassified,
# fine-tune with the edited maps, and compare with labels alone and with a sham. The person is simulated.
#
#   bash examples/human_loop.sh                      three seeds
#   SEEDS="0 1 2 3 4" bash examples/human_loop.sh    five
#
# Everything is written below OUT. All seeds have the same images, so that they can be compared; a seed is the network's
# and the person's. PART says which test images are measured: the first 800 or, with PART="tail -n +801", the others, on
# which gamma is tuned. How to edit the maps yourself afterwards is in examples/README.md.
set -euo pipefail
OUT=${OUT:-runs/human_loop}
SEEDS=${SEEDS:-0 1 2}
DIGITS=${DIGITS:---train 600 --test 1197}
PART=${PART:-head -n 800}
NETWORK=${NETWORK:---arch resnet8+abn --stem small --width 16 --gate product --image-size 32}
EPOCHS=${EPOCHS:-15}
MAPS=${MAPS:---gamma 60}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}     # the network is so small that a second thread waits more than it helps
here=$(cd "$(dirname "$0")" && pwd)
[ ! -e "$OUT" ] || { echo "$OUT: exists already; remove it, or choose another OUT" >&2; exit 2; }

step() {     # show a command, then run it
    printf '\n$ %s\n' "$1" >&2
    eval "$1"
}

edited() {   # RECORDS NAME [--blind]: the person edits the attention of RECORDS.jsonl; the maps go to NAME.h5
    step "python $here/simulated_person.py $d/$1.jsonl --seed $seed ${3:-} > $d/strokes-$2.jsonl"
    step "hkmap edit $d/$1.jsonl --script $d/strokes-$2.jsonl --out $d/edited-$2/ | hkmap pack $d/$2.h5"
}

# The training images come without maps, the test images with those of four people's bubbles, to measure by.
step "python $here/decoy_digits.py $OUT/digits --seed 0 $DIGITS"
step "hkmap cub $OUT/digits --bubbles $OUT/digits/bubbles.csv --split train | hkmap pack $OUT/train.h5"
step "hkmap cub $OUT/digits --bubbles $OUT/digits/bubbles.csv --split test | $PART \\
    | hkmap bubbles2map --bandwidth radius --size 32 --out $OUT/maps.h5 \\
    | hkmap resize --size 16 --normalise max --out $OUT/maps16.h5 | hkmap pack $OUT/test.h5"

for seed in $SEEDS; do
    d=$OUT/seed$seed
    # 1. Train on labels. 2. Collect the attention of misclassified training samples. 3. A person edits it.
    step "hkmap train $OUT/train.h5 $NETWORK --epochs $EPOCHS --seed $seed --out $d/run"
    step "hkmap unpack $OUT/train.h5 | hkmap predict --from $d/run --out $d/attention/ | tee $d/train.jsonl \\
    | hkmap select --only misclassified --sort confidence > $d/wrong.jsonl"
    edited wrong edited

    # 4. Fine-tune the branches, with the edited maps of these and with all labels; the extractor stays as it is.
    step "hkmap select --only correct $d/train.jsonl | hkmap pack $d/rest.h5"
    finetune="hkmap finetune $d/edited.h5 $d/rest.h5 --from $d/run --cache-features --epochs $EPOCHS --seed $seed"
    step "$finetune --gamma 0 --out $d/run-labels"
    step "$finetune $MAPS --out $d/run-edited"
    for sham in shuffled random; do
        step "$finetune $MAPS --control $sham --out $d/run-$sham"
    done
    for arm in labels edited shuffled random; do
        step "hkmap eval $OUT/test.h5 --from $d/run-$arm --metric top1,log_loss,mse --out $d/run-$arm/eval"
    done

    # Section 3, without training: edited maps in place of the network's own, on misclassified test samples. The sham is
    # a person who paints on each image what another one needs.
    step "hkmap unpack $OUT/test.h5 | hkmap predict --from $d/run --out $d/attention-test/ \\
    | hkmap select --only misclassified > $d/wrong-test.jsonl"
    edited wrong-test right
    edited wrong-test blind --blind
    look="hkmap eval --from $d/run --metric error,top5_error,log_loss"
    step "$look $d/right.h5 --out $d/own"
    step "$look $d/right.h5 --use-maps --out $d/right"
    step "$look $d/blind.h5 --use-maps --out $d/blind"
    step "hkmap compare edited=$d/right own=$d/own blind=$d/blind --format table"
done
step "hkmap compare 'labels=$OUT/seed*/run-labels' 'edited=$OUT/seed*/run-edited' 'shuffled=$OUT/seed*/run-shuffled' \\
    'random=$OUT/seed*/run-random' --metric top1,log_loss,mse --format table"
