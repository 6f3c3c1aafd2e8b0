"""A local Docker Swarm and an image for tests, with no registry: busybox, imported from a tar made here."""

from __future__ import annotations

import functools
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest

IMAGE = "cc-ci-test/busybox:1"

_APPLETS = ("sh", "httpd", "cat", "echo", "sleep", "wget", "true", "false", "test", "ls", "touch", "date", "id", "nc")


def docker(*arguments: str, timeout: float = 30, check: bool = True) -> str:
    """Run the docker command: its standard output."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=timeout)
    if check and done.returncode:
        raise AssertionError(f"docker {' '.join(arguments[:3])}: {done.stderr.strip()}")
    return done.stdout.strip()


def need_swarm() -> None:
    """Make sure that a swarm and the test's image are there; else skip, or fail when CI=true."""
    if problem := _problem():
        if os.environ.get("CI") == "true":
            pytest.fail(problem)
        pytest.skip(problem)


@functools.cache
def _problem() -> str:
    if not shutil.which("docker"):
        return "there is no docker command here"
    try:
        state = docker("info", "--format", "{{.Swarm.LocalNodeState}} {{.Swarm.ControlAvailable}}")
    except (AssertionError, subprocess.TimeoutExpired) as error:
        return f"no Docker daemon answers: {error}"
    if state.startswith("inactive"):
        docker("swarm", "init", "--advertise-addr", "127.0.0.1")
    elif state != "active true":
        return f"this node is no manager of a swarm: {state}"
    if not docker("image", "ls", "--quiet", IMAGE):
        busybox = shutil.which("busybox")
        if not busybox:
            return "there is no static busybox to make an image from (apt-get install busybox-static)"
        _import(Path(busybox))
    return ""


def _import(busybox: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tar = Path(folder, "image.tar")
        with tarfile.open(tar, "w") as archive:
            for name in ("bin", "tmp", "etc", "www", "data"):
                entry = tarfile.TarInfo(name)
                entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
                archive.addfile(entry)
            content = busybox.read_bytes()
            entry = tarfile.TarInfo("bin/busybox")
            entry.size, entry.mode = len(content), 0o755
            archive.addfile(entry, io.BytesIO(content))
            for applet in _APPLETS:
                entry = tarfile.TarInfo(f"bin/{applet}")
                entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
                archive.addfile(entry)
        docker("import", "--change", "ENV PATH=/bin", "--change", 'CMD ["sleep", "1000000"]', str(tar), IMAGE)
