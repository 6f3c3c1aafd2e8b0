"""Renders compose files with Docker's own reader: `render.py CONFIG_FD`. Runs unprivileged in the sandbox.

The configuration is JSON: `jobs` (a list of `command` and `env`, that command's complete environment), `most` (the limit of a
command's output in bytes), `shown` and `error` (how much of its output and errors to return).
Prints a JSON list with `code`, `out` and `err` for each job; `code` is null if the output was too long.

A recipe's variables are the reader's environment and can make it do anything (LD_PRELOAD), so its output is not trusted.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import IO, Any

TOGETHER = 8  #: jobs at a time: each has some ten threads


def main() -> None:
    with os.fdopen(int(sys.argv[1])) as file:
        config = json.load(file)
    jobs = config["jobs"]
    answers = [one for at in range(0, len(jobs), TOGETHER) for one in run(jobs[at : at + TOGETHER], config)]
    sys.stdout.write(json.dumps(answers))


def run(jobs: list[dict[str, Any]], config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    running = []
    for job in jobs:
        out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 - read further down
        process = subprocess.Popen(job["command"], env=job["env"], stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        running.append((process, out, err))
    for process, out, err in running:
        code = process.wait()
        fits = os.fstat(out.fileno()).st_size <= config["most"]
        yield {"code": code if fits else None, "out": read(out, config["shown"]), "err": read(err, config["error"])}


def read(file: IO[bytes], most: int) -> str:
    file.seek(0)
    return file.read(most).decode(errors="replace")


main()
