"""`hkmap dogs`: Stanford Dogs, paired by path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

FILES = {"train": ["n01-Pug/n01_10.jpg", "n02-Chow/n02_7.jpg"], "test": ["n01-Pug/n01_9.jpg"]}
XML = """<annotation><folder>01</folder><filename>%s</filename><size><width>{}</width><height>{}</height></size>
<object><name>{}</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>20</xmax><ymax>30</ymax></bndbox></object></annotation>
"""


def write_list(path: Path, files: list[object], labels: list[float]) -> None:
    cells = np.empty((len(files), 1), object)
    cells[:, 0] = files
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, {"file_list": cells, "labels": np.array([labels]).T})


@pytest.fixture(params=["lists", "."])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    for split, files in FILES.items():
        for file in files:
            image, annotation = tmp_path / "Images" / file, (tmp_path / "Annotation" / file).with_suffix("")
            for path in (image, annotation):
                path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 30)).save(image)
            annotation.write_text(XML.format(40, 30, file[4:7]))
        labels = [1 + ("Chow" in file) for file in files]
        write_list(tmp_path / request.param / f"{split}_list.mat", list(files), labels)
    return tmp_path


def test_an_annotation_belongs_to_the_image_of_its_path(hk: Callable, root: Path) -> None:
    first, second, third = hk("dogs", root).records
    assert first == {
        "id": "n01_10", "image": f"{root}/Images/n01-Pug/n01_10.jpg", "label": 0, "class": "n01-Pug", "split": "train",
        "size": [40, 30], "boxes": [{"x": 0, "y": 1, "width": 20, "height": 29, "label": "Pug"}],
    }
    assert [second["label"], second["class"], third["split"]] == [1, "n02-Chow", "test"]
    assert [record["id"] for record in hk("dogs", root, "--split", "test").records] == ["n01_9"]


def test_what_is_missing_is_named(hk: Callable, root: Path) -> None:
    annotation = root / "Annotation/n02-Chow/n02_7"
    annotation.write_text(XML.format(30, 40, "Cho"))
    result = hk("dogs", root, "--on-error", "skip", "--max-errors", 2)
    assert "n02_7.jpg: annotated at 30x40 pixels, but it has 40x30 as displayed" in result.stderr
    assert len(result.records) == 2
    annotation.unlink()
    assert "n02-Chow/n02_7: missing; expected an annotation for each image" in hk("dogs", root).stderr
    assert "Images: no lists/train_list.mat; expected Images, Annot" in hk("dogs", root / "Images").stderr


@pytest.mark.parametrize(("files", "labels", "sentence"), [
    (["a.jpg"], [1], 'train_list.mat: file_list 1 is "a.jpg"; expected FOLDER/FILE.jpg'),
    (["../../a.jpg"], [1], 'file_list 1 is "../../a.jpg"'), ([7.0], [1], 'file_list 1 is "7.0"'),
    (["a/b.jpg"], [0], "labels 1 is 0; expected a whole number from 1"), (["a/b.jpg"], [1.5], "labels 1 is 1.5"),
    (["a/b.jpg"], [np.nan], "labels 1 is nan"), (["a/b.jpg"], [1, 2], "1 files and 2 labels; expected as many of both"),
])
def test_a_wrong_list_is_named(hk, tmp_path, files: list[object], labels: list[float], sentence: str) -> None:
    write_list(tmp_path / "train_list.mat", files, labels)
    result = hk("dogs", tmp_path)
    assert result.exit_code == 1
    assert sentence in result.stderr


def test_a_list_without_labels_is_named(hk: Callable, tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "train_list.mat", {"file_list": "a/b.jpg"})
    assert 'train_list.mat: no variable "labels"; expected one of file_list' in hk("dogs", tmp_path).stderr


def test_a_part_of_the_release_with_other_capitals(hk: Callable, root: Path) -> None:
    (root / "Annotation").rename(root / "annotations")
    (root / "Images/n01-Pug").rename(root / "away")
    (root / "Images").rename(root / "images")
    result = hk("dogs", root)
    [record] = result.records
    assert (record["class"], record["label"], len(record["boxes"])) == ("n02-Chow", 1, 1)
    assert "2 of 3 images are left out, as 1 of the 2 folders are absent: n01-Pug" in result.stderr
    assert [record["label"] for record in hk("dogs", root, "--classes", "present").records] == [0]
