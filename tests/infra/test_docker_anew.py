"""Docker that is started anew while a version is watched, and specs that come back as they were recorded."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.deployers.swarm.persistent import ServiceState
from infra.models import InfraApp, InfraRelease
from infra.runtime import inspect
from infra.states import UpgradeState
from infra.upgrades import executor
from infra.upgrades.session import Failed, differences
from tests.infra.folder_app import BAD, GOOD, FolderDeployer
from tests.infra.machine import Scene, log_of

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.slow(0.3)]
S = UpgradeState


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(tmp_path, monkeypatch)


def start_docker_restarted(scene: Scene, number: int = 1) -> None:
    (scene.machine.root / "docker-began").write_text(f"start {number}")
    services = scene.machine.services()
    scene.machine.write({name: {**one, "task": f"{name} {number}"} for name, one in services.items()})


def test_tasks_that_docker_itself_started_anew_are_not_held_against_the_version(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    soak = executor.UpgradeExecutor._soak

    def once(machine: executor.UpgradeExecutor) -> None:
        monkeypatch.setattr(executor.UpgradeExecutor, "_soak", soak)
        start_docker_restarted(scene)
        soak(machine)

    monkeypatch.setattr(executor.UpgradeExecutor, "_soak", once)
    upgrade = scene.upgrade(GOOD)
    assert scene.execute(upgrade) == S.SUCCEEDED, log_of(upgrade)
    assert scene.is_new() and upgrade.facts["docker_starts"] == 1
    assert "Docker restarted" in log_of(upgrade)
    assert upgrade.facts["tasks"] == {"app": ["app 1"], "db": ["db 1"]}


def test_a_version_that_dies_after_docker_was_started_anew_is_caught(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    verify_again = executor.UpgradeExecutor._verify_again

    def and_dies(machine: executor.UpgradeExecutor, new: object) -> None:
        verify_again(machine, new)  # type: ignore[arg-type]
        services = scene.machine.services()
        scene.machine.write({**services, "app": {**services["app"], "task": "another"}})

    soak = executor.UpgradeExecutor._soak

    def once(machine: executor.UpgradeExecutor) -> None:
        start_docker_restarted(scene)
        soak(machine)

    monkeypatch.setattr(executor.UpgradeExecutor, "_soak", once)
    monkeypatch.setattr(executor.UpgradeExecutor, "_verify_again", and_dies)
    upgrade = scene.upgrade(GOOD)
    assert scene.execute(upgrade) == S.ROLLED_BACK, log_of(upgrade)
    assert upgrade.reason == "During the soak: app restarted" and scene.is_as_before()
    assert scene.app.releases.get(version=GOOD).state == InfraRelease.State.QUARANTINED


def test_a_docker_that_is_started_anew_again_and_again_ends_it_and_blames_nobody(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample, seen = executor.UpgradeExecutor._sample, []

    def always(machine: executor.UpgradeExecutor, new: object) -> object:
        if machine.upgrade.state == S.SOAKING and len(seen) % (executor.GOOD + 1) == 0:
            start_docker_restarted(scene, len(seen))
        seen.append(machine.upgrade.state)
        return sample(machine, new)  # type: ignore[arg-type]

    InfraApp.objects.update(policy={"soak": "60s"})
    monkeypatch.setattr(executor.UpgradeExecutor, "_sample", always)
    upgrade = scene.upgrade(GOOD)
    assert scene.execute(upgrade) == S.ROLLED_BACK, log_of(upgrade)
    assert f"Docker restarted {executor.DOCKER_STARTS + 1} times" in upgrade.reason
    assert scene.is_as_before()
    assert scene.app.releases.get(version=GOOD).state == InfraRelease.State.CANDIDATE


def test_a_failure_at_which_docker_was_started_anew_blames_no_version(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def silently(machine: executor.UpgradeExecutor) -> None:
        start_docker_restarted(scene)
        machine._deployer("new")
        raise Failed("Swarm rolled app back by itself.")

    monkeypatch.setattr(executor.UpgradeExecutor, "_verify", silently)
    upgrade = scene.upgrade(GOOD)
    assert scene.execute(upgrade) == S.ROLLED_BACK, log_of(upgrade)
    assert scene.is_as_before() and scene.app.releases.get(version=GOOD).state == InfraRelease.State.CANDIDATE


def test_what_a_hand_had_added_before_comes_back_with_the_rest(scene: Scene) -> None:
    services = scene.machine.services()
    scene.machine.write({**services, "app": {**services["app"], "hand": "made"}})
    upgrade = scene.upgrade(BAD, accept=_fingerprint(scene))
    assert scene.execute(upgrade) == S.ROLLED_BACK, log_of(upgrade)
    assert scene.machine.services()["app"]["hand"] == "made" and scene.is_as_before()


def test_a_way_back_to_other_specs_is_no_way_back(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    services = scene.machine.services()
    scene.machine.write({**services, "app": {**services["app"], "hand": "made"}})
    monkeypatch.setattr(FolderDeployer, "restore_specs", lambda deployer, files, recorded: deployer.deploy(files))
    upgrade = scene.upgrade(BAD, accept=_fingerprint(scene))
    assert scene.execute(upgrade) == S.ROLLBACK_FAILED, log_of(upgrade)
    assert "the spec of app differs from the recorded one" in upgrade.reason


def _fingerprint(scene: Scene) -> str:
    return inspect.see(scene.app).fingerprint


def test_differences_are_of_specs_and_of_services() -> None:
    before = {"app": ServiceState("one", mark="u1-old"), "db": ServiceState("two")}
    assert differences({"app": ServiceState("one", mark="u2-old")}, before) == []
    assert differences({"app": ServiceState("other"), "new": ServiceState("new")}, before) == [
        "new is new",
        "the spec of app differs from the recorded one",
    ]
