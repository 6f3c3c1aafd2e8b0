"""Every captured answer of a real Gitea against what the fake forge answers in the same situation, as that version."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from enrollment.fakeforge import Forge, Server, serve

DATA = Path(__file__).parents[2] / "data"
CAPTURED = DATA / "gitea" / "responses"
#: Where answers of other versions are (see tests/real/capture.py), and as which version the fake forge should give them.
FOLDERS = {"1.15": CAPTURED, "1.26": DATA / "gitea-1.26" / "responses"}

# Who asked, when it was not the bot; and what was sent.
ASKER = {
    "bad_token": "nobody",
    "hook_created": "forgeadmin",
    "hook_patched_config_only": "forgeadmin",
    "hooks_as_admin": "forgeadmin",
    "repository_as_admin": "forgeadmin",
    "status_created": "forgeadmin",
}
URL = "http://ci.example.org/hooks/gitea"
CONFIG = {"url": URL, "content_type": "json"}
SENT: dict[str, dict[str, Any]] = {
    "comment_created": {"body": "Queued."},
    "hook_created": {
        "type": "gitea",
        "active": True,
        "config": CONFIG,
        "events": ["issue_comment", "pull_request_comment"],
    },
    "hook_patched_config_only": {"config": CONFIG},
    "reaction_created": {"content": "eyes"},
    "status_created": {
        "state": "pending",
        "context": "cc-ci",
        "target_url": "https://ci.example.org/runs/1",
        "description": "queued",
    },
}
# Values that depend on when and in which order the two worlds were made. Their JSON types are still compared.
VARYING = {"id", "repo_id", "created", "created_at", "updated_at", "size", "watchers_count", "comments"}
# The real server counted these wrongly in one repository and rightly in the other.
VARYING |= {"open_issues_count", "version"}
# Gitea 1.26 has other words for errors, other pictures, the settings of its own server, and forks without issues.
NEWER = {"message", "avatar_url", "website", "email", "ssh_url", "assignees", "internal_tracker"}
NEWER |= {"has_wiki", "has_issues", "has_projects"}
HEADERS = ("Content-Type", "Link", "X-Total-Count", "Access-Control-Expose-Headers")


def make_world(forge: Forge) -> Forge:
    """The captured world: three recipes with four pull requests, one of them from a fork."""
    forge.add_user("forgeadmin", admin=True)
    for login in ("bot", "alice", "mallory"):
        forge.add_user(login)
    forge.add_org("recipes", "forgeadmin")
    forge.add_member("recipes", "bot", "read")
    forge.add_member("recipes", "alice", "write")
    for name in ("matrix-synapse", "custom-html", "keycloak"):
        forge.add_repo("recipes", name, topics=["cc-ci"] if name == "keycloak" else [])
    fork = forge.fork("recipes/matrix-synapse", "mallory")
    forge.push(fork, "evil", {"a": "2"}, "Evil", "mallory")
    propose(forge, "matrix-synapse", "Upgrade synapse")
    forge.open_pull("recipes/matrix-synapse", fork, "evil", "mallory", "Evil PR")
    propose(forge, "custom-html", "Upgrade html")
    propose(forge, "keycloak", "Upgrade keycloak")
    for row in captured("repo_comments_since")["body"]:
        number = int(re.findall(r"/pulls/(\d+)#", row["html_url"])[0])
        forge.comment("recipes/matrix-synapse", number, row["user"]["login"], row["body"])
    return forge


def propose(forge: Forge, name: str, title: str) -> None:
    forge.push(f"recipes/{name}", "upgrade", {"a": "1"}, "Upgrade", "alice")
    forge.open_pull(f"recipes/{name}", f"recipes/{name}", "upgrade", "alice", title)


@pytest.fixture(scope="module", params=list(FOLDERS))
def world(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Server]:
    with serve(make_world(Forge(tmp_path_factory.mktemp("forge"), request.param))) as server:
        yield server


def captured(name: str, version: str = "1.15") -> Any:
    return json.loads((FOLDERS[version] / f"{name}.json").read_text())


def request_of(forge: Any, name: str) -> tuple[str, str, str]:
    """(method, path, who asks) of a captured request, with this forge's SHAs and ids."""
    method, path = captured(name)["request"].split(" ", 1)
    sha = forge.pull("recipes/keycloak", 1).head_sha
    path = re.sub(r"\b[0-9a-f]{40}\b", sha, path)
    if "/issues/comments/26/" in path:
        path = path.replace("/26/", f"/{forge.comment('recipes/keycloak', 1, 'alice', '!testme').id}/")
    return method, path, ASKER.get(name, "bot")


def ask(world: Server, name: str) -> requests.Response:
    """Send the captured request in this world."""
    forge = world.forge
    method, path, who = request_of(forge, name)
    headers = {"Authorization": f"token {forge.add_token(who) if who != 'nobody' else 'x' * 40}"}
    if "/hooks" in path and method != "POST" and who == "forgeadmin":
        forge.tables.hooks.clear()
        events = ["push", "issue_comment", "pull_request"]
        hooks = f"{world.url}/api/v1/repos/recipes/keycloak/hooks"
        body = {"type": "gitea", "active": True, "config": CONFIG, "events": events}
        path = path.replace("/8", f"/{requests.post(hooks, json=body, headers=headers, timeout=60).json()['id']}")
    return requests.request(method, world.url + path, headers=headers, allow_redirects=False, timeout=60, json=SENT.get(name))


def same_words(text: str, world: Server) -> str:
    """A string without what names one world: the address, SHAs, ids of comments."""
    text = text.replace(world.url, "https://git.example.org")
    return re.sub(r"\b[0-9a-f]{40}\b", "SHA", re.sub(r"issuecomment-\d+", "issuecomment-N", text))


def differences(real: Any, ours: Any, world: Server, where: str = "") -> list[str]:
    """Where two answers differ: keys, JSON types and, but for what varies, values. Newer servers may say more than ours."""
    if world.forge.version != "1.15" and where.rsplit(".", 1)[-1] in NEWER:
        return []
    if type(real) is not type(ours):
        return [f"{where}: {real!r} is not {ours!r}"]
    if isinstance(real, dict):
        only = real.keys() ^ ours.keys()
        if world.forge.version != "1.15":
            only = {key for key in ours.keys() - real.keys() - NEWER if ours[key] is not None}
        found = [f"{where}.{key}: only in one" for key in only]
        for key in real.keys() & ours.keys():
            found += differences(real[key], ours[key], world, f"{where}.{key}")
        return found
    if isinstance(real, list):
        if where.endswith(".events"):  # 1.26 has them in any order
            real, ours = sorted(real), sorted(ours)
        found = [] if len(real) == len(ours) else [f"{where}: {len(real)} entries, not {len(ours)}"]
        for at, (one, other) in enumerate(zip(real, ours, strict=False)):
            found += differences(one, other, world, f"{where}[{at}]")
        return found
    if where.rsplit(".", 1)[-1] in VARYING:
        return []
    if isinstance(real, str):
        real, ours = same_words(real, world), same_words(ours, world)
    return [] if real == ours or (not ours and where == ".url") else [f"{where}: {real!r} is not {ours!r}"]


@pytest.mark.parametrize("name", sorted(path.stem for path in CAPTURED.glob("*.json")))
def test_answers_as_the_real_one(world: Server, name: str) -> None:
    real, ours = captured(name, world.forge.version), ask(world, name)
    assert ours.status_code == real["status"], ours.text
    headers = HEADERS if world.forge.version == "1.15" else HEADERS[:1] + HEADERS[2:3]
    said = {key: same_words(ours.headers[key], world) for key in headers if key in ours.headers}
    assert said == {key: value for key, value in real["headers"].items() if key in (headers if headers is HEADERS else said)}
    if real["body"] == "":
        assert ours.content == b""
    else:
        assert differences(real["body"], ours.json(), world) == []
