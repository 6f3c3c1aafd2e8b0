"""Capture a real forge's answers to the requests in tests/data/gitea: `python -m tests.real.capture FOLDER`.

It is named by FORGE and FORGE_ADMIN, and gets the world of `tests/enrollment/fakeforge/test_captured.py`, which then holds the
fake forge to what was captured.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")

import django

django.setup()

import requests  # noqa: E402

from tests.enrollment.fakeforge.test_captured import CAPTURED, CONFIG, HEADERS, SENT, make_world, request_of  # noqa: E402
from tests.real.forge import DOMAIN, RealForge  # noqa: E402


def main(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as root:
        forge = RealForge(os.environ["FORGE"], os.environ["FORGE_ADMIN"], Path(root))
        try:
            make_world(forge)  # type: ignore[arg-type]
            folder.mkdir(parents=True, exist_ok=True)
            for path in sorted(CAPTURED.glob("*.json")):
                text = json.dumps(ask(forge, path.stem), indent=1, ensure_ascii=False)
                text = text.replace(forge.url, "https://git.example.org").replace(DOMAIN, "example.org")
                (folder / path.name).write_text(text + "\n")
        finally:
            forge.close()


def ask(forge: RealForge, name: str) -> dict[str, Any]:
    method, path, who = request_of(forge, name)
    scopes = ("all",) if who == "forgeadmin" else ()
    headers = {"Authorization": f"token {forge.add_token(who, *scopes) if who != 'nobody' else 'x' * 40}"}
    if "/hooks" in path and method != "POST" and who == "forgeadmin":
        for hook in forge.listed("/repos/recipes/keycloak/hooks"):
            forge.call("DELETE", f"/repos/recipes/keycloak/hooks/{hook['id']}")
        body = {"type": "gitea", "active": True, "config": CONFIG, "events": ["push", "issue_comment", "pull_request"]}
        path = path.replace("/8", f"/{forge.call('POST', '/repos/recipes/keycloak/hooks', body)['id']}")
    answer = requests.request(method, forge.url + path, headers=headers, allow_redirects=False, timeout=60, json=SENT.get(name))
    return {
        "request": f"{method} {path}",
        "status": answer.status_code,
        "headers": {key: answer.headers[key] for key in HEADERS if key in answer.headers},
        "body": answer.json() if answer.content else "",
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
