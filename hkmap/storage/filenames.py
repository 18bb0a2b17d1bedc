"""File names: made of ids, and asked for as somebody else wrote them."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from urllib.parse import quote

_LONGEST = 120      # bytes; a file system takes 255, of an id, an annotator's name and a suffix


def file_name(identifier: str) -> str:
    """Return the id quoted as in a URL, no slash in it; a long one's end is replaced by a digest of the whole.

    >>> file_name("owls/1 a")
    'owls%2F1%20a'
    >>> file_name("鳥" * 30)[:9], len(file_name("鳥" * 30))
    ('%E9%B3%A5', 119)
    """
    quoted = quote(identifier, safe="")
    if len(quoted) <= _LONGEST:
        return quoted
    begin = re.sub(r"%.?$", "", quoted[: _LONGEST - 17])
    return f"{begin}~{hashlib.sha256(identifier.encode()).hexdigest()[:16]}"


def is_there(path: Path) -> bool:
    """Whether something has this name. The system refuses to look for one of over 255 bytes: nothing has it.

    >>> is_there(Path("x" * 300))
    False
    """
    try:
        return path.exists()
    except OSError:
        return False
