"""Allowances for trusted commits only: a stranger's commit is refused, and the message says so."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from infra.deployers.compose import admission
from infra.deployers.compose.recipe import Recipe
from infra.deployers.errors import DeployError
from tests.infra.deployers.compose.reading import load, write

SOCKET = "services.app: a bind mount of /var/run/docker.sock (the docker socket)"
HUNGRY = """
services:
  app:
    image: x
    cap_add: [NET_ADMIN]
    volumes: ['/var/run/docker.sock:/var/run/docker.sock']
"""


def refused(checkout: Path, allow: list[str], withheld: list[str], *, trusted: bool) -> str:
    with pytest.raises(DeployError) as refusal:
        admission.check(load(checkout), allow, withheld, trusted=trusted)
    return str(refusal.value)


def test_what_is_withheld_is_refused_and_named(tmp_path: Path) -> None:
    said = refused(write(tmp_path, HUNGRY), [], [SOCKET, "services.app: privileged"], trusted=False)
    assert "docker.sock" in said and "NET_ADMIN" in said
    assert f"The enrolment allows `{SOCKET}`, but not for a stranger's commit such as this one." in said
    assert "privileged" not in said, "that would not have helped"
    # What nothing allows yet is offered, and that it takes one more thing is said.
    assert "one per line: `services.app: cap_add NET_ADMIN`. This is a stranger's commit, so the enrolment must also" in said


def test_a_trusted_commit_hears_nothing_of_strangers(tmp_path: Path) -> None:
    assert "stranger" not in refused(write(tmp_path, HUNGRY), [SOCKET], [], trusted=True)


def test_what_reaches_a_stranger_is_admitted(tmp_path: Path) -> None:
    admission.check(load(write(tmp_path, HUNGRY)), [SOCKET, "services.app: cap_add NET_ADMIN"], trusted=False)


LONG = "k" * 100_000
#: What a stranger may print in the reader's place, as big as one answer may be.
MANY = {
    "items of a long key": {"services": {"app": {"image": "x", LONG: ["1"] * 200_000}}},
    "things of a long name": {"services": {LONG: {"image": "x", "cap_add": ["1"] * 100_000}}},
    "keys": {"services": {"app": {"image": "x", **dict.fromkeys(map(str, range(40_000)), 1)}}},
}


@pytest.mark.parametrize("what", MANY)
def test_no_more_is_gathered_than_anybody_reads(what: str, tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(DeployError, match="; and at least 990 more") as refusal:
            admission.check(Recipe(tmp_path, {"STACK_NAME": "s"}, MANY[what]))
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()
    assert len(str(refusal.value)) < 15_000


def test_what_begins_like_a_thing_that_is_allowed_is_not(tmp_path: Path) -> None:
    read = Recipe(tmp_path, {}, {"services": {"app": {"image": "x", "cap_add": ["A" * 600]}}})
    [problem] = admission.problems(read)
    assert len(problem.message) == 500 and not problem.allowable
    with pytest.raises(DeployError, match="cap_add AAA"):
        admission.check(read, [str(problem), f"services.app: cap_add {'A' * 600}"])
