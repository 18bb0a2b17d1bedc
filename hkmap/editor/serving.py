"""An editor on a port, served by uvicorn in a thread of its own, so that signals stay the command's."""

from __future__ import annotations

import asyncio
import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import uvicorn
import websockets  # noqa: F401  (that uvicorn looks for when it is too late for a sentence)
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from hkmap.editor.access import Access, Guard, keep, kept
from hkmap.editor.addresses import base_address, listening
from hkmap.editor.messages import MOST_BYTES
from hkmap.editor.server import Editor

PATIENCE = 30.0         # seconds in which a connection has to ask for something
MOST_FILES = 65_536     # open at once, connections too


class ImpatientProtocol(H11Protocol):
    """HTTP that closes a connection which asks for nothing."""

    def connection_made(self, transport: asyncio.Transport) -> None:      # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(PATIENCE, self._give_up)

    def _give_up(self) -> None:
        if self.cycle is None and self.transport.get_protocol() is self:      # else it has become a WebSocket
            self.transport.close()


@contextmanager
def hosted(
    editor: Editor, *, host: str, port: int | None, token: str | None
) -> Iterator[tuple[threading.Thread, list[str]]]:
    """Serve an editor to its people; yield the thread that does, and the link of each person.

    Without a ``port`` it is the one that served the folder last, if that is free; without a ``token`` so is the secret.
    """
    out = editor.session.folder.out
    secret, last = kept(out)
    access = Access(token or secret, editor.users, out, host)
    listener = listening(host, (port,) if port else (last, 0) if last else (0,))
    found = listener.getsockname()[1]
    keep(out, secret, found)
    with closing(editor), served(Guard(editor.app(), access), listener) as thread:
        yield thread, [f"{base_address(host, found)}/?{access.query(user)}" for user in editor.users]


@contextmanager
def served(app: ASGIApp, listener: socket.socket) -> Iterator[threading.Thread]:
    """Serve an app, and yield the thread that does, until the context ends."""
    with suppress(OSError, ValueError):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
    options: dict[str, Any] = {
        "http": ImpatientProtocol, "ws": "auto", "loop": "asyncio", "lifespan": "off", "access_log": False,
        "log_config": None, "log_level": "error", "server_header": False, "ws_max_size": MOST_BYTES,
        "ws_per_message_deflate": False, "timeout_graceful_shutdown": 2, "proxy_headers": False,
    }
    server = uvicorn.Server(uvicorn.Config(app, **options))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="server", daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
