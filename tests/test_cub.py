"""`hkmap cub`: both releases on small trees, and the real miniature of 2011."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

SIZES = {"1": (40, 30), "2": (30, 40), "7": (20, 20)}
IMAGES = {"1": "001.Ani/Ani_01.jpg", "2": "001.Ani/Ani_02.jpg", "7": "003.Auk/Auk_01.jpg"}


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def picture(path: Path, size: tuple[int, int], mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size).save(path)


@pytest.fixture
def cub2011(tmp_path: Path) -> Path:
    root = tmp_path / "CUB_200_2011"
    for identifier, name in IMAGES.items():
        picture(root / "images" / name, SIZES[identifier], "L" if identifier == "7" else "RGB")
    write(root / "images.txt", "".join(f"{identifier} {name}\n" for identifier, name in IMAGES.items()))
    write(root / "image_class_labels.txt", "1 1\n2 1\n7 3\n")
    write(root / "classes.txt", "1 001.Ani\n2 002.Asian Owl\n3 003.Auk\n")
    write(root / "train_test_split.txt", "1 1\n2 0\n7 1\n")
    write(root / "bounding_boxes.txt", "1 4.0 5.0 20.0 10.5\n2 1 1 2 2\n7 0 0 20 20\n")
    write(root / "parts/parts.txt", "1 back\n2 left eye\n")
    write(root / "parts/part_locs.txt", "1 1 12.0 8.0 1\n1 2 0.0 0.0 0\n2 1 0.0 0.0 0\n2 2 0.0 0.0 0\n7 2 3.5 4 1\n")
    return root


@pytest.fixture
def cub2010(tmp_path: Path) -> Path:
    root = tmp_path / "CUB_200_2010"
    for identifier, name in IMAGES.items():
        picture(root / "images" / name, SIZES[identifier])
    write(root / "lists/train.txt", f"{IMAGES['1']}\n\n{IMAGES['7']}\n")
    write(root / "lists/test.txt", f"{IMAGES['2']}\n")
    return root


def test_a_record_of_2011_says_what_the_lists_say(hk: Callable, cub2011: Path) -> None:
    first, second, third = hk("cub", cub2011).records
    assert first == {
        "id": "1", "image": str(cub2011 / "images/001.Ani/Ani_01.jpg"), "label": 0, "class": "001.Ani",
        "split": "train", "size": [40, 30],
        "boxes": [{"x": 4, "y": 5, "width": 20, "height": 10.5, "label": "001.Ani"}],
    }
    assert [second["split"], second["size"]] == ["test", [30, 40]]
    assert [third["id"], third["label"], third["class"]] == ["7", 2, "003.Auk"]


def test_a_record_of_2010_has_the_stem_as_id(hk: Callable, cub2010: Path) -> None:
    records = hk("cub", cub2010).records
    assert records[0] == {
        "id": "Ani_01", "image": str(cub2010 / "images/001.Ani/Ani_01.jpg"), "label": 0, "class": "001.Ani",
        "split": "train", "size": [40, 30],
    }
    assert [(r["id"], r["label"], r["split"]) for r in records[1:]] == [("Auk_01", 1, "train"), ("Ani_02", 0, "test")]


@pytest.mark.parametrize("line", ["{}\n", "{} {}\n"])
def test_the_class_list_of_2010_counts_where_it_is_there(hk: Callable, cub2010: Path, line: str) -> None:
    names = ["001.Ani", "002.Owl", "003.Auk"]
    text = "".join(line.format(*([name] if line == "{}\n" else [number, name])) for number, name in enumerate(names, 1))
    write(cub2010 / "lists/classes.txt", text)
    assert [record["label"] for record in hk("cub", cub2010).records] == [0, 2, 0]


@pytest.mark.parametrize("release", ["cub2011", "cub2010"])
@pytest.mark.parametrize(("split", "count"), [("train", 2), ("test", 1), ("all", 3)])
def test_a_split_is_chosen(hk: Callable, request: pytest.FixtureRequest, release: str, split: str, count: int) -> None:
    records = hk("cub", request.getfixturevalue(release), "--split", split).records
    assert len(records) == count
    assert split == "all" or {record["split"] for record in records} == {split}


def test_paths_are_as_the_root_was_given_or_absolute(hk, cub2011, monkeypatch) -> None:
    monkeypatch.chdir(cub2011.parent)
    assert hk("cub", "CUB_200_2011").records[0]["image"] == "CUB_200_2011/images/001.Ani/Ani_01.jpg"
    monkeypatch.chdir(cub2011)
    assert hk("cub", ".").records[0]["image"] == "images/001.Ani/Ani_01.jpg"
    assert hk("cub", ".", "--absolute").records[0]["image"] == str(cub2011 / "images/001.Ani/Ani_01.jpg")


def test_a_root_without_boxes_or_with_a_box_missing(hk: Callable, cub2011: Path) -> None:
    write(cub2011 / "bounding_boxes.txt", "1 4 5 20 10\n")
    assert ["boxes" in record for record in hk("cub", cub2011).records] == [True, False, False]
    (cub2011 / "bounding_boxes.txt").unlink()
    assert not any("boxes" in record for record in hk("cub", cub2011).records)


def test_parts_that_cannot_be_seen_are_no_points(hk: Callable, cub2011: Path) -> None:
    points = [record.get("points") for record in hk("cub", cub2011, "--parts").records]
    assert points == [[{"x": 12, "y": 8, "name": "back"}], [], [{"x": 3.5, "y": 4, "name": "left eye"}]]


def test_gaze_comes_as_weighted_points_of_the_images_that_were_seen(hk: Callable, cub2011: Path) -> None:
    one = write(cub2011.parent / "ann.txt", "1,40,30,5,6,100\n7,20,20,1,1,50\n1,40,30,7,8,200\n")
    two = write(cub2011.parent / "bob.txt", "1,40,30,9,9,10\n999,1,1,1,1,1\n")
    result = hk("cub", cub2011, "--gaze", one, "--gaze", two)
    first, second, third = result.records
    assert [(p["x"], p["y"], p["weight"], p["user"]) for p in first["points"]] == [
        (5, 6, 100, "ann"), (7, 8, 200, "ann"), (9, 9, 10, "bob"),
    ]
    assert "points" not in second
    assert len(third["points"]) == 1
    assert 'bob.txt: 1 lines are about images that the data set does not have' in result.stderr


@pytest.mark.parametrize("release", ["cub2011", "cub2010"])
def test_bubbles_come_with_the_images_that_have_them(hk, request, release: str) -> None:
    root = request.getfixturevalue(release)
    table = write(root.parent / "b.csv", "img,x,y,radius,user\nAni_01.jpg,11,6,2,ann\nAni_01,21,1,4,\n")
    how = ("--columns", "image=img", "--origin", 1, "--frame", "20x15")
    first, *others = hk("cub", root, "--bubbles", table, *how).records
    assert first["bubbles"] == [{"x": 20, "y": 10, "radius": 4, "user": "ann"}, {"x": 40, "y": 0, "radius": 8}]
    assert not any("bubbles" in record for record in others)


def test_a_row_about_an_image_of_the_other_split_is_no_error(hk: Callable, cub2011: Path) -> None:
    table = write(cub2011.parent / "b.jsonl", '{"image": 2, "x": 1, "y": 2, "radius": 3}\n')
    result = hk("cub", cub2011, "--bubbles", table, "--split", "train")
    assert result.exit_code == 0
    assert not any("bubbles" in record for record in result.records)


def test_a_wrong_row_is_its_image_s_error(hk: Callable, cub2011: Path) -> None:
    table = write(cub2011.parent / "b.csv", "image,x,y,radius\n1,1,2,3\n2,left,2,3\n7,1,2,3\n")
    result = hk("cub", cub2011, "--bubbles", table)
    assert result.exit_code == 1
    assert [record.get("id") for record in result.records] == ["1", None]
    assert 'b.csv line 3: x is "left"; expected a number' in result.records[1]["error"]
    result = hk("cub", cub2011, "--bubbles", table, "--on-error", "skip", "--max-errors", 1)
    assert (result.exit_code, [record["id"] for record in result.records]) == (0, ["1", "7"])


@pytest.mark.parametrize(("file", "text", "message"), [
    ("images.txt", "", "images.txt: lists no image"),
    ("images.txt", "1\n", 'images.txt line 1: "1"; expected 2 values'),
    ("images.txt", "1 a.jpg\n1 b.jpg\n", "images.txt line 2: 1 comes a second time"),
    ("image_class_labels.txt", "1 1\n", "image_class_labels.txt: no line for the image 2"),
    ("image_class_labels.txt", "1 9\n2 1\n7 1\n", "image 1 has the class 9, but classes.txt has no such number"),
    ("train_test_split.txt", "1 1\n", "train_test_split.txt: no line for the image 2"),
    ("train_test_split.txt", "1 2\n2 1\n7 1\n", "image 1 has 2; expected 1 (train) or 0 (test)"),
    ("train_test_split.txt", "1 0\n2 0\n7 0\n", "none of its 3 images is of the split train"),
    ("bounding_boxes.txt", "1 left 2 3 4\n", "bounding_boxes.txt: image 1: could not convert"),
    ("bounding_boxes.txt", "1 2 3\n", "expected 5 values"),
    ("parts/part_locs.txt", "1 9 1 1 1\n", "part_locs.txt line 1: \"1 9 1 1 1\"; expected IMAGE PART X Y VISIBLE"),
    ("parts/part_locs.txt", "1 1 1 1\n", "expected IMAGE PART X Y VISIBLE"),
    ("parts/part_locs.txt", "1 1 1 1 yes\n", "expected IMAGE PART X Y VISIBLE"),
    ("parts/part_locs.txt", "1 1 1 one 1\n", "part_locs.txt line 1: could not convert"),
])
def test_a_damaged_list_is_named(hk: Callable, cub2011: Path, file: str, text: str, message: str) -> None:
    write(cub2011 / file, text)
    result = hk("cub", cub2011, "--parts", "--split", "train")
    assert result.exit_code == 1
    assert message in result.stderr
    assert "error" in result.records[-1]


@pytest.mark.parametrize("number", ["0", "x"])
def test_a_class_number_counts_from_one(hk: Callable, cub2011: Path, number: str) -> None:
    write(cub2011 / "classes.txt", f"{number} Ani\n")
    write(cub2011 / "image_class_labels.txt", f"1 {number}\n2 {number}\n7 {number}\n")
    assert f"has the class {number}, but classes.txt has no such number" in hk("cub", cub2011).stderr


def test_a_list_of_2011_that_is_missing_or_no_text_is_named(hk: Callable, cub2011: Path) -> None:
    (cub2011 / "classes.txt").write_bytes(b"\xff\xff")
    assert "classes.txt: not a text file" in hk("cub", cub2011).stderr
    (cub2011 / "classes.txt").unlink()
    result = hk("cub", cub2011)
    assert result.exit_code == 1
    assert "classes.txt: missing; CUB-200-2011 has images.txt, image_class_labels.txt" in result.stderr


@pytest.mark.parametrize(("file", "text", "message"), [
    ("lists/train.txt", "Ani_01.jpg\n", 'train.txt line 1: "Ani_01.jpg" is in none of the 2 classes'),
    ("lists/test.txt", "003.Auk/Ani_01.jpg\n", "test.txt line 1: 003.Auk/Ani_01.jpg would have the id Ani_01, as "),
    ("lists/classes.txt", "Emu\n", "is in none of the 1 classes; expected CLASS/FILE"),
])
def test_a_damaged_list_of_2010_is_named(hk: Callable, cub2010: Path, file: str, text: str, message: str) -> None:
    write(cub2010 / file, text)
    result = hk("cub", cub2010)
    assert result.exit_code == 1
    assert message in result.stderr


def test_lists_of_2010_that_are_missing_or_empty_are_named(hk: Callable, cub2010: Path) -> None:
    write(cub2010 / "lists/train.txt", "")
    write(cub2010 / "lists/test.txt", "")
    assert "train.txt: lists no image" in hk("cub", cub2010).stderr
    (cub2010 / "lists/test.txt").unlink()
    assert "lists/test.txt: missing" in hk("cub", cub2010).stderr
    (cub2010 / "images").rename(cub2010 / "pictures")
    assert "images: missing; CUB-200-2010 keeps a folder for each class there" in hk("cub", cub2010).stderr


def test_a_folder_that_is_no_cub_is_told_what_was_looked_for(hk: Callable, cub2011: Path) -> None:
    result = hk("cub", cub2011.parent)
    assert result.exit_code == 1
    assert "no CUB-200-2011 (images.txt) and no CUB-200-2010 (lists/train.txt) here" in result.stderr
    assert f"give {cub2011}" in result.stderr
    assert "give the folder that holds one of them" in hk("cub", cub2011 / "images").stderr


def test_a_missing_image_stops_or_is_skipped_and_counted(hk: Callable, cub2011: Path) -> None:
    (cub2011 / "images" / IMAGES["2"]).unlink()
    stopped = hk("cub", cub2011)
    assert stopped.exit_code == 1
    assert "Ani_02.jpg" in stopped.stderr
    skipped = hk("cub", cub2011, "--on-error", "skip", "--max-errors", 1)
    assert skipped.exit_code == 0
    assert [record["id"] for record in skipped.records] == ["1", "7"]
    assert "1 skipped" in skipped.stderr
    assert hk("cub", cub2011, "--on-error", "skip").exit_code == 1


@pytest.mark.parametrize("release", ["cub2011", "cub2010"])
@pytest.mark.parametrize("name", ["images", "Images"])
def test_a_part_of_a_release_is_taken_as_it_is(hk, request: pytest.FixtureRequest, release: str, name: str) -> None:
    root = request.getfixturevalue(release)
    if release == "cub2010":
        write(root / "lists/classes.txt", "001.Ani\n002.Owl\n003.Auk\n")
    (root / "images/001.Ani").rename(root / "away")
    (root / "images").rename(root / name)
    result = hk("cub", root)
    assert [(record["class"], record["label"]) for record in result.records] == [("003.Auk", 2)]
    assert Path(result.records[0]["image"]).parent == root / name / "003.Auk"
    assert result.stderr == (
        f"warning: {root}: 2 of 3 images are left out, as 1 of the 2 folders are absent: 001.Ani\n")
    assert [record["label"] for record in hk("cub", root, "--classes", "present").records] == [0]
    assert "none of its 1 images is of the split test" in hk("cub", root, "--split", "test").stderr
    (root / name / "003.Auk").rename(root / "gone")
    result = hk("cub", root)
    assert result.exit_code == 1
    assert f"none of its 2 image folders has a file, as {root}/" in result.stderr


def test_the_classes_that_are_there_have_one_number_in_both_splits(hk: Callable, data_root: Path) -> None:
    root = data_root / "cub10/CUB_200_2011"
    parts = [hk("cub", root, "--split", split, "--classes", "present").records for split in ("train", "test")]
    numbers = [{record["class"]: record["label"] for record in records} for records in parts]
    assert numbers[0] == numbers[1] == {name: label for label, name in enumerate(sorted(numbers[0]))}
    assert len(numbers[0]) == 10


def test_a_row_about_no_image_names_table_and_value(hk: Callable, cub2011: Path) -> None:
    table = write(cub2011.parent / "b.csv", "image,x,y,radius\n1,1,2,3\nEmu_01.jpg,1,2,3\n")
    result = hk("cub", cub2011, "--bubbles", table)
    assert result.exit_code == 1
    assert 'b.csv line 3: image "Emu_01.jpg" is not in the data set' in result.stderr


def test_the_real_miniature(hk: Callable, data_root: Path) -> None:
    root = data_root / "cub10"
    runs = [word for run in range(1, 6) for word in ("--gaze", root / f"gaze/Fixation_run{run}.txt")]
    records = hk("cub", root / "CUB_200_2011", *runs).records
    assert len(records) == 594
    assert len({record["label"] for record in records}) == 10
    assert {record["class"] for record in records if record["label"] == 3} == {"004.Groove_billed_Ani"}
    assert sum(record["split"] == "train" for record in records) == 300
    for record in records:
        width, height = record["size"]
        assert all(0 <= p["x"] <= width and 0 <= p["y"] <= height and p["weight"] > 0 for p in record["points"])
        assert record["boxes"][0]["label"] == record["class"]
    first_run = [line.split(",") for line in (root / "gaze/Fixation_run1.txt").read_text().splitlines()]
    repeated = next(cells[0] for cells in first_run if sum(other[0] == cells[0] for other in first_run) > 1)
    points = next(record for record in records if record["id"] == repeated)["points"]
    expected = sum((len(cells) - 3) // 3 for cells in first_run if cells[0] == repeated)
    assert sum(point["user"] == "Fixation_run1" for point in points) == expected
    absent = {record["id"] for record in records} - {cells[0] for cells in first_run}
    assert len(absent) == 594 - 531


def test_the_greyscale_image_and_the_parts_of_the_miniature(hk: Callable, data_root: Path) -> None:
    records = hk("cub", data_root / "cub10/CUB_200_2011", "--parts").records
    assert sum(len(record["points"]) for record in records) == 7251
    grey = []
    for record in records:
        with Image.open(record["image"]) as image:
            assert list(image.size) == record["size"]
            grey.append(image.mode == "L")
    assert any(grey)


def test_boxes_and_outlines_of_2010(hk: Callable, cub2010: Path, tmp_path: Path) -> None:
    folder = cub2010 / "annotations-mat/001.Ani"
    folder.mkdir(parents=True)
    outline = np.zeros((30, 40), np.uint8)
    outline[4:9, 2:20] = 1
    sides = {"left": np.uint16(3), "top": 5.0, "right": 20.0, "bottom": 9.0}
    scipy.io.savemat(folder / "Ani_01.mat", {"bbox": sides, "seg": outline})
    first, second, _ = hk("cub", cub2010).records
    assert first["boxes"] == [{"x": 2, "y": 4, "width": 18, "height": 5, "label": "001.Ani"}]
    assert first["masks"] == {"bird": f"{folder}/Ani_01.mat#seg"}
    assert "masks" not in second
    [drawn] = hk("masks2map", "--size", "40x30", "--out", tmp_path / "maps", stdin=[first]).records
    assert np.array_equal(np.load(drawn["map"]), outline)


@pytest.mark.parametrize("sides", [{"left": 3.0}, {"left": 3, "top": 5, "right": 2, "bottom": 9}, 7.0, "box",
                                   {"left": "a", "top": 1, "right": 2, "bottom": 3}])
def test_a_wrong_box_of_2010_is_named(hk: Callable, cub2010: Path, sides: object) -> None:
    (cub2010 / "annotations-mat/001.Ani").mkdir(parents=True)
    scipy.io.savemat(cub2010 / "annotations-mat/001.Ani/Ani_01.mat", {"bbox": sides})
    result = hk("cub", cub2010)
    assert result.exit_code == 1
    assert "Ani_01.mat: bbox is" in result.stderr
    assert "expected the numbers left, top, right and bottom" in result.stderr
