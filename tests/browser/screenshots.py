"""`make screenshots`: the pictures in docs/screenshots, of a server of its own with example data, and of a fake forge.

Comments have emoji: on Debian they take the package fonts-noto-color-emoji.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.browser.chromium import CHROMIUM, chromium

if TYPE_CHECKING:
    from runs.models import TestRun

PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 800}
FOLDER = Path(__file__).resolve().parents[2] / "docs" / "screenshots"


@contextmanager
def server() -> Iterator[str]:
    """The web server on a free loopback port, on a new database in a temporary folder."""
    os.environ.pop("DATABASE_URL", None)
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    # Playwright's loop runs in this thread, and the rows are made in it too; nothing else uses the database meanwhile.
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"
    import django
    from django.core.management import call_command

    django.setup()
    call_command("migrate", verbosity=0)
    from django.core.servers.basehttp import ThreadedWSGIServer, WSGIRequestHandler

    from controlplane.wsgi import application

    class Quiet(WSGIRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    web = ThreadedWSGIServer(("127.0.0.1", 0), Quiet)
    web.set_app(application)
    thread = threading.Thread(target=web.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{web.server_port}"
    finally:
        web.shutdown()
        web.server_close()


@contextmanager
def forge(run: TestRun) -> Iterator[str]:
    """The demo's forge, where cc-ci has answered with the report of this run."""
    from enrollment.fakeforge import demo
    from enrollment.fakeforge.server import serve
    from enrollment.fakeforge.store import Forge
    from runs.render import description, report

    with tempfile.TemporaryDirectory() as folder:
        forge = Forge(Path(folder))
        demo.seed(forge)
        recipe = run.repository.full_name
        run.sha = run.pull_request.head_sha = forge.pull(recipe, 1).head_sha
        forge.comment(recipe, 1, "alice", "!testme")
        forge.comment(recipe, 1, "cc-ci", report(run))
        forge.set_status(recipe, run.sha, "failure", "cc-ci", target_url=run.url, description=description(run))
        with serve(forge) as server:
            yield server.url


def main() -> None:
    """Take the pictures: each page on a phone and a desktop, light and dark."""
    if not Path(CHROMIUM).exists():
        sys.exit(f"There is no Chromium at {CHROMIUM}. On Debian, type: apt-get install chromium")
    FOLDER.mkdir(parents=True, exist_ok=True)
    with server() as url:
        from django.contrib.auth.models import User

        from enrollment.models import Repository
        from infra.config import apply
        from infra.config.load import parse
        from infra.releases.gate import Preflight
        from infra.upgrades import enqueue
        from tests.browser.examples import examples, lost_data, registry, worker
        from tests.browser.own_apps import file_of, own_apps

        with chromium() as browser:
            worker()
            _take(browser, url, {"start-empty": "/"})
            made = examples()
            _take(
                browser,
                url,
                {
                    "start": "/",
                    "runs": "/runs/",
                    "recipe": f"/recipes/{made.failed.repository_id}/",
                    "pull-request": f"/recipes/{made.failed.repository_id}/pulls/{made.failed.pull_request.number}/",
                    "tests": f"/runs/tests/{made.failed.repository_id}/",
                    "api": "/api/",
                    "run-failed": made.failed.get_absolute_url(),
                    "run-passed": made.passed.get_absolute_url(),
                    "run-running": made.running.get_absolute_url(),
                    "run-errored": made.errored.get_absolute_url(),
                },
            )
            registry()
            enqueue.preflight = lambda app: Preflight()  # type: ignore[assignment]  # there is no such stack to look at
            apps = own_apps()
            declared = parse(file_of())
            apply.read = lambda path: declared
            _take(browser, url, {"deferred": "/deferred/"})
            User.objects.create_superuser("operator", password="operator")
            recipe = Repository.objects.get(name="nextcloud")
            pages = {
                "admin": "/admin/",
                "admin-runs": "/admin/runs/testrun/",
                "webhook-by-hand": f"/repositories/{recipe.pk}/webhook/",
                "infra": "/infra/",
                "infra-night": "/infra/night/",
                "infra-file": "/infra/file/",
                "upgrade-running": apps.running.get_absolute_url(),
                "upgrade-rolled-back": apps.rolled_back.get_absolute_url(),
                "upgrade-rollback-failed": apps.lost.get_absolute_url(),
            }
            _take(browser, url, pages, login=True)
            with forge(lost_data()) as address:
                _take(browser, address, {"comment": "/recipes/forgetful-web/pulls/1#comments"})


def _take(browser: object, url: str, pages: dict[str, str], *, login: bool = False) -> None:
    for size, viewport in (("phone", PHONE), ("desktop", DESKTOP)):
        for scheme in ("light", "dark"):
            context = browser.new_context(  # type: ignore[attr-defined]
                viewport=viewport, color_scheme=scheme, device_scale_factor=1, reduced_motion="reduce"
            )
            page = context.new_page()
            if login:
                page.goto(f"{url}/admin/login/")
                page.fill("[name=username]", "operator")
                page.fill("[name=password]", "operator")
                page.click("[type=submit]")
            for name, path in pages.items():
                page.goto(url + path)
                page.wait_for_load_state("load")
                page.screenshot(path=FOLDER / f"{name}-{size}-{scheme}.png")
            context.close()


if __name__ == "__main__":
    main()
