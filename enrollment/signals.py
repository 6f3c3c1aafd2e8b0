"""What enrollment tells the world: a comment that may hold a command has been stored (sent after the commit)."""

from django.dispatch import Signal

#: Arguments: `comment_id`, the primary key.
comment_received = Signal()
