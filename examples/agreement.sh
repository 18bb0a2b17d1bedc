#!/usr/bin/env bash
# How far do five people agree on where to look at a bird? The human ceiling, beside chance and a uniform map.
#
#   HKMAP_DATA=path/to/data bash examples/agreement.sh
#
# $HKMAP_DATA/cub10 holds CUB_200_2011 (the release, or ten of its classes) and gaze/Fixation_run1.txt to 5 (CUB-GHA).
# Everything is written below OUT. EVERY=1 takes all images, EVERY=20 a few. docs/agreement.md explains the numbers.
set -euo pipefail      # pipefail: a pipe fails if any of its stages does, awk included
: "${HKMAP_DATA:?is not set; expected the folder that holds cub10/, such as HKMAP_DATA=path/to/data}"
[ -d "$HKMAP_DATA/cub10" ] || { echo "$HKMAP_DATA/cub10: no such folder; HKMAP_DATA must hold cub10/" >&2; exit 2; }
OUT=${OUT:-runs/agreement}
EVERY=${EVERY:-1}
[ ! -e "$OUT" ] || { echo "$OUT: exists already; remove it, or choose another OUT" >&2; exit 2; }
mkdir -p "$OUT"

set -v                 # from here on the shell shows each command before it runs it

# Each gaze file is one annotator. Every annotator's map is drawn from their own fixations, all with one width (a cell
# of a 14 x 14 map): with Scott's rule a person with few fixations would get a broader map than one with many.
cub=$HKMAP_DATA/cub10/CUB_200_2011
gaze=(); for file in "$HKMAP_DATA"/cub10/gaze/Fixation_run*.txt; do gaze+=(--gaze "$file"); done
hkmap cub "$cub" "${gaze[@]}" | awk -v every="$EVERY" 'NR % every == 0' \
    | hkmap bubbles2map --bandwidth fixed --size 56 --per-annotator --out "$OUT/maps.h5" \
    | hkmap resize --size 14 --out "$OUT/maps14.h5" > "$OUT/maps14.jsonl"

# The table is for people, the JSON object for programs.
hkmap agreement "$OUT/maps14.jsonl" --picture "$OUT/agreement.png" --per-image "$OUT/each.jsonl" > "$OUT/agreement.json"
