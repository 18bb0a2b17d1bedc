"""What the golden set runs and how it looks at the products, as its maker did (README.md).

Everything goes through the command line, and through h5py, numpy and OpenCV for what it wrote. Names are those of shard
layout 1; ``Names`` translates them to what they are called today.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import shlex
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np

Given = dict[str, list[dict[str, Any]]]      # records by their ids
Run = Callable[[list[str], bytes], tuple[int, bytes]]      # arguments and stdin of a command: its exit code and stdout

SHARDS = (
    "plain", "weighed", "annotated", "pixels", "series-00000", "series-00001", "series-00002", "gzip", "shuffle",
    "contiguous",
)
# A record's keys that say where its parts lie: what differs between two copies of the same content.
PATHS = {"image", "map", "masks", "unknown", "dont_look", "weights", "annotator_maps"}
# What says how a file was written, and not what it holds; and what is told in words.
LEFT_OUT = {"sha256", "created_with", "file_bytes", "version", "sentence", "error", "seconds"}


@dataclass(frozen=True)
class Names:
    """What is called otherwise today, by the name that it had: commands, keys of records and JSON, pieces of text."""

    commands: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)

    def arguments(self, stage: str) -> list[str]:
        """The arguments of one stage of a pipeline."""
        first, *rest = shlex.split(stage)
        return [*self.commands.get(first, first).split(), *map(self.text, rest)]

    def text(self, text: str) -> str:
        for old, new in self.texts.items():
            text = text.replace(old, new)
        return text

    def listed(self, keys: str) -> str:
        return " ".join(sorted(self.keys.get(key, key) for key in keys.split()))

    def value(self, value: Any) -> Any:
        """A stored product, or the records of an input, in the names of today."""
        if isinstance(value, dict):
            return {
                self.text(self.keys.get(key, key)): self.listed(inner) if key == "=" else self.value(inner)
                for key, inner in value.items()
            }
        if isinstance(value, list):
            return [self.value(inner) for inner in value]
        return self.text(value) if isinstance(value, str) else value


# The cases: a pipeline in the folder `data`, whose products lie in `out`. Names with "sheet" are drawings for people.

_SPLIT = "--seed 3 --out out/parts"
# What the two commands did unasked when these outputs were stored.
_ALL_LESIONS = "--lesion MA --lesion HE --lesion EX --lesion SE --lesion OD"
_BUT_MA = "--lesion EX --lesion SE"
_DRAW = "--size 12 --missing pass --out out/m"

CASES: dict[str, str] = {
    # sources
    "cub": "cub CUB_200_2011",
    "cub train": "cub CUB_200_2011 --split train --parts",
    "cub bubbles": "cub CUB_200_2011 --bubbles tables/cub.csv --columns image=file,radius=r --origin 1",
    "cub frame": "cub CUB_200_2011 --bubbles tables/cub.csv --columns image=file,radius=r --frame 100x50",
    "cub gaze": "cub CUB_200_2011 --gaze tables/gaze1.txt --gaze tables/gaze2.txt",
    "cub 2010": "cub CUB_200_2010",
    "dogs": "dogs dogs --split train",
    "idrid": f"idrid IDRiD {_ALL_LESIONS}",
    "idrid grading": "idrid IDRiD --part grading --split train",
    "idrid binary": f"idrid IDRiD --binary {_ALL_LESIONS}",
    "folder": "folder photos",
    "folder masks": "folder photos --masks masks --unknown unknown --dont-look dont-look",
    "coco": "annotations formats/coco.json --images photos",
    "voc": "annotations formats/voc --images photos",
    "labelme": "annotations formats/labelme.json --images photos",
    "via": "annotations formats/via.json --images photos",
    "yolo": "annotations formats/yolo --images photos",
    "trimaps": "annotations formats/trimaps --images photos",
    "salicon": "annotations formats/salicon.json --images photos",
    "gaze": "annotations formats/gaze.txt --images photos",
    "table points": "annotations formats/points.csv --images photos --origin 1",
    "table boxes": "annotations formats/boxes.csv --images photos --columns image=file",
    "table bubbles": "annotations formats/bubbles.jsonl --images photos --frame 100x100",
    "webdataset": "webdataset tars/old.tar --out out/w",
    "join": "folder photos | join formats/points.csv",
    "join two": "folder photos | join formats/bubbles.jsonl | join formats/boxes.csv --columns image=file",
    # maps
    **{f"bubbles2map {name}": f"bubbles2map records.jsonl --bandwidth {name} --empty zeros {_DRAW}"
       for name in ("scott", "radius", "fixed", "cv", "3.5")},
    **{f"bubbles2map {name}": f"bubbles2map users.jsonl --bandwidth 3 --normalise {name} --equal-users {_DRAW}"
       for name in ("max", "minmax", "sum")},
    "bubbles2map none": f"bubbles2map faint.jsonl --bandwidth 3 --normalise none {_DRAW}",
    "bubbles2map annotators": "bubbles2map users.jsonl --per-annotator --size 9x7 --out out/m",
    "bubbles2map annotators h5": "bubbles2map users.jsonl --per-annotator --size 9x7 --out out/m.h5",
    "bubbles2map png": "bubbles2map users.jsonl --size 9x7 --format png --out out/m",
    "bubbles2map of points": "bubbles2map points.jsonl --bandwidth 4 --size 8 --out out/m",
    "cub bubbles2map": "cub CUB_200_2011 --bubbles tables/cub.csv --columns image=file,radius=r --split train"
                       " | bubbles2map --missing pass --out out/m | resize --size 14 --normalise max --missing pass"
                       " --out out/m14 | pack out/train.h5",
    **{f"points2map {name}": f"points2map records.jsonl --bandwidth {name} --empty pass {_DRAW}"
       for name in ("scott", "fixed", "cv", "4")},
    "points2map users": "points2map points.jsonl --bandwidth 4 --equal-users --per-annotator --size 8 --out out/m",
    **{f"boxes2map {name}": f"boxes2map records.jsonl --edge {name} {_DRAW}"
       for name in ("filled", "soft", "gaussian")},
    "boxes2map label": f"boxes2map records.jsonl --label head --label wing=0.5 --normalise max {_DRAW}",
    **{f"masks2map {name}": f"masks2map records.jsonl {_BUT_MA} --pooling {name} {_DRAW}" for name in ("mean", "max")},
    "masks2map lesions": f"masks2map records.jsonl --lesion EX --lesion SE=0.5 --lesion MA --normalise max {_DRAW}",
    "masks2map idrid": f"idrid IDRiD {_ALL_LESIONS} | masks2map {_BUT_MA} --lesion HE --size 6 --out out/m.h5",
    "masks2map voc": "annotations formats/voc --images photos | masks2map --size 6 --missing pass --out out/m",
    "masks2map coco": "annotations formats/coco.json --images photos | masks2map --size 6 --out out/m",
    "weights": f"masks2map records.jsonl {_BUT_MA} {_DRAW} | weights --missing pass --out out/w",
    "weights unknown": f"masks2map records.jsonl {_BUT_MA} {_DRAW} | weights --default unknown --above 0.1"
                       " --missing pass --out out/w",
    "weights resize": f"masks2map records.jsonl {_BUT_MA} {_DRAW} | weights --missing pass --out out/w.h5"
                      " | resize --size 5 --missing pass --out out/r",
    **{f"resize {size} {name}": f"resize weighed.jsonl --size {size} --normalise {name} --missing pass --out out/m"
       for size in ("5", "20", "4x13") for name in ("none", "max", "minmax", "sum")},
    "resize annotators": "resize annotated.jsonl --size 5 --out out/m",
    "resize h5": "resize annotated.jsonl --size 5 --out out/m.h5",
    "view crop": "view weighed.jsonl --crop 2,1,11,12 --out out/v",
    "view center-crop": "view weighed.jsonl --center-crop 1:1 --map-size 7 --out out/v",
    "view letterbox": "view weighed.jsonl --letterbox 1 --out out/v",
    "view jpeg": "view annotated.jsonl --letterbox 4:3 --jpeg 95 --out out/v",
    "view weights": f"view records.jsonl --letterbox 1 --out out/v | masks2map {_BUT_MA} --size 6 --missing pass"
                    " --out out/m | weights --missing pass --out out/w",
    "sample n": "sample 3 records.jsonl --seed 1",
    "sample share": "sample 0.5 records.jsonl",
    "sample class": "sample 1 records.jsonl --per-class",
    # shards
    "pack": "pack out/s.h5 weighed.jsonl",
    "pack annotators": "pack out/s.h5 annotated.jsonl",
    "pack series": "pack out/s.h5 weighed.jsonl --shard-size 3",
    "pack pixels": "pack out/s.h5 weighed.jsonl --store pixels --size 10x12",
    "pack classes": "pack out/s.h5 weighed.jsonl --classes tables/classes.txt --expect 8",
    "pack too few": "pack out/s.h5 weighed.jsonl --expect 9",
    "pack folder": "folder photos --masks masks | masks2map --size 6 --missing pass --out out/m | pack out/s.h5",
    "unpack": "unpack shards/weighed.h5",
    "unpack annotators": "unpack shards/annotated.h5",
    "unpack series": "unpack shards/series-{00000..00002}.h5",
    "unpack pattern": "unpack shards/series-*.h5",
    "unpack files": "unpack shards/weighed.h5 --out out/u",
    "unpack annotators files": "unpack shards/annotated.h5 --out out/u",
    "unpack pixels files": "unpack shards/pixels.h5 --out out/u",
    "unpack imagefolder": "unpack shards/weighed.h5 --to imagefolder --out out/u",
    "unpack imagefolder read": "unpack shards/plain.h5 --to imagefolder --out out/u | folder out/u/images",
    "unpack webdataset": "unpack shards/weighed.h5 --to webdataset --out out/u.tar",
    "unpack webdataset series": "unpack shards/plain.h5 --to webdataset --out out/u.tar --shard-size 5",
    "unpack resize": "unpack shards/weighed.h5 | resize --size 3 --missing pass --out out/m | pack out/s.h5",
    "merge": "merge out/all.h5 shards/series-*.h5",
    "merge series": "merge out/all.h5 shards/weighed.h5 --shard-size 4",
    "split shares": f"split shards/plain.h5 --shares train=0.5,test=0.5 {_SPLIT}",
    "split folds": f"split shards/weighed.h5 --folds 2 --group patient {_SPLIT}",
    "split unstratified": f"split shards/annotated.h5 --shares a=2/3,b=1/3 --no-stratify {_SPLIT}",
    "info": "info shards/plain.h5 shards/annotated.h5",
    "info full": "info --full shards/weighed.h5 shards/pixels.h5",
    "verify": "verify shards/plain.h5 shards/gzip.h5",
    "verify full": "verify --full shards/weighed.h5 shards/annotated.h5 shards/pixels.h5",
    "verify quick": "verify --quick shards/series-00000.h5",
    "verify damaged": "verify damaged.h5",
    # people
    "validate": "validate weighed.jsonl",
    "validate odd": "validate odd.jsonl --ids 2",
    "validate shard": "unpack shards/weighed.h5 | validate --ignore no-annotation",
    "ceiling": "ceiling annotated.jsonl",
    "show": "show records.jsonl --out out/sheet.png",
    "show shard": "unpack shards/annotated.h5 | show --map map --map annotator_maps.ann --plain --colour inferno"
                  " --pages --limit 4 --out out/sheet.png",
}

# These run a network, whose sums another processor rounds otherwise.
NETWORK_CASES: dict[str, str] = {
    **{f"{what} {run}": f"{line} trained/{run}" for run in ("run", "tuned") for what, line in {
        "eval": "eval shards/series-0000[01].h5 --metric top1 --metric mse --metric insertion --metric deletion --from",
        "predict": "unpack shards/plain.h5 | predict --out out/a --from",
    }.items()},
    "eval maps": "eval shards/series-0000[01].h5 --metric top1 --metric mse --use-maps --from trained/tuned",
    "eval gzip": "eval shards/gzip.h5 --metric mse --from trained/tuned",
    "eval fold": "eval shards/pixels.h5 --metric top1 --fold 2/2 --from trained/run",
    "predict best file": "unpack shards/gzip.h5 | predict --from trained/tuned/best.pt",
    "predict show": "unpack shards/plain.h5 | predict --from trained/run --out out/a.h5"
                    " | show --map map --map attention --caption id --caption confidence --out out/sheet.png",
}
# So do these, which learn: what the golden runs themselves were made with.
_SHAPE = "--epochs 2 --batch-size 4 --lr 0.05 --augment mirror --device cpu"
TRAINING: dict[str, str] = {
    "run": "train shards/series-00000.h5 shards/series-00001.h5 --arch resnet8+abn --stem small --width 2"
           f" --image-size 16 {_SHAPE} --out",
    "tuned": f"finetune shards/series-{{00000..00001}}.h5 --from trained/run --gamma 1 {_SHAPE} --out",
}


def run_case(pipeline: str, run: Run, names: Names) -> dict[str, Any]:
    """Run a pipeline in the current folder; its exit code, what it printed, and the files in ``out``."""
    code, stdout = 0, b""
    for stage in pipeline.split(" | "):
        code, stdout = run(names.arguments(stage), stdout)
    given = records_given()
    printed = [since(given, plain(json.loads(line))) for line in stdout.splitlines()]
    files = {str(path): look(path.name, path.read_bytes(), names, given) for path in products(Path("out"))}
    return {"exit_code": code, "printed": printed, "files": files}


def records_given() -> Given:
    """The records of the input files by their ids."""
    given: Given = {}
    for path in sorted(set(Path().glob("*.jsonl")) - {Path("odd.jsonl")}):
        for record in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            given.setdefault(record["id"], []).append(record)
    return given


def since(given: Given, record: Any) -> Any:
    """A record whose keys that are as in an input file are only named, under =; to store what they hold once."""
    if not isinstance(record, dict) or "id" not in record:
        return record
    before = given.get(record["id"], [])
    same = [key for key in sorted(record) if any(old.get(key, old) == record[key] for old in before)]
    return {"id": record["id"], "=": " ".join(key for key in same if key != "id")} | {
        key: value for key, value in record.items() if key not in same
    }


def damage() -> None:
    """Write damaged.h5, a shard with a flipped bit: in the data, not in the structure."""
    damaged = bytearray(Path("shards/plain.h5").read_bytes())
    damaged[damaged.index(b"\x89PNG") + 40] ^= 4
    Path("damaged.h5").write_bytes(damaged)


def products(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def plain(value: Any) -> Any:
    """JSON without what LEFT_OUT names."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items() if key not in LEFT_OUT}
    return [plain(inner) for inner in value] if isinstance(value, list) else value


# what a file holds


def look(name: str, data: bytes, names: Names, given: Given) -> Any:
    """What a product holds, so that another processor's or encoder's rounding does not matter."""
    suffix = "sheet" if "sheet" in name else name.rpartition(".")[2]
    if name == "run.json":      # of the time and the machine
        return "there"
    if suffix == "h5":
        return look_at_h5(data, names, given)
    if suffix == "tar":
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            parts = {item.name: tar.extractfile(item).read() for item in tar if item.isfile()}
        return {part: look(part, inner, names, given) for part, inner in parts.items()}
    if suffix in ("json", "jsonl"):
        return [since(given, plain(json.loads(text))) for text in ([data] if suffix == "json" else data.splitlines())]
    return LOOKS.get(suffix, lambda data: {"sha256": sha256(data)})(data)


def moments(values: np.ndarray) -> list[float]:
    """Height, width, mean, maximum, sum of squares, and centre down and across: a mirrored map has another."""
    values = values.astype(np.float64)
    down, across = (np.arange(1, side + 1) / side for side in values.shape)
    seen = values.mean(), values.max(), (values**2).sum(), (values * down[:, None]).sum(), (values * across).sum()
    return [*values.shape, *(float(f"{number:.7g}") for number in seen)]


def picture(data: bytes) -> np.ndarray:
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED))


def look_at_picture(data: bytes) -> Any:
    pixels = picture(data)
    if pixels.dtype == np.uint16:
        return moments(pixels / 65535)
    return {"shape": list(pixels.shape), "sum": int(pixels.sum(dtype=np.int64)), "first": pixels[0, 0].tolist()}


def look_at_photograph(data: bytes) -> Any:
    """To the byte where it is one of the input files, else its size: encoders differ."""
    same = any(path.read_bytes() == data for path in Path("photos").rglob("*.jpg"))
    return {"sha256": sha256(data)} if same else {"shape": list(picture(data).shape)}


LOOKS: dict[str, Callable[[bytes], Any]] = {
    "sheet": lambda data: {"shape": list(picture(data).shape)},
    "npy": lambda data: moments(np.load(io.BytesIO(data))),
    "png": look_at_picture,
    "jpg": look_at_photograph,
    "cls": bytes.decode,
    "pt": lambda data: "there",       # a checkpoint's bytes are not the same on each machine
    "safetensors": lambda data: "there",
    "toml": lambda data: "there",
}


def look_at_h5(data: bytes, names: Names, given: Given) -> Any:
    with h5py.File(io.BytesIO(data)) as file:
        if file.attrs["format"] in ("hkmap-shard", b"hkmap-shard"):
            records = shard_records(file, names, exact=False)
            records = [item | {"record": since(given, item["record"])} for item in records]
            return {"classes": json.loads(file.attrs["classes"]), "records": records}
        ids = file["ids/bytes"][()].tobytes()
        cuts = file["ids/offsets"][()].tolist()
        names_of_rows = [ids[begin:end].decode() for begin, end in pairwise(cuts)]
        return {name: moments(row) for name, row in zip(names_of_rows, file["maps"], strict=True)}


def describe_shard(path: Path, names: Names) -> dict[str, Any]:
    """What a shard holds, to the bit, paths aside."""
    with h5py.File(path) as file:
        records = shard_records(file, names, exact=True)
        given = records_given()
        records = [item | {"record": since(given, item["record"])} for item in records]
        return {"classes": json.loads(file.attrs["classes"]), "records": records}


def shard_records(file: h5py.File, names: Names, *, exact: bool) -> list[dict[str, Any]]:
    seen = (lambda values: sha256(np.asarray(values, "<f4").tobytes())) if exact else moments
    texts, ids = pieces(file["records"]), pieces(file["ids"])
    images = pieces(file["images"]) if "bytes" in file["images"] else [row.tobytes() for row in file["images/pixels"]]
    known = names.keys.get("weights", "weights")
    weights = file.get(known)
    annotators = annotators_of(file, len(ids))
    paths = PATHS | {names.keys.get(key, key) for key in PATHS}
    records = []
    for index, (text, identifier, image) in enumerate(zip(texts, ids, images, strict=True)):
        mapped = bool(file["has_map"][index])
        record = {key: value for key, value in json.loads(text).items() if key not in paths}
        exactly = exact or "bytes" in file["images"]      # pixels were resized, by whatever processor
        records.append({
            "id": identifier.decode(), "label": int(file["labels"][index]), "record": record,
            "image": sha256(image) if exactly else round(float(np.frombuffer(image, np.uint8).mean())),
            "map": seen(file["maps"][index]) if mapped else None,
            known: seen(weights[index]) if mapped and weights is not None else None,
            "annotators": {name: seen(values) for name, values in annotators[index].items()},
        })
    return records


def annotators_of(file: h5py.File, count: int) -> list[dict[str, np.ndarray]]:
    if "annotator_maps" not in file:
        return [{} for _ in range(count)]
    group = file["annotator_maps"]
    maps, names, cuts = group["maps"][()], pieces(group["names"]), group["offsets"][()].tolist()
    return [
        {names[row].decode(): maps[row] for row in range(begin, end)}
        for begin, end in pairwise(cuts)
    ]


def pieces(group: h5py.Group) -> list[bytes]:
    data, cuts = group["bytes"][()].tobytes(), group["offsets"][()].tolist()
    return [data[begin:end] for begin, end in pairwise(cuts)]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# comparing


def differences(got: Any, expected: Any, *, within: float, place: str = "") -> list[str]:
    """Where two products differ: numbers that are no whole ones by more than ``within``, all else at all."""
    if isinstance(got, dict) and isinstance(expected, dict):
        found = [f"{place}: {key} is {'new' if key in got else 'missing'}" for key in sorted(set(got) ^ set(expected))]
        both = [key for key in expected if key in got]
        return found + [
            one for key in both for one in differences(got[key], expected[key], within=within, place=f"{place}/{key}")
        ]
    if isinstance(got, list | tuple) and isinstance(expected, list):
        found = [f"{place}: {len(got)} items, expected {len(expected)}"] if len(got) != len(expected) else []
        return found + [
            one for index, pair in enumerate(zip(got, expected, strict=False))
            for one in differences(*pair, within=within, place=f"{place}/{index}")
        ]
    if isinstance(got, float) or isinstance(expected, float):
        near = isinstance(got, int | float) and isinstance(expected, int | float) and math.isclose(
            got, expected, rel_tol=within, abs_tol=within
        )
        return [] if near else [f"{place}: {got}, expected {expected}"]
    return [] if got == expected else [f"{place}: {got!r}, expected {expected!r}"]
