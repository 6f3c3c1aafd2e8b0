"""The guard between the harness and each of its children: `enter.py PARENT_PID RULES PROGRAM ARGUMENT...` (`children.start`).

Starts PROGRAM (a path) with its limits and waits for it. When it ends, when the parent ends for any reason, or when the time is
up, it kills everything that is left: its process group, the processes in its cgroups, and orphans. SIGTERM requests the same.
Ends as PROGRAM did: with its exit code, or by its signal.

RULES are words like `seconds=30`, separated by spaces, all optional:
`seconds`: wall-clock time; `grace`: seconds between SIGTERM and the kill; `data`, `address`, `file`: bytes for RLIMIT_DATA,
RLIMIT_AS, RLIMIT_FSIZE; `alone`: its own session and kernel keyring; `cgroups`: its `cgroup.procs` files, separated by colons.

It is a separate program because the harness has threads and must not run Python between fork and exec. It imports little,
because it is started with each call of docker.
"""

import _ctypes  # all of ctypes, and of signal, takes as long to import as Python to start
import _signal as signal  # type: ignore[import-not-found]
import os
import resource
import select
import sys
import time

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
KEYCTL_JOIN_SESSION_KEYRING = 1
SYS_KEYCTL = {"x86_64": 250, "aarch64": 219, "riscv64": 219}
#: Whoever wants the end of it.
ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
FILES = 4096


class Asked(Exception):
    """A signal requested the end."""


def main() -> None:
    parent, program = int(sys.argv[1]), sys.argv[3:]
    rules = dict(word.split("=", 1) for word in sys.argv[2].split())
    cgroups = [path for path in rules.get("cgroups", "").split(":") if path]
    until = time.monotonic() + float(rules["seconds"]) if "seconds" in rules else None
    signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
    call("prctl", PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # what leaves its parent becomes our child, and no other's
    me = os.getpid()
    child = os.fork()
    if not child:
        become(program, rules, cgroups, me)
    let_go()
    for number in ASKING:
        signal.signal(number, ask)
    if not watch(parent, child, until) and (grace := float(rules.get("grace", 0))):
        os.kill(child, signal.SIGTERM)
        watch(0, child, time.monotonic() + grace)
    # It is not waited for before this: as long as it is there, at least as a zombie, its number is nobody else's.
    end(child, cgroups)
    status = os.waitpid(child, 0)[1]
    end_orphans()
    if os.getppid() != parent:
        remove(cgroups)  # nobody else does
    leave(status)


def become(program: list[str], rules: dict[str, str], cgroups: list[str], guard: int) -> None:
    """Become the program, or exit."""
    try:
        call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # should somebody kill this guard
        if os.getppid() != guard:
            return
        if "alone" in rules:
            os.setsid()
            if number := SYS_KEYCTL.get(os.uname().machine):
                call("syscall", number, KEYCTL_JOIN_SESSION_KEYRING, None)
        else:
            os.setpgid(0, 0)
        for path in cgroups:
            with open(path, "w") as file:  # noqa: PTH123 - pathlib would double this program's start
                file.write(str(os.getpid()))
        limit(rules)
        for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and an exec would hand that on
            signal.signal(ignored, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)
        os.execve(program[0], program, environment())  # noqa: S606
    except BaseException as error:
        os.write(2, f"{program[0]}: {error}\n".encode(errors="replace"))
    finally:
        os._exit(127)


def call(name: str, *arguments: int | None) -> None:
    """Call a function of the C library."""
    library = _ctypes.dlopen(None, os.RTLD_NOW)  # type: ignore[arg-type]  # what this program is linked with
    _ctypes.call_function(_ctypes.dlsym(library, name), arguments)


def limit(rules: dict[str, str]) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    files = FILES if most == resource.RLIM_INFINITY else min(FILES, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    # The harness has limits of its own (runs/harness/process_limits.py), which its children have nothing to do with.
    for kind in (resource.RLIMIT_DATA, resource.RLIMIT_CPU):
        resource.setrlimit(kind, (resource.getrlimit(kind)[1],) * 2)
    for name, kind in (("data", resource.RLIMIT_DATA), ("address", resource.RLIMIT_AS), ("file", resource.RLIMIT_FSIZE)):
        if name in rules:
            most = resource.getrlimit(kind)[1]  # which only root may raise
            value = int(rules[name]) if most == resource.RLIM_INFINITY else min(int(rules[name]), most)
            resource.setrlimit(kind, (value, value))


def environment() -> dict[bytes, bytes]:
    """The environment that this program was given: Python itself adds LC_CTYPE to its own."""
    with open("/proc/self/environ", "rb") as file:  # noqa: PTH123
        pairs = [item.partition(b"=") for item in file.read().split(b"\0") if item]
    return {name: value for name, equals, value in pairs if equals}


def let_go() -> None:
    """Close our ends of the program's pipes."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    os.closerange(3, 65536)


def ask(_number: int, _frame: object) -> None:
    raise Asked


def watch(parent: int, child: int, until: float | None) -> bool:
    """Wait for the program's end. Returns False if the parent's end, the timeout or a signal came first."""
    poll, wait = select.poll(), 5.0
    try:
        for pid in filter(None, (child, parent)):
            poll.register(os.pidfd_open(pid), select.POLLIN)
    except OSError:  # Linux before 5.3, or the parent is gone
        poll, wait = select.poll(), 0.2
    while not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        left = until - time.monotonic() if until is not None else None
        if (parent and os.getppid() != parent) or (left is not None and left <= 0):
            return False
        reap_others(child)
        wait_for = min([seconds for seconds in (wait, left) if seconds is not None])
        try:
            if parent:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)
            poll.poll(wait_for * 1000)
            signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
        except Asked:
            signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
            return False
    return True


def end(child: int, cgroups: list[str]) -> None:
    """Kill the program and its remaining processes."""
    os.kill(child, signal.SIGKILL)  # it may be so young that it has no group yet
    try:
        os.killpg(child, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    for path in cgroups:
        for _ in range(50):
            try:
                with open(path) as file:  # noqa: PTH123
                    pids = file.read().split()
            except OSError:
                break
            if not pids:
                break
            for pid in pids:
                try:
                    os.kill(int(pid), signal.SIGKILL)
                except ProcessLookupError:
                    pass
            time.sleep(0.02)


def reap_others(child: int) -> None:
    """Reap orphans that have ended."""
    while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and ended.si_pid != child:
        os.waitpid(ended.si_pid, 0)


def end_orphans() -> None:
    """Kill the orphans that left the program's group. Their own children become ours in turn."""
    for _ in range(500):
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
            with open(f"/proc/self/task/{os.getpid()}/children") as file:  # noqa: PTH123
                pids = file.read().split()
        except OSError:  # there is none; or this Linux does not tell
            return
        for pid in pids:
            try:
                os.kill(int(pid), signal.SIGKILL)
            except OSError:
                pass
        time.sleep(0.005)


def remove(cgroups: list[str]) -> None:
    for path in cgroups:
        try:
            os.rmdir(os.path.dirname(path))  # noqa: PTH106, PTH120
        except OSError:
            pass


def leave(status: int) -> None:
    """End as the program did."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        os.kill(os.getpid(), number)
    os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 255)


main()
