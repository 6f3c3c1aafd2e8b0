"""The rules that this server should have: from settings, enrolments, and what Docker needs to resolve names."""

from __future__ import annotations

import ipaddress
import json
import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import psutil
from django.conf import settings
from django.db import DatabaseError

from controlplane.registry import registry
from infra.deployers.egress import ALLOWS, Allowed, allowed, is_private, parse
from infra.firewall.rules import Rules

DAEMON, RESOLV, SYSTEMD = Path("/etc/docker/daemon.json"), Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf")


def rules(counting: bool = False) -> tuple[Rules, str]:
    """The rules, and why some enrolment's allowance is not among them (empty: all are)."""
    found: dict[Allowed, str] = {}
    names = [Allowed(str(ipaddress.ip_network(address)), 53, protocol) for address in resolvers() for protocol in ("tcp", "udp")]
    for why, entries in (
        ("CC_CI_FIREWALL_ALLOW", [parse(text) for text in settings.CC_CI.firewall_allow]),
        ("DNS", names),
        ("CC_CI_OIDC_URL", list(_oidc())),
    ):
        for entry in entries:
            found.setdefault(entry, why)
    recipes, problem = _recipes()
    return Rules(sorted(found.items()), recipes, settings.CC_CI.firewall_everything, counting), problem


def resolvers() -> list[str]:
    """Whom Docker's own DNS server asks, out of a container's network: what Docker was told to, else what this machine asks."""
    with suppress(OSError, ValueError):
        if told := json.loads(DAEMON.read_text()).get("dns"):
            return _addresses(told)
    found = _nameservers(RESOLV)
    # Docker does the same: 127.0.0.53 is systemd's own, which has the others in another file.
    return _addresses(_nameservers(SYSTEMD) if found == ["127.0.0.53"] else found)


def _nameservers(path: Path) -> list[str]:
    with suppress(OSError):
        words = (line.split() for line in path.read_text(errors="replace").splitlines())
        return [line[1] for line in words if len(line) > 1 and line[0] == "nameserver"]
    return []


def _addresses(words: Sequence[object]) -> list[str]:
    """The addresses among them that a container could ask. A loopback address is asked from this machine, without rules."""
    found = []
    for word in words:
        with suppress(ValueError):
            address = ipaddress.ip_address(str(word))
            if not address.is_loopback and "%" not in str(word):
                found.append(str(address))
    return sorted(set(found))


def _oidc() -> Iterator[Allowed]:
    """The Keycloak that is lent to runs, where it is on this machine or in a private range; its name is resolved now."""
    parts = urlsplit(settings.CC_CI.oidc_url)
    if not parts.hostname:
        return
    port = parts.port or (443 if parts.scheme == "https" else 80)
    own = {address.address for addresses in psutil.net_if_addrs().values() for address in addresses}
    with suppress(OSError):
        for *_, address in socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM):
            if str(address[0]) in own or is_private(str(address[0])):
                yield Allowed(str(ipaddress.ip_network(address[0])), port, "tcp")


def _recipes() -> tuple[list[list[Allowed]], str]:
    """What enrolments allow, and why some of it is missing."""
    try:
        lines: dict[str, list[str]] = registry.ask("allowances", default={})
    except DatabaseError as error:
        why = " ".join(str(error).split()) or type(error).__name__
        return [], f"the database cannot be read, so what enrolments allow is missing: {why}"
    problem = ""
    for name, own in lines.items():
        for line in own:
            if line.startswith(ALLOWS):
                try:
                    parse(line.removeprefix(ALLOWS))
                except ValueError as error:
                    problem = f"the enrolment of {name} has an allowance that cannot be read: {error}"
    return [entries for own in lines.values() if (entries := allowed(own))], problem
