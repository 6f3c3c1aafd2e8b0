"""Clone, fetch and push over HTTP, by passing the requests to git's own `http-backend`."""

from __future__ import annotations

import gzip
import re
import subprocess

from enrollment.fakeforge import git
from enrollment.fakeforge.api import credentials
from enrollment.fakeforge.faults import Request, Response
from enrollment.fakeforge.model import Repo, User
from enrollment.fakeforge.store import Forge

PATH = re.compile(r"/([^/]+)/([^/]+?)(?:\.git)?(/info/refs|/git-upload-pack|/git-receive-pack|/HEAD|/objects/.+)")


def handle(forge: Forge, request: Request) -> Response | None:
    """Respond to a git client's request; None if it is not one.

    Reading a public repository needs nothing; otherwise a token is the password of basic auth (with any user name), or
    comes as `Authorization: token`. Pushing needs write permission, and updates the branch's pull requests.
    """
    match = PATH.fullmatch(request.path)
    if not match:
        return None
    pushing = match[3] == "/git-receive-pack" or "service=git-receive-pack" in request.query
    secret = credentials(request)
    with forge.lock:
        token = forge.token(secret) if secret else None
        user = forge.tables.users[token.user_id] if token else None
        request.user = user.login if user else ""
        repo = _find(forge, match[1], match[2])
        level = forge.level(user, repo) if repo else 0
    if repo is None or (level < 1 and user) or (secret and not user):
        # Reject wrong credentials here; missing ones are requested below.
        return Response(404 if repo is None or user else 401, b"Not found.\n" if user else b"", _challenge(user))
    if level < (2 if pushing else 1):
        return Response(403, b"You may not write here.\n") if user else Response(401, b"", _challenge(None))
    answer = _backend(forge, repo, request, match[3], user)
    if match[3] == "/git-receive-pack" and user:
        with forge.lock:
            forge.pushed(repo, user)
    return answer


def _find(forge: Forge, owner: str, name: str) -> Repo | None:
    try:
        return forge.repo(f"{owner}/{name}")
    except LookupError:
        return forge.tables.repos.get(forge.redirect_of(owner, name))


def _challenge(user: User | None) -> dict[str, str]:
    return {} if user else {"WWW-Authenticate": 'Basic realm="sandbox"'}


def _backend(forge: Forge, repo: Repo, request: Request, path: str, user: User | None) -> Response:
    body = gzip.decompress(request.body) if request.header("Content-Encoding") == "gzip" else request.body
    folder = forge.folder(repo)
    environment = git.environment(folder.parent) | {
        "GIT_PROJECT_ROOT": str(folder.parent),
        "GIT_HTTP_EXPORT_ALL": "1",
        "PATH_INFO": f"/{folder.name}{path}",
        "REQUEST_METHOD": request.method,
        "QUERY_STRING": request.query,
        "CONTENT_TYPE": request.header("Content-Type"),
        "CONTENT_LENGTH": str(len(body)),
        "GIT_PROTOCOL": request.header("Git-Protocol"),
        "REMOTE_ADDR": "127.0.0.1",
        "REMOTE_USER": user.login if user else "",
    }
    done = subprocess.run(["git", "http-backend"], input=body, capture_output=True, env=environment)
    head, _, content = done.stdout.partition(b"\r\n\r\n")
    if done.returncode and not head:
        return Response(500, done.stderr)
    headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if ": " in line)
    status = int(headers.pop("Status", "200").split()[0])
    return Response(status, content, headers)
