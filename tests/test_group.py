"""The group `hkmap`: its help, the shell's completion, commands of other packages, and choices by name."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.shell_completion import BashComplete

from hkmap.choices import TABLES, table
from hkmap.cli._options import Named
from hkmap.cli.main import OURS, SECTIONS, hkmap, load

# the help


@pytest.mark.parametrize("columns", [80, 120])
def test_the_help_has_sections_and_each_line_is_whole(shell: Callable, columns: int) -> None:
    text = shell("hkmap --help", COLUMNS=str(columns)).stdout
    assert "…" not in text
    assert "..." not in text.partition("Sources:")[2]
    for title, lines in SECTIONS.items():
        rows = text.partition(f"\n{title}:\n")[2].partition("\n\n")[0].splitlines()
        assert [row.split(maxsplit=1) for row in rows] == [[name, line] for name, line in lines.items()]
    assert max(map(len, text.splitlines())) <= columns
    assert "hkmap train train.h5 --arch" in text
    assert "Commands of other packages" not in text


@pytest.mark.parametrize("name", OURS)
def test_a_command_has_the_name_of_its_file_and_a_line_of_its_own(name: str) -> None:
    assert load(name).name == name
    assert load(name).get_short_help_str(62).endswith(".")


def test_a_command_is_imported_when_it_is_called() -> None:
    code = "import sys; from hkmap.cli.main import hkmap, load; load('cub'); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {name for name in modules if name.startswith("hkmap.cli.") and name[10] != "_"} == {
        "hkmap.cli.main", "hkmap.cli.cub",
    }


# choices by name


def choices() -> list[tuple[str, click.Option]]:
    return [(name, option) for name in OURS for option in load(name).params if isinstance(option.type, Named)]


@pytest.mark.parametrize(("name", "option"), choices(), ids=lambda value: getattr(value, "name", value))
def test_a_choice_completes_is_checked_and_says_where_it_is_listed(name: str, option: click.Option) -> None:
    flag, names = max(option.opts, key=len), list(table(option.type.table))
    assert f"See `hkmap list {option.type.table}`." in (option.help or "")
    assert completed(name, flag, incomplete="") == names
    assert completed(name, flag, incomplete=names[-1][:-1]) == [one for one in names if one.startswith(names[-1][:-1])]
    given = option.default if isinstance(option.default, str) else names[0]
    assert option.type.convert(given, option, None) == ((given,) if option.multiple else given)
    with pytest.raises(click.BadParameter, match=f"'{names[0]}q' is unknown; did you mean"):
        option.type.convert(f"{names[0]}q", option, None)


def completed(*words: str, incomplete: str) -> list[str]:
    found = BashComplete(hkmap, {}, "hkmap", "_HKMAP_COMPLETE").get_completions(list(words), incomplete)
    return [item.value for item in found]


def test_the_shell_completes_commands_options_choices_and_files(shell: Callable) -> None:
    def typed(line: str) -> list[str]:
        words = f"COMP_WORDS='{line}' COMP_CWORD={len(line.split(' ')) - 1}"
        return shell(f"{words} _HKMAP_COMPLETE=bash_complete hkmap").stdout.splitlines()

    assert typed("hkmap bo") == ["plain,boxes2map"]
    assert typed("hkmap boxes2map --ed") == ["plain,--edge"]
    assert typed("hkmap boxes2map --edge so") == ["plain,soft"]
    assert typed("hkmap pack --store p") == ["plain,pixels"]
    assert typed("hkmap merge all.h5 tr") == ["file,tr"]
    assert typed("hkmap list gat") == ["plain,gates"]


def test_completing_one_option_does_not_check_the_others() -> None:
    """It would import torch for the default of --gate, a second before the shell answers."""
    code = (
        "import sys; from click.shell_completion import BashComplete as B; from hkmap.cli.main import hkmap; "
        "print([item.value for item in B(hkmap, {}, 'hkmap', 'X').get_completions(['train'], '--res')]); "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "['--resume']\n"), done.stderr


def test_list_names_every_table_and_the_options_that_take_from_it(hk: Callable) -> None:
    listed = {row["name"]: row["doc"] for row in hk("list").records}
    assert list(listed) == list(TABLES)
    assert listed["bandwidths"] == "bubbles2map --bandwidth"
    assert listed["map_losses"] == "finetune --map-loss"
    for name, option in choices():
        assert f"{name} {max(option.opts, key=len)}" in listed[option.type.table]


def test_list_names_the_rows_and_where_they_come_from(hk: Callable, installed: Callable) -> None:
    ours = hk("list", "bandwidths").records
    assert [row["name"] for row in ours] == list(table("bandwidths"))
    assert all(row["doc"] and row["origin"] == "hkmap" for row in ours)
    code = 'def wide(*_):\n    """As wide as the image."""\n    return 99.0\n'
    installed("broader", code, group="hkmap.bandwidths", wide="broader:wide", scott="broader:wide", bad="broader:gone")
    *same, wide, bad = hk("list", "bandwidths").records
    assert same == ours         # a name of ours stays ours
    assert wide == {"name": "wide", "doc": "As wide as the image.", "origin": "broader"}
    assert "cannot be imported" in bad["doc"]
    assert hk("list", "bandwiths").exit_code == 2


def test_list_is_text_on_a_terminal(installed: Callable, terminal: Callable) -> None:
    installed("broader", "def wide(*_): 'Wide.'", group="hkmap.bandwidths", wide="broader:wide")
    shown = terminal("list", "bandwidths", stream="stdout")[1]
    rows = [line.split(maxsplit=1) for line in shown.splitlines()]
    assert rows[0][0] == "scott"
    assert ["wide", "Wide. (from broader)"] in rows


# commands of other packages


MINE = '''
import click

@click.command("mine")
@click.argument("name")
def mine(name):
    """Greet somebody."""
    from hkmap.errors import RecordError
    if name == "nobody":
        raise RecordError("nobody: is nobody; name somebody")
    click.echo(f"hello {name}")

not_a_command = 7
'''


def test_another_package_adds_a_command(hk: Callable, installed: Callable) -> None:
    installed("mine", MINE, group="hkmap.commands", mine="mine:mine", cub="mine:mine")
    assert hk("mine", "you").stdout == "hello you\n"
    failed = hk("mine", "nobody")
    assert (failed.exit_code, failed.stderr) == (1, "Error: nobody: is nobody; name somebody\n")
    section = hk("--help").stdout.partition("Commands of other packages:\n")[2]
    assert section.split() == ["mine", "Greet", "somebody."]        # cub stays ours
    assert "Caltech" in hk("cub", "--help").stdout
    assert completed(incomplete="mi") == ["mine"]


def test_a_command_that_cannot_be_loaded_is_a_line_and_an_error_when_it_is_called(hk, installed) -> None:
    installed("broken", "import no_such_module", group="hkmap.commands", broken="broken:command")
    installed("wrong", MINE, group="hkmap.commands", wrong="wrong:not_a_command")
    result = hk("--help")
    assert (result.exit_code, result.stderr) == (0, "")
    for name, reason in (
        ("broken", 'the command "broken" (broken:command) cannot be imported (ModuleNotFoundError: '),
        ("wrong", 'the command "wrong" (wrong:not_a_command) is a int; expected a click.core.Command'),
    ):
        assert f"{name:11}  cannot be loaded; call `hkmap {name}` to see why\n" in result.stdout
        called = hk(name)
        assert called.exit_code == 1
        assert called.stderr.startswith(f"Error: {reason}")
        assert "Traceback" not in called.stderr
    assert completed(incomplete="bro") == ["broken"]


def test_commands_of_other_packages_are_not_imported_for_one_of_ours(hk: Callable, installed: Callable) -> None:
    installed("loud", "raise SystemExit('imported')", group="hkmap.commands", loud="loud:command")
    assert hk("resize", "--size", 3, "--missing", "pass", "--out", "m", stdin=[{"id": "1"}]).records == [{"id": "1"}]


# a machine without a desktop


@pytest.mark.parametrize("library", ["libGL.so.1", "libgthread-2.0.so.0"])
def test_a_cv2_without_the_libraries_of_a_desktop_is_a_sentence(shell: Callable, tmp_path: Path, library: str) -> None:
    message = f"{library}: cannot open shared object file: No such file or directory"
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub" / "cv2.py").write_text(f"raise ImportError({message!r})\n")
    record = '{"id": "1", "size": [9, 9], "points": [{"x": 1, "y": 1}]}'
    path = os.pathsep.join(filter(None, (str(tmp_path / "stub"), os.environ.get("PYTHONPATH"))))
    result = shell(f"echo '{record}' | hkmap bubbles2map --bandwidth fixed --out m", PYTHONPATH=path)
    assert result.exit_code == 1
    assert result.stderr == (
        f"Error: OpenCV cannot be loaded ({message}); on a machine without a desktop run "
        "`pip uninstall opencv-python`, then `pip install opencv-python-headless`\n"
    )
    assert list(result.records[0]) == ["error"]
    assert shell("hkmap --help", PYTHONPATH=path).exit_code == 0


def test_another_failed_import_is_a_bug_and_keeps_its_traceback(shell: Callable, tmp_path: Path) -> None:
    (tmp_path / "cv2.py").write_text("raise ImportError('half installed')\n")
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    result = shell("hkmap bubbles2map --out m <<< ''", PYTHONPATH=path)
    assert "Traceback" in result.stderr


# sides are WIDTHxHEIGHT


@pytest.mark.parametrize(("size", "shape"), [("5", (5, 5)), ("7x3", (3, 7)), ("007X3", (3, 7))])
def test_sides_are_width_by_height(hk, tmp_path, monkeypatch, size: str, shape: tuple[int, int]) -> None:
    import numpy as np

    monkeypatch.chdir(tmp_path)
    record = {"id": "1", "size": [50, 40], "boxes": [{"x": 0, "y": 0, "width": 50, "height": 9}]}
    (drawn,) = hk("boxes2map", "--size", size, "--out", "a", stdin=[record]).records
    assert np.load(drawn["map"]).shape == shape
    (resized,) = hk("resize", "--size", size, "--out", "b", stdin=[drawn]).records
    assert np.load(resized["map"]).shape == shape
