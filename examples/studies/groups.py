"""A filter that adds the key `group` to records: images that are nearly the same share one.

    hkmap folder busi/images | python examples/studies/groups.py > records.jsonl

BUSI has the same picture more than once, cropped or saved again, some under two labels. Images are alike where their
grey thumbnails of 32 x 32 correlate above 0.98, and what is alike through a third image is one group too. In BUSI this
finds 166 pairs, 254 images in groups of at most four; 7 pairs have two labels.
"""

from __future__ import annotations

import json
import sys

import cv2
import numpy as np

SIDE, ALIKE = 32, 0.98


def thumbnail(path: str) -> np.ndarray:
    grey = cv2.imread(path, cv2.IMREAD_GRAYSCALE)
    if grey is None:
        sys.exit(f"{path}: no image that can be read; expected a file")
    small = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float64).ravel()
    small -= small.mean()
    return small / max(float(np.linalg.norm(small)), 1e-9)


def main() -> None:
    records = [json.loads(line) for line in sys.stdin]
    thumbnails = np.stack([thumbnail(record["image"]) for record in records])
    alike = thumbnails @ thumbnails.T > ALIKE
    group = list(range(len(records)))
    for one, two in np.argwhere(np.triu(alike, 1)).tolist():
        joined, gone = group[one], group[two]
        group = [joined if number == gone else number for number in group]
    for record, number in zip(records, group, strict=True):
        print(json.dumps({**record, "group": records[number]["id"]}))


if __name__ == "__main__":
    main()
