"""The server's own apps on the real Swarm: upgraded, rolled back with their data, contested; each app has a stack of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from infra import tasks
from infra.deployers.docker.tar_manifest import Manifest
from infra.deployers.probe import probe
from infra.models import AlertSent, InfraApp, InfraRelease
from infra.runtime import drift, inspect
from infra.states import UpgradeState
from infra.upgrades import enqueue, executor, scheduler
from tests.docker import docker, need_swarm
from tests.e2e.infra_recipes import NEW, OLD, Recipe, Server, told

pytestmark = [pytest.mark.docker, pytest.mark.django_db(transaction=True)]

TWO = {"compose.yml": {"version one": "version two"}}
MIGRATES = {"abra.sh": {"v1": "v2"}, "compose.yml": {"file: start.sh": "file: next.sh"}}
#: The same, but then it dies, and Swarm does not try it again.
BREAKS = {
    **MIGRATES,
    "next.sh": {"exec httpd": "exit 4; exec httpd"},
    "compose.yml": {**MIGRATES["compose.yml"], "delay: 0s": "condition: none"},
}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    need_swarm()
    one = Server(tmp_path, monkeypatch)
    yield one
    one.close()


def page(server: Server, app: InfraApp) -> str:
    deployer = server.deployer(app)
    address = deployer.address()
    assert address
    answer = probe(address, app.domain, "/index.html")
    deployer.close()
    return answer.body.strip() if answer else ""


def data(server: Server, app: InfraApp) -> Manifest:
    deployer = server.deployer(app)
    found = deployer.copier(["cc-ci-test/busybox:1"]).manifest(f"{app.stack}_data")  # type: ignore[attr-defined]
    deployer.close()
    return found


def test_a_stateless_app_is_upgraded(server: Server, tmp_path: Path) -> None:
    recipe = Recipe(tmp_path / "recipe", "stateless")
    app = server.app(recipe)
    assert page(server, app) == "version one"
    recipe.publish(NEW, TWO)
    upgrade = server.upgrade(app)
    assert upgrade.state == UpgradeState.SUCCEEDED, told(upgrade)
    assert page(server, app) == "version two"
    assert (app.running_version, app.pinned_version, app.state) == (NEW, NEW, "settled")
    assert inspect.see(app).fingerprint == app.fingerprint
    assert upgrade.snapshot is None
    assert set(upgrade.digests) == {"app"} and upgrade.digests["app"]["id"].startswith("sha256:")
    kinds = [kind for kind in upgrade.events.values_list("kind", flat=True) if kind not in ("step", "sample")]
    assert kinds == ["approved", "snapshotting", "deploying", "verifying", "soaking", "succeeded"]


def test_a_version_that_migrates_the_data_is_rolled_back_with_the_data(server: Server, tmp_path: Path) -> None:
    recipe = Recipe(tmp_path / "recipe", "stateful")
    app = server.app(recipe, stateful=True)
    before = data(server, app)
    # It comes up, and migrates; and dies.
    recipe.publish(NEW, BREAKS)
    upgrade = server.upgrade(app)
    assert upgrade.state == UpgradeState.ROLLED_BACK, told(upgrade)
    after = data(server, app)
    assert after.text == before.text, before.differences(after)
    assert page(server, app) == "hello"
    snapshot = upgrade.snapshot
    assert snapshot and snapshot.proved and snapshot.version == OLD and snapshot.bytes > 100_000
    release = app.releases.get(version=NEW)
    assert release.state == InfraRelease.State.QUARANTINED
    assert AlertSent.objects.filter(kind="rolled_back", app=app).count() == 1


@pytest.mark.long
def test_without_the_restore_the_old_version_does_not_come_back(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That the test above proves something: the old code exits when it sees the data of the new one."""
    recipe = Recipe(tmp_path / "recipe", "stateful")
    app = server.app(recipe, stateful=True)
    recipe.publish(NEW, BREAKS)
    monkeypatch.setattr(executor, "PAUSES_BACK", (0.0,))
    monkeypatch.setattr(executor.UpgradeExecutor, "_put_back", lambda machine, deployer, snapshot: deployer.undeploy())
    upgrade = server.upgrade(app)
    assert upgrade.state == UpgradeState.ROLLBACK_FAILED, told(upgrade)
    assert "I cannot read data of the format 2" in upgrade.reason
    assert upgrade.snapshot and upgrade.snapshot.location in upgrade.reason
    assert AlertSent.objects.filter(kind="rollback_failed", app=app).count() == 1
    # Nothing more is touched: what a person finds is what the failure left, and the gate takes nothing until it is mended.
    assert enqueue.plan_of(app).takes is None


@pytest.mark.long
def test_a_stateful_app_goes_on_with_its_data_and_comes_back_by_hand(server: Server, tmp_path: Path) -> None:
    recipe = Recipe(tmp_path / "recipe", "stateful")
    app = server.app(recipe, stateful=True)
    before = data(server, app)
    recipe.publish(NEW, MIGRATES)
    upgrade = server.upgrade(app)
    assert upgrade.state == UpgradeState.SUCCEEDED, told(upgrade)
    assert page(server, app) == "hello two"
    back = server.upgrade(app, OLD, kind="rollback", data=upgrade.snapshot.pk)
    assert back.state == UpgradeState.SUCCEEDED, told(back)
    assert (page(server, app), app.running_version, app.pinned_version) == ("hello", OLD, OLD)
    assert data(server, app).text == before.text
    assert app.releases.get(version=NEW).state == InfraRelease.State.QUARANTINED
    assert app.taken.count() == 2


def test_a_silent_rollback_is_named(server: Server, tmp_path: Path) -> None:
    recipe = Recipe(tmp_path / "recipe", "stateless")
    app = server.app(recipe)
    recipe.publish(NEW, {"compose.yml": {"exec httpd": "exit 1; exec httpd"}})
    upgrade = server.upgrade(app)
    assert upgrade.state == UpgradeState.ROLLED_BACK, told(upgrade)
    assert "Swarm rolled app back by itself (silent rollback)" in upgrade.reason
    assert page(server, app) == "version one"
    assert app.releases.get(version=NEW).evidence["quarantined"] == upgrade.reason


def test_what_a_hand_had_set_and_was_adopted_comes_back_with_the_old_version(server: Server, tmp_path: Path) -> None:
    recipe = Recipe(tmp_path / "recipe", "stateful")
    app = server.app(recipe, stateful=True)
    docker("service", "update", "--quiet", "--env-add=HAND=1", "--label-add=by=hand", f"{app.stack}_app", timeout=60)
    label = f"com.docker.stack.namespace={app.stack}"
    more = ["--detach", "--quiet", "--stop-grace-period=100ms", f"--label={label}", f"--container-label={label}"]
    docker("service", "create", *more, f"--name={app.stack}_extra", "cc-ci-test/busybox:1", "sleep", "100000")
    assert tasks.supervise() == f"{app.name} has drifted"
    app.refresh_from_db()
    drift.adopt(app, "alice")
    before, kept = inspect.see(app), data(server, app)
    assert set(before.parts) == {"app", "extra"}
    networks = docker("network", "ls", "--quiet", f"--filter=label={label}")
    recipe.publish(NEW, BREAKS)
    upgrade = server.upgrade(app)
    assert upgrade.state == UpgradeState.ROLLED_BACK, told(upgrade)
    after = inspect.see(app)
    spec = docker("service", "inspect", "--format={{json .Spec}}", f"{app.stack}_app")
    assert '"HAND=1"' in spec and '"by":"hand"' in spec
    assert docker("network", "ls", "--quiet", f"--filter=label={label}") != networks, "made anew"
    recorded = {name: part["fingerprint"] for name, part in upgrade.baseline["parts"].items()}
    assert {name: part.fingerprint for name, part in after.parts.items()} == recorded
    assert after.fingerprint == before.fingerprint == app.fingerprint
    assert data(server, app).text == kept.text and page(server, app) == "hello"
    assert tasks.supervise() == "no changes", "cc-ci never contests itself"


def test_a_version_that_dies_in_the_soak_is_rolled_back(server: Server, tmp_path: Path) -> None:
    recipe = Recipe(tmp_path / "recipe", "stateless")
    app = server.app(recipe, policy={"soak": "120s", "cooldown": "0s"})
    # As long as a busy machine may take to see that it is up.
    recipe.publish(NEW, {"compose.yml": {"exec httpd -f -p 8080 -h /www": "httpd -p 8080 -h /www; sleep 30"}})
    upgrade = server.upgrade(app)
    assert upgrade.state == UpgradeState.ROLLED_BACK, told(upgrade)
    assert upgrade.facts["failed_in"] == UpgradeState.SOAKING
    assert page(server, app) == "version one"


def test_a_hand_is_contested_within_one_tick_and_nothing_is_overwritten(server: Server, tmp_path: Path) -> None:
    recipe = Recipe(tmp_path / "recipe", "stateless")
    app = server.app(recipe)
    recipe.publish(NEW, TWO)
    assert tasks.supervise() == "no changes"
    docker("service", "update", "--detach", "--env-add=HAND=1", f"{app.stack}_app")
    by_hand = inspect.see(app).fingerprint
    assert tasks.supervise() == f"{app.name} has drifted"
    app.refresh_from_db()
    assert app.state == InfraApp.State.DRIFTED
    assert (app.contested["ours"], app.contested["theirs"]) == (OLD, OLD)
    alert = AlertSent.objects.get(kind="contested", app=app)
    assert "adopt" in alert.text and "restore-ours" in alert.text and "hand-over" in alert.text
    tasks.supervise()
    assert AlertSent.objects.filter(kind="contested").count() == 1, "told once"
    refused = server.upgrade(app)
    assert refused.state == UpgradeState.FAILED and inspect.see(app).fingerprint == by_hand, "nothing was overwritten"
    with pytest.raises(drift.Refused, match="drifted"):
        enqueue.upgrade(app, "", "alice", now=True)
    drift.adopt(app, "alice")
    assert (app.state, app.fingerprint) == (InfraApp.State.SETTLED, by_hand)
    assert tasks.supervise() == "no changes"


def test_a_hand_in_the_middle_of_an_upgrade_stops_it(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(tmp_path / "recipe", "stateless")
    app = server.app(recipe)
    recipe.publish(NEW, TWO)
    verify = executor.UpgradeExecutor._verify

    def with_a_hand(machine: executor.UpgradeExecutor) -> None:
        monkeypatch.setattr(executor.UpgradeExecutor, "_verify", verify)
        docker("service", "update", "--detach", "--env-add=HAND=1", f"{app.stack}_app")
        verify(machine)

    monkeypatch.setattr(executor.UpgradeExecutor, "_verify", with_a_hand)
    upgrade = server.upgrade(app)
    assert (upgrade.state, app.state) == (UpgradeState.ROLLBACK_FAILED, InfraApp.State.DRIFTED), told(upgrade)
    assert "HAND=1" in docker("service", "inspect", "--format={{json .Spec}}", f"{app.stack}_app"), (
        "nothing was overwritten, not even by the way back"
    )
    ours = server.upgrade(app, OLD, kind="restore-ours", accept=app.contested["fingerprint"], sick=True)
    assert ours.state == UpgradeState.SUCCEEDED, told(ours)
    assert "HAND=1" not in docker("service", "inspect", "--format={{json .Spec}}", f"{app.stack}_app")
    assert page(server, app) == "version one"


def test_another_ones_app_is_never_touched(server: Server, tmp_path: Path) -> None:
    recipe = Recipe(tmp_path / "recipe", "stateless")
    app = server.app(recipe)
    recipe.publish(NEW, TWO)
    InfraApp.objects.update(owner=InfraApp.Owner.MAINTAINERS)
    app.refresh_from_db()
    before = inspect.see(app)
    upgrade = server.upgrade(app)
    assert upgrade.state == UpgradeState.FAILED and "managed by its maintainers" in upgrade.reason
    assert scheduler.step() == "nothing to do"
    docker("service", "update", "--detach", "--env-add=HAND=1", f"{app.stack}_app")
    tasks.supervise()
    app.refresh_from_db()
    assert app.state == InfraApp.State.SETTLED and app.fingerprint != before.fingerprint, "looked at, and left alone"
    assert "abra app upgrade" in enqueue.plan_of(app).blockers[0].remedy
