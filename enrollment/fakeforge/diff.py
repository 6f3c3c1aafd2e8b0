"""Renders a diff as HTML, one card per file."""

from __future__ import annotations

import re
from html import escape

_KINDS = {"+": "a", "-": "d", "@": "h"}
# Limits the length of the page.
_MOST_LINES = 2000


def changes(diff: bytes) -> str:
    """Render git's output as HTML: additions, deletions and hunks, file by file."""
    files = re.split(r"^diff --git ", diff.decode(errors="replace"), flags=re.MULTILINE)[1:]
    if not files:
        return '<p class="soft">No differences.</p>'
    return "".join(_file(text) for text in files)


def _file(text: str) -> str:
    lines = text.splitlines()
    start = next((at for at, line in enumerate(lines) if line.startswith("@@")), len(lines))
    head = lines[:start]
    name = lines[0].split(" b/", 1)[-1]
    note = next((line for line in head if line.startswith(("new file", "deleted file", "rename to", "Binary"))), "")
    shown = lines[start : start + _MOST_LINES]
    added = sum(line.startswith("+") for line in lines[start:])
    removed = sum(line.startswith("-") for line in lines[start:])
    rows = "".join(f'<span class="{_KINDS.get(line[:1], "")}">{escape(line)}</span>' for line in shown)
    rest = len(lines) - start - len(shown)
    more = f'<div class="body soft">{rest} more lines are not shown.</div>' if rest else ""
    counts = f'<span class="open">+{added}</span> <span class="closed">−{removed}</span>'
    body = f'<div class="diff" tabindex="0" aria-label="Changes in {escape(name)}"><div>{rows}</div></div>' if rows else ""
    title = f'<div class="head"><b>{escape(name)}</b> {counts} {escape(note)}</div>'
    return f'<section class="card">{title}{body}{more}</section>'
