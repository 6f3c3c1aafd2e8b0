"""The sandbox for a recipe's code: bubblewrap, with another uid, no network but loopback, and limits.

See docs/sandbox.md for its content and the reasons. Without bubblewrap a trusted recipe's code runs as a plain process in a
clean environment; the caller decides whether it may (`available`).
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from infra.deployers.isolation import cgroups, children, syscalls

GUEST = Path(__file__).parent / "guest"
PROGRAMS = "/opt/cc-ci"
FIX = "Install bubblewrap 0.5 or newer (apt-get install bubblewrap util-linux)."

_SYSTEM = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_ETC = (
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/alternatives",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/ca-certificates",
    "/etc/localtime",
    "/etc/mime.types",
)
#: Opens ports from 80 on of the sandbox's own network to everybody in it, then gives up every right for good.
_DROP = 'echo 80 2>/dev/null > /proc/sys/net/ipv4/ip_unprivileged_port_start; {}exec "$@"'
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Availability:
    """Whether strangers' code can run here; if not, the reason and the fix."""

    ok: bool
    reason: str = ""
    fix: str = ""


@cache
def available() -> Availability:
    """Try out a sandbox, once per process."""
    bwrap = shutil.which("bwrap")
    if not bwrap:
        return Availability(False, "bubblewrap (bwrap) is not installed.", FIX)
    for tool in ("setpriv", "prlimit"):
        if not shutil.which(tool):
            return Availability(False, f"{tool} is not installed.", FIX)
    try:
        sandbox = Sandbox(f"ccci-probe-{os.getpid()}", bubblewrap=True)
        box = sandbox.spawn(["/usr/bin/id", "-u"])
        try:
            output = children.collect(box, seconds=10, most=1 << 16).out
        finally:
            sandbox.end(box)
    except (OSError, children.TooLong, children.TooMuch) as error:
        return Availability(False, f"bubblewrap does not start: {error}.", FIX)
    if box.returncode or output.strip() != str(sandbox.uid).encode():
        message = output.decode(errors="replace").strip()[-300:]
        return Availability(
            False,
            f"bubblewrap cannot create a sandbox here: {message or f'exit code {box.returncode}'}.",
            "Run as root, or allow unprivileged user namespaces (sysctl kernel.unprivileged_userns_clone=1, AppArmor).",
        )
    return Availability(True)


def lacking() -> Iterator[tuple[str, str]]:
    """The protections that a working sandbox lacks on this machine, each with its fix."""
    if held := cgroups.lacking():
        fix = "Run as root on a host where /sys/fs/cgroup is writable and has the controllers memory, pids and cpu."
        instead = "nice alone" if held == "processors" else "per-process limits and nice"
        yield f"cgroups cannot limit the {held} of a recipe's code here; the fallback is {instead}.", fix
    if not syscalls.program():
        fix = "Use 64-bit Linux with CONFIG_SECCOMP_FILTER, on x86_64, aarch64 or riscv64."
        yield "A recipe's code can create its own namespaces here: system calls are not filtered.", fix


interpreter = children.interpreter


@dataclass
class Sandbox:
    """A sandbox for one program of a recipe.

    `name`: of its cgroup. `mounts`: paths inside -> files or folders outside, read-only. In plain mode (`bubblewrap=False`)
    nothing is mounted, and `scratch` serves as the private /tmp.
    """

    name: str
    bubblewrap: bool
    mounts: Mapping[str, Path] = field(default_factory=dict)
    hosts: Sequence[str] = ()
    places: Mapping[str, str] = field(default_factory=dict)  #: more names, each with its address of loopback
    addresses: Sequence[str] = ()  #: addresses of others that are loopback's own in here
    memory_mb: int = 2048
    processes: int = 512
    disk_mb: int = 2048
    scratch: Path | None = None
    cgroup: cgroups.Cgroup | None = field(default=None, init=False)

    @property
    def uid(self) -> int:
        """An otherwise unused uid, different for each sandbox, because process limits count by uid."""
        return 1_900_000_000 + zlib.crc32(self.name.encode()) % 100_000_000

    @property
    def home(self) -> str:
        """The writable folder, as seen by the code inside."""
        return "/tmp" if self.bubblewrap else str(self.scratch)  # noqa: S108

    def where(self, inside: str) -> str:
        """The path at which code inside finds what is mounted at `inside`."""
        if self.bubblewrap:
            return inside
        if inside.startswith(PROGRAMS + "/") and inside not in self.mounts:
            return str(GUEST / inside.removeprefix(PROGRAMS + "/"))
        return str(self.mounts[inside])

    def environment(self) -> dict[str, str]:
        """The complete environment of the code inside."""
        return {
            "PATH": f"{Path(sys.prefix) / 'bin'}:{_PATH}",
            "HOME": self.home,
            "TMPDIR": self.home,
            "LANG": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
        }

    def start(self, program: str, config: Mapping[str, Any], fds: Sequence[int] = ()) -> subprocess.Popen[bytes]:
        """Start a program of `guest/`; its configuration appears on no command line."""
        handle = os.memfd_create("config", 0)
        try:
            os.write(handle, json.dumps(config).encode())
            os.lseek(handle, 0, os.SEEK_SET)
            command = [interpreter(), "-I", self.where(f"{PROGRAMS}/{program}"), str(handle)]
            return self.spawn(command, (*fds, handle))
        finally:
            os.close(handle)

    def spawn(self, command: Sequence[str], fds: Sequence[int] = ()) -> subprocess.Popen[bytes]:
        """Start `command`; its output is a pipe. It ends with this process at the latest.

        `fds` are passed on with the same numbers, and no others.
        """
        self.cgroup = cgroups.create(self.name, self.memory_mb, self.processes)
        with _Data() as data:
            inside = self._bubblewrap(command, data) if self.bubblewrap else command
            return children.start(
                ["nice", "-n", "10", *inside],  # all that holds the processors where no cgroup does
                env=self.environment(),
                memory_mb=0,
                address_mb=0 if self.cgroup else self.memory_mb,
                file_mb=self.disk_mb,
                cgroups=self.cgroup.procs if self.cgroup else (),
                alone=True,
                cwd="/" if self.bubblewrap else self.scratch,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(*fds, *data.fds),
            )

    def _bubblewrap(self, command: Sequence[str], data: _Data) -> list[str]:
        root = os.geteuid() == 0
        options = [
            *["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"],
            *["--die-with-parent", "--hostname", "sandbox", "--perms", "0755", "--tmpfs", "/"],
            *(() if root else ("--unshare-user", "--uid", str(self.uid), "--gid", str(self.uid))),
        ]
        # What is written lies in memory: half of what the sandbox may have, so that a full disk is seen before the end.
        size = str(min(self.disk_mb, self.memory_mb // 2) << 20)
        options += ["--proc", "/proc", "--dev", "/dev"]
        options += ["--size", str(64 << 20), "--perms", "1777", "--tmpfs", "/dev/shm"]  # noqa: S108
        # Before the mounts below: the virtual environment itself may lie under /tmp.
        options += ["--size", size, "--perms", "1777", "--tmpfs", "/tmp"]  # noqa: S108
        parents: set[str] = {"/", "/tmp"}  # noqa: S108
        read_only = {"/usr": Path("/usr"), **{path: Path(path) for path in _ETC if Path(path).exists()}}
        for prefix in (sys.base_prefix, sys.prefix, *_other_prefixes()):
            if not Path(prefix).resolve().is_relative_to("/usr"):
                read_only[prefix] = Path(prefix)
        for path in _SYSTEM:
            if Path(path).is_symlink():
                options += ["--symlink", str(Path(path).readlink()), path]
            elif Path(path).is_dir():
                read_only[path] = Path(path)
        read_only |= {f"{PROGRAMS}/{file.name}": file for file in GUEST.glob("*.py")} | dict(self.mounts)
        for target, source in sorted(read_only.items()):
            for parent in reversed(Path(target).parents):
                if str(parent) not in parents and not any(str(parent).startswith(f"{have}/") for have in read_only):
                    # Without this bubblewrap makes them 0700, and no other uid gets past.
                    options += ["--perms", "0755", "--dir", str(parent)]
                parents.add(str(parent))
            options += ["--ro-bind", str(source), target]
        for path, text in self._etc().items():
            options += ["--perms", "0644", "--ro-bind-data", str(data.add(text.encode())), path]
        options += ["--remount-ro", "/", "--chdir", "/tmp", "--cap-drop", "ALL"]  # noqa: S108
        for right in ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP", "CAP_NET_ADMIN", "CAP_SYS_RESOURCE"):
            if root or right in ("CAP_SETPCAP", "CAP_NET_ADMIN"):
                options += ["--cap-add", right]
        other = ["--reuid", str(self.uid), "--regid", str(self.uid), "--clear-groups"] if root else []
        drop = [
            *("/usr/bin/prlimit", f"--nproc={self.processes}", "/usr/bin/setpriv", *other),
            *["--ambient-caps=-all", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"],
        ]
        if program := syscalls.program():
            options += ["--seccomp", str(data.add(program))]
        arguments = data.add("\0".join(options).encode())
        more = shlex.join([interpreter(), "-I", f"{PROGRAMS}/address.py", *self.addresses]) + "; " if self.addresses else ""
        shell = ["/bin/sh", "-c", _DROP.format(more), "sh"]
        return [shutil.which("bwrap") or "bwrap", "--args", str(arguments), "--", *shell, *drop, *command]

    def _etc(self) -> dict[str, str]:
        names = " ".join(["localhost", "sandbox", *self.hosts])
        more = "".join(f"{address} {name}\n" for name, address in self.places.items())
        return {
            "/etc/passwd": f"root:x:0:0::/:/bin/sh\nrecipe:x:{self.uid}:{self.uid}::/tmp:/bin/sh\n",
            "/etc/group": f"root:x:0:\nrecipe:x:{self.uid}:\n",
            "/etc/hosts": f"127.0.0.1 {names}\n{more}::1 localhost\n",
            "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
            "/etc/resolv.conf": "",
        }

    def end(self, box: subprocess.Popen[bytes]) -> None:
        """Kill a program and everything that it started. Safe to repeat."""
        children.end(box)
        self.close()

    def close(self) -> None:
        """Remove the cgroup, and kill whatever still runs in it."""
        if self.cgroup:
            self.cgroup.remove()


class _Data:
    """Data for bubblewrap, each piece behind a file descriptor."""

    def __init__(self) -> None:
        self.fds: list[int] = []

    def add(self, content: bytes) -> int:
        handle = os.memfd_create("data", 0)
        self.fds.append(handle)
        os.write(handle, content)
        os.lseek(handle, 0, os.SEEK_SET)
        return handle

    def __enter__(self) -> _Data:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.fds:
            os.close(handle)


def _other_prefixes() -> list[str]:
    """The prefix of the real interpreter, if it is neither the system's nor one that Python reports."""
    real = Path(interpreter())
    prefix = real.parent.parent
    known = (Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve(), Path("/usr"))
    return [] if any(prefix.is_relative_to(place) for place in known) or str(prefix) == "/" else [str(prefix)]
