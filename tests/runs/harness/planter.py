"""Plants the secrets that live in a process, then becomes the command given: `planter.py VALUES_JSON COMMAND…`.

The keyring, the descriptors, the environment and shared memory are handed on to whatever a careless harness starts.
"""

import ctypes
import json
import os
import sys
import tempfile

KEYCTL = {"x86_64": 250, "aarch64": 219, "riscv64": 219}
ADD_KEY = {"x86_64": 248, "aarch64": 217, "riscv64": 217}


def main() -> None:
    secrets = json.loads(sys.argv[1])
    libc = ctypes.CDLL(None, use_errno=True)
    machine = os.uname().machine
    libc.syscall(KEYCTL[machine], 1, None)  # a session keyring of our own
    value = secrets["keyring"].encode()
    if libc.syscall(ADD_KEY[machine], b"user", b"cc-ci-test", value, len(value), ctypes.c_int(-3)) < 0:
        sys.exit(f"no key could be planted: {os.strerror(ctypes.get_errno())}")
    handle, path = tempfile.mkstemp()
    os.write(handle, secrets["descriptor"].encode())
    os.unlink(path)  # noqa: PTH108
    os.set_inheritable(handle, True)
    os.environ["CC_CI_TEST_SECRET"] = secrets["environment"]
    os.execv(sys.argv[2], sys.argv[2:])


main()
