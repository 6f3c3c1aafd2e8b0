"""Reads untrusted YAML: with aliases and merge keys, a small file can expand beyond a machine's memory."""

from __future__ import annotations

from typing import Any

import yaml

_MOST_NODES = 50_000
_DEEPEST = 100
#: `1:10:10:…` takes the square of its length.
_LONGEST_NUMBER = 1000
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class TooMuch(yaml.YAMLError):
    """The file expands to more than anybody writes manually."""


def load(text: str) -> tuple[Any, yaml.Node | None]:
    """The document and its node tree, which knows line numbers. Raises yaml.YAMLError, ValueError or RecursionError.

    Nine levels of ten aliases are a billion nodes for whoever walks, prints or copies them, as PyYAML does with merge keys
    (`<<`). So nodes are counted before anything is built. What is written out is first counted by libyaml, if available,
    because PyYAML is fifty times as slow. What libyaml rejects is refused with its message: PyYAML would read it uncounted.
    """
    _measure(text)
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None, None
        _count(root, {})
        try:
            return loader.construct_document(root), root
        except (ArithmeticError, AttributeError, LookupError, TypeError) as error:  # what PyYAML makes of `!!int ''`, `!!bool x`
            raise ValueError(f"a value does not match its tag: {error}") from error
    finally:
        loader.dispose()


def line(error: yaml.MarkedYAMLError, text: str) -> int:
    """The line of an error, from 1; 0 if unknown. (libyaml reports an unclosed construct one line after the end.)"""
    mark = error.problem_mark or error.context_mark
    return min(mark.line, text.rstrip("\n").count("\n")) + 1 if mark else 0


def _measure(text: str) -> None:
    written = depth = 0
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        written += isinstance(event, yaml.NodeEvent)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if written > _MOST_NODES or depth > _DEEPEST:
            raise TooMuch(f"it has more than {_MOST_NODES} values, or is nested more than {_DEEPEST} deep")


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """How many nodes a node expands to. `known`: sizes by identity; 0 while a node is being counted."""
    if size := known.get(id(node)):
        return size
    if id(node) in known:
        raise TooMuch("it refers to itself")
    if node.tag in _NUMBERS and len(node.value) > _LONGEST_NUMBER:
        raise TooMuch(f"it has a number of more than {_LONGEST_NUMBER} characters")
    known[id(node)] = 0
    inner: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        inner = node.value
    elif isinstance(node, yaml.MappingNode):
        inner = [part for pair in node.value for part in pair]
    size = 1 + sum(_count(part, known) for part in inner)
    if size > _MOST_NODES:
        raise TooMuch("it expands to too many nodes")
    known[id(node)] = size
    return size
