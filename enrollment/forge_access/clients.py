"""The kind of a forge's row, and the client for it: the only place that reveals the forge's token for its API."""

from __future__ import annotations

from django.conf import settings

from enrollment.forge_access.rate_limit import Purpose, RateLimiter
from enrollment.forges.base import ForgeClient, ForgeKind
from enrollment.forges.kinds import KINDS
from enrollment.models import Forge


def kind_of(forge: Forge) -> ForgeKind:
    return KINDS[forge.kind]


def client_for(forge: Forge, purpose: Purpose = Purpose.PEOPLE) -> ForgeClient:
    """A client with the forge's token. Its requests count against the purpose's share of the budget (see `rate_limit`).

    Raises `controlplane.secrets.SecretUnreadable`.
    """
    limit = forge.abilities.get("page_limit", {}).get("value")
    return kind_of(forge).client(
        forge.url,
        forge.reveal_token(),
        timeout=settings.CC_CI.http_timeout,
        user_agent=f"cc-ci/{settings.VERSION} (+{settings.CC_CI.base_url})",
        page_limit=limit if isinstance(limit, int) else None,
        # An unsaved forge is only being tried out by a person.
        gate=rate_limiter(forge.pk, purpose) if forge.pk else None,
    )


def rate_limiter(forge_id: int, purpose: Purpose) -> RateLimiter:
    """The rate limiter in front of a client's requests. To tell a forge that is down from one bad page, it asks the forge who
    we are.
    """

    def whoami() -> object:
        forge = Forge.objects.filter(pk=forge_id).first()
        return forge and client_for(forge, purpose).whoami()

    return RateLimiter(forge_id, purpose, whoami)
