"""Another kind of forge is one object: here a dictionary, which polling, intake and reports work on as on any other.

And nothing of the first kind is known outside of its own folder.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
from django.conf import settings
from django.core.management import call_command
from django.test import Client
from django.utils import timezone

from enrollment import permission_report, tasks
from enrollment.forge_access import clients
from enrollment.forge_access.permissions import PERMISSIONS
from enrollment.forges.base import (
    Event,
    Forbidden,
    ForgeClient,
    ForgeKind,
    Found,
    Garbage,
    Head,
    Heard,
    Hook,
    NotFound,
    Pages,
    Pull,
    PullSummary,
    Push,
    RemoteComment,
    RemoteFile,
    RemoteIssue,
    RemoteTag,
    Repo,
    Sample,
    StatusState,
    User,
)
from enrollment.forges.gitea.kind import GITEA
from enrollment.forges.gitea.payloads import SIGNATURES
from enrollment.forges.kinds import KINDS
from enrollment.models import Comment, Delivery, Forge, Repository, Right, WebhookConfig
from enrollment.models.webhooks import hooks_address
from enrollment.polling import poller
from enrollment.repositories import enroll
from enrollment.webhooks import process, receiver
from enrollment.webhooks.views import steps
from runs import intake, reporting
from runs.models import Report, TestRun
from runs.templatetags.run_pages import commit_url
from tests.enrollment.hooks import sign
from tests.factories import WebhookConfigFactory

pytestmark = [pytest.mark.django_db, pytest.mark.slow(0.2)]

BOT, ALICE, MALLORY = User(1, "cc-ci"), User(2, "alice"), User(3, "mallory")
WEB = Repo(7, "recipes", 70, "web", False, "main", "memory:web", "https://memory.example.org/web", frozenset({"pull"}))
EARLIER = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=1)
HEAD = Head(WEB.id, WEB.full_name, User(WEB.owner_id, WEB.owner), "change")
PULL = Pull(1, "A change", ALICE, "open", False, f"{WEB.html_url}/1", EARLIER, EARLIER, "a" * 40, HEAD, WEB, "main")


@dataclass
class Memory:
    """All that such a forge holds, as its client."""

    only: ClassVar[Memory]

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

    def private_repositories(self) -> Iterator[int]:
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

    def tags(self, owner: str, name: str) -> Iterator[RemoteTag]:
        return iter(())

    def issues(self, owner: str, name: str, since: datetime) -> Iterator[RemoteIssue]:
        return iter(())

    def open_issue(self, owner: str, name: str, *, title: str, body: str) -> RemoteIssue:
        raise NotImplementedError

    def close_issue(self, owner: str, name: str, number: int) -> None:
        raise NotImplementedError

    def pull_comments(self, owner: str, name: str, number: int, since: datetime | None) -> Iterator[RemoteComment]:
        for comment in list(self.comments.values()):
            if since is None or comment.updated_at >= since:
                yield comment

    def pull_reviews(self, owner: str, name: str, number: int, since: datetime | None) -> Iterator[RemoteComment]:
        return iter(())

    def repository_pulls(self, owner: str, name: str, since: datetime) -> Iterator[Pull]:
        return iter(())

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

    def sign(self, secret: bytes, body: bytes) -> str:
        return hashlib.sha512(secret + body).hexdigest()

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


MEMORY = ForgeKind(
    name="memory",
    label="a dictionary",
    client=lambda *args, **more: cast(ForgeClient, Memory.only),
    pull_ref="changes/{number}",
    api="/remember",
    pages=Pages(commit="{repository}/!{sha}", hooks="{repository}/tell"),
    deliveries=Letters(),
    events=(Event("words", "Words"),),
    hook_steps=("At {hooks} tell of {events} to {url}.",),
    scopes={"comment": "talk"},
)


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Memory:
    """A forge of this kind with one repository that is watched."""
    monkeypatch.setattr(settings.CC_CI, "data_dir", tmp_path / "data")
    monkeypatch.setattr(Memory, "only", memory := Memory(), raising=False)
    monkeypatch.setitem(KINDS, "memory", MEMORY)
    monkeypatch.setenv("TOKEN", "x")
    call_command("forge", "add", "--kind", "memory", "--url", "https://memory.example.org/remember", "--token-env", "TOKEN")
    forge = Forge.objects.get(kind="memory", url="https://memory.example.org")
    row, _ = enroll(forge, WEB, Repository.Source.HAND, clients.client_for(forge))
    Repository.objects.filter(pk=row.pk).update(enrolled_at=timezone.now() - timedelta(minutes=5))
    return memory


def seal(text: bytes) -> str:
    return Letters().sign(WebhookConfig.objects.get().reveal_secret().encode(), text)


def hear() -> None:
    for _ in range(2):
        poller.poll(Forge.objects.get())
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
    assert (run.ref, commit_url(run.repository, run.sha)) == ("changes/1", f"{WEB.html_url}/!{run.sha}")
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


def test_its_scopes_and_pages_are_told(memory: Memory) -> None:
    hear()
    row = Repository.objects.get()
    assert {line.name: line.scope for line in permission_report.lines_of(row.forge)}["comment"] == "talk"
    (step,) = cast(list[str], steps(row)["steps"])
    link = f'<a href="{WEB.html_url}/tell">the repository’s webhooks</a>'
    assert step == f"At {link} tell of <strong>Words</strong> to {hooks_address(row.forge_id)}?hook=…."


def test_it_delivers_in_its_own_words(memory: Memory) -> None:
    said = memory.say(ALICE, "!testme")
    hook = WebhookConfigFactory(repository=Repository.objects.get(), state="registered")
    letter = {"where": WEB.id, "on": 1, "number": said.id, "who": ALICE.id, "called": "alice", "text": said.body}
    receiver.forget()
    for body, status in (({**letter, "at": said.created_at.timestamp()}, 202), (letter, 400)):
        text = json.dumps(body).encode()
        headers = {"Memory-Seal": seal(text), "Memory-About": "words", "Memory-Number": f"letter {status}"}
        answer = Client().post(f"/hooks/{hook.forge_id}/?hook={hook.key}", text, "application/json", headers=headers)
        assert answer.status_code == status
    gitea = {"X-Gitea-Event": "issue_comment", "X-Gitea-Signature": sign(b"{}")}
    assert Client().post(f"/hooks/{hook.forge_id}/", b"{}", "application/json", headers=gitea).status_code == 401
    process.take_waiting()
    assert set(Delivery.objects.values_list("delivery_id", "outcome")) == {("letter 202", "stored"), ("letter 400", "rejected")}
    heard = Comment.objects.get()
    assert (heard.forge_comment_id, heard.via, heard.pull_request.title) == (said.id, "delivery", "A change")
    hook.refresh_from_db()
    assert hook.state == "verified"
    receiver.forget()


def test_a_kind_that_tells_nobody_by_itself_takes_no_deliveries(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "memory", replace(MEMORY, deliveries=None))
    hook = WebhookConfigFactory(repository=Repository.objects.get())
    receiver.forget()
    headers = {"Memory-Seal": seal(b"{}"), "X-Gitea-Signature": sign(b"{}")}
    answer = Client().post(f"/hooks/{hook.forge_id}/?hook={hook.key}", b"{}", "application/json", headers=headers)
    assert answer.status_code == 401
    receiver.forget()


# --- what is Gitea's own


#: What only Gitea and Forgejo call so: themselves, their headers, paths, events, scopes and refs.
OWN = re.compile(
    r"gitea|forgejo|X-Hub-|api/v1|/settings/|/pulls?/|/commit/|/issues/|refs/pull"
    r"|issue_comment|pull_request_(comment|review)|\b(read|write):(repository|issue|user|organization|admin)\b",
    re.IGNORECASE,
)
ROOT = Path(__file__).resolve().parents[2]
#: Where it is all right, and why. (Comments and docstrings may say what they like.)
ALLOWED = {
    "enrollment/forges/gitea/": "its own folder",
    "enrollment/forges/kinds.py": "the line that names it",
    "enrollment/fakeforge/": "plays one",
    "runs/demo.py": "a person at the fake forge",
    "runs/recipe_urls.py": "the address of a page of ours",
    "enrollment/models/core.py": "the kind of a forge that was added before there were kinds",
    "runs/models.py": "an example in the help of a field",
    "runs/management/commands/run.py": "an example in the help of an option",
}


def own_words(path: Path) -> set[str]:
    """What a file says that is Gitea's own, outside of comments and docstrings."""
    if path.suffix == ".html":
        return {found[0] for found in OWN.finditer(re.sub(r"(?s){% comment %}.*?{% endcomment %}|{#.*?#}", "", path.read_text()))}
    tree = ast.parse(path.read_text())
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)}
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in prose]
    names = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {found[0] for text in [*texts, *names] if isinstance(text, str) for found in OWN.finditer(text)}


def test_nothing_of_the_first_kind_is_known_elsewhere() -> None:
    found = {
        path.relative_to(ROOT).as_posix(): words
        for package in ("controlplane", "enrollment", "runs", "infra")
        for pattern in ("*.py", "*.html")
        for path in (ROOT / package).rglob(pattern)
        if "migrations" not in path.parts and (words := own_words(path))
    }
    assert {name: words for name, words in found.items() if not name.startswith(tuple(ALLOWED))} == {}
    assert [place for place in ALLOWED if not any(name.startswith(place) for name in found)] == [], "allowed for nothing"


def test_the_docs_name_what_the_first_kind_has() -> None:
    docs = {name: (ROOT / "docs" / f"{name}.md").read_text() for name in ("webhooks", "trust", "install", "enroll-recipe")}
    for event in GITEA.events:
        assert all(f"`{name}`" in docs["webhooks"] for name in (event.name, *event.read_as))
        assert event.label in docs["webhooks"] and event.label in docs["enroll-recipe"]
    assert all(f"`{header}`" in docs["webhooks"] for header in SIGNATURES)
    for name, spec in PERMISSIONS.items():
        scopes = ", ".join(f"`{scope}`" for scope in GITEA.scopes[name].split(", "))
        assert bool(spec.beyond) != (f"| {spec.text} | {scopes} | " in docs["trust"])
    assert set(GITEA.scopes) == {*PERMISSIONS, "people"} and f"`{GITEA.scopes['people']}`" in docs["trust"]
    assert all(f"`{GITEA.scopes[name]}`" in docs["enroll-recipe"] for name in ("comment", "membership", "people"))
    needed = {scope for name in ("read", "comment", "membership", "people") for scope in GITEA.scopes[name].split(", ")}
    (line,) = [line for line in docs["install"].splitlines() if "create a token with" in line]
    # Who may write issues may read them.
    assert set(re.findall(r"`(\w+:\w+)`", line)) == needed - {"read:issue"}
    assert GITEA.label in docs["install"]


def test_each_page_of_the_first_kind_can_be_written() -> None:
    words = {"forge": "https://f", "repository": "https://f/o/r", "owner": "o", "before": "b", "sha": "a"}
    assert all(page.format(**words).startswith("https://f/") for page in vars(GITEA.pages).values())
    assert GITEA.pull_ref.format(number=3) == "refs/pull/3/head"
    assert all(step.format(hooks="", url="", events="") for step in GITEA.hook_steps)
