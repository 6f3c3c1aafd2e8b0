"""Signal: a comment that may contain a command was stored (sent after the commit)."""

from django.dispatch import Signal

#: Arguments: `comment_id`, the primary key.
comment_received = Signal()
