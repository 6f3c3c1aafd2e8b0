"""The environment in which git handles untrusted repositories: no hooks, helpers or prompts, only named protocols. Pure.

The harness and the mirrors of the server's own apps both use it.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Collection, Mapping
from urllib.parse import urlsplit


def environment(
    url: str, protocols: Collection[str], token: str = "", user: str = "git", more: Mapping[str, str] | None = None
) -> dict[str, str]:
    """git's whole environment. It includes the configuration, so that nothing is written to disk.

    `protocols`: git's names of allowed transports, such as https and file. A token is sent to the server of `url` only.
    `more`: more configuration. All of it overrides the repository's own.
    """
    settings = {
        "core.hooksPath": "/dev/null",
        "core.fsmonitor": "false",
        "credential.helper": "",
        "fetch.recurseSubmodules": "false",
        "fetch.unpackLimit": "1",  # always fetch a pack: its size can be watched
        "gc.auto": "0",
        "http.lowSpeedLimit": "1000",
        "http.lowSpeedTime": "60",
        "init.defaultBranch": "main",
        "maintenance.auto": "false",
        "protocol.allow": "never",
        "safe.directory": "*",
        "submodule.recurse": "false",
        "transfer.fsckObjects": "true",
    }
    settings |= {f"protocol.{name}.allow": "always" for name in protocols}
    settings |= more or {}
    if token:
        parts = urlsplit(url)
        # For this server only, not for one that it redirects to.
        settings[f"http.{parts.scheme}://{parts.netloc}/.extraHeader"] = f"Authorization: Basic {basic(token, user)}"
        settings["http.followRedirects"] = "false"
    env = {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
        "HOME": "/nonexistent",
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "true",
        "GIT_LFS_SKIP_SMUDGE": "1",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_SSH_COMMAND": "ssh -oBatchMode=yes -oConnectTimeout=10",
        "GIT_CONFIG_COUNT": str(len(settings)),
    }
    for number, (key, value) in enumerate(settings.items()):
        env[f"GIT_CONFIG_KEY_{number}"] = key
        env[f"GIT_CONFIG_VALUE_{number}"] = value
    return env


def basic(token: str, user: str) -> str:
    """Name and token encoded for basic authentication."""
    return base64.b64encode(f"{user}:{token}".encode()).decode()


def reason(errors: bytes) -> str:
    """The line in which git gives the reason; the lines after it are general advice."""
    lines = errors.decode(errors="replace").strip().splitlines()
    fatal = [line for line in lines if line.startswith(("fatal:", "error:", "remote:"))]
    return (fatal or lines or [""])[0].strip()
