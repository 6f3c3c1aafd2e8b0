"""A fake of what cc-ci asks of a Keycloak, on loopback: tokens, realms, clients, users, discovery.

Held to the Admin REST API's documented answers: a bearer token that runs out, 201 with Location and no body, 409 with
`errorMessage` on a name that is taken, 404 with `error`, 204 on delete.
"""

from __future__ import annotations

import http.server
import json
import re
import secrets
import threading
import urllib.parse
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


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
                self.say(200, {"issuer": f"{self.keycloak.url}/realms/{match[1]}"})
            else:
                self.say(404, {"error": "Realm does not exist"})
        elif not path.startswith("/admin/"):
            self.say(404, {"error": "Unable to find matching target resource method"})
        elif self.headers.get("Authorization", "").removeprefix("Bearer ") not in self.keycloak.tokens:
            self.say(401, {"error": "HTTP 401 Unauthorized"})
        else:
            self.admin(path.removeprefix("/admin/").split("/"), json.loads(body) if body else {})

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
def keycloak() -> Iterator[Keycloak]:
    """Serve one as long as the block lasts."""
    handler = type("Handler", (_Handler,), {"keycloak": Keycloak()})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    handler.keycloak.url = f"http://127.0.0.1:{server.server_address[1]}"  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield handler.keycloak  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
