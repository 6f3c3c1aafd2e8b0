"""Deletes a forge or a repository with all that belongs to it, a little at a time: a year of runs is too much for one request.

`removal_at` of the row is the state, and only this module sets it. Whoever dies in between leaves less to delete, and the row
itself goes last. `runs` offers `delete_runs`, which ends and deletes a repository's runs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from django.contrib.auth.models import User
from django.db import models, transaction
from django.utils import timezone

from controlplane.leases import lease
from controlplane.registry import registry
from enrollment.models import Delivery, Forge, Repository, WebhookConfig

#: Rows of one table that are deleted in one transaction, and seconds of one task.
BATCH, SECONDS = 200, 20
#: Counting for people goes no further.
COUNTED = 10_000


def begin(row: Forge | Repository) -> bool:
    """Watch it no longer, and delete it bit by bit. False if that was begun already."""
    off: dict[str, Any] = {"enabled": False} if isinstance(row, Forge) else {"active": False, "source": Repository.Source.HAND}
    return bool(type(row)._default_manager.filter(pk=row.pk, removal_at=None).update(removal_at=timezone.now(), **off))


def belongings(row: Forge | Repository) -> list[tuple[str, str]]:
    """What would be deleted, for people: (name, number), the largest tables counted up to COUNTED."""
    found = []
    for relation in _relations(Repository):
        path = relation.field.name if isinstance(row, Repository) else f"{relation.field.name}__forge"
        found.append((relation.related_model, relation.related_model._base_manager.filter(**{path: row})))
    if isinstance(row, Forge):
        found.insert(0, (Repository, row.repositories.all()))
    counted = [(model, rows.order_by()[: COUNTED + 1].count()) for model, rows in found]
    return [
        (str(model._meta.verbose_name_plural if number != 1 else model._meta.verbose_name), _bounded(number))
        for model, number in counted
        if number
    ]


def _bounded(number: int) -> str:
    return f"more than {COUNTED}" if number > COUNTED else str(number)


def step(seconds: float = SECONDS) -> str:
    """Delete what can be deleted in this time. A recurring task; one process at a time does it."""
    with lease("removal", 3 * seconds + 60) as held:
        if held is None:
            return "another process deletes"
        until = time.monotonic() + seconds
        done = list(_some(until))
    return f"deleted {', '.join(done)}" if done else "nothing finished"


def _some(until: float) -> Iterator[str]:
    for row in Repository.objects.exclude(removal_at=None):
        if _empty(row, until):
            row.delete()
            yield str(row)
    for forge in Forge.objects.exclude(removal_at=None):
        if _empty_forge(forge, until):
            forge.delete()
            yield str(forge)


def _empty_forge(forge: Forge, until: float) -> bool:
    # Deliveries first: they refer to repositories without an index.
    if not _shrink(Delivery._base_manager.filter(forge=forge), until):
        return False
    for row in forge.repositories.all():
        if not _empty(row, until):
            return False
        row.delete()
    # An account that only the forge could open is of no use without it.
    if not _shrink(User.objects.filter(forge_account__forge=forge, is_staff=False, is_superuser=False), until):
        return False
    return all(_shrink(rows, until) for rows in _rows_of(forge))


def _empty(row: Repository, until: float) -> bool:
    """Delete what belongs to a repository; whether nothing is left but what goes with the row itself."""
    left = True
    while left:
        deleted, left = registry.ask("delete_runs", row.pk, default=(0, False))
        if left and (not deleted or time.monotonic() > until):
            return False
    return all(_shrink(rows, until) for rows in _rows_of(row))


def _rows_of(row: models.Model) -> Iterator[Any]:
    for relation in _relations(type(row)):
        # Hooks go with the row, which leaves behind what is still to be deleted at the forge.
        if relation.related_model is not WebhookConfig:
            yield relation.related_model._base_manager.filter(**{relation.field.name: row})


def _relations(model: type[models.Model]) -> list[Any]:
    """The tables whose rows go when a row of the model goes; a person counts them, too."""
    found = [one for one in model._meta.related_objects if getattr(one, "on_delete", None) is models.CASCADE]
    return [one for one in found if one.related_model is not Repository]


def _shrink(rows: Any, until: float) -> bool:
    """Delete rows until the time is over; whether none is left."""
    while keys := list(rows.order_by("pk").values_list("pk", flat=True)[:BATCH]):
        with transaction.atomic():
            rows.model._base_manager.filter(pk__in=keys).delete()
        if time.monotonic() > until:
            return False
    return True
