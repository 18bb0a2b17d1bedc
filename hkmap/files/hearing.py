"""Hear what C decoders say of a damaged file: libjpeg and libpng print it on C's stderr, name no file, and go on.

While something decodes, the C library's variable `stderr` points to a pipe of our own. Python's stderr and descriptor 2
are left alone. Where something was said, the images that were being decoded then are decoded again, one at a time, to
learn whose words they were. With a C library whose `stderr` cannot be set (musl) nothing is heard.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition
from typing import TypeVar

T = TypeVar("T")

_UNBUFFERED = 2      # _IONBF
# A name that begins with a small letter is that of a chunk without which the picture is the same: libpng's words about
# colour profiles are common, and of no concern here.
_HARMLESS = re.compile(r"libpng warning: [a-z]\w{3}: .*")


def heard(decode: Callable[[], T]) -> tuple[T, str]:
    """Call ``decode``; return its answer and the first line that a C library said while it ran, "" if none did."""
    said = _EAR.enter()
    try:
        answer = decode()
    finally:
        _EAR.leave(said)
    if not said:
        return answer, ""
    with _EAR.alone() as said:
        answer = decode()
    lines = b"".join(said).decode(errors="replace").splitlines()
    return answer, next((line for line in lines if not _HARMLESS.fullmatch(line)), "")


class _Ear:
    """Listens while at least one thread decodes."""

    def __init__(self) -> None:
        self._turn = Condition()
        self._inside = 0
        self._alone = False
        self._said: list[list[bytes]] = []      # one of each thread inside
        self._pipe, self._stream, self._variable = _open_stream()
        self._before: int | None = None

    def enter(self) -> list[bytes]:
        """Listen among others; after ``leave`` the list holds what was said meanwhile, by whomever."""
        with self._turn:
            self._turn.wait_for(lambda: not self._alone)
            return self._enter()

    def leave(self, said: list[bytes]) -> None:
        """Stop listening."""
        with self._turn:
            self._leave(said)

    @contextmanager
    def alone(self) -> Iterator[list[bytes]]:
        """Listen while nobody else decodes."""
        with self._turn:
            self._turn.wait_for(lambda: not self._alone)
            self._alone = True
            self._turn.wait_for(lambda: not self._inside)
            said = self._enter()
        try:
            yield said
        finally:
            with self._turn:
                self._alone = False
                self._leave(said)

    def _enter(self) -> list[bytes]:
        if not self._inside and self._variable is not None:
            self._before, self._variable.value = self._variable.value, self._stream
        self._inside += 1
        self._drain()
        self._said.append([])
        return self._said[-1]

    def _leave(self, said: list[bytes]) -> None:
        self._drain()
        self._said = [other for other in self._said if other is not said]
        self._inside -= 1
        if not self._inside:
            self.restore()
        self._turn.notify_all()

    def _drain(self) -> None:
        try:
            words = os.read(self._pipe, 1 << 16)
        except BlockingIOError:
            return
        for said in self._said:
            said.append(words)

    def restore(self) -> None:
        """Give the C library its own stderr back."""
        if self._variable is not None and self._before is not None:
            self._variable.value, self._before = self._before, None


def _open_stream() -> tuple[int, int | None, ctypes.c_void_p | None]:
    """Return a pipe's end to read from, the C stream that writes to it, and the C variable `stderr`."""
    reading, writing = os.pipe()
    for end in (reading, writing):
        os.set_blocking(end, False)      # what does not fit is lost, and nobody waits
    library = ctypes.CDLL(None)
    if not (sys.platform == "darwin" or hasattr(library, "gnu_get_libc_version")):
        return reading, None, None
    library.fdopen.restype = ctypes.c_void_p
    library.fdopen.argtypes = [ctypes.c_int, ctypes.c_char_p]
    library.setvbuf.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    stream = library.fdopen(writing, b"w")
    library.setvbuf(stream, None, _UNBUFFERED, 0)
    return reading, stream, ctypes.c_void_p.in_dll(library, "__stderrp" if sys.platform == "darwin" else "stderr")


def _listen_anew() -> None:
    """In a forked child nobody of those who were inside goes on."""
    global _EAR
    _EAR.restore()
    _EAR = _Ear()


_EAR = _Ear()
os.register_at_fork(after_in_child=_listen_anew)
