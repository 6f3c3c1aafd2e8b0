"""The web server as a real process, with clients that send a byte now and then, or never finish; on loopback, and bounded."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from controlplane import webserver
from controlplane.config import BASE_DIR
from tests.controlplane.trees import Tree, tree
from tests.enrollment.hooks import captured, fresh, sign
from tests.waiting import PATIENCE, until

pytestmark = [pytest.mark.crash, pytest.mark.xdist_group("work")]

CLIENTS = 200
#: The web part of `cc-ci work`, with some of its figures changed.
START = """
from controlplane import children, webserver
webserver.SECONDS.update({seconds!r})
webserver.CONNECTIONS, webserver.GRACE = {connections}, 300
{also}
children.main()
"""
#: Between its decision and its deed, this server gives other threads time.
DROPS_SLOWLY = "import time; drop = webserver.Channel.drop; webserver.Channel.drop = lambda one: (time.sleep(0.5), drop(one))"
HOOK = """
from tests.factories import RepositoryFactory, WebhookConfigFactory
row = RepositoryFactory(forge_repo_id=3, owner="recipes", name="keycloak")
hook = WebhookConfigFactory(repository=row)
print("HOOK", hook.forge_id, hook.key)
"""

RUN = """
from enrollment.models import Repository
from tests.factories import TestRunFactory
print("RUN", TestRunFactory(repository=Repository.objects.get(), pull_request=None, log="x" * 12_000_000).pk)
"""


class Web:
    """A web server and a hook that it knows."""

    def __init__(self, tree: Tree, hook: str) -> None:
        self.tree, self.hook = tree, hook
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.address = self.listener.getsockname()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, connections: int = webserver.CONNECTIONS, also: str = "", **seconds: float) -> None:
        reports, writing = os.pipe()
        words = ["web", str(os.getpid()), str(writing), str(self.listener.fileno())]
        program = START.format(seconds=seconds, connections=connections, also=also)
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *words],
            cwd=BASE_DIR,
            env=self.tree.environment,
            pass_fds=(writing, self.listener.fileno()),
            stderr=self.tree.log.open("ab"),
        )
        os.close(writing)
        assert json.loads(os.read(reports, 1000))["ready"], self.tree.said()
        os.close(reports)

    def stop(self) -> int:
        assert self.process
        self.process.terminate()
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
        self.listener.close()

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=PATIENCE)

    def ask(self, request: bytes, *, client: socket.socket | None = None) -> bytes:
        """The whole answer."""
        with client or self.connect() as connection:
            connection.sendall(request)
            return answer(connection)

    def page(self) -> bytes:
        return self.ask(b"GET /runs/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")

    def delivery(self) -> bytes:
        body = fresh(captured("pull_comment_created.issue_comment")[1], number=1)
        return self.ask(self.head(body) + body)

    def head(self, body: bytes, **other: str) -> bytes:
        given = {
            "Host": "localhost",
            "Connection": "close",
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "X-Gitea-Event": "issue_comment",
            "X-Gitea-Delivery": str(uuid.uuid4()),
            "X-Gitea-Signature": sign(body),
        }
        given |= {name.replace("_", "-"): value for name, value in other.items()}
        lines = [f"POST {self.hook} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items() if value), "", ""]
        return "\r\n".join(lines).encode()


def answer(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def closed(connection: socket.socket) -> bytes:
    """Wait until the other side closes, and give what it said."""
    try:
        return answer(connection)
    except ConnectionResetError:
        return b""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Tree, str]]:
    with tree(tmp_path_factory.mktemp("web")) as made:
        said = made.command("shell", "-c", HOOK)
        found = re.search(r"HOOK (\d+) (\w+)", said.stdout)
        assert found, said.stderr
        yield made, f"/hooks/{found[1]}/?hook={found[2]}"


@pytest.fixture(scope="module")
def web(place: tuple[Tree, str]) -> Iterator[Web]:
    """One for all that only ask."""
    with closing(Web(*place)) as made:
        made.start()
        yield made


@pytest.fixture
def own(place: tuple[Tree, str]) -> Iterator[Web]:
    """Not started yet."""
    with closing(Web(*place)) as made:
        yield made


@contextmanager
def slow(web: Web, number: int = CLIENTS) -> Iterator[Counter[int]]:
    """So many clients of which each sends a byte every 3 s; one that is turned away comes again. Gives how often each came."""
    starts = [
        b"GET /runs/ HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",
        web.head(b"x" * 5000),
        b"POST /admin/login/ HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\n"
        b"Content-Length: 500\r\n\r\n",
        b"",
    ]
    clients: dict[int, socket.socket] = {}
    came: Counter[int] = Counter()
    stop = threading.Event()

    def come(place: int) -> None:
        came[place] += 1
        clients[place] = socket.create_connection(web.address, timeout=PATIENCE)
        clients[place].sendall(starts[place % len(starts)])
        clients[place].setblocking(False)

    def drip() -> None:
        place = 0
        while not stop.wait(3 / number):
            place = (place + 1) % number
            try:
                if clients[place].send(b"x") == 0 or clients[place].recv(1) == b"":
                    raise ConnectionResetError
            except BlockingIOError:
                continue
            except OSError:
                clients[place].close()
                come(place)

    for place in range(number):
        come(place)
    dripping = threading.Thread(target=drip, daemon=True)
    dripping.start()
    try:
        yield came
    finally:
        stop.set()
        dripping.join()
        for client in clients.values():
            client.close()


def test_slow_clients_keep_nobody_waiting(own: Web) -> None:
    """Nobody turns these away before the answers are there: who has to wait for one of them waits for ever."""
    own.start(head=9999, body=9999, idle=9999)
    with slow(own) as came:
        for _ in range(5):
            assert own.page().startswith(b"HTTP/1.1 200")
            assert own.delivery().startswith(b"HTTP/1.1 202")
        assert len(came) == came.total() == CLIENTS


def test_slow_clients_that_come_again_keep_nobody_waiting(own: Web) -> None:
    own.start(head=8, body=8, idle=8)  # as long as our own request may take on a busy machine
    with slow(own) as came:
        until(lambda: min(came.values()) > 1)
        for _ in range(5):
            assert own.page().startswith(b"HTTP/1.1 200")
            assert own.delivery().startswith(b"HTTP/1.1 202")


def test_a_head_and_a_body_have_their_time(own: Web) -> None:
    own.start(head=3, body=3, idle=3)
    kept = own.connect()
    kept.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    waiting = {"silent": own.connect(), "head": own.connect(), "body": own.connect(), "idle": kept}
    waiting["head"].sendall(b"GET /runs/ HTTP/1.1\r\nX: ")
    waiting["body"].sendall(own.head(b"x" * 5000) + b"x")
    over = threading.Event()

    def drip() -> None:
        while not over.wait(0.2):  # never silent for long
            for name in ("head", "body"):
                try:
                    waiting[name].send(b"x")
                except OSError:
                    pass

    dripping = threading.Thread(target=drip, daemon=True)
    dripping.start()
    try:
        said = {name: closed(client) for name, client in waiting.items()}
    finally:
        over.set()
        dripping.join()
    assert said.pop("idle").startswith(b"HTTP/1.1 200")
    assert said == {"silent": b"", "head": b"", "body": b""}


@pytest.mark.parametrize("expects", ["", "100-continue"])
@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"X_Gitea_Signature": ""}, b"401"),
        ({"Content_Type": "text/plain"}, b"415"),
        ({"Content_Length": "1048577"}, b"413"),
        ({"Content_Length": "9" * 15}, b"413"),
    ],
)
def test_what_is_refused_anyway_is_refused_before_its_body_comes(
    web: Web, changes: dict[str, str], status: bytes, expects: str
) -> None:
    with web.connect() as client:
        # Nothing of the body is sent: the answer is for the head.
        said = web.ask(web.head(b"x" * 1000, Expect=expects, **changes), client=client)
    assert said.startswith(b"HTTP/1.1 " + status)
    assert said.endswith(b"\n") and b"waitress" not in said
    # The address may be written in other ways.
    for other in (b"//hooks/", b"/%68ooks/", b"http://localhost/hooks/"):
        head = web.head(b"x" * 1000, **changes).replace(b"/hooks/", other, 1)
        assert web.ask(head).startswith(b"HTTP/1.1 " + status)
    # Nor is what follows taken for another request, and who sends on gets the answer all the same.
    body = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3000
    said = web.ask(web.head(body, **({"X_Gitea_Signature": ""} | changes)) + body)
    assert said.count(b"HTTP/1.1 ") == 1 and b" 200 " not in said


def test_a_body_that_never_ends_is_cut_off(own: Web) -> None:
    own.start()
    with own.connect() as client:
        client.sendall(own.head(b"", Content_Length="", Transfer_Encoding="chunked", Connection="keep-alive"))
        sent = 0
        try:
            while sent < 64 * 1024 * 1024:
                client.sendall(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
                sent += 0x10000
        except OSError:
            pass
        assert sent < 16 * 1024 * 1024, "what fits into the buffers on the way, and no more"
    assert own.page().startswith(b"HTTP/1.1 200")


def test_a_body_in_chunks_is_read(web: Web) -> None:
    body = fresh(captured("pull_comment_created.issue_comment")[1], number=1)
    head = web.head(body, Content_Length="", Transfer_Encoding="chunked")
    half = len(body) // 2
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:half], body[half:], b""))
    assert web.ask(head + chunks).startswith(b"HTTP/1.1 202")


def test_who_asks_on_before_the_answer_is_dropped(own: Web) -> None:
    """Each request that waits behind another one would hold a file or memory, for as long as nobody reads the answers."""
    own.start(also=DROPS_SLOWLY)
    assert own.process
    files = Path(f"/proc/{own.process.pid}/fd")
    before = len(list(files.iterdir()))
    one = b"GET /static/unfold/css/styles.css HTTP/1.1\r\nHost: localhost\r\n\r\n"
    greedy = [own.connect() for _ in range(4)]
    try:
        for client in greedy:
            client.sendall(one * 100)
        assert own.page().startswith(b"HTTP/1.1 200")
        assert len(list(files.iterdir())) < before + 3 * len(greedy)
        assert all(closed(client).count(b"HTTP/1.1 ") <= 1 for client in greedy)
    finally:
        for client in greedy:
            client.close()
    kept = http.client.HTTPConnection(*own.address, timeout=PATIENCE)
    for _ in range(3):  # one after the other is what a connection is for
        kept.request("GET", "/healthz")
        assert kept.getresponse().read()
    kept.close()
    with own.connect() as client:  # an empty line behind a body is nothing, and some send it
        body = fresh(captured("pull_comment_created.issue_comment")[1], number=1)
        assert own.ask(own.head(body) + body + b"\r\n", client=client).startswith(b"HTTP/1.1 202")


@pytest.mark.parametrize(
    ("request_line", "more", "status"),
    [
        (b"get / HTTP/1.1", b"", b"400"),
        (b"GET /\xff HTTP/1.1", b"", b"400"),
        (b"POST / HTTP/1.1", b"Transfer-Encoding: xchunked\r\n", b"501"),
    ],
)
def test_what_is_no_request_is_answered(web: Web, request_line: bytes, more: bytes, status: bytes) -> None:
    said = web.ask(request_line + b"\r\nHost: localhost\r\n" + more + b"\r\n")
    assert said.split()[1] == status
    assert "Traceback" not in web.tree.said()


def test_there_is_room_for_one_more(own: Web) -> None:
    own.start(connections=20)
    silent = [own.connect() for _ in range(60)]
    try:
        assert own.page().startswith(b"HTTP/1.1 200")
        assert own.delivery().startswith(b"HTTP/1.1 202")
        assert closed(silent[0]) == b"", "the first one made room"
    finally:
        for client in silent:
            client.close()


def test_answers_that_nobody_reads_are_dropped_once_they_are_too_much(own: Web) -> None:
    """Each is in a file until it is read: a few hundred clients, who send one line each, would fill the disk."""
    said = own.tree.command("shell", "-c", RUN)
    run = re.search(r"RUN (\S+)", said.stdout)
    assert run, said.stderr
    own.start(also="webserver.ALL_ANSWERS = 20 << 20", answer=9999)
    assert own.process
    sockets = Path(f"/proc/{own.process.pid}/fd")

    def held() -> int:
        number = 0
        for one in sockets.iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                number += str(one.readlink()).startswith("socket:")
        return number

    before, clients = held(), []
    try:
        for _ in range(4):  # of each at least 8 MB do not fit into what the kernel holds
            clients.append(socket.socket())
            clients[-1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            clients[-1].connect(own.address)
            clients[-1].sendall(f"GET /runs/{run[1]}/log/ HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
            until(lambda: held() == before + len(clients))
        until(lambda: held() <= before + 2)
        assert own.page().startswith(b"HTTP/1.1 200")
        got = [len(closed(client)) for client in clients]
        assert got[0] < 12_000_000 < got[-1], "the oldest has waited longest"
    finally:
        for client in clients:
            client.close()


def test_what_was_begun_is_answered_when_it_is_stopped(own: Web) -> None:
    own.start()
    assert own.process
    body = fresh(captured("pull_comment_created.issue_comment")[1], number=1)
    with own.connect() as client:
        client.sendall(own.head(body) + body[:-10])
        assert own.page().startswith(b"HTTP/1.1 200")  # so it has read that
        own.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        client.sendall(body[-10:])
        assert answer(client).startswith(b"HTTP/1.1 202")
    assert own.process.wait(PATIENCE) == 0
    # Who comes now waits for the next one: the socket is not its own.
    with own.connect() as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        own.start()
        assert answer(client).startswith(b"HTTP/1.1 200")
    assert own.stop() == 0


@pytest.mark.parametrize("doing", sorted(webserver.SECONDS))
def test_each_state_of_a_connection_ends(doing: str) -> None:
    """Also that of a client which does not read its answer; the buffers of a real one hold too much for a test."""
    channel = webserver.Channel.__new__(webserver.Channel)
    request = SimpleNamespace(headers_finished=doing == "body", body_bytes_received=0)
    dropped: list[str] = []
    channel.__dict__.update(
        requests=[],
        lingering=doing == "closing",
        total_outbufs_len=int(doing == "answer"),
        request=request if doing in ("head", "body") else None,
        served=1,
        at=("", None),
        since=0.0,
        drop=lambda: dropped.append(doing),
    )
    channel.tend(100.0)
    channel.tend(100.0 + webserver.SECONDS[doing])
    assert not dropped
    channel.tend(100.1 + webserver.SECONDS[doing])
    assert dropped == [doing]
    channel.requests = [request]  # the server's turn
    channel.tend(10_000.0)
    channel.tend(20_000.0)
    assert dropped == [doing]
