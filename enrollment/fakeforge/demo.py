"""The fake forge's contents in the demo."""

from __future__ import annotations

import json
import os
from pathlib import Path

from enrollment.fakeforge import git
from enrollment.fakeforge.model import Pull, Repo, User
from enrollment.fakeforge.store import Forge

RECIPES = Path(__file__).parent / "recipes"
TOPIC = "cc-ci"
PUBLISHED = "1.0.0+1.36.1"
PROPOSED = "1.1.0+1.36.1"


def seed(forge: Forge) -> dict[str, str]:
    """Fill an empty forge with an organisation `recipes`, two recipes and three open pull requests.

    `alice` maintains the recipes, `cc-ci` (the bot) may read, `mallory` is an outsider with a fork and a pull request
    from it. Returns the tokens by user name.
    """
    alice = forge.add_user("alice")
    bot = forge.add_user("cc-ci")
    mallory = forge.add_user("mallory")
    org = forge.add_org("recipes", forge.add_user("admin", admin=True))
    forge.add_member(org, alice, "write")
    forge.add_member(org, bot, "read")
    for name in ("hello-web", "broken-web"):
        repo = _recipe(forge, org, name)
        _proposal(forge, repo, alice)
    fork = forge.fork("recipes/hello-web", mallory)
    note = {"README.md": (RECIPES / "hello-web" / "README.md").read_text() + "\nSee also my other recipes.\n"}
    forge.push(fork, "advertise", note, "Point to my recipes", mallory)
    body = "Adds a line to the README.\n\nNobody asked for it: mallory is not a member of the organisation."
    forge.open_pull("recipes/hello-web", fork, "advertise", mallory, "Point to my recipes", body)
    return {user.login: forge.add_token(user) for user in (alice, bot, mallory)}


def _recipe(forge: Forge, org: User, name: str) -> Repo:
    repo = forge.add_repo(org, name, topics=[TOPIC], files=RECIPES / name)
    forge.tag(repo, PUBLISHED)
    return repo


def _proposal(forge: Forge, repo: Repo, author: User) -> Pull:
    """Open a pull request for the next version, with a page that differs from the old one."""
    files = {path: content.decode() for path, content in git.tree(RECIPES / repo.name).items()}
    changed = {
        "compose.yml": files["compose.yml"].replace(PUBLISHED, PROPOSED),
        "abra.sh": files["abra.sh"].replace("INDEX_VERSION=v1", "INDEX_VERSION=v2"),
        "index.html": files["index.html"].replace("</h1>", ", version 1.1</h1>"),
        f"release/{PROPOSED}": "The page says which version it is.\n",
    }
    forge.push(repo, "say-the-version", changed, f"chore: publish {PROPOSED} release", author)
    body = f"The page now says which version it is.\n\nPublishes `{PROPOSED}`. Comment `!testme` to have it tested."
    return forge.open_pull(repo, repo, "say-the-version", author, f"Publish {PROPOSED}", body)


def write(path: Path, url: str, tokens: dict[str, str]) -> None:
    """Save the address and the tokens in a file readable by its owner only, so that a restart uses the same ones."""
    draft = path.with_suffix(".new")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump({"url": url, "bot_token": tokens["cc-ci"], "alice_token": tokens["alice"], "tokens": tokens}, file, indent=2)
    draft.replace(path)
