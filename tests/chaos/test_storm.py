"""Two hours at a forge where a third of all answers go wrong: every comment is answered exactly once."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import pytest
from django.conf import settings

from tests.chaos.storm import Size, Storm
from tests.world import World

QUICK = Size(minutes=8, repositories=20, comments=36, renames=4, forks=3, hook_troubles=6, pushes=5)
WHOLE = Size(minutes=120, repositories=1000, comments=2000, renames=40, forks=20, hook_troubles=150, pushes=100)

pytestmark = [pytest.mark.django_db, pytest.mark.xdist_group("chaos"), pytest.mark.slow(13.5)]
#: Each commit is a real one: in one transaction of two hours PostgreSQL would have to look through all versions of each row.
LONG = [pytest.mark.long, pytest.mark.django_db(transaction=True)]


@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    ("size", "version"),
    [(QUICK, "1.22"), pytest.param(WHOLE, "1.22", marks=LONG), pytest.param(WHOLE, "1.15", marks=LONG)],
    ids=["quick", "whole", "whole on an old forge"],
)
def test_every_comment_is_answered_exactly_once(
    size: Size, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)  # of what goes wrong there are thousands of lines
    config = {"data_dir": tmp_path / "data", "webhook_autoregister": True, "webhook_reenable": True, "http_timeout": 3.0}
    for name, value in config.items():
        monkeypatch.setattr(settings.CC_CI, name, value)
    world = World(tmp_path, version)
    storm = Storm(world, size, int(os.environ.get("TEST_SEED") or time.time()))
    begun = time.perf_counter()
    with storm.weather():
        storm.build()
        monkeypatch.setattr(settings.CC_CI, "requests_per_minute", 600)
        built = time.perf_counter()
        storm.run()
        storm.check()
    print(storm.words())
    print(f"  built in {built - begun:.1f} s, blown over in {time.perf_counter() - built:.1f} s")
    world.close()
