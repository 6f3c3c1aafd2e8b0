"""A Docker of a test's own, to be started anew: with its own folder, socket and network namespace, beside the machine's first.

The namespace keeps all apart that two Dockers on one machine would fight about: the bridge docker_gwbridge, the Swarm's ports,
VXLAN and the packet filter. What runs in it is reached through the socket (`docker exec`), and not over the network.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from enrollment.fakeforge.image import import_busybox
from tests.docker import IMAGE, docker

_SECONDS = 60.0


class SecondDocker:
    """`close` ends it by its number, and removes all that it had."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(mode=0o700)
        (root / "config.json").write_text("{}")
        self.socket = root / "docker.sock"
        # It ends when this process does, whose end of the pipe is closed then, and takes the daemon with it.
        self._space = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", 'ip link set lo up && echo up && read _; kill "$(cat "$0")"', root / "docker.pid"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self._space.stdout and self._space.stderr
        if self._space.stdout.readline() != b"up\n":
            _missing(f"no network namespace can be made here: {self._space.stderr.read().decode(errors='replace').strip()}")

    @property
    def host(self) -> str:
        """For DOCKER_HOST."""
        return f"unix://{self.socket}"

    @property
    def netns(self) -> int:
        """The process whose network it has (`networks.within`)."""
        return self._space.pid

    @property
    def enter(self) -> list[str]:
        """The words before a command that is to reach what runs there over the network, too."""
        return ["nsenter", f"--net=/proc/{self._space.pid}/ns/net"]

    @property
    def pid(self) -> int:
        """Of its daemon; 0 when it does not run."""
        try:
            pid = int((self.root / "docker.pid").read_text())
            return 0 if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX" else pid
        except (OSError, ValueError):
            return 0

    def start(self) -> None:
        """Start it, and do not wait. It outlives the process that does so."""
        with (self.root / "log").open("ab") as log:
            subprocess.Popen(
                [
                    *self.enter,
                    "dockerd",
                    f"--config-file={self.root}/config.json",
                    f"--data-root={self.root}/data",
                    f"--exec-root={self.root}/exec",
                    f"--pidfile={self.root}/docker.pid",
                    f"--host={self.host}",
                    "--shutdown-timeout=2",
                    "--log-level=warn",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "DOCKER_SERVICE_PREFER_OFFLINE_IMAGE": "1"},
                start_new_session=True,
            )

    def make_swarm(self) -> None:
        """Wait until it answers, and make it a Swarm with the tests' image. DOCKER_HOST must lead to it."""
        assert os.environ["DOCKER_HOST"] == self.host
        until = time.monotonic() + _SECONDS
        while "Server Version" not in docker("info", check=False):
            if time.monotonic() > until or self._space.poll() is not None:
                _missing(f"a second Docker does not start here: {(self.root / 'log').read_text()[-2000:]}")
            time.sleep(0.1)
        docker("swarm", "init", "--advertise-addr", "127.0.0.1")
        import_busybox(IMAGE)

    def restart(self) -> None:
        """End it as a machine does that is shut down, and start it. Does not wait until it answers."""
        self._end()
        self.start()

    def _end(self) -> None:
        until, pid = time.monotonic() + _SECONDS, self.pid
        if pid:
            os.kill(pid, signal.SIGTERM)
        while self.pid:
            if time.monotonic() > until:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)

    def close(self) -> None:
        self._end()
        ours = f"{self.root}/"
        for process in Path("/proc").iterdir():  # what its containers left: known by its folder
            with suppress(OSError):
                if process.name.isdigit() and ours.encode() in (process / "cmdline").read_bytes():
                    os.kill(int(process.name), signal.SIGKILL)
        self._space.kill()
        self._space.wait()
        for stream in (self._space.stdin, self._space.stdout, self._space.stderr):
            assert stream
            stream.close()
        places = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for place in sorted((place for place in places if place.startswith(ours)), reverse=True):
            subprocess.run(["umount", "--lazy", place], timeout=20, capture_output=True)
        shutil.rmtree(self.root, ignore_errors=True)


def _missing(why: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(why)
    pytest.skip(why)


def need_second_docker() -> None:
    """Skip, or fail when CI=true, where none can be started."""
    for program in ("dockerd", "unshare", "nsenter", "ip"):
        if not shutil.which(program):
            _missing(f"there is no {program} here")
    if os.geteuid():
        _missing("only root can start a second Docker")
