"""Text on pictures, in the font that comes with matplotlib: accented Latin, Greek, Cyrillic and more."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
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
DOTS = "…"
MOST_LETTERS = 2000      # of a text; no sheet has room for more


def spelt(line: str) -> str:
    """Return the line with what the font lacks, or what steers a screen, as codes, so that no two names look alike.

    >>> print(spelt("Großer Ani, птица, 日"))
    Großer Ani, птица, \\u65e5
    """
    _, letters = _font()
    composed = unicodedata.normalize("NFC", line)
    return "".join(
        one if ord(one) in letters and one.isprintable() else one.encode("unicode_escape").decode() for one in composed
    )


def wrapped(text: str, width: int, most: int) -> list[str]:
    """Break a text into at most ``most`` lines of ``width`` pixels, between words or behind one of / _ - . , and :

    If that is too little, "…" stands for the middle, as beginning and end say more; so it does in a word that is longer
    than a line.
    """
    if len(text) > MOST_LETTERS:
        text = text[: MOST_LETTERS // 2] + DOTS + text[-MOST_LETTERS // 2 :]
    words = [_shortened(word, width) for word in re.findall(r"[^\s/_.,:-]*[\s/_.,:-]*", spelt(text)) if word]
    lines = _filled(words, width)
    if len(lines) <= most:
        return [line.rstrip() for line in lines] or [""]
    head, last = lines[: most - 1], DOTS
    if most == 1:
        head, last = [], f"{words.pop(0).rstrip()}{DOTS}"
    for word in reversed(words):
        if length(last.replace(DOTS, DOTS + word, 1)) > width:
            break
        last = last.replace(DOTS, DOTS + word, 1)
    return [line.rstrip() for line in (*head, last)]


def write_lines(picture: Pixels, lines: Sequence[str], corner: tuple[int, int]) -> Pixels:
    """Return ``picture`` (H, W, 3) with lines of text below ``corner`` (x, y)."""
    paper = Image.fromarray(picture)
    draw, (font, _) = ImageDraw.Draw(paper), _font()
    for index, line in enumerate(lines):
        draw.text((corner[0], corner[1] + index * LINE_HEIGHT), line, fill=INK, font=font)
    return np.array(paper)


def write_names(picture: Pixels, names: Mapping[str, Colour]) -> Pixels:
    """Return ``picture`` with names in their colours, with a black outline, in its upper left corner.

    They take at most half of its height; the last line then counts the rest.
    """
    paper = Image.fromarray(picture)
    draw, (font, _) = ImageDraw.Draw(paper), _font()
    lines = [*names.items()]
    room = max(1, picture.shape[0] // 2 // LINE_HEIGHT)
    if len(lines) > room:
        lines = [*lines[: room - 1], (f"+ {len(lines) - room + 1} more", PAPER)]
    for index, (name, colour) in enumerate(lines):
        [shown] = wrapped(name, max(1, picture.shape[1] - 6), 1)
        draw.text((3, 1 + index * LINE_HEIGHT), shown, fill=colour, font=font, stroke_width=1, stroke_fill=DARK)
    return np.array(paper)


def length(line: str) -> int:
    """Return the width in pixels of a line that is spelt."""
    font, _ = _font()
    return int(np.ceil(font.getlength(line)))


@cache
def _font() -> tuple[ImageFont.FreeTypeFont, frozenset[int]]:
    """Return the font and the code points of its letters."""
    from matplotlib import get_data_path
    from matplotlib.ft2font import FT2Font

    path = f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf"
    return ImageFont.truetype(path, LINE_HEIGHT - 4), frozenset(FT2Font(path).get_charmap())


def _filled(words: Sequence[str], width: int) -> list[str]:
    lines = [""]
    for word in words:
        if lines[-1] and length(lines[-1] + word.rstrip()) > width:
            lines.append("")
        lines[-1] += word
    return lines


def _shortened(word: str, width: int) -> str:
    """Cut a word to ``width`` pixels in its middle."""

    def cut(kept: int) -> str:
        return f"{word[: kept - kept // 2]}{DOTS}{word[len(word) - kept // 2 :]}" if kept < len(word) else word

    return cut(bisect_right(range(len(word)), width, key=lambda kept: length(cut(kept + 1))))
