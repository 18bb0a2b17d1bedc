"""From a folder as people have it to a shard, in the lines that docs/formats.md shows: no other program than hkmap."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image, ImageDraw
from written_formats import brush, text

from hkmap.shards.reader import open_shard

SIDE = 28                       # of the images; a cell of the maps of 14x14 is 2x2 pixels
Part = tuple[int, int, int, int]        # left, top, right, bottom, the last two not included

LARGE, SMALL, STRIP = (2, 2, 10, 10), (14, 14, 18, 18), (2, 20, 12, 22)
AREA = SIDE * SIDE
FEW = 64 / AREA                 # the mean of a map of LARGE alone


@dataclass
class Expected:
    """What the shard must hold: by id the label, the class and the map's mean (None: no map), and other keys."""

    records: dict[str, tuple[int, str | None, float | None]]
    classes: list[str]
    keys: dict[str, dict[str, Any]] = field(default_factory=dict)
    annotators: dict[str, dict[str, float]] = field(default_factory=dict)


def photos(*paths: str) -> None:
    for number, path in enumerate(paths):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (SIDE, SIDE), (40 * number, 90, 120)).save(path)


def marked(*parts: Part) -> Image.Image:
    """A grey picture, 255 in the parts."""
    picture = Image.new("L", (SIDE, SIDE))
    for left, top, right, bottom in parts:
        ImageDraw.Draw(picture).rectangle((left, top, right - 1, bottom - 1), fill=255)
    return picture


def corners(part: Part) -> list[list[int]]:
    left, top, right, bottom = part
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def busi() -> Expected:
    root = Path("Dataset_BUSI_with_GT")
    pictures = {
        "benign/benign (1)": {"_mask": (LARGE,)}, "benign/benign (2)": {"_mask": (LARGE,), "_mask_1": (SMALL,)},
        "malignant/malignant (1)": {"_mask": ((0, 0, 14, 28),)}, "normal/normal (1)": {"_mask": ()},
    }
    photos(*(f"{root}/{name}.png" for name in pictures))
    for name, endings in pictures.items():
        for ending, parts in endings.items():
            marked(*parts).save(f"{root}/{name}{ending}.png")
    means = (64 / AREA, 80 / AREA, 0.5, 0.0)
    classes = ["benign", "malignant", "normal"]
    return Expected({name: (classes.index(name.split("/")[0]), name.split("/")[0], mean)
                     for name, mean in zip(pictures, means, strict=True)}, classes)


def isic() -> Expected:
    photos("Training_Input/ISIC_0000000.jpg", "Training_Input/ISIC_0000001.jpg")
    Path("Training_GroundTruth").mkdir()
    marked(LARGE).save("Training_GroundTruth/ISIC_0000000_segmentation.png")
    marked(SMALL).save("Training_GroundTruth/ISIC_0000001_segmentation.png")
    return Expected({"ISIC_0000000": (-1, None, FEW), "ISIC_0000001": (-1, None, 16 / AREA)}, [])


def lesions() -> Expected:
    photos("images/7.png", "images/8.png")
    Path("truth").mkdir()
    marked(LARGE).save("truth/7_EX.png")
    marked(SMALL).save("truth/7_HE.png")
    marked(SMALL).save("truth/8_HE.png")
    return Expected({"7": (-1, None, (64 + 0.5 * 16) / AREA), "8": (-1, None, 0.5 * 16 / AREA)}, [])


def labelme() -> Expected:
    photos("photos/cat/1.jpg", "photos/dog/1.jpg")
    for name, part in (("cat", LARGE), ("dog", STRIP)):
        shape = {"label": "spot", "shape_type": "polygon", "points": corners(part), "flags": {}}
        text(Path(f"photos/{name}/1.json"), {
            "version": "5.4.1", "flags": {one: one == name for one in ("cat", "dog")}, "shapes": [shape],
            "imagePath": "1.jpg", "imageData": None, "imageHeight": SIDE, "imageWidth": SIDE,
        })
    return Expected({"cat/1": (0, "cat", FEW), "dog/1": (1, "dog", 20 / AREA)}, ["cat", "dog"])


def coco() -> Expected:
    photos("img/1.jpg", "img/2.jpg")
    boxes = ((2, 2, 8, 8), (14, 14, 4, 4))
    text(Path("c.json"), {
        "images": [{"id": number, "file_name": f"{number}.jpg", "width": SIDE, "height": SIDE} for number in (1, 2)],
        "categories": [{"id": 1, "name": "spot"}],
        "annotations": [{"id": number, "image_id": number, "category_id": 1, "bbox": box}
                        for number, box in enumerate(boxes, start=1)],
    })
    text(Path("labels.csv"), "image,class,patient\n1.jpg,malignant,p7\n2.jpg,benign,p8\n")
    records = {"1": (1, "malignant", FEW), "2": (0, "benign", 16 / AREA)}
    return Expected(records, ["benign", "malignant"], {"1": {"patient": "p7"}, "2": {"patient": "p8"}})


def cvat() -> Expected:
    photos("img/1.jpg", "img/2.jpg")
    polygon = ";".join(f"{x},{y}" for x, y in corners(LARGE))
    head = f'width="{SIDE}" height="{SIDE}"'
    text(Path("annotations.xml"), (
        f'<annotations><image id="0" name="1.jpg" {head}><mask label="a" rle="0, 16" left="14" top="14" width="4" '
        f'height="4"/><polygon label="b" points="{polygon}"/><box label="c" xtl="2" ytl="20" xbr="12" ybr="22"/>'
        f'<tag label="dog"/></image><image id="1" name="2.jpg" {head}><box label="c" xtl="2" ytl="20" xbr="12" '
        'ybr="22"/><tag label="cat"/></image></annotations>'
    ))
    return Expected({"1": (0, "dog", 100 / AREA), "2": (1, "cat", 20 / AREA)}, ["dog", "cat"])


def studio() -> Expected:
    photos("img/1.jpg", "img/2.jpg")
    stated = {"original_width": SIDE, "original_height": SIDE, "image_rotation": 0}
    box = {"x": 200 / SIDE, "y": 200 / SIDE, "width": 800 / SIDE, "height": 800 / SIDE, "rotation": 0}
    mask = np.zeros((SIDE, SIDE), np.bool_)
    mask[14:18, 14:18] = True
    drawn = {"rectanglelabels": box, "brushlabels": {"format": "rle", "rle": brush(mask)}}
    tasks = []
    for number, people in ((1, {"ann@x.org": "rectanglelabels", "bob@x.org": "brushlabels"}),
                           (2, {"ann@x.org": "brushlabels"})):
        annotations = [{
            "completed_by": {"id": 3, "email": who}, "was_cancelled": False, "result": [
                {"id": "s", "type": kind, "value": drawn[kind] | {kind: ["spot"]}, **stated},
                {"id": "c", "type": "choices", "value": {"choices": ["odd" if number == 1 else "even"]}},
            ],
        } for who, kind in people.items()]
        tasks.append({"data": {"image": f"/data/upload/1/0a1b2c3d-{number}.jpg"}, "annotations": annotations})
    text(Path("export.json"), tasks)
    return Expected(
        {"1": (0, "odd", 80 / AREA), "2": (1, "even", 16 / AREA)}, ["odd", "even"],
        annotators={"1": {"ann@x.org": FEW, "bob@x.org": 16 / AREA}, "2": {"ann@x.org": 16 / AREA}},
    )


def patients() -> Expected:
    photos("scans/healthy/1.png", "scans/healthy/2.png", "scans/ill/1.png")
    text(Path("patients.csv"), "image,patient\nhealthy/1.png,007\nhealthy/2.png,007\nill/1.png,012\n")
    records = {"healthy/1": (0, "healthy", None), "healthy/2": (0, "healthy", None), "ill/1": (1, "ill", None)}
    own = {name: {"patient": "012" if "ill" in name else "007"} for name in records}
    return Expected(records, ["healthy", "ill"], own)


def yolo() -> Expected:
    photos("images/train/1.jpg", "images/train/2.jpg")
    text(Path("data.yaml"), "path: .\ntrain: images/train\nnc: 2\nnames: ['vessel, or nerve', 'lesion']  # two\n")
    text(Path("labels/train/1.txt"), "1 0.5 0.5 0.5 0.5\n0 0.1 0.1 0.1 0.1\n")
    text(Path("labels/train/2.txt"), "")
    return Expected({"train/1": (-1, None, 0.25), "train/2": (-1, None, 0)}, [])


def voc() -> Expected:
    photos("voc/JPEGImages/1.jpg")
    text(Path("voc/labelmap.txt"), "# label:color_rgb:parts:actions\nbackground:0,0,0::\nscar:128,0,0::\n")
    text(Path("voc/Annotations/1.xml"), (
        f"<annotation><filename>1.jpg</filename><size><width>{SIDE}</width><height>{SIDE}</height></size><object>"
        "<name>scar</name><bndbox><xmin>3</xmin><ymin>3</ymin><xmax>10</xmax><ymax>10</ymax></bndbox></object>"
        "</annotation>"
    ))
    Path("voc/SegmentationClass").mkdir()
    levels = Image.fromarray((np.asarray(marked(LARGE)) > 0).astype(np.uint8), "P")
    levels.putpalette([0, 0, 0, 128, 0, 0])
    levels.save("voc/SegmentationClass/1.png")
    return Expected({"1": (-1, None, FEW)}, [])


FOLDERS: dict[str, Callable[[], Expected]] = {
    "busi": busi, "isic": isic, "lesions": lesions, "labelme": labelme, "coco": coco, "cvat": cvat, "studio": studio,
    "patients": patients, "yolo": yolo, "voc": voc,
}


def lines() -> dict[str, list[list[str]]]:
    """The commands of each line in the section "Your folder", by the shard that it writes, without its suffix."""
    page = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    section = page.partition("\n## Your folder\n")[2].partition("\n## ")[0]
    [block] = re.findall(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    found = {}
    for line in block.replace("\\\n", " ").splitlines():
        if line.strip() and not line.startswith("#"):
            lexer = shlex.shlex(line, posix=True, punctuation_chars="|<>&;")
            lexer.whitespace_split = True
            stages: list[list[str]] = [[]]
            for word in lexer:
                stages.append([]) if word == "|" else stages[-1].append(word)
            found[stages[-1][-1].removesuffix(".h5")] = stages
    return found


def test_every_line_of_the_docs_is_tested() -> None:
    assert list(lines()) == list(FOLDERS)
    assert {stage[0] for stages in lines().values() for stage in stages} == {"hkmap"}


@pytest.mark.parametrize("name", FOLDERS)
def test_one_line_makes_a_shard(hk: Callable, here: Path, name: str) -> None:
    expected = FOLDERS[name]()
    output = ""
    for stage in lines()[name]:
        result = hk(*stage[1:], stdin=output)
        assert result.exit_code == 0, result.stderr
        output = result.stdout
    assert json.loads(output)["classes"] == expected.classes
    shard = open_shard(here / f"{name}.h5")
    assert shard.ids == list(expected.records)
    for number, (identifier, (label, class_name, mean)) in enumerate(expected.records.items()):
        sample = shard.read(number)
        assert (sample.label, sample.record.get("class")) == (label, class_name)
        assert (None if sample.map is None else float(sample.map.mean())) == pytest.approx(mean, abs=1e-6)
        people = {who: float(values.mean()) for who, values in sample.annotators.items()}
        assert people == pytest.approx(expected.annotators.get(identifier, {}), abs=1e-6)
        assert sample.record | expected.keys.get(identifier, {}) == sample.record
