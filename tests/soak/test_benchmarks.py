"""The benchmarks run, and say what they are to say; no time is judged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from conftest import ROOT

pytest_plugins = ["browser"]
pytestmark = [pytest.mark.soak, pytest.mark.xdist_group("benchmarks")]      # they run once
JUDGED = {"value", "target", "met"}


def quick(name: str) -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if name != "HKMAP_DATA"}
    environment["PYTHONPATH"] = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / name), "--quick"], capture_output=True, text=True, check=True,
        timeout=300, env={**environment, "OMP_NUM_THREADS": "1", "OPENCV_FOR_THREADS_NUM": "1"},
    )
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def maps() -> dict[str, Any]:
    pytest.importorskip("skimage", reason="scikit-image, the peer of masks2map, is not installed")
    return quick("maps.py")


def test_each_ratio_stands_beside_its_target(maps: dict[str, Any]) -> None:
    assert list(maps) == ["machine", "sizes", "kernels", "resize", "idrid", "cub"]
    assert maps["sizes"] == "quick: the figures mean nothing"
    assert list(maps["kernels"]) == [f"{rule}_{count}" for rule in ("radius", "scott") for count in (30, 100, 400)]
    judged = [
        *maps["kernels"].values(), *maps["resize"].values(), maps["idrid"]["over_peer"], maps["idrid"]["over_decoding"],
        maps["idrid"]["memory"], maps["cub"]["scott"]["over_peer"], maps["cub"]["radius"]["over_peer"],
        maps["cub"]["cub_scott_seconds"],
    ]
    for answer in judged:
        assert set(answer) >= JUDGED
        sign, number = answer["target"].rsplit(" ", 1)
        kept = answer["value"] <= float(number) if sign == "at most" else answer["value"] >= float(number)
        assert answer["met"] == kept or answer["value"] == float(number)        # the value is rounded
    for answer in (maps["cub"]["scott"], maps["cub"]["radius"]):
        assert set(answer["ours"]) == {"jobs_1", "jobs_2"}


def test_resizing_is_exact_whatever_the_time(maps: dict[str, Any]) -> None:
    assert all(answer["error_met"] for answer in maps["resize"].values())
    assert "2848x4288_to_14x14" in maps["resize"]


def test_shards_are_measured_too() -> None:
    pytest.importorskip("webdataset", reason="webdataset, a peer of shards, is not installed")
    shards = quick("shards.py")
    assert shards["sizes"] == "quick: the figures mean nothing"
    judged = [
        *shards["reading_224"].values(), shards["reading_large"]["over_decoding"], shards["pixels"],
        *shards["threads"].values(), shards["writing"], *shards["memory"].values(),
    ]
    assert len(judged) == 10
    for answer in judged:
        assert set(answer) >= JUDGED
    assert "met" not in shards["reading_large"]["over_vlen"]      # told, not claimed


def test_steps_are_measured_too() -> None:
    engine = quick("engine.py")
    assert engine["sizes"] == "quick: the figures mean nothing"
    assert all(set(answer) == JUDGED for answer in engine["ratios"].values())
    assert engine["images_decoded_in_the_second_cached_epoch"]["value"] == 0


def test_curves_are_measured_too() -> None:
    evaluation = quick("evaluation.py")
    assert evaluation["sizes"] == "quick: the figures mean nothing"
    judged = {name: answer for name, answer in evaluation["ratios"].items() if isinstance(answer, dict)}
    assert {"float32_over_forward_passes", "rise_over_float32", "difference_of_areas"} <= set(judged)
    assert all(set(answer) == JUDGED for answer in (*judged.values(), evaluation["memory"]["growth"]))
    assert judged["difference_of_areas"]["met"]


def test_memory_is_followed_too() -> None:
    scale = quick("scale.py")
    assert scale["sizes"] == "quick: the figures mean nothing"
    processes = [list(chain["processes"]) for chain in scale["chains"].values()]
    assert processes[:3] == [["folder"], ["bubbles2map", "resize", "pack"], ["check"]]
    for chain in scale["chains"].values():
        for process in chain["processes"].values():
            seconds, memory = zip(*process["curve"], strict=True)
            assert len(seconds) <= 30
            assert list(seconds) == sorted(seconds)
            assert max(memory) <= process["peak_mb"]


def test_the_page_is_measured_too(chromium: Any) -> None:
    editor = quick("editor.py")
    assert editor["sizes"] == "quick: the figures mean nothing"
    answers, frames = editor["milliseconds_to_painted_answer"], editor["milliseconds_between_frames"]
    judged = [*answers.values(), *(found[name] for found in frames.values() for name in ("idle", "dragging"))]
    assert len(judged) == 5
    assert all(set(answer) >= JUDGED for answer in judged)
    assert all(answer["moves"] > 0 for answer in answers.values())
