"""Clone, fetch and push over HTTP, by passing the requests to git's own `http-backend`."""

from __future__ import annotations

import gzip
import re
import subprocess
from pathlib import Path

from enrollment.fakeforge import git
from enrollment.fakeforge.api import credentials
from enrollment.fakeforge.faults import Request, Response
from enrollment.fakeforge.model import Repo, User
from enrollment.fakeforge.store import Forge

PATH = re.compile(r"/([^/]+)/([^/]+?)(?:\.git)?(/info/refs|/git-upload-pack|/git-receive-pack|/HEAD|/objects/.+)")


def handle(forge: Forge, request: Request) -> Response | None:
    """Respond to a git client's request; None if it is not one.

    Reading a public repository needs nothing; otherwise a token is the password of basic auth (with any user name), or
    comes as `Authorization: token`. Pushing needs write permission, and updates the branch's pull requests; a push to
    refs/for/… needs only read permission, and becomes a pull request.
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
    push = _Push(_body(request)) if match[3] == "/git-receive-pack" else None
    for_review = forge.features.agit and user is not None and (push is None or push.for_review)
    if level < (2 if pushing and not for_review else 1):
        return Response(403, b"You may not write here.\n") if user else Response(401, b"", _challenge(None))
    if push and user and push.refs and for_review:
        with forge.lock:
            return _review(forge, repo, push, user, _backend(forge, repo, request, match[3], user))
    answer = _backend(forge, repo, request, match[3], user)
    if push and user:
        with forge.lock:
            forge.pushed(repo, user)
    return answer


class _Push:
    """A push request: the commits, the refs to update, and its options."""

    def __init__(self, body: bytes) -> None:
        rest = body
        commands, rest = _lines(rest)
        first, _, self.capabilities = (commands[0] if commands else b"").partition(b"\0")
        words = [line.split() for line in (first, *commands[1:]) if line]
        self.refs = {ref.decode(): new.decode() for _, new, ref in words}
        self.options = dict(_option(line) for line in (_lines(rest)[0] if b"push-options" in self.capabilities else []))

    @property
    def for_review(self) -> bool:
        """Whether it only pushes to refs/for/…. (A client may also push nothing to find out whether it may push.)"""
        return all(ref.startswith("refs/for/") for ref in self.refs)

    def report(self, refused: dict[str, str]) -> bytes:
        """The response to the client, in the format it requested."""
        lines = [f"ng {ref} {refused[ref]}" if ref in refused else f"ok {ref}" for ref in self.refs]
        report = b"".join(_line(f"{line}\n".encode()) for line in ("unpack ok", *lines)) + b"0000"
        return _line(b"\1" + report) + b"0000" if b"side-band-64k" in self.capabilities else report


def _lines(data: bytes) -> tuple[list[bytes], bytes]:
    """The lines of git's protocol up to the next flush packet, and the rest."""
    lines = []
    while len(data) >= 4 and (size := int(data[:4], 16)) >= 4:
        lines.append(data[4:size].rstrip(b"\n"))
        data = data[size:]
    return lines, data[4:]


def _line(data: bytes) -> bytes:
    return b"%04x%s" % (len(data) + 4, data)


def _option(line: bytes) -> tuple[str, str]:
    name, _, value = line.decode().partition("=")
    return name, value


def _review(forge: Forge, repo: Repo, push: _Push, user: User, answer: Response) -> Response:
    """Turn refs pushed to refs/for/… into pull requests; such refs are not kept."""
    refused: dict[str, str] = {}
    folder = forge.folder(repo)
    for ref, sha in push.refs.items():
        if git.resolve(folder, ref) != sha:
            return answer  # git itself refused it
        git.git(folder, "update-ref", "-d", ref)
        base, topic = _target(folder, ref.removeprefix("refs/for/"))
        options = push.options
        try:
            if not base or not (topic := topic or options.get("topic", "")):
                raise git.GitError("topic-branch is not set" if base else "base-branch does not exist")
            texts = {"title": options.get("title", ""), "body": options.get("description", "")}
            forced = "force-push" in options and options["force-push"] != "false"
            forge.push_for_review(repo, user, topic, sha, base_branch=base, force=forced, **texts)
        except git.GitError as error:
            refused[ref] = str(error)
    return Response(200, push.report(refused), answer.headers)


def _target(folder: Path, name: str) -> tuple[str, str]:
    """The target branch and topic of refs/for/BRANCH/TOPIC, either of which may contain slashes."""
    parts = name.split("/")
    for count in (len(parts), *range(1, len(parts))):
        branch = "/".join(parts[:count])
        if git.resolve(folder, f"refs/heads/{branch}"):
            return branch, "/".join(parts[count:])
    return "", ""


def _body(request: Request) -> bytes:
    return gzip.decompress(request.body) if request.header("Content-Encoding") == "gzip" else request.body


def _find(forge: Forge, owner: str, name: str) -> Repo | None:
    try:
        return forge.repo(f"{owner}/{name}")
    except LookupError:
        return forge.tables.repos.get(forge.redirect_of(owner, name))


def _challenge(user: User | None) -> dict[str, str]:
    return {} if user else {"WWW-Authenticate": 'Basic realm="sandbox"'}


def _backend(forge: Forge, repo: Repo, request: Request, path: str, user: User | None) -> Response:
    body = _body(request)
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
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "receive.advertisePushOptions",
        "GIT_CONFIG_VALUE_0": "true",
    }
    done = subprocess.run(["git", "http-backend"], input=body, capture_output=True, env=environment)
    head, _, content = done.stdout.partition(b"\r\n\r\n")
    if done.returncode and not head:
        return Response(500, done.stderr)
    headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if ": " in line)
    status = int(headers.pop("Status", "200").split()[0])
    return Response(status, content, headers)
