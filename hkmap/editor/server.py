"""The page that people paint on: its files, the images, and one WebSocket per open page.

A page says what its person does, one JSON object per message, and is told what came of it; see docs/editor.md. Nothing
here knows what a stroke is or does: that is the session's.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket, WebSocketDisconnect

from hkmap.editor.session import EditSession, Open
from hkmap.errors import HkmapError
from hkmap.files.images import encode_png
from hkmap.maps.strokes import Trail, from_json, layer_size, to_json
from hkmap.records import label_of

STATIC = Path(__file__).parent / "static"
Result = TypeVar("Result")


class Editor:
    """A session behind a page. ``files`` and ``answers`` are one thread each, so painting never waits for answers."""

    def __init__(self, session: EditSession, users: tuple[str, ...]) -> None:
        self.session, self.users = session, users
        self.files, self.answers = (ThreadPoolExecutor(1, thread_name_prefix=name) for name in ("files", "answers"))
        self.done = asyncio.Event()

    def app(self) -> Starlette:
        return Starlette(routes=[
            Route("/", self.page), Route("/records.json", self.records), Route("/image/{number:int}", self.image),
            WebSocketRoute("/live", self.live), Mount("/static", StaticFiles(directory=STATIC)),
        ])

    async def page(self, request: Request) -> Response:
        return FileResponse(STATIC / "index.html")

    async def records(self, request: Request) -> Response:
        return JSONResponse(await self._file(partial(self._listed, self.users[0])))

    async def image(self, request: Request) -> Response:
        pixels = await self._file(partial(self.session.image, request.path_params["number"]))
        return Response(encode_png(pixels), media_type="image/png")

    async def live(self, socket: WebSocket) -> None:
        await socket.accept()
        with suppress(WebSocketDisconnect):
            await Connection(self, socket, self.users[0]).run()

    def _listed(self, user: str) -> dict[str, Any]:
        session = self.session
        model = session.network.model if session.network else None
        return {
            "user": user, "classes": list(model.class_names) if model else [],
            "records": [
                {
                    "id": record["id"], "label": label_of(record), "class": record.get("class"),
                    "prediction": record.get("prediction"), "confidence": record.get("confidence"),
                    "state": session.work(number, user).state,
                } for number, record in enumerate(session.records)
            ],
        }

    async def _file(self, function: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self.files, function)

    async def _answer(self, function: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self.answers, function)


class Connection:
    """One open page: its messages in order, and the newest map that still waits for an answer."""

    def __init__(self, editor: Editor, socket: WebSocket, user: str) -> None:
        self.editor, self.socket, self.user = editor, socket, user
        self.trail: Trail | None = None
        self.number = -1
        self.wanted: asyncio.Queue[Any] = asyncio.Queue()

    async def run(self) -> None:
        answering = asyncio.create_task(self._answers())
        try:
            while True:
                await self._take(json.loads(await self.socket.receive_text()))
        finally:
            answering.cancel()

    async def _take(self, message: dict[str, Any]) -> None:
        do, session, number = message["do"], self.editor.session, message["n"]
        self.number = number
        try:
            if do == "open":
                opened = await self.editor._file(partial(session.open, number, self.user))
                await self.socket.send_text(json.dumps(told(session, number, opened)))
                self.wanted.put_nowait((number, opened.edited, None))
                return
            opened = await self.editor._file(partial(session.open, number, self.user))
            if do == "draw":
                if "stroke" in message:
                    self.trail = Trail(opened.painting, from_json(message["stroke"], "the stroke"))
                elif self.trail is not None:
                    self.trail.move(tuple((x, y) for x, y in message["points"]))
                if self.trail is not None:
                    edited = replace(opened, painting=self.trail.painting()).edited
                    self.wanted.put_nowait((number, edited, message.get("tick")))
                return
            change: dict[str, Callable[[], Open]] = {
                "paint": lambda: session.paint(number, self.user, from_json(message["stroke"], "the stroke")),
                "undo": lambda: session.undo(number, self.user), "redo": lambda: session.redo(number, self.user),
                "reset": lambda: session.reset(number, self.user),
                "start": lambda: session.start(number, self.user, message["start"]),
                "mark": lambda: session.mark(number, self.user, message["state"]),
            }
            after = await self.editor._file(change[do])
            saved = {"of": "saved", "n": number, "revision": after.work.revision, "state": after.work.state}
            await self.socket.send_text(json.dumps(saved))
            if do == "start":
                await self.socket.send_text(json.dumps(told(session, number, after)))
            self.wanted.put_nowait((number, after.edited, None))
        except (HkmapError, OSError) as error:
            await self.socket.send_text(json.dumps({"of": "trouble", "n": number, "text": str(error)}))

    async def _answers(self) -> None:
        while True:
            number, edited, tick = await self.wanted.get()
            while not self.wanted.empty():      # the newest wins
                number, edited, tick = self.wanted.get_nowait()
            guesses = await self.editor._answer(partial(self.editor.session.guesses, number, edited))
            top = [guess._asdict() for guess in guesses]
            await self.socket.send_text(json.dumps({"of": "answer", "n": number, "tick": tick, "top": top}))


def told(session: EditSession, number: int, opened: Open) -> dict[str, Any]:
    """Return what a page needs to show a record and to paint on it by itself."""
    base, work, record = opened.base, opened.work, session.records[number]
    return {
        "of": "opened", "n": number, "id": record["id"], "label": label_of(record), "class": record.get("class"),
        "revision": work.revision, "state": work.state, "start": work.start, "starts": session.starts(number),
        "strokes": [to_json(stroke) for stroke in work.strokes], "undone": [to_json(stroke) for stroke in work.undone],
        "size": list(base.map.shape), "layer": list(layer_size((base.map.shape[0], base.map.shape[1]))),
        "frame": list(session.frame(number)), "map": packed(base.map),
        "certainty": None if base.certainty is None else packed(base.certainty),
    }


def packed(values: np.ndarray[Any, Any]) -> str:
    """Return values as base64 of little-endian float32, row by row."""
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()
