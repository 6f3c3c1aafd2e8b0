"""Reads YAML of strangers: a small file can unfold to more than a machine has, by aliases and by merge keys."""

from __future__ import annotations

from typing import Any

import yaml

_MOST_NODES = 50_000
_DEEPEST = 100
#: `1:10:10:…` takes the square of its length.
_LONGEST_NUMBER = 1000
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class TooMuch(yaml.YAMLError):
    """What the file stands for is more than anybody writes by hand."""


def load(text: str) -> tuple[Any, yaml.Node | None]:
    """The document, and its tree of nodes, which knows lines. Raises yaml.YAMLError, ValueError or RecursionError.

    Nine levels of ten aliases are a billion nodes for whoever walks through them, prints them, or copies them as PyYAML
    does with merge keys (`<<`). So they are counted before anything is built; and what is written out, by libyaml where it is
    there, before PyYAML, fifty times as slow, makes nodes of it. What libyaml does not take is refused with its words: it would
    come to PyYAML uncounted.
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
            raise ValueError(f"a value is not what its tag says: {error}") from error
    finally:
        loader.dispose()


def line(error: yaml.MarkedYAMLError, text: str) -> int:
    """The line of an error, from 1; 0 where it is not told. (What lacks an end, libyaml finds a line behind the last one.)"""
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
    """How many nodes a node stands for, with its aliases unfolded. `known`: by identity; 0 while it is being counted."""
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
        raise TooMuch("it unfolds to too many nodes")
    known[id(node)] = size
    return size
