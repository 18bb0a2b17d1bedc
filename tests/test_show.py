"""The contact sheet: what is drawn where, and `hkmap show`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from hkmap.report.colouring import COLOURS as COLOUR_MAPS
from hkmap.report.colouring import bare, colour_bar, coloured, overlay
from hkmap.report.lettering import PAPER, length, spelt, wrapped
from hkmap.report.sheets import (
    COLOURS,
    LABELS,
    SETTLED,
    Entry,
    Palette,
    Style,
    Tile,
    annotated,
    contact_sheet,
    draw_tile,
    with_legend,
)

HEAD = 19       # pixels: of the column heads above the pictures
GREY = np.full((90, 120, 3), 128, np.uint8)


def record(**annotations: Any) -> dict[str, Any]:
    return {"id": "7", "size": [240, 180], **annotations}


def outlined(item: dict[str, Any], masks: dict[str, dict[str, np.ndarray]]) -> np.ndarray:
    return annotated(GREY, item, masks, Palette())[0]


def sheet_of(entry: Entry, style: Style) -> np.ndarray:
    return contact_sheet([draw_tile(entry, style, Palette())], tuple(entry.maps), 1, style)


def changed(picture: np.ndarray, before: np.ndarray = GREY) -> np.ndarray:
    return (picture != before).any(axis=2)


def extent(marked: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right and bottom edge of the marked pixels, in continuous pixels."""
    rows, columns = np.flatnonzero(marked.any(axis=1)), np.flatnonzero(marked.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


# what is drawn where: the frame is twice the picture, and a line three pixels thick


@pytest.mark.parametrize(("annotations", "expected"), [
    ({"bubbles": [{"x": 100, "y": 60, "radius": 20}]}, (40, 20, 60, 40)),
    ({"boxes": [{"x": 40, "y": 20, "width": 60, "height": 30}]}, (20, 10, 50, 25)),
    ({"polygons": [{"points": [[40, 20], [100, 20], [40, 50]]}]}, (20, 10, 50, 25)),
    ({"points": [{"x": 101, "y": 61}]}, (44.5, 24.5, 56.5, 36.5)),      # a dot of radius 5 with a rim of 1
])
def test_annotations_lie_where_the_record_says(annotations: dict, expected: tuple[float, ...]) -> None:
    drawn = extent(changed(outlined(record(**annotations), {})))
    assert drawn == pytest.approx(expected, abs=4.01)      # cv2's soft edges
    left, top, right, bottom = drawn
    assert (left + right) / 2 == pytest.approx((expected[0] + expected[2]) / 2, abs=0.51)
    assert (top + bottom) / 2 == pytest.approx((expected[1] + expected[3]) / 2, abs=0.51)


def test_a_dot_on_a_pixels_centre_is_drawn_round_that_pixel() -> None:
    marked = changed(outlined({"id": "7", "points": [{"x": 40.5, "y": 30.5}]}, {}))
    left, top, right, bottom = extent(marked)
    assert (left + right, top + bottom) == (81, 61)


def test_the_drawing_turns_with_the_image() -> None:
    plain = {"bubbles": [{"x": 70, "y": 60, "radius": 30}], "points": [{"x": 200, "y": 50, "weight": 2}]}
    mirrored = {"bubbles": [{"x": 170, "y": 60, "radius": 30}], "points": [{"x": 40, "y": 50, "weight": 2}]}
    one, two = (outlined(record(**annotations), {}) for annotations in (plain, mirrored))
    assert np.abs(one[:, ::-1].astype(int) - two).mean() < 0.2
    assert changed(one).sum() == pytest.approx(changed(two).sum(), abs=12)


def test_a_dots_area_follows_its_weight() -> None:
    def area(weight: float) -> int:
        dots = [{"x": 60, "y": 60, "weight": weight}, {"x": 200, "y": 60, "weight": 9}]
        return int(changed(outlined(record(points=dots), {}))[:, :60].sum())

    assert area(0) < area(1) < area(9)


def test_a_small_dot_is_drawn_over_a_large_one() -> None:
    dots = [{"x": 100, "y": 60, "weight": 1}, {"x": 100, "y": 60, "weight": 9}]
    one, two = (outlined(record(points=points), {}) for points in (dots, dots[::-1]))
    assert (one == two).all()
    assert len(np.unique(one[29:31, 44:56].reshape(-1, 3), axis=0)) > 2      # the small one's rim shows


@pytest.mark.parametrize(("annotations", "seen"), [
    ({"bubbles": [{"x": 120, "y": 90, "radius": 1e8}]}, None),      # the picture lies inside
    ({"bubbles": [{"x": 120 + 1e8, "y": 90, "radius": 1e8}]}, (60, 0, 61, 90)),       # its left end is a straight line
    ({"bubbles": [{"x": 120, "y": 90 - 1e12, "radius": 1e12}]}, (0, 44, 120, 45)),
    ({"boxes": [{"x": 120, "y": -1e11, "width": 1e12, "height": 1e12}]}, (58, 0, 62, 90)),
    ({"polygons": [{"points": [[-1e9, -1e9], [1e9, 1e9]]}]}, "diagonal"),
    ({"polygons": [{"points": [[-1e9, -1e9], [1e9, -1e9], [1e9, 1e9], [-1e9, 1e9]]}]}, None),
    ({"points": [{"x": 1e12, "y": -1e12}]}, None),
])
def test_what_reaches_far_off_the_image_is_drawn_where_it_is_seen(annotations: dict, seen: Any) -> None:
    marked = changed(outlined(record(**annotations), {}))
    if seen is None:
        assert not marked.any()
    elif seen == "diagonal":
        y, x = np.nonzero(marked)
        assert np.abs(x - y).max() <= 4
        assert marked[np.arange(90), np.arange(90)].all()
    else:
        assert extent(marked) == pytest.approx(seen, abs=2)


def test_annotations_off_the_image_and_empty_ones_draw_nothing() -> None:
    off = {"bubbles": [{"x": 1e12, "y": -1e12, "radius": 5}], "points": [{"x": -500, "y": 9e9}]}
    assert not changed(outlined(record(**off), {})).any()
    empty: dict[str, Any] = {"bubbles": [], "points": [], "boxes": [], "polygons": []}
    assert not changed(outlined(record(**empty), {})).any()


def test_a_mask_is_outlined_and_named_even_where_it_is_a_pixel() -> None:
    mask = np.zeros((900, 1200), bool)
    mask[500, 700] = True
    picture = outlined(record(), {"masks": {"EX": mask}})
    assert changed(picture)[50, 70]
    assert changed(picture)[:20, :30].any()
    assert not changed(picture)[20:45].any()


def test_the_image_is_left_alone() -> None:
    image = GREY.copy()
    marked = record(bubbles=[{"x": 100, "y": 60, "radius": 20}])
    annotated(image, marked, {"masks": {"EX": np.ones((9, 12), bool)}}, Palette())
    overlay(image, np.ones((3, 3), np.float32))
    assert (image == GREY).all()


def test_the_overlay_is_brightest_where_the_map_is() -> None:
    values = np.zeros((3, 4), np.float32)
    values[0, 3] = 1
    picture = overlay(GREY, values)
    assert picture.shape == GREY.shape
    brightness = picture.sum(axis=2, dtype=int)
    assert np.unravel_index(brightness.argmax(), brightness.shape)[0] < 30
    assert np.unravel_index(brightness.argmax(), brightness.shape)[1] >= 90
    low, high = picture[80, 10].astype(int), picture[10, 110].astype(int)
    assert high[0] > high[2]      # yellow
    assert low[2] > low[1]        # dark blue


def test_tiles_of_all_shapes_make_one_sheet() -> None:
    shapes = [(90, 120), (120, 90), (4, 400), (48, 48), (300, 2)]
    values = np.zeros((7, 7), np.float32)
    maps = {"map": values, "attention": None}
    style = Style(cell=100)
    images = [np.zeros((*shape, 3), np.uint8) for shape in shapes]
    tiles = [draw_tile(Entry(record(), image, maps, {}), style, Palette()) for image in images]
    for columns, across in ((1, 1), (2, 2), (5, 5), (9, 5)):
        sheet = contact_sheet(tiles, tuple(maps), columns, style)
        assert sheet.dtype == np.uint8
        assert sheet.shape[1:] == (across * 312, 3)


def test_unknown_areas_are_outlined_below_the_masks_and_named() -> None:
    mask, unknown = np.zeros((90, 120), bool), np.zeros((90, 120), bool)
    mask[40:60, 40:60] = unknown[40:60, 40:80] = True
    picture = outlined(record(), {"masks": {"EX": mask}, "unknown": {"void": unknown}})
    assert len(np.unique(picture[50, [40, 79]], axis=0)) == 2
    assert (picture[50, 40] == outlined(record(), {"masks": {"EX": mask}})[50, 40]).all()
    assert changed(picture, outlined(record(), {"masks": {"EX": mask}}))[18:30, 3:60].any()      # its name


def test_many_dots_are_smaller() -> None:
    def area(count: int) -> int:
        dots = [{"x": 30, "y": 60}] + [{"x": 200, "y": 60}] * (count - 1)
        return int(changed(outlined(record(points=dots), {}))[:, :50].sum())

    assert area(1) == area(50) > area(200) > 0


def test_many_bubbles_hide_less_of_the_picture() -> None:
    def drawn(count: int) -> int:
        bubbles = [{"x": 60, "y": 60, "radius": 30}] + [{"x": 200, "y": 60, "radius": 1}] * (count - 1)
        return int(changed(outlined(record(bubbles=bubbles), {}))[:, :80].sum())

    assert drawn(1) == drawn(8) > 1.3 * drawn(9) > 0


# colours


@pytest.mark.parametrize("colour", COLOUR_MAPS)
def test_a_colour_map_gets_brighter_in_even_steps(colour: str) -> None:
    """The lightness that the eye sees (CIE L*) rises with the value: at no place by more than twice the mean step."""
    colours = coloured(np.linspace(0, 1, 256, dtype=np.float32)[None], colour)
    lightness = cv2.cvtColor(colours.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0, :, 0]
    steps = np.diff(lightness[::15])
    assert steps.min() > 0
    assert steps.max() < 2 * steps.mean()


@pytest.mark.parametrize("colour", COLOUR_MAPS)
def test_the_bar_shows_the_colours_of_the_sheet(colour: str) -> None:
    low, high = np.zeros((1, 1), np.float32), np.ones((1, 1), np.float32)
    bar = colour_bar((11, 96), colour, plain=True)
    assert bar.shape == (11, 96, 3)
    assert (bar[:, [0, -1]] == np.concatenate([coloured(low, colour), coloured(high, colour)], axis=1)).all()
    over = colour_bar((11, 96), colour, plain=False)
    for row, level in ((0, 255), (-1, 0)):
        image = np.full((1, 1, 3), level, np.uint8)
        assert (over[row, 0] == overlay(image, low, colour)).all()
        assert (over[row, -1] == overlay(image, high, colour)).all()


def test_grey_is_a_light_on_the_image() -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    values = np.zeros((8, 8), np.float32)
    values[:, 4:] = 1
    lit = overlay(image, values, "grey")
    assert (lit[:, 4:] == image[:, 4:]).all()
    assert (lit[:, :4] == 0).all()


def test_a_bare_map_keeps_its_cells_as_blocks() -> None:
    values = np.array([[0, 1], [0.5, 0.25]], np.float32)
    blocks = bare(values, (40, 60), "viridis")
    assert (blocks == np.kron(coloured(values, "viridis"), np.ones((20, 30, 1), np.uint8))).all()
    fine = np.tile(np.array([[0, 1], [1, 0]], np.float32), (30, 30))
    assert (bare(fine, (30, 30), "grey") == 128).all()      # area means, not one cell of four


# captions and the legend


@pytest.mark.parametrize(("line", "expected"), [
    ("Großer Ani, Ωμέγα, птица", "Großer Ani, Ωμέγα, птица"),
    ("Ærø, Łódź, 5\u201310", "Ærø, Łódź, 5\u201310"),
    ("é e\u0301", "é é"),
    ("日本 中国", "\\u65e5\\u672c \\u4e2d\\u56fd"),
    ("a\nb\tc", "a\\nb\\tc"),
    ("🐦", "\\U0001f426"),
])
def test_captions_are_spelt_so_that_names_stay_apart(line: str, expected: str) -> None:
    assert spelt(line) == expected


def test_captions_name_their_keys() -> None:
    def drawn(captions: tuple[str, ...], **keys: Any) -> np.ndarray:
        return sheet_of(Entry(record(**keys), GREY, {}, {}), Style(cell=120, captions=captions))

    assert (drawn(("score",), score=0.123456) == drawn(("score",), score=0.12346)).all()
    assert (drawn(("score",), score=0.1) != drawn(("score",), score=0.2)).any()
    assert (drawn(("score",), score=None) == drawn(("score",))).all()
    assert (drawn(("user",), user="7") == drawn(("user",), user=7)).all()
    assert (drawn(("user",), user={"a": [1]}) == drawn(("user",), user='{"a": [1]}')).all()
    assert len(drawn(("id", "user", "size"))) == len(drawn(("id", "user"))) + 15


def tile(colours: dict[str, tuple[int, int, int]], *, mapped: bool = False) -> Tile:
    return Tile((GREY,), ("",), ["7"], colours, mapped)


@pytest.mark.parametrize("width", [36, 64, 200, 1000])
def test_the_legend_has_what_the_sheet_shows(width: int) -> None:
    sheet = np.full((50, width, 3), PAPER, np.uint8)
    assert with_legend(sheet, [tile({})], Style()) is sheet
    full = with_legend(sheet, [tile({}), tile({}, mapped=True), tile({"boxes": COLOURS["boxes"]})], Style())
    assert full.shape[1] == width
    assert full.shape[0] in (65, 80)
    assert (full[:50] == sheet).all()
    colours = {tuple(colour) for colour in full[50:].reshape(-1, 3)}
    assert COLOURS["boxes"] in colours
    assert COLOURS["points"] not in colours
    wide = min(96, max(4, width - 2 * (length("0") + 8) - 4))
    bar = colour_bar((10, wide), "viridis", plain=False)
    assert any((full[53:63, left : left + wide] == bar).all() for left in range(width - wide))


def test_a_legend_of_200_names_stays_small() -> None:
    sheet = np.full((50, 900, 3), PAPER, np.uint8)
    many = {f"a class with a name {number}": LABELS[number % 12] for number in range(200)}
    assert len(with_legend(sheet, [tile(many)], Style())) < 50 + 15 * 12


def test_a_tile_knows_what_it_shows() -> None:
    entry = Entry(record(boxes=[], points=[{"x": 1, "y": 2}]), GREY, {"map": None}, {})
    found = draw_tile(entry, Style(cell=32), Palette())
    assert (found.colours, found.mapped) == ({"points": COLOURS["points"]}, False)
    mapped = Entry(record(), GREY, {"map": None, "attention": np.zeros((3, 3), np.float32)}, {})
    assert draw_tile(mapped, Style(cell=32), Palette())[3:] == ({}, True)


BOX, CORNERS = {"x": 0, "y": 0, "width": 200, "height": 150}, [[100, 90], [230, 90], [230, 170]]


def test_a_label_keeps_its_colour_over_all_tiles_and_kinds() -> None:
    palette, mask = Palette(), np.eye(90, 120, dtype=bool)
    first = record(boxes=[BOX | {"label": "b"}], polygons=[{"points": CORNERS, "label": "a"}])
    second = record(boxes=[BOX | {"x": 20, "y": 60}, BOX | {"label": "a"}])
    shown = [annotated(GREY, first, {}, palette), annotated(GREY, second, {"masks": {"c": mask, "b": mask}}, palette)]
    assert [colours for _, colours in shown] == [
        {"a": LABELS[0], "b": LABELS[1]}, {"c": LABELS[2], "b": LABELS[1], "a": LABELS[0], "boxes": COLOURS["boxes"]},
    ]
    for picture, colours in shown:
        for colour in colours.values():
            assert np.abs(picture.astype(int) - colour).sum(axis=2).min() < 90      # the lines are soft


def test_the_masks_of_two_users_are_one_label() -> None:
    masks = {"EX@ann": np.eye(90, 120, dtype=bool), "EX@bob": np.eye(90, 120, dtype=bool)[::-1]}
    item = record(masks=dict.fromkeys(masks, "a.png"), mask_users={"EX@ann": "ann", "EX@bob": "bob"})
    assert annotated(GREY, item, {"masks": masks}, Palette())[1] == {"EX": LABELS[0]}


def test_ten_labels_have_ten_colours_and_none_is_that_of_a_kind() -> None:
    colours = [*LABELS, *COLOURS.values(), *SETTLED.values()]
    assert len({*colours}) == len(colours) >= 10 + len(COLOURS)
    palette = Palette()
    assert [palette[str(number)] for number in range(24)] == [*LABELS, *LABELS]


def test_names_take_at_most_half_of_the_picture() -> None:
    masks = {"masks": {f"lesion {number}": np.zeros((90, 120), bool) for number in range(20)}}
    assert not changed(outlined(record(), masks))[48:].any()


def test_a_stretched_map_is_drawn_to_its_maximum_and_says_so() -> None:
    values = np.array([[0, 0.03]], np.float32)
    shown = {}
    for stretch in (False, True):
        style = Style(cell=120, plain=True, stretch=stretch)
        found = draw_tile(Entry(record(), GREY, {"map": values}, {}), style, Palette())
        shown[stretch] = (found.pictures[1][40, 100].tolist(), found.notes[1])
    one = coloured(np.ones((1, 1), np.float32), "viridis")[0, 0].tolist()
    assert shown[True] == (one, "2x1, max 0.03 drawn as 1")
    assert shown[False][1] == "2x1, max 0.03"
    assert shown[False][0] != one
    dark = Entry(record(), GREY, {"map": 0 * values}, {})
    assert draw_tile(dark, Style(stretch=True), Palette()).notes[1] == "2x1, max 0"


@pytest.mark.parametrize(("keys", "caption"), [
    ({"prediction": 5, "predicted_class": "Ani", "confidence": 0.875, "label": 3}, "label 3 predicted Ani (0.88)"),
    ({"prediction": 5, "class": "Crow"}, "Crow predicted 5"),
    ({}, ""),
])
def test_the_caption_names_the_class_that_was_predicted(keys: dict[str, Any], caption: str) -> None:
    assert draw_tile(Entry(record(**keys), GREY, {}, {}), Style(), Palette()).caption == ["7", caption]


# lines


@pytest.mark.parametrize(("text", "lines"), [
    ("", [""]),
    ("one two", ["one two"]),
    ("photos/2024/birds/IMG_0001.jpg", ["photos/2024/", "birds/IMG_0001.", "jpg"]),
    (
        "a caption of more words than three lines can ever hold",
        ["a caption of more", "words than three", "…can ever hold"],
    ),
    ("word " * 500, ["word word word", "word word word", "…word word"]),
])
def test_lines_break_between_words(text: str, lines: list[str]) -> None:
    assert wrapped(text, 100, 3) == lines


@pytest.mark.parametrize("width", [20, 60, 224])
def test_a_word_longer_than_a_line_keeps_its_beginning_and_end(width: int) -> None:
    [line] = wrapped("a" * 500 + "b" * 500, width, 1)
    assert length(line) <= width < length(line) + 2 * length("a")
    assert line[0] == "a"
    assert line[-1] == "b" or width == 20
    assert "…" in line


@pytest.mark.parametrize("size", [2_000, 10_000, 1_000_000])
@pytest.mark.parametrize("unit", ["x", "ab ", "a/"])
def test_the_work_on_a_caption_has_a_bound(size: int, unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In letters measured; it grew by the square."""
    from hkmap.report import lettering

    measured = []
    monkeypatch.setattr(lettering, "length", lambda line: measured.append(len(line)) or 6 * len(line))
    assert len(wrapped(unit * size, 224, 3)) <= 3
    assert sum(measured) < 300_000


def test_where_there_is_no_map_a_plain_sheet_stays_empty() -> None:
    entry = Entry(record(), GREY, {"map": None}, {})
    over, alone = (draw_tile(entry, Style(cell=120, plain=plain), Palette()).pictures[1] for plain in (False, True))
    assert (over == GREY).all()
    assert (alone == PAPER).all()


# the command


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("bird.png", GREY)
    cv2.imwrite("mask.png", np.eye(90, 120, dtype=np.uint8))
    np.save("map.npy", np.eye(14, dtype=np.float32))
    np.save("attention.npy", np.full((7, 7), 0.5, np.float32))
    return tmp_path


def full_record(identifier: str = "7") -> dict[str, Any]:
    return record(
        id=identifier, size=[120, 90], image="bird.png", map="map.npy", attention="attention.npy", label=3,
        masks={"EX": "mask.png"},
        **{"class": "Großer Ani", "prediction": 5, "confidence": 0.875}, points=[{"x": 9, "y": 9}],
    )


def test_the_image_keeps_its_colours(hk, here: Path) -> None:
    cv2.imwrite("red.png", np.full((60, 60, 3), (0, 0, 255), np.uint8))
    hk("show", "--out", "a.png", "--cell", 60, stdin=[{"id": "7", "image": "red.png"}])
    assert cv2.imread("a.png")[HEAD + 30, 30].tolist() == [0, 0, 255]


@pytest.mark.parametrize(("keys", "panels"), [
    ([], 2), (["attention"], 2), (["map", "attention", "other"], 4), (["map", "map"], 2),
])
def test_one_overlay_for_each_map(hk, here: Path, keys: list[str], panels: int) -> None:
    options = [word for key in keys for word in ("--map", key)]
    assert hk("show", "--out", "a.png", "--cell", 60, *options, stdin=[full_record()]).exit_code == 0
    assert cv2.imread("a.png").shape[1] == panels * 64


def test_long_captions_are_cut(hk, here: Path) -> None:
    records = [full_record("long/" * 200), full_record("line\nbreak")]
    assert hk("show", "--out", "a.png", "--cell", 60, stdin=records).exit_code == 0
    assert cv2.imread("a.png").shape[1] == 256


@pytest.mark.parametrize("name", ["x" * 10_000, "\x1b[31mred\x1b[0m\x07", "a\u202eb", "\x9b2J"])
def test_any_id_is_a_caption(hk, here: Path, name: str) -> None:
    assert hk("show", "--out", "a.png", "--cell", 60, stdin=[full_record(name)]).exit_code == 0
    caption = draw_tile(Entry(record(id=name), GREY, {}, {}), Style(), Palette()).caption[0]
    [line] = wrapped(caption, 224, 1)
    assert line.isprintable()
    assert length(line) <= 224


# without an image


def test_a_plain_sheet_needs_no_image(hk, here: Path) -> None:
    np.save("two.npy", np.array([[0, 1], [0, 1]], np.float32))
    records = [{"id": "1", "map": "two.npy"}, {"id": "2", "map": "two.npy", "size": [50, 100], "attention": "map.npy"}]
    result = hk("show", "--plain", "--map", "map", "--map", "attention", "--cell", 60, "--out", "a.png", stdin=records)
    assert (result.exit_code, result.stderr) == (0, "")
    sheet = cv2.cvtColor(cv2.imread("a.png"), cv2.COLOR_BGR2RGB)
    assert sheet.shape[1] == 2 * 2 * 64         # no column of images
    dark, bright = coloured(np.array([[0, 1]], np.float32), "viridis")[0]
    assert (sheet[HEAD, [0, 29, 30, 59]] == [dark, dark, bright, bright]).all()      # a square map of an unknown image
    assert (sheet[HEAD + 59, 128 + 15 + np.array([0, 14, 15, 29])] == [dark, dark, bright, bright]).all()
    assert (sheet[HEAD + 30, 128 + 10] == PAPER).all()      # 30 pixels wide, as the size says


def test_annotations_without_an_image_are_drawn_on_paper(hk, here: Path) -> None:
    boxes = [{"x": 10, "y": 10, "width": 30, "height": 20}]
    records = [{"id": "1", "map": "map.npy", "size": [60, 60], "boxes": boxes}, {"id": "2", "map": "map.npy"}]
    assert hk("show", "--plain", "--cell", 60, "--out", "a.png", stdin=records).exit_code == 0
    sheet = cv2.cvtColor(cv2.imread("a.png"), cv2.COLOR_BGR2RGB)
    assert np.abs(sheet[HEAD + 9 : HEAD + 11, 25].astype(int) - COLOURS["boxes"]).sum(axis=1).min() < 200
    assert (sheet[HEAD : HEAD + 60, 128:188] == PAPER).all()


def test_what_is_beyond_the_limit_is_counted(hk, here: Path) -> None:
    records = [full_record(str(number)) for number in range(5)]
    result = hk("show", "--out", "a.png", "--limit", 2, "--columns", 1, "--cell", 60, stdin=records)
    assert result.records == [{"sheet": "a.png", "records": 2}]
    assert "3 records omitted; raise --limit, or use --pages, to see them" in result.stderr
    assert "omitted" not in hk("show", "--out", "b.png", "--limit", 5, stdin=records).stderr


def test_pages_leave_nothing_out(hk, here: Path) -> None:
    records = [full_record(str(number)) for number in range(5)]
    result = hk("show", "--out", "a.b.png", "--limit", 2, "--pages", "--columns", 1, "--cell", 60, stdin=records)
    names = ["a.b.png", "a.b-2.png", "a.b-3.png"]
    assert result.records == [{"sheet": "a.b.png", "records": 5, "sheets": names}]
    assert result.stderr == ""
    heights = [cv2.imread(name).shape[0] for name in names]
    assert heights[0] == heights[1] > heights[2]
    one = hk("show", "--out", "b.png", "--pages", "--cell", 60, stdin=records)
    assert one.records == [{"sheet": "b.png", "records": 5, "sheets": ["b.png"]}]


def test_pages_are_written_all_or_none(hk, here: Path) -> None:
    text = "".join(json.dumps(full_record(str(number))) + "\n" for number in range(3)) + '{"error": "no disk"}\n'
    before = {path.name for path in here.iterdir()}
    failed = hk("show", "--out", "a.png", "--limit", 1, "--pages", stdin=text)
    assert failed.exit_code == 1
    assert {path.name for path in here.iterdir()} == before
    (here / "a-2.png").write_bytes(b"mine")
    records = [full_record(str(number)) for number in range(3)]
    refused = hk("show", "--out", "a.png", "--limit", 1, "--pages", stdin=records)
    assert "a-2.png: exists already" in refused.stderr
    assert not (here / "a.png").exists()
    assert hk("show", "--out", "a.png", "--limit", 1, "--pages", "--overwrite", stdin=records).exit_code == 0


def test_the_options_show(hk, here: Path) -> None:
    def sheet(*options: object) -> np.ndarray:
        assert hk("show", "--out", "a.png", "--overwrite", "--cell", 60, *options, stdin=[full_record()]).exit_code == 0
        return cv2.imread("a.png")

    usual = sheet()
    assert len(usual) == len(sheet("--no-legend")) + 2 * 15
    pictures = [usual, sheet("--plain"), *(sheet("--colour", name) for name in ("cividis", "inferno", "grey"))]
    for index, one in enumerate(pictures):
        for other in pictures[:index]:
            assert (one[HEAD : HEAD + 45, 64:124] != other[HEAD : HEAD + 45, 64:124]).any()
    captions = [["--caption", key] for key in ("id", "label", "split")]
    assert len(sheet(*captions[0], *captions[1], *captions[2])) == len(sheet(*captions[0], *captions[1])) + 15


@pytest.mark.parametrize("reference", ["levels.png#7", {"size": [90, 120], "counts": "hX5hX5"}], ids=["value", "rle"])
@pytest.mark.parametrize("key", ["masks", "unknown", "dont_look"])
def test_every_kind_of_mask_is_outlined(hk, here: Path, key: str, reference: object) -> None:
    from hkmap.files.masks import read_referred_mask

    cv2.imwrite("levels.png", np.repeat([[3, 7]], 90, axis=0).repeat(60, axis=1).astype(np.uint8))
    mask = read_referred_mask(reference)
    assert extent(mask) == (60, 0, 120, 90)
    item = {"id": "7", "image": "bird.png", key: {"EX": reference}}
    assert hk("show", "--out", "a.png", "--cell", 120, stdin=[item]).exit_code == 0
    assert changed(cv2.imread("a.png")[HEAD : HEAD + 90, :120])[mask].any()


def test_the_certainty_of_a_shards_row_are_shown_and_not_its_map(hk, here: Path, tmp_path: Path) -> None:
    from hkmap.shards.writer import ShardWriter

    values, certainty = np.zeros((4, 4), np.float32), np.ones((4, 4), np.float32)
    with ShardWriter(tmp_path / "a.h5") as writer:
        writer.add({"id": "7", "image": "bird.png"}, Path("bird.png").read_bytes(), values, certainty)
    row = {"id": "7", "image": "a.h5#0", "map": "a.h5#0", "certainty": "a.h5#0"}
    result = hk("show", "--map", "map", "--map", "certainty", "--plain", "--cell", 60, "--out", "a.png", stdin=[row])
    assert result.exit_code == 0
    sheet = cv2.cvtColor(cv2.imread("a.png"), cv2.COLOR_BGR2RGB)
    assert (sheet[HEAD + 20, 90] == coloured(values, "viridis")[0, 0]).all()
    assert (sheet[HEAD + 20, 150] == coloured(certainty, "viridis")[0, 0]).all()


def test_the_maps_of_annotators_stand_side_by_side(hk, here: Path) -> None:
    item = full_record() | {"annotator_maps": {"ann.1": "map.npy", "2": "attention.npy"}}
    keys = ["--map", "annotator_maps.ann.1", "--map", "annotator_maps.2", "--map", "annotator_maps.3"]
    result = hk("show", *keys, "--plain", "--cell", 60, "--out", "a.png", stdin=[item])
    assert result.exit_code == 0
    sheet = cv2.cvtColor(cv2.imread("a.png"), cv2.COLOR_BGR2RGB)
    assert sheet.shape[1] == 4 * 64
    assert (sheet[HEAD + 1, 65] == coloured(np.ones((1, 1), np.float32), "viridis")[0, 0]).all()
    assert (sheet[HEAD + 20, 150] == coloured(np.full((1, 1), 0.5, np.float32), "viridis")[0, 0]).all()
    assert (sheet[HEAD + 20, 220] == PAPER).all()
    wrong = hk("show", *keys, "--out", "b.png", stdin=[item | {"annotator_maps": ["map.npy"]}])
    assert "annotator_maps is ['map.npy']; expected names and map references" in wrong.stderr


# --open


@pytest.fixture
def opener(here: Path, monkeypatch: pytest.MonkeyPatch):
    """Put a desktop's opener, a shell script, on an otherwise empty PATH."""
    folder = here / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def make(name: str, script: str) -> None:
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)

    return make


@pytest.mark.parametrize(("platform", "name"), [("linux", "xdg-open"), ("darwin", "open")])
def test_the_sheet_is_opened_once_it_is_written(hk, here, opener, monkeypatch, platform: str, name: str) -> None:
    monkeypatch.setattr("hkmap.cli.show.sys.platform", platform)
    opener(name, f'#!/bin/sh\n[ -s "$1" ] && echo "$1" > "{here}/opened"\necho noise\n')
    result = hk("show", "--out", "-a.png", "--open", stdin=[full_record()])
    assert result.records == [{"sheet": "-a.png", "records": 1}]
    assert result.stderr == ""
    assert (here / "opened").read_text().strip() == str(here / "-a.png")


@pytest.mark.parametrize(("script", "message"), [
    (None, "a.png: written, but not shown, as xdg-open cannot be run; open it in a viewer"),
    ("#!/bin/sh\nexit 3\n", "a.png: written, but not shown, as xdg-open failed; open it in a viewer"),
    ("#!/no/such/shell\n", "as xdg-open cannot be run"),
    ("#!/bin/sh\nexec /bin/sleep 1\n", ""),     # a viewer that stays is not waited for
])
def test_a_sheet_that_cannot_be_opened_is_written_all_the_same(hk, here, opener, monkeypatch, script, message) -> None:
    monkeypatch.setattr("hkmap.cli.show.sys.platform", "linux")
    monkeypatch.setattr("hkmap.cli.show.PATIENCE", 0.1)
    if script:
        opener("xdg-open", script)
    result = hk("show", "--out", "a.png", "--open", stdin=[full_record()])
    assert result.exit_code == 0
    assert message in result.stderr
    assert bool(message) == bool(result.stderr)
    assert result.records == [{"sheet": "a.png", "records": 1}]


def test_nothing_is_opened_after_a_failure(hk, here: Path, opener) -> None:
    opener("xdg-open", f'#!/bin/sh\necho "$1" > "{here}/opened"\n')
    assert hk("show", "--out", "a.png", "--open", stdin=[{"id": "7"}]).exit_code == 1
    assert not (here / "opened").exists()


@pytest.mark.parametrize(("change", "message"), [
    ({"image": None}, 'record "7": has no image to show; expected a path, or a row of a shard'),
    ({"image": None}, 'record "7": has no image to show; expected a path, or a row of a shard; --plain draws its maps'),
    ({"map": "gone.npy"}, "gone.npy"),
    ({"masks": {"EX": "small.png"}}, "small.png: a mask of 9x8 pixels for an image of 120x90"),
    ({"boxes": 5}, "boxes is 5"),
])
def test_what_cannot_be_shown_is_an_error(hk, here: Path, change: dict[str, Any], message: str) -> None:
    cv2.imwrite("small.png", np.zeros((8, 9), np.uint8))
    records = [full_record() | change, full_record("8")]
    result = hk("show", "--out", "a.png", stdin=records)
    assert result.exit_code == 1
    assert message in result.stderr
    assert not (here / "a.png").exists()
    skipping = hk("show", "--out", "a.png", "--on-error", "skip", "--max-errors", 1, stdin=records)
    assert skipping.records == [{"sheet": "a.png", "records": 1}]


def test_no_record_that_can_be_drawn(hk, here: Path) -> None:
    result = hk("show", "--out", "a.png", "--on-error", "skip", stdin=[{"id": "7"}])
    assert result.exit_code == 1
    assert "a.png: no record could be drawn" in result.stderr


def test_kinds_of_annotation_have_colours_of_their_own() -> None:
    assert len(set(COLOURS.values())) == len(COLOURS)
