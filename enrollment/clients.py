"""The client for a forge's row. The one place where a kind of forge is chosen, and where its token is revealed."""

from __future__ import annotations

from django.conf import settings

from enrollment.forges.base import ForgeClient
from enrollment.forges.gitea import GiteaClient
from enrollment.models import Forge


def client_for(forge: Forge) -> ForgeClient:
    """A client with the forge's token. Raises `controlplane.secrets.SecretUnreadable`."""
    return GiteaClient(
        forge.url,
        forge.reveal_token(),
        timeout=settings.CC_CI.http_timeout,
        user_agent=f"cc-ci/{settings.VERSION} (+{settings.CC_CI.base_url})",
    )
