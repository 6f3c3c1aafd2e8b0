"""Text from outside, made harmless for where it is shown beyond our own pages: at a forge, in a status, in an alert.

Test names, files, messages, reasons, versions, names of people, repositories and branches: whatever a recipe, a forge or a
person wrote is data. Our pages leave escaping to Django; everything else goes through one of these functions:

- `markdown` for comments: one line in which nothing acts on Markdown, on HTML or on the forge;
- `plain` for what is no Markdown (statuses, titles, alerts): the same line without the escaping;
- `code_block` for output: a fence that the text cannot close;
- `web_address` and `mention` for the two things that are meant to act.

Zero-width spaces do what escaping cannot: a forge looks for mentions, references and links in the *rendered* text, and other
bots look for commands in whatever they get.
"""

from __future__ import annotations

import re
from urllib.parse import quote, urlsplit, urlunsplit

ZERO_WIDTH = "\u200b"
#: Characters of a line, unless the caller says otherwise.
LONGEST = 500

#: What a word may begin with to be a command, a mention, a vote or a reference somewhere.
_SIGILS = r"[!#$%&*+\-./>?@\\^~]"
#: Addresses without `//` that programs make links of.
_SCHEMES = "mailto|tel|sms|callto|sips?|xmpp|irc|matrix|magnet|bitcoin|geo|cid|mid|news|urn|data|javascript|vbscript"
#: Where a zero-width space goes, behind the group: no mention, no link, and no command at the start.
_ANYWHERE = [
    re.compile(pattern)
    for pattern in (
        rf"^({_SIGILS})(?=\w)",
        rf"([!@])(?=[^\s{ZERO_WIDTH}]|$)",  # @somebody, somebody@example.org, owner/repo@1a2b3c4, !testme, owner/repo!12
        r"(:)(?=//)",  # https://
        rf"(?i)(?<![A-Za-z0-9])((?:{_SCHEMES}):)(?=\S)",
        r"(?i)(?<![A-Za-z0-9])(www)(?=\.)",
    )
]
#: The same at a forge: no reference and no picture.
_AT_A_FORGE = [
    re.compile(pattern)
    for pattern in (
        r"(#)(?=\w|$)",  # #12, owner/repo#12
        r"(?<![0-9A-Za-z])([A-Z][A-Z0-9]{0,9}-)(?=[1-9])",  # GH-12
        r"(:)(?=[a-z0-9_+-]+:)",  # :emoji:
        r"(\[)(?=\[)",  # [[a page of the wiki]]
    )
]
#: The same in a comment, in which some bots look for commands in the middle of lines as well.
_IN_A_COMMENT = re.compile(rf"(?<![A-Za-z0-9_])({_SIGILS})(?=\w)")
#: In code `!=` and paths stay as they are.
_IN_CODE = [re.compile(r"(!(?=\w)|@(?=\S))"), re.compile(rf"(?m)^([ \t]*{_SIGILS})(?=\w)")]
#: A commit's id, in part or whole; also a number that looks like one.
_COMMIT = re.compile(r"(?<![0-9A-Za-z])[0-9A-Fa-f]{7,}+(?![0-9A-Za-z])")
_PIECE = 6  #: of a commit's id; no forge takes so few digits for one

#: ASCII punctuation that is written as it is: it means nothing to Markdown, wherever it stands.
_HARMLESS = re.compile(r"[,;?%]|(?<=[0-9A-Za-z])[-/](?=[0-9A-Za-z])|(?<=[A-Za-z])[.:](?= |$)")
_PUNCTUATION = re.compile(r"[!-/:-@\[-`{-~]")


def plain(text: str, limit: int = LONGEST, *, at_forge: bool = True) -> str:
    """One line of at most `limit` characters (zero-width spaces come on top): no control or invisible characters, nothing that
    is taken for a mention or a link, and no command at its start. At a forge no reference either, and no commit's id."""
    text = shorten(_line(text), limit)
    if at_forge:
        text = _COMMIT.sub(_in_pieces, text)
    for pattern in [*_ANYWHERE, *(_AT_A_FORGE if at_forge else [])]:
        text = pattern.sub(rf"\1{ZERO_WIDTH}", text)
    return text


def markdown(text: str, limit: int = LONGEST) -> str:
    """One line for a comment: every character that may mean something to Markdown or to HTML is an entity, and no word begins as
    a command does. A dash where nothing is left: `****` is a line, not an empty name.

    Entities and not backslashes, since they hold everywhere: in a paragraph, a table, a heading, and between the tags of a
    block of HTML. In code between backticks they do not; write `<code>` instead.
    """
    text = _IN_A_COMMENT.sub(rf"\1{ZERO_WIDTH}", plain(text, limit)) or "–"
    harmless = {match.start() for match in _HARMLESS.finditer(text)}
    return _PUNCTUATION.sub(lambda match: match[0] if match.start() in harmless else f"&#x{ord(match[0]):X};", text)


def code(text: str, limit: int = LONGEST) -> str:
    """One line as code."""
    return f"<code>{markdown(text, limit)}</code>"


def code_block(text: str) -> str:
    """Lines as a block of code, in a fence that is longer than any in it. Other bots may read it like any text: no line, and no
    word in it, begins as a command or a mention does."""
    text = "\n".join("".join(char for char in line if char.isprintable() or char == "\t") for line in text.splitlines())
    for pattern in _IN_CODE:
        text = pattern.sub(rf"\1{ZERO_WIDTH}", text)
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    ticks = "`" * max(3, longest + 1)
    return f"{ticks}text\n{text}\n{ticks}"


def web_address(url: str) -> str:
    """An address of the web that a forge gave, as it may stand in a link of Markdown; empty when it is none."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    if parts.scheme not in ("http", "https") or not re.fullmatch(r"[A-Za-z0-9.:\[\]-]+", parts.netloc):
        return ""
    path, query, fragment = (quote(part, safe="%/:@=&+,;~?") for part in (parts.path, parts.query, parts.fragment))
    return urlunsplit((parts.scheme, parts.netloc, path, query, fragment))


def mention(login: str) -> str:
    """`@login` for somebody who is to be told; a login that no forge gives out is only shown."""
    return f"@{login}" if re.fullmatch(r"[A-Za-z0-9_.-]{1,100}", login) else markdown(login, 100)


def commit(sha: str) -> str:
    """A commit's id for a command or between backticks; empty when it is none."""
    return sha if re.fullmatch(r"[0-9A-Fa-f]{1,64}", sha) else ""


def shorten(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _line(text: str) -> str:
    # Much of it may be space, but not all of a megabyte has to be looked at.
    text = text[:100_000]
    return " ".join("".join(char for char in text if char.isprintable() or char.isspace()).split())


def _in_pieces(match: re.Match[str]) -> str:
    return ZERO_WIDTH.join(match[0][start : start + _PIECE] for start in range(0, len(match[0]), _PIECE))
