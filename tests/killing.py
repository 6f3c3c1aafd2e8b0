"""Ends the process, as a test sees it, at each step of its work: after that, whatever is found has to be gone on from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock


class Killed(BaseException):
    """What no `except Exception` holds up, like the end of a process."""


@contextmanager
def killed_at(
    step: int, steps: list[str], places: Sequence[tuple[Any, str]], counts: Callable[..., bool] = lambda *args: True
) -> Iterator[None]:
    """End it at the so-many-th step: before or after a call of one of `places`, each an owner and a name.

    `steps` gets the names of the steps. Of `counts`, which gets a call's arguments, depends whether a call is a step.
    """

    def around(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            tick(f"before {name}", args)
            answer = real(*args, **more)
            tick(f"after {name}", args)
            return answer

        return call

    def tick(name: str, args: tuple[Any, ...]) -> None:
        if not counts(*args):
            return
        steps.append(name)
        if len(steps) == step + 1:
            raise Killed(name)

    with ExitStack() as stack:
        for owner, name in places:
            stack.enter_context(mock.patch.object(owner, name, around(f"{owner.__name__}.{name}", getattr(owner, name))))
        yield
