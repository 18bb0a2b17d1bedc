"""CONTRIBUTING.md leads to files that exist, and the hooks before a commit run what `make check` runs."""

from __future__ import annotations

import re

import pytest
from conftest import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
WHERE = TEXT.partition("## Where a change goes")[2].partition("\n## ")[0]
REQUESTS = {title: text for title, _, text in (part.partition("\n") for part in WHERE.split("\n### ")[1:])}
#: In backticks: a folder, or a file; NAME stands for a name to be chosen.
PATH = re.compile(r"`((?:[\w.-]+/)+|(?:[\w.-]+/)*[\w.-]+\.(?:py|md|toml|cfg|txt))`")


def test_ten_requests_are_answered() -> None:
    assert list(REQUESTS) == [
        "Another bandwidth", "A data set", "An annotation format", "A metric", "A map loss", "An architecture",
        "A sham", "A schedule", "A column of the shards", "A command",
    ]


@pytest.mark.parametrize("request_", REQUESTS)
def test_an_answer_names_code_a_test_and_where_it_is_described(request_: str) -> None:
    paths = PATH.findall(REQUESTS[request_])
    assert any(path.startswith("hkmap/") for path in paths)
    assert any(path.startswith("tests/") for path in paths)
    assert any(path.endswith(".md") for path in paths) or "make docs" in REQUESTS[request_]


@pytest.mark.parametrize("path", sorted(set(PATH.findall(TEXT))))
def test_the_path_exists(path: str) -> None:
    if "NAME" in path:
        assert list((ROOT / path).parent.glob((ROOT / path).name.replace("NAME", "*")))
    else:
        assert (ROOT / path).exists()


@pytest.mark.parametrize("table", sorted(set(re.findall(r"row to `([A-Z_]+)` in `([^`]+)`", TEXT))))
def test_the_table_is_where_it_is_said_to_be(table: tuple[str, str]) -> None:
    name, path = table
    assert re.search(rf"^{name}\b.*=", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)


def test_the_targets_of_make_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:`|^)make ([a-z-]+)", TEXT, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_hooks_run_what_make_check_runs() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    rule = re.search(r"^check:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert rule is not None
    commands = [line.strip().replace("$(BIN)", ".venv/bin") for line in rule[1].splitlines()]
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    assert re.findall(r"^ +entry: (.*)$", hooks, re.MULTILINE) == commands
