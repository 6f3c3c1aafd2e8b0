"""Limits by cgroup on all kinds of machines: versions 1 and 2, with and without the CPU controller."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.deployers.isolation import cgroups


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cgroups, "ROOT", tmp_path)
    return tmp_path


def _files(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text("")


@pytest.mark.parametrize(
    ("files", "lacking", "folders"),
    [
        ({"memory/cc-ci": [], "pids/cc-ci": [], "cpu/cc-ci": ["cpu.shares"]}, "", ["memory", "pids", "cpu"]),
        ({"memory/cc-ci": [], "pids/cc-ci": []}, "processors", ["memory", "pids"]),
        ({"memory/cc-ci": []}, "memory, processes and processors", []),
        ({".": ["cgroup.controllers"], "cc-ci": ["cpu.weight"]}, "", ["."]),
        ({".": ["cgroup.controllers"], "cc-ci": []}, "processors", ["."]),
        ({}, "memory, processes and processors", []),
    ],
)
def test_what_can_be_held_is_held_and_the_rest_is_named(
    root: Path, files: dict[str, list[str]], lacking: str, folders: list[str]
) -> None:
    for folder, names in files.items():
        _files(root / folder, *names)
    assert cgroups.lacking() == lacking
    made = cgroups.create("ccci-x", 64, 16)
    assert (made.folders if made else ()) == tuple(root / folder / "cc-ci" / "ccci-x" for folder in folders)
    assert [name for name, _ in cgroups.existing()] == (["ccci-x"] if folders else [])
    weights = [(path.name, path.read_text()) for path in root.rglob("cpu.*")]
    assert weights in ([], [("cpu.shares", "512")], [("cpu.weight", "50")])
    assert bool(weights) == (not lacking)


def test_a_kernel_that_keeps_the_processors_does_not_keep_the_rest(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Version 2 with real-time processes: `+cpu` is refused."""
    _files(root, "cgroup.controllers")
    real = cgroups._control
    written: list[str] = []

    def control(folder: Path, controllers: str) -> None:
        if "cpu" in controllers:
            raise OSError(22, "Invalid argument")
        written.append(controllers)
        real(folder, controllers)

    monkeypatch.setattr(cgroups, "_control", control)
    assert cgroups.create("ccci-x", 64, 16) is not None
    assert written == ["+memory +pids"] * 2
    assert cgroups.lacking() == "processors"
