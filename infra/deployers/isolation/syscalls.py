"""The system call filter of a sandbox: a classic BPF program, as bubblewrap takes it (`--seccomp`).

A process in a sandbox may start threads and processes, which share its namespaces: in new namespaces it would have every
capability, and the kernel memory they take is counted for nobody. Calls that few programs need and that use up machine-wide
limits, or reach deep into the kernel, are absent.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from pathlib import Path

_KNOWN = Path("/proc/sys/kernel/seccomp/actions_avail")
#: The kernel's names for the machines (AUDIT_ARCH_*), and which column of numbers below is theirs.
_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1), "riscv64": (0xC00000F3, 1)}
_CLONE, _UNSHARE, _SOCKET = (56, 220), (272, 97), (41, 198)
_AF_VSOCK = 40  # leads to the machine that this one is a guest of, past all networks
#: Whoever asks for one of these hears that this kernel has none, and does without it.
_ABSENT = {
    "clone3": (435, 435),  # keeps its flags where no filter can read them; the C library then takes clone
    "io_setup": (206, 0),  # fs.aio-max-nr is for the whole machine
    "io_uring_setup": (425, 425),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
}
#: All flags but those for new namespaces. The lowest byte of clone's is a signal; one of unshare's is CLONE_NEWTIME.
_CLONE_MAY = 0x81FDFFFF
_UNSHARE_MAY = _CLONE_MAY & ~0xFF
#: Numbers from here on are x32's, a second set for programs of x86_64.
_X32 = 0x40000000

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000
_NUMBER, _MACHINE, _FIRST_ARGUMENT = 0, 4, 16  # in struct seccomp_data


def program() -> bytes:
    """The filter for this machine; empty if it is not supported."""
    known = _MACHINES.get(os.uname().machine)
    if not known or sys.maxsize < 1 << 32 or not _KNOWN.exists():
        return b""
    machine, column = known
    absent, refused = _ERROR | errno.ENOSYS, _ERROR | errno.EPERM
    code = [(_LOAD, 0, 0, _MACHINE), (_EQUAL, 1, 0, machine), (_RETURN, 0, 0, absent)]
    code += [(_LOAD, 0, 0, _NUMBER), (_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, absent)]
    for numbers in _ABSENT.values():
        code += [(_EQUAL, 0, 1, numbers[column]), (_RETURN, 0, 0, absent)]
    for numbers, may in ((_CLONE, _CLONE_MAY), (_UNSHARE, _UNSHARE_MAY)):
        code += [(_EQUAL, 0, 4, numbers[column]), (_LOAD, 0, 0, _FIRST_ARGUMENT)]
        code += [(_ANY_BIT, 0, 1, ~may & 0xFFFFFFFF), (_RETURN, 0, 0, refused), (_RETURN, 0, 0, _ALLOW)]
    code += [(_EQUAL, 0, 4, _SOCKET[column]), (_LOAD, 0, 0, _FIRST_ARGUMENT)]
    code += [(_EQUAL, 0, 1, _AF_VSOCK), (_RETURN, 0, 0, _ERROR | errno.EAFNOSUPPORT), (_RETURN, 0, 0, _ALLOW)]
    code += [(_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("=HBBI", *one) for one in code)
