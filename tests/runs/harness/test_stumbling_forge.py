"""git against a forge that stumbles, over HTTP: what is asked again, and what is a clear answer. git's own words decide."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from enrollment.fakeforge import Fault, Forge, Request, Server, serve
from infra.deployers.isolation.children import Done
from infra.git import remote
from infra.git.mirror import Mirror
from infra.git.runner import GitError, Stumbled
from runs.harness import git as harness_git
from runs.harness.checkout import Checkout, resolve
from runs.harness.history import History
from runs.harness.protocol import Source

pytestmark = pytest.mark.slow(0.3)

MAIN = "refs/heads/main"


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST", 0.01)
    monkeypatch.setattr(remote, "LONGEST", 0.02)


class Place:
    """A forge with one recipe, of which a pack is big enough to be cut in its middle."""

    def __init__(self, server: Server, sha: str) -> None:
        self.forge, self.sha = server.forge, sha
        self.url = f"{server.url}/alice/web.git"
        self.source = Source(url=self.url, ref=MAIN, sha=self.sha)
        self.told: list[str] = []

    def fault(self, where: str, fault: Fault, times: int) -> None:
        """Go wrong with the first requests to a place: the listing, the question what there is, or the one for a pack."""
        left = times

        def plan(request: Request) -> Fault | None:
            nonlocal left
            if left <= 0 or where not in (request.path.rpartition("/")[2], "pack" if b"fetch" in request.body[:40] else ""):
                return None
            left -= 1
            return fault

        self.forge.faults = plan
        self.forge.requests.clear()

    def check_out(self, target: Path) -> str:
        return Checkout(self.source, target, report=self.told.append).make()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    """One for all: it is only read."""
    forge = Forge(tmp_path_factory.mktemp("forge"))
    forge.add_user("alice")
    sha = forge.push(forge.add_repo("alice", "web"), "main", {"compose.yml": "services: {}\n", "big": os.urandom(40_000).hex()})
    with serve(forge) as server:
        yield server, sha


@pytest.fixture
def place(recipe: tuple[Server, str]) -> Iterator[Place]:
    place = Place(*recipe)
    yield place
    place.forge.faults = None


STUMBLES = {
    **{str(status): Fault(status=status, headers={"Retry-After": "1"}) for status in (408, 425, 429, 500, 502, 503, 504, 520)},
    "closed": Fault(close="before"),
    "closed after": Fault(close="after"),
    "cut at once": Fault(cut=0),
    "cut": Fault(cut=40),
    "cut in the pack": Fault(cut=30_000),
    "HTML": Fault(body="<html>Sign in", headers={"Content-Type": "text/html"}),
    "lines of HTML": Fault(body="<html>\n<p>Sign in\n", headers={"Content-Type": "text/html"}),
    "HTML of the right type": Fault(body="<html>Sign in"),
    "empty": Fault(body=b""),
    "204": Fault(status=204),
    "no refs": Fault(body=b"0000"),
}
PLACES = ("refs", "git-upload-pack", "pack")


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("name", STUMBLES)
def test_a_stumble_is_asked_again(place: Place, where: str, name: str, tmp_path: Path) -> None:
    # libcurl itself asks once more where a connection that it had kept is closed.
    place.fault(where, STUMBLES[name], times=2)
    assert place.check_out(tmp_path / "checkout") == place.sha
    assert (tmp_path / "checkout" / "compose.yml").exists()
    place.fault(where, STUMBLES[name], times=2)
    history = History(place.source, None, tmp_path / "history")
    assert history.fetch()
    assert history.base == place.sha
    assert not list((tmp_path / "history").rglob("tmp_*"))


@pytest.mark.parametrize("name", ["429", "closed", "cut", "HTML", "lines of HTML", "204"])
def test_the_tip_of_a_branch_is_asked_again(place: Place, name: str) -> None:
    place.fault("refs", STUMBLES[name], times=2)
    assert resolve(place.url, "main").sha == place.sha


def test_stumbles_are_told_and_half_packs_removed(place: Place, tmp_path: Path) -> None:
    place.fault("pack", STUMBLES["cut in the pack"], times=3)
    checkout = Checkout(place.source, tmp_path / "checkout", disk_mb=1, report=place.told.append)
    left: list[int] = []
    checkout._git.check = lambda: left.append(len(list((tmp_path / "checkout").rglob("tmp_pack*"))))
    checkout.make()
    assert max(left) <= 1
    assert len(place.told) == 3
    assert "RPC failed; curl 18 transfer closed with" in place.told[0] and "retrying in" in place.told[0]


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_a_clear_no_is_not_asked_again(place: Place, where: str, status: int, tmp_path: Path) -> None:
    place.fault(where, Fault(status=status), times=1000)
    with pytest.raises(GitError) as caught:
        Checkout(Source(url=place.url, sha=place.sha), tmp_path / "checkout", report=place.told.append).make()
    assert not isinstance(caught.value, Stumbled)
    assert place.told == []


def test_a_ref_or_a_commit_that_is_not_there_is_a_clear_no(place: Place, tmp_path: Path) -> None:
    with pytest.raises(GitError, match="couldn't find remote ref refs/heads/gone") as caught:
        Checkout(Source(url=place.url, ref="refs/heads/gone", sha="a" * 40), tmp_path / "a", report=place.told.append).make()
    assert not isinstance(caught.value, Stumbled)
    with pytest.raises(GitError, match="no longer contains the commit aaaaaaaaaaaa"):
        Checkout(Source(url=place.url, ref=MAIN, sha="a" * 40), tmp_path / "b", report=place.told.append).make()
    with pytest.raises(GitError, match="has no nothing"):
        resolve(place.url, "nothing")
    assert place.told == []


def test_a_forge_that_only_stumbles_is_given_up_as_unknown(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness_git, "PATIENCE", 2.0)
    place.fault("refs", Fault(status=503), times=1000)
    with pytest.raises(Stumbled, match=r"error: 503. Retried for 2 s") as caught:
        place.check_out(tmp_path / "checkout")
    assert not caught.value.recipes_fault
    assert len(place.told) > 2


@pytest.mark.parametrize("wish", [KeyboardInterrupt, TimeoutError])
def test_a_wish_to_stop_is_heard_in_a_pause(
    place: Place, wish: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "FIRST", 100.0)
    monkeypatch.setattr(remote, "LONGEST", 100.0)
    monkeypatch.setattr(harness_git, "PATIENCE", 100_000.0)
    place.fault("refs", Fault(status=500), times=1000)

    def check() -> None:
        if place.told:
            raise wish

    with pytest.raises(wish):
        Checkout(place.source, tmp_path / "checkout", check=check, report=place.told.append).make()


def test_a_forge_that_dribbles_has_no_more_time_than_there_is(tmp_path: Path) -> None:
    """Each try gets the seconds that are left of all, and who answers in none of them has said nothing."""
    with socket.create_server(("127.0.0.1", 0)) as dribbling:
        threading.Thread(target=_dribble, args=(dribbling,), daemon=True).start()
        git = harness_git.Git(tmp_path, f"http://127.0.0.1:{dribbling.getsockname()[1]}/a.git")
        with pytest.raises(Stumbled, match="git ls-remote: "):
            git.ls_remote("x", seconds=0.5)


def _dribble(server: socket.socket) -> None:
    kind = b"application/x-git-upload-pack-advertisement"
    with contextlib.suppress(OSError), server.accept()[0] as stream:
        stream.recv(4096)
        stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\n\r\n001e# service=git-upload-pack\n0000" % kind)
        while True:
            stream.sendall(b"0014" + b"x" * 15 + b"\n")
            time.sleep(0.01)


def test_the_seconds_that_are_left_go_to_each_try(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    given: list[tuple[str, float]] = []

    def run(left: float) -> Done:
        given.append(("run", left))
        clock.now += 10
        return Done(128, b"", b"fatal: couldn't find remote ref x\n" + b"at %d" % len(given))

    def listed(left: float) -> bool:
        given.append(("listed", left))
        clock.now += 5
        return True

    # It says something else each time, such as where it was redirected to, so that it never says the same twice.
    _, answered = remote.ask(run, listed, seconds=60, check=clock.check)
    assert not answered
    assert [(what, round(left)) for what, left in given] == [
        ("run", 60), ("listed", 50), ("run", 44), ("listed", 34), ("run", 28), ("listed", 18), ("run", 12), ("listed", 2),
    ]  # fmt: skip
    assert clock.checks == 3


def test_no_try_begins_when_the_patience_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    given: list[float] = []

    def run(left: float) -> Done:
        given.append(left)
        clock.now += 10
        return Done(128, b"", b"fatal: the remote end hung up unexpectedly")

    assert not remote.ask(run, lambda left: True, seconds=900, patience=30, check=clock.check)[1]
    assert [round(left) for left in given] == [900, 889, 878]


class Clock:
    """Time that goes on when somebody rests, and by what a test adds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.checks = 0.0, 0
        monkeypatch.setattr(remote, "pauses", lambda: iter([1.0] * 100))
        monkeypatch.setattr(remote, "_SLICE", 1.0)
        monkeypatch.setattr(remote.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(remote.time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def check(self) -> None:
        self.checks += 1


def test_a_mirror_is_asked_again(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.git.mirror.environment", lambda url, token="": {**os.environ, "LC_ALL": "C"})
    mirror = Mirror(tmp_path / "mirrors", place.url)
    place.fault("refs", Fault(status=502), times=2)
    mirror.fetch()
    assert mirror.files([f"{place.sha}:compose.yml"], 100) == {f"{place.sha}:compose.yml": b"services: {}\n"}


def test_a_storm_ends_no_run(place: Place, tmp_path: Path) -> None:
    """A third of all answers goes wrong, as in a storm at a real forge; each run fetches as often as the harness does."""
    dice = random.Random(14)
    faults = list(STUMBLES.values())
    place.forge.faults = lambda request: dice.choice(faults) if dice.random() < 0.3 else None
    for number in range(4):
        assert place.check_out(tmp_path / f"checkout{number}") == place.sha
        assert History(place.source, None, tmp_path / f"history{number}").fetch()
    assert len(place.told) > 4
