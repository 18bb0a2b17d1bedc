"""Shared fixtures: the real data, the command line in this process, and real shell pipelines."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import pkgutil
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import pytest
from click.testing import CliRunner

import hkmap as hkmap_package
from hkmap.cli.main import hkmap

# A shell that starts the tests in the background has them ignore Ctrl-C, and so would every command they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_finish(session: pytest.Session) -> None:
    """Import the whole package before a test that draws: hypothesis also draws the constants of modules it finds
    imported, so that what it drew depended on which tests had run before.
    """
    if any(item.get_closest_marker("hypothesis") for item in session.items):
        for module in pkgutil.walk_packages(hkmap_package.__path__, "hkmap."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)


@dataclass(frozen=True)
class Result:
    exit_code: int
    stdout: str
    stderr: str

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stdout.splitlines()]


def lines(records: list[dict[str, Any]]) -> str:
    """The records as the text that flows in a pipe."""
    return "".join(json.dumps(record) + "\n" for record in records)


def overridden(options: Sequence[object], *more: object) -> list[object]:
    """The options of a command line, with the values of ``more``, as no option may be given twice."""
    flags = {flag for flag in more if str(flag).startswith("--")}
    pairs = zip(options[::2], options[1::2], strict=True)
    return [*(word for pair in pairs if pair[0] not in flags for word in pair), *more]


def rewrite(shard: Path, change: Callable[[h5py.File], object]) -> None:
    """Change a shard as another program would: by libhdf5, and without a user block."""
    other = shard.with_name("other.h5")
    with h5py.File(shard) as old, h5py.File(other, "w") as new:
        for name in old:
            old.copy(name, new)
        new.attrs.update(old.attrs)
        change(new)
    other.replace(shard)


def replace(name: str, values: Any) -> Callable[[h5py.File], object]:
    """What ``rewrite`` is to change: one dataset, to these values."""

    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = values

    return change


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets; the test is skipped where it is absent."""
    root = Path(os.environ.get("HKMAP_DATA", ROOT.parent / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"no real data at {root}; set HKMAP_DATA")
    return root


@pytest.fixture(scope="session")
def timm() -> Iterator[Any]:
    """The package timm; the test is skipped where it is absent.

    torchvision, which it imports, stops beside a torch of another build unless two of its operators are declared.
    """
    import torch

    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed; pip install 'hkmap[timm]'")
    declared = None
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] in ("timm", "torchvision")]:
            del sys.modules[name]
        declared = torch.library.Library("torchvision", "DEF")
        declared.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        declared.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    yield importlib.import_module("timm")
    del declared        # its operators are gone with it


@pytest.fixture
def hk() -> Callable[..., Result]:
    """Run the whole group in this process: ``hk("resize", "--size", 14, stdin=records)``.

    An exception that is not a user's error comes through, as it is a bug.
    """

    def run(*arguments: object, stdin: list[dict[str, Any]] | str | bytes = b"") -> Result:
        text = lines(stdin) if isinstance(stdin, list) else stdin
        result = CliRunner().invoke(hkmap, [str(argument) for argument in arguments], input=text)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Result(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def shell(tmp_path: Path) -> Callable[..., Result]:
    """Run a line of bash in a fresh folder, with `hkmap` on the PATH and pipefail set."""

    def run(command: str, **environment: str) -> Result:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-c", f"set -o pipefail\n{command}"], cwd=tmp_path, capture_output=True, text=True, check=False,
            env={**os.environ, "PATH": path, **environment}, timeout=300,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def terminal(tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """Run hkmap with a terminal as stdout or stderr; the exit code, what the terminal shows, and the other stream.

    Without an input the terminal is stdin too.
    """

    def run(*arguments: str, stream: str, stdin: bytes | None = b"", **environment: str) -> tuple[int, str, str]:
        ours, theirs = pty.openpty()
        streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: theirs}
        given: dict[str, Any] = {"stdin": theirs} if stdin is None else {"input": stdin}
        paths = {"PYTHONPATH": os.pathsep.join(sys.path)}       # with what a test has installed
        with os.fdopen(ours, "rb", buffering=0) as screen:
            done = subprocess.run(
                [sys.executable, "-m", "hkmap", *arguments], cwd=tmp_path, check=False, timeout=60, **streams, **given,
                env={**os.environ, **paths, **environment},
            )
            os.write(theirs, b"END")
            shown = b""
            while not shown.endswith(b"END"):
                shown += screen.read(65536)
            os.close(theirs)
        other = done.stderr if stream == "stdout" else done.stdout
        return done.returncode, shown.removesuffix(b"END").decode(), other.decode()

    return run


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Install a distribution as pip would: ``installed("dots", CODE, group="hkmap.sources", dots="dots:FORMAT")``."""
    modules = []

    def install(module: str, code: str, *, group: str, **entries: str) -> None:
        information = tmp_path / f"site-{module}" / f"{module}-1.0.dist-info"
        information.mkdir(parents=True)
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        rows = "".join(f"{name} = {value}\n" for name, value in entries.items())
        (information / "entry_points.txt").write_text(f"[{group}]\n{rows}")
        (information.parent / f"{module}.py").write_text(code)
        monkeypatch.syspath_prepend(str(information.parent))
        modules.append(module)

    yield install
    for module in modules:
        sys.modules.pop(module, None)


def write_shard(
    path: Path, count: int = 12, *, side: int = 16, classes: int = 2, maps: int | None = None, seed: int = 0
) -> Path:
    """Write a shard of small generated images: a bright square whose place tells the label, a map over the square."""
    import cv2
    import numpy as np

    from hkmap.shards.writer import ShardWriter

    rng = np.random.default_rng(seed)
    with ShardWriter(path) as writer:
        for number in range(count):
            label = number % classes
            image = rng.integers(0, 60, (side, side, 3), dtype=np.uint8)
            values = np.zeros((8, 8), np.float32)
            row, column = divmod(label, 2)
            image[row * side // 2 : (row + 1) * side // 2, column * side // 2 : (column + 1) * side // 2] += 150
            values[row * 4 : row * 4 + 4, column * 4 : column * 4 + 4] = 1
            record = {"id": f"{path.name}-{number}", "image": "x.png", "label": label, "class": f"class {label}"}
            drawn = values if maps is None or number < maps else None
            writer.add(record, cv2.imencode(".png", image)[1].tobytes(), drawn, None)
    return path


@pytest.fixture
def make_shard(tmp_path: Path) -> Callable[..., Path]:
    """Write a shard as ``write_shard`` does, in the test's folder: ``make_shard("train.h5", 12)``."""
    return lambda name, *arguments, **options: write_shard(tmp_path / name, *arguments, **options)
