"""The registry of deferred tests: reads a `DEFERRED.md` into rows, and closes entries with proof.

The file's format is in `file_format`, its location in `sources`, what git and the runs prove in `proof`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from django.db import transaction
from django.db.models import Q, QuerySet
from django.utils import timezone

from controlplane import untrusted
from enrollment.forge_access.clients import client_for
from enrollment.models import Repository
from runs.deferred.file_format import CannotTick, Entry, Problem, decode, encode, parse, plain, ports, tick
from runs.deferred.proof import check_commit, history_of, proof_of
from runs.deferred.sources import Read, Source, may_push, offer, patch, read, write
from runs.harness.kept_tests import KEPT
from runs.harness.protocol import ExtraTest
from runs.models import DeferredItem, TestRun

State, RecipeBy = DeferredItem.State, DeferredItem.RecipeBy
#: Fields with the same name in `Entry` and `DeferredItem`.
_TEXTS = ("what", "filed_by", "why", "trigger", "linked")
_NOT_CLOSED: dict[str, Any] = {"closed_at": None, "closed_commit": "", "closed_test": "", "proof": None, "unproven": False}


class Refused(Exception):
    """The request cannot be met; the message says why, and what to do."""


# --- taking over


@dataclass
class Synced:
    """The result of reading a file: slugs by what happened to them, problems and remarks."""

    entries: int = 0
    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    reopened: list[str] = field(default_factory=list)
    vanished: list[str] = field(default_factory=list)
    returned: list[str] = field(default_factory=list)
    problems: Sequence[Problem] = ()
    remarks: list[Problem] = field(default_factory=list)

    @property
    def changes(self) -> int:
        """The number of changed rows."""
        return len({*self.added, *self.changed, *self.closed, *self.reopened, *self.vanished, *self.returned})


def sync(source: Source, recipe: Repository | None = None) -> Synced:
    """Read a file's entries into rows. Repeating it changes nothing. `recipe` sets the recipe of all entries.

    Never deletes rows: an entry gone from its file is marked so, unless lines could not be read, since it may be one of them.
    Raises SourceError and ForgeError; then nothing is changed.
    """
    document = parse(decode(read(source).data))
    result = Synced(entries=len(document.entries), problems=document.problems, remarks=list(document.remarks))
    recipes = list(Repository.objects.filter(active=True))
    with transaction.atomic():
        rows = {(row.filed_on, row.slug): row for row in _rows_of(source).select_for_update(of=("self",))}
        for entry in document.entries:
            _take(source, entry, rows.get(entry.key), recipe, recipes, result)
        missing = [row for key, row in rows.items() if key not in {e.key for e in document.entries} and not row.vanished_at]
        if not document.problems:
            for row in missing:
                _change(row, {"vanished_at": timezone.now()})
                result.vanished.append(row.slug)
        elif missing:
            names = ", ".join(row.slug for row in missing)
            result.remarks.append(Problem(missing[0].line, f"no longer found, or not readable: {names}; left unchanged."))
    return result


def _rows_of(source: Source) -> QuerySet[DeferredItem]:
    rows = DeferredItem.objects.select_related("recipe")
    if source.repository is None:
        return rows.filter(source=source.name, source_repository=None)
    return rows.filter(source_repository=source.repository, source_path=source.path)  # by its id: it may have been renamed


def _take(
    source: Source, entry: Entry, row: DeferredItem | None, recipe: Repository | None, recipes: list[Repository], result: Synced
) -> None:
    wanted: dict[str, Any] = {name: getattr(entry, name) for name in _TEXTS}
    wanted |= {"source": source.name, "vanished_at": None}
    if recipe:
        wanted |= {"recipe": recipe, "recipe_by": RecipeBy.HAND}
    elif row is None or row.recipe_by != RecipeBy.HAND:
        found, by, remark = _recipe_of(entry, source, recipes)
        if remark and (row is None or row.recipe is None):
            result.remarks.append(Problem(entry.line, f"{entry.slug}: {remark}"))
        if found:
            wanted |= {"recipe": found, "recipe_by": by}
    if row is None:
        row = DeferredItem(slug=entry.slug, filed_on=entry.filed_on, line=entry.line, source_repository=source.repository)
        row.source_path = source.path if source.repository else ""
        for name, value in {**wanted, **_closing(entry), "synced_at": timezone.now()}.items():
            setattr(row, name, value)
        row.save()
        result.added.append(entry.slug)
        return
    if row.line != entry.line:  # something was added above: the entry itself is unchanged
        DeferredItem.objects.filter(pk=row.pk).update(line=entry.line)
    if row.vanished_at:
        result.returned.append(entry.slug)
    changes = {name: value for name, value in wanted.items() if getattr(row, name) != value}
    if changes:
        _change(row, changes)
        if changes.keys() - {"vanished_at"}:
            result.changed.append(entry.slug)
    _follow_box(entry, row, result)


def _closing(entry: Entry) -> dict[str, Any]:
    if not entry.ticked:
        return {"state": State.OPEN, "ticked": False}
    return {
        "state": State.CLOSED,
        "ticked": True,
        "closed_at": timezone.now(),
        "closed_commit": entry.closed_commit,
        "closed_test": entry.closed_test[:500],
    }


def _follow_box(entry: Entry, row: DeferredItem, result: Synced) -> None:
    """The box decides: for open rows, and for rows whose box was ticked before and no longer is."""
    this = DeferredItem.objects.filter(pk=row.pk)
    now = {"synced_at": timezone.now()}
    if entry.ticked and row.state == State.OPEN:
        if this.filter(state=State.OPEN).update(**_closing(entry), **now):
            result.closed.append(entry.slug)
    elif entry.ticked and not row.ticked:  # what we asked for was merged
        this.update(ticked=True, **now)
        result.changed.append(entry.slug)
    elif (
        not entry.ticked
        and row.ticked
        and this.filter(ticked=True).update(state=State.OPEN, ticked=False, pull_url="", **_NOT_CLOSED, **now)
    ):
        result.reopened.append(entry.slug)


def _change(row: DeferredItem, changes: dict[str, Any]) -> None:
    DeferredItem.objects.filter(pk=row.pk).update(**changes, synced_at=timezone.now())


# --- whose they are


def guess_recipe(slug: str, what: str, names: Iterable[str]) -> tuple[str, str, list[str]]:
    """The recipe of an entry, among `known`: its name, how it was guessed, and the names if several are possible. Pure.

    The longest name that the slug starts with; otherwise the only one that occurs in *What* as a separate word.
    """
    known = sorted(set(names), key=lambda name: (-len(name), name))
    for name in known:
        if plain(name) and f"{plain(slug)}-".startswith(f"{plain(name)}-"):
            return name, RecipeBy.SLUG, []
    inside = [name for name in known if re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", what, re.IGNORECASE)]
    if len(inside) == 1:
        return inside[0], RecipeBy.WHAT, []
    return "", RecipeBy.NOBODY, inside


def _recipe_of(entry: Entry, source: Source, recipes: list[Repository]) -> tuple[Repository | None, str, str]:
    name, by, several = guess_recipe(entry.slug, entry.what, [row.name for row in recipes])
    if not name:
        message = f"What names several recipes ({', '.join(several)})" if several else "it names no enrolled recipe"
        return None, by, f"{message}; set it with `--recipe NAME`."
    rows = [row for row in recipes if row.name == name]
    home = source.repository
    near = [row for row in rows if home and (row.forge_id, row.owner) == (home.forge_id, home.owner)] or rows
    if len(near) > 1:
        names = ", ".join(row.full_name for row in near)
        return None, RecipeBy.NOBODY, f"several repositories have this name ({names}); add `--recipe OWNER/NAME`."
    return near[0], by, ""


def find_recipe(typed: str) -> Repository:
    """The enrolled recipe named NAME or OWNER/NAME. Raises Refused."""
    owner, _, name = typed.strip("/").rpartition("/")
    rows = Repository.objects.filter(active=True, name__iexact=name)
    if owner:
        rows = rows.filter(owner__iexact=owner)
    found = list(rows[:5])
    if not found:
        raise Refused(f"No recipe named {typed} is enrolled. `cc-ci list` shows them, `cc-ci enroll OWNER/REPO` adds one.")
    if len(found) > 1:
        raise Refused(f"Several recipes are named {typed}; give one of {', '.join(row.full_name for row in found)}.")
    return found[0]


# --- what is asked


def items(recipe: str = "", only_open: bool = False) -> QuerySet[DeferredItem]:
    """The entries, newest first; optionally only of one recipe (NAME or OWNER/NAME), or only open ones."""
    rows = DeferredItem.objects.select_related("recipe__forge", "source_repository", "proof")
    if recipe:
        owner, _, name = recipe.strip("/").rpartition("/")
        rows = rows.filter(recipe__name__iexact=name, **({"recipe__owner__iexact": owner} if owner else {}))
    return rows.filter(state=State.OPEN) if only_open else rows


def public(rows: QuerySet[DeferredItem], seen: Collection[int] = ()) -> QuerySet[DeferredItem]:
    """The entries that anybody may see (`DeferredItem.private` as a query), or somebody who sees these private repositories."""
    lost = ~Q(source_path="") & Q(source_repository=None)
    hidden = Repository.objects.filter(private=True).exclude(pk__in=seen)
    return rows.exclude(lost).exclude(recipe__in=hidden).exclude(source_repository__in=hidden)


def would_close(recipe_name: str, extra_tests: Sequence[ExtraTest], changed: Sequence[str]) -> list[str]:
    """The slugs of a recipe's open entries (NAME or OWNER/NAME) that a pull request ports: it changes the file of an extra test
    whose file or function contains the entry's name. Leaves out private entries.
    """
    touched = set(changed)
    tests = [test for test in extra_tests if test.file in touched]
    if not tests:
        return []
    rows = items(recipe_name, only_open=True).filter(vanished_at=None)
    return [
        row.slug
        for row in rows.filter(Q(pk__in=public(rows)) | Q(recipe__private=True))
        if row.recipe and any(ports(row.slug, row.recipe.name, test.file, test.name) for test in tests)
    ]


# --- closing


@dataclass(frozen=True)
class Closed:
    """An entry that was closed, and where its box is ticked: in the file, in a pull request, or only in the patch."""

    item: DeferredItem
    patch: bytes = b""
    written: str = ""  #: the local file that was changed
    pull_url: str = ""


def find_item(slug: str, source: Source | None = None) -> DeferredItem:
    """The entry with this slug; `YYYY-MM-DD-slug` if several dates have one. Raises Refused."""
    rows = _rows_of(source) if source else DeferredItem.objects.all()
    found = list(rows.filter(slug=slug))
    if not found and (dated := re.fullmatch(r"(\d{4}-\d\d-\d\d)-(.+)", slug)):
        try:
            found = list(rows.filter(filed_on=date.fromisoformat(dated[1]), slug=dated[2]))
        except ValueError:
            pass
    if not found:
        raise Refused(f"There is no entry {slug}. `cc-ci deferred list` shows them, `cc-ci deferred sync SOURCE` reads new ones.")
    if len(found) > 1:
        if len({row.source for row in found}) > 1:
            named = ", ".join(sorted({row.file_name for row in found}))
            raise Refused(f"Several files have an entry {slug}: add --source with one of {named}.")
        named = " or ".join(f"{row.filed_on}-{row.slug}" for row in found)
        raise Refused(f"Several entries are named {slug}: write {named}.")
    return DeferredItem.objects.select_related("recipe__forge", "source_repository__forge").get(pk=found[0].pk)


def source_of(item: DeferredItem) -> Source:
    """The file that an entry was read from. Raises Refused if its repository is gone."""
    if item.source_path and item.source_repository is None:
        raise Refused(f"The repository of {item.source} is no longer enrolled: enroll it, and sync it again.")
    return Source(item.source_path or item.source, item.source_repository)


def close(item: DeferredItem, commit: str, test: str, *, unproven: bool = False, recipe: Repository | None = None) -> Closed:
    """Close an entry: `commit` of its recipe ported it as the extra test in the file `test`, and a run shows that it passes.

    Ticks the box: in a local file, or with a pull request if our token may push; otherwise only the patch is returned. May be
    repeated after a failure; the row is changed once. Raises Refused and NotProven before anything is changed, and SourceError,
    ForgeError and GitError at any time.
    """
    recipe = recipe or item.recipe
    if recipe is None:
        raise Refused(f"The recipe of {item.slug} is unknown: add --recipe NAME.")
    test = test.removeprefix("./").strip("/")
    home, where = _home_of(recipe, test)
    with history_of(home) as history:
        sha = check_commit(history, commit, test)
        proof = None if unproven else proof_of(recipe, history, sha, test, where)
    if item.state == State.CLOSED and (item.ticked or (item.closed_commit, item.closed_test) != (sha, test)):
        raise Refused(_closed_already(item))
    source = source_of(item)
    old = read(source)
    try:
        new = encode(tick(decode(old.data), (item.filed_on, item.slug), sha, test))
    except CannotTick as problem:
        raise Refused(f"{problem} Run: cc-ci deferred sync {source.title}") from problem
    _claim(item, recipe, sha, test, proof)
    return _deliver(item, source, old, new)


def _home_of(recipe: Repository, test: str) -> tuple[Repository, str]:
    """The repository that has the test, and its path's prefix in results.

    It is the recipe's own, or the one with the tests kept on the server for it.
    """
    tests = recipe.forge.tests_repository
    if tests and test.startswith(f"tests/{recipe.name}/"):
        return tests, KEPT
    return recipe, ""


def _claim(item: DeferredItem, recipe: Repository, commit: str, test: str, proof: TestRun | None) -> None:
    """Move the row from open to closed, once, even with concurrent calls."""
    values: dict[str, Any] = {"closed_commit": commit, "closed_test": test, "proof": proof, "unproven": proof is None}
    if recipe != item.recipe:
        values |= {"recipe": recipe, "recipe_by": RecipeBy.HAND}
    this = DeferredItem.objects.filter(pk=item.pk)
    this.filter(state=State.OPEN).update(state=State.CLOSED, closed_at=timezone.now(), **values)
    item.refresh_from_db()
    if (item.closed_commit, item.closed_test) != (commit, test):
        raise Refused(_closed_already(item))


def _closed_already(item: DeferredItem) -> str:
    by = f" by {item.closed_commit[:10]} ({item.closed_test or 'no test named'})" if item.closed_commit else ""
    return f"{item.slug} is already closed{by}."


def _deliver(item: DeferredItem, source: Source, old: Read, new: bytes) -> Closed:
    this = DeferredItem.objects.filter(pk=item.pk)
    if source.repository is None:
        made = patch(source.path.rpartition("/")[2], old.data, new)
        written = write(source, new)
        if written:
            this.update(ticked=True)
        return Closed(item, made, source.path if written else "")
    made = patch(source.path, old.data, new)
    client = client_for(source.repository.forge)
    if not old.remote or not may_push(client, source.repository):
        return Closed(item, made)
    slug = item.slug.replace("`", "'")
    body = f"`{untrusted.commit(item.closed_commit)}` ported it as the extra test {untrusted.code(item.closed_test)}."
    if item.proof:
        body += f" [This run]({item.proof.url}) passed it."
    title = untrusted.plain(f"Close the deferred test {slug}", 200)
    url = offer(client, source, old.remote, new, slug=slug, title=title, body=body)
    this.update(pull_url=url[:500])
    return Closed(item, made, pull_url=url)


def reopen(rows: QuerySet[DeferredItem]) -> int:
    """Reopen rows closed here but not ticked in their file, as after a refused pull request. Returns how many."""
    return rows.filter(state=State.CLOSED, ticked=False).update(state=State.OPEN, pull_url="", **_NOT_CLOSED)
