"""What keeps an executor from working, found before a run needs it: for `cc-ci executor check` and doctor."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from django.utils import timezone
from yaml import YAMLError

from controlplane.registry import Finding
from controlplane.secrets import SecretUnreadable
from enrollment.forge_access.clients import client_for
from enrollment.forges.base import ForgeError, NotFound, Unauthorized
from enrollment.models import Forge
from infra.deployers.compose import safeyaml
from runs.executors.drone import QUEUED, explain
from runs.executors.drone_api import Drone, Repo
from runs.executors.local import limits
from runs.models import RemoteExecutor

#: A custom build has this event.
EVENT = "custom"
#: No pipeline that a person wrote is longer.
LONGEST = 100_000
#: Parameters of a build.
PARAMETERS = {"STAGES", "EXTRA_TESTS", "CC_CI_REQUEST", "CC_CI_KEY", "CC_CI_RUN_ID", "CC_CI_ATTEMPT"}


def check_executors() -> Iterator[Finding]:
    for row in RemoteExecutor.objects.all():
        yield from check_executor(row)


def check_executor(row: RemoteExecutor) -> Iterator[Finding]:
    """Check one executor: the server, the token, the runner repository and its pipeline, and whether runners work."""
    name = f"executor {row.name}"
    again = f"cc-ci executor check {row.name}"
    add = f"cc-ci executor add {row.name} --url {row.url} --repository {row.repository} --token-env VARIABLE"
    settings_page = f"{row.url}/{row.repository}/settings"
    try:
        drone = Drone(row)
        login = drone.whoami()
    except (SecretUnreadable, Unauthorized) as error:
        text = str(error) if isinstance(error, SecretUnreadable) else "Drone does not accept the token"
        yield Finding(name, "error", text, add)
        return
    except ForgeError as error:
        yield Finding(name, "error", explain(row, error), f"curl {row.url}/healthz")
        return
    try:
        repo = drone.repo()
        builds = drone.builds(1)
    except NotFound:
        text = f"{login} sees no repository {row.repository} in Drone"
        yield Finding(name, "error", text, f"log in as {login} at {row.url}, press Sync, and activate {row.repository}")
        return
    except ForgeError as error:
        yield Finding(name, "error", explain(row, error), again)
        return
    clean = True
    if not repo.active:
        clean = False
        yield Finding(name, "error", f"{row.repository} is disabled in Drone", f"activate it at {settings_page}")
    if not (repo.write or drone.admin):
        clean = False
        text = f"{login} may not start builds of {row.repository}"
        yield Finding(
            name, "error", text, f"give {login} write access to {row.repository} at the forge, then press Sync at {row.url}"
        )
    if repo.visibility != "private":
        clean = False
        text = f"{row.repository} is {repo.visibility} in Drone: others read there the keys that sign the reports of builds"
        yield Finding(
            name, "error", text, f"make it private at the forge, and set Project Visibility to Private at {settings_page}"
        )
    if not repo.closed:
        clean = False
        text = f"Drone takes builds of pull requests and forks of {row.repository}: whoever opens one could use its runner"
        yield Finding(name, "warning", text, f"disable pull requests and forks at {settings_page}")
    longest = int(limits().longest / 60) + 2
    if 0 < repo.timeout_minutes < longest:
        clean = False
        text = f"Drone ends builds of {row.repository} after {repo.timeout_minutes} minutes, a run may take {longest}"
        yield Finding(name, "warning", text, f"set Timeout to {longest} minutes or more at {settings_page}")
    waiting = [build for build in builds if build.status == "pending" and timezone.now() - build.created > timedelta(minutes=10)]
    if waiting and not any(build.status == "running" for build in builds):
        clean = False
        text = (
            f"build {waiting[-1].number} has been waiting for a runner for more than 10 minutes (it is given up after {QUEUED})"
        )
        page = drone.page(waiting[-1].number)
        fix = f"start a runner that fits the pipeline, see {page}; a server built with the tag oss takes none"
        yield Finding(name, "error", text, fix)
    for finding in _check_pipeline(row, repo, name):
        clean = clean and finding.level == "ok"
        yield finding
    if clean:
        yield Finding(name, "ok", f"Drone at {row.url} starts builds of {row.repository} for {login}")


def _check_pipeline(row: RemoteExecutor, repo: Repo, name: str) -> Iterator[Finding]:
    """Read the pipeline where it is: at one of our forges, if the runner repository is there."""
    host = urlsplit(repo.clone_url).netloc
    forge = next((forge for forge in Forge.objects.all() if urlsplit(forge.url).netloc == host), None)
    page = "paste the pipeline of docs/executors/drone.md"
    if forge is None:
        text = f"the pipeline of {row.repository} is at {host or 'an unknown forge'}, where cc-ci has no token: not checked"
        yield Finding(f"{name} pipeline", "ok", text)
        return
    owner, _, repository = row.repository.partition("/")
    try:
        data = client_for(forge).read_file(owner, repository, repo.config, row.branch).content
    except NotFound:
        text = f"{row.repository} has no {repo.config} on {row.branch} that cc-ci's user at {forge.name} can read"
        yield Finding(
            f"{name} pipeline", "error", text, f"{page} as {repo.config}, or give {forge.bot_login or 'the bot'} read access"
        )
        return
    except (ForgeError, SecretUnreadable) as error:
        yield Finding(f"{name} pipeline", "warning", f"not checked: {error}", "cc-ci doctor")
        return
    if problem := pipeline_problem(data.decode(errors="replace"), row.branch):
        yield Finding(f"{name} pipeline", "error", f"{repo.config} of {row.repository}: {problem}", page)


def pipeline_problem(text: str, branch: str) -> str:
    """Why no pipeline in this file would run for a build of ours; empty if one does. Pure."""
    if len(text) > LONGEST:
        return f"it is longer than {LONGEST} characters"
    try:
        documents = [safeyaml.load(part)[0] for part in re.split(r"(?m)^---(?=\s|$)", text)]
    except (YAMLError, ValueError, RecursionError) as error:
        return f"invalid YAML: {' '.join(str(error).split())[:200]}"
    found = [one for one in map(_mapping, documents) if one.get("kind") == "pipeline"]
    if not found:
        return "it has no pipeline"
    triggers = [_mapping(one.get("trigger")) for one in found]
    if not any(_admits(trigger.get("event"), EVENT) for trigger in triggers):
        return f"no pipeline runs for custom builds: add `{EVENT}` to its `trigger: event:`"
    if not any(_admits(one.get("event"), EVENT) and _admits(one.get("branch"), branch) for one in triggers):
        return f"no pipeline runs for custom builds of the branch {branch}: change its `trigger: branch:`"
    steps = [_mapping(step) for one in found for step in (one["steps"] if isinstance(one.get("steps"), list) else [])]
    for one in (*found, *steps):
        if hidden := set(_mapping(one.get("environment"))) & PARAMETERS:
            return f"an `environment:` hides the build's parameter {min(hidden)}: remove that line"
    if "harness" not in text:
        return "no step calls `cc-ci harness`"
    return ""


def _mapping(found: object) -> dict[Any, Any]:
    """What is not a mapping, though it should be, is an empty one."""
    return found if isinstance(found, dict) else {}


def _admits(rule: object, value: str) -> bool:
    """Whether a condition of Drone's admits a value: a word, a list, or `include` and `exclude`; with `*` as a pattern."""
    from fnmatch import fnmatchcase

    def words(found: object) -> list[str]:
        return [str(word) for word in found] if isinstance(found, list) else [str(found)] if found else []

    if isinstance(rule, dict):
        included, excluded = words(rule.get("include")), words(rule.get("exclude"))
    else:
        included, excluded = words(rule), []
    if any(fnmatchcase(value, pattern) for pattern in excluded):
        return False
    return not included or any(fnmatchcase(value, pattern) for pattern in included)
