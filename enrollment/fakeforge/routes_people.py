"""Routes for the server, users, organisations and lists of repositories."""

from __future__ import annotations

from enrollment.fakeforge import api
from enrollment.fakeforge.api import DEFAULT_ITEMS, Call, route
from enrollment.fakeforge.faults import Response
from enrollment.fakeforge.model import Repo, Team, User


@route("GET", "/version")
def version(call: Call) -> Response:
    """The server's version."""
    return call.answer({"version": call.forge.version})


@route("GET", "/settings/api")
def settings(call: Call) -> Response:
    """The limits of lists."""
    limits = {"max_response_items": api.MAX_ITEMS, "default_paging_num": DEFAULT_ITEMS}
    return call.answer({**limits, "default_git_trees_per_page": 1000, "default_max_blob_size": 10485760})


@route("GET", "/user", "user", signed_in=True)
def myself(call: Call) -> Response:
    """The token's user."""
    return call.answer(call.render.user(call.signed_in(), seen=True))


@route("GET", "/users/{user}", "user")
def one_user(call: Call) -> Response:
    """A user."""
    return call.answer(call.render.user(call.person(), seen=True))


@route("GET", "/users/{user}/repos", "user")
def repos_of_user(call: Call) -> Response:
    """The repositories of a user or organisation that the requesting user can see."""
    owner = call.person()
    return call.page([repo for repo in seen(call) if repo.owner_id == owner.id], call.render.repo)


@route("GET", "/user/repos", "user", signed_in=True)
def my_repos(call: Call) -> Response:
    """The repositories that the user owns or has access to."""
    return call.page([repo for repo in seen(call) if shares_in(call, call.user, repo)], call.render.repo)


@route("GET", "/orgs/{org}", "organization")
def one_org(call: Call) -> Response:
    """An organisation."""
    return call.answer(call.render.organisation(call.org()))


@route("GET", "/orgs/{org}/repos", "organization")
def repos_of_org(call: Call) -> Response:
    """The repositories of an organisation that the user can see, oldest first."""
    org = call.org()
    return call.page([repo for repo in seen(call) if repo.owner_id == org.id], call.render.repo)


def _need_token(call: Call) -> None:
    if not call.forge.features.guests_see_members:
        call.signed_in()


@route("GET", "/orgs/{org}/members", "organization")
def members(call: Call) -> Response:
    """The members: all of them for members, the public ones for others."""
    org = call.org()
    _need_token(call)
    inside = _inside(call, org)
    rows = [row for row in call.forge.tables.memberships.values() if row.org_id == org.id and (inside or row.public)]
    return call.page([call.forge.tables.users[row.user_id] for row in rows], call.render.user)


@route("GET", "/orgs/{org}/members/{user}", "organization")
def is_member(call: Call) -> Response:
    """204 or 404 for members; others are redirected to the public members, except about themselves."""
    org, user = call.org(), call.person()
    _need_token(call)
    if _inside(call, org):
        if call.forge.membership(org, user):
            return Response(204)
        raise call.missing()
    if call.user and call.user.id == user.id:
        raise call.missing()
    target = f"{call.forge.url}/api/v1/orgs/{org.login}/public_members/{user.login}"
    return Response(302, b"", {"Location": target})


@route("GET", "/orgs/{org}/public_members/{user}", "organization")
def is_public_member(call: Call) -> Response:
    """204 for a member whose membership is public, 404 for all others."""
    member = call.forge.membership(call.org(), call.person())
    if member and member.public:
        return Response(204)
    raise call.missing()


@route("GET", "/orgs/{org}/teams", "organization", signed_in=True)
def teams(call: Call) -> Response:
    """The named teams of an organisation, for its members."""
    org = call.org()
    if not _inside(call, org):
        raise call.error(403, "Must be an organization member")
    return call.page([row for row in call.forge.tables.teams.values() if row.org_id == org.id], _team)


@route("GET", "/teams/{id}", "organization", signed_in=True)
def one_team(call: Call) -> Response:
    """A team, for its members and the organisation's owners."""
    return call.answer(_team(_visible_team(call)))


@route("GET", "/teams/{id}/members/{user}", "organization", signed_in=True)
def team_member(call: Call) -> Response:
    """A member of a team, or 404."""
    team, user = _visible_team(call), call.person()
    if user.id not in team.user_ids:
        raise call.missing()
    return call.answer(call.render.user(user, seen=True))


def _visible_team(call: Call) -> Team:
    team = call.forge.tables.teams.get(int(call.names["id"])) if call.names["id"].isdigit() else None
    if team is None:
        raise call.missing()
    asker, org = call.signed_in(), call.forge.tables.users[team.org_id]
    member = call.forge.membership(org, asker)
    if asker.is_admin or asker.id in team.user_ids or (member and member.permission == "owner"):
        return team
    if member:
        raise call.error(403, "Must be a team member")
    raise call.missing()


def _team(team: Team) -> dict[str, object]:
    return {"id": team.id, "name": team.name, "description": "", "permission": "read", "includes_all_repositories": True}


@route("GET", "/repos/search", "repository")
def search(call: Call) -> Response:
    """Search by a word in the name or by topic, ordered by name, then id; the results are under `data`."""
    found = [repo for repo in seen(call) if _matches(call, repo)]
    if call.query.get("is_private"):
        found = [repo for repo in found if repo.private == call.flag("is_private")]
    if uid := call.number("uid"):
        holder = call.forge.tables.users.get(uid)
        exclusive = call.flag("exclusive")
        found = [repo for repo in found if repo.owner_id == uid or (not exclusive and holder and shares_in(call, holder, repo))]
    keys = {
        "id": lambda repo: (repo.id,),
        "created": lambda repo: (repo.created, repo.id),
        "updated": lambda repo: (repo.updated, repo.id),
        "alpha": lambda repo: (repo.name, repo.id),
    }
    key = keys.get(call.query.get("sort") or "alpha")
    if key is None:
        raise call.error(422, f"invalid sort mode: {call.query['sort']!r}")
    found.sort(key=key, reverse=call.query.get("order") == "desc")
    page = call.page(found, call.render.repo)
    page.body = b'{"ok":true,"data":' + page.body.strip() + b"}\n"
    return page


def _matches(call: Call, repo: Repo) -> bool:
    words = [word.strip().lower() for word in call.query.get("q", "").split(",") if word.strip()]
    if not words:
        return True
    topics = [topic.lower() for topic in repo.topics]
    if call.flag("topic"):
        return any(word in topics for word in words)
    return any(word in repo.name.lower() or any(word in topic for topic in topics) for word in words)


@route("GET", "/repositories/{id}", "repository")
def repo_by_id(call: Call) -> Response:
    """A repository by its id, even if renamed."""
    repo = call.forge.tables.repos.get(int(call.names["id"])) if call.names["id"].isdigit() else None
    if repo is None or call.forge.level(call.user, repo) < 1:
        raise call.missing()
    return call.answer(call.render.repo(repo))


def seen(call: Call) -> list[Repo]:
    """The repositories that the user can see, oldest first."""
    return [repo for repo in call.forge.tables.repos.values() if call.forge.level(call.user, repo) > 0]


def shares_in(call: Call, user: User | None, repo: Repo) -> bool:
    """Whether a user owns a repository, collaborates in it or is in a team of its organisation."""
    if user is None:
        return False
    owner = call.forge.tables.users[repo.owner_id]
    shares = call.forge.tables.collaborators.values()
    return (
        owner.id == user.id
        or call.forge.membership(owner, user) is not None
        or any(row.repo_id == repo.id and row.user_id == user.id for row in shares)
    )


def _inside(call: Call, org: User) -> bool:
    return call.user is not None and (call.user.is_admin or call.forge.membership(org, call.user) is not None)
