"""git commands against a forge: retried while it gives no clear answer, never after one.

Clear answers are recognized by git's messages; everything else is retried: rate limits (429), server errors (5xx), refused or
dropped connections, and a 200 that is not git's protocol. (git does not show a `Retry-After`.)
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator

from infra.deployers.isolation.children import Done
from infra.git import environment

#: Seconds of the first pause and of the longest; each is twice the one before, a quarter more or less.
FIRST, LONGEST = 0.5, 15.0
_SLICE = 0.2

#: Statuses that invite a later retry.
_LATER = r"(?!408|425|429)"
#: Clear answers: statuses, the server's messages in git's protocol, ssh's, and causes on this host or in the repository.
_ANSWERS = re.compile(
    rf"""
    returned\ error:\ {_LATER}[34]\d\d\b | RPC\ failed;\ HTTP\ {_LATER}[34]\d\d\b      # such as 403
    | ^fatal:\ repository\ '.*'\ not\ found | ^fatal:\ Authentication\ failed | could\ not\ read\ (Username|Password)
    | ^fatal:\ remote\ error: | \bnot\ our\ ref\b | (?<!transport\ )does\ not\ (support|allow)\b
    | ^fatal:\ transport\ '.*'\ not\ allowed | [Uu]nsupported\ protocol | unable\ to\ access\ '.*':\ .*certificate
    | ^\S*:?\s?Permission\ denied\b | ^Host\ key\ verification\ failed                # of ssh
    | fsck\ error | [Oo]ut\ of\ memory | died\ of\ signal | No\ space\ left | ^fatal:\ not\ a\ git\ repository
    """,
    re.VERBOSE | re.MULTILINE,
)
#: git's messages for a page of HTML, too: it reads one as an empty list of refs, or as a plain folder.
_DOUBTFUL = re.compile(r"^fatal: (couldn't find remote ref |dumb http transport does not support )", re.MULTILINE)


def is_answer(done: Done) -> bool | None:
    """Whether git's message is the forge's own answer; None if a page of HTML would look the same. Pure."""
    if done.code <= 0:  # it succeeded, or was killed on this host
        return True
    errors = done.err.decode(errors="replace")
    if _ANSWERS.search(errors):
        return True
    return None if _DOUBTFUL.search(errors) else False


def pauses() -> Iterator[float]:
    """The seconds between attempts, endlessly."""
    seconds = FIRST
    while True:
        yield seconds * random.uniform(0.75, 1.25)  # noqa: S311
        seconds = min(LONGEST, 2 * seconds)


def ask(
    run: Callable[[float], Done],
    listed: Callable[[float], bool],
    *,
    seconds: float,
    patience: float | None = None,
    check: Callable[[], None] = lambda: None,
    report: Callable[[str], None] = lambda text: None,
    before: Callable[[], None] = lambda: None,
) -> tuple[Done, bool]:
    """The last result of git, and whether it is the forge's clear answer.

    `run` starts git, and gets how many of the `seconds`, which all attempts share, are left. No attempt starts after `patience`
    seconds (default: all of them). `listed`, called the same way, returns whether the forge lists any ref. `check` is called
    during pauses, and raises to cancel; `before` is called before each further attempt, `report` after each failed one.
    """
    began, doubted = time.monotonic(), b""
    until, last = began + seconds, began + min(seconds, seconds if patience is None else patience)
    for pause in pauses():
        done = run(until - time.monotonic())
        answer = is_answer(done)
        left = until - time.monotonic()
        clear = answer is None and left > 0 and listed(left)
        if answer or (clear and doubted == done.err):
            return done, True
        if time.monotonic() + pause >= last:
            return done, False
        if clear:
            # An answer is believed when it is given twice.
            doubted = done.err
        else:
            reason = environment.reason(done.err[:4000])
            report(f"The forge did not answer properly ({reason}); retrying in {pause:.0f} s.")
        _rest(pause, check)
        before()
    raise AssertionError("pauses never end")


def _rest(seconds: float, check: Callable[[], None]) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        check()
        time.sleep(min(_SLICE, left))
