"""The registry: what is asked and not offered gets the default."""

from django.utils.module_loading import import_string

from controlplane.registry import Registry, registry


def test_an_answer_is_passed_on() -> None:
    registry = Registry()
    registry.answer("sum", lambda a, b: a + b)
    assert registry.ask("sum", 1, 2) == 3


def test_nobody_offers_the_answer() -> None:
    assert Registry().ask("sum", 1, 2, default="none") == "none"


def test_what_the_apps_register_is_there() -> None:
    functions = [
        *registry.checks.values(),
        *registry.answers.values(),
        *registry.guards.values(),
        *(card.context for card in registry.cards.values()),
        *(task.task for task in registry.recurring.values()),
    ]
    assert len(functions) > 20
    assert all(callable(import_string(function)) for function in functions)
