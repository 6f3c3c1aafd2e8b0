"""`cc-ci …` as a person types it, without the second that a process of its own would take to start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from django.conf import settings

from controlplane.cli import execute

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cc_ci(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Types one line: its exit code, what it printed, and what it showed beside that."""
    monkeypatch.setattr(settings.CC_CI, "data_dir", tmp_path / "data")
    monkeypatch.setattr(settings.CC_CI, "deployer", "process")

    def cc_ci(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = execute(["cc-ci", *map(str, arguments)])
        return code, *capsys.readouterr()

    return cc_ci
