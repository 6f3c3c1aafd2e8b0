"""A plugin of pytest: only the tests that have a forge, and what came of each as lines of JSON in the file REAL_OUTCOMES."""

from __future__ import annotations

import inspect
import json
import os
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from enrollment.fakeforge.features import VERSIONS

#: What only the fake forge has; a clock that is moved by more than some seconds.
_SANDBOX = re.compile(
    r"\.(faults|tables|features|listeners)\b|own_requests|Bridge\(|(remote\.(clock|folder|pushed)|server\.(stop|deliveries)|clock\.(fixed|offset))\b"
    r"|clock\.move\((?!seconds=([a-z]+|[0-9]|10)\b)"
)
#: A version is as the one before, where tests are not for it in particular.
_AS = {"1.26": "1.22"}


def pytest_sessionstart() -> None:
    """Every world is at the real forge, or at the fake forge of the one version. (Before tests import the class.)"""
    from tests import world
    from tests.real.forge import RealWorld

    sandbox = world.World

    class Here(sandbox):
        def __new__(cls, root: Path, version: str = "") -> world.World:  # type: ignore[misc]
            url = os.environ.get("REAL_FORGE", "")
            return RealWorld(root, url, os.environ["FORGE_ADMIN"]) if url else sandbox(root, os.environ["SANDBOX_VERSION"])

    world.World = Here  # type: ignore[misc]


def _versions(item: pytest.Item) -> set[str]:
    """The versions that a test is for; all if there are none."""
    callspec = getattr(item, "callspec", None)
    return {value for value in (callspec.params.values() if callspec else ()) if isinstance(value, str) and value in VERSIONS}


def _source(function: Any, seen: set[str]) -> str:
    """Of a function, and of those of its module that it calls."""
    text = inspect.getsource(function)
    for name in set(re.findall(r"\b(\w+)\(", text)) - seen:
        seen.add(name)
        called = function.__globals__.get(name)
        if inspect.isfunction(called) and called.__module__ == function.__module__:
            text += _source(called, seen)
    return text


def _fits(item: pytest.Item, versions: set[str]) -> bool:
    """Whether it has a forge, and is none of its own for another version. `versions`: those that its function is for."""
    version = os.environ["SANDBOX_VERSION"]
    version = version if version in versions else _AS.get(version, version)
    if "world" not in getattr(item, "fixturenames", ()) or _versions(item) - {version}:
        return False
    given = item.callspec.params.values() if hasattr(item, "callspec") else ()
    functions = [item.function, *(value for value in given if inspect.isfunction(value))]  # type: ignore[attr-defined]
    # (Where this does not see it, the real forge skips the test, after it has made all its people.)
    return not any(_SANDBOX.search(_source(function, set())) for function in functions)


def pytest_collection_modifyitems(items: list[pytest.Item], config: pytest.Config) -> None:
    versions: defaultdict[Any, set[str]] = defaultdict(set)
    for item in items:
        versions[getattr(item, "function", None)] |= _versions(item)
    fitting = [item for item in items if _fits(item, versions[getattr(item, "function", None)])]
    config.hook.pytest_deselected(items=[item for item in items if item not in fitting])
    items[:] = fitting


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext.strip().rpartition("\n")[2]
        with Path(os.environ["REAL_OUTCOMES"]).open("a") as file:
            file.write(json.dumps([report.nodeid, report.outcome, why]) + "\n")
