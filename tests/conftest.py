"""What all tests share. Their settings are in `tests/settings.py`: pytest-django loads those before this file."""

from __future__ import annotations

import fcntl
import gc
import os
import shutil
import sqlite3
import uuid
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
from django.conf import settings
from django.db import connection
from pytest_django import DjangoDbBlocker

import controlplane.urls  # noqa: F401 - registers the admin's pages, of which tests are made when they are collected
from tests import shares

if TYPE_CHECKING:
    from tests.world import World

if os.environ.get("CI") != "true":  # there hypothesis has a profile that says the same
    # No test fails on a clock.
    hypothesis.settings.register_profile("ours", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
    hypothesis.settings.load_profile("ours")


@pytest.fixture(scope="session")
def django_db_keepdb(
    tmp_path_factory: pytest.TempPathFactory, django_db_blocker: DjangoDbBlocker, django_db_modify_db_settings: None
) -> bool:
    """On SQLite one of pytest's workers migrates, the others begin with a copy of its file, and Django keeps what is there."""
    if connection.vendor != "sqlite" or "PYTEST_XDIST_WORKER" not in os.environ:
        return False
    folder = tmp_path_factory.getbasetemp().parent  # of this run; each worker has its own below it
    migrated = folder / "migrated.sqlite3"
    with (folder / "migrated.lock").open("w") as lock, django_db_blocker.unblock():
        fcntl.flock(lock, fcntl.LOCK_EX)
        if migrated.exists():
            copy = connection.settings_dict["TEST"]["NAME"]
            shutil.copy(migrated, copy)
            with closing(sqlite3.connect(copy, isolation_level=None)) as database:
                # Each is an installation of its own: one removes from the Docker that they share what its runs have lost.
                database.execute("UPDATE controlplane_installation SET id = ?", [uuid.uuid4().hex[:12]])
        else:
            connection.creation.create_test_db(verbosity=0, autoclobber=True, serialize=False)
            connection.cursor().execute("VACUUM INTO %s", [str(migrated)])
    return True


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder for this test alone, in `settings.CC_CI.data_dir`."""
    monkeypatch.setattr(settings.CC_CI, "data_dir", tmp_path)
    return tmp_path


@pytest.fixture
def world(db: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[World]:
    """A forge with people, one recipe `recipes/web` with a pull request, and cc-ci enrolled there.

    Version 1.15, or another by indirect parametrisation.
    """
    from tests.world import World

    monkeypatch.setattr(settings.CC_CI, "data_dir", tmp_path / "data")
    world = World(tmp_path, getattr(request, "param", "1.15"))
    world.connect()
    world.add_recipe("web")
    world.enroll("recipes/web")
    yield world
    world.close()


#: Characters of the beginning, and of the end, of why a test failed.
MOST_TOLD = 1500


def _seconds(item: pytest.Item) -> float:
    """About how long a test takes, by its markers."""
    if slow := item.get_closest_marker("slow"):
        return float(slow.args[0])
    return 5.0 if any(item.get_closest_marker(name) for name in ("docker", "browser", "crash")) else 0.0


def _group(item: pytest.Item) -> str:
    marker = item.get_closest_marker("xdist_group")
    return str(marker.args[0]) if marker else item.nodeid


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long comes first, groups as a whole: else one worker is left alone with it at the end."""
    length: defaultdict[str, float] = defaultdict(float)
    for item in items:
        length[_group(item)] += _seconds(item)
    items.sort(key=lambda item: -length[_group(item)])


def pytest_collection_finish() -> None:
    """What was loaded until here stays to the end: looking through it again and again for garbage took a tenth of the time."""
    gc.collect()
    gc.freeze()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Say what failed and why at once: the whole run takes a while, and of a long output CI keeps a part."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        crash = getattr(report.longrepr, "reprcrash", None)
        why = str(crash.message if crash else report.longrepr)
        if len(why) > 2 * MOST_TOLD:
            why = f"{why[:MOST_TOLD]}\n[…]\n{why[-MOST_TOLD:]}"
        print(f"\nFAILED {report.nodeid} ({report.when})\n{why}\n", flush=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """How much of the time each part of cc-ci took."""
    workers = int(getattr(config.option, "numprocesses", None) or 1)
    reports = [report for found in terminalreporter.stats.values() for report in found]
    for line in shares.lines(reports, workers):
        terminalreporter.write_line(line)
