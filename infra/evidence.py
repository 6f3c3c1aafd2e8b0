"""What is kept of a version that did not do: why, its logs, what the probes saw, and Swarm's own words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from django.utils import timezone

from infra import alerts
from infra.deployers.base import DeployError
from infra.deployers.lasting import LastingDeployer
from infra.models import InfraRelease, Upgrade


def quarantine(upgrade: Upgrade, version: str, why: str) -> None:
    """Not this version again, until there is a newer one or a person lifts it; with all that is known of why."""
    samples = [
        {"at": e.at.isoformat(), "said": e.text, **e.data} for e in upgrade.events.filter(kind="sample").order_by("-id")[:20]
    ]
    evidence = {
        "quarantined": why[:2000],
        "upgrade": upgrade.pk,
        "at": timezone.now().isoformat(),
        "logs": upgrade.facts.get("logs", ""),
        "swarm": upgrade.facts.get("swarm", []),
        "samples": samples,
    }
    for row in InfraRelease.objects.filter(app=upgrade.app, version=version):
        values = {"state": InfraRelease.State.QUARANTINED, "evidence": {**row.evidence, **evidence}, "approved_at": None}
        InfraRelease.objects.filter(pk=row.pk).update(**values)
    alerts.tell("quarantined", upgrade.app, f"{upgrade.app.name} {version}: {why}", key=f"{version}:{upgrade.pk}")


def collect(deployer: LastingDeployer, clean: Callable[[str], str]) -> dict[str, Any]:
    """What the failed version still says for itself: its logs, and Swarm's words. Taken before anything goes.

    `clean` takes secrets out of a text.
    """
    try:
        logs = deployer.logs(lines=50)[-8000:]
        parts = {name: asdict(part) for name, part in deployer.parts().items()}
    except (DeployError, OSError) as error:
        logs, parts = f"They cannot be had: {error}", {}
    words = [f"{name}: {p['update']} {p['message']} {p['problem']}".strip() for name, p in parts.items()]
    return {"logs": clean(logs), "swarm": [clean(text) for text in words]}
