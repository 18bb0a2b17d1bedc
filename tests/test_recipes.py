"""Recipes: what the papers say is in them, what is ours is marked, and the command line and --config come first."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from hkmap.choices import table
from hkmap.cli._options import Named
from hkmap.cli._training import _check_type, _keys, recipe_option
from hkmap.cli.main import load
from hkmap.errors import ChoiceError
from hkmap.training import recipes
from hkmap.training.recipes import RECIPES

FOLDER = files("hkmap.training") / "recipes"
COMMANDS = "train", "finetune"
CUB = {"epochs": 300, "batch_size": 16, "optimizer": "sgd", "schedule": "step"}

#: What the papers and the ABN authors' code state, by recipe and command.
STATED: dict[tuple[str, str], dict[str, Any]] = {
    ("cub-scratch", "train"): {**CUB, "image_size": 224},
    ("cub-scratch", "finetune"): {**CUB, "update": "both", "map_loss": "l2norm"},
    ("cub-pretrained", "train"): {**CUB, "image_size": 224, "pretrained": True},
    ("cub-pretrained", "finetune"): {**CUB, "update": "both", "map_loss": "l2norm"},
    ("idrid", "train"): {"epochs": 9500, "batch_size": 20, "image_size": 360, "optimizer": "sgd",
                         "augment": ["mirror", "intensity", "scale", "rotate"]},
    ("idrid", "finetune"): {"epochs": 9500, "batch_size": 20, "optimizer": "sgd", "update": "both",
                            "map_loss": "l2norm", "augment": ["mirror", "intensity", "scale", "rotate"]},
    ("imagenet", "train"): {"epochs": 90, "batch_size": 256, "image_size": 224, "optimizer": "sgd", "lr": 0.1,
                            "momentum": 0.9, "weight_decay": 1e-4, "augment": ["resized-crop", "mirror"],
                            "schedule": "thirds"},
    ("imagenet", "finetune"): {"update": "both", "map_loss": "l2norm"},
    ("amb", "train"): {"arch": "resnet50+abn", "epochs": 300, "batch_size": 16},
    ("amb", "finetune"): {"epochs": 300, "batch_size": 16, "update": "all", "mining": 1e-4, "mask_threshold": 0.78,
                          "gamma": 0.0},
}


def lines_of(name: str, command: str) -> dict[str, str]:
    """The lines of a recipe's table, by their keys."""
    text = (FOLDER / f"{name}.toml").read_text(encoding="utf-8")
    part = re.split(r"^\[(\w+)\].*$", text, flags=re.MULTILINE)
    lines = part[part.index(command) + 1].strip().splitlines()
    return {line.partition(" =")[0]: line for line in lines}


def test_every_file_is_a_recipe() -> None:
    names = {path.name.removesuffix(".toml") for path in FOLDER.iterdir()}
    assert set(RECIPES) == names
    for name in RECIPES:
        content = tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
        assert content.keys() == {"title", *COMMANDS}
        assert content["title"] == RECIPES.describe()[name]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", [name for name in RECIPES if name != "few-shot"])
def test_a_line_is_what_the_paper_states_or_is_marked_as_ours(name: str, command: str) -> None:
    stated, lines = STATED[name, command], lines_of(name, command)
    found = recipes.options(name, command)
    assert found.keys() == lines.keys()
    assert {key: found.get(key) for key in stated} == stated
    unmarked = {key for key, line in lines.items() if "ours" not in line.partition("#")[2]}
    marked_in_part = {key for key in stated if "how much of each is ours" in lines[key]}
    assert unmarked | marked_in_part == stated.keys()


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_made_of_options_and_names_that_there_are(name: str, command: str) -> None:
    own = _keys(load(command))
    parameters = {option.name: option for option in load(command).params}
    for key, value in recipes.options(name, command).items():
        assert key in own, f"hkmap {command} has no --{key.replace('_', '-')}"
        parameter = parameters[own[key]]
        _check_type(Path(name), parameter, value)
        if isinstance(parameter.type, Named) and not str(value).startswith("timm/"):
            table(parameter.type.table).check(*(value if isinstance(value, list) else [str(value).split("+")[0]]))


def test_an_unknown_recipe_is_told_what_there_is() -> None:
    with pytest.raises(ChoiceError, match="recipe 'cub' is unknown; expected one of cub-scratch, cub-pretr"):
        recipes.options("cub", "train")


# what comes first


def call(*arguments: str | Path) -> tuple[Result, dict[str, Any]]:
    """Call finetune without its body; return what it would have got."""
    given: dict[str, Any] = {}
    own = [option for option in load("finetune").params if option.name not in ("recipe", "shards", "source")]
    command = recipe_option(click.Command("finetune", params=own, callback=lambda **options: given.update(options)))
    return CliRunner().invoke(command, [*map(str, arguments), "--out", "run"], prog_name="finetune"), given


def in_force(*arguments: str | Path) -> dict[str, Any]:
    ran, given = call(*arguments)
    assert ran.exit_code == 0, ran.output
    return {key: given[key] for key in ("epochs", "batch_size", "mining", "augmentations", "seed")}


def test_the_command_line_comes_before_a_config_and_that_before_a_recipe(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('epochs = 7\nbatch_size = 8\nseed = 3\n')
    recipe = {"epochs": 300, "batch_size": 16, "mining": 1e-4, "augmentations": ("resized-crop", "mirror"), "seed": 0}
    assert in_force("--recipe", "amb") == recipe
    assert in_force("--recipe", "amb", "--epochs", "2", "--augment", "crop") == recipe | {
        "epochs": 2, "augmentations": ("crop",)
    }
    both = recipe | {"epochs": 2, "batch_size": 8, "seed": 3}
    assert in_force("--recipe", "amb", "--config", config, "--epochs", "2") == both
    assert in_force("--config", config, "--epochs", "2", "--recipe", "amb") == both


def test_a_misspelt_recipe_is_a_wrong_call() -> None:
    ran, _ = call("--recipe", "cub-scrach")
    assert ran.exit_code == 2
    assert "recipe 'cub-scrach' is unknown; did you mean 'cub-scratch'?" in ran.output


def test_weights_of_a_file_come_before_a_recipe_that_downloads(
    hk: Callable[..., Any], make_shard: Callable[..., Path], tmp_path: Path
) -> None:
    shard = make_shard("a.h5", 8)
    small = ["--arch", "resnet8+abn", "--stem", "small", "--width", "4", "--image-size", "16", "--epochs", "1"]
    first = hk("train", shard, *small, "--out", tmp_path / "first")
    assert first.exit_code == 0, first.stderr
    weights = ["--weights", tmp_path / "first" / "best.safetensors"]
    run = hk("train", shard, "--recipe", "cub-pretrained", *small, *weights, "--out", tmp_path / "run")
    assert run.exit_code == 0, run.stderr
    config = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    assert (config["pretrained"], config["weights"]) == (False, str(weights[1]))
    both = hk("train", shard, *small, *weights, "--pretrained", "--out", tmp_path / "both")
    assert (both.exit_code, "give one of them" in both.stderr) == (2, True)
