#!/usr/bin/env bash
# Breast ultrasound with the radiologists' masks (BUSI): masks to maps, a network without and then with those maps.
#
#   HKMAP_DATA=path/to/data bash examples/busi.sh
#
# $HKMAP_DATA/busi holds images/CLASS/NAME.jpg and masks/CLASS/NAME.png for benign, malignant and normal.
# Everything is written below OUT. EVERY=1 takes all 780 images, EVERY=30 a few. EPOCHS (training),
# FINETUNE_EPOCHS and NETWORK can be set too.
set -euo pipefail      # pipefail: a pipe fails if any of its stages does, awk included
: "${HKMAP_DATA:?is not set; expected the folder that holds busi/, such as HKMAP_DATA=path/to/data}"
[ -d "$HKMAP_DATA/busi" ] || { echo "$HKMAP_DATA/busi: no such folder; HKMAP_DATA must hold busi/" >&2; exit 2; }
OUT=${OUT:-runs/busi}
EVERY=${EVERY:-2}
EPOCHS=${EPOCHS:-8}
FINETUNE_EPOCHS=${FINETUNE_EPOCHS:-4}
NETWORK=${NETWORK:---arch resnet18+abn --image-size 160}
[ ! -e "$OUT" ] || { echo "$OUT: exists already; remove it, or choose another OUT" >&2; exit 2; }
mkdir -p "$OUT"

set -v                 # from here on the shell shows each command before it runs it

# One record per image; its class is its folder, its mask has the same name. Of the release itself, where the masks lie
# beside the images ("benign (1)_mask.png"), `hkmap folder Dataset_BUSI_with_GT` makes the same records.
hkmap folder "$HKMAP_DATA/busi/images" --masks "$HKMAP_DATA/busi/masks" > "$OUT/all.jsonl"

# First, look: do the maps lie on the tumours? The last images are normal: a black mask gives a map of zeros, which
# means "nothing to look at". (An image without a mask file would have no map at all: nobody was asked.)
awk 'NR % 65 == 20' "$OUT/all.jsonl" > "$OUT/look.jsonl"
hkmap masks2map "$OUT/look.jsonl" --out "$OUT/look" | hkmap show --out "$OUT/maps.png"

# BUSI has no official split. Of every five images three are for training, one is for validation (the best epoch of the
# training is chosen on it; fine-tuning keeps its last) and one for the test. The images come class by class, so
# counting lines gives each part its share of every class. No file says which images are of one patient, and some are
# nearly the same picture, so the accuracy is too optimistic.
awk -v every="$EVERY" 'NR % every == 0' "$OUT/all.jsonl" > "$OUT/chosen.jsonl"
awk 'NR % 5 > 1' "$OUT/chosen.jsonl" > "$OUT/train.jsonl"
awk 'NR % 5 == 1' "$OUT/chosen.jsonl" > "$OUT/val.jsonl"
awk 'NR % 5 == 0' "$OUT/chosen.jsonl" > "$OUT/test.jsonl"

# Masks to maps of 224 x 224, to 14 x 14 as in the paper, to shards. The maps are not normalised: in a cell of 0.3,
# three tenths of the area are tumour.
for split in train val test; do
    hkmap masks2map "$OUT/$split.jsonl" --out "$OUT/maps-$split.h5" \
        | hkmap resize --size 14 --out "$OUT/maps14-$split.h5" \
        | hkmap pack "$OUT/$split.h5"
done

# First labels alone; then, with the extractor frozen, labels and the maps of where the tumour is.
hkmap train "$OUT/train.h5" --val "$OUT/val.h5" $NETWORK --epochs "$EPOCHS" --out "$OUT/run"
hkmap finetune "$OUT/train.h5" --val "$OUT/val.h5" --from "$OUT/run" --gamma 1 --epochs "$FINETUNE_EPOCHS" \
    --out "$OUT/run-ft"

# Before and after: more accurate, and more honest? One JSON object per line in eval.json. (With three classes, the
# right one is always among the first five.)
for run in run run-ft; do
    hkmap eval "$OUT/test.h5" --from "$OUT/$run" \
        --metric top1 --metric top5 --metric mse --metric insertion --metric deletion >> "$OUT/eval.json"
done
hkmap unpack "$OUT/test.h5" | awk 'NR % 6 == 1' \
    | hkmap predict --from "$OUT/run" --key before --out "$OUT/before" \
    | hkmap predict --from "$OUT/run-ft" --key after --out "$OUT/after" \
    | hkmap show --map map --map before --map after --columns 2 --out "$OUT/sheet.png"
