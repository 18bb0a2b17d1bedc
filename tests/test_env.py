"""`hkmap env`: what a bug report needs, where something is broken too, and nothing about whoever reports."""

from __future__ import annotations

import getpass
import platform
import socket
import sys
import tomllib
from collections.abc import Callable
from importlib import metadata

import h5py
import pytest
import torch
from conftest import ROOT
from packaging.requirements import Requirement

import hkmap
from hkmap.cli.env import PACKAGES


def test_env_names_versions_and_the_machine(hk: Callable) -> None:
    found = hk("env", "--json").records[0]
    assert list(found) == [
        "hkmap", "python", "platform", "cores", "memory", "hdf5", "opencv", "cuda", "devices", "packages",
    ]
    assert (found["hkmap"], found["python"]) == (hkmap.__version__, platform.python_version())
    assert found["hdf5"] == h5py.version.hdf5_version
    assert (found["cuda"], len(found["devices"])) == (torch.version.cuda, torch.cuda.device_count())
    assert found["cores"] >= 1
    assert found["memory"] > 2**28
    assert found["packages"]["torch"] == metadata.version("torch")
    assert [name for name in PACKAGES if name in found["packages"]] == list(found["packages"])


def test_the_text_says_the_same_line_by_line(hk: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.version.cuda", "12.8")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_name", "GPU {}".format)
    monkeypatch.setattr("hkmap.parallel.threads.machine_memory", lambda: 3 * 2**29)
    found = hk("env", "--json").records[0]
    rows = dict(line.split(maxsplit=1) for line in hk("env").stdout.splitlines())
    assert (rows.pop("memory"), rows.pop("cuda"), rows.pop("devices")) == ("1.5 GiB", "12.8", "GPU 0, GPU 1")
    packages = found.pop("packages")
    assert rows == {**{name: str(found[name]) for name in rows if name in found}, **packages}


def test_what_is_not_installed_is_left_out(hk: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name != "numpy":
            raise metadata.PackageNotFoundError(name)
        return "1.2.3"

    monkeypatch.setattr(metadata, "version", version)
    assert hk("env", "--json").records[0]["packages"] == {"numpy": "1.2.3"}


def test_a_library_that_cannot_be_loaded_says_why_and_shows_no_path(hk, tmp_path, monkeypatch) -> None:
    reason = "/home/ann b/.venv/lib/libtorch.so: undefined symbol: x\\n  '/home/ann b/lib64/y.so' is missing"
    (tmp_path / "torch.py").write_text(f'raise OSError("""{reason}""")')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch")
    found = hk("env", "--json").records[0]
    sentence = "cannot be loaded (OSError: libtorch.so: undefined symbol: x 'y.so' is missing)"
    assert (found["cuda"], found["devices"]) == (sentence, sentence)
    assert found["hdf5"] == h5py.version.hdf5_version
    assert sentence in hk("env").stdout


def test_the_report_names_no_one_and_no_folder(hk: Callable) -> None:
    said = hk("env").stdout
    assert not {"/", "~"} & set(said)
    assert not {getpass.getuser(), socket.gethostname()} & set(said.split())


def test_every_dependency_and_extra_is_named() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [lines for name, lines in project["optional-dependencies"].items() if name not in ("dev", "site")]
    declared = {Requirement(line).name for line in sum(extras, project["dependencies"])}
    assert declared <= set(PACKAGES)
    assert len(set(PACKAGES)) == len(PACKAGES)
