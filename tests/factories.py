"""Rows for tests, each plausible by itself: name only what the test is about.

`TestRunFactory` makes a queued run of a pull request; `state=` and its traits (`running`, `passed`, `failed`) bring the
times that belong to it. Fields that the database fills in (`created_at`, `seen_at`) can be given as well.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import factory
from django.db import models
from django.utils import timezone
from factory.django import DjangoModelFactory

from enrollment.models import Comment, Delivery, Forge, PullRequest, Repository, WebhookConfig
from infra.models import InfraApp, InfraRelease, Snapshot, Upgrade
from runs.models import Artefact, CaseResult, DeferredItem, Report, RunEvent, StageResult, State, TestRun


def ago(**units: float) -> Any:
    """A declaration for a time in the past, such as `ago(minutes=5)`."""
    return factory.LazyFunction(lambda: timezone.now() - timedelta(**units))


def sha_of(number: int) -> str:
    """A commit's name that looks like one and is told apart by its first digits."""
    return f"{(number * 0x9E3779B1) & 0xFFFFFFFF:08x}" * 5


class _Factory(DjangoModelFactory[Any]):
    class Meta:
        abstract = True

    @classmethod
    def _create(cls, model_class: type[Any], *args: Any, **kwargs: Any) -> Any:
        # Django overwrites fields with auto_now_add at the first save; a time that the test gave is put back.
        automatic = {field.name for field in model_class._meta.fields if getattr(field, "auto_now_add", False)}
        given = {name: value for name, value in kwargs.items() if name in automatic}
        row: models.Model = super()._create(model_class, *args, **kwargs)
        if given:
            model_class.objects.filter(pk=row.pk).update(**given)
            for name, value in given.items():
                setattr(row, name, value)
        return row


class ForgeFactory(_Factory):
    class Meta:
        model = Forge

    name = factory.Sequence(lambda n: f"forge{n}.example.org")
    url = factory.Sequence(lambda n: f"https://forge{n}.example.org")
    # Without a token: encrypting one needs a key, and most tests ask no forge.
    token = ""
    bot_id = 2
    bot_login = "cc-ci"
    version = "1.22.3"
    last_ok_at = ago(seconds=10)


class RepositoryFactory(_Factory):
    """A public, watched repository."""

    class Meta:
        model = Repository

    forge = factory.SubFactory(ForgeFactory)
    forge_repo_id = factory.Sequence(lambda n: 100 + n)
    owner = "recipes"
    owner_id = 10
    name = factory.Sequence(lambda n: f"recipe{n}")
    private = False
    html_url = factory.LazyAttribute(lambda row: f"{row.forge.url}/{row.owner}/{row.name}")
    clone_url = factory.LazyAttribute(lambda row: f"{row.html_url}.git")
    enrolled_at = ago(days=30)


class PullRequestFactory(_Factory):
    """An open pull request of alice."""

    class Meta:
        model = PullRequest

    repository = factory.SubFactory(RepositoryFactory)
    number = factory.Sequence(lambda n: n + 1)
    title = "Update the app"
    author_id = 20
    author_login = "alice"
    state = "open"
    html_url = factory.LazyAttribute(lambda row: f"{row.repository.html_url}/pulls/{row.number}")
    head_sha = factory.Sequence(sha_of)
    base_ref = "main"
    seen_updated_at = ago(minutes=10)


class CommentFactory(_Factory):
    """A comment of alice on a pull request, not handled yet."""

    class Meta:
        model = Comment

    forge = factory.LazyAttribute(lambda row: row.pull_request.repository.forge)
    forge_comment_id = factory.Sequence(lambda n: 1000 + n)
    pull_request = factory.SubFactory(PullRequestFactory)
    author_id = 20
    author_login = "alice"
    body = "!testme"
    html_url = factory.LazyAttribute(lambda row: f"{row.pull_request.html_url}#issuecomment-{row.forge_comment_id}")
    created_at = ago(minutes=5)
    updated_at = factory.SelfAttribute("created_at")


class TestRunFactory(_Factory):
    """A run of a pull request's head, asked for by alice."""

    __test__ = False

    class Meta:
        model = TestRun

    class Params:
        running = factory.Trait(
            state=State.RUNNING, started_at=ago(seconds=40), attempt=1, host="ci-1", created_at=ago(seconds=60)
        )
        passed = factory.Trait(
            state=State.PASSED,
            started_at=ago(seconds=100),
            finished_at=ago(seconds=20),
            created_at=ago(seconds=120),
            attempt=1,
            host="ci-1",
            deployer="swarm",
            sandbox="bubblewrap",
            teardown={"clean": True, "left": [], "seconds": 3.2},
        )
        failed = factory.Trait(
            state=State.FAILED,
            reason="1 of 3 tests of the stage custom failed.",
            started_at=ago(seconds=100),
            finished_at=ago(seconds=20),
            created_at=ago(seconds=120),
            attempt=1,
            host="ci-1",
            deployer="swarm",
            sandbox="bubblewrap",
            teardown={"clean": True, "left": [], "seconds": 3.2},
        )

    pull_request = factory.SubFactory(PullRequestFactory)
    repository = factory.LazyAttribute(
        lambda row: row.pull_request.repository if row.pull_request is not None else RepositoryFactory()
    )
    requested_by = "alice"
    sha = factory.LazyAttributeSequence(lambda row, n: row.pull_request.head_sha if row.pull_request is not None else sha_of(n))
    ref = factory.LazyAttribute(
        lambda row: f"refs/pull/{row.pull_request.number}/head" if row.pull_request is not None else "refs/heads/main"
    )
    stages = factory.LazyFunction(lambda: ["install", "custom"])
    trusted = True

    @classmethod
    def _generate(cls, strategy: Any, params: dict[str, Any]) -> Any:
        # `TestRunFactory(repository=row)`: the pull request is one of that repository.
        if "repository" in params and "pull_request" not in params:
            params = {"pull_request__repository": params["repository"], **params}
        return super()._generate(strategy, params)


class StageResultFactory(_Factory):
    class Meta:
        model = StageResult

    run = factory.SubFactory(TestRunFactory, passed=True)
    name = factory.LazyAttribute(lambda row: ["install", "upgrade", "backup", "restore", "custom", "extra"][row.order % 6])
    order = factory.LazyAttribute(lambda row: row.run.stage_results.count())
    status = "passed"
    seconds = 12.3


class CaseResultFactory(_Factory):
    class Meta:
        model = CaseResult

    stage = factory.SubFactory(StageResultFactory)
    name = factory.Sequence(lambda n: f"test_number_{n}")
    file = "tests/test_page.py"
    status = "passed"
    seconds = 0.4


class RunEventFactory(_Factory):
    """A line of our own in the trail; with `seq` one of the harness."""

    class Meta:
        model = RunEvent

    run = factory.SubFactory(TestRunFactory)
    at = factory.LazyFunction(timezone.now)
    kind = "step"
    text = "Deploying"
    attempt = factory.SelfAttribute("run.attempt")


class ReportFactory(_Factory):
    """The comment about a run, due but not posted yet."""

    class Meta:
        model = Report

    run = factory.SubFactory(TestRunFactory)
    repository = factory.SelfAttribute("run.repository")
    pull_request = factory.SelfAttribute("run.pull_request")
    key = factory.Sequence(lambda n: f"run:{n}")
    kind = Report.Kind.RUN
    wanted = factory.LazyFunction(lambda: {"body": "### passed"})
    next_try_at = ago(seconds=1)


class ArtefactFactory(_Factory):
    """A log of the service app."""

    class Meta:
        model = Artefact

    run = factory.SubFactory(TestRunFactory)
    name = "service-app.log"
    kind = "service_log"
    title = "Log of app"
    data = b"listening on :8080\n"
    bytes = factory.LazyAttribute(lambda row: len(row.data))


def details(**changes: Any) -> dict[str, Any]:
    """What the results of a run say beside its stages, as they are kept on its row."""
    rungs = [
        {"level": 1, "name": "install", "status": "reached", "reason": ""},
        {"level": 2, "name": "upgrade", "status": "reached", "reason": ""},
        {"level": 3, "name": "backup and restore", "status": "does_not_apply", "reason": "The recipe declares no backups."},
        {"level": 4, "name": "own tests", "status": "failed", "reason": "1 of 3 tests failed."},
        {"level": 5, "name": "lint", "status": "not_tested", "reason": "The run failed."},
    ]
    extra = {"file": "extra/test_heavy.py", "name": "test_many_users", "covers": ["compose.yml"]}
    return {
        "upgraded_from": "1.0.0+2.0",
        "version": "1.1.0+2.1",
        "images": [
            {"name": "nginx:1.27.3", "digest": f"sha256:{'a1' * 32}", "note": ""},
            {"name": "redis:7", "digest": f"sha256:{'b2' * 32}", "note": "its tag moved: pulled again"},
            {"name": "made/here:1", "digest": "", "note": ""},
        ],
        "timings": [{"step": "pull", "stage": "install", "seconds": 4.2}, {"step": "settle", "stage": "install", "seconds": 8.0}],
        "level": {"value": 2, "rungs": rungs},
        "lint": [
            {"rule": "C010", "level": "warning", "text": "The service db has no health check.", "file": "compose.yml", "line": 12}
        ],
        "metadata": [
            {"name": "Healthcheck", "says": "Yes", "shown": "Yes", "agrees": True, "why": "The service app has a health check."},
            {"name": "Backups", "says": "", "shown": "No", "agrees": False, "why": "The recipe declares no backups."},
            {"name": "Tests", "says": "0", "shown": "3", "agrees": False, "why": "Deployed, and its health checked."},
        ],
        "extras": {"not_run": 1, "suggested": [extra], "tests": [extra]},
        "loosened": ["cc-ci.toml changes app.status from [200] to [200, 404]: this counts once it is merged."],
        "secret_leaks": [],
        "changed": ["compose.yml"],
        **changes,
    }


class DeferredItemFactory(_Factory):
    """An open entry of a DEFERRED.md of this machine, about a recipe of its own."""

    class Meta:
        model = DeferredItem

    source = "/srv/registry/DEFERRED.md"
    slug = factory.LazyAttributeSequence(lambda row, n: f"{row.recipe.name if row.recipe else 'some'}-test-{n}")
    filed_on = factory.LazyFunction(lambda: timezone.now().date())
    line = 5
    what = "Port the test of the login page."
    filed_by = "alice"
    why = "It needs a browser."
    recipe = factory.SubFactory(RepositoryFactory)
    recipe_by = DeferredItem.RecipeBy.SLUG


class WebhookConfigFactory(_Factory):
    """The verified hook of a repository, with a secret of its own."""

    class Meta:
        model = WebhookConfig

    repository = factory.SubFactory(RepositoryFactory)
    forge = factory.LazyAttribute(lambda row: row.repository.forge)
    owner = factory.LazyAttribute(lambda row: row.repository.owner)
    owner_id = factory.LazyAttribute(lambda row: row.repository.owner_id)
    key = factory.Sequence(lambda n: f"{n:016x}")
    secret = "not-a-real-secret"
    remote_id = factory.Sequence(lambda n: 500 + n)
    state = WebhookConfig.State.VERIFIED
    state_at = ago(days=2)


class DeliveryFactory(_Factory):
    """A comment that came through a hook and was stored."""

    class Meta:
        model = Delivery

    hook = factory.SubFactory(WebhookConfigFactory)
    forge = factory.SelfAttribute("hook.forge")
    repository = factory.SelfAttribute("hook.repository")
    delivery_id = factory.Sequence(lambda n: f"00000000-0000-4000-8000-{n:012x}")
    event = "issue_comment"
    action = "created"
    number = 1
    body = "{}"
    received_at = ago(minutes=5)
    handled_at = ago(minutes=5)
    status = 202
    outcome = Delivery.Outcome.STORED


class InfraAppFactory(_Factory):
    """A reconciled, stateless app of the server that runs 1.0.0+2.0 and is pinned to it."""

    class Meta:
        model = InfraApp

    class Params:
        maintained = factory.Trait(owner=InfraApp.Owner.MAINTAINERS, pinned_version="", snapshots={})

    name = factory.Sequence(lambda n: f"app{n}")
    position = factory.Sequence(lambda n: n)
    recipe = factory.SelfAttribute("name")
    source = factory.LazyAttribute(lambda row: f"https://git.example.org/recipes/{row.recipe}.git")
    domain = factory.LazyAttribute(lambda row: f"{row.name}.example.org")
    stack = factory.LazyAttribute(lambda row: row.domain.replace(".", "_"))
    owner = InfraApp.Owner.RECONCILED
    pinned_version = "1.0.0+2.0"
    running_version = "1.0.0+2.0"
    snapshots = factory.LazyFunction(lambda: {"of": "none", "store": "", "keep": 3})


class InfraReleaseFactory(_Factory):
    """An annotated tag of last month, with harmless notes."""

    class Meta:
        model = InfraRelease

    app = factory.SubFactory(InfraAppFactory)
    version = factory.Sequence(lambda n: f"1.0.{n + 1}+2.0")
    rank = factory.Sequence(lambda n: n + 1)
    commit = factory.Sequence(sha_of)
    tagged_at = ago(days=30)
    published_at = factory.SelfAttribute("tagged_at")
    notes = "Fixes a typo."


class UpgradeFactory(_Factory):
    """An upgrade that was planned by the night's task."""

    class Meta:
        model = Upgrade

    app = factory.SubFactory(InfraAppFactory)
    from_version = "1.0.0+2.0"
    to_version = "1.0.1+2.0"
    trigger = "nightly"


class SnapshotFactory(_Factory):
    """A snapshot that was proved."""

    class Meta:
        model = Snapshot

    app = factory.SubFactory(InfraAppFactory)
    version = "1.0.0+2.0"
    store = "local"
    location = factory.Sequence(lambda n: f"app/{n}")
    proved = True
    bytes = 4096
    manifest = "a" * 64
    taken_at = ago(hours=3)
