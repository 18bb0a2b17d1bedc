"""Draw the pictures of docs/method.md: maps, area averages, the network, insertion and deletion, shams.

    PYTHONPATH=.:tests:examples:docs python docs/method_pictures.py docs/pictures        # make pictures

The images are the digits of `examples/decoy_digits.py`, as in the pictures of the editor: a grey patch in the corner
reveals the label in training, and tells nothing in the test.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from screenshots import SIDE, prepare, write_small

import hkmap
from hkmap.engine.controls import CONTROLS
from hkmap.engine.runs import TrainedModel
from hkmap.evaluation.curves import auc, curve, no_image, rank_pixels, rise_blur
from hkmap.maps.bandwidths import BANDWIDTHS
from hkmap.maps.certainty import Weighted
from hkmap.report.colouring import overlay
from hkmap.stream.references import load_map

PANEL = 2.1         # inches, the side of a panel
SHARES = (0.0, 0.1, 0.2, 0.6)       # of the pixels that have changed, where a frame is shown
FINETUNE = "hkmap finetune train.h5 --from run --gamma 1 --epochs 15 --out run-human"


def panels(rows: int, columns: int, widths: list[float] | None = None) -> tuple[Figure, Any]:
    """Return a figure and its axes (rows, columns), without ticks."""
    widths = widths or [1.0] * columns
    figure = Figure(figsize=(PANEL * sum(widths), (PANEL + 0.35) * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, width_ratios=widths)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    return figure, axes


def show(axis: Axes, picture: np.ndarray, title: str, **options: Any) -> None:
    axis.imshow(picture, **({"cmap": "viridis", "vmin": 0, "vmax": 1} | options))
    axis.set_title(title, fontsize=11)


def save(figure: Figure, path: Path) -> None:
    picture = io.BytesIO()
    figure.savefig(picture, dpi=100)
    write_small(picture.getvalue(), path)


def pixels(record: dict[str, Any]) -> np.ndarray:
    return cv2.cvtColor(cv2.imread(record["image"]), cv2.COLOR_BGR2RGB)


def draw_bandwidths(record: dict[str, Any]) -> Figure:
    """Draw the bubbles of an image, and the maps that each bandwidth makes of them."""
    image, bubbles = pixels(record), record["bubbles"]
    centres = np.array([[bubble["x"], bubble["y"]] for bubble in bubbles])
    radii = np.array([bubble["radius"] for bubble in bubbles])
    figure, axes = panels(1, 1 + len(BANDWIDTHS))
    show(axes[0, 0], image, "bubbles of four people")
    for (x, y), radius in zip(centres, radii, strict=True):
        axes[0, 0].add_patch(Circle((x, y), radius, fill=False, color="#56b4e9", linewidth=1.3))
    for axis, name in zip(axes[0, 1:], BANDWIDTHS, strict=True):
        human = hkmap.kde_map(centres, (SIDE, SIDE), (128, 128), bandwidth=name, radii=radii)
        show(axis, overlay(image, human), f"--bandwidth {name}")
    return figure


def draw_averages() -> Figure:
    """Draw three small dabs of a brush, and what is left of them at 14 x 14."""
    large = np.zeros((224, 224), np.float32)
    for place in ((40, 56), (112, 120), (184, 168)):
        cv2.circle(large, place, 4, 1.0, cv2.FILLED)
    sampled = cv2.resize(large, (14, 14), interpolation=cv2.INTER_LINEAR)
    averaged = hkmap.resize_map(large, (14, 14))
    figure, axes = panels(1, 4)
    show(axes[0, 0], large, "224 x 224, three dabs")
    show(axes[0, 1], sampled, "14 x 14, sampled")
    show(axes[0, 2], averaged, "14 x 14, area averages")
    show(axes[0, 3], averaged / averaged.max(), "--normalise max")
    return figure


@torch.inference_mode()
def draw_network(runs: dict[str, TrainedModel], record: dict[str, Any]) -> Figure:
    """Draw how an image goes through the networks: features, attention, weighted features, answer."""
    figure, axes = panels(len(runs), 5, [1, 1, 1, 1, 1.2])
    for row, (title, model) in zip(axes, runs.items(), strict=True):
        features = model.network.features(prepared(model, record))
        look = model.network.look(features)
        answer = model.network.answer(features, look.attention).softmax(1)[0].numpy()
        seen = features[0].abs().mean(0)
        show(row[0], pixels(record), "image")
        row[0].set_ylabel(title, fontsize=11)
        show(row[1], seen / seen.max(), "features (mean)")
        show(row[2], look.attention[0, 0], "attention M")
        show(row[3], seen * look.attention[0, 0] / seen.max(), "features x M")
        colours = ["#009e73" if label == record["label"] else "#999999" for label in range(len(answer))]
        row[4].bar(range(len(answer)), answer, color=colours)
        row[4].set(ylim=(0, 1), xticks=range(len(answer)), xticklabels=range(len(answer)))
        row[4].set_box_aspect(1 / 1.2)
        row[4].set_title(f"answer: {answer.argmax()}, the label is {record['label']}", fontsize=11)
    return figure


@torch.inference_mode()
def draw_curves(model: TrainedModel, record: dict[str, Any]) -> Figure:
    """Draw frames of insertion and deletion, and the curves with their areas."""
    image = prepared(model, record)[0]
    output = model.network(image[None])
    answer = int(output.logits.argmax())
    saliency = torch.nn.functional.interpolate(output.attention, image.shape[1:], mode="bilinear")[0, 0]
    ranks = rank_pixels(saliency)
    figure, axes = panels(2, len(SHARES) + 1, [1.0] * len(SHARES) + [1.5])
    ends = {"insertion": (rise_blur(image), image), "deletion": (image, no_image(image))}
    for row, (name, (start, finish)) in zip(axes, ends.items(), strict=True):
        for axis, share in zip(row, SHARES, strict=False):
            frame = torch.where(ranks < share * ranks.numel(), finish, start).mean(0)
            show(axis, frame, f"{share:.0%}", cmap="grey", vmin=float(image.min()), vmax=float(image.max()))
        scores = curve(lambda frames: model.network(frames).logits.softmax(1)[:, answer], start, finish, ranks, 16)
        places = np.linspace(0, 1, len(scores))
        row[0].set_ylabel(name, fontsize=11)
        row[-1].fill_between(places, scores, color="#56b4e9", alpha=0.4)
        row[-1].plot(places, scores, color="#0072b2")
        row[-1].set(xlim=(0, 1), ylim=(0, 1), xticks=(0, 0.5, 1), xticklabels=("0", "50 %", "100 %"), yticks=(0, 1))
        row[-1].set_title(f"probability of {answer}; area {auc(scores):.2f}", fontsize=11)
    return figure


def draw_shams(records: list[dict[str, Any]]) -> Figure:
    """Draw what each control trains the first image on."""
    maps = [load_map(record["map"]) for record in records]
    labels = np.array([record["class"] for record in records])
    figure, axes = panels(1, len(CONTROLS))
    for axis, (name, control) in zip(axes[0], CONTROLS.items(), strict=True):
        human = maps[control.owners(np.arange(len(maps)), labels, 0)[0]]
        if control.change is not None:
            human = control.change(Weighted(human, None), np.random.default_rng(1)).map
        show(axis, overlay(pixels(records[0]), human), "its own map" if name == "none" else name)
    return figure


def prepared(model: TrainedModel, record: dict[str, Any]) -> torch.Tensor:
    """Return a record's image as its network sees it (1, 3, H, W)."""
    small = cv2.resize(pixels(record), (32, 32), interpolation=cv2.INTER_AREA)
    return hkmap.normalise(torch.from_numpy(small)[None], model.preprocessing)


def mended(runs: dict[str, TrainedModel], records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the first record that the first network gets wrong and the second is sure of."""
    before, after = (list(hkmap.predict(model, records)) for model in runs.values())
    return next(
        record for record, one, other in zip(records, before, after, strict=True)
        if one.label != record["label"] and other.label == record["label"] and other.confidence > 0.7
    )


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        subprocess.run(FINETUNE.split(), cwd=folder, check=True, stdout=subprocess.DEVNULL)
        draw_all(folder, out)


def draw_all(folder: Path, out: Path) -> None:
    records = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    runs = {"labels alone": hkmap.load_model(folder / "run"), "with human maps": hkmap.load_model(folder / "run-human")}
    for model in runs.values():
        model.network.eval()
    rcParams["font.family"] = "DejaVu Sans"      # matplotlib's own, the same on every machine
    record = mended(runs, records)
    save(draw_bandwidths(records[0]), out / "bandwidths.png")
    save(draw_averages(), out / "averages.png")
    save(draw_network(runs, record), out / "network.png")
    save(draw_curves(runs["with human maps"], record), out / "curves.png")
    save(draw_shams(records), out / "shams.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
