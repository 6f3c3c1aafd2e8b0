"""Runs one command of a recipe beside a bridge to the app, and hands one file out: `runner.py CONFIG_FD`.

The configuration is JSON: `command`, `env`, `source` (the checkout), `home` (a writable folder), `host` and `ports` (under
which the app is offered; the first port that is free), `gate` (the harness's unix socket), `result` (the file to hand
out, in `home`), `result_fd`, `biggest`.
`{url}` and `{folder}` in the command and the environment become the bridge's URL and the checkout's copy.
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
    from infra.deployers.inside.splice import copy_recipe, serve, splice
else:  # started by its path, beside splice.py, where the project is not
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120
    from splice import copy_recipe, serve, splice

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4


def listen(config: dict[str, Any]) -> str:
    """Listen on loopback and carry every connection to the app. Gives the URL."""
    folder = os.open(os.path.dirname(config["gate"]), os.O_PATH | os.O_CLOEXEC)  # noqa: PTH120
    gate_path = f"/proc/self/fd/{folder}/{os.path.basename(config['gate'])}"  # noqa: PTH119 - of any length

    def to_app(stream: socket.socket) -> None:
        gate = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        gate.connect(gate_path)
        gate.sendall(b'{"to": "app"}\n')
        splice(stream, gate)

    for port in config["ports"]:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            listener.close()
            continue
        listener.listen(64)
        serve(listener, to_app)
        port = listener.getsockname()[1]
        return f"http://{config['host']}" if port == 80 else f"http://127.0.0.1:{port}"
    raise SystemExit("no port of loopback is free for the app")


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
    url = listen(config) if config["ports"] else ""

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
