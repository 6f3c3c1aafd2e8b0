"""HTTP between a sandbox and a server: each request's head is parsed and rewritten, so that it contains what the harness wants.

Untrusted code writes the requests. What is passed on must be unambiguous: a door to somebody else's server (`strict`) rejects a
head or body that can be read in two ways; one to the app itself passes it on unchanged. A strict door allows one request per
connection, so that leftovers, which a server may leave unread, are not taken for another request.
"""

from __future__ import annotations

import re
import socket
import ssl
import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from infra.deployers.isolation.guest.splice import Stream, copy

_LONGEST_HEAD = 64 << 10
_BLOCK = 64 << 10
_BEGINNING = re.compile(rb"[!-~]{1,40}(?:\Z| (?:\Z|[/*]))")
_REQUEST = re.compile(rb"([!-~]{1,40}) (/[!-~]*|\*) (HTTP/1\.[01])")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\0]*)")
_LENGTH = re.compile(rb"[0-9]{1,15}")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,12})[ \t]*(?:;[^\r\n\0]*)?\r\n")
#: Methods whose body every server reads.
_WITH_BODY = frozenset({b"POST", b"PUT", b"PATCH"})
_OF_CONNECTION = re.compile(rb"(?:Connection|Keep-Alive)[ \t]*:", re.IGNORECASE)
_INTERIM = re.compile(rb"HTTP/1\.[01] 1[0-9]{2}\b")
_REFUSAL = b"HTTP/1.1 %s\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\nThe harness does not pass this on: %s.\n"


class Refused(Exception):
    """A request that is not passed on; the message says why."""

    status = b"400 Bad Request"


class Unclear(Refused):
    """An ambiguous request."""


class Forbidden(Refused):
    """A request that this door does not allow."""

    status = b"403 Forbidden"


@dataclass(frozen=True)
class Head:
    """The first line of a request, and its header fields."""

    line: bytes
    fields: Sequence[tuple[bytes, bytes]]

    @property
    def method(self) -> bytes:
        return self.line.split(b" ")[0]

    @property
    def target(self) -> bytes:
        """The path and query."""
        return self.line.split(b" ")[1]

    def all(self, name: str) -> list[bytes]:
        """The values of a field."""
        return [value for key, value in self.fields if key.lower() == name.lower().encode()]

    def without(self, *names: str) -> Head:
        """The head without these fields."""
        gone = {name.lower().encode() for name in names}
        return replace(self, fields=[field for field in self.fields if field[0].lower() not in gone])

    def only(self, names: Collection[str]) -> Head:
        """The head with only these fields, named in lower case."""
        return replace(self, fields=[field for field in self.fields if field[0].decode().lower() in names])

    def with_fields(self, **fields: str) -> Head:
        """The head with these fields (`X_Forwarded_Proto`), unless the client sets them."""
        new = [(name.replace("_", "-").encode(), value.encode("latin-1", "replace")) for name, value in fields.items()]
        return replace(self, fields=[*self.fields, *(field for field in new if not self.all(field[0].decode()))])

    def bytes(self) -> bytes:
        """The head in wire format."""
        return b"".join(line + b"\r\n" for line in (self.line, *(b": ".join(field) for field in self.fields), b""))


def read_head(data: bytes) -> Head:
    """Parse the head in the bytes before the empty line. Raises Unclear."""
    first, *lines = data.split(b"\r\n")
    if not _REQUEST.fullmatch(first):
        raise Unclear("the first line is not a request line")
    fields = []
    for line in lines:
        found = _FIELD.fullmatch(line)
        if not found:
            raise Unclear("a header is invalid")
        fields.append((found[1], found[2].rstrip(b" \t")))
    return Head(first, fields)


def length_of(head: Head) -> int | None:
    """The length of the body; None if it is chunked. Raises Unclear."""
    lengths, codings = head.all("Content-Length"), head.all("Transfer-Encoding")
    if codings:
        if lengths or [coding.lower() for coding in codings] != [b"chunked"]:
            raise Unclear("the length of its body is given more than once")
        if head.line.endswith(b"/1.0"):
            raise Unclear("HTTP/1.0 does not support chunked bodies")
        return None
    if len(lengths) > 1 or not all(_LENGTH.fullmatch(length) for length in lengths):
        raise Unclear("the length of its body is invalid")
    return int(lengths[0]) if lengths else 0


class _Requests:
    """The requests of one connection, one after the other."""

    def __init__(self, client: Stream, server: Stream, change: Callable[[Head], Head], strict: bool) -> None:
        self._client, self._server, self._change, self._strict = client, server, change, strict
        self._buffer = b""

    def run(self) -> None:
        """Pass on all requests; only one if strict. Raises Refused and OSError."""
        if self._strict:
            self._only_one()
        else:
            self._one_after_the_other()

    def _one_after_the_other(self) -> None:
        while True:
            data: bytes | None = b""
            try:
                data = self._head()
                if data is None:
                    return None
                head = read_head(data[:-4])
                length = length_of(head)
            except Unclear:
                self._buffer = (data or b"") + self._buffer
                return self._as_it_is()
            changed = self._change(head)
            self._server.sendall(changed.bytes())
            if changed.all("Upgrade"):
                return self._as_it_is()
            self._with_body(length)

    def _only_one(self) -> None:
        data = self._head()
        if data is None:
            return
        head = read_head(data[:-4])
        length = length_of(head)
        if length != 0 and head.method not in _WITH_BODY:
            raise Unclear("it has a body, which some servers do not read with this method")
        changed = self._change(head).without("Connection", "Upgrade")
        self._server.sendall(replace(changed, fields=[*changed.fields, (b"Connection", b"close")]).bytes())
        self._with_body(length)
        if not self._buffer:  # some servers take an early close as a cancellation
            self._more()

    def _head(self) -> bytes | None:
        return self._until(b"\r\n\r\n", _LONGEST_HEAD, _BEGINNING)

    def _with_body(self, length: int | None) -> None:
        if length is None:
            self._chunks()
        else:
            self._body(length)

    def _as_it_is(self) -> None:
        self._server.sendall(self._buffer)
        copy(self._client, self._server)

    def _more(self) -> bool:
        data = self._client.recv(_BLOCK)
        self._buffer += data
        return bool(data)

    def _until(self, end: bytes, most: int, beginning: re.Pattern[bytes] | None = None) -> bytes | None:
        """Read up to and including `end`; None if the connection ends. Leaves it in the buffer if it is too long."""
        searched = 0
        while (at := self._buffer.find(end, searched)) < 0:
            searched = max(len(self._buffer) - len(end) + 1, 0)
            if beginning and self._buffer and not beginning.match(self._buffer):
                raise Unclear("the first line is not a request line")  # a client of another protocol may wait for an answer
            if len(self._buffer) > most:
                raise Unclear("its head is too long")
            if not self._more():
                if self._buffer:
                    raise Unclear("it is incomplete")
                return None
        found, self._buffer = self._buffer[: at + len(end)], self._buffer[at + len(end) :]
        return found

    def _body(self, left: int) -> None:
        while left and (self._buffer or self._more()):
            part, self._buffer = self._buffer[:left], self._buffer[left:]
            left -= len(part)
            self._server.sendall(part)
        if left:
            raise ConnectionAbortedError

    def _chunks(self) -> None:
        """A chunked body, re-encoded without trailers, so that every reader reads the same."""
        size = -1
        while size:
            line = self._until(b"\r\n", 1000) or b""
            found = _CHUNK.fullmatch(line)
            if not found:
                raise Unclear("a chunk of its body is invalid")
            size = int(found[1], 16)
            self._server.sendall(b"%x\r\n" % size)
            self._body(size)
            if size and self._until(b"\r\n", 2) != b"\r\n":
                raise Unclear("a chunk of its body has the wrong length")
            if size:
                self._server.sendall(b"\r\n")
        while (trailer := self._until(b"\r\n", _LONGEST_HEAD)) != b"\r\n":
            if trailer is None:
                raise ConnectionAbortedError
        self._server.sendall(b"\r\n")


def relay(client: Stream, server: Stream, change: Callable[[Head], Head], strict: bool = False) -> None:
    """Pass requests to the server, each with its head changed, and the answers back, until both ends are done.

    `change` may raise Forbidden.
    """
    back = threading.Thread(target=_last_answer if strict else copy, args=(server, client), daemon=True)
    back.start()
    try:
        _Requests(client, server, change, strict).run()
        server.shutdown(socket.SHUT_WR)
    except (Refused, OSError) as error:
        if isinstance(error, Refused):
            with suppress(OSError):
                client.sendall(_REFUSAL % (error.status, str(error).encode()))
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        if isinstance(error, Refused):
            with suppress(OSError):  # read the rest of the request: closing before that may lose the answer
                client.shutdown(socket.SHUT_WR)
                # Of a TLS connection the bytes: it reads no more after its close notification.
                stream = client.stream if isinstance(client, Tls) else client
                while stream.recv(_BLOCK):
                    pass
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)
    back.join()


def _last_answer(server: Stream, client: Stream) -> None:
    """Pass back the answer to the only request of a connection, and announce the close, so that the client sends no other."""
    with suppress(OSError):
        client.sendall(_beginning(server))
    copy(server, client)


def _beginning(server: Stream) -> bytes:
    """The head of an answer and what came with it; the bytes unchanged if it is not an answer."""
    before = data = b""
    while len(before + data) <= _LONGEST_HEAD and (more := server.recv(_BLOCK)):
        data += more
        while b"\r\n\r\n" in data:
            head, _, data = data.partition(b"\r\n\r\n")
            if not _INTERIM.match(head):
                lines = [line for line in head.split(b"\r\n") if not _OF_CONNECTION.match(line)]
                return before + b"\r\n".join([*lines, b"Connection: close", b"", data])
            before += head + b"\r\n\r\n"
    return before + data


class Tls:
    """A TLS connection over a connected socket, which one thread may read while another writes.

    Python's own does not allow that: OpenSSL supports one thread at a time. Raises OSError, including for TLS errors.
    """

    def __init__(self, stream: socket.socket, context: ssl.SSLContext, server_name: str = "", server: bool = False) -> None:
        self.stream, self._server = stream, server
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=server, server_hostname=server_name or None)
        self._state, self._sending = threading.Lock(), threading.Lock()
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._receive()
            finally:
                self._flush()
        self.stream.settimeout(None)

    def recv(self, most: int) -> bytes:
        while True:
            with self._state:
                try:
                    return self._tls.read(most)
                except ssl.SSLWantReadError:
                    pass
                except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                    return b""
            self._receive()

    def sendall(self, data: bytes) -> None:
        with self._sending:
            for start in range(0, len(data), _BLOCK):
                with self._state:
                    self._tls.write(data[start : start + _BLOCK])
                self._send()

    def shutdown(self, how: int) -> None:
        if self._server and how != socket.SHUT_RD:
            # Some clients need a close notification. Python then discards what they send, which is nothing
            # any more; a server may still be answering.
            with self._sending:
                with suppress(ssl.SSLError), self._state:
                    self._tls.unwrap()
                with suppress(OSError):
                    self._send()
        self.stream.shutdown(how)

    def _receive(self) -> None:
        self._flush()
        data = self.stream.recv(_BLOCK)
        with self._state:
            if data:
                self._in.write(data)
            else:
                self._in.write_eof()

    def _flush(self) -> None:
        """Send TLS's own messages. The reader never waits for a writer: the other side may do the same."""
        if self._sending.acquire(blocking=False):
            try:
                self._send()
            finally:
                self._sending.release()

    def _send(self) -> None:
        while True:
            with self._state:
                data = self._out.read()
            if not data:
                return
            self.stream.sendall(data)
