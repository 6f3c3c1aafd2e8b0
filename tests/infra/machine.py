"""Drives upgrades of an app that lives in a folder: rows, workers that are real processes, and the end that has to come."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.db import connections
from django.utils import timezone

from controlplane import leases
from controlplane.models import Lease
from infra.deployers.context import Context
from infra.lifecycle import move
from infra.models import InfraApp, InfraFile, Upgrade
from infra.runtime import drift, inspect
from infra.upgrades import executor, launcher, session
from tests.factories import InfraAppFactory, InfraReleaseFactory, UpgradeFactory
from tests.infra import folder_app
from tests.infra.folder_app import BAD, GOOD, OLD, FolderDeployer, Machine

CHECK = [{"command": ["is-it-well"], "service": "app"}]


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pause is longer than a test can wait."""
    monkeypatch.setattr(executor, "PAUSES", (0.01,) * 5)
    monkeypatch.setattr(executor, "PAUSES_BACK", (0.01,) * 8)
    monkeypatch.setattr(executor, "SAMPLE_SECONDS", (0.001, 0.001))
    monkeypatch.setattr(session, "_LOOK_SECONDS", 0.0)


class Scene:
    """One app of the server in a folder, stateful unless told otherwise, with its releases and a store."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, *, stateful: bool = True, **app: Any) -> None:
        self.machine = Machine(root / "machine")
        self.machine.root.mkdir(parents=True)
        self.machine.begin()
        self.before = self.machine.files()
        (root / "store").mkdir()
        monkeypatch.setattr(settings.CC_CI, "data_dir", root / "data")
        monkeypatch.setattr(inspect, "make_deployer", self._deployer)
        monkeypatch.setattr(inspect, "checkout", _checkout)
        quick(monkeypatch)
        self._faults_between_steps(monkeypatch)
        InfraFile.objects.create(path=str(root / "infra.yml"), stores={"local": {"folder": str(root / "store")}})
        snapshots = {"of": "volumes", "store": "local", "keep": 2} if stateful else {"of": "none", "store": "", "keep": 3}
        values = {"name": "app", "health": CHECK, "policy": {"soak": "0s"}, "snapshots": snapshots, "running_version": OLD,
                  "pinned_version": OLD, **app}  # fmt: skip
        self.app: InfraApp = InfraAppFactory(**values)
        for rank, version in enumerate((OLD, GOOD, BAD), 1):
            InfraReleaseFactory(app=self.app, version=version, rank=rank, commit=version)
        InfraApp.objects.filter(pk=self.app.pk).update(**inspect.see(self.app, full=True).columns())
        self.app.refresh_from_db()

    def _deployer(self, context: Context) -> Any:
        return FolderDeployer(context, self.machine)

    def _faults_between_steps(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def moved(upgrade: Upgrade, event: str, *args: Any, **more: Any) -> bool:
            self.machine.point(f"move {event}", "before")
            done = move(upgrade, event, *args, **more)
            self.machine.point(f"move {event}", "after")
            return done

        def pin(app: InfraApp, version: str) -> list[str]:
            self.machine.point("pin", "before")
            return []

        monkeypatch.setattr(session, "move", moved)
        monkeypatch.setattr(drift, "write_pin", pin)

    def upgrade(self, version: str, **asked: Any) -> Upgrade:
        upgrade: Upgrade = UpgradeFactory(app=self.app, from_version=self.app.running_version, to_version=version, asked=asked)
        assert move(upgrade, "approve")
        return upgrade

    def execute(self, upgrade: Upgrade) -> str:
        """Here, in this process."""
        upgrade.refresh_from_db()
        said = launcher.execute(Upgrade.objects.select_related("app").get(pk=upgrade.pk))
        upgrade.refresh_from_db()
        self.app.refresh_from_db()
        return said

    def worker(self, upgrade: Upgrade) -> int:
        """A worker as a process of its own; waits for its end: its exit code, negative when it was killed."""
        return _wait(self.spawn(upgrade))

    def spawn(self, upgrade: Upgrade) -> int:
        def rival() -> None:
            """The lease expired while this worker slept, and another one does all the rest."""
            Lease.objects.filter(name=launcher.lease_name(upgrade)).update(expires_at=timezone.now() - timedelta(seconds=1))
            connections.close_all()
            _wait(fork(lambda: self._work(upgrade)))

        def work() -> None:
            folder_app.rival = rival
            self._work(upgrade)

        connections.close_all()  # a connection has one process
        return fork(work)

    def _work(self, upgrade: Upgrade) -> None:
        launcher.execute(Upgrade.objects.select_related("app").get(pk=upgrade.pk))

    def until_the_end(self, upgrade: Upgrade, most: int = 6) -> int:
        """Workers, one after the other as the supervising task starts them, until the upgrade has ended: how many it took."""
        for number in range(1, most + 1):
            self.worker(upgrade)
            until = time.monotonic() + 240
            while not leases.is_free(launcher.lease_name(upgrade)):  # a rival goes on, though who started it is dead
                assert time.monotonic() < until
                time.sleep(0.01)
            upgrade.refresh_from_db()
            if upgrade.final:
                self.app.refresh_from_db()
                return number
        raise AssertionError(f"still {upgrade.state} after {most} workers: {log_of(upgrade)}")

    def is_as_before(self) -> bool:
        """The old version runs, is well, and has its data byte for byte."""
        services = self.machine.services()
        old = {name: (one["version"], one["up"]) for name, one in services.items()}
        return old == {"app": (OLD, True), "db": (OLD, True)} and self.machine.files() == self.before

    def is_new(self, version: str = GOOD) -> bool:
        services = self.machine.services()
        new = {name: (one["version"], one["up"]) for name, one in services.items()}
        return new == {"app": (version, True), "db": (version, True)} and (self.machine.data / "format").read_text() == version


def log_of(upgrade: Upgrade) -> str:
    file = inspect.folder_of(upgrade) / "log"
    return file.read_text() if file.exists() else "no log"


def _checkout(app: InfraApp, commit: str, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "version").write_text(commit)
    return folder


def fork(work: Callable[[], None], *, leads: bool = False) -> int:
    """Do it in a process of its own, which `leads` a session of its own, if asked to: its number."""
    pid = os.fork()
    if pid:
        return pid
    try:
        if leads:
            os.setsid()
        work()
        connections.close_all()
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)


def _wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
