#!/bin/sh
export ENTRYPOINT_VERSION=v1

# What follows runs inside the service: abra app cmd DOMAIN app NAME ARGUMENTS…

# register NAME PASSWORD [--admin]
register() {
	python3 -m synapse._scripts.register_new_matrix_user -c /data/homeserver.yaml -u "$1" -p "$2" "${3:---no-admin}" \
		http://127.0.0.1:8008
}

# api METHOD PATH [JSON]: one request with the token in $TOKEN; fails when the server refuses
api() {
	python3 - "$@" <<'PYTHON'
import os, sys, urllib.error, urllib.request

method, path, *body = sys.argv[1:]
request = urllib.request.Request("http://127.0.0.1:8008" + path, method=method, data=body[0].encode() if body else None)
request.add_header("Content-Type", "application/json")
if token := os.environ.get("TOKEN"):
    request.add_header("Authorization", "Bearer " + token)
try:
    print(urllib.request.urlopen(request, timeout=60).read().decode())
except urllib.error.HTTPError as error:
    sys.exit(f"{error.code} {error.read().decode()}")
PYTHON
}

# wait_for PATH: ask an admin's API until the task is complete
wait_for() {
	for _ in $(seq 120); do
		answer=$(api GET "$1") || return 1
		case "$answer" in
		*'"complete"'*) return 0 ;;
		*'"failed"'*) break ;;
		esac
		sleep 1
	done
	echo "$answer" >&2
	return 1
}

# value NAME: the string that a JSON object on standard input has under NAME
value() {
	python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"
}

# purge_history ROOM UNIX_MILLISECONDS: forget what was said in a room before a moment (an admin's $TOKEN)
purge_history() {
	id=$(api POST "/_synapse/admin/v1/purge_history/$1" "{\"delete_local_events\": true, \"purge_up_to_ts\": $2}" | value purge_id) || return 1
	wait_for "/_synapse/admin/v1/purge_history_status/$id"
}

# purge_room ROOM: put everybody out of a room and forget all of it (an admin's $TOKEN)
purge_room() {
	id=$(api DELETE "/_synapse/admin/v2/rooms/$1" '{"purge": true}' | value delete_id) || return 1
	wait_for "/_synapse/admin/v2/rooms/delete_status/$id"
}

# compress_state ROOM: store the state of a room as differences again
compress_state() {
	synapse_compress_state -t -p sqlite:///data/homeserver.db -r "$1" -o /data/compressed.sql || return 1
	python3 -c 'import sqlite3; sqlite3.connect("/data/homeserver.db", timeout=60).executescript(open("/data/compressed.sql").read())' || return 1
	rm /data/compressed.sql
}
