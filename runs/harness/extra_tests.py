"""Which test files a recipe has, and which of its tests are extra: found by reading the files, never by running them.

Recipes are untrusted: sizes and numbers are limited, symlinks out of the checkout are not followed, and unreadable files have
no extra tests.
"""

from __future__ import annotations

import ast
import os
import re
import stat
from collections.abc import Iterator, Sequence
from fnmatch import translate
from functools import cache
from pathlib import Path, PurePath
from typing import Any

from runs.harness.protocol import ExtraTest

MOST_FILES = 2000
MOST_TESTS = 1000
_BIGGEST = 256 << 10
_MOST_BYTES = 4 << 20  #: of all files that are parsed
_MOST_COVERS = 50
_LONGEST = 300
_DEEPEST = 6

#: Anything that could be the mark: `pytest.mark.extra`, `mark.extra`, `add_marker("extra")`. False positives are fine.
_MENTIONED = re.compile(rb"\.\s*extra\b|['\"]extra['\"]")
_UNREADABLE = (SyntaxError, ValueError, LookupError, OverflowError, RecursionError, MemoryError)

_Function = ast.FunctionDef | ast.AsyncFunctionDef


def find(checkout: Path) -> list[ExtraTest]:
    """The extra tests of the recipe, by folder or mark, with the literal `covers` of the nearest mark."""
    found: list[ExtraTest] = []
    left = _MOST_BYTES
    for path in files(checkout)[0]:
        if len(found) >= MOST_TESTS or left < 0:
            break
        data = read(checkout, path, _BIGGEST + 1)
        if data is None or len(data) > _BIGGEST or not (is_extra(path) or _MENTIONED.search(data)):
            continue
        left -= len(data)
        try:
            found += _of_file(path, data)
        except _UNREADABLE:
            continue
    return found[:MOST_TESTS]


def suggested(tests: Sequence[ExtraTest], changed: Sequence[str]) -> list[ExtraTest]:
    """The tests with a cover that matches a changed path: a path, a parent folder, or a pattern with `*`, `?`, `[…]`."""

    @cache  # many tests name the same few paths
    def hit(cover: str) -> bool:
        pattern = cover.removeprefix("./").rstrip("/")
        match = re.compile(translate(pattern)).match
        return any(path == pattern or path.startswith(f"{pattern}/") or match(path) for path in changed) if pattern else False

    return [test for test in tests if any(hit(cover) for cover in test.covers)]


def files(checkout: Path) -> tuple[list[Path], list[Path]]:
    """The recipe's test files and the other Python files beside them, as sorted paths within the checkout."""
    tests: list[Path] = []
    helpers = [Path("conftest.py")] if read(checkout, Path("conftest.py"), 1) is not None else []
    for top in ("tests", "extra"):
        if (checkout / top).is_symlink():
            continue
        for folder, folders, names in os.walk(checkout / top):
            folders[:] = sorted(name for name in folders if not name.startswith((".", "__pycache__")))
            for name in sorted(name for name in names if name.endswith(".py")):
                path = Path(folder, name).relative_to(checkout)
                wanted = name.startswith("test_") and (top == "tests" or is_extra(path))
                (tests if wanted else helpers).append(path)
            if len(tests) + len(helpers) > MOST_FILES:
                break
    return sorted(tests)[:MOST_FILES], sorted(helpers)[:MOST_FILES]


def is_extra(path: PurePath) -> bool:
    """Whether all tests of this file are extra because of its path: under a folder `extra`, or named `test_extra.py`."""
    return "extra" in path.parts[:-1] or path.name == "test_extra.py"


def mentioned(checkout: Path, path: Path) -> bool:
    """Whether a file mentions the mark `extra`. May return false positives, but no false negatives."""
    data = read(checkout, path)
    return data is not None and bool(_MENTIONED.search(data))


def read(checkout: Path, path: Path, most: int = 1 << 20) -> bytes | None:
    """The first bytes of a file of the checkout; None if it is not a file in it."""
    try:
        real = (checkout / path).resolve()
        if not real.is_relative_to(checkout.resolve()) or not stat.S_ISREG(real.stat().st_mode):
            return None
        with real.open("rb") as file:
            return file.read(most)
    except (OSError, ValueError, RuntimeError):
        return None


def _covers(call: ast.Call | None) -> list[str]:
    """The literal `covers` of one `extra` mark."""
    texts = [_texts(keyword.value) for keyword in (call.keywords if call else ()) if keyword.arg == "covers"]
    return [text[:_LONGEST] for text in texts[0][:_MOST_COVERS]] if texts else []


def _texts(node: ast.expr) -> list[str]:
    items = node.elts if isinstance(node, ast.List | ast.Tuple | ast.Set) else [node]
    return [item.value for item in items if isinstance(item, ast.Constant) and isinstance(item.value, str)]


def _of_file(path: Path, data: bytes) -> Iterator[ExtraTest]:
    tree = ast.parse(data)
    names: dict[str, list[str]] = {}  # what each covers: `slow = pytest.mark.extra(covers=[…])`, to be used as `@slow`
    for name, value in _assigned(tree.body):
        if name != "pytestmark" and (covers := _nearest([value], {})) is not None:
            names[name] = covers
    yield from _of_body(path, tree.body, "", [] if is_extra(path) else None, names, 0)


def _of_body(
    path: Path, body: Sequence[ast.stmt], prefix: str, outer: list[str] | None, names: dict[str, list[str]], depth: int
) -> Iterator[ExtraTest]:
    for name, value in _assigned(body):
        if name == "pytestmark" and (covers := _nearest(_items(value), names)) is not None:
            outer = covers
    for node in _definitions(body):
        covers = _nearest(node.decorator_list, names)
        if covers is None:
            covers = outer
        if isinstance(node, ast.ClassDef):
            if _collected(node) and depth < _DEEPEST:
                yield from _of_body(path, node.body, f"{prefix}{node.name}::", covers, names, depth + 1)
        elif node.name.startswith("test"):
            covers = _of_parameters(node, names) if covers is None else covers
            if covers is not None:
                yield ExtraTest(file=path.as_posix()[:_LONGEST], name=f"{prefix}{node.name}"[:_LONGEST], covers=covers)


def _of_parameters(node: _Function, names: dict[str, list[str]]) -> list[str] | None:
    """What the mark of a single parameter set covers: `pytest.param(…, marks=pytest.mark.extra)`."""
    inside = (child for decorator in node.decorator_list for child in ast.walk(decorator))
    marks = (_nearest(_items(child.value), names) for child in inside if isinstance(child, ast.keyword) and child.arg == "marks")
    return next((covers for covers in marks if covers is not None), None)


def _items(node: ast.expr) -> list[ast.expr]:
    return node.elts if isinstance(node, ast.List | ast.Tuple) else [node]


def _assigned(body: Sequence[ast.stmt]) -> Iterator[tuple[str, ast.expr]]:
    for node in body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            yield node.targets[0].id, node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            yield node.target.id, node.value


def _definitions(body: Sequence[ast.stmt]) -> Iterator[_Function | ast.ClassDef]:
    """Functions and classes, including those under an `if` or `try`."""
    todo: list[Any] = list(reversed(body))
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.For):
            inner = [*node.body, *getattr(node, "orelse", ()), *getattr(node, "finalbody", ())]
            inner += [line for handler in getattr(node, "handlers", ()) for line in handler.body]
            todo += reversed(inner)


def _collected(node: ast.ClassDef) -> bool:
    """Whether pytest collects a class: its name begins with Test, or it is a unittest.TestCase."""
    bases = [base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "") for base in node.bases]
    return node.name.startswith("Test") or any(base.endswith("TestCase") for base in bases)


def _nearest(nodes: Sequence[ast.expr], names: dict[str, list[str]]) -> list[str] | None:
    """What the mark `extra` covers, among decorators or the values of `pytestmark`; pytest uses the one nearest the function.

    None without such a mark.
    """
    for node in reversed(nodes):
        call = node if isinstance(node, ast.Call) else None
        target = call.func if call else node
        if isinstance(target, ast.Name) and not call and target.id in names:
            return names[target.id]
        if isinstance(target, ast.Attribute) and target.attr == "extra":
            holder = target.value
            if (holder.attr if isinstance(holder, ast.Attribute) else getattr(holder, "id", "")) == "mark":
                return _covers(call)
    return None
