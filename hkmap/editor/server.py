"""The page that people paint on: its files, the images, and one WebSocket per open page.

A page says what its person does, one JSON object per message (messages.py), and is told what came of it; see
docs/editor.md. Nothing here knows what a stroke is or does: that is the session's. Who may ask is access.py's.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from hkmap.editor.folder import check_person
from hkmap.editor.messages import Message, read_message
from hkmap.editor.pictures import picture, thumbnail
from hkmap.editor.session import EditSession, Open
from hkmap.errors import HkmapError, OutputError, RecordError
from hkmap.maps.certainty import Weighted
from hkmap.maps.strokes import MOST_POINTS, Trail, layer_size, to_json
from hkmap.records import Record, label_of

STATIC = Path(__file__).parent / "static"
QUIET = 2.0         # seconds in which no page has said anything, before what nobody has asked for is computed
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
MOST_THUMBNAILS = 2000      # some kilobytes each
Result = TypeVar("Result")

#: What a change does to a session.
CHANGES: dict[str, Callable[[EditSession, str, Message], Open]] = {
    "paint": lambda session, user, message: session.paint(message.number, user, message.painted),
    "undo": lambda session, user, message: session.undo(message.number, user),
    "redo": lambda session, user, message: session.redo(message.number, user),
    "reset": lambda session, user, message: session.reset(message.number, user),
    "start": lambda session, user, message: session.start(message.number, user, message.start),
    "mark": lambda session, user, message: session.mark(message.number, user, message.state),
}


class Editor:
    """A session behind a page, for people whose names are ``users``; ``orders`` are its ways through the records.

    ``files``, ``answers``, ``images`` and ``thumbnails`` are one thread each: no stroke waits for an answer, and no
    image for thumbnails. ``done`` is set when all people are.
    """

    def __init__(
        self, session: EditSession, users: tuple[str, ...], *, orders: Mapping[str, list[int]] | None = None,
        order: str = "given",
    ) -> None:
        for user in users:
            check_person(user)
        self.session, self.users = session, users
        self.orders, self.order = orders or {"given": list(range(len(session.records)))}, order
        self.done = threading.Event()
        self.finished: set[str] = set()
        self.connections: set[Connection] = set()
        self.at: dict[str, int] = {}
        self.busy_until = 0.0       # on the clock of the loop
        self.foresight = asyncio.Lock()
        self.known: dict[tuple[int, str], dict[str, Any]] = {}      # of records and people, as EditSession.outlook
        self.files, self.images, self.thumbnails = (
            ThreadPoolExecutor(1, thread_name_prefix=name) for name in ("files", "images", "thumbnails")
        )
        self.answers = ThreadPoolExecutor(1, "answers", session.network.prepare_thread if session.network else None)
        self._pools = [self.files, self.answers, self.images, self.thumbnails]
        self._static = {path.name: path for path in STATIC.iterdir() if path.suffix in TYPES}
        self._thumbnail = lru_cache(MOST_THUMBNAILS)(lambda number: thumbnail(session.image(number)))

    def app(self) -> Starlette:
        """Return the app; without a guard around it everybody is the first of the users."""
        return Starlette(routes=[
            Route("/", self.page), Route("/static/{name}", self.static), Route("/records.json", self.records),
            Route("/image/{number}", self.image), Route("/thumbnail/{number}", self.thumbnail),
            WebSocketRoute("/live", self.live),
        ])

    def close(self) -> None:
        """Wait for what is being kept."""
        for pool in self._pools:
            pool.shutdown(cancel_futures=True)

    # pages

    async def page(self, request: Request) -> Response:
        return self._file(request, "index.html")

    async def static(self, request: Request) -> Response:
        return self._file(request, request.path_params["name"])

    async def records(self, request: Request) -> Response:
        listed = await within(self.files, partial(self._listed, self._user(request)))
        return Response(json.dumps(listed), media_type="application/json")

    async def image(self, request: Request) -> Response:
        return await self._picture(request, self.images, lambda number: picture(self.session.image_reference(number)))

    async def thumbnail(self, request: Request) -> Response:
        return await self._picture(request, self.thumbnails, lambda number: (self._thumbnail(number), "image/jpeg"))

    async def live(self, socket: WebSocket) -> None:
        await socket.accept()
        connection = Connection(self, socket, self._user(socket))
        self.connections.add(connection)
        try:
            await connection.run()
        finally:
            self.connections.discard(connection)

    def _user(self, connection: Request | WebSocket) -> str:
        return str(connection.scope.get("user") or self.users[0])

    def _file(self, request: Request, name: str) -> Response:
        path = self._static.get(name)
        if path is None:
            return PlainTextResponse("there is no such file", 404)
        return tagged(request, path.read_bytes(), TYPES[path.suffix])

    async def _picture(
        self, request: Request, pool: ThreadPoolExecutor, found: Callable[[int], tuple[bytes, str]]
    ) -> Response:
        digits = request.path_params["number"]
        number = int(digits) if digits.isascii() and digits.isdecimal() and len(digits) < 10 else -1
        if not 0 <= number < len(self.session.records):
            return PlainTextResponse("there is no record of this number", 404)
        try:
            data, media_type = await within(pool, partial(found, number))
        except (HkmapError, OSError) as error:
            return PlainTextResponse(str(error), 422)
        return tagged(request, data, media_type)

    def _listed(self, user: str) -> dict[str, Any]:
        session = self.session
        model = session.network.model if session.network else None
        states, at = session.states(user), self.at.get(user, session.last(user))
        return {
            "user": user, "title": session.folder.out.resolve().name,
            "classes": list(model.class_names) if model else [],
            "network": model.architecture.name if model else None, "order": self.order, "orders": dict(self.orders),
            "at": self.orders[self.order][0] if at is None else at,
            "records": [
                {
                    **named(record), "state": states[number], "prediction": None, "confidence": None, "now": None,
                    **self.known.get((number, user), {}),
                    **{key: record[key] for key in ("prediction", "confidence") if key in record},
                } for number, record in enumerate(session.records)
            ],
        }

    # what pages ask for, in the thread of the files

    def opened(self, number: int, user: str) -> dict[str, Any]:
        found = told(self.session, number, self.session.open(number, user))
        self.at[user] = number
        return found

    def changed(self, message: Message, user: str) -> Open | None:
        """Return what a change makes of a record; None where the page does not know of an earlier one."""
        if self.session.open(message.number, user).work.revision != message.revision:
            return None
        self.finished.discard(user)
        return CHANGES[message.do](self.session, user, message)


@dataclass
class Drawing:
    """A stroke under way, on a record as it was when the stroke began."""

    number: int
    opened: Open
    trail: Trail
    tick: int

    def move(self, message: Message) -> None:
        if len(self.trail.stroke.points) + len(message.points) > MOST_POINTS:
            raise RecordError(f"the stroke under way: over {MOST_POINTS:,} points; release it, and begin another")
        self.trail.move(message.points)
        self.tick = message.tick

    def now(self) -> tuple[int | None, Weighted]:
        return self.tick, replace(self.opened, painting=self.trail.painting()).edited


class Connection:
    """One open page: its messages in order, and the newest map that still waits for an answer."""

    def __init__(self, editor: Editor, socket: WebSocket, user: str) -> None:
        self.editor, self.socket, self.user = editor, socket, user
        self._drawing: Drawing | None = None
        self._wanted: tuple[int, Callable[[], tuple[int | None, Weighted]]] | None = None
        self._asked = asyncio.Event()
        self._heard()
        self._does = {
            "open": self._open, "draw": self._draw, "lift": self._lift, "done": self._done,
            **dict.fromkeys(CHANGES, self._change),
        }

    async def run(self) -> None:
        """Listen and answer until the page goes."""
        parts = [asyncio.create_task(part()) for part in (self._listen, self._answer, self._foresee)]
        try:
            ended, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            with suppress(WebSocketDisconnect):
                for part in ended:
                    part.result()
        finally:
            for part in parts:
                part.cancel()

    async def say(self, **what: Any) -> None:
        """Tell the page, if it is still there."""
        with suppress(WebSocketDisconnect, RuntimeError):
            await self.socket.send_text(json.dumps(what))

    async def _listen(self) -> None:
        while self.socket.application_state is WebSocketState.CONNECTED:        # until it was found gone
            try:
                message = read_message(await self.socket.receive_text(), len(self.editor.session.records))
            except HkmapError as error:
                await self.say(of="trouble", n=None, what="message", text=str(error))
            except (ValueError, KeyError):      # no JSON, no text
                with suppress(WebSocketDisconnect, RuntimeError):
                    await self.socket.close(1008, "expected JSON")
                return
            else:
                self._heard()
                await self._does[message.do](message)

    def _heard(self) -> None:
        self.editor.busy_until = asyncio.get_running_loop().time() + QUIET

    async def _open(self, message: Message) -> None:
        self._drawing = None
        try:
            opened = await within(self.editor.files, partial(self.editor.opened, message.number, self.user))
        except (HkmapError, OSError) as error:
            await self.say(of="trouble", n=message.number, what="record", text=str(error))
            return
        await self.say(**opened)
        self._want_kept(message.number)

    async def _draw(self, message: Message) -> None:
        if self.editor.session.network is None:
            return
        try:
            await within(self.editor.files, partial(self._drawn, message))
        except (HkmapError, OSError) as error:      # no "message": that would be a change refused
            await self.say(of="trouble", n=message.number, what="record", text=str(error))
            return
        if self._drawing is not None:
            self._want(self._drawing.number, self._drawing.now)

    def _drawn(self, message: Message) -> None:
        if message.stroke is not None:
            opened = self.editor.session.open(message.number, self.user)
            self._drawing = Drawing(message.number, opened, Trail(opened.painting, message.stroke), message.tick)
        elif self._drawing is not None and self._drawing.number == message.number:
            self._drawing.move(message)

    async def _lift(self, message: Message) -> None:
        self._drawing = None
        self._want_kept(message.number)

    async def _change(self, message: Message) -> None:
        self._drawing = None
        try:
            after = await within(self.editor.files, partial(self.editor.changed, message, self.user))
        except (OSError, OutputError) as error:
            why = getattr(error, "strerror", None) or str(error)
            await self.say(of="trouble", n=message.number, what="disk", text=why)
            return
        except HkmapError as error:
            await self.say(of="trouble", n=message.number, what="message", text=str(error))
            after = None
        if after is None:
            await self._open(message)
            return
        await self.say(of="saved", n=message.number, revision=after.work.revision, state=after.work.state)
        if message.do == "start":
            await self.say(**await within(self.editor.files, partial(told, self.editor.session, message.number, after)))
        self._want_kept(message.number)

    async def _done(self, message: Message) -> None:
        editor = self.editor
        editor.finished.add(self.user)
        waiting = [user for user in editor.users if user not in editor.finished]
        pages = [self] if waiting else editor.connections
        said = [asyncio.create_task(page.say(of="done", waiting_for=waiting)) for page in pages]
        await asyncio.wait(said, timeout=2)     # not for ever for a page that does not listen
        if not waiting:
            editor.done.set()

    def _want(self, number: int, edited: Callable[[], tuple[int | None, Weighted]]) -> None:
        self._wanted = number, edited
        self._asked.set()

    def _want_kept(self, number: int) -> None:
        self._want(number, lambda: (None, self.editor.session.open(number, self.user).edited))

    async def _answer(self) -> None:
        """Answer the newest map that is wanted, again and again."""
        editor = self.editor
        while True:
            await self._asked.wait()
            self._asked.clear()
            assert self._wanted is not None
            number, edited = self._wanted
            try:
                tick, values = await within(editor.files, edited)
                guesses = await within(editor.answers, partial(editor.session.guesses, number, values))
            except (HkmapError, OSError) as error:
                await self.say(of="trouble", n=number, what="record", text=str(error))
                continue
            if guesses and tick is None:
                editor.known.setdefault((number, self.user), {})["now"] = guesses[0].label
            await self.say(of="answer", n=number, tick=tick, top=[guess._asdict() for guess in guesses])

    async def _foresee(self) -> None:
        """Tell what the network answers to each record that nobody has asked about, while no page asks for anything.

        Pages do so one at a time, so that an answer waits for one record at most.
        """
        editor, loop = self.editor, asyncio.get_running_loop()
        for number in range(len(editor.session.records) if editor.session.network else 0):
            async with editor.foresight:
                while (wait := editor.busy_until - loop.time()) > 0:
                    await asyncio.sleep(wait)
                if "prediction" not in editor.known.setdefault((number, self.user), {}):
                    await self._look_ahead(number)
        await asyncio.Event().wait()

    async def _look_ahead(self, number: int) -> None:
        editor, known = self.editor, self.editor.known[number, self.user]
        with suppress(HkmapError, OSError):     # told when it is opened
            found = await within(editor.answers, partial(editor.session.outlook, number, self.user))
            known |= {**found, **known}         # what was answered since is newer
            for page in [page for page in editor.connections if page.user == self.user]:
                await page.say(of="known", n=number, **known)


async def within(pool: ThreadPoolExecutor, function: Callable[[], Result]) -> Result:
    return await asyncio.get_running_loop().run_in_executor(pool, function)


def tagged(request: Request, data: bytes, media_type: str) -> Response:
    """Return data that a browser may keep, and asks for again each time: 304 where it has them."""
    headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()[:32]}"', "Cache-Control": "private, no-cache"}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=media_type, headers=headers)


def named(record: Record) -> dict[str, Any]:
    name = record.get("class")
    return {"id": record["id"], "label": label_of(record), "class": None if name is None else str(name)}


def told(session: EditSession, number: int, opened: Open) -> dict[str, Any]:
    """Return what a page needs to show a record and to paint on it by itself."""
    base, work, record = opened.base, opened.work, session.records[number]
    return {
        "of": "opened", "n": number, **named(record),
        "revision": work.revision, "state": work.state, "start": work.start, "starts": session.starts(number),
        "strokes": [to_json(stroke) for stroke in work.strokes], "undone": [to_json(stroke) for stroke in work.undone],
        "size": list(base.map.shape), "layer": list(layer_size((base.map.shape[0], base.map.shape[1]))),
        "frame": list(session.frame(number)), "map": packed(base.map),
        "certainty": None if base.certainty is None else packed(base.certainty),
    }


def packed(values: np.ndarray[Any, Any]) -> str:
    """Return values as base64 of little-endian float32, row by row."""
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()
