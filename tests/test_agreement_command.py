"""hkmap agreement: from records to the JSON, the table and the picture; and what it finds in real gaze."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Result
from PIL import Image

from hkmap.maps.agreement import KINDS, MEASURES, METHODS
from hkmap.report.intervals import COLOURS, agreement_figure

pytestmark = pytest.mark.usefixtures("here")
Hk = Callable[..., Result]
Record = dict[str, Any]

RANDOM = np.random.default_rng(11)


@pytest.fixture
def records() -> list[Record]:
    """Six images of as many places; three people point near it, one of them only on the first four images."""
    found = []
    for number, (x, y) in enumerate(RANDOM.uniform(10, 90, (6, 2))):
        users = "abc" if number < 4 else "ab"
        bubbles = [{"x": x + RANDOM.normal(0, 3), "y": y + RANDOM.normal(0, 3), "radius": 20, "user": user}
                   for user in users]
        found.append({"id": f"{number}", "size": [100, 100], "bubbles": bubbles, "extra": number})
    return found


@pytest.fixture
def drawn(records: list[Record], hk: Hk) -> str:
    result = hk("bubbles2map", "--per-annotator", "--bandwidth", "radius", "--size", 10, "--out", "maps", stdin=records)
    return result.stdout


def test_the_ceiling_of_planted_agreement(drawn: str, hk: Hk) -> None:
    result = hk("agreement", "--resamples", 300, stdin=drawn)
    assert result.exit_code == 0, result.stderr
    (found,) = result.records
    assert {key: value for key, value in found.items() if key not in METHODS} == {
        "images": 6, "left_out": 0, "maps": 16, "empty_maps": 0, "marked_images": 6, "annotators": [2, 3],
        "map_size": [10, 10], "seed": 0,
    }
    for method in METHODS:
        assert list(found[method]) == list(MEASURES)
        for entry in found[method].values():
            names = (*KINDS, "null_minus_uniform")
            assert list(entry) == [name for kind in names for name in (kind, f"{kind}_interval")]
            for kind in KINDS:
                low, high = entry[f"{kind}_interval"]
                assert low <= entry[kind] + 1e-12
                assert entry[kind] <= high + 1e-12
        assert found[method]["mse"]["agreement"] < found[method]["mse"]["null_interval"][0]
        assert found[method]["iou"]["agreement"] > found[method]["iou"]["null_interval"][1]


def test_the_table_is_for_people(drawn: str, hk: Hk) -> None:
    result = hk("agreement", "--resamples", 20, stdin=drawn)
    assert "6 images, mean and 95 % interval" in result.stderr
    assert "leave_one_out" in result.stderr
    assert hk("agreement", "--resamples", 20, "-q", stdin=drawn).stderr == ""


def test_a_seed_gives_the_same_bytes(drawn: str, hk: Hk) -> None:
    first, again, other = (hk("agreement", "--resamples", 20, "--seed", seed, stdin=drawn).stdout for seed in (1, 1, 2))
    assert first == again != other


def test_images_of_one_annotator_are_left_out_and_said(drawn: str, hk: Hk) -> None:
    records = [json.loads(line) for line in drawn.splitlines()]
    del records[0]["annotator_maps"]
    records[1]["annotator_maps"] = {"a": records[1]["annotator_maps"]["a"]}
    result = hk("agreement", "--resamples", 20, stdin=records)
    assert result.exit_code == 0
    assert "2 of 6 images have fewer than two annotators and are omitted" in result.stderr
    assert (result.records[0]["images"], result.records[0]["left_out"]) == (4, 2)
    assert result.records[0]["maps"] == 10


def test_a_bad_map_can_be_skipped(drawn: str, hk: Hk) -> None:
    records = [json.loads(line) for line in drawn.splitlines()]
    records[2]["annotator_maps"]["a"] = "gone.npy"
    assert "gone.npy" in hk("agreement", stdin=records).stderr
    result = hk("agreement", "--on-error", "skip", "--max-errors", 1, "--resamples", 20, stdin=records)
    assert result.exit_code == 0
    assert result.records[0]["images"] == 5


def test_each_image_has_its_own_figures(drawn: str, hk: Hk) -> None:
    result = hk("agreement", "--resamples", 20, "--per-image", "each.jsonl", stdin=drawn)
    each = [json.loads(line) for line in Path("each.jsonl").read_text().splitlines()]
    assert [record["id"] for record in each] == [f"{number}" for number in range(6)]
    assert each[3]["extra"] == 3
    for method in METHODS:
        for measure in MEASURES:
            for kind in KINDS:
                mean = np.mean([record["agreement"][method][measure][kind] for record in each])
                assert mean == pytest.approx(result.records[0][method][measure][kind])


def test_who_marked_nothing_is_counted_and_said(drawn: str, hk: Hk) -> None:
    """Of image 4 one person of two remains, of image 0 two of three: spearman, iou and kl have five images."""
    records = [json.loads(line) for line in drawn.splitlines()]
    np.save("nothing.npy", np.zeros((10, 10), np.float32))
    for number in (0, 4):
        records[number]["annotator_maps"]["a"] = "nothing.npy"
    result = hk("agreement", "--resamples", 20, "--per-image", "each.jsonl", "--picture", "a.png", stdin=records)
    assert result.exit_code == 0
    assert "2 of 16 maps mark nothing: they count in mse alone; the other measures compare" in result.stderr
    assert "on 5 of 6 images" in " ".join(result.stderr.split())
    assert "6 images (mse) or 5 (the others), mean and 95 % interval" in result.stderr
    (found,) = result.records
    assert [found[key] for key in ("images", "maps", "empty_maps", "marked_images")] == [6, 16, 2, 5]
    each = [json.loads(line)["agreement"] for line in Path("each.jsonl").read_text().splitlines()]
    assert each[4]["split_half"]["iou"] == {"agreement": None, "null": None, "uniform": None}
    for name in MEASURES:
        own = [image["leave_one_out"][name]["agreement"] for image in each]
        assert [place for place, figure in enumerate(own) if figure is None] == ([] if name == "mse" else [4])
        mean = np.mean([figure for figure in own if figure is not None])
        assert found["leave_one_out"][name]["agreement"] == pytest.approx(mean)


@pytest.mark.parametrize("option", ["--per-image", "--picture"])
def test_nothing_is_overwritten_unasked(option: str, drawn: str, hk: Hk) -> None:
    Path("there").write_text("mine")
    result = hk("agreement", option, "there", stdin=drawn)
    assert result.exit_code == 1
    assert "there: exists already" in result.stderr
    assert Path("there").read_text() == "mine"
    assert hk("agreement", "--resamples", 20, option, "there", "--overwrite", stdin=drawn).exit_code == 0
    assert Path("there").read_bytes() != b"mine"


# the picture


def summary(**kinds: float) -> dict[str, Any]:
    entry = {name: value for kind, mean in kinds.items()
             for name, value in ((kind, mean), (f"{kind}_interval", [mean - 0.05, mean + 0.05]))}
    methods = {method: dict.fromkeys(MEASURES, entry) for method in METHODS}
    return {"images": 3, "marked_images": 3, "annotators": [2, 4], **methods}


def test_the_dots_stand_where_the_numbers_are() -> None:
    means = {"agreement": 0.75, "null": 0.4, "uniform": -0.2}
    figure = agreement_figure(summary(**means))
    assert len(figure.axes) == len(MEASURES)
    for axes in figure.axes:
        found = [line.get_xdata() for line in axes.lines]
        for row, mean in enumerate([*means.values()] * len(METHODS)):
            assert list(found[2 * row]) == pytest.approx([mean - 0.05, mean + 0.05])
            assert list(found[2 * row + 1]) == pytest.approx([mean])
            assert axes.lines[2 * row].get_color() == COLOURS[[*means][row % 3]]
        assert [label.get_text() for label in axes.get_yticklabels()][1] == "leave one out: null"
        assert axes.yaxis_inverted()      # the first line is the uppermost


@pytest.mark.parametrize("mean", [0.0, 0.1, -0.9])
def test_every_axis_holds_zero(mean: float) -> None:
    for axes in agreement_figure(summary(agreement=mean, null=mean, uniform=mean)).axes:
        low, high = axes.get_xlim()
        assert low <= 0 <= high


def test_the_picture_is_written(drawn: str, hk: Hk) -> None:
    assert hk("agreement", "--resamples", 20, "--picture", "agreement.png", stdin=drawn).exit_code == 0
    with Image.open("agreement.png") as picture:
        assert (picture.format, picture.mode) == ("PNG", "RGBA")


# real gaze


def test_people_agree_where_to_look_at_birds(hk: Hk, data_root: Path) -> None:
    """Every eighth bird; the acceptance is that the agreement lies outside the null's interval."""
    cub = data_root.resolve() / "cub10"
    gaze = [word for run in range(1, 6) for word in ("--gaze", cub / f"gaze/Fixation_run{run}.txt")]
    birds = hk("cub", cub / "CUB_200_2011", *gaze).records[7::8]
    drawn = hk("bubbles2map", "--bandwidth", "fixed", "--size", 28, "--per-annotator", "--out", "maps.h5", stdin=birds)
    small = hk("resize", "--size", 14, "--out", "maps14.h5", stdin=drawn.stdout)
    result = hk("agreement", stdin=small.stdout)
    assert result.exit_code == 0, result.stderr
    (found,) = result.records
    assert found["images"] == 74
    assert found["annotators"][1] == 5
    for method in METHODS:
        for name, higher in (("mse", False), ("spearman", True), ("iou", True), ("kl", False)):
            entry = found[method][name]
            (low, high), (worst, best) = entry["null_interval"], entry["agreement_interval"]
            assert (entry["agreement"] > high) if higher else (entry["agreement"] < low)
            assert (worst > high) if higher else (best < low)          # the intervals do not even touch
        assert found[method]["spearman"]["null_minus_uniform_interval"][0] > 0      # the centre bias
