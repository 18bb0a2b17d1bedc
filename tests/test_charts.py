"""Charts of evaluations: what is drawn, in which order, and the same bytes for the same figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_rows import untrained

from hkmap.engine.runs import save_model
from hkmap.report.charts import (
    Band,
    Panel,
    curves_figure,
    figure_bytes,
    reliability,
    reliability_figure,
    shares_of,
)


def panel(*bands: Band | None, title: str = "insertion") -> Panel:
    return Panel(title, "pixels inserted, %", "probability", list(bands))


PLAIN = Band([0.0, 0.5, 0.75, 1.0], [0.1, 0.2, 0.2, 0.4])      # by smaller steps than the other
BANDED = Band([0.0, 0.5, 1.0], [0.2, 0.3, 0.5], [0.1, 0.2, 0.4], [0.3, 0.4, 0.6])


@pytest.mark.parametrize(("points", "step", "size", "shares"), [
    (3, 2, (2, 2), [0, 0.5, 1]),
    (3, 3, (2, 2), [0, 0.75, 1]),        # the last step is shorter
    (2, 99, (2, 2), [0, 1]),
])
def test_shares_are_of_the_image_s_pixels(points: int, step: int, size: tuple[int, int], shares: list[float]) -> None:
    assert shares_of(points, step, size) == shares


def test_the_bins_of_a_reliability_diagram_are_means_of_their_answers() -> None:
    rng = np.random.default_rng(0)
    confidence = np.concatenate([rng.random(200), [1.0, 1.0]])
    right = rng.random(202) < 0.5
    expected = []
    for number in range(15):
        inside = [
            at for at, value in enumerate(confidence.tolist()) if number / 15 < value <= (number + 1) / 15
        ]
        if inside:
            mean = sum(confidence[at] for at in inside) / len(inside)
            expected.append((mean, sum(bool(right[at]) for at in inside) / len(inside), len(inside) / 202))
    bins = reliability(confidence, right, 15)
    np.testing.assert_allclose(np.stack(bins, axis=1), expected)
    alone = reliability(np.array([0.5]), np.array([True]), 15)
    assert [values.tolist() for values in alone] == [[0.5], [1.0], [1.0]]       # no empty bin


def test_a_panel_has_a_line_for_each_run_dashes_for_a_sham_and_bands_where_they_are_known() -> None:
    panels = [panel(PLAIN, BANDED, None), panel(None, None, PLAIN)]
    figure = curves_figure(panels, [False, True, False], ["a", "$b$", "c"])
    first, second = figure.axes
    drawn = [(line.get_linestyle(), *(values.tolist() for values in line.get_data())) for line in first.get_lines()]
    assert drawn == [
        ("-", [0, 50, 75, 100], PLAIN.mean), ("--", [0, 50, 100], BANDED.mean),
    ]
    assert [len(axes.collections) for axes in figure.axes] == [1, 0]
    band = first.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (0.1, 0.6)
    assert second.get_lines()[0].get_color() not in {line.get_color() for line in first.get_lines()}
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["1  a", "2  $b$ (dashed: sham control)", "3  c"]
    assert (first.get_title(loc="left"), first.get_xlabel(), first.get_ylabel()) == (
        "insertion", "pixels inserted, %", "probability"
    )
    assert not curves_figure([panel(PLAIN)], [False]).legends


@pytest.mark.parametrize(("ending", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_the_same_chart_gives_the_same_bytes(ending: str, start: bytes) -> None:
    bins = reliability(np.array([0.2, 0.7, 0.9]), np.array([False, True, True]), 15)
    makers: list[Callable[[], Any]] = [
        lambda: curves_figure([panel(BANDED, PLAIN)], [False, True], ["a", "b"]),
        lambda: reliability_figure(bins, "calibration", "#0072b2"),
    ]
    for make in makers:
        content = figure_bytes(make(), ending)
        assert content == figure_bytes(make(), ending)
        assert content.startswith(start)
        assert b"Date" not in content.replace(b"/CreationDate", b"")


# hkmap eval --plot


@pytest.fixture
def run(make_shard: Callable[..., Path], here: Path) -> Path:
    make_shard("train.h5", 4, classes=3)
    save_model(here / "best.safetensors", untrained())
    return here


def test_eval_draws_its_curves(hk: Callable[..., Any], run: Path) -> None:
    line = ("eval", "train.h5", "--from", run, "--metric", "top1,insertion,deletion", "--plot", "c.SVG")
    result = hk(*line)
    assert result.exit_code == 0, result.stderr
    assert result.records[0]["curves"].keys() == {"insertion", "deletion"}
    assert Path("c.SVG").read_bytes().startswith(b"<?xml")
    again = hk(*line)
    assert again.exit_code == 1
    assert "c.SVG: exists already; choose another name, or use --overwrite" in again.stderr
    assert hk(*line, "--overwrite").exit_code == 0


@pytest.mark.parametrize(("metric", "name", "sentence"), [
    ("top1,auroc", "c.png", "--plot draws curves; measure some, as by --metric insertion,deletion."),
    ("insertion", "c.jpg", "'c.jpg': expected a name that ends in .png, .svg or .pdf."),
])
def test_what_cannot_be_drawn_is_refused(
    hk: Callable[..., Any], run: Path, metric: str, name: str, sentence: str
) -> None:
    result = hk("eval", "train.h5", "--from", run, "--metric", metric, "--plot", name)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert not Path(name).exists()
