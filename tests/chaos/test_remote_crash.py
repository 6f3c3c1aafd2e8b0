"""Builds of a CI server, and SIGKILL at any request of the process that works on them: one build a run, one answer a comment.

By turns before and after the server has done what was asked. (In the usual suite tests/runs/executors kills in one process.)
"""

from __future__ import annotations

import itertools
import os
import signal
import stat
import threading
import traceback
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
from django.db import connections

from enrollment.fakeforge.faults import Fault as ForgeFault
from enrollment.models import Comment
from runs.executors import builds
from runs.models import HOLDING, Report, State, TestRun
from tests.runs.executors.conftest import fake as fake
from tests.runs.executors.conftest import row_for
from tests.runs.executors.fakes import FakeServer, Fault
from tests.runs.executors.scripts import reports
from tests.waiting import until
from tests.world import World

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.long, pytest.mark.crash, pytest.mark.forks]


class Worker:
    """A process that does all there is to do. It can be killed at one of its requests, to the forge or to the CI server."""

    def __init__(self, world: World, fake: FakeServer) -> None:
        self.world = world
        self._left, self._after, self._pid, self._began = -1, False, 0, threading.Event()
        world.remote.faults = lambda request: ForgeFault(close="after" if self._after else "before") if self._kills() else None
        fake.faults = lambda method, path: Fault(drop=True, after=self._after) if self._kills() else None

    def work(self, kill_at: int = -1, *, after: bool = False) -> bool:
        """Do everything. Whether it was killed before that: at request number `kill_at`, which then happens only with `after`."""
        self._left, self._after = kill_at, after
        self._began.clear()
        connections.close_all()
        self._pid = os.fork()
        if not self._pid:
            self._be_it()
        self._began.set()
        code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        assert code in (0, -signal.SIGKILL), f"it ended with {code}"
        return code != 0

    def _be_it(self) -> None:
        code = 1
        _close_pipes()
        try:
            until(self._step)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def _step(self) -> bool:
        self.world.hear()
        self.world._step()
        self.world.report()
        busy = TestRun.objects.filter(state__in=[State.QUEUED, *HOLDING]), Report.objects.filter(next_try_at__isnull=False)
        return not any(rows.exists() for rows in (Comment.objects.filter(outcome=""), *busy))

    def _kills(self) -> bool:
        self._left -= 1
        if self._left != -1:
            return False
        self._began.wait(10)
        os.kill(self._pid, signal.SIGKILL)
        return True


def _close_pipes() -> None:
    """Those of the process that was forked: it may just have been starting git, and waits there for the end of its pipe."""
    for number in (int(path.name) for path in Path("/proc/self/fd").iterdir()):
        with suppress(OSError):
            if number > 2 and stat.S_ISFIFO(os.fstat(number).st_mode):
                os.close(number)


def test_killed_at_any_request_it_is_one_build_and_one_answer(
    world: World, fake: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builds, "SETTLE", timedelta(0))
    monkeypatch.setattr(builds, "UNANSWERED", timedelta(seconds=0.3))
    fake.script = reports()
    row_for(fake).forges.add(world.forge)
    worker = Worker(world, fake)
    for turn in itertools.count():
        comment = world.say("recipes/web")
        killed = worker.work(turn // 2, after=turn % 2 == 1)
        worker.work()
        run = TestRun.objects.get(comment__forge_comment_id=comment.id)
        what = f"killed at request {turn / 2}"
        assert (run.state, run.attempt) == (State.PASSED, 1), what
        assert len(fake.of(run.id, 1)) == 1 and len(fake.builds) == turn + 1, what
        (text,) = world.own_comments("recipes/web")
        assert f"cc-ci:run:{run.id}" in text and "passed" in text, what
        assert world.reactions(comment) == ["eyes"], what
        if not killed:
            break
    assert turn > 30
