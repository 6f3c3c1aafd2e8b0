"""Ports `test_complexity_limit.sh`: joining a room of another server that is too complex is refused."""

from urllib.parse import quote

import pytest
from homeserver import Person

pytestmark = pytest.mark.extra(covers=["entrypoint.sh", "cc-ci.toml", "compose*.yml"])


@pytest.fixture(scope="module")
def remote(app):
    return Person(app, "host", service="remote", admin=True)


@pytest.fixture(scope="module")
def local(app):
    return Person(app, "guest", admin=True)


def join(person, room, status):
    return person.ask("POST", f"/join/{quote(room)}?server_name=tasks.remote:8448&via=tasks.remote:8448", {}, status)


def test_a_small_room_of_another_server_is_joined(remote, local):
    room = remote.room()
    assert join(local, room, 200)["room_id"] == room
    assert ("m.room.member", local.id) in local.state(room)


def test_too_complex_a_room_is_refused(remote, local):
    # The limit is 0.1, and a complexity of 1 is 500 pieces of state.
    room = remote.room(state_events=60)
    said = join(local, room, 400)
    assert said["errcode"] == "M_RESOURCE_LIMIT_EXCEEDED"
    assert room not in local.ask("GET", "/joined_rooms")["joined_rooms"]
