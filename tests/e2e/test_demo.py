"""`make demo ONCE=1`: what a stranger types first."""

from __future__ import annotations

import subprocess
import sys

import pytest

from controlplane.config import BASE_DIR


@pytest.mark.crash
def test_the_demo_answers_both_comments_and_says_ok() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "runs.demo", "--once", "--port", "0"], cwd=BASE_DIR, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("demo: ok")
    assert "hello-web` at" not in done.stderr
    assert "does not greet" in done.stdout, "broken-web fails for its own reason"
    assert done.stderr == ""
