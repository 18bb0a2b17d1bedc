"""Masks that are not two-valued: what compression or alpha blurs is refused with the remedy, what is meant is taken."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw

from hkmap.errors import ImageError
from hkmap.files.images import read_mask
from hkmap.files.masks import read_fitting_mask, read_referred_mask

Array = np.ndarray[Any, Any]
SIZE = (120, 100)


def drawn(level: int = 255) -> Image.Image:
    mask = Image.new("L", SIZE)
    ImageDraw.Draw(mask).ellipse((21, 17, 83, 71), fill=level)
    return mask


LESION = np.asarray(drawn()) != 0


def through(kind: str, image: Image.Image, quality: int) -> Image.Image:
    """The image as lossy compression gives it back."""
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue()))


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("level", [255, 128, 76])
@pytest.mark.parametrize(("kind", "quality"), [("JPEG", 50), ("JPEG", 75), ("JPEG", 92), ("WEBP", 50)])
@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_noise_is_refused_and_a_threshold_takes_it(
    mode: str, level: int, kind: str, quality: int, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"mask.{suffix}"
    through(kind, drawn(level).convert(mode), quality).convert(mode).save(path)
    with pytest.raises(ImageError, match=r"mask\.\w+: has scattered faint levels, .* masks2map --threshold 128`"):
        read_mask(path)
    found = read_mask(path, level // 2)
    assert np.count_nonzero(found != LESION) <= 0.02 * LESION.sum()      # the outermost pixels


@pytest.mark.parametrize(("kind", "suffix", "name"), [
    ("JPEG", "jpg", "a JPEG"), ("WEBP", "webp", "a lossy WebP"), ("TIFF", "tif", "a TIFF with lossy compression"),
])
def test_lossy_files_are_refused_by_their_header(kind: str, suffix: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / f"mask.{suffix}"
    drawn().convert("RGB").save(path, kind, quality=90, **({"compression": "jpeg"} if kind == "TIFF" else {}))
    with pytest.raises(ImageError, match=rf"mask\.{suffix}: {name}, whose noise would count as lesion; give"):
        read_mask(path)
    assert np.count_nonzero(read_mask(path, 128) != LESION) <= 20
    assert np.array_equal(read_referred_mask(f"{path}#>=128"), read_mask(path, 128))


def regions(count: int) -> Array:
    """Numbered cells, 1 to ``count``, of the points nearest to random ones."""
    rows, columns = np.mgrid[: SIZE[1], : SIZE[0]]
    points = np.random.default_rng(0).integers(0, 100, (count, 2))
    away = (rows[..., None] - points[:, 0]) ** 2 + (columns[..., None] - points[:, 1]) ** 2
    return (away.argmin(2) + 1).astype(np.uint8)


def smooth() -> Array:
    return np.asarray(drawn().resize((480, 400), Image.Resampling.NEAREST).rotate(7).resize(SIZE, Image.Resampling.BOX))


MEANT = {
    "two values": np.asarray(drawn()), "a level": np.asarray(drawn(76)), "1": np.asarray(drawn(1)),
    "smooth edges": smooth(), "scaled up": cv2.resize(np.asarray(drawn()), (200, 167), interpolation=cv2.INTER_LINEAR),
    "numbers": regions(5) % 5, "numbers and 255": np.where(regions(9) == 9, 255, regions(9)),
    "colours": np.dstack([np.asarray(drawn(128)), np.asarray(drawn(0)), np.asarray(drawn(3))]),
    "an instance each": np.where(regions(60) % 3, regions(60) * 4, 0), "none": np.zeros((9, 9), np.uint8),
    "all": np.full((9, 9), 7, np.uint8), "a pixel": np.eye(3, dtype=np.uint8)[:1] * 255,
}


@pytest.mark.parametrize("name", MEANT)
def test_several_values_that_are_meant_are_taken(name: str, tmp_path: Path) -> None:
    pixels = MEANT[name].astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    expected = pixels != 0 if pixels.ndim == 2 else (pixels != 0).any(axis=2)
    assert np.array_equal(read_mask(tmp_path / "mask.png"), expected)


def with_alpha(colours: Array, alpha: Array) -> Image.Image:
    return Image.fromarray(np.dstack([colours, alpha]).astype(np.uint8))


WHITE, INK = np.full(LESION.shape, 255), LESION * 255


@pytest.mark.parametrize(("colours", "alpha", "refused"), [
    (np.dstack([WHITE] * 3), INK, True), (np.dstack([WHITE * 0] * 3), INK, True), (WHITE, INK, True),
    (np.dstack([255 - INK] * 3), INK, True),      # black on clear white, as painting programs write it
    (np.dstack([INK] * 3), INK, False), (np.dstack([INK] * 3), WHITE, False), (INK, INK // 2, False),
    (np.dstack([INK] * 3), WHITE * 0, False),
], ids=["white", "black", "grey", "ink", "both", "opaque", "half clear", "clear"])
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_a_mask_in_the_alpha_channel_is_refused(
    colours: Array, alpha: Array, refused: bool, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"mask.{suffix}"
    options: dict[str, Any] = {"lossless": True, "exact": True} if suffix == "webp" else {}
    if suffix == "webp" and colours.ndim == 2:
        colours = np.dstack([colours] * 3)
    with_alpha(colours, alpha).save(path, **options)
    if not refused:
        assert np.array_equal(read_mask(path), LESION)
        return
    with pytest.raises(ImageError, match=rf"mask\.{suffix}: its alpha marks other pixels than its colours"):
        read_mask(path)


def test_a_palette_with_a_clear_colour(tmp_path: Path) -> None:
    mask = Image.fromarray(LESION.astype(np.uint8), "P")
    mask.putpalette([0, 0, 0, 255, 0, 0])
    mask.save(tmp_path / "right.png", transparency=0)
    assert np.array_equal(read_mask(tmp_path / "right.png"), LESION)
    mask.save(tmp_path / "wrong.png", transparency=1)
    with pytest.raises(ImageError, match="its alpha marks other pixels"):
        read_mask(tmp_path / "wrong.png")


def test_masks2map_takes_a_threshold(hk, here: Path) -> None:
    drawn().save("mask.jpg", quality=60)
    record = {"id": "x", "size": list(SIZE), "masks": {"a": "mask.jpg"}}
    refused = hk("masks2map", "--size", "12x10", "--out", "m", stdin=[record])
    assert refused.exit_code == 1
    assert "mask.jpg: a JPEG, whose noise would count as lesion; give `hkmap masks2map --thresh" in refused.stderr
    taken = hk("masks2map", "--size", "12x10", "--out", "m", "--threshold", 128, stdin=[record])
    assert taken.exit_code == 0
    assert np.load("m/x.npy").mean() == pytest.approx(LESION.mean(), abs=0.002)


def test_every_reader_of_masks_takes_a_reference_with_a_threshold(hk, here: Path) -> None:
    drawn().save("mask.jpg", quality=60)
    Image.new("RGB", SIZE).save("x.png")
    record = {"id": "x", "image": "x.png", "size": list(SIZE), "masks": {"a": "mask.jpg#>=128"}}
    assert np.count_nonzero(read_fitting_mask("mask.jpg#>=128", SIZE) != LESION) <= 20
    assert hk("masks2map", "--size", "12x10", "--out", "m", stdin=[record]).exit_code == 0
    assert np.load("m/x.npy").mean() == pytest.approx(LESION.mean(), abs=0.002)
    assert hk("show", "--out", "sheet.png", stdin=[record]).exit_code == 0
    assert hk("check", stdin=[record]).exit_code == 0
    cut = hk("crop", "--crop", "20,10,70,70", "--out", "c", stdin=[record]).records[0]
    assert np.count_nonzero(read_mask(Path(cut["masks"]["a"])) != LESION[10:80, 20:90]) <= 20
    unknown = {"id": "x", "size": list(SIZE), "map": "m/x.npy", "unknown": {"a": "mask.jpg#>=128"}}
    known = hk("certainty", "--out", "k", stdin=[unknown]).records[0]
    assert np.load(known["certainty"]).mean() == pytest.approx(1 - LESION.mean(), abs=0.002)


@pytest.mark.parametrize(("mode", "threshold"), [("1", 128), ("1", 255), ("L", 255), ("RGB", 1), ("LA", 200)])
def test_a_threshold_is_of_the_files_own_numbers(mode: str, threshold: int, tmp_path: Path) -> None:
    drawn().convert(mode).save(tmp_path / "mask.png")      # a bit that is set is white, 255
    assert np.array_equal(read_mask(tmp_path / "mask.png", threshold), LESION)


def test_a_threshold_that_nothing_reaches_is_an_error(tmp_path: Path) -> None:
    drawn(1).save(tmp_path / "mask.png")
    with pytest.raises(ImageError, match=r"mask\.png: its highest value is 1, below the threshold 128; give less"):
        read_mask(tmp_path / "mask.png", 128)
    drawn(0).save(tmp_path / "none.png")
    assert not read_mask(tmp_path / "none.png", 128).any()
    with_alpha(np.dstack([WHITE] * 3), INK).save(tmp_path / "alpha.png")
    with pytest.raises(ImageError, match="its alpha marks other pixels than its colours"):
        read_mask(tmp_path / "alpha.png", 128)


def test_palettes_are_not_looked_at_for_noise(tmp_path: Path) -> None:
    """Their indices have no order."""
    noisy = np.where(np.random.default_rng(0).random((60, 60)) < 0.2, 3, np.uint8(0))
    noisy[20:40, 20:40] = 200
    picture = Image.fromarray(noisy.astype(np.uint8), "P")
    picture.putpalette(np.random.default_rng(1).bytes(768))
    for suffix in ("png", "gif", "tif", "bmp"):
        picture.save(tmp_path / f"mask.{suffix}")
        assert np.array_equal(read_mask(tmp_path / f"mask.{suffix}"), noisy != 0)
