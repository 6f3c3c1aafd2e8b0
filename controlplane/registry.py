"""Where the apps hang up what the frame shows or asks: checks for doctor, cards for the start page, recurring tasks.

Filled in each `AppConfig.ready`, so that the frame needs to import nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One line of `doctor`: what was looked at, how it stands, and what to type when it is not well."""

    name: str
    level: Level
    text: str
    fix: str = ""
    rows: tuple[tuple[str, ...], ...] = ()  #: a table that goes with it, its head first


@dataclass(frozen=True)
class Recurring:
    """A row of the table of what recurs. `task` is a dotted path to a function without arguments that may return words.

    `per_host`: every machine does it for itself; otherwise one of them does it for all.
    """

    name: str
    task: str
    every_seconds: float
    per_host: bool = False
    text: str = ""


@dataclass(frozen=True)
class Card:
    """A section of the start page: a template, and a function from the request to its context."""

    template: str
    context: Callable[[Any], dict[str, Any]]
    order: int = 100


#: Judges a request by its method and its headers, before its body is read: a status and a text to refuse it, or None.
Guard = Callable[[str, Mapping[str, str]], tuple[int, str] | None]


@dataclass
class Registry:
    checks: dict[str, Callable[[], Iterable[Finding]]] = field(default_factory=dict)
    recurring: dict[str, Recurring] = field(default_factory=dict)
    cards: dict[str, Card] = field(default_factory=dict)
    answers: dict[str, Callable[..., Any]] = field(default_factory=dict)
    guards: dict[str, Guard] = field(default_factory=dict)

    def check(self, name: str, function: Callable[[], Iterable[Finding]]) -> None:
        self.checks[name] = function

    def recur(self, task: Recurring) -> None:
        self.recurring[task.name] = task

    def card(self, name: str, card: Card) -> None:
        self.cards[name] = card

    def answer(self, name: str, function: Callable[..., Any]) -> None:
        """Offer an answer others may need, such as `version_evidence`."""
        self.answers[name] = function

    def ask(self, name: str, *args: Any, default: Any = None) -> Any:
        """Ask for an answer; `default` where nobody offers it."""
        function = self.answers.get(name)
        return default if function is None else function(*args)

    def guard(self, prefix: str, function: Guard) -> None:
        """Have requests to addresses that begin so judged before their bodies are read."""
        self.guards[prefix] = function

    def judge(self, method: str, path: str, headers: Mapping[str, str]) -> tuple[int, str] | None:
        """What the guard of this address says; the web server asks."""
        return next((guard(method, headers) for prefix, guard in self.guards.items() if path.startswith(prefix)), None)


registry = Registry()
