"""The pytest plugin: on a laptop, through the gate, and with a real browser in the real sandbox."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest

from infra.deployers.base import Deployment
from infra.deployers.context import Service
from infra.deployers.errors import DeployError
from infra.deployers.isolation import bubblewrap
from infra.deployers.probe import connect_unix
from runs.harness.guest.cc_ci_plugin import App, from_environment
from runs.harness.guest.cc_ci_plugin import Service as Seen
from runs.harness.oidc import Realm, environment
from runs.harness.protocol import Limits, Verdict
from runs.harness.sandbox_gateway import SandboxGateway
from tests.browser.chromium import CHROMIUM, undisturbed
from tests.runs.harness.conftest import INSISTS

pytestmark = pytest.mark.slow(0.5)

ROOT = Path(__file__).parents[3]


def plain_pytest(folder: Path, text: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A recipe's test as plain pytest runs it in a virtual environment that has cc-ci and no other plugin."""
    (folder / "test_it.py").write_text(text)
    env = {"PATH": os.environ["PATH"], "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", ".", "-p", "no:cacheprovider", "-rA"]
    command += ["-p", "runs.harness.guest.cc_ci_plugin", *options, "test_it.py"]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=240)


def test_pytest_finds_the_plugin_where_cc_ci_is_installed() -> None:
    # All of them, as pytest does: a cc_ci.egg-info of an older install may lie in this folder.
    entries = [entry for found in distributions(name="cc-ci") for entry in found.entry_points]
    found = {entry.name: entry for entry in entries if entry.group == "pytest11"}
    assert "cc_ci" in found, "install the project anew: pip install -e ."
    assert callable(found["cc_ci"].load().app)


def test_outside_a_run_the_fixture_says_what_to_type(tmp_path: Path) -> None:
    done = plain_pytest(tmp_path, "def test_a(app): pass\ndef test_b(marker): assert len(marker.value) > 8\n")
    assert done.returncode == 1
    assert "1 passed, 1 error" in done.stdout
    assert "No app is deployed for these tests: run `cc-ci test .` in the recipe's folder" in done.stdout


TESTS = """
import pytest

pytestmark = pytest.mark.extra(covers=["compose.yml"], ports="a-deferred-test")

def test_domain(app):
    assert (app.url, app.domain) == ("http://127.0.0.1:9", "127.0.0.1")

def test_exec(app):
    app.exec("true")

def test_services(app):
    app.services()

def test_browser(browser):
    browser.new_page()
"""


def test_an_address_alone_is_enough_for_the_web_and_the_rest_is_skipped_with_its_reason(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "no-chromium")
    done = plain_pytest(tmp_path, TESTS, "--strict-markers", CC_CI_URL="http://127.0.0.1:9/", CC_CI_CHROMIUM=nowhere)
    assert "1 passed, 3 skipped" in done.stdout, done.stdout
    assert "app.exec is not available: this app was not deployed by cc-ci" in done.stdout
    assert "app.services is not available" in done.stdout
    assert "The fixture `browser` needs Chromium: install it, or set CC_CI_CHROMIUM to its path." in done.stdout


def test_a_chromium_that_does_not_start_fails_and_is_quoted(tmp_path: Path) -> None:
    broken = tmp_path / "chromium"
    broken.write_text("#!/usr/bin/env python3\nraise SystemExit('no display')\n")
    broken.chmod(0o755)
    done = plain_pytest(tmp_path, "def test_browser(browser): pass\n", CC_CI_URL="http://127.0.0.1:9", CC_CI_CHROMIUM=str(broken))
    assert "1 error" in done.stdout
    assert "Chromium did not start (it exited with code 1). Its output:" in done.stdout
    assert "no display" in done.stdout


class _Deployer:
    """A deployment of two services, of which no logs can be had."""

    ssh = 30022

    def address(self) -> None:
        return None

    def state(self) -> Deployment:
        services = [Service("app", 2, 1, 3, "starting", "nginx:1", "secret words"), Service("db", 1, 1)]
        return Deployment(services, "1.0.0+2", True, "f", {"app:22/tcp": self.ssh})

    def logs(self, service: str, lines: int) -> str:
        raise DeployError("not_applicable", "There are no logs here.")

    def execute(self, service: str, command: list[str], timeout: float) -> tuple[int, str]:
        return 0, f"{service} {command} {timeout}"


def test_what_runs_is_read_through_the_gate(tmp_path: Path) -> None:
    deployer: Any = _Deployer()
    path = tmp_path / "gate.sock"
    app = App("", "", str(path), 1)
    with SandboxGateway(path, deployer, "example.com"):
        assert app.services() == {
            "app": Seen("app", wanted=2, running=1, health="starting", image="nginx:1"),
            "db": Seen("db", wanted=1, running=1, health="", image=""),
        }
        assert (app.version, app.ports) == ("1.0.0+2", {"app:22/tcp": 30022})
        assert app.exec(["ls"], timeout=5).output == "app ['ls'] 5"
        with pytest.raises(pytest.skip.Exception, match=r"app.logs is not available: There are no logs here."):
            app.logs()
        with pytest.raises(pytest.fail.Exception, match="The harness refused: invalid request: the service is not a name"):
            app.exec("ls", service="--privileged")


def test_a_published_port_is_reached_through_the_gate_and_no_other(tmp_path: Path) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    deployer: Any = _Deployer()
    deployer.ssh = listener.getsockname()[1]
    path = tmp_path / "gate.sock"
    app = App("", "", str(path), 1)
    with listener, SandboxGateway(path, deployer, "example.com"):
        with app.connect("app:22/tcp") as stream:
            there, _ = listener.accept()
            there.sendall(b"SSH-2.0\nmore")
            with stream.makefile("rb") as words:
                assert words.readline() == b"SSH-2.0\n"
            stream.sendall(b"hello")
            assert there.recv(5) == b"hello"
            there.close()
        for name in ("app:80/tcp", "22", "127.0.0.1:1"):
            with pytest.raises(pytest.fail.Exception, match="this deployment does not publish"):
                app.connect(name)
        listener.close()
        with pytest.raises(pytest.fail.Exception, match="nothing listens at app:22/tcp"):
            app.connect("app:22/tcp")


def test_what_the_server_lends_and_what_it_does_not(tmp_path: Path) -> None:
    text = "def test_login(oidc): assert (oidc.client_id, oidc.password) == ('cc-ci', 'secret'), oidc\n"
    realm = environment(Realm("ccci-0", "https://id.example.org/realms/ccci-0", "cc-ci", "hidden", "ada", "secret"))
    assert "1 passed" in plain_pytest(tmp_path, text, **realm).stdout
    done = plain_pytest(tmp_path, text, **realm | {"OIDC_CLIENT_ID": "other"})
    assert "1 failed" in done.stdout and "Oidc(issuer=" in done.stdout and "hidden" not in done.stdout
    done = plain_pytest(tmp_path, text)
    assert done.returncode == 0 and "not run: no OIDC provider" in done.stdout


@pytest.mark.parametrize(
    "line",
    [
        '{"do": "exec", "command": ["ls"], "timeout": NaN}',
        '{"do": "exec", "command": ["ls"], "timeout": true}',
        '{"do": "exec", "command": "ls"}',
        '{"do": "exec", "command": []}',
        '{"do": "exec", "command": ["ls", 3]}',
        '{"do": "exec", "command": ["l\\u0000s"]}',
        '{"do": "exec", "command": ["ls"], "service": "../app"}',
        '{"do": "exec", "command": ["ls"], "service": ["app"]}',
        '{"do": "logs", "lines": Infinity}',
        '{"do": "logs", "lines": "5"}',
        '{"do": "logs", "lines": 1' + "0" * 400 + "}",
        '{"do": ["state"]}',
        "[" * 60_000,
        "3",
        "null",
    ],
)
def test_the_gate_checks_what_strangers_write(tmp_path: Path, line: str) -> None:
    deployer: Any = _Deployer()
    path = tmp_path / "gate.sock"
    with SandboxGateway(path, deployer, "example.com"), connect_unix(str(path), 5) as stream:
        stream.sendall(line.encode() + b"\n")
        answer = json.loads(stream.makefile().readline())
    assert answer["error"].startswith("invalid request")


def test_the_app_that_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC_CI_URL", "http://127.0.0.1:8080/")
    monkeypatch.setenv("CC_CI_DOMAIN", "web.example.com")
    app = from_environment()
    assert (app.url, app.domain) == ("http://127.0.0.1:8080", "web.example.com")
    monkeypatch.delenv("CC_CI_DOMAIN")
    assert from_environment().domain == "127.0.0.1"


BROWSING = """
import pytest

def test_a_page(browser, app):
    page = browser.new_page()
    assert page.goto("/").status == 200
    assert page.url == f"https://{app.domain}/"
    assert page.get_by_text("Hello from the process recipe").is_visible()
    page.set_content("<button onclick=\\"document.title='pressed'; document.cookie='a=1'\\">Press</button>")
    page.get_by_role("button", name="Press").click()
    assert page.title() == "pressed"
    assert len(page.screenshot()) > 1000

def test_another_page_knows_nothing_of_it(browser):
    page = browser.new_page()
    page.goto("/")
    assert page.context.cookies() == []

def test_the_outside_is_not_there(browser):
    with pytest.raises(Exception, match="ERR_"):
        browser.new_page().goto("http://192.0.2.1/", timeout=5000)
"""


def linked(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk
        shutil.copy2(source, target)


def need_browser() -> None:
    pytest.importorskip("playwright")
    if not Path(CHROMIUM).exists():
        if os.environ.get("CI") == "true":
            pytest.fail(f"There is no Chromium at {CHROMIUM}.")
        pytest.skip(f"There is no Chromium at {CHROMIUM}.")


@pytest.mark.browser
@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_real_browser_in_the_sandbox(
    elsewhere: bool, make_recipe: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_browser()
    if elsewhere:  # as Chrome has a folder of its own, and by a link
        shutil.copytree("/usr/lib/chromium", tmp_path / "opt" / "chrome", copy_function=linked)
        (tmp_path / "browser").symlink_to(tmp_path / "opt" / "chrome" / "chromium")
        monkeypatch.setenv("CC_CI_CHROMIUM", f"{tmp_path}/browser")
    limits = Limits(memory_mb=1024, processes=256)
    results = run(make_recipe({"test_browsing": BROWSING}), limits=limits, trusted=False, stages=["custom"])
    assert results.verdict is Verdict.PASSED, results.stages[-1]
    assert [case.status for case in results.stages[-1].cases] == ["passed"] * 3


SIGNING_IN = """
def test_a_browser_signs_in(browser, app):
    page = browser.new_page()
    page.goto("/")
    assert page.url == f"https://{app.domain}/login"
    page.get_by_label("Name").fill("ada")
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("/")
    assert page.title() == "Welcome"
    assert page.evaluate("window.isSecureContext")
"""
LED_OVER = """
def test_a_browser_that_comes_by_http_is_led_over(browser, app):
    page = browser.new_page()
    page.goto(f"http://{app.domain}/")
    assert page.url == f"https://{app.domain}/login"
"""
ASKING = """
def test_requests_sign_in(app):
    assert "Sign in" in app.get("/").text
    answer = app.post("/login", data={"who": "ada"}, headers={"Origin": f"https://{app.domain}"})
    assert (answer.status_code, "Welcome" in answer.text) == (200, True)

def test_what_the_app_says_to_others(app):
    assert app.post("/login", data={"who": "ada"}).status_code == 403
    answer = app.get("/", headers={"X-Forwarded-Proto": "http"}, allow_redirects=False)
    assert answer.headers["Location"] == f"https://{app.domain}/"
"""


@pytest.mark.browser
@pytest.mark.parametrize("sandboxed", [True, False])
def test_an_app_that_insists_on_https_is_reached_as_by_its_users(
    sandboxed: bool, make_recipe: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_browser()
    if not sandboxed:
        monkeypatch.setenv("CC_CI_CHROMIUM", undisturbed(tmp_path))
        monkeypatch.setattr(bubblewrap, "available", lambda: bubblewrap.Availability(False, "Not in this test."))
    limits = Limits(memory_mb=1024, processes=256)
    more = {"test_led_over": LED_OVER} if sandboxed else {}  # else there is one port, and no name
    recipe = make_recipe({"test_asking": ASKING, "test_signing_in": SIGNING_IN, **more}, INSISTS)
    results = run(recipe, limits=limits, stages=["install", "custom"], picture=True)
    assert results.verdict is Verdict.PASSED, results.stages[-1]
    assert [case.status for case in results.stages[-1].cases] == ["passed"] * (3 + len(more))
    assert any(artefact.name == "picture.png" for artefact in results.artefacts) is sandboxed


def test_a_redirection_to_another_host_is_not_asked_of_the_app(tmp_path: Path) -> None:
    text = """
import pytest, requests
from runs.harness.guest.cc_ci_plugin import App
from runs.harness.guest.cc_ci_plugin.deployed import _Session

@pytest.mark.parametrize(("location", "target"), [
    ("/login", "/login"),
    ("https://app.example.com/login?a=b", "http://127.0.0.1:9/login?a=b"),
    ("http://APP.example.com:80/", "http://127.0.0.1:9/"),
    ("https://app.example.com:8443/", "https://app.example.com:8443/"),
    ("https://sso.example.com/", "https://sso.example.com/"),
    ("//app.example.com/x", "http://127.0.0.1:9/x"),
])
def test_where_it_leads(location, target):
    answer = requests.Response()
    answer.status_code, answer.url, answer.headers["Location"] = 302, "http://127.0.0.1:9/a", location
    assert _Session("http://127.0.0.1:9", "app.example.com").get_redirect_target(answer) == target

def test_whose_host_is_named():
    session = _Session("http://127.0.0.1:9", "app.example.com")
    for url, named in (("http://127.0.0.1:9/x", True), ("http://sso.example.com/", False)):
        request = requests.Request("GET", url, headers={"Host": "app.example.com"}).prepare()
        answer = requests.Response()
        answer.request = requests.Request("GET", "http://127.0.0.1:9/").prepare()
        session.rebuild_auth(request, answer)
        assert ("Host" in request.headers) is named
"""
    assert "7 passed" in plain_pytest(tmp_path, text).stdout
