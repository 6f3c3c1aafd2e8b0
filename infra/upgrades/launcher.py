"""Upgrades as processes of their own: started, resumed after a crash, and never two for one app at once."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from django.conf import settings

from controlplane import leases
from infra.lifecycle import claim, remember
from infra.models import Upgrade
from infra.runtime.inspect import folder_of
from infra.upgrades.executor import UpgradeExecutor
from infra.upgrades.install import KIND, InstallExecutor
from infra.upgrades.session import LEASE_SECONDS, Lost

log = logging.getLogger(__name__)
#: Programs that a worker starts, and that may briefly outlive it when it is killed.
_PROGRAMS = frozenset({"docker", "restic"})
_DEATH_SECONDS = 10.0


def lease_name(upgrade: Upgrade) -> str:
    return f"upgrade:{upgrade.app_id}"


def start(upgrade: Upgrade) -> None:
    """Start a process that executes the upgrade, and do not wait for it. A second one finds the lease held and exits."""
    folder = folder_of(upgrade)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    command = [sys.executable, "-m", "controlplane", "infra", "execute", str(upgrade.pk)]
    with (folder / "process.log").open("ab") as output:
        subprocess.Popen(
            command, cwd=settings.BASE_DIR, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )


def execute(upgrade: Upgrade) -> str:
    """Take the upgrade's lease, and execute it in this process until it ends. Returns its state, or who has it."""
    held = leases.take(lease_name(upgrade), LEASE_SECONDS)
    if held is None:
        return "another worker has it"
    try:
        if not claim(upgrade, held.fence):
            return "another worker has it"
        _end_former(upgrade.found.worker, upgrade.found.session)
        remember(upgrade, held.fence, worker=held.owner, session=os.getsid(0))
        executor = InstallExecutor if upgrade.request.kind == KIND else UpgradeExecutor
        executor(upgrade, held).run()
    except Lost:
        return "another worker has it"
    finally:
        with suppress(Exception):  # if the database is down, the lease expires by itself
            held.release()
    return str(upgrade.state)


def _end_former(owner: str, session: int) -> None:
    """Kill the previous worker, if it is alive but lost its lease, and the processes it started.

    Two workers must never act on one stack, and Docker knows no fencing numbers.

    `owner` is its lease's, which identifies the process exactly.
    """
    if owner and (pid := leases.living(owner)) and pid != os.getpid():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        until = time.monotonic() + _DEATH_SECONDS
        while leases.living(owner) and time.monotonic() < until:  # one inside a system call dies when that returns
            time.sleep(0.02)
    if not session or session == os.getsid(0) or _state(session) not in "ZX":
        return  # a live session leader may belong to somebody else, or serve others, too
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        with suppress(OSError, ValueError, IndexError):
            name, _, rest = (process / "stat").read_text().partition("(")[2].rpartition(")")
            if name in _PROGRAMS and int(rest.split()[3]) == session:
                os.kill(int(process.name), signal.SIGKILL)


def _state(pid: int) -> str:
    """A process's state letter; `X` if it does not exist."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def orphaned() -> list[Upgrade]:
    """Upgrades of this host that nobody executes: their worker died, or was never started."""
    waiting = Upgrade.objects.under_way().select_related("app").order_by("id")
    here = [upgrade for upgrade in waiting if upgrade.request.host in ("", settings.CC_CI.host)]
    return [upgrade for upgrade in here if leases.is_free(lease_name(upgrade))]


def resume() -> int:
    """Start a process for each orphaned upgrade. Returns how many."""
    found = orphaned()
    for upgrade in found:
        log.warning("Resuming upgrade %s (%s)", upgrade, upgrade.state)
        start(upgrade)
    return len(found)
