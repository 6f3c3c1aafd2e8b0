"""The table of stages: what each one does, in the order of the protocol.

Each stage has a generic part, free with every recipe; the recipe's own tests of that stage are added to it, never instead.
"""

from __future__ import annotations

import dataclasses
import tarfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from infra.deployers.base import Backup, BackupPart, Context, Deployer, DeployError, Deployment, probe
from runs.harness import dumps, markers, owntests
from runs.harness.events import Journal
from runs.harness.history import Tag
from runs.harness.owntests import Outcome
from runs.harness.protocol import STAGES, CaseResult
from runs.harness.settings import RecipeSettings
from runs.harness.watch import Watch

#: How long an app without a web port has to stay up before it counts as installed.
QUIET_SECONDS = 2.0
#: What stands with a backup of which nothing shows that it can be restored.
NOT_PROVEN = "not proven: give `write_marker` and `read_marker` in tests/cc_ci_hooks.py"


@dataclass
class Run:
    """What a stage works with."""

    context: Context
    deployer: Deployer
    journal: Journal
    watch: Watch
    folder: Path
    settings: RecipeSettings = field(default_factory=RecipeSettings)
    previous: Tag | None = None  #: the version that the run started on; None when it started on the commit
    previous_checkout: Path | None = None
    no_upgrade: Outcome = field(default_factory=lambda: Outcome("not_applicable", "There is no published version before it."))
    wanted_version: str = ""  #: the version label of the commit's own compose file
    begun: float = field(default_factory=time.time)
    backup: Backup | None = None
    proven: bool = True  #: whether what the last stage did was shown by a marker

    @property
    def marker(self) -> str:
        """The run's own value, another one for each run."""
        return owntests.marker(self.context)

    @property
    def markers(self) -> markers.Markers:
        return self._markers

    def __post_init__(self) -> None:
        self._markers = markers.Markers(self.deployer)
        self.hooks = owntests.hooks(self.context.checkout)


Stage = Callable[[Run], Outcome]


def install(run: Run) -> Outcome:
    """The app really answers, or, without a web port, runs quietly; then test_install.py of the version that runs."""
    if not run.previous:  # its hooks are those of the commit, which is not there yet
        _hook(run, "before_install")
    return _with_own(run, "install", [_up(run)], run.previous_checkout if run.previous else None)


def upgrade(run: Run) -> Outcome:
    """From the published version to the commit: it moved, it answers, its data is still there."""
    if not run.previous:
        return run.no_upgrade
    _hook(run, "before_upgrade")
    places = run.markers.write(run.deployer.mounts(), run.marker)
    kept = _write_hook(run, run.marker)
    before = run.deployer.state()
    run.journal.step(f"Upgrading from {run.previous.name}")
    with run.journal.timed("upgrade"):
        run.deployer.deploy()
        after = run.deployer.settle()
    run.journal.hide(run.deployer.secrets)
    cases = [
        _case(
            "the deployment moved to the commit",
            lambda: moved(before, after, run.previous.name if run.previous else "", run.wanted_version),
        ),
        _up(run),
    ]
    if places or kept:
        still = {(part.service, part.volume) for part in run.deployer.mounts()}
        there = [part for part in places if (part.service, part.volume) in still]  # a volume may be given up
        cases.append(_case("the data is still there", lambda: _marker_problem(run, there, kept)))
    return _with_own(run, "upgrade", cases, more=("install",))


def moved(before: Deployment, after: Deployment, previous: str, wanted: str) -> str:
    """Why this is no upgrade; empty when it is one. Pure. A green health check alone proves nothing: the old one has it, too."""
    if wanted and after.version != wanted:
        return f"The version label says {after.version or 'nothing'}, not {wanted}: what runs is not the commit."
    if after.fingerprint == before.fingerprint:
        return f"Nothing changed: what runs is still {previous}."
    return ""


def backup(run: Run) -> Outcome:
    """A marker is written and backed up, and stands in what was saved; of a dump, that it is new and complete."""
    parts = run.deployer.backups()
    if not parts:
        return Outcome("not_applicable", "The recipe declares no backups (label backupbot.backup).")
    _hook(run, "before_backup")
    case = _case("a backup is made", lambda: _make_backup(run, parts))
    outcome = _with_own(run, "backup", [case])
    return _said(run, outcome, "made")


def restore(run: Run) -> Outcome:
    """The marker is changed, the backup restored, and the marker read back."""
    parts = run.deployer.backups()
    if not parts:
        return Outcome("not_applicable", "The recipe declares no backups (label backupbot.backup).")
    if run.backup is None and (problem := _make_backup(run, parts)):
        return Outcome("failed", f"No backup to restore: {problem}")
    _hook(run, "before_restore")
    cases = [_case("the backup comes back", lambda: _restore(run)), _up(run)]
    return _said(run, _with_own(run, "restore", cases), "restored")


def custom(run: Run) -> Outcome:
    """The recipe's own tests."""
    return _only_own(run, "custom", "The recipe has no tests of its own.")


def extra(run: Run) -> Outcome:
    """The recipe's extra tests."""
    return _only_own(run, "extra", "The recipe has no extra tests.")


# --- the recipe's own part


def _only_own(run: Run, stage: str, without: str) -> Outcome:
    files = owntests.find(run.context.checkout, stage)
    if not files:
        return Outcome("not_applicable", without)
    _hook(run, f"before_{stage}")
    return _own(run, stage, files)


def _with_own(
    run: Run, stage: str, cases: Sequence[CaseResult], checkout: Path | None = None, more: Sequence[str] = ()
) -> Outcome:
    bad = next((case for case in cases if case.status != "passed"), None)
    if bad:
        return Outcome("failed", bad.message, cases)
    files = [file for name in (stage, *more) for file in owntests.find(checkout or run.context.checkout, name)]
    if not files:
        return Outcome("passed", "", cases)
    own = _own(run, stage, files, checkout)
    status = "passed" if own.status == "not_applicable" else own.status
    return Outcome(status, own.reason if status != "passed" else "", [*cases, *own.cases])


def _own(run: Run, stage: str, files: list[str], checkout: Path | None = None) -> Outcome:
    run.journal.step(f"Running {len(files)} test file{'s' if len(files) > 1 else ''} of the recipe")
    context = dataclasses.replace(run.context, checkout=checkout) if checkout else run.context
    with run.journal.timed("tests"):
        return owntests.run(stage, files, context, run.deployer, run.journal, run.watch, run.folder)


class HookFailed(Exception):
    """A hook of the recipe raised."""


def _hook(run: Run, name: str, value: str = "") -> str:
    """Run a hook of the recipe, if it has it: what it returned. Raises HookFailed."""
    if name not in run.hooks:
        return ""
    result = owntests.hook(name, run.context, run.deployer, run.journal, run.watch, run.folder, value=value)
    if not result.ok:
        raise HookFailed(f"The hook {name} failed: {result.reason}")
    return result.value


def _write_hook(run: Run, value: str) -> bool:
    """Let the recipe keep a marker in the app itself; whether it can, which takes both hooks."""
    if not {"write_marker", "read_marker"} <= run.hooks:
        return False
    _hook(run, "write_marker", value)
    return True


# --- generic parts


def _case(name: str, look: Callable[[], str]) -> CaseResult:
    """One generic check: `look` says what is wrong, or nothing."""
    started = time.monotonic()
    problem = look()
    return CaseResult(
        name=name,
        file="generic",
        status="failed" if problem else "passed",
        seconds=round(time.monotonic() - started, 3),
        message=problem,
    )


def _up(run: Run) -> CaseResult:
    """Everything runs, and the app answers as itself."""
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
    answer = probe(address, context.domain, context.health_path)
    if answer is None:
        return f"Nothing speaks HTTP at {address}."
    if not context.accepts(answer, address):
        wanted = f", not {' or '.join(map(str, context.health_status))}" if context.health_status else ""
        return f"The answer to GET {context.health_path} is {answer.status}{wanted}."
    run.journal.step(f"The app answers: {answer.status}")
    return _not_settled(run.deployer.state())


def _not_settled(state: Deployment) -> str:
    return "" if state.settled else f"Not everything runs any more: {state}. {_problems(state)}".strip()


def _quiet(run: Run) -> str:
    """Watch services that nobody can ask: all there, healthy, none started anew. What is wrong, or nothing."""
    restarts = {service.name: service.restarts for service in run.deployer.state().services}
    until = time.monotonic() + QUIET_SECONDS
    while time.monotonic() < until:
        run.watch.check()
        time.sleep(0.3)
        state = run.deployer.state()
        for service in state.services:
            if service.restarts > restarts.get(service.name, 0):
                return f"The service {service.name} was started anew: {service.problem or 'it had ended'}."
        if problem := _not_settled(state):
            return problem
    return ""


def _problems(state: Deployment) -> str:
    return " ".join(f"{service.name}: {service.problem}." for service in state.services if service.problem)


def _marker_problem(run: Run, places: Sequence[BackupPart], kept: bool) -> str:
    lost = run.markers.lost(run.marker, places)
    if kept and (found := _hook(run, "read_marker")) != run.marker:
        lost.append(f"read_marker gives {found[:60]!r}")
    return f"The marker that was written before is not what it was: {'; '.join(lost)}." if lost else ""


# --- backup and restore


def _data(run: Run, parts: Sequence[BackupPart]) -> list[BackupPart]:
    """The parts that hold the data itself, and so a marker."""
    means = run.settings.backup.means
    return [part for part in parts if means == "files" or (means == "auto" and not part.dump)]


def _make_backup(run: Run, parts: Sequence[BackupPart]) -> str:
    places = run.markers.write(_data(run, parts), run.marker)
    kept = _write_hook(run, run.marker)
    run.proven = bool(places) or kept
    folder = run.context.work / "backup"
    folder.mkdir(exist_ok=True)
    run.journal.step(f"Backing up {', '.join(f'{part.service}:{part.path}' for part in parts)}")
    try:
        with run.journal.timed("backup"):
            made = run.deployer.backup(folder)
    except DeployError as error:
        if not error.recipes_fault:
            raise
        return str(error)
    marked = {(part.service, part.path) for part in places}
    problems = [
        problem for part in made.parts if (problem := _artefact_problem(run, made, part, (part.service, part.path) in marked))
    ]
    if not problems:
        run.backup = made
    return " ".join(problems)


def _artefact_problem(run: Run, made: Backup, part: BackupPart, marked: bool) -> str:
    """What is wrong with one part of a backup: an exit code of zero says nothing about what was saved."""
    where = f"The backup of {part.service}:{part.path}"
    files = 0
    marker = b""
    try:
        with tarfile.open(made.file(part)) as archive:
            for member in archive:
                run.watch.check()
                if not member.isfile():
                    continue
                files += 1
                stream = archive.extractfile(member)
                assert stream
                if Path(member.name).name == markers.FILE:
                    marker = stream.read(1000)
                elif part.dump:
                    problem = dumps.problem(member.name, stream.read(dumps.BIGGEST), run.begun, float(member.mtime))
                    if problem:
                        return f"{where}: {problem}"
    except (OSError, tarfile.TarError) as error:
        return f"{where} cannot be read: {error}."
    if not files:
        return f"{where} is empty."
    if marked and marker != run.marker.encode():
        return f"{where} does not hold the file that was written before it."
    return ""


def _restore(run: Run) -> str:
    assert run.backup
    places = list(run.markers.places)
    changed = "changed after the backup"
    run.markers.write(places, changed)
    kept = _write_hook(run, changed)
    run.proven = bool(places) or kept
    run.journal.step("Restoring the backup")
    try:
        with run.journal.timed("restore"):
            run.deployer.restore(run.backup)
            run.deployer.settle()
    except DeployError as error:
        if not error.recipes_fault:
            raise
        return str(error)
    return _marker_problem(run, places, kept)


def _said(run: Run, outcome: Outcome, did: str) -> Outcome:
    if outcome.status == "passed" and not run.proven:
        return dataclasses.replace(outcome, reason=f"{did}, {NOT_PROVEN}", proven=False)
    return outcome


#: Stage by stage: what to run.
TABLE: dict[str, Stage] = {
    "install": install,
    "upgrade": upgrade,
    "backup": backup,
    "restore": restore,
    "custom": custom,
    "extra": extra,
}
assert tuple(TABLE) == STAGES

#: What a deployer must be able to do for a stage.
ABILITY = {"upgrade": "upgrade", "backup": "backup", "restore": "backup"}
