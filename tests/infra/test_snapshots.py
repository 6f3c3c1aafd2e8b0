"""Snapshots in a folder and in a real restic repository: proved, put back byte for byte, kept by policy, and no half ones."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.deployers.docker.tar_manifest import Line, Manifest, of_file
from infra.models import InfraFile, Snapshot
from infra.snapshots import metadata
from infra.snapshots import snapshot as snapshots
from infra.snapshots.stores import FolderStore, ResticStore, Store, StoreError
from infra.states import UpgradeState
from tests.factories import SnapshotFactory, UpgradeFactory
from tests.infra.folder_app import GOOD, OLD, FolderCopier
from tests.infra.machine import Scene, log_of

pytestmark = pytest.mark.slow(0.3)

go_on: Callable[[], None] = lambda: None  # noqa: E731


def tar_of(*members: tuple[str, bytes, dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data, more in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in more.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def manifest(*members: tuple[str, bytes, dict[str, Any]]) -> Manifest:
    return Manifest.of_tar(io.BytesIO(tar_of(*members)))


ONE = ("./a/b", b"hello", {"mode": 0o640, "uid": 1000, "gid": 5})


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (("./a/b", b"hello", {"mode": 0o640, "uid": 1000, "gid": 5, "mtime": 99}), []),
        (("./a/b", b"hellO", {"mode": 0o640, "uid": 1000, "gid": 5}), ["a/b differs in content"]),
        (("./a/b", b"hello!", {"mode": 0o640, "uid": 1000, "gid": 5}), ["a/b differs in size, content"]),
        (("./a/b", b"hello", {"mode": 0o600, "uid": 1000, "gid": 5}), ["a/b differs in mode"]),
        (("./a/b", b"hello", {"mode": 0o640, "uid": 0, "gid": 0}), ["a/b differs in uid, gid"]),
        (("./a/c", b"hello", {"mode": 0o640, "uid": 1000, "gid": 5}), ["a/b is missing", "a/c is new"]),
    ],
)
def test_what_a_manifest_sees(other: tuple[str, bytes, dict[str, Any]], words: list[str]) -> None:
    assert manifest(ONE).differences(manifest(other)) == words
    assert (manifest(ONE).sha256 == manifest(other).sha256) is not bool(words)


def test_of_hard_links_it_does_not_matter_which_comes_first() -> None:
    link = {"type": tarfile.LNKTYPE, "mode": 0o640, "uid": 1000, "gid": 5}
    one = manifest(ONE, ("./z", b"", {**link, "linkname": "./a/b"}))
    other = manifest(("./z", *ONE[1:]), ("./a/b", b"", {**link, "linkname": "./z"}))
    assert one.text == other.text


lines = st.builds(Line, st.sampled_from(["file", "folder"]), st.integers(0, 0o7777), st.integers(0, 9), st.integers(0, 9),
                  st.integers(0, 9), st.text(max_size=4))  # fmt: skip


@given(st.dictionaries(st.text(min_size=1, max_size=5), lines, max_size=5))
def test_a_manifest_is_read_back_as_it_was_written(found: dict[str, Line]) -> None:
    assert Manifest.parse(Manifest(found).text) == Manifest(found)


def test_a_tar_that_was_cut_short_is_seen(tmp_path: Path) -> None:
    whole = tar_of(ONE, ("./big", bytes(50_000), {}))
    (tmp_path / "cut.tar").write_bytes(whole[:20_000])
    with pytest.raises((tarfile.TarError, OSError)):
        of_file(tmp_path / "cut.tar")


@pytest.fixture
def restic(tmp_path: Path) -> ResticStore:
    if not shutil.which("restic"):
        if os.environ.get("CI") == "true":
            pytest.fail("restic is not installed")
        pytest.skip("restic is not installed")
    env = {**os.environ, "RESTIC_PASSWORD": "geheim"}
    repository = str(tmp_path / "restic")
    subprocess.run(["restic", "-r", repository, "init", "-q"], env=env, check=True, timeout=240)
    return ResticStore(repository, "geheim", tmp_path / "scratch")


SAYS = {"format": 1, "taken_at": "2026-11-24T01:02:03+00:00"}


def store_holds(store: Store, location: str) -> bool:
    """Found by the app's name, or by none; and some of its files can be had alone."""
    assert store.locations("another") == []
    assert [one.startswith(location) for one in store.locations("app")] == [True] and store.locations("app") == store.locations()
    files = store.peek(store.locations("app")[0], ("bundle.json", "secrets.json"), go_on)
    return files == {"bundle.json": json.dumps(SAYS).encode()}


def fill(folder: Path) -> None:
    (folder / "bundle.json").write_text(json.dumps(SAYS))
    (folder / "0.tar").write_bytes(os.urandom(1000))


def test_a_restic_repository_keeps_a_bundle(restic: ResticStore, tmp_path: Path) -> None:
    location = restic.put("app/1-1.0.0", fill, go_on)
    with restic.get(location, go_on) as folder:
        assert sorted(path.name for path in folder.iterdir()) == ["0.tar", "bundle.json"]
        assert metadata.read(folder) == SAYS
    assert store_holds(restic, location)
    assert not list((tmp_path / "scratch").iterdir()), "nothing is left of what went in and came out"
    restic.drop(location)
    with pytest.raises(StoreError, match="restic restore: "), restic.get(location, go_on):
        pass
    restic.repository = str(tmp_path / "nowhere")
    with pytest.raises(StoreError, match="restic backup: "):
        restic.put("app/2", fill, go_on)


def test_a_folder_has_whole_bundles_only(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    with pytest.raises(StoreError, match="Is its disk mounted"):
        store.put("app/1", fill, go_on)
    (tmp_path / "store").mkdir()

    def fails(folder: Path) -> None:
        fill(folder)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        store.put("app/1", fails, go_on)
    assert list((tmp_path / "store" / "app").iterdir()) == []
    (tmp_path / "store" / "app" / ".partial-1").mkdir()  # of a worker that was killed
    assert store.put("app/1", fill, go_on) == store.put("app/1", fill, go_on) == "app/1"
    assert [path.name for path in (tmp_path / "store" / "app").iterdir()] == ["1"]
    (tmp_path / "store" / "app" / ".partial-2").mkdir()
    assert store_holds(store, "app/1")
    store.drop("../..")
    store.drop("app/1")
    (tmp_path / "store" / "app" / ".partial-2").rmdir()
    assert (tmp_path / "store").is_dir() and not list((tmp_path / "store" / "app").iterdir())


@pytest.fixture
def scene(transactional_db: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(tmp_path, monkeypatch)


def taken(scene: Scene) -> tuple[Snapshot, FolderCopier]:
    upgrade = UpgradeFactory(app=scene.app, from_version=OLD, to_version=GOOD)
    copier = FolderCopier(scene.machine)
    from infra.deployers.docker.volumes import Volume

    return snapshots.take(scene.app, upgrade, [Volume("data")], copier, go_on), copier


def test_what_is_put_back_is_what_was_there_byte_for_byte(scene: Scene) -> None:
    snapshot, copier = taken(scene)
    scene.machine.start(GOOD)
    assert scene.machine.files() != scene.before
    snapshots.put_back(snapshot, copier, go_on)
    assert scene.machine.files() == scene.before
    assert snapshot.proved and snapshot.bytes > 10_000


def test_a_snapshot_that_was_tampered_with_is_not_put_back(scene: Scene, tmp_path: Path) -> None:
    snapshot, copier = taken(scene)
    folder = tmp_path / "store" / snapshot.location
    text = (folder / "0.manifest").read_text()
    (folder / "0.manifest").write_text(text.replace('"format"', '"other"'))
    with pytest.raises(snapshots.NotProved, match="was modified after"):
        snapshots.put_back(snapshot, copier, go_on)
    assert scene.machine.files() == scene.before, "nothing was touched"
    (folder / "0.manifest").write_text(text)
    whole = (folder / "0.tar").read_bytes()
    for damaged in (whole[:4000], whole.replace(bytes(range(100)), bytes(100))):
        (folder / "0.tar").write_bytes(damaged)
        with pytest.raises(snapshots.NotProved, match="Nothing was restored"):
            snapshots.put_back(snapshot, copier, go_on)
        assert scene.machine.files() == scene.before, "nothing was emptied"
    (folder / "0.tar").write_bytes(whole)
    (folder / "bundle.json").write_text("{")
    with pytest.raises(StoreError, match="Cannot read the snapshot"):
        snapshots.put_back(snapshot, copier, go_on)


def test_a_copy_that_does_not_agree_is_no_snapshot(scene: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(FolderCopier, "extracted", lambda copier, source: Manifest({}))
    upgrade = scene.upgrade(GOOD)
    assert scene.execute(upgrade) == UpgradeState.ROLLED_BACK, log_of(upgrade)
    assert "The snapshot of data differs from the volume: . is missing" in upgrade.reason
    assert scene.is_as_before() and not Snapshot.objects.exists()
    assert not list((tmp_path / "store" / "app").iterdir())


def test_the_newest_and_the_way_back_are_kept(scene: Scene) -> None:
    rows = [SnapshotFactory(app=scene.app, location=f"app/{number}") for number in range(5)]
    for number, row in enumerate(rows):  # the last is the newest
        Snapshot.objects.filter(pk=row.pk).update(taken_at=row.taken_at.replace(microsecond=number))
    UpgradeFactory(app=scene.app, state=UpgradeState.SUCCEEDED, snapshot=rows[0], to_version=OLD)
    UpgradeFactory(app=scene.app, state=UpgradeState.ROLLBACK_FAILED, snapshot=rows[1])
    assert snapshots.prune(scene.app) == []
    left = dict(Snapshot.objects.values_list("pk", "kept_because"))
    assert left == {
        rows[4].pk: "one of the newest",
        rows[3].pk: "one of the newest",
        rows[1].pk: "needed by the upgrade to 1.0.1+2.0",
        rows[0].pk: f"needed for a rollback from {OLD}, which is running",
    }


def test_a_store_that_is_full_is_seen_before(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "_needed", lambda app: 100 << 20)
    assert snapshots.no_room(scene.app) == ""
    monkeypatch.setattr(FolderStore, "free", lambda store: 50 << 20)
    assert snapshots.no_room(scene.app) == "The store local needs 376 MB, but only 50 MB are free."
    InfraFile.objects.update(stores={})
    assert "infra.yml no longer has a store 'local'" in snapshots.no_room(scene.app)


@pytest.mark.parametrize(("text", "size"), [("1.5MB", 1_500_000), ("12B", 12), ("3.2kB", 3200), ("N/A", 0), ("", 0)])
def test_dockers_sizes(text: str, size: int) -> None:
    assert snapshots._bytes(text) == size
