"""Each format of annotations: what becomes which key, in which coordinates; on files made here and on real ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_masks

from hkmap.files.images import read_levels
from hkmap.files.masks import read_fitting_mask, read_referred_mask
from hkmap.records import boxes_of, bubbles_of, masks_of, polygons_of
from hkmap.sources.formats import OURS, recognised

PALETTE = [7, 7, 7, 128, 0, 0, 0, 128, 0] + [9] * 753


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def picture(path: Path, size: tuple[int, int] = (40, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with the images 1.jpg and 2.jpg, 40 wide and 30 high."""
    for name in ("1.jpg", "2.jpg"):
        picture(tmp_path / "images" / name)
    return tmp_path / "images"


def only(result: Any, count: int = 1) -> Any:
    assert result.exit_code == 0, result.stderr
    assert len(result.records) == count
    return result.records[0] if count == 1 else result.records


# COCO


def coco(*annotations: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 10 * n, "file_name": f"train/{n}.jpg", "width": 40, "height": 30} for n in (1, 2)],
        "categories": [{"id": 5, "name": "bear"}, {"id": 6, "name": "bus"}],
        "annotations": [{"id": n, "image_id": 10, "category_id": 5, **one} for n, one in enumerate(annotations)],
        **changes,
    }


def listed(**changes: Any) -> dict[str, Any]:
    """A file that lists one image, with something about it changed."""
    return coco(images=[{"id": 1, "file_name": "1.jpg", **changes}])


def test_coco_boxes_polygons_and_crowds(hk: Callable, images: Path, tmp_path: Path) -> None:
    crowd = coco_masks.encode(np.asfortranarray(np.eye(30, 40, dtype=np.uint8)))["counts"].decode()
    path = write(tmp_path / "a.json", coco(
        {"bbox": [1.5, 2, 3, 4.25], "segmentation": [[0, 0, 4, 0, 4.5, 5], [9, 9, 10, 9, 10, 10, 9, 10]], "iscrowd": 0},
        {"bbox": [0, 0, 40, 30], "category_id": 6, "iscrowd": 1, "segmentation": {"size": [30, 40], "counts": crowd}},
    ))
    first, second = only(hk("annotations", path, "--images", images), 2)
    assert list(first)[:3] == ["id", "image", "size"]
    assert first == {
        "id": "1", "image": f"{images}/1.jpg", "size": [40, 30],
        "boxes": [
            {"x": 1.5, "y": 2, "width": 3, "height": 4.25, "label": "bear"},
            {"x": 0, "y": 0, "width": 40, "height": 30, "label": "bus", "iscrowd": 1},
        ],
        "polygons": [
            {"points": [[0, 0], [4, 0], [4.5, 5]], "label": "bear"},
            {"points": [[9, 9], [10, 9], [10, 10], [9, 10]], "label": "bear"},
        ],
        "masks": {"bus": {"size": [30, 40], "counts": crowd}},
    }
    assert {key: second[key] for key in ("boxes", "polygons", "masks")} == {"boxes": [], "polygons": [], "masks": {}}
    assert np.array_equal(read_referred_mask(first["masks"]["bus"]), np.eye(30, 40) > 0)


def test_coco_run_lengths_of_a_category_are_one_mask(hk: Callable, images: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    parts = [rng.random((30, 40)) < share for share in (0.2, 0.3)]
    columns = [np.concatenate([[False], part.ravel(order="F")]) for part in parts]
    runs = [np.diff(np.flatnonzero(np.concatenate([[True], np.diff(column), [True]]))) for column in columns]
    counts = [[int(run[0]) - 1, *map(int, run[1:])] for run in runs]           # the first pixel was put in front
    path = write(tmp_path / "a.json", coco(
        *({"segmentation": {"size": [30, 40], "counts": count}} for count in counts)
    ))
    first = hk("annotations", path, "--images", images).records[0]
    assert set(first) == {"id", "image", "size", "masks"}
    assert np.array_equal(read_fitting_mask(first["masks"]["bear"], (40, 30)), parts[0] | parts[1])


def test_coco_without_annotations_says_that_nothing_is_there(hk: Callable, images: Path, tmp_path: Path) -> None:
    records = only(hk("annotations", write(tmp_path / "a.json", coco()), "--images", images), 2)
    assert [record["boxes"] for record in records] == [[], []]


def test_coco_annotations_of_images_that_are_not_listed_are_named(hk: Callable, images: Path, tmp_path: Path) -> None:
    box = {"bbox": [0, 0, 1, 1]}
    path = write(tmp_path / "a.json", coco(box, box | {"image_id": 77}, box | {"image_id": 77}))
    result = hk("annotations", path, "--images", images)
    assert "a.json: 2 annotations are of images that it does not list: 77" in result.stderr
    assert [len(record["boxes"]) for record in only(result, 2)] == [1, 0]


def test_a_wrong_image_can_be_skipped(hk: Callable, images: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", coco({"bbox": [0]}, {"bbox": [0, 0, 1, 1], "image_id": 20}))
    result = hk("annotations", path, "--images", images, "--on-error", "skip", "--max-errors", 1)
    assert only(result)["id"] == "2"


# Pascal VOC


def voc(*objects: str, size: str = "<size><width>40</width><height>30</height></size>", name: str = "1.jpg") -> str:
    return f"<annotation><filename>{name}</filename>{size}{''.join(objects)}</annotation>"


def thing(name: str, *corners: float, more: str = "") -> str:
    tags = ("xmin", "ymin", "xmax", "ymax")
    box = "".join(f"<{tag}>{value}</{tag}>" for tag, value in zip(tags, corners, strict=True))
    return f"<object><name>{name}</name>{more}<bndbox>{box}</bndbox></object>"


def palette(path: Path, *rectangles: tuple[int, slice, slice]) -> np.ndarray[Any, Any]:
    values = np.zeros((30, 40), np.uint8)
    for value, rows, columns in rectangles:
        values[rows, columns] = value
    image = Image.fromarray(values, "P")
    image.putpalette(PALETTE)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return values


def test_voc_counts_from_one_and_holds_the_last_pixel(hk: Callable, images: Path, tmp_path: Path) -> None:
    text = voc(thing("dog", 1, 1, 40, 30), thing("cat", 3, 4.5, 3, 4.5, more="<difficult>1</difficult>"))
    record = only(hk("annotations", write(tmp_path / "x.xml", text), "--images", images))
    assert record["boxes"] == [
        {"x": 0, "y": 0, "width": 40, "height": 30, "label": "dog"},
        {"x": 2, "y": 3.5, "width": 1, "height": 1, "label": "cat", "difficult": 1},
    ]


@pytest.mark.parametrize("given", ["VOC", "VOC/Annotations", "VOC/Annotations/1.xml", "."])
def test_voc_palettes_become_masks_by_class_and_what_is_unknown(hk, images, tmp_path, given: str, monkeypatch) -> None:
    write(tmp_path / "VOC/Annotations/1.xml", voc(thing("dog", 6, 4, 9, 9), thing("cow", 1, 21, 3, 22)))
    values = palette(tmp_path / "VOC/SegmentationClass/1.png",
                     (12, slice(3, 9), slice(5, 9)), (10, slice(20, 22), slice(0, 3)), (255, slice(9, 10), slice(5, 9)))
    monkeypatch.chdir(tmp_path / "VOC/Annotations" if given == "." else tmp_path)
    record = only(hk("annotations", given, "--images", images))
    assert sorted(record["masks"]) == ["cow", "dog"]
    for name, level in (("dog", 12), ("cow", 10)):
        assert np.array_equal(read_fitting_mask(record["masks"][name], (40, 30)), values == level)
    assert np.array_equal(read_fitting_mask(masks_of(record, "unknown")["void"], (40, 30)), values == 255)


def test_voc_objects_are_masks_in_the_order_of_the_file(hk: Callable, images: Path, tmp_path: Path) -> None:
    things = [thing(name, 1, 1, 2, 2) for name in ("dog", "cat", "dog")]
    write(tmp_path / "VOC/Annotations/1.xml", voc(*things))
    palette(tmp_path / "VOC/SegmentationObject/1.png", *((n, slice(n, n + 1), slice(0, 9)) for n in (1, 2, 3, 4)))
    record = only(hk("annotations", tmp_path / "VOC", "--images", images))
    assert {name: reference.rpartition("#")[2] for name, reference in record["masks"].items()} == {
        "dog 1": "1", "cat": "2", "dog 3": "3", "object 4": "4",
    }
    assert "unknown" not in record


@pytest.mark.parametrize("size", ["", "<size><width>0</width><height>0</height></size>"])
def test_voc_without_a_size_takes_that_of_the_image(hk: Callable, images: Path, tmp_path: Path, size: str) -> None:
    path = write(tmp_path / "x.xml", voc(thing("dog", 1, 1, 40, 30), size=size))
    assert only(hk("annotations", path, "--images", images))["size"] == [40, 30]


@pytest.mark.parametrize("name", ["", "%s"])
def test_voc_without_a_file_name_takes_the_own(hk: Callable, images: Path, tmp_path: Path, name: str) -> None:
    result = hk("annotations", write(tmp_path / "1.xml", voc(name=name)), "--images", images)
    assert result.exit_code == (0 if not name else 1)


@pytest.mark.parametrize(("text", "sentence"), [
    ("<annotation><object></annotation>", "x.xml: not XML (mismatched tag"),
    ("<svg/>", "x.xml: begins with <svg>; expected <annotation>"),
    ('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "x.xml: not XML (it declares a DOCTYPE)"),
    ('<?xml version="1.0" encoding="x-klingon"?><annotation/>', "x.xml: not XML"),
])
def test_what_is_no_voc_file_is_refused(hk: Callable, images: Path, tmp_path: Path, text: str, sentence: str) -> None:
    result = hk("annotations", write(tmp_path / "x.xml", text), "--images", images, "--format", "voc")
    assert result.exit_code == 1
    assert sentence in result.stderr


# labelme


def labelme(*shapes: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"version": "5.0", "shapes": list(shapes), "imagePath": "..\\photos\\1.jpg", "imageData": "aGVs" * 99,
            "imageWidth": 40, "imageHeight": 30, **changes}


def shape(kind: str | None, *points: list[float], label: object = "fin") -> dict[str, Any]:
    return {"label": label, "shape_type": kind, "points": list(points)}


def test_labelme_shapes(hk: Callable, images: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "x.json", labelme(
        shape("polygon", [0, 0], [5, 0], [5, 5.5]), shape(None, [1, 1], [2, 1], [2, 2]),
        shape("rectangle", [9, 3], [4, 8]), shape("circle", [10, 10], [13, 14]), shape("point", [7, 8.5]),
        shape("points", [1, 1], [2, 2]), shape("line", [0, 0], [9, 9]), shape("linestrip", [0, 0], [9, 9], [9, 0]),
    ))
    result = hk("annotations", path, "--images", images)
    assert only(result) == {
        "id": "1", "image": f"{images}/1.jpg", "size": [40, 30],
        "polygons": [{"points": [[0, 0], [5, 0], [5, 5.5]], "label": "fin"},
                     {"points": [[1, 1], [2, 1], [2, 2]], "label": "fin"}],
        "boxes": [{"x": 4, "y": 3, "width": 5, "height": 5, "label": "fin"}],
        "bubbles": [{"x": 10, "y": 10, "radius": 5, "label": "fin"}],
        "points": [{"x": x, "y": y, "label": "fin"} for x, y in ((7, 8.5), (1, 1), (2, 2))],
        "lines": [{"points": [[0, 0], [9, 9]], "label": "fin"}, {"points": [[0, 0], [9, 9], [9, 0]], "label": "fin"}],
    }
    assert "lines on 1 images are kept under the key lines, which no filter draws" in result.stderr


def test_labelme_without_shapes_was_looked_at(hk: Callable, images: Path, tmp_path: Path) -> None:
    write(tmp_path / "labels/b.json", labelme(imagePath="2.jpg"))
    write(tmp_path / "labels/a.json", labelme(shape("point", [1, 1], label=None), imageWidth=None, imageHeight=None))
    first, second = only(hk("annotations", tmp_path / "labels", "--images", images), 2)
    assert first["points"] == [{"x": 1, "y": 1}]
    assert second["polygons"] == []


# VIA


def region(name: str, attributes: Any = None, **values: Any) -> dict[str, Any]:
    return {"shape_attributes": {"name": name, **values}, "region_attributes": attributes}


def via(*regions: Any, **changes: Any) -> dict[str, Any]:
    return {"1.jpg99": {"filename": "1.jpg", "size": 99, "regions": list(regions), "file_attributes": {}, **changes}}


def test_via_shapes(hk: Callable, images: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "x.json", via(
        region("rect", {"kind": "fin"}, x=1, y=2, width=3, height=4.5), region("circle", {}, cx=5, cy=6, r=2.5),
        region("polygon", {"name": "tail", "side": "left"}, all_points_x=[0, 4, 4], all_points_y=[0, 0, 5]),
        region("point", {"a": "1", "b": "2"}, cx=7, cy=8),
        region("polyline", all_points_x=[0, 4], all_points_y=[0, 3]),
    ))
    result = hk("annotations", path, "--images", images)
    assert only(result) == {
        "id": "1", "image": f"{images}/1.jpg", "size": [40, 30],
        "boxes": [{"x": 1, "y": 2, "width": 3, "height": 4.5, "label": "fin", "attributes": {"kind": "fin"}}],
        "bubbles": [{"x": 5, "y": 6, "radius": 2.5}],
        "polygons": [{
            "points": [[0, 0], [4, 0], [4, 5]], "label": "tail", "attributes": {"name": "tail", "side": "left"},
        }],
        "points": [{"x": 7, "y": 8, "attributes": {"a": "1", "b": "2"}}],
        "lines": [{"points": [[0, 0], [4, 3]]}],
    }
    assert "which no filter draws" in result.stderr


def test_a_via_ellipse_is_a_polygon_with_its_axes_and_area(hk: Callable, images: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "x.json", via(region("ellipse", cx=20, cy=15, rx=10, ry=4, theta=np.pi / 2)))
    x, y = np.array(only(hk("annotations", path, "--images", images))["polygons"][0]["points"]).T
    assert (x.min(), x.max(), y.min(), y.max()) == pytest.approx((16, 24, 5, 25))
    area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    assert area == pytest.approx(np.pi * 40, rel=0.002)


def test_via_projects_and_version_1_are_the_same(hk: Callable, images: Path, tmp_path: Path) -> None:
    one = region("circle", {}, cx=5, cy=6, r=2.5)
    files = [via(one), {"_via_settings": {}, "_via_img_metadata": via(one)}, via(regions={"0": one})]
    found = [
        only(hk("annotations", write(tmp_path / f"{number}.json", file), "--images", images))
        for number, file in enumerate(files)
    ]
    assert found[0] == found[1] == found[2]


def test_a_via_image_without_regions_is_not_annotated(hk: Callable, images: Path, tmp_path: Path) -> None:
    record = only(hk("annotations", write(tmp_path / "x.json", via()), "--images", images))
    assert set(record) == {"id", "image", "size"}


# YOLO


def test_yolo_is_scaled_to_the_image(hk: Callable, images: Path, tmp_path: Path) -> None:
    write(tmp_path / "labels/1.txt", "1 0.5 0.5 0.25 0.5\n\n0 0 0 0.5 0 0.5 1\n")
    write(tmp_path / "labels/2.txt", "")
    first, second = only(hk("annotations", tmp_path / "labels", "--images", images), 2)
    assert first == {
        "id": "1", "image": f"{images}/1.jpg", "size": [40, 30],
        "boxes": [{"x": 15, "y": 7.5, "width": 10, "height": 15, "label": "1"}],
        "polygons": [{"points": [[0, 0], [20, 0], [20, 30]], "label": "0"}],
    }
    assert second["boxes"] == []


@pytest.mark.parametrize(("name", "text"), [
    ("labels/classes.txt", "disc\nhard exudates\n"), ("labels/obj.names", "disc\nhard exudates\n"),
    ("data.yaml", "path: x\nnames: [disc, 'hard exudates']   # two\nnc: 2\n"),
    ("data.yaml", "names:\n- disc\n- hard exudates # EX\nnc: 2\n"),
    ("data.yaml", 'names: # two\n  0: disc\n\n  1: "hard exudates"\n'),
    ("dataset.yaml", "names: [disc,\n  hard exudates]\n"),
])
def test_yolo_classes_have_names_where_somebody_says_them(hk, images, tmp_path, name: str, text: str) -> None:
    write(tmp_path / "labels/1.txt", "1 0.5 0.5 0.25 0.5\n0 0.5 0.5 0.25 0.5\n")
    write(tmp_path / name, text)
    record = only(hk("annotations", tmp_path / "labels/1.txt", "--images", images))
    assert [box["label"] for box in record["boxes"]] == ["hard exudates", "disc"]


def test_a_yaml_without_names_is_refused(hk: Callable, images: Path, tmp_path: Path) -> None:
    write(tmp_path / "labels/1.txt", "0 0.5 0.5 0.1 0.1\n")
    write(tmp_path / "labels/data.yaml", "nc: 3\n")
    result = hk("annotations", tmp_path / "labels", "--images", images)
    assert 'data.yaml: no names under "names"; expected those of the classes' in result.stderr


# trimaps


@pytest.mark.parametrize("given", ["annotations/trimaps", "annotations", ".", "annotations/trimaps/1.png"])
def test_a_trimap_is_a_foreground_and_an_unknown_border(hk: Callable, images: Path, tmp_path: Path, given: str) -> None:
    values = np.full((30, 40), 2, np.uint8)
    values[5:20, 5:20], values[8:16, 8:16] = 3, 1
    folder = tmp_path / "pets/annotations/trimaps"
    folder.mkdir(parents=True)
    Image.fromarray(values).save(folder / "1.png")
    (folder / "._1.png").write_bytes(b"what another system leaves behind")
    record = only(hk("annotations", tmp_path / "pets" / given, "--images", images))
    assert np.array_equal(read_fitting_mask(record["masks"]["foreground"], (40, 30)), values == 1)
    assert np.array_equal(read_fitting_mask(record["unknown"]["border"], (40, 30)), values == 3)


def test_a_trimap_without_a_border_knows_everything(hk: Callable, images: Path, tmp_path: Path) -> None:
    Image.new("L", (40, 30), 2).save(tmp_path / "1.png")
    Image.new("L", (40, 30), 4).save(tmp_path / "2.png")
    record = only(hk("annotations", tmp_path / "1.png", "--images", images))
    assert "unknown" not in record
    result = hk("annotations", tmp_path / "2.png", "--images", images, "--format", "trimaps")
    assert "2.png: has the values [4]; expected 1 foreground, 2 background, 3 border" in result.stderr


# SALICON


def salicon(**changes: Any) -> dict[str, Any]:
    images = [{"id": number, "file_name": f"{number}.jpg", "width": 40, "height": 30} for number in (1, 2)]
    annotation = {"image_id": 1, "worker_id": 7, "fixations": [[1, 1], [30, 40]], **changes}
    return {"images": images, "annotations": [annotation]}


def test_salicon_gives_row_and_column_from_one(hk: Callable, images: Path, tmp_path: Path) -> None:
    first, second = only(hk("annotations", write(tmp_path / "x.json", salicon()), "--images", images), 2)
    assert first["points"] == [{"x": 0.5, "y": 0.5, "user": "7"}, {"x": 39.5, "y": 29.5, "user": "7"}]
    assert "points" not in second       # nobody looked at it


# tables and gaze


@pytest.mark.parametrize(("text", "key", "items"), [
    ("image,x,y\n1,2,3\n1.jpg,4,5\n", None, None),
    ("image,x,y,user,weight\n1,2,3,a,5\n1,4,5,b,1\n", "points",
     [{"x": 2, "y": 3, "user": "a", "weight": 5}, {"x": 4, "y": 5, "user": "b", "weight": 1}]),
    ("image;x;y;radius\n1.jpg;2;3;1.5\n", "bubbles", [{"x": 2, "y": 3, "radius": 1.5}]),
    ("image\tx\ty\twidth\theight\tlabel\n1\t2\t3\t4\t5\tfin\n", "boxes",
     [{"x": 2, "y": 3, "width": 4, "height": 5, "label": "fin"}]),
    ('{"image": 1, "x": 2, "y": 3, "width": 4, "height": 0, "score": 0.5}\n', "boxes",
     [{"x": 2, "y": 3, "width": 4, "height": 0, "score": 0.5}]),
])
def test_the_columns_of_a_table_tell_what_is_in_it(hk, images, tmp_path, text, key, items) -> None:
    result = hk("annotations", write(tmp_path / "table", text), "--images", images)
    if key is None:
        assert '"1.jpg" and "1" are both' in result.stderr
        assert result.exit_code == 1
    else:
        assert only(result) == {"id": "1", "image": f"{images}/1.jpg", "size": [40, 30], key: items}


def test_a_table_says_how_it_is_to_be_read(hk: Callable, images: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "img,left,top,w,h\n1,1,1,10,10\n")
    result = hk("annotations", path, "--images", images, "--columns", "image=img,x=left,y=top,width=w,height=h",
                "--frame", "20x10", "--origin", 1)
    assert only(result)["boxes"] == [{"x": 0, "y": 0, "width": 20, "height": 30}]
    assert hk("annotations", path, "--images", images, "--origin", 1, "--format", "coco").exit_code == 2


def test_gaze_of_several_people(hk: Callable, images: Path, tmp_path: Path) -> None:
    write(tmp_path / "gaze/run1.txt", "1,40,30,1,2,100\n2,40,30\n")
    write(tmp_path / "gaze/run2.txt", "1,40,30,3,4,200,5,6,300\n")
    first, second = only(hk("annotations", tmp_path / "gaze", "--images", images), 2)
    assert first["points"] == [
        {"x": 1, "y": 2, "weight": 100, "user": "run1"}, {"x": 3, "y": 4, "weight": 200, "user": "run2"},
        {"x": 5, "y": 6, "weight": 300, "user": "run2"},
    ]
    assert second["points"] == []


# what is wrong in a file


GOOD_BOX = "0 0.5 0.5 0.1 0.1\n"      # of YOLO
WRONG: dict[str, list[tuple[Any, str]]] = {
    "coco.json": [
        (coco({"bbox": [0, 0, 1]}), "annotations[0].bbox has 3 numbers; expected [left, top, width, height]"),
        (coco({"bbox": [0, 0, -1, 1]}), "annotations[0].bbox is -1; expected a number from 0"),
        (coco({"bbox": [0, "0", 1, 1]}), "annotations[0].bbox is \"0\"; expected a number (not a text)"),
        (coco({"bbox": {"x": 1}}), "annotations[0].bbox is {'x': 1}; expected a list"),
        (coco({"category_id": 7}), "annotations[0].category_id is 7; expected the id of a category"),
        (coco({"image_id": None}), "annotations[0].image_id is missing; expected a whole number or a text"),
        (coco({"image_id": [1]}), "annotations[0].image_id is [1]; expected a whole number or a text"),
        (coco({"segmentation": [[0, 0, 1, 1]]}), "segmentation[0] has 4 numbers; expected x and y of three corners"),
        (coco({"segmentation": [0, 0, 1, 1, 2, 2]}), "segmentation[0] is 0; expected a list"),
        (coco({"segmentation": {"size": [30, 40], "counts": [1, 2]}}), "run lengths for 3 pixels of 40x30; expected"),
        (coco(images=[{"id": 1}]), "images[0].file_name is missing; expected a text"),
        (listed(width=40), "images[0] width and height is missing; expected a whole number of pixels above 0"),
        (listed(width="40", height=30), 'width and height is "40"; expected a whole number of pixels above 0'),
        (coco(images=listed()["images"] * 2), "images[1].id is 1, as that of an image before"),
        (coco(categories=[{"id": 1}]), "categories[0].name is missing"),
        (coco(categories=3), "categories is 3; expected a list"),
    ],
    "voc.xml": [
        (voc("<object><name>dog</name></object>"), "object 1 has no bndbox; expected a name and a bndbox"),
        (voc("<object><bndbox/></object>"), "object 1 has no name"),
        (voc(thing("dog", 5, 1, 4, 2)), "object 1 goes from 5, 1 to 4, 2; expected xmin <= xmax"),
        (voc("<object><name>dog</name><bndbox><xmin>a</xmin></bndbox></object>"), 'xmin is "a"; expected a number'),
        (voc(thing("dog", 1, 1, float("inf"), 2)), 'xmax is "inf"; expected a number'),
        (voc(size="<size><width>x</width><height>3</height></size>"), 'size is "x"; expected a whole number of pixels'),
        (voc(size="<size><width>30</width><height>40</height></size>"),
         "1.jpg: annotated at 30x40 pixels, but it has 40x30 as displayed (its EXIF turns it); expected"),
    ],
    "labelme.json": [
        (labelme(shape("cuboid", [1, 1])), 'shapes[0].shape_type is "cuboid"; expected one of polygon, rectangle'),
        (labelme(shape(["x"], [1, 1])), "shapes[0].shape_type is ['x']"),
        (labelme(shape("circle", [1, 1])), "shapes[0]: a circle of 1 points; expected 2"),
        (labelme(shape("polygon", [1, 1])), "shapes[0]: a polygon of 1 points; expected 3 or more"),
        (labelme(shape("circle", [1, 1], [1, 1])), "a circle whose edge is its centre"),
        (labelme(shape("point", [1])), "shapes[0].points[0] is [1]; expected two numbers"),
        (labelme(shape("point", [1, True])), "shapes[0].points[0] is True; expected a number"),
        (labelme(3), "shapes[0] is 3; expected an object"),
        (labelme(imagePath=3), "labelme.json: imagePath is 3; expected a text"),
        (labelme(imageWidth=0), "imageWidth and imageHeight is 0; expected a whole number of pixels above 0"),
    ],
    "via.json": [
        (via(region("spiral")), '"1.jpg99".regions[0] has the shape spiral; expected one of rect, circle'),
        (via(region("rect", x=1, y=2, width=-3, height=4)), "regions[0].width is -3; expected a number from 0"),
        (via(region("circle", cx=1, cy=1, r=0)), "regions[0].r is 0; expected a number of pixels above 0"),
        (via(region("polygon", all_points_x=[1], all_points_y=[])), "has 1 x and 0 y; expected as many of both"),
        (via(region("point", "text", cx=1, cy=1)), 'region_attributes is "text"; expected an object'),
        (via({}), "regions[0].shape_attributes is missing; expected an object"),
        (via(regions=7), "regions is 7; expected a list"),
        (via(filename=7), "filename is 7; expected a text"),
    ],
    "labels/1.txt": [
        (GOOD_BOX + "0 20 15 10 10",
         '1.txt line 2: "0 20 15 10 10"; expected lines of class x y width height, relative to the image'),
        (GOOD_BOX + "0 0.5 0.5 0.1", 'line 2: "0 0.5 0.5 0.1"'),
        (GOOD_BOX + "0 0.5 0.5 0.1 0.1 0.9", 'line 2: "0 0.5 0.5 0.1 0.1 0.9"'),
        (GOOD_BOX + "cat 0.5 0.5 0.1 0.1", 'line 2: "cat'),
        (GOOD_BOX + "0 0.5 0.5 0.1 -0.001", 'line 2: "0 0.5 0.5 0.1 -0.001"'),
        (GOOD_BOX + "9 0.5 0.5 0.1 0.1", "line 2: the class 9 is none of the 1 that have a name"),
    ],
    "salicon.json": [
        (salicon(fixations=[[1]]), "annotations[0].fixations[0] is [1]; expected two numbers"),
        (salicon(fixations=None), "annotations[0].fixations is missing; expected a list"),
        (salicon(image_id=[1]), "annotations[0].image_id is [1]; expected a whole number or a text"),
        (salicon(worker_id={}), "annotations[0].worker_id is {}; expected a whole number or a text"),
    ],
    "t.csv": [
        ("image,x,y,radius,width,height\n1,1,1,1,1,1\n", "has the columns of boxes and bubbles; expected those of one"),
        ("image,x,y,width,height\n1,1,1,-1,1\n", "t.csv line 2: width is -1; expected a number from 0"),
        ("image,x,y\n1,1,1e999\n", 't.csv line 2: y is "1e999"; expected a number'),
        ("image,x,y\n", "t.csv: read as table, no annotation in it"),
        ("image,x,y\n1,1,\"" + "a" * 140_000, "t.csv: not CSV (field larger than field limit"),
    ],
    "run1.txt": [
        ("1,40,30,1,2,100\n2,40.5,30\n", "run1.txt line 2: no size of the image; expected image_id,width,height"),
        ("1,40,30,1,2,100\n1,30,40\n", "line 2: fixations in 30x40 pixels, but the image has 40x30"),
        ("1,39,30,1,2,100\n", "1.jpg: annotated at 39x30 pixels, but it has 40x30 as displayed; expected the image"),
    ],
}


@pytest.mark.parametrize(
    ("name", "content", "sentence"), [(name, *row) for name, rows in WRONG.items() for row in rows]
)
def test_what_is_wrong_in_a_file_is_named(hk, images, tmp_path, name: str, content: Any, sentence: str) -> None:
    write(tmp_path / "labels/classes.txt", "disc\n")
    result = hk("annotations", write(tmp_path / name, content), "--images", images)
    assert result.exit_code == 1
    assert sentence in result.stderr
    assert name in result.stderr or not name.endswith(".json")


# the real samples


@pytest.fixture
def formats(data_root: Path) -> Path:
    if not (data_root / "formats").is_dir():
        pytest.skip(f"no real annotation files at {data_root / 'formats'}")
    return data_root / "formats"


def test_the_real_files_are_recognised(formats: Path, data_root: Path) -> None:
    found = {name: [known.name for known in OURS if known.recognise(formats / name)] for name in (
        "coco/annotations.json", "voc", "voc/Annotations", "voc/Annotations/2007_000063.xml", "labelme",
        "labelme/2011_000003.json", "via/via_bbox.json", "trimaps/annotations", "trimaps/annotations/xmls",
        "salicon/fixations_train2014examples.json",
    )}
    assert list(found.values()) == [
        ["coco"], ["voc"], ["voc"], ["voc"], ["labelme"], ["labelme"], ["via"], ["trimaps"], ["voc"], ["salicon"],
    ], found
    assert recognised(data_root / "idrid/boxes_yolo").name == "yolo"
    for name in ("cub10/gaze", "cub10/gaze/Fixation_run1.txt"):
        assert recognised(data_root / name).name == "gaze"


def test_real_coco(hk: Callable, formats: Path) -> None:
    records = only(hk("annotations", formats / "coco/annotations.json", "--images", formats / "coco/images"), 6)
    document = json.loads((formats / "coco/annotations.json").read_text())
    assert sum(len(record["boxes"]) for record in records) == len(document["annotations"]) == 36
    crowd = next(one for one in document["annotations"] if one["iscrowd"])
    [record] = [record for record in records if record["masks"]]
    expected = coco_masks.decode(coco_masks.frPyObjects(crowd["segmentation"], *crowd["segmentation"]["size"]))
    width, height = record["size"]
    assert np.array_equal(read_fitting_mask(record["masks"]["bottle"], (width, height)), expected > 0)
    assert [box["label"] for box in record["boxes"] if "iscrowd" in box] == ["bottle"]
    for record in records:
        assert len(polygons_of(record)) >= len(record["boxes"]) - 1
        assert len(boxes_of(record)) == len(record["boxes"])


def test_real_voc(hk: Callable, formats: Path) -> None:
    first, second = only(hk("annotations", formats / "voc", "--images", formats / "voc/JPEGImages"), 2)
    assert first["boxes"][0] == {"x": 122, "y": 114, "width": 257, "height": 161, "label": "dog"}
    with Image.open(formats / "voc/SegmentationClass/2007_000063.png") as image:
        values = np.asarray(image)
    assert np.array_equal(read_levels(formats / "voc/SegmentationClass/2007_000063.png"), values)
    for name, level in (("chair", 9), ("dog", 12)):
        assert np.array_equal(read_fitting_mask(first["masks"][name], (500, 375)), values == level)
    assert np.array_equal(read_fitting_mask(first["unknown"]["void"], (500, 375)), values == 255)
    rows, columns = np.nonzero(values == 12)
    box = first["boxes"][0]      # drawn around the void edge too, at most 5 pixels wide
    assert abs(columns.min() - box["x"]) <= 5
    assert abs(rows.max() + 1 - box["y"] - box["height"]) <= 5
    assert second["boxes"][0]["y"] == pytest.approx(44.7, abs=1e-4)
    assert "masks" not in second


def test_real_labelme_and_via(hk: Callable, formats: Path) -> None:
    records = only(hk("annotations", formats / "labelme", "--images", formats / "labelme"), 3)
    assert [len(record["polygons"]) for record in records] == [5, 10, 3]
    assert records[0]["polygons"][3]["label"] == "bottle"
    first, second = only(hk("annotations", formats / "via/via_bbox.json", "--images", formats / "via"), 2)
    assert [shape["label"] for shape in first["polygons"]] == ["z", "c", "o", "###"]
    assert [len(first["boxes"]), len(second["polygons"])] == [1, 5]


def test_real_trimaps_and_salicon(hk: Callable, formats: Path) -> None:
    records = only(hk("annotations", formats / "trimaps/annotations", "--images", formats / "trimaps/images"), 5)
    for record in records:
        values = np.asarray(Image.open(formats / f"trimaps/annotations/trimaps/{record['id']}.png"))
        width, height = record["size"]
        assert np.array_equal(read_fitting_mask(record["masks"]["foreground"], (width, height)), values == 1)
        assert np.array_equal(read_fitting_mask(record["unknown"]["border"], (width, height)), values == 3)
    name = "salicon/fixations_train2014examples.json"
    records = only(hk("annotations", formats / name, "--images", formats / "salicon/images"), 10)
    for record in records:
        points = bubbles_of(record, "points")
        assert len({point.user for point in points}) > 40
        assert all(0.5 <= point.x <= 639.5 and 0.5 <= point.y <= 479.5 for point in points)


def test_real_yolo_boxes_and_gaze_are_joined(hk: Callable, data_root: Path) -> None:
    grades = hk("idrid", data_root / "idrid", "--part", "grading", "--quiet").stdout
    head = "".join(grades.splitlines(keepends=True)[:6])
    records = hk("join", data_root / "idrid/boxes_yolo", stdin=head).records
    assert len(records[0]["boxes"]) == len((data_root / "idrid/boxes_yolo/IDRiD_001.txt").read_text().split("\n")) - 1
    assert records[0]["boxes"][0]["x"] == pytest.approx(388.358, abs=1e-3)
    birds = "".join(hk("cub", data_root / "cub10/CUB_200_2011").stdout.splitlines(keepends=True)[:9])
    for run in (1, 2):
        birds = hk("join", data_root / f"cub10/gaze/Fixation_run{run}.txt", stdin=birds).stdout
    users = [{point["user"] for point in json.loads(line).get("points", [])} for line in birds.splitlines()]
    assert {"Fixation_run1", "Fixation_run2"} in users
