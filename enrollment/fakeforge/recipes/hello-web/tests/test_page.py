"""The recipe's own tests, run against a deployed app."""

from typing import Any


def test_front_page_greets(app: Any) -> None:
    answer = app.get("/")
    assert answer.status_code == 200
    assert "Hello from Co-op Cloud" in answer.text


def test_health(app: Any) -> None:
    assert app.get("/health").text.strip() == "ok"


def test_unknown_page_is_not_found(app: Any) -> None:
    assert app.get("/nothing-here").status_code == 404
