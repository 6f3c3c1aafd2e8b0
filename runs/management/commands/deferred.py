"""`cc-ci deferred sync|list|close`: the registry of deferred tests."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Sequence
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from controlplane.cli import MISUSE, OURS, Exit
from controlplane.secrets import SecretUnreadable
from enrollment.forges.base import ForgeError
from enrollment.lookup import NotNamed
from infra.git.runner import GitError
from runs.deferred import registry
from runs.deferred.proof import NotProven
from runs.deferred.sources import SourceError, find_source
from runs.models import DeferredItem

_FOUND = "a file, a folder with a DEFERRED.md, or OWNER/REPO of an enrolled repository (with :PATH if the file is elsewhere)"


class Command(BaseCommand):
    help = "Read a DEFERRED.md, list its entries, and close those whose tests were ported."

    def add_arguments(self, parser: ArgumentParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
        sync = verbs.add_parser("sync", help="read a DEFERRED.md (repeatable)")
        sync.add_argument("source", metavar="SOURCE", help=_FOUND)
        sync.add_argument("--recipe", default="", help="NAME or OWNER/NAME: set the recipe of all its entries")
        sync.add_argument("--forge", default="", metavar="URL", help="the forge, if there are several")
        show = verbs.add_parser("list", help="list the entries")
        show.add_argument("--recipe", default="", help="NAME or OWNER/NAME: only entries of this recipe")
        show.add_argument("--open", action="store_true", dest="only_open", help="only open entries")
        show.add_argument("--json", action="store_true", help="print JSON")
        close = verbs.add_parser("close", help="close an entry with the commit that ported its test")
        close.add_argument("slug", metavar="SLUG", help="the entry (prefixed with its date if several have this slug)")
        close.add_argument("--commit", required=True, metavar="SHA", help="the commit of the recipe that ported the test")
        close.add_argument("--test", required=True, metavar="PATH", help="the extra test's file, such as extra/test_purge.py")
        close.add_argument("--source", default="", help="the file, as for sync, if several have this entry")
        close.add_argument("--recipe", default="", help="NAME or OWNER/NAME: set the entry's recipe")
        close.add_argument("--unproven", action="store_true", help="close it although no run has passed the test")
        close.add_argument("--forge", default="", metavar="URL", help="the forge, if there are several")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            {"sync": self.sync, "list": self.list, "close": self.close}[options["verb"]](options)
        except (registry.Refused, NotProven, SourceError, NotNamed) as error:
            raise CommandError(str(error), returncode=MISUSE) from error
        except (ForgeError, GitError, SecretUnreadable) as error:
            self.stderr.write(f"{error} {getattr(error, 'advice', '')}".strip())
            raise Exit(OURS) from error

    def sync(self, options: dict[str, Any]) -> None:
        source = find_source(options["source"], options["forge"])
        recipe = registry.find_recipe(options["recipe"]) if options["recipe"] else None
        result = registry.sync(source, recipe)
        for what in ("added", "changed", "closed", "reopened", "vanished", "returned"):
            for slug in getattr(result, what):
                self.stdout.write(f"{what}: {slug}")
        entries = "1 entry" if result.entries == 1 else f"{result.entries} entries"
        changes = "1 change" if result.changes == 1 else f"{result.changes} changes"
        self.stdout.write(f"{source.title}: {entries}, {changes}.")
        for problem in result.problems:
            self.stderr.write(f"Could not read {problem}")
        for remark in result.remarks:
            self.stderr.write(f"Note: {remark}")

    def list(self, options: dict[str, Any]) -> None:
        rows = list(registry.items(options["recipe"], options["only_open"]))
        if options["json"]:
            self.stdout.write(json.dumps([as_json(row) for row in rows], indent=1, ensure_ascii=False))
            return
        if not rows:
            self.stdout.write("No entries. Read those of a DEFERRED.md with `cc-ci deferred sync SOURCE`.")
            return
        self._table([("STATE", "FILED", "SLUG", "RECIPE", "BY"), *(_line(row) for row in rows)])

    def _table(self, lines: Sequence[tuple[str, ...]]) -> None:
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        for line in lines:
            self.stdout.write("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())

    def close(self, options: dict[str, Any]) -> None:
        source = find_source(options["source"], options["forge"]) if options["source"] else None
        item = registry.find_item(options["slug"], source)
        recipe = registry.find_recipe(options["recipe"]) if options["recipe"] else None
        done = registry.close(item, options["commit"], options["test"], unproven=options["unproven"], recipe=recipe)
        row = done.item
        proof = "without proof" if row.proof is None else f"proven by {row.proof.url}"
        guess = f" ({row.get_recipe_by_display()})" if row.guessed else ""
        recipe_name = row.recipe.full_name if row.recipe else ""
        say = self.stderr.write  # the patch alone is on standard output
        say(f"{row.slug} of {recipe_name}{guess} was closed by {row.closed_commit[:10]} ({row.closed_test}), {proof}.")
        if done.pull_url:
            say(f"Pull request that ticks its box: {done.pull_url}")
            return
        if done.written:
            say(f"Changed {done.written}:")
        else:
            say(f"cc-ci may not change {row.file_name}. Patch that ticks the box:")
        self._raw(done.patch)

    def _raw(self, data: bytes) -> None:
        """Write the patch unchanged, whatever bytes the file contains; as text if the output takes only text."""
        binary = getattr(getattr(self.stdout, "_out", None), "buffer", None)
        if binary is None:
            self.stdout.write(data.decode(errors="replace"), ending="")
            return
        self.stdout.flush()
        binary.write(data)
        binary.flush()


def _line(row: DeferredItem) -> tuple[str, ...]:
    recipe = f"{row.recipe_name}{' ?' if row.guessed else ''}" if row.recipe else "unknown"
    by = f"{row.closed_commit[:10]} {row.closed_test}".strip()
    if row.state == DeferredItem.State.CLOSED and not row.ticked:
        by = f"{by} (the box is still empty)".strip()
    if row.unproven:
        by = f"{by} (unproven)"
    state = f"{row.state}, removed from its file" if row.vanished_at else row.state
    return state, str(row.filed_on), row.slug, recipe, by


def as_json(row: DeferredItem) -> dict[str, Any]:
    """One entry for `--json`; times in UTC, unknown values as null."""
    return {
        "slug": row.slug,
        "filed_on": row.filed_on.isoformat(),
        "state": row.state,
        "ticked": row.ticked,
        "recipe": row.recipe.full_name if row.recipe else None,
        "recipe_by": row.recipe_by or None,
        "guess": row.guessed,
        "what": row.what,
        "filed_by": row.filed_by,
        "reason": row.why,
        "trigger": row.trigger,
        "linked": row.linked,
        "source": row.source,
        "line": row.line,
        "closed_at": row.closed_at.isoformat() if row.closed_at else None,
        "commit": row.closed_commit or None,
        "test": row.closed_test or None,
        "run": row.proof.url if row.proof else None,
        "unproven": row.unproven,
        "pull_request": row.pull_url or None,
        "vanished_at": row.vanished_at.isoformat() if row.vanished_at else None,
    }
