"""A small OIDC provider behind what cc-ci asks of a Keycloak: the admin API, and a login that is a real one.

The admin API is held to its documented answers: a bearer token that runs out, 201 with Location and no body, 409 with
`errorMessage` on a name that is taken, 404 with `error`, 204 on delete. For clients there are discovery, the authorization code
flow with a login form, tokens with RS256 signatures, their keys (JWKS), and userinfo.
"""

from __future__ import annotations

import base64
import html
import http.server
import json
import re
import secrets
import ssl
import threading
import time
import urllib.parse
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa


@dataclass
class Keycloak:
    url: str = ""
    user: str = "admin"
    password: str = "not-a-real-secret"
    realms: dict[str, dict[str, Any]] = field(default_factory=lambda: {"master": {"realm": "master", "enabled": True}})
    clients: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    users: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    #: Answers to give instead, once each: "POST /admin/realms" -> [(503, {})].
    instead: dict[str, list[tuple[int, Any]]] = field(default_factory=dict)
    taken: int = 409  #: Keycloak 26.2.4 says 400
    hosts: list[str] = field(default_factory=list)  #: the Host header of each request
    codes: dict[str, dict[str, str]] = field(default_factory=dict)  #: what was agreed on for each code
    bearers: dict[str, tuple[str, str]] = field(default_factory=dict)  #: access tokens: realm and user
    key: rsa.RSAPrivateKey = field(default_factory=lambda: rsa.generate_private_key(65537, 2048))

    def signed(self, claims: dict[str, Any]) -> str:
        """A JSON Web Token."""
        parts = [_base64(json.dumps(part).encode()) for part in ({"alg": "RS256", "typ": "JWT", "kid": "one"}, claims)]
        signature = self.key.sign(".".join(parts).encode(), padding.PKCS1v15(), hashes.SHA256())
        return ".".join([*parts, _base64(signature)])

    def keys(self) -> dict[str, Any]:
        """The key with which tokens are checked."""
        numbers = self.key.public_key().public_numbers()
        shown = {
            name: _base64(number.to_bytes((number.bit_length() + 7) // 8))
            for name, number in (("n", numbers.n), ("e", numbers.e))
        }
        return {"keys": [{"kty": "RSA", "use": "sig", "alg": "RS256", "kid": "one", **shown}]}


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


_FORM = """<!doctype html><title>Sign in to {realm}</title><form method="post" action="{action}">
<label>Username <input name="username"></label><label>Password <input name="password" type="password"></label>
<button>Sign In</button></form><p>{problem}</p>"""


class _Handler(http.server.BaseHTTPRequestHandler):
    keycloak: Keycloak
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def do_DELETE(self) -> None:
        self.answer()

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urllib.parse.urlsplit(self.path).path
        self.keycloak.asked.append(f"{self.command} {path}")
        self.keycloak.hosts.append(self.headers["Host"])
        if waiting := self.keycloak.instead.get(f"{self.command} {path}"):
            status, said = waiting.pop(0)
            if status == 0:  # hang up
                self.close_connection = True
                return
            self.say(status, said)
        elif match := re.fullmatch(r"/realms/([^/]+)/protocol/openid-connect/token", path):
            self.token(match[1], dict(urllib.parse.parse_qsl(body.decode())))
        elif match := re.fullmatch(r"/realms/([^/]+)/\.well-known/openid-configuration", path):
            if match[1] in self.keycloak.realms:
                self.say(200, self.discovery(f"{self.keycloak.url}/realms/{match[1]}"))
            else:
                self.say(404, {"error": "Realm does not exist"})
        elif match := re.fullmatch(r"/realms/(ccci-[^/]+)/protocol/openid-connect/(auth|certs|userinfo)", path):
            query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query))
            {"auth": self.auth, "certs": self.certs, "userinfo": self.userinfo}[match[2]](match[1], query, body)
        elif not path.startswith("/admin/"):
            self.say(404, {"error": "Unable to find matching target resource method"})
        elif self.headers.get("Authorization", "").removeprefix("Bearer ") not in self.keycloak.tokens:
            self.say(401, {"error": "HTTP 401 Unauthorized"})
        else:
            self.admin(path.removeprefix("/admin/").split("/"), json.loads(body) if body else {})

    @staticmethod
    def discovery(issuer: str) -> dict[str, Any]:
        endpoint = f"{issuer}/protocol/openid-connect"
        return {
            "issuer": issuer,
            "authorization_endpoint": f"{endpoint}/auth",
            "token_endpoint": f"{endpoint}/token",
            "userinfo_endpoint": f"{endpoint}/userinfo",
            "jwks_uri": f"{endpoint}/certs",
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
        }

    def auth(self, realm: str, query: dict[str, str], body: bytes) -> None:
        """The login form, and what becomes of it."""
        here = self.keycloak
        client = here.clients[realm].get(query.get("client_id", ""))
        uri = query.get("redirect_uri", "")
        if not client or not any(fnmatch(uri, allowed) for allowed in client["redirectUris"]):
            self.page(400, f"<p>Invalid parameter: {'redirect_uri' if client else 'client_id'}</p>")
            return
        if query.get("response_type") != "code" or "openid" not in query.get("scope", "").split():
            self.page(400, "<p>Invalid parameter: response_type or scope</p>")
            return
        form = dict(urllib.parse.parse_qsl(body.decode()))
        user = here.users[realm].get(form.get("username", ""))
        if self.command != "POST" or not user or form.get("password") not in [c["value"] for c in user["credentials"]]:
            problem = "Invalid username or password." if self.command == "POST" else ""
            self.page(200, _FORM.format(realm=realm, action=html.escape(self.path), problem=problem))
            return
        code = secrets.token_urlsafe(16)
        here.codes[code] = {"realm": realm, "client": client["clientId"], "uri": uri, "user": user["username"]}
        here.codes[code]["nonce"] = query.get("nonce", "")
        back = urllib.parse.urlencode({"code": code, "state": query.get("state", "")})
        self.send_response(302)
        self.send_header("Location", f"{uri}{'&' if '?' in uri else '?'}{back}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def certs(self, realm: str, query: dict[str, str], body: bytes) -> None:
        self.say(200, self.keycloak.keys())

    def userinfo(self, realm: str, query: dict[str, str], body: bytes) -> None:
        found = self.keycloak.bearers.get(self.headers.get("Authorization", "").removeprefix("Bearer "))
        if not found or found[0] != realm:
            self.say(401, {"error": "invalid_token"})
            return
        user = self.keycloak.users[realm][found[1]]
        self.say(200, {"sub": found[1], "preferred_username": found[1], "email": user["email"]})

    def redeem(self, realm: str, client: dict[str, Any], form: dict[str, str]) -> None:
        """A code for tokens, once."""
        here = self.keycloak
        agreed = here.codes.pop(form.get("code", ""), {})
        if (agreed.get("realm"), agreed.get("client"), agreed.get("uri")) != (
            realm,
            client["clientId"],
            form.get("redirect_uri"),
        ):
            self.say(400, {"error": "invalid_grant", "error_description": "Code not valid"})
            return
        access, now = secrets.token_urlsafe(16), int(time.time())
        here.bearers[access] = (realm, agreed["user"])
        claims = {
            "iss": f"{here.url}/realms/{realm}",
            "aud": client["clientId"],
            "sub": agreed["user"],
            "iat": now,
            "exp": now + 60,
        }
        claims |= {"preferred_username": agreed["user"], **({"nonce": agreed["nonce"]} if agreed["nonce"] else {})}
        self.say(200, {"access_token": access, "id_token": here.signed(claims), "expires_in": 60, "token_type": "Bearer"})

    def page(self, status: int, text: str) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def token(self, realm: str, form: dict[str, str]) -> None:
        here = self.keycloak
        if realm not in here.realms:
            self.say(404, {"error": "Realm does not exist"})
            return
        if realm == "master":
            right = (form.get("client_id"), form.get("username"), form.get("password")) == ("admin-cli", here.user, here.password)
        else:
            client = here.clients[realm].get(form.get("client_id", ""))
            if not client or client["secret"] != form.get("client_secret"):
                self.say(
                    401, {"error": "unauthorized_client", "error_description": "Invalid client or Invalid client credentials"}
                )
                return
            if form.get("grant_type") == "authorization_code":
                self.redeem(realm, client, form)
                return
            user = here.users[realm].get(form.get("username", ""))
            right = bool(user and form.get("password") in [c["value"] for c in user["credentials"] if not c["temporary"]])
        if form.get("grant_type") != "password" or not right:
            self.say(401, {"error": "invalid_grant", "error_description": "Invalid user credentials"})
            return
        token = secrets.token_hex(16)
        if realm == "master":
            here.tokens.add(token)
        self.say(200, {"access_token": token, "expires_in": 60, "token_type": "Bearer"})

    def admin(self, path: list[str], body: dict[str, Any]) -> None:
        here = self.keycloak
        if path == ["realms"]:
            if self.command == "GET":
                self.say(200, list(here.realms.values()))
            elif body["realm"] in here.realms:
                self.say(here.taken, {"errorMessage": f"Realm {body['realm']} already exists"})
            else:
                here.realms[body["realm"]] = {"id": str(uuid.uuid4()), **body}
                here.clients[body["realm"]], here.users[body["realm"]] = {}, {}
                self.say(201, location=f"{here.url}/admin/realms/{body['realm']}")
            return
        name = path[1]
        if name not in here.realms:
            self.say(404, {"error": "Realm not found."})
        elif len(path) == 2 and self.command == "GET":
            self.say(200, here.realms[name])
        elif len(path) == 2:
            del here.realms[name], here.clients[name], here.users[name]
            self.say(204)
        elif path[2] == "clients":
            self.add(here.clients[name], body["clientId"], body, f"Client {body['clientId']} already exists")
        elif path[2] == "users":
            self.add(here.users[name], body["username"], body, "User exists with same username")

    def add(self, there: dict[str, dict[str, Any]], name: str, body: dict[str, Any], conflict: str) -> None:
        if name in there:
            self.say(409, {"errorMessage": conflict})
            return
        there[name] = body
        self.say(201, location=f"{self.keycloak.url}{self.path}/{uuid.uuid4()}")

    def say(self, status: int, body: Any = None, location: str = "") -> None:
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        if location:
            self.send_header("Location", location)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def keycloak(host: str = "127.0.0.1", bind: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> Iterator[Keycloak]:
    """Serve one as long as the block lasts. `host` is its name in URLs, `bind` the address on which it listens."""
    handler = type("Handler", (_Handler,), {"keycloak": Keycloak()})
    server = http.server.ThreadingHTTPServer((bind, 0), handler)
    server.daemon_threads = True
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    handler.keycloak.url = f"http{'s' if tls else ''}://{host}:{server.server_address[1]}"  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield handler.keycloak  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
