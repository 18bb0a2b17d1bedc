#!/usr/bin/env bash
# The main task on built-in data, as a user would type it: digits with a decoy, people's bubbles, three arms, a table.
#
#   make demo                       one seed
#   make demo SEEDS="0 1 2"         several seeds; the table then shows means
#
# Everything is written below DEMO (default: demo); the folder of an earlier demo is replaced.
set -euo pipefail
DEMO=${DEMO:-demo}
SEEDS=${SEEDS:-0}
EPOCHS=${EPOCHS:-15}
DIGITS=${DIGITS:---train 600 --test 400}
NETWORK=${NETWORK:---arch resnet8+abn --stem small --width 16 --gate product --image-size 32}
# The network is so small that a second thread waits more than it helps, above all on a busy machine.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
here=$(cd "$(dirname "$0")" && pwd)

step() {     # show a command, then run it
    printf '\n$ %s\n' "$1" >&2
    eval "$1"
}

together() {     # show commands, then run them at the same time; fail if one fails
    local pids=() command pid
    for command; do
        printf '\n$ %s &\n' "$command" >&2
        eval "$command" &
        pids+=("$!")
    done
    printf '$ wait\n' >&2
    for pid in "${pids[@]}"; do
        wait "$pid"
    done
}

# Remove only a folder that an earlier demo made.
[ ! -e "$DEMO" ] || [ -e "$DEMO/.made-by-demo" ] || { echo "$DEMO: exists, and no demo made it; use DEMO=..." >&2; exit 2; }
rm -rf "$DEMO"
mkdir -p "$DEMO"
touch "$DEMO/.made-by-demo"
for seed in $SEEDS; do
    d=$DEMO/seed$seed
    step "python $here/decoy_digits.py $d/digits --seed $seed $DIGITS"
    mkdir -p "$d/results"
    for split in train test; do
        step "hkmap cub $d/digits --bubbles $d/digits/bubbles.csv --split $split \\
    | hkmap bubbles2map --bandwidth radius --size 32 --out $d/maps-$split.h5 \\
    | hkmap resize --size 16 --normalise max --out $d/maps16-$split.h5 \\
    | hkmap pack $d/$split.h5"
    done

    step "hkmap train $d/train.h5 $NETWORK --epochs $EPOCHS --seed $seed --out $d/run"
    finetune="hkmap finetune $d/train.h5 --from $d/run --epochs $EPOCHS --seed $seed"
    together "$finetune --gamma 0 --out $d/run-labels" \
        "$finetune --gamma 1 --out $d/run-human" \
        "$finetune --gamma 1 --control shuffled --out $d/run-shuffled"
    evaluations=()
    for arm in labels human shuffled; do
        evaluations+=("hkmap eval $d/test.h5 --from $d/run-$arm --metric top1 --metric mse --metric insertion --step 128 > $d/results/$arm.json")
    done
    together "${evaluations[@]}"
    step "hkmap unpack $d/test.h5 | head -8 \\
    | hkmap predict --from $d/run --key before --out $d/before \\
    | hkmap predict --from $d/run-human --key after --out $d/after \\
    | hkmap show --map map --map before --map after --columns 2 --out $d/sheet.png"
done
step "python $here/demo_table.py $DEMO"
