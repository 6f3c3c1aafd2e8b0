"""This installation's random name: marks everything that its runs deploy as its own."""

from __future__ import annotations

import uuid

from controlplane.models import Installation


def installation_id() -> str:
    """The name, created by the first call. Concurrent first calls agree: the lowest by time, then name, wins."""
    row = Installation.objects.order_by("created_at", "id").first()
    if row is None:
        Installation.objects.create(id=uuid.uuid4().hex[:12])
        row = Installation.objects.order_by("created_at", "id").first()
        assert row is not None
    return row.id
