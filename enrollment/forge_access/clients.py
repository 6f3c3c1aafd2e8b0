"""The kind of a forge's row, and the client for it: the only place that reveals the forge's token for its API."""

from __future__ import annotations

from django.conf import settings

from enrollment.forge_access.rate_limit import Purpose, RateLimiter
from enrollment.forges.base import Ask, ForgeClient, ForgeError, ForgeKind
from enrollment.forges.kinds import KINDS
from enrollment.models import Forge


def user_agent() -> str:
    """How we introduce ourselves to forges."""
    return f"cc-ci/{settings.VERSION} (+{settings.CC_CI.base_url})"


def kind_of(forge: Forge) -> ForgeKind:
    return KINDS[forge.kind]


def client_for(forge: Forge, purpose: Purpose = Purpose.PEOPLE) -> ForgeClient:
    """A client with the forge's token. Its requests count against the purpose's share of the budget (see `rate_limit`).

    Raises `controlplane.secrets.SecretUnreadable`.
    """
    # An unsaved forge is only being tried out by a person.
    return _client(forge, forge.reveal_token(), rate_limiter(forge.pk, purpose) if forge.pk else None)


def client_of(forge: Forge, token: str) -> ForgeClient:
    """A client with the token of a person who has logged in with the forge."""
    return _client(forge, token, visitors_limiter(forge.pk))


def _client(forge: Forge, token: str, gate: RateLimiter | None) -> ForgeClient:
    limit = forge.abilities.get("page_limit", {}).get("value")
    return kind_of(forge).client(
        forge.url,
        token,
        timeout=settings.CC_CI.http_timeout,
        user_agent=user_agent(),
        page_limit=limit if isinstance(limit, int) else None,
        gate=gate,
    )


def rate_limiter(forge_id: int, purpose: Purpose) -> RateLimiter:
    """The rate limiter in front of a client's requests. To tell a forge that is down from one bad page, it asks the forge who
    we are.
    """

    def whoami() -> object:
        forge = Forge.objects.filter(pk=forge_id).first()
        return forge and client_for(forge, purpose).whoami()

    return RateLimiter(forge_id, purpose, whoami)


class _VisitorsLimiter(RateLimiter):
    """Within our budget, and held back when the forge is down. What the forge answers to somebody else's token says nothing of
    how it treats ours: a person who is told to wait must not make all of cc-ci wait.
    """

    def _note(self, ask: Ask, error: ForgeError | None) -> None:
        """Record nothing."""


def visitors_limiter(forge_id: int) -> RateLimiter:
    """The rate limiter in front of requests in the name of a person who logs in, or has logged in."""
    return _VisitorsLimiter(forge_id, Purpose.PEOPLE, lambda: None)
