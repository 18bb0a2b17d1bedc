"""What a person paints on a map: strokes as vectors, and the map that follows from them without loss.

A stroke blends every pixel p of a fine layer towards a value t with a strength a(p): v becomes (1 - a) v + a t. So many
strokes together are one affine function of what was there, v = scale * base + offset, and a cell of the map is the mean
of that over its pixels. The map itself is never enlarged: a cell that nobody touched keeps its value to the bit, and a
stroke smaller than a cell changes it by its area.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from hkmap.choices import Choices
from hkmap.errors import ChoiceError, RecordError
from hkmap.maps.certainty import Weighted
from hkmap.maps.polygons import coverage
from hkmap.records import shown

Layer = npt.NDArray[np.float32]
Frame = tuple[int, int]                 # (width, height) in pixels of the image that the coordinates are of
Point = tuple[float, float]

FINE = 224              # pixels of the layer's shorter side, at least
MOST_POINTS = 100_000   # of a stroke


@dataclass(frozen=True)
class Stroke:
    """One thing that a person did: ``tool`` is a row of TOOLS.

    A brush goes along ``points``, or a point alone is a dab; ``outline`` fills a polygon instead; with neither the
    whole map is meant. ``points`` and ``radius`` are in pixels of the image. The brush's ``strength`` is that in its
    middle, from 0 to 1; it falls to 0 over the outer share ``softness`` of the radius.
    """

    tool: str
    points: tuple[Point, ...] = ()
    radius: float = 0.0
    outline: bool = False
    strength: float = 1.0
    softness: float = 0.5


@dataclass(frozen=True)
class Tool:
    """What a tool does to the pixels that it covers: v becomes scale * v + offset, of the map or of its certainty."""

    title: str
    scale: float
    offset: float
    of_certainty: bool = False


TOOLS = Choices("tool", {
    "add": Tool("Attention is added: values go to 1.", 0, 1),
    "remove": Tool("Attention is removed: values go to 0.", 0, 0),
    "invert": Tool("Dark becomes bright, and bright dark.", -1, 1),
    "unknown": Tool("Nobody knows: the certainty goes to 0.", 0, 0, of_certainty=True),
    "known": Tool("It is known: the certainty goes to 1.", 0, 1, of_certainty=True),
}, kind=Tool)


@dataclass(frozen=True)
class Painting:
    """Strokes, one over the other: two affine functions of each pixel (H, W), of the map and of its certainty.

    The layer covers the image whatever its shape, and has a whole number of pixels in each cell of the map.
    """

    size: tuple[int, int]               # (height, width) of the map
    frame: Frame
    scale: Layer
    offset: Layer
    certainty_scale: Layer
    certainty_offset: Layer

    def painted(self, stroke: Stroke) -> Painting:
        """Return the painting with one more stroke; this one stays as it is."""
        return self._blended(stroke, _shares(stroke, self.frame, self.scale.shape))

    def _blended(self, stroke: Stroke, share: Layer) -> Painting:
        tool = TOOLS[stroke.tool]
        names = ("certainty_scale", "certainty_offset") if tool.of_certainty else ("scale", "offset")
        scale, offset = (getattr(self, name) for name in names)
        blend = 1 + share * np.float32(tool.scale - 1)
        return replace(self, **{names[0]: blend * scale, names[1]: blend * offset + share * np.float32(tool.offset)})

    def of(self, base: Weighted) -> Weighted:
        """Return the map, and its certainty where it has one, that the strokes make of ``base``, of the same size.

        A cell is the mean over its known pixels, and 0 where none is.
        """
        before = np.float32(1) if base.certainty is None else base.certainty
        certainty = self._cells(self.certainty_scale) * before + self._cells(self.certainty_offset)
        if not (self.certainty_scale == 1).all():
            known = self.certainty_scale * _spread(before, self.scale.shape) + self.certainty_offset
            weights = self._cells(known)
            with np.errstate(invalid="ignore", divide="ignore"):
                scale, offset = (self._cells(known * one) / weights for one in (self.scale, self.offset))
        else:
            scale, offset = self._cells(self.scale), self._cells(self.offset)
        values = np.where(certainty > 0, np.clip(scale * base.map + offset, 0, 1), np.float32(0))
        told = base.certainty is not None or not (certainty == 1).all()
        return Weighted(values.astype(np.float32), np.clip(certainty, 0, 1) if told else None)

    def _cells(self, layer: Layer) -> Layer:
        """Return the means of a layer over the cells of the map."""
        height, width = self.size
        tall, wide = layer.shape
        blocks = layer.reshape(height, tall // height, width, wide // width)
        means: Layer = blocks.mean((1, 3), dtype=np.float64).astype(np.float32)
        return means


class Trail:
    """A brush under way on a painting: each move costs as much as its new points, however long the stroke is."""

    def __init__(self, painting: Painting, stroke: Stroke) -> None:
        self.stroke = replace(stroke, points=())
        self._under = painting
        self._found: Layer = np.zeros_like(painting.scale)
        self.move(stroke.points)

    def move(self, points: tuple[Point, ...]) -> None:
        """Go on along more points."""
        if points:
            last = self.stroke.points[-1:]
            _follow(self._found, replace(self.stroke, points=last + points), self._under.frame)
            self.stroke = replace(self.stroke, points=self.stroke.points + points)

    def painting(self) -> Painting:
        """Return the painting with the stroke as it is now: equal to ``painted(stroke)``."""
        return self._under._blended(self.stroke, _smooth(self._found, self.stroke.strength))


def layer_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) of the layer that a map of ``size`` (height, width) is painted on."""
    height, width = size
    return height * max(1, math.ceil(FINE / height)), width * max(1, math.ceil(FINE / width))


def blank(size: tuple[int, int], frame: Frame) -> Painting:
    """Return a painting without a stroke for a map of ``size`` (height, width) of an image of ``frame``."""
    fine = layer_size(size)
    ones, zeros = np.ones(fine, np.float32), np.zeros(fine, np.float32)
    return Painting(size, frame, ones, zeros, ones, zeros)


def paint(strokes: Iterable[Stroke], base: Weighted, frame: Frame) -> Weighted:
    """Return what strokes make of a map and its certainty, at the map's own size."""
    painting = blank((base.map.shape[0], base.map.shape[1]), frame)
    for stroke in strokes:
        painting = painting.painted(stroke)
    return painting.of(base)


def _shares(stroke: Stroke, frame: Frame, shape: tuple[int, ...]) -> Layer:
    """Return how strongly a stroke covers each pixel of a layer of ``shape``, from 0 to 1."""
    if not stroke.points:
        return np.full(shape, stroke.strength, np.float32)
    if stroke.outline:
        covered = coverage(stroke.points, frame, (shape[0], shape[1]))
        covered[covered < 1e-9] = 0         # rounding leaves 1e-16, and an unknown pixel must not be a little known
        return (stroke.strength * covered).astype(np.float32)
    found = np.zeros(shape, np.float32)
    _follow(found, stroke, frame)
    return _smooth(found, stroke.strength)


def _smooth(found: Layer, strength: float) -> Layer:
    return np.float32(strength) * found * found * (3 - 2 * found)        # smooth at both ends


def _follow(found: Layer, stroke: Stroke, frame: Frame) -> None:
    """Raise ``found`` along a brush's points."""
    steps = frame[0] / found.shape[1], frame[1] / found.shape[0]        # of a pixel of the layer, across and down
    fall = max(stroke.radius * stroke.softness, *steps)     # a hard edge is one pixel wide
    reach = max(stroke.radius, max(steps))                  # no dab falls between the middles of pixels
    starts = np.array(stroke.points, np.float64)
    ends = starts[1:] if len(starts) > 1 else starts
    for start, end in zip(starts, ends, strict=False):
        _cover(found, start, end, steps, (reach, fall))


def _cover(found: Layer, start: Any, end: Any, steps: Point, brush: Point) -> None:
    """Raise ``found`` to the share that a brush covers on its way from one place to another, 1 in its middle."""
    reach, fall = brush
    low, high = np.minimum(start, end) - reach, np.maximum(start, end) + reach
    window = tuple(
        slice(max(0, math.floor(low[axis] / steps[axis])), max(0, math.ceil(high[axis] / steps[axis])))
        for axis in (1, 0)
    )
    part = found[window]
    if not part.size:
        return
    y, x = np.ogrid[: part.shape[0], : part.shape[1]]
    x = (x + window[1].start + 0.5) * steps[0] - start[0]
    y = (y + window[0].start + 0.5) * steps[1] - start[1]
    way = end - start
    along = np.clip((x * way[0] + y * way[1]) / max(float(way @ way), 1e-12), 0, 1)
    distance = np.hypot(x - along * way[0], y - along * way[1])
    np.maximum(part, np.clip((reach - distance) / fall, 0, 1), out=part, casting="same_kind")


def _spread(cells: Any, shape: tuple[int, ...]) -> Layer:
    """Return each cell's value on all its pixels."""
    if np.ndim(cells) == 0:
        return np.full(shape, cells, np.float32)
    factors = [side // count for side, count in zip(shape, cells.shape, strict=True)]
    return np.repeat(np.repeat(cells, factors[0], axis=0), factors[1], axis=1)


# strokes as JSON


def to_json(stroke: Stroke) -> dict[str, Any]:
    """Return the JSON object of a stroke, without what says nothing of it."""
    kept: dict[str, Any] = {"tool": stroke.tool, "strength": stroke.strength}
    if not stroke.points:
        return kept
    kept["points"] = [list(point) for point in stroke.points]
    return kept | ({"outline": True} if stroke.outline else {"radius": stroke.radius, "softness": stroke.softness})


def from_json(value: Any, place: str) -> Stroke:
    """Return the stroke of a JSON object; ``place`` names it in the RecordError where it is none."""
    _check_fields(value, place)
    stroke = Stroke(**{**value, "points": tuple((x, y) for x, y in value.get("points", ()))})
    if stroke.outline and len(stroke.points) < 3:
        raise RecordError(f"{place}: an outline of {len(stroke.points)} points; expected three or more")
    if stroke.points and not stroke.outline and stroke.radius <= 0:
        raise RecordError(f"{place}: a brush without a radius; expected a radius above 0, in pixels of the image")
    return stroke


def _check_fields(value: Any, place: str) -> None:
    if not isinstance(value, dict):
        raise RecordError(f"{place}: {shown(value)}, expected a stroke such as {_EXAMPLE}")
    if extra := value.keys() - Stroke.__dataclass_fields__.keys():
        raise RecordError(f'{place}: has "{min(extra)}", which a stroke has not; expected one such as {_EXAMPLE}')
    if "tool" not in value:
        raise RecordError(f"{place}: has no tool; expected a stroke such as {_EXAMPLE}")
    for name, (fits, expected) in _EXPECTED.items():
        if name in value and not fits(value[name]):
            raise RecordError(f"{place}: {name} is {shown(value[name])}; expected {expected}")
    if value["tool"] not in TOOLS:
        raise ChoiceError(f"{place}: {TOOLS.unknown(value['tool'])}")


def _number(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: type(value) in (int, float) and low <= value <= high


def _is_line(value: Any) -> bool:
    coordinate = _number(-1e6, 1e6)
    return isinstance(value, list) and len(value) <= MOST_POINTS and all(
        isinstance(point, list) and len(point) == 2 and all(map(coordinate, point)) for point in value
    )


_EXAMPLE = '{"tool": "add", "points": [[12, 30], [14, 31]], "radius": 8}'
_EXPECTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "tool": (lambda value: isinstance(value, str), "the name of a tool"),
    "points": (_is_line, f"up to {MOST_POINTS:,} pairs [x, y], in pixels of the image"),
    "radius": (_number(0, 1e6), "a number of pixels of the image, above 0"),
    "strength": (_number(0, 1), "a number from 0 to 1"),
    "softness": (_number(0, 1), "a number from 0 to 1"),
    "outline": (lambda value: isinstance(value, bool), "true or false"),
}
