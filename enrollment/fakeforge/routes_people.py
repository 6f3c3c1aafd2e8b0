"""Routes for the server, users, organisations and the search for repositories."""

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


def _need_token(call: Call) -> None:
    if not call.forge.features.guests_see_members:
        call.signed_in()


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
    found.sort(key=lambda repo: (repo.name, repo.id))
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


def _inside(call: Call, org: User) -> bool:
    return call.user is not None and (call.user.is_admin or call.forge.membership(org, call.user) is not None)
