"""The upgrade machine on an app that lives in a folder: every step, what it writes down, and what turns it round."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from django.conf import settings
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone

from controlplane import leases
from controlplane.registry import registry
from infra import alerts, tasks
from infra.deployers.context import Secret
from infra.models import AlertSent, AppSecret, InfraApp, InfraRelease, Snapshot, Upgrade
from infra.runtime import drift, inspect
from infra.runtime.drift import Refused
from infra.states import UpgradeState
from infra.upgrades import enqueue, executor, launcher, scheduler, session
from tests.factories import InfraAppFactory, InfraReleaseFactory, UpgradeFactory
from tests.infra.folder_app import BAD, GOOD, OLD
from tests.infra.machine import Scene, log_of

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.both_databases, pytest.mark.slow(0.2)]
S = UpgradeState


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(tmp_path, monkeypatch)


@pytest.fixture
def unstarted(monkeypatch: pytest.MonkeyPatch) -> list[Upgrade]:
    """What was begun; no process is started for it."""
    begun: list[Upgrade] = []
    monkeypatch.setattr(launcher, "start", begun.append)
    return begun


def test_a_stateful_app_goes_on(scene: Scene) -> None:
    upgrade = scene.upgrade(GOOD)
    assert scene.execute(upgrade) == S.SUCCEEDED, log_of(upgrade)
    assert scene.is_new()
    app = scene.app
    assert (app.running_version, app.pinned_version, app.state) == (GOOD, GOOD, "settled")
    assert {part["version"] for part in app.parts.values()} == {GOOD}
    assert upgrade.ran_new and upgrade.snapshot.proved and upgrade.snapshot.version == OLD
    assert upgrade.snapshot.kept_because == f"needed for a rollback from {GOOD}, which is running"
    assert set(upgrade.specs) == set(upgrade.digests) == {"app", "db"}
    assert upgrade.baseline["probes"] == {"command is-it-well in app": True}
    assert upgrade.facts["commits"] == {"old": OLD, "new": GOOD}
    moves = [e.kind for e in upgrade.events.all() if e.kind in list(S)]
    assert moves == ["approved", "snapshotting", "deploying", "verifying", "soaking", "succeeded"]
    assert upgrade.events.filter(kind="sample").count() >= executor.GOOD + 1
    assert leases.take(launcher.lease_name(upgrade), 1), "the lease is free again"
    assert not AlertSent.objects.exists()


def test_a_bad_version_is_rolled_back_with_its_data_and_quarantined_with_evidence(scene: Scene) -> None:
    upgrade = scene.upgrade(BAD)
    assert scene.execute(upgrade) == S.ROLLED_BACK, log_of(upgrade)
    assert scene.is_as_before()
    assert upgrade.reason == "The health check of app never passes."
    release = scene.app.releases.get(version=BAD)
    assert release.state == InfraRelease.State.QUARANTINED
    assert release.evidence["quarantined"] == upgrade.reason
    assert release.evidence["logs"] == "the app's last words" and release.evidence["swarm"]
    told = dict(AlertSent.objects.values_list("kind", "text"))
    assert set(told) == {"rolled_back", "quarantined"} and OLD in told["rolled_back"]
    with pytest.raises(Refused, match="not quarantined"):
        enqueue.release_from_quarantine(scene.app, GOOD, "alice")
    assert enqueue.release_from_quarantine(scene.app, BAD, "alice").state != InfraRelease.State.QUARANTINED


def test_without_the_restore_step_the_old_version_does_not_come_back(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor.UpgradeExecutor, "_put_back", lambda machine, deployer, snapshot: None)
    upgrade = scene.upgrade(BAD)
    assert scene.execute(upgrade) == S.ROLLBACK_FAILED
    assert "The rollback failed, too: The service app of 1.0.0+1.0 keeps failing." in upgrade.reason
    assert upgrade.snapshot.location in upgrade.reason and Snapshot.objects.count() == 1
    assert AlertSent.objects.get(kind="rollback_failed").text == f"app: {upgrade.reason}"
    assert scene.execute(upgrade) == S.ROLLBACK_FAILED, "nothing more is touched"


def test_data_that_the_new_version_never_saw_is_left_alone(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.machine.plan("pack", "during", "full disk")
    monkeypatch.setattr(executor.UpgradeExecutor, "_put_back", lambda *args: pytest.fail("there was no need"))
    upgrade = scene.upgrade(GOOD)
    assert scene.execute(upgrade) == S.ROLLED_BACK, log_of(upgrade)
    assert scene.is_as_before() and not upgrade.ran_new
    assert "No space left" in upgrade.reason
    assert scene.app.releases.get(version=GOOD).state == InfraRelease.State.CANDIDATE, "the version is not to blame"
    assert not list((Path(upgrade.app.snapshots and "/") and scene.machine.root.parent / "store").rglob("*.tar"))


def a_hand(scene: Scene, what: str) -> None:
    services = scene.machine.services()
    scene.machine.write({**services, "app": {**services["app"], "hand": what}})


def test_what_a_hand_had_set_and_was_adopted_comes_back_by_restore_ours_and_by_rollback(
    scene: Scene, unstarted: list[Upgrade]
) -> None:
    a_hand(scene, "adopted")
    assert drift.check(scene.app) == "contested"
    drift.adopt(scene.app, "alice")
    a_hand(scene, "another")
    assert drift.check(scene.app) == "contested"
    ours = enqueue.restore_ours(scene.app, "alice")
    assert scene.execute(ours) == S.SUCCEEDED, log_of(ours)
    assert scene.machine.services()["app"]["hand"] == "adopted"
    upgrade = scene.upgrade(GOOD)
    assert scene.execute(upgrade) == S.SUCCEEDED and "hand" not in scene.machine.services()["app"]
    back = enqueue.roll_back(scene.app, "alice", data=True)
    assert scene.execute(back) == S.SUCCEEDED, log_of(back)
    assert scene.machine.services()["app"]["hand"] == "adopted" and scene.is_as_before()
    assert unstarted == [ours, back]


def test_no_secret_of_the_app_comes_into_evidence_reasons_or_the_log(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "given").write_text("given-value\n")
    InfraApp.objects.update(secrets={"token": f"file:{tmp_path / 'given'}"})
    scene.app.refresh_from_db()
    made = inspect.secret_of(scene.app, Secret("app_key_v1", "key", 20))
    assert inspect.secret_of(scene.app, Secret("app_key_v1", "key", 20)) == made, "the same one, as long as the app lives"
    assert inspect.secret_of(scene.app, Secret("app_token_v1", "token", 20)) == "given-value"
    assert len(made) == 20 and made not in str(AppSecret.objects.values_list("value")), "it is encrypted"
    scene.machine.leak = f" {made} given-value"

    def dies(machine: executor.UpgradeExecutor) -> None:
        raise session.Failed(f"It said {made} and given-value.")

    monkeypatch.setattr(executor.UpgradeExecutor, "_verify", dies)
    upgrade = scene.upgrade(GOOD)
    assert scene.execute(upgrade) == S.ROLLED_BACK
    assert upgrade.reason == "It said *** and ***." and upgrade.facts["logs"] == "the app's last words *** ***"
    told = (
        f"{log_of(upgrade)}{list(upgrade.events.values())}{list(AlertSent.objects.values())}{list(InfraRelease.objects.values())}"
    )
    assert made not in told and "given-value" not in told
    monkeypatch.setattr(settings.CC_CI, "secret_keys", (Fernet.generate_key().decode(),))
    assert made not in inspect.without_secrets(scene.app, f"It said {made}."), "what cannot be known cannot be taken out"
    again = scene.upgrade(GOOD)
    assert scene.execute(again) == S.ROLLED_BACK and "CC_CI_SECRET_KEYS" in again.reason


def test_images_that_a_way_back_may_need_are_kept(scene: Scene) -> None:
    assert inspect.images_kept() == [f"image:{OLD}"]
    scene.execute(scene.upgrade(GOOD))
    assert registry.ask("images_kept") == [f"image:{OLD}", f"image:{GOOD}"]


def test_a_stateless_app_keeps_its_volumes_and_takes_no_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(tmp_path, monkeypatch, stateful=False)
    upgrade = scene.upgrade(GOOD)
    assert scene.execute(upgrade) == S.SUCCEEDED and scene.is_new()
    assert upgrade.snapshot is None and not Snapshot.objects.exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"owner": "maintainers"}, "is managed by its maintainers"),
        ({"declared": False}, "is managed by its maintainers"),
        ({"state": "contested"}, "has drifted"),
        ({"running_version": "0.9.0+1"}, "a rollback is not possible"),
    ],
)
def test_nothing_is_begun_that_may_not_be(scene: Scene, change: dict[str, str], words: str) -> None:
    InfraApp.objects.update(**change)
    scene.app.refresh_from_db()
    upgrade = scene.upgrade(GOOD)
    assert scene.execute(upgrade) == S.FAILED
    assert words in upgrade.reason
    assert scene.is_as_before()


def test_a_sick_app_is_not_upgraded(scene: Scene) -> None:
    services = scene.machine.services()
    scene.machine.write({**services, "app": {**services["app"], "up": False}})
    upgrade = scene.upgrade(GOOD)
    assert scene.execute(upgrade) == S.FAILED
    assert upgrade.reason.startswith("The app is already unhealthy: app has 0 of 1 replicas")
    assert AlertSent.objects.get().kind == "failed"


def test_a_hand_before_or_between_stops_all_action(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def touch() -> None:
        services = scene.machine.services()
        scene.machine.write({**services, "app": {**services["app"], "hand": "made"}})

    snapshot = executor.UpgradeExecutor._verify

    def with_a_hand(machine: executor.UpgradeExecutor) -> None:
        touch()
        snapshot(machine)

    monkeypatch.setattr(executor.UpgradeExecutor, "_verify", with_a_hand)
    upgrade = scene.upgrade(GOOD)
    assert scene.execute(upgrade) == S.ROLLBACK_FAILED
    assert scene.app.state == InfraApp.State.DRIFTED
    assert "Service app was changed" in upgrade.reason
    assert scene.machine.services()["app"]["hand"] == "made", "nothing was overwritten"
    assert AlertSent.objects.get().kind == "contested"


def test_a_silent_rollback_in_the_soak_is_named_and_no_hand(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    soak = executor.UpgradeExecutor._soak

    def silently(machine: executor.UpgradeExecutor) -> None:
        services = scene.machine.services()
        old = {"version": OLD, "mark": "", "task": "again", "up": True, "update": "rollback_completed"}
        scene.machine.write({**services, "app": old})
        soak(machine)

    monkeypatch.setattr(executor.UpgradeExecutor, "_soak", silently)
    upgrade = scene.upgrade(GOOD)
    assert scene.execute(upgrade) == S.ROLLED_BACK, log_of(upgrade)
    assert "Swarm rolled app back by itself (silent rollback)" in upgrade.reason
    assert scene.is_as_before()


def test_a_task_that_is_started_anew_in_the_soak_turns_it_round(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    soak = executor.UpgradeExecutor._soak

    def die(machine: executor.UpgradeExecutor) -> None:
        services = scene.machine.services()
        scene.machine.write({**services, "app": {**services["app"], "task": "another"}})
        soak(machine)

    monkeypatch.setattr(executor.UpgradeExecutor, "_soak", die)
    upgrade = scene.upgrade(GOOD)
    assert scene.execute(upgrade) == S.ROLLED_BACK
    assert upgrade.reason == "During the soak: app restarted" and scene.is_as_before()


def test_a_person_turns_an_upgrade_round(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    soak = executor.UpgradeExecutor._soak

    def asked(machine: executor.UpgradeExecutor) -> None:
        assert enqueue.roll_back(scene.app, "alice") == machine.upgrade
        soak(machine)

    monkeypatch.setattr(executor.UpgradeExecutor, "_soak", asked)
    upgrade = scene.upgrade(GOOD)
    assert scene.execute(upgrade) == S.ROLLED_BACK, log_of(upgrade)
    assert upgrade.reason == "Rollback requested by alice." and scene.is_as_before()
    assert scene.app.releases.get(version=GOOD).state == InfraRelease.State.QUARANTINED


def test_a_success_is_undone_with_its_data_by_another_upgrade(scene: Scene, unstarted: list[Upgrade]) -> None:
    first = scene.upgrade(GOOD)
    scene.execute(first)
    back = enqueue.roll_back(scene.app, "alice", data=True)
    assert unstarted == [back] and (back.from_version, back.to_version) == (GOOD, OLD)
    assert scene.execute(back) == S.SUCCEEDED, log_of(back)
    assert scene.is_as_before() and scene.app.pinned_version == OLD
    assert scene.app.releases.get(version=GOOD).state == InfraRelease.State.QUARANTINED
    assert back.snapshot.version == GOOD, "what was written since is kept, too"
    again = enqueue.restore(scene.app, back.snapshot, "alice")
    assert scene.execute(again) == S.SUCCEEDED and scene.is_new()


def test_back_without_the_data_is_caught_by_the_old_code_itself(scene: Scene, unstarted: list[Upgrade]) -> None:
    scene.execute(scene.upgrade(GOOD))
    back = enqueue.roll_back(scene.app, "alice")
    assert scene.execute(back) == S.ROLLED_BACK, log_of(back)
    assert scene.is_new() and scene.app.running_version == GOOD


def test_a_late_worker_moves_nothing(scene: Scene) -> None:
    upgrade = scene.upgrade(GOOD)
    held = leases.take(launcher.lease_name(upgrade), 60)
    assert held
    machine = executor.UpgradeExecutor(upgrade, held)
    Upgrade.objects.filter(pk=upgrade.pk).update(fence=held.fence + 1)
    with pytest.raises(session.Lost):
        machine.run()
    assert scene.execute(upgrade) == "another worker has it"
    upgrade.refresh_from_db()
    assert upgrade.state == S.APPROVED and scene.is_as_before()


def test_a_former_worker_that_only_slept_is_ended_before_another_begins(scene: Scene) -> None:
    pid = os.fork()
    if not pid:
        time.sleep(60)
        os._exit(0)
    owner = f"{leases._process(pid)}/00000000"
    upgrade = scene.upgrade(GOOD)
    Upgrade.objects.filter(pk=upgrade.pk).update(facts={"worker": owner, "session": os.getsid(0)})
    assert scene.execute(upgrade) == S.SUCCEEDED
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -9


def test_what_nobody_has_is_taken_up_again(scene: Scene, unstarted: list[Upgrade]) -> None:
    upgrade = scene.upgrade(GOOD)
    held = leases.take(launcher.lease_name(upgrade), 60)
    assert held and launcher.resume() == 0
    held.release()
    assert tasks.supervise() == "1 resumed" and unstarted == [upgrade]
    Upgrade.objects.update(asked={"host": "another-machine"})
    assert launcher.resume() == 0


def test_two_are_never_begun_for_one_app(scene: Scene, unstarted: list[Upgrade]) -> None:
    first = enqueue.begin(scene.app, GOOD, "alice")
    with pytest.raises(Refused, match="already"):
        enqueue.begin(scene.app, BAD, "bob")
    assert unstarted == [first]


def test_the_time_to_settle_grows_with_what_was_seen(scene: Scene) -> None:
    assert executor.settle_seconds(scene.app, 0) == 300
    assert executor.settle_seconds(scene.app, 20) == 20
    UpgradeFactory(app=scene.app, state=S.SUCCEEDED, facts={"settled_after": 70.5})
    UpgradeFactory(app=scene.app, state=S.ROLLED_BACK, facts={"settled_after": 500})
    assert executor.settle_seconds(scene.app, 20) == 141
    assert executor.settle_seconds(scene.app, 600) == 600


# -- nights ----


def calm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.upgrades.preflight.busy", lambda: "")
    monkeypatch.setattr("infra.snapshots.snapshot.no_room", lambda app: "")
    monkeypatch.setattr("infra.upgrades.preflight.inspect", lambda kind, names: [{}])


def test_a_night_takes_one_at_a_time_in_order(scene: Scene, unstarted: list[Upgrade], monkeypatch: pytest.MonkeyPatch) -> None:
    calm(monkeypatch)
    first = InfraAppFactory(name="first", position=7, policy={"soak": "0s"}, running_version=OLD)
    for version in (OLD, GOOD):
        InfraReleaseFactory(app=first, version=version, commit=version)
    scene.app.releases.filter(version=BAD).delete()
    InfraApp.objects.filter(pk=scene.app.pk).update(after=["first"])
    assert [app.name for app in scheduler.order()] == ["first", "app"]
    assert scheduler.step() == f"started first {OLD} → {GOOD}"
    assert scheduler.step() == "nothing to do"
    plan = scheduler.whole_plan()
    assert [item.takes for item in plan] == [False, False]
    assert "one at a time" in str(plan[1])
    Upgrade.objects.filter(app=first).update(state=S.SUCCEEDED, finished_at=timezone.now())
    InfraApp.objects.filter(pk=first.pk).update(running_version=GOOD)
    assert scheduler.step() == f"started app {OLD} → {GOOD}"


@pytest.mark.parametrize(("policy", "goes_on"), [("stop", False), ("go_on", True)])
def test_a_failure_ends_the_night_or_not(
    scene: Scene, unstarted: list[Upgrade], monkeypatch: pytest.MonkeyPatch, policy: str, goes_on: bool
) -> None:
    calm(monkeypatch)
    other = InfraAppFactory(name="other", policy={"after_failure": policy})
    UpgradeFactory(app=other, state=S.ROLLED_BACK, trigger="nightly", finished_at=timezone.now(), reason="It died.")
    assert scheduler.step().startswith("started app" if goes_on else "reported 1")
    waits = {item.app.name: item.waits for item in scheduler.whole_plan(look_at_all=False)}
    assert ("maintenance run ended when" in waits["app"]) is not goes_on
    if not goes_on:
        assert "It failed in this maintenance run" in waits["other"]
        summary = AlertSent.objects.get(kind="nightly")
        assert "rolled back. It died." in summary.text
        assert scheduler.step() == "nothing to do", "told once"
        Upgrade.objects.update(finished_at=timezone.now() - scheduler.NIGHT)
        assert scheduler.step().startswith("started app")


def test_a_held_version_is_told_once_with_its_notes(scene: Scene) -> None:
    row = scene.app.releases.get(version=GOOD)
    reasons = [{"text": "Its notes speak of work.", "lift": "Read them.", "passages": [{"line": 2, "text": "run it by hand"}]}]
    InfraRelease.objects.filter(pk=row.pk).update(state="held", reasons=reasons, notes="Line one\nrun it by hand")
    assert scheduler.tell_held() == 1 and scheduler.tell_held() == 0
    text = AlertSent.objects.get().text
    assert "run it by hand" in text and "Read them." in text


def test_alerts_go_to_every_address_and_hold_no_secret(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import http.server
    import threading

    got: list[bytes] = []

    class Ear(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ear) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"json://user:geheim@127.0.0.1:{server.server_port}/x"
        monkeypatch.setattr(settings.CC_CI, "alerts", [address])
        assert alerts.tell("contested", scene.app, "Somebody was here.")
        assert not alerts.tell("contested", scene.app, "Somebody was here.")
        assert len(got) == 1 and b"Somebody was here." in got[0] and b"/infra/#app" in got[0]
        server.shutdown()
    monkeypatch.setattr(settings.CC_CI, "alerts", ["json://user:geheim@127.0.0.1:9/x"])
    alerts.tell("failed", scene.app, "Nobody listens.")
    row = AlertSent.objects.get(kind="failed")
    assert not row.delivered and row.problem == "1 of 1 addresses in CC_CI_ALERTS failed"
    monkeypatch.setattr(alerts, "_notify", lambda *args: "")
    assert alerts.retry() == 1


# -- pages ----


def test_the_live_page_shows_steps_probes_and_what_to_do(scene: Scene) -> None:
    upgrade = scene.upgrade(BAD)
    User.objects.create_superuser("root", "", "x")
    client = Client()
    assert client.get(upgrade.get_absolute_url()).status_code == 302
    assert client.get(f"{upgrade.get_absolute_url()}live").status_code == 403
    client.force_login(User.objects.get())
    waiting = client.get(upgrade.get_absolute_url()).content.decode()
    assert "Not started yet" not in waiting and "not yet" in waiting
    scene.execute(upgrade)
    page = client.get(upgrade.get_absolute_url()).content.decode()
    for words in (
        "Snapshot",
        "Deploy and converge",
        "Roll back",
        "rolled back",
        "cc-ci infra lift app 1.2.0+1.2",
        "never passes",
    ):
        assert words in page, words
    live = client.get(f"{upgrade.get_absolute_url()}live").json()
    assert live["final"] and live["state"] == "rolled_back" and "Deploying 1.2.0+1.2" in live["log"]
    assert client.get(f"{upgrade.get_absolute_url()}live?seen={live['log_mark']}").json()["log"] is None
    assert "Last upgrade" in client.get("/infra/").content.decode()
