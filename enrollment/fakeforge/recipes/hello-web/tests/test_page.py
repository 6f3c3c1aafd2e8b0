"""The recipe's own tests, run against a deployed app."""

import re
from typing import Any


def test_front_page_greets(app: Any) -> None:
    heading = re.search(r"<h1>(.*?)</h1>", app.get("/").text)
    assert heading, "the front page has no heading"
    assert heading[1].startswith("Hello from Co-op Cloud"), f"the front page says {heading[1]!r} and does not greet"


def test_health(app: Any) -> None:
    assert app.get("/health").text.strip() == "ok"


def test_unknown_page_is_not_found(app: Any) -> None:
    assert app.get("/nothing-here").status_code == 404
