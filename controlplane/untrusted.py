"""Makes text from outside harmless where it is shown beyond our own pages: at a forge, in a status, in an alert.

Names of tests, files, people, repositories and branches, messages, reasons, versions: whatever a recipe, a forge or a person
wrote is data. Our pages leave escaping to Django; everything else goes through one of these functions:

- `markdown` for comments: one line that is inert in Markdown, in HTML and for the forge;
- `plain` for text that is not Markdown (statuses, titles, alerts): the same line without the escaping;
- `code_block` for output: a fence that the text cannot close;
- `printable` for terminals;
- `web_address` and `mention` for the two things that are meant to be active.

Zero-width spaces do what escaping cannot: a forge finds mentions, references and links in the *rendered* text, and other bots
look for commands in whatever they receive.
"""

from __future__ import annotations

import re
from urllib.parse import quote, urlsplit, urlunsplit

ZERO_WIDTH = "\u200b"
#: Default length limit of a line, in characters.
LONGEST = 500

#: First characters of commands, mentions, votes and references anywhere.
_SIGILS = r"[!#$%&*+\-./>?@\\^~]"
#: URLs without `//` that programs turn into links.
_SCHEMES = "mailto|tel|sms|callto|sips?|xmpp|irc|matrix|magnet|bitcoin|geo|cid|mid|news|urn|data|javascript|vbscript"
#: Where to insert a zero-width space (after the group): prevents mentions, links, and a command at the start.
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
#: The same at a forge: also prevents references and emoji.
_AT_A_FORGE = [
    re.compile(pattern)
    for pattern in (
        r"(#)(?=\w|$)",  # #12, owner/repo#12
        r"(?<![0-9A-Za-z])([A-Z][A-Z0-9]{0,9}-)(?=[1-9])",  # GH-12
        r"(:)(?=[a-z0-9_+-]+:)",  # :emoji:
        r"(\[)(?=\[)",  # [[wiki page]]
    )
]
#: The same in a comment, in which some bots look for commands in the middle of lines as well.
_IN_A_COMMENT = re.compile(rf"(?<![A-Za-z0-9_])({_SIGILS})(?=\w)")
#: In code, `!=` and paths stay unchanged.
_IN_CODE = [re.compile(r"(!(?=\w)|@(?=\S))"), re.compile(rf"(?m)^([ \t]*{_SIGILS})(?=\w)")]
#: A commit id, short or full; also a number that looks like one.
_COMMIT = re.compile(r"(?<![0-9A-Za-z])[0-9A-Fa-f]{7,}+(?![0-9A-Za-z])")
_PIECE = 6  #: of a commit's id; no forge takes so few digits for one

#: ASCII punctuation left unescaped: it has no meaning in Markdown in these positions.
_HARMLESS = re.compile(r"[,;?%]|(?<=[0-9A-Za-z])[-/](?=[0-9A-Za-z])|(?<=[A-Za-z])[.:](?= |$)")
_PUNCTUATION = re.compile(r"[!-/:-@\[-`{-~]")


def plain(text: str, limit: int = LONGEST, *, at_forge: bool = True) -> str:
    """One line of at most `limit` characters (plus zero-width spaces): no control or invisible characters, nothing that forms a
    mention or a link, and no command at its start. At a forge also no reference, and no commit id.
    """
    text = shorten(_line(text), limit)
    if at_forge:
        text = _COMMIT.sub(_in_pieces, text)
    for pattern in [*_ANYWHERE, *(_AT_A_FORGE if at_forge else [])]:
        text = pattern.sub(rf"\1{ZERO_WIDTH}", text)
    return text


def markdown(text: str, limit: int = LONGEST) -> str:
    """One line for a comment: every character special to Markdown or HTML becomes an entity, and no word begins like a
    command. A dash if nothing is left: `****` is a line, not an empty name.

    Uses entities rather than backslashes because they work everywhere: in paragraphs, tables, headings, between the tags of an
    HTML block. They do not work in code between backticks; use `<code>` instead.
    """
    text = _IN_A_COMMENT.sub(rf"\1{ZERO_WIDTH}", plain(text, limit)) or "–"
    harmless = {match.start() for match in _HARMLESS.finditer(text)}
    return _PUNCTUATION.sub(lambda match: match[0] if match.start() in harmless else f"&#x{ord(match[0]):X};", text)


def code(text: str, limit: int = LONGEST) -> str:
    """One line as code."""
    return f"<code>{markdown(text, limit)}</code>"


def code_block(text: str) -> str:
    """Lines as a code block, in a fence longer than any in it. Other bots may read it as text: no line, and no word in it,
    begins like a command or a mention.
    """
    text = "\n".join("".join(char for char in line if char.isprintable() or char == "\t") for line in text.splitlines())
    for pattern in _IN_CODE:
        text = pattern.sub(rf"\1{ZERO_WIDTH}", text)
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    ticks = "`" * max(3, longest + 1)
    return f"{ticks}text\n{text}\n{ticks}"


def web_address(url: str) -> str:
    """A forge's http(s) URL, safe in a Markdown link; empty if it is not one."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    if parts.scheme not in ("http", "https") or not re.fullmatch(r"[A-Za-z0-9.:\[\]-]+", parts.netloc):
        return ""
    path, query, fragment = (quote(part, safe="%/:@=&+,;~?") for part in (parts.path, parts.query, parts.fragment))
    return urlunsplit((parts.scheme, parts.netloc, path, query, fragment))


def mention(login: str) -> str:
    """`@login` to notify somebody; a login that no forge would issue is only shown."""
    return f"@{login}" if re.fullmatch(r"[A-Za-z0-9_.-]{1,100}", login) else markdown(login, 100)


def commit(sha: str) -> str:
    """A commit id for a command or between backticks; empty if it is not one."""
    return sha if re.fullmatch(r"[0-9A-Fa-f]{1,64}", sha) else ""


def shorten(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def printable(text: str) -> str:
    """One line without what a terminal would obey."""
    return "".join(char if char.isprintable() else " " for char in text)


def _line(text: str) -> str:
    # Much of it may be space, but there is no need to scan a whole megabyte.
    text = text[:100_000]
    return " ".join("".join(char for char in text if char.isprintable() or char.isspace()).split())


def _in_pieces(match: re.Match[str]) -> str:
    return ZERO_WIDTH.join(match[0][start : start + _PIECE] for start in range(0, len(match[0]), _PIECE))
