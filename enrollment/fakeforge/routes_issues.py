"""Routes for issues, pull requests, comments and reactions."""

from __future__ import annotations

from enrollment.fakeforge import git
from enrollment.fakeforge.api import Call, no_route, route
from enrollment.fakeforge.faults import Response
from enrollment.fakeforge.model import Comment, Issue, Pull
from enrollment.fakeforge.routes_people import seen

# The search computes its Link header with the web pages' page size, whatever size was requested.
LINK_SIZE_OF_SEARCH = 10
REACTIONS = ("+1", "-1", "laugh", "hooray", "confused", "heart", "rocket", "eyes")
ONE_REPO = "/repos/{owner}/{repo}"


@route("GET", "/repos/issues/search", "issue")
def search_issues(call: Call) -> Response:
    """Issues and pull requests of all repositories visible to the user, newest first."""
    repos = {repo.id: repo for repo in seen(call)}
    if call.forge.features.owner_filter and (owner := call.query.get("owner")):
        try:
            holder = call.forge.user(owner)
        except LookupError:
            raise call.error(400, f"user does not exist [name: {owner}]") from None
        repos = {key: repo for key, repo in repos.items() if repo.owner_id == holder.id}
    found = [row for row in call.forge.tables.issues.values() if row.repo_id in repos]
    return call.page(_filtered(call, found), call.render.issue, LINK_SIZE_OF_SEARCH)


@route("GET", ONE_REPO + "/issues", "issue")
def issues_of_repo(call: Call) -> Response:
    """The issues and pull requests of one repository."""
    repo = call.repo()
    return call.page(_filtered(call, [i for i in call.forge.tables.issues.values() if i.repo_id == repo.id]), call.render.issue)


def _filtered(call: Call, issues: list[Issue]) -> list[Issue]:
    since = call.moment("since")
    state, kind = call.query.get("state") or "open", call.query.get("type", "")
    kept = [
        row
        for row in issues
        if (state == "all" or row.state == ("closed" if state == "closed" else "open"))
        and (kind not in ("pulls", "issues") or isinstance(row, Pull) == (kind == "pulls"))
        and (since is None or row.updated >= since)
    ]
    return sorted(kept, key=lambda row: (row.created, row.id), reverse=True)


@route("GET", ONE_REPO + "/pulls", "repository")
def pulls(call: Call) -> Response:
    """The pull requests of a repository, newest first."""
    repo, state = call.repo(), call.query.get("state") or "open"
    rows = [row for row in call.forge.tables.issues.values() if isinstance(row, Pull) and row.repo_id == repo.id]
    rows = [row for row in rows if state == "all" or row.state == state]
    sort = call.query.get("sort", "")
    moved = sort in ("recentupdate", "leastupdate")
    rows.sort(key=lambda row: (row.updated if moved else row.created, row.id), reverse=sort not in ("oldest", "leastupdate"))
    return call.page(rows, call.render.pull)


@route("POST", ONE_REPO + "/pulls", "repository", signed_in=True)
def open_pull(call: Call) -> Response:
    """Open a pull request between two branches of a repository."""
    repo, head, base = call.repo(), call.text("head"), call.text("base")
    folder = call.forge.folder(repo)
    if not all(git.resolve(folder, f"refs/heads/{name}") for name in (head, base)):
        raise call.missing()
    for row in call.forge.tables.issues.values():
        if not isinstance(row, Pull) or row.state != "open" or row.agit:
            continue
        if (row.repo_id, row.head_repo_id, row.head_branch, row.base_branch) == (repo.id, repo.id, head, base):
            raise call.error(409, f"pull request already exists for these targets [id: {row.pull_id}, issue_id: {row.number}]")
    body = call.body()
    pull = call.forge.open_pull(repo, repo, head, call.signed_in(), call.text("title"), body.get("body") or "", base)
    return call.answer(call.render.pull(pull), 201)


@route("GET", ONE_REPO + "/pulls/{number}", "repository")
def one_pull(call: Call) -> Response:
    """A pull request."""
    return call.answer(call.render.pull(_pull(call)))


@route("GET", ONE_REPO + "/pulls/{number}/commits", "repository")
def commits_of_pull(call: Call) -> Response:
    """The commits of a pull request, newest first."""
    pull = _pull(call)
    repo = call.forge.tables.repos[pull.repo_id]
    rows = git.commits(call.forge.folder(repo), f"{pull.merge_base}..{pull.head_sha}", 1000)
    return call.page(rows, lambda row: call.render.commit(repo, row))


@route("GET", ONE_REPO + "/pulls/{number}/reviews", "repository")
def reviews_of_pull(call: Call) -> Response:
    """The reviews of a pull request, oldest first; of unsubmitted ones only the user's own."""
    rows = call.forge.comments_of(_pull(call), kinds="review")
    mine = call.user.id if call.user else 0
    return call.page([row for row in rows if row.state != "PENDING" or row.user_id == mine], call.render.review)


@route("GET", ONE_REPO + "/issues/comments", "issue")
def comments_of_repo(call: Call) -> Response:
    """The comments of a repository written or edited since a time, by id."""
    return _comments(call, call.forge.comments_of(repo=call.repo()), call.forge.features.comments_paged != "none")


@route("GET", ONE_REPO + "/issues/{number}/comments", "issue")
def comments_of_issue(call: Call) -> Response:
    """The same for one issue or pull request."""
    return _comments(call, call.forge.comments_of(_issue(call)), call.forge.features.comments_paged == "both")


def _comments(call: Call, rows: list[Comment], paged: bool) -> Response:
    since = call.moment("since")
    kept = [row for row in rows if since is None or row.updated >= since]
    if paged:
        return call.page(kept, call.render.comment)
    counted = {"Access-Control-Expose-Headers": "X-Total-Count", "X-Total-Count": str(len(kept))}
    headers = counted if call.forge.features.comments_counted else {}
    return call.answer([call.render.comment(row) for row in kept], headers=headers)


@route("POST", ONE_REPO + "/issues/{number}/comments", "issue", signed_in=True)
def add_comment(call: Call) -> Response:
    """Comment; read permission is enough. The same text twice creates two comments."""
    issue = _issue(call)
    repo = call.forge.tables.repos[issue.repo_id]
    comment = call.forge.comment(repo, issue.number, call.signed_in(), call.text("body"))
    return call.answer(call.render.comment(comment), 201)


@route("PATCH", ONE_REPO + "/issues/comments/{id}", "issue", signed_in=True)
def edit_comment(call: Call) -> Response:
    """Change one's own comment or, as an admin of the repository, anybody's; the author stays the first."""
    comment = _comment(call)
    _own(call, comment)
    return call.answer(call.render.comment(call.forge.edit_comment(comment, call.text("body"), call.user or "")))


@route("DELETE", ONE_REPO + "/issues/comments/{id}", "issue", signed_in=True)
def delete_comment(call: Call) -> Response:
    """Delete one's own comment or, as an admin, anybody's."""
    comment = _comment(call)
    _own(call, comment)
    call.forge.delete_comment(comment, call.signed_in())
    return Response(204)


@route("GET", ONE_REPO + "/issues/comments/{id}/reactions", "issue")
def reactions(call: Call) -> Response:
    """The reactions to a comment."""
    comment = _comment(call)
    rows = call.forge.reactions_of(call.forge.tables.issues[comment.issue_id], comment)
    return call.answer([call.render.reaction(row) for row in rows])


@route("POST", ONE_REPO + "/issues/comments/{id}/reactions", "issue", signed_in=True)
def react(call: Call) -> Response:
    """React to a comment: 201, or 200 if the same reaction exists."""
    comment = _comment(call)
    content = call.text("content")
    if content not in REACTIONS:
        raise call.error(403, f"'{content}' is not an allowed reaction")
    issue = call.forge.tables.issues[comment.issue_id]
    reaction, new = call.forge.react(issue, comment, call.signed_in(), content)
    return call.answer(call.render.reaction(reaction), 201 if new else 200)


@route("GET", ONE_REPO + "/issues/{number}/timeline", "issue")
def timeline(call: Call) -> Response:
    """Comments and events of an issue in order, if the version has this route."""
    if not call.forge.features.timeline:
        return no_route()
    rows = call.forge.comments_of(_issue(call), kinds="all")
    since = call.moment("since")
    return call.page([row for row in rows if since is None or row.updated >= since], call.render.timeline)


@route("POST", ONE_REPO + "/issues", "issue", signed_in=True)
def open_issue(call: Call) -> Response:
    """Open an issue: anybody who may see the repository."""
    repo = call.repo()
    issue = call.forge.open_issue(repo, call.signed_in(), call.text("title"), call.body().get("body") or "")
    return call.answer(call.render.issue(issue), 201)


@route("PATCH", ONE_REPO + "/issues/{number}", "issue", signed_in=True)
def edit_issue(call: Call) -> Response:
    """Close or reopen an issue: its author, and whoever may write."""
    issue, user = _issue(call), call.signed_in()
    if issue.user_id != user.id:
        call.repo(level=2)
    state = call.body().get("state")
    if state == "closed" and issue.state != "closed":
        call.forge.close_pull(issue, user)
    elif state == "open" and issue.state == "closed":
        call.forge.reopen_pull(issue, user)
    return call.answer(call.render.issue(issue), 201)


@route("GET", ONE_REPO + "/issues/{number}", "issue")
def one_issue(call: Call) -> Response:
    """An issue or, under its other id, a pull request."""
    return call.answer(call.render.issue(_issue(call)))


def _issue(call: Call) -> Issue:
    repo = call.repo()
    if not call.names["number"].isdigit():
        raise call.missing()
    try:
        return call.forge.issue(repo, int(call.names["number"]))
    except LookupError:
        raise call.missing() from None


def _pull(call: Call) -> Pull:
    issue = _issue(call)
    if not isinstance(issue, Pull):
        raise call.missing()
    return issue


def _comment(call: Call) -> Comment:
    repo = call.repo()
    comment = call.forge.tables.comments.get(int(call.names["id"])) if call.names["id"].isdigit() else None
    if comment is None or comment.repo_id != repo.id or comment.kind != "comment" or comment.visible:
        raise call.missing()
    return comment


def _own(call: Call, comment: Comment) -> None:
    if comment.user_id != call.signed_in().id:
        call.repo(level=3)
