"""Takes a screenshot of the app while it is up, with a headless Chromium in the sandbox. Failing to is not an error.

The page is untrusted, and so is the browser after loading it: its output is checked here. A page that contains a secret of the
run, or a filled password field, gives no screenshot.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import struct
import subprocess
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from infra.deployers.base import Deployer
from infra.deployers.context import Context
from infra.deployers.errors import DeployError
from infra.deployers.isolation import bubblewrap
from runs.harness.browser import chromium, needs
from runs.harness.doors import Doors
from runs.harness.protocol import write_atomically
from runs.harness.sandbox_gateway import SandboxGateway

NAME = "picture.png"
WIDTH, HEIGHT = 1280, 800
BIGGEST = 2 << 20
SECONDS = 60.0  # with a browser that starts beside other runs
SHORTEST_SECRET = 6
_BIGGEST_RESULT = 16 << 20
_GUEST = Path(__file__).parent / "guest"
_GATE = "/run/cc-ci/gate.sock"
_MAGIC = b"\x89PNG\r\n\x1a\n"
#: The chunks that form the picture; others can contain anything.
_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")


class NoScreenshot(Exception):
    """There is no screenshot; the message says why."""


def take(
    context: Context,
    deployer: Deployer,
    folder: Path,
    secrets: Sequence[str],
    path: str = "/",
    check: Callable[[], None] = lambda: None,
) -> str:
    """Take a screenshot of the app's page `path` to `folder`/picture.png. Returns "" on success, else the reason for failure.

    Takes at most a minute. `secrets`: what must not be visible (from 6 characters). Raises only what `check` raises,
    leaving nothing running. Call it from the main thread: the browser ends with the calling one.
    """
    try:
        write_atomically(folder / NAME, _checked(_shoot(context, deployer, path, check), secrets))
    except NoScreenshot as reason:
        return str(reason)
    except (OSError, DeployError, subprocess.SubprocessError) as error:
        return f"Could not use the browser: {error}"
    return ""


def _shoot(context: Context, deployer: Deployer, path: str, check: Callable[[], None]) -> bytes:
    program = chromium()
    if not program:
        raise NoScreenshot("There is no Chromium on this machine.")
    if not bubblewrap.available().ok:
        raise NoScreenshot("An untrusted page may only be opened in a sandbox, and there is none here.")
    doors = Doors.of(context, deployer.address(), isolated=True)
    if not doors.address:
        raise NoScreenshot("The recipe has no web port.")
    gate, nothing = context.work / "picture.sock", context.work / "picture-source"
    nothing.mkdir(exist_ok=True)
    place = bubblewrap.Sandbox(
        f"{context.stack}-picture",
        bubblewrap=True,
        mounts={"/recipe": nothing, _GATE: gate, f"{bubblewrap.PROGRAMS}/plugins": _GUEST, **needs(program)},
        hosts=doors.hosts,
        places=doors.places,
        addresses=doors.addresses,
        memory_mb=max(context.memory_mb, 1024),
        processes=context.processes,
        disk_mb=context.disk_mb,
    )
    result_out, result_in = os.pipe()
    collected: list[bytes] = []
    with SandboxGateway(gate, deployer, context.domain, doors):
        try:
            box = place.start("runner.py", _config(place, program, doors, path, result_in), (result_in,))
        finally:
            os.close(result_in)
        readers = [
            threading.Thread(target=_read, args=(result_out, collected), daemon=True),
            threading.Thread(target=_drain, args=(box,), daemon=True),
        ]
        for reader in readers:
            reader.start()
        try:
            in_time = _wait(box, check)
        finally:
            place.end(box)
            for reader in readers:
                reader.join(timeout=5)
            nothing.rmdir()
    if not in_time:
        raise NoScreenshot(f"The page could not be captured within {SECONDS:g} s.")
    return b"".join(collected)


def _config(place: bubblewrap.Sandbox, program: str, doors: Doors, path: str, result_fd: int) -> dict[str, object]:
    home = place.home
    driver = place.where(f"{bubblewrap.PROGRAMS}/plugins") + "/photograph.py"
    real = str(Path(program).resolve())
    return {
        "command": [bubblewrap.interpreter(), "-I", driver, real, "{url}" + path, f"{home}/chromium", f"{home}/picture.json"],
        "env": place.environment(),
        "source": place.where("/recipe"),
        "home": home,
        "doors": doors.config(),
        "gate": place.where(_GATE),
        "result": f"{home}/picture.json",
        "result_fd": result_fd,
        "biggest": _BIGGEST_RESULT,
    }


def _wait(box: subprocess.Popen[bytes], check: Callable[[], None]) -> bool:
    until = time.monotonic() + SECONDS
    while box.poll() is None:
        check()
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def _read(handle: int, collected: list[bytes]) -> None:
    left = _BIGGEST_RESULT + 1
    with os.fdopen(handle, "rb") as result:
        while left > 0 and (block := result.read1(min(left, 1 << 16))):
            left -= len(block)
            collected.append(block)


def _drain(box: subprocess.Popen[bytes]) -> None:
    """Discard the browser's output; a full pipe would block it."""
    assert box.stdout
    while box.stdout.read1(1 << 16):  # type: ignore[attr-defined]
        pass


def _checked(data: bytes, secrets: Sequence[str]) -> bytes:
    """Extract the picture from an untrusted result. Raises NoScreenshot."""
    if not data:
        raise NoScreenshot("The browser did not start, or was killed.")
    if len(data) > _BIGGEST_RESULT:
        raise NoScreenshot("The page is too big to be checked for secrets.")
    try:
        result = json.loads(data)
        if error := result.get("error"):
            raise NoScreenshot(f"The browser failed: {_printable(str(error))}.")
        picture = base64.b64decode(result["picture"], validate=True)
        snapshots = list(result["snapshots"])
        if len(snapshots) != 2:
            raise ValueError("not captured twice")
        for snapshot in snapshots:
            _check(snapshot, secrets)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, MemoryError, binascii.Error) as error:
        raise NoScreenshot("The browser's result is invalid.") from error
    return png(picture)


def _printable(text: str) -> str:
    return "".join(c for c in text if c.isprintable())[:300].rstrip(".")


def _check(snapshot: dict[str, Any], secrets: Sequence[str]) -> None:
    """Raise NoScreenshot if the page contains a secret or a password that somebody typed."""
    strings = [str(text) for text in snapshot["strings"]]
    texts, left = ["\n".join(strings)], _BIGGEST_RESULT
    for document in snapshot["documents"]:
        nodes = document["nodes"]
        if _has_password(nodes, strings):
            raise NoScreenshot("The page has a filled password field.")
        # A secret may be spread over adjacent elements.
        pieces = [strings[index] for kind, index in zip(nodes["nodeType"], nodes["nodeValue"], strict=True) if kind == 3]
        left -= sum(map(len, pieces))
        if left < 0:  # many nodes may have the same text
            raise NoScreenshot("The page is too big to be checked for secrets.")
        texts.append("".join("".join(pieces).split()))
    for secret in secrets:
        if len(secret) >= SHORTEST_SECRET and any(form in text for form in _forms(secret) for text in texts):
            raise NoScreenshot("The page contains a secret of the run.")


def _forms(secret: str) -> set[str]:
    return {secret, "".join(secret.split()), quote(secret, safe=""), base64.b64encode(secret.encode()).decode()} - {""}


def _has_password(nodes: dict[str, Any], strings: list[str]) -> bool:
    fields = dict(zip(nodes["inputValue"]["index"], nodes["inputValue"]["value"], strict=True))
    # Check each text once, however many attributes have it.
    types = {index for index, text in enumerate(strings) if text.lower() == "type"}
    passwords = {index for index, text in enumerate(strings) if text.strip().lower() == "password"}
    for node, value in fields.items():
        words = nodes["attributes"][node]
        hidden = any(name in types and text in passwords for name, text in zip(words[::2], words[1::2], strict=True))
        if hidden and value >= 0 and strings[value]:
            return True
    return False


def png(data: bytes) -> bytes:
    """The picture without any other data, in the requested size. Raises NoScreenshot."""
    try:
        kept = list(_chunks(data))
        header = kept[0][1]
        width, height, depth, colour, *rest = struct.unpack(">IIBBBBB", header)
        channels = {2: 3, 6: 4}.get(colour, 0)
        right = (width, height, depth, rest) == (WIDTH, HEIGHT, 8, [0, 0, 0]) and channels
        wanted = HEIGHT * (1 + WIDTH * channels)
        pixels = zlib.decompressobj()
        body = b"".join(content for kind, content in kept if kind == b"IDAT")
        if not right or len(pixels.decompress(body, wanted + 1)) != wanted or not pixels.eof:
            raise ValueError("not the requested size or format")
    except (ValueError, IndexError, struct.error, zlib.error) as error:
        raise NoScreenshot("The browser's picture is damaged.") from error
    written = _MAGIC + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content)) for kind, content in kept
    )
    if len(written) > BIGGEST:
        raise NoScreenshot(f"The picture is larger than {BIGGEST >> 20} MB.")
    return written


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The critical chunks (https://www.w3.org/TR/png-3/#5Chunk-layout), to the end. Raises ValueError."""
    if not data.startswith(_MAGIC):
        raise ValueError("not a PNG")
    at, kind = len(_MAGIC), b""
    while kind != b"IEND":
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        content, checksum = data[at + 8 : at + 8 + length], data[at + 8 + length : at + 12 + length]
        if checksum != struct.pack(">I", zlib.crc32(kind + content)) or (at == len(_MAGIC)) != (kind == b"IHDR"):
            raise ValueError("a damaged chunk")
        at += 12 + length
        if kind in _CHUNKS:
            yield kind, content
    if at != len(data):
        raise ValueError("data after the end")
