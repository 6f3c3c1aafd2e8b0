"""Evidence kept about a failed version: why it failed, its logs, what the probes saw, and Swarm's own messages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from django.utils import timezone

from infra import alerts
from infra.deployers.errors import DeployError
from infra.deployers.swarm.persistent import PersistentDeployer
from infra.lifecycle import move_release
from infra.models import Upgrade


def quarantine(upgrade: Upgrade, version: str, why: str) -> None:
    """Do not try this version again until a newer one appears or a person releases it; store the evidence."""
    samples = [
        {"at": e.at.isoformat(), "said": e.text, **e.data} for e in upgrade.events.filter(kind="sample").order_by("-id")[:20]
    ]
    evidence = {
        "quarantined": why[:2000],
        "upgrade": upgrade.pk,
        "at": timezone.now().isoformat(),
        "logs": upgrade.found.logs or "",
        "swarm": upgrade.found.swarm,
        "samples": samples,
    }
    if row := upgrade.app.release(version):
        move_release(row, "quarantine", evidence={**row.evidence, **evidence}, approved_at=None)
    alerts.tell("quarantined", upgrade.app, f"{upgrade.app.name} {version}: {why}", key=f"{version}:{upgrade.pk}")


def collect(deployer: PersistentDeployer, clean: Callable[[str], str]) -> dict[str, Any]:
    """The failed version's logs and Swarm's messages. Collected before anything is removed.

    `clean` removes secrets from a text.
    """
    try:
        logs = deployer.logs(lines=50)[-8000:]
        parts = {name: asdict(part) for name, part in deployer.parts().items()}
    except (DeployError, OSError) as error:
        logs, parts = f"Logs are not available: {error}", {}
    words = [f"{name}: {p['update']} {p['message']} {p['problem']}".strip() for name, p in parts.items()]
    return {"logs": clean(logs), "swarm": [clean(text) for text in words]}
