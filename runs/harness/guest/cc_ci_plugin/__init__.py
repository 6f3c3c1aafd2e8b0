"""The pytest plugin for a recipe's own tests: the fixtures `app`, `browser`, `marker` and `oidc`, and the mark `extra`.

Requires pytest and requests. Environment variables say what to test (`CC_CI_URL` and others, see
`runs.harness.recipe_tests`). Outside a run it changes nothing. See docs/write-tests.md.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

import pytest

from .deployed import App, Done, Service

if TYPE_CHECKING:
    from .chromium import Browser, Chromium

__all__ = ["App", "Done", "Marker", "Oidc", "Service"]

_MARK = "extra(covers=[…]): a long test, run only on request. covers: the paths whose change makes it worth running"
_NO_APP = (
    "No app is deployed for these tests: run `cc-ci test .` in the recipe's folder (or set CC_CI_URL to the URL of a "
    "running app)."
)


@dataclass(frozen=True)
class Marker:
    """A value unique to this run, the same in all its stages."""

    value: str

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Oidc:
    """A realm for this run: its issuer URL, a confidential client, and a user who can log in."""

    issuer: str
    realm: str
    client_id: str
    client_secret: str = field(repr=False)
    user: str
    password: str = field(repr=False)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", _MARK)


@pytest.hookimpl(trylast=True)  # after the recipe's conftest.py, which may mark tests
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In a run, keep only the tests of its stage: extra tests in `extra`, all others elsewhere."""
    stage = os.environ.get("CC_CI_STAGE")
    if not stage:
        return
    whole = set(os.environ.get("CC_CI_EXTRA_FILES", "").split("\n"))

    def extra(item: pytest.Item) -> bool:
        return item.nodeid.partition("::")[0] in whole or item.get_closest_marker("extra") is not None

    others = [item for item in items if extra(item) != (stage == "extra")]
    if others:
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if extra(item) == (stage == "extra")]


@pytest.fixture(scope="session")
def app() -> App:
    """The deployed app, the same for all tests of a stage."""
    if not (os.environ.get("CC_CI_URL") or os.environ.get("CC_CI_GATE")):
        pytest.fail(_NO_APP, pytrace=False)
    return from_environment()


@pytest.fixture(scope="session")
def marker() -> Marker:
    """The value that the run writes into the app before the backup and looks for afterwards."""
    return Marker(os.environ.get("CC_CI_MARKER") or secrets.token_hex(8))


@pytest.fixture(scope="session")
def oidc() -> Oidc:
    """The realm that the server lends to this run."""
    if not os.environ.get("OIDC_ISSUER"):
        pytest.skip('not run: no OIDC provider (cc-ci.toml has `needs = ["oidc"]`, but the server has none to lend)')
    return Oidc(**{part.name: os.environ.get(f"OIDC_{part.name.upper()}", "") for part in fields(Oidc)})


@pytest.fixture(scope="session")
def _chromium(app: App) -> Iterator[Chromium]:
    from .chromium import started

    with started(app.url, app.domain) as chromium:
        yield chromium


@pytest.fixture
def browser(app: App, _chromium: Chromium) -> Iterator[Browser]:
    """A browser for one test: `browser.new_page()` returns a Playwright page for which `/` is the app."""
    from .chromium import Browser

    browser = Browser(_chromium, app.named_url)
    yield browser
    browser.close()


def from_environment() -> App:
    """The app that the environment names."""
    return App(
        url=os.environ.get("CC_CI_URL", "").rstrip("/"),
        domain=os.environ.get("CC_CI_DOMAIN", ""),
        gate=os.environ.get("CC_CI_GATE", ""),
        wait=float(os.environ.get("CC_CI_WAIT", "60")),
    )
