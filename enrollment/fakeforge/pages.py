"""The fake forge's pages, for reading pull requests and commenting on them. There are no logins: whoever writes
chooses the author.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

from enrollment.fakeforge import git, markdown
from enrollment.fakeforge.diff import changes
from enrollment.fakeforge.faults import Request, Response
from enrollment.fakeforge.model import Comment, Issue, Pull, Repo, Status, User
from enrollment.fakeforge.store import Forge

_STATIC = Path(__file__).parent / "static"
_CSS = (_STATIC / "forge.css").read_text()
_JS = (_STATIC / "forge.js").read_text()
_JS_HASH = base64.b64encode(hashlib.sha256(_JS.encode()).digest()).decode()
# Comments may show images, e.g. a CI badge, but only from this host.
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    f"frame-ancestors 'none'; script-src 'sha256-{_JS_HASH}'; img-src 'self' data: http://127.0.0.1:* http://localhost:*"
)
_MARKS = {"success": "✓", "failure": "✗", "error": "!", "warning": "!", "pending": "●"}


def handle(forge: Forge, request: Request) -> Response:
    """Respond to a request for a page, or to a comment posted from one."""
    with forge.lock:
        forge.settle()
        for pattern, view in _VIEWS:
            if match := re.fullmatch(pattern, request.path):
                try:
                    return view(Page(forge, request), *(unquote(part) for part in match.groups()))
                except (LookupError, git.GitError):
                    break
        page = Page(forge, request)
        return page.show("Not found", "<h1>Not found</h1><p>There is nothing at this address.</p>", status=404)


class Page:
    """A page being rendered: the forge, the request, and the layout around the content."""

    def __init__(self, forge: Forge, request: Request) -> None:
        self.forge = forge
        self.request = request

    def show(self, title: str, content: str, crumbs: str = "", status: int = 200) -> Response:
        """Render the whole page."""
        body = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)} · Fake forge</title><link rel="icon" href="data:,"><style>{_CSS}</style></head><body>
<a class="skip" href="#content">Skip to content</a>
<header class="top"><div><a class="brand" href="/">Fake forge</a>
<nav class="crumbs" aria-label="Where you are">{crumbs}</nav></div></header>
<main id="content">{content}</main>
<footer>A stand-in for a Gitea, for demonstrations and tests on this machine. Nobody logs in here.</footer>
<script>{_JS}</script></body></html>"""
        headers = {"Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": _POLICY, **_COMMON}
        return Response(status, body.encode(), headers)

    def crumbs(self, repo: Repo, issue: Issue | None = None) -> str:
        """Breadcrumbs to a repository and to one of its issues."""
        parts = f'/ <span>{escape(repo.owner)}</span> / <a href="{_url(repo)}">{escape(repo.name)}</a>'
        return f'{parts} / <a href="{_url(repo, issue)}">#{issue.number}</a>' if issue else parts

    def name(self, user_id: int) -> str:
        """The login of a user."""
        return self.forge.tables.users[user_id].login


_COMMON = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin", "Cache-Control": "no-store"}


def _url(repo: Repo, issue: Issue | None = None) -> str:
    path = f"/{quote(repo.owner)}/{quote(repo.name)}"
    return f"{path}/{'pulls' if isinstance(issue, Pull) else 'issues'}/{issue.number}" if issue else path


def _time(moment: datetime) -> str:
    utc = moment.astimezone(UTC)
    return f'<time datetime="{utc:%Y-%m-%dT%H:%M:%SZ}">{utc.day} {utc:%b %Y, %H:%M:%S} UTC</time>'


def _avatar(login: str) -> str:
    colour = f"hsl({hashlib.sha256(login.encode()).digest()[0] * 360 // 256} 45% 32%)"
    return f'<span class="avatar" aria-hidden="true" style="background:{colour}">{escape(login[:1].upper())}</span>'


def _state(issue: Issue) -> str:
    word = "merged" if isinstance(issue, Pull) and issue.merged else issue.state
    return f'<span class="pill {word}">{word.capitalize()}</span>'


def _rows(rows: list[str], nothing: str) -> str:
    inside = "".join(f"<li>{row}</li>" for row in rows) or f'<li class="soft">{nothing}</li>'
    return f'<ul class="rows card">{inside}</ul>'


# Views


def _home(page: Page) -> Response:
    tables = page.forge.tables
    rows = []
    for repo in tables.repos.values():
        pulls = sum(isinstance(i, Pull) and i.repo_id == repo.id and i.state == "open" for i in tables.issues.values())
        topics = " ".join(f'<span class="tag">{escape(topic)}</span>' for topic in repo.topics)
        note = " · private" if repo.private else " · fork" if repo.parent_id else ""
        count = f"{pulls} open pull request{'' if pulls == 1 else 's'}{note}"
        link = f'<a class="title" href="{_url(repo)}">{escape(repo.full_name)}</a>'
        rows.append(f'<div class="grow">{link}<div class="soft">{count}</div></div>{topics}')
    lead = '<p class="lead">Pick one to read its pull requests and to comment on them.</p>'
    content = f"<h1>Repositories</h1>{lead}{_rows(rows, 'There are no repositories yet.')}"
    return page.show("Repositories", content)


def _repo(page: Page, owner: str, name: str) -> Response:
    repo = page.forge.repo(f"{owner}/{name}")
    folder = page.forge.folder(repo)
    issues = [row for row in page.forge.tables.issues.values() if row.repo_id == repo.id]
    issues.sort(key=lambda row: row.number, reverse=True)
    topics = " ".join(f'<span class="tag">{escape(topic)}</span>' for topic in repo.topics)
    listing = ("for-each-ref", "--sort=-creatordate", "--format=%(refname:strip=2)", "refs/tags")
    tags = git.text(folder, *listing).split("\n")[:20]
    parent = page.forge.tables.repos.get(repo.parent_id)
    fork = f'<p class="lead">Fork of <a href="{_url(parent)}">{escape(parent.full_name)}</a></p>' if parent else ""
    try:
        readme = git.git(folder, "cat-file", "blob", "main:README.md").decode(errors="replace")
    except git.GitError:
        readme = ""
    published = " ".join(f'<span class="tag">{escape(tag)}</span>' for tag in tags if tag)
    clone = f"git clone {page.forge.url}/{repo.full_name}.git"
    content = f"""<h1>{escape(repo.full_name)}</h1>{fork}<p>{topics}</p>
<code class="clone" tabindex="0">{escape(clone)}</code>
<h2>Pull requests</h2>{_rows([_issue_row(page, repo, i) for i in issues if isinstance(i, Pull)], "None yet.")}"""
    plain = [_issue_row(page, repo, issue) for issue in issues if not isinstance(issue, Pull)]
    content += f"<h2>Issues</h2>{_rows(plain, '')}" if plain else ""
    content += f"<h2>Published versions</h2><p>{published}</p>" if published else ""
    content += f'<h2>README</h2><div class="card"><div class="body text">{markdown.render(readme)}</div></div>' if readme else ""
    return page.show(repo.full_name, content, page.crumbs(repo))


def _issue_row(page: Page, repo: Repo, issue: Issue) -> str:
    comments = f"{issue.comments} comment{'' if issue.comments == 1 else 's'}"
    about = f"#{issue.number} by {escape(page.name(issue.user_id))} · {comments} · last activity {_time(issue.updated)}"
    link = f'<a class="title" href="{_url(repo, issue)}">{escape(issue.title)}</a>'
    return f'{_state(issue)}<div class="grow">{link}<div class="soft">{about}</div></div>'


def _issue(page: Page, owner: str, name: str, number: str) -> Response:
    repo = page.forge.repo(f"{owner}/{name}")
    issue = page.forge.issue(repo, int(number))
    if page.request.method == "POST":
        return _write(page, repo, issue)
    live = _live(page, repo, issue)
    if page.request.parameters.get("part") == "live":
        return Response(200, live.encode(), {"Content-Type": "text/html; charset=utf-8", **_COMMON})
    author = escape(page.name(issue.user_id))
    text = markdown.render(issue.body) if issue.body.strip() else '<p class="soft">No description.</p>'
    content = f"""{_head(page, repo, issue, "")}
<article class="card"><div class="head">{_avatar(author)}<b>{author}</b> opened this {_time(issue.created)}</div>
<div class="body text">{text}</div></article><div id="live">{live}</div>{_form(page, repo, issue)}"""
    return page.show(f"{issue.title} #{issue.number}", content, page.crumbs(repo, issue))


def _head(page: Page, repo: Repo, issue: Issue, tab: str) -> str:
    heading = f'<h1>{escape(issue.title)} <span class="number">#{issue.number}</span></h1>'
    if not isinstance(issue, Pull):
        return f'{heading}<p class="lead">{_state(issue)}</p>'
    head = page.forge.tables.repos.get(issue.head_repo_id)
    source = issue.head_branch if head == repo else f"{head.full_name if head else 'a deleted repository'}:{issue.head_branch}"
    author = escape(page.name(issue.user_id))
    names = f"<code>{escape(source)}</code> into <code>{escape(issue.base_branch)}</code>"
    url = _url(repo, issue)
    tabs = "".join(
        f'<a href="{url}{path}"{" aria-current=page" if path == tab else ""}>{label}</a>'
        for path, label in (("", "Conversation"), ("/files", "Files changed"))
    )
    return f"""{heading}<p class="lead">{_state(issue)} {author} wants to merge {names}</p>
<nav class="tabs" aria-label="Pull request">{tabs}</nav>"""


def _live(page: Page, repo: Repo, issue: Issue) -> str:
    """The parts that change while the page is open: commits with statuses, and comments. Each has an id."""
    parts = []
    if isinstance(issue, Pull):
        span = f"{issue.merge_base}..{issue.head_sha}"
        rows = [_commit_row(page, repo, row) for row in git.commits(page.forge.folder(repo), span)]
        parts.append(f'<section id="commits"><h2>Commits</h2>{_rows(rows, "No commits.")}</section>')
        latest: dict[str, Status] = {}
        for status in page.forge.statuses_of(repo, issue.head_sha):
            latest.setdefault(status.context, status)
        if latest:
            checks = _rows([_status_row(status) for status in latest.values()], "")
            parts.append(f'<section id="checks"><h2>Checks of <code>{issue.head_sha[:10]}</code></h2>{checks}</section>')
    parts.append('<h2 id="comments">Comments</h2>')
    comments = page.forge.comments_of(issue)
    parts += [_comment(page, issue, comment) for comment in comments]
    if not comments:
        parts.append('<p id="no-comments" class="soft">No comments yet.</p>')
    return "\n".join(parts)


def _commit_row(page: Page, repo: Repo, row: dict[str, str]) -> str:
    statuses = page.forge.statuses_of(repo, row["sha"])
    link = f'<a href="{_url(repo)}/commit/{row["sha"]}"><code>{row["sha"][:10]}</code></a>'
    return f'{link}<span class="grow">{escape(row["message"].split(chr(10))[0])}</span>{_mark(statuses)}'


def _mark(statuses: list[Status]) -> str:
    if not statuses:
        return ""
    state = statuses[0].state
    return f'<span class="pill {escape(state)}">{_MARKS[state]} {escape(state)}</span>'


def _status_row(status: Status) -> str:
    link = status.target_url
    details = f'<a href="{escape(link)}">Details</a>' if urlsplit(link).scheme in ("http", "https") else ""
    name = f'<span class="title">{escape(status.context)}</span> <span class="soft">{escape(status.description)}</span>'
    return f'{_mark([status])}<span class="grow">{name}</span>{details}'


def _comment(page: Page, issue: Issue, comment: Comment) -> str:
    author = escape(page.name(comment.user_id))
    edited = f" · edited {_time(comment.updated)}" if comment.updated != comment.created else ""
    counts: dict[str, list[str]] = {}
    for reaction in page.forge.reactions_of(issue, comment):
        counts.setdefault(reaction.content, []).append(page.name(reaction.user_id))
    reactions = "".join(_reaction(content, escape(", ".join(who)), len(who)) for content, who in counts.items())
    below = f'<ul class="reactions" aria-label="Reactions">{reactions}</ul>' if reactions else ""
    return f"""<article class="card" id="issuecomment-{comment.id}"><div class="head">{_avatar(author)}<b>{author}</b>
<a class="soft" href="#issuecomment-{comment.id}">{_time(comment.created)}</a>{edited}</div>
<div class="body text">{markdown.render(comment.body)}</div>{below}</article>"""


def _reaction(content: str, who: str, count: int) -> str:
    # As words, since emoji need a font that not every machine has.
    return f'<li title="{who}">{escape(content)} <b>{count}</b><span class="unseen"> by {who}</span></li>'


def _form(page: Page, repo: Repo, issue: Issue) -> str:
    people = [user for user in page.forge.tables.users.values() if not user.is_org]
    chosen = page.request.parameters.get("as", "alice")
    options = "".join(
        f'<option value="{escape(user.login)}"{" selected" if user.login == chosen else ""}>'
        f"{escape(user.login)} ({_right(page, user, repo)})</option>"
        for user in people
    )
    return f"""<form class="card write" method="post" action="{_url(repo, issue)}">
<div class="head"><b>Add a comment</b></div>
<div class="body"><label>Comment<textarea name="body" required placeholder="Markdown works here."></textarea></label>
<div class="buttons"><label>Write as<select name="author">{options}</select></label><button>Comment</button></div>
</div></form>"""


def _right(page: Page, user: User, repo: Repo) -> str:
    inside = page.forge.membership(page.forge.tables.users[repo.owner_id], user) or user.id == repo.owner_id
    level = page.forge.level(user, repo)
    right = ("no access", "may read", "may write", "admin", "admin")[level]
    return f"{'member' if inside else 'outsider'}, {right}"


def _write(page: Page, repo: Repo, issue: Issue) -> Response:
    # There are no sessions to exploit, but other sites must still not post here through the visitor's browser.
    origin = urlsplit(page.request.header("Origin")).netloc
    if not origin or origin != page.request.header("Host"):
        return page.show("Refused", "<h1>Forbidden</h1><p>Comments can be posted from these pages only.</p>", status=403)
    form = parse_qs(page.request.body.decode(errors="replace"))
    body, author = form.get("body", [""])[0], form.get("author", [""])[0]
    if not body.strip():
        return page.show("Empty comment", "<h1>Empty comment</h1><p>Go back and write something.</p>", status=400)
    user = page.forge.user(author)
    if page.forge.level(user, repo) < 1:
        return page.show("Refused", f"<h1>Forbidden</h1><p>{escape(author)} may not read this.</p>", status=403)
    page.request.user = user.login
    comment = page.forge.comment(repo, issue.number, user, re.sub(r"\r?\n", "\r\n", body))
    target = f"{_url(repo, issue)}?as={quote(user.login)}#issuecomment-{comment.id}"
    return Response(303, b"", {"Location": target})


def _files(page: Page, owner: str, name: str, number: str) -> Response:
    repo = page.forge.repo(f"{owner}/{name}")
    pull = page.forge.pull(repo, int(number))
    span = f"{pull.merge_base}..{pull.head_sha}"
    content = _head(page, repo, pull, "/files") + changes(git.git(page.forge.folder(repo), "diff", span))
    return page.show(f"Files of #{number}", content, page.crumbs(repo, pull))


def _commit(page: Page, owner: str, name: str, sha: str) -> Response:
    repo = page.forge.repo(f"{owner}/{name}")
    folder = page.forge.folder(repo)
    [row] = git.commits(folder, git.resolve(folder, sha), 1)
    subject, _, rest = row["message"].partition("\n")
    checks = [_status_row(status) for status in page.forge.statuses_of(repo, row["sha"])]
    about = f"{escape(row['author'])} · {_time(datetime.fromisoformat(row['date']))} · <code>{row['sha']}</code>"
    more = f'<div class="card"><div class="body text"><pre>{escape(rest.strip())}</pre></div></div>' if rest.strip() else ""
    listing = _rows(checks, "") if checks else ""
    diff = changes(git.git(folder, "diff-tree", "-p", "--root", "--no-commit-id", row["sha"]))
    content = f'<h1>{escape(subject)}</h1><p class="lead">{about}</p>{more}{listing}{diff}'
    return page.show(subject, content, page.crumbs(repo))


_REPO = r"/([^/]+)/([^/]+)"
_VIEWS: tuple[tuple[str, Callable[..., Response]], ...] = (
    (r"/", _home),
    (_REPO, _repo),
    (_REPO + r"/pulls", _repo),
    (_REPO + r"/(?:pulls|issues)/(\d+)", _issue),
    (_REPO + r"/pulls/(\d+)/files", _files),
    (_REPO + r"/commit/([0-9a-f]{7,40})", _commit),
)
