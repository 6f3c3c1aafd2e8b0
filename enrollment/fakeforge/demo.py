"""The fake forge's contents in the demo."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from enrollment.fakeforge import git
from enrollment.fakeforge.model import Repo, User
from enrollment.fakeforge.store import Forge

RECIPE = Path(__file__).parent / "recipes" / "hello-web"
TOPIC = "cc-ci"
PUBLISHED = "1.0.0+1.36.1"
PROPOSED = "1.1.0+1.36.1"

#: What a pull request changes: in each file, these texts by others.
Changes = Mapping[str, Mapping[str, str]]
_NEXT: Changes = {"compose.yml": {PUBLISHED: PROPOSED}, "abra.sh": {"INDEX_VERSION=v1": "INDEX_VERSION=v2"}}
#: The recipes, all alike but for their names, and the pull request of each: its title, and what it changes besides the version.
PULLS: Mapping[str, tuple[str, Changes]] = {
    "hello-web": ("Say the version on the page", {"index.html": {"</h1>": ", version 1.1</h1>"}}),
    "broken-web": ("Write a shorter page", {"index.html": {"Hello from Co-op Cloud": "It works!"}}),
    # It starts, it is healthy, and every note that an operator had is gone.
    "forgetful-web": (
        "Name the volume after the app",
        {"index.html": {"</h1>": ", tidied up</h1>"}, "compose.yml": {"- notes:": "- web:", "\n  notes:\n": "\n  web:\n"}},
    ),
}


def seed(forge: Forge) -> dict[str, str]:
    """Fill an empty forge with an organisation `recipes`, the recipes in `PULLS` and four open pull requests.

    `alice` maintains the recipes, `cc-ci` (the bot) may read, `mallory` is an outsider with a fork and a pull request
    from it. Returns the tokens by user name.
    """
    alice = forge.add_user("alice")
    bot = forge.add_user("cc-ci")
    mallory = forge.add_user("mallory")
    org = forge.add_org("recipes", forge.add_user("admin", admin=True))
    forge.add_member(org, alice, "write")
    forge.add_member(org, bot, "read")
    for name, (title, changes) in PULLS.items():
        files = {path: content.decode().replace(RECIPE.name, name) for path, content in git.tree(RECIPE).items()}
        repo = forge.add_repo(org, name, topics=[TOPIC], files=files)
        forge.tag(repo, PUBLISHED)
        _propose(forge, repo, alice, title, files, changes)
    fork = forge.fork("recipes/hello-web", mallory)
    note = {"README.md": (RECIPE / "README.md").read_text() + "\nSee also my other recipes.\n"}
    forge.push(fork, "advertise", note, "Point to my recipes", mallory)
    body = "Adds a line to the README.\n\nNobody asked for it: mallory is not a member of the organisation."
    forge.open_pull("recipes/hello-web", fork, "advertise", mallory, "Point to my recipes", body)
    return {user.login: forge.add_token(user) for user in (alice, bot, mallory)}


def _propose(forge: Forge, repo: Repo, author: User, title: str, files: Mapping[str, str], changes: Changes) -> None:
    """Open a pull request for the next version."""
    changed: dict[str, str | bytes] = {f"release/{PROPOSED}": f"{title}.\n"}
    for path in {*_NEXT, *changes}:
        text = files[path]
        for old, new in {**_NEXT.get(path, {}), **changes.get(path, {})}.items():
            text = text.replace(old, new)
        changed[path] = text
    forge.push(repo, "next-version", changed, f"chore: publish {PROPOSED} release", author)
    body = f"Publishes `{PROPOSED}`. Comment `!testme` to have it tested."
    forge.open_pull(repo, repo, "next-version", author, title, body)


def write(path: Path, url: str, tokens: dict[str, str]) -> None:
    """Save the address and the tokens in a file readable by its owner only, so that a restart uses the same ones."""
    draft = path.with_suffix(".new")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump({"url": url, "bot_token": tokens["cc-ci"], "alice_token": tokens["alice"], "tokens": tokens}, file, indent=2)
    draft.replace(path)
