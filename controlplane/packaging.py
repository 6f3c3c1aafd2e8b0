"""Building the wheel: the docs go into it, since pages show them."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools.command.build_py import build_py  # type: ignore[import-untyped]

#: A link within the docs, and what a page may show besides text.
LINK = re.compile(r"\]\(([^()\[\]#:\s]{1,200})\)")
SHOWN = (".png", ".svg", ".json")


class WithDocs(build_py):  # type: ignore[misc]
    """Copies docs/ beside the code: its pages, and what these show or link to. (An installation of a checkout, with
    `pip install -e`, reads them where they are.)
    """

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "controlplane" / "docs"
            pages = sorted(Path("docs").rglob("*.md"))
            shown = {page.parent / name for page in pages for name in LINK.findall(page.read_text()) if name.endswith(SHOWN)}
            for path in [*pages, *sorted(path for path in shown if path.is_file())]:
                copy = target / path.relative_to("docs")
                self.mkpath(str(copy.parent))
                self.copy_file(str(path), str(copy))
