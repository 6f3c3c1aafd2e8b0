"""Known-good data in the harness: who may not start on it, in what words, and its bounds. The Swarm's part is in tests/e2e."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from infra.deployers.base import Deployer, SavedData, SavedVolume
from infra.deployers.compose.recipe import Recipe
from infra.deployers.context import Context, Secret
from infra.deployers.docker.stacks import Owned
from infra.deployers.docker.tar_manifest import Manifest
from infra.deployers.docker.volumes import Volume, Volumes
from infra.deployers.errors import DeployError
from infra.deployers.swarm import ephemeral, saved_data
from infra.deployers.swarm.ephemeral import SwarmDeployer
from runs.harness import known_good
from runs.harness.protocol import Results, Verdict
from tests.runs.harness.conftest import RECIPES

Run = Callable[..., Results]

RUN = "0123456789ab4def8123456789abcdef"
SHA = "ab" * 20


class Saves:
    """A deployer that saves nothing but a secret."""

    context = SimpleNamespace(run_id=RUN, stack="ccci-0123456789ab", domain="there.localhost")

    def save(self, folder: Path, most: int) -> SavedData:
        (folder / "00.tar").write_bytes(b"x" * 10)
        return SavedData(folder, [SavedVolume("ccci-0123456789ab_data", "00.tar", "aa", 10)], {"key": "value"})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    assert known_good.save(cast(Deployer, Saves()), tmp_path / "data", SHA, 100) == 10
    return tmp_path / "data"


def nothing() -> None:
    pass


def test_what_is_saved_is_read_again(data: Path) -> None:
    assert {path.stat().st_mode & 0o777 for path in (data / known_good.FILE, data / known_good.SECRETS)} == {0o600}
    taken = known_good.take(str(data), 1, nothing)
    assert (taken.stack, taken.domain, taken.origin.run_id.hex, taken.origin.sha) == (
        "ccci-0123456789ab",
        "there.localhost",
        RUN,
        SHA,
    )
    assert taken.data({"key": "value"}) == Saves().save(data, 0)
    taken.release()


def test_one_run_at_a_time_uses_it(data: Path) -> None:
    taken = known_good.take(str(data), 1, nothing)
    with pytest.raises(known_good.Unusable, match="Other quick runs"):
        known_good.take(str(data), 0, nothing)

    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        known_good.take(str(data), 60, stop)
    taken.release()
    known_good.take(str(data), 0, nothing).release()


@pytest.mark.parametrize("text", ["", "{}", '{"run_id": 1}', "[" * 5000])
def test_what_cannot_be_read_is_not_used(data: Path, text: str) -> None:
    (data / known_good.FILE).write_text(text)
    with pytest.raises(known_good.Unusable, match="cannot be read"):
        known_good.take(str(data), 1, nothing)
    handle = os.open(data, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody holds it
    os.close(handle)


# --- volumes


@dataclass
class Copies(Volumes):
    """Docker's volumes without Docker: names with a content."""

    labels: Mapping[str, str] = field(default_factory=dict)
    image: str = "image"
    content: Mapping[str, bytes] = field(default_factory=dict)
    made: list[str] = field(default_factory=list)

    def pack(self, volume: str, target: Path) -> Manifest:
        with target.open("xb") as file:
            for byte in self.content[volume]:
                self.check()
                file.write(bytes([byte]))
                file.flush()
        return Manifest({})

    def replace(self, volume: Volume, source: Path) -> Manifest:
        self.made.append(volume.name)
        return Manifest({})


@pytest.fixture
def docker(monkeypatch: pytest.MonkeyPatch) -> dict[str, Volume]:
    there = {name: Volume(name) for name in ("one", "two")}
    monkeypatch.setattr(saved_data, "described", lambda names: [there[name] for name in names])
    monkeypatch.setattr(saved_data, "inspect", lambda kind, names: [name for name in names if name in there])
    monkeypatch.setattr(Owned, "ids", lambda self, kind: sorted(there))
    return there


def test_volumes_have_a_limit_together(docker: dict[str, Volume], tmp_path: Path) -> None:
    owned = Owned("stack", ())
    saved = saved_data.save(owned, Copies(content={"one": b"1234", "two": b"56"}), tmp_path, 6)
    assert [(volume.name, volume.file, volume.bytes) for volume in saved] == [("one", "00.tar", 4), ("two", "01.tar", 2)]
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    (tmp_path / "more").mkdir()
    with pytest.raises(DeployError, match="hold more than"):
        saved_data.save(owned, Copies(content={"one": b"1234", "two": b"56789" * 10}), tmp_path / "more", 6)
    assert (tmp_path / "more" / "01.tar").stat().st_size < 5, "it ended when there was too much"


def test_a_volume_with_options_of_its_own_is_not_saved(docker: dict[str, Volume], tmp_path: Path) -> None:
    docker["two"] = Volume("two", options={"type": "none", "o": "bind", "device": "/etc"})
    with pytest.raises(DeployError, match="The volume two has a driver or options of its own"):
        saved_data.save(Owned("stack", ()), Copies(content={"one": b"1", "two": b"2"}), tmp_path, 6)


def test_a_volume_that_is_not_ours_is_left_alone(docker: dict[str, Volume], tmp_path: Path) -> None:
    copies = Copies()
    empty = Manifest({}).sha256
    with pytest.raises(DeployError, match="There is a volume one already"):
        saved_data.load(SavedData(tmp_path, [SavedVolume("one", "00.tar", empty, 1)]), copies, {})
    assert not copies.made
    saved_data.load(SavedData(tmp_path, [SavedVolume("new", "00.tar", empty, 1)]), copies, {})
    assert copies.made == ["new"]
    with pytest.raises(DeployError, match="is not what was saved"):
        saved_data.load(SavedData(tmp_path, [SavedVolume("other", "00.tar", "0" * 64, 1)]), copies, {})


# --- secrets


def test_what_is_lent_to_a_run_goes_before_what_was_lent_to_the_one_that_left_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client of an OIDC realm that is gone would let nobody sign in."""
    names = {"database": "ccci_database_v1", "sso": "ccci_sso_v1"}
    made: dict[str, str] = {}
    monkeypatch.setattr(ephemeral, "docker", lambda *args, given="": made.update({args[-2]: given}))
    monkeypatch.setattr(ephemeral, "listed", lambda kind, **_: [])

    def secrets(**lent: str) -> dict[str, str]:
        deployer = SwarmDeployer(Context("ab" * 16, "here", "web", tmp_path, tmp_path, lent=lent))
        values = {"sso": lent.get("OIDC_CLIENT_SECRET", ""), "database": "from cc-ci.toml"}
        wanted = [Secret(name, key) for key, name in names.items()]
        deployer.start_on(SavedData(tmp_path, [], {name: f"old {key}" for key, name in names.items()}))
        deployer._create_secrets(Recipe(tmp_path, {}, {}, [], wanted, values))
        return {key: made[name] for key, name in names.items()}

    assert secrets(OIDC_CLIENT_SECRET="of this realm") == {"database": "old database", "sso": "of this realm"}
    assert secrets() == {"database": "old database", "sso": "old sso"}


# --- runs


@pytest.mark.slow(2)
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"quick": ""}, "This machine has no known-good data of this recipe. A full run of the default branch"),
        ({"quick": "/nowhere"}, "The known-good data of this recipe is no longer there."),
        ({"trusted": False}, "A quick run is only for trusted code"),
        ({}, "The deployer process keeps no data to start on: quick runs need the deployer swarm."),
    ],
)
def test_a_run_that_cannot_start_on_it_says_why(run: Run, data: Path, changes: dict[str, Any], reason: str) -> None:
    results = run(RECIPES / "process-web", **{"stages": ["upgrade", "custom"], "quick": str(data), **changes})
    assert results.verdict is Verdict.ERRORED
    assert reason in results.reason
    assert results.deployments == 0 and results.teardown.clean


@pytest.mark.slow(2)
def test_a_deployer_without_volumes_saves_nothing_and_the_run_passes(
    run: Run, make_folder: Callable[..., Any], tmp_path: Path
) -> None:
    results = run(RECIPES / "process-web", known_good_mb=100)
    assert results.verdict is Verdict.PASSED
    assert not list(tmp_path.glob(f"runs/*/1/{known_good.FOLDER}"))
