"""Recorded service specs, rewritten for the current Swarm: names stay the same, ids do not. Pure."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from infra.deployers.docker.cli import LABEL_DEPLOYMENT

_FILES = (("Configs", "Config"), ("Secrets", "Secret"))
#: What Docker numbers by itself; a network that is made again gets numbers of its own.
_NUMBERED = "com.docker.network.driver.overlay.vxlanid_list"


@dataclass(frozen=True)
class Ids:
    """What exists on the Swarm now: ids by name."""

    networks: Mapping[str, str] = field(default_factory=dict)
    configs: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)


def networks_of(spec: Mapping[str, Any]) -> set[str]:
    """The ids of the networks that a spec asks for."""
    return {str(network.get("Target", "")) for network in _networks(spec)}


def _networks(spec: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    yield from (spec.get("TaskTemplate") or {}).get("Networks") or []
    yield from spec.get("Networks") or []  # where they stood before Docker 1.13


def missing(spec: Mapping[str, Any], names: Mapping[str, str], now: Ids) -> list[str]:
    """What a recorded spec needs and no longer exists, such as `config app_v1`.

    `names`: the networks' names at that time, by their ids at that time.
    """
    wanted = {names.get(target, target) for target in networks_of(spec)}
    found = [f"network {name}" for name in sorted(wanted - set(now.networks))]
    container = (spec.get("TaskTemplate") or {}).get("ContainerSpec") or {}
    for plural, kind in _FILES:
        there = now.configs if kind == "Config" else now.secrets
        used = {str(file[f"{kind}Name"]) for file in container.get(plural) or [] if file.get(f"{kind}Name")}
        found += [f"{kind.lower()} {name}" for name in sorted(used - set(there))]
    return found


def of_now(spec: Mapping[str, Any], names: Mapping[str, str], now: Ids, mark: str) -> dict[str, Any]:
    """A recorded spec in a form that the Swarm accepts now, with the mark of the current deployment.

    Nothing of it may be `missing`.
    """
    new: dict[str, Any] = copy.deepcopy(dict(spec))
    labels = {key: value for key, value in (new.get("Labels") or {}).items() if key != LABEL_DEPLOYMENT}
    new["Labels"] = {**labels, LABEL_DEPLOYMENT: mark} if mark else labels
    for network in _networks(new):
        target = str(network.get("Target", ""))
        network["Target"] = now.networks[names.get(target, target)]
    container = (new.get("TaskTemplate") or {}).get("ContainerSpec") or {}
    for plural, kind in _FILES:
        there = now.configs if kind == "Config" else now.secrets
        for file in container.get(plural) or []:
            if file.get(f"{kind}Name"):
                file[f"{kind}ID"] = there[str(file[f"{kind}Name"])]
    return new


def network(inspected: Mapping[str, Any]) -> dict[str, Any]:
    """How a network was created, from what Docker reports of it: a body for `/networks/create`."""
    options = {key: value for key, value in (inspected.get("Options") or {}).items() if key != _NUMBERED}
    pools = (inspected.get("IPAM") or {}).get("Config") or []
    return {
        "Name": inspected["Name"],
        "CheckDuplicate": True,
        "Driver": inspected.get("Driver") or "overlay",
        "Internal": bool(inspected.get("Internal")),
        "Attachable": bool(inspected.get("Attachable")),
        "EnableIPv6": bool(inspected.get("EnableIPv6")),
        "Labels": inspected.get("Labels") or {},
        "Options": options,
        "IPAM": {"Driver": (inspected.get("IPAM") or {}).get("Driver") or "default", "Config": pools},
    }
