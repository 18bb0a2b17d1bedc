"""Letters on pictures: all that the built-in font has is ASCII, so the rest is spelt with it."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Pixels = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

PAPER: Colour = (250, 250, 250)
INK: Colour = (30, 30, 30)
DARK: Colour = (0, 0, 0)
LINE_HEIGHT = 15

# What Unicode does not take apart into a letter of ASCII and its marks.
_SPELLINGS = str.maketrans({
    "ß": "ss", "ẞ": "SS", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "đ": "d", "Đ": "D",
    "ð": "d", "Ð": "D", "ł": "l", "Ł": "L", "þ": "th", "Þ": "Th", "ı": "i", "\u2010": "-", "\u2011": "-", "\u2013": "-",
    "\u2014": "-", "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\n": " ", "\r": " ", "\t": " ",
})


def spelt(line: str) -> str:
    """Spell a line in ASCII: an accent goes, a letter that has no such spelling becomes its code.

    Two names of other scripts thus stay two, and each can be looked up.

    >>> print(spelt("Großer Ani, Übersee, 日"))
    Grosser Ani, Ubersee, \\u65e5
    """
    letters = unicodedata.normalize("NFKD", line.translate(_SPELLINGS))
    plain = "".join(letter for letter in letters if not unicodedata.combining(letter))
    return plain.encode("ascii", "backslashreplace").decode()


def write_lines(picture: Pixels, lines: Sequence[str], corner: tuple[int, int], width: int) -> Pixels:
    """Return ``picture`` (H, W, 3) with lines in ink from ``corner`` (x, y) on, each cut to ``width`` pixels."""
    paper = Image.fromarray(picture)
    draw, font = ImageDraw.Draw(paper), _font()
    for index, line in enumerate(lines):
        draw.text((corner[0], corner[1] + index * LINE_HEIGHT), _shortened(line, font, width), fill=INK, font=font)
    return np.array(paper)


def write_names(picture: Pixels, names: dict[str, Colour]) -> Pixels:
    """Return ``picture`` with names in their colours, rimmed with black, in its upper left corner."""
    paper = Image.fromarray(picture)
    draw, font = ImageDraw.Draw(paper), _font()
    for index, (name, colour) in enumerate(names.items()):
        place = (3, 1 + index * LINE_HEIGHT)
        draw.text(place, spelt(name), fill=colour, font=font, stroke_width=1, stroke_fill=DARK)
    return np.array(paper)


def length(line: str) -> int:
    """Return how many pixels wide a line is."""
    return int(np.ceil(_font().getlength(spelt(line))))


@cache
def _font() -> Font:
    return ImageFont.load_default(LINE_HEIGHT - 3)


def _shortened(line: str, font: Font, width: int) -> str:
    """Cut a line to ``width`` pixels; its end tells more than its middle."""
    line = spelt(line)
    if font.getlength(line) <= width:
        return line
    kept = next((count for count in range(len(line), 1, -1) if font.getlength(_cut(line, count)) <= width), 1)
    return _cut(line, kept)


def _cut(line: str, kept: int) -> str:
    return f"{line[: kept - kept // 2]}...{line[len(line) - kept // 2 :]}"
