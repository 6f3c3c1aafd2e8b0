"""A plugin of pytest: only the tests that have a forge, and what came of each as lines of JSON in the file REAL_OUTCOMES."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item], config: pytest.Config) -> None:
    with_forge = [item for item in items if "world" in getattr(item, "fixturenames", ())]
    config.hook.pytest_deselected(items=[item for item in items if item not in with_forge])
    items[:] = with_forge


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext.strip().rpartition("\n")[2]
        with Path(os.environ["REAL_OUTCOMES"]).open("a") as file:
            file.write(json.dumps([report.nodeid, report.outcome, why]) + "\n")
