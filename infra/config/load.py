"""Reads and writes `infra.yml`: errors with line numbers and hints, and a normalized form. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from infra.config.schema import App, Document, Place, Snapshots, disagreements, nearest
from infra.deployers.compose import safeyaml

FILE = "infra.yml"
_BIGGEST = 1 << 20


@dataclass(frozen=True)
class Problem:
    """One error in the file: its line (from 1), its path in the document, and what to do."""

    line: int
    place: str
    text: str

    def __str__(self) -> str:
        return f"{FILE}:{self.line}: {f'{self.place}: ' if self.place else ''}{self.text}"


class DeclarationError(ValueError):
    """The file is invalid. The message has one line per problem."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


@dataclass(frozen=True)
class Declaration:
    """A parsed file: its normalized contents, its text, and the line of each part."""

    document: Document
    text: str = ""
    lines: Mapping[Place, int] = None  # type: ignore[assignment]

    @property
    def apps(self) -> Mapping[str, App]:
        return self.document.apps

    def line(self, *place: str | int) -> int:
        """The line of a part, or of its nearest parent."""
        return _line(self.lines or {}, place)

    def order(self) -> list[str]:
        """The apps' names in dependency order, else as in the file."""
        done: list[str] = []

        def add(name: str) -> None:
            for other in self.apps[name].after:
                if other not in done:
                    add(other)
            if name not in done:
                done.append(name)

        for name in self.apps:
            add(name)
        return done


def parse(text: str) -> Declaration:
    """Parse a file's text. Raises DeclarationError with all problems, each with its line."""
    if len(text) > _BIGGEST:
        raise DeclarationError(Problem(1, "", f"the file is larger than {_BIGGEST >> 10} kB"))
    try:
        data, root = safeyaml.load(text)
    except yaml.MarkedYAMLError as error:
        raise DeclarationError(Problem(safeyaml.line(error, text) or 1, "", f"invalid YAML: {error.problem}")) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DeclarationError(Problem(1, "", f"invalid YAML: {' '.join(str(error).split())[:200]}")) from None
    lines: dict[Place, int] = {(): 1}
    doubles: list[Problem] = []
    if root is not None:
        _walk(root, (), lines, doubles)
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise DeclarationError(Problem(1, "", "the file must be a mapping with the key `apps`"))
    try:
        document = Document.model_validate(data)
    except ValidationError as error:
        problems = [_problem(dict(item), lines) for item in error.errors(include_url=False, include_input=False)]
        raise DeclarationError(*sorted([*doubles, *problems], key=lambda problem: problem.line)) from None
    wrong = [Problem(_line(lines, place), _words(place), text) for place, text in disagreements(document)]
    if doubles or wrong:
        raise DeclarationError(*sorted([*doubles, *wrong], key=lambda problem: problem.line))
    return Declaration(normalised(document), text, lines)


def normalised(document: Document) -> Document:
    """Fill in defaults that depend on other parts: the stack's name and the store."""
    only = next(iter(document.stores), "") if len(document.stores) == 1 else ""
    apps = {}
    for name, app in document.apps.items():
        snapshots = app.snapshots
        if snapshots and snapshots.of == "volumes" and not snapshots.store:
            snapshots = snapshots.model_copy(update={"store": only})
        elif snapshots and snapshots.of == "none":
            snapshots = Snapshots(of="none")
        apps[name] = app.model_copy(update={"stack": app.stack_name, "snapshots": snapshots})
    return document.model_copy(update={"apps": apps})


def dump(document: Document) -> str:
    """Render a document as YAML, leaving out defaults."""
    data = document.model_dump(mode="json", exclude_defaults=True)
    return yaml.safe_dump({**data, "apps": data.get("apps", {})}, sort_keys=False, allow_unicode=True, width=120)


def _walk(node: yaml.Node, place: Place, lines: dict[Place, int], doubles: list[Problem]) -> None:
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            lines[(*place, number)] = item.start_mark.line + 1
            _walk(item, (*place, number), lines, doubles)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not own(node, key):  # merged in by `<<`; the mapping's own keys come later and win
            line = node.start_mark.line + 1
        elif key.value in seen:
            text = f"duplicate key, first in line {seen[key.value]}"
            doubles.append(Problem(line, _words((*place, str(key.value))), text))
        else:
            seen[key.value] = line
        lines[(*place, str(key.value))] = line
        _walk(value, (*place, str(key.value)), lines, doubles)


def own(mapping: yaml.MappingNode, key: yaml.Node) -> bool:
    """Whether a key is in the mapping itself, not in one merged into it."""
    return bool(mapping.start_mark.index <= key.start_mark.index < mapping.end_mark.index)


def _line(lines: Mapping[Place, int], place: Place) -> int:
    while place not in lines and place:
        place = place[:-1]
    return lines.get(place, 1)


def _words(place: Place) -> str:
    """`apps.traefik.health[0].status`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")


def _problem(error: Mapping[str, Any], lines: Mapping[Place, int]) -> Problem:
    raw: Place = tuple(error["loc"])
    place = tuple(part for part in raw if part != "[key]")
    line, kind = _line(lines, place), error["type"]
    if kind == "extra_forbidden":
        known = list(_keys(place[:-1]))
        return Problem(line, _words(place[:-1]), f"unknown key {place[-1]}{nearest(str(place[-1]), known)}")
    if kind == "missing":
        return Problem(line, _words(place[:-1]), f"missing key {place[-1]}")
    if "[key]" in raw:
        return Problem(line, _words(place[:-1]), f"invalid name {place[-1]!r}: use lowercase letters, digits and hyphens")
    return Problem(line, _words(place), _reason(error))


def _reason(error: Mapping[str, Any]) -> str:
    kind, context = error["type"], error.get("ctx") or {}
    if kind == "string_type":
        return "must be a string: put it in quotes"
    if kind == "literal_error":
        return f"must be {context['expected']}"
    if kind == "string_pattern_mismatch":
        return "is empty or contains invalid characters"
    return str(error["msg"]).removeprefix("Value error, ").replace("Input should be", "must be")


def _keys(place: Place) -> Iterator[str]:
    """The known keys at a path."""
    model: Any = Document
    for part in place:
        if isinstance(model, type) and issubclass(model, BaseModel):
            field = model.model_fields.get(str(part))
            model = field.annotation if field else None
        else:  # an entry of a dict or a list
            model = next((inner for inner in _models(model)), None)
    model = next((inner for inner in _models(model)), model)
    if isinstance(model, type) and issubclass(model, BaseModel):
        yield from model.model_fields


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections in a type: `dict[str, App]`, `tuple[Check, ...]`, `Snapshots | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _models(inner)
