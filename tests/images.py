"""Images that the tests make for themselves, with no registry but PyPI: kept in the local Docker, so only the first run waits.

The image of Synapse is this machine's own Python with the wheel `matrix-synapse` beside it, busybox for a shell, and
a stand-in for the compressor of state, which is a program of its own that PyPI does not have.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from enrollment.fakeforge.image import APPLETS
from tests.docker import docker

SYNAPSE = "matrix-synapse==1.163.2"
_COMPRESSOR = Path(__file__).parent / "data" / "synapse_compress_state"
_LOCK = Path(tempfile.gettempdir(), f"cc-ci-test-images-{os.getuid()}.lock")
#: Of the standard library nothing that a server runs; most of what is left out is big.
_LEFT_OUT = {"test", "tests", "idlelib", "ensurepip", "tkinter", "turtledemo", "lib2to3", "site-packages", "dist-packages"}
_SITE = "opt/synapse"


def need_synapse() -> str:
    """The name of an image with Synapse in it, made when it is not there (about 30 seconds, and 250 MB from PyPI's wheels).

    Skips, or fails when CI=true, where it cannot be made.
    """
    # Another builder, another version of Synapse or of Python is another image.
    recipe = Path(__file__).read_bytes() + _COMPRESSOR.read_bytes() + sys.version.encode() + sys.base_prefix.encode()
    image = f"cc-ci-test/synapse:{SYNAPSE.partition('==')[2]}-{hashlib.sha256(recipe).hexdigest()[:8]}"
    with _LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one builds, the other waits for it
        if docker("image", "ls", "--quiet", image):
            return image
        with tempfile.TemporaryDirectory(prefix="cc-ci-image-") as folder:
            try:
                import_python(image, _install(Path(folder, "site")), Path(folder, "image.tar"))
            except CannotMake as problem:
                if os.environ.get("CI") == "true":
                    pytest.fail(str(problem))
                pytest.skip(str(problem))
    return image


class CannotMake(Exception):
    """An image cannot be made; the message says why."""


def _install(site: Path) -> Path:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--only-binary=:all:", f"--target={site}", SYNAPSE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    except subprocess.TimeoutExpired:
        raise CannotMake("pip did not bring matrix-synapse within 280 s") from None
    if done.returncode:
        raise CannotMake(f"pip could not bring matrix-synapse: {done.stderr.strip()[-500:]}")
    return site


def import_python(image: str, site: Path, tar: Path) -> None:
    """An image with Python, and what lies in `site` beside it."""
    busybox = shutil.which("busybox")
    if not busybox:
        raise CannotMake("there is no busybox: apt-get install busybox-static")
    with tarfile.open(tar, "w") as archive:
        for name in ("tmp", "data", "etc", "bin", "usr/bin"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            archive.addfile(entry)
        archive.add(busybox, "bin/busybox")
        for applet in (*APPLETS, "sed", "tr", "cut", "grep", "rm", "env"):
            _link(archive, f"bin/{applet}", "busybox")
        python = Path(os.path.realpath(Path(sys.base_prefix, "bin", f"python3.{sys.version_info.minor}")))
        archive.add(python, _inside(python))
        for name in ("python3", "python"):
            _link(archive, f"usr/bin/{name}", str(python))
        for folder in sorted({sysconfig.get_path(kind, vars=_BASE) for kind in ("stdlib", "platstdlib")}):
            archive.add(folder, _inside(Path(folder)), filter=_wanted)
        archive.add(site, _SITE)
        archive.add(_COMPRESSOR, "usr/bin/synapse_compress_state", filter=_executable)
        for library in sorted(
            _libraries([python, *Path(sysconfig.get_path("platstdlib", vars=_BASE)).rglob("*.so"), *site.rglob("*.so*")])
        ):
            if not library.is_relative_to(site):
                archive.add(os.path.realpath(library), _inside(library))
    changes = (f"ENV PATH=/bin:/usr/bin PYTHONPATH=/{_SITE} PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1", "WORKDIR /data")
    docker("import", *(f"--change={change}" for change in changes), str(tar), image, timeout=180)


_BASE = {"base": sys.base_prefix, "platbase": sys.base_prefix, "installed_base": sys.base_prefix}


def _wanted(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    parts = entry.name.split("/")
    left_out = any(part in _LEFT_OUT or part.startswith("config-") for part in parts)
    return None if left_out or entry.name.endswith((".a", ".opt-1.pyc", ".opt-2.pyc")) else entry


def _executable(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.mode = 0o755
    return entry


def _inside(path: Path) -> str:
    return str(path).lstrip("/")


def _link(archive: tarfile.TarFile, name: str, target: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = tarfile.SYMTYPE, target
    archive.addfile(entry)


def _libraries(programs: Iterable[Path]) -> Iterator[Path]:
    """The shared libraries that some programs ask for, as the dynamic loader of this machine finds them."""
    names = [str(path) for path in programs if path.is_file()]
    done = subprocess.run(["ldd", *names], capture_output=True, text=True, timeout=60)
    found = re.findall(r"(?:=> |^\s+)(/\S+) \(0x", done.stdout, re.MULTILINE)
    yield from {Path(name) for name in found}
