"""Comment text -> Command | Problem | nothing. Pure, and never an exception, whatever the text.

A command stands at the start of a line of the comment as the forge shows it, in a paragraph of its own: what Markdown makes a
quote, code, a title, the text for a picture, or anything within HTML is not spoken to us. VERBS and OPTIONS are the one table for the parser, the help text and the docs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.token import Token

from enrollment.trust import is_sha
from runs.harness.protocol import DEFAULT_STAGES, STAGES

TRIGGER = "!testme"


@dataclass(frozen=True)
class Entry:
    """A row of the table: how it is written, and what it does."""

    form: str
    text: str


VERBS = {
    "help": Entry("!testme help", "Say what can be written here."),
    "status": Entry("!testme status", "Say how the newest run of this pull request stands."),
    "cancel": Entry("!testme cancel", "Stop the run of this pull request and tear it down."),
    "retry": Entry("!testme retry", "Run all stages again on the commit of the newest run."),
    "approve": Entry("!testme approve", "Let the run of an outsider's commit begin that waits for it; a commit may be named."),
}
OPTIONS = {
    "--extra-tests": Entry("!testme --extra-tests", "Also run the recipe's extra (heavy) tests."),
    "--stages": Entry("!testme --stages install,custom", f"Run just these stages. There are: {', '.join(STAGES)}."),
}
RUN = Entry("!testme", f"Deploy the newest commit and run its tests ({', '.join(DEFAULT_STAGES)}).")
COMMIT = Entry("!testme 1234567", "The same for this commit of the pull request (at least 7 digits).")


@dataclass(frozen=True)
class Command:
    verb: str  #: run, help, status, cancel, retry or approve
    sha: str = ""
    stages: tuple[str, ...] = DEFAULT_STAGES
    line: str = ""

    @property
    def extra(self) -> bool:
        return "extra" in self.stages


@dataclass(frozen=True)
class Problem:
    """Spoken to us, but not understood: what it is about, and the nearest valid form."""

    text: str
    nearest: str


def table() -> list[Entry]:
    """All that can be written, for help and docs."""
    return [RUN, COMMIT, *OPTIONS.values(), *VERBS.values()]


def parse(body: str) -> Command | Problem | None:
    """What a comment asks for; None when it does not speak to us. Several commands that differ are a Problem."""
    lines = list(dict.fromkeys(_command_lines(body)))
    if not lines:
        return None
    if len(lines) > 1:
        return Problem("There is more than one command in your comment, and I take one at a time.", lines[0])
    return _parse_line(lines[0])


# --- finding the line


#: Names of HTML that a forge lets through, or removes with all that is in them; between such tags nothing is a plain paragraph.
#: Other names (`<T>`, `<your-name>`) it takes out alone, `<p>` ends where a paragraph begins, and others hold nothing.
_ELEMENTS = frozenset(
    """
    a abbr acronym address applet article aside audio b bdi bdo big blink blockquote body button canvas caption center cite code
    colgroup data datalist dd del details dfn dialog dir div dl dt em fieldset figcaption figure font footer form frame frameset
    h1 h2 h3 h4 h5 h6 h7 h8 head header hgroup html i iframe ins kbd label legend li listing main map mark marquee math menu
    menuitem meter nav nobr noembed noframes noscript nostyle object ol optgroup option output picture plaintext portal pre
    progress q rb rp rt rtc ruby s samp script search section select slot small span strike strong style sub summary sup svg
    table tbody td template textarea tfoot th thead time title tr tt u ul var video xmp
    """.split()
)
#: Those that an end tag of what they stand in ends as well.
_INLINE = frozenset(
    "a abbr b bdi bdo big cite code dfn em font i ins kbd mark q s samp small span strike strong sub sup tt u var".split()
)
_TAG = re.compile(
    r"<!--(?!-?>).*?-->"
    r"|<(?P<end>/?)(?P<name>[A-Za-z][A-Za-z0-9-]*)"
    r"(?:\s+[A-Za-z_:][A-Za-z0-9:._-]*(?:\s*=\s*(?:[^\s\"'=<>`]+|'[^']*'|\"[^\"]*\"))?)*\s*/?>",
    re.DOTALL,
)
_FRONT = re.compile(r" *-{3,} *\n")
_BREAKS = ("softbreak", "hardbreak")


class _Html:
    """The raw HTML of a comment so far: whether what follows stands within some of it, or may."""

    def __init__(self) -> None:
        self._open: list[str] = []
        self._odd = False

    @property
    def around(self) -> bool:
        return self._odd or bool(self._open)

    def read(self, html: str) -> None:
        rest = _TAG.sub(self._tag, html)
        # A tag or a comment that does not end here, or is none: a browser may take in whatever comes.
        self._odd = self._odd or "<" in rest

    def _tag(self, tag: re.Match[str]) -> str:
        name = (tag["name"] or "").lower()
        if name not in _ELEMENTS:
            return ""
        if not tag["end"]:
            self._open.append(name)
        elif name in self._open:
            at = len(self._open) - 1 - self._open[::-1].index(name)
            if _INLINE.issuperset(self._open[at + 1 :]):
                del self._open[at:]
        return ""


def _command_lines(body: str) -> list[str]:
    if TRIGGER not in body.lower() or _FRONT.match(body):
        return []
    try:
        return list(_shown(body))
    except Exception:
        # Nested so deep that it cannot be read: nobody writes so to us.
        return []


def _shown(body: str) -> Iterator[str]:
    """The lines of a comment that are a command, and that the forge shows as text of the comment's own."""
    env: dict[str, Any] = {}
    tokens = _markdown.parse(body, env)
    html = _Html()
    for before, token in zip([None, *tokens], tokens, strict=False):
        if token.type in ("html_block", _ASIDE):
            html.read(token.content)
        elif token.type == "inline":
            # Level 1 is a paragraph that stands by itself: in a quote, a list or a table it is deeper. A heading is one when it was
            # made by a line of dashes below the text, which many write without thinking of headings.
            plain = token.level == 1 and before is not None and _plain(before) and TRIGGER in token.content.lower()
            if plain or "<" in token.content:
                children: list[Token] = []
                _markdown.inline.parse(token.content, _markdown, env, children)
                lines = list(_lines_of(children, html))
                yield from lines if plain and not _struck(token.content) else []


def _plain(opening: Token) -> bool:
    return opening.type == "paragraph_open" or (opening.type == "heading_open" and opening.markup in ("-", "="))


def _struck(content: str) -> bool:
    """Whether a line with the command may be struck out by single tildes, which our reader of Markdown does not know."""
    lines = content.lower().split("\n")
    first = next((number for number, line in enumerate(lines) if _is_command(line)), 0)
    return any("~" in line for line in lines[:first]) and any("~" in line for line in lines[first:])


def _lines_of(children: Sequence[Token], html: _Html) -> Iterator[str]:
    line = ""
    speaks: bool | None = None  # whether the line began with plain text; None before it began
    for child in [*children, Token("softbreak", "", 0)]:
        if child.type in _BREAKS:
            if speaks and _is_command(line):
                yield line.strip()
            line, speaks = "", None
            continue
        if child.type == "html_inline":
            html.read(child.content)
        if speaks is None and (child.content or child.type != "text"):
            # The text itself, as it was written: not in a link or in bold, and no `&#33;` or `\\!`, which is how one writes about
            # a command without giving it.
            speaks = child.type == "text" and child.level == 0 and not html.around and _is_command(child.content)
        if child.type not in ("html_inline", "image"):  # of which no text is shown
            line += child.content


def _is_command(line: str) -> bool:
    return line.split(maxsplit=1)[:1] != [] and line.split(maxsplit=1)[0].lower() == TRIGGER


# Two things that Gitea knows beside what our reader of Markdown does. What they take in is none of the comment's own text.


def _footnote(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """A footnote (which is not shown at all unless something refers to it) or the description of a term, with all its lines."""
    line = _line(state, start)
    if line is None or not ((line.startswith("[^") and "]:" in line) or line[:2] in (": ", ":\t")):
        return False
    if silent:
        return True
    last, text_before = start, True
    number = start + 1
    for number in range(start + 1, end):
        if state.isEmpty(number):
            text_before = False
            continue
        inner = state.sCount[number] - state.blkIndent >= 4
        # A paragraph goes on in a line that is not indented, unless that begins something else.
        if not inner and not (text_before and not _interrupted(state, number, end)):
            break
        last, text_before = number, True
    return _take(state, start, last + 1)


def _formula(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """A formula between lines of `$$`, or of `\\[` and `\\]`."""
    line = _line(state, start)
    if line is None or line[:2] not in _FORMULAS:
        return False
    closing, rest = _FORMULAS[line[:2]], line[2:]
    if closing in rest:
        if rest.partition(closing)[2].strip():
            return False
        last = start
    elif rest[1:].strip():
        return False
    else:
        last = next((n for n in range(start + 1, end) if (_line(state, n) or "").rstrip() == closing), end - 1)
    return silent or _take(state, start, last + 1)


_FORMULAS = {"$$": "$$", "\\[": "\\]"}
_ASIDE = "aside"


def _line(state: StateBlock, number: int) -> str | None:
    """A line without what it is indented by; None where it is indented like code."""
    if state.sCount[number] - state.blkIndent >= 4:
        return None
    return state.src[state.bMarks[number] + state.tShift[number] : state.eMarks[number]]


def _interrupted(state: StateBlock, number: int, end: int) -> bool:
    return any(rule(state, number, end, True) for rule in state.md.block.ruler.getRules("paragraph"))


def _take(state: StateBlock, start: int, after: int) -> bool:
    token = state.push(_ASIDE, "", 0)
    token.content = state.getLines(start, after, 0, False)
    state.line = after
    return True


def _reader() -> MarkdownIt:
    """What reads Markdown as Gitea does. Inlines are read apart, where they matter; the pieces of text that were written as
    entities or with a backslash stay pieces. However deep something is nested, it is read, or nothing is."""
    reader = MarkdownIt("commonmark", {"maxNesting": 100_000}).enable(["table", "strikethrough"])
    reader.disable(["inline", "text_join"])
    reader.block.ruler.before("reference", "footnote", _footnote, {"alt": ["paragraph", "reference", "blockquote", "list"]})
    reader.block.ruler.before("footnote", "formula", _formula, {"alt": ["paragraph", "reference", "blockquote", "list"]})
    return reader


_markdown = _reader()


# --- reading the line


def _parse_line(line: str) -> Command | Problem:
    # Telephones make one long dash of two short ones, and people put a space behind a comma.
    rest = " ".join(line.split()[1:]).replace("—", "--").replace("–", "--").replace(", ", ",").replace("=", " ")
    words = rest.split()
    sha, extra = "", False
    stages: tuple[str, ...] = DEFAULT_STAGES
    if len(words) == 2 and words[0].lower() == "approve" and is_sha(words[1]):
        return Command("approve", words[1].lower(), line=line[:200])
    if words and words[0].lower() in VERBS:
        if len(words) > 1:
            return Problem(f"{_quoted(words[0])} stands alone.", VERBS[words[0].lower()].form)
        return Command(words[0].lower(), line=line[:200])
    while words:
        word = words.pop(0)
        if word.lower() == "--extra-tests":
            extra = True
        elif word.lower() == "--stages":
            if not words:
                return Problem("`--stages` needs the names of stages.", OPTIONS["--stages"].form)
            chosen = _stages(words.pop(0))
            if isinstance(chosen, Problem):
                return chosen
            stages = chosen
        elif is_sha(word) and not sha:
            sha = word.lower()
        else:
            return _unknown(word)
    if extra:
        stages = tuple(stage for stage in STAGES if stage in stages or stage == "extra")
    return Command("run", sha, stages, line[:200])


def _stages(text: str) -> tuple[str, ...] | Problem:
    names = [name for name in text.lower().split(",") if name]
    for name in names:
        if name not in STAGES:
            nearest = get_close_matches(name, STAGES, 1, 0.5)
            fixed = ",".join(
                dict.fromkeys(nearest[0] if other == name and nearest else other for other in names if other in STAGES or nearest)
            )
            form = (
                f"!testme --stages {fixed}"
                if nearest and all(part in STAGES for part in fixed.split(","))
                else OPTIONS["--stages"].form
            )
            return Problem(f"There is no stage {_quoted(name)}. There are: {', '.join(STAGES)}.", form)
    if not names:
        return Problem("`--stages` needs the names of stages.", OPTIONS["--stages"].form)
    return tuple(stage for stage in STAGES if stage in names)


def _unknown(word: str) -> Problem:
    known = {**{name: entry.form for name, entry in VERBS.items()}, **{name: entry.form for name, entry in OPTIONS.items()}}
    nearest = get_close_matches(word.lower(), known, 1, 0.5)
    if word.startswith("-"):
        return Problem(f"I know no option {_quoted(word)}.", known[nearest[0]] if nearest else RUN.form)
    if set(word.lower()) <= set("0123456789abcdef"):
        return Problem(f"{_quoted(word)} is too short (or too long) for a commit: write at least 7 digits of it.", COMMIT.form)
    return Problem(f"I do not understand {_quoted(word)}.", known[nearest[0]] if nearest else RUN.form)


def _quoted(word: str) -> str:
    """A stranger's word in a reply: short, and nothing in it that would end the code or call people."""
    clean = "".join(char for char in word[:40] if char.isprintable() and char not in "`@<>|")
    return f"`{clean}`" if clean else "that"
