"""Every choice by name: a table of rows with titles, refused names, functions in the place of names, added rows."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hkmap.choices import TABLES, Choices, table
from hkmap.engine.data import make_data
from hkmap.engine.inputs import Preprocessing
from hkmap.engine.losses import losses
from hkmap.engine.runs import load_model, new_model, save_model
from hkmap.errors import ChoiceError, MapError
from hkmap.evaluation.evaluate import EvaluationOptions, evaluate
from hkmap.evaluation.summary import summarise
from hkmap.maps.boxes import boxes_map
from hkmap.maps.kde import kde_map
from hkmap.maps.masks import masks_map
from hkmap.maps.polygons import polygons_map
from hkmap.maps.resize import normalise_map
from hkmap.networks.architectures import build
from hkmap.networks.backbone import Architecture
from hkmap.networks.classifier import Output
from hkmap.report.colouring import coloured
from hkmap.shards.sequence import ShardSequence
from hkmap.sources.annotations import choose_format
from hkmap.training.optimisation import TrainingOptions, learning_rate

CENTRES, FRAME, SIZE = np.array([[12.0, 20], [30, 9], [31, 18], [20, 30]]), (50, 40), (8, 10)
ONES = np.ones((4, 4), np.float32)
SMALL = Architecture("resnet8+abn", 2, "small", 4)


@pytest.mark.parametrize("name", TABLES)
def test_every_row_has_a_title_of_one_line(name: str) -> None:
    rows = table(name)
    assert len(rows) > 0
    for row, title in rows.describe().items():
        assert 4 < len(title) <= 110 or "cannot be imported" in title, row      # timm's, beside another torchvision
        assert title == title.strip(), row


@pytest.mark.parametrize("name", TABLES)
def test_an_unknown_name_is_told_what_there_is_and_a_misspelt_one_what_is_meant(name: str) -> None:
    rows = table(name)
    names = ", ".join(rows)
    with pytest.raises(ChoiceError, match=f"^{rows.what} 'qqqq' is unknown; expected one of ") as refused:
        rows["qqqq"]
    assert str(refused.value).endswith(names)
    for right in rows:
        with pytest.raises(ChoiceError, match=r"; did you mean '.+'\? expected one of ") as refused:
            rows.check(right + right[-1])
        assert str(refused.value).endswith(names)


def test_a_table_has_a_name_too() -> None:
    with pytest.raises(ChoiceError, match="table 'gate' is unknown; did you mean 'gates'"):
        table("gate")


def untrained(**more: Any) -> Any:
    return new_model(Architecture(**{**vars(SMALL), **more}), Preprocessing(16, 16), ("class 0", "class 1"), 0)


REFUSED: dict[str, Callable[[], object]] = {
    "bandwidth 'silverman'": lambda: kde_map(CENTRES, FRAME, SIZE, bandwidth="silverman"),
    "normalisation 'maxx'": lambda: normalise_map(ONES, "maxx"),
    "normalisation 'summ'": lambda: kde_map(CENTRES, FRAME, SIZE, normalise="summ"),
    "edge 'hard'": lambda: boxes_map([(0, 0, 9, 9)], [1.0], FRAME, SIZE, edge="hard"),
    "pooling 'average'": lambda: masks_map(iter([ONES > 0]), [1.0], (2, 2), "average"),
    "pooling 'median'": lambda: polygons_map([[(0, 0), (9, 0), (9, 9)]], [1.0], FRAME, SIZE, "median"),
    "colour 'jet'": lambda: coloured(ONES, "jet"),
    "format 'cocoa'": lambda: choose_format(Path("x.json"), "cocoa", None),
    "architecture 'resnet51'": lambda: untrained(name="resnet51"),
    "stem 'large'": lambda: untrained(stem="large"),
    "gate 'residuals'": lambda: untrained(gate="residuals"),
    "fit 'stretch'": lambda: Preprocessing(fit="stretch"),
    "map loss 'l3'": lambda: TrainingOptions(epochs=1, map_loss="l3"),
    "schedule 'steps'": lambda: TrainingOptions(epochs=1, schedule="steps"),
    "gamma schedule 'step'": lambda: TrainingOptions(epochs=1, gamma_schedule="step"),
    "class weights 'balance'": lambda: TrainingOptions(epochs=1, class_weights="balance"),
    "optimizer 'adam'": lambda: TrainingOptions(epochs=1, optimizer="adam"),
    "update 'extractor'": lambda: TrainingOptions(epochs=1, update="extractor"),
    "precision 'float64'": lambda: TrainingOptions(epochs=1, precision="float64"),
    "metric 'top3'": lambda: EvaluationOptions(("top1", "top3")),
}


@pytest.mark.parametrize("place", REFUSED)
def test_the_library_refuses_an_unknown_name(place: str) -> None:
    with pytest.raises(ChoiceError, match=f"{place} is unknown;"):
        REFUSED[place]()


# functions in the place of names


def test_a_bandwidth_may_be_a_function() -> None:
    """One that gives a number, one for each bubble, a covariance, or nothing."""
    radii, weights = np.array([9.0, 4, 6, 5]), np.array([1.0, 2, 1, 3])

    def draw(bandwidth: Any) -> np.ndarray:
        return kde_map(CENTRES, FRAME, SIZE, bandwidth=bandwidth, radii=radii, weights=weights)

    assert np.array_equal(draw(lambda centres, weights, radii, frame: 4.5), draw(4.5))
    assert np.array_equal(draw(lambda centres, weights, radii, frame: radii / 2), draw("radius"))
    assert np.array_equal(draw(lambda centres, weights, radii, frame: None), draw("fixed"))
    assert draw(lambda centres, weights, radii, frame: 4.5 * np.eye(2)) == pytest.approx(draw(4.5), abs=1e-6)
    covariance = np.cov(CENTRES.T, aweights=weights) * (weights.sum() ** 2 / (weights**2).sum()) ** (-1 / 3)
    factor = np.linalg.cholesky(covariance)
    assert draw(lambda centres, weights, radii, frame: factor) == pytest.approx(draw("scott"), abs=1e-6)


@pytest.mark.parametrize("sigma", [0.0, -1.0, np.nan, np.inf, np.array([1.0, 2, 0, 3]), np.diag([2.0, 0.0])])
def test_a_bandwidth_that_no_gaussian_has_is_refused(sigma: Any) -> None:
    def rule(*given: Any) -> Any:
        return sigma

    with pytest.raises(MapError, match="bandwidth rule: expected a sigma above 0, in pixels of the image"):
        kde_map(CENTRES, FRAME, SIZE, bandwidth=rule)


def test_a_schedule_may_be_a_function() -> None:
    falling = TrainingOptions(epochs=4, learning_rate=0.05, schedule=lambda done, epochs: 1 - done / epochs)
    assert [learning_rate(falling, Fraction(done)) for done in (0, 1, 3)] == [0.05, 0.05 * 0.75, 0.05 * 0.25]


def test_a_row_may_be_added_for_this_process_under_a_name_of_its_own() -> None:
    gates = Choices("gate", {"residual": lambda x, m: x * (1 + m)})
    gates.add("halved", lambda x, m: x * m)
    gates.add("halved", lambda x, m: x * m / 2)     # as a notebook's cell does that is run again
    assert gates["halved"](8.0, 0.5) == 2.0
    assert list(gates) == ["residual", "halved"]
    assert [gates.origin(name) for name in gates] == ["hkmap", "this process"]
    with pytest.raises(ChoiceError, match=r"^gate 'residual' is hkmap's own; choose another name for yours$"):
        gates.add("residual", lambda x, m: x)
    assert gates["residual"](8.0, 0.5) == 12.0


# what another package adds


def test_a_package_adds_a_bandwidth(installed: Callable[..., None]) -> None:
    code = "def sigma(centres, weights, radii, frame):\n    'A fortieth of the width.'\n    return frame[0] / 40\n"
    installed("narrow", code, group="hkmap.bandwidths", fortieth="narrow:sigma")
    values = kde_map(CENTRES, FRAME, SIZE, bandwidth="fortieth")
    assert np.array_equal(values, kde_map(CENTRES, FRAME, SIZE, bandwidth=50 / 40))
    assert table("bandwidths").describe()["fortieth"] == "A fortieth of the width."


def test_a_package_adds_a_map_loss(installed: Callable[..., None]) -> None:
    code = "def absolute(attention, maps, certainty): return (certainty * (attention - maps)).abs().mean((1, 2, 3))"
    installed("sharp", code, group="hkmap.map_losses", absolute="sharp:absolute")
    attention, ones = torch.full((2, 1, 3, 3), 0.25), torch.ones(2, 1, 3, 3)
    output = Output(torch.zeros(2, 2), torch.zeros(2, 2), attention)
    name = TrainingOptions(epochs=1, map_loss="absolute").map_loss
    assert losses(output, torch.tensor([0, 1]), ones, ones, map_loss=name).map.item() == pytest.approx(0.75)


METRIC = """
from hkmap.evaluation.metrics import SampleMetric

def measure(answered):
    return answered.used.logits.softmax(1).max(1).values

METRIC = SampleMetric("How sure the network is.", measure, higher=True, needs_map=False)
"""


def test_a_package_adds_a_metric(installed: Callable[..., None], make_shard: Callable[..., Path]) -> None:
    installed("sure", METRIC, group="hkmap.metrics", confidence="sure:METRIC")
    options = EvaluationOptions(("confidence", "top1"))
    report = summarise(evaluate(untrained(), ShardSequence([make_shard("a.h5", 6)]), options), untrained(), options)
    assert 0.5 <= report["metrics"]["confidence"] <= 1
    assert report["counts"] == {"confidence": 6, "top1": 6}


ARCHITECTURE = '''
from torch import nn
from hkmap.networks.backbone import Backbone

def tiny(architecture):
    """One convolution of stride 4."""
    width = architecture.width
    return Backbone(nn.Sequential(nn.Conv2d(3, width, 4, 4), nn.ReLU()), lambda stride: nn.Identity(), width)
'''


def test_a_package_adds_an_architecture(installed: Callable[..., None], hk: Callable, make_shard: Callable) -> None:
    installed("tinynet", ARCHITECTURE, group="hkmap.architectures", tiny="tinynet:tiny")
    shard = make_shard("a.h5", 6)
    model = untrained(name="tiny+abn")
    assert model.map_size == (4, 4)
    save_model(shard.parent / "run.pt", model)
    assert load_model(shard.parent / "run.pt").architecture.name == "tiny+abn"
    tuned = hk("finetune", shard, "--from", shard.parent / "run.pt", "--epochs", 1, "--out", shard.parent / "run")
    assert tuned.exit_code == 0, tuned.stderr
    report = hk("eval", shard, "--from", shard.parent / "run", "--metric", "mse").records[0]
    assert report["settings"]["map_size"] == [4, 4]
    assert report["metrics"]["mse"] > 0


def test_what_a_package_does_wrong_is_a_sentence_where_it_is_asked_for(installed: Callable[..., None]) -> None:
    installed("thief", "def sigma(*given): 'Taken.'", group="hkmap.bandwidths", scott="thief:sigma")
    installed("shattered", "import nothing_of_that_name", group="hkmap.map_losses", broken="shattered:loss")
    installed("number", "METRIC = 7", group="hkmap.metrics", wrong="number:METRIC")
    assert kde_map(CENTRES, FRAME, SIZE).max() == 1         # ours stays ours
    assert "Taken." not in table("bandwidths").describe().values()
    sentence = r'the map loss "broken" \(shattered:loss\) cannot be imported \(ModuleNotFoundError: .*; mend or unin'
    with pytest.raises(ChoiceError, match=sentence):
        TrainingOptions(epochs=1, map_loss="broken")
    assert "cannot be imported" in table("map_losses").describe()["broken"]     # the list is still one
    with pytest.raises(ChoiceError, match=r"is a int; expected a hkmap.evaluation.m"):
        EvaluationOptions(("wrong",))


def test_packages_are_asked_only_where_a_name_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **group: asked.append(group) or ())
    kde_map(CENTRES, FRAME, SIZE)
    TrainingOptions(epochs=1)
    EvaluationOptions(("top1", "mse"))
    build(SMALL)
    assert not asked
    assert "silverman" not in Choices("bandwidth", {}, group="hkmap.bandwidths")
    assert asked == [{"group": "hkmap.bandwidths"}]


def test_the_control_of_a_run_is_a_choice(make_shard: Callable[..., Path]) -> None:
    with pytest.raises(ChoiceError, match="control 'shuffle' is unknown; did you mean 'shuffled'"):
        make_data(untrained(), ShardSequence([make_shard("a.h5", 6)]), None, control="shuffle")
