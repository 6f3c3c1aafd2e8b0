"""`cc-ci docs FOLDER`: the documentation as a static site."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.contrib.auth.models import AnonymousUser
from django.contrib.staticfiles import finders
from django.core.management.base import BaseCommand, CommandError
from django.template.loader import render_to_string
from django.test import RequestFactory

from controlplane import docs

#: What the pages load.
STATIC = ("cc-ci.css", "copy.js", "favicon.svg")


class Command(BaseCommand):
    help = "Write the documentation as a static site, to be served at the root of a host."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("folder", help="where to; it must not exist yet, or be empty")

    def handle(self, *args: Any, **options: Any) -> None:
        folder = Path(options["folder"])
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise CommandError(f"{folder} is not empty; give a folder that does not exist yet.")
        request = RequestFactory().get("/docs/")
        request.user = AnonymousUser()
        more = {"static_site": True, "groups": docs.groups()}
        _write(folder / "docs" / "index.html", render_to_string("controlplane/docs_index.html", more, request))
        for page in docs.pages().values():
            text = render_to_string("controlplane/docs_page.html", {**more, "page": page}, request)
            _write(folder / "docs" / page.slug / "index.html", text)
            for name in page.files:
                content, _ = docs.shown_file(name) or (b"", "")
                _write(folder / "docs" / name, content)
        for name in STATIC:
            _write(folder / "static" / "controlplane" / name, Path(str(finders.find(f"controlplane/{name}"))).read_bytes())
        self.stdout.write(f"Wrote {len(docs.pages())} pages to {folder}.")


def _write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
