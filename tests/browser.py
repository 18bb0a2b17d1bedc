"""Chromium for tests of the editor's page: `pytest_plugins = ["browser"]` in a test module gives it these fixtures.

Where there is no browser the tests are skipped, unless the environment variable HKMAP_BROWSER is set: then they fail.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import hkmap.editor

STATIC = Path(hkmap.editor.__file__).parent / "static"
QUIET = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]


class Files(SimpleHTTPRequestHandler):
    """The static folder at /static/, and an empty page everywhere else."""

    def do_GET(self) -> None:
        if self.path.startswith("/static/"):
            self.path = self.path.removeprefix("/static")
            super().do_GET()
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>empty</title><body></body>")

    def log_message(self, *arguments: Any) -> None:
        pass


@contextmanager
def launched() -> Iterator[Any]:
    """Yield a running Chromium of Playwright; raise FileNotFoundError where one of the two is missing.

    Until it ends, asyncio has a loop that runs in this thread, so no test beside it can start one.
    """
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None or importlib.util.find_spec("playwright") is None:
        raise FileNotFoundError(
            "no chromium on the PATH" if program is None else "no playwright; pip install 'hkmap[dev]'"
        )
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A running Chromium."""
    try:
        with launched() as browser:
            yield browser
    except FileNotFoundError as missing:
        (pytest.fail if os.environ.get("HKMAP_BROWSER") else pytest.skip)(str(missing))


@pytest.fixture(scope="module")
def static_server() -> Iterator[str]:
    """The address of a server of the editor's static files alone."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *given: Files(*given, directory=str(STATIC)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def empty_page(chromium: Any, static_server: str) -> Iterator[Any]:
    """A page that can import the editor's modules from /static/; an error on it fails the test."""
    errors: list[str] = []
    page = chromium.new_page(viewport={"width": 600, "height": 500})
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(static_server)
    yield page
    page.close()
    assert not errors
