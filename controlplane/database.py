"""Whether the database is usable: it responds, and all migrations are applied."""

from __future__ import annotations

from django.core.management.base import CommandError
from django.db import DatabaseError, connection, connections
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.loader import MigrationLoader

#: Migrations were made one file for each app on 2026-11-30; a database that had only some of the former ones fits neither.
BETWEEN = (
    "the database was last migrated by an older cc-ci: go back to the commit before this file came "
    "(git log --diff-filter=A -- runs/migrations/0001_tables.py), type cc-ci migrate there, and update again "
    "(a new database whose first cc-ci migrate was cut off: delete it, and begin again)"
)


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
    if between(executor.loader):
        return BETWEEN
    return f"{len(plan)} migrations have not been applied to the database" if plan else ""


def between(loader: MigrationLoader) -> bool:
    """Whether the database has some of the migrations that a file replaces: Django leaves out that file then, without a word."""
    files = loader.disk_migrations
    return any(
        migration.replaces and migration.replaces[0] not in files and key not in loader.graph.nodes
        for key, migration in files.items()
    )


def refuse_between(*, using: str, **_: object) -> None:
    """Before `cc-ci migrate` changes anything. Raises CommandError."""
    if between(MigrationLoader(connections[using])):
        raise CommandError(f"{BETWEEN[0].upper()}{BETWEEN[1:]}.")


def first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
