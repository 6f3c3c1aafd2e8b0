"""Signals of enrollment: a comment that may contain a command was stored, a pull request's head moved."""

from django.dispatch import Signal

#: Sent after the commit. Arguments: `comment_id`, the primary key.
comment_received = Signal()

#: Sent within the transaction that stores the new head. Arguments: `pull`, the row.
head_moved = Signal()
