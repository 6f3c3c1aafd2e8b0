"""doctor's lines on the forges: whether they are reachable, the token and its permissions, and the enrolments."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.utils import timezone

from controlplane.registry import Finding
from controlplane.secrets import SecretUnreadable
from enrollment import permission_report
from enrollment.access import authorization
from enrollment.access.policy import policy_of
from enrollment.forge_access import capabilities, clock_skew, permissions, rate_limit
from enrollment.forge_access.clients import client_for, kind_of
from enrollment.forges.base import Forbidden, ForgeClient, ForgeError, NotFound, Unauthorized, explain
from enrollment.models import Forge, Repository, Right, Traffic
from enrollment.webhooks.reconcile import is_hook_desired

#: Maximum number of teams to check.
TEAMS = 20
#: The scope of tokens that lets one write to a repository.

ADD = "cc-ci forge add --url {url} --token-env VARIABLE"


def check_forges() -> Iterator[Finding]:
    forges = list(Forge.objects.filter(enabled=True))
    if not forges:
        yield Finding("forge", "warning", "no forge is configured", ADD.format(url="https://git.example.org"))
    for forge in forges:
        yield from check_forge(forge)


def check_forge(forge: Forge) -> Iterator[Finding]:
    """Check one forge: whether it answers, knows the token, what the token may do, and whether polling works."""
    name = f"forge {forge.name}"
    traffic = Traffic.objects.filter(forge=forge).first()
    if message := rate_limit.circuit_message(traffic, timezone.now()):
        yield Finding(name, "error", message, "cc-ci poll --once --now")
        return
    try:
        client = client_for(forge)
        version = client.version()
    except SecretUnreadable as error:
        yield Finding(name, "error", str(error), ADD.format(url=forge.url))
        return
    except ForgeError as error:
        yield Finding(name, "error", explain(error), f"curl {kind_of(forge).pages.version.format(forge=forge.url)}")
        return
    yield Finding(name, "ok", f"answers at {forge.url}, version {version}")
    if away := clock_skew.skew_message(client):
        yield Finding(f"{name} clock", "warning", away, "timedatectl")
    try:
        me = client.whoami()
    except Unauthorized:
        yield Finding(f"{name} token", "error", "the forge rejects the token", ADD.format(url=forge.url))
        return
    except ForgeError as error:
        yield Finding(f"{name} token", "error", explain(error), ADD.format(url=forge.url))
        return
    if message := permissions.stranger(forge, me):
        message = f"{message}: it would answer its own comments, or ignore those of the token's account"
        yield Finding(f"{name} token", "error", message, ADD.format(url=forge.url))
    else:
        yield Finding(f"{name} token", "ok", f"belongs to {me.login}")
    yield from _check_repositories(forge, client, name)
    yield from _check_teams(forge, client, me.login, name)
    yield from permission_report.findings(forge)
    if capabilities.contradicted(forge):
        yield Finding(
            name, "warning", "contradicts the capabilities that were found", f"cc-ci permissions --refresh --forge {forge.url}"
        )
    if traffic and traffic.refused_at and traffic.refused_at > timezone.now() - timedelta(hours=1):
        text = f"in the last hour the budget of {settings.CC_CI.requests_per_minute} requests a minute delayed some"
        yield Finding(f"{name} budget", "warning", text, "raise CC_CI_REQUESTS_PER_MINUTE in .env, if the forge can take more")
    if forge.last_error and forge.failures:
        yield Finding(f"{name} polling", "error", forge.last_error, "cc-ci poll --once")
    elif forge.last_ok_at is None or forge.last_ok_at < timezone.now() - timedelta(seconds=10 * settings.CC_CI.poll_seconds + 60):
        yield Finding(f"{name} polling", "warning", "has not been polled for a while: is a worker running?", "cc-ci work --web")
    else:
        yield Finding(f"{name} polling", "ok", f"last polled {forge.last_ok_at:%Y-%m-%d %H:%M:%S}")


def _check_repositories(forge: Forge, client: ForgeClient, name: str) -> Iterator[Finding]:
    rows = list(Repository.objects.watched().filter(forge=forge))
    if not rows:
        yield Finding(f"{name} repositories", "warning", "none enrolled", "cc-ci enroll OWNER/REPO")
        return
    kind, gone = kind_of(forge), []
    lacks = permission_report.lacking(Right.objects.filter(forge=forge, held=Right.Held.NO), kind)
    for row in rows[:20]:
        try:
            remote = client.repository_by_id(row.forge_repo_id)
        except (NotFound, Forbidden):
            gone.append(row.full_name)
            continue
        except ForgeError as error:
            yield Finding(f"{name} repositories", "error", f"{row.full_name}: {error}", "cc-ci doctor")
            return
        mighty = "admin" in remote.permissions or "push" in remote.permissions
        if mighty and not is_hook_desired(row) and kind.scopes.get("push") not in lacks:
            yield Finding(
                f"{name} permissions",
                "warning",
                f"the token's account may write to {remote.full_name}; cc-ci only needs to read and to comment",
                f"remove the write permission of {forge.bot_login or 'the bot'} at "
                f"{kind.pages.collaborators.format(repository=remote.html_url)}",
            )
    if gone:
        yield Finding(
            f"{name} repositories",
            "error",
            f"cannot be read: {', '.join(gone)}",
            f"give {forge.bot_login} read access there, or: cc-ci unenroll {gone[0]}",
        )
    else:
        yield Finding(f"{name} repositories", "ok", f"{len(rows)} enrolled, readable")


def _check_teams(forge: Forge, client: ForgeClient, login: str, name: str) -> Iterator[Finding]:
    """Check the teams that policies name: if the token cannot see one, its members may not ask."""
    rows = Repository.objects.watched().filter(forge=forge).select_related("forge")
    wanted = {(row.owner, team): row for row in rows if (team := policy_of(row).team)}
    for (owner, team), row in sorted(wanted.items(), key=lambda item: item[0])[:TEAMS]:
        if authorization.is_a_person(row):
            continue
        try:
            if client.in_team(owner, team, login) is not None:
                continue
            scope = authorization.scope_for(forge, "membership")
            reason = f"it does not exist, or cc-ci is not in it{f', or the token lacks the {scope}' if scope else ''}"
        except ForgeError as error:
            reason = str(error)
        text = f"members of the team {team} of {owner}, whom a policy allows to ask, are not recognised: {reason}"
        page = kind_of(forge).pages.teams.format(forge=forge.url, owner=owner)
        yield Finding(f"{name} teams", "warning", text, f"add {login} to the team at {page}")


def trouble_card(request: Any) -> dict[str, Any]:
    """For the start page: the forges that are not asked at present, because they fail or requested a pause."""
    now = timezone.now()
    rows = Traffic.objects.filter(forge__enabled=True).select_related("forge")
    found = [{"name": row.forge.name, "message": rate_limit.circuit_message(row, now)} for row in rows]
    # What the forge answered is shown on its page in the admin only, not where everybody can read it.
    return {"troubles": [{**one, "message": one["message"].partition(" Last: ")[0]} for one in found if one["message"]]}
