"""Leases: one holder at a time, an end to each, and a number that tells a late owner."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier

import pytest
import time_machine
from django.db import connection
from django.utils import timezone

from controlplane import leases
from controlplane.leases import Held, lease, take
from controlplane.models import Lease

pytestmark = pytest.mark.both_databases


@pytest.mark.django_db
def test_one_holder_at_a_time() -> None:
    held = take("poll:1", 60)
    assert held and held.is_mine()
    assert take("poll:1", 60) is None
    assert take("poll:2", 60)


@pytest.mark.django_db
def test_released_it_can_be_taken_again() -> None:
    with lease("slot", 60) as first:
        assert first
        with lease("slot", 60) as second:
            assert second is None
        assert first.is_mine()  # the one who got nothing released nothing
    with lease("slot", 60) as third:
        assert third and third.fence == first.fence + 1


@pytest.mark.django_db
def test_released_when_the_work_fails() -> None:
    with pytest.raises(RuntimeError), lease("slot", 60):
        raise RuntimeError
    assert take("slot", 60)


@pytest.mark.django_db
def test_an_expired_one_is_taken_over_and_the_late_owner_is_told() -> None:
    late = take("slot", 60)
    assert late
    with time_machine.travel(timezone.now() + timedelta(seconds=61), tick=False):
        assert not late.is_mine()
        new = take("slot", 60)
        assert new and new.fence == late.fence + 1
        assert not late.renew(60)
        late.release()
        assert new.is_mine()


@pytest.mark.django_db
def test_renewed_it_lasts_longer() -> None:
    held = take("slot", 60)
    assert held and held.renew(600)
    with time_machine.travel(timezone.now() + timedelta(seconds=300), tick=False):
        assert held.is_mine()
        assert take("slot", 60) is None


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.django_db(transaction=True)
def test_of_many_at_one_moment_one_gets_it(known: bool) -> None:
    if known:
        Lease.objects.create(name="slot", owner="dead", expires_at=timezone.now() - timedelta(seconds=1), fence=7)
    many = 8
    start = Barrier(many)

    def one(_: int) -> Held | None:
        start.wait()
        try:
            return take("slot", 60)
        finally:
            connection.close()

    with ThreadPoolExecutor(many) as pool:
        taken = [held for held in pool.map(one, range(many)) if held]
    assert len(taken) == 1
    assert taken[0].is_mine()
    assert taken[0].fence == (8 if known else 1)


def test_a_dead_processes_lease_is_taken_over_at_once(db: None) -> None:
    """Not after its expiry: a poller that was killed shall not silence a forge for minutes."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as other:
        owner = leases._process(other.pid) + "/abc"
        Lease.objects.create(name="x", owner=owner, expires_at=timezone.now() + timedelta(minutes=10), fence=4)
        assert leases.take("x", 60) is None, "it lives"
        other.kill()
    held = leases.take("x", 60)
    assert held is not None
    assert held.fence == 5
    assert held.is_mine()


@pytest.mark.parametrize("owner", ["other-host:1:1.00:pid:[1]/x", "", "nonsense", "::/", "host:x:y:z/w"])
def test_in_doubt_an_owner_lives(db: None, owner: str) -> None:
    Lease.objects.create(name="x", owner=owner, expires_at=timezone.now() + timedelta(minutes=10), fence=4)
    assert leases.take("x", 60) is None
