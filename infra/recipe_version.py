"""Recipe versions, `X.Y.Z+<app version>`, and their order. Pure.

The left part is the maintainer's semver; the right one is upstream's, which often is not semver: flavours, dates, four parts.
Generic semver libraries treat `1.0.0+1` and `1.0.0+2` as equal; here the left part is compared first, then the right one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property, total_ordering

_LONGEST = 200
_VERSION = re.compile(r"(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\+([0-9A-Za-z][0-9A-Za-z._+-]*)")
_HEAD = re.compile(r"[vV]?([0-9]+(?:\.[0-9]+)*)")
#: Suffixes that begin like this sort before the release; any other is a flavour (`-fpm-alpine`) and sorts after.
_BEFORE_RELEASE = re.compile(
    r"[-._]?(?:rc|alpha|beta|preview|pre|dev|snapshot|nightly|canary|unstable|next|m(?=[0-9]))(?![a-z])|[ab][0-9]", re.IGNORECASE
)
_TOKENS = re.compile(r"[0-9]+|[A-Za-z]+")

Token = tuple[bool, int, str]
Right = tuple[tuple[int, ...], int, tuple[Token, ...], str]


class Unreadable(ValueError):
    """Not a recipe version; the message shows the format."""


def is_version(text: str) -> bool:
    """Whether the text is a valid recipe version."""
    return len(text) <= _LONGEST and _VERSION.fullmatch(text) is not None


@total_ordering
@dataclass(frozen=True)
class Version:
    """One version. Two are equal if their texts are; the rest are totally ordered (`tests/data/versions.txt`)."""

    left: tuple[int, int, int]
    right: str

    @classmethod
    def parse(cls, text: str) -> Version:
        """Parse a tag or a label. Raises Unreadable."""
        match = _VERSION.fullmatch(text) if len(text) <= _LONGEST else None
        if not match:
            raise Unreadable(f"Invalid version {text[:60]!r}: expected X.Y.Z+<app version>, such as 1.2.0+26.6.2.")
        return cls((int(match[1]), int(match[2]), int(match[3])), match[4])

    @property
    def recipe_major(self) -> int:
        """The recipe's own major: raised when an operator has to act."""
        return self.left[0]

    @property
    def app_major(self) -> int | None:
        """The app's major; None if its version does not begin with a number. Unrelated to the recipe's."""
        match = _HEAD.match(self.right)
        return int(match[1].partition(".")[0]) if match else None

    def __str__(self) -> str:
        return f"{'.'.join(map(str, self.left))}+{self.right}"

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, Version):
            return NotImplemented
        return (self.left, self._right) < (other.left, other._right)

    @cached_property
    def _right(self) -> Right:
        """Numbers first, then suffixes: a pre-release sorts below its release, a flavour above. The text breaks ties."""
        head = _HEAD.match(self.right)
        rest = self.right[head.end() :] if head else self.right
        rank = 0 if not rest else -1 if head and _BEFORE_RELEASE.match(rest) else 1
        tokens = tuple((False, int(part), "") if part.isdigit() else (True, 0, part) for part in _TOKENS.findall(rest))
        return tuple(int(part) for part in head[1].split(".")) if head else (), rank, tokens, self.right
