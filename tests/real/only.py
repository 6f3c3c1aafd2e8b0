"""A plugin of pytest: only the tests that have a forge, and what came of each as lines of JSON in the file REAL_OUTCOMES."""

from __future__ import annotations

import inspect
import json
import os
import re
from pathlib import Path

import pytest

from enrollment.fakeforge.features import VERSIONS

#: What only the fake forge has.
_SANDBOX = re.compile(r"\.(faults|tables|features|listeners)\b|own_requests|Bridge\(|writes\(")


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


def _fits(item: pytest.Item) -> bool:
    """Whether it has a forge, and is none of its own for another version."""
    callspec = getattr(item, "callspec", None)
    named = [value for value in (callspec.params.values() if callspec else ()) if isinstance(value, str) and value in VERSIONS]
    if "world" not in getattr(item, "fixturenames", ()) or any(value != os.environ["SANDBOX_VERSION"] for value in named):
        return False
    # (Where this does not see it, the real forge skips the test, after it has made all its people.)
    return not _SANDBOX.search(inspect.getsource(item.function))  # type: ignore[attr-defined]


def pytest_collection_modifyitems(items: list[pytest.Item], config: pytest.Config) -> None:
    fitting = [item for item in items if _fits(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in fitting])
    items[:] = fitting


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext.strip().rpartition("\n")[2]
        with Path(os.environ["REAL_OUTCOMES"]).open("a") as file:
            file.write(json.dumps([report.nodeid, report.outcome, why]) + "\n")
