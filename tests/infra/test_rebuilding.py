"""A lost machine comes back: what the stores and one key are enough for, and what is refused before anything is touched."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from django.conf import settings
from django.core.management import call_command

from controlplane.cli import Exit
from controlplane.models import Lease
from infra.deployers.context import Secret
from infra.models import AppSecret, InfraApp, InfraFile, InfraRelease, Snapshot, Upgrade
from infra.releases import discovery
from infra.runtime import inspect
from infra.runtime.drift import Refused
from infra.snapshots import metadata
from infra.snapshots import snapshot as snapshots
from infra.states import UpgradeState
from infra.upgrades import disaster_recovery, enqueue, launcher
from tests.factories import InfraAppFactory, InfraReleaseFactory
from tests.infra.folder_app import BAD, FAULTS, GOOD, OLD
from tests.infra.machine import Scene, log_of

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.slow(1.9)]
S = UpgradeState


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process is started, and the recipe's releases are there."""
    monkeypatch.setattr(launcher, "start", lambda upgrade: None)
    monkeypatch.setattr(discovery, "discover", lambda app: None)


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(tmp_path, monkeypatch)


def lose(scene: Scene, pinned: str = "", keep_volumes: bool = False) -> InfraApp:
    """The machine is lost with the database; what the file declares is applied anew."""
    declared = {
        name: getattr(scene.app, name) for name in ("name", "recipe", "domain", "stack", "health", "policy", "snapshots", "owner")
    }
    pinned = pinned or scene.app.pinned_version
    for model in (Upgrade, Snapshot, AppSecret, InfraRelease, InfraApp, Lease):
        model.objects.all().delete()
    shutil.rmtree(settings.CC_CI.data_dir / "infra", ignore_errors=True)
    scene.machine.write({})
    if not keep_volumes:
        shutil.rmtree(scene.machine.data)
    scene.app = InfraAppFactory(**declared, running_version="", pinned_version=pinned)
    for rank, version in enumerate((OLD, GOOD, BAD), 1):
        InfraReleaseFactory(app=scene.app, version=version, rank=rank, commit=version)
    return scene.app


def upgraded(scene: Scene, version: str = GOOD) -> Upgrade:
    upgrade = scene.upgrade(version)
    scene.execute(upgrade)
    return upgrade


def test_an_app_comes_back_with_the_data_of_its_newest_snapshot_and_its_secrets(scene: Scene) -> None:
    made = inspect.secret_of(scene.app, Secret("app_password_v1", "password", 20))
    assert upgraded(scene).state == S.SUCCEEDED
    names = [path.name for path in (scene.machine.root.parent / "store" / "app").iterdir()]
    app = lose(scene)
    assert disaster_recovery.recover([app]) == []
    snapshot = app.taken.get()
    assert (snapshot.version, snapshot.location, snapshot.proved) == (OLD, f"app/{names[0]}", False)
    upgrade = disaster_recovery.bring_up(app, "alice")
    assert scene.execute(upgrade) == S.SUCCEEDED, log_of(upgrade)
    assert scene.is_new(), "the data of the old version, which the pinned one has migrated, as it had done before"
    assert (scene.app.running_version, scene.app.state) == (GOOD, "settled")
    assert inspect.secret_of(scene.app, Secret("app_password_v1", "password", 20)) == made
    assert disaster_recovery.recover([app]) == [] and app.taken.count() == 1, "a second time does nothing"
    assert enqueue.plan_of(scene.app).verdicts, "and it is an app like others"


def test_a_second_snapshot_after_the_machine_was_lost_does_not_replace_the_first(scene: Scene) -> None:
    upgraded(scene)
    app = lose(scene, pinned=OLD)
    disaster_recovery.recover([app])
    scene.execute(disaster_recovery.bring_up(app, "alice"))
    assert scene.is_as_before()
    upgraded(scene)
    store = scene.machine.root.parent / "store" / "app"
    assert len(list(store.iterdir())) == 2, "numbers begin anew in a new database"
    assert scene.app.taken.count() == 2


POINTS = ("fetch", "put back", "deploy", "settle", "probe")
MOVES = ("move snapshot", "move deploy", "move verify", "move soak", "move succeed")


@pytest.mark.forks
@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_happens_on_the_way_it_comes_up_or_is_stopped_and_comes_up_the_next_time(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: Counter[str] = Counter()
    cases = [(point, when) for point in POINTS for when in ("before", "during", "after")]
    cases += [(move, when) for move in MOVES for when in ("before", "after")] if fault == "killed" else []
    for number, (point, when) in enumerate(cases):
        for model in (Upgrade, InfraApp, InfraFile, Lease):
            model.objects.all().delete()
        scene = Scene(tmp_path / str(number), monkeypatch)
        upgraded(scene)
        app = lose(scene)
        disaster_recovery.recover([app])
        scene.machine.plan(point, when, fault)
        upgrade = disaster_recovery.bring_up(app, "alice")
        scene.until_the_end(upgrade)
        assert scene.machine.met, f"{point} {when}: the fault was never met"
        ends[upgrade.state] += 1
        tries = 1
        while upgrade.state != S.SUCCEEDED and tries < 4:  # Docker is away for some calls
            tries += 1
            assert upgrade.state in (S.FAILED, S.ROLLED_BACK), log_of(upgrade)
            assert scene.machine.services() == {} and scene.app.state == "settled"
            upgrade = disaster_recovery.bring_up(scene.app, "alice")
            scene.until_the_end(upgrade)
        assert upgrade.state == S.SUCCEEDED and scene.is_new(), f"{point} {when}: {log_of(upgrade)}"
    print(f"\n{fault}, bringing up: {dict(ends)}, {len(cases)} cases")
    assert sum(ends.values()) == len(cases)
    if fault in ("killed", "lost lease"):
        assert set(ends) == {S.SUCCEEDED}


def test_what_is_not_well_is_stopped_again_and_blames_no_version(scene: Scene) -> None:
    upgraded(scene)
    app = lose(scene, pinned=BAD)
    disaster_recovery.recover([app])
    upgrade = disaster_recovery.bring_up(app, "alice")
    assert scene.execute(upgrade) == S.ROLLED_BACK, log_of(upgrade)
    assert scene.machine.services() == {} and upgrade.facts["logs"]
    assert app.releases.get(version=BAD).state == InfraRelease.State.CANDIDATE
    InfraApp.objects.update(pinned_version=GOOD)
    scene.app.refresh_from_db()
    again = disaster_recovery.bring_up(scene.app, "alice")
    assert again.asked["volumes"] == "replace", "what the first attempt had put there is no loss"
    assert scene.execute(again) == S.SUCCEEDED, log_of(again)
    assert scene.is_new()


def test_volumes_that_are_still_there_are_not_overwritten_unasked(scene: Scene) -> None:
    upgraded(scene)
    app = lose(scene, keep_volumes=True)
    (scene.machine.data / "since").write_text("written after the snapshot")
    disaster_recovery.recover([app])
    refused = disaster_recovery.bring_up(app, "alice")
    assert scene.execute(refused) == S.FAILED
    assert "--volumes keep" in refused.reason and (scene.machine.data / "since").exists()
    kept = disaster_recovery.bring_up(scene.app, "alice", volumes="keep")
    assert scene.execute(kept) == S.SUCCEEDED, log_of(kept)
    assert (scene.machine.data / "since").exists()
    scene.machine.write({})
    InfraApp.objects.update(fingerprint="", parts={}, running_version="")
    scene.app.refresh_from_db()
    replaced = disaster_recovery.bring_up(scene.app, "alice", volumes="replace")
    assert scene.execute(replaced) == S.SUCCEEDED, log_of(replaced)
    assert not (scene.machine.data / "since").exists() and scene.is_new()


def test_a_secret_that_the_data_needs_and_nobody_has_is_asked_for(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "used_secrets", lambda specs: ["app_password_v1", "app_other_v1"])
    upgraded(scene)
    app = lose(scene)
    disaster_recovery.recover([app])
    refused = disaster_recovery.bring_up(app, "alice")
    assert scene.execute(refused) == S.FAILED
    assert "cc-ci did not generate" in refused.reason and "password: file:password" in refused.reason
    assert scene.machine.services() == {} and not scene.machine.data.exists()
    InfraApp.objects.update(secrets={"password": "env:PASSWORD"})
    scene.app.refresh_from_db()
    assert scene.execute(disaster_recovery.bring_up(scene.app, "alice")) == S.SUCCEEDED


def test_another_key_is_said_before_anything_is_begun(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    monkeypatch.setattr(settings.CC_CI, "secret_keys", (first,))
    made = inspect.secret_of(scene.app, Secret("app_password_v1", "password", 20))
    upgraded(scene)
    bundle = "".join(path.read_text() for path in (scene.machine.root.parent / "store").rglob("*.json"))
    assert made not in bundle and "app_password_v1" in bundle
    app = lose(scene)
    monkeypatch.setattr(settings.CC_CI, "secret_keys", (second,))
    problems = disaster_recovery.recover([app])
    assert "another key" in problems[0] and "CC_CI_SECRET_KEYS" in problems[0]
    assert not AppSecret.objects.exists()
    with pytest.raises(Exit) as ended:
        call_command("infra", "apply", "--restore", file=_file(scene))
    assert ended.value.code == 2 and "another key" in capsys.readouterr().err
    assert Upgrade.objects.count() == 0, "nothing was begun"
    monkeypatch.setattr(settings.CC_CI, "secret_keys", (second, first))
    assert disaster_recovery.recover([app]) == []
    assert inspect.secret_of(app, Secret("app_password_v1", "password", 20)) == made


def test_what_is_refused_before_anything_is_touched(scene: Scene, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="app is already running"):
        disaster_recovery.bring_up(scene.app, "alice")
    app = lose(scene)
    with pytest.raises(Refused, match=r"app has no snapshot in the store local.*deploy app --fresh"):
        disaster_recovery.bring_up(app, "alice")
    shutil.rmtree(tmp_path / "store")
    assert "Is its disk mounted" in disaster_recovery.recover([app])[0]
    InfraApp.objects.update(owner=InfraApp.Owner.MAINTAINERS)
    app.refresh_from_db()
    with pytest.raises(Refused, match="abra app deploy"):
        disaster_recovery.bring_up(app, "alice")
    InfraApp.objects.update(owner=InfraApp.Owner.RECONCILED, declared=False)
    app.refresh_from_db()
    with pytest.raises(Refused, match=r"no longer in infra\.yml"):
        disaster_recovery.bring_up(app, "alice")
    assert Upgrade.objects.count() == 0


def test_a_version_is_never_lowered_below_its_data(scene: Scene) -> None:
    upgraded(scene)
    snapshotted = enqueue.snapshot(scene.app, "alice")
    assert scene.execute(snapshotted) == S.SUCCEEDED, log_of(snapshotted)
    assert snapshotted.snapshot.version == GOOD and scene.is_new()
    app = lose(scene, pinned=OLD)
    disaster_recovery.recover([app])
    with pytest.raises(Refused, match=rf"infra.yml is behind.*`version: {GOOD}`".replace("+", r"\+")):
        disaster_recovery.bring_up(app, "alice")
    older = app.taken.get(version=OLD)
    assert scene.execute(disaster_recovery.bring_up(app, "alice", snapshot=older)) == S.SUCCEEDED
    assert scene.is_as_before()


def test_a_first_deployment_has_no_data(scene: Scene) -> None:
    app = lose(scene, pinned=OLD)
    scene.machine.begin()
    scene.machine.write({})
    shutil.move(scene.machine.data, scene.machine.root / "volume")  # the recipe makes it when it starts

    def start(version: str) -> str:
        (scene.machine.root / "volume").rename(scene.machine.data)
        return ""

    scene.machine.start = start  # type: ignore[method-assign]
    upgrade = disaster_recovery.bring_up(app, "alice", fresh=True)
    assert scene.execute(upgrade) == S.SUCCEEDED, log_of(upgrade)
    assert scene.is_as_before() and scene.app.running_version == OLD


def test_a_snapshot_is_known_by_its_stack_whatever_the_app_was_called(scene: Scene) -> None:
    upgraded(scene)
    app = lose(scene)
    InfraApp.objects.update(name="other")
    app.refresh_from_db()
    assert disaster_recovery.recover([app]) == [] and app.taken.get().version == OLD
    Snapshot.objects.all().delete()
    InfraApp.objects.update(stack="another_stack")
    app.refresh_from_db()
    assert disaster_recovery.recover([app]) == [] and not app.taken.exists(), "data of another stack is not its data"


def test_levels_follow_after() -> None:
    apps = [
        InfraAppFactory(name=name, after=after)
        for name, after in (("drone", ["keycloak"]), ("keycloak", ["traefik"]), ("traefik", []), ("wiki", ["traefik", "gone"]))
    ]
    names = [[app.name for app in level] for level in disaster_recovery.levels(apps)]
    assert names == [["traefik"], ["keycloak", "wiki"], ["drone"]]
    apps[2].after = ["drone"]
    assert len(disaster_recovery.levels(apps)) == 1, "a circle ends, too"


def _file(scene: Scene) -> Path:
    """An infra.yml as it would declare the scene's app."""
    from infra.config import apply
    from infra.config.load import dump

    path = scene.machine.root.parent / "infra.yml"
    path.write_text(dump(apply.export()))
    return path


def test_the_command_says_what_came_of_each_app(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    upgraded(scene)
    app = lose(scene)
    InfraAppFactory(name="after-it", after=["app"], owner="reconciled", pinned_version="9.9.9+9", snapshots={"of": "none"})
    InfraAppFactory(name="theirs", owner="maintainers", domain="theirs.example.org")
    path = _file(scene)
    monkeypatch.setattr(disaster_recovery, "runs", lambda one: one.name == "app" and bool(scene.machine.services()))
    with pytest.raises(Exit) as ended:
        call_command("infra", "apply", "--restore", file=path)
    said = capsys.readouterr().out
    assert ended.value.code == 1, said
    assert f"app {GOOD} is up with the data of {OLD}, " in said
    assert "theirs is managed by its maintainers. They run: abra app deploy theirs.example.org" in said
    assert "after-it did not come up: No release 9.9.9+9" in said
    assert scene.is_new()
    InfraApp.objects.filter(name="after-it").delete()
    path = _file(scene)
    call_command("infra", "apply", "--restore", file=path)
    assert "app is already running; left alone." in capsys.readouterr().out
    call_command("infra", "apply", "--restore", "--json", file=path)
    assert '"word": "runs"' in capsys.readouterr().out
    with pytest.raises(Exit):
        call_command("infra", "deploy", app.name)
    assert "app is already running." in capsys.readouterr().err
    with pytest.raises(Exit):
        call_command("infra", "deploy", app.name, "--snapshot=99")
    assert "app has no snapshot 99. See: cc-ci infra snapshots app" in capsys.readouterr().err
    assert snapshots.is_stateful(app)
