"""What keeps an executor from working, found before a run needs it: for `cc-ci executor check` and doctor."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from urllib.parse import urlsplit

from django.utils import timezone
from yaml import YAMLError

from controlplane.registry import Finding
from controlplane.secrets import SecretUnreadable
from enrollment.forge_access.clients import client_for
from enrollment.forges.base import ForgeError, NotFound, Unauthorized
from enrollment.models import Forge
from runs.executors.builds import QUEUED
from runs.executors.engine import CAPABILITIES, Engine, Repo
from runs.executors.local import limits
from runs.executors.select import ENGINES
from runs.models import RemoteExecutor

#: No pipeline that a person wrote is longer.
LONGEST = 100_000


def check_executors() -> Iterator[Finding]:
    for row in RemoteExecutor.objects.all():
        yield from check_executor(row)


def check_executor(row: RemoteExecutor) -> Iterator[Finding]:
    """Check one executor: the server, the token, the runner repository and its pipeline, and whether runners work.

    Notes in the row which version it is, and what it can do.
    """
    name = f"executor {row.name}"
    again = f"cc-ci executor check {row.name}"
    add = f"cc-ci executor add {row.name} --kind {row.kind} --url {row.url} --repository {row.repository} --token-env VARIABLE"
    label = ENGINES[row.kind].label
    try:
        engine = ENGINES[row.kind](row)
        login = engine.whoami()
    except (SecretUnreadable, Unauthorized) as error:
        text = str(error) if isinstance(error, SecretUnreadable) else f"{label} does not accept the token"
        yield Finding(name, "error", text, add)
        return
    except ForgeError as error:
        yield Finding(name, "error", engine.explain(error), f"curl {row.url}/healthz")
        return
    try:
        repo = engine.repo()
        builds = engine.builds(1)
    except NotFound:
        text = f"{login} sees no repository {row.repository} in {label}"
        yield Finding(name, "error", text, f"log in as {login} at {row.url}, press Sync, and activate {row.repository}")
        return
    except ForgeError as error:
        yield Finding(name, "error", engine.explain(error), again)
        return
    writes = repo.write or engine.admin
    row.version = engine.version()
    row.capabilities = sorted(engine.can - (set() if writes else {"cancel"}))
    RemoteExecutor.objects.filter(pk=row.pk).update(version=row.version, capabilities=row.capabilities)
    clean = True
    if row.version[:1].isdecimal() and row.version.partition(".")[0] != engine.major:
        clean = False
        text = f"this is {label} {row.version}, and cc-ci knows {engine.major}.x"
        yield Finding(name, "warning", text, f"see {engine.docs}")
    if not repo.active:
        clean = False
        yield Finding(name, "error", f"{row.repository} is disabled in {label}", f"activate it at {engine.settings_page}")
    if not writes:
        clean = False
        text = f"{login} may not start builds of {row.repository}"
        yield Finding(
            name, "error", text, f"give {login} write access to {row.repository} at the forge, then press Sync at {row.url}"
        )
    if repo.visibility != "private":
        clean = False
        text = f"{row.repository} is {repo.visibility} in {label}: others read there the keys that sign the reports of builds"
        yield Finding(
            name, "error", text, f"make it private at the forge, and set Project Visibility to Private at {engine.settings_page}"
        )
    if not repo.closed:
        clean = False
        text = f"{label} takes builds of pull requests and forks of {row.repository}: whoever opens one could use its runner"
        yield Finding(name, "warning", text, f"{engine.closing} at {engine.settings_page}")
    longest = int(limits().longest / 60) + 2
    if 0 < repo.timeout_minutes < longest:
        clean = False
        text = f"{label} ends builds of {row.repository} after {repo.timeout_minutes} minutes, a run may take {longest}"
        yield Finding(
            name,
            "warning",
            text,
            f"set Timeout to {longest} minutes or more at {engine.settings_page}, as an administrator of {label}",
        )
    waiting = [build for build in builds if build.status == "pending" and timezone.now() - build.created > timedelta(minutes=10)]
    if waiting and not any(build.status == "running" for build in builds):
        clean = False
        text = (
            f"build {waiting[-1].number} has been waiting for a runner for more than 10 minutes (it is given up after {QUEUED})"
        )
        page = engine.page(waiting[-1].number)
        yield Finding(name, "error", text, f"start a runner that fits the pipeline, see {page}; {engine.takes_none}")
    for finding in _check_pipeline(engine, repo, name):
        clean = clean and finding.level == "ok"
        yield finding
    if clean:
        able = ", ".join(word for word in CAPABILITIES if word in row.capabilities)
        text = f"{label} {row.version} at {row.url} starts builds of {row.repository} for {login} ({able})"
        yield Finding(name, "ok", " ".join(text.split()))


def _check_pipeline(engine: Engine, repo: Repo, name: str) -> Iterator[Finding]:
    """Read the pipeline where it is: at one of our forges, if the runner repository is there."""
    name = f"{name} pipeline"
    host = urlsplit(repo.clone_url).netloc
    forge = next((forge for forge in Forge.objects.all() if urlsplit(forge.url).netloc == host), None)
    page = f"paste the pipeline of {engine.docs}"
    if forge is None:
        text = f"the pipeline of {engine.repository} is at {host or 'an unknown forge'}, where cc-ci has no token: not checked"
        yield Finding(name, "ok", text)
        return
    owner, _, repository = engine.repository.partition("/")
    places = (repo.config,) if repo.config else engine.pipelines
    for place in places:
        try:
            data = client_for(forge).read_file(owner, repository, place, engine.branch).content
        except NotFound:
            continue
        except (ForgeError, SecretUnreadable) as error:
            yield Finding(name, "warning", f"not checked: {error}", "cc-ci doctor")
            return
        if problem := pipeline_problem(type(engine), data.decode(errors="replace"), engine.branch):
            yield Finding(name, "error", f"{place} of {engine.repository}: {problem}", page)
        return
    text = f"{engine.repository} has no {places[0]} on {engine.branch} that cc-ci's user at {forge.name} can read"
    yield Finding(name, "error", text, f"{page} as {places[0]}, or give {forge.bot_login or 'the bot'} read access")


def pipeline_problem(kind: type[Engine], text: str, branch: str) -> str:
    """Why no pipeline in this file would run for a build of ours; empty if one does. Pure."""
    if len(text) > LONGEST:
        return f"it is longer than {LONGEST} characters"
    try:
        return kind.pipeline_problem(text, branch)
    except (YAMLError, ValueError, RecursionError) as error:
        return f"invalid YAML: {' '.join(str(error).split())[:200]}"
