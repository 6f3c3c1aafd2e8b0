"""Debian's Chromium, started here and driven by Playwright over its debugging port.

Playwright could start it itself, but its driver (a Node.js program) now and then locks up for ever while it waits for the
browser's end; a driver that starts nothing has nothing to wait for.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = "/usr/bin/chromium"
#: How long a slow machine may take to start it.
SECONDS = 300
#: Chromium alone on a loopback address: nothing of it looks for updates or other servers.
ARGUMENTS = [
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
    "--remote-debugging-port=0",
]


@contextmanager
def chromium() -> Iterator[Any]:
    """A Playwright Browser. Raises TimeoutError when Chromium does not come up."""
    from playwright.sync_api import sync_playwright

    folder = Path(tempfile.mkdtemp(prefix="cc-ci-chromium-"))
    log = (folder / "log").open("wb")
    process = subprocess.Popen(
        [CHROMIUM, *ARGUMENTS, f"--user-data-dir={folder}", "about:blank"],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    try:
        with sync_playwright() as playwright:
            address = f"http://127.0.0.1:{_port(process, folder)}"
            browser = playwright.chromium.connect_over_cdp(address, timeout=SECONDS * 1000)
            yield browser
            browser.close()  # ends the connection, not the browser
    finally:
        os.killpg(process.pid, 9)
        process.wait()
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


def _port(process: subprocess.Popen[bytes], folder: Path) -> int:
    until = time.monotonic() + SECONDS
    while process.poll() is None and time.monotonic() < until:
        try:
            return int((folder / "DevToolsActivePort").read_text().split()[0])
        except (OSError, IndexError, ValueError):
            time.sleep(0.1)
    raise TimeoutError(f"Chromium did not start:\n{(folder / 'log').read_text(errors='replace')[-2000:]}")
