"""One owner for each state: the tables of apps and releases, and who may update their rows."""

from __future__ import annotations

import ast

import pytest
from django.conf import settings
from django.test import Client

from infra.lifecycle import APP_MOVES, RELEASE_MOVES, move_app, move_release
from infra.models import InfraApp, InfraRelease, Upgrade
from infra.upgrade_records import Facts, Request
from tests.factories import InfraAppFactory, InfraReleaseFactory, UpgradeFactory

#: Models whose rows are updated where they are used: they have no states.
STATELESS = {"AlertSent", "InfraFile", "Snapshot"}


def updates(source: str) -> list[str]:
    """What each UPDATE by the ORM begins with. Dictionaries and hashes are updated with an argument without a name."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        name = node.func.attr
        if name in ("save", "bulk_update", "update_or_create") or (name == "update" and node.keywords):
            root: ast.AST = node.func
            while isinstance(root, ast.Attribute | ast.Call):
                root = root.value if isinstance(root, ast.Attribute) else root.func
            found.append(root.id if isinstance(root, ast.Name) else ast.dump(root))
    return found


def test_nobody_else_updates_an_app_a_release_or_an_upgrade() -> None:
    assert updates("InfraApp.objects.filter(pk=1).update(state='settled')\nrows.update(**values)\nrow.save()\nd.update({})") == [
        "InfraApp",
        "rows",
        "row",
    ]
    infra = settings.BASE_DIR / "infra"
    files = [file for file in infra.rglob("*.py") if not {"migrations", "deployers"} & set(file.parts)]
    wrong = {str(file.relative_to(infra)): set(updates(file.read_text())) - STATELESS for file in files}
    assert {name for name, roots in wrong.items() if roots} == {"lifecycle.py"}


@pytest.mark.django_db
@pytest.mark.parametrize("state", InfraApp.State)
@pytest.mark.parametrize("event", APP_MOVES)
def test_an_app_moves_from_its_states_only(state: str, event: str) -> None:
    app = InfraAppFactory(state=state)
    sources, target, _ = APP_MOVES[event]
    stale = InfraApp.objects.get()
    assert move_app(app, event) is (state in sources)
    assert (app.state, app.fence) == ((target, 1) if state in sources else (state, 0))
    if state in sources:
        assert not move_app(stale, event), "whoever read it before is late"
        assert InfraApp.objects.get().fence == 1


@pytest.mark.django_db
@pytest.mark.parametrize("event", [event for event in APP_MOVES if event != "adopt"])
def test_an_app_of_its_maintainers_is_only_adopted(event: str) -> None:
    sources = APP_MOVES[event][0]
    assert not move_app(InfraAppFactory(state=sources[0], owner="maintainers"), event)


@pytest.mark.django_db
@pytest.mark.parametrize("state", InfraRelease.State)
@pytest.mark.parametrize("event", RELEASE_MOVES)
def test_a_release_moves_from_its_states_only(state: str, event: str) -> None:
    release = InfraReleaseFactory(state=state)
    sources, target = RELEASE_MOVES[event]
    assert move_release(release, event) is (state in sources)
    assert release.state == (target if state in sources else state)


def test_records_that_earlier_versions_wrote_are_read() -> None:
    assert Request.from_json({"kind": "deploy", "data": None, "gone": 1}) == Request(kind="deploy")
    assert Request(kind="snapshot", soak=0).as_json() == {"kind": "snapshot", "soak": 0}
    facts = {"commits": {"old": "a", "new": "b"}, "settled_after": 3.5, "volumes": [{"name": "v"}], "logs": ""}
    assert Facts.from_json(facts).as_json() == facts


@pytest.mark.django_db
def test_an_upgrade_in_a_state_that_is_gone_is_shown(admin_client: Client) -> None:
    upgrade = UpgradeFactory()
    Upgrade.objects.update(state="held")
    for page in (upgrade.get_absolute_url(), "/infra/", "/admin/infra/upgrade/", f"/admin/infra/upgrade/{upgrade.pk}/change/"):
        assert admin_client.get(page).status_code == 200, page
