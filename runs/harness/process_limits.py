"""Limits for the harness's own process, which reads untrusted input (compose files, TOML, XML, Python, archives).

Its children have their own limits (`infra.deployers.isolation.children`).
"""

from __future__ import annotations

import resource
import threading

#: Beyond this there is a MemoryError, which ends the run with a message. Unpacking a dump takes a third of it.
MEMORY_MB = 1536
#: Much longer than the whole run may take. Nothing in here needs that much CPU time; what does is killed.
_MORE_SECONDS = 300
#: Stack size of a thread. The default of 8 MB would be too much for all threads serving connections.
_STACK_BYTES = 1 << 20


def hold(run_seconds: int) -> None:
    """Limit this process from now on. Sets only the soft limits, since its children get others."""
    threading.stack_size(_STACK_BYTES)
    for kind, most in ((resource.RLIMIT_DATA, MEMORY_MB << 20), (resource.RLIMIT_CPU, run_seconds + _MORE_SECONDS)):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
