"""doctor's lines on the forges: reachable, the token and its rights, what is enrolled."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.utils import timezone

from controlplane.registry import Finding
from controlplane.secrets import SecretUnreadable
from enrollment import abilities, budget, clocks, rights, rights_told, trust
from enrollment.clients import client_for
from enrollment.forges.base import Forbidden, ForgeClient, ForgeError, NotFound, Unauthorized
from enrollment.hook_reconcile import is_wanted
from enrollment.models import Forge, Repository, Right, Traffic
from enrollment.policies import policy_of

#: Teams that are asked about.
TEAMS = 20
#: The scope of tokens that lets one write to a repository.
WRITING = rights.RIGHTS["push"].scope

ADD = "cc-ci forge add --url {url} --token-env VARIABLE"


def check_forges() -> Iterator[Finding]:
    forges = list(Forge.objects.filter(enabled=True))
    if not forges:
        yield Finding("forge", "warning", "no forge is known", ADD.format(url="https://git.example.org"))
    for forge in forges:
        yield from check_forge(forge)


def check_forge(forge: Forge) -> Iterator[Finding]:
    """One forge: does it answer, does it know the token, what may the token do at a repository, does polling go on."""
    name = f"forge {forge.name}"
    traffic = Traffic.objects.filter(forge=forge).first()
    if words := budget.words_on(traffic, timezone.now()):
        yield Finding(name, "error", words, "cc-ci poll --once --now")
        return
    try:
        client = client_for(forge)
        version = client.version()
    except SecretUnreadable as error:
        yield Finding(name, "error", str(error), ADD.format(url=forge.url))
        return
    except ForgeError as error:
        yield Finding(name, "error", f"{error}. {error.advice}", f"curl {forge.url}/api/v1/version")
        return
    yield Finding(name, "ok", f"answers at {forge.url}, version {version}")
    if away := clocks.words_on(client):
        yield Finding(f"{name} clock", "warning", away, "timedatectl")
    try:
        me = client.whoami()
    except Unauthorized:
        yield Finding(f"{name} token", "error", "the forge does not know the token", ADD.format(url=forge.url))
        return
    except ForgeError as error:
        yield Finding(f"{name} token", "error", f"{error}. {error.advice}", ADD.format(url=forge.url))
        return
    if words := rights.stranger(forge, me):
        words = f"{words}, and would answer its own comments, or none of its account's"
        yield Finding(f"{name} token", "error", words, ADD.format(url=forge.url))
    else:
        yield Finding(f"{name} token", "ok", f"belongs to {me.login}")
    yield from _check_repositories(forge, client, name)
    yield from _check_teams(forge, client, me.login, name)
    yield from rights_told.findings(forge)
    if abilities.contradicted(forge):
        yield Finding(
            name, "warning", "behaves otherwise than was found out about it", f"cc-ci rights --refresh --forge {forge.url}"
        )
    if traffic and traffic.refused_at and traffic.refused_at > timezone.now() - timedelta(hours=1):
        text = f"in the last hour the budget of {settings.CC_CI.requests_per_minute} requests a minute held something back"
        yield Finding(f"{name} budget", "warning", text, "CC_CI_REQUESTS_PER_MINUTE in .env, if the forge can take more")
    if forge.last_error and forge.failures:
        yield Finding(f"{name} polling", "error", forge.last_error, "cc-ci poll --once")
    elif forge.last_ok_at is None or forge.last_ok_at < timezone.now() - timedelta(seconds=10 * settings.CC_CI.poll_seconds + 60):
        yield Finding(
            f"{name} polling", "warning", "has not been looked at for a while: is a worker running?", "cc-ci work --web"
        )
    else:
        yield Finding(f"{name} polling", "ok", f"last look at {forge.last_ok_at:%Y-%m-%d %H:%M:%S}")


def _check_repositories(forge: Forge, client: ForgeClient, name: str) -> Iterator[Finding]:
    rows = list(Repository.objects.watched().filter(forge=forge))
    if not rows:
        yield Finding(f"{name} repositories", "warning", "none is enrolled", "cc-ci enroll OWNER/REPO")
        return
    gone, lacks = [], rights_told.lacking(Right.objects.filter(forge=forge, held=Right.Held.NO))
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
        if mighty and not is_wanted(row) and WRITING not in lacks:
            yield Finding(
                f"{name} rights",
                "warning",
                f"the account of the token may write to {remote.full_name}; cc-ci needs to read and to comment only",
                f"take away the write right of {forge.bot_login or 'the bot'} at {remote.html_url}/settings/collaboration",
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
    """The teams that policies name: one that the token may not see lets nobody ask."""
    rows = Repository.objects.watched().filter(forge=forge).select_related("forge")
    wanted = {(row.owner, team): row for row in rows if (team := policy_of(row).team)}
    for (owner, team), row in sorted(wanted.items(), key=lambda item: item[0])[:TEAMS]:
        if trust.is_a_person(row):
            continue
        try:
            if client.in_team(owner, team, login) is not None:
                continue
            reason = f"there is none, or cc-ci is not in it, or the token lacks the scope {trust.MEMBERSHIP_SCOPE}"
        except ForgeError as error:
            reason = str(error)
        text = f"nobody is recognised by the team {team} of {owner}, which a policy lets ask: {reason}"
        yield Finding(f"{name} teams", "warning", text, f"put {login} into the team at {forge.url}/org/{owner}/teams")


def trouble_card(request: Any) -> dict[str, Any]:
    """For the start page: the forges that are left alone because they fail, or asked for it."""
    now = timezone.now()
    rows = Traffic.objects.filter(forge__enabled=True).select_related("forge")
    found = [{"name": row.forge.name, "words": budget.words_on(row, now)} for row in rows]
    # What the forge said stands on its page in the admin, and not where everybody reads.
    return {"troubles": [{**one, "words": one["words"].partition(" Last: ")[0]} for one in found if one["words"]]}
