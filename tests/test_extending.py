"""docs/extending.md: its package is installed as it stands on the page, and each of its rows does its work."""

from __future__ import annotations

import importlib
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT

from hkmap.engine.inputs import Preprocessing
from hkmap.engine.losses import MAP_LOSSES
from hkmap.engine.runs import new_model
from hkmap.evaluation.evaluate import EvaluationOptions, evaluate
from hkmap.evaluation.summary import summarise
from hkmap.maps.kde import kde_map
from hkmap.networks.backbone import Architecture
from hkmap.shards.sequence import ShardSequence
from hkmap.training.optimisation import TrainingOptions

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"^```python\n# my_package/(\w+)\.py\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
(PYPROJECT,) = re.findall(r"^```toml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
POINTS = tomllib.loads(PYPROJECT)["project"]["entry-points"]
GROUPS = {"hkmap.sources", "hkmap.bandwidths", "hkmap.map_losses", "hkmap.metrics", "hkmap.explanations",
          "hkmap.architectures", "hkmap.commands"}


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The page's package, installed as pip would."""
    site = tmp_path / "site"
    information = site / "my_package-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    sections = (f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in rows.items())
                for group, rows in POINTS.items())
    (information / "entry_points.txt").write_text("\n".join(sections))
    (site / "my_package").mkdir()
    for name, code in {"__init__": "", **BLOCKS}.items():
        (site / "my_package" / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.chdir(tmp_path)
    importlib.invalidate_caches()
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
        del sys.modules[name]


def test_the_page_has_a_row_of_every_group_and_no_other_code() -> None:
    assert set(POINTS) == GROUPS
    assert set(re.findall(r"^\| \[`(hkmap\.\w+)`\]", PAGE, re.MULTILINE)) == GROUPS
    modules = {value.partition(":")[0] for rows in POINTS.values() for value in rows.values()}
    assert modules == {f"my_package.{name}" for name in BLOCKS}
    assert len(BLOCKS) == PAGE.count("```python")


def test_the_lists_name_the_rows(hk: Callable) -> None:
    for group in GROUPS - {"hkmap.commands"}:
        table = {"hkmap.sources": "formats"}.get(group, group.removeprefix("hkmap."))
        found = {row["name"]: row for row in hk("list", table).records}
        for name in POINTS[group]:
            assert found[name]["origin"] == "my-package"
            assert "cannot be imported" not in found[name]["doc"]
    assert "Pass on the records that have a map." in hk("--help").stdout


def test_the_format(hk: Callable, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "7.png"), np.zeros((20, 30, 3), np.uint8))
    (tmp_path / "clicks.txt").write_text("SPOTS\n7 12.5 8\n")
    expected = [{"id": "7", "image": "7.png", "size": [30, 20], "points": [{"x": 12.5, "y": 8.0}]}]
    assert hk("annotations", "clicks.txt", "--images", ".").records == expected
    assert hk("annotations", "clicks.txt", "--images", ".", "--format", "spots").records == expected


def test_the_bandwidth() -> None:
    centres, frame, size = np.array([[12.0, 20], [30, 9], [31, 18]]), (60, 40), (8, 10)
    assert np.array_equal(kde_map(centres, frame, size, bandwidth="twentieth"),
                          kde_map(centres, frame, size, bandwidth=3.0))


def test_the_map_loss() -> None:
    loss = MAP_LOSSES.row(TrainingOptions(epochs=1, map_loss="mean_absolute").map_loss)
    attention, maps = torch.tensor([[0.5, 0.25], [0.5, 0.5]]).view(2, 1, 1, 2), torch.ones(2, 1, 1, 2)
    known = torch.tensor([[1.0, 0.0], [0.0, 0.0]]).view(2, 1, 1, 2)         # the second sample has no map
    assert loss(attention, maps, known).tolist() == pytest.approx([0.5, 0.0])


def test_the_metric_and_the_architecture(make_shard: Callable[..., Path]) -> None:
    model = new_model(Architecture("patches+abn", 2, width=4), Preprocessing(16, 16), ("class 0", "class 1"), 0)
    assert model.map_size == (2, 2)
    options = EvaluationOptions(("margin", "mistakes", "error", "mse"))
    report = summarise(evaluate(model, ShardSequence([make_shard("a.h5", 6)]), options), model, options)
    assert 0 <= report["metrics"]["margin"] <= 1
    assert report["metrics"]["mistakes"] == pytest.approx(report["metrics"]["error"])
    assert report["counts"] == {"margin": 6, "error": 6, "mse": 6, "mse_of_zeros": 6, "mistakes": 6}


def test_the_maps_that_explain(make_shard: Callable[..., Path]) -> None:
    model = new_model(Architecture("resnet8", 2, width=4), Preprocessing(16, 16), ("class 0", "class 1"), 0)
    options = EvaluationOptions(("insertion",), maps="gradient")
    for row in evaluate(model, ShardSequence([make_shard("a.h5", 2)]), options, torch.device("cpu")):
        assert row.map is not None
        assert row.map.max() > 0
        assert 0 <= row.values["insertion"] <= 1


def test_the_command(hk: Callable) -> None:
    records = [{"id": "1"}, {"id": "2", "map": "2.npy"}]
    assert hk("mapped", stdin=records).records == records[1:]
    failed = hk("mapped", stdin="")
    assert failed.exit_code == 1
    assert failed.stderr.startswith("Error: input: no records")
