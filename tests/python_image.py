"""An image with this machine's own Python and its standard library, made here: no registry is needed for it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import sys
import tempfile
from pathlib import Path

import pytest

from tests import images
from tests.docker import docker

_LOCK = Path(tempfile.gettempdir(), f"cc-ci-test-python-{os.getuid()}.lock")


def need_python() -> str:
    """The image's name. Skips, or fails when CI=true, where it cannot be made."""
    image = f"cc-ci-test/python:{hashlib.sha256((sys.version + sys.base_prefix).encode()).hexdigest()[:8]}"
    with _LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if docker("image", "ls", "--quiet", image):
            return image
        with tempfile.TemporaryDirectory(prefix="cc-ci-image-") as folder:
            site = Path(folder, "site")
            site.mkdir()
            try:
                images.import_python(image, site, Path(folder, "image.tar"))
            except images.CannotMake as problem:
                if os.environ.get("CI") == "true":
                    pytest.fail(str(problem))
                pytest.skip(str(problem))
    return image
