"""How much a run has written: its volumes, and what its containers wrote beside them.

Docker's local driver knows no limit for either, so they are watched, and the run ends when it is above its limit.
"""

from __future__ import annotations

import json
import os
import re
import threading
from contextlib import suppress
from pathlib import Path

from infra.deployers import children
from infra.deployers.base import DeployError
from infra.deployers.docker_cli import call, environment
from infra.deployers.engine import listed
from infra.deployers.stacks import Owned

#: Between two looks, where each costs a walk through the run's own files alone.
_SECONDS = 2.0
#: Where Docker has to be asked, which then walks through all volumes of the machine.
_SECONDS_ASKING = 60.0
_DU_SECONDS = 120.0
_SIZE = re.compile(r"([0-9.]+)\s*([kMGTP]?)B")
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}


class Meter:
    """Measures one run in a thread of its own, from `start` to `stop`. `exceeded` says so once it is above `most` bytes."""

    def __init__(self, owned: Owned, most: int) -> None:
        self._owned = owned
        self._most = most
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._said = ""

    def start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def stop(self) -> None:
        self._end.set()

    def exceeded(self) -> str:
        """Words that end the run; empty while it is within its limit."""
        return self._said

    def _run(self) -> None:
        pause = _SECONDS
        while not self._end.wait(pause):
            with suppress(DeployError):  # a Docker that is away says nothing of the run
                used, walked = measure(self._owned)
                pause = _SECONDS if walked else _SECONDS_ASKING
                if used > self._most:
                    most = f"the {self._most >> 20} MB that a run may write on this server (CC_CI_VOLUMES_MB)"
                    self._said = f"The app has written {used >> 20} MB, more than {most}."
                    return


def measure(owned: Owned) -> tuple[int, bool]:
    """The bytes that a run's volumes and containers hold, and whether that was found by looking at its own files alone."""
    folders = [str(volume.get("Mountpoint") or "") for volume in listed("volume", label=owned.labels)]
    containers = owned.containers()
    layers = [str(((one.get("GraphDriver") or {}).get("Data") or {}).get("UpperDir") or "") for one in containers]
    # A volume without a name, of an image's own wish, carries no label of the run.
    mounts = [mount for one in containers for mount in one.get("Mounts") or [] if mount.get("Type") == "volume"]
    folders = sorted({*folders, *layers, *(str(mount.get("Source") or "") for mount in mounts)} - {""})
    if not folders or (os.geteuid() == 0 and any(Path(folder).is_dir() for folder in folders)):
        return sum(_du(folder) for folder in folders), True
    # Others are kept out of Docker's folders, and Docker may run elsewhere.
    names = {str(mount.get("Name")) for mount in mounts} | set(owned.ids("volume"))
    return _asked(names, {str(one["Id"]) for one in containers}), False


def _du(folder: str) -> int:
    """Bytes on the disk below a folder; 0 when it is gone."""
    command = ["du", "--summarize", "--one-file-system", "--block-size=1", "--", folder]
    try:
        done = children.run(command, env=environment(), seconds=_DU_SECONDS)
    except (OSError, children.TooLong, children.TooMuch):
        return 0
    number = done.out.decode(errors="replace").partition("\t")[0]
    return int(number) if number.isdigit() else 0


def _asked(volumes: set[str], containers: set[str]) -> int:
    done = call("system", "df", "--verbose", "--format={{json .}}", timeout=_DU_SECONDS)
    try:
        found = json.loads(done.stdout or "{}")
    except ValueError:
        return 0
    used = sum(size(str(one.get("Size"))) for one in found.get("Volumes") or [] if one.get("Name") in volumes)
    short = {key[:12] for key in containers}
    return used + sum(size(str(one.get("Size"))) for one in found.get("Containers") or [] if str(one.get("ID"))[:12] in short)


def size(text: str) -> int:
    """A size as Docker shows it (`1.2GB`, `5B (virtual 8MB)`), in bytes; 0 for what is none."""
    match = _SIZE.match(text)
    return int(float(match[1]) * _UNITS[match[2]]) if match else 0
