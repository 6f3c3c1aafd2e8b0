"""Has Docker's own reader render compose files: `render.py CONFIG_FD`. Runs in the sandbox, as nobody.

The configuration is JSON: `jobs` (a list of `command` and `env`, the whole environment of that command), `most` (bytes of what
a command may print). Prints one JSON list of `code`, `out` and `err` for each job; `code` is null where too much was printed.

A recipe's variables are the reader's environment, and may make it do anything (LD_PRELOAD): what it prints is a stranger's word.
"""

import json
import os
import subprocess
import sys
import tempfile
from typing import IO


def main() -> None:
    with os.fdopen(int(sys.argv[1])) as file:
        config = json.load(file)
    running = []
    for job in config["jobs"]:
        out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 - read further down
        process = subprocess.Popen(job["command"], env=job["env"], stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        running.append((process, out, err))
    answers = []
    for process, out, err in running:
        code = process.wait()
        answers.append(
            {
                "code": code if os.fstat(out.fileno()).st_size <= config["most"] else None,
                "out": read(out, config["most"]),
                "err": read(err, 4096),
            }
        )
    sys.stdout.write(json.dumps(answers))


def read(file: IO[bytes], most: int) -> str:
    file.seek(0)
    return file.read(most).decode(errors="replace")


main()
