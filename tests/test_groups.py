"""What the markers say about how tests run."""

from __future__ import annotations

import pytest


@pytest.mark.xdist_group("together")
def test_groups_reach_those_who_hand_tests_out(request: pytest.FixtureRequest) -> None:
    """xdist 3.8 writes a test's group into a name of pytest's own, which pytest 9.2 has no more: all tests were mixed then."""
    if not getattr(request.config.option, "loadgroup", False):
        pytest.skip("no workers, or they take tests as they come")
    assert request.node.nodeid.endswith("@together")


def test_reruns_have_a_reason_and_a_date(request: pytest.FixtureRequest) -> None:
    """@pytest.mark.flaky(reruns=1, reason="why it fails at times", since="2026-11-29")"""
    assert not request.config.getoption("reruns"), "reruns are for named tests only"
    for item in request.session.items:
        for marker in item.iter_markers("flaky"):
            assert marker.kwargs.get("reason") and marker.kwargs.get("since"), f"{item.nodeid} does not say why, and since when"
