"""The authentication backend of sessions that began with a forge's login."""

from __future__ import annotations

from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.backends import BaseBackend


class ForgeBackend(BaseBackend):
    """Knows no passwords, and gives no permission. Whoever is an operator has to log in as one: whatever becomes of an account at
    a forge, it opens neither the admin nor the pages of the server's own apps.
    """

    def get_user(self, user_id: Any) -> Any:
        rows = get_user_model().objects.filter(pk=user_id, is_active=True, is_staff=False, is_superuser=False)
        return rows.first()
