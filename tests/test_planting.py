"""hkmap plant: how often a decoy tells the label, where it is, that it can be read, and what is refused."""

from __future__ import annotations

from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from hkmap.stream.planting import DECOYS, Planting, told
from hkmap.stream.references import read_image

CLASSES = 4


@pytest.fixture
def records(here: Path) -> list[dict[str, Any]]:
    """Some images of noise; their sizes differ."""
    rng = np.random.default_rng(0)
    for number in range(8):
        cv2.imwrite(f"{number}.png", rng.integers(60, 160, (60, 80 + 10 * number, 3), dtype=np.uint8))
    return [{"id": f"a/{number}", "image": f"{number}.png", "label": number % CLASSES, "map": "m.npy", "note": [1]}
            for number in range(8)]


def planted(hk, records: list[dict[str, Any]], *options: object, out: str = "out") -> list[dict[str, Any]]:
    done = hk("plant", "--classes", CLASSES, "--out", out, *options, stdin=records)
    assert done.exit_code == 0, done.stderr
    return done.records


@pytest.mark.parametrize(("rate", "share"), [(0.0, 0), (1.0, 1), (0.9, 0.9), (None, 1 / CLASSES)])
def test_the_rate_is_the_share_of_decoys_that_tell_the_label(rate: float | None, share: float) -> None:
    label, count = 1, 4000
    found = Counter(told(str(number), label, Planting("patch", CLASSES, rate)) for number in range(count))
    assert found[label] / count == pytest.approx(share, abs=0.02)
    for other in {0, 2, 3}:
        assert found[other] / count == pytest.approx((1 - share) / 3, abs=0.02)


@pytest.mark.parametrize("decoy", DECOYS)
def test_a_record_says_what_was_planted_and_all_else_stays(hk, records, decoy: str) -> None:
    for before, after in zip(records, planted(hk, records, "--decoy", decoy, "--rate", 0.5), strict=True):
        drawn, image, was = after["decoy"], read_image(after["image"]), read_image(before["image"])
        right = drawn["tells"] == before["label"]
        assert after["decoy_told"] == ("right" if right else "wrong")
        assert (drawn["kind"], drawn["true"]) == (decoy, right)
        own = {"image": f"out/images/{before['id'].replace('/', '%2F')}.png", "size": [image.shape[1], image.shape[0]]}
        assert after == {**before, **own, "decoy": drawn, "decoy_told": after["decoy_told"]}
        box = drawn["box"]
        inside = np.zeros(image.shape[:2], bool)
        inside[box["y"] : box["y"] + box["height"], box["x"] : box["x"] + box["width"]] = True
        changed = (image != was).any(axis=2)
        assert changed.any()
        assert not changed[~inside].any()


@pytest.mark.parametrize("decoy", DECOYS)
def test_decoys_are_told_apart_by_what_they_show_and_not_by_their_place(decoy: str) -> None:
    grey = np.full((60, 80, 3), 128, np.uint8)
    seen: dict[int, set[Any]] = {}
    for tells, corner in product(range(CLASSES), range(4)):
        image = grey.copy()
        left, top, width, height = DECOYS[decoy](image, tells, CLASSES, corner)
        assert min(left, top, 80 - left - width, 60 - top - height) >= 0
        seen.setdefault(tells, set()).add(image[top : top + height, left : left + width].tobytes())
    assert all(len(looks) == 1 for looks in seen.values())
    assert len(set.union(*seen.values())) == CLASSES


def test_corners_are_drawn_evenly(hk, records) -> None:
    many = [{**records[0], "id": str(number)} for number in range(80)]
    boxes = [record["decoy"]["box"] for record in planted(hk, many, "--decoy", "patch", "--rate", 1)]
    assert min(Counter((box["x"], box["y"]) for box in boxes).values()) >= 10


def test_all_depends_on_the_seed_and_not_on_the_order(hk, records) -> None:
    options = ("--decoy", "patch", "--rate", "chance")
    one = planted(hk, records, *options)
    two = planted(hk, records[::-1], *options, out="two")[::-1]
    assert [record["decoy"] for record in one] == [record["decoy"] for record in two]
    assert all(Path(a["image"]).read_bytes() == Path(b["image"]).read_bytes() for a, b in zip(one, two, strict=True))
    other = planted(hk, records, *options, "--seed", 1, out="other")
    assert [record["decoy"] for record in one] != [record["decoy"] for record in other]


@pytest.mark.parametrize(("decoy", "side"), [*product(DECOYS, (1, 2, 5))])
def test_tiny_images_have_one_too(hk, here: Path, decoy: str, side: int) -> None:
    cv2.imwrite("t.png", np.full((side, 3 * side, 3), 100, np.uint8))
    record, = planted(hk, [{"id": "t", "image": "t.png", "label": 2}], "--decoy", decoy, "--rate", 1)
    assert read_image(record["image"]).shape == (side, 3 * side, 3)


def test_a_shard_of_pixels_is_planted_in_the_frame_of_its_records(hk, records) -> None:
    assert hk("pack", "s.h5", "--store", "pixels", "--size", 20, stdin=[{**one, "size": [80 + 10 * at, 60], "map": None}
              for at, one in enumerate(records)]).exit_code == 0
    drawn = planted(hk, hk("unpack", "s.h5").records, "--decoy", "frame", "--rate", 1)
    assert [record["size"] for record in drawn] == [[80 + 10 * at, 60] for at in range(8)]


@pytest.mark.parametrize(("change", "said"), [
    ({"label": None}, 'record "a/0": has no label, expected one from 0 to 3 for a decoy to tell; give the right --cla'),
    ({"label": 4}, 'record "a/0": has label 4, expected one from 0 to 3'),
    ({"decoy_told": "right"}, 'record "a/0": has a decoy already; plant in the images as they were'),
    ({"decoy": {}}, 'record "a/0": has a decoy already'),
    ({"image": None}, 'record "a/0": has no image; expected the path of one, to change its pixels'),
])
def test_what_it_does_not_understand_is_refused(hk, records, change: dict[str, Any], said: str) -> None:
    done = hk("plant", "--decoy", "patch", "--rate", 1, "--classes", CLASSES, "--out", "out",
              stdin=[{**records[0], **change}])
    assert done.exit_code == 1
    assert said in done.stderr


@pytest.mark.parametrize(("options", "said"), [
    (["--decoy", "pach", "--rate", "1"], "decoy 'pach' is unknown; did you mean 'patch'?"),
    (["--decoy", "patch", "--rate", "1.1"], "1.1 is not in the range 0<=x<=1"),
    (["--decoy", "patch", "--rate", "nan"], "nan is not"),
    (["--decoy", "patch", "--rate", "often"], "'often' is not a valid"),
    (["--decoy", "patch", "--rate", "1", "--classes", "1"], "1: expected two classes or more."),
    (["--decoy", "patch", "--rate", "1", "--classes", "gone"], "gone: no such file; expected a list, a shard or a nu"),
])
def test_it_is_called_wrongly(hk, records, options: list[str], said: str) -> None:
    classes = [] if "--classes" in options else ["--classes", 4]
    done = hk("plant", *classes, "--out", "out", *options, stdin=records)
    assert done.exit_code == 2
    assert said in done.stderr
