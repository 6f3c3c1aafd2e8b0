"""Who may only look changes nothing: each action of the admin asks for a right to do it, and lets those with it do it."""

from __future__ import annotations

import pytest
from django.contrib import admin
from django.contrib.auth.models import Permission
from django.test import Client
from django.urls import reverse

from tests.factories import CommentFactory, ForgeFactory, RepositoryFactory

pytestmark = [pytest.mark.django_db, pytest.mark.slow(0.1)]


def actions() -> list[tuple[type, str, object]]:
    found = []
    for model, model_admin in admin.site._registry.items():
        for action in model_admin.actions or []:
            function = getattr(type(model_admin), action) if isinstance(action, str) else action
            found.append((model, function.__name__, function))
    return sorted(found, key=lambda row: (row[0].__name__, row[1]))


# Those of infra lead to a page that asks for the right, and for a word of confirmation: tests/infra has that.
OURS = [row for row in actions() if row[2].__module__.partition(".")[0] in ("enrollment", "runs", "controlplane")]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("model", "name", "action"), OURS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_each_action_asks_for_a_right(model: type, name: str, action: object) -> None:
    assert getattr(action, "allowed_permissions", None)


@pytest.mark.parametrize(
    ("name", "make", "may_look", "may_act"),
    [
        ("poll_now", ForgeFactory, "enrollment.view_forge", "enrollment.change_forge"),
        ("refresh_now", ForgeFactory, "enrollment.view_forge", "enrollment.change_forge"),
        ("refresh_permissions_now", RepositoryFactory, "enrollment.view_repository", "enrollment.change_repository"),
        ("handle_again", CommentFactory, "enrollment.view_comment", "enrollment.change_comment"),
    ],
)
def test_to_look_is_not_to_act(client: Client, django_user_model, name, make, may_look, may_act) -> None:  # type: ignore[no-untyped-def]
    row = make()
    user = django_user_model.objects.create_user("eve", password="x", is_staff=True)
    page = reverse(f"admin:enrollment_{row._meta.model_name}_changelist")
    for right, offered in ((may_look, False), (may_act, True)):
        user.user_permissions.add(Permission.objects.get(codename=right.partition(".")[2], content_type__app_label="enrollment"))
        client.force_login(user)
        text = client.get(page).content.decode()
        assert (f'value="{name}"' in text) is offered
