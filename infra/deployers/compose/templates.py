"""Go templates that the Docker daemon expands itself: some texts of a service, and files with `template_driver`. Pure.

The daemon runs them without limits on memory or time: a variable doubled ten times, a template that calls itself twice, a number
with a billion digits. Only templates that look up a text or choose between two are accepted, so the result is no longer than the
template plus what each call looks up. Everything else is refused. Sources: swarmkit's package `template` (what is expanded, and
with which fields and functions), Go's text/template.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping

#: What a template may make of itself, as much as a file may have.
LONGEST = 1 << 20
#: Go reads a template by calling itself.
_DEPTH = 50
_FUNCTIONS = ("eq", "ne", "and", "or", "not")
#: What a template looks up: `env "X"`. Only in files; elsewhere the Swarm itself refuses it.
LOOKUPS = ("env", "secret", "config")
_ALLOWED = f"more than {', '.join(LOOKUPS)}, if, else, end, eq, ne, and, or, not and fields such as .Service.Name"
_SPACE = r"[ \t\r\n]"
_QUOTED = r'"(?:[^"\\\n]|\\.)*"|`[^`]*`'
_COMMENT = re.compile(rf"\{{\{{(?:-{_SPACE})?/\*(?:[^*]|\*(?!/))*\*/(?:{_SPACE}-)?\}}\}}")
_OPEN = re.compile(rf"\{{\{{(?:-(?={_SPACE}))?")
_CLOSE = re.compile(rf"(?:{_SPACE}*|{_SPACE}+-)\}}\}}")
_ENDED = re.compile(rf"{_SPACE}*(?:\)|-?\}}\}})")
#: Fields whose texts are no longer than a name, all of which are the Swarm's or the server's own words.
_FIELD = (
    r"\.(?:Service\.(?:ID|Name)|Node\.(?:ID|Hostname|Platform\.(?:Architecture|OS))|Task\.(?:ID|Name|Slot))"
    rf'|index{_SPACE}+\.Service\.Labels{_SPACE}+"com\.docker\.stack\.namespace"'
)
_TERM = re.compile(rf"{_SPACE}*(?:{_QUOTED}|(?:{_FIELD})(?![\w.]))")
_LOOKUP = re.compile(rf"{_SPACE}*({'|'.join(LOOKUPS)}){_SPACE}+(?:{_QUOTED})")
_WORD = re.compile(rf"{_SPACE}*([a-z]+)(?![\w.])")
_BEGIN = re.compile(rf"{_SPACE}*\(")
_END = re.compile(rf"{_SPACE}*\)")


class TooMuch(ValueError):
    """A template that may do more than is allowed: the reason, and its line."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


def check(text: str, longest: Mapping[str, int]) -> None:
    """Raises TooMuch. `longest`: the longest text that each of `LOOKUPS` can find; 0 for those not listed."""
    template = _Template(text)
    template.read()
    if len(text) + sum(times * longest.get(name, 0) for name, times in template.calls.items()) > LONGEST:
        raise TooMuch("more than a megabyte once it is filled in", 1)


class _Template:
    """Parses a template from its beginning, as Go does; whatever is between two actions is plain text."""

    def __init__(self, text: str) -> None:
        self.calls: Counter[str] = Counter()
        self._text = text
        self._at = 0
        self._ifs: list[int] = []  # how many conditions hang on each: Go has an `else if` inside the one before

    def read(self) -> None:
        while (start := self._text.find("{{", self._at)) >= 0:
            self._at = start
            if not self._past(_COMMENT.match(*self._here)):
                self._action()

    @property
    def _here(self) -> tuple[str, int]:
        return self._text, self._at

    def _past(self, match: re.Match[str] | None) -> re.Match[str] | None:
        self._at = match.end() if match else self._at
        return match

    def _need(self, found: object) -> None:
        if not found:
            raise TooMuch(_ALLOWED, self._text.count("\n", 0, self._at) + 1)

    def _word(self, words: Collection[str]) -> str:
        match = _WORD.match(*self._here)
        if not match or match[1] not in words:
            return ""
        self._past(match)
        return match[1]

    def _action(self) -> None:
        self._past(_OPEN.match(*self._here))
        word = self._word(("if", "else", "end"))
        if word == "if":
            self._ifs.append(1)
        elif word == "end":
            self._ifs = self._ifs[:-1]
        elif word == "else" and (further := self._word(("if",))):
            self._ifs, word = [*self._ifs[:-1], sum(self._ifs[-1:]) + 1], further
        self._need(sum(self._ifs) <= _DEPTH)
        if word in ("", "if"):
            self._expression(0)
        self._need(self._past(_CLOSE.match(*self._here)))

    def _expression(self, depth: int) -> None:
        self._need(depth <= _DEPTH)
        if found := self._past(_LOOKUP.match(*self._here)):
            self.calls[found[1]] += 1
        elif not self._word(_FUNCTIONS):
            self._operand(depth)
        else:
            while not _ENDED.match(*self._here):
                self._operand(depth)

    def _operand(self, depth: int) -> None:
        if not self._past(_TERM.match(*self._here)):
            self._need(self._past(_BEGIN.match(*self._here)))
            self._expression(depth + 1)
            self._need(self._past(_END.match(*self._here)))
