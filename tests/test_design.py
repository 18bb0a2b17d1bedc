"""The house rules a reader may rely on: layers, no circles, light imports, small packages, help for every option."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import click
import pytest
from conftest import ROOT

from hkmap.cli.main import OURS, load

COMMANDS = [load(name) for name in OURS]
MODULES = sorted((ROOT / "hkmap").rglob("*.py"))
SOURCES = [
    path
    for folder in ("hkmap", "tests", "examples", "benchmarks", "docs")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".py", ".sh", ".md")
]

# From the bottom up; a module imports from its own layer and those below. "hkmap" is __init__.py; choices stands low
# because it names its tables by strings.
LAYERS = (
    "hkmap", "errors", "choices", "statistics", "records", "parallel", "maps", "files", "shards", "stream", "sources",
    "report", "networks", "engine", "evaluation", "results", "training", "editor", "cli", "__main__",
)
MOST_MODULES = 14       # of a package, but for those of LISTS, whose modules are alike
LISTS = ("cli", "sources")

#: Options whose names say all that there is to say.
PLAIN_OPTIONS = {"--batch-size", "--momentum", "--weight-decay"}


def identifier(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield the full name of everything imported anywhere below ``tree``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "expected absolute imports"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def at_start(path: Path) -> ast.Module:
    """The module without what only type checkers or function calls import."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lazy = (ast.FunctionDef, ast.AsyncFunctionDef)
    tree.body = [node for node in tree.body if not isinstance(node, lazy) and not _for_types(node)]
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            node.body = [item for item in node.body if not isinstance(item, lazy)]
    return tree


def _for_types(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def layer(name: str) -> str:
    """The layer of a dotted name of ours: "hkmap.files.images.decode_image" is in "files"."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in LAYERS else "hkmap"


# imports


def test_every_module_belongs_to_a_layer() -> None:
    assert {layer(module_name(path)) for path in MODULES} == set(LAYERS)
    assert {path.relative_to(ROOT / "hkmap").parts[0].removesuffix(".py") for path in MODULES} - {"__init__"} == set(
        LAYERS
    ) - {"hkmap"}


@pytest.mark.parametrize("path", MODULES, ids=identifier)
def test_imports_point_down_only(path: Path) -> None:
    own = layer(module_name(path))
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for name in imports(tree):
        if name.split(".")[0] == "hkmap":
            other = layer(name)
            assert LAYERS.index(other) <= LAYERS.index(own), f"{own} imports {name}"


def test_no_module_imports_itself_by_a_detour() -> None:
    known = {module_name(path) for path in MODULES}
    graph: dict[str, set[str]] = {}
    for path in MODULES:
        tree = ast.parse(path.read_text(encoding="utf-8"))      # bodies of functions too: late is no way round
        named = {name if name in known else name.rpartition(".")[0] for name in imports(tree)}
        graph[module_name(path)] = named & known - {module_name(path)}
    TopologicalSorter(graph).prepare()      # raises CycleError, which names the circle


@pytest.mark.parametrize("path", [path for path in MODULES if path.parent.name == "cli"], ids=identifier)
def test_the_command_line_starts_light(path: Path) -> None:
    light = (
        "hkmap.errors", "hkmap.choices", "hkmap.records", "hkmap.parallel", "hkmap.cli", "hkmap.__version__", "click",
    )
    for name in imports(at_start(path)):
        assert name.split(".")[0] in sys.stdlib_module_names or name.startswith(light), f"{path.name} imports {name}"


PLACES = ((9, 9), (30, 9), (8, 30))
BUBBLES = {"id": "7", "size": [50, 40], "bubbles": [{"x": x, "y": y, "radius": 4} for x, y in PLACES], "boxes": []}
MASKS = {"id": "7", "size": [1, 1], "masks": {}}


@pytest.mark.parametrize(("arguments", "absent"), [
    (["--help"], ["numpy", "cv2", "h5py", "torch", "scipy", "sklearn", "PIL", "rich", "hkmap.cli.cub"]),
    (["--version"], ["numpy", "importlib.metadata"]),
    (["list"], ["numpy", "torch"]),
    (["bubbles2map", "--help"], ["torch", "scipy", "sklearn", "h5py"]),
    (["train", "--help"], ["numpy", "torch"]),
    (["bubbles2map", "--out", "maps"], ["torch", "scipy.stats", "sklearn", "h5py", "rich", "matplotlib"]),
    (["bubbles2map", "--bandwidth", "cv", "--out", "maps"], ["torch", "scipy", "sklearn", "h5py"]),
    (["boxes2map", "--out", "maps"], ["torch", "scipy", "sklearn", "h5py"]),
    (["masks2map", "--out", "maps"], ["torch", "scipy", "sklearn", "h5py"]),
    (["certainty", "--missing", "pass", "--out", "maps"], ["torch", "scipy", "sklearn", "h5py"]),
    (["resize", "--size", "3", "--missing", "pass", "--out", "maps"], ["torch", "scipy", "sklearn", "h5py"]),
    (["folder", "."], ["torch", "scipy", "sklearn", "h5py"]),
    (["sample", "3"], ["numpy", "cv2", "torch", "scipy", "sklearn", "h5py"]),
    (["split", "--help"], ["numpy", "sklearn"]),
    (["webdataset", "--help"], ["numpy", "cv2"]),
    (["crop", "--letterbox", "1", "--out", "out"], ["torch", "scipy", "sklearn", "h5py"]),
], ids=lambda value: " ".join(value[:2]))
def test_a_command_imports_no_more_than_it_needs(arguments: list[str], absent: list[str], tmp_path: Path) -> None:
    """torch costs 1.3 s at start, sklearn 1.0 s, scipy.stats 0.8 s, and every stage of a pipe pays."""
    code = (
        "import json, sys\nfrom hkmap.cli import main\n"
        "try: main()\nexcept SystemExit as end: code = end.code\n"
        "json.dump([code, list(sys.modules)], sys.stderr)"
    )
    (tmp_path / "1.png").write_bytes(PIXEL)
    record = {"masks2map": MASKS, "crop": {"id": "7", "image": "1.png"}}.get(arguments[0], BUBBLES)
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], input=json.dumps(record), cwd=tmp_path, capture_output=True,
        text=True, check=True, timeout=60,
    )
    exit_code, modules = json.loads(done.stderr.splitlines()[-1])
    assert exit_code == 0, done.stderr
    assert not set(absent) & set(modules)
    if "--out" in arguments and arguments[0] not in ("resize", "certainty", "crop"):
        assert '"map": "maps/7.npy"' in done.stdout      # it ran in earnest


PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b550000000a49444154789c6360000000020001"
    "48afa4710000000049454e44ae426082"
)


# what stands below cli/ neither talks nor ends the program


@pytest.mark.parametrize("path", [path for path in MODULES if path.parent.name != "cli"], ids=identifier)
def test_the_library_neither_talks_nor_exits(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not {name.split(".")[0] for name in imports(tree)} & {"click", "rich", "tqdm"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in ("print", "input", "sys.exit", "exit", "quit", "SystemExit")
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in ("sys.stdout", "sys.stderr", "sys.argv")


# help


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_explains_itself(command: click.Command) -> None:
    help_text = command.help or ""
    assert re.search(r"^\s*Example:\n\s*(set -o pipefail\n\s*)?hkmap ", help_text, re.MULTILINE)
    assert f"hkmap {command.name}" in help_text.partition("Example:")[2]
    assert help_text.splitlines()[0].endswith((".", ":"))
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help or PLAIN_OPTIONS.issuperset(option.opts), f"{option.opts[0]} has no help"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_a_command_is_a_short_sentence(command: click.Command) -> None:
    """At most 15 statements in the body, the imports aside; what is more belongs into the library."""
    path = ROOT / "hkmap" / "cli" / f"{command.name}.py"
    functions = [
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and "click.command" in "".join(map(ast.unparse, node.decorator_list))
    ]
    assert len(functions) == 1, "one file a command"
    body = ast.Module(functions[0].body[1:], [])       # without the docstring
    statements = [node for node in ast.walk(body) if isinstance(node, ast.stmt)]
    assert len([node for node in statements if not isinstance(node, ast.Import | ast.ImportFrom)]) <= 15


# names and sizes


def test_a_package_can_be_kept_in_mind() -> None:
    for package in (path.parent for path in MODULES if path.name == "__init__.py"):
        modules = [path for path in package.glob("*.py") if path.name != "__init__.py"]
        assert len(modules) <= MOST_MODULES or package.name in LISTS, f"{package.name} has {len(modules)} modules"


@pytest.mark.parametrize("path", MODULES, ids=identifier)
def test_files_are_named_for_what_they_do(path: Path) -> None:
    assert path.stem not in ("utils", "util", "helpers", "helper", "misc", "common", "tools")


@pytest.mark.parametrize("path", SOURCES, ids=identifier)
def test_nothing_is_left_for_later(path: Path) -> None:
    words = "|".join(("TO" "DO", "FIX" "ME", "X" "XX", "HA" "CK"))
    assert not re.search(rf"\b({words})\b", path.read_text(encoding="utf-8"))
