"""An app on a port, served by uvicorn in a thread of its own, so that signals stay the command's."""

from __future__ import annotations

import asyncio
import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn
import websockets  # noqa: F401  (that uvicorn looks for when it is too late for a sentence)
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from hkmap.editor.messages import MOST_BYTES

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
