"""Debian's Chromium, started here and driven by Playwright over its debugging port.

Playwright could start it itself, but its driver (a Node.js program) now and then locks up for ever while it waits for the
browser's end; a driver that starts nothing has nothing to wait for.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from infra.deployers.isolation import bubblewrap

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
        [undisturbed(folder), *ARGUMENTS, f"--user-data-dir={folder}", "about:blank"],
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


def undisturbed(folder: Path) -> str:
    """A program like Chromium, in a folder that is there while it runs, that does not hear of networks, where that is possible.

    Networks of containers come and go beside the tests. At each Chromium breaks off what it loads, loopback or not
    (ERR_NETWORK_CHANGED), and goes on as if there were no networks at all if it cannot ask for them.
    """
    if not bubblewrap.available().ok:
        return CHROMIUM
    rules, program = folder / "rules", folder / "chromium"
    rules.write_bytes(_no_netlink())
    program.write_text(f'#!/bin/sh\nexec bwrap --dev-bind / / --seccomp 9 -- {CHROMIUM} "$@" 9< {rules}\n')
    program.chmod(0o755)
    return str(program)


def _no_netlink() -> bytes:
    """A filter for seccomp, by which there are no netlink sockets."""
    load, jump_if_equal, give, denied, allowed = 0x20, 0x15, 0x06, 0x50000 | errno.EAFNOSUPPORT, 0x7FFF0000
    call, first_argument = 0, 16  # where the kernel puts them: `struct seccomp_data`
    number = {"aarch64": 198}.get(os.uname().machine, 41)
    rules = [
        (load, 0, 0, call),
        (jump_if_equal, 0, 3, number),
        (load, 0, 0, first_argument),
        (jump_if_equal, 0, 1, socket.AF_NETLINK),
        (give, 0, 0, denied),
        (give, 0, 0, allowed),
    ]
    return b"".join(struct.pack("HBBI", *rule) for rule in rules)


def _port(process: subprocess.Popen[bytes], folder: Path) -> int:
    until = time.monotonic() + SECONDS
    while process.poll() is None and time.monotonic() < until:
        try:
            return int((folder / "DevToolsActivePort").read_text().split()[0])
        except (OSError, IndexError, ValueError):
            time.sleep(0.1)
    raise TimeoutError(f"Chromium did not start:\n{(folder / 'log').read_text(errors='replace')[-2000:]}")
