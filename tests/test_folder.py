"""`hkmap folder`: class folders, masks under the same names, and nothing passed over in silence."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from PIL import Image

from hkmap.errors import ImageError
from hkmap.records import Rejects
from hkmap.sources.folder import folder_records


def pictures(root: Path, names: Iterable[str], size: tuple[int, int] = (8, 6)) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(path)
    return root


def test_class_folders_are_labels_in_natural_order(hk: Callable, tmp_path: Path) -> None:
    root = pictures(tmp_path / "images", [
        "class10/a10.png", "class10/a9.png", "class2/deep/er/x.jpg", "class2/y.tif", "loose.bmp", ".hidden.png",
    ])
    result = hk("folder", root)
    assert result.records == [
        {"id": "loose", "image": f"{root}/loose.bmp", "size": [8, 6]},
        {"id": "class2/y", "image": f"{root}/class2/y.tif", "label": 0, "class": "class2", "size": [8, 6]},
        {"id": "class2/deep/er/x", "image": f"{root}/class2/deep/er/x.jpg", "label": 0, "class": "class2",
         "size": [8, 6]},
        {"id": "class10/a9", "image": f"{root}/class10/a9.png", "label": 1, "class": "class10", "size": [8, 6]},
        {"id": "class10/a10", "image": f"{root}/class10/a10.png", "label": 1, "class": "class10", "size": [8, 6]},
    ]
    assert result.stderr == ""


def test_only_the_last_suffix_is_taken_off(hk: Callable, tmp_path: Path) -> None:
    root = pictures(tmp_path / "images", ["a/x.1.PNG", "a/x.2.JPEG"])
    assert [record["id"] for record in hk("folder", root).records] == ["a/x.1", "a/x.2"]


def test_masks_lie_under_the_same_path_with_any_suffix(hk: Callable, tmp_path: Path) -> None:
    root = pictures(tmp_path / "images", ["a/1.jpg", "a/2.jpg", "3.jpg"])
    masks = pictures(tmp_path / "masks", ["a/1.png", "3.tif"])
    result = hk("folder", root, "--masks", masks)
    assert [record.get("masks") for record in result.records] == [
        {"mask": f"{masks}/3.tif"}, {"mask": f"{masks}/a/1.png"}, None,
    ]
    assert result.stderr == ""


def test_masks_of_the_unknown_and_of_where_not_to_look(hk: Callable, tmp_path: Path) -> None:
    root = pictures(tmp_path, ["a/1.jpg", "a/2.jpg", "void/a/1.png", "burnt/a/2.png"])
    one, two = hk("folder", root, "--unknown", root / "void", "--dont-look", root / "burnt").records
    assert (one["unknown"], one.get("dont_look")) == ({"mask": f"{root}/void/a/1.png"}, None)
    assert (two.get("unknown"), two["dont_look"]) == (None, {"mask": f"{root}/burnt/a/2.png"})
    assert "masks" not in one | two


def test_masks_inside_the_root_are_no_class(hk: Callable, tmp_path: Path) -> None:
    root = pictures(tmp_path, ["cat/1.jpg", "masks/cat/1.png"])
    records = hk("folder", root, "--masks", root / "masks").records
    assert [(record["id"], record["class"]) for record in records] == [("cat/1", "cat")]
    assert "masks" in records[0]


def test_paths_are_as_given_or_absolute(hk: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures(tmp_path, ["images/a/1.png", "masks/a/1.bmp"])
    monkeypatch.chdir(tmp_path)
    [record] = hk("folder", "images", "--masks", "masks").records
    assert (record["image"], record["masks"]["mask"]) == ("images/a/1.png", "masks/a/1.bmp")
    [record] = hk("folder", "images", "--masks", "masks", "--absolute").records
    assert (record["image"], record["masks"]["mask"]) == (f"{tmp_path}/images/a/1.png", f"{tmp_path}/masks/a/1.bmp")


def test_other_files_and_masks_without_image_are_named(hk: Callable, tmp_path: Path) -> None:
    root = pictures(tmp_path / "images", ["a/1.jpg"])
    masks = pictures(tmp_path / "masks", ["a/1.png", "a/2.png"])
    for name in ("images/labels.csv", "images/a/notes.txt", "images/.DS_Store", "masks/readme.md"):
        (tmp_path / name).write_text("x")
    result = hk("folder", root, "--masks", masks)
    assert result.exit_code == 0
    assert f"{root}: 2 files are no images: labels.csv, a/notes.txt" in result.stderr
    assert f"{masks}: 1 files are no images: readme.md" in result.stderr
    assert f"{masks}: 1 masks have no image: a/2.png" in result.stderr
    assert "DS_Store" not in result.stderr


@pytest.mark.parametrize(("images", "masks", "message"), [
    ([], None, "no image here; expected files with the suffixes .bmp .gif .jpeg .jpg"),
    (["a/1.jpg", "a/1.png"], None, "1.png: would have the id \"a/1\", as "),
    (["a/1.jpg"], ["2.png"], "none of its 1 masks has an image in"),
    (["a/1.jpg"], ["b/1.png"], "(the first: b/1.png); expected the same path but for the suffix"),
    (["a/1.jpg"], [], "none of its 0 masks has an image in"),
    (["a/1.jpg"], ["a/1.png", "a/1.tif"], "1.tif: would have the id \"a/1\", as "),
])
def test_what_is_wrong_with_the_folders_is_said(hk, tmp_path, images, masks, message) -> None:
    options = [] if masks is None else ["--masks", pictures(tmp_path / "masks", masks)]
    for folder in (tmp_path / "images", tmp_path / "masks"):
        folder.mkdir(exist_ok=True)
    result = hk("folder", pictures(tmp_path / "images", images), *options)
    assert result.exit_code == 1
    assert message in result.stderr
    assert "error" in result.records[-1]


def test_an_unreadable_image_stops_or_is_skipped_and_keeps_its_class(hk: Callable, tmp_path: Path) -> None:
    root = pictures(tmp_path, ["b/2.png"])
    (root / "a").mkdir()
    (root / "a/1.png").write_bytes(b"no image")
    stopped = hk("folder", root)
    assert stopped.exit_code == 1
    assert "a/1.png" in stopped.stderr
    skipped = hk("folder", root, "--on-error", "skip", "--max-errors", 1)
    assert [(record["id"], record["label"]) for record in skipped.records] == [("b/2", 1)]
    assert "a/1.png" in skipped.stderr


def test_a_folder_of_nothing_but_bad_images_is_told_by_their_count(hk: Callable, tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"no image")
    result = hk("folder", tmp_path, "--on-error", "skip")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "1 skipped, --max-errors allows 0" in result.stderr


def test_a_link_in_a_circle_ends_in_a_sentence(hk: Callable, tmp_path: Path) -> None:
    root = pictures(tmp_path / "images", ["a/1.png"])
    (root / "a/again").symlink_to(root, target_is_directory=True)
    result = hk("folder", root)
    assert result.exit_code == 1
    assert "again: a link to a folder above it" in result.stderr


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes on POSIX only")
@pytest.mark.parametrize(("readable", "said"), [
    (True, "record 'caf\\udce9': a name in it is not UTF-8; rename"), (False, "caf\\udce9.png"),
])
def test_a_name_that_is_not_utf8_ends_in_a_sentence(hk: Callable, tmp_path: Path, readable: bool, said: str) -> None:
    good = pictures(tmp_path, ["a.png"]) / "a.png"
    try:
        odd = good.rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    except OSError:
        pytest.skip("this file system wants UTF-8")
    if not readable:
        odd.write_bytes(b"no image")
    result = hk("folder", tmp_path)
    assert result.exit_code == 1
    assert said in result.records[-1]["error"]       # which the next stage hears


def test_a_turned_photograph_has_its_size_as_displayed(hk: Callable, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 6)).save(tmp_path / "a.jpg", exif=exif)
    assert hk("folder", tmp_path).records[0]["size"] == [6, 8]


def test_records_come_one_by_one(tmp_path: Path) -> None:
    pictures(tmp_path, ["a/1.png"])
    (tmp_path / "a/2.png").write_bytes(b"no image")
    records = folder_records(tmp_path, rejects=Rejects())
    assert next(records)["id"] == "a/1"
    with pytest.raises(ImageError):
        next(records)


def test_busi(hk: Callable, data_root: Path) -> None:
    result = hk("folder", data_root / "busi/images", "--masks", data_root / "busi/masks")
    records = result.records
    assert [sum(record["label"] == label for record in records) for label in range(3)] == [437, 210, 133]
    assert {record["class"] for record in records if record["label"] == 2} == {"normal"}
    assert all(Path(record["masks"]["mask"]).stem == Path(record["image"]).stem for record in records)
    assert result.stderr == ""
