"""The bounds of the harness's own process: what it reads (compose files, TOML, XML, Python, archives) is a stranger's.

What it starts has bounds of its own (`infra.deployers.children`).
"""

from __future__ import annotations

import resource
import threading

#: Beyond this there is a MemoryError, which ends the run in words. A dump that is unpacked takes a third of it.
MEMORY_MB = 1536
#: So much longer than the whole run may take. Nothing in here takes a core for so long; what does is killed.
_MORE_SECONDS = 300
#: Of a thread. The usual 8 MB, of all threads that wait for the tests' connections, would be more than there is.
_STACK_BYTES = 1 << 20


def hold(run_seconds: int) -> None:
    """Bound this process from now on. Only the soft limits: its children get others."""
    threading.stack_size(_STACK_BYTES)
    for kind, most in ((resource.RLIMIT_DATA, MEMORY_MB << 20), (resource.RLIMIT_CPU, run_seconds + _MORE_SECONDS)):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
