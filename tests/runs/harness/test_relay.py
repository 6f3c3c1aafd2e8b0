"""What a door does to a request: its head says what the harness wants, and its body has one meaning or goes nowhere else."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.deployers.probe import unverified
from runs.harness.certificate import Certificate
from runs.harness.relay import Forbidden, Head, Tls, Unclear, length_of, read_head, relay


class Line:
    """A client, a relay, and a server that reads what arrives."""

    def __init__(self, change: Callable[[Head], Head], strict: bool) -> None:
        self.client, inner = socket.socketpair()
        outer, self.server = socket.socketpair()
        self.client.settimeout(60)
        self.server.settimeout(60)

        def carry() -> None:
            relay(inner, outer, change, strict)
            inner.close()
            outer.close()

        self.thread = threading.Thread(target=carry, daemon=True)
        self.thread.start()

    def arrives(self, sent: bytes) -> bytes:
        """All that the server gets of what a client sends before it closes its side."""
        self.client.sendall(sent)
        self.client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: self.server.recv(1 << 16), b""))

    def close(self) -> None:
        self.server.close()
        self.client.close()
        self.thread.join(240)
        assert not self.thread.is_alive()


@pytest.fixture
def line() -> Iterator[Callable[..., Line]]:
    made: list[Line] = []

    def make(
        change: Callable[[Head], Head] = lambda head: head.with_fields(X_Forwarded_Proto="https"), strict: bool = False
    ) -> Line:
        made.append(Line(change, strict))
        return made[-1]

    yield make
    for one in made:
        one.close()


GET = b"GET / HTTP/1.1\r\nHost: a\r\n"
TOLD = b"X-Forwarded-Proto: https\r\n\r\n"


@pytest.mark.parametrize(
    ("sent", "arrives"),
    [
        (GET + b"\r\n", GET + TOLD),
        (2 * (GET + b"\r\n"), 2 * (GET + TOLD)),  # each request of a connection
        (GET + b"x-forwarded-proto: http\r\n\r\n", GET + b"x-forwarded-proto: http\r\n\r\n"),  # a test that says it itself
        (GET + b"Content-Length: 3\r\n\r\nabc" + GET + b"\r\n", GET + b"Content-Length: 3\r\n" + TOLD + b"abc" + GET + TOLD),
        (
            GET + b"Transfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nT: x\r\n\r\n" + GET + b"\r\n",
            GET + b"Transfer-Encoding: chunked\r\n" + TOLD + b"3\r\nabc\r\n0\r\n\r\n" + GET + TOLD,
        ),
        # What follows an upgrade is no HTTP any more.
        (GET + b"Upgrade: websocket\r\n\r\n\x81\x00\r\n\r\n", GET + b"Upgrade: websocket\r\n" + TOLD + b"\x81\x00\r\n\r\n"),
        (b"SSH-2.0-x\r\n\r\nhello", b"SSH-2.0-x\r\n\r\nhello"),  # an app may be spoken to in any way
        (b"nothing of HTTP", b"nothing of HTTP"),
    ],
)
def test_what_arrives_at_the_app(sent: bytes, arrives: bytes, line: Callable[..., Line]) -> None:
    assert line().arrives(sent) == arrives


@pytest.mark.parametrize("sent", [b"SSH-2.0-x\r\n", b"\x16\x03\x01\x00", b"HELO there\r\n", b" "])
def test_who_speaks_otherwise_is_heard_at_once(sent: bytes, line: Callable[..., Line]) -> None:
    door = line()
    door.client.sendall(sent)
    assert door.server.recv(100) == sent
    door.server.sendall(b"welcome")
    assert door.client.recv(100) == b"welcome"


SMUGGLED = b"GET /admin HTTP/1.1\r\nHost: other\r\n\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        GET + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        GET + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
        GET + b"Content-Length: 3, 3\r\n\r\nabc",
        GET + b"Content-Length: +3\r\n\r\nabc",
        # Some servers leave the body of these unread, and take it for the next request.
        GET + b"Content-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED,
        GET.replace(b"GET", b"HEAD") + b"Content-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED,
        GET.replace(b"GET", b"OPTIONS") + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        GET + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
        GET + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n",
        GET + b"Transfer-Encoding : chunked\r\n\r\n",
        GET + b" folded: x\r\n\r\n",
        GET + b"X: a\nHost: other\r\n\r\n",
        GET + b"X: a\rHost: other\r\n\r\n",
        GET + b"X: \0\r\n\r\n",
        b"GET http://other/ HTTP/1.1\r\nHost: a\r\n\r\n",
        b"CONNECT other:443 HTTP/1.1\r\n\r\n",
        b"GET  / HTTP/1.1\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"\r\n" + GET + b"\r\n",
        b"SSH-2.0-x\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"x" * (1 << 17),
    ],
)
def test_what_can_be_read_in_two_ways_goes_to_nobody_else(sent: bytes, line: Callable[..., Line]) -> None:
    door = line(strict=True)
    door.client.sendall(sent)
    door.client.shutdown(socket.SHUT_WR)
    assert door.server.recv(1 << 16) == b""
    assert door.client.recv(1 << 16).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    "body", [b"3\r\nabcd\r\n0\r\n\r\n", b"x\r\n", b"-1\r\n", b"3\nabc\n0\n\n", b"3 \t;\0\r\nabc\r\n", b"0x3\r\nabc\r\n"]
)
def test_a_chunk_that_is_none_ends_the_connection(body: bytes, line: Callable[..., Line]) -> None:
    door = line(strict=True)
    arrived = door.arrives(GET.replace(b"GET", b"POST") + b"Transfer-Encoding: chunked\r\n\r\n" + body + SMUGGLED)
    assert arrived.startswith(b"POST / ")
    assert b"other" not in arrived and not arrived.endswith(b"0\r\n\r\n")


THERE = b"GET / HTTP/1.1\r\nHost: there\r\nConnection: close\r\n\r\n"


def there(head: Head) -> Head:
    return Head(head.line, [(b"Host", b"there"), *head.without("Host").fields])


@settings(max_examples=50)
@given(st.binary(max_size=300), st.booleans())
def test_whatever_is_sent_no_head_gets_past_unchanged(data: bytes, first: bool) -> None:
    door = Line(there, strict=True)
    try:
        arrived = door.arrives(data if first else GET + b"\r\n" + data)
    finally:
        door.close()
    assert arrived == THERE if not first else not arrived or b"\r\nHost: there\r\n" in arrived


@pytest.mark.parametrize(
    ("sent", "arrives"),
    [
        (GET + b"\r\n" + SMUGGLED, THERE),
        (GET + b"Connection: keep-alive, Host\r\nUpgrade: h2c\r\n\r\n" + SMUGGLED, THERE),
        (
            b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc" + SMUGGLED,
            b"POST / HTTP/1.1\r\nHost: there\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc",
        ),
        (
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n" + SMUGGLED,
            b"POST / HTTP/1.1\r\nHost: there\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n1\r\na\r\n0\r\n\r\n",
        ),
    ],
)
def test_to_somebody_elses_server_a_connection_carries_one_request(
    sent: bytes, arrives: bytes, line: Callable[..., Line]
) -> None:
    assert line(there, strict=True).arrives(sent) == arrives


def test_the_server_is_not_told_that_the_client_has_gone_while_it_waits(line: Callable[..., Line]) -> None:
    """Some servers give up what they are at when there is nothing more to come."""
    door = line(there, strict=True)
    door.client.sendall(GET + b"\r\n")
    assert door.server.recv(1000) == THERE
    door.server.settimeout(0.3)
    with pytest.raises(TimeoutError):
        door.server.recv(1)


@pytest.mark.parametrize(
    ("said", "arrives"),
    [
        (
            b"HTTP/1.1 103 A\r\nX: y\r\n\r\nHTTP/1.1 200 OK\r\nconnection:keep-alive\r\nKeep-Alive: 5\r\nX: z\r\n\r\na\r\n\r\nb",
            b"HTTP/1.1 103 A\r\nX: y\r\n\r\nHTTP/1.1 200 OK\r\nX: z\r\nConnection: close\r\n\r\na\r\n\r\nb",
        ),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"),
        (b"no HTTP", b"no HTTP"),
        (b"x" * (1 << 17), b"x" * (1 << 17)),
    ],
)
def test_its_answer_says_that_there_will_be_no_other_one(said: bytes, arrives: bytes, line: Callable[..., Line]) -> None:
    door = line(there, strict=True)
    door.client.sendall(GET + b"\r\n")
    door.server.recv(1000)
    threading.Thread(target=lambda: (door.server.sendall(said), door.server.shutdown(socket.SHUT_WR)), daemon=True).start()
    assert b"".join(iter(lambda: door.client.recv(1 << 16), b"")) == arrives


def test_what_nobody_may_send_is_answered_whatever_is_still_to_come(line: Callable[..., Line]) -> None:
    def change(head: Head) -> Head:
        raise Forbidden("not this")

    door = line(change, strict=True)
    door.client.sendall(b"POST / HTTP/1.1\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000)
    assert door.server.recv(100) == b""
    answer = b"".join(iter(lambda: door.client.recv(1000), b""))
    assert answer.startswith(b"HTTP/1.1 403 Forbidden\r\n") and answer.endswith(b"not pass this on: not this.\n")


def test_a_head_is_written_as_it_was_read() -> None:
    head = read_head(b"POST /a?b HTTP/1.1\r\nHost: a\r\nX:  y \r\nx: z")
    assert head.all("X") == [b"y", b"z"]
    assert head.without("x").bytes() == b"POST /a?b HTTP/1.1\r\nHost: a\r\n\r\n"
    assert length_of(head) == 0
    with pytest.raises(Unclear):
        read_head(b"")


def test_tls_is_carried_both_ways_at_once() -> None:
    """More than any buffer holds, in both directions: neither side waits for the other one."""
    one, other = socket.socketpair()
    certificate, size = Certificate.made(["a.example.com", "127.0.0.1"]), 4 << 20
    ends: dict[str, Tls] = {}

    def server() -> None:
        ends["server"] = Tls(other, certificate.server_context(), server=True)

    thread = threading.Thread(target=server)
    thread.start()
    client = Tls(one, unverified(), "a.example.com")
    thread.join(240)
    got = {"client": 0, "server": 0}

    def read(name: str, end: Tls) -> None:
        while got[name] < size and (data := end.recv(1 << 16)):
            got[name] += len(data)

    def write(end: Tls) -> None:
        end.sendall(b"x" * size)

    with one, other:
        pairs = (("client", client), ("server", ends["server"]))
        threads = [threading.Thread(target=read, args=pair, daemon=True) for pair in pairs]
        threads += [threading.Thread(target=write, args=(end,), daemon=True) for _, end in pairs]
        for each in threads:
            each.start()
        for each in threads:
            each.join(240)
        assert not any(each.is_alive() for each in threads)
        ends["server"].shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    assert got == {"client": size, "server": size}


def test_over_tls_too_who_sends_what_he_may_not_gets_the_answer_whatever_is_still_to_come() -> None:
    one, other = socket.socketpair()
    server, far = socket.socketpair()

    def refuse(head: Head) -> Head:
        raise Forbidden("not this")

    def serve() -> None:
        with other:
            context = Certificate.made(["a.example.com"]).server_context()
            relay(Tls(other, context, server=True), server, refuse)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    client, size = Tls(one, unverified(), "a.example.com"), 4 << 20  # more than any buffer holds
    with one, server, far:
        client.sendall(b"POST / HTTP/1.1\r\nHost: a.example.com\r\nContent-Length: %d\r\n\r\n" % size)
        client.sendall(b"x" * size)
        answer = b"".join(iter(lambda: client.recv(1 << 16), b""))
        one.shutdown(socket.SHUT_RDWR)
        thread.join(240)
    assert answer.startswith(b"HTTP/1.1 403 Forbidden\r\n") and answer.endswith(b"not pass this on: not this.\n")
