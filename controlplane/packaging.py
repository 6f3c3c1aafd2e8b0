"""Building the wheel: the docs go into it, since pages show parts of them."""

from __future__ import annotations

from pathlib import Path

from setuptools.command.build_py import build_py  # type: ignore[import-untyped]


class WithDocs(build_py):  # type: ignore[misc]
    """Copies docs/*.md beside the code. (An installation of a checkout, with `pip install -e`, reads them where they are.)"""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "controlplane" / "docs"
            self.mkpath(str(target))
            for page in sorted(Path("docs").glob("*.md")):
                self.copy_file(str(page), str(target / page.name))
