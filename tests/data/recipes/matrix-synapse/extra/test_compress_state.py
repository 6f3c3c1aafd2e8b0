"""Ports `compress_state.sh`: state groups without edges are made, the compressor runs, and rows must go."""

import pytest
from homeserver import Person, helper, sql

pytestmark = pytest.mark.extra(covers=["abra.sh", "compose.yml"])

ROWS = "SELECT count(*) FROM state_groups_state WHERE room_id = ?"
GROUPS = "SELECT id FROM state_groups WHERE room_id = ? ORDER BY id"
EDGES = "SELECT state_group, prev_state_group FROM state_group_edges JOIN state_groups ON id = state_group WHERE room_id = ?"
DELTAS = "SELECT state_group, type, state_key, event_id FROM state_groups_state WHERE room_id = ?"


def whole_states(app, room):
    """The whole state of each group, put together from differences as Synapse does it."""
    before, deltas = dict(sql(app, EDGES, room)), {}
    for group, kind, key, event in sql(app, DELTAS, room):
        deltas.setdefault(group, {})[kind, key] = event

    def whole(group):
        chain = []
        while group is not None:
            chain.append(deltas.get(group, {}))
            group = before.get(group)
        state = {}
        for delta in reversed(chain):
            state |= delta
        return state

    return {group: whole(group) for (group,) in sql(app, GROUPS, room)}


LOSE_EDGES = """
import sqlite3, sys
room = sys.argv[1]
with sqlite3.connect("/data/homeserver.db", timeout=60) as base:
    groups = [row[0] for row in base.execute("SELECT id FROM state_groups WHERE room_id = ? ORDER BY id", [room])]
    for group in groups:  # the oldest first: what a group is a difference from is whole already
        edge = base.execute("SELECT prev_state_group FROM state_group_edges WHERE state_group = ?", [group]).fetchone()
        if edge:
            base.execute(
                "INSERT INTO state_groups_state (state_group, room_id, type, state_key, event_id)"
                " SELECT ?1, room_id, type, state_key, event_id FROM state_groups_state AS before WHERE state_group = ?2"
                " AND NOT EXISTS (SELECT 1 FROM state_groups_state AS own WHERE own.state_group = ?1"
                " AND own.type = before.type AND own.state_key = before.state_key)",
                [group, edge[0]],
            )
            base.execute("DELETE FROM state_group_edges WHERE state_group = ?", [group])
"""


def lose_edges(app, room):
    """Store every group of the room with its whole state and no edge, as old or interrupted servers left them."""
    done = app.exec(["python3", "-c", LOSE_EDGES, room])
    assert done.code == 0, done.output


def test_rows_drop_and_every_state_stays(app):
    admin = Person(app, "compress", admin=True)
    room = admin.room(state_events=20)
    for number in range(12):
        admin.set(room, "changing", {"n": number})
    states, shown = whole_states(app, room), admin.state(room)

    lose_edges(app, room)
    assert sql(app, EDGES, room) == []
    assert whole_states(app, room) == states
    ((many,),) = sql(app, ROWS, room)

    done = helper(app, "compress_state", room)
    assert done.code == 0, done.output

    ((few,),) = sql(app, ROWS, room)
    assert few < many / 3
    assert len(sql(app, EDGES, room)) > 10
    assert whole_states(app, room) == states
    assert admin.state(room) == shown
    # And the room still works on what is stored now.
    admin.set(room, "changing", {"n": "after"})
    assert admin.state(room)["org.example.page", "changing"] == {"n": "after"}
