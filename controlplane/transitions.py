"""Tables of states: which event may lead from where to where, for every row that several processes may move at once.

A transition is one conditional UPDATE. When it changes no row, another process was first or the event means nothing in that
state, and the caller stops. What belongs to it (a line of the trail, a signal) is written in the same transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from django.core.exceptions import ObjectDoesNotExist
from django.db import transaction
from django.db.models import Model, Q

Row = TypeVar("Row", bound=Model)


@dataclass(frozen=True)
class Transitions(Generic[Row]):
    """`moves`: event -> (states it may come from, the state it leads to, whatever else the table says of it)."""

    model: type[Row]
    moves: Mapping[str, tuple[Any, ...]]

    def move(
        self,
        row: Row,
        event: str,
        fields: Mapping[str, Any],
        *,
        where: Q | None = None,
        then: Callable[[Row], object] = lambda row: None,
    ) -> bool:
        """Make the transition if the row is in one of its source states and is as `where` says; returns whether it was made.

        `fields` are set with the state. `then` runs in the same transaction. The row in hand is refreshed in either case.
        """
        sources: Collection[str] = self.moves[event][0]
        with transaction.atomic():
            rows = self.model._default_manager.filter(where or Q(), pk=row.pk, state__in=sources)
            moved = rows.update(state=self.moves[event][1], **fields)
            with suppress(ObjectDoesNotExist):
                row.refresh_from_db()
            if moved:
                then(row)
        return bool(moved)
