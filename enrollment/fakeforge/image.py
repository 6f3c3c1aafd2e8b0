"""Builds an image that contains only a static busybox, so that neither the demo nor the tests need a registry."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from pathlib import Path

APPLETS = ("sh", "httpd", "cat", "echo", "sleep", "wget", "true", "false", "test", "ls", "touch", "date", "id", "nc")

_INSTALL = "Type: apt-get install busybox-static"


class NoImage(Exception):
    """The image cannot be built. The message says what to install or start."""


def import_busybox(name: str) -> None:
    """Build the image `name` in the local Docker, if missing. Raises NoImage."""
    if _docker("image", "inspect", name).returncode == 0:
        return
    busybox = shutil.which("busybox")
    if not busybox:
        raise NoImage(f"busybox is not installed. {_INSTALL}")
    done = _docker(
        "import", "--change", "ENV PATH=/bin", "--change", 'CMD ["sleep", "1000000"]', "-", name, data=_tar(Path(busybox))
    )
    if done.returncode:
        raise NoImage(f"docker import: {done.stderr.decode(errors='replace').strip()}")
    if _docker("run", "--rm", "--network=none", name, "httpd", "--help").returncode:
        _docker("image", "rm", name)
        raise NoImage(f"{busybox} does not run in a container: it is not static, or has no httpd. {_INSTALL}")


def _tar(busybox: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for folder in ("bin", "tmp", "etc", "www", "data"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            archive.addfile(entry)
        content = busybox.read_bytes()
        entry = tarfile.TarInfo("bin/busybox")
        entry.size, entry.mode = len(content), 0o755
        archive.addfile(entry, io.BytesIO(content))
        for applet in APPLETS:
            entry = tarfile.TarInfo(f"bin/{applet}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(entry)
    return buffer.getvalue()


def _docker(*arguments: str, data: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(["docker", *arguments], input=data, capture_output=True, timeout=60, check=False)
    except FileNotFoundError:
        raise NoImage("docker is not installed. Type: apt-get install docker.io") from None
    except subprocess.TimeoutExpired:
        raise NoImage("Docker does not respond. Is its daemon running?") from None
