"""The client for a forge's row. The one place where a kind of forge is chosen, and where its token is revealed."""

from __future__ import annotations

from collections.abc import Callable

from django.conf import settings

from enrollment.budget import Counter, Purpose
from enrollment.forges import gitea_deliveries
from enrollment.forges.base import Deliveries, ForgeClient, Gate
from enrollment.forges.gitea import PAGE, GiteaClient
from enrollment.models import Forge


def _gitea(forge: Forge, gate: Gate | None) -> ForgeClient:
    limit = forge.abilities.get("page_limit", {}).get("value")
    return GiteaClient(
        forge.url,
        forge.reveal_token(),
        timeout=settings.CC_CI.http_timeout,
        user_agent=f"cc-ci/{settings.VERSION} (+{settings.CC_CI.base_url})",
        page_size=min(PAGE, limit) if isinstance(limit, int) else PAGE,
        gate=gate,
    )


#: How a client of each kind of forge is made. Another kind is one file in `forges/` and a line here, and one below where it
#: tells of comments by itself.
KINDS: dict[str, Callable[[Forge, Gate | None], ForgeClient]] = {"gitea": _gitea}

#: What each kind delivers to a webhook.
DELIVERIES: dict[str, Deliveries] = {"gitea": gitea_deliveries}


def client_for(forge: Forge, purpose: Purpose = Purpose.PEOPLE) -> ForgeClient:
    """A client with the forge's token. What it asks counts against the purpose's share of the budget (`enrollment.budget`).

    Raises `controlplane.secrets.SecretUnreadable`.
    """
    # A forge that is not saved yet is only tried out, by a person.
    return KINDS[forge.kind](forge, Counter(forge.pk, purpose) if forge.pk else None)
