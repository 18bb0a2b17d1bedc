"""No lesion cell is lost: microaneurysms of a few pixels in a full-size retinal photograph stay in the 14x14 map."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from hkmap.maps.resize import resize_matrix
from hkmap.shards.reader import ShardReader

pytestmark = pytest.mark.xdist_group("small lesions")      # their masks are made once
FRAME = (4288, 2848)      # IDRiD's photographs, in pixels
CELLS = (14, 14)


def microaneurysms(seed: int, count: int = 40) -> np.ndarray:
    """Discs of radius 2 to 5, some across the edges of cells and of the image."""
    generator = np.random.default_rng(seed)
    mask = np.zeros(FRAME[::-1], np.uint8)
    edges = [(round(FRAME[0] * k / 14), round(FRAME[1] * k / 14)) for k in range(15)]
    for number in range(count):
        x, y = generator.integers(0, FRAME)
        if number % 3 == 1:
            x = edges[generator.integers(15)][0] + generator.integers(-5, 6)
        if number % 3 == 2:
            y = edges[generator.integers(15)][1] + generator.integers(-5, 6)
        cv2.circle(mask, (int(x), int(y)), int(generator.integers(2, 6)), 1, -1)
    return mask


def shares(mask: np.ndarray) -> np.ndarray:
    """The share of each cell's area that is lesion, by the definition of the resize."""
    return resize_matrix(FRAME[1], CELLS[0]) @ mask @ resize_matrix(FRAME[0], CELLS[1]).T


@pytest.fixture(scope="module")
def eyes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[np.ndarray]]:
    """A folder of images and of masks, and the shares of lesion in their cells."""
    folder = tmp_path_factory.mktemp("eyes")
    (folder / "images/dr").mkdir(parents=True)
    (folder / "masks/dr").mkdir(parents=True)
    found = []
    for number in range(3):
        mask = microaneurysms(number)
        cv2.imwrite(str(folder / f"images/dr/{number}.png"), np.zeros((*mask.shape, 3), np.uint8))
        cv2.imwrite(str(folder / f"masks/dr/{number}.png"), mask * 255)
        found.append(shares(mask))
    return folder, found


@pytest.mark.parametrize("suffix", ["npy", "png"])
@pytest.mark.parametrize("between", [14, 224], ids=["straight to 14", "by way of 224"])
def test_every_cell_that_holds_lesion_is_above_zero_in_the_shard(hk, eyes, tmp_path, suffix: str, between: int) -> None:
    folder, expected = eyes
    saved = ("--format", suffix, "--out")
    records = hk("folder", folder / "images", "--masks", folder / "masks").stdout
    records = hk("masks2map", "--size", between, *saved, tmp_path / "maps", stdin=records).stdout
    records = hk("resize", "--size", 14, *saved, tmp_path / "maps14", stdin=records).stdout
    packed = hk("pack", tmp_path / "eyes.h5", "--expect", 3, stdin=records)
    assert packed.exit_code == 0, packed.stderr
    assert json.loads(packed.stdout)["maps"] == 3
    reader = ShardReader(tmp_path / "eyes.h5")
    for index, share in enumerate(expected):
        values = reader.map(index)
        assert 0 < np.count_nonzero(share) < share.size
        assert np.array_equal(values > 0, share > 0)
        tolerance = 1e-6 if suffix == "npy" else 1 / 65535 + 1e-6
        assert values == pytest.approx(share, abs=tolerance)
