"""Queues each comment that enrollment stores."""

from __future__ import annotations

from django_q.tasks import async_task


def on_comment(sender: object, comment_id: int, **kwargs: object) -> None:
    async_task("runs.tasks.handle_comment", comment_id)
