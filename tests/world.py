"""A forge with people and recipes, and cc-ci enrolled there: what most tests of the main path begin with.

`World` drives cc-ci the way its workers do, one step at a time and in this process. Every request that our client makes to
the forge is held against the table of what Gitea's API takes when the test ends.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import requests
from django.db.models import F
from django.utils import timezone
from django_q.models import OrmQ

from enrollment import comments
from enrollment.fakeforge.model import Comment as RemoteComment
from enrollment.fakeforge.model import Pull
from enrollment.fakeforge.server import Server, serve
from enrollment.fakeforge.store import Forge as SandboxForge
from enrollment.forge_access.clients import client_for
from enrollment.forges.base import ForgeClient
from enrollment.models import Comment, Forge, Repository
from enrollment.polling import poller
from enrollment.repositories import add_forge, enroll
from runs import dispatcher, intake, reporting
from runs.models import HOLDING, Report, State, TestRun
from tests.enrollment.fakeforge import allowed
from tests.waiting import PATIENCE, until

#: Those that tests look at which look at every one. (1.26 is nearly like 1.22.)
EVERY_VERSION = ("1.15", "1.22", "13.0.0+gitea-1.22.0")
WEB = Path(__file__).parents[1] / "enrollment" / "fakeforge" / "recipes" / "hello-web"


class Clock:
    """The forge's clock: the real one, moved by hand when a test wants it."""

    def __init__(self) -> None:
        self.offset = timedelta()
        self.fixed: datetime | None = None

    def __call__(self) -> datetime:
        return (self.fixed or datetime.now(UTC)) + self.offset

    def move(self, **units: float) -> None:
        self.offset += timedelta(**units)


def decided(key: str) -> Report:
    """A report with what it would say if it were sent now."""
    report = Report.objects.get(key=key)
    reporting._decide(report)
    return report


class World:
    """An organisation `recipes` with a member `alice`, an outsider `mallory`, the bot `cc-ci`, and recipes with pull requests."""

    def __init__(self, root: Path, version: str = "1.15") -> None:
        self.clock = Clock()
        self.remote = SandboxForge(root / "forge", version, self.clock)
        self.server: Server = serve(self.remote)
        self.settle_in()

    def settle_in(self) -> None:
        """The people, their organisation, and cc-ci's token."""
        remote = self.remote
        self.admin = remote.add_user("root", admin=True)
        self.alice = remote.add_user("alice")
        self.mallory = remote.add_user("mallory")
        self.bot = remote.add_user("cc-ci")
        self.org = remote.add_org("recipes", self.admin)
        remote.add_member(self.org, self.alice, "write")
        remote.add_member(self.org, self.bot, "read")
        self.token = remote.add_token(self.bot)

    def close(self) -> None:
        self.server.stop()
        wrong = [problem for request in self.own_requests() if (problem := self._judge(request))]
        assert not wrong, "our client asked what Gitea's API does not know:\n" + "\n".join(wrong)

    @staticmethod
    def _judge(request) -> str | None:  # type: ignore[no-untyped-def]
        return allowed.check(request.method, request.path, request.query, request.body)

    def own_requests(self) -> list:  # type: ignore[type-arg]
        """What our client asked, oldest first."""
        return [request for request in self.remote.requests if request.header("User-Agent").startswith("cc-ci/")]

    # --- what stands there

    def add_recipe(self, name: str = "web", owner: str = "recipes", *, files: Path | dict[str, str | bytes] | None = None) -> str:
        """A repository with an open pull request 1 by alice from a branch of its own. Gives its full name."""
        repo = self.remote.add_repo(owner, name, files=files or {"compose.yml": "services: {}\n"})
        self.remote.push(repo, "change", {"notes.txt": "a change\n"}, "Change", self.alice)
        self.remote.open_pull(repo, repo, "change", self.alice, "A change")
        return repo.full_name

    def add_fork_pull(self, recipe: str, user: str = "mallory") -> Pull:
        """An open pull request from somebody's fork."""
        fork = self.remote.fork(recipe, user)
        self.remote.push(fork, "patch", {"patch.txt": "from outside\n"}, "Patch", user)
        return self.remote.open_pull(recipe, fork, "patch", user, "From outside")

    def say(self, recipe: str, body: str = "!testme", user: str = "alice", number: int = 1, **more: object) -> RemoteComment:
        return self.remote.comment(recipe, number, user, body, **more)  # type: ignore[arg-type]

    def own_comments(self, recipe: str, number: int = 1) -> list[str]:
        """The texts of cc-ci's comments there, oldest first."""
        issue = self.remote.issue(recipe, number)
        return [row.body for row in self.remote.comments_of(issue) if row.user_id == self.bot.id]

    def reactions(self, comment: RemoteComment) -> list[str]:
        issue = next(row for row in self.remote.tables.issues.values() if row.id == comment.issue_id)
        return [row.content for row in self.remote.reactions_of(issue, comment)]

    def consent(self, target: str, name: str) -> str:
        """Say yes, as this person, at the forge's address that a login leads to. Gives where the forge leads back to."""
        origin = "{0.scheme}://{0.netloc}".format(urlsplit(target))
        form = {"user": name, "granted": "true"}
        answer = requests.post(target, form, headers={"Origin": origin}, allow_redirects=False, timeout=60)
        assert answer.status_code == 303, answer.text
        return answer.headers["Location"]

    # --- cc-ci

    def connect(self) -> Forge:
        forge, _ = add_forge(self.server.url, self.token, "sandbox")
        self.forge = forge
        return forge

    def enroll(self, *recipes: str) -> list[Repository]:
        rows = []
        for recipe in recipes:
            owner, name = recipe.split("/")
            client = self.client()  # the one that was just answered, and so knows the forge's time
            row, _ = enroll(self.forge, client.repository(owner, name), Repository.Source.HAND, client)
            rows.append(row)
        return rows

    def client(self) -> ForgeClient:
        return client_for(self.forge)

    def poll(self) -> comments.PollResult:
        self.forge.refresh_from_db()
        return poller.poll(self.forge)

    def settle(self) -> None:
        """Handle all comments that are due, and make due wishes true."""
        for row in Comment.objects.filter(outcome="").order_by("created_at", "forge_comment_id"):
            intake.handle(row.pk)
        self.report()

    def report(self) -> None:
        for _ in range(3):  # what came up, or failed, while sending is sent, too
            # A comment may be edited only every few seconds.
            Report.objects.update(posted_at=F("posted_at") - reporting.EDIT_EVERY)
            Report.objects.filter(next_try_at__gt=timezone.now()).update(next_try_at=timezone.now())
            reporting.send_due()

    def hear(self) -> None:
        self.poll()
        self.settle()

    def run_all(self, seconds: float = PATIENCE) -> None:
        """Let every run come to its end, with real harness processes."""
        until(self._step, seconds=seconds)
        self.report()

    def _step(self) -> bool:
        dispatcher.dispatch()
        dispatcher.supervise()
        return not TestRun.objects.filter(state__in=[State.QUEUED, *HOLDING]).exists()

    @staticmethod
    def queue_length() -> int:
        return OrmQ.objects.count()
