"""A Drone server with one repository, as its source and a running one behave (docs/executors/drone.md); its runner is here, too.

A build runs the pipeline's one step: `cc-ci harness` as a process of its own, or a script that a test gives. Faults are asked for
each request. What is true of Drone, and surprises:

- parameters come from the query only, the first value of each; `branch`, `commit` and `access_token` are not among them
- no pipeline for the event: 200 with `null`; an unreadable one: a build in the status `error`, without stages
- a wrong token makes a guest, not an error; guests and those without access get 401 or 404
- a disabled repository still takes builds from the API
- a running step has no log, only a stream that repeats its last 5000 lines; a stored log has at most 5 MB, and its beginning goes
- a cancelled build is `killed` at once, whatever its step does until the runner notices
"""

from __future__ import annotations

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
DONE = ("success", "failure", "killed", "error", "skipped", "declined")


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


Script = Callable[["FakeDrone", Build], None]


class FakeDrone:
    def __init__(self, folder: Path, script: Script | None = None) -> None:
        self.folder, self.script = folder, script
        self.token, self.repository = "drone-token-1", "ci/runner"
        self.active, self.write, self.public, self.timeout = True, True, True, 180
        self.visibility, self.closed = "private", True
        self.matches, self.pipeline_error, self.no_content = True, "", False
        self.clock = 0.0  #: seconds by which its clock is wrong
        self.secrets: dict[str, str] = {}
        self.environment: dict[str, str] = {}
        self.builds: list[Build] = []
        self.late: list[list[tuple[str, str]]] = []
        self.requests: list[str] = []
        self.faults: Callable[[str, str], Fault | None] = lambda method, path: None
        self._lock = threading.RLock()
        handler = type("Handler", (_Handler,), {"drone": self})
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

    def of(self, run_id: object, attempt: int) -> list[Build]:
        wanted = (str(run_id), str(attempt))
        return [one for one in self.builds if (one.params.get("CC_CI_RUN_ID"), one.params.get("CC_CI_ATTEMPT")) == wanted]

    # --- what the server does

    def create(self, query: list[tuple[str, str]]) -> Build | None:
        params: dict[str, str] = {}
        for name, value in query:
            if name not in ("access_token", "commit", "branch"):
                params.setdefault(name, value)
        with self._lock:
            if not self.matches:
                return None
            build = Build(len(self.builds) + 1, params, time.time() + self.clock)
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
        build = self.create(list(old.params.items()))
        assert build
        return build

    def cancel(self, build: Build) -> None:
        if build.status in ("pending", "running"):
            build.status, build.step.status = "killed", "killed"
            if build.process:
                build.process.kill()  # the shell; what it started has to notice

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
            "DRONE_BUILD_NUMBER": str(build.number),
            "DRONE_GIT_HTTP_URL": self.secrets.get("forge", "http://127.0.0.1:1/ci/runner.git"),
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
        about: dict[str, Any] = {
            "id": build.number + 1000,
            "number": build.number,
            "status": build.status,
            "event": "custom",
            "trigger": "cc-ci",
            "after": "a" * 40,
            "ref": "refs/heads/main",
            "source": "main",
            "target": "main",
            "params": build.params,
            "created": int(build.created),
            "updated": int(build.created),
            "started": build.started,
            "finished": 0,
            "version": 1,
        }
        if build.error:
            about["error"] = build.error
        if steps and not build.error:
            step = {"id": 1, "step_id": 1, "number": 2, "name": "test", "status": build.step.status, "exit_code": 0}
            clone = {"id": 2, "step_id": 1, "number": 1, "name": "clone", "status": "success", "exit_code": 0}
            stage = {"id": 1, "number": 1, "name": "default", "kind": "pipeline", "status": build.status, "steps": [clone, step]}
            about["stages"] = [stage]
        return about


class _Handler(BaseHTTPRequestHandler):
    drone: FakeDrone
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._handle()

    do_POST = do_DELETE = do_GET

    def date_time_string(self, timestamp: float | None = None) -> str:
        return formatdate(time.time() + self.drone.clock, usegmt=True)

    def _handle(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        self.drone.requests.append(f"{self.command} {parts.path}")
        fault = self.drone.faults(self.command, parts.path)
        if fault and not fault.after:
            if fault.late and self.command == "POST":
                self.drone.late.append(parse_qsl(parts.query, keep_blank_values=True))
            if fault.drop:
                self.close_connection = True
                return
            self._send(fault.status, fault.body, fault.location)
            return
        status, body = self._answer(parts.path, parse_qsl(parts.query, keep_blank_values=True))
        if fault and fault.drop:
            self.close_connection = True
            return
        if fault:
            self._send(fault.status, fault.body)
            return
        if isinstance(body, Iterator):
            self._stream(body)
        else:
            self._send(status, "" if status == 204 else json.dumps(body))

    def _answer(self, path: str, query: list[tuple[str, str]]) -> tuple[int, Any]:
        drone = self.drone
        user = self.headers.get("Authorization") == f"Bearer {drone.token}"
        if path == "/api/user":
            return (200, {"id": 1, "login": "cc-ci", "admin": False}) if user else (401, {"message": "Unauthorized"})
        match = re.fullmatch(r"/api/(repos|stream)/([^/]+/[^/]+?)(/builds)?((?:/[\w]+)*)", path)
        if not match or match[2] != drone.repository or not (user or drone.public):
            return (404, {"message": "Not Found"}) if user else (401, {"message": "Unauthorized"})
        rest = [part for part in match[4].split("/") if part]
        if match[1] == "stream":
            return 200, self._events(int(rest[0]))
        if not match[3]:
            permissions = {"read": True, "write": drone.write, "admin": False}
            about = {"slug": drone.repository, "active": drone.active, "timeout": drone.timeout, "config_path": ".drone.yml"}
            about |= {"visibility": drone.visibility, "ignore_pull_requests": drone.closed, "ignore_forks": drone.closed}
            forge = drone.secrets.get("forge", "http://127.0.0.1:1/ci/runner.git")
            return 200, {**about, "git_http_url": forge, "permissions": permissions if user else None}
        if self.command != "GET" and not (user and drone.write):
            return (404, {"message": "Not Found"}) if user else (401, {"message": "Unauthorized"})
        if self.command == "POST":
            build = drone.create(query)
            return (204 if drone.no_content and build is None else 200), build and drone.shown(build, steps=False)
        if not rest:
            given = dict(query)
            page, size = int(given.get("page", 1)), int(given.get("per_page", 25))
            size = size if 1 <= size <= 100 else 25
            rows = drone.builds[::-1][(max(page, 1) - 1) * size :][:size]
            return 200, [drone.shown(build, steps=False) for build in rows]
        number = int(rest[0])
        if not 1 <= number <= len(drone.builds):
            return 404, {"message": "sql: no rows in result set"}
        build = drone.builds[number - 1]
        if self.command == "DELETE":
            drone.cancel(build)
        if len(rest) == 4:  # logs/1/2
            if rest[3] == "1":
                return 200, [{"pos": 0, "out": "+ git fetch origin\n", "time": 0}]
            if not build.step.stored:
                return 404, {"message": "sql: no rows in result set"}
            return 200, _lines(drone.kept(build.step.lines))
        return 200, drone.shown(build, steps=True)

    def _events(self, number: int) -> Iterator[bytes]:
        step = self.drone.builds[number - 1].step
        yield b": ping\n\n"
        for line in _lines(step.lines[-5000:]):
            yield f"data: {json.dumps(line)}\n\n".encode()
        if self.drone.script is None:
            time.sleep(1)

    def _stream(self, body: Iterator[bytes]) -> None:
        self.close_connection = True
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
            pass

    def _send(self, status: int, body: str, location: str = "") -> None:
        data = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        if location:
            self.send_header("Location", location)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        try:
            self.wfile.write(data)
        except OSError:
            pass


def _lines(lines: list[str]) -> list[dict[str, Any]]:
    """As the exec runner sends them: cut where its buffer of 32 kB ended, and with an empty piece after several lines."""
    text, pieces = "".join(lines), []
    for at in range(0, len(text), 32768):
        part = text[at : at + 32768]
        pieces += re.split(r"(?<=\n)", part) if "\n" in part.removesuffix("\n") else [part]
    return [{"pos": number, "out": piece, "time": 0} for number, piece in enumerate(pieces)]
