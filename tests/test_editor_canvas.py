"""The editor's canvas in Chromium: it paints what Python paints, undoes to the bit, and hears the pointer right."""

from __future__ import annotations

import base64
import json

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
    return [painting, live].map((one) => JSON.stringify({{
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
            stroke |= {"radius": float(random.choice([0.5, 2, 11.5, 60]))}
            stroke |= {"softness": float(random.choice([0, 0.5, 1]))}
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
        for found in map(json.loads, empty_page.evaluate(PAINTED, [told(base, shape), strokes])):
            assert found["strokes"] == strokes
            assert np.abs(np.reshape(found["map"], size) - expected.map).max() < 1e-5
            ones = np.ones(size)
            known = [ones if one is None else np.reshape(one, size) for one in (found["certainty"], expected.certainty)]
            assert np.abs(known[0] - known[1]).max() < 1e-5


UNDONE = f"""async ([base, most]) => {{ {OPEN}
    const painting = Object.assign(open(base), {{ mostKept: most }}), seen = [], [width, height] = base.frame;
    const place = (k, factor) => [(k * factor * 7.3) % width, (k * factor * 3.1) % height];
    const now = () => [painting.attention, painting.knowledge].flatMap((one) => [one.scale, one.offset])
        .map((one) => one.slice()).concat([painting.cells().map.slice()]);
    const equal = (one, other) => one.every((values, nth) => values.every((value, at) => value === other[nth][at]));
    const tools = ["add", "remove", "unknown", "invert", "known"];
    for (let k = 1; k <= 14; k++) {{
        seen.push(now());
        const stroke = {{ tool: tools[k % 5], strength: 0.7, radius: 20, softness: 0.5 }};
        painting.apply(k % 4 ? {{ ...stroke, points: [place(k, 1), place(k, 5), place(k, 9)] }} : stroke);
        painting.begin({{ ...stroke, tool: tools[(k + 1) % 5], points: [place(k, 2)] }});
        painting.move([place(k, 3)]);
        painting.cancel();
    }}
    const last = now(), wrong = [];
    const back = () => {{
        while (painting.undo()) {{
            equal(now(), seen[painting.strokes.length]) || wrong.push(painting.strokes.length);
        }}
    }};
    back();
    while (painting.redo());
    equal(now(), last) || wrong.push("redo");
    painting.reset();
    equal(now(), seen[0]) && painting.undone.length === 14 || wrong.push("reset");
    while (painting.redo());
    equal(now(), last) || wrong.push("redo after reset");
    back();
    return wrong;
}}"""


@pytest.mark.parametrize("most", [32e6, 2e5, 0])       # numbers that it may keep to undo quickly
def test_undo_and_redo_and_giving_up_restore_every_bit(empty_page, most):
    base, shape = a_base((14, 20), (300, 200))
    assert empty_page.evaluate(UNDONE, [told(base, shape), most]) == []


def test_what_nobody_touched_is_the_map_itself_and_the_smallest_dab_is_not_lost(empty_page):
    base, shape = a_base((14, 14), (224, 224))
    places = np.random.default_rng(3).random((1000, 2)) * 224
    changed = empty_page.evaluate(f"""async ([base, places]) => {{ {OPEN}
        const painting = open(base), before = painting.cells().map.slice();
        const changed = [before.filter((value, at) => value !== painting.map[at]).length];
        for (const place of places) {{
            painting.apply({{ tool: "remove", points: [place], radius: 2 }});
            changed.push(painting.cells().map.filter((value, at) => value !== before[at]).length);
            painting.undo();
        }}
        return changed;
    }}""", [told(base, shape), places.tolist()])
    assert changed[0] == 0
    assert min(changed[1:]) >= 1
    assert max(changed[1:]) <= 4


def test_the_colours_are_those_of_reports(empty_page):
    found = empty_page.evaluate("""async () => Object.fromEntries(Object.entries(
        (await import("/static/colours.js")).COLOURS).map(([name, table]) => [name, [...table]]))""")
    ramp = np.arange(256, dtype=np.float32)[None] / 255
    assert found == {name: coloured(ramp, name).ravel().tolist() for name in COLOURS}


# the view, and the pointer over it: an image of 100 x 80 in an element of 600 x 500

SHOWN = f"""async (base) => {{ {OPEN}
    const {{ View }} = await import("/static/view.js"), {{ Tools }} = await import("/static/tools.js");
    const element = document.createElement("div");
    Object.assign(element.style, {{ position: "absolute", inset: 0, overflow: "hidden" }});
    document.body.append(element);
    const image = new OffscreenCanvas(100, 80), painting = open(base), view = new View(element), log = [];
    image.getContext("2d").fillRect(0, 0, 100, 80);
    view.show(image, painting, {{ frame: base.frame }});
    const settings = {{ tool: "add", shape: "brush", radius: 8, strength: 1, softness: 0.5 }};
    const tools = new Tools(view, settings, {{
        begin: (stroke) => {{ log.push("begin"); view.redraw(painting.begin(stroke)); }},
        move: (points) => view.redraw(painting.move(points)),
        end: (stroke) => {{
            log.push("end");
            painting.way ? painting.end() : painting.apply(stroke);
            view.redraw(painting.changed);
        }},
        cancel: () => {{ log.push("cancel"); painting.cancel(); view.redraw(painting.changed); }},
        changed: () => log.push("changed"),
    }});
    const frame = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
    const at = (x, y) => [view.x + x * view.scale, view.y + y * view.scale];
    const pixels = () => view.over.getImageData(0, 0, 600, 500).data;
    Object.assign(window, {{ painting, view, settings, tools, log, frame, at, pixels }});
    await frame();
}}"""


@pytest.fixture
def canvas(empty_page):
    base = Weighted(np.full((4, 5), 0.25, np.float32), None)
    empty_page.evaluate(SHOWN, told(base, {"size": [4, 5], "layer": [224, 225], "frame": [100, 80]}))
    return empty_page


def at(page, x, y):
    return page.evaluate("([x, y]) => at(x, y)", [x, y])


def drag(page, *places, button="left"):
    page.mouse.move(*at(page, *places[0]))
    page.mouse.down(button=button)
    for place in places[1:]:
        page.mouse.move(*at(page, *place), steps=5)
    page.mouse.up(button=button)


def painted(page):
    return page.evaluate("painting.strokes")


def test_a_drag_paints_along_its_way_with_the_chosen_tool_and_the_right_button_takes_away(canvas):
    drag(canvas, (10, 20), (60, 40))
    [stroke] = painted(canvas)
    assert {**stroke, "points": []} == {"tool": "add", "points": [], "radius": 8, "strength": 1, "softness": 0.5}
    assert np.abs(np.array(stroke["points"][0]) - [10, 20]).max() < 0.11
    assert np.abs(np.array(stroke["points"][-1]) - [60, 40]).max() < 0.11
    assert np.abs(np.diff(stroke["points"], axis=0)[:-1]).max(1).min() > 0.5       # thinned: 1 pixel is an eighth
    for tool, keys, button, expected in [
        ("add", None, "right", "remove"), ("add", "Control", "left", "remove"), ("unknown", None, "right", "known"),
        ("known", "Control", "left", "unknown"), ("remove", None, "right", "remove"),
        ("unknown", None, "left", "unknown"),
    ]:
        canvas.evaluate("(tool) => settings.tool = tool", tool)
        if keys:
            canvas.keyboard.down(keys)
        drag(canvas, (30, 30), (40, 30), button=button)
        if keys:
            canvas.keyboard.up(keys)
        assert painted(canvas)[-1]["tool"] == expected


def test_a_stroke_may_leave_the_image_but_not_far_and_can_be_given_up(canvas):
    drag(canvas, (90, 40), (105, 40), (130, 200))
    assert painted(canvas)[0]["points"][-1] == [108, 88]
    drag(canvas, (10, 10))
    assert painted(canvas)[1]["points"] == [[10, 10]]
    canvas.mouse.move(*at(canvas, 20, 20))
    canvas.mouse.down()
    canvas.mouse.move(*at(canvas, 50, 20))
    canvas.evaluate("tools.cancel(); tools.cancel()")
    canvas.mouse.up()
    assert len(painted(canvas)) == 2
    assert canvas.evaluate("log.slice(-2)") == ["begin", "cancel"]


def test_a_very_long_stroke_goes_on_as_the_next(canvas):
    canvas.evaluate("settings.radius = 1")
    canvas.mouse.move(*at(canvas, 50, 40))
    canvas.mouse.down()
    canvas.evaluate("tools.add(Array.from({ length: 12000 }, (_, k) => [k % 2 * 9, 40]), 1)")
    canvas.mouse.up()
    counts = [len(stroke["points"]) for stroke in painted(canvas)]
    assert max(counts) <= 5000
    assert sum(counts) >= 12000
    assert painted(canvas)[1]["points"][0] == painted(canvas)[0]["points"][-1]


def test_clicks_set_corners_and_close_an_outline(canvas):
    canvas.evaluate("settings.shape = 'polygon'")
    corners = [(10, 10), (80, 15), (70, 60), (20, 50)]

    def click(place):
        canvas.mouse.click(*at(canvas, *place))

    def outline():
        return np.round(painted(canvas)[-1]["points"])

    for close in (lambda: canvas.keyboard.press("Enter"), lambda: click(corners[0])):
        for corner in [*corners, (95, 75)]:
            click(corner)
        canvas.keyboard.press("Backspace")
        close()
        assert outline().tolist() == [list(corner) for corner in corners]
    for corner in corners[:3]:
        click(corner)
    canvas.mouse.dblclick(*at(canvas, *corners[3]))
    assert outline().tolist() == [list(corner) for corner in corners]
    assert painted(canvas)[-1] | {"points": []} == {"tool": "add", "points": [], "outline": True, "strength": 1}
    for corner in corners:
        click(corner)
    canvas.keyboard.press("Escape")
    canvas.keyboard.press("Enter")
    assert len(painted(canvas)) == 3


def test_the_wheel_sizes_the_brush_and_with_a_key_zooms_at_the_pointer(canvas):
    canvas.mouse.move(*at(canvas, 30, 20))
    for turn, bigger in [(-100, True), (100, False)]:
        before = canvas.evaluate("settings.radius")
        canvas.mouse.wheel(0, turn)
        canvas.wait_for_function("(before) => settings.radius !== before", arg=before)
        assert (canvas.evaluate("settings.radius") > before) == bigger
    place, scale = at(canvas, 30, 20), canvas.evaluate("view.scale")
    canvas.keyboard.down("Alt")
    canvas.mouse.wheel(0, -300)
    canvas.keyboard.up("Alt")
    canvas.wait_for_function("(scale) => view.scale > 1.1 * scale", arg=scale)
    assert at(canvas, 30, 20) == pytest.approx(place, abs=1)      # a wheel's place is in whole pixels
    place = at(canvas, 30, 20)
    assert canvas.evaluate("(place) => view.toImage(...place)", place) == pytest.approx([30, 20])
    canvas.evaluate("tools.space = true")
    drag(canvas, (30, 20), (40, 20))
    assert at(canvas, 20, 20) == pytest.approx(place, abs=1)
    canvas.evaluate("tools.space = false")
    drag(canvas, (40, 30), (30, 20), button="middle")
    assert at(canvas, 30, 30) == pytest.approx(place, abs=1)
    canvas.evaluate("view.fit()")
    assert canvas.evaluate("view.scale") == scale
    assert painted(canvas) == []


def test_one_finger_paints_two_zoom_and_a_pen_presses(canvas):
    devices = canvas.context.new_cdp_session(canvas)

    def touch(kind, *places):
        points = [{"x": x, "y": y, "id": nth} for nth, (x, y) in enumerate(places)]
        devices.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    for kind, places in [("touchStart", [(200, 200)]), ("touchMove", [(250, 260)]), ("touchEnd", [])]:
        touch(kind, *places)
    assert [stroke["tool"] for stroke in painted(canvas)] == ["add"]
    scale = canvas.evaluate("view.scale")
    touch("touchStart", (200, 200))
    touch("touchStart", (200, 200), (300, 200))
    touch("touchMove", (150, 200), (350, 200))
    touch("touchEnd")
    canvas.wait_for_function("log.at(-1) === 'cancel'")
    assert canvas.evaluate("view.scale") == pytest.approx(2 * scale, rel=0.01)
    for kind, x, force in [("mousePressed", 200, 0.1), ("mouseMoved", 260, 0.25), ("mouseReleased", 260, 0)]:
        devices.send("Input.dispatchMouseEvent", {
            "type": kind, "x": x, "y": 200, "button": "left", "buttons": int(kind != "mouseReleased"), "clickCount": 1,
            "pointerType": "pen", "force": force,
        })
    assert [stroke["strength"] for stroke in painted(canvas)] == [1, 0.5]


def test_the_map_is_shown_in_its_colours(canvas):
    right = [[50, 0], [100, 0], [100, 80], [50, 80]]
    canvas.evaluate("(points) => painting.apply({ tool: 'unknown', points, outline: true })", right)

    def shown(settings):
        canvas.evaluate("async (settings) => { view.set(settings); view.redraw(); await frame(); }", settings)
        row = canvas.evaluate("""() => {
            const [x, y] = at(10, 40).map(Math.round), [end] = at(90, 40).map(Math.round);
            return [...view.over.getImageData(x, y, end - x, 1).data];
        }""")
        return np.reshape(row, (-1, 4))

    expected = coloured(np.full((1, 1), 0.25, np.float32), "cividis")[0, 0]
    row = shown({"colours": "cividis", "opacity": 0.4})
    assert (row[:100] == [*expected, 255]).all()
    hatched, opaque = row[-150:], row[-150:, 3] == 255
    assert (hatched[:, 3] == 0).any()
    assert hatched[opaque, :3].min() < 20
    assert hatched[opaque, :3].max() > 235
    assert (shown({"colours": "grey"})[0] == [0, 0, 0, 255 - 64]).all()
    assert canvas.evaluate("getComputedStyle(view.over.canvas).opacity") == "0.4"
    canvas.evaluate("painting.undo(); painting.apply({ tool: 'add', points: [[30, 40]], radius: 4, softness: 0 })")
    assert len(np.unique(shown({"cells": True})[:, 3])) == 2         # the cell that has the dab, and the others
    assert len(np.unique(shown({"cells": False})[:, 3])) > 2
    canvas.evaluate("view.set({ hidden: true })")
    assert canvas.evaluate("getComputedStyle(view.over.canvas).visibility") == "hidden"


def test_a_dark_map_can_be_stretched(canvas):
    found = canvas.evaluate("""async () => {
        painting.map.set([0.1, 0.2]);
        painting.map.fill(0.15, 2);
        painting.smooth.fill(0.2);
        view.show(null, painting, { frame: [100, 80] });
        view.set({ colours: "grey", stretch: true });
        await frame();
        return [...view.over.getImageData(...at(50, 40).map(Math.round), 1, 1).data];
    }""")
    assert found == [0, 0, 0, 0]        # its brightest


@pytest.mark.parametrize("cells", [False, True])
def test_what_is_drawn_in_pieces_is_what_is_drawn_at_once(canvas, cells):
    canvas.evaluate("(cells) => { view.set({ cells }); view.zoom(1.37, 311, 123); view.redraw(); }", cells)
    drag(canvas, (10, 20), (60, 40), (70, 10))
    drag(canvas, (30, 20), (60, 70), button="right")
    same = canvas.evaluate("""async () => {
        painting.undo();
        view.redraw(painting.changed);
        await frame();
        painting.apply({ tool: "add", outline: true, points: [[20, 20], [60, 20], [60, 60], [20, 60]] });
        view.redraw(painting.changed);
        await frame();
        const pieces = pixels();
        view.redraw();
        await frame();
        return pixels().every((value, at) => value === pieces[at]);
    }""")
    assert same
