"""Fake CI servers, and cc-ci's rows for them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from runs.executors import builds
from runs.models import RemoteExecutor
from tests.runs.executors.fakes import FakeDrone, FakeServer, FakeWoodpecker

FAKES = {"drone": FakeDrone, "woodpecker": FakeWoodpecker}


@pytest.fixture
def fake(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    """A Drone, or of the kind that the test asks for."""
    for name, seconds in (("SOONEST", 0.0), ("LATEST", 0.0), ("LIVE", 0.1)):
        monkeypatch.setattr(builds, name, seconds)
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # nobody cuts the power here
    server = FAKES[getattr(request, "param", "drone")](tmp_path / "server")
    yield server
    server.close()


def row_for(server: FakeServer, **more: object) -> RemoteExecutor:
    fields = {"name": server.kind, "kind": server.kind, "url": server.url, "token": server.token}
    return RemoteExecutor.objects.create(**{**fields, "repository": server.repository, "branch": "main", **more})
