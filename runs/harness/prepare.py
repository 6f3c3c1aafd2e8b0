"""What has to be known before anything is deployed: checkouts, settings that count, the version to start on, lint, changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from infra.deployers import compose, policy
from infra.deployers.base import Context, DeployError, stack_name
from runs.harness import extras, lint, settings
from runs.harness.checkout import Checkout
from runs.harness.events import Journal
from runs.harness.history import History, Tag
from runs.harness.protocol import Extras, ExtraTest, Limits, LintFinding, Request
from runs.harness.settings import RecipeSettings, SettingsError
from runs.harness.watch import Watch


@dataclass
class Prepared:
    """Everything that the run stands on. Nothing in here changes any more, but the environment that is lent to the recipe."""

    context: Context
    sha: str
    settings: RecipeSettings = field(default_factory=RecipeSettings)
    limits: Limits = field(default_factory=Limits)
    version: str = ""  #: the version label that the commit's compose file gives itself
    previous: Tag | None = None
    previous_checkout: Path | None = None
    problem_of_previous: str = ""  #: why that version cannot be put anywhere any more
    differs: bool = True  #: whether the commit deploys anything else than the previous version
    loosened: list[str] = field(default_factory=list)
    lint: list[LintFinding] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    tests: list[ExtraTest] = field(default_factory=list)


def prepare(request: Request, work: Path, credential: Mapping[str, str], journal: Journal, watch: Watch) -> Prepared:
    """Bring the commit here and look at it. Raises CheckoutError, SettingsError, DeployError, Cancelled and TimedOut."""
    context = _context(request, work, credential, journal, watch)
    limits = request.limits
    with journal.timed("checkout"):
        sha = Checkout(request.source, context.checkout, credential, watch.check, limits.disk_mb).make()
        journal.step(f"Checked out {sha[:12] or 'the folder as it is'}")
        history = History(request.source, request.base, work / "history", credential, watch.check, limits.disk_mb)
        known = history.fetch()
    ready = Prepared(context, sha)
    ready.settings, ready.loosened = _settings(request, context.checkout, history if known else None, journal)
    ready.limits = _limits(limits, ready.settings)
    recipe = compose.load(context.checkout, compose.environment(context))
    ready.version = recipe.version()
    _apply(ready, recipe)
    if known:
        ready.changed = history.changed()
        if "upgrade" in request.stages and "upgrade" not in ready.settings.stages:
            _previous(ready, history, recipe)
    tag = history.tag_of(sha) if known and sha else None
    findings = lint.lint(context.checkout, tag.name if tag else "", tag.annotated if tag else None)
    ready.lint = [finding for finding in findings if finding.rule not in ready.settings.lint]
    ready.tests = extras.find(context.checkout)
    history.remove()
    return ready


def _context(request: Request, work: Path, credential: Mapping[str, str], journal: Journal, watch: Watch) -> Context:
    limits = request.limits
    return Context(
        run_id=request.run_id,
        installation=request.installation_id,
        recipe=request.recipe,
        checkout=work / "checkout",
        work=work,
        domain=request.domain or f"{stack_name(request.run_id)}.localhost",
        proxy_url=request.proxy_url,
        trusted=request.trusted,
        keep=request.keep,
        settle_seconds=limits.settle_seconds,
        memory_mb=limits.memory_mb,
        processes=limits.processes,
        disk_mb=limits.disk_mb,
        allow=request.allow,
        locks=Path(request.locks) if request.locks else None,
        mirror=request.images.mirror,
        registry_auth=credential.get("registry_auth", ""),
        image_ledger=Path(request.images.ledger) if request.images.ledger else None,
        image_gb=request.images.most_gb,
        report=journal.step,
        log=journal.log,
        timed=journal.timed,
        check=watch.check,
    )


def _settings(request: Request, checkout: Path, history: History | None, journal: Journal) -> tuple[RecipeSettings, list[str]]:
    """What counts: the commit's own settings, but for what loosens a check, which the base branch decides."""
    own = settings.parse(_own_file(checkout))
    if request.base is None or history is None:
        return own, []
    try:
        base = settings.parse(history.file(history.base, settings.FILE))
    except SettingsError as error:
        journal.warn(f"On the base branch {error} The defaults count in its place.")
        base = RecipeSettings()
    return settings.effective(base, own)


def _own_file(checkout: Path) -> bytes | None:
    if not (checkout / settings.FILE).exists():
        return None
    return compose.inside(checkout, settings.FILE).read_bytes()


def _limits(most: Limits, wanted: RecipeSettings) -> Limits:
    """The server's limits, lowered where the recipe says so; nothing raises them, but the time to come up within a stage's."""
    own = wanted.limits
    return most.model_copy(
        update={
            "run_seconds": min(most.run_seconds, own.run_seconds or most.run_seconds),
            "stage_seconds": min(most.stage_seconds, own.stage_seconds or most.stage_seconds),
            "settle_seconds": min(most.stage_seconds, own.settle_seconds or most.settle_seconds),
        }
    )


def _apply(ready: Prepared, recipe: compose.Recipe) -> None:
    """What the settings and the recipe's labels say, where the deployers look for it."""
    context, wanted = ready.context, ready.settings
    key = f"coop-cloud.{context.stack}.timeout"
    label = next((value for name in recipe.services if (value := recipe.labels(name).get(key, ""))), "")
    if wanted.limits.settle_seconds is None and label.isdigit() and int(label) > ready.limits.settle_seconds:
        ready.limits.settle_seconds = min(int(label), ready.limits.stage_seconds)
    context.settle_seconds = ready.limits.settle_seconds
    context.env = dict(wanted.env)
    context.exclusive_ports = wanted.ports.exclusive
    context.health_path = wanted.app.path
    context.health_status = wanted.app.status


def _previous(ready: Prepared, history: History, recipe: compose.Recipe) -> None:
    """The published version to start on, checked out, and whether it can be put there at all."""
    tag = history.previous(ready.sha)
    if tag is None:
        return
    checkout = ready.context.work / "previous"
    history.export(tag.commit, checkout)
    ready.previous, ready.previous_checkout = tag, checkout
    try:
        before = compose.load(checkout, compose.environment(ready.context, checkout))
        policy.check(before, ready.context.allow)
    except DeployError as error:
        ready.problem_of_previous = str(error)
        return
    ready.differs = _deployed(before) != _deployed(recipe)


def _deployed(recipe: compose.Recipe) -> object:
    """All of a recipe that a deployment is made of: its documents, and the files that they name."""
    documents = [{key: value for key, value in document.items() if not key.startswith("x-")} for _, document in recipe.documents]
    files = sorted((".".join(place), _bytes(recipe.checkout, path)) for _, place, path in compose.files(recipe))
    return documents, files


def _bytes(checkout: Path, path: str) -> bytes:
    try:
        return compose.inside(checkout, path).read_bytes()
    except DeployError:
        return b""


def extras_of(ready: Prepared, ran: bool) -> Extras:
    """The recipe's extra tests, and which of them this change asks for, unless they were run."""
    if ran:
        return Extras(tests=ready.tests)
    return Extras(not_run=len(ready.tests), suggested=extras.suggested(ready.tests, ready.changed), tests=ready.tests)
