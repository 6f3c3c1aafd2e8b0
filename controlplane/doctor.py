"""Runs doctor's checks, and defines the control plane's own. Each problem comes with a command to type."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.db import DatabaseError, OperationalError, connection
from django.utils import timezone
from django_q.models import OrmQ

from controlplane import config, database, logins, rotation
from controlplane.models import Host, RecurringTask
from controlplane.registry import Finding, Level, Registry, call
from controlplane.secrets import DJANGO_KEY_FILE
from controlplane.supervisor import STALL_MARGIN

NETWORK_FILESYSTEMS = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "fuse.glusterfs", "ceph", "afs", "davfs")
LITTLE_DISK, NO_DISK = 2 * 1024**3, 500 * 1024**2
#: Seconds of silence after which a host's ticker counts as stopped.
SILENT = 30


def examine(registry: Registry) -> list[Finding]:
    """Run all checks in order. A check that raises becomes a finding, too."""
    findings: list[Finding] = []
    problem = _unreachable()
    with _left_alone() if problem else nullcontext():
        for name, check in registry.checks.items():
            try:
                findings.extend([problem] if problem and name == "database" else call(check))
            except DatabaseError as error:
                text = f"not checked, the database failed: {_line(error)}"
                findings.append(Finding(name, "error", text, "cc-ci migrate && cc-ci doctor"))
            except Exception as error:
                text = f"the check itself raised {type(error).__name__}: {_line(error)}"
                findings.append(Finding(name, "error", text, "cc-ci doctor"))
    return findings


def check_settings() -> Iterator[Finding]:
    cc_ci, clean = settings.CC_CI, True
    for name, nearest in config.unknown_names():
        clean = False
        fix = f"rename it to {nearest}" if nearest else f"unset {name}, or remove it from .env"
        yield Finding("settings", "warning", f"unknown setting {name}", fix)
    base = urlsplit(cc_ci.base_url)
    if cc_ci.debug and base.scheme == "https":
        clean = False
        yield Finding("settings", "error", "DEBUG is on for a public https address: everybody can see tracebacks", "DEBUG=false")
    if base.hostname in ("localhost", "127.0.0.1", "::1"):
        clean = False
        text = f"links in comments point to {cc_ci.base_url}, which only this host can open"
        yield Finding("settings", "warning", text, "CC_CI_BASE_URL=https://ci.example.org")
    if base.scheme == "https" and not cc_ci.proxies:
        clean = False
        text = "people use https, but no proxy is configured: all clients appear to have the proxy's address"
        yield Finding("settings", "warning", text, "CC_CI_PROXIES=127.0.0.1")
    if clean:
        yield Finding("settings", "ok", f"all known, public at {cc_ci.base_url}")


def check_database() -> Iterator[Finding]:
    if problem := _unreachable():
        yield problem
        return
    sqlite = connection.vendor == "sqlite"
    name = str(connection.settings_dict["NAME"])
    if missing := database.missing():
        yield Finding("database", "error", missing, "cc-ci migrate")
        return
    version = ".".join(str(part) for part in connection.get_database_version())
    yield Finding("database", "ok", f"{'SQLite' if sqlite else 'PostgreSQL'} {version}, all migrations applied")
    if sqlite:
        yield from _check_sqlite(Path(name))


def _check_sqlite(path: Path) -> Iterator[Finding]:
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA journal_mode")
        mode = str(cursor.fetchone()[0])
    if mode not in ("wal", "memory"):
        text = f"SQLite's journal mode is {mode}, not wal: readers and writers block each other"
        yield Finding("database", "error", text, f"sqlite3 {path} 'PRAGMA journal_mode=WAL'")
    if (kind := filesystem(path)) in NETWORK_FILESYSTEMS:
        text = f"the SQLite file is on a network filesystem ({kind}), whose locks are unreliable"
        yield Finding("database", "warning", text, "DATABASE_URL=postgresql://USER:PASSWORD@HOST:5432/NAME")
    ticking = list(Host.objects.filter(ticked_at__gt=timezone.now() - timedelta(seconds=SILENT)).values_list("name", flat=True))
    if len(ticking) > 1:
        text = f"{', '.join(ticking)} use the same SQLite database, which supports only one host"
        yield Finding("database", "error", text, "DATABASE_URL=postgresql://USER:PASSWORD@HOST:5432/NAME")


def _unreachable() -> Finding | None:
    """Why the database is unreachable, if it is. Never creates one."""
    values = connection.settings_dict
    name = str(values["NAME"])
    sqlite = connection.vendor == "sqlite"
    if sqlite and not Path(name).exists() and "memory" not in name:
        return Finding("database", "error", f"the database {name} does not exist yet", "cc-ci migrate")
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except DatabaseError as error:
        fix = f"ls -l {name} && sqlite3 {name} 'PRAGMA integrity_check'"
        if not sqlite:
            fix = f"pg_isready -h {values['HOST'] or '/var/run/postgresql'} -p {values['PORT'] or 5432} -d {name}"
        return Finding("database", "error", f"cannot be reached: {_line(error)}", fix)
    return None


@contextmanager
def _left_alone() -> Iterator[None]:
    """Make database access fail at once, so that no check waits, or creates an empty SQLite file that breaks the next start."""

    def refuse() -> None:
        raise OperationalError("see the database check")

    connection.connect = refuse  # type: ignore[method-assign]
    try:
        yield
    finally:
        del connection.connect


def filesystem(path: Path) -> str:
    """The filesystem type of `path`, as Linux names it; empty if unknown."""
    try:
        lines = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return ""
    place, best, kind = path.resolve(), -1, ""
    for line in lines:
        _, mount, of_kind, *_ = line.split(" ")
        point = Path(mount.replace("\\040", " "))
        if place.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), of_kind
    return kind


def check_keys() -> Iterator[Finding]:
    files = [settings.CC_CI.data_dir / DJANGO_KEY_FILE] if not settings.CC_CI.secret_key else []
    if not settings.CC_CI.secret_keys:
        files.append(rotation.key_file())
    clean = True
    for path in files:
        for finding in _check_key_file(path):
            clean = False
            yield finding
    if not settings.CC_CI.secret_keys and not rotation.key_file().exists():
        if any(True for _ in rotation.sealed_values()):
            text = f"{rotation.key_file()} is missing: the tokens in the database cannot be decrypted"
            yield Finding("keys", "error", text, f"cp BACKUP/{rotation.key_file().name} {rotation.key_file()}")
        else:
            yield Finding("keys", "ok", f"{rotation.key_file()} is created when the first secret is stored")
        return
    if lost := rotation.unreadable():
        text = f"no key decrypts {', '.join(lost[:5])}" + (f" and {len(lost) - 5} more" if len(lost) > 5 else "")
        fix = "add the old key again after the first, or enter the secret again: cc-ci forge add"
        yield Finding("keys", "error", text, fix)
    elif clean:
        where = "CC_CI_SECRET_KEYS" if settings.CC_CI.secret_keys else str(rotation.key_file())
        yield Finding("keys", "ok", f"{where} decrypts everything")


def _check_key_file(path: Path) -> Iterator[Finding]:
    try:
        status = path.stat()
    except FileNotFoundError:
        return
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        yield Finding("keys", "error", f"{path} is readable by others (mode {mode:04o})", f"chmod 600 {path}")
    if status.st_uid != os.geteuid():
        me = pwd.getpwuid(os.geteuid()).pw_name
        yield Finding("keys", "error", f"{path} is owned by uid {status.st_uid}, not by {me}", f"chown {me} {path}")


def check_queue_settings() -> Iterator[Finding]:
    queue: dict[str, Any] = settings.Q_CLUSTER
    timeout, retry = queue["timeout"], queue["retry"]
    here = "in controlplane/settings.py: "
    wrong = [
        (timeout >= retry, "a task is queued again while it is still running", f"CC_CI_QUEUE_RETRY={timeout + 30}"),
        (
            not queue.get("max_attempts"),
            "a task that always exceeds its time limit is retried forever",
            f'{here}"max_attempts": 3',
        ),
        (not queue.get("ack_failures"), "a failed task is retried forever", f'{here}"ack_failures": True'),
        (queue.get("catch_up", True), "everything missed during downtime runs at once", f'{here}"catch_up": False'),
    ]
    findings = [Finding("queue settings", "error", text, fix) for is_wrong, text, fix in wrong if is_wrong]
    if not findings:
        text = f"{queue['workers']} workers; a task is stopped after {timeout} s and queued again after {retry} s"
        findings = [Finding("queue settings", "ok", text)]
    yield from findings


def check_queue() -> Iterator[Finding]:
    now, start = timezone.now(), "cc-ci work --web"
    host = Host.objects.filter(name=settings.CC_CI.host).first()
    if host is None or host.ticked_at is None:
        yield Finding("queue", "warning", f"no worker has run on {settings.CC_CI.host} yet", start)
    elif host.ticked_at < now - timedelta(seconds=SILENT):
        yield Finding("queue", "error", f"no worker on {host.name} since {host.ticked_at:%Y-%m-%d %H:%M:%S} UTC", start)
    elif (host.worked_at or host.started_at or now) < now - timedelta(seconds=settings.CC_CI.queue_timeout + STALL_MARGIN):
        since = f"since {host.worked_at:%Y-%m-%d %H:%M:%S} UTC" if host.worked_at else "at all"
        text = f"the ticker of {host.name} is running, but no task has run {since}"
        yield Finding("queue", "error", text, f"stop `cc-ci work` and start it again: {start}")
    else:
        yield Finding("queue", "ok", f"{host.name} is working; its queue was restarted {host.restarts} times because it stalled")
    yield from _check_waiting()


def _check_waiting() -> Iterator[Finding]:
    """Tasks that wait too long, or for a host without a worker."""
    now = timezone.now()
    ticking = set(Host.objects.filter(ticked_at__gt=now - timedelta(seconds=SILENT)).values_list("name", flat=True))
    waiting: dict[str, int] = {}
    for key in OrmQ.objects.filter(lock__lt=now - timedelta(seconds=60)).values_list("key", flat=True):
        waiting[key] = waiting.get(key, 0) + 1
    for key, count in sorted(waiting.items()):
        name = key.removeprefix("cc-ci-")
        if name not in ticking:
            if name != settings.CC_CI.host:
                text = f"{count} tasks are waiting for {name}, where no worker is running"
                yield Finding("queue", "error", text, f"CC_CI_HOST={name} cc-ci work")
        else:
            text = f"{count} tasks have been waiting for {name} for more than a minute"
            yield Finding("queue", "warning", text, f"CC_CI_WORKERS={settings.CC_CI.workers + 2}")


def check_recurring_tasks() -> Iterator[Finding]:
    failing = list(RecurringTask.objects.exclude(last_error="").filter(enabled=True))
    for row in failing:
        yield Finding("recurring tasks", "error", f"{row.name}: {row.last_error}", f"cc-ci schedules --run {row.name}")
    for row in RecurringTask.objects.filter(enabled=False):
        text = f"{row.name} is disabled"
        yield Finding("recurring tasks", "warning", text, f"{settings.CC_CI.base_url}/admin/controlplane/recurringtask/")
    if not failing:
        yield Finding("recurring tasks", "ok", f"{RecurringTask.objects.count()} known, none failed in its last run")


def check_disk() -> Iterable[Finding]:
    folder = settings.CC_CI.data_dir
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
        free = shutil.disk_usage(folder).free
    except OSError as error:
        fix = f"install -d -o $USER -m 700 {folder}"
        return [Finding("disk", "error", f"cannot write to {folder}: {error.strerror}", fix)]
    text = f"{free / 1024**3:.1f} GB free in {folder}"
    level: Level = "error" if free < NO_DISK else "warning" if free < LITTLE_DISK else "ok"
    return [Finding("disk", level, text, f"du -xh -d 2 {folder} | sort -h | tail" if level != "ok" else "")]


def check_logins() -> Iterator[Finding]:
    """Who is locked out after too many failed logins, and how to unlock them."""
    waiting = logins.locked()
    for one in waiting:
        text = f"{one} is locked out until {one.until:%H:%M:%S} UTC after {one.wrong} failed logins"
        yield Finding("logins", "warning", text, f"cc-ci axes_reset_ip {one.address}")
    if not waiting:
        yield Finding("logins", "ok", "nobody is locked out after failed logins")


def _line(error: Exception) -> str:
    return " ".join(f"{error or type(error).__name__}".split())
