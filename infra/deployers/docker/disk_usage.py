"""How much a run has written: its volumes, and its containers' writable layers.

Docker's local driver cannot limit either, so they are measured, and a run above its limit ends. What cannot be measured (a file
that is deleted but still open) ends it when hardly anything is left of Docker's disk.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from infra.deployers.docker.api import get, listed
from infra.deployers.docker.cli import call, environment
from infra.deployers.docker.stacks import Owned
from infra.deployers.errors import DeployError
from infra.deployers.isolation import children

#: Between two looks, where each costs a walk through the run's own files alone.
_SECONDS = 2.0
#: Where Docker has to be asked, which then walks through all volumes of the machine.
_SECONDS_ASKING = 60.0
_DU_SECONDS = 120.0
_SIZE = re.compile(r"([0-9.]+)\s*([kMGTP]?)B")
#: What has to be left of Docker's disk: bytes, or this part of it where that is less; of its files a part.
_LEFT_BYTES, _LEFT = 1 << 30, 0.05
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}


class Uncountable(Exception):
    """There are too many files to count."""


class Meter:
    """Measures one run in its own thread, from `start` to `stop`. `exceeded` reports when it is above `most` bytes."""

    def __init__(self, owned: Owned, most: int) -> None:
        self._owned = owned
        self._most = most
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._message = ""
        self._full: DeployError | None = None

    def start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def stop(self) -> None:
        self._end.set()

    def exceeded(self) -> str:
        """The message that ends the run; empty while it is within its limit. Raises DeployError if the disk is nearly full."""
        if self._full:
            raise self._full
        return self._message

    def _run(self) -> None:
        due, root = 0.0, ""
        while not (self._full or self._message or self._end.wait(_SECONDS)):
            with suppress(DeployError):  # a Docker that is away says nothing of the run
                root = root or str(get("/info")["DockerRootDir"])
                self._full = nearly_full(Path(root))
                begun = time.monotonic()
                if begun < due:
                    continue
                try:
                    used, walked = measure(self._owned)
                except Uncountable:
                    self._message = (
                        f"The app has written so many files that they cannot be counted within {_DU_SECONDS:g} s per folder."
                    )
                    return
                # Counting may take its share of the machine, and no more.
                now = time.monotonic()
                due = now + (min(20 * (now - begun), 10 * _SECONDS) if walked else _SECONDS_ASKING)
                if used > self._most:
                    most = f"the {self._most >> 20} MB that a run may write on this server (CC_CI_VOLUMES_MB)"
                    self._message = f"The app has written {used >> 20} MB, more than {most}."


def nearly_full(folder: Path) -> DeployError | None:
    """The error that ends a run: hardly any space or inodes are left on the disk that contains a folder."""
    try:
        disk = os.statvfs(folder)
    except OSError:  # Docker may be elsewhere
        return None
    left, least = disk.f_bavail * disk.f_frsize, min(_LEFT_BYTES, int(disk.f_blocks * disk.f_frsize * _LEFT))
    if left < least:
        text = f"Docker's disk is nearly full: {left >> 20} MB left at {folder}."
    elif disk.f_files and disk.f_favail < disk.f_files * _LEFT:
        text = f"Docker's disk is nearly out of inodes: {disk.f_favail} left at {folder}."
    else:
        return None
    return DeployError("tool_failed", text, "Free some space, for example with docker system prune, and start the run again.")


def measure(owned: Owned) -> tuple[int, bool]:
    """The bytes in a run's volumes and containers, and whether only its own files had to be read for that.

    Raises DeployError, Uncountable.
    """
    folders = [str(volume.get("Mountpoint") or "") for volume in listed("volume", label=owned.labels)]
    containers = owned.containers()
    layers = [str(((one.get("GraphDriver") or {}).get("Data") or {}).get("UpperDir") or "") for one in containers]
    # Beside its log: /etc/hosts and the like, which the app may write.
    layers += [str(Path(where).parent) for one in containers if (where := str(one.get("HostsPath") or "")).startswith("/")]
    # A volume without a name, of an image's own wish, carries no label of the run.
    mounts = [mount for one in containers for mount in one.get("Mounts") or [] if mount.get("Type") == "volume"]
    folders = sorted({*folders, *layers, *(str(mount.get("Source") or "") for mount in mounts)} - {""})
    if not folders or (os.geteuid() == 0 and any(Path(folder).is_dir() for folder in folders)):
        return _du(folders), True
    # Others are kept out of Docker's folders, and Docker may run elsewhere.
    names = {str(mount.get("Name")) for mount in mounts} | set(owned.ids("volume"))
    return _asked(names, {str(one["Id"]) for one in containers}), False


def _du(folders: Sequence[str]) -> int:
    """Bytes on disk below those of these folders that exist. Raises Uncountable."""
    if not folders:
        return 0
    command = ["du", "--summarize", "--total", "--one-file-system", "--block-size=1", "--", *folders]
    try:
        done = children.run(command, env=environment(), seconds=_DU_SECONDS * len(folders))
    except children.TooLong as error:
        raise Uncountable from error
    except (OSError, children.TooMuch):
        return 0
    total = done.out.rpartition(b"\ttotal")[0].rpartition(b"\n")[2]
    return int(total) if total.isdigit() else 0


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
    """A size as Docker shows it (`1.2GB`, `5B (virtual 8MB)`), in bytes; 0 if it is not a size."""
    match = _SIZE.match(text)
    return int(float(match[1]) * _UNITS[match[2]]) if match else 0
