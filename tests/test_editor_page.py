"""The editor in a real browser: from `hkmap edit` and the first look at a page to the records that a training takes."""

from __future__ import annotations

import json
import re
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from conftest import lines
from served_editor import Served

from hkmap.cli.main import hkmap
from hkmap.editor.work import Work, from_line
from hkmap.files.references import file_name
from hkmap.maps.certainty import Weighted
from hkmap.maps.strokes import Stroke, paint
from hkmap.stream.references import load_map

WIDTH, HEIGHT = FRAME = (64, 48)
RED = (40, 8, 56, 24)       # left, top, right and bottom of a red square in each image
pytest_plugins = ["browser"]
CLASSES = ("<script>alert(1)</script>", 'the "second"', "third & last")
COUNT, BROKEN = 9, 4        # records, and the number of that whose image is none
WINDOW = {"width": 1024, "height": 640}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, some maps, records and a network that has learnt a little from them."""
    folder = tmp_path_factory.mktemp("editor")
    rng = np.random.default_rng(0)
    records = []
    for number in range(COUNT):
        label = number % len(CLASSES)
        image = rng.integers(0, 60, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        image[16 * label : 16 * label + 16, 4:28] += 150
        image[RED[1] : RED[3], RED[0] : RED[2]] = (0, 0, 255)
        path = folder / f"{number}.png"
        cv2.imwrite(str(path), image)
        values = np.zeros((8, 8), np.float32)
        values[:, :4] = 0.75
        np.save(folder / f"{number}.npy", values)
        records.append({
            "id": f"it's \"{number}\" & <b>", "image": str(path), "map": str(folder / f"{number}.npy"), "label": label,
            "class": CLASSES[label],
        })
    good = [record for record in records if record is not records[BROKEN]]
    run_command("pack", folder / "train.h5", stdin=lines(good))
    run_command(
        "train", folder / "train.h5", "--arch", "resnet8+abn", "--gate", "product", "--stem", "small", "--width", 4,
        "--image-size", 16, "--batch-size", 4, "--epochs", 8, "--out", folder / "run",
    )
    (folder / f"{BROKEN}.png").write_text("no image")
    for record in records[1::2]:
        del record["map"]
    (folder / "good.jsonl").write_text(lines(good))
    (folder / "records.jsonl").write_text(lines(records))
    return folder


def run_command(*arguments: object, stdin: str = "") -> str:
    done = CliRunner().invoke(hkmap, [str(argument) for argument in arguments], input=stdin)
    assert done.exit_code == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def editor(world: Path) -> Iterator[Served]:
    """An editor for the short tests, each of which works on records of its own."""
    with Served(world, "records.jsonl", "--from", "run", "--out", "edited", "--user", "ana") as served:
        yield served


@contextmanager
def opened(
    chromium: Any, editor: Served, number: int, *, expected: tuple[str, ...] = (), **options: Any
) -> Iterator[Any]:
    """Yield a person's page with a record open; nothing but what is ``expected`` may go wrong in it.

    Whatever breaks the content-security policy is an error in the console.
    """
    context = chromium.new_context(viewport=WINDOW, **options)
    page = context.new_page()
    asked: list[str] = []
    wrong: list[str] = []

    def listen(message: Any) -> None:
        is_of_broken = re.search(rf"/(image|thumbnail)/{BROKEN}$", message.location["url"])
        if message.type in ("error", "warning") and not is_of_broken:
            wrong.append(message.text)

    page.on("console", listen)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: wrong.append(dialog.message))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{editor.link}#n={number}")
    look(page)
    yield page
    context.close()
    origin = editor.link.partition("/?")[0]
    assert [url for url in asked if not url.removeprefix("blob:").startswith((f"{origin}/", "data:"))] == []
    assert [text for text in wrong if not any(one in text for one in expected)] == []


def look(page: Any) -> None:
    """Wait until a record is open, its image is there, and the network has answered."""
    page.locator("#confirm:enabled").wait_for()
    page.locator("#answers .answer").first.wait_for()


def until(page: Any, condition: Callable[[], Any]) -> Any:
    """Wait until a condition holds, and return what it gave."""
    for _ in range(1500):
        found = condition()
        if found is not None and found is not False:
            return found
        page.wait_for_timeout(20)
    raise AssertionError("a condition never held")


def answers(page: Any) -> list[str]:
    return page.locator("#answers .answer .probability").all_inner_texts()


def work_on(editor: Served, number: int) -> Work:
    """What the disk has of a record."""
    record = record_of(editor, number)
    path = out_of(editor) / "strokes" / "ana" / f"{file_name(record['id'])}.jsonl"
    return from_line(json.loads(path.read_text()), str(path)) if path.exists() else Work("")


def out_of(editor: Served) -> Path:
    return editor.folder / str(editor.arguments[editor.arguments.index("--out") + 1])


def record_of(editor: Served, number: int) -> dict[str, Any]:
    return json.loads((editor.folder / str(editor.arguments[0])).read_text().splitlines()[number])


def strokes(page: Any, editor: Served, number: int, count: int) -> tuple[Stroke, ...]:
    """Wait until so many strokes are on the disk, and return them."""
    return until(page, lambda: found if len(found := work_on(editor, number).strokes) == count else None)


def on_screen(page: Any) -> Callable[[float, float], tuple[float, float]]:
    """Look for the red square, and return where on the screen a place of the image is."""
    page.keyboard.down("Space")
    box = page.locator("#canvas").bounding_box()

    def square() -> Any:
        picture = cv2.imdecode(np.frombuffer(page.locator("#canvas").screenshot(), np.uint8), cv2.IMREAD_COLOR)
        blue, green, red = (picture[..., channel].astype(int) for channel in range(3))
        found = np.nonzero((red > 200) & (green < 50) & (blue < 50))
        return found if len(found[0]) > 100 else None

    rows, columns = until(page, square)
    page.keyboard.up("Space")
    left, top, right, _ = RED
    scale = (columns.max() + 1 - columns.min()) / (right - left)
    return lambda x, y: (
        box["x"] + columns.min() + (x - left) * scale, box["y"] + rows.min() + (y - top) * scale
    )


def drag(page: Any, *places: tuple[float, float], button: str = "left", lift: bool = True) -> None:
    page.mouse.move(*places[0])
    page.mouse.down(button=button)
    for place in places[1:]:
        page.mouse.move(*place, steps=4)
    if lift:
        page.mouse.up(button=button)


def assert_shown(page: Any, editor: Served, number: int) -> None:
    """The page shows the map that the strokes on the disk make of the record's, or of the network's."""
    work, record = work_on(editor, number), record_of(editor, number)
    own = out_of(editor) / "start" / f"{file_name(record['id'])}.npy"
    base = load_map(record["map"] if work.start == "map" else str(own))
    expected = paint(work.strokes, Weighted(base, None), FRAME).map
    shown = page.evaluate("Array.from(window.editor.painting.cells().map)")
    np.testing.assert_allclose(np.reshape(shown, expected.shape), expected, atol=1e-5)


# the whole way


def test_a_person_edits_from_the_first_look_to_the_end(world: Path, chromium: Any) -> None:
    whole = Served(world, "good.jsonl", "--from", "run", "--out", world / "whole", "--user", "ana")
    lost = ("WebSocket connection", "ERR_CONNECTION_")
    with whole as editor, opened(chromium, editor, 0, expected=lost) as page:
        untouched = answers(page)
        place = on_screen(page)

        # the answers follow the pointer, before the stroke is done or kept
        drag(page, place(10, 20), place(20, 30), place(48, 16), lift=False)
        until(page, lambda: answers(page) != untouched)
        assert work_on(editor, 0).strokes == ()
        page.mouse.up()
        [painted] = strokes(page, editor, 0, 1)
        assert painted.tool == "add"
        np.testing.assert_allclose(painted.points[0], (10, 20), atol=1)
        np.testing.assert_allclose(painted.points[-1], (48, 16), atol=1)
        assert_shown(page, editor, 0)
        after = answers(page)

        page.locator("#undo").click()
        strokes(page, editor, 0, 0)
        until(page, lambda: answers(page) == untouched)
        page.locator("#redo").click()
        assert strokes(page, editor, 0, 1) == (painted,)
        until(page, lambda: answers(page) == after)

        # erase, then closer, where a small stroke lands where it is meant to
        drag(page, place(12, 40), place(30, 40), button="right")
        assert [one.tool for one in strokes(page, editor, 0, 2)] == ["add", "remove"]
        page.mouse.move(*place(48, 16))
        page.keyboard.down("Control")
        page.mouse.wheel(0, -240)
        page.keyboard.up("Control")
        closer = on_screen(page)
        assert closer(49, 16)[0] - closer(48, 16)[0] > 1.2 * (place(49, 16)[0] - place(48, 16)[0])
        drag(page, closer(44, 12), closer(50, 20))
        third = strokes(page, editor, 0, 3)[-1]
        np.testing.assert_allclose(third.points[0], (44, 12), atol=0.6)
        np.testing.assert_allclose(third.points[-1], (50, 20), atol=0.6)
        assert_shown(page, editor, 0)

        # on to the next, which is left in the middle: the page is closed, the server is killed
        page.keyboard.press("Enter")
        until(page, lambda: work_on(editor, 0).state == "confirmed")
        until(page, lambda: page.evaluate("location.hash") == "#n=1")
        look(page)
        drag(page, place(48, 16), place(52, 20))
        strokes(page, editor, 1, 1)
        until(page, lambda: page.locator("#saved").inner_text() == "Saved")
        page.reload()
        look(page)
        assert page.evaluate("location.hash") == "#n=1"
        assert_shown(page, editor, 1)
        editor.kill()
        page.locator("#banner").wait_for(state="visible")
        drag(page, place(10, 10), place(20, 10))
        drag(page, place(10, 30), place(20, 30))
        assert len(work_on(editor, 1).strokes) == 1
        editor.start()
        strokes(page, editor, 1, 3)
        page.locator("#banner").wait_for(state="hidden")
        assert_shown(page, editor, 1)
        page.locator("#next").click()
        until(page, lambda: page.evaluate("location.hash") == "#n=2")
        page.locator("#skip").click()
        until(page, lambda: work_on(editor, 2).state == "skipped")

        page.locator("#done").click()
        page.locator("#finish-now").click()
        code, out, said = editor.ended()
        assert code == 0, said
    records = [json.loads(line) for line in out.splitlines()]
    assert [record.get("edited_by") for record in records] == ["ana", "ana"] + [None] * (COUNT - 3)
    assert {"prediction", "edited_prediction", "strokes", "edited_at"} <= records[0].keys()
    (world / "edited.jsonl").write_text(out)
    run_command("pack", world / "edited.h5", stdin=out)
    run_command("finetune", world / "edited.h5", "--from", world / "run", "--epochs", 1, "--out", world / "tuned")


# one thing each


@pytest.mark.parametrize(("told", "sent", "conflict"), [
    (0, ["a", "b", "c"], False),    # "a" was on its way when the connection was lost, and did not come
    (1, ["b", "c"], False),         # it came, and its reply did not
    (2, [], True),                  # another window has painted
])
def test_after_a_lost_connection_each_change_is_sent_once_and_none_on_anothers(
    empty_page: Any, told: int, sent: list[str], conflict: bool
) -> None:
    found = empty_page.evaluate("""async (told) => {
        const { Connection } = await import("/static/connection.js"), sockets = [], heard = [], kept = [];
        window.WebSocket = class { sent = []; constructor() { sockets.push(this); } close() {}
            send(text) { this.sent.push(JSON.parse(text)); } };
        const ignore = () => {};
        const editor = new Connection({ status: ignore, saved: (message) => kept.push(message.revision),
            opened: (message, waiting, conflict) => heard.push(conflict) });
        const say = (message) => sockets.at(-1).onmessage({ data: JSON.stringify({ n: 0, ...message }) });
        const paint = (stroke) => editor.change({ do: "paint", stroke });
        sockets[0].onopen();
        editor.open(0);
        say({ of: "opened", revision: 0, strokes: [], undone: [] });
        paint("a");
        sockets[0].onclose();
        paint("b");
        paint("c");
        dispatchEvent(new Event("online"));
        sockets[1].onopen();
        say({ of: "opened", revision: told, strokes: [], undone: [] });
        for (let at = told; editor.queue.length; at++) say({ of: "saved", revision: at + 1 });
        return [sockets[1].sent.filter((one) => one.do === "paint").map((one) => one.stroke), heard.at(-1)];
    }""", told)
    assert found == [sent, conflict]


def test_ids_and_classes_are_text_and_nothing_else(editor: Served, chromium: Any) -> None:
    with opened(chromium, editor, 0) as page:
        assert page.locator("#id").inner_text() == record_of(editor, 0)["id"]
        assert page.locator("#class").inner_text() == CLASSES[0]
        assert page.locator(f"#answers .answer[data-label='0'] >> text={CLASSES[0]}").count() == 1
        assert CLASSES[0] in page.locator("#filter-class").inner_text()
        assert page.evaluate("[...document.scripts].map((script) => script.src)") == [
            f"{editor.link.partition('/?')[0]}/static/main.js"
        ]


def test_a_polygon_is_filled(editor: Served, chromium: Any) -> None:
    corners = (8, 8), (30, 10), (20, 40)
    with opened(chromium, editor, 1) as page:
        place = on_screen(page)
        page.keyboard.press("p")
        for corner in corners:
            page.mouse.click(*place(*corner))
        page.keyboard.press("Enter")
        [stroke] = strokes(page, editor, 1, 1)
        assert stroke.outline
        np.testing.assert_allclose(stroke.points, corners, atol=1)
        assert_shown(page, editor, 1)


def test_the_keyboard_does_everything_but_paint(editor: Served, chromium: Any) -> None:
    with opened(chromium, editor, 2) as page:

        def press(key: str, revision: int) -> Work:
            page.keyboard.press(key)
            return until(page, lambda: work if (work := work_on(editor, 2)).revision == revision else None)

        page.keyboard.press("]")
        page.keyboard.press(".")
        assert [one.tool for one in press("f", 1).strokes] == ["add"]
        page.keyboard.press("e")
        assert [one.tool for one in press("f", 2).strokes] == ["add", "remove"]
        assert press("i", 3).strokes[2].tool == "invert"
        assert len(press("u", 4).strokes) == 2
        assert len(press("Control+z", 5).strokes) == 1
        assert len(press("Control+Shift+Z", 6).strokes) == 2
        assert len(press("Control+y", 7).strokes) == 3
        work = press("Delete", 8)
        assert (work.strokes, len(work.undone)) == ((), 3)
        assert press("1", 9).start == "attention"
        twice = "for (const key of '33') dispatchEvent(new KeyboardEvent('keydown', { key }))"      # before it is told
        page.evaluate(twice)
        until(page, lambda: work_on(editor, 2).revision == 11)
        assert work_on(editor, 2).start == "empty"
        assert press("2", 12).start == "map"
        assert press("s", 13).state == "skipped"
        at = "location.hash"
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("Home")
        until(page, lambda: page.evaluate(at) == "#n=0")
        page.keyboard.press("End")
        until(page, lambda: page.evaluate(at) == f"#n={COUNT - 1}")
        page.keyboard.press("ArrowLeft")
        until(page, lambda: page.evaluate(at) == f"#n={COUNT - 2}")


def test_every_control_has_a_name_and_the_focus_comes_to_it(editor: Served, chromium: Any) -> None:
    wanted = {"start", "confirm", "skip", "done", "next", "radius", "strength", "softness", "opacity", "colours",
              "filter", "help"}
    with opened(chromium, editor, 0) as page:
        seen = set()
        for _ in range(60):
            page.keyboard.press("Tab")
            seen.add(page.evaluate("document.activeElement.id"))
        assert wanted <= seen
        unnamed = page.evaluate("""[...document.querySelectorAll("button, input, select")]
            .filter((one) => !(one.hidden || one.textContent.trim() || one.ariaLabel || one.labels?.length))
            .map((one) => one.outerHTML)""")
        assert unnamed == []


def test_the_help_sheet_has_all_keys_and_takes_them(editor: Served, chromium: Any) -> None:
    with opened(chromium, editor, 3) as page:
        page.keyboard.press("?")
        page.locator("#sheet").wait_for(state="visible")
        assert {"confirm", "undo", "zoom in"} <= {
            word.strip() for text in page.locator("#keys dd").all_inner_texts() for word in text.split(",")
        }
        page.keyboard.press("f")
        page.keyboard.press("Escape")
        page.locator("#sheet").wait_for(state="hidden")
        page.keyboard.press("i")
        assert [one.tool for one in strokes(page, editor, 3, 1)] == ["invert"]


def test_filters_say_what_remains(editor: Served, chromium: Any) -> None:
    with opened(chromium, editor, 0) as page:
        count = page.locator("#count")
        assert count.inner_text() == f"1 of {COUNT}"
        assert page.locator("#filmstrip .frame").count() == COUNT
        page.locator("#filter-class").select_option(label=CLASSES[1])
        until(page, lambda: page.locator("#filmstrip .frame").count() == 3)
        page.locator("#filter-class").select_option(index=0)
        page.locator("#filter").select_option(label="Skipped")


def test_an_image_that_is_none_says_so_and_the_others_go_on(editor: Served, chromium: Any) -> None:
    with opened(chromium, editor, BROKEN - 1) as page:
        page.keyboard.press("ArrowRight")
        page.locator("#absent").wait_for(state="visible")
        assert f"{BROKEN}.png" in page.locator("#absent").inner_text()
        page.keyboard.press("ArrowRight")
        page.locator("#absent").wait_for(state="hidden")
        look(page)


def test_a_full_disk_is_said_and_loses_nothing(editor: Served, chromium: Any) -> None:
    """A limit on the size of files is as a full disk: the files of the strokes cannot be written."""
    with opened(chromium, editor, 5) as page:
        process = editor.process.pid
        limits = resource.prlimit(process, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        try:
            page.keyboard.press("f")
            page.locator("#banner").wait_for(state="visible")
            page.keyboard.press("i")
            assert work_on(editor, 5).strokes == ()
        finally:
            resource.prlimit(process, resource.RLIMIT_FSIZE, limits)
        assert [one.tool for one in strokes(page, editor, 5, 2)] == ["add", "invert"]
        page.locator("#banner").wait_for(state="hidden")
        assert_shown(page, editor, 5)


def test_a_finger_paints_and_two_move_the_image(editor: Served, chromium: Any) -> None:
    with opened(chromium, editor, 6, has_touch=True) as page:
        place = on_screen(page)
        devtools = page.context.new_cdp_session(page)

        def touch(kind: str, *places: tuple[float, float]) -> None:
            points = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(places)]
            devtools.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

        touch("touchStart", place(20, 20))
        touch("touchMove", place(30, 24))
        touch("touchEnd")
        [stroke] = strokes(page, editor, 6, 1)
        np.testing.assert_allclose(stroke.points[-1], (30, 24), atol=1)
        two = [place(20, 20), place(30, 20)]
        moved = [(x + 40, y + 24) for x, y in two]
        touch("touchStart", *two)
        touch("touchMove", *moved)
        touch("touchEnd")
        here, there = place(48, 16), on_screen(page)(48, 16)
        np.testing.assert_allclose(np.subtract(there, here), (40, 24), atol=8)
        assert len(work_on(editor, 6).strokes) == 1


@pytest.mark.parametrize(("window", "touch"), [((1024, 640), False), ((910, 640), False), ((820, 1180), True)])
def test_everything_has_room(window: tuple[int, int], touch: bool, editor: Served, chromium: Any) -> None:
    """Nothing lies beyond the window, or over another; a finger finds what it aims at."""
    with opened(chromium, editor, 0, has_touch=touch) as page:
        page.set_viewport_size({"width": window[0], "height": window[1]})
        boxes = page.evaluate("""[...document.querySelectorAll("button, select, input, #canvas")]
            .filter((one) => one.checkVisibility() && !one.closest("#filmstrip"))
            .map((one) => [one.id || one.outerHTML,
                (one.type === "checkbox" ? one.parentElement : one).getBoundingClientRect().toJSON()])""")
        width, height = window
        for name, box in boxes:
            assert 0 <= box["left"] < box["right"] <= width, name
            assert 0 <= box["top"] < box["bottom"] <= height, name
            assert box["height"] >= (40 if touch else 0), name
        for (name, one), (other, two) in combinations([box for box in boxes if box[0] != "canvas"], 2):
            across = min(one["right"], two["right"]) - max(one["left"], two["left"])
            down = min(one["bottom"], two["bottom"]) - max(one["top"], two["top"])
            assert min(across, down) <= 0, (name, other)
