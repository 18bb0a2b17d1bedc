"""The neutral bubble table and the CUB-GHA gaze format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hkmap.errors import SourceError
from hkmap.records import Rejects
from hkmap.sources.gaze import gaze_points, read_gaze
from hkmap.sources.tables import Table, read_bubbles, table_bubbles, table_records

NAMES = [("1", "001.Ani/Ani_01.jpg"), ("2", "001.Ani/Ani_02.jpg"), ("3", "002.Auk/Ani_02.jpg")]
HEADER = "image,x,y,radius\n"


def table(tmp_path: Path, text: str | bytes, name: str = "bubbles.csv", **how: object) -> dict[str, list[dict]]:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    found = Table(path, **how)
    return {image: table_bubbles(rows, found, (500, 375)) for image, rows in read_bubbles(found, NAMES).items()}


@pytest.mark.parametrize("name", ["1", "001.Ani/Ani_01.jpg", "Ani_01.jpg", "Ani_01", "images/001.Ani/Ani_01.jpg",
                                  "data/CUB/images/001.Ani/Ani_01.jpg", "001.Ani\\Ani_01.jpg"])
def test_a_row_names_its_image_in_any_usual_way(tmp_path: Path, name: str) -> None:
    assert table(tmp_path, f"{HEADER}{name},3,4,5\n") == {"1": [{"x": 3, "y": 4, "radius": 5}]}


BUBBLE = {"1": [{"x": 3.5, "y": 4, "radius": 5, "user": "7", "weight": 2, "success": "1"}]}


@pytest.mark.parametrize("text", [
    "image,x,y,radius,user,weight,success\n1,3.5,4,5,7,2,1\n",
    "\ufeffimage, x ,y,radius,user,weight,success\r\n1, 3.5 ,4,5,7,2,1\r\n\r\n",      # as a spreadsheet saves it
    "success;user;weight;radius;y;x;image\n1;7;2;5;4;3.5;1\n",
    "image\tx\ty\tradius\tuser\tweight\tsuccess\n1\t3.5\t4\t5\t7\t2\t1\n",
    'image,x,y,radius,user,weight,success,note\n"1",3.5,4,5,7,2,1,\n',
])
def test_the_dialects_of_csv_give_the_same_bubbles(tmp_path: Path, text: str) -> None:
    assert table(tmp_path, text) == BUBBLE


def test_json_lines_give_the_same_bubbles(tmp_path: Path) -> None:
    row = {"image": 1, "x": 3.5, "y": 4, "radius": 5, "user": 7, "weight": 2, "success": "1"}
    assert table(tmp_path, f"\n{json.dumps(row)}\n", "bubbles.jsonl") == BUBBLE


def test_columns_are_mapped_and_the_rest_is_kept(tmp_path: Path) -> None:
    text = "img,cx,cy,r,x,class_a\n1,3,4,5,99,Ani\n1,6,7,8,99,Auk\n"
    columns = {"image": "img", "x": "cx", "y": "cy", "radius": "r"}
    assert table(tmp_path, text, columns=columns) == {"1": [
        {"x": 3, "y": 4, "radius": 5, "class_a": "Ani"}, {"x": 6, "y": 7, "radius": 8, "class_a": "Auk"},
    ]}


def test_origin_one_takes_one_off_the_position_and_not_the_radius(tmp_path: Path) -> None:
    assert table(tmp_path, f"{HEADER}1,1,1,1\n", origin=1) == {"1": [{"x": 0, "y": 0, "radius": 1}]}


@pytest.mark.parametrize(("frame", "size", "expected"), [
    (None, (500, 375), (112, 56, 7)),
    ((224, 224), (224, 224), (112, 56, 7)),
    ((224, 224), (448, 448), (224, 112, 14)),
    ((224, 224), (896, 224), (448, 56, 14)),            # the radius: twice, the geometric mean of 4 and 1
])
def test_a_frame_is_scaled_to_the_image(tmp_path: Path, frame: tuple, size: tuple, expected: tuple) -> None:
    (tmp_path / "bubbles.csv").write_text("image,x,y,radius,user\n1,112,56,7,a\n")
    found = Table(tmp_path / "bubbles.csv", frame=frame)
    [item] = table_bubbles(read_bubbles(found, NAMES)["1"], found, size)
    assert (item["x"], item["y"], item["radius"]) == pytest.approx(expected)
    assert item["user"] == "a"


@pytest.mark.parametrize(("text", "message"), [
    ("", 'no bubbles; expected one per row'),
    (HEADER, "no bubbles; expected one per row under the columns image,x,y,radius"),
    ("img,x,y,radius\n1,3,4,5\n", 'line 2: no value under "image" (it has img, x, y, radius); map it by --columns'),
    (f"{HEADER}1,3,,5\n", 'line 2: no value under "y"'),
    (f"{HEADER}1,3,4,5\n1,3,4,5,6\n", "line 3: 5 values under 4 columns"),
    ("image,x,x,y,radius\n1,3,3,4,5\n", 'two columns are called "x"'),
    (f"{HEADER}1,3,left,5\n", 'line 2: y is "left"; expected a number'),
    (f"{HEADER}1,nan,4,5\n", 'line 2: x is "nan"; expected a number'),
    (f'{HEADER}1,"3,5",4,5\n', 'x is "3,5"; expected a number, with a point for decimals'),
    (f"{HEADER}1,3,4,0\n", "line 2: radius is 0; expected a number of pixels above 0"),
    ("image,x,y,radius,weight\n1,3,4,5,-1\n", "line 2: weight is -1; expected a number from 0"),
    (f"{HEADER}\n9,3,4,5\n", 'line 3: image "9" is not in the data set; expected an id'),
    (f"{HEADER}Ani_02,3,4,5\n", 'line 2: image "Ani_02" is the name of 2 images; give the path below images/'),
    (b"image,x,y,radius\nGro\xdfer Ani,1,2,3\n", "not UTF-8 text"),
    # JSON lines
    ('{"image": 1,', "line 1: not a JSON object"),
    ('{"image": 1, "x": 1, "y": 1, "radius": 1}\n[2]\n', "line 2: expected a JSON object with image, x, y, got [2]"),
    ('{"image": 1, "x": true, "y": 1, "radius": 1}', 'x is "True"; expected a number'),
    ('{"image": 1, "x": [1], "y": 1, "radius": 1}', 'x is "[1]"; expected a number'),
    ('{"image": 1, "x": null, "y": 1, "radius": 1}', 'no value under "x"'),
])
def test_what_is_wrong_in_a_table_is_named_with_its_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(SourceError) as error:
        table(tmp_path, text)
    assert message in str(error.value)
    assert "bubbles.csv" in str(error.value)


def test_a_wrong_row_is_told_when_its_image_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "bubbles.csv"
    path.write_text("\n  \nimage,x,y,radius\n1,3,4,5\n , ,\n2,wide,4,5\n1,6,7,8\n")
    found = read_bubbles(Table(path), NAMES)
    assert set(found) == {"1", "2"}
    assert table_bubbles(found["1"], Table(path), (9, 9)) == [
        {"x": 3, "y": 4, "radius": 5}, {"x": 6, "y": 7, "radius": 8},
    ]
    with pytest.raises(SourceError, match='line 6: x is "wide"'):
        table_bubbles(found["2"], Table(path), (9, 9))


def gaze_file(tmp_path: Path, text: str | bytes, name: str = "run1.txt") -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_lines_of_one_image_add_up_over_lines_and_annotators(tmp_path: Path) -> None:
    files = [
        gaze_file(tmp_path, "5,40,30,1,2,100,3,4,200\n6,40,30\n5,40,30,-7,6,300\n"),
        gaze_file(tmp_path, "\n5, 40,30, 9.5,9,50\r\n", "run2.txt"),
    ]
    lines = read_gaze(files, {"5", "6", "7"})
    points = [(p["x"], p["y"], p["weight"], p["user"]) for p in gaze_points(lines["5"], (40, 30))]
    assert points == [(1, 2, 100, "run1"), (3, 4, 200, "run1"), (-7, 6, 300, "run1"), (9.5, 9, 50, "run2")]
    assert gaze_points(lines["6"], (40, 30)) == []
    assert "7" not in lines


@pytest.mark.parametrize(("line", "message"), [
    ("5,40,30,1,2", "run1.txt line 2: 5 values, the last fixation is cut; expected image_id,width,height"),
    ("5,40", "run1.txt line 2: 2 values, the last fixation is cut"),
    ("5", "run1.txt line 2: 1 values, the last fixation is cut"),
    ("5,40,30,1,2,", 'run1.txt line 2: "" is no number'),
    ("5,40,30,1,inf,3", 'run1.txt line 2: "inf" is no number'),
    ("5,40,30,1,2,-3", "run1.txt line 2: a duration below 0"),
    ("5,30,40,1,2,3", "run1.txt line 2: fixations in 30x40 pixels, but the image has 40x30"),
])
def test_a_wrong_line_is_named_when_its_image_comes(tmp_path: Path, line: str, message: str) -> None:
    lines = read_gaze([gaze_file(tmp_path, f"6,40,30,1,1,1\n{line}\n")], {"5", "6"})
    with pytest.raises(SourceError) as error:
        gaze_points(lines["5"], (40, 30))
    assert message in str(error.value)


@pytest.mark.parametrize(("text", "message"), [
    ("", "no line is about an image of the data set (the file is empty)"),
    ("image,width,height\n", 'no line is about an image of the data set'),
    (b"\xff\xfe5\x00", "not a text file"),
])
def test_a_file_that_is_no_gaze_of_these_images_is_refused(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(SourceError) as error:
        read_gaze([gaze_file(tmp_path, text)], {"5"})
    assert message in str(error.value)


def test_two_files_of_one_name_would_be_one_annotator(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    files = [gaze_file(tmp_path, "5,40,30\n"), gaze_file(tmp_path / "b", "5,40,30\n")]
    with pytest.raises(SourceError, match="the annotator run1 is also"):
        read_gaze(files, {"5"})


@pytest.mark.parametrize(("columns", "row", "strange"), [
    ("image,x,y,width", "a,1,2,wide", "width"), ("image,x,y,radius,height", "a,1,2,3,4", "height"),
    ("image,x,y,points", "a,1,2,9", "points"), ("image,x,y,width,height,points", "a,1,2,3,4,5", "points"),
    ("image,xmin,ymin,xmax,ymax,x", "a,1,2,3,4,5", "x"), ("image,xmin,ymin,xmax,ymax,radius", "a,1,2,3,4,5", "radius"),
])
def test_a_column_that_records_keep_in_pixels_has_no_other_meaning(
    columns: str, row: str, strange: str, tmp_path: Path
) -> None:
    """It stayed as text under the same name, and a frame scaled it, in a traceback."""
    (tmp_path / "t.csv").write_text(f"{columns}\n{row}\n")
    with pytest.raises(SourceError, match=f't.csv line 2: has "{strange}", which is none of the columns of'):
        list(table_records(Table(tmp_path / "t.csv", frame=(8, 8)), Rejects()))
