"""What is installed: the lock files, the wheel, and the targets of the Makefile."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from controlplane.config import BASE_DIR

pytestmark = pytest.mark.slow(0.4)

PACKAGES = ("controlplane", "enrollment", "infra", "runs")
PROJECT = tomllib.loads((BASE_DIR / "pyproject.toml").read_text())["project"]
RUNTIME, DEV = "requirements.lock", "requirements-dev.lock"


def locked(name: str) -> dict[str, str]:
    lines = [line.split("==") for line in (BASE_DIR / name).read_text().splitlines()]
    return {canonicalize_name(package): version for package, version in lines}


def tracked(*folders: str) -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *folders]
    names = subprocess.run(command, cwd=BASE_DIR, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for name in names if (BASE_DIR / name).is_file()]  # a file that was moved is listed until it is committed


@pytest.mark.parametrize("name", [RUNTIME, DEV])
def test_lock_files_hold_exact_versions(name: str) -> None:
    lines = (BASE_DIR / name).read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line)] == []
    assert len(locked(name)) == len(lines)


def test_no_package_is_in_both_lock_files() -> None:
    assert locked(RUNTIME).keys() & locked(DEV).keys() == set()


@pytest.mark.parametrize(("name", "wanted"), [(RUNTIME, PROJECT["dependencies"]), (DEV, PROJECT["optional-dependencies"]["dev"])])
def test_the_lock_file_is_within_the_bounds_of_pyproject(name: str, wanted: list[str]) -> None:
    versions = locked(name)
    requirements = [Requirement(text) for text in wanted]
    assert [str(one) for one in requirements if not one.specifier.contains(versions.get(canonicalize_name(one.name), "0"))] == []


def imported(path: Path) -> set[str]:
    """The top-level packages that a module imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


def test_all_that_the_product_imports_is_in_the_lock_file() -> None:
    names = set().union(*(imported(BASE_DIR / path) for path in tracked(*PACKAGES) if path.endswith(".py")))
    # These two of our own are imported under their own names inside the sandbox.
    foreign = names - sys.stdlib_module_names - {*PACKAGES, "cc_ci_plugin", "splice"}
    declared = {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]}
    of = packages_distributions()
    assert {"django", "playwright", "pytest", "yaml"} <= foreign
    assert {
        name for name in foreign if not {canonicalize_name(one) for one in of.get(name, [])} & locked(RUNTIME).keys()
    } == set()
    assert declared <= locked(RUNTIME).keys()


def test_the_wheel_holds_every_file_of_the_packages(tmp_path: Path) -> None:
    source = tmp_path / "source"
    files = tracked(*PACKAGES)
    for name in [*files, "pyproject.toml", "README.md", "LICENSE"]:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(BASE_DIR / name, source / name)
    command = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run([sys.executable, "-m", "pip", *command], check=True, timeout=120)
    [wheel] = tmp_path.glob("cc_ci-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert inside == set(files)


def test_make_help_lists_every_target() -> None:
    makefile = (BASE_DIR / "Makefile").read_text()
    [phony] = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    shown = subprocess.run(["make", "help"], cwd=BASE_DIR, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"^make (\S+)  +\S", shown, re.MULTILINE) == phony.split()
    assert set(re.findall(r"^([a-z-]+):(?!=)", makefile, re.MULTILINE)) == set(phony.split())


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "README.md"])
def test_every_file_that_is_named_exists(name: str) -> None:
    folders = "|".join([*PACKAGES, "docs", "tests", r"\.ci"])
    named = re.findall(rf"(?<=[\s`(])(?:{folders})/[\w/.-]*[\w/]", (BASE_DIR / name).read_text())
    assert named
    assert [path for path in named if not (BASE_DIR / path).exists()] == []
