"""Only regular files are opened for reading: a pipe would be waited for, and a device never ends."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hkmap.errors import ImageError
from hkmap.files.images import image_size
from hkmap.files.opening import file_content, open_file

FOUND = {"pipe": "a pipe", "device": "a device", "link": "a device", "folder": "a folder"}


def made(kind: str, name: str) -> str:
    """Make a file that is none in the current folder."""
    if kind == "pipe":
        os.mkfifo(name)
    elif kind == "folder":
        Path(name).mkdir()
    elif kind == "link":
        Path("zero").symlink_to("/dev/zero")
        Path(name).symlink_to("zero")
    else:
        Path(name).symlink_to("/dev/zero")
    return name


def record(key: str, value: Any) -> list[dict[str, Any]]:
    return [{"id": "1", "image": "x.png", "size": [9, 9], key: value}]


@pytest.mark.parametrize("kind", FOUND)
def test_what_is_no_file_is_named(kind: str, here: Path) -> None:
    name = made(kind, "x")
    for read in (open_file, file_content):
        with pytest.raises(OSError, match=f"{FOUND[kind]}, expected a regular file"):
            read(name)


def test_a_name_with_a_null_byte_is_no_file() -> None:
    with pytest.raises(ImageError, match="a name with a null byte, expected a regular file"):
        image_size(Path("x\0.png"))


def test_a_link_to_a_file_is_followed(here: Path) -> None:
    Path("there").write_bytes(b"content")
    Path("link").symlink_to("there")
    assert file_content("link") == b"content"


READS: dict[str, tuple[str, Callable[[str], tuple[list[Any], Any]]]] = {
    "pack an image": ("f.png", lambda name: (["pack", "x.h5"], record("image", name))),
    "show an image": ("f.png", lambda name: (["show", "--out", "s.png"], record("image", name))),
    "crop an image": ("f.png", lambda name: (["crop", "--letterbox", "1:1", "--out", "c"], record("image", name))),
    "check an image": ("f.jpg", lambda name: (["check"], record("image", name))),
    "measure an image": ("f.png", lambda name: (["check"], [{"id": "1", "image": name, "masks": {"a": "x.png"}}])),
    "a mask": ("f.png", lambda name: (["masks2map", "--out", "m"], record("masks", {"a": name}))),
    "a part of a mask": ("f.png", lambda name: (["masks2map", "--out", "m"], record("masks", {"a": f"{name}#1"}))),
    "a bright mask": ("f.jpg", lambda name: (["masks2map", "--out", "m"], record("masks", {"a": f"{name}#>=9"}))),
    "a variable": ("f.mat", lambda name: (["masks2map", "--out", "m"], record("masks", {"a": f"{name}#x"}))),
    "a mask in show": ("f.png", lambda name: (["show", "--out", "s.png"], record("masks", {"a": name}))),
    "an unknown region": ("f.png", lambda name: (
        ["certainty", "--out", "k"], [{**record("unknown", {"a": name})[0], "map": "map.npy"}]
    )),
    "a map": ("f.npy", lambda name: (["resize", "--size", 4, "--out", "m"], record("map", name))),
    "a grey map": ("f.png", lambda name: (["resize", "--size", 4, "--out", "m"], record("map", name))),
    "a row": ("f.h5", lambda name: (["resize", "--size", 4, "--out", "m"], record("map", f"{name}#0"))),
    "a map to pack": ("f.npy", lambda name: (["pack", "x.h5"], record("map", name))),
    "an image of a shard": ("f.h5", lambda name: (["pack", "x.h5"], record("image", f"{name}#0"))),
    "info": ("f.h5", lambda name: (["info", name], b"")),
    "check a shard": ("f.h5", lambda name: (["check", name], b"")),
    "unpack": ("f.h5", lambda name: (["unpack", name], b"")),
    "names of classes": ("f.txt", lambda name: (["pack", "x.h5", "--classes", name], record("map", "map.npy"))),
    "a tar": ("f.tar", lambda name: (["webdataset", name, "--out", "w"], b"")),
}


@pytest.mark.parametrize("kind", ["pipe", "device", "link"])
@pytest.mark.parametrize("name", READS)
def test_no_command_waits_or_reads_without_end(name: str, kind: str, hk, here: Path) -> None:
    Image.new("RGB", (9, 9)).save("x.png")
    np.save("map.npy", np.zeros((4, 4), np.float32))
    file, call = READS[name]
    arguments, stdin = call(made(kind, file))
    done = hk(*arguments, stdin=stdin)
    assert done.exit_code in (1, 2, 3)
    told = " ".join((done.stderr + done.stdout).replace("\u2502", " ").split())
    assert f"{file}: {FOUND[kind]}, expected a regular file" in told or f"{file}: not a plain file" in told
