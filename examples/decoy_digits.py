"""Write a small data set with a trap, in CUB-200-2011's layout: handwritten digits, and a decoy that reveals the label.

The digits are scikit-learn's (1,797 real handwritten ones, 8 x 8), enlarged twice, at a random place of a 32 x 32
canvas. In a corner lies a decoy patch: on 95 % of the training images its grey value tells the label, on the test
images it is random. A network that learns from the decoy fails on the test set. Four simulated users draw bubbles on
the strokes: what they know about where to look.

    python examples/decoy_digits.py demo/digits --seed 0 --anywhere

No digit covers the corner, so any map of digits hides it, other images' too. With --anywhere the decoy lies at a random
place beside the digit, which only the image's own map hides.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import cv2
import numpy as np
from sklearn.datasets import load_digits

CANVAS, DIGIT, PATCH = 32, 16, 6
DECOYS = 0.95           # share of the training images whose decoy tells the truth
USERS = 4
GROUND = 40             # the canvas's mean grey value
STEP = 12               # how much brighter the decoy is for each label: easier to learn than a digit


def places(rng: np.random.Generator, anywhere: bool) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the left and top of a digit and of a decoy clear of it, in the upper left corner unless ``anywhere``."""
    while True:
        left, top = (int(side) for side in rng.integers(0, CANVAS - DIGIT + 1, 2))
        x, y = (int(side) for side in rng.integers(0, CANVAS - PATCH + 1, 2)) if anywhere else (0, 0)
        if not (-PATCH < x - left < DIGIT and -PATCH < y - top < DIGIT):
            return (left, top), (x, y)


def canvas(
    digit: np.ndarray, told: int, rng: np.random.Generator, anywhere: bool = False
) -> tuple[np.ndarray, tuple[int, int]]:
    """Return the image (32, 32) of a digit (8, 8) in 0..16 with a decoy for ``told``, and the digit's left and top."""
    image = rng.normal(GROUND, 12, (CANVAS, CANVAS))
    (left, top), (x, y) = places(rng, anywhere)
    strokes = cv2.resize(digit, (DIGIT, DIGIT), interpolation=cv2.INTER_LINEAR) / 16 * 180
    image[top : top + DIGIT, left : left + DIGIT] += strokes
    image[y : y + PATCH, x : x + PATCH] += STEP * told
    return image.clip(0, 255).astype(np.uint8), (left, top)


def draw_bubbles(
    digit: np.ndarray, corner: tuple[int, int], rng: np.random.Generator
) -> list[tuple[float, float, float]]:
    """Return one user's bubbles (x, y, radius): on the strokes, more often where there is more ink."""
    ink = digit.ravel() / digit.sum()
    places = rng.choice(digit.size, rng.integers(3, 7), p=ink)
    scale = DIGIT / digit.shape[0]
    return [
        (
            corner[0] + (place % 8 + rng.random()) * scale,
            corner[1] + (place // 8 + rng.random()) * scale,
            rng.uniform(1, 1.7) * scale,
        )
        for place in places
    ]


def write(
    root: Path, seed: int, train: int, test: int, *, decoys: float = DECOYS, anywhere: bool = False
) -> None:
    """Write the data set with ``train`` + ``test`` images and its bubble table under ``root``."""
    if root.exists():
        raise SystemExit(f"{root} exists already; remove it, or choose another folder")
    rng = np.random.default_rng(seed)
    digits, labels = load_digits(return_X_y=True)
    chosen = rng.permutation(len(digits))[: train + test]
    (root / "images").mkdir(parents=True)
    names = [f"{label + 1:03d}.Digit_{label}" for label in range(10)]
    rows: dict[str, list[str]] = {"images": [], "image_class_labels": [], "train_test_split": []}
    bubbles = [["image", "x", "y", "radius", "user"]]
    for number, index in enumerate(chosen, start=1):
        digit, label, is_train = digits[index].reshape(8, 8), int(labels[index]), number <= train
        told = label if is_train and rng.random() < decoys else int(rng.integers(10))
        image, corner = canvas(digit, told, rng, anywhere)
        path = f"{names[label]}/digit_{number:04d}.png"
        (root / "images" / names[label]).mkdir(exist_ok=True)
        cv2.imwrite(str(root / "images" / path), image)
        rows["images"].append(f"{number} {path}\n")
        rows["image_class_labels"].append(f"{number} {label + 1}\n")
        rows["train_test_split"].append(f"{number} {int(is_train)}\n")
        for user in range(1, USERS + 1):
            for bubble in draw_bubbles(digit, corner, rng):
                bubbles.append([path, *(f"{value:.2f}" for value in bubble), f"user{user}"])
    for name, lines in rows.items():
        (root / f"{name}.txt").write_text("".join(lines))
    (root / "classes.txt").write_text("".join(f"{label + 1} {name}\n" for label, name in enumerate(names)))
    with open(root / "bubbles.csv", "w", newline="") as file:
        csv.writer(file).writerows(bubbles)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the decoy digits in CUB's layout, with a bubble table.")
    parser.add_argument("root", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=int, default=600)
    parser.add_argument("--test", type=int, default=400)
    parser.add_argument("--decoys", type=float, default=DECOYS, help="share of training images whose decoy is true")
    parser.add_argument("--anywhere", action="store_true", help="the decoy at a random place, not in a corner")
    write(**vars(parser.parse_args()))
