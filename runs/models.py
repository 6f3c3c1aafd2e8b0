"""Runs, their events and results, and what the forge should show about them."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any
from urllib.parse import quote

from django.conf import settings
from django.db import models
from django.urls import reverse

from controlplane.secrets import EncryptedTextField, reveal
from enrollment.models import Comment, Forge, PullRequest, Repository


class State(models.TextChoices):
    AWAITING_APPROVAL = "awaiting_approval", "awaiting approval"
    QUEUED = "queued", "queued"
    STARTING = "starting", "starting"
    RUNNING = "running", "running"
    PASSED = "passed", "passed"
    FAILED = "failed", "failed"
    ERRORED = "errored", "errored"
    CANCELLED = "cancelled", "cancelled"
    SUPERSEDED = "superseded", "superseded"
    TIMED_OUT = "timed_out", "timed out"


#: Holding a slot on a machine.
HOLDING = (State.STARTING, State.RUNNING)
#: Not ended yet.
ACTIVE = (State.AWAITING_APPROVAL, State.QUEUED, *HOLDING)
FINAL = (State.PASSED, State.FAILED, State.ERRORED, State.CANCELLED, State.SUPERSEDED, State.TIMED_OUT)
#: Ended with a judgement of the recipe; all other ends are ours or somebody's wish.
JUDGED = (State.PASSED, State.FAILED, State.TIMED_OUT)


class RemoteExecutor(models.Model):
    """A CI server that runs happen on instead of this machine, and the repository there whose pipeline starts the harness."""

    class Kind(models.TextChoices):
        DRONE = "drone", "Drone"
        WOODPECKER = "woodpecker", "Woodpecker"

    name = models.CharField(max_length=100, unique=True)
    kind = models.CharField(max_length=20, choices=Kind.choices, default=Kind.DRONE)
    url = models.CharField("URL", max_length=200, help_text="Such as https://drone.example.org, without /api.")
    token = EncryptedTextField(blank=True, default="")
    repository = models.CharField(max_length=255, help_text="OWNER/REPO of the runner repository, which holds the pipeline.")
    branch = models.CharField(max_length=255, default="main", help_text="The branch whose pipeline is used.")
    slots = models.PositiveSmallIntegerField(default=1, help_text="Concurrent runs there, whichever machine started them.")
    forges = models.ManyToManyField(
        Forge,
        blank=True,
        related_name="executors",
        help_text="Forges whose repositories run here, unless one has its own choice.",
    )

    failures = models.PositiveIntegerField(default=0, editable=False, help_text="Failed requests in a row.")
    open_until = models.DateTimeField(null=True, blank=True, editable=False, help_text="No requests until then.")
    last_error = models.CharField(max_length=500, blank=True, editable=False)
    hook_secret = EncryptedTextField(blank=True, default="", help_text="Signs Drone's webhooks. Empty: they are off.")
    version = models.CharField(max_length=50, blank=True, editable=False, help_text="The server's, when it was last checked.")
    capabilities = models.JSONField(default=list, editable=False, help_text="What it can do, when it was last checked.")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["name"]
        verbose_name = "executor"

    def __str__(self) -> str:
        return self.name

    def reveal_token(self) -> str:
        return reveal(self.token)

    def reveal_hook_secret(self) -> str:
        return reveal(self.hook_secret)


class ExecutorChoice(models.Model):
    """A repository's own executor, which takes precedence over its forge's."""

    repository = models.OneToOneField(Repository, on_delete=models.CASCADE, related_name="executor_choice")
    executor = models.ForeignKey(
        RemoteExecutor, null=True, blank=True, on_delete=models.CASCADE, related_name="choices", help_text="Empty: this machine."
    )

    class Meta:
        ordering = ["repository"]
        verbose_name = "executor of a repository"
        verbose_name_plural = "executors of repositories"

    def __str__(self) -> str:
        return f"{self.repository}: {self.executor or 'this machine'}"


def unless_under_way(collector: Any, field: Any, rows: Any, using: str) -> None:
    """Runs under way protect their executor, of which ended ones need the name only."""
    on_delete = models.PROTECT if any(row.active for row in rows) else models.SET_NULL
    on_delete(collector, field, rows, using)


class TestRun(models.Model):
    """A run of a recipe's tests on one pinned commit. Only `runs.lifecycle` changes its state."""

    __test__ = False  # pytest would otherwise collect it because of its name

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    repository = models.ForeignKey(Repository, on_delete=models.CASCADE, related_name="runs")
    pull_request = models.ForeignKey(PullRequest, null=True, blank=True, on_delete=models.CASCADE, related_name="runs")
    comment = models.OneToOneField(Comment, null=True, blank=True, on_delete=models.CASCADE, related_name="run")
    retry_of = models.ForeignKey("self", null=True, blank=True, on_delete=models.SET_NULL, related_name="retries")
    requested_by = models.CharField(max_length=255)
    asked_by = models.BigIntegerField(
        null=True, blank=True, help_text="The forge's id of who asked by a button instead of a comment."
    )
    sha = models.CharField(max_length=64)
    ref = models.CharField(max_length=255, help_text="What is fetched, such as refs/pull/3/head.")
    base_ref = models.CharField(max_length=255, blank=True, help_text="The branch it goes to; empty: the default branch.")
    stages = models.JSONField(default=list)
    taken_over = models.JSONField(
        default=list, blank=True, help_text="Stages that do not run: their results are taken over from the run that this repeats."
    )
    upgrade_from = models.CharField(
        max_length=200, blank=True, help_text="The published version to upgrade from; empty: the newest one."
    )
    quick = models.BooleanField(
        default=False, help_text="Starts on the data of the default branch's last good run, and never counts."
    )
    trusted = models.BooleanField(default=False, help_text="No: a stranger's code, run in a full sandbox or not at all.")
    scheduled = models.BooleanField(default=False, help_text="Nobody waits for it: it starts when no other run is queued.")

    state = models.CharField(max_length=20, choices=State.choices, default=State.QUEUED, db_index=True)
    stop_wanted = models.CharField(max_length=20, blank=True, help_text="cancelled or superseded, once asked for.")
    stop_reason = models.CharField(max_length=500, blank=True)
    reason = models.TextField(blank=True, help_text="One sentence: what failed, and what to do.")
    host = models.CharField(max_length=100, blank=True)
    executor = models.ForeignKey(
        RemoteExecutor, null=True, blank=True, on_delete=unless_under_way, related_name="runs", help_text="Empty: this machine."
    )
    executor_name = models.CharField(max_length=100, blank=True, help_text="Its name, kept when it is removed.")
    build_url = models.CharField(max_length=500, blank=True, help_text="The executor's page of this attempt.")
    attempt = models.PositiveSmallIntegerField(default=0)
    deployer = models.CharField(max_length=20, blank=True)
    sandbox = models.CharField(max_length=50, blank=True)
    warnings = models.JSONField(default=list, blank=True)
    teardown = models.JSONField(default=dict, blank=True)
    level = models.PositiveSmallIntegerField(null=True, blank=True, help_text="From 0 to 5; see docs/verdicts.md.")
    details = models.JSONField(
        default=dict, blank=True, help_text="The rest of the results: rungs, lint, extra tests, times, versions."
    )
    log = models.TextField(blank=True, help_text="The last part of the log, kept here so that it outlives the machine.")
    log_offset = models.PositiveBigIntegerField(default=0)
    event_seq = models.PositiveIntegerField(default=0)

    created_at = models.DateTimeField(auto_now_add=True)
    started_at = models.DateTimeField(null=True, blank=True)
    woken_at = models.DateTimeField(null=True, blank=True, help_text="When its executor's server last said that there is news.")
    finished_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-created_at"]
        verbose_name = "run"
        indexes = [
            models.Index(fields=["repository", "-created_at"]),
            models.Index(fields=["-created_at", "-id"]),
            models.Index(fields=["state", "-created_at", "-id"]),
            models.Index(fields=["repository", "-started_at"]),
            models.Index(fields=["repository", "sha"]),
            models.Index(fields=["sha"]),
            models.Index(fields=["requested_by", "-created_at"]),
            models.Index(fields=["pull_request", "-created_at"]),
        ]

    def __str__(self) -> str:
        return f"run {self.short_id}"

    def get_absolute_url(self) -> str:
        return reverse("run", args=[self.id])

    @property
    def url(self) -> str:
        return settings.CC_CI.base_url + self.get_absolute_url()

    @property
    def card_url(self) -> str:
        """The picture for previews of links."""
        return settings.CC_CI.base_url + reverse("run-card", args=[self.id])

    @property
    def tests_path(self) -> str:
        """The page with the history of the repository's tests; for a stranger's code with the runs of this commit."""
        query = "" if self.trusted else f"?commit={quote(self.sha)}"
        return f"{reverse('test-history', args=[self.repository_id])}{query}"

    @property
    def short_id(self) -> str:
        return self.id.hex[:8]

    @property
    def short_sha(self) -> str:
        return self.sha[:10]

    @property
    def active(self) -> bool:
        return self.state in ACTIVE

    @property
    def folder(self) -> Path:
        """The folder of this attempt's files, on the machine `host` (see docs/run-folder.md)."""
        return Path(settings.CC_CI.data_dir) / "runs" / str(self.id) / str(self.attempt)

    @property
    def seconds(self) -> float | None:
        if self.started_at and self.finished_at:
            return (self.finished_at - self.started_at).total_seconds()
        return None


class ScheduledRun(models.Model):
    """That a repository's turn came: one row per night and kind, unique, so that no night has two. `runs.scheduled` writes it.

    Rows of `cc-ci run-all` have no night. A row without a run says in `note` why there was nothing to run.
    """

    class Kind(models.TextChoices):
        BRANCH = "branch", "default branch"
        VERSION = "version", "newest published version"

    repository = models.ForeignKey(Repository, on_delete=models.CASCADE, related_name="scheduled_runs")
    kind = models.CharField(max_length=10, choices=Kind.choices)
    night = models.DateField(null=True, blank=True, help_text="The date of its night, or the Monday of its week.")
    extra = models.BooleanField(default=False, help_text="Whether extra tests are run.")
    version = models.CharField(max_length=200, blank=True, help_text="The published version.")
    run = models.ForeignKey(TestRun, null=True, blank=True, on_delete=models.CASCADE, related_name="scheduled_rows")
    note = models.CharField(max_length=200, blank=True)
    settled_at = models.DateTimeField(null=True, blank=True, help_text="When its verdict was compared with the one before.")
    change = models.CharField(max_length=10, blank=True, help_text="worse or better than the run before; empty: neither.")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-id"]
        constraints = [models.UniqueConstraint(fields=["repository", "kind", "night"], name="one_scheduled_run_a_night")]
        indexes = [
            models.Index(fields=["created_at"], condition=models.Q(settled_at=None), name="scheduled_runs_to_settle"),
        ]

    def __str__(self) -> str:
        return f"{self.repository}: {self.what}"

    @property
    def what(self) -> str:
        """What was tested, for people."""
        return f"version {self.version}" if self.kind == self.Kind.VERSION else "default branch"


class StageResult(models.Model):
    run = models.ForeignKey(TestRun, on_delete=models.CASCADE, related_name="stage_results")
    name = models.CharField(max_length=20)
    order = models.PositiveSmallIntegerField()
    status = models.CharField(max_length=20)
    reason = models.TextField(blank=True)
    proven = models.BooleanField(default=True, help_text="No: nothing shows that the stage achieved its purpose.")
    seconds = models.FloatField(default=0)
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)
    #: Not a foreign key: what was taken over stays so when that run is deleted.
    taken_from = models.UUIDField(null=True, blank=True, help_text="The run that ran this stage; empty: this one.")

    class Meta:
        ordering = ["run", "order"]
        verbose_name = "stage"
        constraints = [models.UniqueConstraint(fields=["run", "name"], name="one_row_per_stage")]

    def __str__(self) -> str:
        return f"{self.name}: {self.status}"

    @property
    def origin(self) -> TestRun | None:
        """The run that it was taken over from, of which only the id is known; None for one of the run's own."""
        return TestRun(id=self.taken_from) if self.taken_from else None


class CaseResult(models.Model):
    stage = models.ForeignKey(StageResult, on_delete=models.CASCADE, related_name="cases")
    name = models.CharField(max_length=500)
    file = models.CharField(max_length=500, blank=True)
    status = models.CharField(max_length=20, db_index=True)
    seconds = models.FloatField(default=0)
    message = models.TextField(blank=True)
    output = models.TextField(blank=True)

    class Meta:
        ordering = ["stage", "id"]
        verbose_name = "test result"

    def __str__(self) -> str:
        return self.name


class Artefact(models.Model):
    """A file kept from a run. In the database, because the run's folder is on one machine and is deleted with it."""

    class Kind(models.TextChoices):
        RESULTS = "results", "results"
        JUNIT = "junit", "JUnit"
        SERVICE_LOG = "service_log", "log of a service"
        DOCKER_EVENTS = "docker_events", "Docker's events"
        PICTURE = "picture", "picture"
        LOG = "log", "whole log"

    run = models.ForeignKey(TestRun, on_delete=models.CASCADE, related_name="artefacts")
    name = models.CharField(max_length=120)
    kind = models.CharField(max_length=20, choices=Kind.choices)
    title = models.CharField(max_length=120, blank=True)
    bytes = models.PositiveIntegerField(default=0)
    data = models.BinaryField()

    class Meta:
        ordering = ["run", "kind", "name"]
        verbose_name = "file"
        constraints = [models.UniqueConstraint(fields=["run", "name"], name="one_row_per_artefact")]

    def __str__(self) -> str:
        return self.name

    def get_absolute_url(self) -> str:
        return reverse("run-artefact", args=[self.run_id, self.name])

    @property
    def url(self) -> str:
        return settings.CC_CI.base_url + self.get_absolute_url()


class RunEvent(models.Model):
    """The trail of a run: its state changes (written in the same transaction) and the harness's own events."""

    run = models.ForeignKey(TestRun, on_delete=models.CASCADE, related_name="events")
    at = models.DateTimeField()
    kind = models.CharField(max_length=30)
    stage = models.CharField(max_length=20, blank=True)
    text = models.TextField(blank=True)
    data = models.JSONField(default=dict, blank=True)
    attempt = models.PositiveSmallIntegerField(default=0)
    seq = models.PositiveIntegerField(null=True, blank=True, help_text="The harness's sequence number; empty for our own events.")

    class Meta:
        ordering = ["id"]
        verbose_name = "run event"
        constraints = [
            models.UniqueConstraint(
                fields=["run", "attempt", "seq"], name="one_row_per_harness_event", condition=models.Q(seq__isnull=False)
            )
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.text}"


class Report(models.Model):
    """What the forge should show, what was posted, and when the next attempt is due: an outbox.

    What was posted is known by its digest. `marker` is hidden in a comment's text, to find the comment again after a crash
    between the forge's write and ours. `attempted_digest` is that of a write that was started: if it is set, the forge is checked
    before anything is written again.
    """

    class Kind(models.TextChoices):
        REACTION = "reaction", "reaction"
        REPLY = "reply", "reply"
        RUN = "run", "comment on a run"
        STATUS = "status", "commit status"
        ISSUE = "issue", "issue about scheduled runs"

    key = models.CharField(max_length=100, unique=True, help_text="Unique: the kind, and what it is about.")
    kind = models.CharField(max_length=10, choices=Kind.choices)
    pull_request = models.ForeignKey(PullRequest, null=True, blank=True, on_delete=models.CASCADE, related_name="reports")
    comment = models.ForeignKey(Comment, null=True, blank=True, on_delete=models.CASCADE, related_name="reports")
    run = models.ForeignKey(TestRun, null=True, blank=True, on_delete=models.CASCADE, related_name="reports")
    repository = models.ForeignKey(Repository, on_delete=models.CASCADE, related_name="reports")

    wanted = models.JSONField(default=dict, help_text="What the forge should show, as far as decided.")
    revision = models.CharField(max_length=32, blank=True, help_text="Changes each time that it becomes due.")
    marker = models.CharField(max_length=100, blank=True, help_text="Hidden id in the wanted comment.")
    attempted_digest = models.CharField(max_length=64, blank=True)
    posted_digest = models.CharField(max_length=64, blank=True)
    posted_marker = models.CharField(max_length=100, blank=True)
    posted_id = models.BigIntegerField(null=True, blank=True, help_text="The forge's id of the posted comment.")
    posted_at = models.DateTimeField(null=True, blank=True)
    stale_ids = models.JSONField(default=list, blank=True, help_text="The forge's ids of our comments that are to be deleted.")

    next_try_at = models.DateTimeField(null=True, blank=True, db_index=True, help_text="Empty: nothing to do.")
    tries = models.PositiveIntegerField(default=0)
    last_error = models.TextField(blank=True)
    given_up = models.BooleanField(default=False, help_text="The forge refuses this for good; the reason is the last error.")

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return self.key


class DeferredItem(models.Model):
    """One entry of a `DEFERRED.md`: never deleted, and closed once, by a conditional UPDATE (`runs.deferred.registry`).

    `ticked` is the state of the box when the file was last read. A row can be closed while the box is still empty: the proof was
    accepted, and the change to the file (a pull request or patch) is pending.
    """

    class State(models.TextChoices):
        OPEN = "open", "open"
        CLOSED = "closed", "closed"

    class RecipeBy(models.TextChoices):
        NOBODY = "", "not known"
        SLUG = "slug", "guess: its slug starts with the name"
        WHAT = "what", "guess: it is named in What"
        HAND = "hand", "set manually"

    source = models.CharField(max_length=700, help_text="The file: a repository's URL and a path in it, or a local path.")
    source_repository = models.ForeignKey(
        Repository, null=True, blank=True, on_delete=models.SET_NULL, related_name="deferred_entries"
    )
    source_path = models.CharField(max_length=500, blank=True, help_text="The file's path in that repository.")
    slug = models.CharField(max_length=200)
    filed_on = models.DateField()
    line = models.PositiveIntegerField(help_text="The line of its heading when the file was last read.")
    what = models.TextField(help_text="Markdown.")
    filed_by = models.TextField(blank=True)
    why = models.TextField("reason", blank=True, help_text="Why it was deferred.")
    trigger = models.TextField("re-entry trigger", blank=True)
    linked = models.TextField(blank=True)

    recipe = models.ForeignKey(Repository, null=True, blank=True, on_delete=models.SET_NULL, related_name="deferred_items")
    recipe_by = models.CharField(max_length=10, choices=RecipeBy.choices, default=RecipeBy.NOBODY, blank=True)

    state = models.CharField(max_length=10, choices=State.choices, default=State.OPEN, db_index=True)
    ticked = models.BooleanField(default=False, help_text="Whether the box in the file was ticked when it was last read.")
    closed_at = models.DateTimeField(null=True, blank=True)
    closed_commit = models.CharField(max_length=64, blank=True, help_text="The commit that ported the test.")
    closed_test = models.CharField(max_length=500, blank=True, help_text="The test's path in the recipe.")
    proof = models.ForeignKey(
        "runs.TestRun",
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="closes",
        help_text="The run that passed it.",
    )
    unproven = models.BooleanField(default=False, help_text="Closed without a run that passed the test.")
    pull_url = models.CharField(max_length=500, blank=True, help_text="The pull request that ticks the box.")

    vanished_at = models.DateTimeField(null=True, blank=True, help_text="Since when the entry is no longer in its file.")
    synced_at = models.DateTimeField(null=True, blank=True, help_text="When reading the file last changed this row.")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-filed_on", "slug", "id"]
        verbose_name = "deferred test"
        constraints = [models.UniqueConstraint(fields=["source", "filed_on", "slug"], name="one_row_per_deferred_entry")]

    def __str__(self) -> str:
        return self.slug

    @property
    def recipe_name(self) -> str:
        return self.recipe.name if self.recipe else ""

    @property
    def guessed(self) -> bool:
        """Whether cc-ci guessed the recipe, rather than a person choosing it."""
        return self.recipe_by in (self.RecipeBy.SLUG, self.RecipeBy.WHAT)

    @property
    def private(self) -> bool:
        """Whether only those who may see private repositories may see this.

        Entries from a repository that is no longer enrolled stay hidden: whether it was public is no longer known.
        """
        lost = bool(self.source_path) and self.source_repository is None
        return lost or any(row.private for row in (self.recipe, self.source_repository) if row)

    @property
    def file_name(self) -> str:
        """The file's name for everybody: without folders for a local file."""
        if self.source_repository:
            return f"{self.source_repository.full_name}:{self.source_path}"
        return self.source.rpartition("/")[2]
