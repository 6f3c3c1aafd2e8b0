"""Runs, what happened in them, and what should stand on the forge about them."""

from __future__ import annotations

import uuid
from pathlib import Path

from django.conf import settings
from django.db import models
from django.urls import reverse

from enrollment.models import Comment, PullRequest, Repository


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
#: Not at an end yet.
ACTIVE = (State.AWAITING_APPROVAL, State.QUEUED, *HOLDING)
FINAL = (State.PASSED, State.FAILED, State.ERRORED, State.CANCELLED, State.SUPERSEDED, State.TIMED_OUT)


class TestRun(models.Model):
    """One run of a recipe's tests on one pinned commit. `runs.lifecycle` alone changes its state."""

    __test__ = False  # for pytest, which else takes the name for a test's

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    repository = models.ForeignKey(Repository, on_delete=models.CASCADE, related_name="runs")
    pull_request = models.ForeignKey(PullRequest, null=True, blank=True, on_delete=models.CASCADE, related_name="runs")
    comment = models.OneToOneField(Comment, null=True, blank=True, on_delete=models.CASCADE, related_name="run")
    retry_of = models.ForeignKey("self", null=True, blank=True, on_delete=models.SET_NULL, related_name="retries")
    requested_by = models.CharField(max_length=255)
    sha = models.CharField(max_length=64)
    ref = models.CharField(max_length=255, help_text="What is fetched, such as refs/pull/3/head.")
    base_ref = models.CharField(max_length=255, blank=True, help_text="The branch it goes to; empty: the default branch.")
    stages = models.JSONField(default=list)
    trusted = models.BooleanField(default=False, help_text="False: a stranger's code, run in a full sandbox or not at all.")

    state = models.CharField(max_length=20, choices=State.choices, default=State.QUEUED, db_index=True)
    stop_wanted = models.CharField(max_length=20, blank=True, help_text="cancelled or superseded, once asked for.")
    stop_reason = models.CharField(max_length=500, blank=True)
    reason = models.TextField(blank=True, help_text="One sentence: what failed, and what to do.")
    host = models.CharField(max_length=100, blank=True)
    attempt = models.PositiveSmallIntegerField(default=0)
    deployer = models.CharField(max_length=20, blank=True)
    sandbox = models.CharField(max_length=50, blank=True)
    warnings = models.JSONField(default=list, blank=True)
    teardown = models.JSONField(default=dict, blank=True)
    level = models.PositiveSmallIntegerField(null=True, blank=True, help_text="From 0 to 5; see docs/levels.md.")
    details = models.JSONField(
        default=dict, blank=True, help_text="What else the results say: rungs, lint, extra tests, times, versions."
    )
    log = models.TextField(blank=True, help_text="The last part of the log, kept here so that it outlives the machine.")
    log_offset = models.PositiveBigIntegerField(default=0)
    event_seq = models.PositiveIntegerField(default=0)

    created_at = models.DateTimeField(auto_now_add=True)
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-created_at"]
        indexes = [models.Index(fields=["repository", "-created_at"])]

    def __str__(self) -> str:
        return f"run {self.short_id}"

    def get_absolute_url(self) -> str:
        return reverse("run", args=[self.id])

    @property
    def url(self) -> str:
        return settings.CC_CI.base_url + self.get_absolute_url()

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
        """Where this attempt's files are, on the machine `host` (see docs/run-folder.md)."""
        return Path(settings.CC_CI.data_dir) / "runs" / str(self.id) / str(self.attempt)

    @property
    def seconds(self) -> float | None:
        if self.started_at and self.finished_at:
            return (self.finished_at - self.started_at).total_seconds()
        return None


class StageResult(models.Model):
    run = models.ForeignKey(TestRun, on_delete=models.CASCADE, related_name="stage_results")
    name = models.CharField(max_length=20)
    order = models.PositiveSmallIntegerField()
    status = models.CharField(max_length=20)
    reason = models.TextField(blank=True)
    proven = models.BooleanField(default=True, help_text="False: nothing shows that it did what it is for.")
    seconds = models.FloatField(default=0)
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["run", "order"]
        constraints = [models.UniqueConstraint(fields=["run", "name"], name="one_row_per_stage")]

    def __str__(self) -> str:
        return f"{self.name}: {self.status}"


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

    def __str__(self) -> str:
        return self.name


class Artefact(models.Model):
    """A file that is kept of a run. In the database, since the run's folder is on one machine and goes with it."""

    class Kind(models.TextChoices):
        RESULTS = "results", "results"
        JUNIT = "junit", "JUnit"
        SERVICE_LOG = "service_log", "log of a service"
        DOCKER_EVENTS = "docker_events", "Docker's events"
        PICTURE = "picture", "picture"

    run = models.ForeignKey(TestRun, on_delete=models.CASCADE, related_name="artefacts")
    name = models.CharField(max_length=120)
    kind = models.CharField(max_length=20, choices=Kind.choices)
    title = models.CharField(max_length=120, blank=True)
    bytes = models.PositiveIntegerField(default=0)
    data = models.BinaryField()

    class Meta:
        ordering = ["run", "kind", "name"]
        constraints = [models.UniqueConstraint(fields=["run", "name"], name="one_row_per_artefact")]

    def __str__(self) -> str:
        return self.name

    def get_absolute_url(self) -> str:
        return reverse("run-artefact", args=[self.run_id, self.name])

    @property
    def url(self) -> str:
        return settings.CC_CI.base_url + self.get_absolute_url()


class RunEvent(models.Model):
    """The trail of a run: moves of its state (written with the move) and the harness's own events."""

    run = models.ForeignKey(TestRun, on_delete=models.CASCADE, related_name="events")
    at = models.DateTimeField()
    kind = models.CharField(max_length=30)
    stage = models.CharField(max_length=20, blank=True)
    text = models.TextField(blank=True)
    data = models.JSONField(default=dict, blank=True)
    attempt = models.PositiveSmallIntegerField(default=0)
    seq = models.PositiveIntegerField(null=True, blank=True, help_text="The harness's number of it; empty for our own.")

    class Meta:
        ordering = ["id"]
        constraints = [
            models.UniqueConstraint(
                fields=["run", "attempt", "seq"], name="one_row_per_harness_event", condition=models.Q(seq__isnull=False)
            )
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.text}"


class Report(models.Model):
    """What should stand on the forge, what was posted, and when the next try is due: an outbox.

    `wanted` and `posted` are compared by digest. `marker` is hidden in a comment's text, so that it is found again after a
    crash between the forge's write and ours. `attempted` is the digest that a write was begun for: when it is set and
    `posted` is not equal to it, the forge is looked at before anything is written again.
    """

    class Kind(models.TextChoices):
        REACTION = "reaction", "reaction"
        REPLY = "reply", "reply"
        RUN = "run", "comment on a run"
        STATUS = "status", "commit status"

    key = models.CharField(max_length=100, unique=True, help_text="One row for one thing: kind and what it is about.")
    kind = models.CharField(max_length=10, choices=Kind.choices)
    pull_request = models.ForeignKey(PullRequest, null=True, blank=True, on_delete=models.CASCADE, related_name="reports")
    comment = models.ForeignKey(Comment, null=True, blank=True, on_delete=models.CASCADE, related_name="reports")
    run = models.ForeignKey(TestRun, null=True, blank=True, on_delete=models.CASCADE, related_name="reports")
    repository = models.ForeignKey(Repository, on_delete=models.CASCADE, related_name="reports")

    wanted = models.JSONField(default=dict, help_text="What should stand there.")
    wanted_digest = models.CharField(max_length=64, blank=True)
    marker = models.CharField(max_length=100, blank=True, help_text="Hidden id in the wanted comment.")
    attempted_digest = models.CharField(max_length=64, blank=True)
    posted_digest = models.CharField(max_length=64, blank=True)
    posted_marker = models.CharField(max_length=100, blank=True)
    posted_id = models.BigIntegerField(null=True, blank=True, help_text="The forge's id of the comment that stands there.")
    posted_at = models.DateTimeField(null=True, blank=True)
    stale_ids = models.JSONField(
        default=list, blank=True, help_text="The forge's ids of comments of ours that are to be deleted."
    )

    next_try_at = models.DateTimeField(null=True, blank=True, db_index=True, help_text="Empty: nothing to do.")
    tries = models.PositiveIntegerField(default=0)
    last_error = models.TextField(blank=True)
    given_up = models.BooleanField(default=False, help_text="The forge refuses this for good; the reason is the last error.")

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return self.key


from runs.deferred_models import DeferredItem as DeferredItem  # noqa: E402 - its rows point at runs
