"""Who may speak with an editor: its people, each with a token of their own, from a page that it served itself.

A token is an HMAC of the editor's secret and a person's name, so nobody can act as another. The link gives it once, a
cookie keeps it. A page of another site can neither read nor change anything: its Origin is refused, and a name that it
has bound to our address (DNS rebinding) is not one of ours.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlencode

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from hkmap.editor.addresses import is_address, own_names

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_LINK = "open the link that `hkmap edit` has printed"


class Access:
    """The people of an editor and their tokens; ``out`` names the cookie, so that two editors keep theirs apart."""

    def __init__(self, secret: str, users: tuple[str, ...], out: Path, host: str) -> None:
        self.users, self.cookie = users, f"hkmap-{hashlib.sha256(os.fsencode(out.resolve())).hexdigest()[:12]}"
        self._secret = secret.encode()
        self._names = own_names(host)

    def token(self, user: str) -> str:
        return hmac.new(self._secret, user.encode(), hashlib.sha256).hexdigest()

    def query(self, user: str) -> str:
        """Return what a person's link ends in."""
        return urlencode({"user": user, "token": self.token(user)})

    def admits(self, user: str, token: str) -> bool:
        return user in self.users and hmac.compare_digest(token.encode(), self.token(user).encode())

    def person(self, connection: HTTPConnection) -> str | None:
        """Return whose cookie came with a request."""
        name, _, token = connection.cookies.get(self.cookie, "").rpartition(".")
        user = unquote(name)
        return user if self.admits(user, token) else None

    def knows(self, host: str) -> bool:
        """Whether a Host header names this machine: by an address, which no other site can have, or a name of ours.

        The port is not compared: `ssh -L` has its own.
        """
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        return name.lower() in self._names or is_address(name)

    def admitted(self, user: str) -> Response:
        """Return the answer to a link: a cookie, and on to the page, whose address has no token.

        Lax, not Strict: a Strict one is not sent on to the page where the link was clicked in a mail or a chat of the
        browser. No GET changes anything, and a WebSocket of another site is refused by its Origin, and without cookie.
        """
        response = RedirectResponse("/", status_code=303)
        response.set_cookie(self.cookie, f"{quote(user, safe='')}.{self.token(user)}", httponly=True, samesite="lax")
        return response


class Guard:
    """An app that only its people reach; each response has the headers that keep a page to itself."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        answer = self._answer(connection)
        if answer is None:
            await self.app({**scope, "user": self.access.person(connection)}, receive, _with_headers(send))
        elif scope["type"] == "websocket":
            await WebSocket(scope, receive, send).close(1008)
        else:
            await answer(scope, receive, _with_headers(send))

    def _answer(self, connection: HTTPConnection) -> Response | None:
        """Return what a request is told before it reaches the app: a refusal, or a cookie; None where it may pass."""
        if connection.scope.get("method", "GET") != "GET":
            return PlainTextResponse("only GET is answered", 405)
        host = connection.headers.get("host", "")
        if not self.access.knows(host):
            return _refused(f"the editor does not go by the name of {host[:100]!r}; {_LINK}, or give --host that name")
        if not _is_own(connection, host):
            return _refused("a page of another site asked for this, and gets nothing")
        query = connection.query_params
        if "token" in query and connection.url.path == "/":
            user = query.get("user", "")
            if self.access.admits(user, query["token"]):
                return self.access.admitted(user)
            return _refused(f"the token is not that of this editor and person; {_LINK}")
        return None if self.access.person(connection) else _refused(f"no token came along; {_LINK}")


def _is_own(connection: HTTPConnection, host: str) -> bool:
    """Whether the page that asks is of this server; a WebSocket must say so, as browsers do."""
    origin = connection.headers.get("origin")
    return connection.scope["type"] != "websocket" if origin is None else origin == f"http://{host}"


def _refused(why: str) -> Response:
    return PlainTextResponse(f"hkmap edit: {why}.\n", 403)


def _with_headers(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=message["headers"])
            headers.update(HEADERS)
            headers.setdefault("Cache-Control", "no-store")
            message["headers"] = headers.raw
        await send(message)

    return sent


# what outlives the editor


def kept(out: Path) -> tuple[str, int]:
    """Return the secret and the port of the editor that last served a folder; else a new secret, and 0.

    So a page that was left open finds its editor again. A file that others may read or have written does not count.
    """
    try:
        descriptor = os.open(out / ".editor.json", os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(descriptor) as file:
            status = os.fstat(descriptor)
            if status.st_uid == os.getuid() and not status.st_mode & 0o077:
                found: Any = json.loads(file.read(1000))
                return str(found["secret"]), int(found["port"])
    except (OSError, ValueError, LookupError, TypeError):
        pass
    return secrets.token_urlsafe(32), 0


def keep(out: Path, secret: str, port: int) -> None:
    """Keep what `kept` returns, for this user's eyes."""
    beside = out / ".editor.json.part"
    beside.unlink(missing_ok=True)
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump({"secret": secret, "port": port}, file)
    beside.replace(out / ".editor.json")
