"""Extra tests are found by reading, whatever is in the files, and suggested where a change touches what they cover."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from runs.harness import extra_tests
from runs.harness.protocol import ExtraTest
from tests.runs.harness.conftest import RECIPES

EVERY_KIND = RECIPES / "own-tests-every-kind"


def recipe_with(folder: Path, **files: str) -> Path:
    (folder / "tests").mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / "tests" / f"{name}.py").write_text(text)
    return folder


def test_every_extra_test_with_what_its_nearest_mark_covers() -> None:
    assert [(test.file, test.name, test.covers) for test in extra_tests.find(EVERY_KIND)] == [
        ("extra/test_root.py", "test_at_the_root", []),
        ("tests/deep/extra/test_more.py", "test_more", []),
        ("tests/extra/test_backup.py", "test_backed_up_long", []),
        ("tests/extra/test_purge.py", "test_purge", ["abra.sh"]),
        ("tests/test_extra.py", "test_by_its_name", []),
        ("tests/test_install.py", "test_installed_long", ["compose.yml"]),
        ("tests/test_page.py", "test_page_long", ["www/*.html", "abra.sh"]),
        ("tests/test_page.py", "test_size", ["www"]),
        ("tests/test_page.py", "TestLoad::test_many", ["abra.sh"]),
        ("tests/test_page.py", "TestLoad::test_nearest_mark_counts", []),
        ("tests/test_page.py", "TestLoad::TestInner::test_inner", ["abra.sh"]),
        ("tests/test_slow.py", "test_slow", ["compose.yml"]),
        ("tests/test_slow.py", "test_slow_page", ["./www/"]),
    ]


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ([], []),
        (["README.md", "www2/x", "release/abra.sh"], []),
        (["abra.sh"], ["test_purge", "test_page_long", "TestLoad::test_many", "TestLoad::TestInner::test_inner"]),
        (["compose.yml"], ["test_installed_long", "test_slow"]),
        (["README.md", "www/deep/logo.svg"], ["test_size", "test_slow_page"]),
        (["www/index.html"], ["test_page_long", "test_size", "test_slow_page"]),
    ],
)
def test_a_change_suggests_the_tests_that_cover_it(changed: list[str], names: list[str]) -> None:
    assert [test.name for test in extra_tests.suggested(extra_tests.find(EVERY_KIND), changed)] == names


@pytest.mark.parametrize(
    ("cover", "path", "hit"),
    [
        ("config", "config/a/b.tmpl", True),
        ("config/", "config", True),
        ("config", "config.tmpl", False),
        ("*.tmpl", "config/a.tmpl", True),
        ("config/**/x.conf", "config/a/b/x.conf", True),
        ("compose.?.yml", "compose.a.yml", True),
        ("[", "[", True),  # no pattern, but a name
        ("", "a", False),
        ("/", "a", False),
        ("./", "a", False),
    ],
)
def test_how_a_cover_is_compared(cover: str, path: str, hit: bool) -> None:
    test = ExtraTest(file="tests/extra/test_a.py", name="test_a", covers=[cover])
    assert bool(extra_tests.suggested([test], [path])) is hit


def test_only_literals_are_believed_and_nothing_is_executed(tmp_path: Path) -> None:
    text = f"""
import pytest
open({str(tmp_path / "touched")!r}, "w")

@pytest.mark.extra(covers=[open({str(tmp_path / "touched")!r}, "w").name, "abra.sh", 3, b"x"])
def test_a(): pass

@pytest.mark.extra(covers=NAMES, note=str(1))
def test_b(): pass

@pytest.mark.extra(**options)
def test_c(): pass

@other.extra(covers=["abra.sh"])
def test_d(): pass
"""
    recipe = recipe_with(tmp_path, test_a=text)
    found = [(test.name, test.covers) for test in extra_tests.find(recipe)]
    assert found == [("test_a", ["abra.sh"]), ("test_b", []), ("test_c", [])]
    assert not (tmp_path / "touched").exists()


HOSTILE = [
    "def test_a(:",
    "\0",
    "(" * 100_000,
    "-" * 200_000 + "1",
    "a" + ".a" * 100_000,
    "lambda:" * 30_000 + "1",
    "# -*- coding: no-such-code -*-\ndef test_x(): pass",
    "9" * 100_000,
    "@a\n" * 80_000 + "def test_x(): pass",
    "def test_big(): pass\n" + "#" * 300_000,
]


def test_hostile_files_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "tests" / "extra").mkdir(parents=True)
    for number, text in enumerate(HOSTILE):
        (tmp_path / "tests" / "extra" / f"test_{number}.py").write_text(text)
    (tmp_path / "tests" / "extra" / "test_bytes.py").write_bytes(os.urandom(1000))
    (tmp_path / "tests" / "extra" / "test_folder.py").mkdir()
    os.mkfifo(tmp_path / "tests" / "extra" / "test_pipe.py")
    (tmp_path / "tests" / "extra" / "test_loop.py").symlink_to("test_loop.py")
    (tmp_path / "tests" / "extra" / "test_good.py").write_text("def test_good(): pass\n")
    started = time.monotonic()
    names = [test.name for test in extra_tests.find(tmp_path)]
    assert "test_good" in names and "test_big" not in names
    assert set(names) <= {"test_good", "test_x"}
    assert time.monotonic() - started < 200  # a pipe would be waited for as long as it is there


def test_numbers_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = f"import pytest\n@pytest.mark.extra(covers={['x' * 400] * 60})\ndef test_first(): pass\n"
    many += "".join(f"@pytest.mark.extra\ndef test_{number}(): pass\n" for number in range(1500))
    found = extra_tests.find(recipe_with(tmp_path, test_many=many))
    assert len(found) == extra_tests.MOST_TESTS
    assert (len(found[0].covers), len(found[0].covers[0])) == (50, 300)
    monkeypatch.setattr(extra_tests, "MOST_FILES", 3)
    assert len(extra_tests.files(recipe_with(tmp_path, **{f"test_{number}": "" for number in range(9)}))[0]) == 3


def test_a_recipe_without_tests_has_none(tmp_path: Path) -> None:
    assert extra_tests.find(tmp_path) == []
    assert extra_tests.find(tmp_path / "not-there") == []
