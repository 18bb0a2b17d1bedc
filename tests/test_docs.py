"""What is written about hkmap holds: the command reference, the command lines, the doctests, the versions."""

from __future__ import annotations

import doctest
import importlib
import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from conftest import ROOT

import hkmap
from hkmap.choices import table
from hkmap.cli._options import Named
from hkmap.cli.main import OURS, load
from hkmap.cli.main import hkmap as group

COMMANDS = [load(name) for name in OURS]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "hkmap").rglob("*.py")
    if path.stem != "__main__"
)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKING = [*PAGES, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", ROOT / "examples" / "README.md"]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


# the command reference


def test_the_command_reference_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "43")                     # neither the terminal nor a variable shows in it
    monkeypatch.setenv("HKMAP_RESIZE_SIZE", "7")
    generated = runpy.run_path(str(ROOT / "docs" / "generate_commands.py"))["reference"]()
    assert read("docs/commands.md") == generated, "docs/commands.md is not what --help says: run `make docs`"


def test_the_command_reference_has_a_section_for_every_command() -> None:
    titles = re.findall(r"^## (.*)$", read("docs/commands.md"), re.MULTILINE)
    assert titles == ["hkmap", *(f"hkmap {command.name}" for command in COMMANDS)]


# the doctests


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_hold(name: str) -> None:
    module = importlib.import_module(name)
    assert doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE).failed == 0


# the command lines


def sentences(text: str) -> Iterator[list[str]]:
    """Yield the words of every `hkmap ...` in a shell text, up to the next pipe, redirection or end of a command."""
    text = re.sub(r"(^|\s)#.*$", "", text.replace("\\\n", " "), flags=re.MULTILINE)
    for line in text.splitlines():
        lexer = shlex.shlex(line.strip().removeprefix("$ "), posix=True, punctuation_chars=True)
        lexer.commenters = ""
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("|&;<>()"):
                if words[:1] == ["hkmap"]:
                    yield words[1:]
                words = []
            elif words or word == "hkmap":
                words.append(word)


def shell_blocks(page: str) -> str:
    return "\n".join(re.findall(r"^```(?:sh|bash|shell|console)\n(.*?)^```", page, re.MULTILINE | re.DOTALL))


def examples(command: click.Command) -> str:
    return (command.help or "").partition("Example:")[2]


def parse(words: list[str]) -> None:
    """Let click's parser go over the words, without a file being opened or anything run."""
    context = click.Context(group)
    parser = group.make_parser(context)
    parser.allow_interspersed_args = False
    _, rest, _ = parser.parse_args(list(words))
    if rest:
        command = group.get_command(context, rest[0])
        assert command is not None, f"there is no command {rest[0]}"
        values, left, _ = command.make_parser(click.Context(command)).parse_args(rest[1:])
        _check(command, values, left)


def _check(command: click.Command, values: dict[str, object], left: list[str]) -> None:
    assert not left, f"{command.name}: {left} is too much"
    for parameter in command.params:
        given = values.get(parameter.name or "")
        words = {given} if isinstance(given, str) else set(given) if isinstance(given, list | tuple) else set()
        assert parameter.name != "records" or not any(word.endswith(".h5") for word in words), "unpack the shard first"
        assert words or not parameter.required or "help" in values, f"{command.name}: {parameter.name} is missing"
        literal = {word for word in words if not word.startswith("$")}
        if isinstance(parameter.type, click.Choice):
            assert literal <= set(parameter.type.choices), f"{command.name}: {parameter.name} cannot be {words}"
        listed = {part for word in literal for part in word.split(",")}
        for word in listed if isinstance(parameter.type, Named) else ():
            assert word in table(parameter.type.table) or re.fullmatch(r"[\d.]+", word), f"{parameter.name}: {word}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_the_command_lines_in_the_docs_exist(path: Path) -> None:
    for words in sentences(shell_blocks(path.read_text(encoding="utf-8"))):
        try:
            parse(words)
        except (click.UsageError, AssertionError) as error:
            pytest.fail(f"{path.name}: `hkmap {' '.join(words)}`: {error}")


@pytest.mark.parametrize("command", [group, *COMMANDS], ids=lambda command: command.name)
def test_the_command_lines_in_the_help_exist(command: click.Command) -> None:
    found = list(sentences(examples(command)))
    assert found
    for words in found:
        parse(words)


def test_the_readme_shows_a_pipeline() -> None:
    named = {words[0] for words in sentences(shell_blocks(read("README.md"))) if words}
    assert {"pack", "train", "finetune", "eval"} <= named
    assert "set -o pipefail" in read("README.md")


@pytest.mark.parametrize("line", [
    "hkmap resise --size 3 --out m", "hkmap resize --side 3 --size 3 --out m", "hkmap resize --out m",
    "hkmap train --out run", "hkmap resize a b --size 3 --out m", "hkmap resize --size 3 --out m --missing maybe",
    "hkmap resize maps.h5 --size 3 --out m", "cat x | hkmap resize --sizes 3 > y", "hkmap --loud",
])
def test_a_wrong_command_line_would_be_found(line: str) -> None:
    (words,) = sentences(line)
    with pytest.raises((click.UsageError, AssertionError)):
        parse(words)


# links, versions, citation


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", LINKING, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if not re.match(r"https?:|mailto:", target):
            name, _, anchor = target.partition("#")
            page = path.parent / name if name else path
            assert page.exists(), f"{path.name} links to {target}"
            assert not anchor or anchor in anchors(page), f"{path.name} links to {target}"


def test_the_start_page_lists_every_page() -> None:
    listed = set(re.findall(r"\]\((\w+\.md)\)", read("docs/index.md")))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} == listed | {"index.md"}
    assert "](docs/index.md)" in read("README.md")


def test_the_version_is_one_and_stands_in_the_changelog() -> None:
    version = re.escape(hkmap.__version__)
    assert re.search(rf'^version = "{version}"$', read("pyproject.toml"), re.MULTILINE)
    assert re.search(rf"^## \[?v?{version}\b", read("CHANGELOG.md"), re.MULTILINE), "the changelog lacks the version"


def test_the_citation_has_what_citation_tools_ask_for() -> None:
    """The file is YAML; this reads the plain subset of it that a citation needs."""
    text = read("CITATION.cff")
    assert "\t" not in text
    top = dict(re.findall(r"^([a-z-]+):[ ]*(.*)$", text, re.MULTILINE))
    assert {"cff-version", "message", "title", "authors"} <= set(top)
    assert re.fullmatch(r'"?1\.\d+\.\d+"?', top["cff-version"])
    assert top.get("version", hkmap.__version__).strip("\"'") == hkmap.__version__
    for line in text.splitlines():
        assert re.fullmatch(r"|#.*|[a-z-]+:( .*)?|(- | ).*", line), line
    assert "1905.03540" in text        # the paper whose method this is
