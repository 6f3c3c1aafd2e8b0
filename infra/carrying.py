"""Upgrades as processes of their own: started, found again after a crash, and never two for one app at once."""

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
from infra.bringing_up import KIND, BringUp
from infra.models import Upgrade
from infra.running import folder_of
from infra.states import WORKING, UpgradeState
from infra.upgrades import Machine
from infra.upgrades_states import claim
from infra.worker import LEASE_SECONDS, Lost

log = logging.getLogger(__name__)
#: Programs that a worker starts, and that may outlive it by a moment when it is killed.
_PROGRAMS = frozenset({"docker", "restic"})
_DEATH_SECONDS = 10.0


def lease_name(upgrade: Upgrade) -> str:
    return f"upgrade:{upgrade.app_id}"


def start(upgrade: Upgrade) -> None:
    """Start a process that carries the upgrade out, and do not wait for it. Two of them do no harm: one finds the lease held."""
    folder = folder_of(upgrade)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    command = [sys.executable, str(Path(settings.BASE_DIR) / "manage.py"), "infra", "carry-out", str(upgrade.pk)]
    with (folder / "process.log").open("ab") as output:
        subprocess.Popen(
            command,
            cwd=settings.BASE_DIR,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def carry_out(upgrade: Upgrade) -> str:
    """Take the upgrade's lease, and go on with it here and now until it ends. Gives a word on how that went."""
    held = leases.take(lease_name(upgrade), LEASE_SECONDS)
    if held is None:
        return "another worker has it"
    try:
        if not claim(upgrade, held.fence):
            return "another worker has it"
        _end_former(str(upgrade.facts.get("worker", "")), int(upgrade.facts.get("session", 0)))
        upgrade.facts = {**upgrade.facts, "worker": held.owner, "session": os.getsid(0)}
        Upgrade.objects.filter(pk=upgrade.pk, fence=held.fence).update(facts=upgrade.facts)
        machine = BringUp if upgrade.asked.get("kind") == KIND else Machine
        machine(upgrade, held).run()
    except Lost:
        return "another worker has it"
    finally:
        with suppress(Exception):  # a database that is away keeps the lease until it expires
            held.release()
    return str(upgrade.state)


def _end_former(owner: str, session: int) -> None:
    """End the worker before us, if it still lives but lost its lease, and what it had started.

    Two hands on one stack would be one too many, and Docker knows no fencing numbers.

    `owner` is its lease's, which names the process so that no other can be taken for it.
    """
    if owner and (pid := leases.living(owner)) and pid != os.getpid():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        until = time.monotonic() + _DEATH_SECONDS
        while leases.living(owner) and time.monotonic() < until:  # one that is in the kernel dies when it comes out
            time.sleep(0.02)
    if not session or session == os.getsid(0) or _state(session) not in "ZX":
        return  # the leader of a session that still lives may be a stranger's, or serves others, too
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        with suppress(OSError, ValueError, IndexError):
            name, _, rest = (process / "stat").read_text().partition("(")[2].rpartition(")")
            if name in _PROGRAMS and int(rest.split()[3]) == session:
                os.kill(int(process.name), signal.SIGKILL)


def _state(pid: int) -> str:
    """A process's state letter; `X` when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def forsaken() -> list[Upgrade]:
    """Upgrades of this machine that should be worked on, and that nobody has: their worker died, or was never started."""
    waiting = Upgrade.objects.filter(state__in=[*WORKING, UpgradeState.APPROVED]).select_related("app").order_by("id")
    here = [upgrade for upgrade in waiting if upgrade.asked.get("host", settings.CC_CI.host) == settings.CC_CI.host]
    return [upgrade for upgrade in here if leases.is_free(lease_name(upgrade))]


def resume() -> int:
    """Start a process for each upgrade that nobody has. Gives how many."""
    found = forsaken()
    for upgrade in found:
        log.warning("Going on with the upgrade %s (%s)", upgrade, upgrade.state)
        start(upgrade)
    return len(found)
