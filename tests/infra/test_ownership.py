"""Whose an app is while it runs: what is told from our own doing, and the three ways out of a contested app."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from hypothesis import given
from hypothesis import strategies as st

from infra.config.apply import apply, read
from infra.deployers.errors import DeployError
from infra.deployers.swarm.persistent import ServiceState
from infra.models import AlertSent, InfraApp, InfraFile, Upgrade
from infra.runtime import drift, inspect
from infra.runtime.drift import Allowed, Refused, unexpected
from infra.runtime.inspect import Seen
from infra.states import MENDED, WORKING, UpgradeState
from tests.factories import InfraAppFactory, UpgradeFactory

PART = ServiceState("one", mark="u1-new", version="1.0.0+2.0", image="web:1")
THEIRS = replace(PART, fingerprint="two", mark="", version="1.1.0+2.0", image="web:2")

names = st.sampled_from(["app", "db", "cache"])
parts = st.builds(ServiceState, st.sampled_from("abc"), st.sampled_from(["", "u1-old", "u1-new"]))
stacks = st.dictionaries(names, parts)


def test_only_what_was_recorded_may_run() -> None:
    allowed = Allowed({"app": {"one"}}, ["app"])
    assert unexpected({"app": PART}, allowed) == []
    assert unexpected({"app": THEIRS}, allowed) == ["Service app was changed; it runs web:2 as 1.1.0+2.0."]
    assert unexpected({}, allowed) == ["Service app is gone."]
    assert unexpected({"app": PART, "db": PART}, allowed) == ["Service db is new: web:1."]


def test_an_announced_deployment_is_known_by_its_mark_until_it_is_by_its_fingerprint() -> None:
    half_done = {"app": replace(PART, fingerprint="three"), "db": replace(PART, fingerprint="four", mark="")}
    known = {"app": {"one"}, "db": {"four"}}
    assert unexpected(half_done, Allowed(known, marks=["u1-new"])) == []
    assert unexpected(half_done, Allowed(known)) == ["Service app was changed; it runs web:1 as 1.0.0+2.0."]
    assert unexpected({}, Allowed(known, marks=["u1-new"])) == [], "stopped in the middle"


@given(stacks, stacks)
def test_nothing_is_foreign_just_when_all_is_as_recorded(before: dict[str, ServiceState], now: dict[str, ServiceState]) -> None:
    allowed = Allowed({name: {part.fingerprint} for name, part in before.items()}, tuple(before))
    same = {name: part.fingerprint for name, part in before.items()} == {name: part.fingerprint for name, part in now.items()}
    assert (unexpected(now, allowed) == []) is same


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch) -> dict[str, ServiceState]:
    """What runs, as the tests change it."""
    runs = {"app": PART}
    monkeypatch.setattr(inspect, "see", lambda app, full=False: Seen(dict(runs), {}))
    return runs


@pytest.fixture
def app(db: None, look: dict[str, ServiceState]) -> InfraApp:
    row: InfraApp = InfraAppFactory(name="web", running_version="", fingerprint="")
    assert drift.check(row) == "looked at"
    row.refresh_from_db()
    assert row.running_version == "1.0.0+2.0" and row.parts["app"]["image"] == "web:1"
    assert drift.check(row) == "as it was"
    return row


def test_a_change_is_contested_and_told_once(app: InfraApp, look: dict[str, ServiceState]) -> None:
    look["app"] = THEIRS
    assert drift.check(app) == "contested"
    assert (app.state, app.contested["ours"], app.contested["theirs"]) == ("contested", "1.0.0+2.0", "1.1.0+2.0")
    text = AlertSent.objects.get().text
    assert "cc-ci had deployed 1.0.0+2.0; now 1.1.0+2.0 runs" in text and "cc-ci infra adopt web" in text
    assert drift.check(app) == "contested"
    assert AlertSent.objects.count() == 1
    assert app.running_version == "1.0.0+2.0", "what cc-ci left there stays known"


def test_a_look_that_was_too_slow_contests_nothing(app: InfraApp, look: dict[str, ServiceState]) -> None:
    look["app"] = THEIRS
    for change in ({"state": "upgrading"}, {"fence": app.fence + 5}, {"owner": "maintainers"}):
        InfraApp.objects.filter(pk=app.pk).update(**change)
        assert drift.check(app) == "changed meanwhile"
        InfraApp.objects.filter(pk=app.pk).update(state="settled", fence=app.fence, owner="reconciled")
        app.refresh_from_db()
    assert not AlertSent.objects.exists()


def test_an_app_of_its_maintainers_may_change(app: InfraApp, look: dict[str, ServiceState]) -> None:
    InfraApp.objects.update(owner="maintainers")
    app.refresh_from_db()
    look["app"] = THEIRS
    assert drift.check(app) == "looked at"
    app.refresh_from_db()
    assert (app.state, app.running_version) == ("settled", "1.1.0+2.0")


def test_adopt_takes_what_runs(app: InfraApp, look: dict[str, ServiceState]) -> None:
    look["app"] = THEIRS
    drift.check(app)
    failed = UpgradeFactory(app=app, state=UpgradeState.ROLLBACK_FAILED)
    assert drift.adopt(app, "alice") == []
    assert (app.state, app.running_version, app.pinned_version, app.contested) == ("settled", "1.1.0+2.0", "1.1.0+2.0", {})
    assert drift.check(app) == "as it was"
    failed.refresh_from_db()
    assert failed.step[MENDED] == "alice"


def test_adopt_refuses_what_cannot_be_a_beginning(
    app: InfraApp, look: dict[str, ServiceState], monkeypatch: pytest.MonkeyPatch
) -> None:
    look["app"] = replace(THEIRS, version="chaos")
    with pytest.raises(Refused, match=r"not a recipe version \(chaos\)"):
        drift.adopt(app, "alice")
    look.clear()
    with pytest.raises(Refused, match="nothing to adopt"):
        drift.adopt(app, "alice")

    def away(app: InfraApp, full: bool = False) -> Seen:
        raise DeployError("tool_failed", "Docker does not answer.")

    monkeypatch.setattr(inspect, "see", away)
    with pytest.raises(Refused, match="Docker does not answer"):
        drift.adopt(app, "alice")


@pytest.mark.parametrize("state", WORKING)
def test_nobody_is_handed_an_app_in_mid_step(app: InfraApp, state: UpgradeState) -> None:
    UpgradeFactory(app=app, state=state)
    for act in (drift.hand_over, drift.adopt):
        with pytest.raises(Refused, match="is running"):
            act(app, "alice")
    Upgrade.objects.all().delete()
    InfraApp.objects.update(state="upgrading")
    app.refresh_from_db()
    with pytest.raises(Refused, match="is running"):
        drift.hand_over(app, "alice")


def test_hand_over_ends_what_waits(app: InfraApp, look: dict[str, ServiceState]) -> None:
    look["app"] = THEIRS
    drift.check(app)
    waiting = UpgradeFactory(app=app, state=UpgradeState.APPROVED)
    before = app.fence
    assert drift.hand_over(app, "alice") == []
    assert (app.owner, app.state, app.contested) == ("maintainers", "settled", {})
    assert app.fence > before, "a late worker is told by it"
    waiting.refresh_from_db()
    assert waiting.state == UpgradeState.FAILED
    with pytest.raises(Refused, match="already"):
        drift.hand_over(app, "alice")


FILE = """\
apps:
  web:                # the page
    recipe: web
    source: /srv/web
    domain: web.example.org
    owner: {owner}
    {more}
"""


def declared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **values: Any) -> Path:
    monkeypatch.setattr(settings.CC_CI, "data_dir", tmp_path / "data")
    path = tmp_path / "infra.yml"
    path.write_text(FILE.format(**values))
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "one"]):
        subprocess.run(["git", "-C", tmp_path, *command], check=True, timeout=20)
    apply(read(path), path)
    return path


def test_the_file_follows(db: None, look: dict[str, ServiceState], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = declared(tmp_path, monkeypatch, owner="reconciled", more="version: 1.0.0+2.0\n    snapshots: none")
    app = InfraApp.objects.get()
    assert InfraFile.objects.get().host == settings.CC_CI.host
    drift.check(app)
    app.refresh_from_db()
    drift.hand_over(app, "alice")
    assert "owner: maintainers" in path.read_text() and "# the page" in path.read_text()
    look["app"] = THEIRS
    assert drift.adopt(app, "alice") == []
    assert "owner: reconciled" in path.read_text() and "version: 1.1.0+2.0" in path.read_text()
    log = subprocess.run(["git", "-C", tmp_path, "log", "--format=%s"], capture_output=True, text=True, timeout=20)
    assert len(log.stdout.splitlines()) == 4 and log.stdout.startswith("Hand web to reconciled")
    assert apply(read(path), path) == []


def test_what_the_file_does_not_allow_is_not_adopted(
    db: None, look: dict[str, ServiceState], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = declared(tmp_path, monkeypatch, owner="maintainers", more="window: ''")
    with pytest.raises(Refused, match="snapshots: none"):
        drift.adopt(InfraApp.objects.get(), "alice")
    assert "owner: maintainers" in path.read_text()
    assert InfraApp.objects.get().owner == "maintainers"
