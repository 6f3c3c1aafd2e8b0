"""People of a forge who have logged in here."""

from __future__ import annotations

from django.conf import settings
from django.db import models

from enrollment.models.core import Forge


class ForgeAccount(models.Model):
    """Which person at a forge an account here belongs to: by the forge's user id, since names and addresses change hands.

    What the person may see and do is asked of the forge, and not kept here.
    """

    forge = models.ForeignKey(Forge, on_delete=models.CASCADE, related_name="accounts")
    forge_user_id = models.BigIntegerField()
    login = models.CharField(max_length=255, help_text="The name there at the last login.")
    user = models.OneToOneField(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="forge_account")

    class Meta:
        ordering = ["login"]
        constraints = [models.UniqueConstraint(fields=["forge", "forge_user_id"], name="one_account_per_person")]

    def __str__(self) -> str:
        return f"{self.login} at {self.forge}"
