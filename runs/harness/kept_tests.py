"""Tests that the server keeps for a recipe: `tests/<recipe>/` in a repository of their own, at a pinned commit.

They get their own checkout beside the recipe's, their own pytest process and their own conftest.py, so that no file of a
recipe, which may be a stranger's, can shadow, replace or be loaded by them. Only regular files in real folders are used.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from infra.deployers import messages
from infra.deployers.isolation import trees
from infra.git.runner import GitError
from runs.harness import extra_tests, recipe_config
from runs.harness.checkout import Checkout
from runs.harness.protocol import CaseResult, ExtraTest, Source

#: Prefix of files that are not the recipe's own, in results.
KEPT = "kept with the server: "
#: Prefixes of files that are.
_OWN = ("tests/", "extra/")
#: Valid recipe names: no path, and not hidden.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
#: Overlays in the folder: one for both versions, and one for the older version only.
OVERLAY, PREVIOUS = "compose.ci.yml", "previous.yml"
_BIGGEST_OVERLAY = 256 << 10
#: Maximum number of skipped entries named in the warning.
_NAMES = 5


class KeptTestsError(GitError):
    """The server's tests are unusable, which is not the recipe's fault."""


@dataclass(frozen=True)
class KeptTests:
    """The tests for one recipe: a checkout in `folder` with `files` files."""

    folder: Path
    place: str  #: the path in their repository
    commit: str  #: of their repository, for people
    files: int
    config: bytes | None = None  #: of its cc-ci.toml
    overlays: Mapping[str, bytes] = field(default_factory=dict)  #: OVERLAY and PREVIOUS, those that are there

    def marked(self, cases: Sequence[CaseResult]) -> list[CaseResult]:
        """Marks results as those of the server's tests."""
        return [case.model_copy(update={"file": self._path(case.file)}) for case in cases]

    def extras(self) -> list[ExtraTest]:
        return [test.model_copy(update={"file": self._path(test.file)}) for test in extra_tests.find(self.folder)]

    def _path(self, file: str) -> str:
        return f"{KEPT}{self.place}/{file.removeprefix(_OWN[0])}"


def own(cases: Sequence[CaseResult]) -> list[CaseResult]:
    """The results of a recipe's own tests. Their files are in `tests/` or `extra/`, so none looks like the server's."""
    return [
        case.model_copy(update={"file": case.file if case.file.startswith(_OWN) else f"{_OWN[0]}{case.file}"}) for case in cases
    ]


def bring(
    source: Source,
    recipe: str,
    work: Path,
    credential: Mapping[str, str],
    check: Callable[[], None],
    disk_mb: int,
    report: Callable[[str], None],
) -> KeptTests | None:
    """Check out the tests for a recipe; None if there are none. Raises GitError and KeptTestsError."""
    if not _NAME.fullmatch(recipe):
        return None
    whole, folder, place = work / "kept-whole", work / "kept", f"tests/{recipe}"
    try:
        sha = Checkout(source, whole, credential, check, disk_mb, report).make()
        if not _is_folder(whole / "tests") or not _is_folder(whole / place):
            return None
        taken, left = _copy(whole / place, folder / "tests")
    except GitError as error:
        raise KeptTestsError(f"The tests kept on the server ({source.url}): {error}") from error
    finally:
        trees.remove(whole)
    if left:
        report(f"Skipped in the tests kept on the server, not regular files: {messages.some(left, _NAMES)}")
    overlays = {name: data for name in (OVERLAY, PREVIOUS) if (data := _taken_out(folder / "tests" / name)) is not None}
    for name, data in overlays.items():
        if len(data) > _BIGGEST_OVERLAY:
            raise KeptTestsError(f"{place}/{name}, kept on the server, is larger than {_BIGGEST_OVERLAY >> 10} kB.")
    config = _taken_out(folder / "tests" / recipe_config.FILE)
    return KeptTests(folder, place, sha[:12] or "a local folder", taken, config, overlays)


def _is_folder(path: Path) -> bool:
    return stat.S_ISDIR(path.lstat().st_mode) if os.path.lexists(path) else False


def _copy(source: Path, target: Path) -> tuple[int, list[str]]:
    """Copy the regular files below a folder. Returns their number, and the names of everything else."""
    count, left = 0, []
    for path, name, regular in _walk(source):
        if not regular:
            left.append(name)
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / name, follow_symlinks=False)
        count += 1
    target.mkdir(parents=True, exist_ok=True)
    for folder in (target.parent, target, *(path for path in target.rglob("*") if path.is_dir())):
        folder.chmod(0o755)  # the sandbox reads it with another uid
    for path in target.rglob("*"):
        if path.is_file():
            path.chmod(0o644)
    return count, left


def _walk(folder: Path) -> Iterator[tuple[Path, str, bool]]:
    for place, folders, names in os.walk(folder):
        for name in sorted((*folders, *names)):
            path = Path(place, name)
            mode = path.lstat().st_mode
            if not stat.S_ISDIR(mode):
                yield path, path.relative_to(folder).as_posix(), stat.S_ISREG(mode)


def _taken_out(path: Path) -> bytes | None:
    """Take a file that is not a test out of the folder, and return its content."""
    if not path.is_file():
        return None
    data = path.read_bytes()
    path.unlink()
    return data


def overlay_names(run_id: str) -> dict[str, str]:
    """The overlays' names in the recipe's checkouts. Unpredictable, so that none is replaced by a file of the recipe, and no
    file of the recipe is used as one because of its name.
    """
    return {OVERLAY: f"cc-ci-{run_id[:12]}.yml", PREVIOUS: f"cc-ci-{run_id[:12]}-previous.yml"}


def lay_over(kept: KeptTests, checkout: Path, run_id: str, *, previous: bool) -> None:
    """Put the overlays for a version into its checkout."""
    for name, called in overlay_names(run_id).items():
        if name in kept.overlays and (previous or name == OVERLAY):
            path = checkout / called
            path.unlink(missing_ok=True)
            path.write_bytes(kept.overlays[name])
            path.chmod(0o644)
