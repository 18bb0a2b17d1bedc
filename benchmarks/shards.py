"""Time reading and writing shards against decoding and copying alone, and against other programs; print JSON.

    OMP_NUM_THREADS=1 OPENCV_FOR_THREADS_NUM=1 python benchmarks/shards.py [--quick]

Programs that are compared take turns in one run, in one process, over files in the system's page cache. Each figure is
a median, with the minimum beside it, which other programs on the machine disturb least; ratios are of medians, and
`ratio_of_minima` stands beside them. HKMAP_DATA names a folder of real data, whose cub10 then gives the JPEGs;
otherwise they are generated. --quick uses sizes so small that the figures mean nothing: it shows that everything runs.
"""

from __future__ import annotations

import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import h5py
import numpy as np
from maps import Answer, judged, over_floor, over_peer, shown
from timing import Seconds, seconds_of

from hkmap.shards.layout import Sample, ShardBuilder
from hkmap.shards.loader import ShardLoader, Shares, SizedReader
from hkmap.shards.reader import ShardReader
from hkmap.shards.sequence import ShardSequence
from hkmap.shards.writer import Ready, ShardWriter, WriterOptions, ready_sample
from hkmap.stream.unpacking import samples_of, write_tars

Read = tuple[Any, Any, int]     # an image, a map, a label

HERE = Path(__file__).resolve().parent
SIDE = 224


class Scale(NamedTuple):
    """How much is done: a real run, or only enough to show that it works."""

    images: int             # of one shard
    turns: int
    many: tuple[int, int]   # records, of the two runs whose memory is compared


EARNEST, QUICK = Scale(1000, 7, (10_000, 100_000)), Scale(8, 1, (20, 40))


def main(arguments: list[str]) -> None:
    scale = QUICK if "--quick" in arguments else EARNEST
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory(prefix="shards.", dir=os.environ.get("TMPDIR")) as name:
        folder = Path(name)
        real = sorted(Path(os.environ.get("HKMAP_DATA", "nowhere")).glob("cub10/**/*.jpg"))[: scale.images]
        found = [path.read_bytes() for path in real] or list(generated(min(scale.images, 200)))
        large = [found[number % len(found)] for number in range(scale.images)]
        small = [shrunk(found[number % len(found)]) for number in range(scale.images)]
        answers = {
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, numpy "
                       f"{np.__version__}, OpenCV {cv2.__version__}, h5py {h5py.__version__}",
            "sizes": "quick: the figures mean nothing" if scale is QUICK else "full",
            "jpegs": f"{len(found)} {'of CUB' if real else 'generated'}, as they are and shrunk to {SIDE}x{SIDE} "
                     f"({sum(map(len, small)) // len(small)} bytes); {scale.images} a shard, a 14x14 map each",
            "reading_224": reading(small, folder, scale, judge=True),
            "reading_large": reading(large, folder, scale, judge=False),
            "pixels": pixels(small, folder, scale),
            "threads": {"224": threads(small, folder, scale), "large": threads(large, folder, scale)},
            "writing": writing(large, folder, scale),
            "memory": memory(small[0], folder, scale),
        }
    print(json.dumps(answers, indent=2))


def generated(count: int) -> Iterator[bytes]:
    """Yield JPEGs of 500x375: blurred noise and shapes."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        image = cv2.GaussianBlur(rng.integers(0, 256, (375, 500, 3), dtype=np.uint8), (0, 0), 2)
        for x, y, radius in rng.integers((0, 0, 5), (500, 375, 80), (12, 3)).tolist():
            cv2.circle(image, (x, y), radius, rng.integers(0, 256, 3).tolist(), -1)
        yield jpeg(image)


def jpeg(image: Any) -> bytes:
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()


def shrunk(data: bytes) -> bytes:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return jpeg(cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA))


# Reading


def decode(data: Any) -> Any:
    """Decode, which everybody who reads JPEGs with OpenCV must do."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)


def reading(images: list[bytes], folder: Path, scale: Scale, *, judge: bool) -> Answer:
    """Time one thread that reads image, map and label of every record, in order, from files with the same content."""
    shard, tar, vlen = folder / "a.h5", folder / "a.tar", folder / "vlen.h5"
    write_shard(shard, list(made_samples(images)), WriterOptions())
    write_tars(samples_of([shard]), tar, shard_size=None, overwrite=False)
    write_vlen(vlen, list(made_samples(images)))
    found = seconds_of({
        "ours": lambda: consume(read_shard(ShardReader(shard))),
        "floor": lambda: [decode(data) is None for data in images],
        "webdataset": lambda: consume(read_tar(tar)),
        "vlen": lambda: consume(read_vlen(vlen)),
    }, scale.turns)
    for path in (shard, tar, vlen):
        path.unlink()
    each = {name: per_image(seconds, len(images)) for name, seconds in found.items()}
    answers = {
        "over_decoding": over_floor({"ours": each["ours"], "floor": each["floor"]}, 1.25),
        "over_webdataset": over_peer({"ours": each["ours"], "peer": each["webdataset"]}, 1.3),
        "over_vlen": over_peer({"ours": each["ours"], "peer": each["vlen"]}, 1.3),
    }
    for name in () if judge else ("over_webdataset", "over_vlen"):      # decoding is nearly all: no target
        del answers[name]["target"], answers[name]["met"]
    return answers


def read_shard(reader: ShardReader) -> Iterator[Read]:
    for index in range(len(reader)):
        sample = reader.read_bare(index)
        yield sample.image("image"), sample.map, sample.label


def read_tar(path: Path) -> Iterator[Read]:
    import webdataset

    for sample in webdataset.WebDataset(str(path), shardshuffle=False):
        yield decode(sample["jpg"]), np.load(io.BytesIO(sample["map.npy"])), int(sample["cls"])


def read_vlen(path: Path) -> Iterator[Read]:
    """Read images from rows of variable length, which is what comes to mind first."""
    with h5py.File(path, "r") as file:
        for index in range(len(file["labels"])):
            yield decode(file["images"][index]), file["maps"][index], int(file["labels"][index])


def consume(found: Iterator[Read]) -> None:
    for image, values, label in found:
        assert image.dtype == np.uint8
        assert values.shape == (14, 14)
        assert label >= 0


def made_samples(images: list[bytes]) -> Iterator[Sample]:
    rng = np.random.default_rng(0)
    for number, image in enumerate(images):
        places = rng.uniform(0, SIDE, (30, 2)).round(1).tolist()
        bubbles = [{"x": x, "y": y, "radius": 12.5, "user": "3"} for x, y in places]
        record = {"id": f"{number:06d}", "image": "x.jpg", "label": number % 10, "bubbles": bubbles}
        yield Sample(record, image, rng.random((14, 14), np.float32), None, number % 10)


def write_shard(path: Path, samples: list[Sample], options: WriterOptions) -> None:
    with ShardWriter(path, overwrite=True, options=options) as writer:
        for sample in samples:
            writer.add_sample(sample)


def write_vlen(path: Path, samples: list[Sample]) -> None:
    with h5py.File(path, "w") as file:
        images = file.create_dataset("images", (len(samples),), h5py.vlen_dtype(np.uint8))
        for number, sample in enumerate(samples):
            images[number] = np.frombuffer(sample.image_bytes, np.uint8)
        file["maps"] = np.stack([sample.map for sample in samples])
        file["labels"] = np.array([sample.label for sample in samples])


def pixels(images: list[bytes], folder: Path, scale: Scale) -> Answer:
    """Time batches of stored pixels, in one thread."""
    shard = folder / "pixels.h5"
    write_shard(shard, list(made_samples(images)), WriterOptions(pixel_size=(SIDE, SIDE)))
    loader = loader_of(shard, 1)
    found = seconds_of({"ours": lambda: exhaust(loader)}, scale.turns)
    shard.unlink()
    rate = len(images) / found["ours"].median
    return judged(rate, 10_000, at_most=False) | {
        "unit": "images of 224x224 a second, one core", "at_best": round(len(images) / found["ours"].minimum, 1),
    }


def threads(images: list[bytes], folder: Path, scale: Scale) -> Answer:
    """Time batches of JPEGs by two threads, against one."""
    shard = folder / "threads.h5"
    write_shard(shard, list(made_samples(images)), WriterOptions())
    one, two = (loader_of(shard, count) for count in (1, 2))
    found = seconds_of({"peer": lambda: exhaust(one), "ours": lambda: exhaust(two)}, scale.turns)
    shard.unlink()
    return over_peer({name: per_image(seconds, len(images)) for name, seconds in found.items()}, 1.6)


def loader_of(shard: Path, threads: int) -> ShardLoader:
    shards = ShardSequence([shard])
    reader = SizedReader(shards, image_size=(SIDE, SIDE))
    return ShardLoader(reader, Shares(len(shards), min(50, len(shards))), threads=threads)


def exhaust(loader: ShardLoader) -> None:
    for _ in loader.epoch(0):
        pass


# Writing


def writing(images: list[bytes], folder: Path, scale: Scale) -> Answer:
    """Time files into a shard on the disk, without decoding and checking; against copying the files to the disk."""
    source = folder / "tree/birds"
    source.mkdir(parents=True)
    samples = list(made_samples(images))
    for sample in samples:
        (source / f"{sample.record['id']}.jpg").write_bytes(sample.image_bytes)
    paths = sorted(source.iterdir())
    ready = [ready_sample(sample) for sample in samples]

    def ours() -> None:
        write_ready(folder / "written.h5", paths, ready)

    def copying() -> None:
        target = folder / "copies"
        target.mkdir()
        for path in paths:
            shutil.copyfile(path, target / path.name)
        os.sync()

    found = seconds_of({"ours": cleaned(ours, folder / "written.h5"), "peer": cleaned(copying, folder / "copies")},
                       scale.turns)
    whole = seconds_of({"pack": cleaned(lambda: pack(source, folder / "packed.h5"), folder / "packed.h5")},
                       min(3, scale.turns))
    megabytes = sum(map(len, images)) / 1e6
    return over_peer(found, 0.8) | {
        "peer": "shutil.copyfile of each file, and a sync at the end", "megabytes": round(megabytes, 1),
        "hkmap_folder_to_pack_time": shown(whole["pack"]),
        "note": "hkmap pack decodes every image too, to find a damaged one now",
    }


def write_ready(path: Path, paths: list[Path], ready: list[Ready]) -> None:
    path.touch()
    builder = ShardBuilder(path.parent)
    for file, item in zip(paths, ready, strict=True):
        sample = item.sample
        data = file.read_bytes()
        builder.add(Sample(sample.record, data, sample.map, None, sample.label), item.text, item.checksum)
    builder.write(path, ["a"] * 10)
    builder.parts.close()
    with path.open("rb") as file:
        os.fsync(file.fileno())


def cleaned(function: Callable[[], object], path: Path) -> Callable[[], object]:
    """Return the function, preceded by removing what it left before."""
    def run() -> None:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        function()

    return run


def pack(source: Path, shard: Path) -> None:
    hkmap = f"'{sys.executable}' -m hkmap"
    subprocess.run(
        ["bash", "-c", f"set -o pipefail; {hkmap} folder '{source.parent}' | {hkmap} pack '{shard}' > /dev/null"],
        check=True, stderr=subprocess.DEVNULL,
    )


# Memory


def memory(image: bytes, folder: Path, scale: Scale) -> Answer:
    """Measure the peak memory of packing and of an epoch, with fewer and with more records."""
    path, records = folder / "one.jpg", folder / "records.jsonl"
    path.write_bytes(image)
    np.save(folder / "one.npy", np.full((14, 14), 0.5, np.float32))
    peaks: dict[str, list[float]] = {"pack": [], "epoch": []}
    for count in scale.many:
        with records.open("w") as out:
            for number in range(count):
                record = {"id": f"{number:06d}", "image": str(path), "map": str(folder / "one.npy")}
                out.write(json.dumps(record | {"label": number % 10}) + "\n")
        shard = folder / "many.h5"
        peaks["pack"].append(peak_of("hkmap", "pack", str(shard), str(records), "--overwrite"))
        peaks["epoch"].append(peak_of("epoch", str(shard)))
    return {
        name: judged(more - fewer, 64, at_most=True) | {
            "unit": f"MB more for {scale.many[1]:,} records than for {scale.many[0]:,}",
            "peak": {f"{scale.many[0]:,} records": round(fewer, 1), f"{scale.many[1]:,} records": round(more, 1)},
        }
        for name, (fewer, more) in peaks.items()
    }


def peak_of(*task: str) -> float:
    done = subprocess.run([sys.executable, str(HERE / "peak.py"), *task], check=True, capture_output=True, text=True)
    return float(done.stderr.splitlines()[-1])


def per_image(seconds: Seconds, count: int) -> Seconds:
    return Seconds(seconds.median / count, seconds.minimum / count)


if __name__ == "__main__":
    main(sys.argv[1:])
