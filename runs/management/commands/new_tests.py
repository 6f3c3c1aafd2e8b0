"""`cc-ci new-tests [PATH]`: writes a first test file that passes for the recipe as it is."""

from __future__ import annotations

import shlex
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from controlplane.cli import MISUSE
from infra.deployers.compose import plain
from infra.deployers.compose.recipe import Recipe
from infra.deployers.context import Context
from infra.deployers.errors import DeployError

_PAGE = '''"""The page of the app. `app` is the deployed app: see "Tests for your recipe" in cc-ci's documentation."""


def test_the_page_is_the_apps_own(app):
    answer = app.get("/", allow_redirects=False)
    assert answer.status_code < 500, f"the app says {answer.status_code}"
    assert answer.text.strip() != "404 page not found", "the proxy answers, not the app"
    # Next, name something that only your page has:
    # assert "Sign in" in app.get("/").text
'''
_SERVICES = '''"""The services of the recipe. `app` is the deployed app: see "Tests for your recipe" in cc-ci's documentation."""


def test_every_service_runs(app):
    services = app.services()
    assert set(services) == {names}
    for service in services.values():
        assert service.running == service.wanted, f"{{service.name}}: {{app.logs(service.name)}}"
    # Next, look at what only your app does:
    # assert "ready" in app.logs("{first}")
'''


class Command(BaseCommand):
    help = "Write a first test file for the recipe in a folder. It passes for the recipe as it is; nothing is overwritten."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "path", metavar="PATH", nargs="?", default=".", help="the recipe's folder (default: the current folder)"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        recipe = Path(options["path"])
        try:
            name, text = first_test(recipe)
        except DeployError as error:
            raise CommandError(f"Could not write tests: {error}", returncode=MISUSE) from error
        path = recipe / "tests" / name
        try:
            path.parent.mkdir(exist_ok=True)
            with path.open("x") as file:
                file.write(text)
        except FileExistsError:
            raise CommandError(f"{path} already exists and was left unchanged.", returncode=MISUSE) from None
        except OSError as error:
            raise CommandError(f"Cannot write {path}: {error.strerror}.", returncode=MISUSE) from error
        self.stdout.write(f"Wrote {path}. Now type:\n\n    cc-ci test {shlex.quote(options['path'])}\n")


def first_test(recipe: Path) -> tuple[str, str]:
    """The file's name and text: tests the page if the compose files name a web port, else the services.

    Raises DeployError if the folder is not a recipe.
    """
    context = Context("0" * 12, "local", recipe.resolve().name, recipe, recipe, domain="app.localhost")
    read = plain.load(context, recipe)
    if _has_web_port(read):
        return "test_page.py", _PAGE
    names = sorted(read.services)
    listed = "{" + ", ".join(f'"{name}"' for name in names) + "}"
    return "test_services.py", _SERVICES.format(names=listed, first="app" if "app" in names else names[0])


def _has_web_port(read: Recipe) -> bool:
    """Whether every deployer finds a web port: by the proxy's label, and, if all services run as processes, by their own setting.

    If only some do, the test covers the services, which passes with all of them.
    """
    if not read.web(()):
        return False
    return not plain.all_processes(read) or any(
        process.listens for process in plain.processes(read, dict.fromkeys(read.services, 0), {})
    )
