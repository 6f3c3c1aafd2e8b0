"""A person's browser that logs in to cc-ci with the fake forge, step by step."""

from __future__ import annotations

from html import unescape
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.test import Client
from django.urls import reverse

from enrollment.forge_login.views import redirect_url
from tests.world import World


def offer_logins(world: World) -> None:
    """Register cc-ci at the forge, and the forge here. `CC_CI_BASE_URL` has to be that of the browser."""
    client_id, secret = world.remote.add_application(redirect_url(world.forge))
    world.forge.oauth_client_id, world.forge.oauth_client_secret = client_id, secret
    world.forge.save()


def to_the_forge(browser: Client, world: World, then: str = "/") -> str:
    """Press the button of the login page. Gives the forge's address that the browser is sent to."""
    page = browser.post(reverse("forge-login", args=[world.forge.pk]), {"next": then})
    assert page.status_code == 200
    return unescape(page.content.decode().partition("0;url=")[2].partition('"')[0])


def consent(world: World, target: str, name: str) -> str:
    """Say yes at the forge. Gives the address at cc-ci that it leads back to, without its host."""
    back = urlsplit(world.consent(target, name))
    assert f"{back.scheme}://{back.netloc}" == settings.CC_CI.base_url
    return f"{back.path}?{back.query}"


def log_in(world: World, name: str, then: str = "/", **more: Any) -> Client:
    """A browser in which this person has logged in with the forge."""
    browser = Client(**more)
    answer = browser.get(consent(world, to_the_forge(browser, world, then), name))
    assert (answer.status_code, answer["Location"]) == (302, then)
    return browser
