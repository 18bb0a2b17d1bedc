"""The numbers of classes: in pack, in series that go on, and with --classes."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import lines

from hkmap.shards.reader import ShardReader
from hkmap.shards.sequence import ShardSequence


def records(*kinds: tuple[str | None, int | None]) -> list[dict[str, Any]]:
    """Records with the image x.png of the current folder, and these classes and labels."""
    cv2.imwrite("x.png", np.zeros((4, 4, 3), np.uint8))
    made = []
    for number, (name, label) in enumerate(kinds):
        keys = {"class": name, "label": label}
        given = {key: value for key, value in keys.items() if value is not None}
        made.append({"id": str(number), "image": "x.png", **given})
    return made


def labels(path: str) -> tuple[list[int], list[str]]:
    reader = ShardReader(Path(path))
    stored = [reader.record(row).get("label", -1) for row in range(len(reader))]
    assert stored == reader.labels.tolist()
    return stored, reader.classes


@pytest.mark.parametrize(("kinds", "expected", "classes"), [
    ([("b", None), ("a", None), ("b", None)], [0, 1, 0], ["b", "a"]),
    ([("b", 1), ("a", None), ("b", None), ("a", None)], [1, 2, 1, 2], ["", "b", "a"]),
    ([("b", -1), ("a", 0)], [0, 0], None),
    ([(None, 3), ("a", None), (None, None)], [3, 4, -1], ["", "", "", "", "a"]),
    ([(None, 0), (None, -1)], [0, -1], [""]),
    ([("b", 0), ("a", 1)], [0, 1], ["b", "a"]),
    ([("", None), ("a", None)], [-1, 0], ["a"]),
    ([("a", 0), ("a", 1), ("b", None)], [0, 1, 2], ["a", "a", "b"]),
])
def test_a_class_without_a_label_gets_one(hk, here: Path, kinds: Any, expected: list[int], classes: Any) -> None:
    done = hk("pack", "x.h5", stdin=records(*kinds))
    if classes is None:      # b was 0 before a claims to be
        assert 'record "1": label 0 is class "a", but it was "b" before; one label has one name' in done.stderr
        assert done.exit_code == 1
        return
    assert labels("x.h5") == (expected, classes)
    assert done.records[0]["classes"] == classes


@pytest.mark.parametrize(("kinds", "expected"), [
    ([("a", 0), ("c", 1)], [0, 2]), ([("a", None), ("c", None)], [0, 2]), ([("c", 2), ("b", 7)], [2, 1]),
    ([(None, 1), (None, None)], [1, -1]),
])
@pytest.mark.parametrize("text", ["a\nb\nc\n", "\ufeffa\r\nb\r\nc\r\n"])
def test_given_classes_number_by_name(hk, here: Path, kinds: Any, expected: list[int], text: str) -> None:
    Path("classes.txt").write_text(text, encoding="utf-8", newline="")
    assert hk("pack", "x.h5", "--classes", "classes.txt", stdin=records(*kinds)).exit_code == 0
    assert labels("x.h5") == (expected, ["a", "b", "c"])


@pytest.mark.parametrize(("kinds", "options", "sentence"), [
    ([("a", 0), ("z", 1)], True, """record "1": class "z" is none of the 3 given ['a', 'b', 'c']; add it there"""),
    ([("z", None)], True, 'class "z" is none of the 3 given'),
    ([(None, 3)], True, 'record "0": label 3 is beyond the 3 classes, counted from 0'),
    ([("a", None), ("a", 1)], False, 'record "1": class "a" has the label 0 and another, and a record of that class'),
    ([("a", 0), ("a", None), ("a", 1)], False, 'record "2": class "a" has the label 0 and another'),
    ([("a", 0), ("a", 1), ("a", None)], False, 'record "2": class "a" has the label 0 and another'),
    ([("a", 0), ("b", 0)], False, 'label 0 is class "b", but it was "a" before; one label has one name: number all by'),
    ([("a", 10**30)], False, "expected a whole number from 0 to 99,999, or none"),
])
def test_what_cannot_be_numbered_is_an_error(hk, here: Path, kinds: Any, options: bool, sentence: str) -> None:
    Path("classes.txt").write_text("a\nb\nc\n")
    done = hk("pack", "x.h5", *(["--classes", "classes.txt"] if options else []), stdin=records(*kinds))
    assert done.exit_code == 1
    assert sentence in done.stderr
    assert not Path("x.h5").exists()


@pytest.mark.parametrize("given", [False, True])
def test_one_class_has_one_spelling(hk, here: Path, given: bool) -> None:
    apart, whole = (unicodedata.normalize(form, "épée") for form in ("NFD", "NFC"))
    Path("classes.txt").write_text(f"a\n{whole}\n", encoding="utf-8")
    options = ["--classes", "classes.txt"] if given else []
    assert hk("pack", "x.h5", *options, stdin=records((whole, None), ("a", None), (apart, None))).exit_code == 0
    assert labels("x.h5") == (([1, 0, 1], ["a", whole]) if given else ([0, 1, 0], [whole, "a"]))


def test_a_series_goes_on_with_its_numbers(hk, here: Path) -> None:
    first, second = records(("b", None), ("a", None)), records(("c", None), ("a", None), ("b", None), ("d", None))
    assert hk("pack", "s.h5", "--shard-size", 1, stdin=first).exit_code == 0
    added = [{**record, "id": f"new {record['id']}"} for record in second]
    assert hk("pack", "s.h5", "--append", stdin=added).records[0]["classes"] == ["b", "a", "c", "d"]
    series = ShardSequence(sorted(here.glob("s-*.h5")))
    assert series.labels.tolist() == [0, 1, 2, 1, 0, 3]
    assert series.classes == ["b", "a", "c", "d"]


@pytest.mark.parametrize("after", range(1, 7))
def test_a_run_that_is_resumed_gives_the_same_numbers(hk, here: Path, after: int) -> None:
    kinds = [("b", None), ("z", None), ("a", 5), ("c", None), (None, 8), ("d", None), ("z", None)]
    stream = records(*kinds)
    stream[1]["image"] = "gone.png"      # it is skipped, and yet its class has a number
    options = ["--shard-size", 2, "--on-error", "skip", "--max-errors", 2]
    assert hk("pack", "whole.h5", *options, stdin=stream).exit_code == 0
    broken = lines(stream[:after]) + '{"error": "stopped"}\n'
    assert "stopped" in hk("pack", "parts.h5", *options, "--resume", stdin=broken).stderr
    assert hk("pack", "parts.h5", *options, "--resume", stdin=stream).exit_code == 0
    whole, parts = ([path.read_bytes() for path in sorted(here.glob(f"{name}-*.h5"))] for name in ("whole", "parts"))
    assert whole == parts
    assert ShardSequence(sorted(here.glob("whole-*.h5"))).labels.tolist() == [0, 5, 6, 8, 9, 1]


def test_the_remedy_for_classes_that_differ_works(hk, here: Path) -> None:
    """A test folder that lacks one class numbers the others anew; the sentence of eval says what to do."""
    for part, classes in (("train", "abc"), ("test", "ac")):
        for name in classes:
            (Path(part) / name).mkdir(parents=True)
            for number in range(3):
                image = np.full((32, 32, 3), 20 * number + ord(name), np.uint8)
                cv2.imwrite(f"{part}/{name}/{number}.png", image)
        assert hk("pack", f"{part}.h5", stdin=hk("folder", part).stdout).exit_code == 0
    network = ["--arch", "resnet8", "--stem", "small", "--width", 4, "--image-size", 32, "--device", "cpu"]
    assert hk("train", "train.h5", *network, "--epochs", 1, "--out", "run").exit_code == 0
    refused = hk("eval", "test.h5", "--from", "run", "--metric", "top1", "--device", "cpu")
    assert 'label 1 is "c", for the network it is "b"; pack all shards with the same --classes' in refused.stderr
    Path("classes.txt").write_text("a\nb\nc\n")
    hk("pack", "again.h5", "--classes", "classes.txt", stdin=hk("folder", "test").stdout)
    assert labels("again.h5") == ([0] * 3 + [2] * 3, ["a", "b", "c"])
    assert hk("eval", "again.h5", "--from", "run", "--metric", "top1", "--device", "cpu").exit_code == 0
    predicted = hk("predict", "--from", "run", "--device", "cpu", stdin=hk("unpack", "again.h5").stdout).records
    assert all(record["predicted_class"] == "abc"[record["prediction"]] for record in predicted)


def test_training_on_records_without_labels_says_what_to_do(hk, here: Path) -> None:
    assert hk("pack", "none.h5", stdin=records((None, None), (None, None))).exit_code == 0
    done = hk("train", "none.h5", "--arch", "resnet8", "--device", "cpu", "--out", "run")
    assert "the training shard has no labels; give its records a class or a label, as `hkmap folder` and" in done.stderr
