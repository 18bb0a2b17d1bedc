"""`hkmap annotations` and `hkmap join`: finding the image that is meant, and formats that other packages bring."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hkmap.sources.frames import fit_items
from hkmap.sources.matching import PathIndex

HEADER = "image,x,y,radius\n"


def photos(root: Path, *names: str, size: tuple[int, int] = (40, 30)) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(root / name)
    return root


def table(tmp_path: Path, *names: str, name: str = "table.csv") -> Path:
    (tmp_path / name).write_text(HEADER + "".join(f"{image},{number},2,3\n" for number, image in enumerate(names)))
    return tmp_path / name


def bubbles(records: list[dict[str, Any]]) -> dict[str, list[float]]:
    return {record["id"]: [bubble["x"] for bubble in record.get("bubbles", [])] for record in records}


# which image is meant


@pytest.mark.parametrize(("paths", "asked", "found"), [
    (["1.jpg", "2.jpg"], "1.jpg", ["1.jpg"]),
    (["1.jpg", "2.jpg"], "1.png", ["1.jpg"]),
    (["1.jpg", "2.jpg"], "1", ["1.jpg"]),
    (["1.jpg", "1.png"], "1.png", ["1.png"]),
    (["1.jpg", "1.png"], "1", ["1.jpg", "1.png"]),
    (["scan.1.jpg", "scan.jpg"], "scan.1", ["scan.1.jpg"]),
    (["a/1.jpg", "b/1.jpg"], "b/1.jpg", ["b/1.jpg"]),
    (["a/1.jpg", "b/1.jpg"], "/home/ann/photos/b/1.jpg", ["b/1.jpg"]),
    (["a/1.jpg", "b/1.jpg"], "..\\b\\1.jpg", ["b/1.jpg"]),
    (["a/1.jpg", "b/1.jpg"], "1.jpg", ["a/1.jpg", "b/1.jpg"]),
    (["a/1.jpg", "b/1.jpg"], "c/1.jpg", []),
    (["a/1.jpg", "b/2.jpg"], "b/1.jpg", []),                       # folders that differ say something
    (["train/1.jpg", "train/2.jpg"], "images/1.jpg", ["train/1.jpg"]),      # folders that all share say nothing
    (["x/a/1.jpg", "x/b/1.jpg"], "y/b/1.jpg", ["x/b/1.jpg"]),
    (["1.jpg"], "any/where/1.jpg", ["1.jpg"]),
    (["x/a/1.jpg", "a/1.jpg"], "x/a/1.jpg", ["x/a/1.jpg"]),
    (["1.jpg"], "3.jpg", []),
    ([], "3.jpg", []),
])
def test_an_image_is_found_by_path_name_or_stem(paths: list[str], asked: str, found: list[str]) -> None:
    assert PathIndex(paths).find(asked) == found


def test_an_image_that_is_missing_or_ambiguous_is_named(hk: Callable, tmp_path: Path) -> None:
    images = photos(tmp_path / "images", "a/1.jpg", "b/1.jpg", "b/.2.jpg")
    result = hk("annotations", table(tmp_path, "1.jpg"), "--images", images)
    assert f'{images}: "1.jpg" may be 2 images (a/1.jpg, b/1.jpg); give the folder that holds the' in result.stderr
    result = hk("annotations", table(tmp_path, "2.jpg"), "--images", images)
    assert f'{images}: no image "2.jpg" here or below; give the folder that holds it' in result.stderr
    assert result.exit_code == 1
    result = hk("annotations", table(tmp_path, "2", "b/1"), "--images", images, "--on-error", "skip", "--max-errors", 1)
    assert bubbles(result.records) == {"b/1": [1]}


def test_a_folder_that_links_to_itself_ends(hk: Callable, tmp_path: Path) -> None:
    images = photos(tmp_path / "images", "a/1.jpg")
    (images / "a/again").symlink_to(images)
    (images / "linked").symlink_to(photos(tmp_path / "elsewhere", "9.jpg"))
    result = hk("annotations", table(tmp_path, "1", "9"), "--images", images)
    assert bubbles(result.records) == {"a/1": [0], "linked/9": [1]}


def test_paths_are_as_given_or_absolute(hk: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos(tmp_path / "images", "1.jpg")
    Image.new("L", (40, 30), 1).save(tmp_path / "1.png")
    monkeypatch.chdir(tmp_path)
    [record] = hk("annotations", "1.png", "--images", "images").records
    assert [record["image"], record["masks"]["foreground"]] == ["images/1.jpg", "1.png#1"]
    [record] = hk("annotations", "1.png", "--images", "images", "--absolute").records
    assert [record["image"], record["masks"]["foreground"]] == [f"{tmp_path}/images/1.jpg", f"{tmp_path}/1.png#1"]


@pytest.mark.parametrize("key", ["bubbles", "points", "boxes", "polygons", "lines"])
def test_every_shape_is_carried_from_its_frame(key: str) -> None:
    places = {"points": [[10, 10]]}, {"x": 10, "y": 10, "width": 4, "height": 4, "radius": 2}
    item = places[key not in ("polygons", "lines")]
    [fitted] = fit_items([{**item, "label": "a"}], (100, 100), (400, 100))
    expected = {"points": [[40, 10]]} if "points" in item else {"x": 40, "y": 10, "width": 16, "height": 4, "radius": 4}
    assert fitted == {**expected, "label": "a"}


# what format it is


@pytest.mark.parametrize(("name", "content", "found"), [
    ("x.json", "[1, 2]", 'a text that begins with "[1, 2]"'), ("x.txt", "hello\n7", 'a text that begins with "hello"'),
    ("x.bin", "\0\1", "no text"), ("x.png", "", "an empty file"),
    ("some/a.md", "", "a folder of files with the endings .md"), ("empty", None, "an empty folder"),
])
def test_a_file_in_no_known_format_is_told_what_was_tried(hk, tmp_path, name: str, content: str | None, found) -> None:
    path = tmp_path / name.partition("/")[0]
    if content is None or "/" in name:
        path.mkdir()
    if content is not None:
        (tmp_path / name).write_text(content)
    result = hk("annotations", path, "--images", tmp_path)
    assert result.exit_code == 1
    assert f"{path}: in no known format ({found}), tried coco (COCO instances (JSON)), voc" in result.stderr
    assert "name one by --format" in result.stderr


def test_a_damaged_json_file_is_said_to_be_damaged(hk: Callable, tmp_path: Path) -> None:
    for content, reason in {
        '{"images": [': "x.json: not JSON (Expecting value", '{"a": NaN}': "not JSON (NaN is not JSON)",
        '{"a":' * 200_000: "x.json: nested too deeply for a file of annotations",
    }.items():
        (tmp_path / "x.json").write_text(content)
        assert reason in hk("annotations", tmp_path / "x.json", "--images", tmp_path).stderr


def test_the_content_tells_and_not_the_suffix(hk: Callable, tmp_path: Path) -> None:
    images = photos(tmp_path / "images", "1.jpg")
    path = table(tmp_path, "1", name="notes.json.bak")
    assert bubbles(hk("annotations", path, "--images", images).records) == {"1": [0]}


def test_an_ambiguous_file_is_read_as_told(hk: Callable, tmp_path: Path) -> None:
    images = photos(tmp_path / "images", "1.jpg")
    both = {"images": [], "annotations": [], "shapes": [], "imagePath": "1.jpg"}
    (tmp_path / "x.json").write_text(json.dumps(both))
    result = hk("annotations", tmp_path / "x.json", "--images", images)
    assert "x.json: looks like coco and labelme; choose one by --format" in result.stderr
    result = hk("annotations", tmp_path / "x.json", "--images", images, "--format", "labelme")
    assert result.records == [{"id": "1", "image": f"{images}/1.jpg", "size": [40, 30], "polygons": []}]
    result = hk("annotations", tmp_path / "x.json", "--images", images, "--format", "coco")
    assert "x.json: read as coco, no annotation in it; use another --format" in result.stderr
    result = hk("annotations", tmp_path / "x.json", "--images", images, "--format", "cocoa")
    assert "format 'cocoa' is unknown; did you mean 'coco'? expected one of coco, voc, labelme" in result.stderr


# join


@pytest.fixture
def stream(tmp_path: Path) -> list[dict[str, Any]]:
    photos(tmp_path / "images", "cat/1.jpg", "cat/2.jpg", "dog/1.jpg")
    return [
        {"id": f"{number}", "image": f"{tmp_path}/images/{name}.jpg", "size": [40, 30], "label": 3}
        for number, name in ((70, "cat/1"), (80, "cat/2"), (90, "dog/1"))
    ]


@pytest.mark.parametrize("names", [
    ["70", "80", "90"], ["cat/1.jpg", "cat/2.jpg", "dog/1.jpg"], ["images/cat/1", "images/cat/2", "images/dog/1"],
    ["C:\\images\\cat\\1.png", "C:\\images\\cat\\2.png", "C:\\images\\dog\\1"],
    ["/data/images/cat/1.jpg", "/data/images/cat/2.jpg", "/data/images/dog/1.jpg"],
])
def test_annotations_are_joined_by_id_or_name(hk, tmp_path, stream, names: list[str]) -> None:
    result = hk("join", table(tmp_path, *names), stdin=stream)
    assert bubbles(result.records) == {"70": [0], "80": [1], "90": [2]}
    assert [record["label"] for record in result.records] == [3, 3, 3]
    assert result.stderr == ""


def test_what_does_not_fit_is_said(hk: Callable, tmp_path: Path, stream: list[dict[str, Any]]) -> None:
    result = hk("join", table(tmp_path, "cat/2.jpg", "cow/7.jpg"), stdin=stream)
    assert result.exit_code == 0
    assert "bubbles" not in result.records[0]
    assert bubbles(result.records) == {"70": [], "80": [0], "90": []}
    assert "table.csv: has nothing about 2 of 3 records" in result.stderr
    assert "table.csv: annotations of 1 images fit no record: cow/7.jpg" in result.stderr


@pytest.mark.parametrize(("names", "sentence"), [
    (["cow/7.jpg"], "table.csv: none of its images (cow/7.jpg) is one of the 3 records ({}/images/cat/1.jpg, "),
    (["1"], 'table.csv: "1" fits the records "70" and "90"; expected an image to be one record'),
    (["70", "cat/1.jpg"], 'record "70" ({}/images/cat/1.jpg) may be 70, cat/1.jpg; expected one of them'),
])
def test_what_cannot_be_decided_is_an_error(hk, tmp_path, stream, names: list[str], sentence: str) -> None:
    result = hk("join", table(tmp_path, *names), stdin=stream)
    assert result.exit_code == 1
    assert sentence.format(tmp_path) in result.stderr


def test_annotators_add_up(hk: Callable, tmp_path: Path, stream: list[dict[str, Any]]) -> None:
    first = hk("join", table(tmp_path, "70", "80", name="a.csv"), stdin=stream).stdout
    (tmp_path / "b.csv").write_text("image,x,y\n70,5,6\n80,5,6\n")
    second = hk("join", tmp_path / "b.csv", "--format", "table", stdin=first).stdout
    third = hk("join", table(tmp_path, "90", "70", name="c.csv"), stdin=second).records
    assert bubbles(third) == {"70": [0, 1], "80": [1], "90": [0]}
    assert [len(record.get("points", [])) for record in third] == [1, 1, 0]


def test_the_frame_is_compared_with_the_record_or_its_image(hk, tmp_path, stream) -> None:
    (tmp_path / "gaze.txt").write_text("70,40,30,1,2,100\n80,30,40,1,2,100\n")
    result = hk("join", tmp_path / "gaze.txt", stdin=stream)
    assert 'record "80": annotated at 30x40 pixels, but it has 40x30 as displayed' in result.stderr
    del stream[0]["size"]
    result = hk("join", tmp_path / "gaze.txt", "--on-error", "skip", "--max-errors", 1, stdin=stream)
    assert [record["id"] for record in result.records] == ["70", "90"]
    assert result.records[0]["size"] == [40, 30]
    assert result.records[0]["points"] == [{"x": 1, "y": 2, "weight": 100, "user": "gaze"}]


def test_the_options_of_a_table_hold_for_join_too(hk: Callable, tmp_path: Path, stream: list[dict[str, Any]]) -> None:
    (tmp_path / "x.csv").write_text("file,x,y\n70,1,1\n")
    [record, *_] = hk("join", tmp_path / "x.csv", "--columns", "image=file", "--frame", "10x10", stdin=stream).records
    assert record["points"] == [{"x": 4, "y": 3}]


def test_masks_are_added_under_new_names_only(hk: Callable, tmp_path: Path, stream: list[dict[str, Any]]) -> None:
    Image.new("L", (40, 30), 1).save(tmp_path / "2.png")
    stream[1]["masks"] = {"lesion": "x.png"}
    [record] = hk("join", tmp_path / "2.png", stdin=stream[1:2]).records
    assert record["masks"] == {"lesion": "x.png", "foreground": f"{tmp_path}/2.png#1"}
    assert hk("join", tmp_path / "2.png", stdin=[record]).records == [record]
    record["masks"]["foreground"] = "other.png"
    result = hk("join", tmp_path / "2.png", stdin=[record])
    assert 'record "80": ' in result.stderr
    assert '2.png has something else under "masks"; expected nothing there, or new names' in result.stderr


def test_one_image_annotated_twice_is_an_error(hk: Callable, tmp_path: Path, stream: list[dict[str, Any]]) -> None:
    for name in ("a", "b"):
        shape = {"shapes": [], "imagePath": "2.jpg"}
        (tmp_path / "labels").mkdir(exist_ok=True)
        (tmp_path / f"labels/{name}.json").write_text(json.dumps(shape))
    result = hk("join", tmp_path / "labels", stdin=stream)
    assert 'labels: "2.jpg" is annotated twice; expected each image once' in result.stderr


# formats of other packages


DOTS = '''
from hkmap.sources.formats import Format

def read(path, rejects):
    for line in path.read_text().splitlines()[1:]:
        name, x, y = line.split()
        yield {"id": name, "image": name, "frame": [1, 1], "points": [{"x": float(x), "y": float(y)}], "tool": "dots"}

FORMAT = Format("dots", "Dots", lambda path: path.is_file() and path.read_bytes()[:4] == b"DOTS", read)
NAMELESS = Format("nameless", "", lambda path: False, lambda path, rejects: iter([{"id": "1"}]))
'''


def test_another_package_adds_a_format(hk: Callable, tmp_path: Path, installed: Callable[..., None]) -> None:
    images = photos(tmp_path / "images", "1.jpg")
    (tmp_path / "x.dots").write_text("DOTS\n1 0.5 0.5\n")
    assert "in no known format" in hk("annotations", tmp_path / "x.dots", "--images", images).stderr
    installed("dots", DOTS, group="hkmap.sources", dots="dots:FORMAT", nameless="dots:NAMELESS")
    record = {"id": "1", "image": f"{images}/1.jpg", "size": [40, 30]}
    expected = [record | {"points": [{"x": 20, "y": 15}], "tool": "dots"}]
    for choice in ([], ["--format", "dots"]):
        assert hk("annotations", tmp_path / "x.dots", "--images", images, *choice).records == expected
    result = hk("annotations", tmp_path / "x.dots", "--images", images, "--format", "nameless")
    assert "the format nameless gave a record without the texts id and image; mend its reader" in result.stderr


def test_a_package_that_cannot_be_imported_is_said_when_it_is_needed(hk, tmp_path, installed) -> None:
    images = photos(tmp_path / "images", "1.jpg")
    code = "import no_such_module"
    installed("broken", code, group="hkmap.sources", broken="broken:FORMAT", coco="broken:FORMAT")
    installed("wrong", "FORMAT = 7", group="hkmap.sources", wrong="wrong:FORMAT")
    assert bubbles(hk("annotations", table(tmp_path, "1"), "--images", images).records) == {"1": [0]}
    (tmp_path / "x.dots").write_text("DOTS\n1 0.5 0.5\n")
    said = hk("annotations", tmp_path / "x.dots", "--images", images).stderr
    assert "in no known format" in said
    assert 'the format "broken" (broken:FORMAT) cannot be imported (ModuleNotFoundError: No module named' in said
    said = hk("annotations", tmp_path / "x.dots", "--images", images, "--format", "wrong").stderr
    assert 'the format "wrong" (wrong:FORMAT) is a int; expected a hkmap.sources.formats.Format' in said
