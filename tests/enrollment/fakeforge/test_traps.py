"""The behaviour of a real Gitea that surprises its clients, one test for each surprise."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import requests

from enrollment.fakeforge import Forge, Server
from tests.enrollment.fakeforge.conftest import Client, Clock

pytestmark = pytest.mark.slow(0.1)

FORGEJO = "13.0.0+gitea-1.22.0"
ALL = ("1.15", "1.22", FORGEJO)
WEB = "/repos/recipes/web"


def versions(*wanted: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("forge", wanted, indirect=True)


def search(client: Client, **query: Any) -> list[dict[str, Any]]:
    answer = client.get("/repos/issues/search", "bot", type="pulls", **query)
    assert answer.status_code == 200
    found: list[dict[str, Any]] = answer.json()
    return found


def updated(client: Client) -> str:
    return str(client.get(f"{WEB}/pulls/1", "bot").json()["updated_at"])


# The search


def test_search_ignores_an_owner_in_the_measured_version(client: Client) -> None:
    assert len(search(client, owner="nobody-of-that-name")) == 1


@versions("1.22", FORGEJO)
def test_search_honours_an_owner_in_newer_versions(client: Client, forge: Forge) -> None:
    repo = forge.add_repo("mallory", "hers")
    forge.push(repo, "x", {"x": "x"})
    forge.open_pull(repo, repo, "x", "mallory")
    assert {row["repository"]["full_name"] for row in search(client)} == {"recipes/web", "mallory/hers"}
    assert {row["repository"]["full_name"] for row in search(client, owner="Recipes")} == {"recipes/web"}
    assert client.get("/repos/issues/search", "bot", owner="nobody-of-that-name").status_code == 400


def test_search_pages_by_fifty_newest_first_with_a_wrong_last_page(client: Client, forge: Forge) -> None:
    for number in range(124):
        forge.open_pull("recipes/web", "recipes/web", "change", "alice", f"Number {number}")
    first = client.get("/repos/issues/search", "bot", type="pulls", limit=1000)
    assert len(first.json()) == 50 and first.headers["X-Total-Count"] == "125"
    assert 'limit=1000&page=13&type=pulls>; rel="last"' in first.headers["Link"]
    ids = [row["id"] for page in (1, 2, 3, 4) for row in search(client, limit=50, page=page)]
    assert len(ids) == 125 and ids == sorted(ids, reverse=True)
    assert len(search(client)) == 30


def test_search_since_is_inclusive_and_has_whole_seconds(client: Client, clock: Clock) -> None:
    moved = updated(client)
    assert len(search(client, since=moved)) == 1
    assert len(search(client, since=moved.replace("Z", ".900Z"))) == 1
    assert search(client, since="2026-05-01T12:00:01Z") == []
    assert len(search(client, since="2026-05-01T14:00:00+02:00")) == 1


def test_a_plus_that_is_not_encoded_is_refused(server: Server, client: Client) -> None:
    assert client("GET", "/repos/issues/search?since=2026-05-01T12:00:00+00:00", "bot").status_code == 422


@versions(*ALL)
def test_what_moves_a_pull_request_and_what_does_not(client: Client, forge: Forge, clock: Clock) -> None:
    comment = client.post(f"{WEB}/issues/1/comments", "alice", body="one").json()
    before = updated(client)
    clock.step(10)
    client("PATCH", f"{WEB}/issues/comments/{comment['id']}", "alice", json={"body": "two"})
    client("DELETE", f"{WEB}/issues/comments/{comment['id']}", "alice")
    assert updated(client) == before
    moves: list[Callable[[], object]] = [
        lambda: client.post(f"{WEB}/issues/1/comments", "alice", body="three"),
        lambda: forge.push("recipes/web", "change", {"x": str(clock.time)}, "More", "alice"),
        lambda: forge.review("recipes/web", 1, "alice", "fine"),
        lambda: forge.close_pull(forge.issue("recipes/web", 1)),
    ]
    for move in moves:
        now = clock.step(10)
        move()
        assert updated(client) == now.strftime("%Y-%m-%dT%H:%M:%SZ")


def test_search_shows_no_hidden_repository_to_outsiders(client: Client, forge: Forge) -> None:
    forge.set_private("recipes/web")
    assert len(client.get("/repos/issues/search", "bot", type="pulls").json()) == 1
    assert client.get("/repos/issues/search", "mallory", type="pulls").json() == []
    for who in ("mallory", ""):
        assert client.get(WEB, who).status_code == client.get(f"{WEB}/pulls/1", who).status_code == 404


# Comments


def test_comments_since_lists_what_was_written_or_edited(client: Client, forge: Forge, clock: Clock) -> None:
    old = forge.comment("recipes/web", 1, "alice", "old")
    clock.step(10)
    forge.comment("recipes/web", 1, "alice", "new")
    since = clock.time.isoformat()
    bodies = [row["body"] for row in client.get(f"{WEB}/issues/comments", "bot", since=since).json()]
    assert bodies == ["new"]
    forge.edit_comment(old, "edited")
    for path in (f"{WEB}/issues/comments", f"{WEB}/issues/1/comments"):
        assert [row["body"] for row in client.get(path, "bot", since=since).json()] == ["edited", "new"]


@pytest.mark.parametrize(
    ("forge", "of_repo", "of_issue", "counted"),
    [("1.15", 35, 35, False), ("1.22", 10, 35, True), (FORGEJO, 10, 10, True)],
    indirect=["forge"],
)
def test_which_comment_lists_are_paged(client: Client, forge: Forge, of_repo: int, of_issue: int, counted: bool) -> None:
    for number in range(35):
        forge.comment("recipes/web", 1, "alice", str(number))
    whole = client.get(f"{WEB}/issues/comments", "bot", limit=10)
    one = client.get(f"{WEB}/issues/1/comments", "bot", limit=10)
    assert (len(whole.json()), len(one.json())) == (of_repo, of_issue)
    assert (one.headers.get("X-Total-Count") == whole.headers.get("X-Total-Count") == "35") == counted


@versions(*ALL)
def test_a_review_is_in_neither_comment_list(client: Client, forge: Forge) -> None:
    forge.review("recipes/web", 1, "alice", "!testme")
    for path in (f"{WEB}/issues/comments", f"{WEB}/issues/1/comments"):
        assert client.get(path, "bot").json() == []


@versions(*ALL)
def test_a_review_is_dated_from_when_it_was_begun(client: Client, forge: Forge) -> None:
    """models/issues/review.go of Gitea 1.26: CreatedUnix is the pending review's; HTMLURL looks for the entry in the timeline."""
    begun = forge.review("recipes/web", 1, "alice", "", "PENDING")
    path = f"{WEB}/pulls/1/reviews"
    assert client.get(path, "bot").json() == []
    entry = forge.submit_review(begun, "!testme")
    (row,) = client.get(path, "bot").json()
    assert (row["id"], row["body"], row["state"]) == (begun.review_id, "!testme", "COMMENT")
    assert row["html_url"].endswith(f"#issuecomment-{entry.id}") and entry.id != begun.id
    assert entry.begun == begun.created
    forge.delete_comment(entry)
    (row,) = client.get(path, "bot").json()
    assert (row["body"], row["html_url"]) == ("!testme", "")


def test_nothing_stops_the_same_comment_twice(client: Client) -> None:
    ids = [client.post(f"{WEB}/issues/1/comments", "bot", body="same").json()["id"] for _ in range(2)]
    assert ids[0] < ids[1]


@versions(*ALL)
def test_who_may_change_and_delete_a_comment(client: Client, forge: Forge) -> None:
    forge.add_user("boss")
    forge.add_collaborator("recipes/web", "boss", "admin")
    client.tokens["boss"] = forge.add_token("boss")
    for author, other, allowed in (
        ("bot", "bot", True),
        ("bot", "alice", False),
        ("bot", "mallory", False),
        ("alice", "boss", True),
        ("alice", "admin", True),
    ):
        comment = forge.comment("recipes/web", 1, author, "x")
        path = f"{WEB}/issues/comments/{comment.id}"
        edit = client("PATCH", path, other, json={"body": "y"})
        assert edit.status_code == (200 if allowed else 403)
        [shown] = [row for row in client.get(f"{WEB}/issues/comments").json() if row["id"] == comment.id]
        assert (shown["user"]["login"], shown["body"]) == (author, "y" if allowed else "x")
        assert client("DELETE", path, other).status_code == (204 if allowed else 403)
    assert client.post(f"{WEB}/issues/1/comments", "", body="x").status_code == 401
    assert client.post(f"{WEB}/issues/1/comments", "bot", body="").status_code == 422
    assert client.post(f"{WEB}/issues/9/comments", "bot", body="x").status_code == 404


def test_a_comment_can_appear_with_a_time_that_is_past(client: Client, forge: Forge, clock: Clock) -> None:
    clock.step(60)
    written = clock.time
    forge.comment("recipes/web", 1, "alice", "slow", visible_after=5)
    clock.step(4)
    assert client.get(f"{WEB}/issues/comments", "bot").json() == []
    assert search(client, since=written.isoformat()) == []
    clock.step(1)
    [comment] = client.get(f"{WEB}/issues/comments", "bot", since=written.isoformat()).json()
    [pull] = search(client, since=written.isoformat())
    assert comment["created_at"] == pull["updated_at"] == written.strftime("%Y-%m-%dT%H:%M:%SZ")


@versions(*ALL)
def test_reactions(client: Client, forge: Forge) -> None:
    path = f"{WEB}/issues/comments/{forge.comment('recipes/web', 1, 'alice', 'x').id}/reactions"
    assert [client.post(path, "bot", content="eyes").status_code for _ in range(2)] == [201, 200]
    assert client.post(path, "bot", content="banana").status_code == 403
    assert [row["content"] for row in client.get(path).json()] == ["eyes"]


# Pull requests


@versions(*ALL)
def test_head_repository_is_null_when_the_fork_was_deleted(client: Client, forge: Forge) -> None:
    fork = forge.fork("recipes/web", "mallory")
    sha = forge.push(fork, "evil", {"x": "x"}, "Evil", "mallory")
    pull = forge.open_pull("recipes/web", fork, "evil", "mallory")
    path = f"{WEB}/pulls/{pull.number}"
    assert client.get(path, "bot").json()["head"]["repo"]["full_name"] == "mallory/web"
    forge.delete_repo(fork)
    head = client.get(path, "bot").json()["head"]
    assert (head["repo"], head["sha"]) == (None, sha)
    assert client.get(f"{WEB}/contents/x", "bot", ref=sha).json()["content"] == "eA=="


def test_a_push_moves_the_head_and_the_timeline_tells_when(client: Client, forge: Forge) -> None:
    sha = forge.push("recipes/web", "change", {"x": "x"}, "More", "alice")
    assert client.get(f"{WEB}/pulls/1").json()["head"]["sha"] == sha
    commits = client.get(f"{WEB}/pulls/1/commits").json()
    assert [row["commit"]["message"].strip() for row in commits] == ["More", "Change"]
    missing = client.get(f"{WEB}/issues/1/timeline", "bot")
    assert (missing.status_code, missing.text) == (404, "404 page not found\n")


@versions("1.22", FORGEJO)
def test_the_timeline_of_newer_versions(client: Client, forge: Forge) -> None:
    sha = forge.push("recipes/web", "change", {"x": "x"}, "More", "alice")
    forge.comment("recipes/web", 1, "alice", "!testme")
    rows = client.get(f"{WEB}/issues/1/timeline", "bot").json()
    assert [row["type"] for row in rows] == ["pull_push", "pull_push", "comment"]  # the first one is its opening
    assert json.loads(rows[1]["body"]) == {"is_force_push": False, "commit_ids": [sha]}


def test_closed_and_merged(client: Client, forge: Forge) -> None:
    sha = forge.merge_pull(forge.pull("recipes/web", 1), "alice")
    answer = client.get(f"{WEB}/pulls/1").json()
    assert (answer["state"], answer["merged"], answer["merge_commit_sha"]) == ("closed", True, sha)
    assert client.get(f"{WEB}/pulls").json() == [] and search(client) == []
    assert len(client.get(f"{WEB}/pulls", state="all").json()) == 1
    assert client.get(f"{WEB}/contents/compose.yml").json()["content"] == "Ygo="


def test_a_plain_issue_is_no_pull_request(client: Client, forge: Forge) -> None:
    issue = forge.open_issue("recipes/web", "mallory", "Question")
    forge.comment("recipes/web", issue.number, "mallory", "!testme")
    assert client.get(f"{WEB}/issues/{issue.number}").json()["pull_request"] is None
    assert client.get(f"{WEB}/pulls/{issue.number}").status_code == 404
    [comment] = client.get(f"{WEB}/issues/comments").json()
    assert comment["pull_request_url"] == "" and comment["issue_url"].endswith(f"/issues/{issue.number}")


# Rights


@pytest.mark.parametrize(("forge", "reader"), [("1.15", 201), ("1.22", 403), (FORGEJO, 403)], indirect=["forge"])
def test_commit_status_needs_write_in_newer_versions(client: Client, forge: Forge, reader: int) -> None:
    sha = client.get(f"{WEB}/pulls/1").json()["head"]["sha"]
    path = f"{WEB}/statuses/{sha}"
    answers = [client.post(path, who, state="pending", context="ci").status_code for who in ("bot", "alice", "")]
    assert answers == [reader, 201, 401]
    client.post(path, "alice", state="success", context="ci")
    assert [row.state for row in forge.statuses_of("recipes/web", sha)][:2] == ["success", "pending"]
    assert client.post(path, "alice", state="splendid").status_code == 422
    assert client.post(f"{WEB}/statuses/{'0' * 40}", "alice", state="success").status_code == 404


@versions(*ALL)
def test_members_are_told_to_members_only(client: Client, forge: Forge) -> None:
    path = "/orgs/recipes/members/"
    assert [client.get(path + "alice", who).status_code for who in ("bot", "admin")] == [204, 204]
    assert [client.get(path + who, "bot").status_code for who in ("mallory", "nobody")] == [404, 404]
    assert client.get(path + "mallory", "mallory").status_code == 404
    for who in ("mallory", ""):
        answer = client.get(path + "alice", who)
        assert answer.status_code == 302
        assert answer.headers["Location"].endswith("/public_members/alice")
        assert client("GET", path + "alice", who, allow_redirects=True).status_code == 404
    forge.add_member("recipes", "alice", "write", public=True)
    assert client("GET", path + "alice", "", allow_redirects=True).status_code == 204


@pytest.mark.parametrize(
    ("forge", "answers"),
    [("1.15", [404, 404, 404, 404]), ("1.22", [200, 403, 200, 401]), (FORGEJO, [200, 403, 200, 401])],
    indirect=["forge"],
)
def test_permission_of_a_user(client: Client, answers: list[int]) -> None:
    path = f"{WEB}/collaborators/alice/permission"
    assert [client.get(path, who).status_code for who in ("alice", "bot", "admin", "")] == answers


@pytest.mark.parametrize(("forge", "reader"), [("1.15", 404), (FORGEJO, 204)], indirect=["forge"])
def test_collaborators(client: Client, forge: Forge, reader: int) -> None:
    forge.add_collaborator("recipes/web", "mallory", "write")
    path = f"{WEB}/collaborators/mallory"
    assert [client.get(path, who).status_code for who in ("bot", "admin", "")] == [reader, 204, 401]
    assert client.get(f"{WEB}/collaborators/alice", "admin").status_code == 404
    assert client.get(WEB, "mallory").json()["permissions"] == {"admin": False, "push": True, "pull": True}


def test_unknown_tokens(client: Client, server: Server, forge: Forge) -> None:
    for headers in ({"Authorization": "token nope"}, {"Authorization": "Bearer nope"}, {"Authorization": "Basic !"}):
        assert requests.get(server.url + "/api/v1/user", headers=headers, timeout=60).status_code == 401
    assert client("GET", f"/user?token={client.tokens['bot']}").json()["login"] == "bot"
    forge.revoke_tokens("bot")
    assert client.get(WEB, "bot").status_code == 401


@pytest.mark.parametrize(("forge", "refused"), [("1.15", 200), (FORGEJO, 403)], indirect=["forge"])
def test_scopes_of_tokens(client: Client, forge: Forge, refused: int) -> None:
    client.tokens["bot"] = forge.add_token("bot", "read:issue", "write:repository")
    assert client.get(f"{WEB}/issues/1", "bot").status_code == 200
    assert client.get(WEB, "bot").status_code == 200
    assert client.get("/user", "bot").status_code == refused
    assert client.post(f"{WEB}/issues/1/comments", "bot", body="x").status_code == (201 if refused == 200 else 403)


# Names


@pytest.mark.parametrize(("forge", "status"), [("1.15", 302), ("1.22", 307), (FORGEJO, 307)], indirect=["forge"])
def test_old_names_redirect_and_ids_stay(client: Client, forge: Forge, status: int) -> None:
    repo_id = client.get(WEB).json()["id"]
    forge.rename_repo("recipes/web", "website")
    answer = client.get(f"{WEB}/pulls/1", state="all")
    assert answer.status_code == status
    assert answer.headers["Location"] == "/api/v1/repos/recipes/website/pulls/1?state=all"
    forge.rename_user("recipes", "cookbook")
    followed = client("GET", "/repos/recipes/website", allow_redirects=True)
    assert followed.json()["full_name"] == "cookbook/website"
    assert client.get("/orgs/recipes/teams", "bot").headers["Location"] == "/api/v1/orgs/cookbook/teams"
    forge.transfer("cookbook/website", "alice")
    assert client.get(f"/repositories/{repo_id}").json()["full_name"] == "alice/website"
    forge.add_org("recipes", "mallory")
    forge.add_repo("recipes", "web")
    assert client.get(WEB).json()["id"] != repo_id


def test_unknown_names_and_routes(client: Client) -> None:
    body = client.get("/repos/recipes/gone").json()
    assert body["message"] == "Not Found"
    for path in (
        "/repos/nobody/gone",
        "/users/nobody",
        "/orgs/nobody/teams",
        "/orgs/alice/teams",
        "/repositories/99",
        f"{WEB}/pulls/x",
    ):
        assert client.get(path, "bot").status_code == 404
    assert client.get("/no/such/route").text == "404 page not found\n"
    assert client("PUT", WEB, "bot").status_code == 405


# Lists and contents


def test_finding_repositories(client: Client, forge: Forge) -> None:
    forge.add_repo("mallory", "cc-ci-notes")
    forge.add_repo("recipes", "hidden", private=True, topics=["CC-CI"])

    def found(who: str, **query: Any) -> list[str]:
        answer = client.get("/repos/search", who, **query).json()
        assert answer["ok"] is True
        return [row["full_name"] for row in answer["data"]]

    assert found("bot", q="cc-ci", topic="true") == ["recipes/hidden", "recipes/web"]
    assert found("", q="cc-ci", topic="true") == ["recipes/web"]
    assert found("", q="cc-ci") == ["mallory/cc-ci-notes", "recipes/web"]
    assert found("bot", is_private="true") == ["recipes/hidden"]
    assert found("bot", limit=1, page=2) == ["recipes/hidden"]


def test_files_of_a_commit(client: Client, forge: Forge) -> None:
    sha = client.get(f"{WEB}/pulls/1").json()["head"]["sha"]
    for ref in (sha, "change"):
        assert client.get(f"{WEB}/contents/compose.yml", ref=ref).json()["content"] == "Ygo="
    assert client.get(f"{WEB}/contents/docs/notes.md").json()["content"] == "bgo="
    assert client.get(f"{WEB}/contents/missing").status_code == 404
    assert client.get(f"{WEB}/contents/compose.yml", ref="missing").status_code == 404
    assert [row["path"] for row in client.get(f"{WEB}/contents/docs").json()] == ["docs/notes.md"]
    assert {row["name"] for row in client.get(f"{WEB}/contents").json()} == {"compose.yml", "docs"}
    assert client.get(f"{WEB}/branches/change").json()["commit"]["id"] == sha


def test_tags_tell_annotated_from_lightweight(client: Client, forge: Forge) -> None:
    forge.tag("recipes/web", "1.0.0+1.2")
    forge.tag("recipes/web", "light", annotated=False)
    tags = {row["name"]: row for row in client.get(f"{WEB}/tags").json()}
    assert tags["light"]["id"] == tags["light"]["commit"]["sha"] == tags["1.0.0+1.2"]["commit"]["sha"]
    assert tags["1.0.0+1.2"]["id"] != tags["1.0.0+1.2"]["commit"]["sha"]


@versions("1.15", FORGEJO)
def test_hooks(client: Client, forge: Forge) -> None:
    config = {"url": "http://127.0.0.1:1/hook", "content_type": "json", "secret": "s"}
    wanted: dict[str, Any] = {
        "type": "gitea",
        "active": True,
        "config": config,
        "events": ["issue_comment", "pull_request_comment"],
    }
    assert [client.get(f"{WEB}/hooks", who).status_code for who in ("bot", "alice", "")] == [403, 403, 401]
    made = [client.post(f"{WEB}/hooks", "admin", **wanted).json() for _ in range(2)]
    assert made[0]["id"] != made[1]["id"] and "secret" not in made[0]["config"]
    assert set(wanted["events"]) < set(made[0]["events"])
    edited = client("PATCH", f"{WEB}/hooks/{made[0]['id']}", "admin", json={"active": False}).json()
    assert "issue_comment" not in edited["events"] and "push" in edited["events"]
    bad = client.post(f"{WEB}/hooks", "admin", **{**wanted, "config": {**config, "url": "no url"}})
    assert bad.status_code == (422 if forge.version == FORGEJO else 201)
    assert client("DELETE", f"{WEB}/hooks/{made[0]['id']}", "admin").status_code == 204


def test_an_unknown_version_is_refused(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match=r"1\.15"):
        Forge(tmp_path, "0.9")
