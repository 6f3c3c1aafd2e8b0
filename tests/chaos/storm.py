"""A storm at a forge, in virtual time: hundreds of repositories, people who write, hooks that die, and answers that go wrong.

`Storm` plays the people, the forge's deliveries and our workers, as events on one clock. Everything of ours that decides is the
real code, called as the queue and the ticker call it; only the harness is stood in for: a run that was claimed ends after some
time, by `lifecycle.move`. `check` compares what stands at the forge with what was written there, comment by comment.
"""

from __future__ import annotations

import heapq
import itertools
import json
import random
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import import_module
from urllib.parse import urlsplit

from django.conf import settings
from django.db import connection
from django.utils import timezone
from django_q.models import OrmQ

from controlplane.registry import registry
from enrollment.fakeforge.deliveries import _wants, headers, payload
from enrollment.fakeforge.faults import Request
from enrollment.fakeforge.issues import Event
from enrollment.fakeforge.model import Comment as RemoteComment
from enrollment.fakeforge.model import Hook, Pull, Repo
from enrollment.models import Comment, Delivery, Forge, PullRequest, WebhookConfig
from enrollment.webhooks import receiver
from enrollment.webhooks.reconcile import reconcile
from runs import lifecycle
from runs.models import FINAL, HOLDING, Report, State, TestRun
from tests.chaos.air import FAIR, Air, Strike, VirtualTime
from tests.enrollment.hooks import commit_at_once, forge_side
from tests.world import World

START = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
MINUTE, HOUR = 60.0, 3600.0
SLOTS = 40

#: Of 100 comments by members so many are of each kind.
MEMBERS_SAY = {
    "!testme": 46,
    "!testme --stages install": 12,
    "!testme --extra-tests": 6,
    "!testme status": 5,
    "!testme help": 4,
    "!testme retry": 5,
    "!testme cancel": 4,
    "!testme --nonsense": 5,
    "Looks good to me.": 13,
}
#: What a comment by a member may come to.
COMES_TO = {
    "!testme": {"run", "joined"},
    "!testme --stages install": {"run", "joined"},
    "!testme --extra-tests": {"run", "joined"},
    "!testme status": {"reply"},
    "!testme help": {"reply"},
    "!testme retry": {"run", "joined", "reply"},
    "!testme cancel": {"acted", "reply"},
    "!testme --nonsense": {"reply"},
}


@dataclass(frozen=True)
class Size:
    """`minutes` of people writing. For half of that the forge cannot be reached from here, nor reaches us; they go on."""

    minutes: int
    repositories: int
    comments: int
    renames: int
    forks: int
    hook_troubles: int
    pushes: int


@dataclass
class Said:
    """A comment somebody wrote, and what may come of it."""

    row: RemoteComment
    pull: Pull
    by_member: bool
    body: str
    decoy: bool = False


@dataclass
class Storm:
    """One storm. `run` lets it happen; `check` raises AssertionError for whatever is missing or there twice."""

    world: World
    size: Size
    seed: int
    dice: random.Random = field(init=False)
    clock: VirtualTime = field(default_factory=lambda: VirtualTime(START, workers=8))
    said: list[Said] = field(default_factory=list)
    raised: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    pulls: list[Pull] = field(default_factory=list)
    decoys: list[Pull] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self.air = Air(self.world.remote, self.clock.wait)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = itertools.count()
        self._begun = 0.0
        self._deaf: dict[int, float] = {}  # hook -> until when what it sends is lost
        self._concluded: Counter[str] = Counter()
        self._written: Counter[str] = Counter()  #: our comments that were ever posted, by their hidden mark

    # --- the stage

    @contextmanager
    def weather(self) -> Iterator[None]:
        """Virtual time, no sockets and, within a test's transaction, commits that happen at once."""
        with ExitStack() as stack:
            stack.enter_context(self.clock.running())
            stack.enter_context(self.air.carrying())
            if connection.in_atomic_block:
                stack.enter_context(commit_at_once())
            receiver.forget()
            random.seed(self.seed)
            try:
                yield
            finally:
                receiver.forget()

    def build(self) -> None:
        """Five organisations: at one the bot reads only, at two it administers the repositories, at two it owns all."""
        world, remote = self.world, self.world.remote
        world.clock.move(seconds=-45)  # the forge's clock is behind ours
        orgs = [world.org]
        for number, permission in enumerate(("admin", "admin", "owner", "owner")):
            org = remote.add_org(f"org{number}", world.admin)
            remote.add_member(org, world.alice, "write")
            remote.add_member(org, world.bot, permission)
            orgs.append(org)
        self.forge = world.connect()
        world.add_recipe("r0")
        first, pull = remote.repo("recipes/r0"), remote.pull("recipes/r0", 1)
        self.pulls.append(pull)
        for number in range(1, self.size.repositories):
            self.pulls.append(self._twin(first, pull, orgs[number % len(orgs)], f"r{number}"))
        self.clock.wait(60)
        for row in list(remote.tables.repos.values()):
            world.enroll(row.full_name)
        for pull in self.dice.sample(self.pulls, self.size.forks):
            self.pulls.append(world.add_fork_pull(remote.tables.repos[pull.repo_id].full_name))
        reconcile(self.forge, apply=True)
        remote.listeners.append(self._hear)

    def _twin(self, first: Repo, pull: Pull, owner: object, name: str) -> Pull:
        """The same repository once more, without asking git for each."""
        remote, tables = self.world.remote, self.world.remote.tables
        repo = deepcopy(first)
        repo.id, repo.owner_id, repo.owner, repo.name = tables.next_id("repos"), owner.id, owner.login, name  # type: ignore[attr-defined]
        tables.repos[repo.id] = repo
        shutil.copytree(remote.folder(first), remote.folder(repo))
        twin = deepcopy(pull)
        twin.id, twin.pull_id, twin.repo_id, twin.head_repo_id = (
            tables.next_id("issues"),
            tables.next_id("pulls"),
            repo.id,
            repo.id,
        )
        twin.number = tables.next_id(f"numbers of {repo.id}")
        tables.issues[twin.id] = twin
        return twin

    # --- the weather

    def _gone(self) -> bool:
        return self._begun + self.size.minutes * 20 <= self.clock() < self._begun + self.size.minutes * 50

    def _strike(self, request: Request) -> Strike:
        dice = self.dice
        if self._gone():
            return Strike("gone", lost=True)
        if dice.random() >= 0.3:
            return FAIR
        lost = dice.random() < 0.5
        kind = dice.choice(("500", "timeout", "cut", "slow"))
        if kind == "500":
            return Strike(kind, lost=lost, status=500, body=b'{"message": "database table is locked"}')
        if kind == "timeout":
            return Strike(kind, lost=lost, hang=True)
        if kind == "cut":
            return Strike(kind, cut=dice.uniform(0, 0.99))
        return Strike(kind, slow=dice.uniform(0.2, 0.9 * settings.CC_CI.http_timeout))

    # --- events

    def at(self, second: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (second, next(self._number), action))

    def run(self, patience: float = 4 * HOUR) -> None:
        """Let people write for a while, and then, in the same weather, wait until all is quiet."""
        begun, seconds = self.clock(), self.size.minutes * MINUTE
        self._begun = begun
        self.air.strike = self._strike
        for _ in range(self.size.comments):
            self.at(begun + self.dice.uniform(0, seconds), self._somebody_writes)
        for _ in range(self.size.renames):
            self.at(begun + self.dice.uniform(0, seconds), self._rename)
        for _ in range(self.size.pushes):
            self.at(begun + self.dice.uniform(0, seconds), self._push)
        for _ in range(self.size.hook_troubles):
            self.at(begun + self.dice.uniform(seconds / 12, seconds), self._trouble_a_hook)
        for task in registry.recurring.values():
            if task.name.startswith("enrollment.") or task.name in ("runs.tasks.send_reports", "runs.tasks.sweep_comments"):
                self._recur(begun + self.dice.uniform(0, task.every_seconds), task.task, task.every_seconds)
        self._recur(begun, "", 5)
        while self._events:
            second, _, action = heapq.heappop(self._events)
            self.clock.until(second)
            action()
            self._take_queued()
            if self.clock() > begun + seconds and self.counts["looked"] % 50 == 0 and self._quiet():
                break
            self.counts["looked"] += 1
            assert self.clock() < begun + seconds + patience, f"seed {self.seed}: not quiet in time\n{self.still_open()}"
        self.counts["virtual minutes until all was quiet"] = int((self.clock() - begun) / 60)

    def _recur(self, second: float, task: str, every: float) -> None:
        def tick() -> None:
            self._do(task) if task else self._harness()
            self._recur(max(self.clock(), second + every), task, every)

        self.at(second, tick)

    def _take_queued(self) -> None:
        """What was put into the queue is done by some worker soon, in no certain order."""
        for row in OrmQ.objects.order_by("pk"):
            task = row.task
            row.delete()
            name, args = str(task["func"]), tuple(task["args"])
            if name in ("runs.tasks.dispatch", "runs.tasks.supervise"):
                continue  # the harness is looked after every few seconds
            self.at(self.clock() + self.dice.uniform(0.05, 2), lambda name=name, args=args: self._do(name, *args))  # type: ignore[misc]

    def _do(self, name: str, *args: object) -> None:
        module, _, function = name.rpartition(".")
        try:
            getattr(import_module(module), function)(*args)
        except Exception as error:
            self.raised.append(f"{name}{args}: {type(error).__name__}: {error}")
        self.counts["tasks"] += 1

    def _quiet(self) -> bool:
        return not (
            Comment.objects.filter(outcome="").exists()
            or Report.objects.filter(next_try_at__isnull=False).exists()
            or PullRequest.objects.filter(comments_wanted_since__isnull=False).exists()
            or Delivery.objects.filter(outcome="accepted").exists()
            or TestRun.objects.exclude(state__in=FINAL).exists()
            or self._unseen()
        )

    def _unseen(self) -> list[Said]:
        known = set(Comment.objects.values_list("forge_comment_id", flat=True))
        return [said for said in self.said if self._is_command(said) and said.row.id not in known]

    def still_open(self) -> str:
        return json.dumps(
            {
                "comments": list(Comment.objects.filter(outcome="").values_list("forge_comment_id", "tries", "last_error")[:9]),
                "reports": list(Report.objects.filter(next_try_at__isnull=False).values_list("key", "tries", "last_error")[:9]),
                "pulls": list(PullRequest.objects.exclude(comments_wanted_since=None).values_list("pk", "comments_failures")[:9]),
                "runs": list(TestRun.objects.exclude(state__in=FINAL).values_list("state", flat=True)[:9]),
                "unseen": [(said.row.id, said.row.created, said.body) for said in self._unseen()[:9]],
                "forges": list(Forge.objects.values_list("last_error", "backoff_until", "cursor")),
                "hooks": dict(Counter(WebhookConfig.objects.values_list("state", flat=True))),
            },
            indent=1,
            default=str,
        )

    # --- the harness

    def _harness(self) -> None:
        """Claim what waits, and end what was stopped; a run that is under way ends by itself some time later."""
        self.world.remote.settle()
        holding = TestRun.objects.filter(state__in=HOLDING)
        for run in holding.exclude(stop_wanted=""):
            self._end(run, "supersede" if run.stop_wanted == State.SUPERSEDED else "cancel", reason=run.stop_reason)
        busy = set(holding.values_list("pull_request", flat=True))
        for run in TestRun.objects.filter(state=State.QUEUED).order_by("created_at"):
            if len(busy) >= SLOTS or run.pull_request_id in busy:
                continue
            busy.add(run.pull_request_id)
            assert lifecycle.move(run, "claim", host="storm", attempt=1, started_at=timezone.now())
            assert lifecycle.move(run, "begin")
            self.at(self.clock() + self.dice.uniform(20, 200), lambda run=run: self._end(run, self.dice.choice(("pass", "fail"))))  # type: ignore[misc]

    def _end(self, run: TestRun, event: str, reason: str = "") -> None:
        if lifecycle.move(run, event, reason, reason=reason):
            self._concluded[str(run.pk)] += 1

    # --- people

    def _somebody_writes(self) -> None:
        world, dice = self.world, self.dice
        if self.decoys and dice.random() < 0.02:
            pull, decoy = dice.choice(self.decoys), True
        else:
            busy = self.pulls[: max(5, len(self.pulls) // 20)]
            pull, decoy = dice.choice(busy if dice.random() < 0.4 else self.pulls), False
        by_member = dice.random() < 0.92
        body = dice.choices(list(MEMBERS_SAY), list(MEMBERS_SAY.values()))[0] if by_member else "!testme"
        user = world.alice if by_member else world.mallory
        later = dice.uniform(5, 60) if dice.random() < 0.05 else 0.0  # shows some time after the time that it carries
        repo = world.remote.tables.repos[pull.repo_id]
        row = world.remote.comment(repo, pull.number, user, body, visible_after=later)
        self.said.append(Said(row, pull, by_member, body, decoy))

    def _rename(self) -> None:
        """Another name for a repository, whose old one somebody takes at times; rarely for an organisation."""
        remote = self.world.remote
        number = next(self._number)
        if self.dice.random() < 0.1:
            remote.rename_user(self.dice.choice([row for row in remote.tables.users.values() if row.is_org]), f"org-{number}")
            self.counts["organisations renamed"] += 1
            return
        pull = self.dice.choice(self.pulls)
        repo = remote.tables.repos[pull.repo_id]
        old = repo.name
        remote.rename_repo(repo, f"renamed-{number}")
        self.counts["repositories renamed"] += 1
        if self.dice.random() < 0.5:
            self.decoys.append(self._twin(repo, pull, remote.tables.users[repo.owner_id], old))

    def _push(self) -> None:
        pull = self.dice.choice(self.pulls[: max(5, len(self.pulls) // 20)])
        remote = self.world.remote
        remote.push(remote.tables.repos[pull.head_repo_id], pull.head_branch, {"notes.txt": f"{next(self._number)}\n"}, "More")
        self.counts["pushes"] += 1

    def _trouble_a_hook(self) -> None:
        """A hook is deaf for a while, is removed, is switched off and later on again, or loses its events."""
        hooks = list(self.world.remote.tables.hooks.values())
        if not hooks:
            return
        hook = self.dice.choice(hooks)
        what = self.dice.choice(("deaf", "deaf", "removed", "off", "changed"))
        self.counts[f"hooks {what}"] += 1
        if what == "deaf":
            self._deaf[hook.id] = self.clock() + self.dice.uniform(5, 30) * MINUTE
        elif what == "removed":
            del self.world.remote.tables.hooks[hook.id]
        elif what == "off":
            hook.active = False
            self.at(self.clock() + self.dice.uniform(5, 20) * MINUTE, lambda: setattr(hook, "active", True))
        else:
            hook.events = ["push"]

    # --- deliveries

    def _hear(self, event: Event) -> None:
        remote, dice, now = self.world.remote, self.dice, self.clock()
        if event.action == "created" and event.sender.id == self.world.bot.id:
            self._written[event.comment.body.partition("\n")[0]] += 1
        for hook in list(remote.tables.hooks.values()):
            if not hook.active or not _wants(remote, hook, event):
                continue
            fate = dice.choices(("well", "lost", "doubled", "late"), (70, 10, 10, 10))[0]
            if self._gone() or self._deaf.get(hook.id, 0) > now:
                fate = "lost"
            self.counts[f"deliveries {fate}"] += 1
            if fate == "lost":
                continue
            body = json.dumps(payload(remote, event), ensure_ascii=False).encode()
            given = headers(remote, hook, event, body)
            given = {name: value for name, value in given.items() if name != "Content-Type"}
            delay = dice.uniform(30, 25 * MINUTE) if fate == "late" else dice.uniform(0, 5)
            for number in range(2 if fate == "doubled" else 1):
                self.at(
                    now + delay + number * dice.uniform(0, 60),
                    lambda hook=hook, given=given, body=body: self._post(hook, given, body),
                )  # type: ignore[misc]

    def _post(self, hook: Hook, given: dict[str, str], body: bytes) -> None:
        if self._gone():
            return
        address = urlsplit(hook.url)
        answer = forge_side().post(f"{address.path}?{address.query}", body, content_type="application/json", headers=given)
        self.counts[f"receiver answered {answer.status_code}"] += 1

    # --- what must hold in the end

    def _is_command(self, said: Said) -> bool:
        return not said.decoy and "!testme" in said.body

    def _comes_to(self, said: Said) -> set[str]:
        """What may come of a member's comment. Of a stranger's code nothing but the line that names the commit, where the forge
        does not tell when it was pushed."""
        wanted = COMES_TO[said.body]
        strange = said.pull.head_repo_id != said.pull.repo_id and not self.world.remote.features.timeline
        return {"reply"} if strange and wanted == {"run", "joined"} else wanted

    def check(self) -> None:
        """Every comment answered exactly once, and nothing else written."""
        assert not self.raised, f"seed {self.seed}: {len(self.raised)} tasks raised: {self.raised[:5]}"
        wrong = list(self._problems())
        # What was posted a second time and deleted again has called people twice.
        wrong += [f"{mark}: written {times} times" for mark, times in self._written.items() if times > 1]
        for what, there in (
            ("a comment came by a delivery", Comment.objects.filter(via="delivery").exists()),
            ("the receiver took a delivery", self.counts["receiver answered 202"]),
            ("a hook is verified", WebhookConfig.objects.filter(state="verified").exists()),
        ):
            if not there:
                wrong.append(f"not so: {what}")
        assert not wrong, f"seed {self.seed}: {len(wrong)} wrong\n" + "\n".join(wrong[:20])

    def _problems(self) -> Iterator[str]:
        bot = self.world.bot.id
        tables = self.world.remote.tables
        own = [row for row in tables.comments.values() if row.user_id == bot]
        replies = Counter(_marked(row.body, "cc-ci:reply:") for row in own)
        eyes = Counter(row.comment_id for row in tables.reactions.values() if row.user_id == bot and row.content == "eyes")
        rows: dict[int, list[Comment]] = defaultdict(list)
        for row in Comment.objects.all():
            rows[row.forge_comment_id].append(row)
        runs = Counter(TestRun.objects.values_list("comment__forge_comment_id", flat=True))
        told: dict[tuple[int, int], list[str]] = defaultdict(list)  # (pull request, outsider) -> outcomes
        for said in self.said:
            found, name = rows.pop(said.row.id, []), f"comment {said.row.id} {said.body!r}"
            if not self._is_command(said):
                if found or runs[said.row.id] or replies[str(said.row.id)] or eyes[said.row.id]:
                    yield f"{name}: nothing was to come of it"
                continue
            if len(found) != 1:
                yield f"{name}: {len(found)} rows"
                continue
            outcome = found[0].outcome
            self.counts[f"outcome {outcome}"] += 1
            if not said.by_member:
                told[said.pull.id, said.row.user_id].append(outcome)
            elif outcome not in self._comes_to(said):
                yield f"{name}: {outcome} ({found[0].reason})"
            wanted = (int(outcome == "run"), int(outcome == "reply"), int(outcome in ("run", "joined", "acted")))
            have = (runs[said.row.id], replies[str(said.row.id)], eyes[said.row.id])
            if wanted != have:
                yield f"{name}, {outcome}: {have} runs, replies and reactions, not {wanted}"
        for (pull, _), outcomes in told.items():
            if sorted(outcomes) != ["ignored"] * (len(outcomes) - 1) + ["reply"]:
                yield f"an outsider at pull request {pull} was told: {outcomes}"
        if rows:
            yield f"rows of comments that nobody wrote: {list(rows)[:5]}"
        yield from self._report_problems(own)

    def _report_problems(self, own: list[RemoteComment]) -> Iterator[str]:
        reports: dict[int, list[str]] = defaultdict(list)
        for row in own:
            if mark := _marked(row.body, "cc-ci:run:"):
                reports[row.issue_id].append(mark)
            elif not _marked(row.body, "cc-ci:reply:"):
                yield f"our comment {row.id} has no mark"
        issues = {(issue.repo_id, issue.number): issue.id for issue in self.world.remote.tables.issues.values()}
        newest: dict[int, TestRun] = {}
        for run in TestRun.objects.select_related("pull_request__repository").order_by("created_at"):
            assert run.pull_request
            newest[issues[run.pull_request.repository.forge_repo_id, run.pull_request.number]] = run
            self.counts[f"run {run.state}"] += 1
            if run.state not in FINAL or self._concluded[str(run.pk)] > 1:
                yield f"{run} is {run.state}, and was concluded {self._concluded[str(run.pk)]} times"
        for issue in {*newest, *reports}:
            wanted = [f"{newest[issue].id}:verdict"] if issue in newest else []
            if reports[issue] != wanted:
                yield f"pull request {issue}: reports {reports[issue]}, not {wanted}; {self._story(newest.get(issue))}"
        self.counts["reports"] = len(newest)
        for report in Report.objects.filter(given_up=True).exclude(kind=Report.Kind.STATUS):
            yield f"{report} was given up: {report.last_error}"

    def _story(self, run: TestRun | None) -> str:
        """What became of the runs of this one's pull request, and of their report."""
        runs = TestRun.objects.filter(pull_request=run.pull_request_id if run else None).order_by("created_at")
        reports = Report.objects.filter(pull_request=run.pull_request_id if run else None, kind=Report.Kind.RUN)
        told = [f"{row.pk} {row.state} {row.created_at:%H:%M:%S.%f}-{row.finished_at:%H:%M:%S.%f}" for row in runs]
        return f"runs {told}; {list(reports.values())}"

    def words(self) -> str:
        """What happened, in figures."""
        lines = [f"seed {self.seed}; {sum(self.air.counts.values())} requests: {dict(self.air.counts.most_common())}"]
        lines += [f"  {count:7} {name}" for name, count in sorted(self.counts.items()) if name != "looked"]
        lines.append(f"  hooks in the end: {dict(Counter(WebhookConfig.objects.values_list('state', flat=True)))}")
        lines.append(f"  comments found by: {dict(Counter(Comment.objects.values_list('via', flat=True)))}")
        return "\n".join(lines)


def _marked(body: str, prefix: str) -> str:
    """What stands behind a mark of ours at the beginning of a comment."""
    head = f"<!-- {prefix}"
    return body[len(head) :].partition(" -->")[0] if body.startswith(head) else ""
