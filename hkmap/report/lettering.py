"""Text on pictures, in the font that comes with matplotlib: accented Latin, Greek, Cyrillic and more."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hkmap.files.images import Pixels

Colour = tuple[int, int, int]

PAPER: Colour = (250, 250, 250)
INK: Colour = (30, 30, 30)
DARK: Colour = (0, 0, 0)
LINE_HEIGHT = 15


def spelt(line: str) -> str:
    """Return the line with each letter that the font lacks replaced by its code, so that no two names look alike.

    >>> print(spelt("Großer Ani, птица, 日"))
    Großer Ani, птица, \\u65e5
    """
    _, letters = _font()
    composed = unicodedata.normalize("NFC", line)
    return "".join(one if ord(one) in letters else one.encode("unicode_escape").decode() for one in composed)


def write_lines(picture: Pixels, lines: Sequence[str], corner: tuple[int, int], width: int) -> Pixels:
    """Return ``picture`` (H, W, 3) with lines of text below ``corner`` (x, y), each cut to ``width`` pixels."""
    paper = Image.fromarray(picture)
    draw, (font, _) = ImageDraw.Draw(paper), _font()
    for index, line in enumerate(lines):
        draw.text((corner[0], corner[1] + index * LINE_HEIGHT), _shortened(line, width), fill=INK, font=font)
    return np.array(paper)


def write_names(picture: Pixels, names: Mapping[str, Colour]) -> Pixels:
    """Return ``picture`` with names in their colours, with a black outline, in its upper left corner."""
    paper = Image.fromarray(picture)
    draw, (font, _) = ImageDraw.Draw(paper), _font()
    for index, (name, colour) in enumerate(names.items()):
        place = (3, 1 + index * LINE_HEIGHT)
        draw.text(place, spelt(name), fill=colour, font=font, stroke_width=1, stroke_fill=DARK)
    return np.array(paper)


def length(line: str) -> int:
    """Return the width of a line in pixels."""
    font, _ = _font()
    return int(np.ceil(font.getlength(spelt(line))))


@cache
def _font() -> tuple[ImageFont.FreeTypeFont, frozenset[int]]:
    """Return the font and the code points of its letters."""
    from matplotlib import get_data_path
    from matplotlib.ft2font import FT2Font

    path = f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf"
    return ImageFont.truetype(path, LINE_HEIGHT - 4), frozenset(FT2Font(path).get_charmap())


def _shortened(line: str, width: int) -> str:
    """Cut a line to ``width`` pixels in its middle, since beginning and end say more."""
    shown = line = spelt(line)
    kept = len(line)
    while length(shown) > width and kept > 1:
        kept -= 1
        shown = f"{line[: kept - kept // 2]}...{line[len(line) - kept // 2 :]}"
    return shown
