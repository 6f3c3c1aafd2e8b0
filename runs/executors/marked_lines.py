"""Events, results and files through the log of a build, in signed lines.

A remote build can give us nothing but its log, and a recipe's tests print to the same log. So the harness's own words are lines
with a marker, the run and its attempt, a running number, a kind, a piece in base64, and an HMAC-SHA256 over all of that with a
key of this attempt. Whoever does not have the key can neither write such a line nor change one, and a missing line shows in the
numbers. Whatever else is in the log is text.

    cc-ci:1:<run>:<attempt>:<number>:<kind>:<base64>:<hmac>

A block (an event, a file, the results, the end) is one line or several: all but its last line have a kind that ends in `+`.
The numbers begin at 1, and the line of kind `end` is the last.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

#: Bytes of a piece: with base64 and the rest, a line stays below 4 kB.
PIECE = 2700
LONGEST_LINE = 4096
#: The most that one block may unpack to.
LONGEST_BLOCK = 16 << 20
#: The most that all blocks of one log may unpack to.
LONGEST_LOG = 64 << 20

EVENT, FILE, RESULTS, END = "event", "file", "results", "end"

_PREFIX = "cc-ci:1:"
#: What follows the prefix, which may be anywhere: whoever prints without a newline must not hide what comes next.
_LINE = re.compile(
    r"(?P<run>[0-9a-f-]{1,40}):(?P<attempt>[0-9]{1,5}):(?P<number>[0-9]{1,7}):(?P<kind>[a-z]{1,10}\+?)"
    r":(?P<piece>[A-Za-z0-9+/=]{0,3700}):(?P<signature>[0-9a-f]{64})"
)

#: What may stand in the middle of the prefix unseen, or be dropped on the way: ANSI, control characters, those without a width.
_UNSEEN = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028\u2029\ufeff]")


def unmarked(text: str) -> str:
    """Text in which nothing looks like the beginning of a line of ours: whoever learned the key prints text all the same."""
    plain = _UNSEEN.sub("", text)
    # Both: what is left out may have begun with the marker's own first letter.
    return (plain if _PREFIX in plain else text).replace(_PREFIX, "cc-ci :1:")


def _signature(key: str, signed: str) -> str:
    return hmac.digest(key.encode(), signed.encode(), "sha256").hex()


class Writer:
    """Makes the lines of one attempt, in order."""

    def __init__(self, key: str, run: str, attempt: int) -> None:
        self._key, self._run, self._attempt, self._number = key, run, attempt, 0

    def event(self, text: str, most: int = LONGEST_BLOCK) -> list[str]:
        return self._bounded(EVENT, text.encode(), most)

    def file(self, name: str, data: bytes, most: int = LONGEST_BLOCK) -> list[str]:
        return self._bounded(FILE, name.encode() + b"\0" + data, most)

    def results(self, text: str, most: int = LONGEST_BLOCK) -> list[str]:
        return self._bounded(RESULTS, text.encode(errors="replace"), most)

    def end(self) -> list[str]:
        return list(self._block(END, b""))

    def _bounded(self, kind: str, data: bytes, most: int) -> list[str]:
        """The lines of a block; none if they would have more than `most` bytes."""
        packed = len(zlib.compress(data, 9))
        if len(data) >= LONGEST_BLOCK or (packed // PIECE + 2) * LONGEST_LINE > most:
            return []
        return list(self._block(kind, data))

    def _block(self, kind: str, data: bytes) -> Iterator[str]:
        packed = zlib.compress(data, 9)
        pieces = [packed[at : at + PIECE] for at in range(0, len(packed), PIECE)]
        for piece in pieces[:-1]:
            yield self._line(f"{kind}+", piece)
        yield self._line(kind, pieces[-1])

    def _line(self, kind: str, piece: bytes) -> str:
        self._number += 1
        code = base64.b64encode(piece).decode()
        signed = f"{_PREFIX}{self._run}:{self._attempt}:{self._number}:{kind}:{code}"
        return f"{signed}:{_signature(self._key, signed)}"


@dataclass
class Found:
    """What a log holds. `results` and `files` are empty unless every line from the first to the end is there."""

    text: str = ""  #: the log without the lines of this attempt
    events: list[str] = field(default_factory=list)  #: those up to the first missing line
    results: str | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    problem: str = ""  #: why there are no results


def read(log: str, key: str, run: str, attempt: int) -> Found:
    """Read a log, or the part of one that is there so far. Never raises, whatever the log contains."""
    lines: dict[int, tuple[str, str]] = {}
    contradicted = False

    def rest(part: str) -> str:
        """Of what begins with the prefix, what is not a line of this attempt."""
        nonlocal contradicted
        match = _LINE.match(part)
        if match is None or (match["run"], match["attempt"]) != (run, str(attempt)):
            return _PREFIX + part
        signed = _PREFIX + match[0].rpartition(":")[0]
        if not hmac.compare_digest(_signature(key, signed), match["signature"]):
            return _PREFIX + part
        line = (match["kind"], match["piece"])
        contradicted |= lines.setdefault(int(match["number"]), line) != line
        return part[match.end() :]

    text = "".join(_text(line, rest) for line in log.splitlines(keepends=True))
    found = Found(text=text)
    blocks, whole = _blocks(lines)
    found.events = [data.decode(errors="replace") for kind, data in blocks if kind == EVENT]
    results = [data for kind, data in blocks if kind == RESULTS]
    if contradicted:
        # The same attempt reported twice: somebody restarted its build, and printed the lines of one in the other.
        found.problem = "its log has two different reports of one attempt"
    elif not lines:
        found.problem = "its log has no report of the harness"
    elif not whole:
        found.problem = "its log has only a part of the harness's report"
    elif len(results) != 1:
        found.problem = "the harness reported no results"
    else:
        found.results = results[0].decode(errors="replace")
        found.files = dict(_named(data) for kind, data in blocks if kind == FILE)
    return found


def _text(line: str, rest: Callable[[str], str]) -> str:
    """A line of the log without what is ours; nothing if it was only that."""
    before, *parts = line.split(_PREFIX)
    if not parts:
        return line
    text = before + "".join(map(rest, parts))
    return "" if text != line and not text.strip() else text


def _blocks(lines: dict[int, tuple[str, str]]) -> tuple[list[tuple[str, bytes]], bool]:
    """The blocks up to the first missing or unreadable line, and whether the end came. Files only once it did."""
    blocks: list[tuple[str, bytes]] = []
    parts: list[bytes] = []
    number, left = 1, LONGEST_LOG
    whole = any(kind == END for kind, _ in lines.values()) and len(lines) == max(lines)
    while number in lines:
        kind, piece = lines[number]
        number += 1
        try:
            parts.append(base64.b64decode(piece, validate=True))
            if kind.endswith("+"):
                continue
            data = _unpack(b"".join(parts), min(left, LONGEST_BLOCK)) if kind != FILE or whole else b""
        except (binascii.Error, zlib.error):
            return blocks, False
        parts, left = [], left - len(data)
        if kind == END:
            return blocks, whole and number - 1 == max(lines)
        blocks.append((kind, data))
    return blocks, False


def _unpack(packed: bytes, most: int) -> bytes:
    reader = zlib.decompressobj()
    data = reader.decompress(packed, max(most, 1))  # 0 would be no limit
    if not reader.eof:
        raise zlib.error("too long, or cut")
    return data


def _named(data: bytes) -> tuple[str, bytes]:
    name, _, content = data.partition(b"\0")
    return name.decode(errors="replace"), content
