"""hkmap crop: what is cut or padded is what the engine sees, and everything of the record moves along."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from hkmap.engine.data import ShardExamples
from hkmap.engine.inputs import Preprocessing, plain_view
from hkmap.files.images import read_mask
from hkmap.maps.geometry import PADDING, WHOLE, box_view, compose, pixel_box, view_image
from hkmap.shards.sequence import ShardSequence
from hkmap.stream.references import load_certainty, load_map, read_image

WIDTH, HEIGHT = 60, 40
CROP = (10, 4, 32, 30)
WAYS = {
    "crop": (["--crop", "10,4,32,30"], CROP),
    "center-crop": (["--center-crop", "1:1"], (10, 0, 40, 40)),
    "letterbox": (["--letterbox", "1"], (0, -10, 60, 60)),
}
ways = pytest.mark.parametrize("way", WAYS)
BUBBLES = [{"x": 20, "y": 12.5, "radius": 6, "user": "1"}, {"x": 8, "y": 30, "radius": 9, "user": "2"},
           {"x": 45, "y": 20, "radius": 4, "user": "1", "weight": 0.5}]
BOXES = [{"x": 4, "y": 2, "width": 20, "height": 11.5, "label": "beak"}, {"x": 50, "y": 1, "width": 9, "height": 2},
         {"x": 15, "y": 10, "width": 10, "height": 10}]
POLYGONS = [{"points": [[5, 5], [40, 12], [20, 38]], "label": "wing"}, {"points": [[44, 1], [59, 1], [59, 3]]}]


@pytest.fixture
def record(here):
    """A record with an image of noise and a mask."""
    rng = np.random.default_rng(0)
    write(here / "a.png", rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8))
    write(here / "mask.png", np.uint8(255) * (rng.random((HEIGHT, WIDTH)) > 0.7))
    return {"id": "a/1", "image": "a.png", "label": 3, "class": "ani", "note": ["kept"]}


def write(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(path)


def one(result):
    assert result.exit_code == 0, result.stderr
    assert len(result.records) == 1
    return result.records[0]


def crop_of(values: np.ndarray, box: tuple[int, ...], fill: object = 0) -> np.ndarray:
    """The slow way: every pixel by itself."""
    left, top, width, height = box
    found = np.full((height, width, *values.shape[2:]), fill, values.dtype)
    for row in range(height):
        for column in range(width):
            if 0 <= top + row < values.shape[0] and 0 <= left + column < values.shape[1]:
                found[row, column] = values[top + row, left + column]
    return found


# the image, and the engine


@ways
def test_pixels_are_copied(hk, record, way):
    options, box = WAYS[way]
    seen = one(hk("crop", *options, "--out", "out", stdin=[record]))
    assert seen == {**record, "image": "out/images/a%2F1.png", "size": list(box[2:]),
                    **({"unknown": {"padding": "out/unknown/a%2F1@padding.png"}} if way == "letterbox" else {})}
    assert np.array_equal(read_image(seen["image"]), crop_of(read_image("a.png"), box, PADDING))


@pytest.mark.parametrize(("way", "fit"), [("center-crop", "crop"), ("letterbox", "letterbox")])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 96), (24, 24), (24, 48), (50, 30)])
def test_what_is_written_is_what_the_engine_sees(hk, record, way, fit, height, width):
    preprocessing = Preprocessing(height, width, fit)
    seen = one(hk("crop", f"--{way}", f"{width}:{height}", "--out", "out", stdin=[record]))
    view, original = plain_view(preprocessing, (HEIGHT, WIDTH)), read_image("a.png")
    written = read_image(seen["image"])
    box = pixel_box(view, (HEIGHT, WIDTH))
    assert np.array_equal(compose(box_view(box, (HEIGHT, WIDTH)), WHOLE), view)
    assert np.array_equal(crop_of(original, box, PADDING), written)
    squashed = view_image(written, plain_view(Preprocessing(height, width), written.shape[:2]), (height, width))
    assert np.array_equal(squashed, view_image(original, view, (height, width), preprocessing.padding))


@pytest.mark.parametrize("fit", ["crop", "letterbox"])
def test_a_shard_of_views_is_a_shard_seen_so(hk, record, fit):
    """Map and certainty too: cut by the filter and squashed, or fitted by the engine."""
    rng = np.random.default_rng(1)
    values = cv2.resize(rng.random((5, 7), np.float32), (60, 40), interpolation=cv2.INTER_LINEAR)
    certainty = (rng.random((40, 60)) > 0.2).astype(np.float32)
    np.save("m.npy", values * (certainty > 0))
    np.save("w.npy", certainty)
    record |= {"map": "m.npy", "certainty": "w.npy"}
    way = "--center-crop" if fit == "crop" else "--letterbox"
    one(hk("pack", "whole.h5", stdin=[record]))
    side = 40 if fit == "crop" else 60
    seen = hk("crop", way, 1, "--out", "out", "--map-size", side, stdin=[record])
    one(hk("pack", "seen.h5", stdin=seen.stdout))
    fitted = ShardExamples(ShardSequence([Path("whole.h5")]), Preprocessing(32, 32, fit), (10, 10)).example(0)
    squashed = ShardExamples(ShardSequence([Path("seen.h5")]), Preprocessing(32, 32), (10, 10)).example(0)
    assert np.array_equal(fitted.image, squashed.image)
    assert np.allclose(fitted.map, squashed.map, atol=1e-6)
    assert np.allclose(fitted.certainty, squashed.certainty, atol=1e-6)
    assert (fitted.certainty == 0).any() == (fit == "letterbox")


def test_an_image_is_cut_as_it_is_displayed(hk, here):
    pixels = np.random.default_rng(0).integers(0, 255, (30, 50, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6        # to be turned by 90 degrees to the right
    Image.fromarray(pixels).save("turned.png", exif=exif)
    seen = one(hk("crop", "--crop", "1,2,28,40", "--out", "out", stdin=[{"id": "t", "image": "turned.png"}]))
    assert seen["size"] == [28, 40]
    assert np.array_equal(read_image(seen["image"]), np.rot90(pixels, -1)[2:42, 1:29])
    assert Image.open(seen["image"]).size == (28, 40)
    assert not Image.open(seen["image"]).getexif()


def test_a_grey_image_stays_grey_unless_the_padding_has_a_colour(hk, here):
    write(here / "grey.png", np.arange(48, dtype=np.uint8).reshape(6, 8))
    record = {"id": "g", "image": "grey.png"}
    assert Image.open(one(hk("crop", "--center-crop", 1, "--out", "a", stdin=[record]))["image"]).mode == "L"
    padded = Image.open(one(hk("crop", "--letterbox", 1, "--out", "b", stdin=[record]))["image"])
    assert padded.mode == "RGB"
    assert padded.getpixel((0, 0)) == PADDING


def test_jpeg_is_a_choice(hk, record, here):
    smooth = cv2.resize(np.random.default_rng(0).integers(0, 255, (4, 6, 3), dtype=np.uint8), (WIDTH, HEIGHT))
    write(here / "a.png", smooth)
    sizes = {}
    for quality in (30, 95):
        seen = one(hk("crop", "--crop", "10,4,32,30", "--jpeg", quality, "--out", f"q{quality}", stdin=[record]))
        assert seen["image"] == f"q{quality}/images/a%2F1.jpg"
        assert np.abs(read_image(seen["image"]).astype(int) - smooth[4:34, 10:42]).mean() < 12
        sizes[quality] = Path(seen["image"]).stat().st_size
    assert sizes[30] < sizes[95]


def test_an_image_of_a_shard_is_read_from_it(hk, record):
    one(hk("pack", "a.h5", stdin=[record]))
    seen = one(hk("crop", "--crop", "10,4,32,30", "--out", "out", stdin=hk("unpack", "a.h5").stdout))
    assert np.array_equal(read_image(seen["image"]), read_image("a.png")[4:34, 10:42])


# annotations


DRAWN = {
    "bubbles": (["bubbles2map", "--bandwidth", "radius", "--normalise", "none"], {"bubbles": BUBBLES}),
    "points": (["bubbles2map", "--bandwidth", 5, "--normalise", "none"],
               {"points": [{"x": 20, "y": 8, "user": "1"}, {"x": 50, "y": 39}]}),
    "boxes": (["boxes2map"], {"boxes": BOXES}),
    "polygons": (["masks2map"], {"polygons": POLYGONS}),
    "masks": (["masks2map", "--pooling", "max"], {"masks": {"EX": "mask.png"}}),
}


@ways
@pytest.mark.parametrize("kind", DRAWN)
def test_to_move_and_draw_is_to_draw_and_move(hk, record, way, kind):
    """In maps of a cell a pixel, what moves is the same to the last digits."""
    options, box = WAYS[way]
    (command, *rest), annotation = DRAWN[kind]
    record |= {"size": [WIDTH, HEIGHT], **annotation}
    drawn = one(hk(command, *rest, "--size", f"{WIDTH}x{HEIGHT}", "--out", "m1", stdin=[record]))
    size = f"{box[2]}x{box[3]}"
    after = one(hk("crop", *options, "--map-size", size, "--out", "v1", stdin=[drawn]))
    moved = one(hk("crop", *options, "--out", "v2", stdin=[record]))
    before = one(hk(command, *rest, "--size", size, "--out", "m2", stdin=[moved]))
    values, certainty = load_map(after["map"]), np.ones(box[:1:-1], np.float32)
    assert ("certainty" in after) == (way == "letterbox")
    if "certainty" in after:
        certainty = load_certainty(after["certainty"])
        assert np.array_equal(certainty, crop_of(np.ones((HEIGHT, WIDTH), np.float32), box))
        assert (values[certainty == 0] == 0).all()
        weighed = one(hk("certainty", "--out", "w", stdin=[before]))        # `padding` tells it the same
        assert np.array_equal(load_certainty(weighed["certainty"]), certainty)
        assert np.allclose(load_map(weighed["map"]), values, atol=1e-6)
    assert np.array_equal(values, crop_of(load_map(drawn["map"]), box))
    known = certainty > 0
    assert np.allclose(load_map(before["map"])[known], values[known], atol=1e-6)
    assert values.max() > 0.3


def test_coordinates_and_what_else_an_annotation_says(hk, record):
    record |= {
        "size": [WIDTH, HEIGHT], "bubbles": BUBBLES, "boxes": BOXES, "polygons": POLYGONS,
        "points": [{"x": 59.5, "y": 0.5, "duration": 200}], "lines": [{"points": [[10, 4], [41, 33]]}],
    }
    seen = one(hk("crop", "--crop", "10,4,32,30", "--out", "out", stdin=[record]))
    assert seen["bubbles"] == [{**item, "x": item["x"] - 10, "y": item["y"] - 4} for item in BUBBLES]
    assert seen["points"] == [{"x": 49.5, "y": -3.5, "duration": 200}]                          # outside, and kept
    assert seen["boxes"] == [{"x": 0, "y": 0, "width": 14, "height": 9.5, "label": "beak"},     # cut
                             {"x": 5, "y": 6, "width": 10, "height": 10}]                       # one left out
    assert seen["polygons"] == [{"points": [[-5, 1], [30, 8], [10, 34]], "label": "wing"}]      # one left out
    assert seen["lines"] == [{"points": [[0, 0], [31, 29]]}]
    assert list(seen)[:5] == list(record)[:5]


def test_what_nobody_sees_any_more_leaves_an_empty_list(hk, record):
    record |= {"boxes": [BOXES[1]], "polygons": [POLYGONS[1]], "bubbles": None}
    seen = one(hk("crop", "--crop", "0,20,20,20", "--out", "out", stdin=[record]))
    assert seen["boxes"] == seen["polygons"] == []
    assert seen["bubbles"] is None


def test_a_box_off_the_image_does_not_come_back_in_the_padding(hk, record):
    record |= {"boxes": [{"x": 50, "y": -5, "width": 20, "height": 10}, {"x": 5, "y": -9, "width": 9, "height": 8}]}
    seen = one(hk("crop", "--letterbox", 1, "--out", "out", stdin=[record]))
    assert seen["boxes"] == [{"x": 50, "y": 10, "width": 10, "height": 5}]


def test_masks_are_cut_and_the_padding_is_unknown(hk, record):
    record |= {"masks": {"EX": "mask.png"}, "unknown": {"void": "mask.png"}, "dont_look": {"text/1": "mask.png"}}
    mask = read_mask(Path("mask.png"))
    seen = one(hk("crop", "--crop", "10,4,32,30", "--out", "out", stdin=[record]))
    assert seen["masks"] == {"EX": "out/masks/a%2F1@EX.png"}
    assert seen["unknown"] == {"void": "out/unknown/a%2F1@void.png"}
    assert seen["dont_look"] == {"text/1": "out/dont_look/a%2F1@text%2F1.png"}
    for key in ("masks", "unknown", "dont_look"):
        for path in seen[key].values():
            assert np.array_equal(read_mask(Path(path)), mask[4:34, 10:42])
    wide = one(hk("crop", "--letterbox", 1, "--out", "wide", stdin=[record]))
    assert list(wide["unknown"]) == ["void", "padding"]
    assert not read_mask(Path(wide["unknown"]["void"]))[:10].any()
    padding = read_mask(Path(wide["unknown"]["padding"]))
    assert np.array_equal(padding, crop_of(np.zeros((HEIGHT, WIDTH), bool), (0, -10, 60, 60), True))


def test_a_view_of_a_view_remembers_the_padding(hk, record):
    first = one(hk("crop", "--letterbox", 1, "--out", "one", stdin=[record]))
    second = one(hk("crop", "--letterbox", 2, "--out", "two", stdin=[first]))
    assert second["size"] == [120, 60]
    known = ~read_mask(Path(second["unknown"]["padding"]))
    assert known.sum() == WIDTH * HEIGHT
    assert known[10:50, 30:90].all()


# maps


def test_every_map_moves_and_keeps_its_size_unless_another_is_asked_for(hk, record):
    record |= {"size": [WIDTH, HEIGHT], "bubbles": BUBBLES}
    drawn = one(hk("bubbles2map", "--size", 20, "--per-annotator", "--out", "maps", stdin=[record]))
    np.save("attention.npy", np.random.default_rng(0).random((10, 15), np.float32))
    drawn["attention"] = "attention.npy"
    seen = one(hk("crop", "--letterbox", 1, "--out", "out", stdin=[drawn]))
    assert seen["map"] == "out/maps/a%2F1.npy"
    assert seen["certainty"] == "out/maps/a%2F1+certainty.npy"
    assert seen["annotator_maps"] == {"1": "out/maps/a%2F1@1.npy", "2": "out/maps/a%2F1@2.npy"}
    assert seen["attention"] == "out/attention/a%2F1.npy"
    assert load_map(seen["map"]).shape == load_map(seen["certainty"]).shape == (20, 20)
    assert load_map(seen["attention"]).shape == (10, 15)
    for path in (seen["map"], seen["attention"], *seen["annotator_maps"].values()):
        values = load_map(path)
        assert (values[0] == 0).all()
        assert values[len(values) // 2].any()
    other = one(hk("crop", "--letterbox", 1, "--map-size", "6x8", "--out", "other", stdin=[drawn]))
    for path in (other["map"], other["attention"], *other["annotator_maps"].values()):
        assert load_map(path).shape == (8, 6)


def test_a_crop_adds_no_weights_and_moves_those_that_are_there(hk, record):
    np.save("m.npy", np.full((4, 6), 0.5, np.float32))
    certainty = np.ones((4, 6), np.float32)
    certainty[:, :2] = 0
    np.save("w.npy", certainty)
    record |= {"map": "m.npy"}
    assert "certainty" not in one(hk("crop", "--crop", "10,0,40,40", "--out", "bare", stdin=[record]))
    record |= {"certainty": "w.npy"}
    seen = one(hk("crop", "--crop", "10,0,40,40", "--map-size", 4, "--out", "out", stdin=[record]))
    assert load_certainty(seen["certainty"]).tolist() == [[0, 1, 1, 1]] * 4
    assert load_map(seen["map"]).tolist() == [[0, 0.5, 0.5, 0.5]] * 4


# errors


@pytest.mark.parametrize(("changed", "options", "sentence"), [
    ({}, ["--crop", "30,0,31,5"],
     'record "a/1": a crop of 31x5 pixels from (30, 0) does not lie in the image of 60x40'),
    ({}, ["--crop", "0,36,5,5"], "a crop of 5x5 pixels from (0, 36) does not lie"),
    ({"size": [30, 20]}, ["--letterbox", "1"], "its size is 30x20, but its image has 60x40 pixels as displayed"),
    ({"size": [40, 60]}, ["--letterbox", "1"], "its size is 40x60, but its image has 60x40 pixels as displayed"),
    ({"image": "none.png"}, ["--letterbox", "1"], "none.png: No such file or directory"),
    ({"image": None}, ["--letterbox", "1"], 'record "a/1": has no image; expected the path of one'),
    ({"map": "none.npy"}, ["--letterbox", "1"], "none.npy: No such file"),
    ({"masks": {"EX": "none.png"}}, ["--letterbox", "1"], "none.png: No such file"),
    ({"masks": {"EX": "small.png"}}, ["--letterbox", "1"], "small.png: a mask of 5x4 pixels for an image of 60x40"),
    ({"lines": [{"points": [[1]]}]}, ["--letterbox", "1"], "lines[0] is"),
    ({"lines": 3}, ["--letterbox", "1"], 'record "a/1": lines is 3; expected a list of objects with points'),
])
def test_a_record_that_does_not_fit(hk, record, here, changed, options, sentence):
    write(here / "small.png", np.zeros((4, 5), np.uint8))
    result = hk("crop", *options, "--out", "out", stdin=[{**record, **changed}])
    assert result.exit_code == 1
    assert sentence in result.stderr
    assert not Path("out/images").exists()
    skipped = hk("crop", *options, "--on-error", "skip", "--max-errors", 1, "--out", "out",
                 stdin=[{**record, **changed}, {**record, "id": "b", "image": "a.png"}])
    assert skipped.exit_code == 0 or "--crop" in options        # the crop does not fit the other one either
    assert "skipped: " in skipped.stderr


def test_a_letterbox_of_too_many_pixels_is_refused_before_memory_is_taken(hk, here):
    write(here / "thin.png", np.zeros((1, 20_000), np.uint8))
    result = hk("crop", "--letterbox", 0.1, "--out", "out", stdin=[{"id": "t", "image": "thin.png"}])
    assert result.exit_code == 1
    assert 'record "t": 20000x200000 pixels with the padding, expected at most 268,435,456 in all' in result.stderr


def test_a_jpeg_has_a_largest_side(hk, here):
    write(here / "thin.png", np.zeros((1, 66_000), np.uint8))
    result = hk("crop", "--crop", "0,0,66000,1", "--jpeg", 90, "--out", "out", stdin=[{"id": "t", "image": "thin.png"}])
    assert result.exit_code == 1
    assert "out/images/t.jpg: 66000x1 pixels, a JPEG has at most 65,500 per side; omit --jpeg" in result.stderr


def test_ids_come_once(hk, record):
    twice = hk("crop", "--letterbox", 1, "--out", "out", stdin=[record, record])
    assert twice.exit_code == 1
    assert 'record "a/1": comes twice, and out holds one image per id; make the ids unique' in twice.stderr


# together, and real data
