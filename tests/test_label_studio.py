"""Label Studio's JSON: shapes in per cent, brush strokes, people, and what an image is called."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from written_formats import brush

from hkmap.errors import SourceError
from hkmap.files.masks import decode_rle
from hkmap.sources.label_studio import brush_mask
from hkmap.stream.references import load_map

STATED = {"original_width": 40, "original_height": 30, "image_rotation": 0}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "images/1.jpg")
    return tmp_path / "images"


def result(kind: str, label: str | None = "a", **value: Any) -> dict[str, Any]:
    labels = {kind: [label]} if label and (kind.endswith("labels") or kind == "choices") else {}
    return {"id": f"{kind}{label}", "type": kind, "value": value | labels, **STATED}


def task(*annotations: Any, image: str = "1.jpg", **more: Any) -> dict[str, Any]:
    return {"id": 1, "data": {"image": image}, "annotations": list(annotations), **more}


def by(user: Any, *results: Any, **more: Any) -> dict[str, Any]:
    return {"completed_by": user, "result": list(results), **more}


def only(found: Any) -> dict[str, Any]:
    assert (found.exit_code, len(found.records)) == (0, 1), found.stderr
    return {key: value for key, value in found.records[0].items() if key not in ("id", "image", "size")}


def read(hk: Callable, images: Path, *tasks: Any) -> Any:
    path = images.parent / "export.json"
    path.write_text(json.dumps(list(tasks)))
    return hk("annotations", path, "--images", images)


@pytest.mark.parametrize(("results", "expected"), [
    ([result("rectanglelabels", x=25, y=20, width=50, height=10, rotation=0)],
     {"boxes": [{"x": 10, "y": 6, "width": 20, "height": 3, "label": "a", "user": "7"}]}),
    # a quarter turn about the top left corner, (10, 6)
    ([result("rectanglelabels", x=25, y=20, width=50, height=10, rotation=90)],
     {"polygons": [{"points": [[10, 6], [10, 26], [7, 26], [7, 6]], "label": "a", "user": "7"}]}),
    ([result("polygonlabels", points=[[0, 0], [50, 0], [50, 50]], closed=True)],
     {"polygons": [{"points": [[0, 0], [20, 0], [20, 15]], "label": "a", "user": "7"}]}),
    ([result("polygonlabels", points=[[0, 0], [50, 0]], closed=False)],
     {"lines": [{"points": [[0, 0], [20, 0]], "label": "a", "user": "7"}]}),
    ([result("keypointlabels", x=25, y=20, width=0.5)], {"points": [{"x": 10, "y": 6, "label": "a", "user": "7"}]}),
    ([result("rectangle", x=0, y=0, width=50, height=10)],
     {"boxes": [{"x": 0, "y": 0, "width": 20, "height": 3, "user": "7"}]}),
    # the tags Rectangle and Labels: two results with one id
    ([result("rectangle", x=0, y=0, width=50, height=10) | {"id": "r"},
      result("labels", "b", x=0, y=0, width=50, height=10) | {"id": "r"}],
     {"boxes": [{"x": 0, "y": 0, "width": 20, "height": 3, "label": "b", "user": "7"}]}),
    ([result("choices", None, choices=["cat"])], {"class": "cat"}),
    ([result("choices", None, choices=["cat", "dog"])], {"classes": ["cat", "dog"]}),
    # choices of a region are none of the image
    ([result("rectangle", x=0, y=0, width=50, height=10) | {"id": "r"},
      result("choices", None, choices=["blurred"]) | {"id": "r"}],
     {"boxes": [{"x": 0, "y": 0, "width": 20, "height": 3, "user": "7"}]}),
    ([{"type": "relation", "from_id": "a", "to_id": "b"}, result("textarea", None, text=["fine"])], {}),
])
def test_shapes(hk: Callable, images: Path, results: list[Any], expected: dict[str, Any]) -> None:
    found = only(read(hk, images, task(by(7, *results))))
    for polygon in found.get("polygons", []):
        polygon["points"] = [[round(side, 9) for side in corner] for corner in polygon["points"]]
    assert found == expected


def test_an_ellipse_keeps_its_axes_and_turn_in_pixels(hk: Callable, images: Path) -> None:
    shape = result("ellipselabels", x=50, y=50, radiusX=25, radiusY=10, rotation=90)
    x, y = np.array(only(read(hk, images, task(by(1, shape))))["polygons"][0]["points"]).T
    assert (x.min(), x.max(), y.min(), y.max()) == pytest.approx((17, 23, 5, 25))


def test_shapes_without_a_stated_size_are_scaled_to_the_image(hk: Callable, images: Path) -> None:
    shape = {"id": "r", "type": "rectanglelabels",
             "value": {"x": 25, "y": 20, "width": 50, "height": 10, "rectanglelabels": ["a"]}}
    assert only(read(hk, images, task(by(1, shape))))["boxes"][0] == {
        "x": 10, "y": 6, "width": 20, "height": 3, "label": "a", "user": "1"}
    shape["value"]["rotation"] = 30
    assert "is turned, but has no original_width" in read(hk, images, task(by(1, shape))).stderr


# people


@pytest.mark.parametrize(("who", "user"), [
    (3, "3"), ({"id": 3, "email": "ann@x.org", "first_name": "Ann"}, "ann@x.org"), ({"id": 3}, "3"), (None, None),
])
def test_who_completed_it_is_the_user(hk: Callable, images: Path, who: Any, user: str | None) -> None:
    shape = result("keypointlabels", x=25, y=20)
    assert only(read(hk, images, task(by(who, shape))))["points"][0].get("user") == user


def test_cancelled_annotations_and_predictions_are_not_read(hk: Callable, images: Path) -> None:
    point = result("keypointlabels", x=25, y=20)
    given = task(by(1, point), by(2, point, was_cancelled=True), by(3, point), predictions=[by(4, point)])
    assert [one["user"] for one in only(read(hk, images, given))["points"]] == ["1", "3"]


def test_who_marked_nothing_is_an_annotator_with_an_empty_map(hk: Callable, images: Path) -> None:
    point = result("keypointlabels", x=25, y=20)
    assert "annotators" not in only(read(hk, images, task(by("ann", point), by("bob", point))))
    done = read(hk, images, task(by("ann", point), by("bob"), by("eve", point, was_cancelled=True)))
    assert only(done)["annotators"] == ["ann", "bob"]
    drawn = hk("bubbles2map", "--bandwidth", 3, "--size", 8, "--per-annotator", "--out", images / "m",
               stdin=done.records)
    maps = {name: load_map(reference) for name, reference in only(drawn)["annotator_maps"].items()}
    assert maps["ann"].max() == 1
    assert not maps["bob"].any()
    wrong = hk("bubbles2map", "--per-annotator", "--out", images / "w", stdin=[done.records[0] | {"annotators": "bob"}])
    assert 'annotators is "bob"; expected a list of names' in wrong.stderr


def test_old_exports_call_them_completions(hk: Callable, images: Path) -> None:
    given = task() | {"completions": [by(1, result("keypointlabels", x=25, y=20))]}
    del given["annotations"]
    assert only(read(hk, images, given))["points"][0]["x"] == 10


def test_masks_of_two_people_have_two_names(hk: Callable, images: Path) -> None:
    first, second = np.zeros((2, 30, 40), np.bool_)
    first[3, 4:9] = second[20:25, 7] = True
    masks = [result("brushlabels", format="rle", rle=brush(mask)) for mask in (first, second)]
    found = only(read(hk, images, task(by("ann", masks[0]), by("bob", masks[1]))))
    assert found["mask_users"] == {"a@ann": "ann", "a@bob": "bob"}
    for name, mask in (("a@ann", first), ("a@bob", second)):
        np.testing.assert_array_equal(decode_rle(found["masks"][name]), mask)
    other = masks[1] | {"id": "second"}
    found = only(read(hk, images, task(by("ann", masks[0], other))))
    assert found["mask_users"] == {"a": "ann"}
    np.testing.assert_array_equal(decode_rle(found["masks"]["a"]), first | second)


def test_nothing_marked_is_not_the_same_as_not_annotated(hk: Callable, images: Path) -> None:
    for name in ("2.jpg", "3.jpg"):
        Image.new("RGB", (40, 30)).save(images / name)
    tasks = [task(by(1, result("keypointlabels", x=25, y=20))), task(by(1), image="2.jpg"), task(image="3.jpg")]
    assert [record.get("points") for record in read(hk, images, *tasks).records] == [
        [{"x": 10, "y": 6, "label": "a", "user": "1"}], [], None]


# what the image is called


@pytest.mark.parametrize(("disk", "image"), [
    ("scan 1.png", "/data/upload/1/abcd1234-scan%201.png"),
    ("abcd1234-scan.png", "/data/upload/1/abcd1234-scan.png"),
    ("cat/scan.png", "/data/upload/12/abcd1234-scan.png"),
    ("scan.png", "http://localhost:8080/data/upload/1/abcd1234-scan.png"),
    ("cat/scan.png", "/data/local-files/?d=photos/cat/scan.png"),
    ("cat/scan é.png", "/data/local-files/?d=photos%5Ccat%5Cscan%20%C3%A9.png"),
    ("scan.png", "s3://bucket/folder/scan.png"),
    ("scan.png", "https://x.org/a/scan.png?token=7&x=1"),
    ("100%25#.png", "100%25#.png"),
])
@pytest.mark.parametrize("command", ["annotations", "join"])
def test_the_image_is_found(hk: Callable, tmp_path: Path, disk: str, image: str, command: str) -> None:
    for name in (disk, "dog/other.png"):
        (tmp_path / "img" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(tmp_path / "img" / name)
    path = tmp_path / "x.json"
    path.write_text(json.dumps([task(by(1, result("keypointlabels", x=25, y=20)), image=image)]))
    if command == "annotations":
        found = hk("annotations", path, "--images", tmp_path / "img")
    else:
        stream = [{"id": f"{number}", "image": f"{tmp_path}/img/{name}", "size": [40, 30]}
                  for number, name in enumerate((disk, "dog/other.png"))]
        found = hk("join", path, stdin=stream)
    assert found.exit_code == 0, found.stderr
    marked = [record for record in found.records if "points" in record]
    assert [record["image"] for record in marked] == [f"{tmp_path}/img/{disk}"]
    assert "names" not in marked[0]


@pytest.mark.parametrize("more", [
    {"data": {"photo": "1.jpg", "caption": "one"}}, {"data": {}, "file_upload": "abcd1234-1.jpg"},
    {"data": {"image": "/x/1"}},
])
def test_the_image_may_stand_elsewhere(hk: Callable, images: Path, more: dict[str, Any]) -> None:
    assert only(read(hk, images, task(by(1, result("keypointlabels", x=25, y=20))) | more))["points"][0]["x"] == 10


def test_two_uploads_of_one_name_are_not_guessed_between(hk: Callable, tmp_path: Path) -> None:
    (tmp_path / "img").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "img/scan.png")
    names = ["/data/upload/1/abcd1234-scan.png", "/data/upload/1/ef567890-scan.png"]
    path = tmp_path / "x.json"
    path.write_text(json.dumps([task(by(1, result("keypointlabels", x=25, y=20)), image=name) for name in names]))
    said = hk("annotations", path, "--images", tmp_path / "img").stderr
    assert '"ef567890-scan.png" and "abcd1234-scan.png" are both' in said
    stream = [{"id": "1", "image": f"{tmp_path}/img/scan.png", "size": [40, 30]}]
    assert "may be abcd1234-scan.png, ef567890-scan.png" in hk("join", path, stdin=stream).stderr


# the brush's run lengths


def test_runs_of_a_published_file_begin_as_described() -> None:
    # the first bytes of a mask of 3332x2527 pixels in a public export: 4 values a pixel of 8 bits, lengths of 3, 4, 8
    # and 16 bits, then runs of 65,536 times 0
    start = bytes([2, 1, 233, 240, 57, 27, 255, 255, 255, 0, 255, 255, 224, 31, 255, 252, 3])
    with pytest.raises(SourceError, match="x ends too early; expected the run lengths of a brush"):
        brush_mask(start, (3332, 2527), "x")
    with pytest.raises(SourceError, match="x has 33679856 values; expected 4 for each pixel of 40x30"):
        brush_mask(start, (40, 30), "x")


def test_half_of_a_pixel_counts_as_marked() -> None:
    values = [0, 0, 127, 0, 0, 0, 128, 0]           # one by one, from the second value on
    bits = f"{12:032b}{7:05b}" + f"{2:04b}" * 4 + f"000000{9:08b}" + "000111" + "".join(f"{one:08b}" for one in values)
    bits += f"100010{200:08b}"                      # and three times 200, the last of them an alpha
    bits += "0" * (-len(bits) % 8)
    data = bytes(int(bits[start : start + 8], 2) for start in range(0, len(bits), 8))
    assert brush_mask(data, (3, 1), "x").tolist() == [[False, True, True]]


@pytest.mark.parametrize("seed", range(5))
def test_a_mask_is_read_as_it_was_drawn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((9, 13)) < (0.5 if seed % 2 else 0.02)
    np.testing.assert_array_equal(brush_mask(bytes(brush(mask)), (13, 9), "x"), mask)


# what is wrong


WIDE = result("rectanglelabels", x=25, y=20, width=-1, height=10)


@pytest.mark.parametrize(("document", "sentence"), [
    ([{"id": 1, "image": "1.jpg", "label": [], "annotator": 1, "annotation_id": 2}],
     "Label Studio's JSON-MIN, which leaves out who drew what; export it as JSON"),
    ([task(by(1, WIDE))], "result[0] is -1 wide and 10 high; expected numbers from 0"),
    ([task(by(1, result("rectanglelabels", x=1, y=1, width=1)))], "result[0].value.height is missing; expected a num"),
    ([task(by(1, WIDE | {"image_rotation": 90}))], "the image was turned in Label Studio; turn it back there"),
    ([task(by(1, result("videorectangle")))], 'result[0].type is "videorectangle"; expected one of rectangle'),
    ([task(by(1, WIDE | {"original_width": 41}, result("keypoint", x=1, y=1)))], "states another size of the image"),
    ([task(by(1, result("polygonlabels", points=[[1, 1], [2, 2]])))], "has 2 points; expected 3 or more"),
    ([task(by(1, result("brushlabels", rle=[1, 300])))], "value.rle is [1, 300]; expected bytes, and original_width"),
    ([task(by(1, result("brushlabels", rle=[0, 0, 0, 1])))], "value.rle ends too early; expected the run lengths"),
    ([task(by(1)), {"id": 2}], "export.json[1].annotations is missing; expected a list"),
    ([{"id": 1, "data": {"image": "1.jpg"}}], "export.json[0].annotations is missing; expected a list"),
    ([task(by([1], WIDE))], "completed_by is [1]; expected a person's number or email"),
    ([task() | {"data": {"text": "fine"}}], """expected the path of one image under "image\""""),
    ([task() | {"data": {"left": "1.jpg", "right": "2.jpg"}}], 'expected the path of one image under "image"'),
    ([task(by(1, result("keypointlabels", x=1, y=1)) | {"result": 7})], "annotations[0].result is 7; expected a list"),
])
def test_what_is_wrong_is_said(hk: Callable, images: Path, document: list[Any], sentence: str) -> None:
    found = read(hk, images, *document)
    assert found.exit_code == 1
    assert sentence in found.stderr


def test_another_size_of_the_image_is_refused(hk: Callable, images: Path) -> None:
    shape = result("keypointlabels", x=1, y=1) | {"original_width": 80, "original_height": 60}
    assert "annotated at 80x60 pixels, but it has 40x30" in read(hk, images, task(by(1, shape))).stderr
