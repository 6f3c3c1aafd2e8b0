"""Django's settings for the tests: a data folder of their own, and nothing from the developer's environment or `.env`.

`DATABASE_URL` alone is kept: with it the same tests run on PostgreSQL.
"""

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

# Each of the many processes would compile all our modules again, and each of pytest's workers rewrite all assertions.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

for _name in [name for name in os.environ if name.startswith("CC_CI_")]:
    del os.environ[_name]
_folder = tempfile.mkdtemp(prefix="cc-ci-tests-")
atexit.register(shutil.rmtree, _folder, ignore_errors=True)
os.environ["CC_CI_ENV_FILE"] = ""
os.environ["CC_CI_DATA_DIR"] = _folder
# doctor shall send nothing to the machine's real neighbours; the tests about it have a network of their own.
os.environ["CC_CI_FIREWALL_PROBE"] = "false"

from controlplane.settings import *  # noqa: E402, F403
from controlplane.settings import CC_CI, DATABASES  # noqa: E402

if CC_CI.is_sqlite:
    # A file, not memory: tests with threads need the locks of the real thing.
    DATABASES["default"]["TEST"] = {"NAME": str(Path(_folder) / "test.sqlite3")}
    DATABASES["default"]["OPTIONS"]["init_command"] += "PRAGMA synchronous=OFF;"
# The tests about the budget set one; others may ask as fast as they can.
CC_CI.requests_per_minute = 0
# A second for each run; the tests about pictures ask for them.
CC_CI.pictures = False
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
