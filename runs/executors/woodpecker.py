"""Woodpecker's API (3.x), as far as an executor needs it. docs/executors/woodpecker.md has what surprises there."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import requests

from enrollment.forges.base import Garbage, NotFound, Rejected
from enrollment.forges.http import json_of, storable
from infra.deployers.compose import safeyaml
from runs.executors.engine import (
    Build,
    Engine,
    Repo,
    Step,
    admits,
    children,
    environment_problem,
    listed,
    mapping,
    number_of,
    object_of,
    objects_of,
)

#: In every answer of Woodpecker itself, and in none of a proxy before it.
HEADER = "X-Woodpecker-Version"
#: The kinds of lines in a log: what a step wrote to stdout and stderr. Others are exit codes, metadata and progress.
WRITTEN = (0, 1)
#: What the step has to set, so that no variable of a build names another forge for the login.
FORGE = "CI_REPO_CLONE_URL"


class Woodpecker(Engine):
    label = "Woodpecker"
    major = "3"
    can = frozenset({"cancel", "logs"})
    event = "manual"
    final = frozenset({"skipped", "declined", "success", "failure", "killed", "error", "canceled"})
    pipelines = (".woodpecker.yaml", ".woodpecker.yml")
    trigger = "Add `event: manual` to its `when:`"
    closing = "switch off Allow Pull Requests"
    account = "/user/cli-and-api"
    takes_none = "its labels have to be those of the pipeline"
    when_silent = "It also fails like this if {engine.repository} has no branch {engine.branch} at the forge"
    listing = {"perPage": 50, "event": event}  # Woodpecker gives no more
    build_word = "pipeline"
    params_key, stages_key, steps_key, number_key, status_key = "variables", "workflows", "children", "pid", "state"

    def page(self, number: int) -> str:
        return f"{self.url}/repos/{self._id}/pipeline/{number}"

    @property
    def settings_page(self) -> str:
        return f"{self.url}/repos/{self._id}/settings"

    @staticmethod
    def message(response: requests.Response) -> str | None:
        """Its errors are text, most of them empty."""
        return str(storable(response.content[:200].decode(errors="replace"))) if HEADER in response.headers else None

    def repo(self) -> Repo:
        found = self._found
        permissions = mapping(self._get(f"/repos/{self._id}/permissions"))
        return Repo(
            active=found.get("active") is True,
            write=permissions.get("push") is True,
            timeout_minutes=number_of(found, "timeout"),
            clone_url=str(found.get("clone_url", "")),
            config=str(found.get("config_file") or ""),
            visibility=str(found.get("visibility") or "public"),
            closed=found.get("allow_pr") is False,
        )

    @property
    def builds_path(self) -> str:
        return f"/repos/{self._id}/pipelines"

    def create(self, params: Mapping[str, str]) -> Build | None:
        """At the head of the branch: a commit cannot be asked for."""
        response = self._http.once("POST", self.builds_path, body={"branch": self.branch, "variables": dict(params)})
        return None if response.status_code == 204 else self.read(json_of(response))

    def cancel(self, number: int) -> None:
        try:
            self._http.once("POST", f"{self.builds_path}/{number}/cancel")
        except Rejected:  # one that does not run: it ended, or is being created
            if not self.build(number).final:
                raise

    def log(self, step: Step, number: int) -> str | None:
        try:
            found = listed(self._get(f"/repos/{self._id}/logs/{number}/{step.id}"))
        except NotFound:
            return None
        rows = [row for row in map(object_of, found) if row and row.get("type", 0) in WRITTEN]
        return "".join(map(_line, sorted(rows, key=lambda row: number_of(row, "line")))) or None

    def live_log(self, step: Step, number: int, seconds: float) -> str:
        """It is stored as it comes."""
        return self.log(step, number) or ""

    @classmethod
    def pipeline_problem(cls, text: str, branch: str) -> str:
        found = object_of(safeyaml.load(text)[0])
        steps = found.get("steps")
        if not steps:
            return "it has no steps"
        when = found.get("when")
        rules = objects_of(when) or [object_of(when)]
        if not any(admits(rule.get("event"), cls.event) for rule in rules):
            return f"it does not run for builds that are asked for: add `event: {cls.event}` to its `when:`"
        if not any(admits(rule.get("event"), cls.event) and admits(rule.get("branch"), branch) for rule in rules):
            return f"it does not run for such builds of the branch {branch}: change the `branch:` of its `when:`"
        all_steps = [object_of(step) for step in steps.values()] if isinstance(steps, dict) else objects_of(steps)
        for step in all_steps:
            environment = object_of(step.get("environment"))
            if "CC_CI_GIT_TOKEN" in environment and environment.get(FORGE) != f"${{{FORGE}}}":
                return f"whoever starts a build could send CC_CI_GIT_TOKEN anywhere: add `{FORGE}: ${{{FORGE}}}` to its step"
        return environment_problem([found, *all_steps], text)

    @cached_property
    def _found(self) -> dict[str, Any]:
        found = mapping(self._get(f"/repos/lookup/{self._path()}"))
        if number_of(found, "id") < 1:
            raise Garbage("Woodpecker's answer is not a repository")
        return found

    @property
    def _id(self) -> int:
        """Everything about a repository is asked for by its number."""
        return number_of(self._found, "id")

    def error_of(self, build: Mapping[str, Any]) -> str:
        errors = (str(error.get("message", "")) for error in children(build, "errors") if error.get("is_warning") is not True)
        return "; ".join(errors)[:500]

    @classmethod
    def step_id(cls, step: Mapping[str, Any]) -> int | None:
        found = number_of(step, "id")
        return found if 0 < found < 2**63 else None


def _line(row: Mapping[str, Any]) -> str:
    """A line; its newline is not stored."""
    try:
        data = base64.b64decode(row.get("data") or "", validate=True)
    except (binascii.Error, ValueError, TypeError):
        data = b""
    return f"{data.decode(errors='replace')}\n".replace("\0", "\N{REPLACEMENT CHARACTER}")
