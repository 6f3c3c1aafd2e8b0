"""Run the fake forge: `python -m enrollment.fakeforge --root DIR [--port N] [--version V] [--demo]`."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from pathlib import Path

from enrollment.fakeforge import demo
from enrollment.fakeforge.features import VERSIONS
from enrollment.fakeforge.server import serve
from enrollment.fakeforge.store import Forge


def main() -> int:
    """Serve until a signal arrives. With --demo, the first start adds demo data; DIR/demo.json has the address and the tokens."""
    parser = argparse.ArgumentParser(prog="python -m enrollment.fakeforge", description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="folder for repositories and state")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=3000, help="0 picks a free one")
    parser.add_argument("--version", choices=list(VERSIONS), default="1.15", help="version to imitate")
    parser.add_argument("--demo", action="store_true", help="fill an empty forge with users, recipes and pull requests")
    options = parser.parse_args()

    forge = Forge(options.root, options.version, persist=True)
    told = options.root / "demo.json"
    tokens: dict[str, str] = {}
    if options.demo and forge.tables.users:
        tokens = json.loads(told.read_text())["tokens"]
    elif options.demo:
        # All in one change, and the tokens first: a start that is killed midway starts over the next time.
        with forge.changing():
            tokens = demo.seed(forge)
            demo.write(told, "", tokens)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    try:
        server = serve(forge, options.host, options.port)
    except OSError as error:
        sys.stderr.write(f"cannot listen on {options.host}:{options.port}: {error}\n")
        return 1
    with server:
        if options.demo:
            demo.write(told, server.url, tokens)
            told_text = f"token of the bot cc-ci: {tokens['cc-ci']}\ntoken of alice: {tokens['alice']}\n"
            sys.stdout.write(f"{told_text}also in {told}\n")
        sys.stdout.write(f"listening on {server.url}\n")
        sys.stdout.flush()
        ended.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
