"""A Chromium that looks at the live server, and at nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.browser import chromium as browsers
from tests.browser.chromium import CHROMIUM
from tests.browser.screenshots import DESKTOP, PHONE

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before xdist looks at the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.xdist_group("browser"))
            # The live server writes from a thread of its own, which sees committed rows only.
            item.add_marker(pytest.mark.django_db(transaction=True))


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The browser. A machine without one skips these tests; CI has one, so there its absence is a failure."""
    if not Path(CHROMIUM).exists():
        if os.environ.get("CI") == "true":
            pytest.fail(f"There is no Chromium at {CHROMIUM}.")
        pytest.skip(f"There is no Chromium at {CHROMIUM}.")
    # Playwright runs a loop in this thread, which Django takes for asynchronous code; the rows are made around it.
    before = os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE")
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"
    try:
        with browsers.chromium() as browser:
            yield browser
    finally:
        if before is None:
            del os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"]
        else:
            os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = before


class Watched:
    """A page of which all requests, console errors and exceptions are kept."""

    def __init__(self, page: Any, origin: str) -> None:
        self.page = page
        self.origin = origin
        self.outside: list[str] = []
        self.errors: list[str] = []
        page.on("request", self._request)
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    def _request(self, request: Any) -> None:
        parts = urlsplit(request.url)
        if parts.scheme != "data" and f"{parts.scheme}://{parts.netloc}" != self.origin:
            self.outside.append(request.url)

    def go(self, path: str) -> Any:
        self.page.goto(self.origin + path)
        return self.page


@pytest.fixture
def look(chromium: Any, live_server: Any) -> Iterator[Callable[..., Watched]]:
    """Open a page as `look(phone=True, dark=True)`. At the end: nothing came from outside, nothing went wrong."""
    opened: list[tuple[Any, Watched]] = []

    def new(*, phone: bool = False, dark: bool = False, **options: Any) -> Watched:
        context = chromium.new_context(
            viewport=PHONE if phone else DESKTOP,
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce",
            **options,
        )
        context.set_default_timeout(120_000)
        watched = Watched(context.new_page(), live_server.url)
        opened.append((context, watched))
        return watched

    yield new
    for context, _ in opened:
        context.close()
    for _, watched in opened:
        assert watched.outside == []
        assert watched.errors == []
