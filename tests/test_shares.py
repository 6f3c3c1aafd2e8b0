"""Which part of cc-ci a test's time is put down to."""

from __future__ import annotations

from types import SimpleNamespace

from tests import shares


def test_each_file_has_one_part() -> None:
    assert shares.part_of("infra/test_gate.py") == "own apps"
    assert shares.part_of("infra/deployers/test_swarm.py") == "recipe harness", "the longest beginning counts"
    assert shares.part_of("chaos/test_storm.py") == "forges at scale"
    assert shares.part_of("chaos/test_crash.py") == shares.MAIN


def test_times_are_added_up() -> None:
    reports = [
        SimpleNamespace(nodeid="tests/infra/test_gate.py::test_a", duration=1.5),
        SimpleNamespace(nodeid="tests/infra/test_gate.py::test_b[x::y]", duration=2.5),
        SimpleNamespace(nodeid="tests/runs/test_render.py::test_c", duration=1.0),
        SimpleNamespace(message="a warning"),
    ]
    assert dict(shares.seconds(reports)) == {"own apps": 4.0, shares.MAIN: 1.0}
    assert shares.lines(reports, 2)[0] == "      4 s of work,    2 s with 2 workers: own apps"
