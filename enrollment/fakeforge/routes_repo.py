"""Routes for one repository: itself, its git contents, commit statuses, collaborators and hooks."""

from __future__ import annotations

import base64
import binascii
from urllib.parse import quote

from enrollment.fakeforge import git
from enrollment.fakeforge.api import Call, no_route, route
from enrollment.fakeforge.faults import Response
from enrollment.fakeforge.model import Repo
from enrollment.fakeforge.render import Json, Renderer
from enrollment.fakeforge.routes_issues import ONE_REPO

STATES = ("pending", "success", "error", "failure", "warning")


@route("GET", ONE_REPO, "repository")
def one_repo(call: Call) -> Response:
    """A repository, with the user's permissions in it."""
    return call.answer(call.render.repo(call.repo()))


# What git holds


@route("GET", ONE_REPO + "/branches/{branch*}", "repository")
def one_branch(call: Call) -> Response:
    """A branch."""
    repo, name = call.repo(), call.names["branch"]
    if not git.resolve(call.forge.folder(repo), f"refs/heads/{name}"):
        raise call.missing()
    return call.answer(call.render.branch(repo, name))


@route("GET", ONE_REPO + "/tags", "repository")
def tags(call: Call) -> Response:
    """The tags, newest first; an annotated tag's id differs from its commit's."""
    repo = call.repo()
    form = "%1f".join(("%(refname:strip=2)", "%(objectname)", "%(*objectname)", "%(creatordate:iso-strict)", "%(subject)"))
    listing = ("for-each-ref", "--sort=-creatordate", f"--format={form}", "refs/tags")
    lines = git.text(call.forge.folder(repo), *listing).split("\n")
    counted = call.forge.features.all_lists_counted
    return call.page([line for line in lines if line], lambda line: call.render.tag(repo, line), counted=counted)


def _blob(call: Call, repo: Repo, path: str) -> bytes:
    sha = _commit(call, repo, call.query.get("ref") or "main")
    try:
        return git.git(call.forge.folder(repo), "cat-file", "blob", f"{sha}:{path}")
    except git.GitError:
        raise call.missing(f"object does not exist [id: , rel_path: {path}]", message="GetContentsOrList") from None


def _commit(call: Call, repo: Repo, ref: str) -> str:
    sha = git.resolve(call.forge.folder(repo), ref)
    if not sha:
        raise call.missing(f"object does not exist [id: {ref}, rel_path: ]")
    return sha


@route("GET", ONE_REPO + "/contents", "repository")
@route("GET", ONE_REPO + "/contents/{path*}", "repository")
def contents(call: Call) -> Response:
    """A file with its content, or the list of a folder."""
    repo, path = call.repo(), call.names.get("path", "").strip("/")
    ref = call.query.get("ref") or "main"
    sha = _commit(call, repo, ref)
    listing = ("ls-tree", "-l", "-z", sha, *([path] if path else []))
    entries = git.text(call.forge.folder(repo), *listing).split("\0")[:-1]
    if not entries:
        raise call.missing(f"object does not exist [id: , rel_path: {path}]", message="GetContentsOrList")
    if path and entries[0].split()[1] == "tree":
        inside = git.text(call.forge.folder(repo), "ls-tree", "-l", "-z", sha, f"{path}/").split("\0")[:-1]
        return call.answer([_entry(call.render, repo, ref, line) for line in inside])
    if not path:
        return call.answer([_entry(call.render, repo, ref, line) for line in entries])
    content = base64.b64encode(_blob(call, repo, path)).decode()
    return call.answer({**_entry(call.render, repo, ref, entries[0]), "encoding": "base64", "content": content})


@route("PUT", ONE_REPO + "/contents/{path*}", "repository", signed_in=True)
def change_contents(call: Call) -> Response:
    """Change a file in one commit, on a branch or on a new one created from it. Requires the file's current id."""
    repo, path, body = call.repo(2), call.names["path"].strip("/"), call.body()
    folder = call.forge.folder(repo)
    branch = body.get("branch") or "main"
    target = body.get("new_branch") or branch
    try:
        content = base64.b64decode(call.text("content"), validate=True)
    except (binascii.Error, ValueError):
        raise call.error(422, "illegal base64 data") from None
    sha = git.resolve(folder, f"refs/heads/{branch}")
    if not sha:
        raise call.error(404, f"branch does not exist [name: {branch}]")
    if target != branch and git.resolve(folder, f"refs/heads/{target}"):
        raise call.error(422, f"branch already exists [name: {target}]")
    _blob(call, repo, path)
    present = git.text(folder, "rev-parse", f"{sha}:{path}")
    if call.text("sha") != present:
        raise call.error(422, f"sha does not match [given: {body['sha']}, expected: {present}]")
    if target != branch:
        git.git(folder, "update-ref", f"refs/heads/{target}", sha)
    message = body.get("message") or f"Update '{path}'"
    done = call.forge.push(repo, target, {path: content}, message, call.signed_in())
    line = git.text(folder, "ls-tree", "-l", done, path)
    commit = call.render.commit(repo, git.commits(folder, done, 1)[0])
    return call.answer({"content": _entry(call.render, repo, target, line), "commit": commit, "verification": None})


def _entry(render: Renderer, repo: Repo, ref: str, line: str) -> Json:
    details, path = line.split("\t", 1)
    _, kind, sha, size = details.split()
    api = f"{render.base}/api/v1/repos/{repo.full_name}"
    url = f"{api}/contents/{quote(path)}?ref={quote(ref)}"
    blob = f"{api}/git/{kind}s/{sha}"
    page = f"{render.base}/{repo.full_name}/src/branch/{ref}/{quote(path)}"
    return {
        "name": path.rsplit("/", 1)[-1],
        "path": path,
        "sha": sha,
        "type": "file" if kind == "blob" else "dir",
        "size": int(size) if size.isdigit() else 0,
        "encoding": None,
        "content": None,
        "target": None,
        "url": url,
        "html_url": page,
        "git_url": blob,
        "download_url": f"{api}/raw/{quote(path)}?ref={quote(ref)}" if kind == "blob" else None,
        "submodule_git_url": None,
        "_links": {"self": url, "git": blob, "html": page},
    }


# Commit statuses


@route("POST", ONE_REPO + "/statuses/{ref}", "repository", signed_in=True)
def add_status(call: Call) -> Response:
    """Add a status to a commit. Old versions let readers do so."""
    repo = call.repo(1 if call.forge.features.readers_set_status else 2)
    sha = _commit(call, repo, call.names["ref"])
    body = call.body()
    state = call.text("state")
    if state not in STATES:
        raise call.error(422, f"no such state: {state}")
    status = call.forge.set_status(
        repo,
        sha,
        state,
        body.get("context") or "default",
        user=call.signed_in(),
        target_url=body.get("target_url") or "",
        description=body.get("description") or "",
    )
    return call.answer(call.render.status(status), 201)


# Collaborators


@route("GET", ONE_REPO + "/collaborators/{user}", "repository", signed_in=True)
def is_collaborator(call: Call) -> Response:
    """204 for a collaborator; team members are not collaborators."""
    repo, user = _for_collaborators(call), call.person()
    if any(row.repo_id == repo.id and row.user_id == user.id for row in call.forge.tables.collaborators.values()):
        return Response(204)
    raise call.missing()


def _for_collaborators(call: Call) -> Repo:
    repo = call.repo()
    if not call.forge.features.collaborators_for_readers and call.forge.level(call.user, repo) < 3:
        raise call.missing()
    return repo


@route("GET", ONE_REPO + "/collaborators/{user}/permission", "repository")
def permission(call: Call) -> Response:
    """A user's permission here: for admins of the repository and of the site, and for the user."""
    if not call.forge.features.permission_route:
        return no_route()
    asker, repo, user = call.signed_in(), call.repo(), call.person()
    if asker.id != user.id and call.forge.level(asker, repo) < 3:
        raise call.error(403, "only admins may ask for others' permissions")
    name = ("none", "read", "write", "admin", "owner")[call.forge.level(user, repo)]
    return call.answer({"permission": name, "role_name": "", "user": call.render.user(user, seen=True)})
