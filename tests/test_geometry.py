"""One transform moves image and map: a landmark in the image stays under its landmark in the map."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from hkmap.engine.data import ShardExamples, collate
from hkmap.engine.inputs import Preprocessing, augmented, intensity, plain_view
from hkmap.engine.losses import l2norm
from hkmap.maps.certainty import Weighted
from hkmap.maps.geometry import (
    MIRROR,
    PADDING,
    WHOLE,
    box_view,
    center_crop,
    compose,
    cut_image,
    invert,
    letterbox,
    map_back,
    pixel_box,
    reaches_out,
    share_view,
    turned_view,
    view_image,
    view_map,
)
from hkmap.maps.resize import resize_map, resize_matrix
from hkmap.shards.sequence import ShardSequence

few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
FLIP = np.array([[1.0, 0.0, 0.0], [0.0, -1.0, 1.0]])
NOTHING = np.zeros((1, 1, 3), np.uint8)


def bare(values: np.ndarray) -> Weighted:
    return Weighted(values, None)


def picture(landmark: np.ndarray) -> np.ndarray:
    """A landmark in white on black, (H, W, 3)."""
    return np.repeat((255 * landmark)[:, :, None], 3, axis=2).astype(np.uint8)


def blob(height: int, width: int, x: float, y: float, radius: float) -> np.ndarray:
    """A disc, its centre at (x, y) in shares of the sides."""
    rows, columns = np.mgrid[:height, :width]
    return (np.hypot(columns + 0.5 - x * width, rows + 0.5 - y * height) < radius).astype(np.float32)


def centre_of(values: np.ndarray) -> tuple[float, float]:
    """The centre of mass in shares of the sides."""
    height, width = values.shape
    rows, columns = np.mgrid[:height, :width]
    total = values.sum()
    return ((columns + 0.5) * values).sum() / total / width, ((rows + 0.5) * values).sum() / total / height


@pytest.mark.parametrize("augmentations", [
    (), ("mirror",), ("crop",), ("rotate",), ("mirror", "crop", "rotate"),
])
@pytest.mark.parametrize("fit", ["squash", "crop", "letterbox"])
@pytest.mark.parametrize("size", [(120, 200), (300, 180), (64, 64)])
def test_image_and_map_move_together(augmentations, fit, size):
    preprocessing, rng = Preprocessing(96, 96, fit), np.random.default_rng(3)
    height, width = size
    for _ in range(12):
        _, view = augmented(NOTHING, plain_view(preprocessing, size), 1, augmentations, rng)
        # the landmark lies in the middle of the view, so that no view cuts it off
        x, y = view @ [0.5, 0.5, 1]
        if not 0.1 < min(x, y) <= max(x, y) < 0.9:
            continue        # the middle of the view is padding
        landmark = blob(height, width, x, y, 0.07 * min(size))
        padding = None if fit != "letterbox" else (0, 0, 0)
        seen = view_image(picture(landmark), view, (96, 96), padding)[:, :, 0].astype(np.float32)
        drawn = view_map(bare(resize_map(landmark, (56, 56))), view, (24, 24), padded=fit == "letterbox").map
        assert seen.shape == (96, 96)
        assert drawn.shape == (24, 24)
        assert np.allclose(centre_of(seen), 0.5, atol=0.5 / 24)
        assert np.allclose(centre_of(drawn), 0.5, atol=0.5 / 24)        # within half a cell
        assert drawn.min() >= 0
        assert drawn.max() <= 1


def test_without_a_view_a_map_is_only_resized():
    values = np.random.default_rng(0).random((28, 28), np.float32)
    assert np.array_equal(view_map(bare(values), WHOLE, (14, 14), padded=True).map, resize_map(values, (14, 14)))


@pytest.mark.parametrize(("size", "view"), [
    ((100, 200), [[0.5, 0, 0.25], [0, 1, 0]]),      # the middle square of a wide image
    ((200, 100), [[1, 0, 0], [0, 0.5, 0.25]]),
    ((100, 100), [[1, 0, 0], [0, 1, 0]]),
])
def test_fit_crop_is_the_largest_middle_square(size, view):
    assert np.allclose(plain_view(Preprocessing(64, 64, "crop"), size), view)


def test_a_mirrored_view_mirrors_exactly():
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    assert np.array_equal(view_image(image, MIRROR, (20, 30)), image[:, ::-1])


def test_shrinking_averages_an_image():
    image = np.zeros((64, 64, 3), np.uint8)
    image[::2] = 200        # stripes that a bare bilinear sampling would alias
    seen = view_image(image, np.array([[0.98, 0, 0.01], [0, 0.98, 0.01]]), (8, 8))
    assert np.abs(seen.astype(int) - 100).max() <= 8


def test_intensity_changes_the_image_and_stays_in_range():
    image = np.linspace(0, 255, 300).astype(np.uint8).reshape(10, 10, 3)
    changed, view = intensity(image, WHOLE, 1, np.random.default_rng(1))
    assert np.array_equal(view, WHOLE)
    assert changed.shape == image.shape
    assert changed.dtype == np.uint8
    assert not np.array_equal(changed, image)


# boxes


@pytest.mark.parametrize(("aspect", "size", "crop", "padded"), [
    (1, (100, 200), (50, 0, 100, 100), (0, -50, 200, 200)),
    (1, (200, 100), (0, 50, 100, 100), (-50, 0, 200, 200)),
    (1, (7, 7), (0, 0, 7, 7), (0, 0, 7, 7)),
    (1, (4, 7), (1, 0, 4, 4), (0, -1, 7, 7)),                      # an odd rest
    (4 / 3, (100, 200), (33, 0, 133, 100), (0, -25, 200, 150)),
    (0.5, (100, 200), (75, 0, 50, 100), (0, -150, 200, 400)),
    (1000, (50, 40), (0, 24, 40, 1), (-24980, 0, 50000, 50)),      # at least one pixel
    (1 / 1000, (40, 50), (24, 0, 1, 40), (0, -24980, 50, 50000)),
])
def test_boxes_of_an_aspect_are_whole_pixels_in_the_middle(aspect, size, crop, padded):
    assert center_crop(aspect, size) == crop
    assert letterbox(aspect, size) == padded


@pytest.mark.parametrize("box", [(0, 0, 40, 30), (3, 5, 7, 11), (-4, 0, 48, 30), (0, -10, 40, 50), (-1, -1, 5, 40)])
def test_a_box_is_found_again_in_its_view_and_its_inverse_leads_back(box):
    view = box_view(box, (30, 40))
    assert pixel_box(view, (30, 40)) == box
    assert reaches_out(view) == (min(box[:2]) < 0)
    assert np.allclose(compose(view, invert(view)), WHOLE)
    assert np.allclose(compose(invert(view), view), WHOLE)


@pytest.mark.parametrize("view", [MIRROR, FLIP, turned_view(0.1, 1), share_view(0.01, 0, 0.5), share_view(0, 0, 0.51)])
def test_a_view_that_mirrors_turns_or_splits_pixels_is_no_box(view):
    assert pixel_box(view, (30, 40)) is None


def test_a_cut_image_is_copied_pixel_by_pixel():
    image = np.arange(5 * 6 * 3, dtype=np.uint8).reshape(5, 6, 3)
    assert np.array_equal(cut_image(image, (1, 2, 4, 3), PADDING), image[2:5, 1:5])
    cut = cut_image(image, (-2, 3, 7, 4), (9, 8, 7))
    assert cut.shape == (4, 7, 3)
    assert np.array_equal(cut[:2, 2:], image[3:, :5])
    assert (cut[2:] == (9, 8, 7)).all()
    assert (cut[:, :2] == (9, 8, 7)).all()
    for box in ((-9, 0, 4, 5), (0, -20, 6, 3), (6, 0, 2, 2), (0, 50, 2, 2)):       # nothing but padding
        assert (cut_image(image, box, (9, 8, 7)) == (9, 8, 7)).all()
        assert cut_image(image, box, (9, 8, 7)).shape == (box[3], box[2], 3)


def test_without_padding_an_image_is_reflected_at_its_edges():
    image = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    seen = view_image(image, box_view((-2, 0, 12, 6), (6, 8)), (6, 12))
    assert np.array_equal(seen, np.pad(image, ((0, 0), (2, 2), (0, 0)), mode="symmetric"))


# what a view shows of a map


@pytest.mark.parametrize("size", [(9, 13), (40, 30), (14, 30)])
def test_a_straight_view_is_the_one_resize(size):
    """Mirroring takes it off the path of whole images, and changes nothing else."""
    values = np.random.default_rng(0).random((20, 17), np.float32)
    assert np.allclose(view_map(bare(values), MIRROR, size).map[:, ::-1], resize_map(values, size), atol=1e-6)
    rows, columns = resize_matrix(20, size[0]), resize_matrix(17, size[1])
    assert np.allclose(view_map(bare(values), FLIP, size).map[::-1], rows @ values @ columns.T, atol=1e-6)


def slow_view(values: np.ndarray, certainty: np.ndarray, box: tuple[int, ...], parts: int, size: tuple[int, int]):
    """What a box, in parts of a cell, shows: every part looked up by itself, the new cells are means of parts."""
    left, top, width, height = box
    sums, known = np.zeros(size), np.zeros(size)
    for row in range(height):
        for column in range(width):
            y, x = (top + row) // parts, (left + column) // parts
            if 0 <= y < values.shape[0] and 0 <= x < values.shape[1]:
                place = row * size[0] // height, column * size[1] // width
                known[place] += certainty[y, x]
                sums[place] += certainty[y, x] * values[y, x]
    share = height * width / (size[0] * size[1])
    return np.divide(sums, known, out=np.zeros(size), where=known > 0), known / share


@pytest.mark.parametrize("box", [(0, 0, 24, 24), (6, 4, 12, 12), (-12, 0, 48, 24), (-4, -6, 36, 36), (5, -12, 12, 48)])
@pytest.mark.parametrize("weighed", [False, True])
def test_a_shrinking_view_is_the_mean_over_what_is_known(box, weighed):
    rng = np.random.default_rng(5)
    values = rng.random((6, 6), np.float32)             # four parts a cell: the box is in quarters of cells
    certainty = rng.choice([0, 0.5, 1], (6, 6)).astype(np.float32) if weighed else np.ones((6, 6), np.float32)
    size = (3, 3)
    view = box_view(box, (24, 24))
    found = view_map(Weighted(values, certainty if weighed else None), view, size, padded=True)
    wanted, shares = slow_view(values, certainty, box, 4, size)
    assert np.allclose(found.map, wanted, atol=1e-6)
    assert (found.certainty is not None) == (weighed or reaches_out(view))
    if found.certainty is not None:
        assert np.allclose(found.certainty, shares, atol=1e-6)


def test_padding_is_unknown_and_does_not_thin_out_its_neighbours():
    """A map of ones stays one of ones in every cell that the image reaches, however little."""
    for size in ((8, 5), (20, 20)):
        seen = view_map(bare(np.ones((8, 8), np.float32)), box_view((0, -3, 10, 16), (10, 10)), size, padded=True)
        reached = seen.certainty > 0
        assert np.allclose(seen.map[reached], 1)
        assert (seen.map[~reached] == 0).all()
        assert 0 < reached.mean() < 1
        assert np.isclose(seen.certainty.mean(), 10 / 16)


@pytest.mark.parametrize("angle", [-0.25, 0.1])
@pytest.mark.parametrize("box", [(0, -30, 100, 160), (-20, 0, 140, 100)])
def test_a_turned_letterbox_knows_what_lies_in_the_image(angle, box):
    view = compose(box_view(box, (100, 100)), turned_view(angle, 1))
    seen = view_map(bare(np.ones((28, 28), np.float32)), view, (14, 14), padded=True)
    u, v = (np.mgrid[:280, :280][::-1] + 0.5) / 280
    x, y = np.tensordot(view, np.stack([u, v, np.ones_like(u)]), 1)
    inside = ((x > 0) & (x < 1) & (y > 0) & (y < 1)).astype(np.float32)
    shares = inside.reshape(14, 20, 14, 20).mean((1, 3))
    assert np.allclose(seen.certainty, shares, atol=0.1)                  # only cells at a corner are off
    assert np.isclose(seen.certainty.mean(), shares.mean(), atol=2e-3)
    assert (seen.certainty[shares == 0] < 0.02).all()
    assert np.allclose(seen.map[seen.certainty > 0], 1)


def test_without_padding_a_turned_map_is_reflected_and_has_no_certainty():
    view = turned_view(0.2, 1)
    seen = view_map(bare(np.ones((28, 28), np.float32)), view, (14, 14))
    assert seen.certainty is None
    assert np.allclose(seen.map, 1)


# a landmark stays under its landmark


@st.composite
def views(draw: st.DrawFn, size: tuple[int, int]) -> np.ndarray:
    """Crops, letterboxes, mirrors and turns, up to three after one another."""
    view, aspect = WHOLE, size[1] / size[0]
    for kind in draw(st.lists(st.sampled_from(["crop", "letterbox", "mirror", "flip", "turn"]), max_size=3)):
        if kind == "crop":
            share = draw(st.floats(0.6, 1))
            view = compose(view, share_view(draw(st.floats(0, 1 - share)), draw(st.floats(0, 1 - share)), share))
        elif kind == "letterbox":
            frame = (100, max(1, round(100 * aspect)))
            target = draw(st.floats(0.4, 2.5))
            view, aspect = compose(view, box_view(letterbox(target, frame), frame)), target
        elif kind == "turn":
            view = compose(view, turned_view(draw(st.floats(-0.3, 0.3)), aspect))
        else:
            view = compose(view, MIRROR if kind == "mirror" else FLIP)
    return view


@st.composite
def scenes(draw: st.DrawFn):
    sides = st.integers(40, 160)
    size = draw(st.tuples(sides, sides))
    view = draw(views(size))
    place = draw(st.tuples(st.floats(0.35, 0.65), st.floats(0.35, 0.65)))       # in what is seen
    drawn, seen = draw(st.tuples(st.integers(28, 40), st.integers(28, 40))), st.integers(6, 60)
    return size, view, place, drawn, draw(st.tuples(seen, seen)), draw(st.tuples(sides, sides))


@few
@given(scenes())
def test_a_landmark_in_image_and_map_stays_together(scene):
    size, view, place, drawn, map_size, image_size = scene
    x, y = view @ [*place, 1]
    assume(0.12 < min(x, y) <= max(x, y) < 0.88)        # in the image, whole
    landmark = blob(*size, x, y, 0.06 * min(size))
    place = invert(view) @ [*centre_of(landmark), 1]    # a small disc of pixels is not quite where it was meant to be
    seen = view_image(picture(landmark), view, image_size, (0, 0, 0))[:, :, 0].astype(np.float32)
    values = view_map(bare(resize_map(landmark, drawn)), view, map_size, padded=True)
    # half a cell: of the new map or, where it grows, of the one that it grew from
    shares = np.abs(view[:, :2]).sum(1)
    sides = zip(map_size[::-1], drawn[::-1], shares, strict=True)
    cells = [max(1 / new, 1 / (old * share)) for new, old, share in sides]
    assert (np.abs(np.subtract(centre_of(seen), place)) < np.divide(cells, 2)).all()
    assert (np.abs(np.subtract(centre_of(values.map), place)) < np.divide(cells, 2)).all()
    assert values.map.min() >= 0
    assert values.map.max() <= landmark.max() + 1e-6
    assert (values.certainty is not None) == reaches_out(view)
    assert values.certainty is None or 0 <= values.certainty.min() <= values.certainty.max() <= 1


@few
@given(scenes())
def test_a_map_comes_back_to_the_whole_image(scene):
    _, view, place, _, map_size, _ = scene
    assume(min(map_size) >= 14)
    attention = blob(*map_size, *place, 0.11 * min(map_size))
    shares = np.abs(view[:, :2]).sum(1)
    x, y = view @ [*centre_of(attention), 1]
    reach = 0.15 * shares                               # the landmark lies within the image
    assume(reach[0] < x < 1 - reach[0] and reach[1] < y < 1 - reach[1])
    back = map_back(attention, view, (14, 14))
    cells = [max(1 / 14, share / new) for new, share in zip(map_size[::-1], shares, strict=True)]
    assert back.shape == (14, 14)
    assert (np.abs(np.subtract(centre_of(back), (x, y))) < np.divide(cells, 2)).all()


def test_back_in_the_whole_image_the_padding_is_gone_and_what_a_crop_left_out_is_0():
    values = np.random.default_rng(0).random((14, 14), np.float32)
    assert np.array_equal(map_back(values, WHOLE, (14, 14)), values)
    wide = letterbox(1, (100, 200))
    back = map_back(values, box_view(wide, (100, 200)), (7, 14))
    assert np.allclose(back, (values[3:10] + values[4:11]) / 2)         # rows 3.5 to 10.5: half of two each
    middle = center_crop(1, (100, 200))
    back = map_back(values, box_view(middle, (100, 200)), (14, 28))
    assert np.allclose(back[:, 7:21], values, atol=1e-6)
    assert (back[:, :7] == 0).all()
    assert (back[:, 21:] == 0).all()


# what the engine sees


def test_the_engine_pads_with_its_mean():
    assert Preprocessing(fit="letterbox").padding == PADDING
    assert Preprocessing(fit="letterbox", mean=(0, 0.5, 1)).padding == (0, 128, 255)
    assert Preprocessing(fit="crop").padding is None
    image = np.full((10, 20, 3), 255, np.uint8)
    preprocessing = Preprocessing(20, 20, "letterbox")
    seen = view_image(image, plain_view(preprocessing, (10, 20)), preprocessing.size, preprocessing.padding)
    assert (seen[5:15] == 255).all()
    assert (seen[:5] == PADDING).all()
    assert (seen[15:] == PADDING).all()


@pytest.mark.parametrize("size", [(100, 200), (200, 100), (100, 100), (37, 90)])
def test_fit_letterbox_shows_the_whole_image(size):
    view = plain_view(Preprocessing(64, 64, "letterbox"), size)
    side = max(size)
    assert pixel_box(view, size)[2:] == (side, side)
    corners = invert(view) @ [[0, 1], [0, 1], [1, 1]]
    assert corners.min() >= 0
    assert corners.max() <= 1


@pytest.mark.parametrize("augmentations", [(), ("mirror", "crop", "rotate")])
def test_padding_has_no_part_in_the_map_loss(make_wide_shard, augmentations):
    shards = ShardSequence([make_wide_shard("wide.h5")])
    examples = ShardExamples(shards, Preprocessing(32, 32, "letterbox"), (16, 16), augmentations=augmentations, seed=1)
    batch = collate([examples.example(index, 1) for index in range(len(shards))])
    padding = batch.certainty == 0
    assert padding.float().mean() > 0.3 * (not augmentations)
    assert padding.any()
    assert (batch.maps[padding] == 0).all()
    attention = torch.rand(batch.maps.shape)
    changed = torch.where(padding, 1 - attention, attention)
    assert torch.equal(l2norm(attention, batch.maps, batch.certainty), l2norm(changed, batch.maps, batch.certainty))
    met = torch.where(padding, attention, batch.maps)
    assert (l2norm(met, batch.maps, batch.certainty) == 0).all()
    if not augmentations:       # 32 x 16 pixels in 32 x 32: four rows of padding above and below
        assert (batch.certainty[:, :, :4] == 0).all()
        assert (batch.certainty[:, :, 4:12] == 1).all()
        assert (batch.certainty[:, :, 12:] == 0).all()
        assert torch.allclose(batch.maps[0, 0, 4:12], torch.from_numpy(resize_map(shards.read(0).map, (8, 16))))


@pytest.fixture
def make_wide_shard(tmp_path):
    """Write a shard of images of 32 x 16 pixels, with maps of 16 x 32 cells."""

    def make(name, count=4):
        import cv2

        from hkmap.shards.writer import ShardWriter

        rng = np.random.default_rng(2)
        with ShardWriter(tmp_path / name) as writer:
            for number in range(count):
                png = cv2.imencode(".png", rng.integers(0, 255, (16, 32, 3), dtype=np.uint8))[1].tobytes()
                values = rng.random((16, 32), np.float32)
                writer.add({"id": str(number), "image": "x.png", "label": number % 2, "class": "ab"[number % 2]}, png,
                           values, None)
        return tmp_path / name

    return make


@pytest.mark.parametrize("fit", ["crop", "letterbox"])
def test_predicted_attention_lies_in_the_whole_image(hk, make_wide_shard, tmp_path, fit):
    shard, run = make_wide_shard("wide.h5"), tmp_path / "run"
    small = ["--arch", "resnet8+abn", "--stem", "small", "--width", 4, "--image-size", 32, "--batch-size", 4]
    result = hk("train", shard, *small, "--fit", fit, "--epochs", 1, "--out", run)
    assert result.exit_code == 0, result.stderr
    records = hk("unpack", shard).stdout
    result = hk("predict", "--from", run, "--out", tmp_path / "attention", stdin=records)
    for record in result.records:
        attention = np.load(record["attention"])
        height, width = attention.shape
        assert height == width
        left = attention[:, : width // 4]
        assert (left == 0).all() if fit == "crop" else (left > 0).all()
        assert (attention[:, width // 4 : -width // 4] > 0).all()
    again = hk("predict", "--from", run, "--use-maps", stdin=records)
    assert again.exit_code == 0
    assert [record["id"] for record in again.records] == ["0", "1", "2", "3"]
