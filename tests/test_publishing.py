"""What publishes hkmap holds together: workflows, the image, the forms of issues, the citation.

None of it runs here. What they name must exist, and what they say must be what pyproject.toml says.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PYTHONS = [name.rpartition(" :: ")[2] for name in PROJECT["classifiers"] if "Python :: 3." in name]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")


def read(path: Path) -> dict[Any, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def workflow(name: str) -> dict[Any, Any]:
    """A workflow; YAML 1.1 reads its key `on` as true."""
    found = read(GITHUB / "workflows" / f"{name}.yml")
    return {"on": found.pop(True), **found}


def steps(content: dict[Any, Any]) -> list[dict[str, Any]]:
    return [step for job in content["jobs"].values() for step in job.get("steps", [])]


# workflows


def test_all_pythons_and_macos_are_tested() -> None:
    matrix = workflow("test")["jobs"]["test"]["strategy"]["matrix"]
    assert matrix["python"] == PYTHONS
    assert [(row["os"].partition("-")[0], row["python"] in PYTHONS) for row in matrix["include"]] == [("macos", True)]


def test_the_editor_s_page_is_tested_where_a_browser_is_there() -> None:
    run, = [step for step in steps(workflow("test")) if step.get("run") == "make test"]
    assert run["env"]["HKMAP_BROWSER"] == "${{ runner.os == 'Linux' && 'google-chrome' || '' }}"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_an_action_is_pinned_to_a_commit_whose_version_is_told(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    used = re.findall(r"uses: (.*)", text)
    assert used
    for action in used:
        local = action.startswith("./") and (ROOT / action).exists()
        assert local or re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}    # v\d+\.\d+\.\d+", action), action


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_job_may_do_no_more_than_it_must_and_ends(path: Path) -> None:
    content = workflow(path.stem)
    assert content["permissions"] == {"contents": "read"}
    may = {name: job["permissions"] for name, job in content["jobs"].items() if "permissions" in job}
    assert may == {
        "release": {"publish": {"id-token": "write"}}, "site": {"deploy": {"pages": "write", "id-token": "write"}},
    }.get(path.stem, {})
    assert all("timeout-minutes" in job for job in content["jobs"].values() if "steps" in job)
    kept = [step["with"]["persist-credentials"] for step in steps(content) if "checkout@" in step.get("uses", "")]
    assert not any(kept)
    assert "secrets." not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_makes_what_there_is_to_make(path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for step in steps(workflow(path.stem)):
        for target in re.findall(r"^make (\S+)", step.get("run", ""), re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_only_a_tag_publishes_what_was_tested_built_and_checked() -> None:
    release = workflow("release")
    assert release["on"] == {"push": {"tags": ["v*"]}}
    publish = release["jobs"]["publish"]
    assert set(publish["needs"]) == {"test", "build"}
    assert publish["environment"] == "pypi"
    assert release["jobs"]["test"]["uses"] == "./.github/workflows/test.yml"
    assert "workflow_call" in workflow("test")["on"]
    runs = [step["run"] for step in release["jobs"]["build"]["steps"] if "run" in step]
    assert "GITHUB_REF_NAME" in runs[0]
    assert runs[1:] == ["make dist"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^dist:.*\n(\t.*\n)*\t.*twine check --strict dist/\*$", makefile, re.MULTILINE)
    assert "pypi-publish" not in "".join(path.read_text() for path in WORKFLOWS if path.stem != "release")


# the image


def instructions(name: str) -> list[str]:
    return re.findall(rf"^{name} (.*)$", DOCKERFILE, re.MULTILINE)


def test_the_image_has_what_it_copies_and_nothing_else_is_sent() -> None:
    copied = [source for line in instructions("COPY") for source in line.split()[:-1]]
    assert {"hkmap", "pyproject.toml", "constraints.txt"} <= set(copied)
    assert all((ROOT / source).exists() for source in copied)
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert ignored[1] == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} == set(copied)


def test_the_image_takes_its_versions_from_the_constraints() -> None:
    base, = instructions("FROM")
    python = re.fullmatch(r"python:(3\.\d+)-slim-[a-z]+", base)
    assert python is not None
    assert python[1] in PYTHONS
    installs = re.findall(r"pip install (.*?)(?:&&|$)", " && ".join(instructions("RUN")))
    assert len(installs) == 3
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pins = dict(re.findall(r"^([\w-]+)==([\w.]+)", text, re.MULTILINE))
    for options in installs:
        assert "--constraint constraints.txt" in options
        assert "==" not in options
        assert options.split()[-1] == "." or options.split()[-1] in pins
    assert installs[0].split()[-1] == "torch"
    assert "/whl/cpu " in installs[0]
    assert pins["opencv-python-headless"] == pins["opencv-python"]


def test_the_image_runs_hkmap_as_nobody_of_importance() -> None:
    assert instructions("ENTRYPOINT") == ['["hkmap"]']
    assert instructions("USER") == ["1000"]
    assert DOCKERFILE.rindex("\nUSER ") > DOCKERFILE.rindex("\nRUN ")


# issues


def test_a_bug_report_has_the_command_and_the_environment() -> None:
    form = read(GITHUB / "ISSUE_TEMPLATE" / "bug.yml")
    required = {item["id"]: item["attributes"]["label"] for item in form["body"] if "validations" in item}
    assert required["command"] == "Command"
    assert required["environment"] == "`hkmap env`"
    assert read(GITHUB / "ISSUE_TEMPLATE" / "config.yml") == {"blank_issues_enabled": False}


# the citation


def test_the_citation_is_of_this_version() -> None:
    citation = read(ROOT / "CITATION.cff")
    assert (citation["cff-version"], citation["title"], citation["license"]) == ("1.2.0", "hkmap", PROJECT["license"])
    assert citation["version"] == PROJECT["version"]
    assert all(reference["title"] and reference["authors"] for reference in citation["references"])
