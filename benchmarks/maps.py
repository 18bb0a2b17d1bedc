"""Time the making of maps against what one would write without hkmap, and against floors; print JSON.

    OMP_NUM_THREADS=1 OPENCV_FOR_THREADS_NUM=1 python benchmarks/maps.py [--quick]

Programs that are compared take turns in one run. Each figure is a median, with the minimum beside it, which other
programs on the machine disturb least; ratios are of medians, and `ratio_of_minima` stands beside them. A ratio "peer
over ours" is higher if hkmap is faster; one "ours over floor" is 1 at best. The peers are in peers.py. HKMAP_DATA names
a folder of real data, whose IDRiD masks are then used instead of generated ones. --quick uses sizes so small that the
figures mean nothing: it shows that everything runs.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import peers
from PIL import Image
from timing import Seconds, seconds_of

from hkmap.maps.kde import kde_map, pixel_centres
from hkmap.maps.resize import resize_map, resize_matrix

Answer = dict[str, Any]

HERE = Path(__file__).resolve().parent
SIDE = 224
FRAME = (500, 375)                      # of most CUB images
BUBBLES = 30                            # an image
IDRID = (4288, 2848)


class Scale(NamedTuple):
    """How much is done: a real run, or only enough to show that it works."""

    images: int             # of the CUB task
    peer_images: int        # of these, for the slow programs
    turns: int              # of whole programs
    repeats: int            # of what takes below a millisecond


EARNEST, QUICK = Scale(12_000, 400, 3, 1000), Scale(12, 3, 1, 3)


def main(arguments: list[str]) -> None:
    scale = QUICK if "--quick" in arguments else EARNEST
    with tempfile.TemporaryDirectory(prefix="maps.", dir=os.environ.get("TMPDIR")) as folder:
        answers = {
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, numpy "
                       f"{np.__version__}, OpenCV {cv2.__version__}, "
                       f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}",
            "sizes": "quick: the figures mean nothing" if scale is QUICK else "full",
            "kernels": {f"{rule}_{count}": kernel(rule, count, scale) for rule in ("radius", "scott")
                        for count in (30, 100, 400)},
            "resize": {f"{'x'.join(map(str, before))}_to_{'x'.join(map(str, after))}": resize(before, after, scale)
                       for before, after in RESIZES},
            "idrid": idrid(Path(folder), scale),
            "cub": cub(Path(folder), scale),
        }
    print(json.dumps(answers, indent=2))


# Kernels


def kernel(rule: str, count: int, scale: Scale) -> Answer:
    """Time `kde_map` at 224 x 224 against its floor: the product and exponentials that it needs, into ready arrays."""
    rng = np.random.default_rng(0)
    centres = rng.normal((FRAME[0] / 2, FRAME[1] / 2), (70, 50), (count, 2))
    radii = rng.uniform(8, 40, count)
    grid = pixel_centres(FRAME, (SIDE, SIDE))
    kind = np.float64 if rule == "scott" else np.float32
    exponents = [-np.square((axis - centre[:, None]) / 30).astype(kind).clip(-40) for axis, centre in
                 ((grid.x, centres[:, 0]), (grid.y, centres[:, 1]))]
    factors, product = [np.empty_like(exponent) for exponent in exponents], np.empty((SIDE, SIDE), kind)

    def radius_floor() -> None:
        for exponent, factor in zip(exponents, factors, strict=True):
            np.exp(exponent, out=factor)
        np.matmul(factors[1].T, factors[0], out=product)

    def scott_floor() -> None:
        np.matmul(exponents[1].T, exponents[0], out=product)
        np.exp(cross, out=product)

    cross = np.multiply.outer(grid.y, grid.x) / -1e4
    found = seconds_of({
        "ours": lambda: kde_map(centres, FRAME, (SIDE, SIDE), bandwidth=rule, radii=radii),
        "floor": scott_floor if rule == "scott" else radius_floor,
    }, scale.repeats)
    floor = "a float64 matrix product and one exp over the map" if rule == "scott" else "float32 exps, a matrix product"
    return over_floor(found, 4) | {"floor": floor}


RESIZES = (
    ((224, 224), (14, 14)), ((14, 14), (224, 224)), ((375, 500), (14, 14)), (IDRID[::-1], (14, 14)),
)


def resize(before: tuple[int, int], after: tuple[int, int], scale: Scale) -> Answer:
    """Time `resize_map` against one float32 call of cv2 into a ready array; take its error against the matrix form."""
    values = np.random.default_rng(0).random(before, np.float32)
    method = cv2.INTER_LINEAR if after > before else cv2.INTER_AREA
    ready = np.empty(after, np.float32)
    found = seconds_of({
        "ours": lambda: resize_map(values, after),
        "floor": lambda: cv2.resize(values, after[::-1], dst=ready, interpolation=method),
    }, max(3, scale.repeats // (1 + values.size // 100_000)))
    rows, columns = (resize_matrix(n_in, n_out) for n_in, n_out in zip(before, after, strict=True))
    exact = rows @ values.astype(np.float64) @ columns.T
    error, floor_error = (float(np.abs(made - exact).max()) for made in (resize_map(values, after), ready))
    return over_floor(found, 2) | {
        "floor": "one float32 cv2.resize into a ready array", "floor_error": floor_error,
        "error": error, "error_target": 1e-6, "error_met": error <= 1e-6,
    }


# Masks of lesions


def idrid(folder: Path, scale: Scale) -> Answer:
    """Time masks of one image, 4288 x 2848, to one map, in one process; measure the memory of fresh processes."""
    real = sorted(Path(os.environ.get("HKMAP_DATA", "nowhere")).glob("idrid/**/*_EX.tif"))[:4]
    frame = (400, 300) if scale is QUICK else IDRID
    masks = [str(path) for path in (real if real and scale is not QUICK else make_masks(folder, frame))]
    found = seconds_of({
        "ours": lambda: peers.our_map(masks, SIDE),
        "decoding": lambda: peers.decode(masks, SIDE),
    }, 15 if scale is not QUICK else 1)
    peer = seconds_of({"peer": lambda: peers.lesions_map(masks, SIDE), "ours": lambda: peers.our_map(masks, SIDE)},
                      scale.turns)
    memory = {name: peak_over_imports(name, masks, scale.turns) for name in ("ours", "lesions", "decode")}
    return {
        "masks": f"{len(masks)} of {frame[0]}x{frame[1]}, 1-bit TIFF, {'of IDRiD' if real else 'generated'}",
        "over_peer": over_peer(peer, 8) | {"peer": "PIL, float64, skimage.transform.resize with anti_aliasing"},
        "over_decoding": over_floor({"ours": found["ours"], "floor": found["decoding"]}, 1.4)
        | {"floor": "cv2.imdecode of the same files, grey"},
        "memory": judged(memory["ours"], 60, at_most=True) | {
            "unit": "MB of peak resident memory, over that of a process that only imports the same modules",
            "peer": round(memory["lesions"], 1), "decoding": round(memory["decode"], 1),
        },
    }


def make_masks(folder: Path, frame: tuple[int, int]) -> Iterator[Path]:
    """Write four masks like IDRiD's: 1-bit TIFF, some hundred specks and blots."""
    rng = np.random.default_rng(0)
    for number in range(4):
        mask = np.zeros(frame[::-1], np.uint8)
        for x, y, radius in zip(*rng.uniform((0, 0), frame, (300, 2)).T, rng.uniform(2, 30, 300), strict=True):
            cv2.circle(mask, (int(x), int(y)), int(radius), 1, -1)
        path = folder / f"mask{number}.tif"
        Image.fromarray(mask.astype(bool)).save(path, compression="group4")
        yield path


def peak_over_imports(name: str, masks: list[str], turns: int) -> float:
    """Return the MB that the work adds to a process that imports its modules; the least of all turns, as noise adds."""
    def peak(task: str) -> float:
        return float(output_of(sys.executable, str(HERE / "peers.py"), task, str(SIDE), *masks))

    return min(peak(name) for _ in range(turns)) - min(peak(f"{name}-idle") for _ in range(turns))


# From a table of bubbles to one file of maps


def cub(folder: Path, scale: Scale) -> Answer:
    """Time two commands in a pipe, a table and a CUB folder in, one .h5 out; against programs that end in np.save."""
    root = make_cub(folder / "cub", scale.images)
    part = folder / "part.csv"
    with (root / "bubbles.csv").open() as stream:
        part.write_text("".join(line for _, line in zip(range(1 + BUBBLES * scale.peer_images), stream, strict=False)))
    answer: Answer = {"images": scale.images, "bubbles_an_image": BUBBLES, "map": f"{SIDE}x{SIDE}, float32"}
    for rule in ("scott", "radius"):
        ours = {jobs: [] for jobs in (1, 2)}
        theirs: dict[str, list[float]] = {name: [] for name in ((rule,) if rule == "scott" else (rule, "sums"))}
        for _ in range(scale.turns):
            for jobs, seconds in ours.items():
                seconds.append(pipeline(root, folder, rule, jobs))
            for name, seconds in theirs.items():
                seconds.append(peer_seconds(name, root, part, folder) / scale.peer_images * scale.images)
        answer[rule] = whole_way(ours, theirs)
    best = min(seconds["seconds"] for seconds in answer["scott"]["ours"].values())
    answer["cub_scott_seconds"] = judged(best, 20, at_most=True) | {"task": "12,000 images, 30 bubbles each, two cores"}
    return answer


def whole_way(ours: Mapping[int, list[float]], theirs: Mapping[str, list[float]]) -> Answer:
    runs = {f"jobs_{jobs}": shown(seconds_in(seconds)) for jobs, seconds in ours.items()}
    fastest = min((seconds_in(seconds) for seconds in ours.values()), key=lambda seconds: seconds.median)
    programs = {
        "scott": "csv, scipy.stats.gaussian_kde, np.save",
        "radius": "csv, scipy.stats.multivariate_normal(...).pdf summed, np.save",
        "sums": "csv, numpy's exp over the map for each bubble, np.save",
    }
    peers_of = {name: over_peer({"ours": fastest, "peer": seconds_in(seconds)}, 10) | {"peer": programs[name]}
                for name, seconds in theirs.items()}
    first, *others = peers_of
    for name in others:     # only for comparison: it does not use scipy
        del peers_of[name]["target"], peers_of[name]["met"]
    return {"ours": runs, "over_peer": peers_of[first], **{f"over_{name}": peers_of[name] for name in others},
            "note": "the peer draws a part of the images; its seconds are scaled to all, its start-up left out"}


def pipeline(root: Path, folder: Path, rule: str, jobs: int) -> float:
    """Return the seconds from the start of the first command to the end of the last."""
    maps = folder / "maps.h5"
    hkmap = f"'{sys.executable}' -m hkmap"
    command = (
        f"set -o pipefail; {hkmap} cub '{root}' --bubbles '{root / 'bubbles.csv'}' "
        f"| {hkmap} bubbles2map --bandwidth {rule} --jobs {jobs} --out '{maps}' > '{folder / 'maps.jsonl'}'"
    )
    began = time.perf_counter()
    subprocess.run(["bash", "-c", command], check=True)
    seconds = time.perf_counter() - began
    maps.unlink()
    return seconds


def peer_seconds(name: str, root: Path, table: Path, folder: Path) -> float:
    seconds = output_of(sys.executable, str(HERE / "peers.py"), name, str(root), str(table), str(folder / "npy"))
    shutil.rmtree(folder / "npy")
    return float(seconds)


def make_cub(root: Path, count: int) -> Path:
    """Make a folder laid out as CUB-200-2011 and a table of bubbles; all images are links to one file of noise."""
    (root / "images/001.Bird").mkdir(parents=True)
    rng = np.random.default_rng(0)
    pixels = cv2.GaussianBlur(rng.integers(0, 256, (FRAME[1], FRAME[0], 3), dtype=np.uint8), (0, 0), 3)
    first = root / "images/001.Bird/1.jpg"
    cv2.imwrite(str(first), pixels)
    for number in range(2, count + 1):
        os.link(first, first.with_name(f"{number}.jpg"))
    for name, line in (("images.txt", "{0} 001.Bird/{0}.jpg"), ("image_class_labels.txt", "{0} 1"),
                       ("train_test_split.txt", "{0} 1")):
        (root / name).write_text("".join(f"{line.format(number)}\n" for number in range(1, count + 1)))
    (root / "classes.txt").write_text("1 001.Bird\n")
    with (root / "bubbles.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["image", "x", "y", "radius", "user"])
        for number in range(1, count + 1):
            places = rng.normal((250, 187), (70, 50), (BUBBLES, 2)).clip(0, (499, 374)).round(1)
            radii = rng.uniform(8, 40, BUBBLES).round(1)
            for index, ((x, y), radius) in enumerate(zip(places.tolist(), radii.tolist(), strict=True)):
                table.writerow([number, x, y, radius, index // 10])
    return root


# What is printed


def over_peer(found: Mapping[str, Seconds], target: float) -> Answer:
    ratios = (theirs / own for theirs, own in zip(found["peer"], found["ours"], strict=True))
    return ratio_of(*ratios, target, at_most=False) | {f"{name}_time": shown(found[name]) for name in found}


def over_floor(found: Mapping[str, Seconds], target: float) -> Answer:
    ratios = (own / floor for own, floor in zip(found["ours"], found["floor"], strict=True))
    return ratio_of(*ratios, target, at_most=True) | {f"{name}_time": shown(found[name]) for name in found}


def ratio_of(medians: float, minima: float, target: float, *, at_most: bool) -> Answer:
    return judged(medians, target, at_most=at_most) | {"ratio_of_minima": round(minima, 2)}


def judged(value: float, target: float, *, at_most: bool) -> Answer:
    met = value <= target if at_most else value >= target
    return {"value": round(value, 2), "target": f"{'at most' if at_most else 'at least'} {target:g}", "met": bool(met)}


def seconds_in(times: list[float]) -> Seconds:
    return Seconds(statistics.median(times), min(times))


def shown(seconds: Seconds) -> Answer:
    return {"seconds": float(f"{seconds.median:.4g}"), "least": float(f"{seconds.minimum:.4g}")}


def output_of(*command: str) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout


if __name__ == "__main__":
    main(sys.argv[1:])
