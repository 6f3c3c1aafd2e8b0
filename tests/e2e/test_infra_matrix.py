"""The matrix on a real Swarm: {before, during, after each step} × {SIGKILL, Docker restart, full disk, lost lease}, for a version
that is well and for one that is not.

The Docker that is started anew is a second one. Workers are real processes; at the end the new version is healthy, or the old one
is, with its data byte for byte.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connections
from django.utils import timezone

from controlplane import leases
from controlplane.models import Lease
from infra.deployers.docker.tar_manifest import Manifest
from infra.deployers.docker.volumes import Volume, described
from infra.deployers.errors import DeployError
from infra.deployers.swarm import ephemeral
from infra.lifecycle import move
from infra.models import InfraApp, InfraRelease, Snapshot, Upgrade
from infra.releases import discovery
from infra.runtime import inspect
from infra.states import UpgradeState
from infra.upgrades import executor, launcher, session
from tests.docker import IMAGE, impatient
from tests.e2e.infra_faults import BACK, FAULTS, FORWARD, WHEN, Faults
from tests.e2e.infra_recipes import NEW, OLD, Recipe, Server, told
from tests.e2e.second_docker import SecondDocker, need_second_docker
from tests.factories import UpgradeFactory
from tests.infra.machine import fork

pytestmark = [
    pytest.mark.docker,
    pytest.mark.long,
    pytest.mark.crash,
    pytest.mark.forks,
    pytest.mark.timeout(7200),
    pytest.mark.django_db(transaction=True),
]

GOOD = {"abra.sh": {"v1": "v2"}, "compose.yml": {"file: start.sh": "file: next.sh"}}
#: It migrates the data, and dies, again and again.
BAD = {**GOOD, "next.sh": {"exec httpd": "exit 4; exec httpd"}}
#: No network leads to the second Docker: the app is asked in its container.
INSIDE = {
    "compose.yml": {
        '        - "traefik.http.services.${STACK_NAME}.loadbalancer.server.port=8080"\n': "",
        "retries: 5": "retries: 30",
    }
}
CHECK = [{"command": ["wget", "-q", "-O", "/dev/null", "http://127.0.0.1:8080/index.html"], "service": "app"}]
#: Between the steps there is only the database: a worker is killed there, or was too late.
BETWEEN = {
    "killed": ("move snapshot", "move deploy", "move verify", "move soak", "move succeed"),
    "lost lease": ("move deploy", "move verify", "move soak"),
}
BETWEEN_BACK = {"killed": ("move roll_back", "move rolled_back"), "lost lease": ("move roll_back",)}


@pytest.fixture(scope="module")
def second() -> Iterator[SecondDocker]:
    need_second_docker()
    root = Path(tempfile.mkdtemp(prefix="ccci-second-")) / "docker"
    one = SecondDocker(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", one.host)
        try:
            one.start()
            one.make_swarm()
            yield one
        finally:
            one.close()
            shutil.rmtree(root.parent, ignore_errors=True)


class Stage:
    """One stateful app on the second Docker, which each case finds as the first did: old, healthy, with the same data."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, docker: SecondDocker, changes: dict[str, Any]) -> None:
        self.root = root
        self.disk = root / "small"
        self.disk.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", self.disk], capture_output=True, timeout=20)
        self._mounted = not done.returncode
        if not self._mounted:
            if os.environ.get("CI") == "true":
                pytest.fail("no small file system can be mounted here")
            pytest.skip("no small file system can be mounted here")
        for name, value in {"PAUSES": (0.5,) * 60, "PAUSES_BACK": (0.5,) * 60, "SAMPLE_SECONDS": (0.1, 0.1)}.items():
            monkeypatch.setattr(executor, name, value)
        monkeypatch.setattr(session, "_LOOK_SECONDS", 0.1)
        monkeypatch.setattr(ephemeral, "_QUIET_SECONDS", 0.3)
        impatient(monkeypatch)
        self.server = Server(self.disk, monkeypatch)
        recipe = Recipe(root / "recipe", "stateful", INSIDE)
        self.app = self.server.app(recipe, stateful=True, health=CHECK)
        recipe.publish(NEW, changes)
        discovery.discover(self.app)
        self.faults = Faults(root, self.disk, docker.restart)
        self.volume: Volume = described([f"{self.app.stack}_data"])[0]
        self._original = root / "original.tar"
        self.before = self._copier().pack(self.volume.name, self._original)

    def _deployer(self) -> Any:
        return self.server.deployer(self.app)

    def _copier(self) -> Any:
        return self._deployer().copier([IMAGE])

    def data(self) -> Manifest:
        found: Manifest = self._copier().manifest(self.volume.name)
        return found

    def begin(self, point: str, when: str, fault: str) -> Upgrade:
        Snapshot.objects.all().delete()
        Upgrade.objects.all().delete()
        Lease.objects.all().delete()
        shutil.rmtree(self.disk / "store")
        (self.disk / "store").mkdir()
        shutil.rmtree(self.disk / "data" / "infra" / "upgrades", ignore_errors=True)
        if not self.is_as_before():
            self._again()
        seen = inspect.see(self.app, full=True)
        InfraRelease.objects.update(state=InfraRelease.State.CANDIDATE)
        InfraApp.objects.filter(pk=self.app.pk).update(
            state=InfraApp.State.SETTLED,
            pinned_version=OLD,
            contested={},
            **{**seen.columns(), "running_version": OLD},
        )
        self.app.refresh_from_db()
        upgrade: Upgrade = UpgradeFactory(app=self.app, from_version=OLD, to_version=NEW, trigger="a test")
        assert move(upgrade, "approve")
        self.faults.plan(point, when, fault)
        self.faults.upgrade = upgrade.pk
        return upgrade

    def _again(self) -> None:
        """The old version on the data of the beginning."""
        files = self.server.root / self.app.name
        deployer = inspect.deployer_for(self.app, files, self.server.root / "again", mark="first", seconds=300)
        deployer.undeploy()
        deployer.copier([IMAGE]).replace(self.volume, self._original)
        deployer.deploy(files)
        deployer.settle()
        deployer.close()

    def come_to_rest(self) -> None:
        """A Docker that was started anew starts what ran, too, and needs a moment for it, as its Swarm does to be one again."""
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with suppress(DeployError):
                if self._runs(OLD) or self._runs(NEW):
                    return
            time.sleep(0.2)

    def is_as_before(self) -> bool:
        return self._runs(OLD) and self.data().text == self.before.text

    def is_new(self) -> bool:
        return self._runs(NEW) and self._deployer().execute("app", ["cat", "/data/format"]) == (0, "2\n")

    def _runs(self, version: str) -> bool:
        parts = inspect.see(self.app).parts
        return {name: (p.version, p.running, p.health, p.update in ("", "completed")) for name, p in parts.items()} == {
            "app": (version, 1, "healthy", True)
        }

    # -- workers ----

    def until_the_end(self, upgrade: Upgrade, most: int = 12) -> None:
        """Workers, one after the other as the supervising task starts them."""
        for _ in range(most):
            self._wait(self._spawn(upgrade))
            until = time.monotonic() + 120
            while not leases.is_free(launcher.lease_name(upgrade)):  # a rival goes on, though who started it is dead
                assert time.monotonic() < until, told(upgrade)
                self.faults.make_room()
                time.sleep(0.05)
            upgrade.refresh_from_db()
            if upgrade.final:
                self.app.refresh_from_db()
                self.faults.ballast.unlink(missing_ok=True)
                return
            time.sleep(0.3)
        raise AssertionError(f"not over after {most} workers: {told(upgrade)}")

    def _spawn(self, upgrade: Upgrade) -> int:
        def rival() -> None:
            """The lease expired while this worker slept, and another one does all the rest."""
            Lease.objects.filter(name=launcher.lease_name(upgrade)).update(expires_at=timezone.now() - timedelta(seconds=1))
            connections.close_all()
            os.waitpid(fork(lambda: self._work(upgrade), leads=True), 0)

        def work() -> None:
            self.faults.rival = rival
            self.faults.install()
            self._work(upgrade)

        connections.close_all()  # a connection has one process
        return fork(work, leads=True)

    def _work(self, upgrade: Upgrade) -> None:
        launcher.execute(Upgrade.objects.select_related("app").get(pk=upgrade.pk))

    def _wait(self, pid: int) -> None:
        until = time.monotonic() + 180
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            assert time.monotonic() < until, "a worker goes on for ever"
            self.faults.make_room()
            time.sleep(0.02)

    def close(self) -> None:
        self.faults.ballast.unlink(missing_ok=True)
        self.come_to_rest()
        self.server.close()
        if self._mounted:
            subprocess.run(["umount", "--lazy", self.disk], timeout=20, check=True)


def run(stage: Stage, point: str, when: str, fault: str, *, good: bool) -> str:
    """One case of the matrix: how it ended."""
    upgrade = stage.begin(point, when, fault)
    stage.until_the_end(upgrade)
    stage.come_to_rest()
    case = f"{'good' if good else 'bad'}: {point} {when} {fault}"
    assert stage.faults.met, f"{case}: the fault was never met\n{told(upgrade)}"
    if upgrade.state == UpgradeState.SUCCEEDED:
        assert good and stage.is_new(), f"{case}: {told(upgrade)}"
        assert (stage.app.running_version, stage.app.pinned_version) == (NEW, NEW)
    else:
        assert upgrade.state in (UpgradeState.FAILED, UpgradeState.ROLLED_BACK), f"{case}: {told(upgrade)}"
        assert stage.is_as_before(), f"{case}: {told(upgrade)}"
        assert stage.app.running_version == stage.app.pinned_version == OLD
    assert stage.app.state == InfraApp.State.SETTLED, case
    if good:
        assert not InfraRelease.objects.filter(state="quarantined").exists(), f"{case}: it is not to blame\n{told(upgrade)}"
    return str(upgrade.state)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("good", [True, False], ids=["good", "bad"])
def test_the_matrix_on_a_real_swarm(
    good: bool, fault: str, second: SecondDocker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = tuple(FORWARD) if good else tuple(BACK)
    between = (BETWEEN if good else BETWEEN_BACK).get(fault, ())
    cases = [(point, when) for point in points for when in WHEN]
    cases += [(point, when) for point in between for when in ("before", "after")]
    cases += [("pin", "before")] if good and between else []
    stage = Stage(tmp_path, monkeypatch, second, GOOD if good else BAD)
    ends: Counter[str] = Counter()
    wrong: list[str] = []
    started = time.monotonic()
    try:
        for point, when in cases:
            begun = time.monotonic()
            try:
                end = run(stage, point, when, fault, good=good)
                ends[end] += 1
            except (AssertionError, DeployError) as error:  # the others are worth knowing, too
                end = "WRONG"
                wrong.append(str(error))
            print(f"{point} {when} {fault}: {end}, {time.monotonic() - begun:.1f} s", flush=True)
    finally:
        stage.close()
    took = time.monotonic() - started
    way = "a good version" if good else "a bad version"
    print(f"\n{fault}, {way}: {dict(ends)}, {len(cases)} cases, {len(wrong)} wrong, {took:.0f} s")
    assert not wrong, "\n\n".join(wrong)
    if not good:
        assert set(ends) == {UpgradeState.ROLLED_BACK}
    if fault == "killed" and good:
        assert set(ends) == {UpgradeState.SUCCEEDED}, "being killed is nobody's fault, and costs nothing but time"


def test_a_docker_that_is_started_anew_in_the_soak_is_not_held_against_the_version(
    second: SecondDocker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(tmp_path, monkeypatch, second, GOOD)
    try:
        InfraApp.objects.update(policy={"soak": "3s", "cooldown": "0s"})
        upgrade = stage.begin("move soak", "after", "docker restart")
        stage.until_the_end(upgrade)
        stage.come_to_rest()
        assert stage.faults.met and upgrade.state == UpgradeState.SUCCEEDED, told(upgrade)
        assert stage.is_new() and upgrade.facts["docker_starts"] == 1
        assert "Docker restarted" in told(upgrade)
    finally:
        stage.close()
