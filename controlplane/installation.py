"""The random name of this installation: the owner's mark on everything that its runs deploy."""

from __future__ import annotations

import uuid

from controlplane.models import Installation


def installation_id() -> str:
    """The name, made at the first call. Two first calls at one moment agree: the lowest by time, then name, counts."""
    row = Installation.objects.order_by("created_at", "id").first()
    if row is None:
        Installation.objects.create(id=uuid.uuid4().hex[:12])
        row = Installation.objects.order_by("created_at", "id").first()
        assert row is not None
    return row.id
