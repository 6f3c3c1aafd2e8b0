"""Another kind of forge is one class: here a dictionary, which polling, intake and reports work on as on any other."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from django.conf import settings
from django.test import Client
from django.utils import timezone

from enrollment import clients, deliveries, polling, receiver, tasks
from enrollment.enrolling import enroll
from enrollment.forges.base import (
    Forbidden,
    ForgeClient,
    Found,
    Garbage,
    Gate,
    Head,
    Heard,
    Hook,
    NotFound,
    Pull,
    PullSummary,
    Push,
    RemoteComment,
    RemoteFile,
    Repo,
    Sample,
    StatusState,
    User,
)
from enrollment.models import Comment, Delivery, Forge, Repository, Right
from runs import intake, reporting
from runs.models import Report, TestRun
from tests.enrollment.hooks import sign
from tests.factories import WebhookConfigFactory

pytestmark = pytest.mark.django_db

BOT, ALICE, MALLORY = User(1, "cc-ci"), User(2, "alice"), User(3, "mallory")
WEB = Repo(7, "recipes", 70, "web", False, "main", "memory:web", "https://memory.example.org/web", frozenset({"pull"}))
EARLIER = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=1)
HEAD = Head(WEB.id, WEB.full_name, User(WEB.owner_id, WEB.owner), "change")
PULL = Pull(1, "A change", ALICE, "open", False, f"{WEB.html_url}/1", EARLIER, EARLIER, "a" * 40, HEAD, WEB, "main")


@dataclass
class Memory:
    """All that such a forge holds. A class that does these things is all that another kind needs."""

    members: set[str] = field(default_factory=lambda: {"alice", "cc-ci"})
    pulls: dict[int, Pull] = field(default_factory=lambda: {1: PULL})
    comments: dict[int, RemoteComment] = field(default_factory=dict)
    reactions: list[tuple[int, str]] = field(default_factory=list)
    statuses: list[tuple[str, str]] = field(default_factory=list)
    asked: int = 0

    @property
    def server_time(self) -> datetime:
        return datetime.now(UTC)

    def say(self, author: User, body: str) -> RemoteComment:
        now = datetime.now(UTC).replace(microsecond=0)
        number = len(self.comments) + 100
        self.comments[number] = RemoteComment(number, 1, author, body, f"{WEB.html_url}/1#{number}", now, now)
        self.pulls[1] = replace(self.pulls[1], updated_at=now)
        return self.comments[number]

    def version(self) -> str:
        return "memory 1"

    def whoami(self) -> User:
        return BOT

    def user(self, login: str) -> User | None:
        return next((user for user in (BOT, ALICE, MALLORY) if user.login == login), None)

    def repository(self, owner: str, name: str) -> Repo:
        if (owner, name) != (WEB.owner, WEB.name):
            raise NotFound(f"{owner}/{name}")
        return WEB

    def repository_by_id(self, repo_id: int) -> Repo:
        if repo_id != WEB.id:
            raise NotFound(str(repo_id))
        return WEB

    def repositories_with_topic(self, owner: str, topic: str) -> Iterator[Repo]:
        yield from ()

    def branch_head(self, owner: str, name: str, branch: str) -> str:
        return ("a" if branch == "change" else "b") * 40

    def read_file(self, owner: str, name: str, path: str, branch: str) -> RemoteFile:
        raise NotFound(path)

    def changed_pulls(self, since: datetime, owner: str | None) -> Iterator[PullSummary]:
        self.asked += 1
        for pull in self.pulls.values():
            if pull.updated_at >= since:
                names = (WEB.id, WEB.full_name, pull.number, pull.title)
                yield PullSummary(*names, pull.author, pull.state, pull.html_url, pull.updated_at)

    def pull(self, owner: str, name: str, number: int) -> Pull:
        return self.pulls[number]

    def pull_commits(self, owner: str, name: str, number: int) -> list[str]:
        return [self.pulls[number].head_sha]

    def pull_comments(self, owner: str, name: str, number: int, since: datetime | None) -> Iterator[RemoteComment]:
        for comment in list(self.comments.values()):
            if since is None or comment.updated_at >= since:
                yield comment

    def repository_comments(self, owner: str, name: str, since: datetime) -> Iterator[RemoteComment]:
        return self.pull_comments(owner, name, 1, since)

    def is_member(self, org: str, login: str) -> bool:
        return login in self.members

    def in_team(self, org: str, team: str, login: str) -> bool | None:
        return None

    def is_site_admin(self) -> bool | None:
        return None

    def probe(self, sample: Sample) -> Iterator[Found]:
        yield Found("timeline", True, "a dictionary remembers")

    def is_collaborator(self, owner: str, name: str, login: str) -> bool | None:
        return None

    def last_push(self, owner: str, name: str, number: int) -> Push | None:
        return Push(self.pulls[number].created_at, self.pulls[number].head_sha)

    def post_comment(self, owner: str, name: str, number: int, body: str) -> RemoteComment:
        return self.say(BOT, body)

    def edit_comment(self, owner: str, name: str, comment_id: int, body: str) -> None:
        self.comments[comment_id] = replace(self.comments[comment_id], body=body)

    def delete_comment(self, owner: str, name: str, comment_id: int) -> None:
        del self.comments[comment_id]

    def react(self, owner: str, name: str, comment_id: int, content: str) -> None:
        self.reactions.append((comment_id, content))

    def set_status(
        self, owner: str, name: str, sha: str, *, state: StatusState, context: str, description: str, target_url: str
    ) -> None:
        self.statuses.append((sha, state))

    def change_file(
        self, owner: str, name: str, file: RemoteFile, content: bytes, *, branch: str, new_branch: str, message: str
    ) -> None:
        raise Forbidden("a dictionary takes no commits")

    def open_pull(self, owner: str, name: str, *, head: str, base: str, title: str, body: str) -> Pull:
        raise Forbidden("a dictionary takes no pull requests")

    def hooks(self, owner: str, name: str) -> Iterator[Hook]:
        raise Forbidden("a dictionary tells nobody")

    def create_hook(self, owner: str, name: str, *, url: str, secret: str, events: Sequence[str]) -> Hook:
        raise Forbidden("a dictionary tells nobody")

    def edit_hook(self, owner: str, name: str, hook: Hook) -> Hook:
        raise Forbidden("a dictionary tells nobody")

    def delete_hook(self, owner: str, name: str, hook_id: int) -> None:
        raise Forbidden("a dictionary tells nobody")


class Letters:
    """What it would tell a webhook of by itself: nothing like Gitea's."""

    def signatures(self, headers: Mapping[str, str]) -> list[str]:
        return [headers.get("Memory-Seal", "")]

    def event(self, headers: Mapping[str, str]) -> str:
        return headers.get("Memory-About", "")

    def delivery_id(self, headers: Mapping[str, str]) -> str:
        return headers.get("Memory-Number", "")

    def hear(self, event: str, data: dict[str, Any]) -> Heard:
        try:
            at = datetime.fromtimestamp(data["at"], UTC)
            author = User(data["who"], data["called"])
            comment = RemoteComment(data["number"], data["on"], author, data["text"], "", at, at)
            if event != "words":
                return Heard(data["where"], "", "", unwanted="no words")
            return Heard(data["where"], "recipes/web", "created", number=data["on"], comment=comment, title="A change")
        except (KeyError, TypeError) as error:
            raise Garbage(f"no letter: {error}") from error


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Memory:
    """A forge of this kind with one repository that is watched."""
    monkeypatch.setattr(settings.CC_CI, "data_dir", tmp_path / "data")
    memory = Memory()

    def make(forge: Forge, gate: Gate | None) -> ForgeClient:
        return cast(ForgeClient, memory)

    monkeypatch.setitem(clients.KINDS, "memory", make)
    monkeypatch.setitem(clients.DELIVERIES, "memory", Letters())
    forge = Forge.objects.create(name="memory", url="https://memory.example.org", kind="memory")
    row, _ = enroll(forge, WEB, Repository.Source.HAND, clients.client_for(forge))
    Repository.objects.filter(pk=row.pk).update(enrolled_at=timezone.now() - timedelta(minutes=5))
    return memory


def hear() -> None:
    for _ in range(2):
        polling.look(Forge.objects.get())
    for row in Comment.objects.filter(outcome="").order_by("forge_comment_id"):
        intake.handle(row.pk)
    Report.objects.exclude(next_try_at=None).update(next_try_at=timezone.now())
    reporting.send_due()


def test_it_knows_all_the_words_of_a_client() -> None:
    verbs = {name for name in vars(ForgeClient) if not name.startswith("_")}
    assert verbs <= {name for name in dir(Memory) if not name.startswith("_")}


def test_a_comment_becomes_a_run_and_an_answer(memory: Memory) -> None:
    said = memory.say(ALICE, "!testme")
    hear()
    run = TestRun.objects.get()
    assert (run.sha, run.requested_by, run.trusted) == ("a" * 40, "alice", True)
    assert Comment.objects.get().forge_comment_id == said.id
    assert memory.reactions == [(said.id, "eyes")]
    assert memory.statuses == [("a" * 40, "pending")]
    assert sum(comment.author == BOT for comment in memory.comments.values()) == 1
    hear()
    assert TestRun.objects.count() == 1
    assert Forge.objects.get().bot_login == "cc-ci"


def test_outsiders_are_outsiders_there_too(memory: Memory) -> None:
    memory.say(MALLORY, "!testme")
    hear()
    assert not TestRun.objects.exists()
    (answer,) = [comment.body for comment in memory.comments.values() if comment.author == BOT]
    assert "@mallory" in answer


def test_its_rights_and_abilities_are_seen(memory: Memory) -> None:
    hear()
    tasks.see_to_rights()
    assert Forge.objects.get().abilities["timeline"]["value"] is True
    seen = {right.name: right.held for right in Right.objects.all()}
    assert seen == {
        "site_admin": "unknown", "membership": "yes", "org_hooks": "no", "read": "yes", "push": "no", "admin": "no", "hooks": "no"
    }  # fmt: skip


def test_it_delivers_in_its_own_words(memory: Memory) -> None:
    said = memory.say(ALICE, "!testme")
    hook = WebhookConfigFactory(repository=Repository.objects.get(), state="registered")
    letter = {"where": WEB.id, "on": 1, "number": said.id, "who": ALICE.id, "called": "alice", "text": said.body}
    receiver.forget()
    for body, status in (({**letter, "at": said.created_at.timestamp()}, 202), (letter, 400)):
        text = json.dumps(body).encode()
        headers = {"Memory-Seal": sign(text), "Memory-About": "words", "Memory-Number": f"letter {status}"}
        answer = Client().post(f"/hooks/{hook.forge_id}/?hook={hook.key}", text, "application/json", headers=headers)
        assert answer.status_code == status
    gitea = {"X-Gitea-Event": "issue_comment", "X-Gitea-Signature": sign(b"{}")}
    assert Client().post(f"/hooks/{hook.forge_id}/", b"{}", "application/json", headers=gitea).status_code == 401
    deliveries.take_waiting()
    assert set(Delivery.objects.values_list("delivery_id", "outcome")) == {("letter 202", "stored"), ("letter 400", "rejected")}
    heard = Comment.objects.get()
    assert (heard.forge_comment_id, heard.via, heard.pull_request.title) == (said.id, "delivery", "A change")
    hook.refresh_from_db()
    assert hook.state == "verified"
    receiver.forget()


def test_a_kind_that_tells_nobody_by_itself_takes_no_deliveries(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(clients.DELIVERIES, "memory")
    hook = WebhookConfigFactory(repository=Repository.objects.get())
    receiver.forget()
    headers = {"Memory-Seal": sign(b"{}"), "X-Gitea-Signature": sign(b"{}")}
    answer = Client().post(f"/hooks/{hook.forge_id}/?hook={hook.key}", b"{}", "application/json", headers=headers)
    assert answer.status_code == 401
    receiver.forget()
