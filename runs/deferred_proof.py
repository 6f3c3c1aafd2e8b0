"""What git and the runs say about a commit that is told to have ported a deferred test."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

from enrollment.models import Repository
from infra.deployers import trees
from runs.harness import extras
from runs.harness.checkout import Checkout
from runs.harness.git import CheckoutError, Git
from runs.harness.protocol import Source
from runs.models import CaseResult, TestRun

_SECONDS = 300
#: Of the runs that passed the test, so many are looked at, the newest first.
_MOST_RUNS = 200


class NotProven(Exception):
    """Something that closing an entry asks for is not so; the message says what, and what to do."""


class RecipeHistory:
    """The branches and tags of an enrolled recipe, in a bare repository that goes with the block it is made in.

    Commits of pull requests that were not merged are not in it: they are not the recipe's.
    """

    def __init__(self, git: Git) -> None:
        self._git = git

    def commit(self, typed: str) -> str:
        """The commit of these digits. Raises NotProven when the recipe has none."""
        if not re.fullmatch(r"[0-9a-f]{7,40}", typed):
            raise NotProven(f"{typed!r} is no commit: give 7 to 40 hex digits.")
        try:
            return self._git.run("rev-parse", "--verify", "--quiet", f"{typed}^{{commit}}").strip()
        except CheckoutError:
            raise NotProven(f"The recipe's branches and tags have no commit {typed}. Is its pull request merged?") from None

    def touches(self, commit: str, path: str) -> bool:
        """Whether the commit adds or changes the file (for a merge: against the branch that it was merged into)."""
        shown = ("--diff-merges=first-parent", "--name-only", "--no-renames", "--diff-filter=d", "--format=", "-z")
        listed = self._git.run("--literal-pathspecs", "show", *shown, commit, "--", path)
        return path in listed.strip("\n").split("\0")

    def extra_tests(self, commit: str, path: str) -> list[str]:
        """The names of the extra tests in a file, as it was at the commit."""
        with trees.temporary("cc-ci-deferred-") as folder:
            checkout = folder / "recipe"
            ref = self._git.run("for-each-ref", "--count=1", "--format=%(refname)", f"--contains={commit}").strip()
            Checkout(Source(url=str(self._git.folder), ref=ref, sha=commit), checkout, check=self._git.check).make()
            return [test.name for test in extras.find(checkout) if test.file == path]

    def at_or_after(self, later: str, commit: str) -> bool:
        """Whether `later` is the commit itself or comes after it. Never for one that the recipe does not have."""
        try:
            return not self._git.run("rev-list", "--max-count=1", commit, f"^{later}").strip()
        except CheckoutError:
            return False


@contextmanager
def history_of(recipe: Repository) -> Iterator[RecipeHistory]:
    """Fetch the branches and tags of a recipe. Raises CheckoutError."""
    forge = recipe.forge
    credential = {}
    if recipe.private:
        credential = {"git_username": forge.bot_login or "cc-ci", "git_token": forge.reveal_token()}
    until = time.monotonic() + _SECONDS

    def check() -> None:
        if time.monotonic() > until:
            raise CheckoutError(f"{recipe.full_name} could not be fetched within {_SECONDS} s.")

    with trees.temporary("cc-ci-deferred-") as folder:
        git = Git(folder, recipe.clone_url, credential, check)
        git.run("init", "--quiet", "--bare")
        git.run("fetch", "--quiet", "--no-tags", "--", git.remote, "+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
        yield RecipeHistory(git)


def check_commit(history: RecipeHistory, typed: str, test: str) -> str:
    """The whole id of the commit, when it adds or changes that extra test. Raises NotProven."""
    commit = history.commit(typed)
    if not history.touches(commit, test):
        raise NotProven(
            f"The commit {commit[:10]} does not add or change {test}."
            " Give the commit that ported the test, and the test's path in the recipe."
        )
    if not history.extra_tests(commit, test):
        raise NotProven(
            f"{test} has no extra test at {commit[:10]}: it lies in no folder `extra`, and has no mark `@pytest.mark.extra`"
            " (see docs/write-tests.md)."
        )
    return commit


def proof_of(recipe: Repository, history: RecipeHistory, commit: str, test: str) -> TestRun:
    """The newest run at or after the commit whose stage extra passed, with this test in it. Raises NotProven."""
    of_file = CaseResult.objects.filter(stage__name="extra", file=test, stage__run__repository=recipe)
    runs = TestRun.objects.filter(pk__in=of_file.values("stage__run"))
    failed = ""
    for run in runs.order_by("-created_at")[:_MOST_RUNS]:
        if not history.at_or_after(run.sha, commit):
            continue
        # The file of a test that only fails half is not ported; one that was skipped shows nothing.
        statuses = set(of_file.filter(stage__run=run).values_list("status", flat=True))
        whole = run.stage_results.filter(name="extra", status="passed").exists()
        if whole and "passed" in statuses and statuses <= {"passed", "skipped"}:
            return run
        failed = failed or f" The newest that had it, {run}, did not pass it: {run.url}"
    raise NotProven(
        f"No run with extra tests at {commit[:10]} or after it passed {test}.{failed}"
        " Write `!testme --extra-tests` on a pull request that holds it, or run the default branch with extra tests in the admin."
        " (--unproven closes the entry without.)"
    )
