"""CVAT for images 1.1: its shapes, its masks, whose they are, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hkmap.files.masks import decode_rle


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for name in ("1.jpg", "2.jpg"):
        Image.new("RGB", (40, 30)).save(tmp_path / "images" / name)
    return tmp_path / "images"


def cvat(path: Path, *shapes: str, meta: str = "", image: str = 'name="1.jpg" width="40" height="30"') -> Path:
    path.write_text(f"<annotations><version>1.1</version><meta>{meta}</meta>"
                    f'<image id="0" {image}>{"".join(shapes)}</image></annotations>')
    return path


def only(result: Any) -> dict[str, Any]:
    assert (result.exit_code, len(result.records)) == (0, 1), result.stderr
    return {key: value for key, value in result.records[0].items() if key not in ("id", "image", "size")}


BOX = '<box label="a" xtl="10" ytl="5" xbr="20" ybr="9"/>'


@pytest.mark.parametrize(("shape", "expected"), [
    (BOX, {"boxes": [{"x": 10, "y": 5, "width": 10, "height": 4, "label": "a"}]}),
    (BOX.replace("/>", ' occluded="1"><attribute name="sex">f</attribute></box>'), {"boxes": [
        {"x": 10, "y": 5, "width": 10, "height": 4, "label": "a", "attributes": {"sex": "f"}, "occluded": 1}]}),
    # a quarter turn about the centre (15, 7): 4 wide and 10 high, its first corner at the top right
    (BOX.replace("/>", ' rotation="90.00"/>'),
     {"polygons": [{"points": [[17, 2], [17, 12], [13, 12], [13, 2]], "label": "a"}]}),
    (BOX.replace("/>", ' rotation="360.00"/>'),
     {"boxes": [{"x": 10, "y": 5, "width": 10, "height": 4, "label": "a"}]}),
    ('<polygon label="a" points="1.5,2;3,2;3,4.25"/>',
     {"polygons": [{"points": [[1.5, 2], [3, 2], [3, 4.25]], "label": "a"}]}),
    ('<points label="a" points="1,2;3,4"/>', {"points": [{"x": 1, "y": 2, "label": "a"},
                                                         {"x": 3, "y": 4, "label": "a"}]}),
    ('<polyline label="a" points="1,2;3,4"/>', {"lines": [{"points": [[1, 2], [3, 4]], "label": "a"}]}),
    ('<tag label="cat"/>', {"class": "cat"}),
    ('<tag label="cat"/><tag label="cat"/>', {"class": "cat"}),
    ('<tag label="cat"/><tag label="dog"/>', {"classes": ["cat", "dog"]}),
    ("", {}),
])
def test_shapes(hk: Callable, images: Path, tmp_path: Path, shape: str, expected: dict[str, Any]) -> None:
    found = only(hk("annotations", cvat(tmp_path / "x.xml", shape), "--images", images))
    for polygon in found.get("polygons", []):
        polygon["points"] = [[round(side, 9) for side in corner] for corner in polygon["points"]]
    assert found == expected


def test_an_ellipse_is_a_polygon_with_its_axes_area_and_turn(hk: Callable, images: Path, tmp_path: Path) -> None:
    shape = '<ellipse label="a" cx="20" cy="15" rx="10" ry="4" rotation="90"/>'
    [polygon] = only(hk("annotations", cvat(tmp_path / "x.xml", shape), "--images", images))["polygons"]
    x, y = np.array(polygon["points"]).T
    assert (x.min(), x.max(), y.min(), y.max()) == pytest.approx((16, 24, 5, 25))
    area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    assert area == pytest.approx(np.pi * 40, rel=0.002)


def test_masks_of_a_label_are_one(hk: Callable, images: Path, tmp_path: Path) -> None:
    shapes = [
        '<mask label="a" rle="1, 2, 1, 2" left="3" top="4" width="3" height="2"/>',     # .xx / .xx
        '<mask label="a" rle="0, 1" left="39" top="29" width="1" height="1"/>',
        '<mask label="b" rle="0, 4" left="0" top="0" width="2" height="2"/>',
    ]
    masks = only(hk("annotations", cvat(tmp_path / "x.xml", *shapes), "--images", images))["masks"]
    assert np.argwhere(decode_rle(masks["a"])).tolist() == [[4, 4], [4, 5], [5, 3 + 1], [5, 5], [29, 39]]
    assert np.argwhere(decode_rle(masks["b"])).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


@pytest.mark.parametrize(("meta", "image", "user"), [
    ("<task><id>5</id><assignee><username>ann</username><email>a@b.c</email></assignee></task>", "", "ann"),
    ("<task><owner><username>bob</username></owner><assignee></assignee></task>", "", "bob"),
    ("<job><id>9</id><assignee><username>ann</username></assignee></job>", "", "ann"),
    ("<task><assignee>ann</assignee></task>", "", "ann"),
    ("<task/>", "", None),
    ("<project><tasks><task><id>5</id><assignee><username>ann</username></assignee></task><task><id>6</id><assignee>"
     "<username>bob</username></assignee></task></tasks></project>", 'task_id="6"', "bob"),
    ("<project><tasks><task><id>5</id></task><task><id>6</id></task></tasks></project>", 'task_id="6"', None),
])
def test_the_annotator_is_whom_it_was_assigned_to(hk, images, tmp_path, meta: str, image: str, user: object) -> None:
    shapes = [BOX, '<mask label="m" rle="0, 1" left="3" top="4" width="1" height="1"/>']
    path = cvat(tmp_path / "x.xml", *shapes, meta=meta, image=f'name="1.jpg" width="40" height="30" {image}')
    found = only(hk("annotations", path, "--images", images))
    assert found["boxes"][0].get("user") == user
    several = "project" in meta and user is not None
    name = f"m@{user}" if several else "m"
    assert list(found["masks"]) == [name]
    assert found.get("mask_users") == ({name: user} if user else None)


def test_two_annotators_files_join(hk: Callable, images: Path, tmp_path: Path) -> None:
    stream = hk("folder", images).stdout
    for user, column in (("ann", 0), ("bob", 4), ("cy", 8)):
        mask = f'<mask label="m" rle="0, 4" left="{column}" top="0" width="2" height="2"/>'
        meta = f"<task><assignee><username>{user}</username></assignee></task>"
        stream = hk("join", cvat(tmp_path / "x.xml", BOX, mask, meta=meta), stdin=stream).stdout
    record = json.loads(stream.splitlines()[0])
    assert [box["user"] for box in record["boxes"]] == ["ann", "bob", "cy"]
    assert record["mask_users"] == {"m@ann": "ann", "m@bob": "bob", "m": "cy"}
    columns = {name: np.argwhere(decode_rle(rle))[:, 1].min() for name, rle in record["masks"].items()}
    assert columns == {"m@ann": 0, "m@bob": 4, "m": 8}
    drawn = hk("masks2map", "--lesion", "m", "--size", "40x30", "--out", tmp_path / "maps", stdin=[record])
    assert np.load(drawn.records[0]["map"]).sum() == 12         # all three are called m


def test_users_of_masks_that_are_none_are_refused(hk: Callable, images: Path, tmp_path: Path) -> None:
    record = {"id": "1", "image": f"{images}/1.jpg", "size": [40, 30], "masks": {"m": "1.png"}, "mask_users": ["ann"]}
    for arguments in (("join", cvat(tmp_path / "x.xml", BOX)), ("masks2map", "--out", tmp_path / "maps")):
        result = hk(*arguments, stdin=[record])
        assert result.exit_code == 1
        assert 'record "1": mask_users is [\'ann\']; expected names of masks and users, such as' in result.stderr


def test_the_folder_of_an_export(hk: Callable, images: Path, tmp_path: Path) -> None:
    images.rename(tmp_path / "export")
    cvat(tmp_path / "export/annotations.xml", BOX, image='name="sub\\1.jpg" width="40" height="30"')
    found = only(hk("annotations", tmp_path / "export", "--images", tmp_path / "export"))
    assert found["boxes"][0]["x"] == 10


def test_the_subsets_of_a_project_are_folders_where_there_are_such(hk: Callable, images: Path, tmp_path: Path) -> None:
    image = 'name="1.jpg" subset="{}" width="40" height="30"'
    for subset, x in (("train", 10), ("val", 12)):
        (images / subset).mkdir()
        Image.new("RGB", (40, 30)).save(images / subset / "1.jpg")
        path = cvat(tmp_path / "x.xml", BOX.replace("10", str(x)), image=image.format(subset))
        [record] = hk("annotations", path, "--images", images).records
        assert (record["id"], record["boxes"][0]["x"]) == (f"{subset}/1", x)
    flat = cvat(tmp_path / "x.xml", BOX, image=image.format("other").replace("1.jpg", "2.jpg"))
    assert hk("annotations", flat, "--images", images).records[0]["id"] == "2"


@pytest.mark.parametrize(("content", "sentence"), [
    ("<annotations><track id='0'/></annotations>", 'tracks of a video; expected images, export it as "CVAT for images'),
    ("<annotations><image></annotations>", "x.xml: not XML (mismatched tag"),
    ("<annotations><image/></annotations>", "image 1 has no name; expected that of the image's file"),
    ("<annotations><image name='1.jpg' width='x' height='3'/></annotations>", 'width is "x"; expected a whole number'),
    (BOX.replace("10", "21"), "image 1: box 1 goes from 21, 5 to 20, 9; expected xtl <= xbr"),
    (BOX.replace("10", "nan"), 'box 1.xtl is "nan"; expected a number of pixels'),
    ('<box label="a" ytl="5" xbr="20" ybr="9"/>', "box 1.xtl is missing; expected a number of pixels"),
    (BOX + "<cuboid/>", "cuboid 2 is none of box, polygon, polyline, points, ellipse, mask, tag, which hkmap reads"),
    ("<skeleton/>", "skeleton 1 is none of box"),
    ('<polygon points="1,2;3,4"/>', 'has the points "1,2;3,4"; expected 3 or more as x,y;x,y'),
    ('<polygon points="1,2;3,4;5"/>', 'has the points "1,2;3,4;5"; expected 3 or more'),
    ('<ellipse cx="1" cy="1" rx="-1" ry="1"/>', "has the radii -1 and 1; expected numbers from 0"),
    ('<mask rle="0, 5" left="3" top="4" width="2" height="2"/>', "mask 1.rle has runs for 5 pixels of 2x2; expected"),
    ('<mask rle="0, x" left="3" top="4" width="2" height="2"/>', 'mask 1.rle is "0, x"; expected whole numbers'),
    ('<mask rle="0, 5, -1" left="3" top="4" width="2" height="2"/>', "mask 1.rle has runs for 4 pixels of 2x2"),
    ('<mask rle="0, 4" left="39" top="4" width="2" height="2"/>', "mask 1 is 2x2 from 39, 4, in an image of 40x30"),
    ('<mask rle="0, 4" left="-1" top="4" width="2" height="2"/>', 'left is "-1"; expected a whole number of pixels'),
])
def test_what_is_wrong_is_said(hk: Callable, images: Path, tmp_path: Path, content: str, sentence: str) -> None:
    if not content.startswith("<annotations"):
        cvat(tmp_path / "x.xml", content)
    else:
        (tmp_path / "x.xml").write_text(content)
    result = hk("annotations", tmp_path / "x.xml", "--images", images)
    assert result.exit_code == 1
    assert sentence in result.stderr


def test_another_size_of_the_image_is_refused(hk: Callable, images: Path, tmp_path: Path) -> None:
    path = cvat(tmp_path / "x.xml", BOX, image='name="1.jpg" width="80" height="60"')
    assert "annotated at 80x60 pixels, but it has 40x30" in hk("annotations", path, "--images", images).stderr


def test_another_root_is_named(hk: Callable, images: Path, tmp_path: Path) -> None:
    (tmp_path / "x.xml").write_text("<other/>")
    result = hk("annotations", tmp_path / "x.xml", "--images", images, "--format", "cvat")
    assert "begins with <other>; expected <annotations>, as CVAT has it" in result.stderr
