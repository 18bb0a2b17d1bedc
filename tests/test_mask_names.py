"""Which image a mask belongs to, by its name: beside the images or apart, one or several, and nothing by guessing."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hkmap.files.maps import load_map_file
from hkmap.sources.mask_names import USUAL, Owners, mask_names
from hkmap.sources.matching import PathIndex, image_paths

SIZE = (60, 50)
NFC, NFD = (unicodedata.normalize(form, "épée") for form in ("NFC", "NFD"))


def photo(path: Path) -> None:
    """A picture of many colours, and of one brightness for each name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(len(path.name)).integers(40, 200, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    Image.fromarray(values).save(path)


def mask(path: Path, left: int = 10, values: tuple[int, int] = (0, 255)) -> None:
    """Twenty columns and ten rows of 60 x 50: a fifteenth of the picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((SIZE[1], SIZE[0]), values[0], np.uint8)
    pixels[10:20, left : left + 20] = values[1]
    Image.fromarray(pixels).save(path)


def tree(root: Path, photos: str, masks: str) -> Path:
    """Write the files of two lists of names, parted by bars."""
    for name in filter(None, photos.split("|")):
        photo(root / name)
    for name in filter(None, masks.split("|")):
        mask(root / name)
    return root


def found(records: list[dict[str, Any]], root: Path) -> dict[str, dict[str, str]]:
    return {
        record["id"]: {name: str(Path(path).relative_to(root)) for name, path in record.get("masks", {}).items()}
        for record in records
    }


# the words and the patterns


@pytest.mark.parametrize("name", [
    "x_mask.png", "x_mask_1.png", "x_mask1.png", "x_mask (1).PNG", "x-mask.tif", "x.mask.png", "x mask.png",
    "x_Mask.png", "x_segmentation.png", "x_seg.png", "x_gt.png", "x_GT.bmp", "x_label.png", "x_labels.png",
    "x_seg_mask_2.png", "x_ground_truth.png", "x_groundtruth.png", "x_manual1.gif", "mask_x.png",
])
def test_usual_names(name: str) -> None:
    assert any(Owners(["x"]).beside(place) == "x" for place in USUAL.places(name))


@pytest.mark.parametrize("name", ["x.png", "xmask.png", "x_masked.png", "x_unmask.png", "x_segment.png", "x_1.png"])
def test_other_names(name: str) -> None:
    assert not any(Owners(["x"]).beside(place) for place in USUAL.places(name))


@pytest.mark.parametrize(("pattern", "path", "expected"), [
    ("{stem}_mask*.png", "a/x_mask.png", [(("a",), "x", None)]),
    ("{stem}_mask*.png", "a/x_mask_1.PNG", [(("a",), "x", None)]),
    ("{stem}_mask*.png", "x_mask.tif", []),
    ("{stem}_mask", "x_mask.tif", [((), "x", None)]),
    ("{stem}_mask.*", "x_mask.tif", [((), "x", None)]),
    ("{stem}_{lesion}.tif", "I_01_MA.tif", [((), "I_01", "MA"), ((), "I", "01_MA")]),
    ("{stem}_{lesion}*.tif", "1_MA_2.tif", [((), "1_MA", "2"), ((), "1", "MA_2")]),
    ("{lesion}_{stem}.tif", "hard_ex_1.tif", [((), "ex_1", "hard"), ((), "1", "hard_ex")]),
    ("{lesion}/{stem}.png", "a/MA/x.png", [(("MA",), "x", "a"), (("a",), "x", "MA")]),      # the image decides
    ("{lesion}/{stem}_{lesion}.png", "MA/x_MA.png", [((), "x", "MA")]),
    ("{lesion}/{stem}_{lesion}.png", "MA/x_EX.png", []),
    ("{stem}/mask?.png", "x/mask1.png", [((), "x", None)]),
    (r"masks\{stem}.png", "a/masks/x.png", [(("a",), "x", None)]),
    ("../masks/{stem}.png", "a/masks/x.png", [(("a",), "x", None)]),
    (f"{{stem}}_{NFD}.png", f"x_{NFC}.png", [((), "x", None)]),
    ("{stem}.[1](2)+.png", "x.[1](2)+.png", [((), "x", None)]),
])
def test_what_a_path_says(pattern: str, path: str, expected: list[tuple[Any, ...]]) -> None:
    assert [tuple(place) for place in mask_names(pattern).places(path)] == expected


@pytest.mark.parametrize("pattern", [
    "", "mask.png", "{lesion}.png", "{Stem}_mask.png", "{stem}_{class}.png", "{stem", "{stem}}.png", "a/../{stem}.png",
    "/masks/{stem}.png", "a//{stem}.png", "{}{stem}", "..", "*{stem}*_*",
])
def test_a_pattern_that_is_none(hk: Callable, here: Path, pattern: str) -> None:
    tree(here / "i", "x.png", "x_mask.png")
    result = hk("folder", "i", "--mask-pattern", pattern)
    assert result.exit_code == 1
    assert f'mask pattern "{pattern}": expected {{stem}} in it' in result.stderr


# beside


BUSI = "benign/benign (1).png|benign/benign (2).png", "|".join((
    "benign/benign (1)_mask.png", "benign/benign (2)_mask.png", "benign/benign (2)_mask_1.png",
))


@pytest.mark.parametrize(("photos", "masks", "pattern", "expected"), [
    (*BUSI, None, {
        "benign/benign (1)": {"mask": "benign/benign (1)_mask.png"},
        "benign/benign (2)": {"mask": "benign/benign (2)_mask.png", "mask#2": "benign/benign (2)_mask_1.png"},
    }),
    (*BUSI, "{stem}_mask*.png", {
        "benign/benign (1)": {"mask": "benign/benign (1)_mask.png"},
        "benign/benign (2)": {"mask": "benign/benign (2)_mask.png", "mask#2": "benign/benign (2)_mask_1.png"},
    }),
    ("x.jpg|y.JPG", "x_segmentation.png", None, {"x": {"mask": "x_segmentation.png"}, "y": {}}),
    ("a/x.jpg|b/x.jpg", "a/x_mask.PNG", None, {"a/x": {"mask": "a/x_mask.PNG"}, "b/x": {}}),
    ("1_sat.jpg", "1_mask.png", None, {"1_sat": {"mask": "1_mask.png"}}),
    ("image_1.png", "mask_1.png", None, {"image_1": {"mask": "mask_1.png"}}),
    ("x.jpg", "x.png", "{stem}.png", {"x": {"mask": "x.png"}}),
    ("x1.png|x11.png", "x1_lesion.png|x11_lesion.png", "{stem}_lesion.png",
     {"x1": {"mask": "x1_lesion.png"}, "x11": {"mask": "x11_lesion.png"}}),
    ("I_1.png|I_2.png", "I_1_MA.png|I_1_EX.png|I_2_EX.png", "{stem}_{lesion}.png",
     {"I_1": {"EX": "I_1_EX.png", "MA": "I_1_MA.png"}, "I_2": {"EX": "I_2_EX.png"}}),
    ("a/x.tif", "a/MA/x.tif|a/EX/x.tif", "{lesion}/{stem}.tif", {"a/x": {"EX": "a/EX/x.tif", "MA": "a/MA/x.tif"}}),
    ("a/images/x.png", "a/masks/x.png", "../masks/{stem}.png", {"a/images/x": {"mask": "a/masks/x.png"}}),
    ("7f/images/7f.png", "7f/masks/1.png|7f/masks/2.png", "../../{stem}/masks/*.png",
     {"7f/images/7f": {"mask": "7f/masks/1.png", "mask#2": "7f/masks/2.png"}}),
    (f"{NFD}.png", f"{NFC}_mask.png", None, {NFC: {"mask": f"{NFC}_mask.png"}}),
    ("bottle.png|bottle_label.png", "", "none", {"bottle": {}, "bottle_label": {}}),
])
def test_masks_beside_their_images(hk, tmp_path, photos, masks, pattern, expected) -> None:
    root = tree(tmp_path / "root", photos, masks)
    result = hk("folder", root, *(["--mask-pattern", pattern] if pattern else []))
    assert found(result.records, root) == expected
    assert result.stderr == ""


@pytest.mark.parametrize(("photos", "masks", "pattern", "ids", "said"), [
    ("x.png", "x_mask.png|y_mask.png", None, ["x"], "1 masks have no image: y_mask.png"),
    ("x.png", "x_EX.png|y_EX.png", "{stem}_{lesion}.png", ["x"], "1 masks have no image: y_EX.png"),
    ("x.png", "x_mask.png|x_mask_1.png", "{stem}_mask.png", ["x"], "left out 1 files that are masks by their names"),
    ("x.png", "x_EX.png|x_MA.png", "{stem}_EX.png", ["x", "x_MA"], "x_MA.png: looks like a mask of x.png"),
    ("bottle.png|bottle_label.png", "", None, ["bottle"], "bottle_label.png: of many colours, but taken for a mask"),
])
def test_what_is_left_out_is_said(hk, tmp_path, photos, masks, pattern, ids, said) -> None:
    result = hk("folder", tree(tmp_path, photos, masks), *(["--mask-pattern", pattern] if pattern else []))
    assert [record["id"] for record in result.records] == ids
    assert said in result.stderr


@pytest.mark.parametrize(("photos", "masks", "said"), [
    ("a/x.png|a/y.png", "a/x_lesion.png", "--mask-pattern '{stem}_lesion.png'"),
    ("a/x.png|a/y.png", "a/lesion-x.png", "--mask-pattern 'lesion-{stem}.png'"),
    ("a/x.jpg|a/y.jpg", "a/x.png", "--mask-pattern '{stem}.png'"),
    ("a/images/x.png", "a/masks/x.png", "--mask-pattern '../masks/{stem}.png'"),
    ("a/x.png", "a/truth/x_t.png", "--mask-pattern 'truth/{stem}_t.png'"),
    ("images/a/x.png", "masks/a/x.png", "give the images' folder as ROOT and that of the masks by --masks"),
    ("7f/images/7f.png", "7f/masks/1.png", "give the images' folder as ROOT and that of the masks by --masks"),
    ("images/21_training.png", "manual/21_manual1.gif", "give the images' folder as ROOT and that of the masks"),
])
def test_what_looks_like_a_mask_is_no_image(hk, tmp_path, photos, masks, said) -> None:
    result = hk("folder", tree(tmp_path, photos, masks))
    assert result.exit_code == 1
    assert "looks like a mask of" in result.stderr
    assert said in result.stderr
    assert "or say that there are no masks: --mask-pattern none" in result.stderr


@pytest.mark.parametrize(("photos", "masks"), [
    ("a.png|ab.png|a_1.png|a_2.png", ""), ("", "page.png|page_1.png|page_2.png"), ("0/1.png|1/1.png", ""),
    ("", "0/1.png|1/1.png"), ("mask/1.png|no mask/1.png", ""), ("a.png", "b.png"), ("a.png", "ab.png"),
])
def test_ordinary_folders_are_no_masks(hk, tmp_path, photos, masks) -> None:
    result = hk("folder", tree(tmp_path, photos, masks))
    assert len(result.records) == len([name for name in (photos + "|" + masks).split("|") if name])
    assert result.stderr == ""


def test_a_jpeg_of_a_mask_and_one_of_several_classes_are_seen(hk: Callable, tmp_path: Path) -> None:
    tree(tmp_path, "a/x.jpg|b/y.png", "a/x_lesion.jpg")
    assert "x_lesion.jpg: looks like a mask of x.jpg" in hk("folder", tmp_path / "a").stderr
    mask(tmp_path / "b/y_tumour.png", values=(0, 3))
    assert "y_tumour.png: looks like a mask of y.png" in hk("folder", tmp_path / "b").stderr


@pytest.mark.parametrize("pattern", ["{stem}_leison.png", "{stem}*.png", "../*/{stem}.png"])
def test_a_pattern_that_takes_none_or_all(hk: Callable, tmp_path: Path, pattern: str) -> None:
    result = hk("folder", tree(tmp_path, "a/x.png", "a/x_lesion.png"), "--mask-pattern", pattern)
    assert result.exit_code == 1
    assert f'the mask pattern "{pattern}" takes ' in result.stderr
    assert "of its 2 files (x.png, x_lesion.png) for masks of others" in result.stderr


# apart


@pytest.mark.parametrize(("photos", "masks", "pattern", "expected"), [
    ("ISIC_1.jpg|ISIC_2.jpg", "ISIC_1_segmentation.png|ISIC_2_segmentation.png", None,
     {"ISIC_1": {"mask": "ISIC_1_segmentation.png"}, "ISIC_2": {"mask": "ISIC_2_segmentation.png"}}),
    ("a/x.jpg|a/x_1.jpg", "a/x_1_mask.png", None, {"a/x": {}, "a/x_1": {"mask": "a/x_1_mask.png"}}),
    ("a/x.jpg|b/y.jpg", "x.png|y_mask.png", None, {"a/x": {"mask": "x.png"}, "b/y": {"mask": "y_mask.png"}}),
    ("21_training.tif", "21_manual1.gif", None, {"21_training": {"mask": "21_manual1.gif"}}),
    ("I_1.jpg|I_2.jpg", "I_1_EX.tif|I_2_EX.tif", None, {"I_1": {"mask": "I_1_EX.tif"}, "I_2": {"mask": "I_2_EX.tif"}}),
    ("x.jpg", "x_unknown.png", None, {"x": {"mask": "x_unknown.png"}}),
    ("I_1.jpg|I_2.jpg", "1. Micro/I_1_MA.tif|3. Hard/I_1_EX.tif|3. Hard/I_2_EX.tif", "{stem}_{lesion}.tif",
     {"I_1": {"MA": "1. Micro/I_1_MA.tif", "EX": "3. Hard/I_1_EX.tif"}, "I_2": {"EX": "3. Hard/I_2_EX.tif"}}),
    ("train/1.jpg|test/1.jpg", "train/MA/1_MA.tif|test/MA/1_MA.tif", "{stem}_{lesion}.tif",
     {"test/1": {"MA": "test/MA/1_MA.tif"}, "train/1": {"MA": "train/MA/1_MA.tif"}}),
    ("a/x.jpg|b/x.jpg", "MA/a/x.png|EX/b/x.png", "{lesion}/{stem}.png",
     {"a/x": {"MA": "MA/a/x.png"}, "b/x": {"EX": "EX/b/x.png"}}),
    ("a/x.jpg|b/x.jpg", "a/MA/x.png|b/EX/x.png", "{lesion}/{stem}",
     {"a/x": {"MA": "a/MA/x.png"}, "b/x": {"EX": "b/EX/x.png"}}),
    ("x.jpg", "one/x.png|two/x.png", "*/{stem}.png", {"x": {"mask": "one/x.png", "mask#2": "two/x.png"}}),
    ("x.jpg", "x_MA.png|x_MA_2.png", "{stem}_{lesion}.png", {"x": {"MA": "x_MA.png", "MA_2": "x_MA_2.png"}}),
    ("x.jpg", "MA/x_1.png|MA/x_2.png", "{lesion}/{stem}_?.png", {"x": {"MA": "MA/x_1.png", "MA#2": "MA/x_2.png"}}),
    (f"a/{NFD}.JPG", f"a/{NFC}_mask.PNG", None, {f"a/{NFC}": {"mask": f"a/{NFC}_mask.PNG"}}),
    (f"a/{NFC}.jpg", f"a/{NFD}.png", None, {f"a/{NFC}": {"mask": f"a/{NFD}.png"}}),
    (f"{NFD}/x.jpg", f"{NFC}/x.png", None, {f"{NFC}/x": {"mask": f"{NFC}/x.png"}}),
])
@pytest.mark.parametrize("inside", [False, True])
def test_masks_apart(hk, tmp_path, photos, masks, pattern, expected, inside) -> None:
    root, folder = tmp_path / "root", tmp_path / ("root/zz truth" if inside else "truth")
    tree(root, photos, "")
    tree(folder, "", masks)
    result = hk("folder", root, "--masks", folder, *(["--mask-pattern", pattern] if pattern else []))
    assert found(result.records, folder) == expected
    assert result.stderr == ""
    if pattern is None:         # the other two keys are read alike
        other = hk("folder", root, "--unknown", folder, "--dont-look", folder).records
        assert [record.get("unknown") for record in other] == [record.get("masks") for record in result.records]
        assert [record.get("dont_look") for record in other] == [record.get("masks") for record in result.records]


@pytest.mark.parametrize(("photos", "masks", "options", "said"), [
    ("a/x.jpg|b/x.jpg", "x.png", [], "x.png: may be the mask of 2 images (a/x, b/x); expected the folders"),
    ("x.jpg", "MA/x.png", [], "--mask-pattern, such as '{lesion}/{stem}.png'"),
    ("a/x.jpg", "b/x_mask.png", ["--mask-pattern", "{stem}_mask.png"], 'expected "x_mask.png" for an image "x"'),
    ("a/x.jpg", "a/x.png|x.png", [], 'x.png: a mask of "a/x", as '),
    ("x.jpg", "one/x_m.png|two/x_m.png", ["--mask-pattern", "{stem}_m.png"], "expected those of an image in one"),
    ("x.jpg", "x.png", ["--mask-pattern", "../{stem}.png"], ".. leads out of"),
])
def test_masks_apart_that_fit_nothing_or_two(hk, tmp_path, photos, masks, options, said) -> None:
    tree(tmp_path / "root", photos, "")
    tree(tmp_path / "truth", "", masks)
    result = hk("folder", tmp_path / "root", "--masks", tmp_path / "truth", *options)
    assert result.exit_code == 1
    assert said in result.stderr


def test_masks_that_the_pattern_omits_are_counted(hk: Callable, tmp_path: Path) -> None:
    tree(tmp_path / "root", "x.jpg", "")
    tree(tmp_path / "truth", "", "x_MA.png|x_EX.png|y_MA.png")
    result = hk("folder", tmp_path / "root", "--masks", tmp_path / "truth", "--mask-pattern", "{stem}_MA.png")
    assert 'truth: 1 files do not fit the mask pattern "{stem}_MA.png": x_EX.png' in result.stderr
    assert "truth: 1 masks have no image: y_MA.png" in result.stderr


@pytest.mark.parametrize("option", ["--masks", "--unknown", "--dont-look"])
@pytest.mark.parametrize("spelling", [".", "../root", "../link"])
def test_the_folder_of_the_images_is_none_of_masks(hk, here, option, spelling, monkeypatch) -> None:
    tree(here / "root", "x.png", "")
    (here / "link").symlink_to("root")
    monkeypatch.chdir(here / "root")
    result = hk("folder", here / "root", option, spelling)
    assert result.exit_code == 1
    assert "the folder of the images, given for" in result.stderr


@pytest.mark.parametrize("copy", ["hard link", "bytes"])
def test_a_mask_that_is_its_image_is_refused(hk: Callable, tmp_path: Path, copy: str) -> None:
    tree(tmp_path, "i/x.png|i/y.png", "m/y.png")
    if copy == "bytes":
        (tmp_path / "m/x.png").write_bytes((tmp_path / "i/x.png").read_bytes())
    else:
        (tmp_path / "m/x.png").hardlink_to(tmp_path / "i/x.png")
    result = hk("folder", tmp_path / "i", "--masks", tmp_path / "m")
    assert result.exit_code == 1
    assert "m/x.png: the same file as its image" in result.stderr
    skipped = hk("folder", tmp_path / "i", "--masks", tmp_path / "m", "--on-error", "skip", "--max-errors", 1)
    assert [record["id"] for record in skipped.records] == ["y"]


# what systems leave behind, and names in two forms of Unicode


def test_litter_is_left_out_without_a_word(hk: Callable, tmp_path: Path) -> None:
    root = tree(tmp_path / "i", "a/x.png|@eaDir/x.png|a/@eaDir/x.png/THUMB.png|__MACOSX/a/x.png|a/._x.png|"
                ".ipynb_checkpoints/x.png|a/.ipynb_checkpoints/x-checkpoint.png|#recycle/y.png", "")
    for name in ("Thumbs.db", "a/desktop.ini", ".DS_Store"):
        (root / name).write_text("x")
    result = hk("folder", root)
    assert [record["id"] for record in result.records] == ["a/x"]
    assert result.stderr == ""
    assert image_paths(root) == ["a/x.png"]


def test_two_names_of_the_same_letters_are_one_id(hk: Callable, tmp_path: Path) -> None:
    result = hk("folder", tree(tmp_path, f"{NFC}.png|{NFD}.png", ""))
    assert result.exit_code == 1
    assert f'would have the id "{NFC}"' in result.stderr
    assert "the same letters, composed or not" in result.stderr


def test_a_class_in_two_spellings_is_one(hk: Callable, tmp_path: Path) -> None:
    records = hk("folder", tree(tmp_path, f"{NFC}/1.png|{NFD}/2.png", "")).records
    assert {(record["class"], record["label"]) for record in records} == {(NFC, 0)}
    assert {Path(record["image"]).parent.name for record in records} == {NFC, NFD}      # as they are on disk


@pytest.mark.parametrize(("paths", "asked", "expected"), [
    ([f"a/{NFD}.png"], f"{NFC}.png", [f"a/{NFD}.png"]),
    ([f"{NFC}/1.png", "b/1.png"], f"C:\\x\\{NFD}\\1.PNG", [f"{NFC}/1.png"]),
    (["a/1.PNG", "a/1.jpg"], "1.png", ["a/1.PNG"]),
    ([f"{NFC}.png", f"{NFD}.png"], NFC, [f"{NFC}.png", f"{NFD}.png"]),
])
def test_paths_are_found_in_other_letters(paths: list[str], asked: str, expected: list[str]) -> None:
    assert PathIndex(paths).find(asked) == expected


def test_annotations_of_the_other_form(hk: Callable, here: Path) -> None:
    tree(here / "i", f"{NFD}.png", "")
    (here / "t.csv").write_text(f"image,x,y,radius\n{NFC}.png,1,2,3\n", encoding="utf-8")
    [one] = hk("annotations", "t.csv", "--images", "i").records
    [other] = hk("join", "t.csv", stdin=[{"id": f"{NFD}.png", "size": list(SIZE)}]).records
    assert one["id"] == NFC
    assert one["bubbles"] == other["bubbles"] == [{"x": 1, "y": 2, "radius": 3}]


def test_palette_masks_of_the_other_form(hk: Callable, here: Path) -> None:
    tree(here / "v", f"JPEGImages/{NFC}.png", f"SegmentationClass/{NFC}.PNG")
    (here / "v/Annotations").mkdir()
    (here / f"v/Annotations/{NFD}.xml").write_text(f"<annotation><filename>{NFD}.png</filename></annotation>", "utf-8")
    [record] = hk("annotations", "v", "--images", "v/JPEGImages").records
    assert record["unknown"] == {"void": f"v/SegmentationClass/{NFC}.PNG#255"}


# to the end


@pytest.mark.parametrize(("photos", "masks", "options"), [
    (*BUSI, []),
    ("ISIC_1.jpg|ISIC_2.jpg", "truth/ISIC_1_segmentation.png|truth/ISIC_2_segmentation.png", ["--masks", "i/truth"]),
    ("1.jpg|2.jpg", "t/HE/1_HE.tif|t/EX/1_EX.tif|t/EX/2_EX.tif",
     ["--masks", "i/t", "--mask-pattern", "{stem}_{lesion}.tif"]),
])
def test_from_a_bare_folder_to_a_shard(hk, here, photos, masks, options) -> None:
    tree(here / "i", photos, masks)
    mask(here / "i" / masks.split("|")[-1], left=30)        # of the second image, which BUSI gives two
    drawn = hk("masks2map", "--size", "60x50", "--out", "m", stdin=hk("folder", "i", *options).stdout)
    one, two = (float(load_map_file(Path(record["map"])).mean()) for record in drawn.records)
    assert one == pytest.approx(1 / 15, abs=1e-6)
    assert two == pytest.approx((2 if "_mask_1" in masks else 1) / 15, abs=1e-6)
    packed = hk("pack", "x.h5", stdin=drawn.stdout).records[0]
    assert (packed["records"], packed["maps"]) == (2, 2)


@pytest.mark.parametrize(("chosen", "share"), [([], 3), (["HE"], 2), (["HE#2"], 1), (["EX"], 1)])
def test_a_lesion_is_all_of_its_masks(hk: Callable, here: Path, chosen: list[str], share: int) -> None:
    tree(here, "i/x.png", "")
    for left, name in enumerate(("EX/x_1", "HE/x_1", "HE/x_2")):
        mask(here / f"m/{name}.png", left=20 * left)
    records = hk("folder", "i", "--masks", "m", "--mask-pattern", "{lesion}/{stem}_?.png").stdout
    options = [part for name in chosen for part in ("--lesion", name)]
    [drawn] = hk("masks2map", "--size", "60x50", "--out", "out", *options, stdin=records).records
    assert float(load_map_file(Path(drawn["map"])).mean()) == pytest.approx(share / 15, abs=1e-6)


def test_a_mask_of_an_unturned_photograph_is_named_as_such(hk: Callable, here: Path) -> None:
    turn = Image.Exif()
    turn[0x112] = 6
    (here / "i").mkdir()
    Image.new("RGB", (64, 48)).save("i/p.jpg", exif=turn)
    mask(here / "m/p.png")
    Image.fromarray(np.full((48, 64), 255, np.uint8)).save("m/p.png")
    result = hk("masks2map", "--out", "out", stdin=hk("folder", "i", "--masks", "m").stdout)
    assert result.exit_code == 1
    assert "p.png: a mask of 64x48 pixels for an image of 48x64" in result.stderr
    assert "its EXIF turns" in result.stderr
    assert "scale the mask" not in result.stderr
