"""The current digest of a registry's tag: one HEAD on the manifest. Docker would fetch it all (and have it counted).

The caller decides which hosts may be asked (`Rules`); connections go to exactly the addresses that were checked. Nothing of a
server's answer is shown except its status: a stranger's registry may have named the server.
"""

from __future__ import annotations

import base64
import http.client
import ipaddress
import json
import re
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from infra.deployers.probe import TimedConnection, unverified

_SECONDS = 5.0
_MOST = 1 << 20
_HUB = "registry-1.docker.io"
#: An image for several platforms is told by its list, as Docker writes it down.
_ACCEPTED = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_PART = re.compile(r'(?<!\w)(\w{1,30})="([^"]{0,1000})"')


class Unasked(Exception):
    """The registry could not be asked, or did not answer; the message says why."""


@dataclass(frozen=True)
class Rules:
    """`refused` says why a host (`name` or `name:port`) with these addresses may not be asked; empty if it may.

    `insecure`: whether Docker connects to it without checking a certificate. `auth`: the text of a Docker `config.json`.
    """

    refused: Callable[[str, Sequence[str]], str]
    insecure: Callable[[str, Sequence[str]], bool]
    auth: str = ""


def digest(image: str, host: str, rules: Rules) -> str:
    """The digest that the registry `host` has for an image's tag. Raises Unasked."""
    repository, tag = _parts(image, host)
    path = f"/v2/{quote(repository)}/manifests/{quote(tag)}"
    login = _login(rules.auth, host)
    answer = _asked("HEAD", host, path, rules, {"Accept": _ACCEPTED})
    if answer.status == 401:
        given = _authorization(answer.challenge, host, repository, login, rules, answer.tls)
        answer = _asked("HEAD", host, path, rules, {"Accept": _ACCEPTED, "Authorization": given})
    if answer.status != 200 or not _DIGEST.fullmatch(answer.digest):
        raise Unasked(f"{host} answered {answer.status}" if answer.status != 200 else f"{host} returned no digest")
    return answer.digest


def _parts(image: str, host: str) -> tuple[str, str]:
    """The repository and the tag of an image."""
    path, colon, tag = image.rpartition(":")
    if not colon or "/" in tag:
        path, tag = image, "latest"
    first, slash, rest = path.partition("/")
    named = slash and ({".", ":"} & set(first) or first == "localhost")
    repository = rest if named else path
    return (f"library/{repository}" if host == "docker.io" and "/" not in repository else repository), tag


@dataclass(frozen=True)
class _Answer:
    status: int
    digest: str
    challenge: str
    body: bytes
    tls: bool


def _asked(method: str, host: str, path: str, rules: Rules, headers: Mapping[str, str]) -> _Answer:
    """A server's answer. One that Docker trusts without a certificate is asked over TLS first, then without, as Docker does."""
    where = _HUB if host == "docker.io" else host
    name, _, number = where.partition(":")
    found = addresses(name)
    if problem := rules.refused(host, found):
        raise Unasked(problem)
    insecure = rules.insecure(host, found)
    error: Exception | None = None
    for tls in (True, False) if insecure else (True,):
        port = int(number) if number.isdecimal() else 443 if tls else 80
        opened = partial(_connected, found, port, name if tls else "", not insecure)
        try:
            with TimedConnection(where, opened, _SECONDS) as connection:
                connection.request(method, path, headers={"User-Agent": "cc-ci", **headers})
                answer = connection.getresponse()
                heads, body = answer.headers, answer.read(_MOST)
                challenge = heads.get("WWW-Authenticate", "")
                return _Answer(answer.status, heads.get("Docker-Content-Digest", ""), challenge, body, tls)
        except (OSError, ValueError, http.client.HTTPException) as failed:
            error = failed
    raise Unasked(f"{host} did not answer ({type(error).__name__})") from error


def addresses(name: str) -> list[str]:
    """The addresses that a host has. Raises Unasked."""
    with suppress(ValueError):
        return [str(ipaddress.ip_address(name))]
    try:
        return list(dict.fromkeys(str(found[4][0]) for found in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)))
    except (OSError, UnicodeError) as error:
        raise Unasked(f"{name} does not resolve to an address") from error


def _connected(addresses: Sequence[str], port: int, server_name: str, checked: bool, seconds: float) -> socket.socket:
    stream = _first(addresses, port, seconds)
    if not server_name:
        return stream
    context = ssl.create_default_context() if checked else unverified()
    try:
        return context.wrap_socket(stream, server_hostname=server_name)
    except OSError:
        stream.close()
        raise


def _first(addresses: Sequence[str], port: int, seconds: float) -> socket.socket:
    error: OSError = OSError("no address")
    for address in addresses[:4]:
        try:
            return socket.create_connection((address, port), timeout=seconds)
        except OSError as failed:
            error = failed
    raise error


def _authorization(challenge: str, host: str, repository: str, login: str, rules: Rules, tls: bool) -> str:
    """The header that a registry requires: our login, or a token of the server that it names. Raises Unasked."""
    kind, _, rest = challenge.partition(" ")
    if kind.lower() == "basic" and login:
        return f"Basic {login}"
    fields = dict(_PART.findall(rest[:2000]))
    if kind.lower() != "bearer" or not (realm := fields.get("realm")):
        raise Unasked(f"{host} requires a login")
    try:
        parts = urlsplit(realm)
    except ValueError as error:
        raise Unasked(f"{host} names an invalid token server") from error
    if parts.scheme not in (("https",) if tls else ("https", "http")) or not parts.hostname:
        raise Unasked(f"{host} names an invalid token server")
    query = {"service": fields.get("service", ""), "scope": f"repository:{repository}:pull"}
    path = f"{parts.path or '/'}?{urlencode({key: value for key, value in query.items() if value})}"
    headers = {"Authorization": f"Basic {login}"} if login else {}
    answer = _asked("GET", parts.netloc.rpartition("@")[2].lower(), path, rules, headers)
    try:
        found: Any = json.loads(answer.body)
        token = str(found.get("token") or found["access_token"])
    except (ValueError, KeyError, AttributeError, RecursionError) as error:
        raise Unasked(f"{host} returned no token ({answer.status})") from error
    if not token.isascii() or not token.isprintable():
        raise Unasked(f"{host} returned an invalid token")
    return f"Bearer {token}"


def _login(auth: str, host: str) -> str:
    """The login for a registry, in the format of Basic; empty without one."""
    for entry in _entries(auth, host):
        with suppress(ValueError, AttributeError, TypeError):
            given = str(entry.get("auth") or "")
            if b":" in base64.b64decode(given, validate=True):
                return given
    return ""


def _entries(auth: str, host: str) -> Iterator[Any]:
    with suppress(ValueError, AttributeError):
        for name, entry in (json.loads(auth or "{}").get("auths") or {}).items():
            known = re.sub(r"^https?://", "", str(name)).partition("/")[0].lower()
            if known == host or (host == "docker.io" and known in ("index.docker.io", _HUB)):
                yield entry
