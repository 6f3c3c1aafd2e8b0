"""What all tests share. Their settings are in `tests/settings.py`: pytest-django loads those before this file."""

from __future__ import annotations

from pathlib import Path

import pytest
from django.conf import settings


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder for this test alone, in `settings.CC_CI.data_dir`."""
    monkeypatch.setattr(settings.CC_CI, "data_dir", tmp_path)
    return tmp_path
