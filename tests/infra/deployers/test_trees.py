"""Removing what a stranger made, whatever it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from infra.deployers.isolation import trees


def make_deep(folder: Path, levels: int) -> None:
    """So many folders, each in the one before: no path names the last, so each is made from within the one above."""
    here = os.open(folder, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("a" * 20, dir_fd=here)
        inner = os.open("a" * 20, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)


@pytest.mark.parametrize("levels", [0, 1, 2500])
def test_a_folder_goes_however_deep_it_is(tmp_path: Path, levels: int) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    for name in ("one", "two"):
        (folder / name).mkdir()
        make_deep(folder / name, levels)
    assert trees.remove(folder)
    assert list(tmp_path.iterdir()) == []


def test_nothing_goes_that_a_symlink_leads_to(tmp_path: Path) -> None:
    kept, folder = tmp_path / "kept", tmp_path / "work"
    for path in (kept, folder):
        path.mkdir()
        (path / "file").touch()
    (folder / "link").symlink_to(kept)
    (tmp_path / "link").symlink_to(kept)
    assert trees.remove(folder)
    assert not trees.remove(tmp_path / "link")
    assert (kept / "file").exists()


def test_what_is_not_there_is_gone_and_what_stays_is_told(tmp_path: Path) -> None:
    assert trees.remove(tmp_path / "nothing")
    assert not trees.remove(Path("/proc/self/fd"))


def test_a_temporary_folder_goes_with_all_that_is_in_it() -> None:
    with pytest.raises(ValueError), trees.temporary("cc-ci-test-") as folder:
        make_deep(folder, 1500)
        raise ValueError
    assert not folder.exists()
