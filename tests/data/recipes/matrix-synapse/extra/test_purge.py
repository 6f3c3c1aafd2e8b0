"""Ports `test_purge.sh`: the helpers of `abra.sh` that forget."""

import time
from urllib.parse import quote

import pytest
from homeserver import Person, helper, sql

pytestmark = pytest.mark.extra(covers=["abra.sh"])

EVENTS = "SELECT event_id FROM events WHERE room_id = ?"


@pytest.fixture(scope="module")
def admin(app):
    # What fills new tables fails a purge that comes in between.
    for _ in range(300):
        if not sql(app, "SELECT update_name FROM background_updates"):
            return Person(app, "purge", admin=True)
        time.sleep(1)
    pytest.fail("Synapse was still filling its tables after 300 s.")


def test_purge_history_forgets_what_was_said_before(app, admin):
    room = admin.room()
    old = [admin.say(room, "long ago") for _ in range(3)]
    time.sleep(0.05)
    moment = int(time.time() * 1000)
    time.sleep(0.05)
    new = admin.say(room, "now")

    done = helper(app, "purge_history", room, str(moment), token=admin.token)
    assert done.code == 0, done.output

    left = {event for (event,) in sql(app, EVENTS, room)}
    # The last event before the moment is kept: it is where the history begins now.
    assert new in left
    assert not left & set(old[:2])
    admin.ask("GET", f"/rooms/{quote(room)}/event/{quote(old[0])}", status=404)


def test_purge_room_forgets_all_of_it(app, admin):
    room, other = admin.room(), admin.room()
    admin.say(room, "hello")

    done = helper(app, "purge_room", room, token=admin.token)
    assert done.code == 0, done.output

    assert sql(app, EVENTS, room) == []
    joined = admin.ask("GET", "/joined_rooms")["joined_rooms"]
    assert room not in joined and other in joined


def test_without_an_admins_token_nothing_is_purged(app, admin):
    room = admin.room()
    done = helper(app, "purge_room", room, token="nobody")
    assert done.code != 0
    assert "M_UNKNOWN_TOKEN" in done.output
    assert sql(app, EVENTS, room) != []
