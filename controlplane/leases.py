"""Leases: one poller per forge, one sender per report, one run per slot, however many workers there are.

A lease is one row, taken by one conditional UPDATE. It has an expiry, so a dead owner holds nothing for ever, and a
fencing number that grows with each taking, so a late owner can be told.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import F, QuerySet
from django.utils import timezone

from controlplane.models import Lease


@dataclass(frozen=True)
class Held:
    """A lease in hand."""

    name: str
    owner: str
    fence: int

    def is_mine(self) -> bool:
        """Whether it still is: false once it has expired, or somebody else took it."""
        return self._rows().filter(expires_at__gt=timezone.now()).exists()

    def renew(self, seconds: float) -> bool:
        """Hold it for `seconds` from now. False when it has been taken over."""
        return bool(self._rows().update(expires_at=timezone.now() + timedelta(seconds=seconds)))

    def release(self) -> None:
        self._rows().update(owner="", expires_at=timezone.now())

    def _rows(self) -> QuerySet[Lease]:
        return Lease.objects.filter(name=self.name, owner=self.owner, fence=self.fence)


def take(name: str, seconds: float) -> Held | None:
    """Take the lease called `name` for `seconds`, or None while somebody else holds it."""
    now = timezone.now()
    owner = f"{settings.CC_CI.host}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
    free = Lease.objects.filter(name=name, expires_at__lte=now)
    values = {"owner": owner, "expires_at": now + timedelta(seconds=seconds)}
    if not free.update(**values, fence=F("fence") + 1):
        if Lease.objects.filter(name=name).exists():
            return None
        try:
            with transaction.atomic():
                Lease.objects.create(name=name, fence=1, **values)
        except IntegrityError:
            return None  # somebody else made the row in this very moment, and holds it
    fence = Lease.objects.filter(name=name, owner=owner).values_list("fence", flat=True).first()
    return None if fence is None else Held(name, owner, fence)


@contextmanager
def lease(name: str, seconds: float) -> Iterator[Held | None]:
    """`with lease("poll:3", 60) as held:` — held is None when somebody else has it. Released at the end."""
    held = take(name, seconds)
    try:
        yield held
    finally:
        if held:
            held.release()
