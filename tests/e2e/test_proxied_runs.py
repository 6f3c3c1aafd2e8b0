"""Whole runs of the harness through the real Traefik, all at once, since each waits for most of its time."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from infra.deployers.probe import Address, probe
from runs.harness.protocol import Limits, Results, RunFolder, Source, Verdict
from tests.docker import need_swarm
from tests.e2e.test_swarm_runs import harness, left, make
from tests.e2e.traefik import traefik

pytestmark = [pytest.mark.docker, pytest.mark.xdist_group("proxied")]

_RECIPE = """
version: "3.8"
services:
  app:
    image: cc-ci-test/busybox:1
    command: ["httpd", "-f", "-p", "8080", "-h", "/www"]
    networks: [proxy]
    configs: [{source: index, target: /www/index.html}]
    deploy:
      labels:
        - "traefik.enable=true"
        - "traefik.http.services.${STACK_NAME}.loadbalancer.server.port=8080"
        - "traefik.http.routers.${STACK_NAME}.rule=Host(`RULE`)"
        - "traefik.http.routers.${STACK_NAME}.entrypoints=ENTRY"
TLS
networks:
  proxy:
    external: true
configs:
  index:
    name: ${STACK_NAME}_index_v1
    file: index.html
"""
#: The same app on both entrypoints, which leads to https whoever did not come by it, as the proxy says.
_INSISTS = """
version: "3.8"
services:
  app:
    image: cc-ci-test/busybox:1
    command: nc -ll -p 8080 -e sh /serve.sh
    networks: [proxy]
    configs: [{source: serve, target: /serve.sh}]
    deploy:
      labels:
        - "traefik.enable=true"
        - "traefik.http.services.${STACK_NAME}.loadbalancer.server.port=8080"
        - "traefik.http.routers.${STACK_NAME}.rule=Host(`RULE`)"
        - "traefik.http.routers.${STACK_NAME}.entrypoints=web"
        - "traefik.http.routers.${STACK_NAME}-tls.rule=Host(`RULE`)"
        - "traefik.http.routers.${STACK_NAME}-tls.entrypoints=web-secure"
        - "traefik.http.routers.${STACK_NAME}-tls.tls=true"
networks:
  proxy:
    external: true
configs:
  serve:
    name: ${STACK_NAME}_serve_v1
    file: serve.sh
"""
_SERVE = """
read -r method path version
while read -r name value && [ "${name%:}" != "$name" ]; do
    case $name in Host:) host=${value%?} ;; X-Forwarded-Proto:) scheme=${value%?} ;; esac
done
answer() { printf 'HTTP/1.1 %s\\r\\n%s\\r\\nContent-Length: %s\\r\\nConnection: close\\r\\n\\r\\n%s' "$1" "$2" "${#3}" "$3"; }
case $scheme$path in
    https/nothing) answer "404 Not Found" "X-A: b" "not here" ;;
    https/*) answer "STATUS" "X-A: b" "the app behind the proxy" ;;
    *) answer "301 Moved" "Location: https://$host$path" "" ;;
esac
"""
_TLS = '        - "traefik.http.routers.${STACK_NAME}.tls.certresolver=${LETS_ENCRYPT_ENV}"'
_TEST = """
def test_through_the_proxy(app):
    answer = app.get("/")
    assert (answer.status_code, answer.text) == (200, "the app behind the proxy")


def test_the_apps_own_404_is_no_proxys(app):
    answer = app.get("/nothing", wait=0)
    assert answer.status_code == 404 and answer.text.strip() != "404 page not found"


def test_the_domain_is_the_runs_own(app):
    assert app.domain.startswith("ccci-") and app.domain in app.url
"""


class Ended(NamedTuple):
    folder: RunFolder
    results: Results


class Ran(NamedTuple):
    host: str
    runs: dict[str, Ended]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    need_swarm()
    tmp = tmp_path_factory.mktemp("proxied")
    with traefik(tmp) as host:
        asked = {
            "plain": _ask(tmp, f"http://{host}", "web", "${DOMAIN}"),
            "secure": _ask(tmp, f"https://{host}", "web-secure", "${DOMAIN}", tls=True, trusted=False),
            "other": _ask(tmp, f"http://{host}", "web", "sub.${DOMAIN}", settle=60),
            "port": _ask(tmp, f"http://{host}:81", "web-secure", "${DOMAIN}", tls=True, settle=60),
            "astray": _ask(tmp, f"http://{host}:82", "web-secure", "${DOMAIN}", tls=True, settle=60),
            "insists": _ask(tmp, f"http://{host}", "200 OK", "${DOMAIN}", _INSISTS),
            "insists-secure": _ask(tmp, f"https://{host}", "200 OK", "${DOMAIN}", _INSISTS),
            "broken": _ask(tmp, f"http://{host}", "500 Broken", "${DOMAIN}", _INSISTS, settle=60),
            "down": _ask(tmp, f"http://{host}:9", "web", "${DOMAIN}", settle=60),
            "stranger": _ask(tmp, f"http://{host}", "web", "ci.example.com", trusted=False),
        }
        started: dict[str, subprocess.Popen[str]] = {}
        try:
            for name, folder in asked.items():
                started[name] = harness("run", folder.path)
            for process in started.values():
                process.wait(800)
        finally:
            for process in started.values():
                if process.poll() is None:
                    process.terminate()
                    process.wait(30)
        runs = {name: Ended(folder, results) for name, folder in asked.items() if (results := folder.results())}
        assert set(runs) == set(asked)
        yield Ran(host, runs)


def _ask(
    tmp: Path, proxy: str, entry: str, rule: str, recipe_text: str = _RECIPE, tls: bool = False, settle: int = 300, **changes: Any
) -> RunFolder:
    number = len(list(tmp.iterdir()))
    recipe = tmp / f"recipe-{number}"
    (recipe / "tests").mkdir(parents=True)
    text = recipe_text.replace("ENTRY", entry).replace("RULE", rule).replace("TLS", _TLS if tls else "")
    (recipe / "compose.yml").write_text(text)
    (recipe / ".env.sample").write_text("LETS_ENCRYPT_ENV=production\n")
    (recipe / "serve.sh").write_text(_SERVE.replace("STATUS", entry))
    (recipe / "index.html").write_text("the app behind the proxy")
    (recipe / "tests" / "test_page.py").write_text(_TEST)
    limits = Limits(run_seconds=600, settle_seconds=settle)
    return make(tmp, "web", source=Source(url=str(recipe)), proxy_url=proxy, limits=limits, **changes)


#: Those behind the proxy's https, at once or by a redirection.
_SECURE = ("secure", "insists", "insists-secure")


@pytest.mark.parametrize("name", ["plain", *_SECURE])
def test_a_run_reaches_its_app_through_traefik_and_sees_its_answer_stop(name: str, ran: Ran) -> None:
    folder, results = ran.runs[name]
    assert results.verdict is Verdict.PASSED, results.reason
    assert [(stage.name, stage.status, len(stage.cases)) for stage in results.stages] == [
        ("install", "passed", 1),
        ("custom", "passed", 3),
    ]
    assert results.teardown.clean and left(folder) == []
    # Traefik lives on and knows the domain no more.
    address = Address(ran.host, 443, tls=True, proxied=True) if name in _SECURE else Address(ran.host, 80, proxied=True)
    until = time.monotonic() + 240  # it looks at the swarm once a second
    answer = None
    while (answer is None or answer.status >= 500) and time.monotonic() < until:
        answer = probe(address, f"ccci-{folder.request().run_id[:12]}.localhost", timeout=1)
    assert answer and (answer.status, answer.body.strip()) == (404, "404 page not found")
    assert not answer.from_app(address)


@pytest.mark.parametrize(
    ("name", "verdict", "words"),
    [
        ("other", Verdict.FAILED, "none of its routers matches that host. Check the labels traefik.http.routers.*.rule"),
        # Beside another port than 80, 443 is anybody's: it is not asked, though the proxy has it here.
        ("port", Verdict.ERRORED, "and nothing answers there. Set CC_CI_PROXY_URL to its https:// address."),
        ("astray", Verdict.ERRORED, ":444/, and nothing answers there. Set CC_CI_PROXY_URL to its https:// address."),
        ("broken", Verdict.FAILED, "which returned 500"),
        ("down", Verdict.ERRORED, "cannot be reached"),
        ("stranger", Verdict.FAILED, "Host(`ci.example.com`) is another host; write Host(`${DOMAIN}`)"),
    ],
)
def test_a_run_that_the_proxy_does_not_lead_to_its_app_says_why(name: str, verdict: Verdict, words: str, ran: Ran) -> None:
    folder, results = ran.runs[name]
    assert results.verdict is verdict, results.reason
    assert words in results.reason
    assert results.teardown.clean and left(folder) == []
