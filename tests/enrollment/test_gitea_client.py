"""The client for Gitea and Forgejo, against the fake forge in all its versions and against captured answers."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from enrollment.fakeforge.faults import Fault, Request
from enrollment.forges import http
from enrollment.forges.base import (
    Forbidden,
    ForgeError,
    Garbage,
    Head,
    NotFound,
    OddRows,
    Push,
    RateLimited,
    Rejected,
    Unauthorized,
    Unavailable,
    User,
)
from enrollment.forges.gitea import client as gitea
from enrollment.forges.gitea.client import GiteaClient, _repo
from tests.waiting import until
from tests.world import EVERY_VERSION, World

CAPTURED = Path(__file__).parents[1] / "data" / "gitea" / "responses"
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


class Place(World):
    """A forge alone: nothing of cc-ci but its client."""

    @property
    def client(self) -> GiteaClient:  # type: ignore[override]
        return self.client_with()

    def client_with(self, timeout: float = 60) -> GiteaClient:
        return GiteaClient(self.server.url, self.token, timeout=timeout, user_agent="cc-ci/test")

    def asked(self, part: str = "") -> list[Request]:
        return [request for request in self.own_requests() if part in request.path]

    def fail(self, *faults: Fault | None, part: str = "") -> None:
        """Answer the next requests with these faults, one after the other; the last one stays."""
        left = list(faults)

        def plan(request: Request) -> Fault | None:
            if part not in request.path:
                return None
            return left.pop(0) if len(left) > 1 else left[0]

        self.remote.faults = plan


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pause before a read is repeated."""
    monkeypatch.setattr(gitea, "wait_random_exponential", lambda *args, **more: lambda state: 0)


@pytest.fixture
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    place = Place(tmp_path, getattr(request, "param", "1.15"))
    place.add_recipe("web")
    yield place
    place.close()


every_version = pytest.mark.parametrize("place", EVERY_VERSION, indirect=True)


@every_version
def test_reads_what_polling_and_trust_need(place: Place) -> None:
    client, pull = place.client, place.remote.pull("recipes/web", 1)
    said = place.say("recipes/web", "!testme\r\nplease")
    assert client.version() == place.remote.version
    assert client.whoami() == User(place.bot.id, "cc-ci")
    assert client.user("mallory") == User(place.mallory.id, "mallory")
    assert client.user("nobody") is None
    assert client.user("") is None
    repo = client.repository("recipes", "web")
    assert client.repository_by_id(repo.id) == repo
    assert (repo.full_name, repo.owner_id, repo.permissions) == ("recipes/web", place.org.id, {"pull"})
    assert len(client.branch_head("recipes", "web", "main")) == 40
    (summary,) = client.changed_pulls(LONG_AGO, "recipes")
    assert (summary.repo_id, summary.repo_full_name, summary.number) == (repo.id, "recipes/web", 1)
    found = client.pull("recipes", "web", 1)
    assert (found.head_sha, found.agit, found.author.login, found.base.id) == (pull.head_sha, False, "alice", repo.id)
    assert found.head == Head(repo.id, "recipes/web", User(place.org.id, "recipes"), "change")
    assert client.branch_head("recipes", "web", "change") == pull.head_sha
    assert client.pull_commits("recipes", "web", 1) == [pull.head_sha]
    (comment,) = client.pull_comments("recipes", "web", 1, None)
    assert (comment.id, comment.body, comment.author.id, comment.pull_number) == (said.id, said.body, place.alice.id, 1)
    assert comment.created_at == said.created
    assert list(client.repository_comments("recipes", "web", LONG_AGO)) == [comment]


@every_version
def test_writes_a_comment_a_reaction_and_a_status(place: Place) -> None:
    client, sha = place.client, place.remote.pull("recipes/web", 1).head_sha
    said = place.say("recipes/web")
    posted = client.post_comment("recipes", "web", 1, "Queued.")
    client.edit_comment("recipes", "web", posted.id, "Running.")
    assert place.own_comments("recipes/web") == ["Running."]
    client.react("recipes", "web", said.id, "eyes")
    client.react("recipes", "web", said.id, "eyes")
    assert place.reactions(said) == ["eyes"]
    client.delete_comment("recipes", "web", posted.id)
    assert place.own_comments("recipes/web") == []
    status = {"state": "success", "context": "cc-ci", "description": "passed", "target_url": "https://ci.example.org"}
    if place.remote.features.readers_set_status:
        client.set_status("recipes", "web", sha, **status)
        assert [row.state for row in place.remote.statuses_of("recipes/web", sha)] == ["success"]
    else:
        with pytest.raises(Forbidden):
            client.set_status("recipes", "web", sha, **status)


@every_version
def test_members_collaborators_and_pushes_as_far_as_they_show(place: Place) -> None:
    client, new = place.client, place.remote.features.timeline
    place.remote.add_collaborator("recipes/web", place.mallory)
    assert client.is_member("recipes", "alice")
    assert not client.is_member("recipes", "mallory")
    assert not client.is_member("recipes", "nobody")
    assert client.is_collaborator("recipes", "web", "mallory") is (True if new else None)
    assert client.is_collaborator("recipes", "web", "alice") is None
    pull = place.remote.pull("recipes/web", 1)
    assert client.last_push("recipes", "web", 1) == (Push(pull.created, pull.head_sha, place.alice.id) if new else None)
    place.clock.move(seconds=5)
    sha = place.remote.push("recipes/web", "change", {"more.txt": "1"}, "More", place.alice)
    assert client.last_push("recipes", "web", 1) == (Push(pull.updated, sha, place.alice.id) if new else None)
    for row in place.remote.comments_of(pull, kinds="pull_push"):
        del place.remote.tables.comments[row.id]
    assert client.last_push("recipes", "web", 1) == (Push(None, "") if new else None)


@every_version
def test_a_private_membership_is_no_yes_for_who_is_no_member(place: Place) -> None:
    place.remote.remove_member(place.org, place.bot)
    assert not place.client.is_member("recipes", "alice")
    place.remote.add_member(place.org, place.alice, "write", public=True)
    assert place.client.is_member("recipes", "alice")


@every_version
def test_listings_longer_than_a_page_come_whole_and_once(place: Place) -> None:
    said = [place.say("recipes/web", f"!testme {number}").id for number in range(123)]
    assert [row.id for row in place.client.pull_comments("recipes", "web", 1, None)] == said
    assert [row.id for row in place.client.repository_comments("recipes", "web", LONG_AGO)] == said


def test_pull_requests_that_move_between_pages_come_once(place: Place) -> None:
    web = place.remote.repo("recipes/web")
    for _ in range(60):
        place.remote.open_pull(web, web, "change", place.alice)

    def plan(request: Request) -> Fault | None:
        if request.parameters.get("page") == "2":
            place.remote.open_pull(web, web, "change", place.alice)  # pushes one over from the first page
        return None

    place.remote.faults = plan
    numbers = [row.number for row in place.client.changed_pulls(LONG_AGO, "recipes")]
    assert sorted(numbers) == list(range(1, 62))


def test_only_the_owners_repositories_with_the_topic(place: Place) -> None:
    place.remote.add_repo("recipes", "keycloak", topics=["cc-ci"])
    place.remote.add_repo("alice", "fake", topics=["cc-ci"])
    place.remote.add_repo("recipes", "other", topics=["cc-ci-not"])
    assert [repo.full_name for repo in place.client.repositories_with_topic("Recipes", "cc-ci")] == ["recipes/keycloak"]


# --- captured answers of a real server

READERS: dict[str, Callable[[GiteaClient], Any]] = {
    "version": lambda client: client.version(),
    "user": lambda client: client.whoami(),
    "repository": lambda client: client.repository("o", "r"),
    "repository_as_admin": lambda client: client.repository("o", "r"),
    "pull": lambda client: client.pull("o", "r", 1),
    "pull_from_fork": lambda client: client.pull("o", "r", 1),
    "issues_search_pulls": lambda client: list(client.changed_pulls(LONG_AGO, "recipes")),
    "issues_search_none": lambda client: list(client.changed_pulls(LONG_AGO, "recipes")),
    "issue_comments": lambda client: list(client.pull_comments("o", "r", 1, None)),
    "repo_comments_since": lambda client: list(client.repository_comments("o", "r", LONG_AGO)),
    "repos_search_topic": lambda client: list(client.repositories_with_topic("recipes", "cc-ci")),
    "org_member_yes": lambda client: client.is_member("o", "x"),
    "org_member_no": lambda client: client.is_member("o", "x"),
    "comment_created": lambda client: client.post_comment("o", "r", 1, "x"),
    "bad_token": lambda client: client.whoami(),
    "pull_gone": lambda client: client.pull("o", "r", 999),
    "repo_gone": lambda client: client.repository("o", "r"),
}
SAID = {
    "version": lambda said, body: said == body["version"],
    "user": lambda said, body: said == User(body["id"], body["login"]),
    "repository": lambda said, body: said.full_name == body["full_name"] and said.permissions == {"pull"},
    "repository_as_admin": lambda said, body: said.permissions == {"pull", "push", "admin"},
    "pull": lambda said, body: (
        (said.head_sha, said.head.repo_id, said.head.branch) == (body["head"]["sha"], said.base.id, "upgrade")
    ),
    "pull_from_fork": lambda said, body: (
        said.head == Head(4, "mallory/matrix-synapse", User(body["user"]["id"], "mallory"), "evil") and said.base.id != 4
    ),
    "issues_search_pulls": lambda said, body: [row.number for row in said] == [row["number"] for row in body],
    "issues_search_none": lambda said, body: said == [],
    "issue_comments": lambda said, body: [row.id for row in said] == [row["id"] for row in body],
    "repo_comments_since": lambda said, body: [row.body for row in said] == [row["body"] for row in body],
    "repos_search_topic": lambda said, body: [row.id for row in said] == [row["id"] for row in body["data"]],
    "org_member_yes": lambda said, body: said is True,
    "org_member_no": lambda said, body: said is False,
    "comment_created": lambda said, body: said.id == body["id"] and said.pull_number == 1,
    "bad_token": lambda said, body: isinstance(said, Unauthorized),
    "pull_gone": lambda said, body: isinstance(said, NotFound),
    "repo_gone": lambda said, body: isinstance(said, NotFound),
}


@pytest.mark.parametrize("name", READERS)
def test_captured(place: Place, name: str) -> None:
    answer = json.loads((CAPTURED / f"{name}.json").read_text())
    body = answer["body"]
    text = json.dumps(body) if body != "" else ""
    place.fail(Fault(status=answer["status"], body=text, headers=answer["headers"]))
    try:
        said = READERS[name](place.client)
    except ForgeError as error:
        said = error
    assert SAID[name](said, body), said


# --- what can go wrong

REFUSED: list[tuple[Fault, type[ForgeError], bool]] = [
    (Fault(status=401), Unauthorized, False),
    (Fault(status=403), Forbidden, False),
    (Fault(status=404), NotFound, False),
    (Fault(status=410), NotFound, False),
    (Fault(status=400), Rejected, False),
    (Fault(status=422), Rejected, False),
    (Fault(status=429), RateLimited, False),
    (Fault(status=500), Unavailable, True),
    (Fault(status=502, body="<html>Bad Gateway</html>"), Unavailable, True),
    (Fault(status=503), Unavailable, True),
    (Fault(status=408), Unavailable, True),
    (Fault(close="before"), Unavailable, True),
    (Fault(close="after"), Unavailable, True),
    (Fault(cut=5), Unavailable, True),
    (Fault(delay=0.4), Unavailable, True),
    (Fault(body="<!doctype html><title>Log in</title>"), Garbage, False),
    (Fault(body=""), Garbage, False),
    (Fault(body=b"\x00\xff\xfe"), Garbage, False),
    (Fault(body="[" * 100_000), Garbage, False),
    (Fault(body="null"), Garbage, False),
    (Fault(body="[]"), Garbage, False),
    (Fault(body='{"id": "7", "login": "x"}'), Garbage, False),
    (Fault(body='{"id": true, "login": "x"}'), Garbage, False),
    (Fault(body='{"id": 99999999999999999999, "login": "x"}'), Garbage, False),
]


@pytest.mark.parametrize(("fault", "kind", "again"), REFUSED, ids=lambda value: str(value)[:40])
def test_each_trouble_has_its_kind_and_a_way_out(place: Place, fault: Fault, kind: type[ForgeError], again: bool) -> None:
    client = place.client_with(timeout=0.2 if fault.delay or fault.delay_after else 60)
    place.fail(fault)
    with pytest.raises(ForgeError) as caught:
        client.whoami()
    error = caught.value
    assert type(error) is kind
    assert error.advice
    assert str(error)
    assert error.status == fault.status
    until(lambda: len(place.asked()) >= (2 if again else 1), "a request that was given up early arrives late")
    assert len(place.asked()) == (2 if again else 1)
    assert place.token not in "".join(traceback.format_exception(error)) + repr(error)


def test_nobody_listens(place: Place) -> None:
    client = place.client
    place.server.stop()
    with pytest.raises(Unavailable, match="refused"):
        client.version()


@pytest.mark.parametrize("url", ["http://", "http://no such host/", "nonsense", "ftp://example.org", "http://127.0.0.1:99999"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(Unavailable):
        GiteaClient(url, "abc", timeout=1).version()


def test_an_answer_without_end_is_not_taken_in(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_BODY", 100_000)
    place.fail(Fault(body=" " * 200_000))
    with pytest.raises(Garbage, match="more than"):
        place.client.version()


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("120", 120),
        ("0", 0),
        (lambda: format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True), 90),
        (lambda: format_datetime(datetime.now(UTC) - timedelta(seconds=90), usegmt=True), 0),
        ("soon", None),
        ("-5", None),
        ("", None),
        ("\N{SUPERSCRIPT TWO}", None),
        ("9" * 18, 86400),
        ("9" * 500, None),
        ("Mon, 30 Nov 2026 00:00:00 +" + "9" * 20, None),
        ("Mon, " + "9" * 20 + " Nov 2026 00:00:00 GMT", None),
    ],
)
def test_retry_after_in_both_forms_and_in_none(place: Place, header: Any, seconds: float | None) -> None:
    place.fail(Fault(status=429, headers={"Retry-After": header() if callable(header) else header}))
    with pytest.raises(RateLimited) as caught:
        place.client.version()
    assert caught.value.retry_after == (seconds if seconds is None else pytest.approx(seconds, abs=3))


def test_the_forges_own_words_are_passed_on_in_short(place: Place) -> None:
    place.fail(Fault(status=403, body=json.dumps({"message": "token lacks " + "x" * 5000})))
    with pytest.raises(Forbidden, match=r"GET /user: 403 \(token lacks x") as caught:
        place.client.whoami()
    assert len(str(caught.value)) < 300


def test_a_read_is_repeated_once(place: Place) -> None:
    place.fail(Fault(status=502), None)
    assert place.client.version() == "1.15"
    assert len(place.asked()) == 2


@pytest.mark.parametrize("fault", [Fault(status=500), Fault(close="after"), Fault(status=429), Fault(delay_after=0.4)])
def test_a_write_is_never_repeated(place: Place, fault: Fault) -> None:
    client = place.client_with(timeout=0.2 if fault.delay_after else 60)
    place.fail(fault, None)
    with pytest.raises(ForgeError):
        client.post_comment("recipes", "web", 1, "Queued.")
    until(lambda: place.asked("comments"), "a request that was given up early arrives late")
    assert len(place.asked("comments")) == 1


@every_version
def test_a_renamed_repository_is_read_and_not_written(place: Place) -> None:
    place.remote.rename_repo("recipes/web", "site")
    client = place.client
    assert client.repository("recipes", "web").name == "site"
    assert client.pull("recipes", "web", 1).number == 1
    with pytest.raises(NotFound, match="moved"):
        client.post_comment("recipes", "web", 1, "Queued.")
    assert place.own_comments("recipes/site") == []


def test_a_redirect_to_another_host_takes_no_token_along(place: Place, tmp_path: Path) -> None:
    other = Place(tmp_path / "other")
    there = other.server.url.replace("127.0.0.1", "localhost")
    place.fail(Fault(status=302, headers={"Location": f"{there}/api/v1/version"}))
    assert place.client.version() == "1.15"
    (request,) = other.remote.requests
    assert not request.header("Authorization")
    other.close()


def test_a_redirect_that_goes_round_ends(place: Place) -> None:
    place.fail(Fault(status=302, headers={"Location": "/api/v1/version"}))
    with pytest.raises(Unavailable):
        place.client.version()


@pytest.mark.parametrize("call", ["version", "comment"])
def test_a_redirect_to_what_is_no_address_is_an_error_of_ours(place: Place, call: str) -> None:
    place.fail(Fault(status=302, headers={"Location": "http://[x/api/"}), None)
    with pytest.raises(ForgeError):
        place.client.version() if call == "version" else place.client.post_comment("recipes", "web", 1, "Queued.")


# --- odd listings


def comment_row(number: int, **more: Any) -> dict[str, Any]:
    when = "2026-05-01T12:00:00Z"
    return {"id": number, "body": "!testme", "user": {"id": 3, "login": "alice"}, "created_at": when, "updated_at": when, **more}


@pytest.mark.parametrize(
    "odd",
    [
        None,
        "text",
        [],
        {},
        {"id": []},
        {"id": {}},
        comment_row(7, user=None),
        comment_row(7, created_at="yesterday"),
        comment_row(7, created_at=None),
        comment_row(-7),
        comment_row(7, created_at="9999-12-31T23:59:59-23:59"),
    ],
)
def test_one_odd_row_hides_none_of_the_others(place: Place, odd: Any) -> None:
    place.fail(Fault(body=json.dumps([comment_row(1), odd, comment_row(2)])))
    seen = []
    with pytest.raises(OddRows):
        for comment in place.client.pull_comments("recipes", "web", 1, None):
            seen.append(comment.id)
    assert seen == [1, 2]


@pytest.mark.parametrize("odd", [{"number": 0}, {"number": -1}, {"number": 2**40}, {"repository": None}, {"updated_at": "x"}])
def test_an_odd_pull_request_in_the_search(place: Place, odd: dict[str, Any]) -> None:
    body = json.loads((CAPTURED / "issues_search_pulls.json").read_text())["body"]
    place.fail(Fault(body=json.dumps([{**body[0], "id": 9999, **odd}, *body])))
    seen = []
    with pytest.raises(OddRows):
        for row in place.client.changed_pulls(LONG_AGO, None):
            seen.append(row.number)
    assert seen == [row["number"] for row in body]


def test_an_odd_entry_of_the_timeline_is_no_proof_of_anything(place: Place) -> None:
    place.fail(Fault(status=200, body=json.dumps([None])))
    with pytest.raises(Garbage):
        place.client.last_push("recipes", "web", 1)


def test_ghosts_are_people_with_the_id_minus_one(place: Place) -> None:
    place.fail(Fault(body=json.dumps([comment_row(1, user={"id": -1, "login": "Ghost"})])))
    (comment,) = place.client.pull_comments("recipes", "web", 1, None)
    assert comment.author == User(-1, "Ghost")


def test_text_that_no_database_holds_is_made_harmless(place: Place) -> None:
    place.fail(Fault(body=json.dumps([comment_row(1, body="!testme \0 \ud800")])))
    (comment,) = place.client.pull_comments("recipes", "web", 1, None)
    assert "\0" not in comment.body
    comment.body.encode()


@pytest.mark.parametrize("total", ["", "1000", "nonsense", "\N{SUPERSCRIPT TWO}"])
def test_a_listing_that_repeats_itself_ends(place: Place, total: str) -> None:
    rows = [comment_row(number) for number in range(1, 61)]
    place.fail(Fault(body=json.dumps(rows), headers={"X-Total-Count": total} if total else {}))
    assert len(list(place.client.pull_comments("recipes", "web", 1, None))) == 60
    assert len(place.asked()) == 2


def test_a_listing_that_never_ends_is_given_up(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gitea, "MAX_PAGES", 5)

    def plan(request: Request) -> Fault:
        page = int(request.parameters["page"])
        return Fault(body=json.dumps([comment_row(number) for number in range(page * 100, page * 100 + 50)]))

    place.remote.faults = plan
    with pytest.raises(Garbage, match="does not end"):
        list(place.client.pull_comments("recipes", "web", 1, None))
    assert len(place.asked()) == 5


def test_a_listing_that_is_none(place: Place) -> None:
    place.fail(Fault(body='{"ok": true}'))
    with pytest.raises(Garbage, match="expected a list"):
        list(place.client.pull_comments("recipes", "web", 1, None))


# --- the token


@pytest.mark.parametrize("token", ["abc\ndef", "abc def", "geheim\N{EN DASH}1", "\tabc", "abc\0"])
def test_a_token_that_is_none_is_told_without_showing_it(token: str) -> None:
    with pytest.raises(Unauthorized) as caught:
        GiteaClient("http://127.0.0.1:9", token)
    assert token not in "".join(traceback.format_exception(caught.value, chain=True))


def test_the_token_goes_in_the_header_only(place: Place) -> None:
    place.client.whoami()
    (request,) = place.asked()
    assert request.header("Authorization") == f"token {place.token}"
    assert place.token not in request.target
    assert place.token not in repr(place.client)


@pytest.mark.parametrize("moved", [False, True])
def test_what_git_knows_of_the_forge_does_not_take_the_tokens_place(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: bool
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login alice password hers\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    if moved:
        place.fail(Fault(status=302, headers={"Location": "/api/v1/version"}), None)
    assert place.client.version() == "1.15"
    assert {request.header("Authorization") for request in place.asked()} == {f"token {place.token}"}
    assert len(place.asked()) == 1 + moved


def test_without_a_token_it_is_nobody(place: Place) -> None:
    client = GiteaClient(place.server.url, "", user_agent="cc-ci/test")
    assert client.version() == "1.15"
    with pytest.raises(Unauthorized):
        client.whoami()


def test_the_servers_clock_is_kept(place: Place) -> None:
    client = place.client
    assert client.server_time is None
    place.clock.fixed = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)
    client.version()
    assert client.server_time == place.clock.fixed


def test_what_no_database_holds_is_replaced() -> None:
    from enrollment.forges.http import storable

    said = {"a\ud800": ["x\0", {"b": "\udfff"}, 1, None]}
    assert storable(said) == {"a?": ["x\N{REPLACEMENT CHARACTER}", {"b": "?"}, 1, None]}


# --- what is no answer is neither a yes nor a no

HTML = "<!doctype html><title>Sign in</title>"
ODD_ANSWERS = {
    "200 HTML": Fault(status=200, body=HTML, headers={"Content-Type": "text/html"}),
    "200 empty": Fault(status=200, body=""),
    "200 a list in a list": Fault(status=200, body="[[]]"),
    "200 an empty object": Fault(status=200, body="{}"),
    "200 null": Fault(status=200, body="null"),
    "200 true": Fault(status=200, body="true"),
    "200 text": Fault(status=200, body='"yes"'),
    "200 the words of an error": Fault(status=200, body='{"message": "oops"}'),
    "202": Fault(status=202),
    "204 where a body is due": Fault(status=204),
    "205": Fault(status=205),
    "304": Fault(status=304),
    "a redirect to the login": Fault(status=302, headers={"Location": "/user/login"}),
    "a redirect to nowhere": Fault(status=301),
    "400 HTML": Fault(status=400, body=HTML),
    "401 HTML": Fault(status=401, body=HTML),
    "401 empty": Fault(status=401, body=""),
    "403 HTML": Fault(status=403, body=HTML),
    "403 empty": Fault(status=403, body=""),
    "404 HTML": Fault(status=404, body=HTML),
    "404 empty": Fault(status=404, body=""),
    "404 a list": Fault(status=404, body="[]"),
    "404 a number for a message": Fault(status=404, body='{"message": 404}'),
    "410 HTML": Fault(status=410, body=HTML),
    "418": Fault(status=418),
    "422 HTML": Fault(status=422, body=HTML),
    "429": Fault(status=429),
    "500": Fault(status=500),
    "502 HTML": Fault(status=502, body=HTML),
    "cut": Fault(cut=1),
    "closed": Fault(close="before"),
}
#: Each question of the client that can be answered with no, or with nothing: how it is asked, and which request of it goes wrong.
QUESTIONS: dict[str, tuple[Callable[[GiteaClient], Any], str]] = {
    "who am I": (lambda client: client.whoami(), "/user"),
    "who is that": (lambda client: client.user("alice"), "/users/alice"),
    "is there a repository": (lambda client: client.repository("recipes", "web"), "/repos/recipes/web"),
    "is it there by its id": (lambda client: client.repository_by_id(1), "/repositories/1"),
    "is there a branch": (lambda client: client.branch_head("recipes", "web", "main"), "/branches/main"),
    "is there a file": (lambda client: client.read_file("recipes", "web", "compose.yml", "main"), "/contents/compose.yml"),
    "is there a pull request": (lambda client: client.pull("recipes", "web", 1), "/pulls/1"),
    "has it this commit": (lambda client: client.pull_commits("recipes", "web", 1), "/pulls/1/commits"),
    "what was said there": (lambda client: list(client.pull_comments("recipes", "web", 1, None)), "/issues/1/comments"),
    "what was reviewed": (lambda client: list(client.pull_reviews("recipes", "web", 1, None)), "/pulls/1/reviews"),
    "what changed there": (lambda client: list(client.repository_pulls("recipes", "web", LONG_AGO)), "/repos/recipes/web/pulls"),
    "what changed": (lambda client: list(client.changed_pulls(LONG_AGO, "recipes")), "/issues/search"),
    "what carries the topic": (lambda client: list(client.repositories_with_topic("recipes", "x")), "/repos/search"),
    "is she a member": (lambda client: client.is_member("recipes", "alice"), "/orgs/recipes/members/alice"),
    "which teams are there": (lambda client: client.in_team("recipes", "makers", "alice"), "/orgs/recipes/teams"),
    "may I see the team": (lambda client: client.in_team("recipes", "makers", "alice"), "/teams/1"),
    "is she in the team": (lambda client: client.in_team("recipes", "makers", "alice"), "/teams/1/members/alice"),
    "is she a collaborator": (lambda client: client.is_collaborator("recipes", "web", "alice"), "/collaborators/alice"),
    "what may she do": (lambda client: client.is_collaborator("recipes", "web", "alice"), "/collaborators/alice/permission"),
    "what was pushed": (lambda client: client.last_push("recipes", "web", 1), "/issues/1/timeline"),
    "am I the site's admin": (lambda client: client.is_site_admin(), "/user"),
    "which webhooks are there": (lambda client: list(client.hooks("recipes", "web")), "/hooks"),
    "which webhooks has the owner": (lambda client: list(client.hooks("recipes", "")), "/orgs/recipes/hooks"),
}
#: Answers that are documented for a question after all.
DOCUMENTED = {
    (question, odd)
    for question in ("is she a member", "is she a collaborator")
    for odd in ("204 where a body is due", "cut")  # of 204 there is nothing to cut
}


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A place where each of the questions is answered with yes."""
    place = Place(tmp_path_factory.mktemp("full"), "13.0.0+gitea-1.22.0")
    place.add_recipe("web")
    place.remote.add_member(place.org, place.bot, "owner")
    place.bot.is_admin = True
    place.remote.add_collaborator("recipes/web", place.alice, "write")
    place.remote.add_to_team(place.org, "makers", place.alice, place.bot)
    yield place
    place.close()


@pytest.mark.parametrize("question", QUESTIONS)
def test_all_is_answered_where_nothing_is_odd(full: Place, question: str) -> None:
    full.remote.faults = None
    assert QUESTIONS[question][0](full.client) not in (None, False)


@pytest.mark.parametrize("odd", ODD_ANSWERS)
@pytest.mark.parametrize("question", QUESTIONS)
def test_what_is_no_answer_is_neither_yes_nor_no(full: Place, question: str, odd: str) -> None:
    if (question, odd) in DOCUMENTED:
        return
    ask, where = QUESTIONS[question]
    full.remote.faults = lambda request: ODD_ANSWERS[odd] if request.path.endswith(where) else None
    with pytest.raises(ForgeError) as caught:
        ask(full.client)
    assert not isinstance(caught.value, NotFound | Forbidden | Unauthorized), "none of these was said"


@pytest.mark.parametrize(
    ("question", "answer"), [("what was pushed", None), ("is she a collaborator", None), ("what may she do", True)]
)
def test_a_route_that_is_not_there_is_an_answer_only_where_the_forge_is(full: Place, question: str, answer: bool | None) -> None:
    """A proxy says the same of a forge that is down as an old forge of what it does not know."""
    ask, where = QUESTIONS[question]
    no_route = Fault(status=404, body="404 page not found\n")
    full.remote.faults = lambda request: no_route if request.path.endswith(where) else None
    assert ask(full.client) is answer
    full.remote.faults = lambda request: no_route if question != "what may she do" or where in request.path else None
    if question == "what may she do":
        full.remote.faults = lambda request: None if request.path.endswith("/alice") else no_route
    with pytest.raises(Garbage):
        ask(full.client)


@pytest.mark.parametrize("changes", [{"login": "mallory"}, {"login": ""}, {"id": "1"}])
def test_a_member_of_a_team_is_who_was_asked_for(full: Place, changes: dict[str, Any]) -> None:
    body = json.dumps({"id": 2, "login": "alice", **changes})
    full.remote.faults = lambda request: Fault(body=body) if "/members/" in request.path else None
    with pytest.raises(Garbage):
        full.client.in_team("recipes", "makers", "alice")


@pytest.mark.parametrize(
    ("part", "key", "value", "ask"),
    [
        ("/user", "is_admin", "false", lambda client: client.is_site_admin()),
        ("/user", "is_admin", None, lambda client: client.is_site_admin()),
        ("/repos/recipes/web", "private", None, lambda client: client.repository("recipes", "web")),
        ("/repos/recipes/web", "permissions", {"push": "no"}, lambda client: client.repository("recipes", "web")),
        ("/pulls/1", "state", "", lambda client: client.pull("recipes", "web", 1)),
        ("/pulls/1", "merged", "false", lambda client: client.pull("recipes", "web", 1)),
        ("/permission", "permission", "yes", lambda client: client.is_collaborator("recipes", "web", "alice")),
    ],
)
def test_a_value_that_is_not_documented_is_no_answer(
    full: Place, part: str, key: str, value: Any, ask: Callable[[GiteaClient], Any]
) -> None:
    full.remote.faults = None
    right = full.client._call("GET", _api_path(part)).json()
    full.remote.faults = lambda request: Fault(body=json.dumps({**right, key: value})) if request.path.endswith(part) else None
    with pytest.raises(Garbage):
        ask(full.client)


def _api_path(part: str) -> str:
    places = {"/pulls/1": "/repos/recipes/web/pulls/1", "/permission": "/repos/recipes/web/collaborators/alice/permission"}
    return places.get(part, part)


@pytest.mark.parametrize(
    ("change", "private"),
    [
        ({}, False),
        ({"private": True}, True),
        ({"internal": True}, True),  # of a private organisation
        ({"visibility": "limited"}, True),  # of an organisation that only those see who have logged in
        ({"visibility": "private"}, True),
        ({"visibility": "something new"}, True),
    ],
)
def test_what_is_hidden_with_its_owner_is_private(change: dict[str, object], private: bool) -> None:
    owner = {"id": 2, "login": "recipes", "visibility": change.pop("visibility", "public")}
    assert _repo({"id": 1, "name": "web", "owner": owner, "private": False, "internal": False, **change}).private is private
