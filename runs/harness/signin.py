"""The requests that tests may send to the provider lent to their run: those needed to sign in, and nothing else.

Behind the provider's address there may be a proxy with many other hosts, and the realm is one of many. So each request has the
provider as its host, stays within the run's own realm or the static files of its pages, and carries only headers that browsers
and test clients send. Other headers are dropped, so that a browser's new header does not break anybody's tests.
"""

from __future__ import annotations

import re
from dataclasses import replace

from runs.harness.doors import Origin
from runs.harness.relay import Forbidden, Head

_READING = (b"GET", b"HEAD")
_METHODS = (*_READING, b"OPTIONS", b"POST")
_HEADERS = frozenset(
    {
        *("accept", "accept-charset", "accept-encoding", "accept-language", "content-type", "content-length", "content-language"),
        *("transfer-encoding", "cookie", "authorization", "origin", "referer", "user-agent", "cache-control", "pragma", "range"),
        *("if-match", "if-none-match", "if-modified-since", "if-unmodified-since", "if-range", "x-requested-with"),
        *("access-control-request-method", "access-control-request-headers", "upgrade-insecure-requests", "dnt", "priority"),
        *("sec-fetch-dest", "sec-fetch-mode", "sec-fetch-site", "sec-fetch-user", "sec-gpc", "sec-purpose"),
        *("sec-ch-ua", "sec-ch-ua-mobile", "sec-ch-ua-platform", "save-data"),
    }
)
#: An unambiguous path: no parent references, nothing encoded, no parameters, no empty part.
_PATH = re.compile(r"(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._~!$&'()*+,=:@-]+)+/?")
_REALM = "/realms/"
#: Where Keycloak has the static files of its pages, beside its realms.
_FILES = ("/resources/", "/js/")


def to_provider(head: Head, provider: Origin) -> Head:
    """The request to send to the provider. Raises Forbidden."""
    path, (base, realm, _) = head.target.partition(b"?")[0].decode(), provider.path.rpartition(_REALM)
    files = tuple(f"{base}{folder}" for folder in _FILES if realm)
    if head.method not in _METHODS:
        raise Forbidden(f"the provider accepts only {b', '.join(_METHODS).decode()}, not {head.method.decode()}")
    within = path == provider.path or path.startswith(f"{provider.path}/")
    shown = head.method in _READING and path.startswith(files)
    if not _PATH.fullmatch(path) or not (within or shown):
        raise Forbidden(f"tests may access only {' and '.join((provider.path + '/', *files))} of the provider, not {path}")
    kept = head.only(_HEADERS)
    return replace(kept, fields=[(b"Host", provider.netloc.encode()), *kept.fields])
