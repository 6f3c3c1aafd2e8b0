"""Docker that is started anew while a version is watched, and specs that come back as they were recorded."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra import running, upgrades
from infra.deployers.lasting import Part
from infra.models import InfraApp, InfraRelease
from infra.states import UpgradeState
from infra.worker import Failed, differences
from tests.infra.folder_app import BAD, GOOD, FolderDeployer
from tests.infra.machine import Scene, log_of

pytestmark = pytest.mark.django_db(transaction=True)
S = UpgradeState


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(tmp_path, monkeypatch)


def start_docker_anew(scene: Scene, number: int = 1) -> None:
    (scene.machine.root / "docker-began").write_text(f"start {number}")
    services = scene.machine.services()
    scene.machine.write({name: {**one, "task": f"{name} {number}"} for name, one in services.items()})


def test_tasks_that_docker_itself_started_anew_are_not_held_against_the_version(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    soak = upgrades.Machine._soak

    def once(machine: upgrades.Machine) -> None:
        monkeypatch.setattr(upgrades.Machine, "_soak", soak)
        start_docker_anew(scene)
        soak(machine)

    monkeypatch.setattr(upgrades.Machine, "_soak", once)
    upgrade = scene.upgrade(GOOD)
    assert scene.carry_out(upgrade) == S.SUCCEEDED, log_of(upgrade)
    assert scene.is_new() and upgrade.facts["docker_starts"] == 1
    assert "Docker was started anew" in log_of(upgrade)
    assert upgrade.facts["tasks"] == {"app": ["app 1"], "db": ["db 1"]}


def test_a_version_that_dies_after_docker_was_started_anew_is_caught(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    look_again = upgrades.Machine._look_again

    def and_dies(machine: upgrades.Machine, new: object) -> None:
        look_again(machine, new)  # type: ignore[arg-type]
        services = scene.machine.services()
        scene.machine.write({**services, "app": {**services["app"], "task": "another"}})

    soak = upgrades.Machine._soak

    def once(machine: upgrades.Machine) -> None:
        start_docker_anew(scene)
        soak(machine)

    monkeypatch.setattr(upgrades.Machine, "_soak", once)
    monkeypatch.setattr(upgrades.Machine, "_look_again", and_dies)
    upgrade = scene.upgrade(GOOD)
    assert scene.carry_out(upgrade) == S.ROLLED_BACK, log_of(upgrade)
    assert upgrade.reason == "In the soak: app was started anew" and scene.is_as_before()
    assert scene.app.releases.get(version=GOOD).state == InfraRelease.State.QUARANTINED


def test_a_docker_that_is_started_anew_again_and_again_ends_it_and_blames_nobody(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample, seen = upgrades.Machine._sample, []

    def always(machine: upgrades.Machine, new: object) -> object:
        if machine.upgrade.state == S.SOAKING and len(seen) % (upgrades.GOOD + 1) == 0:
            start_docker_anew(scene, len(seen))
        seen.append(machine.upgrade.state)
        return sample(machine, new)  # type: ignore[arg-type]

    InfraApp.objects.update(policy={"soak": "60s"})
    monkeypatch.setattr(upgrades.Machine, "_sample", always)
    upgrade = scene.upgrade(GOOD)
    assert scene.carry_out(upgrade) == S.ROLLED_BACK, log_of(upgrade)
    assert f"Docker was started anew {upgrades.DOCKER_STARTS + 1} times" in upgrade.reason
    assert scene.is_as_before()
    assert scene.app.releases.get(version=GOOD).state == InfraRelease.State.CANDIDATE


def test_a_failure_at_which_docker_was_started_anew_blames_no_version(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def silently(machine: upgrades.Machine) -> None:
        start_docker_anew(scene)
        machine._deployer("new")
        raise Failed("Swarm put app back to what it was before, by itself.")

    monkeypatch.setattr(upgrades.Machine, "_verify", silently)
    upgrade = scene.upgrade(GOOD)
    assert scene.carry_out(upgrade) == S.ROLLED_BACK, log_of(upgrade)
    assert scene.is_as_before() and scene.app.releases.get(version=GOOD).state == InfraRelease.State.CANDIDATE


def test_what_a_hand_had_added_before_comes_back_with_the_rest(scene: Scene) -> None:
    services = scene.machine.services()
    scene.machine.write({**services, "app": {**services["app"], "hand": "made"}})
    upgrade = scene.upgrade(BAD, accept=_fingerprint(scene))
    assert scene.carry_out(upgrade) == S.ROLLED_BACK, log_of(upgrade)
    assert scene.machine.services()["app"]["hand"] == "made" and scene.is_as_before()


def test_a_way_back_to_other_specs_is_no_way_back(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    services = scene.machine.services()
    scene.machine.write({**services, "app": {**services["app"], "hand": "made"}})
    monkeypatch.setattr(FolderDeployer, "restore_specs", lambda deployer, files, recorded: deployer.deploy(files))
    upgrade = scene.upgrade(BAD, accept=_fingerprint(scene))
    assert scene.carry_out(upgrade) == S.ROLLBACK_FAILED, log_of(upgrade)
    assert "the spec of app is not the one that was recorded" in upgrade.reason


def _fingerprint(scene: Scene) -> str:
    return running.see(scene.app).fingerprint


def test_differences_are_of_specs_and_of_services() -> None:
    before = {"app": Part("one", mark="u1-old"), "db": Part("two")}
    assert differences({"app": Part("one", mark="u2-old")}, before) == []
    assert differences({"app": Part("other"), "new": Part("new")}, before) == [
        "new was not there before",
        "the spec of app is not the one that was recorded",
    ]
