"""What uses one thing of the machine runs one after the other, on one of the workers."""

from __future__ import annotations

import pytest


@pytest.mark.xdist_group("together")
def test_groups_reach_those_who_hand_tests_out(request: pytest.FixtureRequest) -> None:
    """xdist 3.8 writes a test's group into a name of pytest's own, which pytest 9.2 has no more: all tests were mixed then."""
    if not getattr(request.config.option, "loadgroup", False):
        pytest.skip("no workers, or they take tests as they come")
    assert request.node.nodeid.endswith("@together")
