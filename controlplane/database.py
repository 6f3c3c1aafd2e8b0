"""Whether the database is usable: it responds, and all migrations are applied."""

from __future__ import annotations

from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor


class Unreachable(Exception):
    """The database does not respond. The message is one line."""


def missing() -> str:
    """Why the tables cannot be used; empty if all migrations are applied. Raises Unreachable."""
    try:
        executor = MigrationExecutor(connection)
        plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
    except DatabaseError as error:
        raise Unreachable(first_line(error)) from error
    if not executor.loader.applied_migrations:
        return "the database has no tables yet"
    return f"{len(plan)} migrations have not been applied to the database" if plan else ""


def first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
