"""Runs one function of a recipe's `tests/cc_ci_hooks.py`: `python -P -m cc_ci_plugin.hook NAME VALUE RESULT_FILE`.

The result is JSON: `{"value": …}`, or `{"error": "the last lines of the traceback"}` and exit code 1.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import sys
import traceback
from pathlib import Path
from typing import Any

from . import from_environment

_LINES = 12


def call(path: Path, name: str, value: str) -> Any:
    """Call the function with the app and the value, or as many of them as it takes."""
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    function = getattr(module, name)
    return function(*[from_environment(), value][: _places(function)])


def _places(function: Any) -> int:
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return 2
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)


def main(name: str, value: str, result: str) -> int:
    path = Path("tests", "cc_ci_hooks.py").absolute()
    try:
        given = call(path, name, value)
        if name == "read_marker" and not isinstance(given, str):
            raise TypeError(f"read_marker returned {given!r:.100}, but has to return the marker's text.")
        answer = {"value": given if isinstance(given, str) else ""}
    except BaseException as error:  # pytest.fail() and sys.exit() are no Exceptions
        message = _message(error)
        print(message, file=sys.stderr)  # noqa: T201
        answer = {"error": "\n".join(message.splitlines()[-_LINES:])}
    Path(result).write_text(json.dumps(answer))
    return int("error" in answer)


def _message(error: BaseException) -> str:
    """The traceback, beginning with the recipe's own code."""
    trace = error.__traceback__
    here = str(Path(__file__).parent)
    while trace and trace.tb_next and (trace.tb_frame.f_code.co_filename.startswith((here, "<frozen"))):
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(error), error, trace)).strip()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4]))
