"""One HTML page that needs no other file, no network and no script: its template is page.html."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import cv2

from hkmap.files.images import Pixels
from hkmap.report.charts import figure_bytes
from hkmap.report.colouring import colour_bar
from hkmap.report.learning import COLOURS

SIDE = 160      # pixels of a tile's longer side
_QUALITY = 82   # of a tile's JPEG

#: The colours of runs in the dark.
DARK_COLOURS = ("#4fa8e0", "#f08a3c", "#2fc79a", "#dd9cbf", "#f0b840", "#8fd3f7", "#e4e4e1")
#: What charts are drawn in → what the page makes of it, in the light and in the dark.
_INKS = {
    **{colour: f"var(--run{number})" for number, colour in enumerate(COLOURS)},
    "#ffffff": "var(--paper)", "#4c4c4c": "currentColor", "#4d4d4d": "currentColor",
    "#e5e5e5": "var(--rule)", "#e6e6e6": "var(--rule)",
}


def rendered(**content: Any) -> bytes:
    """Return the page; all texts are escaped, and a character that UTF-8 lacks is written as a code."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=templates, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html").render(
        content, colours=COLOURS, dark_colours=DARK_COLOURS, scale=_scale()
    ).encode("utf-8", "backslashreplace")


def drawing(figure: Any, name: str) -> str:
    """Return a matplotlib figure as markup: an SVG in the page's colours, whose ids begin with ``name``.

    It holds no text, as letters are paths and comments are removed, so nothing in it needs escaping.
    """
    svg = figure_bytes(figure, "svg").decode()
    svg = svg[svg.index("<svg"):]
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>|\n\s*", " ", svg, flags=re.DOTALL)
    svg = re.sub(r'( id="|href="#|url\(#)', rf"\1{name}-", svg)
    svg = re.sub("|".join(_INKS), lambda found: _INKS[found[0]], svg)
    return re.sub(r'^<svg [^>]*(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true">', svg)


def tile(picture: Pixels) -> str:
    """Return a picture (H, W, 3) RGB as the URI of a small JPEG."""
    scale = SIDE / max(picture.shape[:2])
    size = [max(1, round(side * scale)) for side in picture.shape[1::-1]]
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    _, content = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return f"data:image/jpeg;base64,{base64.b64encode(content.tobytes()).decode()}"


def _scale() -> str:
    """Return the URI of a bar of the colours of maps over images, from 0 to the highest value."""
    return tile(colour_bar((12, SIDE), "viridis", plain=False))
