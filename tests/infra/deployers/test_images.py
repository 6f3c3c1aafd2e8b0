"""Pulling from a real registry on loopback with the real docker, and what goes when the disk is full."""

from __future__ import annotations

import contextlib
import http.server
import json
import multiprocessing
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.deployers.context import Clock, Context
from infra.deployers.docker import images, registries
from infra.deployers.errors import DeployError
from infra.deployers.swarm.ephemeral import SwarmDeployer
from tests.docker import IMAGE, docker, need_swarm
from tests.registry import Registry, registry

HOUR = 3600.0
needs_docker = pytest.mark.docker


@pytest.fixture
def name() -> Iterator[str]:
    """The start of the names of this test's images, which are gone afterwards."""
    need_swarm()
    name = f"cc-ci-test/{uuid.uuid4().hex[:12]}"
    yield name
    # By name, and by id where a name went to another image and only a digest is left.
    listed = [line.split() for line in docker("images", "--format", "{{.Repository}} {{.Tag}} {{.ID}}").splitlines()]
    for repository, tag, image in [line for line in listed if name in line[0]]:
        docker("image", "rm", "--force", image if tag == "<none>" else f"{repository}:{tag}", check=False)


def context(tmp_path: Path, *registries: str, **given: Any) -> Context:
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    given = {"image_ledger": tmp_path / "state" / "images.json", "registries": registries, **given}
    return Context(uuid.uuid4().hex, "test", "x", tmp_path, work, **given)


def here(image: str) -> bool:
    return not subprocess.run(["docker", "image", "inspect", image], capture_output=True, timeout=240).returncode


def ledger_of(context: Context) -> dict[str, Any]:
    assert context.image_ledger
    try:
        found: dict[str, Any] = json.loads(context.image_ledger.read_text())["images"]
    except FileNotFoundError:
        return {}
    return found


@needs_docker
def test_an_image_is_pulled_once_and_the_step_has_its_time(tmp_path: Path, name: str) -> None:
    said: list[str] = []
    with registry() as there:
        image = there.add(name)
        given = context(tmp_path, there.host, report=said.append)
        images.get(image, given)
        assert here(image)
        images.get(image, given)
        assert [path for path in there.asked if "/blobs/" in path]
        there.asked.clear()
        images.get(image, given)
        assert there.asked == []
    assert said[0] == f"Pulling {image}"
    assert said[1].startswith(f"Pulled {image} in ") and said[1].endswith(" s")
    assert len(said) == 2
    assert list(ledger_of(given)) == [image]


@needs_docker
def test_the_deployer_pulls_with_it(tmp_path: Path, name: str) -> None:
    with registry() as there:
        SwarmDeployer(context(tmp_path, there.host))._get(there.add(name))
        assert here(f"{there.host}/{name}:1")


@needs_docker
@pytest.mark.parametrize(
    ("image", "kind", "recipes", "words", "fix"),
    [
        ("127.0.0.1:9/{name}:1", "pull_failed", False, "refused", "Check that this server can reach the registry"),
        ("{host}/{name}:2", "image_missing", True, "manifest unknown", "Check the image's name and tag"),
    ],
)
def test_a_failed_pull_is_told_in_the_words_of_docker(
    image: str, kind: str, recipes: bool, words: str, fix: str, tmp_path: Path, name: str
) -> None:
    with registry() as there, pytest.raises(DeployError) as caught:
        images.get(image.format(name=name, host=there.host), context(tmp_path, there.host, "127.0.0.1:9"))
    assert (caught.value.kind, caught.value.recipes_fault) == (kind, recipes)
    assert words in caught.value.message
    assert fix in caught.value.fix
    assert not (tmp_path / "state" / "images.json").exists()


@needs_docker
def test_what_is_no_name_is_the_recipes_fault(tmp_path: Path, name: str) -> None:
    for wrong in ("x/UPPER:1", "a b", "--help"):
        with pytest.raises(DeployError) as caught:
            images.get(wrong, context(tmp_path))
        assert caught.value.kind == "invalid_recipe"


@needs_docker
def test_a_login_is_used_and_stands_nowhere_afterwards(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[list[str], int, int]] = []
    real = images._pull

    def look(image: str, options: list[str], given: Context) -> str:
        file = Path(options[1]) / "config.json"
        seen.append((options[:1], file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777))
        return real(image, options, given)

    monkeypatch.setattr(images, "_pull", look)
    with registry(login="ci:not-a-real-secret") as there:
        image = there.add(name)
        with pytest.raises(DeployError, match=r"no basic auth credentials|unauthorized|authentication required"):
            images.get(image, context(tmp_path, there.host, registry_auth='{"auths": {}}'))
        given = context(tmp_path, there.host, registry_auth=there.auth)
        images.get(image, given)
        assert here(image)
    assert seen == [(["--config"], 0o600, 0o700)] * 2
    assert list(given.work.iterdir()) == []


@needs_docker
def test_a_mirror_is_asked_first_for_images_of_docker_hub_only(tmp_path: Path, name: str) -> None:
    said: list[str] = []
    with registry() as mirror, registry() as other:
        mirror.add(name)
        given = context(tmp_path, "docker.io", other.host, mirror=mirror.host, report=said.append)
        images.get(f"{name}:1", given)
        assert here(f"{name}:1")
        assert "from the mirror in" in said[-1]
        assert set(ledger_of(given)) == {f"{name}:1", f"{mirror.host}/{name}:1"}
        mirror.asked.clear()
        images.get(other.add(f"{name}-other"), given)
        assert mirror.asked == []


@needs_docker
def test_without_the_image_in_the_mirror_the_original_is_asked(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    real = images._pull

    def pull(image: str, options: list[str], given: Context) -> str:
        asked.append(image)
        return real(image, options, given) if image.startswith("127.") else "toomanyrequests: You have reached your limit"

    monkeypatch.setattr(images, "_pull", pull)  # nobody should ask the real Docker Hub
    with registry() as mirror, pytest.raises(DeployError) as caught:
        images.get(f"{name}:1", context(tmp_path, mirror=mirror.host))
    assert asked == [f"{mirror.host}/{name}:1", f"{name}:1"]
    assert "You have reached your limit" in caught.value.message
    assert "The mirror reported:" in caught.value.message and "manifest unknown" in caught.value.message


@pytest.mark.parametrize(
    ("image", "registries", "words"),
    [
        ("127.0.0.1:5000/x:1", [], "its registry 127.0.0.1:5000 is given as an IP address"),
        ("93.184.216.34/x:1", [], "is given as an IP address"),
        ("localhost/x:1", [], "has no public name"),
        ("registry:5000/x", [], "has no public name"),
        ("2130706433:80/x", [], "has no public name"),
        ("INTERNAL/x", [], "has no public name"),
        ("127.1/x:1", [], "is not on the internet"),
        ("private.example.org/x:1", [], "its registry private.example.org is not on the internet"),
        ("private.example.org:5000/x@sha256:" + "0" * 64, [], "is not on the internet"),
        ("link.example.org/x:1", [], "is not on the internet"),
        ("both.example.org/x:1", [], "is not on the internet"),
        ("public.example.org/x:1", [], ""),
        ("nowhere.example.org/x:1", [], ""),
        *((image, [], "") for image in ("redis", "redis:7", "localhosts/x", "a/b/c", "docker.io/x/y:1")),
        ("ghcr.io/x:1", ["docker.io", "10.1.2.3:5000"], "runs may pull only from 10.1.2.3:5000, docker.io, not from ghcr.io"),
        ("10.1.2.3/x:1", ["docker.io", "10.1.2.3:5000"], "not from 10.1.2.3"),
        ("10.1.2.3:5000/x:1", ["docker.io", "10.1.2.3:5000"], ""),
        ("redis:7", ["ghcr.io"], "not from docker.io"),
        ("registry-1.docker.io/library/redis:7", ["docker.io"], ""),
    ],
)
def test_only_registries_that_runs_may_have_asked_are_asked(
    image: str, registries: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {
        "private.example.org": ["10.0.0.1"],
        "link.example.org": ["fe80::1%eth0"],
        "both.example.org": ["93.184.216.34", "64:ff9b::a9fe:a9fe"],
        "127.1": ["127.0.0.1"],
    }

    def resolve(name: str, *_: object, **_named: object) -> list[Any]:
        if name.startswith("nowhere"):
            raise socket.gaierror
        return [(0, 0, 0, "", (address, 0)) for address in known.get(name, ["93.184.216.34"])]

    asked: list[str] = []
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(images, "inspect", lambda *_: [])
    monkeypatch.setattr(images, "_pull", lambda image, *_: asked.append(image) or "")
    if not words:
        images.get(image, context(tmp_path, *registries))
    else:
        with pytest.raises(DeployError) as caught:
            images.get(image, context(tmp_path, *registries))
        assert caught.value.kind == "forbidden" and words in caught.value.message
        assert "CC_CI_REGISTRIES" in caught.value.fix
    assert asked == ([] if words else [image])
    # What a server's own app is made of is its administrators' word, and what is here is asked of nobody.
    images.get(image, context(tmp_path, *registries, ephemeral=False))
    monkeypatch.setattr(images, "inspect", lambda *_: [{"Id": "x"}])
    images.get(image, context(tmp_path, *registries))


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ('Get "https://x/v2/": dial tcp 10.0.0.1:443: connect: connection refused', "connection refused"),
        ("manifest for x/y:2 not found: manifest unknown: manifest unknown", "not found: manifest unknown"),
        (
            "toomanyrequests: You have reached your pull rate limit. You may",
            "toomanyrequests: You have reached your pull rate limit",
        ),
        ('error parsing HTTP 404 response body: invalid character: "SECRET not found"', "error parsing HTTP 404"),
        ("denied: SECRET", "see the Docker daemon's log for the reason"),
        ("received unexpected HTTP status: 500 SECRET", "unexpected HTTP status: 500"),
    ],
)
def test_what_is_told_of_a_failed_pull(said: str, told: str) -> None:
    assert images._known_message(f"Error response from daemon: {said}") == told


class _Redirecting(http.server.BaseHTTPRequestHandler):
    """A registry that has whoever pulls from it ask another server for a token."""

    asked: list[str] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(404 if self.path.startswith("/meta") else 401)
        realm = f'Bearer realm="http://127.0.0.1:{self.server.server_address[1]}/meta",service="x"'  # type: ignore[index]
        self.send_header("WWW-Authenticate", realm)
        self.end_headers()
        self.wfile.write(b"TOP-SECRET not found")

    def log_message(self, *_: object) -> None:
        pass


@needs_docker
def test_the_answer_of_another_server_is_not_told(tmp_path: Path, name: str) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Redirecting) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        host = f"127.0.0.1:{server.server_address[1]}"
        with pytest.raises(DeployError) as caught:
            images.get(f"{host}/{name}:1", context(tmp_path, host))
        server.shutdown()
    assert any(path.startswith("/meta") for path in _Redirecting.asked)
    assert "error parsing HTTP 404." in caught.value.message
    assert "SECRET" not in str(caught.value) and "not found" not in str(caught.value)


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("redis", "m:5000/library/redis"),
        ("redis:7", "m:5000/library/redis:7"),
        ("nginx/nginx:1", "m:5000/nginx/nginx:1"),
        ("docker.io/library/redis:7", "m:5000/library/redis:7"),
        ("docker.io/redis:7", "m:5000/library/redis:7"),
        ("ghcr.io/a/b:1", ""),
        ("localhost/a:1", ""),
        ("registry:5000/a:1", ""),
        ("redis@sha256:" + "0" * 64, ""),
    ],
)
def test_the_name_in_the_mirror(image: str, name: str) -> None:
    assert images.mirrored(image, "m:5000/") == name
    assert images.mirrored(image, "") == ""


@needs_docker
def test_a_pull_ends_when_the_run_shall_stop(tmp_path: Path, name: str) -> None:
    class Cancelled(Exception):
        pass

    calls: list[float] = []

    def check() -> None:
        calls.append(time.monotonic())
        if len(calls) > 2:
            raise Cancelled

    silent = threading.Event()

    with registry() as there:
        there_add = there.add(name)
        real = Registry.blobs
        try:
            Registry.blobs = lambda self, repository: (silent.wait(200), real(self, repository))[1]  # type: ignore[method-assign]
            started = time.monotonic()
            with pytest.raises(Cancelled):
                images.get(there_add, context(tmp_path, there.host, check=check))
            assert time.monotonic() - started < 60
        finally:
            silent.set()
            Registry.blobs = real  # type: ignore[method-assign]


def known(image: str) -> str:
    return docker("image", "inspect", "--format", "{{.Id}}", image)


@needs_docker
@pytest.mark.parametrize(
    ("login", "tokens"), [("", False), ("ci:not-a-real-secret", False), ("ci:not-a-real-secret", True), ("", True)]
)
def test_a_tag_that_moved_is_pulled_again_once_in_a_run(login: str, tokens: bool, tmp_path: Path, name: str) -> None:
    with registry(login=login) as there:
        there.tokens = tokens

        def run() -> Context:
            given = context(tmp_path, there.host, registry_auth=there.auth if login else "")
            there.asked.clear()
            there.heads.clear()
            images.get(image, given)
            images.get(image, given)
            return given

        image = there.add(name)
        path = f"/v2/{name}/manifests/1"
        first = run().images[image]
        before = known(image)
        assert first.digest.startswith("sha256:") and not first.note

        again = run()
        assert again.images[image] == first
        assert there.heads[-1] == path and path not in set(there.asked) - set(there.heads)  # nothing was pulled
        assert len(there.heads) == (2 if login or tokens else 1)  # the first had no login

        there.moved += 1
        moved = run()
        assert moved.images[image].digest != first.digest
        assert moved.images[image].note == "its tag moved: pulled again"
        assert known(image) != before
        assert set(ledger_of(moved)) == {image, f"{there.host}/{name}@{first.digest}"}  # so that the former one goes some day
        assert here(f"{there.host}/{name}@{first.digest}")


@needs_docker
def test_where_the_registry_cannot_be_asked_what_is_here_counts_with_a_note(tmp_path: Path, name: str) -> None:
    said: list[str] = []
    with registry() as there:
        image = there.add(name)
        images.get(image, context(tmp_path, there.host))
        there.moved += 1
        there.repositories.clear()
        given = context(tmp_path, there.host, report=said.append)
        images.get(image, given)
        assert "its registry was not asked (" in given.images[image].note and "answered 404" in given.images[image].note
        here_for_ever = context(tmp_path, there.host)
        images.get(image, here_for_ever, renew=False)
        assert not here_for_ever.images[image].note
        private = context(tmp_path)  # where a run may not have it asked
        images.get(image, private)
        assert "is given as an IP address" in private.images[image].note
    gone = context(tmp_path, there.host)
    images.get(image, gone)
    assert f"{there.host} did not answer" in gone.images[image].note
    assert all(one.images[image].digest.startswith("sha256:") for one in (given, private, gone))
    assert said == [f"{image}: {given.images[image].note}"]


@needs_docker
def test_what_was_made_here_or_has_a_digest_is_not_asked_for(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with registry() as there:
        image = there.add(name)
        images.get(image, context(tmp_path, there.host))
        digest = docker("image", "inspect", "--format", "{{index .RepoDigests 0}}", image)
        there.asked.clear()
        given = context(tmp_path, there.host)
        images.get(digest, given)
        images.get(IMAGE, given)
        assert there.asked == []
    assert given.images[digest].digest == digest.partition("@")[2]
    assert given.images[IMAGE].digest == ""


def test_a_server_for_tokens_has_to_be_where_runs_may_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry of a stranger, which has whoever asks it ask another server."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_response(401)
            self.send_header("WWW-Authenticate", f'Bearer realm="{realm}",service="x"')
            self.end_headers()

        do_GET = do_HEAD

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host = f"127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(images, "_insecure", lambda *_: True)
    try:
        for realm, words in (  # noqa: B007 - the handler reads it
            (f"http://localhost:{server.server_address[1]}/meta", "has no public name"),
            ("http://169.254.169.254/latest", "is given as an IP address"),
            ("file:///etc/passwd", "names an invalid token server"),
            ("https://[", "names an invalid token server"),
        ):
            with pytest.raises(registries.Unasked, match=words):
                # The mirror is for cc-ci to ask, and not for a registry to name.
                images._asked(f"{host}/x:1", context(tmp_path, host, mirror=f"localhost:{server.server_address[1]}"))
    finally:
        server.shutdown()
        server.server_close()
    assert set(asked) == {"/v2/x/manifests/1"}


def test_of_a_server_for_tokens_no_more_is_read_than_a_token_is_long() -> None:
    """Python reads all that comes for a chunk that says it is -1 bytes long."""
    sent = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(401)
            self.send_header("WWW-Authenticate", f'Bearer realm="http://{host}/token"')
            self.end_headers()

        def do_GET(self) -> None:
            self.protocol_version = "HTTP/1.1"
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"-1\r\n")
            with contextlib.suppress(OSError):
                for _ in range(64):
                    self.wfile.write(bytes(1 << 20))
                    sent.append(1 << 20)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"127.0.0.1:{server.server_port}"
        with pytest.raises(registries.Unasked, match="did not answer"):
            registries.digest(f"{host}/x:1", host, registries.Rules(lambda *_: "", lambda *_: True))
        server.shutdown()
    assert sum(sent) < 64 << 20


@pytest.mark.parametrize(
    ("image", "host", "parts"),
    [
        ("redis", "docker.io", ("library/redis", "latest")),
        ("redis:7", "docker.io", ("library/redis", "7")),
        ("docker.io/redis:7", "docker.io", ("library/redis", "7")),
        ("a/b:1", "docker.io", ("a/b", "1")),
        ("ghcr.io/a/b/c:1.2", "ghcr.io", ("a/b/c", "1.2")),
        ("localhost:5000/b", "localhost:5000", ("b", "latest")),
    ],
)
def test_what_a_registry_is_asked_for(image: str, host: str, parts: tuple[str, str]) -> None:
    assert images.registry(image) == host
    assert registries._parts(image, host) == parts


class _Apart:
    """Counts what counts neither against the stage nor against the run."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextlib.contextmanager
    def __call__(self, most: float) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds += time.monotonic() - started


@needs_docker
def test_slow_pulls_have_a_clock_of_their_own_together(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    apart, pulls, real = _Apart(), Clock(2.0), Registry.blobs
    with registry() as there:
        given = context(tmp_path, there.host, apart=apart, pulls=pulls)
        images.get(there.add(f"{name}-quick"), given)
        used = pulls.used
        assert 0 < used <= apart.seconds
        silent = threading.Event()
        monkeypatch.setattr(Registry, "blobs", lambda self, repository: (silent.wait(200), real(self, repository))[1])
        try:
            with pytest.raises(DeployError) as caught:
                images.get(there.add(f"{name}-slow"), given)
        finally:
            silent.set()
    assert caught.value.kind == "pull_failed" and not caught.value.recipes_fault
    assert "the pull timed out (all pulls of a run together may take 2 s)" in caught.value.message
    assert "Start the run again" in caught.value.fix and "CC_CI_PULL_SECONDS" in caught.value.fix
    assert pulls.left == 0 and pulls.used > used


@needs_docker
def test_a_pull_that_is_cut_is_ours_with_what_to_do(tmp_path: Path, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def cut() -> None:
            with contextlib.suppress(OSError):
                while True:
                    stream, _ = listener.accept()
                    stream.close()

        threading.Thread(target=cut, daemon=True).start()
        host = f"127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(DeployError) as caught:
            images.get(f"{host}/{name}:1", context(tmp_path, host))
        listener.shutdown(socket.SHUT_RDWR)
    assert caught.value.kind == "pull_failed"
    assert caught.value.fix.startswith("The connection to the registry was interrupted.")


@pytest.mark.parametrize(
    "said",
    [
        "read tcp 127.0.0.1:54272->127.0.0.1:37169: read: connection reset by peer",
        "http: server closed idle connection",
        "net/http: HTTP/1.x transport connection broken: malformed",
        "EOF",
    ],
)
def test_each_way_in_which_docker_says_that_a_pull_was_cut(said: str) -> None:
    problem = images._known_message(f'Error response from daemon: Get "https://registry.example.org/v2/": {said}')
    assert images._failed("registry.example.org/x:1", problem, "").fix.startswith(
        "The connection to the registry was interrupted."
    )


@pytest.mark.parametrize("said", ["no space left on device", "failed to register layer: no space left on device"])
def test_a_full_disk_is_told_as_such(said: str) -> None:
    assert "Free disk space where Docker keeps its images" in images._failed("x:1", said, "").fix


class Shelf:
    """Four images of a megabyte each, used 40, 30, 20 and 10 hours ago; one more of a person's."""

    def __init__(self, tmp_path: Path, there: Registry, name: str) -> None:
        self.now = time.time()
        self.context = context(tmp_path, there.host)
        self.ledger = tmp_path / "state" / "images.json"
        self.names = [there.add(f"{name}-{number}") for number in range(4)]
        for image, hours in zip(self.names, (40, 30, 20, 10), strict=True):
            images.get(image, self.context)
            images.note_use(self.ledger, image, now=self.now - hours * HOUR)
        self.persons = there.add(f"{name}-person")
        docker("pull", "--quiet", self.persons)
        images.note_use(self.ledger, self.persons)

    def prune(self, most_gb: float, *keep: str) -> list[str]:
        return images.prune(self.ledger, most_gb, keep, now=self.now)

    @property
    def left(self) -> list[int]:
        return [number for number, image in enumerate(self.names) if here(image)]


@pytest.fixture
def shelf(tmp_path: Path, name: str) -> Iterator[Shelf]:
    with registry(filling=1_000_000) as there:
        yield Shelf(tmp_path, there, name)


@needs_docker
def test_the_least_recently_used_go_first_and_no_more_than_needed(shelf: Shelf) -> None:
    assert shelf.prune(0.0045) == []
    assert shelf.prune(0) == []
    images.note_use(shelf.ledger, shelf.names[0], now=shelf.now - 2 * HOUR)
    assert shelf.prune(0.0025) == [shelf.names[1], shelf.names[2]]
    assert shelf.left == [0, 3]
    assert set(ledger_of(shelf.context)) == {shelf.names[0], shelf.names[3]}


@needs_docker
def test_what_is_used_needed_young_or_not_ours_stays(shelf: Shelf, name: str) -> None:
    container, service = name.rpartition("/")[2], f"ccci-test-{name.rpartition('/')[2]}"
    docker("create", f"--name={container}", shelf.names[0])
    docker("service", "create", "--detach", "--no-resolve-image", "--replicas=0", f"--name={service}", shelf.names[1])
    try:
        assert shelf.prune(0.000001, shelf.names[2]) == [shelf.names[3]]
        images.note_use(shelf.ledger, shelf.names[2], now=shelf.now - 60)
        assert shelf.prune(0.000001) == []
        assert shelf.left == [0, 1, 2]
    finally:
        docker("rm", container)
        docker("service", "rm", service)
    assert shelf.prune(0.000001) == shelf.names[:2]
    assert here(shelf.persons) and here(IMAGE)


@needs_docker
def test_a_name_that_somebody_gave_to_another_image_is_not_ours(shelf: Shelf) -> None:
    docker("tag", shelf.persons, shelf.names[0])
    assert shelf.prune(0.0015) == shelf.names[1:3]
    assert here(shelf.names[0])
    assert set(ledger_of(shelf.context)) == {shelf.names[3]}


@needs_docker
def test_a_ledger_that_cannot_be_read_removes_nothing(tmp_path: Path) -> None:
    need_swarm()
    ledger = tmp_path / "images.json"
    for text in ("", "{", "[]", '{"images": []}', '{"images": {"x": 5}}', '{"images": {"x": {"id": 1}}}'):
        ledger.write_text(text)
        images.note_use(ledger, IMAGE)
        assert images.prune(ledger, 0.0000001) == []


def test_no_ledger_no_notes() -> None:
    images.note_use(None, "x")
    assert images.prune(None, 1) == []


def _note_often(ledger: Path, number: int) -> None:
    for _ in range(50):
        images.note_use(ledger, f"image-{number}", now=float(number + 1))


def test_many_write_the_ledger_at_once_and_nothing_is_lost(tmp_path: Path) -> None:
    ledger = tmp_path / "images.json"
    ledger.write_text(json.dumps({"images": {f"image-{number}": {"id": "sha256:x", "used": 0} for number in range(4)}}))
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=_note_often, args=(ledger, number)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(240)
        assert writer.exitcode == 0
    found = json.loads(ledger.read_text())["images"]
    assert {name: entry["used"] for name, entry in found.items()} == {f"image-{number}": number + 1 for number in range(4)}
