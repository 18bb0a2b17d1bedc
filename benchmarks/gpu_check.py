"""Check hkmap on a CUDA machine with its own torch: the tests marked gpu, speeds, and the paper's tuning.

Prints one JSON object, and ends inside 8 minutes. Speeds are of steps, and of insertion and deletion, whose images are
on the device already; the tuning is `hkmap finetune` as a user runs it: 3,000 images of 200 classes, 300 epochs,
ResNet18+ABN, cached features, compiled.

    PYTHONPATH=. python3 benchmarks/gpu_check.py > benchmarks/results/gpu.json
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from timing import seconds_of

from hkmap import __version__
from hkmap.evaluation.curves import Frames
from hkmap.networks.architectures import ARCHITECTURES, build
from hkmap.networks.backbone import Architecture
from hkmap.networks.classifier import place
from hkmap.shards.writer import ShardWriter
from hkmap.training.feeding import Fed
from hkmap.training.optimisation import TrainingOptions
from hkmap.training.steps import Training

ROOT = Path(__file__).resolve().parent.parent
SIDE, CLASSES, IMAGES = 224, 200, 3000
CUDA = torch.device("cuda")
STEPS = 60


class Repeated:
    """Feeds a training with the same batch, which is on the device."""

    def __init__(self, fed: Fed, steps: int) -> None:
        self.fed, self.steps = fed, steps

    def __len__(self) -> int:
        return self.steps

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Fed]:
        for _ in range(start, self.steps):
            yield self.fed

    def place(self, index: int) -> str:
        return str(index)


def batch(size: int) -> Fed:
    """Return a batch of noise, with maps."""
    images = torch.randn(size, 3, SIDE, SIDE, device=CUDA).contiguous(memory_format=torch.channels_last)
    maps, certainty = torch.rand(size, 1, 14, 14, device=CUDA), torch.ones(size, 1, 14, 14, device=CUDA)
    labels = torch.randint(0, CLASSES, (size,), device=CUDA)
    return Fed(images, False, maps, certainty, labels, torch.ones(size, device=CUDA), np.arange(size), size)


def training(name: str, size: int, update: str) -> Training:
    options = TrainingOptions(1, batch_size=size, gamma=1.0, update=update, precision="bfloat16", learning_rate=1e-4)
    return Training(build(Architecture(name, CLASSES)), options, CUDA)


def matrix_rate() -> float:
    """Return the products and sums a second of a large bfloat16 matrix product on this card."""
    a, b = (torch.randn(8192, 8192, device=CUDA, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(5):
        a @ b
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(20):
        a @ b
    torch.cuda.synchronize()
    return 20 * 2 * 8192**3 / (time.perf_counter() - began)


def speed(name: str, size: int, way: str, rate: float) -> dict[str, float]:
    """Return images a second, the share of the matrix rate, and the host's waits in a step, of one way to train."""
    trained = training(name, size, "all" if way == "train" else "both")
    fed = batch(size)
    if way == "cached":
        with torch.no_grad(), trained.precision(CUDA):
            fed = fed._replace(inputs=trained.network.eval().features(fed.inputs), cached=True)
    for _ in trained.run_epoch(Repeated(fed, STEPS)):
        pass
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in trained.run_epoch(Repeated(fed, STEPS)):
        pass
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - began) / STEPS
    return {
        "images_per_second": round(size / seconds), "ms_per_step": round(1000 * seconds, 2),
        "share_of_matrix_rate": round(operations(name, way) * size / seconds / rate, 3),
        "host_waits_per_step": waits(trained, fed), "graph": bool(trained.graphs),
    }


def operations(name: str, way: str) -> float:
    """Return the products and sums an image takes: forward once, and backward twice as much where weights change."""
    whole = 2 * ARCHITECTURES.figures(name)["multiply_adds"]
    plain = 2 * ARCHITECTURES.figures(name.removesuffix("+abn"))["multiply_adds"]
    attention = whole - plain
    last = attention / 4        # the perception branch's stage has the attention branch's layers on a quarter of cells
    extractor = plain - last
    trained = 3 * (attention + last)
    return {"train": 3 * whole, "finetune": extractor + trained, "cached": trained}[way]


def waits(trained: Training, fed: Fed) -> float:
    """Return how often the host waits for the device in a step, the reading of figures left out."""
    trained.network.train()
    trained.step = 1000     # no recording
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(10):
            trained.optimise([fed], 1e-4, 1.0)
    torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in caught) / 10


def curves_speed(name: str, images: int = 32, turns: int = 3) -> dict:
    """Time insertion and deletion in bfloat16, 224 steps each, against as many forward passes of as many frames."""
    network = place(build(Architecture(name, CLASSES)), CUDA).eval()
    fed, saliency = batch(images), torch.rand(images, 1, SIDE, SIDE, device=CUDA)
    frames = Frames(network, SIDE, dtype="bfloat16")

    def curves() -> None:
        clean = network(fed.inputs).logits
        for kind in ("insertion", "deletion"):
            frames.curves(kind, fed.inputs, saliency, fed.labels, clean=clean, held=None)

    def forward() -> None:
        network(fed.inputs)
        for count in (images * SIDE, images * (SIDE - 1)):      # the ends are known
            for first in range(0, count, len(there)):
                ready.network(there[: count - first])

    with torch.inference_mode():
        curves()        # prepares the network
        ready = frames.ready
        there = torch.randn(ready.batch_size, 3, SIDE, SIDE, device=CUDA, dtype=ready.dtype)
        there = there.contiguous(memory_format=torch.channels_last)
        found = seconds_of({"curves": waited_for(curves), "forward": waited_for(forward)}, turns)
    least = {key: seconds.minimum for key, seconds in found.items()}
    ratio = least["curves"] / least["forward"]
    return {
        "frames_in_a_pass": ready.batch_size, "frames_per_second": round(images * (2 * SIDE - 1) / least["curves"]),
        "seconds_an_image": round(least["curves"] / images, 4), "over_forward_passes": round(ratio, 3),
        "target": "at most 1.05", "met": ratio <= 1.05,
    }


def waited_for(function: Callable[[], None]) -> Callable[[], None]:
    def whole() -> None:
        function()
        torch.cuda.synchronize()

    return whole


def write_shard(path: Path) -> None:
    """Write generated JPEG images, 224 x 224, with 14 x 14 maps: noise, and a bright square placed by label."""
    rng = np.random.default_rng(0)
    noise = [cv2.GaussianBlur(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8), (0, 0), 3) for _ in range(32)]
    with ShardWriter(path) as writer:
        for number in range(IMAGES):
            label = number % CLASSES
            row, column = divmod(label % 196, 14)
            image = noise[number % 32].copy()
            image[16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = 255
            values = np.zeros((14, 14), np.float32)
            values[row, column] = 1
            record = {"id": str(number), "image": f"{number}.jpg", "label": label, "class": str(label)}
            writer.add(record, cv2.imencode(".jpg", image)[1].tobytes(), values, None)


def timed(*arguments: str) -> tuple[float, dict]:
    """Run an hkmap command as a user would; return its seconds and its JSON."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "hkmap", *arguments], check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    return round(time.perf_counter() - began, 2), json.loads(done.stdout)


def papers_tuning(epochs: int) -> dict:
    """Fine-tune as the paper does on CUB-200-2010: 3,000 images, 300 epochs, batches of 16."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shard(folder / "train.h5")
        shard = str(folder / "train.h5")
        network = ["--arch", "resnet18+abn", "--epochs", "1", "--batch-size", "64", "--precision", "bfloat16"]
        base, _ = timed("train", shard, *network, "--device", "cuda", "--out", str(folder / "run"))
        tuning = [
            "--from", str(folder / "run"), "--epochs", str(epochs), "--batch-size", "16", "--precision", "bfloat16",
            "--augment", "mirror", "--cache-features", "--compile", "--gamma", "1", "--device", "cuda",
        ]
        seconds, found = timed("finetune", shard, *tuning, "--out", str(folder / "tuned"))
    return {
        "images": IMAGES, "epochs": epochs, "steps": found["steps"], "seconds": seconds, "seconds_of_training":
        found["seconds"], "seconds_of_one_epoch_of_the_whole_network": base,
    }


def tests() -> dict:
    """Run the tests marked gpu."""
    # addopts names options of hypothesis, which such a machine may lack
    options = ["-o", "addopts=", "-p", "no:cacheprovider"]
    files = [path for path in sorted((ROOT / "tests").glob("test_*.py")) if "mark.gpu" in path.read_text("utf-8")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *options, *map(str, files)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )
    print(done.stdout, file=sys.stderr)
    return {"passed": done.returncode == 0, "summary": done.stdout.strip().splitlines()[-1]}


def main() -> int:
    """Print the report; the exit code is 0 where there is a device and its tests pass."""
    report = {
        "hkmap": __version__, "python": platform.python_version(), "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else None, "tests": tests(),
    }
    if torch.cuda.is_available():
        rate = matrix_rate()
        report["matrix_rate_tflops"] = round(rate / 1e12)
        report["speed"] = {
            f"{name}, {way}, batches of {size}": speed(name, size, way, rate)
            for name in ("resnet18+abn", "resnet50+abn") for way in ("train", "finetune", "cached")
            for size in (16, 128)
        }
        report["curves"] = {name: curves_speed(name) for name in ("resnet18+abn", "resnet50+abn")}
        report["papers_tuning"] = papers_tuning(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
    print(json.dumps(report, indent=2))
    return 0 if report["tests"]["passed"] and report["device"] else 1


if __name__ == "__main__":
    sys.exit(main())
