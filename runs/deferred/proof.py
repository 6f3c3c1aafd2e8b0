"""Proof from git and runs that a commit ported a deferred test."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

from enrollment.models import Repository
from infra.deployers.isolation import trees
from infra.git.runner import GitError
from runs.harness import extra_tests
from runs.harness.checkout import Checkout
from runs.harness.git import Git
from runs.harness.protocol import Source
from runs.models import CaseResult, TestRun

_SECONDS = 300
#: Maximum number of passed runs to check, newest first.
_MOST_RUNS = 200


class NotProven(Exception):
    """A condition for closing an entry is not met; the message says which, and what to do."""


class RecipeHistory:
    """The branches and tags of an enrolled recipe, in a temporary bare repository.

    Without commits of unmerged pull requests: they are not the recipe's.
    """

    def __init__(self, git: Git) -> None:
        self._git = git

    def commit(self, typed: str) -> str:
        """The commit with these digits. Raises NotProven if the recipe has none."""
        if not re.fullmatch(r"[0-9a-f]{7,40}", typed):
            raise NotProven(f"Invalid commit {typed!r}: give 7 to 40 hex digits.")
        try:
            return self._git.run("rev-parse", "--verify", "--quiet", f"{typed}^{{commit}}").strip()
        except GitError:
            raise NotProven(f"The recipe's branches and tags have no commit {typed}. Has its pull request been merged?") from None

    def touches(self, commit: str, path: str) -> bool:
        """Whether the commit adds or changes the file (for a merge: compared with the branch it was merged into)."""
        shown = ("--diff-merges=first-parent", "--name-only", "--no-renames", "--diff-filter=d", "--format=", "-z")
        listed = self._git.run("--literal-pathspecs", "show", *shown, commit, "--", path)
        return path in listed.strip("\n").split("\0")

    def extra_tests(self, commit: str, path: str) -> list[str]:
        """The names of the extra tests in a file at the commit."""
        with trees.temporary("cc-ci-deferred-") as folder:
            checkout = folder / "recipe"
            ref = self._git.run("for-each-ref", "--count=1", "--format=%(refname)", f"--contains={commit}").strip()
            Checkout(Source(url=str(self._git.folder), ref=ref, sha=commit), checkout, check=self._git.check).make()
            return [test.name for test in extra_tests.find(checkout) if test.file == path]

    def at_or_after(self, later: str, commit: str) -> bool:
        """Whether `later` is the commit itself or a descendant. False if the recipe does not have it."""
        if not re.fullmatch(r"[0-9a-f]{7,40}", later):
            return False
        try:
            return not self._git.run("rev-list", "--max-count=1", commit, f"^{later}").strip()
        except GitError:
            return False


@contextmanager
def history_of(recipe: Repository) -> Iterator[RecipeHistory]:
    """Fetch the branches and tags of a recipe. Raises GitError."""
    forge = recipe.forge
    credential = {}
    if recipe.private:
        credential = {"git_username": forge.bot_login or "cc-ci", "git_token": forge.reveal_token()}
    until = time.monotonic() + _SECONDS

    def check() -> None:
        if time.monotonic() > until:
            raise GitError(f"Could not fetch {recipe.full_name} within {_SECONDS} s.")

    with trees.temporary("cc-ci-deferred-") as folder:
        git = Git(folder, recipe.clone_url, credential, check)
        git.run("init", "--quiet", "--bare")
        # HEAD besides the patterns: no match for a pattern is not an error, so an HTML page would pass as an empty listing.
        git.fetch("+HEAD:refs/cc-ci/head", "+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
        yield RecipeHistory(git)


def check_commit(history: RecipeHistory, typed: str, test: str) -> str:
    """The full id of the commit, if it adds or changes that extra test. Raises NotProven."""
    commit = history.commit(typed)
    if not history.touches(commit, test):
        raise NotProven(
            f"The commit {commit[:10]} does not add or change {test}."
            " Give the commit that ported the test, and the test's path in the recipe."
        )
    if not history.extra_tests(commit, test):
        raise NotProven(
            f"{test} has no extra test at {commit[:10]}: it is not in a folder `extra`, and has no mark "
            "`@pytest.mark.extra` (see docs/write-tests.md)."
        )
    return commit


def proof_of(recipe: Repository, history: RecipeHistory, commit: str, test: str, kept: str = "") -> TestRun:
    """The newest run of the recipe in which the stage extra passed with this test, at the commit or later.

    `kept`: the path prefix of tests kept on the server; their commit is that of the server's test repository. Raises NotProven.
    """
    of_file = CaseResult.objects.filter(stage__name="extra", file=f"{kept}{test}", stage__run__repository=recipe)
    runs = TestRun.objects.filter(quick=False, pk__in=of_file.values("stage__run"))
    failed = ""
    for run in runs.order_by("-created_at")[:_MOST_RUNS]:
        if not history.at_or_after(str(run.details.get("kept", "")) if kept else run.sha, commit):
            continue
        # A partly failing file is not ported; a skipped test shows nothing.
        statuses = set(of_file.filter(stage__run=run).values_list("status", flat=True))
        whole = run.stage_results.filter(name="extra", status="passed").exists()
        if whole and "passed" in statuses and statuses <= {"passed", "skipped"}:
            return run
        failed = failed or f" The newest with the test, {run}, did not pass it: {run.url}"
    raise NotProven(
        f"No run with extra tests at {commit[:10]} or later passed {test}.{failed} Write `!testme --extra-tests` on a "
        "pull request that contains the commit, or run the default branch with extra tests in the admin. (--unproven "
        "closes the entry without a run.)"
    )
