"""Where in a recipe's files something stands, for people: Docker's errors and our refusals name keys, and seldom a line.

Best effort, and of no consequence: what is deployed is never read here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from infra.deployers.base import DeployError
from infra.deployers.compose.files import inside

_LINE = re.compile(r"\bline (\d{1,7})\b")
_PATH = re.compile(r"\b(?:services|networks|volumes|configs|secrets)(?:\.[^\s:]{1,200})?")
_KEY = re.compile(r"Additional property (\S{1,200}) is not allowed")
#: Of the files that are searched, together: what is longer is no compose file that people read, and takes minutes.
_BIGGEST = 1 << 18
_DEEPEST = 100


def of_error(checkout: Path, name: str, said: str) -> str:
    """`:<line>` of what Docker's error is about; empty when that cannot be told."""
    if found := _LINE.search(said):
        return f":{found[1]}"
    if not (path := _PATH.search(said)):
        return ""
    keys = path[0].split(".")
    if extra := _KEY.search(said):
        keys.append(extra[1])
    line, depth = _find(_tree(checkout, name), keys)
    return f":{line}" if depth else ""


class Places:
    """Where keys stand in the compose files `names`, each of which is read once."""

    def __init__(self, checkout: Path, names: Sequence[str]) -> None:
        self._trees = {name: _tree(checkout, name, _BIGGEST // max(len(names), 1)) for name in names}

    def of(self, path: Sequence[str], hint: str) -> str:
        """`file:line` of what lies under these keys; of the last file that has the most of them, as later files win.

        `hint` names the key, or is the start of the text, of what is meant beneath them.
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
    """The line of the deepest key that is there, and how many of `keys` it took. A key with dots in it takes several."""
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
    """What an item of a list is told from others by: itself, or its source or target."""
    if isinstance(item, yaml.MappingNode):
        for key, value in item.value:
            if key.value in ("source", "target") and isinstance(value, yaml.ScalarNode):
                return str(value.value)
    return str(item.value) if isinstance(item, yaml.ScalarNode) else ""
