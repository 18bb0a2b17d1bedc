"""Time insertion and deletion against the forward passes alone and against RISE's own procedure; print JSON.

All take turns, see timing.py. ResNet18+ABN at 224 x 224, both curves of two images, in 28 steps, as `hkmap eval` has
them: the fewer they are, the more counts what is done once an image. Then the peak memory of an evaluation of 10,000
images of 32 x 32.

    python benchmarks/evaluation.py [--quick]
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch
from peers import peak_megabytes
from timing import seconds_of
from torch import Tensor

from hkmap.engine.inputs import Preprocessing
from hkmap.engine.processor import BFLOAT16_UNITS, processor_features
from hkmap.engine.runs import new_model
from hkmap.evaluation.curves import Frames, auc, rise_blur
from hkmap.evaluation.evaluate import EvaluationOptions, evaluate
from hkmap.networks.architectures import build
from hkmap.networks.backbone import Architecture
from hkmap.networks.classifier import Classifier, place
from hkmap.shards.sequence import ShardSequence
from hkmap.shards.writer import ShardWriter

SIDE, STEP, TURNS, SMALL_IMAGES = 224, 1792, 4, 10_000
QUICK = 32, 64, 1, 200
IMAGES, CLASSES = 2, 4
KINDS = ("insertion", "deletion")
CPU = torch.device("cpu")


class CausalMetric:
    """RISE's evaluation.py as it is published, without its pictures and without CUDA, where it changes no pixel."""

    def __init__(self, model: Callable[[Tensor], Tensor], mode: str, step: int, substrate: Callable) -> None:
        self.model, self.mode, self.step, self.substrate = model, mode, step, substrate

    def single_run(self, image: Tensor, explanation: np.ndarray) -> np.ndarray:
        pixels = image.shape[2] * image.shape[3]
        _, chosen = torch.max(self.model(image), 1)
        c = chosen.cpu().numpy()[0]
        n_steps = (pixels + self.step - 1) // self.step
        if self.mode == "del":
            start, finish = image.clone(), self.substrate(image)
        else:
            start, finish = self.substrate(image), image.clone()
        scores = np.empty(n_steps + 1)
        salient_order = np.flip(np.argsort(explanation.reshape(-1, pixels), axis=1), axis=-1)
        for i in range(n_steps + 1):
            prediction = self.model(start)
            torch.topk(prediction, 2)
            scores[i] = prediction[0, c]
            if i < n_steps:
                coords = salient_order[:, self.step * i : self.step * (i + 1)]
                start.cpu().numpy().reshape(1, 3, pixels)[0, :, coords] = (
                    finish.cpu().numpy().reshape(1, 3, pixels)[0, :, coords]
                )
        return scores


class Task:
    """The images to measure, their maps, without ties, and the network."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.network = build(Architecture("resnet18+abn", CLASSES)).eval()
        self.images = torch.randn(IMAGES, 3, SIDE, SIDE)
        order = torch.stack([torch.randperm(SIDE * SIDE) for _ in range(IMAGES)])
        self.maps = (order / SIDE**2).view(IMAGES, 1, SIDE, SIDE)

    def rise(self) -> list[float]:
        """Return the areas by RISE's procedure, with the network as it comes."""
        def model(images: Tensor) -> Tensor:
            return self.network(images).logits.softmax(1)

        found = []
        for mode, substrate in (("ins", rise_blur), ("del", torch.zeros_like)):
            metric = CausalMetric(model, mode, STEP, substrate)
            for image, saliency in zip(self.images, self.maps, strict=True):
                scores = metric.single_run(image[None], saliency[0].numpy())
                found.append((scores.sum() - scores[0] / 2 - scores[-1] / 2) / (len(scores) - 1))
        return found

    def ours(self, frames: Frames, network: Classifier) -> list[float]:
        """Return the areas by ours; the answer to the whole images, which every evaluation has, belongs to it."""
        images = self.images.contiguous(memory_format=torch.channels_last)
        clean = network(images).logits
        curves = [
            frames.curves(kind, images, self.maps, clean.argmax(1), clean=clean, held=None).probability
            for kind in KINDS
        ]
        return [area for curve in curves for area in auc(curve).tolist()]

    def forward(self, frames: Frames, network: Classifier) -> None:
        """Answer as many frames that are there, as many at once, and the whole images, and do nothing else."""
        network(self.images.contiguous(memory_format=torch.channels_last))
        ready = frames.ready
        assert ready is not None
        there = torch.randn(ready.batch_size, 3, SIDE, SIDE).to(ready.dtype).contiguous(
            memory_format=torch.channels_last
        )
        steps = -(-SIDE * SIDE // STEP)
        for count in (IMAGES * steps, IMAGES * (steps - 1)):
            for first in range(0, count, ready.batch_size):
                ready.network(there[: count - first])


def timed(task: Task) -> tuple[dict, dict]:
    """Return the seconds of each way, and the ratios beside their targets."""
    network = place(build(Architecture("resnet18+abn", CLASSES)), CPU).eval()
    network.load_state_dict(task.network.state_dict())
    has_units = bool(processor_features() & BFLOAT16_UNITS)
    dtypes = ("float32", "bfloat16") if has_units else ("float32",)
    areas: dict[str, list[float]] = {}
    ways: dict[str, Callable[[], object]] = {"rise": lambda: areas.update(rise=task.rise())}
    for dtype in dtypes:
        frames = Frames(network, STEP, dtype=dtype)
        ways[dtype] = lambda frames=frames, dtype=dtype: areas.update({dtype: task.ours(frames, network)})
        ways[f"{dtype} forward"] = lambda frames=frames: task.forward(frames, network)
    with torch.inference_mode():
        found = seconds_of(ways, TURNS)
    # pairs that took turns; the minimum is what other programs disturb least
    least = {key: seconds.minimum for key, seconds in found.items()}
    ratios = {
        f"{dtype}_over_forward_passes": judged(least[dtype] / least[f"{dtype} forward"], 1.1, at_most=True)
        for dtype in dtypes
    }
    ratios["rise_over_float32"] = judged(least["rise"] / least["float32"], 1.3, at_most=False)
    if has_units:
        ratios["rise_over_bfloat16"] = judged(least["rise"] / least["bfloat16"], 2.5, at_most=False)
    difference = {dtype: np.abs(np.subtract(areas[dtype], areas["rise"])).max() for dtype in dtypes}
    ratios["difference_of_areas"] = judged(difference.pop("float32"), 1e-5, at_most=True)
    told = {f"difference_of_areas_in_{dtype}": float(f"{value:.2g}") for dtype, value in difference.items()}
    seconds = {
        key: {"median": round(value.median, 3), "least": round(value.minimum, 3)} for key, value in found.items()
    }
    return seconds, {**ratios, **told}


def write_small(path: Path) -> None:
    rng = np.random.default_rng(0)
    with ShardWriter(path) as writer:
        for number in range(SMALL_IMAGES):
            image = cv2.imencode(".png", rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))[1].tobytes()
            record = {"id": str(number), "image": f"{number}.png", "label": number % 4, "class": str(number % 4)}
            writer.add(record, image, rng.random((4, 4), np.float32), None)


def evaluate_small(path: Path) -> None:
    """Evaluate small images, and print the peak memory in MB after a tenth of them and after all."""
    shards = ShardSequence([path])
    model = new_model(
        Architecture("resnet8+abn", 4, stem="small", width=4), Preprocessing(32, 32), ("0", "1", "2", "3"), 0
    )
    rows = evaluate(model, shards, EvaluationOptions((*KINDS, "top1", "mse"), step=256), CPU)
    print(json.dumps([peak_after(islice(rows, len(shards) // 10)), peak_after(rows)]))


def peak_after(rows: Iterable) -> float:
    for _ in rows:
        pass
    return peak_megabytes()


def memory() -> dict:
    """Return the peaks of `evaluate_small` in a process of its own, and their ratio."""
    with tempfile.TemporaryDirectory() as name:
        shard = Path(name) / "small.h5"
        write_small(shard)
        command = [sys.executable, __file__, "--memory", str(shard)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    tenth, whole = json.loads(done.stdout)
    return {
        "images": SMALL_IMAGES, "megabytes_after_a_tenth": round(tenth), "megabytes_after_all": round(whole),
        "growth": judged(whole / tenth, 1.05, at_most=True),
    }


def judged(value: float, target: float, *, at_most: bool) -> dict[str, object]:
    met = value <= target if at_most else value >= target
    shown = round(value, 3) if target > 0.01 else float(f"{value:.2g}")
    return {"value": shown, "target": f"{'at most' if at_most else 'at least'} {target:g}", "met": bool(met)}


def main(*, quick: bool) -> None:
    if quick:
        globals().update(zip(("SIDE", "STEP", "TURNS", "SMALL_IMAGES"), QUICK, strict=True))
    seconds, ratios = timed(Task())
    print(json.dumps({
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "sizes": "quick: the figures mean nothing" if quick else "full",
        "bfloat16_units": bool(processor_features() & BFLOAT16_UNITS),
        "images": IMAGES, "steps": -(-SIDE * SIDE // STEP), "seconds": seconds, "ratios": ratios, "memory": memory(),
    }, indent=2))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--memory"]:
        evaluate_small(Path(sys.argv[2]))
    else:
        main(quick="--quick" in sys.argv)
