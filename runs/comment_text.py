r"""What of a comment a forge shows as plain lines of text: no quote, list, table or code, no link or picture, no title, nothing
in HTML, and nothing that is hidden or folded away. Pure.

It is read as Gitea and Forgejo read it: CommonMark with tables, struck out text, footnotes, descriptions of terms and formulas,
and HTML behind a filter. Where a browser may see a line otherwise than this does, it is left out: it asks for nothing then, and
whoever wrote it can write it again. A line that nobody saw would act in somebody's name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock, table
from markdown_it.token import Token

_DASHES = re.compile(r"\s*-{3,}\s*")


def plain_lines(text: str, wanted: Callable[[str], bool]) -> list[str]:
    r"""The plain lines that are `wanted`, without the space around them. What makes one wanted has to be written as it is: `\!x`
    and `&#33;x` are how one writes about `!x`."""
    text = re.sub(r"\r\n?", "\n", text)
    first, *others = text.split("\n")
    if _DASHES.fullmatch(first) and any(map(_DASHES.fullmatch, others)):
        return []  # Between them may be settings for the page, in YAML, which is folded away.
    try:
        return list(_lines(text, wanted))
    except Exception:
        # Nested so deep that it cannot be read: nobody writes so to us.
        return []


def _lines(text: str, wanted: Callable[[str], bool]) -> Iterator[str]:
    env: dict[str, Any] = {}
    tokens, html = _READER.parse(text, env), _Html()
    for before, token in zip([None, *tokens], tokens, strict=False):
        # Below a table, indented lines are more rows of it to Gitea.
        row = token.type == "code_block" and before is not None and before.type == "table_close"
        if token.type in ("html_block", _ASIDE) or row:
            html.read(token.content)
        elif token.type == "inline":
            plain = before is not None and _is_plain(before) and any(wanted(line) for line in token.content.split("\n"))
            if plain or "<" in token.content:
                children: list[Token] = []
                _READER.inline.parse(token.content, _READER, env, children)
                found = list(_lines_of(children, html, wanted))
                if plain:
                    yield from found


def _is_plain(opening: Token) -> bool:
    """Whether it opens a paragraph that stands by itself: in a quote or a list it is deeper. A heading is one when it was made by
    a line of dashes below the text, which many write without thinking of headings."""
    heading = opening.type == "heading_open" and opening.markup in ("-", "=")
    return opening.level == 0 and (heading or opening.type == "paragraph_open")


def _lines_of(children: Sequence[Token], html: _Html, wanted: Callable[[str], bool]) -> Iterator[str]:
    line = ""
    speaks: bool | None = None  # whether the line began with plain text; None before it began
    for child in [*children, Token("softbreak", "", 0)]:
        if child.type in ("softbreak", "hardbreak"):
            if speaks and wanted(line):
                yield line.strip()
            line, speaks = "", None
            continue
        if child.type == "html_inline":
            html.read(child.content)
        if speaks is None and (child.content or child.type != "text"):
            speaks = child.type == "text" and child.level == 0 and not html.around and wanted(child.content)
        if child.type not in ("html_inline", "image"):  # of which no text is shown
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
#: Those that end with what they stand in.
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
    """The HTML of a comment so far: whether what follows stands within some of it, or may."""

    def __init__(self) -> None:
        self._open: list[str] = []
        self._odd = False

    @property
    def around(self) -> bool:
        return self._odd or bool(self._open)

    def read(self, html: str) -> None:
        # A tag that does not end there, or is none: a browser may take in whatever comes.
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
    """A footnote (which is not shown at all unless something refers to it) or the description of a term, with all its lines."""
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
        # A paragraph goes on in a line that is not indented, unless that begins something else.
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
    """A line without what it is indented by; None where it is indented like code."""
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
    """Inlines are read apart, where they matter; what was written as an entity or with a backslash stays apart. However deep
    something is nested, it is read, or nothing is."""
    options = {"maxNesting": 100_000, "strikethrough_single_tilde": True}
    reader = MarkdownIt("commonmark", options).enable("strikethrough").disable(["inline", "text_join"])
    ruler, interrupts = reader.block.ruler, ["paragraph", "reference"]
    for name, rule in (("footnote", _footnote), ("formula", _formula)):
        ruler.before("code", name, rule, {"alt": [*interrupts, "blockquote", "list"]})
    # A table is what would be a paragraph else: whatever else a line may begin comes first.
    ruler.before("paragraph", "table_of_lines", table, {"alt": interrupts})
    return reader


_READER = _reader()
