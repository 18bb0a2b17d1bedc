"""VIA's project of version 3 and its CSV; the JSON of versions 1 and 2 is tested with the other formats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

HEADER = "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes\n"
RECT = '"{""name"":""rect"",""x"":10,""y"":5,""width"":4,""height"":3}"'
BOX = {"x": 10, "y": 5, "width": 4, "height": 3}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for name in ("1.jpg", "2.jpg"):
        Image.new("RGB", (40, 30)).save(tmp_path / "images" / name)
    return tmp_path / "images"


def project(*regions: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "project": {"pid": "x", "vid_list": ["1"]}, "config": {}, "view": {"1": {"fid_list": ["1"]}},
        "attribute": {"1": {"aname": "class", "type": 4, "options": {"0": "fin", "1": "tail"},
                            "default_option_id": "1"},
                      "2": {"aname": "note", "type": 1, "options": {}},
                      "3": {"aname": "kinds", "type": 2, "options": {"0": "a", "1": "b"}, "default_option_id": ""}},
        "file": {"1": {"fid": "1", "fname": "1.jpg", "type": 2, "loc": 1, "src": ""}},
        "metadata": {f"1_{number}": {"vid": "1", "flg": 0, "z": [], "av": {}, **region}
                     for number, region in enumerate(regions)},
    } | changes


def only(result: Any) -> dict[str, Any]:
    assert (result.exit_code, len(result.records)) == (0, 1), result.stderr
    return {key: value for key, value in result.records[0].items() if key not in ("id", "image", "size")}


def read(hk: Callable, images: Path, document: Any, name: str = "x.json") -> Any:
    path = images.parent / name
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return hk("annotations", path, "--images", images)


@pytest.mark.parametrize(("region", "expected"), [
    ({"xy": [1, 3, 4]}, {"points": [{"x": 3, "y": 4}]}),
    ({"xy": [2, 10, 5, 4, 3], "av": {"1": "1"}}, {"boxes": [BOX | {"label": "tail", "attributes": {"class": "tail"}}]}),
    ({"xy": [2, 10, 5, 4, 3], "av": {"1": "0", "2": "torn"}},
     {"boxes": [BOX | {"label": "fin", "attributes": {"class": "fin", "note": "torn"}}]}),
    ({"xy": [1, 3, 4], "av": {"1": "_DEFAULT", "2": "a, b"}},
     {"points": [{"x": 3, "y": 4, "label": "tail", "attributes": {"class": "tail", "note": "a, b"}}]}),
    ({"xy": [1, 3, 4], "av": {"3": "0,1"}}, {"points": [{"x": 3, "y": 4, "attributes": {"kinds": ["a", "b"]}}]}),
    ({"xy": [1, 3, 4], "av": {"3": "1"}},
     {"points": [{"x": 3, "y": 4, "label": "b", "attributes": {"kinds": "b"}}]}),
    ({"xy": [1, 3, 4], "av": {"3": "_DEFAULT"}}, {"points": [{"x": 3, "y": 4, "attributes": {"kinds": ""}}]}),
    ({"xy": [3, 10, 5, 4]}, {"bubbles": [{"x": 10, "y": 5, "radius": 4}]}),
    ({"xy": [5, 1, 2, 3, 4]}, {"lines": [{"points": [[1, 2], [3, 4]]}]}),
    ({"xy": [6, 1, 2, 3, 4, 5, 6]}, {"lines": [{"points": [[1, 2], [3, 4], [5, 6]]}]}),
    ({"xy": [7, 1, 2, 3, 4, 5, 6]}, {"polygons": [{"points": [[1, 2], [3, 4], [5, 6]]}]}),
    ({"xy": [], "av": {"1": "0"}}, {"class": "fin"}),
])
def test_regions_of_version_3(hk: Callable, images: Path, region: Any, expected: dict[str, Any]) -> None:
    assert only(read(hk, images, project(region))) == expected


def test_an_ellipse_of_version_3_is_a_polygon(hk: Callable, images: Path) -> None:
    [polygon] = only(read(hk, images, project({"xy": [4, 20, 15, 10, 4]})))["polygons"]
    sides = list(zip(*polygon["points"], strict=True))
    assert [min(sides[0]), max(sides[0]), min(sides[1]), max(sides[1])] == pytest.approx([10, 30, 11, 19])


@pytest.mark.parametrize(("document", "sentence"), [
    (project({"xy": [9, 1, 1, 2, 2, 3, 3]}), 'metadata "1_0".xy has a shape of the kind 9; expected one of 1 (point)'),
    (project({"xy": [2, 1, 1, 2]}), "xy has 3 numbers for a rect; expected 4"),
    (project({"xy": [7, 1, 1, 2]}), "xy has 3 numbers for a polygon; expected pairs of x and y"),
    (project({"xy": [2, 1, 1, 2, "3"]}), "xy"),
    (project({"xy": [], "z": [1.5, 2]}), 'metadata "1_0" is a moment of a video; expected regions of images'),
    (project({"vid": "9", "xy": []}), 'metadata "1_0".vid is 9; expected one of the views'),
    (project({"xy": [1, 1, 1], "av": {"7": "0"}}), 'attribute "7" is missing; expected an object'),
    (project(file={"1": {"fname": "1.mp4", "type": 4}}), "type is 4; expected an image (2), no video or sound"),
    (project(view={"1": {"fid_list": [1, 2]}}), 'view "1" has 2 files; expected one image a view'),
    (project(view={"1": {"fid_list": [3]}}), 'file "3" is missing; expected an object'),
])
def test_what_is_wrong_in_version_3_is_said(hk: Callable, images: Path, document: Any, sentence: str) -> None:
    result = read(hk, images, document)
    assert result.exit_code == 1
    assert sentence in result.stderr


# CSV


@pytest.mark.parametrize(("rows", "expected"), [
    ([f'1.jpg,99,{{}},1,0,{RECT},"{{""name"":""fin""}}"'],
     {"boxes": [BOX | {"label": "fin", "attributes": {"name": "fin"}}]}),
    ([f'1.jpg,99,"{{""class"":""fish""}}",2,0,{RECT},{{}}', f"1.jpg,99,{{}},2,1,{RECT},{{}}"],
     {"boxes": [BOX, BOX], "class": "fish"}),
    (["1.jpg,99,{},0,0,{},{}"], {}),
    (['1.jpg,99,"{""caption"":""x"",""public_domain"":""no""}",0,0,"{}","{}"', ""], {}),
])
@pytest.mark.parametrize("header", [HEADER, f"#{HEADER}"])
def test_rows_of_a_csv(hk: Callable, images: Path, header: str, rows: list[str], expected: dict[str, Any]) -> None:
    assert only(read(hk, images, header + "\n".join(rows) + "\n", "x.csv")) == expected


def test_a_csv_that_a_spreadsheet_saved(hk: Callable, images: Path) -> None:
    text = HEADER.replace(",", ";") + f"1.jpg;99;{{}};1;0;{RECT};{{}}\n"
    assert only(read(hk, images, text, "x.csv")) == {"boxes": [BOX]}


@pytest.mark.parametrize(("text", "sentence"), [
    ("# CSV_HEADER = metadata_id,file_list,flags\n", "a CSV of VIA 3; hkmap reads its project, save that as JSON"),
    (HEADER + "1.jpg,99,{},1,0,{name:rect},{}\n", 'line 2: region_shape_attributes is "{name:rect}"; expected a JSON'),
    (HEADER + '1.jpg,99,{},1,0,"[1]",{}\n', "line 2: region_shape_attributes is [1]; expected an object"),
    (HEADER + '1.jpg,99,{},1,0,"{""name"":""rect""}",{}\n', "regions[0].width is missing; expected a number from 0"),
    (HEADER + ",99,{},1,0,{},{}\n", "line 2: filename is"),
])
def test_what_is_wrong_in_a_csv_is_said(hk: Callable, images: Path, text: str, sentence: str) -> None:
    result = read(hk, images, text, "x.csv")
    assert result.exit_code == 1
    assert sentence in result.stderr


def test_columns_that_lack_are_named(hk: Callable, images: Path) -> None:
    said = read(hk, images, "filename,region_shape_attributes\n1.jpg,{}\n", "x.csv").stderr
    assert "has the columns filename, region_shape_attributes; expected file_attributes, filename, region_attri" in said


def test_a_damaged_project_is_told_why(hk: Callable, images: Path) -> None:
    said = read(hk, images, {"_via_img_metadata": {"a": {"filename": "1.jpg"}}}).stderr
    assert 'x.json: "a".regions is missing; expected a list' in said
