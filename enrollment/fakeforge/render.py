"""The API's JSON, field by field as in the captured responses of a real server."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from enrollment.fakeforge import git
from enrollment.fakeforge.model import Comment, Hook, Issue, Pull, Reaction, Repo, Status, User
from enrollment.fakeforge.store import Forge

Json = dict[str, Any]

NEVER = "0001-01-01T00:00:00Z"


def stamp(moment: datetime | None) -> str | None:
    """A time in the API's format: whole seconds, `Z`."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if moment else None


class Renderer:
    """Renders rows for one user (None: anonymous), whose permissions affect some of the fields."""

    def __init__(self, forge: Forge, asker: User | None) -> None:
        self.forge = forge
        self.asker = asker
        self.base = forge.url

    def user(self, user: User, *, seen: bool = False) -> Json:
        """A user. Only where the real server passes the viewer on (`seen`) do users see more of themselves, and site admins
        of everybody.
        """
        full = seen and self.asker is not None and (self.asker.is_admin or self.asker.id == user.id)
        return {
            "id": user.id,
            "login": user.login,
            "full_name": "",
            "email": "" if user.is_org else f"{user.login}@example.org",
            "avatar_url": f"{self.base}/user/avatar/{user.login}/-1",
            "language": "",
            "is_admin": full and user.is_admin,
            "last_login": "1970-01-01T00:00:00Z" if full else NEVER,
            "created": stamp(user.created),
            "restricted": False,
            "active": full,
            "prohibit_login": False,
            "location": "",
            "website": "",
            "description": "",
            "visibility": "public",
            "followers_count": 0,
            "following_count": 0,
            "starred_repos_count": 0,
            "username": user.login,
        }

    def permissions(self, repo: Repo) -> Json:
        """The user's permissions in a repository."""
        level = self.forge.level(self.asker, repo)
        return {"admin": level >= 3, "push": level >= 2, "pull": level >= 1}

    def repo(self, repo: Repo) -> Json:
        """A repository, including its full parent if it is a fork."""
        tables = self.forge.tables
        parent = tables.repos.get(repo.parent_id)
        open_issues = [row for row in tables.issues.values() if row.repo_id == repo.id and row.state == "open"]
        pulls = sum(isinstance(row, Pull) for row in open_issues)
        answer = {
            "id": repo.id,
            "owner": self.user(tables.users[repo.owner_id]),
            "name": repo.name,
            "full_name": repo.full_name,
            "description": repo.description,
            "empty": False,
            "private": repo.private,
            "fork": bool(repo.parent_id),
            "template": False,
            "parent": self.repo(parent) if parent else None,
            "mirror": False,
            "size": repo.size,
            "html_url": f"{self.base}/{repo.full_name}",
            "ssh_url": f"gitea@localhost:{repo.full_name}.git",
            "clone_url": f"{self.base}/{repo.full_name}.git",
            "original_url": "",
            "website": "",
            "stars_count": 0,
            "forks_count": sum(row.parent_id == repo.id for row in tables.repos.values()),
            "watchers_count": 1,
            "open_issues_count": len(open_issues) - pulls,
            "open_pr_counter": pulls,
            "release_counter": 0,
            "default_branch": "main",
            "archived": False,
            "created_at": stamp(repo.created),
            "updated_at": stamp(repo.updated),
            "permissions": self.permissions(repo),
            "has_issues": True,
            "internal_tracker": {
                "enable_time_tracker": True,
                "allow_only_contributors_to_track_time": True,
                "enable_issue_dependencies": True,
            },
            "has_wiki": True,
            "has_pull_requests": True,
            "has_projects": True,
            "ignore_whitespace_conflicts": False,
            "allow_merge_commits": True,
            "allow_rebase": True,
            "allow_rebase_explicit": True,
            "allow_squash_merge": True,
            "default_merge_style": "merge",
            "avatar_url": "",
            "internal": False,
            "mirror_interval": "",
        }
        return {**answer, "topics": list(repo.topics)} if self.forge.features.newer_fields else answer

    def issue_url(self, issue: Issue) -> str:
        """The URL of an issue's or pull request's page."""
        kind = "pulls" if isinstance(issue, Pull) else "issues"
        return f"{self.base}/{self.forge.tables.repos[issue.repo_id].full_name}/{kind}/{issue.number}"

    def issue(self, issue: Issue) -> Json:
        """An issue, or a pull request under /issues, where it has a different id and no SHA."""
        repo = self.forge.tables.repos[issue.repo_id]
        pull = None
        if isinstance(issue, Pull):
            pull = {"merged": bool(issue.merged), "merged_at": stamp(issue.merged)}
        answer = {
            "id": issue.id,
            "url": f"{self.base}/api/v1/repos/{repo.full_name}/issues/{issue.number}",
            "html_url": self.issue_url(issue),
            "number": issue.number,
            "user": self.user(self.forge.tables.users[issue.user_id]),
            "original_author": "",
            "original_author_id": 0,
            "title": issue.title,
            "body": issue.body,
            "ref": "",
            "labels": [],
            "milestone": None,
            "assignee": None,
            "assignees": None,
            "state": issue.state,
            "is_locked": False,
            "comments": issue.comments,
            "created_at": stamp(issue.created),
            "updated_at": stamp(issue.updated),
            "closed_at": stamp(issue.closed),
            "due_date": None,
            "pull_request": pull,
            "repository": {"id": repo.id, "name": repo.name, "owner": repo.owner, "full_name": repo.full_name},
        }
        return {**answer, "assets": []} if self.forge.features.newer_fields else answer

    def pull(self, pull: Pull) -> Json:
        """A pull request under /pulls. If the head repository (the fork) was deleted, the commit is still known."""
        tables = self.forge.tables
        url = self.issue_url(pull)
        base, head = tables.repos[pull.repo_id], tables.repos.get(pull.head_repo_id)
        branch = "" if pull.agit else pull.head_branch
        there = head is not None and branch and git.resolve(self.forge.folder(head), f"refs/heads/{branch}")
        return {
            "id": pull.pull_id,
            "url": url,
            "number": pull.number,
            "user": self.user(tables.users[pull.user_id]),
            "title": pull.title,
            "body": pull.body,
            "labels": [],
            "milestone": None,
            "assignee": None,
            "assignees": None,
            "state": pull.state,
            "is_locked": False,
            "comments": pull.comments,
            "html_url": url,
            "diff_url": f"{url}.diff",
            "patch_url": f"{url}.patch",
            "mergeable": not pull.merged,
            "merged": bool(pull.merged),
            "merged_at": stamp(pull.merged),
            "merge_commit_sha": pull.merge_sha or None,
            "merged_by": self.user(tables.users[pull.merged_by]) if pull.merged_by else None,
            "base": {
                "label": pull.base_branch,
                "ref": pull.base_branch,
                "sha": pull.base_sha,
                "repo_id": base.id,
                "repo": self.repo(base),
            },
            "head": {
                "label": branch,
                "ref": branch if there else f"refs/pull/{pull.number}/head",
                "sha": pull.head_sha,
                "repo_id": head.id if head else -1,
                "repo": self.repo(head) if head else None,
            },
            "merge_base": pull.merge_base,
            "due_date": None,
            "created_at": stamp(pull.created),
            "updated_at": stamp(pull.updated),
            "closed_at": stamp(pull.closed),
        }

    def comment(self, comment: Comment) -> Json:
        """A comment. Which of its two URLs is set distinguishes pull requests from issues."""
        issue = self.forge.tables.issues[comment.issue_id]
        url = self.issue_url(issue)
        answer = {
            "id": comment.id,
            "html_url": f"{url}#issuecomment-{comment.id}",
            "pull_request_url": url if isinstance(issue, Pull) else "",
            "issue_url": "" if isinstance(issue, Pull) else url,
            "user": self.user(self.forge.tables.users[comment.user_id]),
            "original_author": "",
            "original_author_id": 0,
            "body": comment.body,
            "created_at": stamp(comment.created),
            "updated_at": stamp(comment.updated),
        }
        return {**answer, "assets": []} if self.forge.features.newer_fields else answer

    def review(self, comment: Comment) -> Json:
        """A review: has its own id, and its timeline entry's id in its URL."""
        issue = self.forge.tables.issues[comment.issue_id]
        url = self.issue_url(issue)
        answer = {
            "id": comment.review_id,
            "user": self.user(self.forge.tables.users[comment.user_id]),
            "team": None,
            "state": "REQUEST_CHANGES" if comment.state == "DISMISSED" else comment.state,
            "body": comment.body,
            "commit_id": issue.head_sha if isinstance(issue, Pull) else "",
            "stale": False,
            "official": False,
            "dismissed": comment.state == "DISMISSED",
            "comments_count": 0,
            "submitted_at": stamp(comment.begun or comment.created),  # sic
            "html_url": "" if comment.gone or comment.state == "PENDING" else f"{url}#issuecomment-{comment.id}",
            "pull_request_url": url,
        }
        return {**answer, "updated_at": stamp(comment.updated)} if self.forge.features.newer_fields else answer

    def timeline(self, comment: Comment) -> Json:
        """A timeline entry: a comment, or an event."""
        plain = self.comment(comment)
        kept = ("id", "html_url", "pull_request_url", "issue_url", "user", "body", "created_at", "updated_at")
        names = ("milestone", "old_milestone", "tracked_time", "ref_issue", "ref_comment", "label", "assignee")
        more = ("assignee_team", "resolve_doer", "dependent_issue")
        texts = ("old_title", "new_title", "old_ref", "new_ref", "ref_action", "ref_commit_sha")
        return {
            "type": comment.kind,
            **{key: plain[key] for key in kept},
            **dict.fromkeys(("old_project_id", "project_id"), 0),
            "review_id": comment.review_id,
            **dict.fromkeys(names + more),
            **dict.fromkeys(texts, ""),
            "removed_assignee": False,
        }

    def reaction(self, reaction: Reaction) -> Json:
        """A reaction; here users do see themselves in full."""
        user = self.user(self.forge.tables.users[reaction.user_id], seen=True)
        return {"user": user, "content": reaction.content, "created_at": stamp(reaction.created)}

    def status(self, status: Status) -> Json:
        """A commit status; its state is under `status`."""
        repo = self.forge.tables.repos[status.repo_id]
        return {
            "id": status.id,
            "status": status.state,
            "target_url": status.target_url,
            "description": status.description,
            "url": f"{self.base}/api/v1/repos/{repo.full_name}/statuses/{status.sha}",
            "context": status.context,
            "creator": self.user(self.forge.tables.users[status.user_id]),
            "created_at": stamp(status.created),
            "updated_at": stamp(status.created),
        }

    def commit(self, repo: Repo, row: dict[str, str]) -> Json:
        """A commit in a list of commits."""
        api = f"{self.base}/api/v1/repos/{repo.full_name}/git"
        person = {"name": row["author"], "email": row["email"], "date": row["date"]}
        known = [user for user in self.forge.tables.users.values() if user.login == row["author"]]
        author = self.user(known[0]) if known else None
        return {
            "url": f"{api}/commits/{row['sha']}",
            "sha": row["sha"],
            "created": row["date"],
            "html_url": f"{self.base}/{repo.full_name}/commit/{row['sha']}",
            "commit": {
                "url": f"{api}/commits/{row['sha']}",
                "author": person,
                "committer": person,
                "message": row["message"],
                "tree": {"url": f"{api}/trees/{row['tree']}", "sha": row["tree"], "created": row["date"]},
            },
            "author": author,
            "committer": author,
            "parents": [{"url": f"{api}/commits/{sha}", "sha": sha, "created": NEVER} for sha in row["parents"].split()],
            "files": None,
        }

    def branch(self, repo: Repo, name: str) -> Json:
        """A branch with its newest commit."""
        [row] = git.commits(self.forge.folder(repo), f"refs/heads/{name}", 1)
        person = {"name": row["author"], "email": row["email"], "username": row["author"]}
        nothing = {"verified": False, "reason": "gpg.error.not_signed_commit", "signature": "", "signer": None}
        return {
            "name": name,
            "commit": {
                "id": row["sha"],
                "message": row["message"],
                "url": f"{self.base}/{repo.full_name}/commit/{row['sha']}",
                "author": person,
                "committer": person,
                "verification": {**nothing, "payload": ""},
                "timestamp": row["date"],
                "added": None,
                "removed": None,
                "modified": None,
            },
            "protected": False,
            "required_approvals": 0,
            "enable_status_check": False,
            "status_check_contexts": [],
            "user_can_push": self.forge.level(self.asker, repo) >= 2,
            "user_can_merge": self.forge.level(self.asker, repo) >= 2,
            "effective_branch_protection_name": "",
        }

    def tag(self, repo: Repo, line: str) -> Json:
        """A tag from a line of `git for-each-ref`: name, object, commit that it points to, date, subject."""
        name, obj, peeled, date, subject = line.split("\x1f")
        sha = peeled or obj
        archive = f"{self.base}/{repo.full_name}/archive/{name}"
        return {
            "name": name,
            "message": subject,
            "id": obj,
            "commit": {
                "url": f"{self.base}/api/v1/repos/{repo.full_name}/git/commits/{sha}",
                "sha": sha,
                "created": date,
            },
            "zipball_url": f"{archive}.zip",
            "tarball_url": f"{archive}.tar.gz",
        }

    def hook(self, hook: Hook) -> Json:
        """A webhook; its secret is never included."""
        return {
            "id": hook.id,
            "type": hook.kind,
            "config": {"content_type": hook.content_type, "url": hook.url},
            "events": list(hook.events),
            "active": hook.active,
            "updated_at": stamp(hook.updated),
            "created_at": stamp(hook.created),
        }


def encode(value: object) -> bytes:
    """JSON as the server sends it: compact, with a trailing newline."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
