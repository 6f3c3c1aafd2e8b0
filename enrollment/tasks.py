"""Recurring tasks: look at the forges, find repositories by topic."""

from __future__ import annotations

import logging

from enrollment import polling
from enrollment.models import Forge

log = logging.getLogger(__name__)


def poll() -> str:
    """Look at every forge once. One that fails holds up no other, also when the fault is ours."""
    words: list[str] = []
    faults: list[Exception] = []
    for forge in Forge.objects.filter(enabled=True):
        try:
            words.append(polling.look(forge).words())
        except Exception as error:
            log.exception("%s: looking failed", forge.name)
            faults.append(error)
    if faults:
        raise faults[0]
    return "; ".join(words) or "no forge"


def find_by_topic() -> str:
    """Enrol the repositories that carry the topic."""
    lines: list[str] = []
    for forge in Forge.objects.filter(enabled=True):
        lines += polling.look_for_topics(forge)
    return "; ".join(lines) or "nothing new"
