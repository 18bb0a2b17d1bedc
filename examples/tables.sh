#!/usr/bin/env bash
# The papers' tables for your own runs, as Markdown, with the papers' figures beside them where the row is the same.
#
#   bash examples/tables.sh runs/              all tables
#   bash examples/tables.sh runs/ --table 4    one: 2 to 8, mining-1, mining-5
#   bash examples/tables.sh                    tiny runs on generated digits, to see the form
#
# The results of a run must be below the folder. What fills all rows of a backbone:
#
#   hkmap eval test.h5 --from runs/plain --maps cam     --metric ... --out runs/plain/cam
#   hkmap eval test.h5 --from runs/plain --maps gradcam --metric ... --out runs/plain/gradcam
#   hkmap eval test.h5 --from runs/abn                  --metric ... --out runs/abn/eval          (each +abn run)
#   hkmap eval test.h5 --from runs/mining --metric insertion --only misclassified --baseline runs/abn \
#     --out runs/mining/misclassified                                                             (figure 5)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
    exec python "$here/tables.py" "$@"
fi

OUT=${OUT:-runs/tables}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
step() {     # show a command, then run it
    printf '\n$ %s\n' "$1" >&2
    eval "$1" > /dev/null
}

[ ! -e "$OUT" ] || { echo "$OUT: exists; remove it, or use OUT=..." >&2; exit 2; }
mkdir -p "$OUT"
step "python $here/decoy_digits.py $OUT/digits --train 40 --test 40"
for split in train test; do
    step "hkmap cub $OUT/digits --bubbles $OUT/digits/bubbles.csv --split $split \\
    | hkmap bubbles2map --bandwidth radius --size 32 --out $OUT/maps-$split.h5 \\
    | hkmap resize --size 8 --normalise max --out $OUT/maps8-$split.h5 \\
    | hkmap pack $OUT/$split.h5"
done
network="--stem small --width 4 --image-size 32 --epochs 1"
step "hkmap train $OUT/train.h5 --arch resnet8 $network --out $OUT/plain"
step "hkmap train $OUT/train.h5 --arch resnet8+abn $network --out $OUT/abn"
step "hkmap train $OUT/train.h5 --arch resnet8+abn $network --mining 1e-4 --out $OUT/mining"
step "hkmap finetune $OUT/train.h5 --from $OUT/abn --epochs 1 --gamma 1 --out $OUT/human"
step "hkmap finetune $OUT/train.h5 --from $OUT/abn --epochs 1 --gamma 1 --control shuffled --out $OUT/shuffled"
metrics="--metric top1,top5,error,mse,insertion,deletion --step 128"
for maps in cam gradcam; do
    step "hkmap eval $OUT/test.h5 --from $OUT/plain --maps $maps $metrics --out $OUT/plain/$maps"
done
for run in abn mining human shuffled; do
    step "hkmap eval $OUT/test.h5 --from $OUT/$run $metrics --out $OUT/$run/eval"
    step "hkmap eval $OUT/test.h5 --from $OUT/$run --metric insertion --step 128 \\
    --only misclassified --baseline $OUT/abn --out $OUT/$run/misclassified"
done
python "$here/tables.py" "$OUT" --generated "$@"
