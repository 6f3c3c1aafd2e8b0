"""Generates the table in docs/configuration.md from the settings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from controlplane.config import BASE_DIR, Config
from controlplane.docs import folder

PATH = BASE_DIR / "docs" / "configuration.md"
HEADING = "| Setting | Type | Default | Description |\n|---|---|---|---|\n"
ROWS = re.compile(rf"(?<={re.escape(HEADING)})(?:\|.*\n?)*")


class NoTable(Exception):
    """The document has no place for the table. The message says what to do."""


def document() -> str:
    """docs/configuration.md with its table as the settings are now; all else is as in the file. Raises NoTable, OSError."""
    path = folder() / PATH.name
    rows = [
        f"| `{field.alias}` | {_type(field)} | {_default(field)} | {field.description} |\n"
        for field in Config.model_fields.values()
    ]
    text, tables = ROWS.subn(lambda _: "".join(rows), path.read_text())
    if tables != 1:
        raise NoTable(f"{path} must have the table of settings once, but has it {tables} times. It begins with:\n{HEADING}")
    return text


def _type(field: FieldInfo) -> str:
    kind: Any = field.annotation
    kind = next((part for part in get_args(kind) if part is Path), kind)  # an optional path
    if options := [option for option in get_args(kind) if kind is not None and isinstance(option, str)]:
        return ", ".join(f"`{option}`" for option in options)
    name = {"bool": "flag", "int": "number", "float": "number", "str": "text", "Path": "path"}.get(
        getattr(kind, "__name__", ""), "words"
    )
    limits = {type(limit).__name__: limit for limit in field.metadata}
    low: Any = getattr(limits.get("Ge"), "ge", None)
    high: Any = getattr(limits.get("Le"), "le", None)
    if low is not None and high is not None:
        return f"{name}, {low}–{high}"
    if low is not None:
        return f"{name}, at least {low}"
    return f"{name}, more than 0 up to {high}" if high is not None else name


def _default(field: FieldInfo) -> str:
    value = "" if field.default is None else field.default
    if value is PydanticUndefined:
        return "the host name"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, list):
        value = ",".join(value)
    return f"`{value}`" if value != "" else "empty"
