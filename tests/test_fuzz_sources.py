"""Whatever a file of annotations holds: records, or an HkmapError; never another exception, a hang or a flood.

Two kinds of input for every reader: a valid file with bytes changed, and documents of the right shape with wrong values
in them. 100 of each in the ordinary run, 10,000 in `make soak`. A .mat file is cut short, and no more: it is read by
scipy, whose C code trusts a whole one.
"""

from __future__ import annotations

import io
import json
import logging
import random
import resource
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from functools import cache, reduce
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from hkmap.errors import HkmapError
from hkmap.files.images import decode_image, image_size, read_levels, read_mask
from hkmap.files.masks import decode_rle, read_referred_mask, read_variable
from hkmap.records import Rejects, dump_record, masks_of
from hkmap.sources.annotations import annotation_records, joined_records
from hkmap.sources.cub import cub_records
from hkmap.sources.documents import read_json, read_xml
from hkmap.sources.dogs import dogs_records
from hkmap.sources.folder import folder_records
from hkmap.sources.formats import OURS, recognised
from hkmap.sources.idrid import idrid_records

pytestmark = pytest.mark.hypothesis      # which `make fuzz` asks for
EXAMPLES = pytest.mark.parametrize("examples", [100, pytest.param(10_000, marks=pytest.mark.soak)])
MEMORY = 6 << 30        # above what is in use: a header that promises gigabytes must not get them

FORMATS = {known.name: known for known in OURS}


# what is given: valid files

IMAGES = [{"id": 1, "file_name": "1.png", "width": 8, "height": 6}, {"id": 2, "file_name": "2.png"}]
COCO = {
    "images": IMAGES, "categories": [{"id": 3, "name": "bear"}],
    "annotations": [
        {"image_id": 1, "category_id": 3, "bbox": [1, 1, 3, 3], "segmentation": [[1, 1, 3, 1, 3, 3]], "iscrowd": 0},
        {"image_id": 1, "category_id": 3, "iscrowd": 1, "segmentation": {"size": [6, 8], "counts": [40, 8]}},
        {"image_id": "2", "category_id": "3", "segmentation": {"size": [6, 8], "counts": "X18"}},
        {"image_id": 2, "category_id": 3, "bbox": [], "segmentation": []},
    ],
}
SALICON = {"images": IMAGES, "annotations": [{"image_id": 1, "worker_id": 4, "fixations": [[1, 2], [6, 8]]}]}
DOT = (     # a grey PNG of one pixel
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgBAAAAwACS/Xd6gAAAABJRU5ErkJggg=="
)
LABELME = {
    "imagePath": "1.png", "imageWidth": 8, "imageHeight": 6, "imageData": None, "flags": {"a": True}, "shapes": [
        {"label": 7, "shape_type": "mask", "points": [[1, 1], [1, 1]], "mask": DOT},
        {"label": "e", "shape_type": "rotation", "points": [[1, 1], [3, 1], [3, 3], [1, 3]]},
        {"label": "a", "shape_type": "polygon", "points": [[1, 1], [3, 1], [3, 3]]},
        {"label": "b", "shape_type": "circle", "points": [[1, 1], [3, 1]]},
        {"label": "c", "shape_type": "rectangle", "points": [[1, 1], [3, 3]]},
        {"label": "d", "shape_type": "linestrip", "points": [[1, 1], [3, 3]]},
    ],
}
VIA = {"1.png9": {"filename": "1.png", "size": 9, "regions": [
    {"shape_attributes": {"name": "rect", "x": 1, "y": 1, "width": 2, "height": 3}, "region_attributes": {"name": "a"}},
    {"shape_attributes": {"name": "ellipse", "cx": 1, "cy": 1, "rx": 2, "ry": 3, "theta": 1}, "region_attributes": {}},
    {"shape_attributes": {"name": "polygon", "all_points_x": [1, 2, 2], "all_points_y": [1, 1, 3]}},
    {"shape_attributes": {"name": "circle", "cx": 3, "cy": 3, "r": 2}},
]}}
VIA_3 = {
    "project": {}, "attribute": {"1": {"aname": "class", "options": {"0": "fin"}}}, "view": {"1": {"fid_list": ["1"]}},
    "file": {"1": {"fname": "1.png", "type": 2}}, "metadata": {
        f"{number}": {"vid": "1", "z": [], "xy": xy, "av": {"1": "0"}}
        for number, xy in enumerate(([2, 1, 1, 2, 3], [7, 1, 1, 2, 1, 2, 3], []))
    },
}
LABEL_STUDIO = [{"data": {"image": "/data/upload/1/abcd1234-1.png"}, "annotations": [{"completed_by": 1, "result": [
    {"id": "a", "type": "rectanglelabels", "original_width": 8, "original_height": 6,
     "value": {"x": 1, "y": 2, "width": 30, "height": 40, "rotation": 0, "rectanglelabels": ["a"]}},
    {"id": "b", "type": "brushlabels", "original_width": 8, "original_height": 6,
     "value": {"brushlabels": ["a"],
               "rle": [0, 0, 0, 192, 57, 60, 253, 75, 0, 161, 127, 244, 76, 2, 133, 255, 212, 112, 0]}},
    {"id": "c", "type": "choices", "value": {"choices": ["cat"]}},
]}]}]
CVAT = (
    b'<?xml version="1.0"?><annotations><meta><job><assignee>ann</assignee></job></meta><image name="1.png" width="8" '
    b'height="6"><box label="a" xtl="1" ytl="1" xbr="3" ybr="4.5" rotation="30"/><polygon label="b" points="1,1;3,1;3,'
    b'3"/><mask label="c" rle="1, 2, 1" left="1" top="1" width="2" height="2"/><tag label="cat"/></image></annotations>'
)
VOC = (
    b"<annotation><filename>1.png</filename><size><width>8</width><height>6</height></size><object><name>dog</name>"
    b"<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>5</xmax><ymax>6.5</ymax></bndbox></object></annotation>"
)
TEXTS = {
    "gaze": b"1,8,6,1,2,100,3,4,200\n2,8,6\n1,8,6,2,2,50\n", "yolo": b"0 0.5 0.5 0.25 0.5\n1 0 0 0.5 0 0.5 1\n",
    "table": b"image,x,y,radius,user,weight\n1,2,3,1.5,ann,2\n2.png,4,4,1,ben,1\n", "cvat": CVAT,
    "via csv": (
        b"filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes\n1.png,9,"
        b'"{""class"":""cat""}",1,0,"{""name"":""circle"",""cx"":3,""cy"":2,""r"":1}","{""name"":""a""}"\n'
    ),
    "table corners": b"filename,width,height,class,xmin,ymin,xmax,ymax\n1.png,8,6,cat,1,2,3,4\n2.png,8,6,dog,1,2,3,4\n",
}
DOCUMENTS: dict[str, Any] = {"coco": COCO, "salicon": SALICON, "labelme": LABELME, "via": VIA, "via 3": VIA_3,
                             "label-studio": LABEL_STUDIO}


def trimap() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.tile(np.array([1, 2, 3, 3], np.uint8), (6, 2))).save(buffer, "PNG")
    return buffer.getvalue()


@cache
def mat_file(compressed: bool) -> bytes:
    buffer = io.BytesIO()
    cells = np.empty((2, 1), object)
    cells[:, 0] = ["a/1.png", "a/2.png"]
    scipy.io.savemat(buffer, {
        "bbox": {"left": 1.0, "top": 2, "right": 3, "bottom": 4}, "seg": np.eye(6, 8, dtype=np.uint8),
        "file_list": cells, "labels": np.array([[1], [2]]),
    }, do_compression=compressed)
    return buffer.getvalue()


VALID: dict[str, bytes] = {
    **{name: json.dumps(document).encode() for name, document in DOCUMENTS.items()}, **TEXTS, "voc": VOC,
    "voc utf-16": f'<?xml version="1.0" encoding="UTF-16"?>{VOC.decode()}'.encode("utf-16"), "trimaps": trimap(),
}
SUFFIXES = {
    "voc": ".xml", "voc utf-16": ".xml", "table corners": ".csv", "cvat": ".xml", "via csv": ".csv",
    "yolo": ".txt", "gaze": ".txt", "trimaps": ".png", "table": ".csv",
}


# what is made of it


def mutate(data: bytes, dice: random.Random) -> bytes:
    """Change some bytes, or take some out, double some, or put in what means something to a parser."""
    changed = bytearray(data)
    for _ in range(dice.choice([1, 1, 2, 5])):
        place = dice.randrange(len(changed) + 1)
        kind = dice.randrange(6)
        if kind == 0 and place < len(changed):
            changed[place] ^= 1 << dice.randrange(8)
        elif kind == 1 and place < len(changed):
            changed[place] = dice.randrange(256)
        elif kind == 2:
            changed[place:place] = dice.choice(TOKENS)
        elif kind == 3:
            del changed[place : place + dice.choice([1, 4, 40])]
        elif kind == 4:
            other = dice.randrange(len(changed) + 1)
            changed[place:place] = changed[other : other + dice.choice([4, 40, 400])]
        elif kind == 5:
            changed[place : place + 4] = struct.pack(dice.choice("<>") + "I", dice.choice([0, 1, 2**31 - 1, 2**32 - 1]))
    return bytes(changed)


def cut(data: bytes, dice: random.Random) -> bytes:
    return data[: dice.randrange(len(data))]


TOKENS = [
    b"null", b"{}", b"[]", b"[[", b'"', b"-", b"1e999", b"1" * 400, b"9" * 5000, b"NaN", b"\\ud800", b"\0", b"\xff",
    b",", b"\n", b"<a>", b"</", b"&b;", b"<!DOCTYPE a>", b"#", b"../", b"0.5 ", b"true", b"[" * 5000, b"<a>" * 5000,
    *(b"[" * depth + b"]" * depth for depth in (200, 500, 900)),
]
NESTED: Any = reduce(lambda inner, _: [inner], range(500), 1)
SCALARS = st.sampled_from([
    None, True, 0, -1, 1, 2, 3, 0.5, 1e300, -1e300, 10**400, "", "a", "1", "1.png", "\ud800", "\0", "x" * 300, [], {},
    [1], NESTED, [[1, 2]], [[]], {"a": 1}, [0, 0, 1, 1, 2, 2], [[0, 0, 1, 1, 2, 2]], {"size": [6, 8], "counts": "X18"},
    {"size": [60000, 60000], "counts": [1]}, {"size": [6, 8], "counts": [48]}, {"size": [6, 8], "counts": "zzzz"},
]) | st.recursive(
    st.none() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2), max_leaves=5,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every value inside a document, itself included."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], by: Any) -> Any:
    if not path:
        return by
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(copy[path[0]], path[1:], by)
    return copy


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    for name in ("1.png", "2.png"):
        (folder / "images").mkdir(exist_ok=True)
        Image.new("RGB", (8, 6)).save(folder / "images" / name)
    return folder


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("hkmap"), "disabled", True)       # warnings of every skipped record


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    """What asks for too much gets a MemoryError, which is no HkmapError."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    if sys.platform == "linux":
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def drained(function: Callable[[], Any]) -> list[Any] | None:
    """All that comes, written as lines; None where the user is told what is wrong."""
    try:
        return [(record, dump_record(record)) for record in function()]
    except HkmapError:
        return None


def try_reader(name: str, path: Path, images: Path) -> None:
    known = FORMATS[name.split()[0]]
    known.recognise(path)
    drained(lambda: [{"format": recognised(path).name}])
    for skip in (False, True):
        rejects = Rejects(skip=skip, max_errors=99)
        drained(lambda rejects=rejects: annotation_records(path, images, source=known, rejects=rejects))
    stream = [{"id": "1", "image": str(images / "1.png")}, {"id": "2", "image": "2.png", "size": [8, 6]}]
    found = drained(lambda: joined_records(stream, path, source=known, rejects=Rejects()))
    for record, _ in found or []:
        for key in ("masks", "unknown"):
            for reference in masks_of(record, key).values() if record.get(key) else []:
                drained(lambda reference=reference: [{"shape": list(read_referred_mask(reference).shape)}])


def try_bytes(name: str, data: bytes, scratch: Path) -> None:
    path = scratch / f"{name}{SUFFIXES.get(name, '.json')}"
    path.write_bytes(data)
    try_reader(name, path, scratch / "images")


SEEDS = st.integers(0, 2**63)


# the readers of formats


def fuzz(examples: int, check: Callable[..., None], *strategies: st.SearchStrategy[Any]) -> None:
    """Call ``check`` with so many draws of the strategies."""
    settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))(given(*strategies)(check))()


@pytest.mark.parametrize("name", list(VALID))
@EXAMPLES
def test_a_damaged_file_is_records_or_an_error(name: str, examples: int, scratch: Path) -> None:
    def check(seed: int) -> None:
        try_bytes(name, mutate(VALID[name], random.Random(seed)), scratch)

    fuzz(examples, check, SEEDS)


@pytest.mark.parametrize("name", list(DOCUMENTS))
@EXAMPLES
def test_a_document_with_wrong_values_is_records_or_an_error(name: str, examples: int, scratch: Path) -> None:
    def check(seed: int, values: list[Any]) -> None:
        document, dice = DOCUMENTS[name], random.Random(seed)
        for value in values:
            document = replaced(document, dice.choice(list(places(document))), value)
        try_bytes(name, json.dumps(document).encode(), scratch)

    fuzz(examples, check, SEEDS, st.lists(SCALARS, min_size=1, max_size=3))


@pytest.mark.parametrize("name", list(VALID))
def test_the_files_that_are_damaged_here_are_valid(name: str, scratch: Path) -> None:
    path = scratch / f"whole-{name}{SUFFIXES.get(name, '.json')}"
    path.write_bytes(VALID[name])
    stem = scratch / "images" / "1.png"
    if name in ("yolo", "trimaps"):       # these are called after their image
        path = path.rename(scratch / f"1{path.suffix}")
    assert [known.name for known in OURS if known.recognise(path)] == name.split()[:1]
    stream = [{"id": "1", "image": str(stem)}, {"id": "2", "image": "2.png", "size": [8, 6]}]
    known = FORMATS[name.split()[0]]
    assert drained(lambda: joined_records(stream, path, source=known, rejects=Rejects())) is not None


YAML = b"path: x\nnc: 2\nkpt_shape: [1, 3]\nnames:\n  0: 'a'\n  1: &b \"b\"\nmore: [*b, {c: 1.5}]\n"


@EXAMPLES
def test_a_damaged_data_yaml_is_records_or_an_error(examples: int, scratch: Path) -> None:
    (scratch / "pose").mkdir(exist_ok=True)
    (scratch / "pose/1.txt").write_text("0 0.5 0.5 0.25 0.5 0.5 0.5 2\n")

    def check(seed: int) -> None:
        (scratch / "pose/data.yaml").write_bytes(mutate(YAML, random.Random(seed)) if seed else YAML)
        found = drained(lambda: FORMATS["yolo"].read(scratch / "pose", Rejects()))
        assert found or seed

    check(0)
    fuzz(examples, check, SEEDS)


# the readers of data sets, and what lies below all of them


def data_set(root: Path, name: str) -> tuple[dict[str, bytes], Callable[[], Any]]:
    """Return the files of a small data set beside its images, and its reader."""
    rejects = Rejects(skip=True, max_errors=99)
    if name == "cub2011":
        files = {
            "images.txt": b"1 a/1.png\n2 a/2.png\n", "classes.txt": b"1 a\n", "image_class_labels.txt": b"1 1\n2 1\n",
            "train_test_split.txt": b"1 1\n2 0\n", "bounding_boxes.txt": b"1 1 1 3 3\n", "parts/parts.txt": b"1 eye\n",
            "parts/part_locs.txt": b"1 1 2 3 1\n",
        }
        return files, lambda: cub_records(root, parts=True, rejects=rejects)
    if name == "cub2010":
        lists = {"lists/train.txt": b"a/1.png\n", "lists/test.txt": b"a/2.png\n"}
        return lists | {"annotations-mat/a/1.mat": mat_file(False)}, lambda: cub_records(root, rejects=rejects)
    if name == "dogs":
        files = {"train_list.mat": mat_file(True), "test_list.mat": mat_file(False)}
        files |= {"Annotation/a/1": VOC, "Annotation/a/2": VOC}
        return files, lambda: dogs_records(root, rejects=rejects)
    if name == "idrid":
        table = b"Image name,Retinopathy grade,Risk of macular edema \n1,2,0\n2,0,1\n"
        folder = "B. Disease Grading/2. Groundtruths/a. IDRiD_Disease Grading_Training Labels.csv"
        return {folder: table}, lambda: idrid_records(root, part="grading", split="train", rejects=rejects)
    return {"images/a/1.png": trimap()}, lambda: folder_records(root, rejects=rejects)


IMAGE_FOLDERS = {
    "dogs": "Images/a", "idrid": "B. Disease Grading/1. Original Images/a. Training Set",
}


def check_data_set(name: str, scratch: Path, seed: int) -> None:
    root, dice = scratch / name, random.Random(seed)
    files, reader = data_set(root, name)
    damaged = dice.choice([name for name in files if not name.endswith(".mat")])      # scipy crashes on one in 80
    for image in ("1.png", "2.png"):
        (root / IMAGE_FOLDERS.get(name, "images/a")).mkdir(parents=True, exist_ok=True)
        (root / IMAGE_FOLDERS.get(name, "images/a") / image).write_bytes((scratch / "images" / image).read_bytes())
    for file, data in files.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        damage = cut if file.endswith(".mat") else mutate
        (root / file).write_bytes(damage(data, dice) if file == damaged and seed else data)
    found = drained(reader)
    assert found or seed, "the whole data set gives records"


DATA_SETS = ["cub2011", "cub2010", "dogs", "idrid", "folder"]


@pytest.mark.parametrize("name", DATA_SETS)
@EXAMPLES
def test_a_damaged_data_set_is_records_or_an_error(name: str, examples: int, scratch: Path) -> None:
    def check(seed: int) -> None:
        check_data_set(name, scratch, seed)

    fuzz(examples, check, SEEDS)


@pytest.mark.parametrize("name", DATA_SETS)
def test_the_data_sets_that_are_damaged_here_are_valid(name: str, scratch: Path) -> None:
    check_data_set(name, scratch, 0)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_mat_file_that_is_cut_short_is_read_or_an_error(scratch: Path, compressed: bool) -> None:
    data, last = mat_file(compressed), "labels"
    for length in range(0, len(data), 17):
        (scratch / "x.mat").write_bytes(data[:length])
        for name in ("bbox", "seg", "file_list"):
            drained(lambda name=name: [{"found": str(read_variable(scratch / "x.mat", name))[:99]}])
        assert drained(lambda: [{"found": str(read_variable(scratch / "x.mat", last))}]) is None


def test_run_lengths_are_a_mask_or_an_error() -> None:
    def check(size: Any, counts: Any) -> None:
        drained(lambda: [{"shape": list(decode_rle({"size": size, "counts": counts}).shape)}])

    sizes, texts = st.lists(st.integers(1, 400), min_size=2, max_size=2), st.text(st.characters(max_codepoint=120))
    fuzz(100, check, sizes | SCALARS, texts | SCALARS)


# floods


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [body, b"IDAT" + zlib.compress(bytes(99)), b"IEND"]
    chunks = (struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_an_image_that_promises_too_much_is_refused_by_every_reader(scratch: Path) -> None:
    images = scratch / "bombs"
    images.mkdir()
    data = png_header(60_000, 60_000)
    (images / "1.png").write_bytes(data)
    for function in (image_size, read_mask, read_levels, lambda path: decode_image(path.read_bytes(), str(path))):
        with pytest.raises(HkmapError, match=r"pixels, expected at most 268,435,456 in all; scale it down"):
            function(images / "1.png")
    (scratch / "x.csv").write_text("image,x,y\n1,2,3\n")
    with pytest.raises(HkmapError, match="expected at most 268,435,456"):
        list(annotation_records(scratch / "x.csv", images, source=FORMATS["table"], rejects=Rejects()))
    with pytest.raises(HkmapError, match="expected at most 268,435,456"):
        list(folder_records(images, rejects=Rejects()))


def test_nested_documents_end_in_a_sentence(scratch: Path) -> None:
    path, depth = scratch / "deep", 100_000
    for opening, closing in ((b"[", b"]"), (b'{"images":', b"}")):
        path.write_bytes(opening * depth + b"1" + closing * depth)
        with pytest.raises(HkmapError, match="deep: nested too deeply"):
            read_json(path)
    path.write_bytes(b"<a>" * depth + b"</a>" * depth)
    drained(lambda: [{"tag": read_xml(path).tag}])


def test_entities_are_never_expanded(scratch: Path) -> None:
    names = [f"e{number}" for number in range(30)]
    lines = [f'<!ENTITY {name} "{f"&{before};" * 10}">' for before, name in pairwise(names)]
    text = f'<!DOCTYPE a [<!ENTITY e0 "lol">{"".join(lines)}]><annotation>&{names[-1]};</annotation>'
    for encoding in ("utf-8", "utf-16"):
        (scratch / "lol.xml").write_bytes(text.encode(encoding))
        with pytest.raises(HkmapError, match="it declares a DOCTYPE"):
            read_xml(scratch / "lol.xml")
