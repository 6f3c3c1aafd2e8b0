"""Renders comments as safe HTML: Markdown, plus only the HTML that a bot's comments need."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token

# Everything else in angle brackets is shown as text.
_ALLOWED = re.compile(r"(<(?:details(?: open)?|/details|summary|/summary|br ?/?|sub|/sub|kbd|/kbd|code|/code)>)", re.IGNORECASE)
_HIDDEN = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)


class _Renderer(RendererHTML):
    def html_block(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return _safe(tokens[idx].content)

    def html_inline(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return _safe(tokens[idx].content)


def _safe(source: str) -> str:
    parts = _ALLOWED.split(_HIDDEN.sub("", source))
    return "".join(part.lower() if index % 2 else html.escape(part) for index, part in enumerate(parts))


_MARKDOWN = MarkdownIt("gfm-like", {"html": True, "linkify": False, "breaks": True}, renderer_cls=_Renderer)


def render(text: str) -> str:
    """Render a comment as HTML. Hides HTML comments, folds `<details>`, and shows any other tag as text."""
    rendered = str(_MARKDOWN.render(text))
    # An unclosed fold would swallow the rest of the page.
    unclosed = rendered.count("<details") - rendered.count("</details>")
    return rendered + "</details>" * max(unclosed, 0)
