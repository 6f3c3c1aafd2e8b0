"""What each stage does, in the order of the protocol.

Each stage has a generic part that every recipe gets; the recipe's own tests for the stage run in addition, never instead.
"""

from __future__ import annotations

import dataclasses
import tarfile
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from infra.deployers import messages
from infra.deployers.base import Backup, BackupPart, BackupPlan, Deployer, Deployment
from infra.deployers.compose import notes
from infra.deployers.context import Context
from infra.deployers.errors import DeployError
from infra.deployers.probe import probe
from runs.harness import data_markers, dump_checks, kept_tests, recipe_tests
from runs.harness.deadlines import Deadlines, TimedOut
from runs.harness.events import Journal
from runs.harness.history import Tag
from runs.harness.protocol import GENERIC, CaseResult
from runs.harness.recipe_config import RecipeConfig
from runs.harness.recipe_tests import Outcome
from runs.harness.stage_table import StageName
from runs.harness.upgrades import Change

#: How long an app without a web port has to stay up before it counts as installed.
QUIET_SECONDS = 2.0
#: How a recipe can prove a backup that our own marker file cannot.
NOT_PROVEN = (
    "Define `write_marker` and `read_marker` in tests/cc_ci_hooks.py; for a database, back up a dump "
    "(backupbot.backup.pre-hook) and load it (backupbot.restore.post-hook)."
)
#: Maximum number of names in a message.
_NAMES = 5
#: Files that identify a database's folder: PostgreSQL, MySQL and MariaDB, MongoDB, LMDB.
_OF_DATABASES = frozenset({"PG_VERSION", "ibdata1", "WiredTiger", "data.mdb"})
#: The first bytes of an SQLite file.
_SQLITE = b"SQLite format 3\0"


@dataclass
class Run:
    """What a stage works with."""

    context: Context
    deployer: Deployer
    journal: Journal
    deadlines: Deadlines
    folder: Path
    config: RecipeConfig = field(default_factory=RecipeConfig)
    previous: Tag | None = None  #: the version that the run started on; None when it started on the commit
    previous_checkout: Path | None = None
    no_upgrade: Outcome = field(default_factory=lambda: Outcome("not_applicable", "There is no earlier published version."))
    wanted_version: str = ""  #: the version label of the commit's own compose file
    begun: float = field(default_factory=time.time)
    backup: Backup | None = None
    change: Change = field(default_factory=Change)  #: what is new for those who upgrade
    doubts: list[str] = field(default_factory=list)  #: why what the last stage did is not proven
    kept: kept_tests.KeptTests | None = None  #: the tests kept on the server for this recipe
    copied: list[str] = field(default_factory=list)  #: databases whose files were copied while running

    @property
    def marker(self) -> str:
        """A value unique to this run."""
        return recipe_tests.marker(self.context)

    @property
    def markers(self) -> data_markers.DataMarkers:
        return self._markers

    def __post_init__(self) -> None:
        self._markers = data_markers.DataMarkers(self.deployer)
        self.hooks = recipe_tests.hooks(self.context.checkout)
        self.kept_hooks = recipe_tests.hooks(self.kept.folder) if self.kept else set()

    @property
    def installed(self) -> Path:
        """The checkout of the version that is installed first."""
        return self.previous_checkout if self.previous and self.previous_checkout else self.context.checkout


Stage = Callable[[Run], Outcome]


def install(run: Run) -> Outcome:
    """Check that the app answers or, without a web port, keeps running; then run the installed version's test_install.py."""
    _hook(run, "before_install", checkout=run.installed)
    return _with_own(run, "install", [_up(run)], run.installed)


def upgrade(run: Run) -> Outcome:
    """Upgrade from the published version to the commit: it was redeployed, it answers, and its data is still there."""
    if not run.previous:
        return run.no_upgrade
    _hook(run, "before_upgrade")
    # The published version's labels say which volumes may be lost: the commit's would loosen the check.
    plan, mounts = run.deployer.backups(), run.deployer.mounts()
    staying = [part for part in mounts if part.volume not in plan.left_out]
    places = run.markers.write(staying, run.marker)
    if unmarked := dict.fromkeys(part.volume for part in _only_in(staying, places)):
        names = messages.some(list(unmarked), _NAMES)
        run.journal.warn(f"Whether the upgrade keeps the data of {names} is not checked: nothing could be written there.")
    was = Mounted(mounts, places, {(part.service, part.volume) for part in plan.parts})
    kept = _write_hook(run, run.marker)
    before = run.deployer.state()
    run.journal.step(f"Upgrading from {run.previous.name}")
    try:
        outcome = _upgraded(run, before, was, kept)
    except DeployError as error:
        if not error.recipes_fault:
            raise
        outcome = Outcome("failed", str(error))
    if outcome.status == "failed" and run.change.missing and _works_with_its_own_sample(run, before, was, kept):
        message = " ".join(missing.message for missing in run.change.missing)
        reason = (
            f"The commit fails with the .env that operators have from {run.previous.name}, but works with its own "
            f".env.sample. {message}"
        )
        outcome = dataclasses.replace(outcome, reason=f"{reason} The failure: {outcome.reason}")
    return outcome


def _works_with_its_own_sample(run: Run, before: Deployment, was: Mounted, kept: bool) -> bool:
    run.journal.step("Retrying with the commit's own .env.sample, to see what is missing")
    run.context.installed = None
    try:
        return _upgraded(run, before, was, kept).status == "passed"
    except (DeployError, HookFailed, TimedOut) as error:
        run.journal.log(f"That failed too: {error}")
        return False


def _upgraded(run: Run, before: Deployment, was: Mounted, kept: bool) -> Outcome:
    with run.journal.timed("upgrade"):
        run.deployer.deploy()
        after = run.deployer.settle()
    run.journal.hide(run.deployer.secrets)
    if dropped := run.deployer.dropped():
        names = ", ".join(dropped)
        run.journal.warn(
            f"The commit no longer has the service {names}. It keeps running, as after `abra app upgrade`, until "
            "somebody removes it (`docker service rm`): mention that in the release notes."
        )
    cases = [
        _case(
            "the deployment moved to the commit",
            lambda: moved(before, after, run.previous.name if run.previous else "", run.wanted_version),
        ),
        _up(run),
    ]
    if was.places or kept:
        now = run.deployer.mounts()
        first = {one.volume: one for one in reversed(now)}
        there = [first[place.volume] for place in was.places if place.volume in first]
        cases.append(
            _case("the data is still there", lambda: renamed(was, now, run.change.notes) or _marker_problem(run, there, kept))
        )
        for part in _only_in(was.places, now) if cases[-1].status == "passed" else ():
            if not notes.tell_of_volume(run.change.notes, part.volume):
                run.journal.warn(
                    f"No service mounts the volume {part.volume} any more (before: {part.service}:{part.path}): if its data is "
                    "no longer needed, say in the release notes that this volume goes."
                )
    if all(case.status == "passed" for case in cases) and _has_tests(run, "install"):
        _hook(run, "before_install")
    return _with_own(run, "upgrade", cases, more=("install",))


def moved(before: Deployment, after: Deployment, previous: str, wanted: str) -> str:
    """Why this was not an upgrade; empty if it was. Pure. A green health check proves nothing: the old version has one too."""
    if wanted and after.version != wanted:
        return f"The version label is {after.version or 'missing'}, expected {wanted}: what runs is not the commit."
    if after.fingerprint == before.fingerprint:
        return f"Nothing changed: {previous} is still running."
    return ""


@dataclass(frozen=True)
class Mounted:
    """What was mounted before an upgrade."""

    mounts: Sequence[BackupPart]
    places: Sequence[BackupPart]  #: those with a marker, one of each volume whose data has to stay
    saved: Collection[tuple[str, str]] = ()  #: the services and volumes that are backed up: what they hold is worth something


def renamed(was: Mounted, now: Sequence[BackupPart], words: Collection[str]) -> str:
    """Why a service no longer sees data that operators have; empty if it does. Pure.

    A volume may be dropped. One that replaces it is empty, unless the notes, of these words, say what to do. What replaces it is
    another one at the same path, or, where the old one is backed up, the only new volume of a service that lost just this one.
    """
    marked = {place.volume for place in was.places}
    gone = [old for old in _only_in(was.mounts, now) if old.volume in marked]
    for old in gone:
        if notes.tell_of_volume(words, old.volume):
            continue
        own = [one for one in now if one.service == old.service]
        new = next((one for one in own if one.path == old.path), None)
        added = {one.volume: one for one in _only_in(own, was.mounts)}
        lost = {one.volume for one in gone if one.service == old.service}
        if not new and (old.service, old.volume) in was.saved and len(added) == len(lost) == 1:
            (new,) = added.values()
        if new:
            there = new.volume if new.path == old.path else f"{new.volume} at {new.path}"
            return (
                f"{old.service}:{old.path} was on the volume {old.volume} and is now on {there}, which is empty: "
                f"data that operators have in {old.volume} is no longer visible. Keep the name, or describe in "
                f"release/<version> how to migrate the volume {old.volume}."
            )
    return ""


def _only_in(mounts: Sequence[BackupPart], others: Sequence[BackupPart]) -> list[BackupPart]:
    """The mounts of volumes that none of the others is of."""
    volumes = {other.volume for other in others}
    return [mount for mount in mounts if mount.volume not in volumes]


def backup(run: Run) -> Outcome:
    """Check that the backup contains a marker written before it; of a dump, that it is new and complete."""
    plan = run.deployer.backups()
    if outcome := _nothing_to_save(plan, run.deployer.mounts()):
        return outcome
    for text in (
        f"Not backed up: {', '.join(plan.unsaved)}." if plan.unsaved else "",
        f"Lost whenever a task is replaced (not on a named volume): {', '.join(plan.lost)}." if plan.lost else "",
        f"Labels that backups ignore: {', '.join(plan.unknown)}." if plan.unknown else "",
    ):
        if text:
            run.journal.warn(text)
    _hook(run, "before_backup")
    case = _case("a backup is made", lambda: _make_backup(run, plan))
    outcome = _with_own(run, "backup", [case])
    return _with_doubts(run, outcome, "made")


def _nothing_to_save(plan: BackupPlan, mounts: Sequence[BackupPart]) -> Outcome | None:
    """The stage's outcome if the recipe does not declare a backup."""
    if plan.wanted:
        return None
    if not mounts and not plan.lost:
        return Outcome("not_applicable", "The app has no volumes, so there is nothing to back up.")
    if not mounts:
        message = f"The app keeps data in {', '.join(plan.lost)}, not on a named volume: it is lost whenever a task is replaced."
        return Outcome("not_applicable", message, proven=False)
    names = ", ".join(sorted({part.volume for part in mounts}))
    message = f"The recipe declares no backup (label backupbot.backup), but the app keeps data in {names}."
    return Outcome("not_applicable", message, proven=False)


def restore(run: Run) -> Outcome:
    """Change the marker, restore the backup while the app runs, restart the app, and read the marker back."""
    plan = run.deployer.backups()
    if outcome := _nothing_to_save(plan, run.deployer.mounts()):
        return outcome
    if run.backup is None and (problem := _make_backup(run, plan)):
        return Outcome("failed", f"No backup to restore: {problem}")
    _hook(run, "before_restore")
    cases = [_case("the backup can be restored", lambda: _restore(run, plan)), _up(run)]
    return _with_doubts(run, _with_own(run, "restore", cases), "restored")


def custom(run: Run) -> Outcome:
    """Run the recipe's own tests."""
    return _only_own(run, "custom", "The recipe has no tests of its own.")


def extra(run: Run) -> Outcome:
    """Run the recipe's extra tests."""
    return _only_own(run, "extra", "The recipe has no extra tests.")


def stays_up(run: Run, outcome: Outcome) -> Outcome:
    """The outcome of a stage that passed, unless a service failed meanwhile and does not stay up."""
    try:
        fell = run.deployer.still_up()
    except DeployError as error:
        if not error.recipes_fault:
            raise
        problem = str(error)
        case = _case("the services stay up", lambda: problem)
        return dataclasses.replace(
            outcome, status="failed", reason=f"It did not stay up: {problem}", cases=[*outcome.cases, case]
        )
    for text in fell:
        run.journal.warn(text)
    return outcome


# --- the recipe's own part


def _only_own(run: Run, stage: str, without: str) -> Outcome:
    if not _has_tests(run, stage):
        return Outcome("not_applicable", without, proven=False)
    _hook(run, f"before_{stage}")
    return own_tests(run, stage, [stage])


def _has_tests(run: Run, stage: str) -> bool:
    return bool(recipe_tests.find(run.context.checkout, stage) or (run.kept and recipe_tests.find(run.kept.folder, stage)))


def _with_own(
    run: Run, stage: str, cases: Sequence[CaseResult], checkout: Path | None = None, more: Sequence[str] = ()
) -> Outcome:
    bad = next((case for case in cases if case.status != "passed"), None)
    if bad:
        return Outcome("failed", bad.message, cases)
    own = own_tests(run, stage, (stage, *more), checkout)
    status = "passed" if own.status == "not_applicable" else own.status
    return Outcome(status, own.reason if status != "passed" else "", [*cases, *own.cases])


def own_tests(run: Run, stage: str, names: Sequence[str], checkout: Path | None = None) -> Outcome:
    """Run the recipe's test files of this name, from `checkout` or the commit, then those kept on the server."""
    done = _tests(run, stage, names, checkout or run.context.checkout, "the recipe")
    done = dataclasses.replace(done, cases=kept_tests.own(done.cases))
    if run.kept is None:
        return done
    more = _tests(run, stage, names, run.kept.folder, "those kept on the server", "kept-")
    return _both(done, dataclasses.replace(more, cases=run.kept.marked(more.cases)))


def _both(own: Outcome, more: Outcome) -> Outcome:
    """Merges the outcomes of the recipe's tests and of those kept on the server. Pure."""
    cases = [*own.cases, *more.cases]
    bad = [(outcome, text) for outcome, text in ((own, ""), (more, kept_tests.KEPT)) if outcome.status in ("failed", "errored")]
    if bad:
        return Outcome(bad[0][0].status, " ".join(f"{text}{outcome.reason}" for outcome, text in bad), cases)
    better = next((outcome for outcome in (own, more) if outcome.status == "passed"), own)
    return dataclasses.replace(better, cases=cases)


def _tests(run: Run, stage: str, names: Sequence[str], checkout: Path, whose: str, label: str = "") -> Outcome:
    files = [file for name in names for file in recipe_tests.find(checkout, name)]
    if files:
        run.journal.step(f"Running {len(files)} test file{'s' if len(files) > 1 else ''} of {whose}")
    context = dataclasses.replace(run.context, checkout=checkout)
    with run.journal.timed("tests"):
        return recipe_tests.run(stage, files, context, run.deployer, run.journal, run.deadlines, run.folder, label)


#: The hooks by which an app itself keeps the run's marker.
_MARKERS = frozenset({"write_marker", "read_marker"})


class HookFailed(Exception):
    """A hook of the recipe raised."""


def _hook(run: Run, name: str, value: str = "", checkout: Path | None = None) -> str:
    """Run a hook of the recipe (from `checkout` or the commit), then the one kept on the server. Returns what it returned.

    Raises HookFailed. Only one of them keeps the marker: the server's if it can, since no stranger wrote it.
    """
    found, markers_own = "", run.kept is None or not run.kept_hooks >= _MARKERS
    places = []
    if name in (recipe_tests.hooks(checkout) if checkout else run.hooks) and (name not in _MARKERS or markers_own):
        places.append(checkout or run.context.checkout)
    if run.kept and name in run.kept_hooks and not (name in _MARKERS and markers_own):
        places.append(run.kept.folder)
    for place in places:
        found = _one_hook(run, name, value, place)
    if places and name not in _MARKERS:
        try:
            fell = run.deployer.settle_again()
        except DeployError as error:
            if not error.recipes_fault:
                raise
            if name != "before_upgrade":
                raise HookFailed(f"After the hook {name}: {error}") from error
            fell = [f"{error} (That was the published version, which the commit may repair.)"]
        for text in fell:
            run.journal.warn(f"During the hook {name}: {text}")
    return found


def _one_hook(run: Run, name: str, value: str, checkout: Path) -> str:
    context = dataclasses.replace(run.context, checkout=checkout)
    theirs = run.kept is not None and checkout == run.kept.folder
    whose = "the server's" if theirs else "the recipe's"
    result = recipe_tests.hook(name, context, run.deployer, run.journal, run.deadlines, run.folder, value=value, whose=whose)
    if not result.ok:
        raise HookFailed(f"{kept_tests.KEPT if theirs else ''}Hook {name} failed: {result.reason}")
    return result.value


def _write_hook(run: Run, value: str) -> bool:
    """Have the recipe keep a marker in the app itself. Returns whether it can, which takes both hooks."""
    if not (run.hooks >= _MARKERS or run.kept_hooks >= _MARKERS):
        return False
    _hook(run, "write_marker", value)
    return True


# --- generic parts


def _case(name: str, look: Callable[[], str]) -> CaseResult:
    """One generic check: `look` returns what is wrong, or an empty text."""
    started = time.monotonic()
    problem = look()
    return CaseResult(
        name=name,
        file=GENERIC,
        status="failed" if problem else "passed",
        seconds=round(time.monotonic() - started, 3),
        message=problem,
    )


def _up(run: Run) -> CaseResult:
    """Check that everything runs, and that the app itself answers."""
    address = run.deployer.address()
    case = _case(
        "the app answers" if address else "the services stay up", lambda: _answer_problem(run) if address else _quiet(run)
    )
    if case.status == "failed":
        case.output = run.deployer.logs(lines=40)
    return case


def _answer_problem(run: Run) -> str:
    address, context = run.deployer.address(), run.context
    assert address
    answer = probe(address, context.domain, context.health_path, final=context.health_status)
    if answer is None:
        return f"No HTTP response from {address}."
    if not context.accepts(answer, address):
        wanted = f", not {' or '.join(map(str, context.health_status))}" if context.health_status else ""
        return f"{answer.summary(context.health_path)}{wanted}."
    run.journal.step(f"The app responds: {answer.summary(context.health_path)}")
    return _not_settled(run, run.deployer.state())


def _not_settled(run: Run, state: Deployment) -> str:
    """The services that no longer run, with their last log lines; empty if all run."""
    if state.settled:
        return ""
    message = [f"Not everything is still running: {state}."]
    for service in state.services:
        if service.problem:
            message.append(f"{service.name}: {service.problem}.{_last_lines(run, service.name)}")
    return " ".join(message)


def _last_lines(run: Run, service: str) -> str:
    """The end of a service's log, as part of a reason."""
    lines = ""
    with suppress(DeployError):  # that it cannot be read changes nothing about the service
        lines = run.deployer.logs(service, 5)
    return messages.log_end(lines)


def _quiet(run: Run) -> str:
    """Watch services without a port: all running, healthy, not restarted. Returns what is wrong, or an empty text."""
    restarts = {service.name: service.restarts for service in run.deployer.state().services}
    until = time.monotonic() + QUIET_SECONDS
    while time.monotonic() < until:
        run.deadlines.check()
        time.sleep(0.3)
        state = run.deployer.state()
        for service in state.services:
            if service.restarts > restarts.get(service.name, 0):
                return f"The service {service.name} was restarted: {service.problem or 'it had exited'}."
        if problem := _not_settled(run, state):
            return problem
    return ""


def _marker_problem(run: Run, places: Sequence[BackupPart], kept: bool, changed: str = "") -> str:
    """`changed`: what was written in the marker's place after the backup."""
    lost = run.markers.lost(run.marker, places)
    if kept and (found := _hook(run, "read_marker")) != run.marker:
        old = "read_marker returned the value from after the backup, so the restore did not bring the data back"
        lost.append(old if changed and found == changed else f"read_marker returned {found[:60]!r}")
    return f"The marker written earlier is missing: {'; '.join(lost)}." if lost else ""


# --- backup and restore


def _data(run: Run, parts: Sequence[BackupPart]) -> list[BackupPart]:
    """The parts that contain the data itself, and therefore a marker."""
    means = run.config.backup.means
    return [part for part in parts if means == "files" or (means == "auto" and not part.dump)]


def _make_backup(run: Run, plan: BackupPlan) -> str:
    places = run.markers.write(_data(run, plan.parts), run.marker)
    kept = _write_hook(run, run.marker)
    folder = run.context.work / "backup"
    folder.mkdir(exist_ok=True)
    run.journal.step(f"Backing up {', '.join(f'{part.service}:{part.path}' for part in plan.parts)}")
    try:
        with run.journal.timed("backup"):
            made = run.deployer.backup(folder)
    except DeployError as error:
        if not error.recipes_fault:
            raise
        return str(error)
    marked = {(part.service, part.path) for part in places}
    saved = [_saved(run, made, part, (part.service, part.path) in marked) for part in made.parts]
    problems = [part.problem for part in saved if part.problem]
    if not problems:
        run.backup = made
    run.copied = [
        f"{part.service}:{part.path} contains a database's own files"
        + (f" ({messages.some(has.database, _NAMES)})" if has.database else "")
        for part, has in zip(made.parts, saved, strict=True)
        if not part.dump and part.service not in plan.dumped and (part.service in plan.databases or has.database)
    ]
    run.doubts = [] if kept else _doubts(run, plan, made, places)
    return " ".join(problems)


def _doubts(run: Run, plan: BackupPlan, made: Backup, places: Sequence[BackupPart]) -> list[str]:
    """Why a backup is not proven if the recipe's hooks do not show that it works."""
    parts, dumps = made.parts, [part for part in made.written if part.dump]
    doubts = [f"{'; '.join(run.copied)}, copied while it was running"] if run.copied else []
    if plan.unsaved:
        names = ", ".join(plan.unsaved)
        doubts.append(f"not backed up: {names} (backupbot.backup.volumes.<volume>=false declares that one may be lost)")
    if not plan.loading and run.config.backup.means != "files" and dumps:
        names = ", ".join(f"{part.service}:{part.path}" for part in dumps)
        doubts.append(f"nothing shows that the dump {names} is loaded: there is no backupbot.restore.post-hook")
    if not places and not doubts:
        only_dumps = all(part.dump for part in parts)
        names = ", ".join(f"{part.service}:{part.path}" for part in parts if not part.dump)
        doubts.append(
            "only a dump is saved, and nothing shows that it can be loaded"
            if only_dumps
            else f"there is nowhere to put a marker file in {names}"
        )
    return doubts


@dataclass(frozen=True)
class Saved:
    """What one part of a backup contains."""

    problem: str = ""
    database: Sequence[str] = ()  #: the files that only a database has


def _saved(run: Run, made: Backup, part: BackupPart, marked: bool) -> Saved:
    """Read one part of a backup: an exit code of zero does not show what was saved."""
    where = f"The backup of {part.service}:{part.path}"
    # What the hook made is new, whatever times it gave it. An old file beside that may be the image's, unless named as a dump.
    dumped = any(other.dump and other.service == part.service for other in made.written)
    since = 0.0 if part in made.written or (dumped and not part.path.endswith(dump_checks.ENDINGS)) else run.begun
    files = 0
    marker = b""
    database: list[str] = []
    try:
        with tarfile.open(made.file(part)) as archive:
            for member in archive:
                run.deadlines.check()
                if not member.isfile():
                    continue
                files += 1
                stream = archive.extractfile(member)
                assert stream
                name = Path(member.name).name
                if name == data_markers.FILE:
                    marker = stream.read(1000)
                elif part.dump:
                    if problem := dump_checks.problem(member.name, stream.read(dump_checks.BIGGEST), since, float(member.mtime)):
                        printed = made.printed.get(part.service, "")
                        return Saved(
                            f"{where}: {problem}{messages.quoted('The pre-hook printed', printed, 500) if printed else ''}"
                        )
                elif name in _OF_DATABASES or stream.read(len(_SQLITE)) == _SQLITE:
                    database.append(member.name.removeprefix("./"))
    except (OSError, tarfile.TarError) as error:
        return Saved(f"Cannot read {where}: {error}.")
    if not files:
        return Saved(f"{where} is empty.")
    if marked and marker != run.marker.encode():
        return Saved(f"{where} does not contain the marker that was written before it.")
    return Saved(database=database)


def _restore(run: Run, plan: BackupPlan) -> str:
    assert run.backup
    places = list(run.markers.places)
    changed = f"{run.marker}-changed"
    run.markers.write(places, changed)
    kept = _write_hook(run, changed)
    if kept and (found := _hook(run, "read_marker")) != changed:
        return (
            f"write_marker does not change the value, so a restore cannot be verified: after write_marker({changed!r}) "
            f"read_marker returned {found[:60]!r}."
        )
    run.journal.step("Restoring the backup")
    try:
        with run.journal.timed("restore"):
            run.deployer.restore(run.backup)
            run.journal.step("Restarting the services whose data was restored")
            overwritten = run.deployer.restart(run.backup)
            run.deployer.settle()
    except DeployError as error:
        if not error.recipes_fault:
            raise
        return str(error)
    if lost := _marker_problem(run, places, kept, changed):
        return lost
    if overwritten:
        run.journal.warn(f"Overwritten by the running app after the restore: {messages.some(overwritten, _NAMES)}.")
    run.doubts = [] if kept else _doubts(run, plan, run.backup, places)
    if overwritten and not kept:
        run.doubts.append(f"the running app overwrote {messages.some(overwritten, _NAMES)}, so the restore is not proven")
    return ""


def _with_doubts(run: Run, outcome: Outcome, did: str) -> Outcome:
    if outcome.status == "passed" and run.doubts:
        return dataclasses.replace(outcome, reason=f"{did}, not proven: {'; '.join(run.doubts)}. {NOT_PROVEN}", proven=False)
    return outcome


#: Stage by stage: what to run.
TABLE: dict[StageName, Stage] = {
    StageName.INSTALL: install,
    StageName.UPGRADE: upgrade,
    StageName.BACKUP: backup,
    StageName.RESTORE: restore,
    StageName.CUSTOM: custom,
    StageName.EXTRA: extra,
}
assert tuple(TABLE) == tuple(StageName)
