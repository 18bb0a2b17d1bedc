"""Recipes by name: the options with which the papers train, as readable TOML files in recipes/."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from hkmap.choices import Choices

_NAMES = ("cub-scratch", "cub-pretrained", "idrid", "imagenet", "amb", "few-shot")


@dataclass(frozen=True)
class Recipe:
    """The options of a training: for "train" and for "finetune" values by the keys that config.toml has for them."""

    title: str
    options: dict[str, dict[str, Any]]


def _read(name: str) -> Recipe:
    content = tomllib.loads((files("hkmap.training") / "recipes" / f"{name}.toml").read_text(encoding="utf-8"))
    return Recipe(content.pop("title"), content)


RECIPES = Choices("recipe", {name: _read(name) for name in _NAMES}, kind=Recipe)


def options(name: str, command: str) -> dict[str, Any]:
    """Return a recipe's options of ``command``, "train" or "finetune"; raise ChoiceError for an unknown recipe.

    >>> options("amb", "finetune")["mining"]
    0.0001
    """
    return dict(RECIPES[name].options[command])
