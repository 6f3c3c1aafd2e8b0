"""Serves this recipe's files as the container does, so that the app runs without Docker."""

import argparse
import functools
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SERVED = {"/": "index.html", "/index.html": "index.html", "/health": "health"}


class Handler(SimpleHTTPRequestHandler):
    """Serves what the container has below /www, and nothing else from the checkout."""

    protocol_version = "HTTP/1.1"

    def translate_path(self, path: str) -> str:
        return str(Path(self.directory) / SERVED.get(path.partition("?")[0], "missing"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    here = str(Path(__file__).resolve().parent)
    handler = functools.partial(Handler, directory=here)
    ThreadingHTTPServer(("127.0.0.1", parser.parse_args().port), handler).serve_forever()
