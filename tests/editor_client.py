"""An editor on a real port, and pages that speak with it: what the tests of the server share."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np
import torch
from websockets.sync.client import ClientConnection, connect

from hkmap.editor.access import Access, Guard
from hkmap.editor.addresses import listening
from hkmap.editor.live import LiveNetwork
from hkmap.editor.server import Editor
from hkmap.editor.serving import served
from hkmap.editor.session import EditSession
from hkmap.engine.inputs import Preprocessing
from hkmap.engine.runs import TrainedModel
from hkmap.networks.architectures import Architecture, build

SECRET = "a secret of the tests"
DAB = {"tool": "add", "points": [[12, 9]], "radius": 6, "strength": 1.0, "softness": 0.5}


def network() -> LiveNetwork:
    torch.manual_seed(0)
    architecture = Architecture("resnet8+abn", 3, stem="small", width=4)
    model = TrainedModel(build(architecture).eval(), architecture, Preprocessing(16, 16), ("a", "b", "c"), "none")
    return LiveNetwork(model, torch.device("cpu"))


def images(folder: Path, count: int = 3, *, size: tuple[int, int] = (24, 32)) -> list[dict[str, Any]]:
    """Records of PNG images of ``size`` (height, width), the first with a map."""
    rng = np.random.default_rng(0)
    records: list[dict[str, Any]] = []
    for number in range(count):
        path = folder / f"{number}.png"
        assert cv2.imwrite(str(path), rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        records.append({"id": f"r{number}", "image": str(path), "label": number % 3})
    np.save(folder / "human.npy", rng.random((6, 8), np.float32))
    records[0]["map"] = str(folder / "human.npy")
    return records


class Page:
    """What an open page says and hears."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    def say(self, do: str, **what: Any) -> None:
        self.socket.send(json.dumps({"do": do, **what}))

    def hear(self, of: str) -> dict[str, Any]:
        """Return the next message of a kind; others before it are lost."""
        while True:
            heard: dict[str, Any] = json.loads(self.socket.recv(timeout=30))
            if heard["of"] == of:
                return heard

    def ask(self, do: str, of: str, **what: Any) -> dict[str, Any]:
        self.say(do, **what)
        return self.hear(of)


@dataclass(frozen=True)
class Site:
    """A server at an address, as those find it who have a person's token."""

    address: str
    access: Access
    editor: Any = None

    def cookie(self, user: str = "ana") -> str:
        return f"{self.access.cookie}={user}.{self.access.token(user)}"

    def get(
        self, path: str, headers: dict[str, str] | None = None, *, method: str = "GET", user: str | None = "ana",
    ) -> tuple[int, Any, bytes]:
        """Return the status, the headers and the body of an answer."""
        connection = http.client.HTTPConnection(self.address, timeout=30)
        own = {"Cookie": self.cookie(user)} if user else {}
        connection.request(method, path, headers=own | (headers or {}))
        response = connection.getresponse()
        body = response.read()
        connection.close()
        return response.status, response.headers, body

    @contextmanager
    def page(self, user: str = "ana", **headers: str) -> Iterator[Page]:
        own = {"Cookie": self.cookie(user), "Origin": f"http://{self.address}"} | headers
        with connect(f"ws://{self.address}/live", additional_headers=own, max_size=None, proxy=None) as socket:
            yield Page(socket)


@contextmanager
def site(session: EditSession, users: tuple[str, ...] = ("ana",), **orders: Any) -> Iterator[Site]:
    """Serve a session as the command does."""
    editor = Editor(session, users, **orders)
    access = Access(SECRET, users, session.folder.out, "127.0.0.1")
    listener = listening("127.0.0.1", (0,))
    with served(Guard(editor.app(), access), listener):
        yield Site(f"127.0.0.1:{listener.getsockname()[1]}", access, editor)
    editor.close()


def site_of(link: str, out: Path) -> Site:
    """Return the server of a link that the command has printed, whose token is ana's or the only person's."""
    parts = urlsplit(link)
    return Site(parts.netloc, Access(SECRET, ("ana",), out, "127.0.0.1"))
