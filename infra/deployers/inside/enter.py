"""The last step before a sandbox, still outside it: `enter.py PARENT_PID LIMITS_JSON PROGRAM ARGUMENT...`.

Ties the process to its parent's life, leaves the caller's kernel keyring behind, joins the cgroups, sets the limits
that need no cgroup, and becomes PROGRAM. A program of its own, because the harness has threads and must not run
Python between fork and exec.
"""

import ctypes
import json
import os
import resource
import signal
import sys

PR_SET_PDEATHSIG = 1
KEYCTL_JOIN_SESSION_KEYRING = 1
SYS_KEYCTL = {"x86_64": 250, "aarch64": 219, "riscv64": 219}


def main() -> None:
    parent, limits = int(sys.argv[1]), json.loads(sys.argv[2])
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before we asked to be told
        sys.exit(1)
    if number := SYS_KEYCTL.get(os.uname().machine):
        libc.syscall(number, KEYCTL_JOIN_SESSION_KEYRING, None)
    for path in limits["cgroups"]:
        with open(path, "w") as file:  # noqa: PTH123 - pathlib would double this program's start
            file.write(str(os.getpid()))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits["file_bytes"],) * 2)
    if limits["address_bytes"]:
        resource.setrlimit(resource.RLIMIT_AS, (limits["address_bytes"],) * 2)
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and an exec would hand that on
        signal.signal(ignored, signal.SIG_DFL)
    os.execv(sys.argv[3], sys.argv[3:])  # noqa: S606


main()
