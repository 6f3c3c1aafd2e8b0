"""Where apps register checks for doctor, cards for the start pages, recurring tasks and parts of the API.

Filled in each `AppConfig.ready`, so that the control plane imports no other app. The apps register the dotted paths of their
functions, which are imported when they are called: most commands need none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from django.utils.module_loading import import_string

from controlplane.untrusted import printable

Level = Literal["ok", "warning", "error"]
#: Where a card is shown: on the start page, or on the admin's, under one of its three headings.
Place = Literal["start", "concerns", "now", "trends"]
#: A function, or the dotted path of one.
Function = Callable[..., Any] | str


@dataclass(frozen=True)
class Finding:
    """One finding of `doctor`: the check, its result, and what to type if there is a problem."""

    name: str
    level: Level
    text: str
    fix: str = ""
    rows: tuple[tuple[str, ...], ...] = ()  #: a table that goes with it, its head first

    def __post_init__(self) -> None:
        """Much of the text is what servers said, and it is shown in terminals."""
        object.__setattr__(self, "text", printable(self.text))


@dataclass(frozen=True)
class Recurring:
    """A recurring task. `task` is a dotted path to a function without arguments that may return text.

    `per_host`: every host runs it; otherwise one of them runs it for all.
    """

    name: str
    task: str
    every_seconds: float
    per_host: bool = False
    text: str = ""


@dataclass(frozen=True)
class Card:
    """A part of a page: a template, and a function from the request to its context.

    Those for `concerns` and `now` have no template: their functions return lists of `Concern` and `Figure`, shown together.
    `fresh`: it has parts with `data-refresh`, which open pages ask for again every few seconds.
    """

    template: str
    context: Function
    order: int = 100
    place: Place = "start"
    fresh: bool = False


@dataclass(frozen=True)
class Concern:
    """Something that needs a person: what, what it means, and the page where it is put right, or the command to type."""

    level: Level
    text: str
    detail: str = ""
    url: str = ""
    fix: str = ""  #: what is done at `url`, or the command without one


@dataclass(frozen=True)
class Figure:
    """A number of what goes on, with its page."""

    value: int | str
    text: str
    url: str = ""


def call(function: Function, *args: Any) -> Any:
    return (import_string(function) if isinstance(function, str) else function)(*args)


@dataclass
class Registry:
    checks: dict[str, Function] = field(default_factory=dict)
    recurring: dict[str, Recurring] = field(default_factory=dict)
    cards: dict[str, Card] = field(default_factory=dict)
    answers: dict[str, Function] = field(default_factory=dict)
    guards: dict[str, Function] = field(default_factory=dict)
    routers: dict[str, str] = field(default_factory=dict)

    def check(self, name: str, function: Function) -> None:
        """Register a check for doctor: a function without arguments that returns findings."""
        self.checks[name] = function

    def recur(self, task: Recurring) -> None:
        self.recurring[task.name] = task

    def card(self, name: str, card: Card) -> None:
        self.cards[name] = card

    def cards_of(self, place: Place) -> list[Card]:
        return sorted((card for card in self.cards.values() if card.place == place), key=lambda card: card.order)

    def answer(self, name: str, function: Function) -> None:
        """Register a provider of an answer that others may need, such as `version_evidence`."""
        self.answers[name] = function

    def ask(self, name: str, *args: Any, default: Any = None) -> Any:
        """The registered provider's answer, or `default`."""
        function = self.answers.get(name)
        return default if function is None else call(function, *args)

    def router(self, prefix: str, router: str) -> None:
        """Register a part of the API: the dotted path of a router, whose operations get this prefix."""
        self.routers[prefix] = router

    def guard(self, prefix: str, function: Function) -> None:
        """Register a guard: it judges requests to paths with this prefix by method and headers, before their bodies are read,
        and returns a status and a text to refuse one, or None.
        """
        self.guards[prefix] = function

    def judge(self, method: str, path: str, headers: Mapping[str, str]) -> tuple[int, str] | None:
        """The verdict of the guard for this path; called by the web server."""
        return next((call(guard, method, headers) for prefix, guard in self.guards.items() if path.startswith(prefix)), None)


registry = Registry()
