"""The picture that previews of a link to a run show: PNG, since few of those who show it take SVG."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

from PIL import Image, ImageDraw, ImageFont

#: Pixels; what forges, chats and social networks have agreed on.
SIZE = (1200, 630)
#: The colours of the light pages, by tone (`runs.templatetags.run_pages.tone`).
COLOURS = {"good": "#136b3a", "bad": "#ab221b", "warn": "#7a4d00", "busy": "#1d56b3", "quiet": "#535e70"}
_GROUND, _SURFACE, _LINE, _TEXT, _SOFT = "#f5f6f9", "#ffffff", "#d9dee7", "#1a2230", "#535e70"
_MARGIN, _GAP, _TALL = 70, 20, 96
_MOST_STAGES = 12  #: more have no room for a letter


def draw(name: str, headline: str, tone: str, stages: Sequence[tuple[str, str, str]], note: str) -> bytes:
    """The card of a run. `stages`: name, status in human-readable form, and tone. `note`: a line at the bottom."""
    image = Image.new("RGB", SIZE, _GROUND)
    pen = ImageDraw.Draw(image)
    wide, tall = SIZE
    pen.rounded_rectangle((30, 30, wide - 30, tall - 30), 24, fill=_SURFACE, outline=_LINE, width=2)
    pen.rectangle((30, 60, 46, tall - 60), fill=COLOURS[tone])
    _text(pen, (_MARGIN, 80), "cc-ci", 34, _SOFT)
    _text(pen, (_MARGIN, 140), name, 84, _TEXT)
    _text(pen, (_MARGIN, 250), headline, 54, COLOURS[tone])
    stages = stages[:_MOST_STAGES]
    width = (wide - 2 * _MARGIN - _GAP * max(len(stages) - 1, 0)) // max(len(stages), 1)
    for number, (stage, status, colour) in enumerate(stages):
        left, top = _MARGIN + number * (width + _GAP), 370
        pen.rounded_rectangle((left, top, left + width, top + _TALL), 12, outline=_LINE, width=2)
        pen.rectangle((left + 10, top + _TALL - 10, left + width - 10, top + _TALL - 4), fill=COLOURS[colour])
        _text(pen, (left + 16, top + 12), stage, 30, _TEXT, width - 32)
        _text(pen, (left + 16, top + 48), status, 26, COLOURS[colour], width - 32)
    _text(pen, (_MARGIN, 510), note, 32, _SOFT)
    packed = BytesIO()
    image.save(packed, "PNG")  # optimised it is a twentieth smaller, and takes twice as long
    return packed.getvalue()


def _text(
    pen: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, colour: str, most: int = SIZE[0] - 2 * _MARGIN
) -> None:
    """Write a line: smaller if it is too long, down to half the size, and then cut."""
    text, smallest = " ".join(text.split())[:200], size // 2
    while (font := ImageFont.load_default(size)).getlength(text) > most:
        if size > smallest:
            size -= 2
        else:
            text = f"{text.rstrip('…')[:-1]}…"
    pen.text(at, text, fill=colour, font=font)
