"""A fake Drone, and cc-ci's row for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from runs.executors import drone
from runs.models import RemoteExecutor
from tests.runs.executors.fake_drone import FakeDrone


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDrone]:
    for name, seconds in (("SOONEST", 0.0), ("LATEST", 0.0), ("LIVE", 0.1)):
        monkeypatch.setattr(drone, name, seconds)
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # nobody cuts the power here
    server = FakeDrone(tmp_path / "drone")
    yield server
    server.close()


def row_for(server: FakeDrone, **more: object) -> RemoteExecutor:
    fields = {"name": "drone", "url": server.url, "token": server.token, "repository": server.repository, "branch": "main"}
    return RemoteExecutor.objects.create(**{**fields, **more})
