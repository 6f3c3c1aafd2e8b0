"""Runs as builds of a CI server: one build for each attempt, whose log brings back what the harness did.

All that is known of a build is in the run's folder on this machine: `build.json`, and copies of the logs. From the signed lines
in them (`marked_lines`) the folder's usual files are written, the results last, so that reading a run is the same as for a
harness of this machine, and a report survives the loss of the server. Every step may be interrupted and repeated.
"""

from __future__ import annotations

import base64
import fcntl
import json
import logging
import math
import os
import re
import time
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from django.conf import settings
from django.utils import timezone
from django.utils.crypto import salted_hmac

from controlplane.secrets import SecretUnreadable
from enrollment.forges.base import CircuitOpen, ForgeError, NotFound, RateLimited, Unavailable
from runs.executors import marked_lines
from runs.executors.base import ExecutorError, Observation
from runs.executors.engine import Build, Engine, Step
from runs.executors.local import GRACE, in_folder, limits, request_for
from runs.harness.protocol import Event, FolderState, Results, RunFolder, Verdict, write_atomically
from runs.harness.stage_table import in_order
from runs.models import FINAL, RemoteExecutor, TestRun

log = logging.getLogger(__name__)

#: After a create without an answer the server is searched for this long before another one: it may still be working on the first.
#: Drone looks three times for a pipeline, 15 seconds apart (service/content/content.go of its source).
UNANSWERED = timedelta(seconds=90)
#: How long the logs of an ended build are read again before it counts as lost.
SETTLE = timedelta(seconds=30)
#: How long the server may refuse us while a build runs: perhaps somebody is changing the token.
PATIENCE = timedelta(minutes=5)
#: How long a build may wait for a runner.
QUEUED = timedelta(hours=2)
#: Seconds between two requests about one build: a tenth of its age, within these.
SOONEST, LATEST = 2.0, 15.0
#: After so many seconds no more is asked in a look at a run: other runs wait meanwhile.
LOOK = 15.0
#: Seconds to wait for more of a running step's log.
LIVE = 0.3
#: Builds older than the attempt by more than this are not searched, and never more than so many pages.
OLDER, PAGES = timedelta(hours=1), 20
#: The most bytes of a build's logs: the harness prints less than 5 MB. Those of a hostile server may take 25 times their size in
#: memory, and 0.3 s for each MB.
LOGS = 16 << 20
#: The longest request that travels: the whole URL has to pass proxies.
LONGEST = 6000

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NAME = re.compile(r"(?!build-)\w[\w.-]{0,119}", re.ASCII)
#: Files of the folder that no artefact may replace.
_OURS = (
    "request.json",
    "results.json",
    "build.json",
    "lock",
    "build.lock",
    "begun",
    "cancel",
    "apart",
    "events.jsonl",
    "log.txt",
)


@dataclass
class Known:
    """What is known of the build of one attempt: `build.json` in the run's folder. Times are ours, in seconds since 1970."""

    number: int = 0
    place: str = ""  #: the server and the repository where it was asked for
    asked: float = 0.0  #: when a create was sent whose answer has not been recorded
    again: bool = False  #: a second create was sent, though the first one may still come
    page: int = 1  #: where the search for it goes on
    newest: int = 0  #: the newest build in that search
    trouble: str = ""  #: what came instead of that answer
    above: int = 0  #: the newest build before that
    copied: list[str] = field(default_factory=list)  #: steps whose final log is in the folder
    steps: dict[str, float] = field(default_factory=dict)  #: when steps were first seen to have ended
    next: float = 0.0  #: no request before
    looked: float = 0.0  #: when it was last asked about
    found: float = 0.0  #: since when its number is known
    running: float = 0.0  #: since when a runner works on it
    stopped: bool = False
    ended: float = 0.0  #: when the server was first seen to have ended it
    denied: float = 0.0  #: since when the server refuses us
    refused: str = ""  #: why it could not be started, until `next`

    @classmethod
    def of(cls, folder: RunFolder) -> Known:
        try:
            return cls(**json.loads((folder.path / "build.json").read_text()))
        except (OSError, ValueError, TypeError):
            return cls()

    @property
    def too_early(self) -> bool:
        """Whether not to ask yet; not if our clock was set back."""
        return 0 < self.next - time.time() <= max(SOONEST, LATEST)

    def is_news(self, woken: datetime | None) -> bool:
        """Whether the server has said something since it was asked. Each message makes us ask once, whatever the clocks say."""
        return woken is not None and self.looked < woken.timestamp() <= time.time()

    def save(self, folder: RunFolder) -> None:
        folder.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(folder.path / "build.json", json.dumps(asdict(self)))


class BuildExecutor:
    def __init__(self, row: RemoteExecutor, kind: type[Engine]) -> None:
        self._row, self._kind = row, kind
        self._until = time.monotonic() + LOOK  #: for one look at one run

    # --- the interface

    def start(self, run: TestRun) -> None:
        folder = RunFolder(run.folder)
        with _alone(folder):
            known = Known.of(folder)
            if known.number or folder.results_file.exists():
                return
            if known.refused and known.too_early:
                raise ExecutorError(known.refused)
            try:
                self._start(run, folder, known)
            except ExecutorError as error:
                known.refused, known.next = str(error), time.time() + SOONEST
                known.save(folder)
                raise

    def observe(self, run: TestRun) -> Observation:
        folder = RunFolder(run.folder)
        with _alone(folder):
            known = Known.of(folder)
            if folder.results_file.exists():
                return in_folder(run, FolderState.FINISHED)
            if not known.number:
                return Observation(self._unknown(run, folder, known))
            if known.too_early and not known.is_news(run.woken_at):
                return in_folder(run, FolderState.RUNNING)
            known.looked = time.time()
            try:
                lost = self._copy(run, folder, known)
                known.denied = 0.0
            except ForgeError as error:
                log.info("%s: %s", run, error)
                lost = ""
                if not error.passing:
                    known.denied = known.denied or time.time()
                    if time.time() > known.denied + PATIENCE.total_seconds():
                        raise ExecutorError(
                            f"build {known.number} cannot be read: {self._engine(known).explain(error)}"
                        ) from error
            known.next = time.time() + min(LATEST, max(SOONEST, (timezone.now() - _since(run)).total_seconds() / 10))
            known.save(folder)
            if folder.results_file.exists():
                return in_folder(run, FolderState.FINISHED)
            seen = in_folder(run, FolderState.LOST if lost else FolderState.RUNNING)
            return Observation(seen.state, seen.events, seen.log, seen.log_offset, lost=lost or seen.lost)

    def stop(self, run: TestRun) -> None:
        folder = RunFolder(run.folder)
        with _alone(folder):
            known = Known.of(folder)
            if not known.number or known.stopped:
                return
            try:
                try:
                    self._engine(known).cancel(known.number)
                except Unavailable:  # it may just have closed the connection; after the run's end nobody would ask again
                    self._engine(known).cancel(known.number)
            except NotFound:
                pass
            except (ForgeError, ExecutorError) as error:
                log.warning("%s: build %d could not be stopped: %s", run, known.number, error)
                return
            known.stopped, known.next = True, 0.0
            known.save(folder)

    def kill(self, run: TestRun) -> None:
        self.stop(run)

    def longest(self, run: TestRun) -> timedelta:
        """Also the time in the server's queue. How long the harness waited there for images and services is not known here."""
        known = Known.of(RunFolder(run.folder))
        waited = timedelta(seconds=known.running - (known.asked or known.found)) if known.running else QUEUED
        return min(max(waited, timedelta()), QUEUED) + timedelta(seconds=limits().longest) + GRACE + UNANSWERED

    def sweep(self) -> None:
        """Each build removes at its beginning what earlier ones left on its machine."""

    # --- starting

    def _start(self, run: TestRun, folder: RunFolder, known: Known) -> None:
        params = params_for(run)
        engine = self._engine(known)
        try:
            build = self._find(run, folder, engine, known)
            if build is None and known.asked and time.time() < known.asked + UNANSWERED.total_seconds():
                raise ExecutorError(f"{known.trouble or 'a request got no answer'}. Looking for the build before asking again")
            if build is None:
                build = self._create(run, folder, known, engine, params)
        except ForgeError as error:
            raise ExecutorError(f"the build could not be started: {engine.explain(error)}") from error
        if build.status == "error" and not build.steps:
            # Drone keeps no parameters of such a build: it is not found again, and the reason has to outlive this attempt.
            known.trouble = (
                f"{engine.label} cannot use the pipeline of {self._row.repository}: {build.error[:300]}. "
                f"Paste the one of {engine.docs} there"
            )
            raise ExecutorError(known.trouble)
        self._found(run, folder, known, build, engine)

    def _find(self, run: TestRun, folder: RunFolder, engine: Engine, known: Known) -> Build | None:
        """The build of this attempt. Also notes the newest build.

        Of several it is the one that is known, or the first; the others (of a create that took too long, or restarts by hand)
        are cancelled. What takes longer than a look may take goes on at the next. Raises ForgeError and ExecutorError.
        """
        ours = params_of(run)
        found: list[Build] = []
        for page in range(known.page, PAGES + 1):
            if time.monotonic() > self._until:
                known.page = page
                known.save(folder)
                if found:
                    break
                raise ExecutorError(f"{engine.label} answers slowly: {page - 1} pages of its builds are searched")
            builds = engine.builds(page)
            known.newest = max([known.newest, *(build.number for build in builds)])
            # The server's clock decides what is older, compared with itself.
            since = engine.server_time - (timezone.now() - _since(run)) - OLDER
            found += [build for build in builds if build.event == engine.event and ours.items() <= build.params.items()]
            _cancel_leftovers(engine, builds)
            if not builds or any(build.number <= known.above for build in builds):
                break
            if not known.asked and builds[-1].created < since:
                break
        if not known.asked:
            known.above = known.newest
        known.page, known.newest = 1, 0
        mine = known.number or min((build.number for build in found), default=0)
        for build in found:
            if build.number != mine and not build.final:
                with suppress(ForgeError):  # it says nothing of our own build
                    engine.cancel(build.number)
        return next((build for build in found if build.number == mine), None)

    def _create(self, run: TestRun, folder: RunFolder, known: Known, engine: Engine, params: dict[str, str]) -> Build:
        repo = engine.repo()
        if not repo.active:
            raise ExecutorError(f"{self._row.repository} is disabled in {engine.label}: activate it at {engine.settings_page}")
        before = known.asked
        known.again = known.again or bool(before)
        known.asked, known.refused, known.place = time.time(), "", self._place
        known.save(folder)  # before it is sent: whoever comes after us searches first
        try:
            build = engine.create(params)
        except ForgeError as error:
            if isinstance(error, CircuitOpen | RateLimited) or not error.passing:
                known.asked = before
            else:  # it may have been started all the same
                known.trouble = f"the build could not be started: {engine.explain(error)}"
            raise
        if build is None:
            known.asked = before
            raise ExecutorError(
                f"{engine.label} accepted the build and started none: {self._row.repository} has no pipeline on "
                f"{self._row.branch} that runs for {engine.event} builds. {engine.trigger} ({engine.docs}), and check in "
                f"{engine.label} that the user who activated the repository is active"
            )
        return build

    def _found(self, run: TestRun, folder: RunFolder, known: Known, build: Build, engine: Engine) -> None:
        known.number, known.refused, known.next, known.found = build.number, "", 0.0, time.time()
        known.place = self._place
        known.save(folder)
        TestRun.objects.filter(pk=run.pk, attempt=run.attempt).update(build_url=engine.page(build.number)[:500])

    def _unknown(self, run: TestRun, folder: RunFolder, known: Known) -> FolderState:
        """The state of an attempt without a known build. One that is to stop may have a build whose number never came."""
        if not (run.stop_wanted and known.asked):
            return FolderState.NOT_STARTED
        with suppress(ForgeError, ExecutorError):
            engine = self._engine(known)
            if build := self._find(run, folder, engine, known):
                self._found(run, folder, known, build, engine)
                return FolderState.RUNNING
            if time.time() >= known.asked + UNANSWERED.total_seconds():
                return FolderState.NOT_STARTED
        return FolderState.RUNNING

    # --- observing

    def _copy(self, run: TestRun, folder: RunFolder, known: Known) -> str:
        """Copy what is new into the folder. Returns why the run is lost, if it is. Raises ForgeError and ExecutorError."""
        engine = self._engine(known)
        try:
            build = engine.build(known.number)
        except NotFound:
            engine.whoami()  # with a bad token, a repository that is there is not found
            engine.repo()
            return f"build {known.number} was deleted in {engine.label}"
        if known.again:
            with suppress(ExecutorError, ForgeError):  # it goes on at the next look
                self._find(run, folder, engine, known)
        slow = False
        for step in build.steps:
            if slow := time.monotonic() > self._until:
                break
            self._copy_log(engine, step, folder, known)
            if sum(path.stat().st_size for path in folder.path.glob("build-*.log")) > LOGS:
                raise ExecutorError(
                    f"the logs of build {build.number} have more than {LOGS >> 20} MB: see {engine.page(build.number)}"
                )
        _write_progress(folder, marked_lines.read(_logs(folder), key_for(run), str(run.id), run.attempt))
        if not build.final:
            self._judge_waiting(build, known, engine)
            return ""
        known.ended = known.ended or time.time()
        # Only now, and only from steps that came to an end by themselves: while the harness works, a test that got hold of the
        # key could end its report for it, and what was killed cannot contradict.
        ended = {_name(step) for step in build.steps if step.status in ("success", "failure")}
        problem = _conclude(run, folder, build, marked_lines.read(_logs(folder, ended), key_for(run), str(run.id), run.attempt))
        if not problem or slow or not (run.stop_wanted or time.time() > known.ended + SETTLE.total_seconds()):
            return ""
        # The logs may have come between the build's state and now: once more, they were just read after its end.
        why = f": {build.error[:200]}" if build.error else ""
        return f"build {build.number} ended as {build.status}{why}, and {problem}: {engine.page(build.number)}"

    def _judge_waiting(self, build: Build, known: Known, engine: Engine) -> None:
        """Give up a build that nobody works on. Raises ExecutorError, and ForgeError."""
        if build.started:
            known.running = known.running or time.time()
        if known.running or time.time() < known.found + QUEUED.total_seconds():
            return
        engine.cancel(build.number)
        how = "waits for somebody's approval" if build.status == "blocked" else "was taken by no runner"
        raise ExecutorError(
            f"build {build.number} {how} for {QUEUED.total_seconds() / 3600:.0f} hours: see {engine.page(build.number)}, and "
            f"whether a runner is connected that fits the pipeline ({engine.takes_none})"
        )

    def _copy_log(self, engine: Engine, step: Step, folder: RunFolder, known: Known) -> None:
        name = _name(step)
        path = folder.path / f"build-{name}.log"
        if name in known.copied:
            return
        if step.status == "running":
            text: str | None = engine.live_log(step, known.number, LIVE)
            # Drone, for one, remembers the last lines only: less than we have is no news.
            if text and len(text.encode()) > (path.stat().st_size if path.exists() else 0):
                write_atomically(path, text)
        elif step.status in ("success", "failure", "error", "killed"):
            since = known.steps.setdefault(name, time.time())
            text = engine.log(step, known.number)
            if text is not None:
                write_atomically(path, text)
                # It may have been a part of it; and "killed" is said at once, while the runner sends its log later.
                if step.status != "killed" and time.time() > since + SETTLE.total_seconds():
                    known.copied.append(name)

    @property
    def _place(self) -> str:
        return f"{self._row.url} {self._row.repository}"

    def _engine(self, known: Known) -> Engine:
        """Raises ExecutorError, also if the executor is no longer where the build is: a number means another build there."""
        if known.place not in ("", self._place):
            raise ExecutorError(
                f"the executor {self._row.name} was changed from {known.place} to {self._place} while it had this run: "
                "ask for a new run"
            )
        try:
            return self._kind(self._row)
        except SecretUnreadable as error:
            raise ExecutorError(f"the token of the executor {self._row.name} cannot be read: {error}") from error


# --- what travels


def key_for(run: TestRun) -> str:
    """The key of this attempt's lines: as good as random for all others, and the same after a restart."""
    return salted_hmac("cc-ci.executors.key", f"{run.id}/{run.attempt}", algorithm="sha256").hexdigest()


def params_for(run: TestRun) -> dict[str, str]:
    """The parameters of a build. Everybody who may see the server's page reads them: no token is ever among them.

    Raises ExecutorError.
    """
    try:
        request = request_for(run)
    except (ForgeError, SecretUnreadable) as error:
        raise ExecutorError(f"cannot determine the commit of the tests kept on the server: {error}") from error
    # What belongs to this machine is left out: the other one has its own.
    own = {"stages", "domain", "proxy_url", "deployer", "images", "oidc", "locks", "picture"}
    text = json.dumps(request.model_dump(mode="json", exclude_defaults=True, exclude=own), separators=(",", ":"))
    packed = base64.urlsafe_b64encode(zlib.compress(text.encode(), 9)).decode()
    if len(packed) > LONGEST:
        raise ExecutorError("the request is too long for a build: shorten the enrolment's allowances, or use this machine")
    usual = [stage for stage in run.stages if stage != "extra"]
    return {
        **params_of(run),
        "STAGES": ",".join(usual or run.stages),
        "EXTRA_TESTS": "1" if "extra" in run.stages else "0",
        "CC_CI_REQUEST": packed,
    }


def params_of(run: TestRun) -> dict[str, str]:
    """Those by which a build of this attempt is known. Nobody else could have made the key."""
    return {"CC_CI_RUN_ID": str(run.id), "CC_CI_ATTEMPT": str(run.attempt), "CC_CI_KEY": key_for(run)}


# --- the folder


@contextmanager
def _alone(folder: RunFolder) -> Iterator[None]:
    """One process at a time works on an attempt's build. The lock ends with its holder."""
    folder.path.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = os.open(folder.path / "build.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _cancel_leftovers(engine: Engine, builds: Collection[Build]) -> None:
    """Cancel builds whose runs or attempts have ended, such as a late answer to a create that was given up."""
    waiting = {build.params.get("CC_CI_RUN_ID", ""): build for build in builds if build.event == engine.event and not build.final}
    for run in TestRun.objects.filter(pk__in=[name for name in waiting if _UUID.fullmatch(name)]):
        build, attempt = waiting[str(run.pk)], run.attempt
        run.attempt = int(build.params.get("CC_CI_ATTEMPT", "")[:5]) if build.params.get("CC_CI_ATTEMPT", "").isdecimal() else 0
        if (run.state in FINAL or run.attempt < attempt) and params_of(run).items() <= build.params.items():
            with suppress(ForgeError):
                engine.cancel(build.number)


def _since(run: TestRun) -> datetime:
    return run.started_at or run.created_at


def _name(step: Step) -> str:
    return f"{step.stage}-{step.number}"


def _logs(folder: RunFolder, names: Collection[str] | None = None) -> str:
    """The copied logs in the order of the steps: all, or those of some."""

    def order(path: Path) -> list[int]:
        return [int(part) for part in path.stem.split("-")[1:]]

    paths = sorted(folder.path.glob("build-*.log"), key=order)
    return "".join(
        path.read_text(errors="replace") for path in paths if names is None or path.stem.removeprefix("build-") in names
    )


def _write_progress(folder: RunFolder, found: marked_lines.Found) -> None:
    """The folder's log and events, from what was found in the logs."""
    _put(folder.log, found.text)
    events = []
    for text in found.events:
        with suppress(ValueError):
            events.append(Event.model_validate(_strict(text)))
    _put(folder.events_file, "".join(f"{json.dumps(event.model_dump(mode='json'))}\n" for event in events))


def _conclude(run: TestRun, folder: RunFolder, build: Build, found: marked_lines.Found) -> str:
    """Write the artefacts and the results of a build that ended, or return why there are none. Raises ExecutorError."""
    if found.results is None:
        return found.problem
    if build.status not in ("success", "failure"):
        return "its report does not count then"
    try:
        results = Results.model_validate(_strict(found.results))
    except ValueError as error:
        raise ExecutorError(
            f"the results cannot be read: the cc-ci of the runner is probably of another version than {settings.VERSION}, "
            f"install this one there ({' '.join(str(error).split())[:200]})"
        ) from error
    if results.run_id != str(run.id) or (results.sha and results.sha != run.sha):
        raise ExecutorError(f"the build tested {results.sha[:10] or results.run_id}, not {run.short_sha}")
    stages, asked = [stage.name for stage in results.stages], in_order(run.stages)
    if stages != list(asked):
        raise ExecutorError(
            f"the build ran the stages {', '.join(stages)}, not {', '.join(asked)}: its pipeline has to pass on STAGES and "
            "EXTRA_TESTS as they are"
        )
    if (results.verdict is Verdict.PASSED) != (build.status == "success"):  # the exit code of `cc-ci harness`
        return f"its report says {results.verdict}"
    artefacts = {one.name: one for one in results.artefacts if _NAME.fullmatch(one.name) and one.name not in _OURS}
    results = results.model_copy(update={"artefacts": list(artefacts.values())})
    for name in artefacts.keys() & found.files.keys():
        (folder.path / name).write_bytes(found.files[name])
    folder.write_results(results)
    return ""


def _strict(text: str) -> Any:
    """JSON as the standard has it, in which no number is infinite or none. Raises ValueError."""

    def finite(text: str) -> float:
        if not math.isfinite(value := float(text)):
            raise ValueError(f"{text[:20]} is not a number")
        return value

    try:
        return json.loads(text, parse_constant=finite, parse_float=finite)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _put(path: Path, text: str) -> None:
    """Write a file if that changes it."""
    text = text.encode(errors="replace").decode()
    if not path.exists() or path.read_text() != text:
        write_atomically(path, text)
