"""What the package promises of itself: its size, its Pythons, its dependencies, and what is in the wheel."""

from __future__ import annotations

import ast
import configparser
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest
from conftest import ROOT
from hypothesis import settings
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
#: Where the name of a package is not the name that is imported.
PACKAGES = {"cv2": "opencv-python", "PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml"}
LINES = runpy.run_path(str(ROOT / "benchmarks" / "lines.py"))


# size


def test_the_code_keeps_its_budgets(capsys: pytest.CaptureFixture[str]) -> None:
    assert LINES["main"](ROOT) == 0, capsys.readouterr().out


def write_tree(root: Path, files: dict[str, int]) -> None:
    for name, lines in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n" * lines)


@pytest.mark.parametrize(("files", "code", "expected"), [
    ({"hkmap/a.py": 30_400, "hkmap/maps/b.py": 200}, 0, r"hkmap +30,600 +[0-9]+ .* at most 30,600 lines$"),
    ({"hkmap/a.py": 30_401, "hkmap/maps/b.py": 200}, 1, r"at most 30,600 lines: 1 OVER$"),
    ({"hkmap/files/a.py": 1_000, "hkmap/shards/a.py": 3_050}, 0, r"files \+ shards +4,050"),
    ({"hkmap/files/a.py": 1_000, "hkmap/shards/a.py": 3_052}, 1, r"at most 4,050 lines: 2 OVER$"),
    ({f"hkmap/maps/{number}.py": 1 for number in range(13)}, 0, r"  maps +13 +14 .* at most 14 modules$"),
    ({f"hkmap/maps/{number}.py": 1 for number in range(14)}, 1, r"at most 14 modules: 1 OVER$"),
    ({f"hkmap/cli/{number}.py": 1 for number in range(40)}, 0, r"  cli +40 +41"),
    ({"tests/a.py": 20_000, "tests/soak/b.py": 3}, 0, r"tests +20,003 +2 "),
])
def test_make_lines_counts_and_refuses(files: dict[str, int], code: int, expected: str, tmp_path, capsys) -> None:
    packages = {Path(name).parent for name in files if name.startswith("hkmap/")} | {Path("hkmap")}
    write_tree(tmp_path, {**files, **{f"{package}/__init__.py": 0 for package in packages}})
    assert LINES["main"](tmp_path) == code
    assert re.search(expected, capsys.readouterr().out, re.MULTILINE)


# Pythons


def test_all_places_name_the_same_pythons() -> None:
    assert PROJECT["project"]["requires-python"] == f">={PYTHONS[0]}"
    named = [name.rpartition(" :: ")[2] for name in PROJECT["project"]["classifiers"] if "Python :: 3." in name]
    assert named == PYTHONS
    assert PROJECT["tool"]["ruff"]["target-version"] == "py" + PYTHONS[0].replace(".", "")
    types = configparser.ConfigParser()
    types.read(ROOT / "setup.cfg")
    assert types["mypy"]["python_version"] == PYTHONS[0]
    assert f"Python ≥ {PYTHONS[0]}" in (ROOT / "README.md").read_text(encoding="utf-8")


# dependencies


def requirements(extra: str | None = None) -> list[Requirement]:
    project = PROJECT["project"]
    lines = project["optional-dependencies"][extra] if extra else project["dependencies"]
    return [Requirement(line) for line in lines]


def test_what_is_imported_is_declared_and_nothing_else() -> None:
    imported = set()
    for path in (ROOT / "hkmap").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {name.name.partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").partition(".")[0])
    foreign = imported - set(sys.stdlib_module_names) - {"hkmap"}
    # tensorboard and wandb are imported by the name that --log gives
    extras = (None, "coco", "dask", "edit", "onnx", "parquet", "timm")
    declared = {requirement.name for extra in extras for requirement in requirements(extra)}
    assert {PACKAGES.get(name, name) for name in foreign} == declared


def test_the_constraints_pin_every_dependency_within_its_range() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pins = [Requirement(line.partition("#")[0]) for line in text.splitlines() if line.partition("#")[0].strip()]
    versions = {canonicalize_name(pin.name): str(pin.specifier) for pin in pins}
    assert len(versions) == len(pins)
    for extra in (None, *PROJECT["project"]["optional-dependencies"]):
        for requirement in requirements(extra):
            if requirement.name != "setuptools":        # it builds, and PyTorch too says which
                pinned = versions[canonicalize_name(requirement.name)].removeprefix("==")
                assert requirement.specifier.contains(pinned), requirement


# the wheel


#: Each kind of file of the package; weights, data and tests are none.
KINDS = re.compile(
    r"hkmap/((\w+/)*\w+\.py|py\.typed|report/page\.html|training/recipes/[\w-]+\.toml"
    r"|editor/static/[\w-]+\.(css|html|js|svg))"
)
#: What an sdist has beside the package.
AROUND = {"LICENSE", "README.md", "pyproject.toml", "MANIFEST.in", "setup.cfg", "PKG-INFO"}


def run_python(*arguments: object, folder: Path | None = None) -> None:
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, built from a copy of what it needs, as setuptools leaves its own files beside the sources."""
    folder = tmp_path_factory.mktemp("sdist")
    shutil.copytree(ROOT / "hkmap", folder / "hkmap", ignore=shutil.ignore_patterns("__pycache__"))
    for left_out in ("tests/test_left_out.py", "hkmap/left_out.pt", "hkmap/training/recipes/left_out.h5", "docs/a.md"):
        (folder / left_out).parent.mkdir(exist_ok=True)
        (folder / left_out).write_text("")
    for name in AROUND - {"PKG-INFO"}:
        shutil.copy(ROOT / name, folder)
    run_python("-c", "from setuptools.build_meta import build_sdist; build_sdist('dist')", folder=folder)
    return next((folder / "dist").iterdir())


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the sdist."""
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder]
    run_python("-m", "pip", "wheel", *options, sdist)
    return next(folder.iterdir())


def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_bytes(archive.read(name))


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")
    held = contents(wheel)
    paths = (path for path in (ROOT / "hkmap").rglob("*") if path.is_file() and path.parent.name != "__pycache__")
    assert held == {str(path.relative_to(ROOT)) for path in paths}
    assert {"hkmap/py.typed", "hkmap/editor/static/index.html"} <= held


def test_the_wheel_says_what_it_needs(wheel: Path) -> None:
    found = metadata(wheel)
    assert found["Requires-Python"] == f">={PYTHONS[0]}"
    assert found["License-Expression"] == "MIT"
    needed = [Requirement(line) for line in found.get_all("Requires-Dist", [])]
    plain = {requirement.name for requirement in needed if requirement.marker is None}
    assert plain == {requirement.name for requirement in requirements()}
    assert not {requirement.name for requirement in needed} & {"joblib", "tomli"}
    assert set(found.get_all("Provides-Extra", [])) == {*PROJECT["project"]["optional-dependencies"]}


def test_the_package_has_no_other_kind_of_file(wheel: Path) -> None:
    assert {name for name in contents(wheel) if not KINDS.fullmatch(name)} == set()


def test_the_sdist_holds_the_package_and_what_builds_it(sdist: Path, wheel: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    assert {name for name in names if not name.startswith("hkmap.egg-info/")} == contents(wheel) | AROUND
    assert {"hkmap/report/page.html", "hkmap/training/recipes/cub-scratch.toml"} <= names


def test_an_index_takes_both(sdist: Path, wheel: Path) -> None:
    """`twine check` renders the README as the index does, and --strict also fails where it warns."""
    pytest.importorskip("twine")
    run_python("-m", "twine", "check", "--strict", sdist, wheel)


# what `make` runs


def test_make_lists_every_target() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = set(re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)[0].split())
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^  make ([a-z-]+) +\S", listed, re.MULTILINE)) == phony


def test_hypothesis_draws_the_same_in_every_run() -> None:
    """A test that draws anew may fail for whoever comes next; `make fuzz` is for that."""
    assert settings.get_profile("ci").derandomize
    assert "--hypothesis-profile=ci" in PROJECT["tool"]["pytest"]["ini_options"]["addopts"]
    word = "derandomize"
    own = [path.name for path in (ROOT / "tests").rglob("*.py") if f"{word}=" in path.read_text(encoding="utf-8")]
    assert not own, "the profile says it; a test that says it too is left out by `make fuzz`"
