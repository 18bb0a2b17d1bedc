"""Stand-in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def watched(steps: Iterator[Any], **said: Any) -> Iterator[Any]:
    yield from steps
