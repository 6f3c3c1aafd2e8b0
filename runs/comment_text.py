"""The lines of a comment that a forge shows as plain text: no quote, list, table, code, link, picture, title or HTML, and
nothing hidden or folded away. Pure.

Reads a comment as Gitea and Forgejo do: CommonMark with tables, strikethrough, footnotes, definition lists and formulas, and
filtered HTML. Leaves out lines that a browser may show differently: they ask for nothing, and can be written again. A line
that nobody saw would act in somebody's name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock, table
from markdown_it.token import Token

_DASHES = re.compile(r"\s*-{3,}\s*")


def plain_lines(text: str, wanted: Callable[[str], bool], *, bold: bool = False) -> list[str]:
    """The plain lines that are `wanted`, without surrounding whitespace.

    What makes a line wanted has to be written literally: people use `\\!x` and `&#33;x` to write about `!x`. `bold` includes
    lines that begin in bold or italics.
    """
    text = re.sub(r"\r\n?", "\n", text)
    first, *others = text.split("\n")
    if _DASHES.fullmatch(first) and any(map(_DASHES.fullmatch, others)):
        return []  # Between them may be YAML front matter, which is folded away.
    try:
        return list(_lines(text, wanted, bold))
    except Exception:
        # Nested too deeply to parse: not a genuine command.
        return []


def _lines(text: str, wanted: Callable[[str], bool], bold: bool) -> Iterator[str]:
    env: dict[str, Any] = {}
    tokens, html = _READER.parse(text, env), _Html()
    for before, token in zip([None, *tokens], tokens, strict=False):
        # To Gitea, indented lines below a table are more of its rows.
        row = token.type == "code_block" and before is not None and before.type == "table_close"
        if token.type in ("html_block", _ASIDE) or row:
            html.read(token.content)
        elif token.type == "inline":
            plain = before is not None and _is_plain(before)
            plain = plain and (bold or any(wanted(line) for line in token.content.split("\n")))
            if plain or "<" in token.content:
                children: list[Token] = []
                _READER.inline.parse(token.content, _READER, env, children)
                found = list(_lines_of(children, html, wanted, bold))
                if plain:
                    yield from found


def _is_plain(opening: Token) -> bool:
    """Whether it opens a top-level paragraph, not one in a quote or list. Counts a heading underlined with dashes, which many
    write without meaning a heading.
    """
    heading = opening.type == "heading_open" and opening.markup in ("-", "=")
    return opening.level == 0 and (heading or opening.type == "paragraph_open")


#: Tokens that open and close bold and italics.
_EMPHASIS = ("strong_open", "em_open", "strong_close", "em_close")


def _lines_of(children: Sequence[Token], html: _Html, wanted: Callable[[str], bool], bold: bool) -> Iterator[str]:
    line = ""
    depth = 0  # of bold or italics
    speaks: bool | None = None  # whether the line began with plain text; None before it began
    for child in [*children, Token("softbreak", "", 0)]:
        if child.type in ("softbreak", "hardbreak"):
            if speaks and not depth and wanted(line):
                yield line.strip()
            # An element that spans lines is not a plain line.
            line, speaks = "", False if depth else None
            continue
        if bold and child.type in _EMPHASIS:
            depth += child.nesting
            continue
        if child.type == "html_inline":
            html.read(child.content)
        if speaks is None and (child.content or child.type != "text"):
            speaks = child.type == "text" and child.level == depth and not html.around and wanted(child.content)
        if child.type not in ("html_inline", "image"):  # shows no text
            line += child.content


# --- HTML

#: What a forge lets through, or removes with all that is in it. Other names (`<T>`, `<your-name>`) it takes out alone; `<p>` ends
#: where a paragraph begins, and those that are not here hold nothing.
_ELEMENTS = frozenset(
    re.findall(
        r"\w+",
        "a abbr acronym address applet article aside audio b bdi bdo big blink blockquote body button canvas caption "
        "center cite code colgroup data datalist dd del details dfn dialog dir div dl dt em fieldset figcaption figure "
        "font footer form frame frameset h1 h2 h3 h4 h5 h6 h7 h8 head header hgroup html i iframe ins kbd label legend "
        "li listing main map mark marquee math menu menuitem meter nav nobr noembed noframes noscript nostyle object ol "
        "optgroup option output picture plaintext portal pre progress q rb rp rt rtc ruby s samp script search section "
        "select slot small span strike strong style sub summary sup svg table tbody td template textarea tfoot th thead "
        "time title tr tt u ul var video xmp ",
    )
)
#: Elements that end with their parent.
_INLINE = frozenset(
    re.findall(
        r"\w+",
        "a abbr b bdi bdo big cite code dfn em font i ins kbd mark q s samp small span strike strong sub sup tt u var ",
    )
)
_TAG = re.compile(
    r"(?P<comment><!--(?!-?>).*?(?:-->|\Z))"
    r"|<(?P<end>/?)(?P<name>[A-Za-z][A-Za-z0-9-]*)"
    r"(?:\s+[A-Za-z_:][A-Za-z0-9:._-]*(?:\s*=\s*(?:[^\s\"'=<>`]+|'[^']*'|\"[^\"]*\"))?)*\s*/?>",
    re.DOTALL,
)


class _Html:
    """Tracks the comment's HTML so far: whether what follows is, or may be, inside an element."""

    def __init__(self) -> None:
        self._open: list[str] = []
        self._odd = False

    @property
    def around(self) -> bool:
        return self._odd or bool(self._open)

    def read(self, html: str) -> None:
        # An incomplete or invalid tag: a browser may swallow whatever follows.
        self._odd = "<" in _TAG.sub(self._tag, html) or self._odd

    def _tag(self, tag: re.Match[str]) -> str:
        if tag["comment"]:
            return "" if tag["comment"].endswith("-->") else "<"
        name = tag["name"].lower()
        if name in _ELEMENTS and not tag["end"]:
            self._open.append(name)
        elif name in self._open:
            at = len(self._open) - 1 - self._open[::-1].index(name)
            if _INLINE.issuperset(self._open[at + 1 :]):
                del self._open[at:]
        return ""


# --- what Gitea knows beside what our reader of Markdown does. Nothing of these is the comment's own text.

_FORMULAS = {"$$": "$$", r"\[": r"\]"}
_ASIDE = "aside"


def _footnote(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """A footnote (hidden unless something refers to it) or definition, with all its lines."""
    line = _line(state, start)
    if line is None or not ((line.startswith("[^") and "]:" in line) or line[:2] in (":", ": ", ":\t")):
        return False
    if silent:
        return True
    last, goes_on = start, True
    for number in range(start + 1, end):
        if state.isEmpty(number):
            goes_on = False
            continue
        # A paragraph continues on an unindented line, unless that begins another block.
        if state.sCount[number] - state.blkIndent < 4 and not (goes_on and not _interrupted(state, number, end)):
            break
        last, goes_on = number, True
    return _take(state, start, last + 1)


def _formula(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    r"""A formula between lines of `$$`, or of `\[` and `\]`."""
    line = _line(state, start) or ""
    if line[:2] not in _FORMULAS:
        return False
    closing, last = _FORMULAS[line[:2]], start
    _, closed, rest = line[2:].partition(closing)
    if rest.strip() or (not closed and line[3:].strip()):
        return False
    if not closed:
        last = next((number for number in range(start + 1, end) if (_line(state, number) or "").rstrip() == closing), end - 1)
    return silent or _take(state, start, last + 1)


def _line(state: StateBlock, number: int) -> str | None:
    """A line without its indentation; None if it is indented like code."""
    if state.sCount[number] - state.blkIndent >= 4:
        return None
    return state.src[state.bMarks[number] + state.tShift[number] : state.eMarks[number]]


def _interrupted(state: StateBlock, number: int, end: int) -> bool:
    return any(rule(state, number, end, True) for rule in state.md.block.ruler.getRules("paragraph"))


def _take(state: StateBlock, start: int, after: int) -> bool:
    state.push(_ASIDE, "", 0).content = state.getLines(start, after, 0, False)
    state.line = after
    return True


def _reader() -> MarkdownIt:
    """Inlines are parsed separately, where they matter; text written as an entity or with a backslash stays separate. However
    deeply something is nested, either all of it is read or nothing.
    """
    options = {"maxNesting": 100_000, "strikethrough_single_tilde": True}
    reader = MarkdownIt("commonmark", options).enable("strikethrough").disable(["inline", "text_join"])
    ruler, interrupts = reader.block.ruler, ["paragraph", "reference"]
    for name, rule in (("footnote", _footnote), ("formula", _formula)):
        ruler.before("code", name, rule, {"alt": [*interrupts, "blockquote", "list"]})
    # Only what would otherwise be a paragraph is a table: other blocks take precedence.
    ruler.before("paragraph", "table_of_lines", table, {"alt": interrupts})
    return reader


_READER = _reader()
