"""The rows of the server's own apps: what the database itself refuses, and the states of an upgrade."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.contrib import admin
from django.db import IntegrityError, transaction
from django.test import Client
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from infra.lifecycle import MOVES, claim, move, note
from infra.models import InfraApp, InfraFile, InfraRelease, Snapshot, Upgrade, UpgradeEvent
from infra.states import CHANGING, FINAL, WAITING, WORKING, UpgradeState
from tests.factories import InfraAppFactory, InfraReleaseFactory, SnapshotFactory, UpgradeFactory

pytestmark = [pytest.mark.django_db, pytest.mark.both_databases]
S = UpgradeState
THE_GOOD_WAY = ["approve", "snapshot", "deploy", "verify", "soak", "succeed"]


def test_the_good_way_with_its_trail() -> None:
    upgrade = UpgradeFactory()
    for event in THE_GOOD_WAY:
        assert move(upgrade, event, f"did {event}")
    assert upgrade.state == S.SUCCEEDED
    assert upgrade.started_at <= upgrade.state_at == upgrade.finished_at
    trail = list(upgrade.events.values_list("kind", "text"))
    assert trail == [
        ("approved", "did approve"),
        ("snapshotting", "did snapshot"),
        ("deploying", "did deploy"),
        ("verifying", "did verify"),
        ("soaking", "did soak"),
        ("succeeded", "did succeed"),
    ]


@pytest.mark.parametrize("state", UpgradeState)
@pytest.mark.parametrize("event", MOVES)
def test_a_move_is_done_from_its_states_only(state: UpgradeState, event: str) -> None:
    upgrade = UpgradeFactory(state=state)
    sources, target = MOVES[event]
    allowed = state in sources
    assert move(upgrade, event) is allowed
    assert upgrade.state == (target if allowed else state)
    assert upgrade.events.count() == allowed
    assert (upgrade.finished_at is not None) == (allowed and target in FINAL)


def test_what_the_table_says_about_ends() -> None:
    sources = {state for froms, _ in MOVES.values() for state in froms}
    targets = {target for _, target in MOVES.values()}
    assert sources == set(S) - set(FINAL), "an end has no way out, all else has one"
    assert targets == set(S) - {S.PLANNED}
    assert MOVES["fail"][0] == WAITING, "failed means that nothing was changed"
    assert MOVES["roll_back"][0] == CHANGING
    assert set(WORKING) | set(WAITING) | set(FINAL) == set(S)


@given(events=st.lists(st.sampled_from(list(MOVES)), max_size=12))
def test_whatever_is_tried_what_changed_something_ends_as_new_or_rolled_back(events: list[str]) -> None:
    """On the table alone: once snapshotting, an upgrade can never be called *failed before anything was changed*."""
    state, seen = S.PLANNED, []
    for event in events:
        sources, target = MOVES[event]
        if state in sources:
            state = target
            seen.append(state)
    if S.SNAPSHOTTING in seen:
        assert S.FAILED not in seen
    if S.SUCCEEDED in seen:
        assert {S.SNAPSHOTTING, S.DEPLOYING, S.VERIFYING, S.SOAKING} < set(seen)


def test_only_one_worker_moves() -> None:
    first = UpgradeFactory(state=S.APPROVED)
    second = Upgrade.objects.get(pk=first.pk)
    assert move(first, "snapshot")
    assert not move(second, "snapshot")
    assert second.state == S.SNAPSHOTTING, "it is refreshed, so that the loser sees what is"
    assert UpgradeEvent.objects.count() == 1


def test_two_upgrades_never_work_on_one_app() -> None:
    app = InfraAppFactory()
    first, second = UpgradeFactory(app=app, state=S.APPROVED), UpgradeFactory(app=app, state=S.APPROVED, to_version="1.0.2+2.0")
    other = UpgradeFactory(state=S.APPROVED)
    assert move(first, "snapshot")
    assert not move(second, "snapshot"), "the database refuses it"
    assert second.state == S.APPROVED
    assert not second.events.exists()
    assert move(other, "snapshot"), "another app is another matter"
    assert move(first, "roll_back")
    assert not move(second, "snapshot"), "a rollback is work, too"
    assert move(first, "rolled_back")
    assert move(second, "snapshot")


def test_other_errors_of_the_database_are_not_hidden() -> None:
    upgrade = UpgradeFactory()
    with pytest.raises(IntegrityError), transaction.atomic():
        move(upgrade, "approve", reason=None)
    upgrade.refresh_from_db()
    assert upgrade.state == S.PLANNED
    assert not upgrade.events.exists(), "no trail of a move that was not"


def test_a_late_worker_moves_nothing() -> None:
    upgrade = UpgradeFactory(state=S.DEPLOYING)
    assert claim(upgrade, 7)
    late = Upgrade.objects.get(pk=upgrade.pk)
    assert claim(upgrade, 9)
    assert not move(late, "verify", fence=7)
    assert not claim(late, 7), "a lease that was taken over does not come back"
    assert move(upgrade, "verify", fence=9)
    note(upgrade, "probe", "200", ms=12)
    event = upgrade.events.last()
    assert (event.kind, event.text, event.data, event.fence) == ("probe", "200", {"ms": 12}, 9)


def test_one_app_per_stack_and_server() -> None:
    InfraAppFactory(stack="web", server="a")
    InfraAppFactory(stack="web", server="b")
    with pytest.raises(IntegrityError), transaction.atomic():
        InfraAppFactory(stack="web", server="a")


def test_a_version_once_per_app() -> None:
    release = InfraReleaseFactory(version="1.0.1+2.0")
    InfraReleaseFactory(version="1.0.1+2.0")
    with pytest.raises(IntegrityError), transaction.atomic():
        InfraReleaseFactory(app=release.app, version="1.0.1+2.0")


def test_names() -> None:
    app = InfraAppFactory(name="web")
    assert str(InfraReleaseFactory(app=app, version="1.0.1+2.0")) == "web 1.0.1+2.0"
    assert str(UpgradeFactory(app=app)) == "web 1.0.0+2.0 → 1.0.1+2.0"
    assert str(SnapshotFactory(app=app)).startswith("web 1.0.0+2.0 of ")
    assert InfraAppFactory(owner="maintainers").ours is False
    assert InfraAppFactory(declared=False).ours is False
    assert app.ours


MODELS = [InfraApp, InfraFile, InfraRelease, Snapshot, Upgrade, UpgradeEvent]


@pytest.fixture
def rows() -> None:
    app = InfraAppFactory()
    reason = {"text": "Notes.", "lift": "Read.", "passages": [{"line": 1, "text": "a <b> by hand", "start": 6, "end": 13}]}
    InfraReleaseFactory(app=app, reasons=[reason], state="held")
    upgrade = UpgradeFactory(app=app)
    move(upgrade, "approve", "waits")
    SnapshotFactory(app=app, upgrade=upgrade)
    InfraFile.objects.create(path="/srv/infra.yml", applied_at=timezone.now() - timedelta(days=1))


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("model", MODELS)
def test_the_admin_shows_all_and_lets_nobody_touch_it(admin_client: Client, model: type) -> None:
    place = f"/admin/infra/{model.__name__.lower()}"
    assert admin.site.is_registered(model)
    assert admin_client.get(f"{place}/").status_code == 200
    row = model._default_manager.first()  # type: ignore[attr-defined]
    page = admin_client.get(f"{place}/{row.pk}/change/")
    assert page.status_code == 200
    assert admin_client.get(f"{place}/add/").status_code == 403
    assert admin_client.post(f"{place}/{row.pk}/delete/", {"post": "yes"}).status_code == 403
    if model is InfraRelease:
        assert "a &lt;b&gt; <mark>by hand</mark>" in page.content.decode()
