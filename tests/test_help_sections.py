"""The options of a command with many of them stand in sections in its help."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click
from click.testing import CliRunner

from hkmap.cli._options import composed, named_option
from hkmap.cli._strict import StrictCommand, section


def joined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options that are joined into one argument, as --fold is."""

    @click.option("--low", type=int, default=1, help="Where the range begins.")
    @click.option("--high", type=int, default=2, help="Where it ends.")
    @functools.wraps(function)
    def wrapper(*args: Any, low: int, high: int, **kwargs: Any) -> Any:
        return function(*args, span=(low, high), **kwargs)

    return wrapper


@click.command("toy", cls=StrictCommand)
@click.argument("shards", nargs=-1)
@section("Network", named_option("--pooling", table="poolings", default="mean", help="The pooling."))
@composed(
    section("Optimising", click.option("--epochs", default=3, help="How often."), joined),
    section("Network", click.option("--width", default=4, help="Channels.")),
)
@click.option("--a-rather-long-name-of-an-option", is_flag=True, help="Rarely used.")
@click.option("--secret", hidden=True)
def toy(**options: Any) -> None:
    """Show options."""
    click.echo(sorted(options.items()))


HELP = """\
Usage: toy [OPTIONS] [SHARDS]...

  Show options.

Network:
  --pooling mean|max              The pooling. See `hkmap list poolings`.
  --width INTEGER                 Channels.

Optimising:
  --epochs INTEGER                How often.
  --low INTEGER                   Where the range begins.
  --high INTEGER                  Where it ends.

Other options:
  --a-rather-long-name-of-an-option
                                  Rarely used.
  --help                          Show this message and exit.
"""


def test_sections_come_in_the_order_of_their_first_options_and_the_rest_last() -> None:
    assert CliRunner().invoke(toy, ["--help"], terminal_width=80).output == HELP


def test_a_command_in_sections_takes_its_options_as_before() -> None:
    done = CliRunner().invoke(toy, ["--high", "9", "--width", "8", "s.h5"])
    assert done.exit_code == 0, done.output
    for said in ("('span', (1, 9))", "('width', 8)", "('pooling', 'mean')", "('shards', ('s.h5',))"):
        assert said in done.output
    assert "given 2 times" in CliRunner().invoke(toy, ["--low", "1", "--low", "2"]).output


def test_a_command_without_sections_has_one_list(hk: Callable[..., Any]) -> None:
    text = hk("pack", "--help").stdout
    assert text.count("Options:") == 1
    assert "Other options" not in text


def test_the_group_lists_its_commands_too(hk: Callable[..., Any]) -> None:
    text = hk("--help").stdout
    assert "\nOptions:\n" in text
    assert "\nNetworks:\n" in text
