"""Drone's API (2.x), as far as an executor needs it; docs/executors/drone.md has what Drone does otherwise than one expects."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import requests
from urllib3.exceptions import HTTPError

from enrollment.forges.base import NotFound
from enrollment.forges.http import json_of, session_for, storable
from infra.deployers.compose import safeyaml
from runs.executors.engine import (
    Build,
    Engine,
    Repo,
    Step,
    admits,
    environment_problem,
    listed,
    mapping,
    number_of,
    object_of,
    objects_of,
)

#: The most that is read of a running step's log.
LIVE_BYTES = 8 << 20
#: The longest message in it. Decoded, JSON may take 50 times its size; a piece of a log is at most 32 kB.
LIVE_MESSAGE = 1 << 20


class Drone(Engine):
    label = "Drone"
    major = "2"
    can = frozenset({"pin", "cancel", "logs"})
    event = "custom"
    final = frozenset({"skipped", "declined", "success", "failure", "killed", "error"})
    pipelines = (".drone.yml",)
    trigger = "Add `custom` to its `trigger: event:`"
    closing = "disable pull requests and forks"
    account = "/account"
    takes_none = "a server built with the tag `oss` takes no runners"
    when_silent = (
        "If {engine.repository} has no pipeline on {engine.branch}, it searches for one for 45 seconds first: paste the one of "
        "{engine.docs} there"
    )
    listing = {"per_page": 100}  # Drone gives no more
    build_word = "build"
    params_key, stages_key, steps_key, number_key, status_key = "params", "stages", "steps", "number", "status"

    def page(self, number: int) -> str:
        return f"{self.url}/{self.repository}/{number}"

    @property
    def settings_page(self) -> str:
        return f"{self.url}/{self.repository}/settings"

    def repo(self) -> Repo:
        found = mapping(self._get(f"/repos/{self._path()}"))
        return Repo(
            active=found.get("active") is True,
            write=object_of(found.get("permissions")).get("write") is True,
            timeout_minutes=number_of(found, "timeout"),
            clone_url=str(found.get("git_http_url", "")),
            config=str(found.get("config_path") or ""),
            visibility=str(found.get("visibility") or ("private" if found.get("private") is True else "public")),
            closed=found.get("ignore_pull_requests") is True and found.get("ignore_forks") is True,
        )

    @property
    def builds_path(self) -> str:
        return f"/repos/{self._path()}/builds"

    def create(self, params: Mapping[str, str]) -> Build | None:
        """Parameters count in the query only."""
        response = self._http.once("POST", self.builds_path, {"branch": self.branch, **params})
        if response.status_code == 204:
            return None
        found = json_of(response)
        return None if found is None else self.read(found)

    def cancel(self, number: int) -> None:
        self._http.once("DELETE", f"{self.builds_path}/{number}")

    def log(self, step: Step, number: int) -> str | None:
        try:
            found = self._get(f"{self.builds_path}/{number}/logs/{step.stage}/{step.number}")
        except NotFound:
            return None
        return "".join(map(_line, listed(found))) if found else None

    def live_log(self, step: Step, number: int, seconds: float) -> str:
        """What Drone remembers of it, its last 5000 lines at most: it is in no log before the step ends."""
        path = f"/stream/{self.repository}/{number}/{step.stage}/{step.number}"
        data = bytearray()
        try:
            with session_for(self._http.address).get(
                self._http.address + path,
                headers=self._http.headers,
                timeout=seconds,  # for all of it
                stream=True,
                allow_redirects=False,
            ) as response:
                while response.status_code == 200 and len(data) < LIVE_BYTES:
                    part = response.raw.read1(64 * 1024)
                    data += part
                    if not part or data.endswith(b"data: eof\n\n"):
                        break
        except (requests.RequestException, HTTPError, OSError, ValueError):
            pass  # only ever a preview: the stored log is what counts
        return "".join(_events(bytes(data)))

    @classmethod
    def pipeline_problem(cls, text: str, branch: str) -> str:
        documents = [safeyaml.load(part)[0] for part in re.split(r"(?m)^---(?=\s|$)", text)]
        found = [one for one in map(object_of, documents) if one.get("kind") == "pipeline"]
        if not found:
            return "it has no pipeline"
        triggers = [object_of(one.get("trigger")) for one in found]
        if not any(admits(trigger.get("event"), cls.event) for trigger in triggers):
            return f"no pipeline runs for custom builds: add `{cls.event}` to its `trigger: event:`"
        if not any(admits(one.get("event"), cls.event) and admits(one.get("branch"), branch) for one in triggers):
            return f"no pipeline runs for custom builds of the branch {branch}: change its `trigger: branch:`"
        return environment_problem([*found, *(step for one in found for step in objects_of(one.get("steps")))], text)

    def error_of(self, build: Mapping[str, Any]) -> str:
        return str(build.get("error") or "")


def _events(data: bytes) -> Iterator[str]:
    """The lines in a stream of server-sent events, as far as it was read."""
    for line in data.splitlines():
        if line.startswith(b"data: {") and len(line) <= LIVE_MESSAGE:
            try:
                yield _line(storable(json.loads(line[6:])))
            except (ValueError, RecursionError):  # cut
                return


def _line(row: Any) -> str:
    """A piece of a log, with its newline if it has one: what is written in one go may be cut anywhere."""
    text = object_of(row).get("out")
    return text if isinstance(text, str) else ""
