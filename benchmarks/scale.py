"""Send many generated records through the chain and follow the memory of every process; print JSON. Linux only.

    OMP_NUM_THREADS=1 OPENCV_FOR_THREADS_NUM=1 python benchmarks/scale.py [--quick] [--records N] [--image 500x375]
    python benchmarks/scale.py --draw docs/pictures/scale.png < benchmarks/results/scale.json
    python benchmarks/scale.py --table < benchmarks/results/scale.json      # as in docs/scale.md

The images are 200 generated JPEGs under many names, and each record has bubbles of its own, so every map is another
one. Each chain runs twice, with a tenth of the records and with all, so that `growth_bytes` says how many bytes of
memory a further record takes, and `further_a_second_and_core` how fast it goes without the start of the program.
Processor time is what the system counted, whatever else the machine did; `seconds` are of the clock. --pixels packs the
images as pixels too, 197 kB each, and reads these. --quick uses so few records that the figures mean nothing: it shows
that everything runs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

HERE = Path(__file__).resolve().parent
HKMAP = (sys.executable, "-m", "hkmap")
IMAGES, CLASSES, BUBBLES = 200, 1000, 10
PAUSE = 0.1             # seconds between two looks at the memory

Command = tuple[str, ...]

#: What runs, in this order; the commands of a chain are joined by pipes.
CHAINS: dict[str, list[Command]] = {
    "list a folder": [(*HKMAP, "folder", "images")],
    "maps and shards": [
        (*HKMAP, "bubbles2map", "records.jsonl", "--size", "56", "--out", "maps56.h5"),
        (*HKMAP, "resize", "--size", "14", "--out", "maps14.h5"),
        (*HKMAP, "pack", "big.h5", "--shard-bytes", "256MB"),
    ],
    "check": [(*HKMAP, "check", "big-*.h5")],
    "sample": [(*HKMAP, "unpack", "big-*.h5"), (*HKMAP, "sample", "0.1"), (*HKMAP, "pack", "sampled.h5")],
    "select": [
        (*HKMAP, "unpack", "big-*.h5"), (*HKMAP, "select", "--sort", "confidence", "--first", "1000"),
        (*HKMAP, "pack", "selected.h5"),
    ],
    "read for an epoch": [(sys.executable, str(HERE / "peak.py"), "views", "big-*.h5")],
}
PIXELS: dict[str, list[Command]] = {
    "pack pixels": [(*HKMAP, "pack", "pixels.h5", "records.jsonl", "--store", "pixels", "--size", "256")],
    "read pixels for an epoch": [(sys.executable, str(HERE / "peak.py"), "views", "pixels.h5")],
}


class Ended(NamedTuple):
    """A process that has ended: its memory as (second, MB), the peak of it, and seconds of the processor."""

    name: str
    curve: list[tuple[float, float]]
    peak: float
    processor: float


class Followed(NamedTuple):
    """A chain that has ended, after so many seconds of the clock."""

    seconds: float
    processes: list[Ended]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--image", default="160x120")
    parser.add_argument("--pixels", action="store_true")
    parser.add_argument("--draw", type=Path)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        print(table(json.load(sys.stdin)))
    elif options.draw:
        draw(json.load(sys.stdin), options.draw)
    else:
        measure(options)


def measure(options: argparse.Namespace) -> None:
    records = 1000 if options.quick else options.records
    width, height = map(int, options.image.split("x"))
    chains = CHAINS | (PIXELS if options.pixels else {})
    few, many = (run(count, (width, height), chains) for count in (records // 10, records))
    print(printed({
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, numpy "
                   f"{np.__version__}, OpenCV {cv2.__version__}",
        "sizes": "quick: the figures mean nothing" if options.quick else "full",
        "records": records, "image": options.image, "image_bytes": many["image_bytes"],
        "shard_bytes_a_record": round(many["shard_bytes"] / records), "shards": many["shards"],
        "chains": {name: told(few["chains"][name], found, records) for name, found in many["chains"].items()},
    }))


def run(count: int, size: tuple[int, int], chosen: dict[str, list[Command]]) -> dict[str, Any]:
    """Send ``count`` records with images of ``size`` (width, height) through the chains, in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="scale.", dir=os.environ.get("TMPDIR")) as name:
        folder = Path(name)
        bytes_of_images = write_images(folder, count, size)
        with (folder / "records.jsonl").open("w") as out:
            out.writelines(json.dumps(record) + "\n" for record in made_records(count, size))
        chains = {}
        for chain, commands in chosen.items():
            print(f"{count:,} records: {chain}", file=sys.stderr)
            chains[chain] = follow(commands, folder)
        shards = list(folder.glob("big-*.h5"))
        return {
            "chains": chains, "shards": len(shards), "shard_bytes": sum(path.stat().st_size for path in shards),
            "image_bytes": bytes_of_images // IMAGES,
        }


def write_images(folder: Path, count: int, size: tuple[int, int]) -> int:
    """Write JPEGs of blurred noise and shapes, with many names each; return how many bytes they take together."""
    rng, (width, height) = np.random.default_rng(0), size
    total = 0
    for label in range(CLASSES):
        (folder / "images" / f"n{label:08d}").mkdir(parents=True)
    for number in range(IMAGES):
        image = cv2.GaussianBlur(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), (0, 0), 2)
        for x, y, radius in rng.integers((0, 0, 5), (width, height, height // 4), (12, 3)).tolist():
            cv2.circle(image, (x, y), radius, rng.integers(0, 256, 3).tolist(), -1)
        path = folder / f"{number}.jpg"
        cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, 90])
        total += path.stat().st_size
        for other in range(number, count, IMAGES):
            (folder / image_path(other)).hardlink_to(path)
    return total


def image_path(number: int) -> str:
    label = number % CLASSES
    return f"images/n{label:08d}/n{label:08d}_{number:05d}.JPEG"


def made_records(count: int, size: tuple[int, int]) -> Iterator[dict[str, Any]]:
    """Yield records with ids as long as ImageNet's, 10 bubbles each, and a number to sort them by."""
    rng = np.random.default_rng(0)
    for number in range(count):
        label, circles = number % CLASSES, rng.uniform((0, 0, 5), (*size, 40), (BUBBLES, 3)).round(1).tolist()
        yield {
            "id": f"n{label:08d}_{number:05d}", "image": image_path(number), "label": label,
            "class": f"n{label:08d}", "size": size, "confidence": round(rng.random(), 6),
            "bubbles": [
                {"x": x, "y": y, "radius": radius, "user": str(user % 5)} for user, (x, y, radius) in enumerate(circles)
            ],
        }


def follow(commands: list[Command], folder: Path) -> Followed:
    """Run commands, joined by pipes, and look at their memory; none of them starts another process."""
    began, running = time.monotonic(), started(commands, folder)
    curves: dict[int, list[tuple[float, float]]] = {process.pid: [] for process in running}
    peaks, usages = dict.fromkeys(curves, 0.0), {}
    while len(usages) < len(running):
        time.sleep(PAUSE)
        for process in running:
            if process.pid in usages:
                continue
            if memory := megabytes(process.pid):
                curves[process.pid].append((time.monotonic() - began, memory["VmRSS"]))
                peaks[process.pid] = max(peaks[process.pid], *memory.values())      # the two are counted apart
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
            if ended:
                process.returncode, usages[ended] = os.waitstatus_to_exitcode(status), usage
    if any(process.returncode for process in running):
        raise SystemExit(f"{commands}: ended with {[process.returncode for process in running]}")
    return Followed(time.monotonic() - began, [
        Ended(name_of(command), curves[pid], peaks[pid], usages[pid].ru_utime + usages[pid].ru_stime)
        for command, pid in zip(commands, curves, strict=True)
    ])


def started(commands: list[Command], folder: Path) -> list[subprocess.Popen[bytes]]:
    """Start commands, each with the output of the one before as its input."""
    running: list[subprocess.Popen[bytes]] = []
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    for command in commands:
        before = running[-1].stdout if running else None
        out = subprocess.DEVNULL if command is commands[-1] else subprocess.PIPE
        running.append(subprocess.Popen(command, cwd=folder, env=environment, stdin=before, stdout=out))
        if before:
            before.close()      # else nobody would be told that its reader has gone
    return running


def megabytes(process: int) -> dict[str, float]:
    """Return what a process takes now (VmRSS) and took at most (VmHWM); nothing once it has ended."""
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    return {
        name: int(value.split()[0]) / 1024
        for name, value in (line.split(":", 1) for line in status.splitlines()) if name in ("VmRSS", "VmHWM")
    }


def name_of(command: Command) -> str:
    return command[len(HKMAP)] if command[: len(HKMAP)] == HKMAP else "views"


# What is told


def told(few: Followed, many: Followed, records: int) -> dict[str, Any]:
    """Return what a chain took with all ``records``, and how its memory grew from a tenth of them."""
    further = records - records // 10
    return {
        "seconds": round(many.seconds, 1),
        "processes": {
            one.name: {
                "processor_seconds": round(one.processor, 1),
                "records_a_second_and_core": round(records / one.processor),
                "further_a_second_and_core": round(further / max(one.processor - less.processor, 0.01)),
                "peak_mb_of_a_tenth": round(less.peak, 1),
                "peak_mb": round(one.peak, 1),
                "growth_bytes": round((one.peak - less.peak) * 2**20 / further),
                "curve": thinned(one.curve),
            }
            for less, one in zip(few.processes, many.processes, strict=True)
        },
    }


def thinned(curve: list[tuple[float, float]], most: int = 30) -> list[list[float]]:
    """Return the highest of each of ``most`` equal parts of a curve, as [second, MB]."""
    parts = np.array_split(np.array(curve), min(most, len(curve)))
    return [part[part[:, 1].argmax()].round(1).tolist() for part in parts]


def printed(answers: dict[str, Any]) -> str:
    """Return answers as JSON, the points of a curve one in a line."""
    return re.sub(r"\[\s+([\d.]+),\s+([\d.]+)\s+\]", r"[\1, \2]", json.dumps(answers, indent=2))


def table(answers: dict[str, Any]) -> str:
    """Return a row of Markdown for each process."""
    records = answers["records"]
    head = ("chain", "process", "seconds of a core", "records a second and core",
            f"peak in MB, {records // 10:,} records", f"{records:,} records", "bytes a further record")
    rows = [
        (chain, f"`{name}`", f"{process['processor_seconds']:,}", f"{process['records_a_second_and_core']:,}",
         process["peak_mb_of_a_tenth"], process["peak_mb"], process["growth_bytes"])
        for chain, found in answers["chains"].items() for name, process in found["processes"].items()
    ]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (head, ("---",) * len(head), *rows))


def draw(answers: dict[str, Any], path: Path) -> None:
    """Draw the curves: a panel per chain, a colour per process."""
    from matplotlib.figure import Figure

    from hkmap.report.charts import figure_bytes
    from hkmap.report.learning import COLOURS, dress

    figure = Figure((12, 5), layout="constrained")
    for axes, (chain, found) in zip(figure.subplots(2, 3).flat, answers["chains"].items(), strict=True):
        for colour, (name, process) in zip(COLOURS, found["processes"].items(), strict=False):
            seconds, memory = zip(*process["curve"], strict=True)
            axes.plot(seconds, memory, color=colour, label=name)
        dress(axes, chain, "seconds", "MB")
        axes.set_ylim(0, 400)
        axes.legend(frameon=False, fontsize=8, loc="upper left", ncols=3)
    path.write_bytes(figure_bytes(figure, path.suffix[1:]))


if __name__ == "__main__":
    main()
