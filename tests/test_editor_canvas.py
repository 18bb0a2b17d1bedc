"""The editor's canvas in Chromium: it paints what Python paints, undoes to the bit, and hears the pointer right."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from hkmap.maps.certainty import Weighted
from hkmap.maps.strokes import TOOLS, from_json, layer_size, paint
from hkmap.report.colouring import COLOURS, coloured

pytest_plugins = ["browser"]

OPEN = """
    const { Painting, decode } = await import("/static/layer.js");
    const open = (base) => new Painting({
        ...base, map: decode(base.map), certainty: base.certainty && decode(base.certainty),
    });
"""
PAINTED = f"""async ([base, strokes]) => {{ {OPEN}
    const painting = open(base), live = open(base);
    for (const stroke of strokes) {{
        painting.apply(stroke);
        if (!stroke.points || stroke.outline) {{
            live.apply(stroke);
        }} else {{
            live.begin({{ ...stroke, points: stroke.points.slice(0, 1) }});
            live.cells();
            live.move(stroke.points.slice(1, 3));
            live.move(stroke.points.slice(3));
            live.end();
        }}
    }}
    return [painting, live].map((one) => ({{
        strokes: one.strokes, map: [...one.cells().map], certainty: one.cells().certainty && [...one.cells().certainty],
    }}));
}}"""


def a_base(size, frame, *, certainty=False, seed=0):
    random = np.random.default_rng(seed)
    known = np.clip(random.random(size, np.float32) * 1.5 - 0.25, 0, 1) if certainty else None
    return Weighted(random.random(size, np.float32), known), {
        "size": list(size), "layer": list(layer_size(size)), "frame": list(frame),
    }


def told(base, shape):
    """A base as the server tells it."""
    packed = [None if one is None else base64.b64encode(one.astype("<f4").tobytes()).decode() for one in base]
    return {**shape, "map": packed[0], "certainty": packed[1]}


def random_strokes(random, frame, count=12):
    strokes = []
    for _ in range(count):
        stroke = {"tool": str(random.choice(list(TOOLS))), "strength": float(random.choice([0.3, 0.7, 1.0]))}
        kind = random.choice(["brush", "brush", "dab", "outline", "whole"], p=[0.3, 0.3, 0.15, 0.15, 0.1])
        points = ((random.random((9, 2)) * 1.4 - 0.2) * frame).round(1).tolist()
        if kind == "outline":
            stroke |= {"points": points[: random.integers(3, 9)], "outline": True}
        elif kind != "whole":
            stroke |= {"points": points[: 1 if kind == "dab" else random.integers(2, 9)]}
            stroke |= {"radius": float(random.choice([0.5, 2, 11.5, 60])), "softness": float(random.choice([0, 0.5, 1]))}
        strokes.append(stroke)
    return strokes


@pytest.mark.parametrize(("size", "frame"), [
    ((14, 14), (224, 224)), ((7, 9), (500, 375)), ((56, 56), (90, 300)), ((300, 224), (2000, 1500)), ((1, 1), (17, 33)),
])
@pytest.mark.parametrize("certainty", [False, True])
def test_a_map_is_painted_as_python_paints_it(empty_page, size, frame, certainty):
    for seed in range(3 if size[0] < 99 else 1):
        base, shape = a_base(size, frame, certainty=certainty, seed=seed)
        strokes = random_strokes(np.random.default_rng(seed), frame)
        expected = paint([from_json(stroke, "here") for stroke in strokes], base, frame)
        for found in empty_page.evaluate(PAINTED, [told(base, shape), strokes]):
            assert found["strokes"] == strokes
            assert np.abs(np.reshape(found["map"], size) - expected.map).max() < 1e-5
            ones = np.ones(size)
            known = [ones if one is None else np.reshape(one, size) for one in (found["certainty"], expected.certainty)]
            assert np.abs(known[0] - known[1]).max() < 1e-5
