"""The rules this server should have: from settings, enrolments, and what Docker needs for name resolution."""

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
from infra.deployers.docker.egress import ALLOWS, Allowed, allowed, is_private, parse
from infra.firewall.rules import Rules

DAEMON, RESOLV, SYSTEMD = Path("/etc/docker/daemon.json"), Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf")


def rules(counting: bool = False) -> tuple[Rules, str]:
    """The rules, and why an enrolment's allowance is missing from them (empty: none is)."""
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
    """The upstream DNS servers Docker uses from a container's network: those Docker is configured with, else this host's."""
    with suppress(OSError, ValueError):
        if told := json.loads(DAEMON.read_text()).get("dns"):
            return _addresses(told)
    found = _nameservers(RESOLV)
    # Like Docker: 127.0.0.53 is systemd-resolved, which lists the upstream servers in another file.
    return _addresses(_nameservers(SYSTEMD) if found == ["127.0.0.53"] else found)


def _nameservers(path: Path) -> list[str]:
    with suppress(OSError):
        words = (line.split() for line in path.read_text(errors="replace").splitlines())
        return [line[1] for line in words if len(line) > 1 and line[0] == "nameserver"]
    return []


def _addresses(words: Sequence[object]) -> list[str]:
    """The addresses that a container would query. Loopback addresses are queried from the host and need no rule."""
    found = []
    for word in words:
        with suppress(ValueError):
            address = ipaddress.ip_address(str(word))
            if not address.is_loopback and "%" not in str(word):
                found.append(str(address))
    return sorted(set(found))


def _oidc() -> Iterator[Allowed]:
    """The Keycloak lent to runs, if on this host or in a private range. Resolves its name now."""
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
    """What enrolments allow, and why any of it is missing."""
    try:
        lines: dict[str, list[str]] = registry.ask("allowances", default={})
    except DatabaseError as error:
        why = " ".join(str(error).split()) or type(error).__name__
        return [], f"the enrolments' allowances: the database cannot be read ({why})"
    problem = ""
    for name, own in lines.items():
        for line in own:
            if line.startswith(ALLOWS):
                try:
                    parse(line.removeprefix(ALLOWS))
                except ValueError as error:
                    problem = f"the enrolment of {name} has an invalid allowance: {error}"
    return [entries for own in lines.values() if (entries := allowed(own))], problem
