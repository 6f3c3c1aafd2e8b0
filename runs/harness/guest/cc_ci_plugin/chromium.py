"""A Chromium for the fixture `browser`, started here and driven by Playwright over its debugging port.

Playwright could start it itself, but its driver (a Node.js program) sometimes hangs forever waiting for the browser to
exit; a driver that starts nothing has nothing to wait for.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

#: Without its own sandbox, which needs privileges missing in ours; without requests to anything but the app.
_ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--ignore-certificate-errors",
    "--remote-debugging-port=0",
]
_SECONDS_TO_START = 30.0
_MILLISECONDS = 15_000


@dataclass(frozen=True)
class Chromium:
    """The browser of a stage: a Playwright `Browser`."""

    playwright: Any


class Browser:
    """The browser of one test. Closes what the test opened, so that no test sees another's cookies."""

    def __init__(self, chromium: Chromium, url: str) -> None:
        self._chromium = chromium
        self._url = url
        self._contexts: list[Any] = []

    def new_page(self, **options: Any) -> Any:
        """A Playwright `Page` with its own cookies. Takes the options of Playwright's `browser.new_context`."""
        return self.new_context(**options).new_page()

    def new_context(self, **options: Any) -> Any:
        """A Playwright `BrowserContext`, for several pages that share cookies."""
        if self._url:
            options.setdefault("base_url", self._url)
        context = self._chromium.playwright.new_context(**options)
        context.set_default_timeout(_MILLISECONDS)
        self._contexts.append(context)
        return context

    def close(self) -> None:
        for context in self._contexts:
            context.close()


def program() -> str:
    """Chromium's path: `CC_CI_CHROMIUM`, or the system's. Empty if there is none."""
    return shutil.which(os.environ.get("CC_CI_CHROMIUM") or "/usr/bin/chromium") or ""


def _rules(url: str, domain: str) -> list[str]:
    """Options with which the browser resolves the app's own name, if nothing else does."""
    parts = urlsplit(url)
    if not parts.netloc or not domain or parts.hostname == domain:
        return []
    port = 443 if parts.scheme == "https" else 80
    return [f"--host-resolver-rules=MAP {domain}:{port} {parts.hostname}:{parts.port or port}"]


@contextmanager
def started(url: str = "", domain: str = "") -> Iterator[Chromium]:
    """A Chromium inside the block. Skips the test if there is no Chromium or no Playwright.

    `url`: where the app is reached; `domain`: its own name.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.skip("The fixture `browser` needs Playwright: pip install playwright (its own browsers are not needed).")
    path = program()
    if not path:
        pytest.skip("The fixture `browser` needs Chromium: install it, or set CC_CI_CHROMIUM to its path.")
    # A short path: it creates sockets there, whose paths are limited to 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="cc-ci-chromium-", dir="/tmp"))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [path, *_ARGUMENTS, *_rules(url, domain), f"--user-data-dir={folder}", "about:blank"],
            env={**os.environ, "TMPDIR": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        port = _port(folder, process)
        with sync_playwright() as playwright:
            browser = playwright.chromium.connect_over_cdp(f"http://127.0.0.1:{port}")
            yield Chromium(browser)
            browser.close()  # ends the connection, not the browser
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _port(folder: Path, process: subprocess.Popen[bytes]) -> int:
    until = time.monotonic() + _SECONDS_TO_START
    while time.monotonic() < until and process.poll() is None:
        with suppress(OSError, IndexError, ValueError):
            return int((folder / "DevToolsActivePort").read_text().split()[0])
        time.sleep(0.05)
    message = (folder / "log").read_text(errors="replace")[-2000:]
    ended = "" if process.poll() is None else f" (it exited with code {process.returncode})"
    pytest.fail(f"Chromium did not start{ended}. Its output:\n{message}", pytrace=False)
