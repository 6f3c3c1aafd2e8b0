"""Recipes with a history: git repositories made from test data, published in versions, with a pull request."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infra.deployers.docker.api import KINDS, ids
from infra.deployers.docker.cli import LABEL_RUN
from runs.harness.protocol import Limits, Request, RunFolder, Source
from tests.runs.harness.conftest import git

DATA = Path(__file__).resolve().parents[1] / "data" / "recipes"
FIRST = "1.0.0+1.36.1"
INSTALLATION = f"e2e-{uuid.uuid4().hex[:8]}"


class Repository:
    """A recipe's repository, with the data's files as its first published version."""

    def __init__(self, folder: Path, recipe: str = "whole", published: str = FIRST) -> None:
        self.folder = folder
        shutil.copytree(DATA / recipe, folder)
        git(folder, "init", "--quiet", "--initial-branch=main")
        self.commit("Begin")
        if published:
            git(folder, "tag", "--annotate", "--message", published, published)

    def commit(self, message: str) -> str:
        git(self.folder, "add", "--all")
        git(self.folder, "commit", "--quiet", "--allow-empty", "--message", message)
        return git(self.folder, "rev-parse", "HEAD")

    def edit(self, changes: Mapping[str, Mapping[str, str] | str]) -> None:
        """Write whole files, or replace texts in them, each of which has to be there."""
        for name, change in changes.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(change, str):
                path.write_text(change)
                continue
            text = path.read_text()
            for old, new in change.items():
                assert old in text, f"{name} has no {old!r}"
                text = text.replace(old, new)
            path.write_text(text)

    def pull(self, changes: Mapping[str, Mapping[str, str] | str]) -> Source:
        """A pull request with these changes."""
        git(self.folder, "checkout", "--quiet", "-B", "change", "main")
        self.edit(changes)
        sha = self.commit("Change")
        git(self.folder, "update-ref", "refs/pull/1/head", sha)
        git(self.folder, "checkout", "--quiet", "main")
        return Source(url=f"file://{self.folder}", ref="refs/pull/1/head", sha=sha)

    @property
    def main(self) -> Source:
        return Source(url=f"file://{self.folder}", ref="refs/heads/main")


#: What makes version 1.1.0 of the recipe `whole`: another page under another name, a label, a new secret.
NEXT: dict[str, Mapping[str, str] | str] = {
    "compose.yml": {
        FIRST: "1.1.0+1.36.1",
        "secrets:\n      - session_key\n": "secrets:\n      - session_key\n      - second_key\n",
        "secrets:\n  session_key:": "secrets:\n  second_key:\n    external: true\n"
        "    name: ${STACK_NAME}_second_key_${SECRET_SECOND_KEY_VERSION}\n  session_key:",
    },
    "index.html": {"1.0.0": "1.1.0"},
    "abra.sh": {"INDEX_VERSION=v1": "INDEX_VERSION=v2"},
    ".env.sample": {"SECRET_SESSION_KEY_VERSION=v1": "SECRET_SECOND_KEY_VERSION=v1\nSECRET_SESSION_KEY_VERSION=v1"},
}
ALL = ["install", "upgrade", "backup", "restore", "custom"]


def folder_of(tmp_path: Path, source: Source, base: Source | None, **changes: Any) -> RunFolder:
    """A run folder with a request for the Swarm."""
    run_id = uuid.uuid4().hex
    folder = RunFolder(tmp_path / "runs" / run_id / "1")
    request = {
        "run_id": run_id,
        "installation_id": INSTALLATION,
        "recipe": "whole",
        "source": source,
        "base": base,
        "stages": ALL,
        "deployer": "swarm",
        "limits": Limits(run_seconds=800, settle_seconds=300),
        "picture": False,
        **changes,
    }
    folder.write_request(Request.model_validate(request))
    return folder


def left(folder: RunFolder) -> list[str]:
    """What of this run is still on the Swarm."""
    return [name for kind in KINDS for name in ids(kind, f"{LABEL_RUN}={folder.request().run_id}")]
