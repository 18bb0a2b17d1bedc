"""Files as other tools and people write them: read as they mean it, or refused with what is wrong."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hkmap.files.masks import read_fitting_mask

BOX = {"x": 10, "y": 20, "width": 40, "height": 40}


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content if isinstance(content, bytes | str) else json.dumps(content)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with the images img/x.png and img/y.png of 100x80 pixels."""
    for name in ("x", "y"):
        (tmp_path / "img").mkdir(exist_ok=True)
        Image.new("RGB", (100, 80)).save(tmp_path / f"img/{name}.png")
    return tmp_path


@pytest.fixture
def read(hk: Callable, root: Path) -> Callable[..., Any]:
    """What `hkmap annotations` says of a file: the records, without id, image and size, or the error."""

    def run(path: str, *options: str) -> Any:
        result = hk("annotations", root / path, "--images", root / "img", *options)
        if result.exit_code:
            assert result.exit_code in (1, 2)
            sentence = result.stderr.rpartition("Error: ")[2].removeprefix("Invalid value for 'PATH': ")
            return sentence.replace(f"{root}/", "")
        return [{key: record[key] for key in record.keys() - {"id", "image", "size"}} for record in result.records]

    return run


# ids and classes: COCO and SALICON


def images(*ids: object, **changes: Any) -> dict[str, Any]:
    return {"images": [{"id": key, "file_name": f"{name}.png"} for key, name in zip(ids, "xy", strict=True)], **changes}


CATEGORIES = [{"id": 1, "name": "benign"}, {"id": "2", "name": "malignant"}]


@pytest.mark.parametrize("key", ["bbox", "fixations"])
@pytest.mark.parametrize(("ids", "asked", "found"), [
    ((1, 2), 1, [1, 0]), ((1, 2), "1", [1, 0]), (("1", "2"), 1, [1, 0]), (("épée", 2), "e\u0301pe\u0301e", [1, 0]),
    ((1, 1.0), 1, "images[1].id is 1.0; expected a whole number or a text"),
    ((1, 2), 1.0, "annotations[0].image_id is 1.0; expected a whole number or a text"),
    ((1, "1"), 1, "images[1].id is 1, as that of an image before"),
    ((1, 2), "01", "no annotation is of an image that it lists: their image_id is 01, the id of the images 1, 2"),
])
def test_ids_match_as_text_and_number(read, root, key: str, ids: tuple, asked: object, found: Any) -> None:
    annotation = {"image_id": asked, "bbox": [10, 20, 40, 40], "fixations": [[1, 1]]}
    write(root / "a.json", images(*ids, annotations=[{name: annotation[name] for name in ("image_id", key)}]))
    records = read("a.json")
    if isinstance(found, str):
        assert found in records
    else:
        where = "boxes" if key == "bbox" else "points"
        assert [len(record.get(where, ())) for record in records] == found


@pytest.mark.parametrize("key", ["bbox", "fixations"])
def test_annotations_of_no_image_are_counted(hk, root, key: str) -> None:
    found = {"bbox": [1, 2, 3, 4], "fixations": [[1, 1]]}[key]
    write(root / "a.json", images(1, 2, annotations=[{"image_id": name, key: found} for name in (1, 7, "7", 8)]))
    result = hk("annotations", root / "a.json", "--images", root / "img")
    assert len(result.records) == 2
    assert "a.json: 3 annotations are of images that it does not list: 7, 8" in result.stderr


def test_an_annotation_that_is_a_category_alone_is_the_class_of_the_image(read, root) -> None:
    marks = [
        {"image_id": 1, "category_id": "1"}, {"image_id": 2, "category_id": 2, "bbox": [], "segmentation": []},
        {"image_id": 2, "category_id": 1}, {"image_id": 2, "category_id": 1},
    ]
    write(root / "a.json", images(1, 2, categories=CATEGORIES, annotations=marks))
    assert read("a.json") == [{"class": "benign"}, {"classes": ["malignant", "benign"]}]
    marks[2] |= {"bbox": [10, 20, 40, 40]}
    write(root / "a.json", images(1, 2, categories=CATEGORIES, annotations=marks[:3]))
    assert read("a.json") == [
        {"class": "benign", "boxes": []}, {"class": "malignant", "boxes": [BOX | {"label": "benign"}]},
    ]


def test_keypoints_and_captions_are_no_classes_and_counted(hk, root) -> None:
    marks = [{"image_id": 1, "category_id": 1, "keypoints": [1, 1, 2]}, {"image_id": 2, "caption": "a lesion"}]
    write(root / "a.json", images(1, 2, categories=CATEGORIES, annotations=marks))
    result = hk("annotations", root / "a.json", "--images", root / "img")
    assert [record.keys() for record in result.records] == [{"id", "image", "size"}] * 2
    assert "a.json: 2 annotations have neither bbox nor segmentation, and are not read" in result.stderr


def test_fixations_of_a_part_of_the_annotations_are_salicons(read, root) -> None:
    write(root / "a.json", images(1, 2, annotations=[{"image_id": 1}, {"image_id": 2, "fixations": [[1, 1]]}]))
    assert "annotations[0].fixations is missing; expected a list" in read("a.json")


# labelme


def png(values: Any) -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(values, np.uint8)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def labelme(*shapes: Any, **changes: Any) -> dict[str, Any]:
    return {"imagePath": "x.png", "imageWidth": 100, "imageHeight": 80, "shapes": list(shapes), **changes}


def shape(kind: str, *points: list[float], label: Any = "a", **more: Any) -> dict[str, Any]:
    return {"label": label, "shape_type": kind, "points": list(points), **more}


CORNERS = [[10, 20], [50, 20], [50, 60], [10, 60]]
TURNED = [[30, 10], [50, 30], [30, 50], [10, 30]]
ONES = png(np.ones((40, 40)))
LABELLED = BOX | {"label": "a"}
SHAPES = [
    (shape("rectangle", *CORNERS), {"boxes": [LABELLED]}),
    (shape("rectangle", *CORNERS[::-1]), {"boxes": [LABELLED]}),
    (shape("rotation", *CORNERS[2:], *CORNERS[:2], direction=0), {"boxes": [LABELLED]}),
    (shape("rectangle", CORNERS[2], CORNERS[0]), {"boxes": [LABELLED]}),
    (shape("rotation", *TURNED), {"polygons": [{"points": TURNED, "label": "a"}]}),
    (shape("rectangle", *TURNED), {"polygons": [{"points": TURNED, "label": "a"}]}),
    (shape("rectangle", CORNERS[0], CORNERS[2], CORNERS[1], CORNERS[3]),
     {"polygons": [{"points": [CORNERS[0], CORNERS[2], CORNERS[1], CORNERS[3]], "label": "a"}]}),
    (shape("rectangle", *CORNERS[:3]), "shapes[0]: a rectangle of 3 points; expected 2 or 4"),
    (shape("point", [1, 2], label=7, group_id=3), {"points": [{"x": 1, "y": 2, "label": "7", "group_id": 3}]}),
    (shape("point", [1, 2], label=0.5, group_id=None), {"points": [{"x": 1, "y": 2, "label": "0.5"}]}),
    (shape("point", [1, 2], label=None), {"points": [{"x": 1, "y": 2}]}),
    (shape("point", [1, 2], label=10**30), "shapes[0].label is 1000000000000000000000000000000; expected a text"),
    (shape("point", [1, 2], label=True), "shapes[0].label is True; expected a text, or a number"),
    (shape("point", [1, "2"]), 'shapes[0].points[0] is "2"; expected a number (not a text)'),
    (shape("mask", [70, 20], [109, 59], mask=ONES), "a mask of 40x40 pixels from 70, 20 to 109, 59 in a picture of 1"),
    (shape("mask", [10, 20], [50, 60], mask=ONES), "a mask of 40x40 pixels from 10, 20 to 50, 60 in a picture"),
    (shape("mask", [10, 20], [49, 59], mask="?"), "shapes[0]: no mask of labelme's; expected two points and a grey PN"),
    (shape("mask", [10, 20], [49, 59]), "shapes[0].mask is missing; expected a text"),
]


@pytest.mark.parametrize(("given", "found"), SHAPES)
def test_labelme_shapes_as_other_tools_write_them(read, root, given: Any, found: Any) -> None:
    write(root / "a.json", labelme(given))
    records = read("a.json")
    assert found in records if isinstance(found, str) else records == [found]


def test_labelme_masks_lie_at_their_place_and_add_up_by_label(read, root) -> None:
    half = np.arange(1600).reshape(40, 40) % 2
    write(root / "a.json", labelme(
        shape("mask", [10, 20], [49, 59], label=7, mask=png(half)), shape("mask", [60, 40], [99, 79], mask=ONES),
        shape("mask", [30, 0], [30, 0], label=7, mask=png([[1]])),
    ))
    [record] = read("a.json")
    expected = {"7": np.zeros((80, 100), bool), "a": np.zeros((80, 100), bool)}
    expected["7"][20:60, 10:50], expected["7"][0, 30], expected["a"][40:, 60:] = half, True, True
    assert record["masks"].keys() == expected.keys()
    for name, mask in expected.items():
        assert np.array_equal(read_fitting_mask(record["masks"][name], (100, 80)), mask)
    write(root / "a.json", labelme(shape("mask", [0, 0], [39, 39], mask=ONES), imageWidth=None, imageHeight=None))
    assert "a mask of a picture of unknown size; expected imageWidth and imageHeight" in read("a.json")


@pytest.mark.parametrize(("flags", "found"), [
    ({"benign": True, "malignant": False}, {"class": "benign"}), ({"benign": False}, {}), ({}, {}), (None, {}),
    ({"benign": True, "blurred": True}, {"classes": ["benign", "blurred"]}),
])
def test_the_flag_of_a_labelme_image_is_its_class(read, root, flags: Any, found: dict[str, Any]) -> None:
    write(root / "a.json", labelme(flags=flags))
    assert read("a.json") == [{"polygons": []} | found]


@pytest.mark.parametrize(("place", "name", "found"), [
    ("img/cat/1.json", "1.png", "cat/1"), ("img/dog/1.json", "1.png", "dog/1"), ("img/cat/1.json", None, "cat/1"),
    ("marks/cat/1.json", "..\\..\\img\\cat\\1.png", "cat/1"), ("marks/dog/1.json", "C:\\old\\dog\\1.png", "dog/1"),
    ("marks/cat/1.json", "1.png", "cat/1"), ("img/cat/1.json", "..\\elsewhere\\1.png", "cat/1"),
    ("marks/1.json", "../img/dog/1.png", "dog/1"), ("marks/x.json", None, "x"),
])
def test_labelme_files_in_folders_find_their_image(hk, root, place: str, name: str | None, found: str) -> None:
    for folder in ("cat", "dog"):
        (root / "img" / folder).mkdir()
        Image.new("RGB", (100, 80)).save(root / f"img/{folder}/1.png")
    write(root / place, labelme(shape("point", [1, 2]), imagePath=name))
    result = hk("annotations", root / place.split("/")[0], "--images", root / "img")
    assert [(record["id"], len(record["points"])) for record in result.records] == [(found, 1)], result.stderr


# Pascal VOC


def voc(name: str = "lesion", box: str = "", file: str = "x.png") -> str:
    corners = "<xmin>11</xmin><ymin>21</ymin><xmax>50</xmax><ymax>60</ymax>"
    return (
        f"<annotation><filename>{file}</filename><object><name>{name}</name><bndbox>{box or corners}</bndbox></object>"
        "</annotation>"
    )


@pytest.mark.parametrize("folder", ["", "Annotations/"])
@pytest.mark.parametrize(("declared", "encoding", "name"), [
    ("utf8", "utf-8", "épée"), ("UTF-8", "utf-8-sig", "épée"), (None, "utf-8", "épée"), ("GB2312", "gb2312", "鸟"),
    ("gbk", "gbk", "鸟"), ("windows-1252", "cp1252", "épée"), ("cp1252", "cp1252", "épée"), ("latin-1", "latin-1", "é"),
    ("UTF-16", "utf-16", "鸟"), ("UTF-16", "utf-16-le", "鸟"), ("utf-16", "utf-16-be", "鸟"),
    ("UTF-32", "utf-32", "鸟"), ("utf-16", "utf-8", "épée"),       # .NET declares what it does not write
    ("Shift_JIS", "shift_jis", "鳥"), ("Big5", "big5", "鳥"), ("EUC-KR", "euc-kr", "새"), ("koi8-r", "koi8-r", "Ж"),
])
def test_xml_is_read_in_every_encoding(read, root, folder: str, declared: str | None, encoding: str, name: str) -> None:
    head = f"<?xml version='1.0' encoding='{declared}'?>\n" if declared else ""
    path = write(root / f"voc/{folder}x.xml", (head + voc(name)).encode(encoding))
    assert read(path.relative_to(root).parts[0]) == [{"boxes": [BOX | {"label": name}]}]


@pytest.mark.parametrize(("content", "reason"), [
    ("<annotation>\n" + voc("salt & pepper"), 'line 2, column 58: "ame>x.png</filename><object><name>salt & pepper</'),
    (voc("salt & pepper"), '"&" is written "&amp;" in XML'), (voc("AT&T"), '"&" is written "&amp;" in XML'),
    (voc("a&nbsp;b"), "undefined entity: line 1"),
    ("<?xml version='1.0'?>\n\n" + voc("\udce9"), "line 3 has the byte 0xe9, which utf-8 has not; declare its own enc"),
    ("<?xml version='1.0' encoding='hex'?>" + voc(), "'hex' is not a text encoding"),
    ("<?xml version='1.0' encoding='idna'?>" + voc(), "idna is no encoding of XML"),
    ("<?xml version='1.0' encoding='klingon'?>" + voc(), "unknown encoding: klingon"),
    (voc()[:-9], "unclosed token: line 1"), ("<svg/>", "begins with <svg>; expected <annotation>"),
    (" ", "not XML (no element found"),
    (voc(box="<xmin>1</xmin>"), 'object 1: ymin is ""; expected a number of pixels'),
])
@pytest.mark.parametrize("options", [(), ("--format", "voc")])
def test_xml_that_cannot_be_read_says_why_with_and_without_a_format(read, root, content, reason, options) -> None:
    write(root / "x.xml", content.encode(errors="surrogateescape"))
    assert reason in read("x.xml", *options)


def masks(root: Path, level: int, *, rgb: bool = False) -> None:
    values = np.zeros((80, 100), np.uint8)
    values[20:60, 10:50] = level
    image = Image.fromarray(values).convert("P")
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, *[9] * 759])
    (root / "v/SegmentationClass").mkdir(parents=True, exist_ok=True)
    (image.convert("RGB") if rgb else image).save(root / "v/SegmentationClass/x.png")


CVAT = "# label:color_rgb:parts:actions\nbackground:0,0,0::\nlesion:128,0,0::\nvessel:0,128,0::\n"
TWICE = "v/class_names.txt: has a class twice"


@pytest.mark.parametrize(("name", "level", "file", "content", "found"), [
    ("lesion", 1, "labelmap.txt", CVAT, "lesion"), ("lesion", 2, "labelmap.txt", CVAT, "vessel"),
    ("dog", 1, "labelmap.txt", CVAT, "lesion"), ("lesion", 1, "class_names.txt", "_background_\nlesion\n", "lesion"),
    ("lesion", 1, "class_names.txt", "__ignore__\r\n_background_\r\nlesion\r\n", "lesion"),
    ("lesion", 1, "Annotations/class_names.txt", "_background_\nlesion\n", "lesion"),
    ("lesion", 1, None, "", "class 1"), ("lesion", 12, None, "", "class 12"),
    ("dog", 12, None, "", "dog"),       # of VOC, as all that the data set has
    ("dog", 1, None, "", 'has the value 1, which is "aeroplane" in VOC and no object of the XML file; name the cl'),
    ("lesion", 3, "labelmap.txt", CVAT, "x.png: has the value 3, and no class of that number; name the classes"),
    ("lesion", 1, "class_names.txt", "lesion\nvessel\n", '0 is the background, but the first class is "lesion"'),
    ("lesion", 1, "class_names.txt", "a\nb\nb\n", TWICE),
    ("lesion", 1, "labelmap.txt", CVAT.replace("128,0,0", "7,7,7").replace("0,128,0", "128,0,0"),
     'the value 1 is "lesion" by its place in labelmap.txt and "vessel" by its colour 128,0,0'),
])
def test_classes_of_voc_palettes_have_the_data_sets_own_names(read, root, name, level, file, content, found) -> None:
    write(root / "v/Annotations/x.xml", voc(name))
    masks(root, level)
    if file:
        write(root / "v" / file, content)
    records = read("v")
    if isinstance(records, str):
        assert found in records
    else:
        assert records[0]["masks"] == {found: f"{root}/v/SegmentationClass/x.png#{level}"}


def test_one_file_of_own_classes_takes_vocs_names_from_all(read, root) -> None:
    write(root / "v/Annotations/x.xml", voc("dog"))
    write(root / "v/Annotations/y.xml", voc("lesion", file="y.png"))
    masks(root, 12)
    assert read("v")[0]["masks"].keys() == {"class 12"}
    assert read("v/Annotations/x.xml")[0]["masks"].keys() == {"class 12"}


def test_a_coloured_picture_of_classes_is_read_by_the_colours_of_labelmap(read, root) -> None:
    write(root / "v/Annotations/x.xml", voc())
    write(root / "v/labelmap.txt", CVAT)
    masks(root, 2, rgb=True)
    [record] = read("v")
    mask = read_fitting_mask(record["masks"]["vessel"], (100, 80))
    assert (list(record["masks"]), mask.sum(), mask[20:60, 10:50].all()) == (["vessel"], 1600, True)
    masks(root, 3, rgb=True)
    assert "x.png: has the colour 9,9,9; expected those of labelmap.txt and black" in read("v")


# YOLO


@pytest.mark.parametrize("names", [
    "['person', 'hat, red', 'dog''s ear']", "{0: person, 1: hat, 2: dog's ear}",
    "\n  '0': person\n  '1': hat\n  '2': dog's ear", "\n  0: a [b]\n  1: \"b: c\"\n  2: 'dog''s ear'",
    "\n- a\n- 7\n- dog's ear   # a comment", "&n [a, b, dog's ear]",
])
def test_names_are_read_as_yaml_means_them(read, root, names: str) -> None:
    write(root / "y/data.yaml", f"train: ../train\nnc: 3\nnames: {names}\n")
    write(root / "y/labels/x.txt", "2 0.3 0.5 0.4 0.5\n")
    assert [box["label"] for box in read("y/labels")[0]["boxes"]] == ["dog's ear"]


LINE = "0 0.3 0.5 0.4 0.5"


@pytest.mark.parametrize(("content", "lines", "found"), [
    ("names: [no, b]", LINE, "the name of class 0 is False; expected a text, or a number"),
    ("names: {a: b}", LINE, "names is {'a': 'b'}; expected a list, or a name for each number"),
    ("names: [a", LINE, "data.yaml: not YAML (while parsing a flow"), ("nc: 1", LINE, 'no names under "names"'),
    ("nc: 2\nnames: [a]", LINE, "nc is 2, but there are 1 names; expected as many"),
    ("names: [2026-02-30]", LINE, "not YAML (day is out"), (f"names: [{'9' * 5000}]", LINE, "not YAML (Exceeds"),
    ("[" * 3000, LINE, "not YAML ("), ("names: !!python/name:os.system ''", LINE, "not YAML (could not determine"),
    ("names: [a, ['b']]", LINE, "the name of class 1 is ['b']; expected a text"),
    (f"names: [{10**30}]", LINE, "the name of class 0 is 1000000000000000000000000000000; expected a text"),
    ("names: [a]", "1" + LINE[1:], "x.txt line 1: the class 1 is none of the 1 that have a name"),
    ("names: [a]\nkpt_shape: [2, 3]", LINE, '"0 0.3 0.5 0.4 0.5"; expected class x y width height and 2 keypo'),
    ("names: [a]\nkpt_shape: [2, 3]", f"{LINE} .1 .1 2 .2 .2 0\n{LINE} .1 .1 .2 .2", "x.txt line 2: "),
    ("names: [a]\nkpt_shape: [2, 3]", f"{LINE} .1 .1 2 20 .2 0", "x.txt line 1: "),
    ("names: [a]\nkpt_shape: 3", LINE, "kpt_shape is 3; expected [keypoints, 2 or 3], such as [17, 3]"),
    ("names: [a]\nkpt_shape: [1, 9]", LINE, "kpt_shape is [1, 9]; expected"),
    ("names: [a]", f"{LINE} 0.9", 'x.txt line 1: "0 0.3 0.5 0.4 0.5 0.9"; expected lines of class x y width'),
    ("names: [a]", f"{LINE}\n0 30 50 40 50", 'x.txt line 2: "0 30 50 40 50"; expected lines of class x y width'),
    ("names: [a]", f"0 30 50 40 50\n{LINE}", 'x.txt line 1: "0 30 50 40 50"; expected lines of class x y width'),
    ("names: [a]", f"{LINE}\n{LINE} cat", "x.txt line 2: "),
])
def test_a_data_set_that_is_no_yolo_is_told_why(read, root, content: str, lines: str, found: str) -> None:
    write(root / "y/data.yaml", content)
    write(root / "y/x.txt", lines)
    assert found in read("y")


@pytest.mark.parametrize(("kind", "keypoints", "points"), [
    ("[2, 3]", "0.1 0.1 2 0.2 0.5 1", [[10, 8], [20, 40]]), ("[2, 3]", "0.1 0.1 2.000 0 0 0", [[10, 8]]),
    ("[2, 2]", "0.1 0.1 0.2 0.5", [[10, 8], [20, 40]]), ("[1, 2]", "0.1 0.1", [[10, 8]]),
])
@pytest.mark.parametrize("listed", [False, True])
def test_kpt_shape_says_that_a_line_is_a_pose(read, root, kind, keypoints, points, listed: bool) -> None:
    write(root / "y/data.yaml", f"kpt_shape: {kind}\nnames: [dog]\n")
    if listed:
        write(root / "y/classes.txt", "dog\n")
    write(root / "y/x.txt", f"{LINE} {keypoints}\n")
    [record] = read("y")
    assert record["boxes"] == [pytest.approx(BOX | {"label": "dog"})]
    assert [[point["x"], point["y"]] for point in record["points"]] == [pytest.approx(point) for point in points]
    assert {point["label"] for point in record["points"]} == {"dog"}


@pytest.mark.parametrize("labels", ["labels/{}.txt", "labels/train/{}.txt", "train/labels/{}.txt"])
def test_a_yolo_data_set_is_read_as_a_whole(hk, root, labels: str) -> None:
    folder = root / "data" / labels.replace("labels", "images").replace("{}.txt", "")
    folder.parent.mkdir(parents=True)
    (root / "img").rename(folder)
    write(root / "data/data.yaml", "names: [dog]")
    write(root / "data/README.roboflow.txt", "Exported on 1 May\n")
    write(root / "data" / labels.format("x"), LINE)
    [record] = hk("annotations", root / "data", "--images", root / "data").records
    assert (record["image"], record["boxes"]) == (f"{folder}/x.png", [pytest.approx(BOX | {"label": "dog"})])


# tables


@pytest.mark.parametrize(("text", "options", "found"), [
    ("filename,width,height,class,xmin,ymin,xmax,ymax\nx.png,100,80,a,10,20,50,60\n", "", LABELLED),
    ("filename,width,height,class,xmin,ymin,xmax,ymax\nx.png,100,80,a,10,20,50,60\n",
     "image=filename,x=xmin,y=ymin,label=class", LABELLED),
    ("image,xmin,ymin,xmax,ymax,label\nx.png,10,20,50,60,a\n", "", LABELLED),
    ("image,xmin,ymin,xmax,ymax,label\nx.png,10,20,50,60,a\n", "x=xmin,y=ymin", LABELLED),
    ('"image";"xmin";"ymin";"xmax";"ymax";"label"\r\n"x.png";10;20;50;60;"a"\r\n', "", LABELLED),
    ("\ufeffImageID\tXMin\tXMax\tYMin\tYMax\tLabelName\nx.png\t10\t50\t20\t60\ta\n", "", LABELLED),
    ("image_path,x1,y1,x2,y2,class_name\nx.png,10,20,50,60,a\n", "", LABELLED),
    ("pic,l,t,r,b,label\nx.png,10,20,50,60,a\n", "image=pic,xmin=l,ymin=t,xmax=r,ymax=b", LABELLED),
    ("image,xmin,ymin,xmax,ymax,width,height,label\nx.png,10,20,50,60,40,40,a\n", "", LABELLED),
    ('{"image": "x.png", "xmin": 10, "ymin": 20, "xmax": 50, "ymax": 60, "label": "a"}\n', "", LABELLED),
    ("Image,X,Y,Width,Height,Label\nx.png,10,20,40,40,a\n", "", LABELLED),
    ("filename,x,y,width,height,label,,\nx.png,10,20,40,40,a,,\n", "", LABELLED),
    ("image,x,y,width,height,label\nx.png,10,20,40,40,a,,\n", "", LABELLED),
    (",image,x,y,width,height,label\n0,x.png,10,20,40,40,a\n", "", LABELLED),
    ("image,left,top,w,h,label\nx.png,10,20,40,40,a\n", "x=left,y=top,width=w,height=h", LABELLED),
    ("filename,width,height,xmin,ymin,xmax,ymax\nx.png,120,80,10,20,50,60\n", "",
     "x.png: annotated at 120x80 pixels, but it has 100x80 as displayed"),
    ("image,width,height,xmin,ymin,xmax,ymax\nx.png,100,80,1,2,5,6\nx.png,80,100,1,2,5,6\n", "",
     "line 3: width and height are [80, 100], but [100, 80] before"),
    ("image,xmin,ymin,xmax\nx.png,10,20,50\n", "x=xmin,y=ymin", "map all four by --columns xmin=...,ymin=...,xmax"),
    ("image,x,y,kind\nx.png,10,20,a\n", "label=knd", 'columns image, x, y, kind, no "knd"; expected image'),
    ("image,xmin,ymin,xmax,ymax\nx.png,50,20,10,60\n", "", "line 2: goes from 50, 20 to 10, 60; expected xmin <= "),
    ("image,x,y,width,height\nx.png,10,20,100,80\n", "", "a box at 10.0, 20.0 has the picture's own size, 100x80;"),
    ("image,cx,cy,width,height\nx.png,30,40,40,40\n", "x=cx,y=cy", '"cx" looks like the centre of a box; expected'),
    ("image,xmin,ymin,xmax,ymax\nx.png,0.1,0.2,0.5,0.6\n", "", "every coordinate lies between 0 and 1; say --frame 1"),
    ("image,x,y\nx.png,0.1,0.2\n", "", "every coordinate lies between 0 and 1; say --frame 1x1 if"),
])
def test_a_table_of_corners_is_boxes_and_never_something_else(read, root, text: str, options: str, found: Any) -> None:
    write(root / "t.csv", text)
    records = read("t.csv", *(("--columns", options) if options else ()))
    assert found in records if isinstance(found, str) else records == [{"boxes": [found]}]


def test_fractions_are_read_in_the_frame_of_1x1(read, root) -> None:
    write(root / "t.csv", "image,xmin,ymin,xmax,ymax\nx.png,0.1,0.25,0.5,0.75\n")
    assert read("t.csv", "--frame", "1x1") == [{"boxes": [pytest.approx(BOX)]}]


@pytest.mark.parametrize(("name", "content", "found"), [
    ("t.csv", "img,cx,cy\nx.png,1,2\n",
     "a table with the columns img, cx, cy; expected image, x, y (points), also radius (bubbles) or width, height "
     "(boxes), or image, xmin, ymin, xmax, ymax (boxes); map yours by --columns image=img,x=cx,y=cy"),
    ("t.csv", "time,index,max,gaze_y\n1,2,3,4\n", "map yours by --columns image=...,x=...,y=gaze_y"),
    ("t.csv", "image,xmin,ymin,xmax\n1,2,3,4\n", "map yours by --columns ymax=..."),
    ("t.tsv", "image\tleft\ttop\nx.png\t1\t2\n", "map yours by --columns x=...,y=..."),
    ("t.csv", "x.png,10,20,50,60,cat\n", "the first line is a row (x.png, 10, 20, 50, 60 and 1 more); expected the"),
    ("t.csv", "image,x,x,y\nx.png,1,2,3\n", 'two columns are called "x"; rename one'),
    ("t.csv", "image,x,y,\nx.png,1,2,3\n", "line 2: 4 values under 3 columns"),
    ("t.csv", "image,x,y,label\nx.png,1,2,épée\n".encode("cp1252"), "not UTF-8 text (invalid continuation"),
    ("t.csv", "image,x,y\nx.png,1,2\n".encode("utf-16"), "not UTF-8 text (invalid start byte); save the table as UTF"),
    ("t.jsonl", '{"image": "x"}\n', "a table with the columns image; expected image, x, y"),
    ("t.jsonl", '{"image": "x", "x": 1, "y": ' + "9" * 5000 + "}", "line 1: not a JSON object (Exceeds the limit"),
    ("t.jsonl", '{"image": "x", "x": 1, "y": ' + "[" * 50_000, "line 1: not a JSON object (maximum recursion"),
    ("a.json", {"images": []}, "annotations is missing; expected a list"),
    ("a.json", {"images": {}, "annotations": []}, "images is {}; expected a list"),
    ("a.json", {"imagePath": "x.png", "shapes": {}}, "shapes is {}; expected a list"),
    ("a.json", {"imagePath": "x.png"}, "shapes is missing; expected a list"),
    ("a/1.json", '{"imagePath": "x.png", ', "a/1.json: not JSON (Expecting property name"),
    ("a.json", "[" * 100_000, "nested too deeply for a file of annotations"),
    ("a.json", '{"images": ' + "9" * 5000 + "}", "not JSON (Exceeds the limit"),
    ("a.txt", "1,100,80,1,2,100\n1,100,80,1\n1,100,80\n", "line 2: 4 values, the last fixation is cut"),
    ("a.txt", "1;100\n1,100,80,1,2,100\n1,100,80\n", "line 1: no size of the image; expected image_id,width,height"),
])
def test_what_resembles_a_format_is_told_what_is_wrong(read, root, name: str, content: Any, found: str) -> None:
    path = write(root / name, content)
    assert found in read(path.relative_to(root).parts[0])


@pytest.mark.parametrize("name", ["x.json", "x.csv", "x.xml", "x.txt", "x.png"])
def test_a_pipe_is_refused(read, root, name: str) -> None:
    os.mkfifo(root / name)
    assert read(name).startswith(f"{name}: a pipe, expected a regular file")
