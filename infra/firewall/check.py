"""doctor's check of what runs can reach: the loaded rules, and an actual test from a container."""

from __future__ import annotations

import ipaddress
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
from django.conf import settings
from django.db import connection

from controlplane.registry import Finding, Level
from infra.deployers.docker.api import get, swarm_problem
from infra.deployers.docker.egress import GATEWAY, PREFIX, Allowed, is_private
from infra.deployers.errors import DeployError
from infra.firewall import desired, nft, probe
from infra.firewall.probe import Target
from infra.firewall.rules import Rules

NAME = "firewall"
APPLY = "cc-ci firewall --apply"
_METADATA = "169.254.169.254"
_MOST_PORTS, _MOST_NEIGHBOURS = 64, 8
_ARP, _ROUTES = Path("/proc/net/arp"), Path("/proc/net/route")


def check_firewall() -> Iterator[Finding]:
    """Severity when runs reach too much: a warning until rules were requested, an error when loaded rules don't work."""
    if settings.CC_CI.deployer == "process":
        yield Finding(NAME, "ok", "not needed: CC_CI_DEPLOYER is process")
        return
    if not shutil.which("docker") or swarm_problem():
        yield Finding(NAME, "ok", "not checked: this host has no Swarm to deploy to")
        return
    rules, problem = desired.rules()
    if problem:
        yield Finding(NAME, "warning", problem, f"fix it in the admin, then run: {APPLY}")
    applied = True
    try:
        finding = _rules(rules)
        applied = not finding
        if finding:
            yield finding
    except nft.FirewallError as error:
        # Not root: the test from a container shows as much.
        if os.geteuid() == 0:
            applied = False
            text = f"{error} There are no firewall rules for runs."
            yield Finding(NAME, "warning", text, f"{error.fix} && {APPLY}")
    yield from _tried(rules, applied)


def _rules(rules: Rules) -> Finding | None:
    """What is wrong with the loaded rules."""
    loaded = nft.loaded()
    if not loaded:
        return Finding(NAME, "warning", "no firewall rules are loaded: runs can reach this host and private networks", APPLY)
    if loaded.counting:
        counts = ", ".join(f"{packets} packets {where}" for where, packets in sorted(loaded.counts.items()) if where)
        return Finding(NAME, "warning", f"the firewall rules only count and reject nothing: {counts}", APPLY)
    if loaded.text != nft.listing(rules):
        return Finding(NAME, "error", "the loaded rules differ from what settings and enrolments require", APPLY)
    return None


def _tried(rules: Rules, applied: bool) -> Iterator[Finding]:
    if not settings.CC_CI.firewall_probe:
        if applied:
            yield Finding(NAME, "ok", "the rules are loaded; not tested from a container because CC_CI_FIREWALL_PROBE is false")
        return
    tries = [target for target in targets() if not _is_allowed(rules, target)]
    try:
        several = get("/info")["Swarm"]["Nodes"] != 1
        found = probe.reached(tries, several)
    except DeployError as error:
        yield Finding(NAME, "warning", f"could not test what a run's container can reach: {error}", f"docker info && {APPLY}")
        return
    if several and not settings.CC_CI.firewall_everything:
        text = "the Swarm has several nodes, so runs leave over docker_gwbridge, like everything else"
        yield Finding(NAME, "warning", text, f"CC_CI_FIREWALL_EVERYTHING=true, and on each node: {APPLY}")
    if found:
        level: Level = "error" if applied else "warning"
        words = "; ".join(_in_words(found))
        fix = "nft list table inet cc_ci" if applied and os.geteuid() == 0 else APPLY
        yield Finding(NAME, level, f"a run's container can reach {words}", fix)
    elif applied:
        what = f"ports of this host, {_METADATA}, private addresses"
        yield Finding(NAME, "ok", f"a run's container reached none of {len(tries)} targets ({what})")


def _in_words(found: list[Target]) -> Iterator[str]:
    by_name: dict[str, list[str]] = {}
    for target in found:
        by_name.setdefault(target.name, []).append(str(target.port))
    for name, ports in by_name.items():
        numbers = ", ".join(dict.fromkeys(ports))
        yield f"{name}, port{'s' if len(ports) > 1 else ''} {numbers}"


def _is_allowed(rules: Rules, target: Target) -> bool:
    def holds(entry: Allowed) -> bool:
        return not entry.port or (entry.port, entry.protocol) == (target.port, "tcp")

    address = ipaddress.ip_address(target.address)
    return any(address in ipaddress.ip_network(entry.network) and holds(entry) for entry, _ in rules.allowed)


def targets() -> list[Target]:
    """Targets worth trying: listening ports of this host, metadata, the database and known private addresses."""
    metadata = Target(f"the metadata address {_METADATA}", _METADATA, 80)
    return list(dict.fromkeys((*_own_ports(), *_database(), metadata, *_others())))


def _own_ports() -> Iterator[Target]:
    """Listening ports of this host, each at one address that a container could reach."""
    own = dict(_addresses())
    anywhere = own.get(GATEWAY) or next(iter(own.values()), "")
    listening = set()
    for one in psutil.net_connections(kind="tcp"):
        if one.status == psutil.CONN_LISTEN and one.laddr:
            address = ipaddress.ip_address(str(one.laddr[0]).partition("%")[0])
            if not address.is_loopback:
                listening.add((anywhere if address.is_unspecified else str(address), int(one.laddr[1])))
    for where, port in sorted(listening)[:_MOST_PORTS]:
        if where:
            yield Target("this host", where, port, closed_counts=False)


def _addresses() -> Iterator[tuple[str, str]]:
    """IPv4 addresses of this host by interface."""
    for name, addresses in psutil.net_if_addrs().items():
        for address in addresses:
            if address.family == socket.AF_INET and not ipaddress.ip_address(address.address).is_loopback:
                yield name, str(address.address)


def _database() -> Iterator[Target]:
    values = connection.settings_dict
    host, port = str(values.get("HOST") or ""), int(values.get("PORT") or 5432)
    if connection.vendor != "postgresql" or not host or host.startswith("/"):
        return
    with suppress(OSError):
        for *_, found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            if not ipaddress.ip_address(str(found[0]).partition("%")[0]).is_loopback:
                yield Target("the database", str(found[0]), port, closed_counts=False)


def _others() -> Iterator[Target]:
    """This host's gateway and neighbours with private addresses. Scans nothing."""
    found: list[str] = []
    with suppress(OSError, ValueError):
        for line in _ROUTES.read_text().splitlines()[1:]:
            _, destination, gateway, *_ = line.split()
            if int(destination, 16) == 0 and int(gateway, 16):
                found.append(socket.inet_ntoa(int(gateway, 16).to_bytes(4, "little")))
    with suppress(OSError, ValueError):
        for line in _ARP.read_text().splitlines()[1:]:
            address, _, flags, *_, device = line.split()
            if int(flags, 16) & 2 and not device.startswith(("docker", PREFIX, "br-", "veth")):
                found.append(address)
    for address in list(dict.fromkeys(found))[:_MOST_NEIGHBOURS]:
        if is_private(address):
            yield Target(f"the private address {address}", address, 80)
