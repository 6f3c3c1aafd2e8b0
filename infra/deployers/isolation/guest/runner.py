"""Runs one command of a recipe next to its doors, and returns one file: `runner.py CONFIG_FD`.

The configuration is JSON: `command`, `env`, `source` (the checkout), `home` (a writable folder), `doors`, `gate` (the
harness's unix socket), `result` (the file to return, in `home`), `result_fd`, `biggest`.
A door has a loopback `address`, `ports` (the first free one is used), and `say`, which is sent to the gate to have a connection
forwarded. The app's door also has `url`, without the port, and `named`, its URL on the first of its ports.
`{url}` and `{folder}` in the command and the environment are replaced by the app's URL and the checkout's copy.
"""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infra.deployers.isolation.guest.splice import copy_recipe, serve, splice
else:  # started by its path, beside splice.py, where the project is not
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120
    from splice import copy_recipe, serve, splice

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4


def open_door(door: dict[str, Any], gate: str) -> int:
    """Listen at a door, and have the gate forward every connection. Returns the port; 0 if none is free."""
    folder = os.open(os.path.dirname(gate), os.O_PATH | os.O_CLOEXEC)  # noqa: PTH120
    gate_path = f"/proc/self/fd/{folder}/{os.path.basename(gate)}"  # noqa: PTH119 - of any length

    def lead(stream: socket.socket) -> None:
        way = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        way.connect(gate_path)
        way.sendall(json.dumps(door["say"]).encode() + b"\n")
        splice(stream, way)

    for port in door["ports"]:
        listener = socket.socket(socket.AF_INET6 if ":" in door["address"] else socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((door["address"], port))
        except OSError:
            listener.close()
            continue
        listener.listen(64)
        serve(listener, lead)
        return int(listener.getsockname()[1])
    return 0


def open_doors(config: dict[str, Any]) -> str:
    """Open all doors. Returns the app's URL."""
    url = ""
    for door in config["doors"]:
        port = open_door(door, config["gate"])
        if "url" not in door:
            continue
        if not port:
            raise SystemExit("no loopback port is free for the app")
        url = door["named"] if port == door["ports"][0] else f"{door['url']}:{port}"
    return url


def main() -> None:
    # The code below runs with the same uid: it shall not reach our descriptors through /proc.
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    with os.fdopen(int(sys.argv[1])) as file:
        config = json.load(file)
    os.set_inheritable(config["result_fd"], False)
    folder = os.path.join(config["home"], "recipe")  # noqa: PTH118
    copy_recipe(config["source"], folder)
    # pytest looks for its settings in all folders above, too. The recipe's own come first; ours, without a sandbox, never.
    with open(os.path.join(config["home"], "pytest.ini"), "w") as end:  # noqa: PTH118, PTH123
        end.write("[pytest]\n")
    url = open_doors(config)

    def fill(text: str) -> str:
        return text.replace("{url}", url).replace("{folder}", folder)

    process = subprocess.Popen(
        [fill(word) for word in config["command"]],
        cwd=folder,
        env={key: fill(value) for key, value in config["env"].items()},
        stdin=subprocess.DEVNULL,
        preexec_fn=lambda: ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0),
    )
    code = process.wait()
    try:
        with open(fill(config["result"]), "rb") as result:  # noqa: PTH123
            data = result.read(config["biggest"] + 1)
    except OSError:
        data = b""
    with os.fdopen(config["result_fd"], "wb") as out:
        out.write(data)
    sys.exit(code if code >= 0 else 128 - code)


main()
