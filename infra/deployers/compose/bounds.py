"""Resource limits of a run's services: memory, CPU, processes, logs, and how many services there may be. Pure.

Services run images that a stranger chose. A lower limit in the recipe wins. Reservations are dropped: they would be lost to
everyone else even while unused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from infra.deployers.compose.recipe import Recipe, mapping
from infra.deployers.context import Bounds

_SIZE = re.compile(r"[0-9]{1,15}")
_DECIMAL = re.compile(r"[0-9]{1,9}(?:\.[0-9]{0,9})?|\.[0-9]{1,9}", re.ASCII)
_DURATION = re.compile(r"(?:[0-9]{1,12}(?:\.[0-9]{0,9})?(?:ns|us|µs|ms|s|m|h))+")
_PART = re.compile(r"(?<![0-9.])([0-9.]+)(ns|us|µs|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
#: A health check that is run more often is a load of its own.
_CHECK_SECONDS = 1.0
_LOG_FILES = 2
#: By which an enrolment's allowance gives a service raw packets.
_RAW = frozenset(("NET_RAW", "CAP_NET_RAW", "ALL", "CAP_ALL"))
#: What is ours to say of a log, and `tag`: a template, which the daemon itself fills in, for drivers that send logs away.
_LOG_OPTIONS = ("max-size", "max-file", "tag")


def too_many(recipe: Recipe, bounds: Bounds) -> Iterator[str]:
    """What a recipe has more of than a run may have, with the setting for each limit."""
    document = recipe.document
    counts = {kind: len(mapping(document.get(kind))) for kind in ("services", "secrets", "configs", "networks")}
    counts["tasks"] = sum(_replicas(service) for service in recipe.services.values())
    for kind, count in counts.items():
        most = getattr(bounds, kind)
        if count > most:
            yield f"{count} {kind}, more than the {most} allowed per run on this server (CC_CI_MOST_{kind.upper()})"


def _replicas(service: Mapping[str, Any]) -> int:
    replicas = mapping(service.get("deploy")).get("replicas")
    return replicas if isinstance(replicas, int) else 1


def keep_within(document: dict[str, Any], bounds: Bounds) -> None:
    """Set the limits of each service of a document."""
    for service in document["services"].values():
        resources = service.setdefault("deploy", {}).setdefault("resources", {})
        resources.pop("reservations", None)
        limits = resources.setdefault("limits", {})
        limits["memory"] = str(min(_bytes(limits.get("memory")) or bounds.memory_mb << 20, bounds.memory_mb << 20))
        limits["cpus"] = f"{_cpus(limits.get('cpus'), bounds.cpus):g}"
        pids = int(limits.get("pids") or 0)  # 0 and -1 are Docker's words for no limit
        limits["pids"] = pids if 0 < pids < bounds.processes else bounds.processes
        _log(service, bounds)
        # Whoever writes packets of their own fills the kernel's tables, and has the proxy forward them to others' networks.
        if not _RAW & {str(name).upper() for name in service.get("cap_add") or []}:
            service["cap_drop"] = list(dict.fromkeys((*(service.get("cap_drop") or []), "NET_RAW")))
        check = mapping(service.get("healthcheck"))
        for key in ("interval", "start_interval"):
            if 0 < _seconds(check.get(key)) < _CHECK_SECONDS:
                check[key] = f"{_CHECK_SECONDS:g}s"


def _log(service: dict[str, Any], bounds: Bounds) -> None:
    """A log of limited size: the daemon's default may keep everything, or send it elsewhere."""
    logging = mapping(service.get("logging"))
    driver = logging.get("driver") or "json-file"
    service["logging"] = {"driver": driver}
    if driver != "none":
        options = {key: text for key, text in mapping(logging.get("options")).items() if key not in _LOG_OPTIONS}
        size = max(bounds.log_mb // _LOG_FILES, 1)
        service["logging"]["options"] = {**options, "max-size": f"{size}m", "max-file": str(_LOG_FILES)}


def _bytes(text: Any) -> int:
    """A size in bytes: Docker's reader prints each without a unit. 0 for none, and for anything else."""
    return int(text) if _SIZE.fullmatch(str(text)) else 0


def _cpus(text: Any, most: float) -> float:
    """A number of CPUs in plain notation; anything else that Docker accepts (`3/2`, `1e1`) counts as none."""
    asked = float(text) if _DECIMAL.fullmatch(str(text)) else 0.0
    return min(asked or most, most)


def _seconds(text: Any) -> float:
    if not isinstance(text, str) or not _DURATION.fullmatch(text):
        return 0.0
    return sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))
