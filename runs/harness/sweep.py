"""Removes what dead runs left on this machine."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from infra.deployers.errors import DeployError
from infra.deployers.isolation import trees
from infra.deployers.process import deployer
from infra.deployers.swarm import ephemeral
from runs.harness import oidc
from runs.harness.protocol import FolderState, RunFolder


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m runs.harness sweep")
    parser.add_argument("--installation", required=True)
    parser.add_argument("--runs-dir", type=Path, help="folder of runs; a run is alive if one of its attempts here has a harness")
    parser.add_argument("--oidc-url", default="", help="the provider whose left-over realms to remove")
    parser.add_argument("--oidc-user", default="admin", help='read its password from standard input: {"oidc_password": …}')
    options = parser.parse_args(arguments)
    failed = sweep(options.installation, options.runs_dir)
    if options.oidc_url:
        password = json.loads(sys.stdin.read() or "{}").get("oidc_password", "")
        provider = oidc.Provider(options.oidc_url, options.oidc_user, password, options.installation)
        failed = max(failed, sweep_realms(provider, options.runs_dir))
    return failed


def sweep(installation: str, runs: Path | None = None) -> int:
    """Have every deployer remove what belongs to this installation but to no live run. Returns 0 if nothing is left."""
    removed = deployer.sweep()
    left: list[str] = []
    if not ephemeral.swarm_problem():
        try:
            gone, left = ephemeral.sweep(installation, _alive(runs))
            removed += gone
        except DeployError as error:
            left = [str(error)]
    if runs:
        gone, kept = _work_folders(runs)
        removed += gone
        left += kept
    for line in [*(f"removed {name}" for name in removed), *(f"left {name}" for name in left)]:
        print(line)  # noqa: T201
    return 1 if left else 0


def sweep_realms(provider: oidc.Provider, runs: Path | None = None) -> int:
    """Remove realms left by this installation's runs. Returns 0 if the provider allowed it."""
    try:
        for name in provider.sweep(_alive(runs)):
            print(f"removed realm {name}")  # noqa: T201
    except oidc.OidcError as error:
        print(f"left realms: {error}")  # noqa: T201
        return 1
    return 0


def _alive(runs: Path | None) -> Callable[[str], bool]:
    def alive(run_id: str) -> bool:
        attempts = runs.joinpath(run_id).glob("*") if runs else ()
        return any(RunFolder(attempt).state() is FolderState.RUNNING for attempt in attempts)

    return alive


def _work_folders(runs: Path) -> tuple[list[str], list[str]]:
    """Remove checkouts and sockets of killed harnesses. Returns the removed ones and the remaining ones."""
    removed: list[str] = []
    left: list[str] = []
    for work in runs.glob("*/*/work"):
        if RunFolder(work.parent).state() is not FolderState.RUNNING:
            (removed if trees.remove(work) else left).append(str(work.relative_to(runs)))
    return removed, left
