"""Leases: one poller per forge, one sender per report, one run per slot, with any number of workers.

A lease is one row, claimed by one conditional UPDATE. It expires, so a dead owner never holds it forever, and has a fencing
number that grows with each claim, so a late owner can be detected. If its owner is a process of this host that no longer exists,
the lease can be claimed immediately.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import F, QuerySet
from django.utils import timezone

from controlplane.models import Lease


@dataclass(frozen=True)
class Held:
    """A lease that this process holds."""

    name: str
    owner: str
    fence: int

    def is_mine(self) -> bool:
        """Whether it is still held: not expired, and not claimed by somebody else."""
        return self._rows().filter(expires_at__gt=timezone.now()).exists()

    def renew(self, seconds: float) -> bool:
        """Extend it to `seconds` from now. False if somebody else claimed it."""
        return bool(self._rows().update(expires_at=timezone.now() + timedelta(seconds=seconds)))

    def release(self) -> None:
        self._rows().update(owner="", expires_at=timezone.now())

    def _rows(self) -> QuerySet[Lease]:
        return Lease.objects.filter(name=self.name, owner=self.owner, fence=self.fence)


def take(name: str, seconds: float) -> Held | None:
    """Claim the lease `name` for `seconds`; returns None if somebody else holds it."""
    now = timezone.now()
    owner = f"{_process(os.getpid())}/{uuid.uuid4().hex[:8]}"
    rows = Lease.objects.filter(name=name)
    values = {"owner": owner, "expires_at": now + timedelta(seconds=seconds)}
    if not rows.filter(expires_at__lte=now).update(**values, fence=F("fence") + 1):
        row = rows.first()
        if row is not None:
            if not _is_dead(row.owner):
                return None
            if not rows.filter(owner=row.owner, fence=row.fence).update(**values, fence=F("fence") + 1):
                return None  # somebody else claimed it first
            return Held(name, owner, row.fence + 1)
        try:
            with transaction.atomic():
                Lease.objects.create(name=name, fence=1, **values)
        except IntegrityError:
            return None  # somebody else created the row concurrently, and holds it
    fence = rows.filter(owner=owner).values_list("fence", flat=True).first()
    return None if fence is None else Held(name, owner, fence)


def _process(pid: int) -> str:
    """Identify a process of this host: unique across reused process ids and containers.

    Raises OSError if there is no such process, or only a zombie.
    """
    state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    if state in "ZX":
        raise ProcessLookupError(pid)
    started = rest[18]  # in ticks since boot, unaffected by clock changes
    return f"{settings.CC_CI.host}:{pid}:{started}:{_namespace()}"


def _namespace() -> str:
    return str(Path("/proc/self/ns/pid").readlink())


def is_free(name: str) -> bool:
    """Whether `take` would succeed now. Changes nothing."""
    row = Lease.objects.filter(name=name).first()
    return row is None or row.expires_at <= timezone.now() or _is_dead(row.owner)


def living(owner: str) -> int:
    """The process id of a lease's owner if it is alive on this host and in this container; else 0."""
    process = owner.rpartition("/")[0]
    host, pid, _, namespace = (process.split(":", 3) + [""] * 4)[:4]
    ours = host == settings.CC_CI.host and pid.isdigit() and namespace == _namespace()
    return int(pid) if ours and not _is_dead(owner) else 0


def _is_dead(owner: str) -> bool:
    """Whether an owner was a process on this host and in this container, and no longer exists. False if unknown."""
    process = owner.rpartition("/")[0]
    host, pid, _, namespace = (process.split(":", 3) + [""] * 4)[:4]
    if host != settings.CC_CI.host or not pid.isdigit() or namespace != _namespace():
        return False
    try:
        return _process(int(pid)) != process
    except OSError:
        return True


@contextmanager
def lease(name: str, seconds: float) -> Iterator[Held | None]:
    """`with lease("poll:3", 60) as held:` — held is None if somebody else holds it. Released at the end."""
    held = take(name, seconds)
    try:
        yield held
    finally:
        if held:
            held.release()
