"""A picture of the app while it is up, by a headless Chromium in the sandbox. None is no failure.

The page is a stranger's, and so is the browser once it has been there: what comes out is checked here. A page in which a secret
of the run stands, or a filled password field, gives no picture.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import shutil
import struct
import subprocess
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from infra.deployers import sandbox
from infra.deployers.base import Context, Deployer, DeployError
from runs.harness.gate import Gate

NAME = "picture.png"
WIDTH, HEIGHT = 1280, 800
BIGGEST = 2 << 20
SECONDS = 20.0
SHORTEST_SECRET = 6
_BIGGEST_RESULT = 16 << 20
_INSIDE = Path(__file__).parent / "inside"
_GATE = "/run/cc-ci/gate.sock"
_MAGIC = b"\x89PNG\r\n\x1a\n"
#: The chunks that make the picture; others can carry anything.
_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")


class NoPicture(Exception):
    """There is none; the message says why."""


def take(
    context: Context,
    deployer: Deployer,
    folder: Path,
    secrets: Sequence[str],
    path: str = "/",
    check: Callable[[], None] = lambda: None,
) -> str:
    """Take a picture of the app's page `path` into `folder`/picture.png: empty when it is there, else the reason why not.

    At most 20 seconds. `secrets`: what may not be seen (those of 6 characters and more). Raises only what `check` raises, with
    nothing left running. Call it from the main thread: the browser ends with the calling one.
    """
    try:
        _write(folder / NAME, _checked(_shoot(context, deployer, path, check), secrets))
    except NoPicture as reason:
        return str(reason)
    except (OSError, DeployError, subprocess.SubprocessError) as error:
        return f"The browser could not be used: {error}"
    return ""


def chromium() -> str:
    """The program: CC_CI_CHROMIUM, else the one of the machine; empty when there is none."""
    if named := os.environ.get("CC_CI_CHROMIUM"):
        return named if os.access(named, os.X_OK) else ""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or ""
    # Debian's is a script that reads files which the sandbox has not; the program lies beside its parts.
    real = Path("/usr/lib/chromium/chromium")
    return str(real) if found == "/usr/bin/chromium" and real.exists() else found


def _shoot(context: Context, deployer: Deployer, path: str, check: Callable[[], None]) -> bytes:
    program = chromium()
    if not program:
        raise NoPicture("There is no Chromium on this machine.")
    if not sandbox.available().ok:
        raise NoPicture("A browser looks at a stranger's page in a sandbox only, and there is none here.")
    if not deployer.address():
        raise NoPicture("The recipe has no web port.")
    gate, nothing = context.work / "picture.sock", context.work / "picture-source"
    nothing.mkdir(exist_ok=True)
    place = sandbox.Sandbox(
        f"{context.stack}-picture",
        bubblewrap=True,
        mounts={"/recipe": nothing, _GATE: gate, f"{sandbox.PROGRAMS}/plugins": _INSIDE, **_needs(program)},
        hosts=[context.domain] if context.domain else [],
        memory_mb=max(context.memory_mb, 1024),
        processes=context.processes,
        disk_mb=context.disk_mb,
    )
    result_out, result_in = os.pipe()
    collected: list[bytes] = []
    with Gate(gate, deployer, context.domain):
        try:
            box = place.start("runner.py", _config(place, program, context, path, result_in), (result_in,))
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
        raise NoPicture(f"The page gave no picture within {SECONDS:g} s.")
    return b"".join(collected)


def _needs(program: str) -> dict[str, Path]:
    """What the browser wants beside /usr: fonts, and its own folder when it lies elsewhere."""
    wanted = {"/etc/fonts": Path("/etc/fonts")}
    real = Path(program).resolve()
    if not real.is_relative_to("/usr"):
        wanted[str(real.parent)] = real.parent
    return {inside: outside for inside, outside in wanted.items() if outside.exists()}


def _config(place: sandbox.Sandbox, program: str, context: Context, path: str, result_fd: int) -> dict[str, object]:
    home = place.home
    driver = place.where(f"{sandbox.PROGRAMS}/plugins") + "/photograph.py"
    real = str(Path(program).resolve())
    return {
        "command": [sandbox.interpreter(), "-I", driver, real, "{url}" + path, f"{home}/chromium", f"{home}/picture.json"],
        "env": place.environment(),
        "source": place.where("/recipe"),
        "home": home,
        "host": context.domain,
        "ports": [80, 0] if context.domain else [0],
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
    """Nobody needs what the browser prints, but a full pipe would stop it."""
    assert box.stdout
    while box.stdout.read1(1 << 16):  # type: ignore[attr-defined]
        pass


def _checked(data: bytes, secrets: Sequence[str]) -> bytes:
    """The picture out of a result that anybody may have written. Raises NoPicture."""
    if not data:
        raise NoPicture("The browser did not start, or was ended.")
    if len(data) > _BIGGEST_RESULT:
        raise NoPicture("The page is too big to be looked through.")
    try:
        result = json.loads(data)
        if error := result.get("error"):
            raise NoPicture(f"No picture: {_printable(str(error))}.")
        picture = base64.b64decode(result["picture"], validate=True)
        snapshots = list(result["snapshots"])
        if len(snapshots) != 2:
            raise ValueError("not looked at twice")
        for snapshot in snapshots:
            _look(snapshot, secrets)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, MemoryError, binascii.Error) as error:
        raise NoPicture("The browser's answer cannot be read.") from error
    return png(picture)


def _printable(text: str) -> str:
    return "".join(c for c in text if c.isprintable())[:300].rstrip(".")


def _look(snapshot: dict[str, Any], secrets: Sequence[str]) -> None:
    """Raises NoPicture when a secret, or a password that somebody typed, stands in the page."""
    strings = [str(text) for text in snapshot["strings"]]
    texts, left = ["\n".join(strings)], _BIGGEST_RESULT
    for document in snapshot["documents"]:
        nodes = document["nodes"]
        if _has_password(nodes, strings):
            raise NoPicture("No picture: there is a filled password field on the page.")
        # A secret may be spread over elements that stand side by side.
        pieces = [strings[index] for kind, index in zip(nodes["nodeType"], nodes["nodeValue"], strict=True) if kind == 3]
        left -= sum(map(len, pieces))
        if left < 0:  # many nodes may have the same text
            raise NoPicture("The page is too big to be looked through.")
        texts.append("".join("".join(pieces).split()))
    for secret in secrets:
        if len(secret) >= SHORTEST_SECRET and any(form in text for form in _forms(secret) for text in texts):
            raise NoPicture("No picture: a secret of the run stands on the page.")


def _forms(secret: str) -> set[str]:
    return {secret, "".join(secret.split()), quote(secret, safe=""), base64.b64encode(secret.encode()).decode()} - {""}


def _has_password(nodes: dict[str, Any], strings: list[str]) -> bool:
    fields = dict(zip(nodes["inputValue"]["index"], nodes["inputValue"]["value"], strict=True))
    # Each text is looked at once, however many attributes have it.
    types = {index for index, text in enumerate(strings) if text.lower() == "type"}
    passwords = {index for index, text in enumerate(strings) if text.strip().lower() == "password"}
    for node, value in fields.items():
        words = nodes["attributes"][node]
        hidden = any(name in types and text in passwords for name, text in zip(words[::2], words[1::2], strict=True))
        if hidden and value >= 0 and strings[value]:
            return True
    return False


def png(data: bytes) -> bytes:
    """The picture with nothing in it but the picture, and of the size that was asked for. Raises NoPicture."""
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
            raise ValueError("another picture than asked for")
    except (ValueError, IndexError, struct.error, zlib.error) as error:
        raise NoPicture("The browser's picture is damaged.") from error
    written = _MAGIC + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content)) for kind, content in kept
    )
    if len(written) > BIGGEST:
        raise NoPicture(f"The picture has more than {BIGGEST >> 20} MB.")
    return written


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The chunks that count (https://www.w3.org/TR/png-3/#5Chunk-layout), to the end. Raises ValueError."""
    if not data.startswith(_MAGIC):
        raise ValueError("no PNG")
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
        raise ValueError("something behind the end")


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.urandom(6).hex()}")
    temporary.write_bytes(data)
    temporary.replace(path)
