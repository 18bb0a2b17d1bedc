"""`hkmap idrid`: the release as users have it, with every trap that is known, and the real files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from hkmap.stream.references import load_map

TRAINING, TESTING = "a. Training Set", "b. Testing Set"
LESIONS = {"MA": "1. Microaneurysms", "HE": "2. Haemorrhages", "EX": "3. Hard Exudates", "SE": "4. Soft Exudates",
           "OD": "5. Optic Disc"}
HEADER = "Image name,Retinopathy grade,Risk of macular edema ,,,\n"


def picture(path: Path, size: tuple[int, int] = (16, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)


def segmentation(part: Path, images: dict[str, str], split: str = TRAINING) -> None:
    """Write images, each with the masks of the lesions named ("HE EX")."""
    masks = part / "2. All Segmentation Groundtruths" / split
    for folder in LESIONS.values():
        (masks / folder).mkdir(parents=True, exist_ok=True)
    for name, lesions in images.items():
        picture(part / "1. Original Images" / split / f"{name}.jpg")
        for lesion in lesions.split():
            Image.new("1", (16, 10), 1).save(masks / LESIONS[lesion] / f"{name}_{lesion}.tif")


def grading(part: Path, rows: dict[str, str], split: str = TRAINING, header: str = HEADER) -> Path:
    """Write images and their table; a row is what follows the name."""
    for name in rows:
        picture(part / "1. Original Images" / split / f"{name}.jpg")
    word = "Training" if split == TRAINING else "Testing"
    table = part / "2. Groundtruths" / f"{split[0]}. IDRiD_Disease Grading_{word} Labels.csv"
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text(header + "".join(f"{name},{row}\n" for name, row in rows.items()))
    return table


@pytest.fixture
def root(tmp_path: Path) -> Path:
    segmentation(tmp_path / "A. Segmentation", {"IDRiD_01": "MA EX OD", "IDRiD_02": "", "IDRiD_03": "MA OD"})
    segmentation(tmp_path / "A. Segmentation", {"IDRiD_55": "SE HE"}, TESTING)
    grading(tmp_path / "B. Disease Grading", {"IDRiD_001": "3,2,,,", "IDRiD_002": "0,,,,", "IDRiD_003": "0,0"})
    grading(tmp_path / "B. Disease Grading", {"IDRiD_001": "0,1"}, TESTING)
    return tmp_path


def masks_of(record: dict) -> str:
    return " ".join(record["masks"])


def test_a_record_of_the_segmentation_has_masks_and_no_label(hk: Callable, root: Path) -> None:
    result = hk("idrid", root)
    part = root / "A. Segmentation"
    assert result.records[0] == {
        "id": "IDRiD_01", "image": f"{part}/1. Original Images/{TRAINING}/IDRiD_01.jpg", "split": "train",
        "masks": {
            lesion: f"{part}/2. All Segmentation Groundtruths/{TRAINING}/{LESIONS[lesion]}/IDRiD_01_{lesion}.tif"
            for lesion in ("EX",)
        },
        "size": [16, 10],
    }
    assert [(record["id"], masks_of(record), record["split"]) for record in result.records[1:]] == [
        ("IDRiD_02", "", "train"), ("IDRiD_03", "", "train"), ("IDRiD_55", "HE SE", "test"),
    ]
    assert result.stderr == (
        "warning: 1 images have masks, but none of EX, HE, SE, so they count as free of them; --lesion chooses others\n"
    )


@pytest.mark.parametrize(("lesions", "printed", "emptied"), [
    (["MA", "OD"], ["MA OD", "", "MA OD", ""], 1),
    (["EX", "MA", "HE", "SE", "OD"], ["EX MA OD", "", "MA OD", "HE SE"], 0),
    (["OD"], ["OD", "", "OD", ""], 1),
])
def test_the_lesions_are_chosen(hk: Callable, root: Path, lesions: list[str], printed: list[str], emptied: int) -> None:
    result = hk("idrid", root, *(word for lesion in lesions for word in ("--lesion", lesion)))
    assert [masks_of(record) for record in result.records] == printed
    assert result.stderr.count("1 images have masks, but none of") == emptied


def test_lesions_of_the_part_without_masks_are_refused(hk: Callable, root: Path) -> None:
    result = hk("idrid", root, "--part", "grading", "--lesion", "EX")
    assert result.exit_code == 2
    assert "--lesion chooses masks, and the grading part has none; omit it." in result.stderr


def test_the_maps_of_the_default_are_the_papers(hk: Callable, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    paper, every = ["EX", "HE", "SE"], [word for lesion in LESIONS for word in ("--lesion", lesion)]
    chosen = [word for lesion in paper for word in ("--lesion", lesion)]
    default = hk("masks2map", "--size", 4, "--out", "a.h5", stdin=hk("idrid", root).stdout)
    named = hk("masks2map", "--size", 4, *chosen, "--out", "b.h5", stdin=hk("idrid", root, *every).stdout)
    assert [load_map(r["map"]).max() for r in default.records] == [1, 0, 0, 1]
    assert [load_map(r["map"]).max() for r in named.records] == [1, 0, 0, 1]
    assert "1 records have masks, polygons or boxes, but none that is to be drawn, so they count" in named.stderr


def test_a_record_of_the_grading_has_the_grade_and_the_edema_where_known(hk: Callable, root: Path) -> None:
    first, *others = hk("idrid", root, "--part", "grading").records
    assert first == {
        "id": "IDRiD_001", "image": f"{root}/B. Disease Grading/1. Original Images/{TRAINING}/IDRiD_001.jpg",
        "split": "train", "label": 3, "class": "grade 3", "edema": 2, "size": [16, 10],
    }
    assert [(r["id"], r["class"], r.get("edema"), r["split"]) for r in others] == [
        ("IDRiD_002", "grade 0", None, "train"), ("IDRiD_003", "grade 0", 0, "train"),
        ("test-IDRiD_001", "grade 0", 1, "test"),       # the testing set counts from 001 again
    ]


def test_the_grading_is_printed_where_there_is_no_segmentation(hk: Callable, tmp_path: Path) -> None:
    grading(tmp_path / "B. Disease Grading", {"IDRiD_001": "4"})
    assert hk("idrid", tmp_path).records[0]["label"] == 4


@pytest.mark.parametrize("name", [
    "A. Segmentation/A. Segmentation", "A.%20Segmentation", "A.%20Segmentation/A. Segmentation", "A._Segmentation",
    "a. segmentation",
])
def test_folders_are_found_however_the_zip_was_unpacked(hk: Callable, tmp_path: Path, name: str) -> None:
    segmentation(tmp_path / name, {"IDRiD_01": "EX"})
    if "%20" in name:
        folder = tmp_path / name / "1. Original Images"
        folder.rename(folder.with_name("1.%20Original%20Images"))
    assert [masks_of(record) for record in hk("idrid", tmp_path).records] == ["EX"]


def test_the_part_itself_can_be_the_root(hk: Callable, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root / "A. Segmentation")
    assert hk("idrid", ".").records[0]["image"] == f"1. Original Images/{TRAINING}/IDRiD_01.jpg"
    assert hk("idrid", ".", "--absolute").records[0]["masks"]["EX"].startswith(str(root))


@pytest.mark.parametrize(("options", "identifiers"), [
    (["--split", "train"], ["IDRiD_01", "IDRiD_02", "IDRiD_03"]),
    (["--split", "test"], ["IDRiD_55"]),
    (["--split", "test", "--part", "grading"], ["test-IDRiD_001"]),
    (["--split", "test", "--binary"], ["seg-IDRiD_55", "grade-test-IDRiD_001"]),
])
def test_a_split_is_chosen(hk: Callable, root: Path, options: list[str], identifiers: list[str]) -> None:
    assert [record["id"] for record in hk("idrid", root, *options).records] == identifiers


@pytest.mark.parametrize("text", [
    "\ufeffImage name,Retinopathy grade,Risk of macular edema \nIDRiD_001,2,1\n",
    "Image name,Retinopathy grade,Risk of macular edema ,,,,\r\nIDRiD_001,2,1,,,,\r\n,,,,,,\r\n",
    " image name , Retinopathy Grade,Risk of macular edema\n IDRiD_001.jpg , 2 , 1\n\n",
])
def test_the_table_is_read_as_users_have_it(hk: Callable, tmp_path: Path, text: str) -> None:
    grading(tmp_path / "B. Disease Grading", {"IDRiD_001": ""}).write_text(text)
    [record] = hk("idrid", tmp_path).records
    assert (record["id"], record["label"], record["edema"]) == ("IDRiD_001", 2, 1)


def test_the_binary_task_is_diseased_of_a_against_grade_0_of_b(hk: Callable, root: Path) -> None:
    result = hk("idrid", root, "--binary")
    assert [(r["id"], r["label"], r["class"], masks_of(r), r["split"]) for r in result.records] == [
        ("seg-IDRiD_01", 1, "diseased", "EX", "train"),
        ("seg-IDRiD_55", 1, "diseased", "HE SE", "test"),
        ("grade-IDRiD_002", 0, "healthy", "", "train"),
        ("grade-IDRiD_003", 0, "healthy", "", "train"),
        ("grade-test-IDRiD_001", 0, "healthy", "", "test"),
    ]
    for name in ("IDRiD_02", "IDRiD_03"):
        assert f"{name} left out: it has none of EX, HE, SE, so it is neither diseased nor healthy" in result.stderr
    assert "pixels" not in result.stderr


def test_pictures_that_are_in_the_data_twice_are_used_once(hk: Callable, root: Path) -> None:
    rows = dict.fromkeys(("IDRiD_102", "IDRiD_021", "IDRiD_391", "IDRiD_118", "IDRiD_004"), "0,0")
    grading(root / "B. Disease Grading", rows)
    for path in (root / "B. Disease Grading/1. Original Images" / TRAINING).glob("IDRiD_00[123].jpg"):
        path.unlink()
    result = hk("idrid", root, "--binary", "--split", "train")
    assert [record["id"] for record in result.records] == ["seg-IDRiD_01", "grade-IDRiD_021", "grade-IDRiD_004"]
    for sentence in (
        "IDRiD_102 left out: the same picture as IDRiD_01 of the segmentation part",
        "IDRiD_391 left out: the same picture as IDRiD_021 of the grading part",
        "IDRiD_118 left out: the same picture as one of the grading part's testing set",
    ):
        assert sentence in result.stderr


def test_the_grading_tells_of_pictures_that_it_has_twice(hk: Callable, tmp_path: Path) -> None:
    rows = {"IDRiD_021": "1,0", "IDRiD_391": "2,0", "IDRiD_045": "0", "IDRiD_118": "0"}
    grading(tmp_path / "B. Disease Grading", rows)
    result = hk("idrid", tmp_path)
    assert len(result.records) == 4
    assert "the same picture twice: IDRiD_021 = IDRiD_391 (grade 1 and 2), IDRiD_118 = one of" in result.stderr
    assert "IDRiD_045" not in result.stderr


def test_classes_of_different_resolution_are_warned_of_once(hk: Callable, root: Path) -> None:
    for number in (2, 3):
        picture(root / f"B. Disease Grading/1. Original Images/{TRAINING}/IDRiD_00{number}.jpg", (8, 5))
    result = hk("idrid", root, "--binary")
    assert result.stderr.count("the diseased images have 16x10 pixels and the healthy ones 8x5") == 1


def test_a_lesion_without_a_folder_is_told(hk: Callable, root: Path) -> None:
    masks = root / "A. Segmentation/2. All Segmentation Groundtruths"
    for folder in (LESIONS["SE"], LESIONS["OD"]):
        (masks / TRAINING / folder).rename(masks / folder)
    result = hk("idrid", root, "--split", "train")
    assert "no folder 4. Soft Exudates nor 5. Optic Disc; every image counts as free of them" in result.stderr
    assert masks_of(result.records[0]) == "EX"


def test_masks_without_an_image_and_images_without_a_grade_are_told(hk: Callable, root: Path) -> None:
    (root / f"A. Segmentation/1. Original Images/{TRAINING}/IDRiD_03.jpg").unlink()
    assert "masks without an image in" in (stderr := hk("idrid", root).stderr)
    assert "IDRiD_03_MA.tif, IDRiD_03_OD.tif" in stderr
    picture(root / f"B. Disease Grading/1. Original Images/{TRAINING}/IDRiD_009.jpg")
    result = hk("idrid", root, "--part", "grading")
    assert "1 images are not in a. IDRiD_Disease Grading_Training Labels.csv and left out: IDRiD_009" in result.stderr
    assert len(result.records) == 4


def test_a_grade_without_an_image_stops_or_is_skipped(hk: Callable, root: Path) -> None:
    for number in (1, 3):
        (root / f"B. Disease Grading/1. Original Images/{TRAINING}/IDRiD_00{number}.jpg").unlink()
    stopped = hk("idrid", root, "--part", "grading")
    assert stopped.exit_code == 1
    assert "Training Labels.csv: IDRiD_001 has no image in" in stopped.stderr
    assert "(without one: IDRiD_001, IDRiD_003)" in stopped.stderr
    skipped = hk("idrid", root, "--part", "grading", "--on-error", "skip", "--max-errors", 2)
    assert skipped.exit_code == 0
    assert [record["id"] for record in skipped.records] == ["IDRiD_002", "test-IDRiD_001"]


def test_an_unreadable_image_is_named(hk: Callable, root: Path) -> None:
    (root / f"A. Segmentation/1. Original Images/{TRAINING}/IDRiD_01.jpg").write_bytes(b"no image")
    result = hk("idrid", root)
    assert result.exit_code == 1
    assert "IDRiD_01.jpg" in result.stderr
    everything = hk("idrid", root, "--binary", "--on-error", "skip", "--max-errors", 1)
    assert everything.records[0]["id"] == "seg-IDRiD_55"


@pytest.mark.parametrize(("text", "message"), [
    ("", 'no column "image name" in the first line'),
    ("Image name,Grade\nIDRiD_001,1\n", 'no column "retinopathy grade" in the first line'),
    (HEADER, "no line under the header; expected one line per image"),
    (f"{HEADER}IDRiD_001,5,1\n", 'line 2: Retinopathy grade is "5"; expected a whole number from 0 to 4'),
    (f"{HEADER}IDRiD_001\n", 'line 2: Retinopathy grade is ""'),
    (f"{HEADER}IDRiD_001,1,3\n", 'line 2: Risk of macular edema is "3"; expected a whole number from 0 to 2'),
    (f"{HEADER}IDRiD_001,1\n,,\nIDRiD_001,1\n", "line 4: IDRiD_001 comes a second time"),
    ("Image name,\xe9\n", "not a text file"),
    (f"{HEADER}{'a' * 140_000},1,1\n", "not CSV (field larger than field limit (131072))"),
])
def test_what_is_wrong_in_the_table_is_named(hk: Callable, tmp_path: Path, text: str, message: str) -> None:
    grading(tmp_path / "B. Disease Grading", {"IDRiD_001": ""}).write_bytes(text.encode("latin-1"))
    result = hk("idrid", tmp_path)
    assert result.exit_code == 1
    assert "Training Labels.csv" in result.stderr
    assert message in result.stderr


@pytest.mark.parametrize(("change", "message"), [
    ("A. Segmentation", 'no folder "A. Segmentation" here; expected the release'),
    ("A. Segmentation/1. Original Images", 'A. Segmentation: no folder "1. Original Images" here'),
    ("A. Segmentation/2. All Segmentation Groundtruths", 'no folder "2. All Segmentation Groundtruths" here'),
    (f"A. Segmentation/2. All Segmentation Groundtruths/{TRAINING}", f'no folder "{TRAINING}" here'),
    (f"A. Segmentation/1. Original Images/{TRAINING}/", f'no folder "{TRAINING}"; choose another --split'),
    ("B. Disease Grading", 'no folder "B. Disease Grading" here'),
    ("B. Disease Grading/2. Groundtruths/a. IDRiD_Disease Grading_Training Labels.csv",
     "2. Groundtruths: 0 tables of the training labels; expected one .csv with Training in its name"),
])
def test_a_part_that_is_missing_is_named(hk: Callable, root: Path, change: str, message: str) -> None:
    (root / change).rename(root / "elsewhere")
    result = hk("idrid", root, "--binary", "--split", "train")
    assert result.exit_code == 1
    assert message in result.stderr


def test_two_tables_of_one_split_are_refused(hk: Callable, root: Path) -> None:
    (root / "B. Disease Grading/2. Groundtruths/Training copy.csv").write_text(HEADER)
    assert "2 tables of the training labels" in hk("idrid", root, "--part", "grading").stderr


def test_a_folder_without_either_part_is_told_what_was_looked_for(hk: Callable, tmp_path: Path) -> None:
    result = hk("idrid", tmp_path)
    assert result.exit_code == 1
    assert 'holds neither "A. Segmentation" nor "B. Disease Grading"' in result.stderr


def test_a_segmentation_without_masks_or_images_is_refused(hk: Callable, root: Path) -> None:
    images = root / f"A. Segmentation/1. Original Images/{TRAINING}"
    (images / "IDRiD_55.jpg").write_bytes((images / "IDRiD_01.jpg").read_bytes())
    assert "IDRiD_55 is in the training and in the testing set" in hk("idrid", root).stderr
    for path in images.iterdir():
        path.unlink()
    assert f"{TRAINING}: no image here" in hk("idrid", root).stderr
    masks = root / f"A. Segmentation/2. All Segmentation Groundtruths/{TRAINING}"
    (masks / LESIONS["EX"] / "IDRiD_01_EX.tif").rename(masks / LESIONS["EX"] / "IDRiD_01.tif")
    assert "IDRiD_01.tif: expected a name that ends in _EX.tif" in hk("idrid", root).stderr
    for name in LESIONS.values():
        (masks / name).rename(root / name)
    assert "no folder of masks here; expected 1. Microaneurysms, 2. Haem" in hk("idrid", root).stderr


def test_the_real_segmentation(hk: Callable, data_root: Path) -> None:
    result = hk("idrid", data_root / "idrid")
    assert [record["id"] for record in result.records] == [f"IDRiD_{number:02}" for number in range(1, 13)]
    assert {(masks_of(record), *record["size"]) for record in result.records} == {("EX", 4288, 2848)}
    assert all(Path(record["masks"]["EX"]).is_file() for record in result.records)


def test_the_real_grading(hk: Callable, data_root: Path) -> None:
    records = hk("idrid", data_root / "idrid", "--part", "grading").records
    assert [sum(record["label"] == grade for record in records) for grade in range(5)] == [134, 20, 136, 74, 49]
    assert not any("edema" in record for record in records)


def test_the_real_binary_task(hk: Callable, data_root: Path) -> None:
    result = hk("idrid", data_root / "idrid", "--binary")
    assert [sum(record["label"] == label for record in result.records) for label in (0, 1)] == [133, 12]
    assert len({record["id"] for record in result.records}) == 145
    assert "IDRiD_118 left out" in result.stderr
    assert "the diseased images have 4288x2848 pixels and the healthy ones 640x425" in result.stderr


def test_the_known_pairs_are_those_of_the_table(data_root: Path) -> None:
    from hkmap.sources.idrid import ALSO_SEGMENTED

    rows = [line.split(",") for line in (data_root / "idrid/seg_to_grading_map.csv").read_text().splitlines()[1:]]
    assert {row[1]: row[0] for row in rows if row[1]} == ALSO_SEGMENTED
