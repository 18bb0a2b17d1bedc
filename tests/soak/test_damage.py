"""Damaged shards and images: the original data or an HkmapError; never other data, a crash or a hang."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from hkmap.shards.writer import ShardWriter

pytestmark = pytest.mark.soak
TESTS = Path(__file__).parent.parent
BATCHES = 5
DAMAGES = 1_000        # a batch
MUTATIONS = 4_000


def run_worker(name: str, *arguments: object) -> tuple[int, int]:
    done = subprocess.run(
        [sys.executable, str(TESTS / name), *map(str, arguments)], capture_output=True, text=True, check=False,
        timeout=300,
    )
    assert done.returncode == 0, f"{name} {arguments}: {done.returncode}\n{done.stderr[-3000:]}"
    first, second = map(int, done.stdout.split())
    return first, second


@pytest.fixture(scope="module", params=["small", "large"])
def shard(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In the small one the structure takes half of the bytes, in the large one next to nothing."""
    large = request.param == "large"
    path = tmp_path_factory.mktemp("shard") / f"{request.param}.h5"
    rng = np.random.default_rng(0)
    with ShardWriter(path) as writer:
        for number in range(12):
            side = 90 if large else 8
            image = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
            values = rng.random((56, 56) if large else (7, 7), dtype=np.float32)
            record: dict[str, Any] = {"id": f"número {number}", "image": "x.png", "label": number % 3}
            drawn, certainty = (None, None) if number == 5 else (values, np.sqrt(values) if number % 2 else None)
            annotators = {"Ü": values, "b": values / 2} if number in (2, 3, 8) else {}
            writer.add(record, cv2.imencode(".png", image)[1].tobytes(), drawn, certainty, annotators=annotators)
    return path


@pytest.mark.parametrize("seed", range(BATCHES))
def test_a_damaged_shard_gives_the_data_or_an_error(shard: Path, seed: int) -> None:
    refused, unread = run_worker("flip_bits.py", shard, seed, DAMAGES, "any")
    assert refused + unread == DAMAGES
    assert refused > 0.5 * DAMAGES      # the others lay where nothing is read; `hkmap check` finds those too


@pytest.mark.parametrize("kind", ["bit", "cut"])
def test_each_flipped_bit_and_each_cut_is_found_and_named(shard: Path, kind: str) -> None:
    """A thousand bits anywhere, the user block included, and two hundred lengths."""
    count = 1000 if kind == "bit" else 200
    assert sum(run_worker("flip_bits.py", shard, 7, count, kind)) == count


@pytest.mark.parametrize("seed", range(BATCHES))
def test_a_damaged_image_decodes_or_is_an_error(seed: int) -> None:
    refused, decoded = run_worker("soak/mutate_images.py", seed, MUTATIONS)
    assert refused + decoded == 4 * MUTATIONS
    assert refused > 1000
    assert decoded > 1000
