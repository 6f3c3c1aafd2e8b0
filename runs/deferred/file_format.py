"""The format of `DEFERRED.md`: reading it, and ticking one box without changing anything else. Pure.

It is the format of Co-op Cloud's registry: the sections `## Open deferrals` and `## Closed deferrals`, with entries that begin
`### YYYY-MM-DD — <slug>` followed by a list of fields, `- [ ] **What:** …` first. Entries may be under the wrong heading: the
box decides. docs/deferred.md shows all of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import NamedTuple

NAME = "DEFERRED.md"

_LINE = re.compile(r"[^\r\n]*(?:\r\n|\n|\r|\Z)")
_HEADING = re.compile(r"(#{1,6})[ \t]+(.*)")
_ENTRY = re.compile(r"(\d{4}-\d{1,2}-\d{1,2})\s*(?:—|–|-+|:)\s*(\S.*)")
_DATED = re.compile(r"\d{4}-")
_ITEM = re.compile(
    r"([ \t]*[-*+][ \t]+)(\[(?P<box>[^\]]?)\][ \t]+)?(?:\*\*(?P<name>[^*\n]+?):?\*\*:?|__(?P<other>[^_\n]+?):?__:?)?(?P<rest>.*)"
)
_RULE = re.compile(r"[ ]{0,3}(?:(?:-[ \t]*){3,}|(?:\*[ \t]*){3,}|(?:_[ \t]*){3,})")
_FENCE = re.compile(r"[ \t]{0,3}(`{3,}|~{3,})(.*)")
_SHA = re.compile(r"\b[0-9a-f]{7,64}\b")
_PATH = re.compile(r"(?<![\w./-])[\w./-]+\.py\b")

_FIELDS = {
    "what": "what",
    "filed by": "filed_by",
    "reason": "why",
    "reason for deferral": "why",
    "re-entry trigger": "trigger",
    "trigger": "trigger",
    "linked idea / backlog": "linked",
    "linked idea": "linked",
    "linked backlog": "linked",
    "linked": "linked",
}
_CLOSING = ("closed", "ported", "resolved")
#: Longer slugs do not fit the database.
LONGEST_SLUG = 200


@dataclass(frozen=True)
class Problem:
    """A line that could not be read or is odd; `text` says what is wrong and what to do."""

    line: int
    text: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.text}"


@dataclass(frozen=True)
class Entry:
    """One entry as written in the file. `box_at` and `end_at` are offsets into the text: the character in the box, and where
    to add a line to its list.
    """

    line: int
    filed_on: date
    slug: str
    section: str  #: "open", "closed", or empty outside both
    ticked: bool
    what: str
    filed_by: str = ""
    why: str = ""
    trigger: str = ""
    linked: str = ""
    closed_commit: str = ""
    closed_test: str = ""
    box_at: int = 0
    end_at: int = 0
    bullet: str = "- "

    @property
    def key(self) -> tuple[date, str]:
        return self.filed_on, self.slug


@dataclass(frozen=True)
class Document:
    """The content of a `DEFERRED.md`. `remarks`: odd but read; `problems`: could not be read, so their entries are missing."""

    entries: Sequence[Entry]
    problems: Sequence[Problem] = ()
    remarks: Sequence[Problem] = ()


def decode(data: bytes) -> str:
    """Decodes a file such that `encode` restores every byte."""
    return data.decode("utf-8", "surrogateescape")


def encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def parse(text: str) -> Document:
    """Parse the text of a `DEFERRED.md` (see `decode`). Never raises: what cannot be read becomes a Problem with its line."""
    problems: list[Problem] = []
    remarks: list[Problem] = []
    found: dict[tuple[date, str], Entry] = {}
    section, seen_section = "", False
    for block in _blocks(text):
        heading = block.heading
        if heading.level <= 2:
            section = _section(heading.title)
            seen_section = seen_section or bool(section)
            continue
        if not _DATED.match(heading.title):
            if section and heading.level == 3:
                problems.append(
                    Problem(heading.line, f"{_short(heading.title)} is not an entry; expected `### YYYY-MM-DD — slug`.")
                )
            continue
        entry = _entry(block, section, text, problems, remarks)
        if entry is None:
            continue
        if entry.key in found:
            first = found[entry.key].line
            problems.append(Problem(entry.line, f"{entry.slug} of this date is already in line {first}; give it another slug."))
            continue
        if section and entry.ticked != (section == "closed"):
            box = "ticked" if entry.ticked else "empty"
            remarks.append(
                Problem(entry.line, f"{entry.slug} is under the {section} deferrals, but its box is {box}: the box counts.")
            )
        found[entry.key] = entry
    if not found and not seen_section and not problems:
        problems.append(
            Problem(1, "there is no section `## Open deferrals` or `## Closed deferrals`, and no entry: is this the right file?")
        )
    return Document(sorted(found.values(), key=lambda entry: entry.line), problems, remarks)


class CannotTick(Exception):
    """The entry no longer exists, or its box is already ticked."""


def tick(text: str, key: tuple[date, str], commit: str, test: str) -> str:
    """The text with that entry's box ticked and one line added at the end of its list. Everything else is unchanged.

    Raises CannotTick.
    """
    entry = next((entry for entry in parse(text).entries if entry.key == key), None)
    if entry is None:
        raise CannotTick(f"The file no longer has an entry {key[1]} of {key[0]}.")
    if entry.ticked:
        raise CannotTick(f"The box of {entry.slug} is already ticked.")
    line = f"{entry.bullet}**Closed by:** {commit} ({test})"
    before, after = text[: entry.end_at], text[entry.end_at :]
    # If the line before it is the file's last and has no line ending, the new one has none either.
    ended = before.endswith(("\n", "\r"))
    newline = _newline(before)
    before = before[: entry.box_at] + "x" + before[entry.box_at + 1 :]
    return before + (line + newline if ended else newline + line) + after


def _newline(text: str) -> str:
    """The last line ending in the text. (There is one: an entry has a heading.)"""
    return str(re.findall(r"\r\n|\n|\r", text)[-1])


def name_of_test(slug: str, recipe: str) -> str:
    """An entry's name for its test: the slug without the recipe's name, a date, an ending and the word *test*."""
    name = plain(slug)
    name = re.sub(r"^\d{4}-\d\d-\d\d-|-\d{4}-\d\d-\d\d$", "", name)
    name = name.removeprefix(plain(recipe) + "-")
    name = re.sub(r"-(sh|py|bats)$", "", name)
    return re.sub(r"^tests?-|-tests?$", "", name)


def plain(name: str) -> str:
    """Normalise a name: lower case, with single dashes for everything except letters and digits."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def ports(slug: str, recipe: str, file: str, function: str) -> bool:
    """Whether a test's file or function contains the name of an entry."""
    wanted = name_of_test(slug, recipe)
    if len(wanted) < 3:
        return False
    stem = file.rpartition("/")[2].rpartition(".")[0]
    return any(f"-{wanted}-" in f"-{plain(name)}-" for name in (stem, *re.split(r"::|\[", function)))


# --- the lines


class _Line(NamedTuple):
    number: int
    at: int  #: the offset in the whole text
    text: str  #: with its ending
    hidden: bool  #: in a fence of code or in an HTML comment


@dataclass(frozen=True)
class _Heading:
    line: int
    level: int
    title: str


@dataclass
class _Block:
    """A heading and the lines up to the next."""

    heading: _Heading
    lines: list[_Line] = field(default_factory=list)


def _blocks(text: str) -> Iterator[_Block]:
    block = _Block(_Heading(0, 6, ""))
    for line in _lines(text):
        heading = None if line.hidden else _HEADING.match(line.text.rstrip("\r\n").lstrip("\ufeff"))
        if heading:
            yield block
            block = _Block(_Heading(line.number, len(heading[1]), _title(heading[2])))
        else:
            block.lines.append(line)
    yield block


def _title(text: str) -> str:
    """The text of a heading, without a closing `##`."""
    text = text.strip(" \t")
    without = text.rstrip("#")
    return without.strip(" \t") if without.endswith((" ", "\t")) or not without else text


def _lines(text: str) -> Iterator[_Line]:
    fence, comment = "", False
    at = 0
    for number, match in enumerate(_LINE.finditer(text), 1):
        line = match[0]
        if not line:
            return
        hidden = bool(fence) or comment
        mark = None if comment else _FENCE.match(line.rstrip("\r\n"))
        if fence:
            if mark and mark[1].startswith(fence) and not mark[2].strip():
                fence = ""
        elif mark:
            fence, hidden = mark[1], True
        elif comment:
            comment = "-->" not in line
        elif line.lstrip(" \t").startswith("<!--"):
            hidden, comment = True, "-->" not in line
        yield _Line(number, at, line, hidden)
        at += len(line)


def _section(title: str) -> str:
    words = re.findall(r"[a-z]+", title.lower())
    return words[0] if words and words[0] in ("open", "closed") else ""


def _entry(block: _Block, section: str, text: str, problems: list[Problem], remarks: list[Problem]) -> Entry | None:
    """The entry of a block; None, with a problem added, if it cannot be read."""
    heading = block.heading
    match = _ENTRY.match(heading.title)
    if not match:
        problems.append(Problem(heading.line, f"{_short(heading.title)} is not an entry; expected `### YYYY-MM-DD — slug`."))
        return None
    try:
        filed_on = date.fromisoformat(match[1])
    except ValueError:
        problems.append(Problem(heading.line, f"invalid date {match[1]}: expected YYYY-MM-DD."))
        return None
    slug = _clean(match[2].strip("` \t"))
    if not slug or len(slug) > LONGEST_SLUG:
        problems.append(Problem(heading.line, f"the slug is empty or longer than {LONGEST_SLUG} characters; shorten it."))
        return None
    items = list(_items(block.lines))
    box = next((item for item in items if item.box is not None), None)
    if box is None:
        problems.append(Problem(heading.line, f"{slug} has no box; expected the first line `- [ ] **What:** …`."))
        return None
    if box.box not in (" ", "x", "X"):
        problems.append(Problem(box.line, f"the box of {slug} contains {box.box!r}; expected `[ ]` or `[x]`."))
        return None
    values, closing = _values(slug, items, box, remarks)
    if not values.get("what"):
        problems.append(Problem(box.line, f"{slug} lacks the field **What:**."))
        return None
    sha, path = _SHA.search(closing), _PATH.search(closing)
    last = items[-1]
    return Entry(
        line=heading.line,
        filed_on=filed_on,
        slug=slug,
        section=section,
        ticked=box.box != " ",
        box_at=box.box_at,
        end_at=last.end_at,
        bullet=box.bullet,
        closed_commit=sha[0] if sha else "",
        closed_test=path[0] if path else "",
        **values,
    )


@dataclass
class _Item:
    """A list item with its continuation lines."""

    line: int
    bullet: str
    box: str | None
    box_at: int
    name: str
    text: list[str]
    end_at: int


def _items(lines: Sequence[_Line]) -> Iterator[_Item]:
    """The items of the list.

    A deeper item, or a line that is not blank, continues the one before; the list ends at a rule or at a paragraph outside it.
    """
    item: _Item | None = None
    after_blank = False
    for line in lines:
        bare = line.text.rstrip("\r\n")
        if not bare.strip():
            after_blank = True
            continue
        match = None if line.hidden else _ITEM.match(bare)
        if not line.hidden and _RULE.fullmatch(bare):
            if item:
                break
            continue
        if match and (item is None or _indent(match[1]) <= _indent(item.bullet)):
            if item:
                yield item
            box = match["box"] if match[2] else None
            name = (match["name"] or match["other"] or "").strip()
            end = line.at + len(line.text)
            item = _Item(line.number, match[1], box, line.at + match.start("box"), name, [match["rest"].strip()], end)
        elif item and after_blank and not bare.startswith((" ", "\t")):
            break
        elif item:
            item.text.append(bare.strip())
            item.end_at = line.at + len(line.text)
        after_blank = False
    if item:
        yield item


def _indent(bullet: str) -> int:
    return len(bullet) - len(bullet.lstrip(" \t"))


def _values(slug: str, items: Sequence[_Item], box: _Item, remarks: list[Problem]) -> tuple[dict[str, str], str]:
    values: dict[str, str] = {}
    closing = ""
    for item in items:
        name = " ".join(item.name.lower().split())
        text = _clean("\n".join(item.text).strip())
        if item is box and not name:
            name = "what"  # a box without a name: what is deferred
        if name.startswith(_CLOSING):
            closing = text[:1000]
        elif name in _FIELDS and _FIELDS[name] not in values:
            values[_FIELDS[name]] = text
        else:
            what = "is a duplicate" if name in _FIELDS else "is an unknown field"
            remarks.append(Problem(item.line, f"{slug}: {_short(item.name or text)} {what}; ignored."))
    return values, closing


def _clean(text: str) -> str:
    """Text in a form that the database can store."""
    text = text.replace("\0", "\N{REPLACEMENT CHARACTER}")
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _short(text: str) -> str:
    text = _clean(text)
    return f"`{text[:60]}…`" if len(text) > 60 else f"`{text}`"
