"""Finds line numbers in a recipe's files: Docker's errors and our refusals name keys, but seldom lines.

Best effort, for display only: nothing read here is deployed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from infra.deployers.compose.files import inside
from infra.deployers.errors import DeployError

_LINE = re.compile(r"\bline (\d{1,7})\b")
_PATH = re.compile(r"\b(?:services|networks|volumes|configs|secrets)(?:\.[^\s:]{1,200})?")
_KEY = re.compile(r"Additional property (\S{1,200}) is not allowed")
#: Of the files that are searched, together: what is longer is no compose file that people read, and takes minutes.
_BIGGEST = 1 << 18
_DEEPEST = 100


def of_error(checkout: Path, name: str, message: str) -> str:
    """`:<line>` for Docker's error; empty if the line cannot be determined."""
    if found := _LINE.search(message):
        return f":{found[1]}"
    if not (path := _PATH.search(message)):
        return ""
    keys = path[0].split(".")
    if extra := _KEY.search(message):
        keys.append(extra[1])
    line, depth = _find(_tree(checkout, name), keys)
    return f":{line}" if depth else ""


class Places:
    """Locates keys in the compose files `names`. Each file is read once."""

    def __init__(self, checkout: Path, names: Sequence[str]) -> None:
        self._trees = {name: _tree(checkout, name, _BIGGEST // max(len(names), 1)) for name in names}

    def of(self, path: Sequence[str], hint: str) -> str:
        """`file:line` of these keys, in the last file that has the most of them, since later files win.

        `hint` is the key below them, or the start of the text.
        """
        best = ("", 0, -1)
        for name, tree in self._trees.items():
            line, depth = _find(tree, [*path, *([hint] if hint else [])])
            if depth >= best[2]:
                best = (name, line, depth)
        return f"{best[0]}:{best[1]}"


def _tree(checkout: Path, name: str, most: int = _BIGGEST) -> yaml.Node | None:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    try:
        path = inside(checkout, name)
        if path.stat().st_size > most:
            return None
        text = path.read_text()
        for event in yaml.parse(text, Loader=loader):  # libyaml's own composer breaks down over what is very deep
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST:
                return None
        return yaml.compose(text, Loader=loader)
    except (DeployError, OSError, yaml.YAMLError, ValueError):
        return None


def _find(root: yaml.Node | None, keys: Sequence[str]) -> tuple[int, int]:
    """The line of the deepest key found, and how many of `keys` it took. A key with dots takes several."""
    node, line, at = root, 1, 0
    while at < len(keys):
        for end in range(len(keys), at, -1):
            if found := _child(node, ".".join(keys[at:end])):
                line, node = found
                at = end
                break
        else:
            break
    return line, at


def _child(node: yaml.Node | None, name: str) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        # The last one: of a key that is given twice it is the one too many.
        for key, value in reversed(node.value):
            if isinstance(key, yaml.ScalarNode) and str(key.value) == name:
                return key.start_mark.line + 1, value
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            if _text(item).startswith(name):
                return item.start_mark.line + 1, item
    return None


def _text(item: yaml.Node) -> str:
    """What identifies an item of a list: the item itself, or its source or target."""
    if isinstance(item, yaml.MappingNode):
        for key, value in item.value:
            if key.value in ("source", "target") and isinstance(value, yaml.ScalarNode):
                return str(value.value)
    return str(item.value) if isinstance(item, yaml.ScalarNode) else ""
