"""`make demo`: sets up the whole system on this machine, with a fake forge, as a new user would.

Uses only the commands and web interfaces that people use. The folder is `var/demo`, recreated at each start. `--once` waits
for the replies, checks them, and exits.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import requests
from rich.console import Console

from enrollment.fakeforge.image import NoImage, import_busybox

PROJECT = Path(__file__).resolve().parent.parent
FOLDER = PROJECT / "var" / "demo"
IMAGE = "cc-ci/busybox:local"
RECIPES = {"recipes/hello-web": "passed", "recipes/broken-web": "failed"}
PATIENCE = 300

T = TypeVar("T")
console = Console(highlight=False)


class DemoFailed(Exception):
    """Something did not start, or has the wrong result. The message says what, and where to look."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m runs.demo", description=__doc__)
    parser.add_argument("--once", action="store_true", help="wait for the replies, check them, and exit")
    parser.add_argument("--port", type=int, default=8000, help="port of the web pages; if it is in use, another one is chosen")
    options = parser.parse_args()
    # SIGTERM unwinds like Ctrl-C, so that the children end with us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with ExitStack() as stack:
            return Demo(stack, options.once, options.port).run()
    except DemoFailed as error:
        console.print(f"[bold red]demo: failed[/]\n{error}", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("demo: stopped")
        return 0


class Demo:
    def __init__(self, stack: ExitStack, once: bool, port: int) -> None:
        self.stack, self.once = stack, once
        self.started = time.monotonic()
        self._lock()
        self.port = _free_port(port)
        self.url = f"http://127.0.0.1:{self.port}"
        self.password = secrets.token_urlsafe(9)
        # Settings in the shell for another installation must not affect the demo.
        clean = {name: value for name, value in os.environ.items() if not name.startswith("CC_CI_") and name != "DATABASE_URL"}
        self.environment = clean | {
            "DJANGO_SETTINGS_MODULE": "controlplane.settings",
            "CC_CI_ENV_FILE": "",
            "CC_CI_DATA_DIR": str(FOLDER / "data"),
            "CC_CI_BASE_URL": self.url,
            "CC_CI_POLL_SECONDS": "2",
            "CC_CI_SLOTS": "2",
            "CC_CI_DEPLOYER": os.environ.get("CC_CI_DEPLOYER", "process"),
            "DJANGO_SUPERUSER_PASSWORD": self.password,
        }

    def run(self) -> int:
        if self.environment["CC_CI_DEPLOYER"] == "swarm":
            self._step("Building an image for the Swarm", self._image)
        forge = self._step("Starting the fake forge", self._forge)
        self._step("Setting up the database", lambda: self._cc_ci("migrate", "--verbosity=0"))
        self._cc_ci("createsuperuser", "--noinput", "--username=admin", "--email=admin@example.org")
        self.environment["DEMO_TOKEN"] = forge["bot_token"]
        self._step("Adding the forge", lambda: self._cc_ci("forge", "add", "--url", forge["url"], "--token-env", "DEMO_TOKEN"))
        del self.environment["DEMO_TOKEN"]
        self._step("Enrolling two recipes", lambda: self._cc_ci("enroll", *RECIPES))
        self._step("Starting web and worker", self._work)
        for recipe in RECIPES:
            self._comment(forge, recipe, "!testme")
        self._links(forge)
        if not self.once:
            self._stay()
        answers = {
            recipe: self._step(f"Waiting for the reply at {recipe}", partial(self._answer, forge, recipe)) for recipe in RECIPES
        }
        return self._check(answers)

    # --- steps

    def _image(self) -> None:
        try:
            import_busybox(IMAGE)
        except NoImage as error:
            raise DemoFailed(str(error)) from None

    def _forge(self) -> dict[str, Any]:
        root = FOLDER / "forge"
        self._spawn("forge", [sys.executable, "-m", "enrollment.fakeforge", "--root", str(root), "--port", "0", "--demo"])

        def told() -> dict[str, Any] | None:
            try:
                facts: dict[str, Any] = json.loads((root / "demo.json").read_text())
                return facts if facts["url"] and requests.get(facts["url"], timeout=2).ok else None
            except (OSError, ValueError, KeyError, requests.RequestException):
                return None

        return self._wait(told, PATIENCE, "the fake forge did not start", "forge")

    def _work(self) -> None:
        self._spawn("work", [sys.executable, "manage.py", "work", "--web", "--bind", f"127.0.0.1:{self.port}"])

        def up() -> bool:
            try:
                return requests.get(f"{self.url}/healthz", timeout=2).json().get("working") is True
            except (requests.RequestException, ValueError):
                return False

        self._wait(up, PATIENCE, "web and worker did not start", "work")

    def _comment(self, forge: dict[str, Any], recipe: str, text: str) -> None:
        self._api(forge, "POST", f"/repos/{recipe}/issues/1/comments", {"body": text})
        console.print(f"  alice wrote [bold]{text}[/] at {forge['url']}/{recipe}/pulls/1", soft_wrap=True)

    def _answer(self, forge: dict[str, Any], recipe: str) -> str:
        def verdict() -> str | None:
            for comment in self._api(forge, "GET", f"/repos/{recipe}/issues/1/comments"):
                if comment["user"]["login"] == "cc-ci" and ":verdict -->" in comment["body"]:
                    return str(comment["body"])
            return None

        return self._wait(verdict, PATIENCE, f"there was no reply at {recipe}", "work")

    def _check(self, answers: dict[str, str]) -> int:
        for recipe, text in answers.items():
            console.rule(f"The comment at {recipe}")
            console.print(text.strip(), markup=False, soft_wrap=True)
        console.rule()
        wrong = []
        for recipe, expected in RECIPES.items():
            if f"HEAD {expected}" not in _headline(answers[recipe]):
                wrong.append(f"{recipe}: expected {expected}, got: {_headline(answers[recipe])}")
        if "test_" not in answers["recipes/broken-web"] or "install | ✅ passed" not in answers["recipes/broken-web"]:
            wrong.append("recipes/broken-web failed for a reason other than its own test")
        if wrong:
            raise DemoFailed("\n".join([*wrong, f"See {FOLDER}/work.log"]))
        console.print(f"Two comments, two runs, two replies, in {time.monotonic() - self.started:.0f} s.")
        console.print("demo: ok")
        return 0

    def _links(self, forge: dict[str, Any]) -> None:
        console.print(
            f"\n  Recipes {self.url}/\n  Runs    {self.url}/runs/\n  Docs    {self.url}/docs/\n"
            f"  Admin   {self.url}/admin/   (admin / {self.password})\n"
            f"  Forge   {forge['url']}/   write !testme on a pull request there\n  Logs    {FOLDER}\n",
            markup=False,
            soft_wrap=True,
        )

    def _stay(self) -> NoReturn:
        console.print("Running until you press Ctrl-C.")
        while True:
            time.sleep(1)
            for name, process in self.children:
                if process.poll() is not None:
                    raise DemoFailed(f"{name} exited unexpectedly:\n{_tail(FOLDER / f'{name}.log')}")

    # --- means

    children: list[tuple[str, subprocess.Popen[bytes]]] = []

    def _lock(self) -> None:
        FOLDER.mkdir(parents=True, exist_ok=True)
        handle = self.stack.enter_context((FOLDER.parent / "demo.lock").open("w"))
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoFailed("Another demo is running in this folder. Stop it first (Ctrl-C in its terminal).") from None
        shutil.rmtree(FOLDER)
        FOLDER.mkdir()

    def _step(self, text: str, action: Callable[[], T]) -> T:
        begun = time.monotonic()
        with console.status(text):
            result = action()
        console.print(f"  [green]✓[/] {text} ({time.monotonic() - begun:.1f} s)")
        return result

    def _spawn(self, name: str, command: list[str]) -> None:
        log = self.stack.enter_context((FOLDER / f"{name}.log").open("wb"))
        process = subprocess.Popen(command, cwd=PROJECT, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.children = [*self.children, (name, process)]
        self.stack.callback(_end, process)

    def _cc_ci(self, *words: str) -> None:
        done = subprocess.run(
            [sys.executable, "manage.py", *words],
            cwd=PROJECT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        if done.returncode:
            raise DemoFailed(f"cc-ci {' '.join(words[:2])} exited with {done.returncode}:\n{done.stdout}{done.stderr}")

    def _api(self, forge: dict[str, Any], method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        headers = {"Authorization": f"token {forge['alice_token']}"}
        answer = requests.request(method, f"{forge['url']}/api/v1{path}", json=body, headers=headers, timeout=10)
        answer.raise_for_status()
        return answer.json()

    def _wait(self, ask: Callable[[], T | None], limit: float, problem: str, log: str) -> T:
        until = time.monotonic() + limit
        while time.monotonic() < until:
            if answer := ask():
                return answer
            for name, process in self.children:
                if process.poll() is not None:
                    raise DemoFailed(f"{name} exited unexpectedly:\n{_tail(FOLDER / f'{name}.log')}")
            time.sleep(0.2)
        raise DemoFailed(f"After {limit:.0f} s {problem}. The end of {log}.log:\n{_tail(FOLDER / f'{log}.log')}")


def _headline(comment: str) -> str:
    line = next((line for line in comment.splitlines() if line.startswith("###")), "")
    return line.replace("` ", "` HEAD ")


def _free_port(wanted: int) -> int:
    for port in (wanted, 0):
        try:
            with socket.create_server(("127.0.0.1", port)) as listener:
                return int(listener.getsockname()[1])
        except OSError:
            continue
    raise DemoFailed("No free port on 127.0.0.1.")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _tail(path: Path) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-20:])


if __name__ == "__main__":
    sys.exit(main())
