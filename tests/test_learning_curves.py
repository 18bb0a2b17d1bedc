"""Learning curves: the means of an epoch's steps, what is drawn of them, and logs that are no logs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest

from hkmap.errors import RunError
from hkmap.report.learning import Means, curves_of, learning_figure, read_log


def step(epoch: int, number: int, loss: float, **more: Any) -> dict[str, Any]:
    """A line of a log as the first versions wrote it, and ``more``."""
    return {
        "epoch": epoch, "step": number, "loss": loss, "loss_attention": loss / 4, "loss_perception": loss / 2,
        "loss_map": 0.0, "accuracy": 0.5, "learning_rate": 0.1, "epoch_ends": False, "validation": None, **more,
    }


OLD = [
    step(1, 1, 4.0),
    step(1, 2, 2.0, validation={"top1": 0.25, "total": 3.5, "mse": 0.5, "mse_of_zeros": 0.75}),
    step(2, 3, 2.0),
    step(2, 4, 1.0, validation={"top1": 0.75, "total": 1.5, "mse": 0.125, "mse_of_zeros": 0.75}),
]
NEW = [
    step(1, 1, 4.0, samples=3, loss_map=8.0, loss_mining=2.0, attention_mean=0.5),
    step(1, 2, 2.0, samples=1, loss_map=4.0, loss_mining=6.0, attention_mean=None,
         validation={"top1": 0.5, "mse": None, "brier": 0.25}),
    step(2, 3, 1.0, samples=3, loss_map=0.0, loss_mining=0.0, attention_mean=0.25),
]


def write(folder: Path, rows: list[dict[str, Any]], rest: str = "") -> Path:
    folder.mkdir()
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + rest)
    return folder


@pytest.mark.parametrize(("rows", "name", "mean"), [
    (OLD, "loss", 2.25),                    # each step counts as one sample
    (OLD, "loss_map", None),                # 0 in all steps
    (OLD, "loss_mining", None),             # an older log has none
    (OLD, "accuracy", 0.5),
    (NEW, "loss", (3 * 4 + 2 + 3 * 1) / 7),
    (NEW, "loss_map", (3 * 8 + 4) / 7),
    (NEW, "loss_mining", (3 * 2 + 6) / 7),
    (NEW, "attention_mean", (3 * 0.5 + 3 * 0.25) / 6),      # over the samples that have one
    ([], "loss", None),
])
def test_a_mean_is_over_samples(rows: list[dict[str, Any]], name: str, mean: float | None) -> None:
    means = Means()
    for row in rows:
        means.add(row)
    assert means[name] == pytest.approx(mean)


def test_curves_are_per_epoch() -> None:
    old, new = curves_of(OLD), curves_of(NEW)
    assert (old.epochs, old.steps, old.training["loss"]) == ([1, 2], 4, [3.0, 1.5])
    assert old.validation == {
        "top1": [0.25, 0.75], "total": [3.5, 1.5], "mse": [0.5, 0.125], "mse_of_zeros": [0.75, 0.75],
    }
    assert (new.epochs, new.training["loss"], new.training["loss_map"]) == ([1, 2], [3.5, 1.0], [7.0, None])
    assert new.validation == {"top1": [0.5, None], "mse": [None, None], "brier": [0.25, None]}


def test_a_figure_has_a_panel_for_what_there_is_and_a_line_for_each_run() -> None:
    figure = learning_figure({"old $x$": curves_of(OLD), "_new": curves_of(NEW)})
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes}
    assert list(panels) == [
        "loss (what is minimised)", "attention loss", "perception loss", "map loss, without gamma",
        "mining loss, without alpha", "accuracy (top-1)", "MSE to human maps", "mean of the attention map",
        "learning rate", "validation: brier",
    ]
    drawn = {
        title: [(line.get_linestyle(), *map(list, line.get_data())) for line in axes.get_lines()]
        for title, axes in panels.items()
    }
    assert drawn["loss (what is minimised)"] == [
        ("-", [1, 2], [3.0, 1.5]), ("--", [1, 2], [3.5, 1.5]), ("-", [1, 2], [3.5, 1.0]),
    ]
    assert drawn["accuracy (top-1)"] == [
        ("-", [1, 2], [0.5, 0.5]), ("--", [1, 2], [0.25, 0.75]), ("-", [1, 2], [0.5, 0.5]), ("--", [1], [0.5]),
    ]
    assert drawn["map loss, without gamma"] == [("-", [1], [7.0])]
    assert drawn["MSE to human maps"] == [("--", [1, 2], [0.5, 0.125]), (":", [1, 2], [0.75, 0.75])]
    names = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert names == ["1  old $x$", "2  _new", "training, mean over an epoch", "validation", "MSE of a map of zeros"]
    numbers = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    assert numbers[0] == ["2", "1"]      # from the lower to the higher end
    colours = {line.get_color() for axes in figure.axes for line in axes.get_lines()}
    assert len(colours) == 2


def test_one_run_needs_no_numbers() -> None:
    figure = learning_figure({"run": curves_of(OLD)})
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [" run"]
    assert not any(axes.texts for axes in figure.axes)


@pytest.mark.parametrize("name", ["curves.png", "curves.SVG"])
def test_plot_draws_runs(hk: Callable[..., Any], here: Path, name: str) -> None:
    write(here / "a", OLD)
    write(here / "b", NEW, rest='{"epoch": 2, "st')      # it is still going on
    result = hk("plot", "a", "b", "--out", name)
    assert result.exit_code == 0, result.stderr
    assert result.records == [{"picture": name, "runs": [
        {"run": "a", "epochs": 2, "steps": 4}, {"run": "b", "epochs": 2, "steps": 3},
    ]}]
    if name.endswith("png"):
        assert cv2.imread(name).shape[1] == 1200
    else:
        assert b"<svg" in Path(name).read_bytes()
    assert "exists already" in hk("plot", "a", "--out", name).stderr
    assert hk("plot", "a", "--out", name, "--overwrite").exit_code == 0


def test_the_log_of_a_training_can_be_plotted(hk: Callable[..., Any], make_shard: Callable[..., Path], here: Path):
    tiny = ("--arch", "resnet8+abn", "--stem", "small", "--width", 4, "--image-size", 16, "--epochs", 2)
    shard = make_shard("train.h5")
    assert hk("train", shard, *tiny, "--val", shard, "--out", "run").exit_code == 0
    curves = curves_of(read_log(here / "run"))
    assert curves.epochs == [1, 2]
    assert curves.training["loss_attention"] != [None, None]
    assert {"top1", "loss", "total", "mse"} <= curves.validation.keys()
    assert hk("plot", "run", "--out", "curves.png").exit_code == 0


@pytest.mark.parametrize(("content", "sentence"), [
    (None, "log.jsonl: no such file; expected the run folder of `hkmap train` or `hkmap finetune`"),
    ("", "log.jsonl: no step yet; wait for the first one"),
    ('{"epoch": 1, "st', "log.jsonl: no step yet; wait for the first one"),
    ('{"epoch": 1, "st\n', "log.jsonl line 1: not a step of a training; expected the log that `hkmap train` writes"),
    (json.dumps(OLD[0]) + "\n[1]\n", "log.jsonl line 2: not a step of a training"),
    ('{"epoch": 1, "step": 1}\n', "log.jsonl line 1: not a step of a training"),
    (json.dumps(step(1, 1, 1.0, accuracy="high")) + "\n", "log.jsonl line 1: not a step of a training"),
    (json.dumps(step(1, 1, 1.0, validation=[1])) + "\n", "log.jsonl line 1: not a step of a training"),
    (json.dumps(step(1, 1, 1.0, samples="2")) + "\n", "log.jsonl line 1: not a step of a training"),
    ("\xff\xfe\n", "log.jsonl line 1: not a step of a training"),
    ("[" * 100_000 + "\n", "log.jsonl line 1: not a step of a training"),
])
def test_what_is_no_log_is_a_sentence(hk: Callable[..., Any], here: Path, content: str | None, sentence: str) -> None:
    (here / "run").mkdir()
    if content is not None:
        (here / "run" / "log.jsonl").write_text(content, encoding="latin-1")
    result = hk("plot", "run", "--out", "curves.png")
    assert result.exit_code == 1
    assert sentence in result.stderr
    assert [path.name for path in here.iterdir()] == ["run"]
    with pytest.raises(RunError):
        read_log(here / "run")


def test_a_picture_has_a_known_ending(hk: Callable[..., Any], here: Path) -> None:
    write(here / "run", OLD)
    result = hk("plot", "run", "--out", "curves.jpg")
    assert result.exit_code == 2
    assert "'curves.jpg': expected a name that ends in .png or .svg." in result.stderr
