"""The part of the store with issues, pull requests, comments, reactions and commit statuses."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from enrollment.fakeforge import git
from enrollment.fakeforge.features import Features
from enrollment.fakeforge.model import Comment, Issue, Pull, Reaction, Repo, Status, User
from enrollment.fakeforge.tables import Tables


@dataclass(frozen=True)
class Event:
    """An event for listeners: a comment was `created`, `edited` (from `old_body`) or `deleted`, or a pull request
    `reviewed`, and by whom.
    """

    action: str
    issue: Issue
    comment: Comment
    sender: User
    old_body: str = ""


class IssueStore:
    """The issue operations of `Forge`. A mixin, not to be used alone."""

    lock: threading.RLock
    tables: Tables
    features: Features
    listeners: list[Callable[[Event], None]]

    if TYPE_CHECKING:  # provided by the other half

        def changing(self) -> AbstractContextManager[Tables]: ...
        def now(self) -> datetime: ...
        def user(self, user: User | str) -> User: ...
        def repo(self, repo: Repo | str) -> Repo: ...
        def folder(self, repo: Repo) -> Path: ...
        def pushed(self, repo: Repo, user: User) -> None: ...

    # Issues and pull requests

    def open_issue(self, repo: Repo | str, user: User | str, title: str, body: str = "") -> Issue:
        """Open a plain issue."""
        with self.changing() as tables:
            row, now = self.repo(repo), self.now()
            issue = Issue(tables.next_id("issues"), row.id, self._number(row), self.user(user).id, title, body, now, now)
            tables.issues[issue.id] = issue
            return issue

    def open_pull(
        self,
        base: Repo | str,
        head: Repo | str,
        branch: str,
        user: User | str,
        title: str = "",
        body: str = "",
        base_branch: str = "main",
    ) -> Pull:
        """Open a pull request from a branch of `head` into `base`; `base` has its commit at once as refs/pull/N/head.

        Raises git.GitError if one of the branches does not exist.
        """
        with self.changing():
            row, source = self.repo(base), self.repo(head)
            number = self._number(row)
            sha = self._fetch_head(row, source, branch, number)
            return self._add_pull(row, number, user, title or f"Merge {branch}", body, source, branch, sha, base_branch)

    def _add_pull(
        self,
        base: Repo,
        number: int,
        user: User | str,
        title: str,
        body: str,
        head: Repo,
        branch: str,
        sha: str,
        base_branch: str,
        agit: bool = False,
    ) -> Pull:
        tables, now = self.tables, self.now()
        base_sha = git.resolve(self.folder(base), f"refs/heads/{base_branch}")
        if not base_sha:
            raise git.GitError(f"{base.full_name} has no branch {base_branch}")
        merge_base, commits = git.since(self.folder(base), base_sha, sha)
        pull = Pull(
            id=tables.next_id("issues"),
            repo_id=base.id,
            number=number,
            user_id=self.user(user).id,
            title=title,
            body=body,
            created=now,
            updated=now,
            pull_id=tables.next_id("pulls"),
            head_repo_id=head.id,
            head_branch=branch,
            head_sha=sha,
            base_branch=base_branch,
            base_sha=base_sha,
            merge_base=merge_base,
            agit=agit,
        )
        tables.issues[pull.id] = pull
        if commits:
            self._pushed_to(pull, user, commits)
        return pull

    def push_for_review(
        self,
        repo: Repo | str,
        user: User | str,
        topic: str,
        files: git.Files,
    ) -> Pull:
        """Commit the files and do what `git push origin HEAD:refs/for/main -o topic=…` does (AGit): open a pull request without
        branch or fork, or update the one opened with this login and topic. Read permission is enough.
        """
        with self.changing() as tables:
            row, pusher = self.repo(repo), self.user(user)
            if not self.features.agit:
                raise git.GitError("refs/for is not taken here")
            # By login, not by user id; a topic that already begins with the login stays unchanged.
            prefix = f"{pusher.login.lower()}/"
            branch = topic if topic.startswith(prefix) else prefix + topic
            folder = self.folder(row)
            rows = [pull for pull in tables.issues.values() if isinstance(pull, Pull) and pull.repo_id == row.id and pull.agit]
            pull = next((pull for pull in rows if pull.state == "open" and pull.head_branch == branch), None)
            on = pull.head_sha if pull else git.resolve(folder, "refs/heads/main")
            sha = git.commit(folder, "", files, "Change", pusher.login, self.now(), on=on)
            number = pull.number if pull else self._number(row)
            git.point(folder, f"refs/pull/{number}/head", sha)
            if pull is None:
                return self._add_pull(row, number, pusher, "Change", "", row, branch, sha, "main", agit=True)
            self._moved(pull, sha, pusher)
            return pull

    def close_pull(self, pull: Issue, user: User | str = "") -> None:
        """Close an issue or pull request without merging."""
        with self.changing():
            pull.closed = pull.updated = self.now()
            self._entry(pull, user, "close")

    def reopen_pull(self, pull: Issue, user: User | str = "") -> None:
        """Reopen an issue or pull request; a pull request picks up what was pushed meanwhile, without an entry in its
        timeline.
        """
        with self.changing():
            pull.closed, pull.updated = None, self.now()
            self._entry(pull, user, "reopen")
            if isinstance(pull, Pull):
                self._follow_head(pull)

    def merge_pull(self, pull: Pull, user: User | str = "") -> str:
        """Merge a pull request with a merge commit on its base branch and return that commit's SHA.

        Raises git.GitError if the two do not merge cleanly.
        """
        with self.changing() as tables:
            repo = tables.repos[pull.repo_id]
            merger, now, folder = self.user(user or repo.owner), self.now(), self.folder(repo)
            tree = git.text(folder, "merge-tree", "--write-tree", pull.base_sha, pull.head_sha)
            who = ("-c", f"user.name={merger.login}", "-c", f"user.email={merger.login}@example.org")
            message = f"Merge pull request #{pull.number}: {pull.title}"
            parents = ("-p", pull.base_sha, "-p", pull.head_sha)
            pull.merge_sha = git.text(folder, *who, "commit-tree", tree, *parents, "-m", message)
            git.git(folder, "update-ref", f"refs/heads/{pull.base_branch}", pull.merge_sha)
            pull.merged = pull.closed = pull.updated = now
            pull.merged_by = merger.id
            self._entry(pull, merger, "merge_pull")
            self.pushed(repo, merger)
            return pull.merge_sha

    def issue(self, repo: Repo | str, number: int) -> Issue:
        """An issue or pull request by its number. Raises LookupError."""
        with self.lock:
            row = self.repo(repo)
            for issue in self.tables.issues.values():
                if issue.repo_id == row.id and issue.number == number:
                    return issue
        raise LookupError(f"no issue {number} in {row.full_name}")

    def pull(self, repo: Repo | str, number: int) -> Pull:
        """A pull request by its number. Raises LookupError, also for a plain issue."""
        issue = self.issue(repo, number)
        if not isinstance(issue, Pull):
            raise LookupError(f"{number} is not a pull request")
        return issue

    def _number(self, repo: Repo) -> int:
        return self.tables.next_id(f"numbers of {repo.id}")

    def _fetch_head(self, base: Repo, head: Repo, branch: str, number: int) -> str:
        source, target = f"refs/heads/{branch}", f"refs/pull/{number}/head"
        tip = git.resolve(self.folder(head), source)
        if base == head and tip:
            git.point(self.folder(base), target, tip)
        else:
            command = ("fetch", "--quiet", "--no-tags", str(self.folder(head)), f"+{source}:{target}")
            git.git(self.folder(base), *command)
        return tip

    def _follow_head(self, pull: Pull, pusher: User | None = None) -> None:
        if pull.agit:
            return
        base, head = self.tables.repos[pull.repo_id], self.tables.repos.get(pull.head_repo_id)
        tip = git.resolve(self.folder(head), f"refs/heads/{pull.head_branch}") if head else ""
        if not head or tip in ("", pull.head_sha):
            return
        self._moved(pull, self._fetch_head(base, head, pull.head_branch, pull.number), pusher)

    def _moved(self, pull: Pull, sha: str, pusher: User | None) -> None:
        base = self.tables.repos[pull.repo_id]
        old, pull.head_sha = pull.head_sha, sha
        pull.merge_base, _ = git.since(self.folder(base), pull.base_sha, pull.head_sha)
        pull.updated = self.now()
        if pusher is None:
            return
        common, commits = git.since(self.folder(base), old, pull.head_sha)
        forced = common != old
        self._pushed_to(pull, pusher, [old, pull.head_sha] if forced else commits, forced)

    def _pushed_to(self, pull: Pull, user: User | str, commits: list[str], forced: bool = False) -> None:
        self._entry(pull, user, "pull_push", json.dumps({"is_force_push": forced, "commit_ids": commits}))

    def _entry(self, issue: Issue, user: User | str, kind: str, body: str = "") -> Comment:
        now = self.now()
        author = self.user(user).id if user else issue.user_id
        entry = Comment(self.tables.next_id("comments"), issue.repo_id, issue.id, author, body, now, now, kind)
        self.tables.comments[entry.id] = entry
        return entry

    # Comments

    def comment(
        self,
        repo: Repo | str,
        number: int,
        user: User | str,
        body: str,
        *,
        created: datetime | None = None,
        visible_after: float = 0.0,
    ) -> Comment:
        """Comment on an issue or pull request, which updates its time.

        created: when it was written, now by default. visible_after: nobody can see it for that many seconds, and the pull
        request is not updated; then both appear with the time of writing.
        """
        with self.changing() as tables:
            issue = self.issue(repo, number)
            at = (created or self.now()).astimezone(UTC).replace(microsecond=0)
            visible = at + timedelta(seconds=visible_after) if visible_after else None
            row = tables.next_id("comments")
            comment = Comment(row, issue.repo_id, issue.id, self.user(user).id, body, at, at, visible=visible)
            tables.comments[row] = comment
            if not visible:
                self._count(issue, comment)
                self._tell("created", issue, comment, self.user(user))
            return comment

    def review(self, repo: Repo | str, number: int, user: User | str, body: str, state: str = "COMMENT") -> Comment:
        """Write a review. Its text is in neither comment list, but the pull request is updated; a PENDING one is private.

        Raises PermissionError for who approves or rejects their own.
        """
        with self.changing() as tables:
            issue = self.issue(repo, number)
            if state in ("APPROVED", "REQUEST_CHANGES") and issue.user_id == self.user(user).id:
                raise PermissionError(f"{'approve' if state == 'APPROVED' else 'reject'} your own pull is not allowed")
            entry = self._entry(issue, user, "review", body)
            entry.review_id, entry.state = tables.next_id("reviews"), state
            if state != "PENDING":
                issue.updated = self.now()
                self._tell("reviewed", issue, entry, self.user(user))
            return entry

    def submit_review(self, begun: Comment, body: str, state: str = "COMMENT") -> Comment:
        """Submit a PENDING review. Only now does it get its text, and an entry in the timeline with a separate id."""
        with self.changing() as tables:
            issue, user = tables.issues[begun.issue_id], tables.users[begun.user_id]
            del tables.comments[begun.id]
            entry = self._entry(issue, user, "review", body)
            entry.review_id, entry.state, entry.begun = begun.review_id, state, begun.created
            issue.updated = self.now()
            self._tell("reviewed", issue, entry, user)
            return entry

    def edit_comment(self, comment: Comment | int, body: str, user: User | str = "") -> Comment:
        """Change a comment's text; the pull request is not updated, and the author stays, whoever edits."""
        with self.changing() as tables:
            row = comment if isinstance(comment, Comment) else tables.comments[comment]
            old, row.body, row.updated = row.body, body, self.now()
            editor = self.user(user) if user else tables.users[row.user_id]
            self._tell("edited", tables.issues[row.issue_id], row, editor, old)
            return row

    def delete_comment(self, comment: Comment | int, user: User | str = "") -> None:
        """Delete a comment with its reactions; the pull request is not updated. Of a review, delete only its timeline entry."""
        with self.changing() as tables:
            row = comment if isinstance(comment, Comment) else tables.comments[comment]
            if row.kind == "review":
                row.gone = True
                return
            del tables.comments[row.id]
            tables.issues[row.issue_id].comments -= row.visible is None
            tables.reactions = {key: r for key, r in tables.reactions.items() if r.comment_id != row.id}
            deleter = self.user(user) if user else tables.users[row.user_id]
            self._tell("deleted", tables.issues[row.issue_id], row, deleter)

    def comments_of(self, issue: Issue | None = None, repo: Repo | None = None, kinds: str = "comment") -> list[Comment]:
        """The visible comments of an issue or of a whole repository, by id. `kinds` is one kind, or `all`."""
        with self.lock:
            return [
                row
                for row in self.tables.comments.values()
                if (issue is None or row.issue_id == issue.id)
                and (repo is None or row.repo_id == repo.id)
                and (kinds == row.kind or (kinds == "all" and not row.gone))
                and row.visible is None
            ]

    def _tell(self, action: str, issue: Issue, comment: Comment, sender: User, old_body: str = "") -> None:
        for listener in self.listeners:
            listener(Event(action, issue, comment, sender, old_body))

    def _count(self, issue: Issue, comment: Comment) -> None:
        issue.comments += 1
        issue.updated = max(issue.updated, comment.created)

    # Reactions and statuses

    def react(self, issue: Issue, comment: Comment, user: User | str, content: str) -> tuple[Reaction, bool]:
        """Add a reaction to a comment; the second value is whether it is new."""
        with self.changing() as tables:
            mine = self.reactions_of(issue, comment)
            author = self.user(user).id
            for row in mine:
                if row.user_id == author and row.content == content:
                    return row, False
            key = tables.next_id("reactions")
            row = Reaction(key, issue.id, comment.id, author, content, self.now())
            tables.reactions[key] = row
            return row, True

    def reactions_of(self, issue: Issue, comment: Comment) -> list[Reaction]:
        """The reactions to a comment."""
        with self.lock:
            wanted = (issue.id, comment.id)
            return [row for row in self.tables.reactions.values() if (row.issue_id, row.comment_id) == wanted]

    def set_status(
        self,
        repo: Repo | str,
        sha: str,
        state: str,
        context: str = "default",
        *,
        user: User | str = "",
        target_url: str = "",
        description: str = "",
    ) -> Status:
        """Add a commit status; older ones with the same context stay listed."""
        with self.changing() as tables:
            row, key = self.repo(repo), tables.next_id("statuses")
            author = self.user(user or row.owner).id
            status = Status(key, row.id, sha, state, context, target_url, description, author, self.now())
            tables.statuses[key] = status
            return status

    def statuses_of(self, repo: Repo | str, sha: str) -> list[Status]:
        """All statuses of a commit, newest first."""
        with self.lock:
            row = self.repo(repo)
            return [s for s in reversed(self.tables.statuses.values()) if s.repo_id == row.id and s.sha == sha]
