"""Pictures of real pages by the real Chromium in the real sandbox, and what gives none."""

from __future__ import annotations

import base64
import json
import os
import shutil
import struct
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.deployers.context import Context
from infra.deployers.isolation import cgroups
from infra.deployers.process.deployer import ProcessDeployer
from runs.harness import browser, screenshot
from runs.harness.browser import chromium, needs
from runs.harness.screenshot import HEIGHT, WIDTH, NoScreenshot, png
from tests.runs.harness.conftest import INSISTS

RECIPE = Path(__file__).resolve().parents[2] / "data" / "recipes" / "process-web"
SECRET = "kq7vXw2mTz"

real = pytest.mark.browser


@pytest.fixture
def shoot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Deploys process-web with this page, and takes the picture: the reason why there is none."""
    if not chromium():
        if os.environ.get("CI") == "true":
            pytest.fail("There is no Chromium here.")
        pytest.skip("There is no Chromium here.")
    monkeypatch.setattr(screenshot, "SECONDS", 300.0)
    up: list[ProcessDeployer] = []

    def shoot(
        page: str | None = None, secrets: tuple[str, ...] = (SECRET,), files: Mapping[str, str] | None = None, **given: Any
    ) -> str:
        checkout, work = tmp_path / "recipe", tmp_path / "work"
        shutil.copytree(RECIPE, checkout)
        work.mkdir()
        if page is not None:
            (checkout / "www" / "index.html").write_text(f"<!doctype html><meta charset=utf-8>{page}")
        for name, text in (files or {}).items():
            (checkout / name).write_text(text)
        run_id = uuid.uuid4().hex
        context = Context(run_id, "test", "web", checkout, work, domain=f"ccci-{run_id[:12]}.localhost")
        up.append(ProcessDeployer(context))
        up[-1].deploy()
        up[-1].settle()
        reason = screenshot.take(context, up[-1], tmp_path, secrets, **given)
        assert list(cgroups.existing(f"{context.stack}-picture")) == []
        assert not list(work.glob("picture*"))
        return reason

    yield shoot
    for deployer in up:
        assert deployer.teardown() == []


@real
def test_a_picture_of_the_app(shoot: Callable[..., str], tmp_path: Path) -> None:
    assert shoot() == ""
    data = (tmp_path / "picture.png").read_bytes()
    assert png(data) == data
    assert 1000 < len(data) < screenshot.BIGGEST
    assert data[16:24] == struct.pack(">II", WIDTH, HEIGHT)


@real
def test_the_picture_is_of_the_page_behind_a_redirection_to_https(shoot: Callable[..., str]) -> None:
    behind = {name: text.replace("PAGE", f"<p>{SECRET}</p>") for name, text in INSISTS.items()}
    assert shoot(files=behind) == "The page contains a secret of the run."


SHOWN = {
    "spread": f"<p>{SECRET[:4]}<b>{SECRET[4:7]}</b>\n{SECRET[7:]}</p>",
    "value by script": f"<input id=i><script>i.value = '{SECRET[:5]}' + '{SECRET[5:]}'</script>",
    "later": f"<p id=i></p><script>setTimeout(() => i.textContent = '{SECRET[:5]}' + '{SECRET[5:]}', 300)</script>",
    "shadow": f"<p id=i></p><script>i.attachShadow({{mode: 'closed'}}).innerHTML = '{SECRET[:5]}' + '{SECRET[5:]}'</script>",
    "frame": f"<iframe srcdoc='<p>{SECRET}</p>'></iframe>",
}


@real
@pytest.mark.parametrize("how", SHOWN)
def test_a_page_with_a_secret_gives_none(how: str, shoot: Callable[..., str], tmp_path: Path) -> None:
    assert shoot(SHOWN[how]) == "The page contains a secret of the run."
    assert not (tmp_path / "picture.png").exists()


@real
def test_a_filled_password_field_gives_none(shoot: Callable[..., str], tmp_path: Path) -> None:
    page = "<input type=password id=i><script>i.value = 'whatever'</script>"
    assert shoot(page) == "The page has a filled password field."
    assert not (tmp_path / "picture.png").exists()


@real
def test_debians_script_stands_for_its_browser(shoot: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC_CI_CHROMIUM", "/usr/bin/chromium")
    assert shoot() == ""


@real
def test_whatever_the_path_debians_browser_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A test that is given what the sandbox does not have, or cannot run, would fail, and the recipe is not why."""
    if not Path("/usr/lib/chromium/chromium").exists():
        pytest.skip("There is no Chromium of Debian's here.")
    (tmp_path / "chromium").write_text("#!/bin/sh\n")
    (tmp_path / "chromium").chmod(0o755)
    (tmp_path / "link").symlink_to("/usr/bin/chromium")
    for path, named in (("/bin:/usr/bin", ""), (f"{tmp_path}:/usr/bin", ""), ("/usr/bin", f"{tmp_path}/link")):
        monkeypatch.setenv("PATH", path)
        monkeypatch.setenv("CC_CI_CHROMIUM", named)
        assert chromium() == "/usr/lib/chromium/chromium"
    monkeypatch.setenv("CC_CI_CHROMIUM", f"{tmp_path}/chromium")
    assert chromium() == f"{tmp_path}/chromium", "what is named is taken as it is"


def test_of_a_folder_that_is_not_the_browsers_own_nothing_else_is_shown(tmp_path: Path) -> None:
    """Whose home it may be: a stranger's page is opened there."""
    program = tmp_path / "chrome"
    program.touch()
    (tmp_path / "game.pak").touch()
    fonts = {"/etc/fonts": Path("/etc/fonts")} if Path("/etc/fonts").exists() else {}
    assert needs(str(program)) == {**fonts, str(program): program}
    (tmp_path / "resources.pak").touch()
    assert needs(str(program)) == {**fonts, str(tmp_path): tmp_path}
    assert needs("/usr/lib/chromium/chromium") == fonts
    for wide in ("/", "/tmp", "/opt/cc-ci", "/opt"):  # where it would hide, or show, what is not its own
        with mock.patch.object(browser, "_RESOURCES", ("",)):  # as if they were there
            assert needs(f"{wide}/chrome") == fonts


@real
def test_an_empty_login_form_a_dialog_and_a_short_secret_are_no_reason(shoot: Callable[..., str]) -> None:
    page = "<form><input name=user value=admin><input type=password></form><script>alert('hello')</script>"
    assert shoot(page, (SECRET, "admin")) == ""


@real
def test_a_page_that_never_rests_ends_in_time(shoot: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screenshot, "SECONDS", 3.0)
    started = time.monotonic()
    reason = shoot("<script>for (;;) ;</script>")
    assert reason == "The page could not be captured within 3 s."
    assert time.monotonic() - started < 200  # it would go on for ever
    assert not (tmp_path / "picture.png").exists()


@real
def test_it_stops_with_the_run(shoot: Callable[..., str]) -> None:
    class Cancelled(Exception):
        pass

    def check() -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        shoot(check=check)


@real
def test_a_page_that_is_not_there_says_why(shoot: Callable[..., str]) -> None:
    assert "could not load the page" in shoot("<script>1</script>", path=":1/")


def test_no_browser_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC_CI_CHROMIUM", str(tmp_path / "none"))
    context = Context("0" * 32, "test", "web", tmp_path, tmp_path)
    reason = screenshot.take(context, ProcessDeployer(context), tmp_path, ())
    assert reason == "There is no Chromium on this machine."


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


HEADER = chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 2, 0, 0, 0))
PIXELS = chunk(b"IDAT", zlib.compress(bytes(HEIGHT * (1 + 3 * WIDTH))))
MAGIC, END = b"\x89PNG\r\n\x1a\n", chunk(b"IEND", b"")
GOOD = MAGIC + HEADER + PIXELS + END


def test_what_is_no_picture_is_left_out_of_it() -> None:
    assert png(GOOD) == GOOD
    assert png(MAGIC + HEADER + chunk(b"tEXt", b"a\0b") + PIXELS + END) == GOOD


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GIF89a",
        GOOD[:-1],
        GOOD + b"<script>",
        GOOD[:40] + b"\0" + GOOD[41:],
        MAGIC + PIXELS + END,
        MAGIC + HEADER + END,
        MAGIC + HEADER + HEADER + PIXELS + END,
        MAGIC + chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)) + PIXELS + END,
        MAGIC + HEADER + chunk(b"IDAT", zlib.compress(bytes(64 << 20))) + END,
        MAGIC + HEADER + chunk(b"IDAT", b"x") + END,
    ],
)
def test_a_damaged_or_hostile_picture_is_none(data: bytes) -> None:
    with pytest.raises(NoScreenshot, match="damaged"):
        png(data)


def test_one_that_is_too_big_is_none() -> None:
    noise = zlib.compress(os.urandom(HEIGHT * (1 + 3 * WIDTH)))
    with pytest.raises(NoScreenshot, match="larger than 2 MB"):
        png(MAGIC + HEADER + chunk(b"IDAT", noise) + END)


_NODES = {"nodeType": [], "nodeValue": [], "attributes": [], "inputValue": {"index": [], "value": []}}
_SNAPSHOT = {"strings": [], "documents": [{"nodes": _NODES}]}
_RESULT = {"picture": base64.b64encode(GOOD).decode(), "snapshots": [_SNAPSHOT, _SNAPSHOT]}


def test_a_result_is_believed_when_all_of_it_is_there() -> None:
    assert screenshot._checked(json.dumps(_RESULT).encode(), [SECRET]) == GOOD
    for key in _RESULT:
        with pytest.raises(NoScreenshot):
            screenshot._checked(json.dumps({**_RESULT, key: None}).encode(), [SECRET])
    shown = {**_SNAPSHOT, "strings": ["href", f"/?key={SECRET}"]}
    for snapshots in ([shown, _SNAPSHOT], [_SNAPSHOT, shown]):
        with pytest.raises(NoScreenshot, match="a secret of the run"):
            screenshot._checked(json.dumps({**_RESULT, "snapshots": snapshots}).encode(), [SECRET])
    with pytest.raises(NoScreenshot, match="result is invalid"):
        screenshot._checked(json.dumps({**_RESULT, "snapshots": [_SNAPSHOT]}).encode(), [SECRET])


def test_texts_that_many_nodes_share_are_not_added_up() -> None:
    nodes = {**_NODES, "nodeType": [3] * 17, "nodeValue": [0] * 17}
    snapshot = {"strings": ["a" * (1 << 20)], "documents": [{"nodes": nodes}]}
    with pytest.raises(NoScreenshot, match="too big to be checked for secrets"):
        screenshot._checked(json.dumps({**_RESULT, "snapshots": [_SNAPSHOT, snapshot]}).encode(), [SECRET])


def test_attributes_that_many_nodes_share_are_looked_at_in_time() -> None:
    def seconds(many: int) -> float:
        fields = {"index": [0] * many, "value": [-1] * many}
        nodes = {**_NODES, "attributes": [[0, 0] * many], "inputValue": fields}
        snapshot = {"strings": ["a" * (1 << 20)], "documents": [{"nodes": nodes}]}
        given = json.dumps({**_RESULT, "snapshots": [snapshot, snapshot]}).encode()
        started = time.process_time()
        assert screenshot._checked(given, [SECRET]) == GOOD
        return time.process_time() - started

    assert seconds(20_000) < 100 * seconds(20)


@pytest.mark.parametrize(("words", "filled"), [("type password", True), ("TYPE  Password", True), ("type text", False)])
def test_a_filled_password_field_is_known_by_its_type(words: str, filled: bool) -> None:
    nodes = {**_NODES, "attributes": [[0, 1]], "inputValue": {"index": [0], "value": [2]}}
    name, _, kind = words.partition(" ")
    snapshot = {"strings": [name, kind, "whatever"], "documents": [{"nodes": nodes}]}
    data = json.dumps({**_RESULT, "snapshots": [snapshot, snapshot]}).encode()
    if not filled:
        assert screenshot._checked(data, [SECRET]) == GOOD
        return
    with pytest.raises(NoScreenshot, match="filled password field"):
        screenshot._checked(data, [SECRET])


@given(st.one_of(st.binary(max_size=50), st.recursive(st.none() | st.text(max_size=5) | st.integers(), st.lists).map(json.dumps)))
def test_any_result_gives_a_reason(data: bytes | str) -> None:
    with pytest.raises(NoScreenshot):
        screenshot._checked(data if isinstance(data, bytes) else data.encode(), [SECRET])
