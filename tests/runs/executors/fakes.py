"""CI servers with one repository, as their sources and running ones behave (docs/executors); their runners are here, too.

A build runs the pipeline's one step: `cc-ci harness` as a process of its own, or a script that a test gives. Faults are asked for
each request. What is true of Drone, and surprises:

- parameters come from the query only, the first value of each; `branch`, `commit` and `access_token` are not among them
- no pipeline for the event: 200 with `null`; an unreadable one: a build in the status `error`, without stages and parameters
- a wrong token makes a guest, not an error; guests and those without access get 401 or 404
- a disabled repository still takes builds from the API
- whoever receives its webhooks has to be there: else the answer for an unreadable pipeline is 500, the build is made all the same
- a running step has no log, only a stream that repeats its last 5000 lines; a stored log has at most 5 MB, and its beginning goes
- a cancelled build is `killed` at once, whatever its step does until the runner notices

And of Woodpecker:

- repositories have numbers, by which everything but the look-up goes; steps have numbers of their own for their logs
- errors have no body, or one of text; every answer has the server's version in a header
- no pipeline for the event, or none at all: 204; an unreadable one: a pipeline in the status `error`, without workflows
- a disabled repository, or a branch that does not exist: 500, without a word
- parameters are an object in the body; no commit can be asked for
- a log is stored line by line as it comes, in base64 and without newlines, among entries of other kinds
- who cancels what does not run gets 400; what has not begun becomes `canceled`
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from runs.executors.marked_lines import Writer

ROOT = Path(__file__).parents[3]
LOG_BYTES = 5_242_880
DONE = ("success", "failure", "killed", "error", "skipped", "declined", "canceled")


@dataclass
class Fault:
    """What happens to a request. `drop`: the connection ends without an answer. `after`: it was done all the same."""

    status: int = 0
    body: str = '{"message": "trouble"}'
    drop: bool = False
    after: bool = False
    location: str = ""  #: where a redirect leads
    late: bool = False  #: a create, only when the test says so


@dataclass
class Step:
    status: str = "pending"
    lines: list[str] = field(default_factory=list)
    stored: bool = False


@dataclass
class Build:
    number: int
    params: dict[str, str]
    created: float
    status: str = "pending"
    error: str = ""
    started: int = 0
    step: Step = field(default_factory=Step)
    process: subprocess.Popen[str] | None = None
    parent: int = 0  #: the build that this one restarts

    def writer(self) -> Writer:
        return Writer(self.params["CC_CI_KEY"], self.params["CC_CI_RUN_ID"], int(self.params["CC_CI_ATTEMPT"]))


Script = Callable[["FakeServer", Build], None]


class FakeServer:
    """What both have in common."""

    kind = ""
    event = ""
    file = ""  #: the pipeline's
    page = ""  #: of the first build

    def __init__(self, folder: Path, script: Script | None = None) -> None:
        self.folder, self.script = folder, script
        self.token, self.repository = "a-token-1", "ci/runner"
        self.active, self.write, self.timeout = True, True, 180
        self.visibility, self.closed = "private", True
        self.matches, self.pipeline_error, self.no_content = True, "", False
        self.version = ""
        self.clock = 0.0  #: seconds by which its clock is wrong
        self.secrets: dict[str, str] = {}
        self.environment: dict[str, str] = {}
        self.builds: list[Build] = []
        self.late: list[dict[str, str]] = []
        self.requests: list[str] = []
        self.faults: Callable[[str, str], Fault | None] = lambda method, path: None
        self._lock = threading.RLock()
        handler = type("Handler", (_Handler,), {"server_": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        for build in self.builds:
            if build.process and build.process.poll() is None:
                build.process.kill()
        self._server.shutdown()
        self._server.server_close()

    @property
    def public(self) -> bool:
        """Whether guests may read the repository."""
        return self.visibility == "public"

    def of(self, run_id: object, attempt: int) -> list[Build]:
        wanted = (str(run_id), str(attempt))
        return [one for one in self.builds if (one.params.get("CC_CI_RUN_ID"), one.params.get("CC_CI_ATTEMPT")) == wanted]

    # --- what the server does

    def create(self, params: dict[str, str]) -> Build | None:
        with self._lock:
            if not self.matches:
                return None
            build = Build(len(self.builds) + 1, dict(params), time.time() + self.clock)
            self.builds.append(build)
        if self.pipeline_error:
            build.status, build.error = "error", self.pipeline_error
        elif self.script:
            self.script(self, build)
        else:
            self.begin(build)
        return build

    def finish_late(self) -> None:
        """Do what was asked for in requests whose answers were lost."""
        while self.late:
            self.create(self.late.pop())

    def restart(self, number: int) -> Build:
        """Somebody presses Restart: a new build with the old one's parameters."""
        old = self.builds[number - 1]
        build = self.create(old.params)
        assert build
        return build

    def cancel(self, build: Build) -> None:
        if build.status in ("pending", "running"):
            build.status, build.step.status = self.stopped(build), "killed"
            if build.process:
                build.process.kill()  # the shell; what it started has to notice

    def stopped(self, build: Build) -> str:
        """The status of a build that is cancelled now."""
        return "killed"

    # --- what it answers

    def variables(self, build: Build, forge: str) -> dict[str, str]:
        """What a step gets beside the build's own parameters."""
        raise NotImplementedError

    def params_in(self, query: list[tuple[str, str]], body: bytes) -> dict[str, str]:
        raise NotImplementedError

    def answer(self, method: str, path: str, query: list[tuple[str, str]], body: bytes, user: bool) -> tuple[int, Any]:
        """A status, and what becomes JSON, a text, or a stream."""
        raise NotImplementedError

    def headers(self) -> dict[str, str]:
        return {}

    @property
    def forge(self) -> str:
        return self.secrets.get("forge", "http://127.0.0.1:1/ci/runner.git")

    def about(self, build: Build) -> dict[str, Any]:
        """What both show of a build."""
        return {
            "id": build.number + 1000,
            "number": build.number,
            "status": build.status,
            "event": self.event,
            "created": int(build.created),
            "updated": int(build.created),
            "started": build.started,
            "finished": 0,
        }

    # --- what its runner does

    def begin(self, build: Build) -> None:
        """Run the step as an exec runner does: a shell in a folder of its own, with parameters and secrets as environment."""
        build.status = build.step.status = "running"
        build.started = int(time.time() + self.clock)
        home = self.folder / f"build-{build.number}"
        home.mkdir(parents=True)
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "CC_CI_DATA_DIR": str(self.folder / "cc-ci"),
            "CC_CI_ENV_FILE": os.devnull,
            "CC_CI_DEPLOYER": "process",
            "CC_CI_PICTURES": "false",
            # It needs no database, and this one cannot be reached.
            "DATABASE_URL": "postgresql://nobody:nothing@127.0.0.1:1/none",
            **self.environment,
            **build.params,
            **self.variables(build, self.forge),
            **{name: value for name, value in self.secrets.items() if name.isupper()},
        }
        build.process = subprocess.Popen(
            ["/bin/sh", "-e", "-c", f"{sys.executable} {ROOT / 'manage.py'} harness; exit $?"],
            cwd=home,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
        )
        threading.Thread(target=self._follow, args=(build, build.process), daemon=True).start()

    def _follow(self, build: Build, process: subprocess.Popen[str]) -> None:
        assert process.stdout
        for line in process.stdout:
            build.step.lines.append(line)
        code = process.wait()
        self.end(build, "success" if code == 0 else "failure")

    def end(self, build: Build, status: str) -> None:
        """The runner sends the whole log, and then how it ended."""
        build.step.stored = True
        if build.status not in DONE:
            build.status = build.step.status = status


class FakeDrone(FakeServer):
    kind, event, file = "drone", "custom", ".drone.yml"
    page = "ci/runner/1"

    def variables(self, build: Build, forge: str) -> dict[str, str]:
        return {"CI": "true", "DRONE_BUILD_NUMBER": str(build.number), "DRONE_GIT_HTTP_URL": forge}

    def params_in(self, query: list[tuple[str, str]], body: bytes) -> dict[str, str]:
        params: dict[str, str] = {}
        for name, value in query:
            if name not in ("access_token", "commit", "branch"):
                params.setdefault(name, value)
        return params

    def answer(self, method: str, path: str, query: list[tuple[str, str]], body: bytes, user: bool) -> tuple[int, Any]:
        if path == "/version":
            return 200, {"version": self.version or "2.28.2"}
        if path == "/api/user":
            return (200, {"id": 1, "login": "cc-ci", "admin": False}) if user else (401, {"message": "Unauthorized"})
        match = re.fullmatch(r"/api/(repos|stream)/([^/]+/[^/]+?)(/builds)?((?:/[\w]+)*)", path)
        if not match or match[2] != self.repository or not (user or self.public):
            return (404, {"message": "Not Found"}) if user else (401, {"message": "Unauthorized"})
        rest = [part for part in match[4].split("/") if part]
        if match[1] == "stream":
            return 200, self.events(int(rest[0]))
        if not match[3]:
            permissions = {"read": True, "write": self.write, "admin": False}
            about = {"slug": self.repository, "active": self.active, "timeout": self.timeout, "config_path": ".drone.yml"}
            about |= {"visibility": self.visibility, "ignore_pull_requests": self.closed, "ignore_forks": self.closed}
            return 200, {**about, "git_http_url": self.forge, **({"permissions": permissions} if user else {})}
        if method != "GET" and not (user and self.write):
            return (404, {"message": "Not Found"}) if user else (401, {"message": "Unauthorized"})
        if method == "POST":
            build = self.create(self.params_in(query, body))
            return (204 if self.no_content and build is None else 200), build and self.shown(build, steps=False)
        if not rest:
            given = dict(query)
            page, size = int(given.get("page", 1)), int(given.get("per_page", 25))
            size = size if 1 <= size <= 100 else 25
            rows = self.builds[::-1][(max(page, 1) - 1) * size :][:size]
            return 200, [self.shown(build, steps=False) for build in rows]
        number = int(rest[0])
        if not 1 <= number <= len(self.builds):
            return 404, {"message": "sql: no rows in result set"}
        build = self.builds[number - 1]
        if method == "DELETE":
            self.cancel(build)
        if len(rest) == 4:  # logs/1/2
            if rest[3] == "1":
                return 200, [{"pos": 0, "out": "+ git fetch origin\n", "time": 0}]
            if not build.step.stored:
                return 404, {"message": "sql: no rows in result set"}
            return 200, _lines(self.kept(build.step.lines))
        return 200, self.shown(build, steps=True)

    def events(self, number: int) -> Iterator[bytes]:
        step = self.builds[number - 1].step
        yield b": ping\n\n"
        for line in _lines(step.lines[-5000:]):
            yield f"data: {json.dumps(line)}\n\n".encode()
        if self.script is None:
            time.sleep(1)

    @staticmethod
    def kept(lines: list[str]) -> list[str]:
        """The lines that the runner sends: the last 5 MB."""
        size, kept = 0, []
        for line in reversed(lines):
            size += len(line)
            if size > LOG_BYTES:
                break
            kept.append(line)
        return kept[::-1]

    def shown(self, build: Build, steps: bool) -> dict[str, Any]:
        about = {**self.about(build), "after": "a" * 40, "source": "main", "target": "main", "version": 1}
        if build.params and not build.error:
            about["params"] = build.params
        if build.error:
            about["error"] = build.error
        if steps and not build.error:
            step = {"id": 1, "step_id": 1, "number": 2, "name": "test", "status": build.step.status, "exit_code": 0}
            clone = {"id": 2, "step_id": 1, "number": 1, "name": "clone", "status": "success", "exit_code": 0}
            stage = {"id": 1, "number": 1, "name": "default", "kind": "pipeline", "status": build.status}
            if build.started or build.step.status != "pending":  # before that no runner has said what it will do
                stage["steps"] = [clone, step]
            about["stages"] = [stage]
        return about


class FakeWoodpecker(FakeServer):
    kind, event, file = "woodpecker", "manual", ".woodpecker.yaml"
    number = 7  #: of the repository
    page = "repos/7/pipeline/1"

    def variables(self, build: Build, forge: str) -> dict[str, str]:
        server = {"CI": "woodpecker", "CI_PIPELINE_EVENT": self.event, "CI_REPO_PRIVATE": "true", "CI_REPO_CLONE_URL": forge}
        # What is asked for goes before the server's own variables, and what the pipeline sets before both.
        return {**server, "CI_PIPELINE_NUMBER": str(build.number), **build.params, "CI_REPO_CLONE_URL": forge}

    def headers(self) -> dict[str, str]:
        return {"X-WOODPECKER-VERSION": self.version or "3.17.0"}

    def params_in(self, query: list[tuple[str, str]], body: bytes) -> dict[str, str]:
        variables: dict[str, str] = json.loads(body)["variables"]
        return variables

    def stopped(self, build: Build) -> str:
        return "killed" if build.started else "canceled"

    def answer(self, method: str, path: str, query: list[tuple[str, str]], body: bytes, user: bool) -> tuple[int, Any]:
        if path == "/version":
            return 200, {"source": "https://github.com/woodpecker-ci/woodpecker", "version": self.version or "3.17.0"}
        if path == "/api/user":
            return (200, {"id": 1, "login": "cc-ci"}) if user else (401, "")
        seen = user or self.public
        unseen = (404, "") if user else (401, "")
        if path == f"/api/repos/lookup/{self.repository}":
            about = {"id": self.number, "full_name": self.repository, "active": self.active, "timeout": self.timeout}
            about |= {"visibility": self.visibility, "allow_pr": not self.closed, "config_file": "", "clone_url": self.forge}
            return (200, about) if seen else unseen
        match = re.fullmatch(rf"/api/repos/{self.number}/(permissions|pipelines|logs)((?:/[\w]+)*)", path)
        if not match or (not seen and match[1] != "permissions"):
            return unseen
        rest = [part for part in match[2].split("/") if part]
        if match[1] == "permissions":
            return 200, {"pull": seen, "push": user and self.write, "admin": False}
        if method == "POST" and not (user and self.write):
            return unseen
        if not rest:
            if method == "POST" and not self.active:
                return 500, ""
            if method == "POST":
                build = self.create(self.params_in(query, body))
                return (200, self.shown(build, steps=True)) if build else (204, "")
            given = dict(query)
            page, size = int(given.get("page", 1)), int(given.get("perPage", 50))
            rows = [build for build in self.builds[::-1] if given.get("event", self.event) == self.event]
            size = size if 1 <= size <= 50 else 50
            return 200, [self.shown(build, steps=False) for build in rows[(max(page, 1) - 1) * size :][:size]]
        if not 1 <= int(rest[0]) <= len(self.builds):
            return 404, ""
        build = self.builds[int(rest[0]) - 1]
        if match[1] == "logs" and rest[1] not in ("501", "502"):
            return 404, ""
        if match[1] == "logs":
            return 200, self.lines(build.step.lines if rest[1] == "502" else ["+ git fetch origin\n"])
        if rest[1:] == ["cancel"]:
            if build.status not in ("pending", "running", "blocked"):
                return 400, "Cannot cancel a non-running or non-pending or non-blocked pipeline"
            self.cancel(build)
            return 204, ""
        return 200, self.shown(build, steps=True)

    @staticmethod
    def lines(lines: list[str]) -> list[dict[str, Any]] | None:
        """The database has them in any order; a line is null if it is empty, and so is a log."""
        found: list[dict[str, Any]] = []
        for line in "".join(lines).splitlines():
            data = base64.b64encode(line.encode()).decode() or None
            found.append({"id": len(found), "step_id": 502, "time": 0, "line": len(found), "data": data, "type": 0})
        if found:
            found.append({"id": 9999, "step_id": 502, "time": 0, "line": len(found), "data": "MA==", "type": 2})
        return found or None

    def shown(self, build: Build, steps: bool) -> dict[str, Any]:
        about = {**self.about(build), "commit": "a" * 40, "branch": "main", "ref": "refs/heads/main", "variables": build.params}
        about["errors"] = [{"type": "linter", "message": "a bad habit", "is_warning": True}]
        if build.error:
            about["errors"] += [{"type": "compiler", "message": build.error, "is_warning": False}]
        elif steps:
            step = {"id": 502, "pid": 3, "ppid": 1, "name": "test", "state": build.step.status, "exit_code": 0}
            clone = {"id": 501, "pid": 2, "ppid": 1, "name": "clone", "state": "success", "exit_code": 0}
            about["workflows"] = [{"id": 5, "pid": 1, "name": "woodpecker", "state": build.status, "children": [clone, step]}]
        return about


class _Handler(BaseHTTPRequestHandler):
    server_: FakeServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._handle()

    do_POST = do_DELETE = do_GET

    def date_time_string(self, timestamp: float | None = None) -> str:
        return formatdate(time.time() + self.server_.clock, usegmt=True)

    def _handle(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts, server = urlsplit(self.path), self.server_
        query = parse_qsl(parts.query, keep_blank_values=True)
        server.requests.append(f"{self.command} {parts.path}")
        fault = server.faults(self.command, parts.path)
        if fault and not fault.after:
            if fault.late and self.command == "POST":
                server.late.append(server.params_in(query, sent))
            if fault.drop:
                self.close_connection = True
                return
            self._send(fault.status, fault.body, fault.location)
            return
        user = self.headers.get("Authorization") == f"Bearer {server.token}"
        status, body = server.answer(self.command, parts.path, query, sent, user)
        if fault and fault.drop:
            self.close_connection = True
            return
        if fault:
            self._send(fault.status, fault.body)
            return
        if isinstance(body, Iterator):
            self._stream(body)
        else:
            self._send(status, "" if status == 204 else body if isinstance(body, str) else json.dumps(body))

    def _stream(self, body: Iterator[bytes]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for part in body:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.close_connection = True

    def _send(self, status: int, body: str, location: str = "") -> None:
        data = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        for name, value in self.server_.headers().items():
            self.send_header(name, value)
        if location:
            self.send_header("Location", location)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        try:
            self.wfile.write(data)
        except OSError:
            pass


def _lines(lines: list[str]) -> list[dict[str, Any]]:
    """As Drone's exec runner sends them: cut where its buffer of 32 kB ended, and with an empty piece after several lines."""
    text, pieces = "".join(lines), []
    for at in range(0, len(text), 32768):
        part = text[at : at + 32768]
        pieces += re.split(r"(?<=\n)", part) if "\n" in part.removesuffix("\n") else [part]
    return [{"pos": number, "out": piece, "time": 0} for number, piece in enumerate(pieces)]
