"""The API's operations on the server's own apps: for those who may see the pages, and reading only."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client

from controlplane import tokens
from tests.factories import InfraAppFactory, InfraReleaseFactory, UpgradeFactory

pytestmark = [pytest.mark.django_db, pytest.mark.slow(0.1)]


@pytest.fixture
def ask(client: Client) -> Any:
    user = User.objects.create_user("olga", is_staff=True)
    token = tokens.make(user, "monitor", ["infra"])[1]

    def ask(path: str, *permissions: str) -> Any:
        user.user_permissions.set(Permission.objects.filter(codename__in=permissions, content_type__app_label="infra"))
        return client.get(f"/api/infra{path}", headers={"authorization": f"Bearer {token}"})

    return ask


def test_apps_and_upgrades_are_shown_to_those_who_may_see_their_pages(ask: Any) -> None:
    app = InfraAppFactory(name="keycloak")
    InfraReleaseFactory(app=app, version="2.0.0+3.0", rank=9)
    UpgradeFactory(app=app, reason="It rained.")
    UpgradeFactory(app=InfraAppFactory(name="traefik"))
    right = {"/apps": "view_infraapp", f"/apps/{app.pk}": "change_infraapp", "/upgrades": "view_upgrade"}
    for path, permission in right.items():
        others = [other for other in right.values() if other.partition("_")[2] != permission.partition("_")[2]]
        for permissions in ([], others):
            answer = ask(path, *permissions)
            assert answer.status_code == 403 and "olga may not see this" in answer.json()["message"]
        assert ask(path, permission).status_code == 200
    assert [row["name"] for row in ask("/apps", "view_infraapp").json()["items"]] == ["traefik", "keycloak"]
    shown = ask(f"/apps/{app.pk}", "view_infraapp").json()
    assert (shown["running"], shown["newest"]) == ("1.0.0+2.0", "2.0.0+3.0")
    assert shown["held"][0]["version"] == "2.0.0+3.0" and shown["held"][0]["blockers"]
    assert [row["reason"] for row in ask("/upgrades?app=keycloak", "view_upgrade").json()["items"]] == ["It rained."]
    assert ask("/apps/999", "view_infraapp").status_code == 404


def test_no_secret_is_in_what_is_shown(ask: Any) -> None:
    app = InfraAppFactory(env={"PASSWORD": "planted"}, secrets={"db": "env:PLANTED"}, credential="file:/planted")
    UpgradeFactory(app=app, specs={"app": {"Env": ["X=planted"]}}, facts={"x": "planted"}, step={"x": "planted"})
    rights = ("view_infraapp", "view_upgrade")
    for path in ("/apps", f"/apps/{app.pk}", "/upgrades"):
        assert "planted" not in ask(path, *rights).content.decode().lower()
