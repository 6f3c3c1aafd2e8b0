"""The network of the tests' sandbox: doors to the app under its own name, and to the provider lent to the run."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from infra.deployers.context import Context
from infra.deployers.probe import Address
from runs.harness.certificate import Certificate

LOOPBACK = "127.0.0.1"
_PROVIDERS = "127.0.0.2"  # the app may have the same port
CERTIFICATES = "/run/cc-ci/ca.pem"
_SCHEMES = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Origin:
    """The host, port and scheme of a server."""

    scheme: str
    host: str
    port: int
    path: str = ""  #: the path of its URL, without a trailing slash

    @classmethod
    def of(cls, url: str) -> Origin | None:
        """From a URL; None if it is not http(s)."""
        try:
            parts = urlsplit(url)
            port = parts.port or _SCHEMES.get(parts.scheme, 0)
        except ValueError:
            return None
        found = parts.hostname and port and parts.scheme in _SCHEMES
        return cls(parts.scheme, parts.hostname, port, parts.path.rstrip("/")) if found and parts.hostname else None

    @property
    def netloc(self) -> str:
        """As written in a Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _SCHEMES[self.scheme] else f"{host}:{self.port}"


@dataclass(frozen=True)
class Doors:
    """The doors of one sandbox. `provider`: the one that was lent, if any."""

    domain: str
    address: Address | None
    isolated: bool  #: whether the sandbox has its own network
    provider: Origin | None = None

    @classmethod
    def of(cls, context: Context, address: Address | None, isolated: bool) -> Doors:
        """The doors of a run."""
        return cls(context.domain, address, isolated, Origin.of(context.lent.get("OIDC_ISSUER", "")))

    @property
    def hosts(self) -> Sequence[str]:
        """Host names for the first loopback address."""
        return [self.domain] if self.domain else []

    @property
    def places(self) -> Mapping[str, str]:
        """The provider's name and its address in the sandbox."""
        return {} if not self.provider or is_address(self.provider.host) else {self.provider.host: _PROVIDERS}

    @property
    def addresses(self) -> Sequence[str]:
        """The provider's address, if it has no host name."""
        found = self.provider and is_address(self.provider.host) and not ipaddress.ip_address(self.provider.host).is_loopback
        return [self.provider.host] if found and self.provider else []

    @cached_property
    def certificate(self) -> Certificate:
        """The certificate of all doors with TLS."""
        names = [LOOPBACK, *([self.domain] if self.domain else []), *([self.provider.host] if self.provider else [])]
        if self.domain and not is_address(self.domain):
            names.append(f"*.{self.domain}")
        return Certificate.made(list(dict.fromkeys(names)))

    def trust(self, folder: Path) -> Path:
        """Write a file to `folder` with all certificates that the tests trust: the public ones, and the doors' own."""
        path = folder / "ca.pem"
        path.write_bytes(Path(requests.utils.DEFAULT_CA_BUNDLE_PATH).read_bytes() + b"\n" + self.certificate.certificate)
        path.chmod(0o644)
        return path

    def environment(self, trusted: str) -> dict[str, str]:
        """The variables by which Python, requests and curl find that file."""
        return dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"), trusted)

    def config(self) -> list[dict[str, Any]]:
        """The doors in the form that `guest/runner.py` takes."""
        return [*self._to_app(), *self._to_provider()]

    def _to_app(self) -> list[dict[str, Any]]:
        if self.address is None:
            return []
        # By name, on the web ports: only in its own network, and if it has a host name.
        named = self.isolated and self.domain and not is_address(self.domain)
        doors: list[dict[str, Any]] = []
        for scheme, port in _SCHEMES.items():
            door = {"address": LOOPBACK, "ports": [port, 0] if named else [0], "say": {"to": "app", "tls": scheme == "https"}}
            if scheme == self.address.scheme:
                door |= {"url": f"{scheme}://{LOOPBACK}", "named": f"{scheme}://{self.domain}"}
            elif not named or (scheme == "https" and not self.address.https()):
                continue
            doors.append(door)
        return doors

    def _to_provider(self) -> list[dict[str, Any]]:
        if not self.provider or not self.isolated:
            return []
        address = self.places.get(self.provider.host, self.provider.host)
        return [{"address": address, "ports": [self.provider.port], "say": {"to": "oidc"}}]


def is_address(host: str) -> bool:
    """Whether a host is an IP address, not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
