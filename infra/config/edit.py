"""Changes one value in the text of `infra.yml` and keeps comments, order and quotes. Pure."""

from __future__ import annotations

import re
from typing import Literal

import yaml

from infra.config.load import own
from infra.deployers.compose import safeyaml

Key = Literal["version", "owner"]
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


class PinError(Exception):
    """The value cannot be written; the message says why, and what to write manually."""


def with_value(text: str, app: str, key: Key, value: str) -> str:
    """The file's text with one key of one app set; every other byte is unchanged. Raises PinError."""
    if not _PLAIN.fullmatch(value):
        raise PinError(f"Cannot write {value!r} into the file without quoting.")
    mapping = _mapping(text, app)
    for name, node in mapping.value:
        if name.value == key and own(mapping, name):
            start, end = node.start_mark.index, node.end_mark.index
            # An alias resolves to its anchor, which begins with `&`.
            if not isinstance(node, yaml.ScalarNode) or node.style in ("|", ">") or text[start : start + 1] in ("&", "!"):
                raise PinError(f"Line {name.start_mark.line + 1} has no plain value; edit it manually: `{key}: {value}`.")
            quote = node.style or ""
            return f"{text[:start]}{' ' if start == end else ''}{quote}{value}{quote}{text[end:]}"
    first = next((name for name, _ in mapping.value if own(mapping, name)), None)
    if first is None:
        raise PinError(f"{app} has no block of its own in the file; add manually: `{key}: {value}`.")
    at, ending = first.start_mark.index, "\r\n" if "\r\n" in text else "\n"
    between = ", " if mapping.flow_style else ending + " " * first.start_mark.column
    return f"{text[:at]}{key}: {value}{between}{text[at:]}"


def line_with(text: str, app: str, key: Key, value: str) -> tuple[int, str]:
    """The line that `with_value` would write: its number (from 1) and its text. Raises PinError."""
    new = with_value(text, app, key, value)
    mapping = _mapping(new, app)
    number = next(name.start_mark.line for name, _ in mapping.value if name.value == key and own(mapping, name))
    return number + 1, new.split("\n")[number].rstrip("\r")


def _mapping(text: str, app: str) -> yaml.MappingNode:
    try:
        _, root = safeyaml.load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise PinError(f"Invalid YAML: {' '.join(str(error).split())[:200]}") from error
    node: yaml.Node | None = root
    for part in ("apps", app):
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        node = next((value for name, value in pairs if name.value == part), None)
    if not isinstance(node, yaml.MappingNode):
        raise PinError(f"The file has no app {app}.")
    return node
