"""Check hkmap on a CUDA machine with its own torch: the tests marked gpu, then one run, on CPU and CUDA in turn.

Prints one JSON object: the machine, the tests' outcome, and the seconds of train, finetune and eval on each device.

    PYTHONPATH=. python3 benchmarks/gpu_check.py > benchmarks/results/gpu.json
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from hkmap import __version__
from hkmap.shards.writer import ShardWriter

ROOT = Path(__file__).resolve().parent.parent
SIDE, IMAGES, EPOCHS = 224, 256, 2
NETWORK = ["--arch", "resnet18+abn", "--image-size", str(SIDE), "--epochs", str(EPOCHS), "--batch-size", "32"]
METRICS = [word for name in ("top1", "mse", "insertion", "deletion") for word in ("--metric", name)]


def write_shard(path: Path) -> None:
    """Write generated JPEG images, 224 x 224, with 14 x 14 maps: noise, and a bright square placed by label."""
    rng = np.random.default_rng(0)
    with ShardWriter(path) as writer:
        for number in range(IMAGES):
            row, column = divmod(number % 4, 2)
            image = rng.integers(0, 100, (SIDE, SIDE, 3), dtype=np.uint8)
            image[row * 112 : row * 112 + 112, column * 112 : column * 112 + 112] += 120
            values = np.zeros((14, 14), np.float32)
            values[row * 7 : row * 7 + 7, column * 7 : column * 7 + 7] = 1
            record = {"id": str(number), "image": f"{number}.jpg", "label": number % 4, "class": str(number % 4)}
            writer.add(record, cv2.imencode(".jpg", image)[1].tobytes(), values, None)


def timed(*arguments: str) -> tuple[float, dict]:
    """Run an hkmap command as a user would; return its seconds and its JSON."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "hkmap", *arguments], check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    return round(time.perf_counter() - began, 2), json.loads(done.stdout)


def run_on(device: str, folder: Path) -> dict:
    """Train, fine-tune and evaluate on one device."""
    shard, run, tuned = str(folder / "train.h5"), str(folder / f"{device}-run"), str(folder / f"{device}-tuned")
    seconds = {}
    seconds["train"], _ = timed("train", shard, *NETWORK, "--device", device, "--out", run)
    tuning = ["--from", run, "--epochs", str(EPOCHS), "--batch-size", "32", "--out", tuned]
    seconds["finetune"], _ = timed("finetune", shard, *tuning, "--device", device)
    seconds["eval"], report = timed("eval", shard, "--from", tuned, *METRICS, "--device", device)
    return {"seconds": seconds, "metrics": report["metrics"]}


def main() -> int:
    # addopts names options of hypothesis, which such a machine may lack
    options = ["-o", "addopts=", "-p", "no:cacheprovider"]
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *options, "tests/test_gpu.py"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )
    print(tests.stdout, file=sys.stderr)
    cuda = torch.cuda.is_available()
    report = {
        "hkmap": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if cuda else None,
        "tests": tests.stdout.strip().splitlines()[-1],
        "network": " ".join(NETWORK),
        "images": IMAGES,
    }
    if cuda:
        with tempfile.TemporaryDirectory() as name:
            write_shard(Path(name) / "train.h5")
            report |= {device: run_on(device, Path(name)) for device in ("cuda", "cpu")}
    print(json.dumps(report, indent=2))
    return 0 if cuda and tests.returncode == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
