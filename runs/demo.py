"""`make demo`: sets up the whole system on this machine, with a fake forge, as a new user would.

Uses only the commands and web interfaces that people use. The folder is `var/demo`, recreated at each start. `--once` ends
when the answers are there and are as they should be.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, NoReturn, TypeVar

import requests
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding

from controlplane.processes import die_with_parent
from enrollment.fakeforge.demo import PULLS
from enrollment.fakeforge.image import NoImage, import_busybox
from infra.deployers.docker.api import nodes, swarm_problem
from runs.harness.protocol import FolderState, Results, RunFolder

PROJECT = Path(__file__).resolve().parent.parent
FOLDER = PROJECT / "var" / "demo"
RUNS = FOLDER / "data" / "runs"
IMAGE = "cc-ci/busybox:local"
PATIENCE = 300
#: For each deployer and recipe the level that is right, and the stage that has to fail. Plain processes are not upgraded, so
#: there nobody finds out what the upgrade of forgetful-web does.
EXPECTED: Mapping[str, Mapping[str, tuple[int, str]]] = {
    "swarm": {"hello-web": (5, ""), "broken-web": (3, "custom"), "forgetful-web": (1, "upgrade")},
    "process": {"hello-web": (1, ""), "broken-web": (1, "custom"), "forgetful-web": (1, "")},
}

T = TypeVar("T")
console = Console(highlight=False)


class DemoFailed(Exception):
    """Something did not start, or has the wrong result. The message says what, and where to look."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m runs.demo", description=__doc__)
    parser.add_argument("--once", action="store_true", help="wait for the answers, check them, and exit")
    parser.add_argument("--port", type=int, default=8000, help="port of the web pages; if it is in use, another one is chosen")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds like Ctrl-C
    try:
        with _locked():
            _remove_runs("Removing what an earlier demo left")
            shutil.rmtree(FOLDER)
            FOLDER.mkdir()
            return Demo(options.once, options.port).run()
    except DemoFailed as error:
        console.print(f"[bold red]demo: failed[/]\n{escape(str(error))}", soft_wrap=True)
        return 1
    except PermissionError as error:
        console.print(f"demo: failed\nCannot write {error.filename}. Remove it, or start the demo in a folder of your own.")
        return 1
    except KeyboardInterrupt:
        console.print("demo: stopped")
        return 130 if options.once else 0


class Demo:
    def __init__(self, once: bool, port: int) -> None:
        self.once = once
        self.started = time.monotonic()
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        self.port = _free_port(port)
        self.url = f"http://127.0.0.1:{self.port}"
        self.password = secrets.token_urlsafe(9)
        self.forge: dict[str, Any] = {}
        self.deployer = _deployer()
        # Settings in the shell for another installation must not affect the demo.
        clean = {name: value for name, value in os.environ.items() if not name.startswith("CC_CI_") and name != "DATABASE_URL"}
        self.environment = clean | {
            "DJANGO_SETTINGS_MODULE": "controlplane.settings",
            "CC_CI_ENV_FILE": "",
            "CC_CI_DATA_DIR": str(FOLDER / "data"),
            "CC_CI_BASE_URL": self.url,
            "CC_CI_POLL_SECONDS": "2",
            "CC_CI_SLOTS": str(len(PULLS)),
            "CC_CI_DEPLOYER": self.deployer,
            "DJANGO_SUPERUSER_PASSWORD": self.password,
        }

    def run(self) -> int:
        try:
            self._start()
            answers = self._answers()
            self._check(answers)
            if self.once:
                console.print("demo: ok")
                return 0
            self._links(answers)
            self._stay()
        finally:
            # A second Ctrl-C must not keep the first from removing everything.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
            self._end()

    def _start(self) -> None:
        self.forge = _step("Starting a small forge", self._forge)
        _step("Setting up the database", lambda: self._cc_ci("migrate", "--verbosity=0"))
        self._cc_ci("createsuperuser", "--noinput", "--username=admin", "--email=admin@example.org")
        self.environment["DEMO_TOKEN"] = self.forge["bot_token"]
        _step("Adding the forge", lambda: self._cc_ci("forge", "add", "--url", self.forge["url"], "--token-env", "DEMO_TOKEN"))
        del self.environment["DEMO_TOKEN"]
        recipes = [f"recipes/{name}" for name in PULLS]
        _step(f"Enrolling {len(recipes)} recipes", lambda: self._cc_ci("enroll", *recipes))
        _step("Starting web and worker", self._work)
        console.print(f"\nalice comments [bold]!testme[/] on {len(PULLS)} pull requests. Watch the runs: {self.url}/runs/")
        for name, (title, _) in PULLS.items():
            self._api("POST", f"/repos/recipes/{name}/issues/1/comments", {"body": "!testme"})
            console.print(f"  {name:<14} {title}")

    def _forge(self) -> dict[str, Any]:
        root = FOLDER / "forge"
        self._spawn("forge", "-m", "enrollment.fakeforge", "--root", str(root), "--port", "0", "--demo")

        def told() -> dict[str, Any] | None:
            facts: dict[str, Any] = json.loads((root / "demo.json").read_text())
            return facts if facts["url"] and requests.get(facts["url"], timeout=2).ok else None

        return self._wait(told, "the forge did not start", "forge")

    def _work(self) -> None:
        self._spawn("work", "manage.py", "work", "--web", "--bind", f"127.0.0.1:{self.port}")

        def up() -> bool:
            return requests.get(f"{self.url}/healthz", timeout=2).json().get("working") is True

        self._wait(up, "web and worker did not start", "work")

    def _answers(self) -> dict[str, tuple[str, Results]]:
        """For each recipe the address of the answer at the forge, and the results of its run."""
        found: dict[str, tuple[str, Results]] = {}
        console.print()
        with console.status("") as status:

            def another() -> tuple[str, str, Results] | None:
                status.update("\n  ".join(_doing()) or "Waiting for the answers")
                return next((answer for name in PULLS if name not in found and (answer := self._answer(name))), None)

            while len(found) < len(PULLS):
                name, address, results = self._wait(another, "answers are still missing", "work")
                found[name] = address, results
                self._tell(name, results)
        return found

    def _answer(self, name: str) -> tuple[str, str, Results] | None:
        for comment in self._api("GET", f"/repos/recipes/{name}/issues/1/comments"):
            run = re.search(r"<!-- cc-ci:run:(\S+):verdict -->", comment["body"])
            if run and comment["user"]["login"] == "cc-ci":
                answer = requests.get(f"{self.url}/runs/{run[1]}/files/results.json", timeout=10)
                answer.raise_for_status()
                return name, str(comment["html_url"]), Results.model_validate_json(answer.content)
        return None

    def _tell(self, name: str, results: Results) -> None:
        mark = "[green]✓[/]" if _outcome(results) == EXPECTED[self.deployer][name] else "[red]✗[/]"
        colour = "green" if results.verdict == "passed" else "red"
        console.print(f"  {mark} {name:<14} [bold {colour}]{results.verdict}[/], level {_outcome(results)[0]} of 5")
        if results.reason:
            console.print(Padding(escape(results.reason), (0, 0, 0, 6)))

    def _check(self, answers: Mapping[str, tuple[str, Results]]) -> None:
        results = {name: results for name, (_, results) in answers.items()}
        if wrong := [name for name in results if _outcome(results[name]) != EXPECTED[self.deployer][name]]:
            told = "\n".join(f"{name}: expected {EXPECTED[self.deployer][name]}, got {_outcome(results[name])}" for name in wrong)
            raise DemoFailed(f"{told}\nSee {FOLDER}/work.log")
        if self.deployer == "process":
            console.print("  But the upgrade of forgetful-web loses all data: it takes a Swarm to see it.")
        console.print(f"As it should be, {time.monotonic() - self.started:.0f} s after the start.")

    def _links(self, answers: Mapping[str, tuple[str, Results]]) -> None:
        worst = answers["forgetful-web"][0]
        console.print(f"""
Five places to look at:
  1. {worst}
     the answer, where maintainers read it
  2. {self.url}/
     all recipes: their levels, and the newest result of each stage
  3. {self.url}/runs/{answers["broken-web"][1].run_id}/
     the run with the broken test: what it printed, logs, times, a screenshot
  4. {self.url}/docs/write-tests/
     how to write such tests for a recipe of yours
  5. {self.url}/admin/
     what operators do; log in as admin with {escape(self.password)}

Then write !testme yourself, as alice or as mallory, who is a stranger: {self.forge["url"]}/recipes/hello-web/pulls/2
Logs are in {FOLDER}.
""")

    def _stay(self) -> NoReturn:
        console.print("Running until you press Ctrl-C.")
        while True:
            time.sleep(1)
            self._look()

    # --- means

    def _spawn(self, name: str, *command: str) -> None:
        with (FOLDER / f"{name}.log").open("wb") as log:
            # In a session of its own, or Ctrl-C would reach it before us; and none outlives us, however we end.
            self.children[name] = subprocess.Popen(
                [sys.executable, *command],
                cwd=PROJECT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=partial(die_with_parent, os.getpid()),
            )

    def _look(self) -> None:
        """Raises DemoFailed if a child has ended."""
        for name, process in self.children.items():
            if process.poll() is not None:
                raise DemoFailed(f"{name} exited unexpectedly:\n{_tail(name)}")

    def _end(self) -> None:
        with console.status("Stopping"):
            for process in self.children.values():
                process.terminate()
            for process in self.children.values():
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        _remove_runs("Removing what was deployed")

    def _cc_ci(self, *words: str) -> None:
        command = [sys.executable, "manage.py", *words]
        done = subprocess.run(command, cwd=PROJECT, env=self.environment, capture_output=True, text=True, timeout=PATIENCE)
        if done.returncode:
            raise DemoFailed(f"cc-ci {' '.join(words[:2])} exited with {done.returncode}:\n{done.stdout}{done.stderr}")

    def _api(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        headers = {"Authorization": f"token {self.forge['alice_token']}"}
        answer = requests.request(method, f"{self.forge['url']}/api/v1{path}", json=body, headers=headers, timeout=10)
        answer.raise_for_status()
        return answer.json()

    def _wait(self, ask: Callable[[], T | None], problem: str, log: str) -> T:
        """Ask until there is an answer; what cannot be read or reached is none. Raises DemoFailed if a child ends meanwhile."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            with suppress(OSError, ValueError):  # those of requests are among them
                if answer := ask():
                    return answer
            self._look()
            time.sleep(0.2)
        raise DemoFailed(f"After {PATIENCE} s {problem}. The end of {log}.log:\n{_tail(log)}")


def _deployer() -> str:
    """Choose the deployer as `CC_CI_DEPLOYER=auto` does, and say why. Raises DemoFailed."""
    asked, problem = os.environ.get("CC_CI_DEPLOYER", "auto"), ""
    if asked != "process":
        problem = _step("Looking for a Docker Swarm", swarm_problem) or _image_problem()
        if not problem:
            console.print(
                f"Recipes are deployed on this machine's Docker Swarm. Their image is made here ({IMAGE}, 2 MB) and stays for "
                "the next time."
            )
            return "swarm"
        if asked == "swarm":
            raise DemoFailed(f"CC_CI_DEPLOYER asks for a Swarm, but: {problem}")
    why = f"no Docker Swarm can be used: {problem}" if problem else "CC_CI_DEPLOYER asks for it."
    console.print(
        f"Recipes are deployed as plain processes, because {escape(why)}\n"
        "Plain processes are not upgraded, backed up or restored: that takes a Swarm (docker swarm init)."
    )
    return "process"


def _image_problem() -> str:
    if (count := nodes()) > 1:
        return f"The Swarm has {count} machines, and the image of the demo is on this one only."
    try:
        import_busybox(IMAGE)
    except NoImage as error:
        return str(error)
    return ""


def _outcome(results: Results) -> tuple[int, str]:
    """The level, and the stages that failed."""
    failed = [stage.name for stage in results.stages if stage.status in ("failed", "errored")]
    return results.level.value if results.level else 0, ", ".join(failed)


def _doing() -> Iterator[str]:
    """What each run is doing."""
    for folder in map(RunFolder, RUNS.glob("*/*")):
        if folder.state() is FolderState.RUNNING and (events := list(folder.events())):
            yield escape(f"{folder.request().recipe}: {events[-1].text}")


def _remove_runs(text: str) -> None:
    """Have the runs in the folder of the demo end, and remove what they deployed. Raises DemoFailed if something is left."""
    if folders := [folder for folder in map(RunFolder, RUNS.glob("*/*")) if not _clean(folder)]:
        _step(text, lambda: _sweep(folders))


def _clean(folder: RunFolder) -> bool:
    """Whether a run has ended, and removed all that it deployed."""
    try:
        return bool((results := folder.results()) and results.teardown.clean)
    except ValueError:  # of another version
        return False


def _sweep(folders: list[RunFolder]) -> None:
    for folder in folders:
        folder.cancel.touch()
    until = time.monotonic() + PATIENCE
    while any(folder.state() is FolderState.RUNNING for folder in folders) and time.monotonic() < until:
        time.sleep(0.1)
    # Of a harness that was killed, something may be left.
    for installation in {json.loads(file.read_text())["installation_id"] for file in RUNS.glob("*/*/request.json")}:
        command = [sys.executable, "-m", "runs.harness", "sweep", "--installation", installation, "--runs-dir", str(RUNS)]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=PATIENCE)
        if done.returncode:
            raise DemoFailed(f"Some of what was deployed could not be removed:\n{done.stdout}{done.stderr}")


def _locked() -> IO[str]:
    """Hold the lock against a second demo in this folder. Raises DemoFailed."""
    try:
        FOLDER.mkdir(parents=True, exist_ok=True)
        handle = (FOLDER.parent / "demo.lock").open("w")
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DemoFailed("Another demo is running in this folder. Stop it first (Ctrl-C in its terminal).") from None
    return handle


def _step(text: str, action: Callable[[], T]) -> T:
    begun = time.monotonic()
    with console.status(text):
        result = action()
    console.print(f"  [green]✓[/] {text} ({time.monotonic() - begun:.1f} s)")
    return result


def _free_port(wanted: int) -> int:
    for port in (wanted, 0):
        try:
            with socket.create_server(("127.0.0.1", port)) as listener:
                if port != wanted:
                    console.print(f"Port {wanted} is in use, so the pages get another one.")
                return int(listener.getsockname()[1])
        except OSError:
            continue
    raise DemoFailed("No free port on 127.0.0.1.")


def _tail(name: str) -> str:
    return "\n".join((FOLDER / f"{name}.log").read_text(errors="replace").splitlines()[-20:])


if __name__ == "__main__":
    sys.exit(main())
