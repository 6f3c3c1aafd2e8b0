"""Runs of the real harness on recipes made for the purpose, with the deployer process and the real sandbox."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from infra.deployers.context import stack_name
from infra.deployers.isolation import bubblewrap, cgroups
from runs.harness.engine import Engine
from runs.harness.protocol import Request, Results, RunFolder, Source

#: An app that insists on https, as its proxy says: files of a recipe for the deployer process.
INSISTS = {
    "compose.yml": """
version: "3.8"
services:
  app:
    image: cc-ci-test/busybox:1
    x-cc-ci-process: python server.py ${PORT}
""",
    "server.py": """
import http.server, sys

FORM = b"<title>Sign in</title><form method=post><label>Name <input name=who></label><button>Sign in</button></form>PAGE"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        host, own = self.headers["Host"], f"https://{self.headers['X-Forwarded-Host']}"
        signed = "who=" in self.headers.get("Cookie", "")
        if self.headers.get("X-Forwarded-Proto") != "https":
            return self.say(301, b"", Location=f"https://{host}{self.path}")
        if self.command == "POST":
            if self.headers.get("Origin") != own:
                return self.say(403, b"Another origin")
            self.rfile.read(int(self.headers["Content-Length"]))
            return self.say(303, b"", Location=own + "/", **{"Set-Cookie": "who=ada; Secure; HttpOnly; Path=/"})
        if self.path == "/" and not signed:
            return self.say(302, b"", Location=f"https://{host}/login")
        self.say(200, b"<title>Welcome</title>" if signed else FORM)

    do_POST = do_GET

    def say(self, status, body, **headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Type": "text/html", "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
""",
}

ROOT = Path(__file__).resolve().parents[3]
RECIPES = ROOT / "tests" / "data" / "recipes"


@pytest.fixture(autouse=True)
def _bubblewrap() -> None:
    if not (here := bubblewrap.available()).ok:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{here.reason} {here.fix}")
        pytest.skip(here.reason)


@pytest.fixture
def path_without_bubblewrap(tmp_path: Path) -> str:
    """A PATH on which there is everything that a run needs but bwrap."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for program in ("git", "setpriv", "prlimit", "sh", "busybox", "sleep", "cat", "env"):
        if found := shutil.which(program):
            (folder / program).symlink_to(found)
    return str(folder)


@pytest.fixture
def make_folder(tmp_path: Path) -> Iterator[Callable[..., RunFolder]]:
    """Makes a run folder with a request in it; the rest of the request is given by keyword."""
    made: list[str] = []

    def make(recipe: Path | str, **changes: Any) -> RunFolder:
        run_id = uuid.uuid4().hex
        made.append(run_id)
        request = {
            "run_id": run_id,
            "installation_id": f"test-{os.getpid()}",
            "recipe": Path(recipe).name,
            "source": Source(url=str(recipe)),
            "stages": ["install", "custom"],
            "deployer": "process",
            "picture": False,
            **changes,
        }
        folder = RunFolder(tmp_path / "runs" / run_id / "1")
        folder.write_request(Request.model_validate(request))
        return folder

    yield make
    for run_id in made:  # a test that failed half-way leaves nothing to the next
        for _, group in cgroups.existing(f"{stack_name(run_id)}-"):
            group.remove()


@pytest.fixture
def run(make_folder: Callable[..., RunFolder]) -> Callable[..., Results]:
    """Runs a recipe's folder in this process and gives the results."""

    def run(recipe: Path | str, *, credential: Mapping[str, str] | None = None, **changes: Any) -> Results:
        return Engine(make_folder(recipe, **changes), credential).run()

    return run


@pytest.fixture
def make_recipe(tmp_path: Path) -> Callable[..., Path]:
    """Makes a recipe like process-web with other tests: `{"test_x": "text"}`, and files of its own."""

    def make(tests: Mapping[str, str] | None = None, files: Mapping[str, str] | None = None) -> Path:
        folder = tmp_path / f"recipe-{uuid.uuid4().hex[:8]}"
        shutil.copytree(RECIPES / "process-web", folder)
        if tests is not None:
            shutil.rmtree(folder / "tests")
        for name, text in {**{f"tests/{name}.py": text for name, text in (tests or {}).items()}, **(files or {})}.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return folder

    return make


@pytest.fixture
def harness() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `python -m runs.harness …` as a process; kills it at the end if it still lives."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "runs.harness", *map(str, arguments)]
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **options}
        process = subprocess.Popen(command, cwd=ROOT, text=True, **options)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def git(folder: Path, *arguments: str) -> str:
    """Run git with a fixed author: its output."""
    names = {f"GIT_{role}_{key}": "test@example.com" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
    env = {"PATH": os.environ["PATH"], "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1", **names}
    done = subprocess.run(["git", "-C", str(folder), *arguments], env=env, capture_output=True, text=True, check=True)
    return done.stdout.strip()
