"""Identical images: kept on one side of a split, found by check where two shards share them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from hkmap.engine.runs import hold_out
from hkmap.shards.duplicates import same_images
from hkmap.shards.folds import Folding, groups_of, joined_groups
from hkmap.shards.reader import ShardReader
from hkmap.shards.sequence import ShardSequence

# Of 24 records, of two labels by turns: which have one image. 4 and 5 differ in their labels.
ALIKE = [[0, 2], [4, 5], [6, 8, 20]]


@pytest.fixture
def stream(here: Path) -> list[dict[str, Any]]:
    records = []
    for number in range(24):
        first = next((places[0] for places in ALIKE if number in places), number)
        cv2.imwrite(f"{number}.png", np.full((8, 8, 3), 9 * first, np.uint8))
        label = number % 2
        records.append({"id": f"{number:02}", "image": f"{number}.png", "label": label, "class": "ab"[label],
                        "patient": number // 4})
    return records


def pack(hk, name: str, records: list[dict[str, Any]], *options: object) -> None:
    assert hk("pack", name, *options, stdin=records).exit_code == 0


def parts(folder: str) -> list[set[int]]:
    return [{int(name) for name in ShardReader(path).ids} for path in sorted(Path(folder).glob("*.h5"))]


@pytest.mark.parametrize("store", [[], ["--store", "pixels", "--size", 8]])
@pytest.mark.parametrize("shards", [1, 3])
def test_same_images_are_found_in_files_and_pixels(hk, stream, store: list[object], shards: int) -> None:
    pack(hk, "x.h5", stream, "--shard-size", 24 // shards, *store)
    readers = [ShardReader(path) for path in sorted(Path().glob("x-*.h5"))]
    found = [[number * (24 // shards) + row for number, row in places] for places in same_images(readers)]
    assert found == ALIKE


def test_images_of_one_length_that_differ_in_one_byte_are_two(hk, here: Path) -> None:
    images = [np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8) for _ in range(2)]
    images[1][7, 7, 2] ^= 1
    for number, image in enumerate(images):
        cv2.imwrite(f"{number}.bmp", image)
    pack(hk, "x.h5", [{"id": str(number), "image": f"{number}.bmp"} for number in range(2)])
    assert same_images([ShardReader(Path("x.h5"))]) == []


@pytest.mark.parametrize("options", [["--folds", 3], ["--shares", "a=0.75,b=0.25"], ["--folds", 3, "--no-stratify"]])
@pytest.mark.parametrize("group", [None, "patient"])
@pytest.mark.parametrize("seed", range(3))
def test_identical_images_are_on_one_side(hk, stream, options: list[object], group: str | None, seed: int) -> None:
    pack(hk, "x.h5", stream)
    by_group = ["--group", group] if group else []
    done = hk("split", "x.h5", *options, *by_group, "--seed", seed, "--out", "out")
    assert done.exit_code == 0, done.stderr
    assert done.stderr.startswith('warning: 3 images stand in more than one record (7 records), such as "00" and "02"')
    for part in parts("out"):
        assert all(len(part & {*places}) in (0, len(places)) for places in ALIKE)
        # patients 1 and 2 share an image with one another, and both with patient 5
        groups = [{4, 5, 6, 7, 8, 9, 10, 11, 20, 21, 22, 23}, {0, 1, 2, 3}, {12, 13, 14, 15}] if group else []
        assert all(len(part & one) in (0, len(one)) for one in groups)
    assert set().union(*parts("out")) == set(range(24))


def test_they_are_divided_where_that_is_asked_for(hk, stream) -> None:
    pack(hk, "x.h5", stream)
    divided = []
    for seed in range(3):
        done = hk("split", "x.h5", "--folds", 3, "--no-group-duplicates", "--seed", seed, "--out", f"out{seed}")
        assert (done.exit_code, done.stderr) == (0, "")
        divided += [part for part in parts(f"out{seed}") if 0 < len(part & {6, 8, 20}) < 3]
    assert divided


def test_a_split_without_duplicates_is_as_it_was(hk, make_shard, tmp_path: Path) -> None:
    shard = make_shard("x.h5", 12)
    for name, option in (("with", "--group-duplicates"), ("without", "--no-group-duplicates")):
        done = hk("split", shard, "--folds", 3, option, "--out", tmp_path / name)
        assert (done.exit_code, done.stderr) == (0, "")
    one, two = ([ShardReader(path).ids for path in sorted((tmp_path / name).iterdir())] for name in ("with", "without"))
    assert one == two


@pytest.mark.parametrize("group", [None, "patient"])
def test_the_folds_of_a_run_are_those_of_split(hk, stream, group: str | None) -> None:
    pack(hk, "x.h5", stream)
    hk("split", "x.h5", "--folds", 3, *(["--group", group] if group else []), "--seed", 5, "--out", "out")
    sequence = ShardSequence([Path("x.h5")])
    inside = [set(np.flatnonzero(hold_out(sequence, number, Folding(3, 5, group)).inside)) for number in (1, 2, 3)]
    assert inside == parts("out")


def test_groups_do_not_depend_on_the_order(hk, stream) -> None:
    pack(hk, "x.h5", stream)
    pack(hk, "y.h5", stream[::-1])
    one, two = (groups_of(ShardSequence([Path(name)]), None, True) for name in ("x.h5", "y.h5"))
    assert one == (two or [])[::-1]
    assert [(one or [])[index] for index in (0, 2, 5, 20, 23)] == ["00", "00", "04", "06", "23"]


@pytest.mark.parametrize(("groups", "sets", "expected"), [
    ("abcd", [], "abcd"), ("abcd", [[0, 3]], "abca"), ("dcba", [[0, 1], [2, 3], [1, 2]], "aaaa"),
    ("aabb", [[0, 2]], "aaaa"), ("xyxz", [[1, 3], [0, 1]], "xxxx"),
])
def test_groups_that_share_an_image_are_one(groups: str, sets: list[list[int]], expected: str) -> None:
    assert joined_groups(list(groups), sets) == list(expected)


def test_validation_shares_no_image_with_training(hk, stream) -> None:
    from hkmap.engine.data import _share_of

    pack(hk, "x.h5", stream)
    sequence = ShardSequence([Path("x.h5")])
    for seed in range(3):
        chosen = set(np.flatnonzero(_share_of(sequence, np.arange(24), 0.25, seed, None)))
        assert chosen
        assert all(len(chosen & {*places}) in (0, len(places)) for places in ALIKE)


# check


def test_a_picture_in_two_shards_is_named_with_both(hk, stream) -> None:
    pack(hk, "train.h5", stream[:5])
    pack(hk, "test.h5", stream[5:9])
    done = hk("check", "train.h5", "test.h5")
    assert done.exit_code == 3
    train, test = done.records
    assert (train["ok"], "leaks" in train, test["ok"], test["problems"]) == (True, False, True, [])
    assert test["leaks"] == [{
        "sentence": 'test.h5#0 (record "05", label 1): its image is that of train.h5#4 (record "04", label 0) too',
        "record": 0, "id": "05",
    }]
    assert test["leaks"][0]["sentence"] in done.stderr
    assert hk("check", "--quick", "train.h5", "test.h5").exit_code == 0
    assert hk("check", "test.h5").exit_code == 0


def test_the_shards_of_one_series_are_one(hk, stream) -> None:
    pack(hk, "x.h5", stream, "--shard-size", 4)
    assert hk("check", ".").exit_code == 0
    pack(hk, "test.h5", stream[20:])
    done = hk("check", "test.h5", "x-{00000..00005}.h5", "gone.h5")
    assert done.exit_code == 1      # one shard is not there, and the others are checked all the same
    leaks = {result["path"]: [leak["id"] for leak in result["leaks"]] for result in done.records if "leaks" in result}
    assert leaks == {"x-00001.h5": ["06"], "x-00002.h5": ["08"], "x-00005.h5": ["20", "21", "22", "23"]}


def test_the_pairs_of_idrid_are_kept_together(hk, data_root: Path, here: Path) -> None:
    records = hk("idrid", data_root / "idrid", "--part", "grading").records
    pack(hk, "x.h5", records)
    done = hk("split", "x.h5", "--shares", "train=0.8,test=0.2", "--out", "out")
    assert "5 images stand in more than one record (10 records)" in done.stderr
    pairs = [(21, 391), (28, 327), (45, 333), (73, 375), (79, 279)]
    train = set(ShardReader(Path("out/train.h5")).ids)
    assert all((f"IDRiD_{one:03}" in train) == (f"IDRiD_{two:03}" in train) for one, two in pairs)
    assert hk("check", "out").exit_code == 0
