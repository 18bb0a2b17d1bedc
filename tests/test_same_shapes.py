"""The same shapes on the same images give the same maps, whichever format they are written in, and however."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from written_formats import SIZE, WRITERS, Drawn, Key

CELLS = (10, 8)         # width and height of the maps: a cell is 4x4 pixels
BOXES = ((3, 2, 13, 9), (6, 10, 20, 7))
POLYGONS = (
    ((20, 3), (36, 3), (36, 9), (26, 9), (26, 15), (20, 15)),       # an L, its edges between pixels
    ((2, 20), (10, 20), (10, 30), (6, 30), (6, 24), (2, 24)),
)
MASKS = ((slice(18, 27), slice(5, 22)), (slice(1, 9), slice(25, 38)))

NAMES: dict[str, tuple[tuple[str, str], tuple[str, str]]] = {
    # what the images are called on the disk, and in the file
    "plain": (("one.png", "two.png"), ("one.png", "two.png")),
    "numbers": (("1.png", "2.png"), ("1.png", "2.png")),
    "composed": (("épée.png", "plain.png"), ("épée.png", "plain.png")),
    "upper on disk": (("one.PNG", "two.PNG"), ("one.png", "two.png")),
    "upper in file": (("one.png", "two.png"), ("one.PNG", "two.PNG")),
    "windows": (("left/one.png", "right/one.png"), ("left\\one.png", "right\\one.png")),
}
# How a file is written: its names, how it writes ids where they are defined and where they are used, and what is done
# to its bytes.
VARIANTS: dict[str, tuple[str, Key, Key, str]] = {
    "plain": ("plain", int, int, ""), "ids as text": ("numbers", str, str, ""),
    "text for number": ("numbers", int, str, ""), "number for text": ("numbers", str, int, ""),
    "NFC of NFD": ("composed", int, int, "NFD on disk"), "NFD of NFC": ("composed", int, int, "NFD in file"),
    "upper on disk": ("upper on disk", int, int, ""), "upper in file": ("upper in file", int, int, ""),
    "windows": ("windows", int, int, ""), "BOM": ("composed", int, int, "BOM"), "CRLF": ("plain", int, int, "CRLF"),
}
NO_FOLDERS = {"trimaps"}        # named by their image alone


def rewritten(path: Path, how: str) -> None:
    """Put a byte order mark before the text files at a path, or end their lines as Windows does."""
    files: Iterator[Path] = path.rglob("*") if path.is_dir() else iter([path])
    for file in files:
        if file.suffix in (".json", ".jsonl", ".xml", ".csv", ".txt"):
            content = file.read_bytes()
            changed = b"\xef\xbb\xbf" + content if how == "BOM" else content.replace(b"\n", b"\r\n")
            file.write_bytes(changed)


def drawn(names: tuple[str, str]) -> list[Drawn]:
    masks = np.zeros((2, SIZE[1], SIZE[0]), np.bool_)
    for mask, part in zip(masks, MASKS, strict=True):
        mask[part] = True
    masks[0, 20, 8] = False         # a hole, and a mask that is no rectangle
    return [Drawn(*values) for values in zip(names, BOXES, POLYGONS, masks, strict=True)]


def pooled(picture: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    return picture.reshape(CELLS[1], 4, CELLS[0], 4).mean(axis=(1, 3))


def expected(image: Drawn, shapes: str) -> npt.NDArray[np.float64]:
    """The map of the shapes, pixel by pixel: a pixel is inside where its centre is, as all edges lie between pixels."""
    y, x = np.mgrid[: SIZE[1], : SIZE[0]] + 0.5
    picture = image.mask.copy() if "m" in shapes else np.zeros(image.mask.shape, np.bool_)
    if "b" in shapes:
        left, top, width, height = image.box
        picture |= (left < x) & (x < left + width) & (top < y) & (y < top + height)
    if "p" in shapes:
        inside = np.zeros_like(picture)
        for (ax, ay), (bx, by) in zip(image.polygon, image.polygon[1:] + image.polygon[:1], strict=True):
            inside ^= (x < ax) & (min(ay, by) < y) & (y < max(ay, by)) if ax == bx else False
        picture |= inside
    return pooled(picture)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", WRITERS)
def test_the_same_shapes_are_the_same_map(hk: Callable, tmp_path: Path, name: str, variant: str) -> None:
    write, shapes = WRITERS[name]
    names, key, other, how = VARIANTS[variant]
    if names == "windows" and name in NO_FOLDERS:
        pytest.skip("the format has no folders")
    on_disk, in_file = NAMES[names]
    if how.startswith("NFD"):
        on_disk, in_file = (tuple(unicodedata.normalize("NFD" if how.endswith(where) else "NFC", one) for one in given)
                            for where, given in (("disk", on_disk), ("file", in_file)))
    for image in on_disk:
        (tmp_path / "img" / image).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE, (90, 120, 60)).save(tmp_path / "img" / image)
    (tmp_path / "written").mkdir()
    images = drawn(in_file)
    path = write(tmp_path / "written", images, key, other)
    if how in ("BOM", "CRLF"):
        rewritten(tmp_path / "written", how)
    records = hk("annotations", path, "--images", tmp_path / "img")
    assert (records.exit_code, len(records.stdout.splitlines())) == (0, 2), records.stderr
    for command, kinds in (("boxes2map", "b"), ("masks2map", "pm")):
        own = "".join(kind for kind in kinds if kind in shapes)
        if own:
            out = tmp_path / command
            made = hk(command, "--size", f"{CELLS[0]}x{CELLS[1]}", "--out", out, stdin=records.stdout)
            assert made.exit_code == 0, made.stderr
            by_image = {Path(one["image"]).relative_to(tmp_path / "img").as_posix(): one["map"] for one in made.records}
            for image, place in zip(images, on_disk, strict=True):
                np.testing.assert_allclose(np.load(by_image[place]), expected(image, own), atol=1e-6)


@pytest.mark.parametrize("name", WRITERS)
def test_join_gives_the_same_shapes_as_annotations(hk: Callable, tmp_path: Path, name: str) -> None:
    (tmp_path / "img/a").mkdir(parents=True)
    (tmp_path / "written").mkdir()
    names = NAMES["plain"][0]
    for image in names:
        Image.new("RGB", SIZE, (90, 120, 60)).save(tmp_path / "img/a" / image)
    path = WRITERS[name][0](tmp_path / "written", drawn(names), int, int)
    given = hk("annotations", path, "--images", tmp_path / "img").records
    joined = hk("join", path, stdin=hk("folder", tmp_path / "img").stdout).records
    keys = ("boxes", "polygons", "masks", "mask_users")
    shapes = [[{key: record[key] for key in keys if key in record} for record in found] for found in (given, joined)]
    assert shapes[0] == shapes[1]
    assert all(shapes[0])
