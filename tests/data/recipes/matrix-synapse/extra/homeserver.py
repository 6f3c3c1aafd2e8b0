"""What the extra tests say to a homeserver: as people by its client API, as the operator by the helpers of `abra.sh`."""

import json
import secrets
from pathlib import Path
from urllib.parse import quote

ABRA_SH = Path(__file__).parents[1] / "abra.sh"


def helper(app, *words, token="", service="app"):
    """Call a function of abra.sh inside a service, as `abra app cmd` does."""
    script = f'export TOKEN="$1"; shift\n{ABRA_SH.read_text()}\n"$@"\n'
    return app.exec(["sh", "-c", script, "abra.sh", token, *words], service=service, timeout=300)


def sql(app, query, *values, service="app"):
    """The rows of a query on Synapse's database."""
    program = (
        "import json, sqlite3, sys; base = sqlite3.connect('/data/homeserver.db', timeout=60);"
        "print(json.dumps(base.execute(sys.argv[1], sys.argv[2:]).fetchall()))"
    )
    done = app.exec(["python3", "-c", program, query, *values], service=service)
    assert done.code == 0, done.output
    return json.loads(done.output)


class Person:
    """Somebody with an account on one of the homeservers, who is not slowed down."""

    def __init__(self, app, name, service="app", admin=False):
        self.app, self.service = app, service
        password = secrets.token_hex(8)
        made = helper(app, "register", name, password, *(["--admin"] if admin else []), service=service)
        assert made.code == 0, made.output
        login = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": name}, "password": password}
        self.token = ""
        self.token = self.ask("POST", "/login", login)["access_token"]
        self.id = self.ask("GET", "/account/whoami")["user_id"]
        if admin:
            self.hurry(self)

    def hurry(self, person):
        """Lift the limits on a person's messages (for an admin)."""
        path = f"/_synapse/admin/v1/users/{quote(person.id)}/override_ratelimit"
        done = helper(self.app, "api", "POST", path, "{}", token=self.token, service=self.service)
        assert done.code == 0, done.output

    def ask(self, method, path, body=None, status=200):
        """One request to the client API: what it says. Another status than the one expected is a failure."""
        path = f"/_matrix/client/v3{path}"
        if self.service == "app":
            headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
            answer = self.app.request(method, path, json=body, headers=headers, timeout=60)
            assert answer.status_code == status, answer.text
            return answer.json()
        words = ["api", method, path, *([] if body is None else [json.dumps(body)])]
        done = helper(self.app, *words, token=self.token, service=self.service)
        assert done.code == 0, done.output
        return json.loads(done.output)

    def room(self, state_events=0, **options):
        """Make a room that anybody may join, with so many more pieces of state."""
        initial = [{"type": "org.example.page", "state_key": str(n), "content": {"n": n}} for n in range(state_events)]
        return self.ask("POST", "/createRoom", {"preset": "public_chat", "initial_state": initial, **options})["room_id"]

    def say(self, room, text):
        path = f"/rooms/{quote(room)}/send/m.room.message/{secrets.token_hex(4)}"
        return self.ask("PUT", path, {"msgtype": "m.text", "body": text})["event_id"]

    def set(self, room, key, content):
        return self.ask("PUT", f"/rooms/{quote(room)}/state/org.example.page/{key}", content)["event_id"]

    def state(self, room):
        return {(e["type"], e["state_key"]): e["content"] for e in self.ask("GET", f"/rooms/{quote(room)}/state")}
