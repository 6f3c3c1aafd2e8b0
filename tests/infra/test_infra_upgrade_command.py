"""`cc-ci infra upgrade` and its kin: what they say, what they refuse, and that every command has its button."""

from __future__ import annotations

import io
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db import connections
from django.test import Client
from django.urls import reverse

from controlplane.cli import Exit
from infra import admin
from infra.deployers.swarm.persistent import ServiceState
from infra.models import InfraApp, InfraRelease, Upgrade
from infra.releases import discovery
from infra.runtime import inspect
from infra.runtime.inspect import Seen
from infra.upgrades import launcher
from tests.factories import SnapshotFactory
from tests.infra.folder_app import BAD, GOOD, OLD
from tests.infra.machine import Scene
from tests.infra.test_upgrades import calm

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.slow(0.6)]


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """Upgrades are carried out by a thread, as a process would."""
    scene = Scene(tmp_path, monkeypatch)
    threads: list[threading.Thread] = []

    def work(pk: int) -> None:
        launcher.execute(Upgrade.objects.select_related("app").get(pk=pk))
        connections.close_all()

    def start(upgrade: Upgrade) -> None:
        for thread in threads:  # its end is seen a moment before its lease is free
            thread.join(240)
        threads.append(threading.Thread(target=work, args=(upgrade.pk,)))
        threads[-1].start()

    calm(monkeypatch)
    monkeypatch.setattr(launcher, "start", start)
    monkeypatch.setattr(discovery, "discover", lambda app: [])
    monkeypatch.setattr("infra.management.commands.infra._POLL_SECONDS", 0.02)
    yield scene
    for thread in threads:
        thread.join(240)


def infra(*words: str) -> tuple[int, str, str]:
    """Exit code, output, errors."""
    out, err = io.StringIO(), io.StringIO()
    try:
        call_command("infra", *words, stdout=out, stderr=err)
    except Exit as error:
        return int(str(error)), out.getvalue(), err.getvalue()
    return 0, out.getvalue(), err.getvalue()


def test_an_upgrade_is_followed_to_its_end(scene: Scene) -> None:
    InfraRelease.objects.filter(version=BAD).delete()
    code, said, _ = infra("upgrade", "app")
    assert code == 0 and scene.is_new()
    assert "Deploying 1.1.0+1.1" in said and said.rstrip().endswith("app 1.0.0+1.0 → 1.1.0+1.1: succeeded.")
    code, said, error = infra("upgrade", "app")
    assert code == 1 and "which is the newest release" in error


def test_a_version_that_is_bad_ends_with_1_and_is_not_taken_again(scene: Scene) -> None:
    code, said, _ = infra("upgrade", "app", BAD, "--json")
    data = json.loads(said)
    assert code == 1 and (data["state"], data["to"]) == ("rolled_back", BAD) and "never passes" in data["reason"]
    assert infra("upgrade", "app", BAD)[0] == 1
    code, said, _ = infra("upgrade", "app", "--dry-run")
    assert code == 0 and said.startswith("app: 1.0.0+1.0 → 1.1.0+1.1") and "It is quarantined" in said
    code, said, _ = infra("lift", "app", BAD)
    assert code == 0 and "from quarantine" in said
    assert infra("lift", "app", BAD)[0] == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"owner": "maintainers"}, "abra app upgrade"),
        ({"state": "contested"}, "Choose: cc-ci infra adopt app, restore-ours app or hand-over app"),
        ({"window": "Mon 02:00-02:01"}, "or use --now"),
    ],
)
def test_what_the_gate_stops_is_refused_with_its_reasons(scene: Scene, change: dict[str, str], words: str) -> None:
    InfraApp.objects.update(**change)
    code, _, error = infra("upgrade", "app")
    assert code == 1 and words in error
    assert not Upgrade.objects.exists()
    if "window" in change:
        assert infra("upgrade", "app", GOOD, "--now")[0] == 0


def test_there_and_back(scene: Scene) -> None:
    infra("upgrade", "app", GOOD)
    code, said, _ = infra("snapshots", "app")
    assert code == 0 and OLD in said and f"needed for a rollback from {GOOD}, which is running" in said
    code, said, _ = infra("rollback", "app", "--data")
    assert code == 0 and scene.is_as_before(), said
    (newest, _) = json.loads(infra("snapshots", "app", "--json")[1])
    assert newest["version"] == GOOD
    code, said, _ = infra("restore", "app", str(newest["id"]))
    assert code == 0 and scene.is_new(), said
    with pytest.raises(CommandError, match="has no snapshot 999"):
        infra("restore", "app", "999")


def test_contested_and_the_three_ways_out(scene: Scene) -> None:
    from infra import tasks

    def touch() -> None:
        services = scene.machine.services()
        scene.machine.write({**services, "app": {**services["app"], "hand": "made"}})
        assert tasks.supervise() == "app has drifted"

    touch()
    assert "was changed outside cc-ci" in infra("status")[1]
    code, said, _ = infra("restore-ours", "app")
    assert code == 0 and scene.is_as_before() and "hand" not in scene.machine.services()["app"], said
    assert infra("restore-ours", "app")[0] == 1
    touch()
    assert infra("adopt", "app")[1] == "cc-ci now manages app as it runs: 1.0.0+1.0.\n"
    touch_again = scene.machine.services()
    scene.machine.write({**touch_again, "db": {**touch_again["db"], "hand": "made"}})
    tasks.supervise()
    code, said, _ = infra("hand-over", "app", "--json")
    assert code == 0 and json.loads(said)["owner"] == "maintainers"
    assert infra("rollback", "app")[0] == 1


def test_restore_ours_looks_once_more(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.app.contested = {"fingerprint": "what-was-seen"}
    InfraApp.objects.update(state="contested", contested=scene.app.contested)
    monkeypatch.setattr(inspect, "see", lambda app: Seen({"app": ServiceState("other", version="9.9.9+9")}, {}))
    code, _, error = infra("restore-ours", "app")
    assert code == 1 and "It has changed again: 9.9.9+9 runs now" in error


def test_the_plan_of_the_night_has_all_reasons(scene: Scene) -> None:
    InfraApp.objects.update(window="Mon 02:00-02:01")
    code, said, _ = infra("nightly", "--dry-run")
    assert code == 0 and "outside the maintenance window" in said
    InfraApp.objects.update(window="")
    (item,) = json.loads(infra("nightly", "--dry-run", "--json")[1])
    assert item["takes"] == BAD and not Upgrade.objects.exists()
    assert infra("nightly")[1].startswith("started app")


def test_the_workers_command(scene: Scene) -> None:
    upgrade = scene.upgrade(GOOD)
    assert infra("carry-out", str(upgrade.pk))[1] == "succeeded\n"
    with pytest.raises(CommandError, match="no upgrade 999"):
        infra("carry-out", "999")
    with pytest.raises(CommandError, match=r"there is no app apq\. Known: app"):
        infra("upgrade", "apq")


COMMANDS = {"upgrade", "rollback", "adopt", "restore-ours", "hand-over", "lift", "restore", "approve"}


def test_every_command_has_a_button() -> None:
    buttons = {*admin.InfraAppAdmin.actions, *admin.InfraReleaseAdmin.actions, *admin.SnapshotAdmin.actions}
    assert {name.replace("-", "_") for name in COMMANDS} <= buttons


def press(client: Client, model: str, button: str, *rows: Any) -> str:
    data = {"action": button, "_selected_action": [row.pk for row in rows], "sure": "yes"}
    return client.post(reverse(f"admin:infra_{model}_changelist"), data, follow=True).content.decode()


def _wait() -> None:
    until = time.monotonic() + 240
    while not Upgrade.objects.order_by("-id")[0].final:
        assert time.monotonic() < until
        time.sleep(0.02)


def test_buttons(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.runtime.drift._write", lambda *args, **more: [])  # there is no infra.yml here
    User.objects.create_superuser("root", "", "x")
    client = Client()
    client.force_login(User.objects.get())
    InfraApp.objects.update(owner="maintainers")
    assert "abra app upgrade" in press(client, "infraapp", "upgrade", scene.app)
    assert "cc-ci now manages" in press(client, "infraapp", "adopt", scene.app)
    assert "has not drifted" in press(client, "infraapp", "restore_ours", scene.app)
    assert "does not know the version before" in press(client, "infraapp", "rollback", scene.app)
    assert "1.0.0+1.0 → 1.2.0+1.2" in press(client, "infraapp", "show_plan", scene.app)
    assert "is not quarantined" in press(client, "infrarelease", "lift", scene.app.releases.get(version=BAD))
    assert "Started app" in press(client, "infrarelease", "upgrade_to", scene.app.releases.get(version=GOOD))
    _wait()
    assert scene.is_new()
    assert "Started app" in press(client, "snapshot", "restore", scene.app.taken.get())
    _wait()
    assert scene.is_as_before()
    assert "is now managed by its maintainers" in press(client, "infraapp", "hand_over", scene.app)
    other = User.objects.create_user("reader", "", "x", is_staff=True)
    from django.contrib.auth.models import Permission

    other.user_permissions.set(Permission.objects.filter(codename__startswith="view_"))
    client.force_login(other)
    assert "needs the permission" in press(client, "snapshot", "restore", SnapshotFactory(app=scene.app))
