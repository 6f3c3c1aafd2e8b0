"""The forms of a forge's pages, filled in without a browser."""

from __future__ import annotations

from html.parser import HTMLParser
from urllib.parse import urljoin

import requests

SECONDS = 60


class Form(HTMLParser):
    """The form of a page for logging in, or for letting somebody in: where it goes, and its hidden fields. Forgejo has others."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.action: str | None = None
        self.fields: dict[str, str] = {}
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "form":
            wanted = given.get("method", "").lower() == "post" and "login" in given.get("action", "")
            self._inside = self.action is None and wanted
            if self._inside:
                self.action = given.get("action", "")
        elif tag == "input" and self._inside and given.get("type") == "hidden":
            self.fields[given["name"]] = given.get("value", "")

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._inside = False


def submit(
    browser: requests.Session, page: requests.Response, fields: dict[str, str], *, follow: bool = True
) -> requests.Response:
    """Submit that form as a browser would."""
    form = Form(page.text)
    assert form.action is not None, f"{page.url} has no form: {page.status_code} {page.text[:300]}"
    given = {**form.fields, **fields}
    url, headers = urljoin(page.url, form.action), {"Referer": page.url}
    return browser.post(url, given, headers=headers, timeout=SECONDS, allow_redirects=follow)
