"""Everything determined before a deployment: checkouts, effective settings, the version to start from, lint, changes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from infra.deployers.base import Deployer
from infra.deployers.compose import files
from infra.deployers.compose.recipe import Recipe
from infra.deployers.context import Clock, Context, stack_name
from infra.deployers.errors import DeployError
from infra.deployers.swarm import backups
from infra.deployers.swarm.ephemeral import timeout
from infra.git.runner import GitError
from runs.harness import extra_tests, kept_tests, lint, recipe_config, upgrades
from runs.harness.checkout import Checkout
from runs.harness.deadlines import Deadlines
from runs.harness.events import Journal
from runs.harness.history import History, Tag
from runs.harness.kept_tests import KeptTests
from runs.harness.protocol import Extras, ExtraTest, KnownGood, Limits, LintFinding, Request
from runs.harness.recipe_config import RecipeConfig, RecipeConfigError
from runs.harness.upgrades import Change

#: Variables with commands of abra.sh that abra runs after a deployment, an upgrade, and so on.
_AFTERWARDS = re.compile(r"POST_[A-Z]+_CMDS")


@dataclass
class Prepared:
    """What the run is based on. Constant from here on, except for the environment that is lent to the recipe."""

    context: Context
    sha: str
    config: RecipeConfig = field(default_factory=RecipeConfig)
    limits: Limits = field(default_factory=Limits)
    version: str = ""  #: the version label that the commit's compose file gives itself
    previous: Tag | None = None
    previous_checkout: Path | None = None
    problem_of_previous: str = ""  #: why that version can no longer be deployed
    differs: bool = True  #: whether the commit deploys anything else than the previous version
    resettled: list[str] = field(default_factory=list)  #: sections of its settings by which the commit can break older versions
    change: Change = field(default_factory=Change)  #: what is new for those who upgrade
    unreadable: Sequence[str] = ()  #: tags that are not versionss, where none is one
    loosened: list[str] = field(default_factory=list)
    lint: list[LintFinding] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    tests: list[ExtraTest] = field(default_factory=list)
    suggested: list[ExtraTest] = field(default_factory=list)  #: those tests that the change asks for
    history: History | None = None  #: where there is one
    metadata: dict[str, str] = field(default_factory=dict)  #: of the README
    kept: KeptTests | None = None  #: the tests kept on the server for this recipe
    known_good: KnownGood | None = None  #: the data that a quick run starts on


def checked_out(
    request: Request, context: Context, credential: Mapping[str, str], journal: Journal, deadlines: Deadlines
) -> Prepared:
    """Check out the commit and apply its settings. Raises GitError, RecipeConfigError, Cancelled and TimedOut."""
    limits = request.limits
    with journal.timed("checkout"):
        bounds = (credential, deadlines.check, limits.disk_mb, journal.step)
        sha = Checkout(request.source, context.checkout, *bounds).make()
        journal.step(f"Checked out {sha[:12] or 'the folder, uncommitted changes included'}")
        history = History(request.source, request.base, context.work / "history", *bounds)
        ready = Prepared(context, sha, history=history if history.fetch() else None)
        if request.tests:
            ready.kept = kept_tests.bring(request.tests, request.recipe, context.work, *bounds)
            message = f"Tests kept on the server: {ready.kept.files} files in {ready.kept.place}" if ready.kept else ""
            journal.step(message or f"The server's test repository has none for {request.recipe}")
    ready.config, ready.loosened, ready.resettled = _config(request, context.checkout, ready, journal)
    ready.limits = _limits(limits, ready.config)
    wanted = ready.config
    context.env, context.env_upgrade, context.secret_values = wanted.env.values, wanted.env.upgrade, wanted.secrets
    context.exclusive_ports = wanted.ports.exclusive
    context.health_path = wanted.app.path
    context.health_status = wanted.app.status
    context.no_web = bool(wanted.app.no_web)
    return ready


def read(request: Request, ready: Prepared, deployer: Deployer, journal: Journal) -> None:
    """Read the recipe as `deployer` does, and its previous version. Raises GitError, DeployError, Cancelled, TimedOut."""
    context, history = ready.context, ready.history
    ready.tests = extra_tests.find(context.checkout)
    if ready.kept:
        ready.tests += ready.kept.extras()
    tag = history.tag_of(ready.sha) if history and ready.sha else None
    refused = deployer.refused(context.checkout, lint.compose_files(context.checkout))
    given = {*context.env, *context.env_upgrade, *context.lent}
    findings = lint.lint(context.checkout, tag.name if tag else "", tag.annotated if tag else None, refused, given)
    _note(ready, findings)
    ready.metadata = lint.metadata(context.checkout)
    recipe = deployer.recipe(context.checkout)
    if ready.kept and ready.kept.overlays:
        recipe = _laid_over(ready.kept, context, deployer)
    _note(ready, lint.of_backups(backups.plan(list(backups.of_recipe(recipe)))))
    if commands := [name for name, value in recipe.env.items() if value and _AFTERWARDS.fullmatch(name)]:
        text = (
            f"abra runs the commands in {' and '.join(commands)}; a run does not: call what tests need in tests/cc_ci_hooks.py."
        )
        journal.warn(text)
    ready.version = recipe.version()
    _settle_seconds(ready, recipe)
    if history:
        ready.changed = history.changed()
        ready.suggested = extra_tests.suggested(ready.tests, ready.changed)
        if "upgrade" in request.stages and "upgrade" not in ready.config.stages:
            _previous(request, ready, history, recipe, deployer, journal)
        history.remove()


def _laid_over(found: KeptTests, context: Context, deployer: Deployer) -> Recipe:
    """The recipe with the server's overlays. Raises KeptTestsError if Docker or the admission rejects them."""
    kept_tests.lay_over(found, context.checkout, context.run_id, previous=False)
    names = kept_tests.overlay_names(context.run_id)
    context.overlays = tuple(names.values())
    try:
        return deployer.recipe(context.checkout)
    except DeployError as error:
        message = str(error)
        for name, called in names.items():
            message = message.replace(called, f"{found.place}/{name}")
        raise kept_tests.KeptTestsError(f"With the overlays kept on the server: {message}") from error


def _note(ready: Prepared, findings: Iterable[LintFinding]) -> None:
    ready.lint += [finding for finding in findings if finding.rule not in ready.config.lint]


def context_of(request: Request, work: Path, credential: Mapping[str, str], journal: Journal, deadlines: Deadlines) -> Context:
    """The context that every part of the run gets; the recipe's settings are added later."""
    limits = request.limits
    return Context(
        run_id=request.run_id,
        installation=request.installation_id,
        recipe=request.recipe,
        checkout=work / "checkout",
        work=work,
        domain=urlsplit(request.app_url).hostname or request.domain or f"{stack_name(request.run_id)}.localhost",
        proxy_url=request.proxy_url,
        trusted=request.trusted,
        keep=request.keep,
        settle_seconds=limits.settle_seconds,
        pulls=Clock(limits.pull_seconds),
        memory_mb=limits.memory_mb,
        processes=limits.processes,
        disk_mb=limits.disk_mb,
        bounds=limits.app,
        allow=request.allow,
        withheld=request.withheld,
        locks=Path(request.locks) if request.locks else None,
        mirror=request.images.mirror,
        registries=request.images.registries,
        registry_auth=credential.get("registry_auth", ""),
        image_ledger=Path(request.images.ledger) if request.images.ledger else None,
        report=journal.step,
        warn=journal.warn,
        log=journal.log,
        timed=journal.timed,
        apart=deadlines.apart,
        check=deadlines.check,
    )


def _config(request: Request, checkout: Path, ready: Prepared, journal: Journal) -> tuple[RecipeConfig, list[str], list[str]]:
    """The effective settings: the commit's own, except where they loosen a check, which the base branch decides.

    Also returns a sentence for each pending change, and the sections that differ from the base branch and affect older versions.
    """
    history, beneath = ready.history, _kept_config(ready.kept)
    own = recipe_config.parse(_own_file(checkout), beneath)
    if request.base is None or history is None:
        return own, [], []
    try:
        base = recipe_config.parse(history.file(history.base, recipe_config.FILE), beneath)
    except RecipeConfigError as error:
        journal.warn(f"On the base branch: {error} Using the defaults instead.")
        base = recipe_config.parse(None, beneath)
    counts, waits = recipe_config.effective(base, own, request.trusted)
    if names := recipe_config.new_values(base, counts):
        journal.warn(
            f"For these tests, {recipe_config.FILE} sets {', '.join(names)} differently from the base branch; operators do "
            "not have these values."
        )
    return counts, waits, recipe_config.touches_older(base, counts)


def _kept_config(found: KeptTests | None) -> Mapping[str, Any]:
    """The settings kept on the server; they count as the base branch's. Raises KeptTestsError if they are invalid."""
    if found is None or found.config is None:
        return {}
    try:
        recipe_config.parse(found.config)
        return recipe_config.document(found.config)
    except RecipeConfigError as error:
        raise kept_tests.KeptTestsError(f"{found.place}, kept on the server: {error}") from error


def _own_file(checkout: Path) -> bytes | None:
    if not files.exists(checkout, recipe_config.FILE):
        return None
    with files.inside(checkout, recipe_config.FILE).open("rb") as file:
        return file.read(recipe_config.BIGGEST + 1)


def _limits(most: Limits, wanted: RecipeConfig) -> Limits:
    """The server's limits, lowered as the recipe asks. Only the time to start can be raised, up to a maximum."""
    own = wanted.limits
    return most.model_copy(
        update={
            "run_seconds": min(most.run_seconds, own.run_seconds or most.run_seconds),
            "stage_seconds": min(most.stage_seconds, own.stage_seconds or most.stage_seconds),
            "settle_seconds": min(most.start_seconds, own.settle_seconds or most.settle_seconds),
        }
    )


def _settle_seconds(ready: Prepared, recipe: Recipe) -> None:
    """How long the app may take to start: from its settings, else from its label."""
    limits, wanted = ready.limits, ready.config.limits.settle_seconds
    if wanted is None:
        limits.settle_seconds = min(max(timeout(recipe), limits.settle_seconds), limits.start_seconds)
    ready.context.settle_seconds, ready.context.asked_seconds = limits.settle_seconds, wanted or 0


def _previous(request: Request, ready: Prepared, history: History, recipe: Recipe, deployer: Deployer, journal: Journal) -> None:
    """Check out the version to start from, a published one or a quick run's, and find out whether it can be deployed."""
    if known := ready.known_good:
        tag: Tag | None = Tag(known.sha[:12], known.sha, False)
    else:
        tag = history.previous(ready.sha, request.upgrade_from)
    if tag is None:
        if request.upgrade_from:
            newest = ", ".join(tag.name for tag in history.tags[:10]) or "none"
            message = f"There is no published version {request.upgrade_from} to upgrade from (newest: {newest})."
            raise DeployError("invalid_recipe", message)
        ready.unreadable = () if history.tags else [tag.name for tag in history.unreadable]
        return
    checkout = ready.context.work / "previous"
    ready.previous, ready.previous_checkout = tag, checkout
    try:
        history.export(tag.commit, checkout)
    except GitError as error:
        if not (error.recipes_fault or ready.known_good):  # else the commit under test may fix it
            raise
        ready.problem_of_previous = str(error)
        return
    if ready.kept:
        kept_tests.lay_over(ready.kept, checkout, ready.context.run_id, previous=True)
    if laid := _lay_over(ready.context, checkout, recipe):
        journal.warn(f"{tag.name} does not have {', '.join(laid)}, which [env] names: using the files of the commit under test.")
    try:
        before = deployer.recipe(checkout)
    except DeployError as error:
        ready.problem_of_previous = str(error)
        return
    _settle_seconds(ready, before)  # the label of either version counts for both
    ready.change = upgrades.change(checkout, ready.context.checkout)
    if not ready.known_good:  # nobody upgrades from an unpublished commit
        _note(ready, upgrades.findings(ready.change, tag.name, ready.version))
    ready.context.installed = checkout
    try:
        ready.differs = _deployed(before) != _deployed(deployer.recipe(ready.context.checkout))
    except DeployError as error:  # with the operator's .env: the stage upgrade says so
        journal.log(f"With the .env of {tag.name}: {error}")


def _lay_over(context: Context, previous: Path, recipe: Recipe) -> list[str]:
    """Copy overlays that [env] selects for both versions but only the commit has, and the files they name."""
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
    """Everything that a deployment depends on: the recipe's document, all variables (through `app`), and the files it names."""
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
