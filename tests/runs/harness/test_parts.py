"""The journal, the watch, the gate, and which test file belongs to which stage."""

from __future__ import annotations

import errno
import json
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infra.deployers.base import BackupPart, Deployment
from infra.deployers.context import Service
from infra.deployers.errors import DeployError
from infra.deployers.isolation.guest import splice
from infra.deployers.probe import Address, connect_unix
from runs.harness import events, recipe_tests, stages
from runs.harness.deadlines import Cancelled, Deadlines, TimedOut
from runs.harness.events import Journal
from runs.harness.git import secrets_of
from runs.harness.protocol import CaseResult, Extras, ExtraTest, LintFinding, Results, RunFolder, StageResult, Teardown, Verdict
from runs.harness.sandbox_gateway import SandboxGateway
from runs.harness.stage_table import STAGES


def test_every_stage_of_the_protocol_has_its_row() -> None:
    assert tuple(stages.TABLE) == STAGES


def test_test_files_go_with_their_stage(tmp_path: Path) -> None:
    names = ["test_install.py", "test_upgrade.py", "test_login.py", "deep/test_mail.py", "extra/test_load.py"]
    names += ["extra/deep/test_x.py", "deep/extra/test_more.py", "helper.py", "test_data.txt", ".hidden/test_no.py"]
    for name in names:
        path = tmp_path / "tests" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert recipe_tests.find(tmp_path, "install") == ["tests/test_install.py"]
    assert recipe_tests.find(tmp_path, "upgrade") == ["tests/test_upgrade.py"]
    assert recipe_tests.find(tmp_path, "custom") == ["tests/deep/test_mail.py", "tests/test_login.py"]
    extra = ["tests/deep/extra/test_more.py", "tests/extra/deep/test_x.py", "tests/extra/test_load.py"]
    assert recipe_tests.find(tmp_path, "extra") == extra
    assert recipe_tests.find(tmp_path / "nothing", "custom") == []


def test_the_journal_blackens_credentials_and_terminal_codes(tmp_path: Path) -> None:
    credential = {"git_username": "bot", "git_token": "s3cret"}
    folder = RunFolder(tmp_path)
    journal = Journal(folder, secrets_of(credential))
    journal.step("token s3cret")
    journal.log(f"\x1b[31mred\x1b[0m {secrets_of(credential)[1]} \x00\udcff")
    journal.warn("twice \x1b[31ms3cret")
    journal.warn("twice \x1b[31ms3cret")
    assert journal.warnings == ["twice [secret]"]
    journal.close()
    journal.log("after the end")
    text = folder.log.read_text() + folder.events_file.read_text()
    assert "s3cret" not in text and secrets_of(credential)[1] not in text
    assert "token [secret]" in text and "red [secret] ?" in text and "after the end" not in text
    assert [event.kind for event in folder.events()] == ["step", "warning"]


CODES = ["[0m", "[>4;1m", "[1 q", "(B", "c", "]0;title\x07", "]8;;http://x\x1b\\", "P1$r\x1b\\"]


@pytest.mark.parametrize("code", [*(f"\x1b{code}" for code in CODES), "\x9b31m", "\x9d0;title\x9c", "\x84", "\x7f"])
def test_no_terminal_code_divides_a_secret(tmp_path: Path, code: str) -> None:
    journal = Journal(RunFolder(tmp_path), ["s3CRET"])
    assert journal.clean(f"in s3{code}CRET pieces, {code}and what follows: [0m ]0; (B") == (
        "in [secret] pieces, and what follows: [0m ]0; (B"
    )


def test_warnings_are_limited_in_length_and_number(tmp_path: Path) -> None:
    journal = Journal(RunFolder(tmp_path), ["s3cret-of-this-run"])
    journal.warn("x" * (events.LONGEST_WARNING - 5) + "s3cret-of-this-run")
    for number in range(events.MOST_WARNINGS - 1):
        journal.warn(f"{number}")
    journal.warn("0")
    assert len(journal.warnings) == events.MOST_WARNINGS, "nothing was left out"
    for number in range(10):
        journal.warn(f"more {number}")
    assert journal.warnings[0] == "x" * (events.LONGEST_WARNING - 5) + "[secr…"
    assert (len(journal.warnings), journal.warnings[-1]) == (
        events.MOST_WARNINGS + 1,
        "There were more than 100 warnings; the others are in the log.",
    )
    assert "more 9" in RunFolder(tmp_path).log.read_text()


def test_half_a_character_stops_neither_results_nor_events(tmp_path: Path) -> None:
    half, now = "bad\udcff.txt", datetime.now(UTC)
    folder, test = RunFolder(tmp_path), ExtraTest(file=half, name=half, covers=[half])
    case, finding = CaseResult(name=half, status="failed", output=half), LintFinding(rule=half, level="error", text=half)
    stage, left = StageResult(name=half, status="failed", reason=half, cases=[case]), Teardown(left=[half])
    words = {"reason": half, "version": half, "warnings": [half], "changed": [half, "good ✓ \U0001f600"]}
    results = Results(run_id="1", verdict=Verdict.FAILED, started=now, finished=now, **words)
    folder.write_results(
        results.model_copy(update={"stages": [stage], "teardown": left, "lint": [finding], "extras": Extras(tests=[test])})
    )
    read = folder.results()
    assert read and read.changed == ["bad?.txt", "good ✓ \U0001f600"]
    assert read.extras.tests[0].covers == read.teardown.left == read.warnings == ["bad?.txt"]
    journal = Journal(folder)
    journal.warn(half)
    journal.event("step", half, name=half)
    journal.close()
    assert [event.text for event in folder.events()] == ["bad?.txt", "bad?.txt"]
    assert "bad?.txt" in folder.log.read_text()


def test_a_recipe_cannot_write_endless_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MOST_EVENTS", 3)
    journal = Journal(RunFolder(tmp_path))
    for number in range(10):
        journal.step(str(number))
    journal.event("finished", "the end is always told")
    assert [event.text for event in RunFolder(tmp_path).events()] == ["0", "1", "2", "the end is always told"]


def test_the_watch_names_the_limit_that_was_met(tmp_path: Path) -> None:
    deadlines = Deadlines(tmp_path / "cancel", run_seconds=100)
    deadlines.check()
    deadlines.stage("custom", -1)
    with pytest.raises(TimedOut, match="The stage custom took longer than -1 s"):
        deadlines.check()
    with pytest.raises(TimedOut, match="The run took longer than -1 s"):
        Deadlines(tmp_path / "cancel", run_seconds=-1).check()
    (tmp_path / "cancel").touch()
    with pytest.raises(Cancelled):
        Deadlines(tmp_path / "cancel", run_seconds=100).check()


def test_what_has_a_clock_of_its_own_counts_neither_for_the_stage_nor_for_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("runs.harness.deadlines.time.monotonic", lambda: now)
    deadlines = Deadlines(tmp_path / "cancel", run_seconds=100)
    deadlines.stage("install", 10)
    now += 8
    folder = RunFolder(tmp_path)
    assert folder.apart() == 0
    with deadlines.apart(5000), deadlines.apart(7):
        assert folder.apart() == 5000
        now += 1000
        deadlines.check()
        (tmp_path / "cancel").touch()
        now += 1
        with pytest.raises(Cancelled):
            deadlines.check()
    (tmp_path / "cancel").unlink()
    deadlines.cancelled = False
    assert folder.apart() == 1001
    now += 1
    deadlines.check()
    now += 2
    with pytest.raises(TimedOut, match="The stage install took longer than 10 s"):
        deadlines.check()
    deadlines.stage("custom", 1000)
    now += 90
    with pytest.raises(TimedOut, match="The run took longer than 100 s"):
        deadlines.check()


class _Deployer:
    """Stands for a deployment: says what it was asked."""

    def address(self) -> None:
        return None

    def execute(self, service: str, command: Sequence[str], timeout: float) -> tuple[int, str]:
        if service != "app":
            raise DeployError("tool_failed", f"No container of {service} is running.")
        return 3, f"{list(command)} {timeout:g}"

    def logs(self, service: str, lines: int) -> str:
        return f"{lines} lines of {service}"


def mount(service: str, path: str, volume: str) -> BackupPart:
    return BackupPart(service, path, volume)


OLD = mount("db", "/var/lib/db/data", "db")
CONF = mount("db", "/conf", "conf")


@pytest.mark.parametrize(
    ("now", "says"),
    [
        ([OLD], ""),
        ([mount("db", "/var/lib/db", "db")], ""),
        ([mount("new", "/data", "db")], ""),
        ([CONF], ""),  # it was dropped
        ([mount("db", "/var/lib/db/data", "db18"), CONF], "/data was on the volume db and is now on db18, which is empty"),
        ([mount("db", "/var/lib/db/data", "conf")], "is now on conf, which is empty"),
        ([mount("db", "/var/lib/db", "db18"), CONF], "is now on db18 at /var/lib/db, which is empty"),
        ([mount("db", "/var/lib/db", "db18"), CONF, mount("db", "/more", "more")], ""),  # which of them?
        ([mount("db", "/var/lib/db", "db18"), mount("app", "/old", "db")], ""),  # whoever moves it sees it
        ([mount("search", "/data", "index"), CONF], ""),
    ],
)
def test_a_volume_in_place_of_another_is_empty(now: list[BackupPart], says: str) -> None:
    was = stages.Mounted([OLD, CONF], [OLD, CONF], {("db", "db")})
    found = stages.renamed(was, now, ())
    assert says in found and bool(says) is bool(found)
    assert stages.renamed(was, now, {"volume", "db"}) == ""
    assert bool(stages.renamed(was, now, {"db"})) is bool(says), "the word may mean anything"


def test_another_volume_of_a_service_replaces_none_that_is_not_backed_up() -> None:
    was = stages.Mounted([OLD, mount("app", "/x", "db")], [OLD], {("app", "db")})
    assert stages.renamed(was, [mount("db", "/cache", "cache")], ()) == ""
    assert "app:/x was on the volume db" in stages.renamed(was, [mount("app", "/x", "new")], ())


@pytest.mark.parametrize("readable", [True, False])
def test_a_reason_holds_the_end_of_a_log_and_needs_none(readable: bool) -> None:
    """A line may be of any length, and Docker may not answer: neither changes that the services are down."""

    def logs(service: str, lines: int) -> str:
        if not readable:
            raise DeployError("tool_failed", "docker service did not finish within 30 s.")
        return "x" * 100_000 + "the end"

    run: Any = SimpleNamespace(deployer=SimpleNamespace(logs=logs))
    down = [Service(f"s{number}", wanted=1, running=0, problem="exited (1)") for number in range(20)]
    reason = stages._not_settled(run, Deployment(down))
    assert "s19: exited (1)." in reason and len(reason) < 20_000
    assert reason.endswith('… end".') is readable


def _ask(path: Path, line: bytes) -> Any:
    with connect_unix(str(path), 240) as stream:
        stream.sendall(line + b"\n")
        stream.shutdown(socket.SHUT_WR)
        answer = stream.makefile().readline()
    return json.loads(answer) if answer else None


def test_the_gate_does_what_it_may_and_survives_nonsense(tmp_path: Path) -> None:
    path = tmp_path / ("a" * 90) / "gate.sock"  # longer than an address may be
    path.parent.mkdir()
    deployer: Any = _Deployer()
    with SandboxGateway(path, deployer, "example.com"):
        done = _ask(path, b'{"do": "exec", "command": ["ls", "-l"], "timeout": 1e9}')
        assert done == {"code": 3, "output": "['ls', '-l'] 600"}
        assert _ask(path, b'{"do": "exec", "command": ["ls"], "service": "x"}')["error"].startswith("No container of x")
        assert _ask(path, b'{"do": "logs", "lines": 7}') == {"output": "7 lines of app"}
        assert _ask(path, b'{"do": "rm -rf"}') == {"error": "invalid request"}
        assert "error" in _ask(path, b'{"do": "exec"}')
        assert "error" in _ask(path, b"[]")
        assert _ask(path, b"not json") is None
        assert _ask(path, b'{"to": "app"}') is None  # nobody there: the connection is closed
    assert not path.exists()


def _descriptors() -> set[str]:
    """What this process has open. A socket's name is never used again."""
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found.add(str(descriptor.readlink()))
    return found


def test_the_gate_holds_nothing_after_its_end(tmp_path: Path) -> None:
    path, threads, descriptors = tmp_path / "gate.sock", set(threading.enumerate()), _descriptors()
    with socket.create_server(("127.0.0.1", 0)) as app, ExitStack() as held:
        deployer: Any = _Deployer()
        deployer.address = lambda: Address("127.0.0.1", app.getsockname()[1])
        with SandboxGateway(path, deployer, "example.com"):
            for _ in range(20):
                stream = held.enter_context(connect_unix(str(path), 240))
                stream.sendall(b'{"to": "app"}\n')
                there = held.enter_context(app.accept()[0])
                there.sendall(b"x")
                assert stream.recv(1) == b"x"
            waiting = held.enter_context(connect_unix(str(path), 240))  # asks for nothing
            waiting.sendall(b"{")
        assert stream.recv(1) == there.recv(1) == b""
        until = time.monotonic() + 240
        # Threads of other tests may still end meanwhile.
        while (left := set(threading.enumerate()) - threads) and time.monotonic() < until:
            time.sleep(0.01)
        assert not left
        assert len(_descriptors() - descriptors) == 1 + 2 * 20 + 1  # the app's listener, and both ends that this test holds


def test_whoever_accepts_outlives_a_want_of_descriptors() -> None:
    here, there = socket.socketpair()
    closed, seen = threading.Event(), threading.Event()

    class Listener:
        def __init__(self) -> None:
            self.next: list[Any] = [OSError(errno.EMFILE, "Too many open files"), (there, None)]

        def accept(self) -> Any:
            if not self.next:
                closed.set()
                raise OSError(errno.EBADF, "closed")
            answer = self.next.pop(0)
            if isinstance(answer, OSError):
                raise answer
            return answer

    listener: Any = Listener()
    with here:
        splice.serve(listener, lambda _: seen.set())
        assert seen.wait(240) and closed.wait(240)


class _Session:
    """Answers in turn, as a starting app does."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, str, Any]] = []

    def request(self, method: str, url: str, **options: Any) -> Any:
        self.asked.append((method, url, options["headers"]))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(status_code=answer, text="404 page not found\n" if answer == 404 else "")


def _app(*answers: Any) -> Any:
    from runs.harness.guest.cc_ci_plugin import App

    app = App("http://127.0.0.1:5", "web.example.com", "", wait=0.5)
    app._session = _Session(*answers)  # type: ignore[assignment]
    return app


def test_the_fixture_waits_while_the_app_starts() -> None:
    import requests

    app = _app(requests.ConnectionError("refused"), 502, 404, 503, 200)
    assert app.get("/health", wait=10).status_code == 200
    assert app._session.asked[-1] == ("GET", "http://127.0.0.1:5/health", {"Host": "web.example.com"})
    assert len(app._session.asked) == 5


def test_the_fixture_gives_the_last_answer_or_error_after_its_time() -> None:
    import requests

    assert _app(503).post("/", wait=0.3).status_code == 503
    with pytest.raises(requests.ConnectionError):
        _app(requests.ConnectionError("refused")).get("/")
    assert _app(500).get("/").status_code == 500  # the app's own error is an answer
