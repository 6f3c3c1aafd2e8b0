"""What has to be known before anything is deployed: checkouts, settings that count, the version to start on, lint, changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from infra.deployers.base import Bounds, Context, Deployer, DeployError, stack_name
from infra.deployers.compose import files
from infra.deployers.compose.recipe import Recipe
from runs.harness import extras, lint, settings
from runs.harness.checkout import Checkout
from runs.harness.events import Journal
from runs.harness.git import CheckoutError
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
    suggested: list[ExtraTest] = field(default_factory=list)  #: those tests that the change asks for
    history: History | None = None  #: where there is one


def checked_out(request: Request, context: Context, credential: Mapping[str, str], journal: Journal, watch: Watch) -> Prepared:
    """Bring the commit here, and take over what its settings say. Raises CheckoutError, SettingsError, Cancelled and TimedOut."""
    limits = request.limits
    with journal.timed("checkout"):
        sha = Checkout(request.source, context.checkout, credential, watch.check, limits.disk_mb).make()
        journal.step(f"Checked out {sha[:12] or 'the folder as it is'}")
        history = History(request.source, request.base, context.work / "history", credential, watch.check, limits.disk_mb)
        ready = Prepared(context, sha, history=history if history.fetch() else None)
    ready.settings, ready.loosened = _settings(request, context.checkout, ready.history, journal)
    ready.limits = _limits(limits, ready.settings)
    wanted = ready.settings
    context.env, context.env_upgrade, context.secret_values = wanted.env.values, wanted.env.upgrade, wanted.secrets
    context.exclusive_ports = wanted.ports.exclusive
    context.health_path = wanted.app.path
    context.health_status = wanted.app.status
    return ready


def read(request: Request, ready: Prepared, deployer: Deployer, journal: Journal) -> None:
    """Read the recipe as `deployer` does, and the version before it. Raises CheckoutError, DeployError, Cancelled, TimedOut."""
    context, history = ready.context, ready.history
    ready.tests = extras.find(context.checkout)
    tag = history.tag_of(ready.sha) if history and ready.sha else None
    refused = deployer.refused(context.checkout, lint.compose_files(context.checkout))
    findings = lint.lint(context.checkout, tag.name if tag else "", tag.annotated if tag else None, refused)
    ready.lint = [finding for finding in findings if finding.rule not in ready.settings.lint]
    recipe = deployer.recipe(context.checkout)
    ready.version = recipe.version()
    _settle_seconds(ready, recipe)
    if history:
        ready.changed = history.changed()
        ready.suggested = extras.suggested(ready.tests, ready.changed)
        if "upgrade" in request.stages and "upgrade" not in ready.settings.stages:
            _previous(ready, history, recipe, deployer, journal)
        history.remove()


def context_of(request: Request, work: Path, credential: Mapping[str, str], journal: Journal, watch: Watch) -> Context:
    """What every part of the run is given; the settings of the recipe come into it later."""
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
        bounds=Bounds(**limits.app.model_dump()),
        allow=request.allow,
        withheld=request.withheld,
        locks=Path(request.locks) if request.locks else None,
        mirror=request.images.mirror,
        registries=request.images.registries,
        registry_auth=credential.get("registry_auth", ""),
        image_ledger=Path(request.images.ledger) if request.images.ledger else None,
        image_gb=request.images.most_gb,
        report=journal.step,
        warn=journal.warn,
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
    if not files.exists(checkout, settings.FILE):
        return None
    with files.inside(checkout, settings.FILE).open("rb") as file:
        return file.read(settings.BIGGEST + 1)


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


def _settle_seconds(ready: Prepared, recipe: Recipe) -> None:
    """How long the app may take to come up: as its settings say, else as its label does."""
    label = recipe.label("timeout")
    if ready.settings.limits.settle_seconds is None and label.isdecimal() and int(label[:9]) > ready.limits.settle_seconds:
        ready.limits.settle_seconds = min(int(label[:9]), ready.limits.stage_seconds)
    ready.context.settle_seconds = ready.limits.settle_seconds


def _previous(ready: Prepared, history: History, recipe: Recipe, deployer: Deployer, journal: Journal) -> None:
    """The published version to start on, checked out, and whether it can be put there at all."""
    tag = history.previous(ready.sha)
    if tag is None:
        return
    checkout = ready.context.work / "previous"
    ready.previous, ready.previous_checkout = tag, checkout
    try:
        history.export(tag.commit, checkout)
    except CheckoutError as error:
        if not error.recipes_fault:  # else the commit under test may be the one that mends it
            raise
        ready.problem_of_previous = str(error)
        return
    if laid := _lay_over(ready.context, checkout, recipe):
        journal.warn(f"{tag.name} does not have {', '.join(laid)} yet, which [env] names: taken from the commit under test.")
    try:
        before = deployer.recipe(checkout)
    except DeployError as error:
        ready.problem_of_previous = str(error)
        return
    ready.differs = _deployed(before) != _deployed(recipe)


def _lay_over(context: Context, previous: Path, recipe: Recipe) -> list[str]:
    """Copy what [env] wants laid over both versions and only the commit has: overlays, and the files that they name."""
    if "COMPOSE_FILE" not in context.env:
        return []
    missing = [name for name in recipe.names if not (previous / name).exists()]
    if not missing:
        return []
    for name in [*missing, *(file for _, file in recipe.files())]:
        target = previous / name
        if not target.exists() and not target.is_symlink() and target.parent.resolve().is_relative_to(previous.resolve()):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(files.inside(context.checkout, name).read_bytes())
            target.chmod(0o644)  # the sandbox reads it with another uid
    return missing


def _deployed(recipe: Recipe) -> object:
    """All that a deployment is made of: a recipe's document, the variables (`app` has them all), and the files that it names."""
    document = {key: value for key, value in recipe.document.items() if not key.startswith("x-")}
    return document, dict(recipe.env), sorted((".".join(place), _bytes(recipe.checkout, path)) for place, path in recipe.files())


def _bytes(checkout: Path, path: str) -> bytes:
    try:
        return files.inside(checkout, path).read_bytes()
    except DeployError:
        return b""


def extras_of(ready: Prepared, ran: bool) -> Extras:
    """The recipe's extra tests, and which of them this change asks for, unless they were run."""
    if ran:
        return Extras(tests=ready.tests)
    return Extras(not_run=len(ready.tests), suggested=ready.suggested, tests=ready.tests)
