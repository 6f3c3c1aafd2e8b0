"""`cc-ci …`: our commands by subject, Django's behind `cc-ci manage`, and exit codes that mean something.

0 done, 1 no (a check or a recipe failed), 2 our own fault (a crash, a place that cannot be reached), 64 misuse (unknown
command, wrong option or value, a wrong setting, a database without its tables). Django and argparse use 1 and 2 for misuse,
so theirs are remapped, and a command of ours that has a result to tell raises `Exit`.
"""

from __future__ import annotations

import ast
import errno
import os
import sys
import traceback
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

DONE, NO, OURS, MISUSE = 0, 1, 2, 64
#: What `cc-ci --help` shows, in the order in which people need it.
SUBJECTS = {
    "Runs": ["run", "run_all", "test", "new_tests", "flaky", "executor", "harness"],
    "Runs on a server, through its API": ["runs", "show", "start", "cancel"],
    "Forges and repositories": [
        *["forge", "enroll", "unenroll", "list", "permissions", "poll"],
        *["reconcile_webhooks", "rotate_webhook_secret", "deliveries"],
    ],
    "The server's own apps": ["infra"],
    "Deferred tests": ["deferred"],
    "Operations": [
        *["migrate", "createsuperuser", "changepassword", "work", "doctor"],
        *["configuration", "docs", "firewall", "schedules", "rotate_keys", "token"],
    ],
}
#: Earlier names of commands, which go on working.
RENAMED = {"rights": "permissions"}
#: Those of Django's commands that operators need, in our words.
DJANGOS = {
    "migrate": "Create the tables of the database, or bring them up to date.",
    "createsuperuser": "Create a login that may do everything in /admin/.",
    "changepassword": "Change the password of a login.",
}
#: What Django gives to every command works, and is left out of the help.
OPTIONS_OF_ALL = {"--version", "--verbosity", "--settings", "--pythonpath", "--traceback", "--no-color", "--force-color"}


class Exit(SystemExit):
    """End the command with this exit code, as it is."""


def main() -> None:
    """The entry point of `cc-ci` and of manage.py."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "controlplane.settings")
    sys.exit(execute(sys.argv))


def execute(argv: list[str]) -> int:
    """Run one command line and return its exit code."""
    try:
        _run(argv[1:])
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
        code, words = _explain(error)
        if words:
            print(words, file=sys.stderr)  # noqa: T201
        else:
            traceback.print_exc()
        return code
    return DONE


def _run(words: list[str]) -> None:
    # Help and version need neither settings nor a database, and importing Django's takes seconds.
    if words in ([], ["help"]) or words[0] in ("--help", "-h"):
        print(overview())  # noqa: T201
    elif words[0] in ("--version", "version"):
        print(f"cc-ci {version('cc-ci')}")  # noqa: T201
    elif words[0] == "manage":
        from django.core.management import ManagementUtility

        ManagementUtility(["cc-ci manage", *words[1:]]).execute()
    else:
        # Commands are modules, which have no hyphens in their names: `cc-ci new-tests` is `new_tests`.
        place = 1 if words[0] == "help" else 0
        name = words[place] if words[place].startswith("-") else words[place].replace("-", "_")
        words[place] = RENAMED.get(name, name)
        _execute(words)


def _execute(words: list[str]) -> None:
    """Let Django run a command, in our manner: its help shows the command's own options, and errors are for us to print."""
    from django.core.management import BaseCommand, CommandParser, ManagementUtility

    class Utility(ManagementUtility):
        def fetch_command(self, subcommand: str) -> BaseCommand:
            command = super().fetch_command(subcommand)
            command.suppressed_base_arguments = OPTIONS_OF_ALL
            if subcommand in commands():
                command.requires_system_checks = []  # they judge the code, and import all pages to do so; `make lint` runs them
            command.get_version = lambda: f"cc-ci {version('cc-ci')}"  # type: ignore[method-assign]
            create = command.create_parser

            def create_parser(*args: Any, **options: Any) -> CommandParser:
                parser = create(*args, **options)
                parser.set_defaults(traceback=True)  # raise CommandError
                return parser

            command.create_parser = create_parser  # type: ignore[method-assign]
            return command

    Utility(["cc-ci", *words]).execute()


def _explain(error: Exception) -> tuple[int, str]:
    """An exit code, and what to tell instead of a traceback; nothing where only a traceback helps."""
    from django.core.management import CommandError
    from django.db import Error, OperationalError

    from controlplane.config import ConfigurationError

    if isinstance(error, CommandError):
        return MISUSE, str(error)
    if isinstance(error, ConfigurationError):
        return MISUSE, f"cc-ci cannot start: a setting is invalid.\n{error}\nSee docs/configuration.md."
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        what = f"{error.filename} cannot be written" if error.filename else "a file cannot be written"
        return OURS, f"The disk is full: {what}. Free some space there, then run the command again."
    if isinstance(error, PermissionError) and error.filename:
        return OURS, f"This user may not read or write {error.filename}. Run cc-ci as the user that owns it."
    if isinstance(error, Error):
        from controlplane import database

        try:
            if missing := database.missing():
                return MISUSE, f"{missing[0].upper()}{missing[1:]}. Run: cc-ci migrate"
        except database.Unreachable as problem:
            return OURS, f"The database cannot be reached: {problem}\nRun: cc-ci doctor"
        if isinstance(error, OperationalError):
            return OURS, f"The database failed: {database.first_line(error)}\nRun: cc-ci doctor"
    return OURS, ""


def commands() -> dict[str, Path]:
    """Our own commands, by name, and the modules that hold them."""
    found = Path(__file__).parent.parent.glob("*/management/commands/[!_]*.py")
    return {path.stem: path for path in found if (path.parents[2] / "apps.py").exists()}


def overview() -> str:
    """What `cc-ci --help` prints."""
    return "\n".join(_overview())


def _overview() -> Iterator[str]:
    modules = commands()
    width = max(len(name) for names in SUBJECTS.values() for name in names)
    yield "cc-ci tests recipes of Co-op Cloud, and keeps a server's own apps up to date."
    for subject, names in SUBJECTS.items():
        yield f"\n{subject}"
        for name in names:
            yield f"  {name.replace('_', '-'):{width}}  {DJANGOS.get(name) or _first_sentence(modules[name])}"
    yield "\nHelp on a command: cc-ci COMMAND --help. Django's own commands: cc-ci manage. The version: cc-ci --version."


def _first_sentence(module: Path) -> str:
    """Of the `help` of the module's command, which is read and not imported."""
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Assign) and [target.id for target in node.targets if isinstance(target, ast.Name)] == ["help"]:
            return f"{str(ast.literal_eval(node.value)).partition('. ')[0].rstrip('.')}."
    raise LookupError(f"{module} has no help")
