"""`cc-ci …`: Django's management commands with exit codes that mean something.

0 done, 1 no (a check or a recipe failed), 2 our own fault (a crash, a place that cannot be reached), 64 misuse (unknown
command, wrong option or value, a wrong setting). Django and argparse use 1 and 2 for misuse, so theirs are remapped,
and a command of ours that has a result to tell raises `Exit`.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback

DONE, NO, OURS, MISUSE = 0, 1, 2, 64


class Exit(SystemExit):
    """End the command with this exit code, as it is."""


def main() -> None:
    """The entry point of `cc-ci` and of manage.py."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "controlplane.settings")
    sys.exit(execute(sys.argv))


def execute(argv: list[str]) -> int:
    """Run one command line and return its exit code."""
    from django.core.management import ManagementUtility

    from controlplane.config import ConfigurationError

    try:
        ManagementUtility(_named(argv)).execute()
    except ConfigurationError as error:
        print(f"cc-ci cannot start: a setting is wrong.\n{error}\nSee docs/configuration.md.", file=sys.stderr)  # noqa: T201
        return MISUSE
    except Exit as stop:
        return int(stop.code or 0)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        return MISUSE if code in (1, 2) else code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `cc-ci … | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            what = f"{error.filename} cannot be written" if error.filename else "a file cannot be written"
            print(f"The disk is full: {what}. Make room there, and type it again.", file=sys.stderr)  # noqa: T201
        else:
            traceback.print_exc()
        return OURS
    return DONE


def _named(argv: list[str]) -> list[str]:
    """Commands are modules, which have no hyphens in their names: `cc-ci new-tests` is `new_tests`."""
    return [word.replace("-", "_") if place == 1 and not word.startswith("-") else word for place, word in enumerate(argv)]
