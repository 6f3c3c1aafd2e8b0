"""`python -m runs.harness start FOLDER | run FOLDER | sweep … | schema` (docs/run-folder.md).

Imports only what the subcommand needs: every run goes through `start`.
"""

from __future__ import annotations

import sys

_USAGE = (
    "usage: python -m runs.harness start FOLDER | run FOLDER\n"
    "       python -m runs.harness sweep --installation ID [--runs-dir FOLDER]\n"
    "       python -m runs.harness schema"
)


def main(arguments: list[str]) -> int:
    match arguments:
        case ["start", folder]:
            from runs.harness.daemonize import start

            return start(folder)
        case ["run", folder]:
            from runs.harness.daemonize import read_credential, run

            return run(folder, read_credential())
        case ["sweep", *rest]:
            from runs.harness.sweep import main as sweep

            return sweep(rest)
        case ["schema"]:
            from runs.harness.schema import text

            sys.stdout.write(text())
            return 0
        case _:
            print(_USAGE, file=sys.stderr)  # noqa: T201
            return 64


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
