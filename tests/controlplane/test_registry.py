"""The registry: what is asked and not offered gets the default."""

from controlplane.registry import Registry


def test_an_answer_is_passed_on() -> None:
    registry = Registry()
    registry.answer("sum", lambda a, b: a + b)
    assert registry.ask("sum", 1, 2) == 3


def test_nobody_offers_the_answer() -> None:
    assert Registry().ask("sum", 1, 2, default="none") == "none"
