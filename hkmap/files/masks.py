"""Read masks that belong to an image, and refuse those that do not fit it.

A mask is referred to by a path (what is not 0 is marked), by ``PATH#VALUE`` (the pixels of a grey or palette image that
equal VALUE), by ``PATH#>=VALUE`` (those of at least VALUE, in a JPEG too), by ``PATH.mat#NAME`` (what is not 0 in a
variable), or as COCO's run lengths: {"size": [height, width], "counts": "..."}, runs down the columns, background
first. Coding and merging those is pycocotools' work (the extra hkmap[coco]); what it is given is checked here first,
since its C code trusts the lengths.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hkmap.errors import ImageError
from hkmap.files import opening
from hkmap.files.headers import MAX_PIXELS
from hkmap.files.images import Mask, file_bytes, read_levels, read_mask
from hkmap.records import MaskReference, shown

Rle = dict[str, Any]

CONTINUES, NEGATIVE, FIVE_BITS = 0x20, 0x10, 0x1F
_LEAST = re.compile(r">=[0-9]{1,5}")
LONGEST = 6         # characters of a run's length: 30 bits hold every one that is allowed


def read_fitting_mask(reference: MaskReference, frame: tuple[int, int], threshold: int | None = None) -> Mask:
    """Read the mask of an image of ``frame`` (width, height); (height, width), True on the lesion.

    The ``threshold`` is that of read_mask, for a plain path. Raises ImageError, naming both sizes, for a mask of
    another size.
    """
    mask = read_referred_mask(reference, threshold)
    height, width = mask.shape
    if (width, height) != frame:
        place = reference if isinstance(reference, str) else "run lengths"
        remedy = "scale the mask, without smoothing, to its image"
        if (height, width) == frame:
            remedy = "turn the mask too, if it was drawn on a photograph that its EXIF turns when displayed"
        raise ImageError(
            f"{place}: a mask of {width}x{height} pixels for an image of {frame[0]}x{frame[1]}, "
            f"expected the same size; {remedy}"
        )
    return mask


def read_referred_mask(reference: MaskReference, threshold: int | None = None) -> Mask:
    """Read a mask by its reference; (height, width), True on the lesion. Raises ImageError where there is none."""
    if isinstance(reference, dict):
        return decode_rle(reference)
    name, _, part = reference.rpartition("#")
    if not name or os.path.exists(reference):        # a file whose own name has a "#" in it
        return read_mask(Path(reference), threshold)
    if name.lower().endswith(".mat"):
        return _variable(Path(name), part)
    if part.isascii() and part.isdecimal():
        return np.asarray(read_levels(Path(name)) == int(part), dtype=np.bool_)
    if _LEAST.fullmatch(part):
        return read_mask(Path(name), int(part[2:]))
    return read_mask(Path(reference), threshold)


def read_variable(path: Path, name: str, *, simple: bool = True) -> Any:
    """Return a variable of a MATLAB file of the versions 4 to 7, by scipy.

    An array of numbers, a text, an array of cells, a dict of fields; unless ``simple``, as scipy's loadmat gives it,
    with two axes or more. Raises ImageError where the file is damaged, has no such variable, or holds more numbers
    in it than an image may have pixels.
    """
    from scipy import io

    source = BytesIO(file_bytes(path))        # a name that is no file has its sentence
    try:
        shapes = {found: shape for found, shape, _ in io.whosmat(source)}
        count = math.prod(shapes.get(name, ()))
        if count > MAX_PIXELS or count * 8 > opening.max_image_bytes:
            raise ValueError(f"{name} has {count:,} numbers")
        values = io.loadmat(source, variable_names=[name], simplify_cells=simple) if name in shapes else {}
    except Exception as error:      # a damaged file fails in struct, zlib or scipy, each in its own way
        raise ImageError(
            f"{path}: no .mat file ({str(error)[:100] or 'it ends too early'}); "
            "expected MATLAB's version 4 to 7, save it with -v7"
        ) from error
    if name not in values:
        raise ImageError(f'{path}: no variable "{name}"; expected one of {", ".join(shapes) or "some"}')
    return values[name]


def _variable(path: Path, name: str) -> Mask:
    values = np.asarray(read_variable(path, name, simple=False))
    if values.ndim != 2 or values.dtype.kind not in "biuf":
        raise ImageError(f'{path}: "{name}" is no picture; expected numbers in rows and columns')
    return np.asarray(values != 0, dtype=np.bool_)


def decode_rle(rle: Rle) -> Mask:
    """Return the mask (height, width); ImageError where the runs do not fill their size."""
    _check(rle)
    return np.asarray(_coder().decode(_packed(rle)), dtype=np.bool_)


def encode_rle(mask: Mask) -> Rle:
    """Return a mask (height, width) as compressed run lengths."""
    packed = _coder().encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": packed["counts"].decode()}


def merge_rles(rles: Sequence[Rle]) -> Rle:
    """Return the union of masks of one size, as compressed run lengths; ``counts`` may also be lists of numbers.

    Raises ImageError where runs do not fill their size, or two sizes differ.
    """
    for rle in rles:
        _check(rle)
        if list(rle["size"]) != list(rles[0]["size"]):
            raise ImageError(f"run lengths of {rle['size']} beside {rles[0]['size']}; expected one [height, width]")
    merged = _coder().merge([_packed(rle) for rle in rles])
    return {"size": [int(side) for side in merged["size"]], "counts": merged["counts"].decode()}


def _packed(rle: Rle) -> Rle:
    """Return the run lengths as pycocotools wants them."""
    if isinstance(rle["counts"], list):
        packed: Rle = _coder().frPyObjects(rle, *rle["size"])
        return packed
    return {"size": rle["size"], "counts": rle["counts"].encode()}


def _check(rle: Rle) -> None:
    size, counts = rle.get("size"), rle.get("counts")
    if not (isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)):
        raise ImageError(f"run lengths of the size {shown(size)}; expected [height, width] in pixels")
    if size[0] * size[1] > MAX_PIXELS:
        raise ImageError(f"run lengths of {size[1]}x{size[0]} pixels; expected at most {MAX_PIXELS:,} in all")
    if isinstance(counts, str):
        runs = _runs(counts)
    elif isinstance(counts, list) and all(type(count) is int and 0 <= count <= MAX_PIXELS for count in counts):
        runs = np.array(counts, np.int64)
    else:
        raise ImageError(f"run lengths {shown(counts)}; expected a text, or a list of whole numbers from 0")
    if (runs < 0).any() or runs.sum() != size[0] * size[1]:
        raise ImageError(f"run lengths for {runs.sum()} pixels of {size[1]}x{size[0]}; expected to fill them exactly")


def _runs(text: str) -> npt.NDArray[np.int64]:
    """Read the lengths of runs out of COCO's text: five bits a character, lowest first, from the fourth run on the
    difference to the run before the last.
    """
    codes = np.frombuffer(text.encode(errors="replace"), np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & CONTINUES:
        raise ImageError(f'run lengths "{text[:40]}"; expected the text of a COCO mask')
    ends = np.flatnonzero(codes & CONTINUES == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > LONGEST:
        raise ImageError(f'run lengths "{text[:40]}": one longer than any image; expected the text of a COCO mask')
    places = np.arange(len(codes)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((codes & FIVE_BITS) << (5 * places), starts)
    runs -= np.where(codes[ends] & NEGATIVE, np.int64(1) << (5 * lengths), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return np.asarray(runs, dtype=np.int64)


def _coder() -> Any:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise ImageError("masks as COCO's run lengths need pycocotools; pip install 'hkmap[coco]'") from error
    return mask
