"""The same shapes written in each format of annotations: by hand, without hkmap's own readers or writers."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
import numpy.typing as npt
from PIL import Image

Mask = npt.NDArray[np.bool_]
Key = Callable[[int], Any]      # how a file writes an id: a number, or a text

SIZE = (40, 32)                 # width, height


@dataclass(frozen=True)
class Drawn:
    """What is drawn on one image: a box (x, y, width, height), a polygon's corners, and a mask (height, width)."""

    name: str                   # as the file of annotations calls the image
    box: tuple[int, int, int, int]
    polygon: tuple[tuple[int, int], ...]
    mask: Mask

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name.replace("\\", "/")).stem


def runs(values: npt.NDArray[np.generic]) -> list[int]:
    """The lengths of runs of a mask's values, background first."""
    found = [(bool(value), len(list(group))) for value, group in groupby(values.ravel().tolist())]
    return [length for _, length in ([(False, 0)] if found[0][0] else []) + found]


def inner(mask: Mask) -> tuple[int, int, int, int]:
    """The left, top, right and bottom pixel of what is marked."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def text(path: Path, content: str | object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    shown = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, indent=1)
    path.write_text(shown, encoding="utf-8")
    return path


def coco(root: Path, images: list[Drawn], key: Key, other: Key) -> Path:
    marked = []
    for number, image in enumerate(images):
        corners = [side for corner in image.polygon for side in corner]
        rle = {"size": [SIZE[1], SIZE[0]], "counts": runs(image.mask.T)}
        marked += [
            {"image_id": other(number), "category_id": other(0), "bbox": list(image.box)},
            {"image_id": other(number), "category_id": other(1), "segmentation": [corners]},
            {"image_id": other(number), "category_id": other(2), "segmentation": rle, "iscrowd": 1},
        ]
    categories = [{"id": key(number), "name": name} for number, name in enumerate("bpm")]
    listed = [{"id": key(number), "file_name": image.name, "width": SIZE[0], "height": SIZE[1]}
              for number, image in enumerate(images)]
    return text(root / "x.json", {"images": listed, "categories": categories, "annotations": marked})


def voc(root: Path, images: list[Drawn], key: Key, other: Key) -> Path:
    for number, image in enumerate(images):
        left, top, width, height = image.box
        corners = {"xmin": left + 1, "ymin": top + 1, "xmax": left + width, "ymax": top + height}
        sides = "".join(f"<{name}>{value}</{name}>" for name, value in corners.items())
        text(root / f"Annotations/{number}.xml", (
            f"<annotation>\n<filename>{image.name}</filename>\n<size><width>{SIZE[0]}</width><height>{SIZE[1]}</height>"
            f"</size>\n<object><name>b</name><bndbox>{sides}</bndbox></object>\n</annotation>\n"
        ))
        (root / "SegmentationObject").mkdir(exist_ok=True)
        picture = Image.fromarray(image.mask.astype(np.uint8), "P")
        picture.putpalette([0, 0, 0, 128, 0, 0])
        picture.save(root / f"SegmentationObject/{number}.png")
    return root


def labelme(root: Path, images: list[Drawn], key: Key, other: Key) -> Path:
    for number, image in enumerate(images):
        x, y, width, height = image.box
        left, top, right, bottom = inner(image.mask)
        stream = io.BytesIO()
        Image.fromarray(image.mask[top : bottom + 1, left : right + 1]).save(stream, "PNG")
        shapes = [
            {"label": "b", "shape_type": "rectangle", "points": [[x, y], [x + width, y + height]]},
            {"label": "p", "shape_type": "polygon", "points": image.polygon},
            {"label": "m", "shape_type": "mask", "points": [[left, top], [right, bottom]],
             "mask": base64.b64encode(stream.getvalue()).decode()},
        ]
        document = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": image.name, "imageData": None,
                    "imageHeight": SIZE[1], "imageWidth": SIZE[0]}
        text(root / f"{number}.json", document)
    return root


def _regions(image: Drawn) -> list[dict[str, Any]]:
    x, y, width, height = image.box
    across, down = map(list, zip(*image.polygon, strict=True))
    shapes = [{"name": "rect", "x": x, "y": y, "width": width, "height": height},
              {"name": "polygon", "all_points_x": across, "all_points_y": down}]
    return [{"shape_attributes": shape, "region_attributes": {"label": label}}
            for shape, label in zip(shapes, "bp", strict=True)]


def via2(root: Path, images: list[Drawn], key: Key, other: Key) -> Path:
    found = {f"{image.name}{number}": {"filename": image.name, "size": number, "regions": _regions(image),
                                       "file_attributes": {}} for number, image in enumerate(images)}
    return text(root / "x.json", {"_via_settings": {}, "_via_img_metadata": found, "_via_attributes": {}})


def via_csv(root: Path, images: list[Drawn], key: Key, other: Key) -> Path:
    stream = io.StringIO()
    rows = csv.writer(stream, lineterminator="\n")
    rows.writerow(["filename", "file_size", "file_attributes", "region_count", "region_id", "region_shape_attributes",
                   "region_attributes"])
    for image in images:
        regions = _regions(image)
        for number, region in enumerate(regions):
            cells = [json.dumps(region[name]) for name in ("shape_attributes", "region_attributes")]
            rows.writerow([image.name, 7, "{}", len(regions), number, *cells])
    return text(root / "x.csv", stream.getvalue())


def via3(root: Path, images: list[Drawn], key: Key, other: Key) -> Path:
    regions = {}
    for number, image in enumerate(images):
        corners = [side for corner in image.polygon for side in corner]
        for label, xy in enumerate(([2, *image.box], [7, *corners])):
            regions[f"{number}_{label}"] = {"vid": f"{number}", "flg": 0, "z": [], "xy": xy, "av": {"1": f"{label}"}}
    attribute = {"aname": "label", "anchor_id": "FILE1_Z0_XY1", "type": 4, "options": {"0": "b", "1": "p"}}
    return text(root / "x.json", {
        "project": {"pid": "__VIA_PROJECT_ID__", "vid_list": [f"{number}" for number in range(len(images))]},
        "config": {}, "attribute": {"1": attribute}, "metadata": regions,
        "file": {f"{number}": {"fid": other(number), "fname": image.name, "type": 2, "loc": 1, "src": ""}
                 for number, image in enumerate(images)},
        "view": {f"{number}": {"fid_list": [key(number)]} for number in range(len(images))},
    })


def _yolo(root: Path, images: list[Drawn], line: Callable[[Drawn], list[float]]) -> Path:
    for image in images:
        folder = PurePosixPath(image.name.replace("\\", "/")).parent
        numbers = " ".join(f"{number:.9f}" for number in line(image))
        text(root / "labels" / folder / f"{image.stem}.txt", f"0 {numbers}\n")
    return root / "labels"


def yolo(root: Path, images: list[Drawn], key: Key, other: Key) -> Path:
    def line(image: Drawn) -> list[float]:
        x, y, width, height = image.box
        return [(x + width / 2) / SIZE[0], (y + height / 2) / SIZE[1], width / SIZE[0], height / SIZE[1]]

    return _yolo(root, images, line)


def yolo_polygons(root: Path, images: list[Drawn], key: Key, other: Key) -> Path:
    return _yolo(root, images, lambda image: [
        side / whole for corner in image.polygon for side, whole in zip(corner, SIZE, strict=True)
    ])


def cvat(root: Path, images: list[Drawn], key: Key, other: Key) -> Path:
    lines = ['<?xml version="1.0" encoding="utf-8"?>', "<annotations>", "<version>1.1</version>",
             "<meta><task><id>1</id><assignee><username>ann</username></assignee></task></meta>"]
    for number, image in enumerate(images):
        x, y, width, height = image.box
        left, top, right, bottom = inner(image.mask)
        rle = ", ".join(map(str, runs(image.mask[top : bottom + 1, left : right + 1])))
        corners = ";".join(f"{across:.2f},{down:.2f}" for across, down in image.polygon)
        lines += [
            f'<image id="{number}" name={quoteattr(image.name)} width="{SIZE[0]}" height="{SIZE[1]}">',
            f'<box label="b" source="manual" occluded="0" xtl="{x}.00" ytl="{y}.00" xbr="{x + width}.00" '
            f'ybr="{y + height}.00" z_order="0">', "</box>",
            f'<polygon label="p" source="manual" occluded="0" points="{corners}" z_order="0">', "</polygon>",
            f'<mask label="m" source="manual" occluded="0" rle="{rle}" left="{left}" top="{top}" '
            f'width="{right - left + 1}" height="{bottom - top + 1}" z_order="0">', "</mask>", "</image>",
        ]
    return text(root / "annotations.xml", "\n".join([*lines, "</annotations>", ""]))


def brush(mask: Mask) -> list[int]:
    """A mask as Label Studio's run lengths: the RGBA bytes of all pixels, in runs of up to 256 and single values."""
    values = np.repeat(mask.astype(np.uint8) * 255, 4).tolist()
    bits = f"{len(values):032b}{7:05b}{2:04b}{7:04b}{9:04b}{15:04b}"     # lengths of 3, 8, 10 and 16 bits
    for number, (value, group) in enumerate(groupby(values)):
        length = len(list(group))
        while length:
            part = min(length, 256)
            literal = number % 3 == 0 and part <= 8                     # a few values one by one
            bits += f"{not literal:01b}" + (f"{0:02b}{part - 1:03b}" if part <= 8 else f"{1:02b}{part - 1:08b}")
            bits += f"{value:08b}" * (part if literal else 1)
            length -= part
    bits += "0" * (-len(bits) % 8)
    return [int(bits[start : start + 8], 2) for start in range(0, len(bits), 8)]


def label_studio(root: Path, images: list[Drawn], key: Key, other: Key) -> Path:
    tasks = []
    stated = {"original_width": SIZE[0], "original_height": SIZE[1], "image_rotation": 0, "to_name": "image"}
    for number, image in enumerate(images):
        percent = [100 * side / whole for side, whole in zip(image.box, SIZE * 2, strict=True)]
        box = dict(zip(("x", "y", "width", "height"), percent, strict=True))
        corners = [[100 * x / SIZE[0], 100 * y / SIZE[1]] for x, y in image.polygon]
        values = {"rectanglelabels": box | {"rotation": 0}, "polygonlabels": {"points": corners, "closed": True},
                  "brushlabels": {"format": "rle", "rle": brush(image.mask)}}
        results = [{"id": f"{number}{label}", "type": kind, "value": value | {kind: [label]}, **stated}
                   for (kind, value), label in zip(values.items(), "bpm", strict=True)]
        tasks.append({"id": key(number), "data": {"image": image.name}, "predictions": [],
                      "annotations": [{"completed_by": other(7), "was_cancelled": False, "result": results}]})
    return text(root / "x.json", tasks)


def table(root: Path, images: list[Drawn], key: Key, other: Key) -> Path:
    lines = [",".join(map(str, (image.name, *image.box, "b"))) for image in images]
    return text(root / "x.csv", "\n".join(["image,x,y,width,height,label", *lines, ""]))


def corners(root: Path, images: list[Drawn], key: Key, other: Key) -> Path:
    lines = []
    for image in images:
        x, y, width, height = image.box
        lines.append(",".join(map(str, (image.name, *SIZE, "b", x, y, x + width, y + height))))
    return text(root / "x.csv", "\n".join(["filename,width,height,class,xmin,ymin,xmax,ymax", *lines, ""]))


def json_lines(root: Path, images: list[Drawn], key: Key, other: Key) -> Path:
    names = ("x", "y", "width", "height")
    rows = []
    for image in images:
        name = key(int(image.stem)) if image.stem.isdecimal() else image.name
        rows.append(json.dumps({"image": name, **dict(zip(names, image.box, strict=True)), "label": "b"}))
    return text(root / "x.jsonl", "\n".join([*rows, ""]))


def trimaps(root: Path, images: list[Drawn], key: Key, other: Key) -> Path:
    (root / "trimaps").mkdir()
    for image in images:
        Image.fromarray(np.where(image.mask, 1, 2).astype(np.uint8)).save(root / f"trimaps/{image.stem}.png")
    return root / "trimaps"


# How a format is written, and which of the shapes it can hold: boxes, polygons, masks.
WRITERS: dict[str, tuple[Callable[[Path, list[Drawn], Key, Key], Path], str]] = {
    "coco": (coco, "bpm"), "voc": (voc, "bm"), "labelme": (labelme, "bpm"), "via 2": (via2, "bp"),
    "via 3": (via3, "bp"), "via csv": (via_csv, "bp"), "yolo": (yolo, "b"), "yolo polygons": (yolo_polygons, "p"),
    "cvat": (cvat, "bpm"), "label studio": (label_studio, "bpm"), "table": (table, "b"), "corners": (corners, "b"),
    "json lines": (json_lines, "b"), "trimaps": (trimaps, "m"),
}
