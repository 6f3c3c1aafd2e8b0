"""The one HTTP client: a response has a deadline as a whole, and a bound on what it takes in memory."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
import requests

from enrollment.forges import http
from enrollment.forges.base import Ask, Garbage, NoRoute, Unavailable
from enrollment.forges.http import Http

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


class Dripping:
    """A server that answers each request with these pieces, `pause` seconds apart."""

    def __init__(self, *pieces: bytes, pause: float = 0.0) -> None:
        self.pieces, self.pause, self.connections, self.stopped = pieces, pause, 0, threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        with suppress(OSError):
            while True:
                peer, _ = self.listener.accept()
                self.connections += 1
                threading.Thread(target=self.answer, args=(peer,), daemon=True).start()

    def answer(self, peer: socket.socket) -> None:
        with suppress(OSError), peer:
            while peer.recv(65536):
                for piece in self.pieces:
                    peer.sendall(piece)
                    if self.stopped.wait(self.pause):
                        return

    def close(self) -> None:
        self.stopped.set()
        self.listener.close()


@pytest.fixture
def servers() -> Iterator[list[Dripping]]:
    made: list[Dripping] = []
    yield made
    for server in made:
        server.close()


def client(url: str, timeout: float = 0.5) -> Http:
    return Http(url, "/api", {}, timeout, None, lambda method, path: Ask(method))


@pytest.mark.slow(2.5)
@pytest.mark.parametrize(
    "pieces",
    [
        [b"H", *[b"T"] * 500],
        [HEAD, *[b"X: y\r\n"] * 500],
        [HEAD + b"Content-Length: 5000\r\n\r\n", *[b" "] * 500],
        [HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[b"1\r\n \r\n"] * 500],
        [HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[b"0"] * 500],
        [HEAD + b"\r\n", *[b" "] * 500],
    ],
    ids=["status", "headers", "body", "chunks", "length of a chunk", "until it is closed"],
)
def test_a_response_that_drips_has_a_deadline_as_a_whole(servers: list[Dripping], pieces: list[bytes]) -> None:
    servers.append(Dripping(*pieces, pause=0.1))
    begun = time.monotonic()
    with pytest.raises(Unavailable):
        client(servers[0].url).once("GET", "/")
    assert time.monotonic() - begun < 30, "each piece came in time, and all of them would take 50 s"


def test_a_connection_is_used_again_with_a_deadline_of_its_own(servers: list[Dripping]) -> None:
    servers.append(Dripping(HEAD + b"Content-Length: 2\r\n\r\n[", b"]", pause=0.3))
    asked = client(servers[0].url, 2.0)
    for _ in range(9):  # more than 2 s together
        assert http.json_of(asked.once("GET", "/")) == []
    assert servers[0].connections == 1


@pytest.mark.parametrize("status", [100, 101, 103, 199])
def test_what_comes_before_an_answer_is_no_answer(servers: list[Dripping], status: int) -> None:
    """The answer itself would be taken for that to the next request."""
    answer = HEAD + b"Content-Length: 2\r\n\r\n[]"
    servers.append(Dripping(b"HTTP/1.1 %d Early\r\nLink: x\r\n\r\n" % status, answer, pause=0.05))
    asked = client(servers[0].url, 10)
    for _ in range(2):
        response = asked.once("DELETE", "/")
        assert (response.status_code, response.content) == (200, b"[]")


@pytest.mark.parametrize("text", ["[" + "{}," * 999 + "{}]", '{"a":[' + "0," * 1000 + "0]}", "[" * 900 + "1,2" * 60])
def test_json_of_very_many_values_is_not_decoded(servers: list[Dripping], text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_VALUES", 900)
    servers.append(Dripping(HEAD + f"Content-Length: {len(text)}\r\n\r\n{text}".encode()))
    with pytest.raises(Garbage, match="more than 900 values"):
        http.json_of(client(servers[0].url, 5).once("GET", "/"))


def test_values_are_counted_as_they_are_decoded(servers: list[Dripping], monkeypatch: pytest.MonkeyPatch) -> None:
    """In UTF-16 this string has three quotes, and what follows it looks like a string."""
    monkeypatch.setattr(http, "MAX_VALUES", 900)
    body = ('["\u0122"' + ",[]" * 2000 + "]").encode("utf-16-le")
    servers.append(Dripping(HEAD + b"Content-Length: %d\r\n\r\n%s" % (len(body), body)))
    with pytest.raises(Garbage):
        http.json_of(client(servers[0].url, 5).once("GET", "/"))


def test_what_is_in_strings_is_no_value(servers: list[Dripping], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_VALUES", 900)
    value = [{"out": ',[{"\\' * 500 + "\n", "x": "\\" * 300}]
    text = json.dumps(value)
    servers.append(Dripping(HEAD + f"Content-Length: {len(text)}\r\n\r\n{text}".encode()))
    assert http.json_of(client(servers[0].url, 5).once("GET", "/")) == value


def test_nobody_guesses_at_a_responses_encoding(servers: list[Dripping], monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a minute for 32 MB of odd bytes, outside of every deadline."""

    def guess(_: requests.Response) -> str:
        raise AssertionError

    monkeypatch.setattr(requests.Response, "apparent_encoding", property(guess))
    for body, error in ((b"404 page not found\n", NoRoute), (b"\x81\x8d" * 10, Garbage)):
        servers.append(Dripping(b"HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)))
        with pytest.raises(error):
            client(servers[-1].url, timeout=60).once("GET", "/x")
