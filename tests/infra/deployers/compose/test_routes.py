"""Labels for the server's proxy: routes to the run's own domain, and everything else that a stranger may try."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.deployers.compose import admission, routes, stackfile
from infra.deployers.compose.routes import (
    bounded,
    lead_over,
    misplaced,
    ports,
    problems,
    rule_problem,
    unruled,
    without_tcp_and_udp,
)
from infra.deployers.context import Bounds
from infra.deployers.errors import DeployError
from infra.deployers.probe import Address, Answer
from tests.infra.deployers.compose.reading import load, write

DOMAIN = "run1.ci.example.com"
STACK = "ccci-0123456789ab"


@pytest.mark.parametrize(
    "rule",
    [
        "Host(`run1.ci.example.com`)",
        'Host("RUN1.ci.example.com")',
        "host(`run1.ci.example.com`, `api.run1.ci.example.com`)",
        "Host(`run1.ci.example.com`) && PathPrefix(`/api`, `/x`)",
        "PathPrefix(`/`) && (Host(`run1.ci.example.com`) || Host(`a.run1.ci.example.com`))",
        "Host(`run1.ci.example.com`)\n  && !(Path(`/a`) || Method(`POST`))",
        "!!Host(`run1.ci.example.com`)",
        "!(!Host(`run1.ci.example.com`) || Path(`/x`))",
        "(((Host(`run1.ci.example.com`)))) && Header(`X-A`, `Host(evil)`)",
        "Host(`run1.ci.example.com`) && !Host(`a.run1.ci.example.com`)",
        r"HostRegexp(`^.+\.run1.ci.example.com$`)",
        r"HostRegexp(`^[a-z0-9-]+\.run1\.ci\.example\.com$`)",
        "HostRegexp(`{sub:[a-z]+}.run1.ci.example.com`)",
        "HostRegexp(`^run1.ci.example.com$`)",
    ],
)
def test_a_rule_about_the_runs_own_domain(rule: str) -> None:
    assert rule_problem(rule, DOMAIN) == ""


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("Host(`ci.example.com`)", "is another host; write Host(`${DOMAIN}`)"),
        ("Host(`evilrun1.ci.example.com`)", "another host"),
        ("Host(`run1.ci.example.com.evil.org`)", "another host"),
        ("Host(`run1.ci.example.com.`)", "another host"),
        ("Host(`*.run1.ci.example.com`)", "another host"),
        ("Host(`run1.ci.example.com`, `ci.example.com`)", "another host"),
        ("Host(`run1.ci.example.com`,`ci.example.com`,)", "is missing a text"),
        ("Host(`run1.ci.example.com`) || Host(`ci.example.com`)", "another host"),
        ("Host(`run1.ci.example.com`) && !Host(`ci.example.com`)", "another host"),
        ("Host(`run1.ci.example.com`) || Path(`/`)", "also matches other hosts"),
        ("Path(`/`) || Host(`run1.ci.example.com`) && Path(`/a`)", "also matches other hosts"),
        ("!Host(`run1.ci.example.com`)", "also matches other hosts"),
        ("!(Host(`run1.ci.example.com`) && Path(`/x`))", "also matches other hosts"),
        ("!(!Host(`run1.ci.example.com`) && Path(`/x`))", "also matches other hosts"),
        ("PathPrefix(`/`)", "also matches other hosts"),
        ("Header(`Host`, `run1.ci.example.com`)", "also matches other hosts"),
        ("HostSNI(`*`)", "HostSNI is for TCP, but this is the rule of an HTTP router; write Host(`${DOMAIN}`)"),
        ("HostSNI(`run1.ci.example.com`)", "HostSNI is for TCP"),
        ("HostSNIRegexp(`^.+\\.run1.ci.example.com$`)", "HostSNIRegexp is for TCP"),
        ("Host(`run1.ci.example.com`) && alpn(`h2`)", "alpn is for TCP"),
        ("HostRegexp(`.*`)", "not limited to the run's own domain"),
        ("HostRegexp(`run1.ci.example.com`)", "not limited"),
        (r"HostRegexp(`^.+run1\.ci\.example\.com$`)", "not limited"),
        (r"HostRegexp(`^evil\.org$|^.+\.run1\.ci\.example\.com$`)", "not limited"),
        (r"HostRegexp(`^(a|b)\.run1.ci.example.com$`)", "not limited"),
        (r"HostRegexp(`^(x\.run1.ci.example.com$)?`)", "not limited"),
        ("HostRegexp(`{a:.*}`)", "not limited"),
        ("HostRegexp(`{a:.*}.{b:.*}.run1.ci.example.com.evil`)", "not limited"),
        ('Host("run1.ci.example.com\\u002eevil")', "the rule cannot be parsed"),
        ("Host(`run1.ci.example.com`) /* && */ || Path(`/`)", "the rule cannot be parsed"),
        ("Host(`run1.ci.example.com`) // comment", "the rule cannot be parsed"),
        ("Host(`run1.ci.\rexample.com`)", "the rule cannot be parsed"),
        ("Host('run1.ci.example.com')", "the rule cannot be parsed"),
        ("Host(`a` + `b`)", "the rule cannot be parsed"),
        ("Host(`run1.ci.example.com`) & Path(`/`)", "the rule cannot be parsed"),
        ("Host(`run1.ci.example.com`) Path(`/`)", "cannot be parsed at 'Path'"),
        ("Host(`run1.ci.example.com`) &&", "is missing a word"),
        ("(Host(`run1.ci.example.com`)", "is missing a )"),
        ("Host()", "is missing a text"),
        ("Host:run1.ci.example.com", "the rule cannot be parsed"),
        ("HostNew(`run1.ci.example.com`)", "unknown matcher HostNew"),
        ("", "the rule is empty"),
        ("Host(``)", "another host"),
        ("!" * 100 + "Host(`run1.ci.example.com`)", "nested too deeply"),
        ("Host(`run1.ci.example.com`)" + " && Path(`/`)" * 1000, "the rule is too long"),
    ],
)
def test_a_rule_that_is_not(rule: str, words: str) -> None:
    assert words in rule_problem(rule, DOMAIN)


def test_a_name_that_is_not_the_stacks_is_told_once() -> None:
    labels = {
        "traefik.http.routers.keycloak.entrypoints": "web-secure",
        "traefik.http.routers.keycloak.rule": f"Host(`{DOMAIN}`)",
        "traefik.http.services.keycloak.loadbalancer.server.port": "80",
        "traefik.http.services.other.loadbalancer.server.port": "80",
        "traefik.http.routers.keycloak.unknown": "1",
    }
    found = list(routes.problems(labels, DOMAIN, STACK))
    assert [key.split(".")[3] for key, _ in found] == ["keycloak", "other"]


def test_without_a_domain_no_host_is_the_runs_own() -> None:
    assert rule_problem("Host(``)", "")
    assert rule_problem("HostRegexp(`^$`)", "")


#: Of the second the C library takes the last 16 bits, which are a port.
NO_PORTS = ["0", "82495", "65536", "4294967376", "1" * 4000, "-1", "80a", " 80", "8e1", "\N{ARABIC-INDIC DIGIT EIGHT}0"]
R, S, M = (f"traefik.http.{kind}.{STACK}" for kind in ("routers", "services", "middlewares"))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        (f"{R}.service", "api@internal", "'api@internal' belongs to the server (@internal)"),
        (f"{R}.middlewares", f"{STACK}-x, auth@file", "'auth@file' belongs to the server (@file)"),
        (f"{R}.middlewares", "keycloak-auth", "is not a name of this stack"),
        (f"{R}.service", "keycloak@swarm", "is not a name of this stack"),
        (f"{R}.service", f"{STACK}9", "is not a name of this stack"),
        (f"{R}.middlewares[0]", "auth@file", "unknown router option"),
        (f"{R}.parentrefs", "other", "unknown router option"),
        (f"{R}.tls.options", "x@file", "belongs to the server"),
        (f"{R}.tls.domains[0].main", "ci.example.com", "a certificate for 'ci.example.com'"),
        (f"{R}.tls.domains[0].sans", f"*.{DOMAIN}, *.example.com", "a certificate for '*.example.com'"),
        ("traefik.HTTP.Routers." + STACK + ".Rule", "Host(`evil`)", "another host"),
        ("traefik.http.routers.keycloak.rule", f"Host(`{DOMAIN}`)", "keycloak is not a name of this stack"),
        ("traefik.http.services.keycloak.loadbalancer.server.port", "80", "keycloak is not a name of this stack"),
        (f"{S}.loadbalancer.server.url", "http://127.0.0.1:8080", "may route to something other"),
        (f"{S}.loadbalancer.servers[0].url", "http://127.0.0.1:8080", "may route to something other"),
        (f"{S}.loadbalancer.healthcheck", "true", "may route to something other"),
        (f"{S}.loadbalancer.healthcheck[0].path", "/", "may route to something other"),
        (f"{S}.loadbalancer.healthcheck .path", "/", "may route to something other"),
        (f"traefik.http.services[.{STACK}.loadbalancer.healthcheck.path", "/", "is not"),
        (f"{S}.loadbalancer.serverstransport", "x@file", "may route to something other"),
        (f"{S}.failover.service", "keycloak", "may route to something other"),
        *((f"{S}.loadbalancer.server.port", port, ": expected a number from 1 to 65535") for port in NO_PORTS),
        (f"{M}.chain.middlewares", f"{STACK}-x", "the middleware chain is not allowed in recipes"),
        (f"{R}.middlewares", ",".join([f"{STACK}-x"] * 21), "21 names, more than the 20 allowed"),
        (f"{M}.errors.query", "{url}" * 4, "the query is longer"),
        (f"{M}.basicauth.users", "a:b, u:$2y$31$" + "x" * 53, "long to check"),
        (f"{M}.basicauth.users", "u:$2b$13$x", "long to check"),
        (f"{M}.digestauth.users", "u:$6$rounds=999999999$x$y", "long to check"),
        (f"{M}.ratelimit.sourcecriterion.requestheadername", "X", "is not allowed in recipes"),
        (f"{M}.errors.service", "api@internal", "belongs to the server"),
        (f"{M}.forwardauth.address", f"http://{STACK}_auth:9000/outpost", "the middleware forwardauth is not allowed in recipes"),
        (f"{S}.loadbalancer.server.scheme", "http://127.0.0.1:80/x?", ": expected http or https or h2c"),
        (f"{S}.loadbalancer.server.scheme", "", "invalid scheme"),
        (f"{M}.replacepathregex.replacement", "$1" * 11, "the replacement is longer"),
        (f"{M}.redirectregex.replacement", "x" * 501, "the replacement is longer"),
        (f"{M}.redirectregex.regex", "(a?){1000}", "too expensive"),
        (f"{M}.stripprefixregex.regex", "(ab){2}", "too expensive"),
        (f"{M}.headers.accessControlAllowOriginListRegex", "a{,100}", "too expensive"),
        (f"{M}.replacepathregex.regex", "a" * 501, "too expensive"),
        (f"{R}.rule", f"Host(`{DOMAIN}`) && PathRegexp(`^/(a?){{1000}}$`)", "too expensive"),
        (f"{M}.headers.customresponseheaders.x", "x" * 4097, "longer than 4096 characters"),
        (f"{M}.retry.attempts", "1000000", "expected 1 to 5"),
        (f"{M}.basicauth.usersFile", "/etc/passwd", "the option usersfile of the middleware basicauth is not allowed in recipes"),
        (f"{M}.ratelimit.redis.endpoints", "socket-proxy:2375", "the option redis.endpoints of the middleware ratelimit"),
        (f"{M}.RateLimit.Redis.tls.ca", "/etc/passwd", "is not allowed in recipes"),
        (f"{M}.ratelimit[0].redis.endpoints", "socket-proxy:2375", "is not allowed in recipes"),
        (f"{M}.inflightreq.redis.endpoints", "socket-proxy:2375", "is not allowed in recipes"),
        (f"{M}.buffering.memresponsebodybytes", "1000000000000", "is not allowed in recipes"),
        (f"{M}.errors.service.x", "api@internal", "is not allowed in recipes"),
        (f"{M}.plugin.x.y", "1", "the middleware plugin is not allowed in recipes"),
        (f"traefik.http.serverstransports.{STACK}.insecureskipverify", "true", "is not allowed in recipes"),
        (f"{R}.rule", "HostSNI(`*`)", "HostSNI is for TCP"),
        (f"{R}.tls.passthrough", "true", "unknown router option"),
        (f"{S}.loadbalancer.proxyprotocol.version", "1", "may route to something other"),
        (f"{M}.inflightconn.amount", "1", "the middleware inflightconn is not allowed in recipes"),
        # Traefik 3.7 takes each of these for the key in plain letters.
        (f"{M}.forwardauth.addreſſ", "http://127.0.0.1:8080/api", "must be plain ASCII"),
        (f"{M}.errors.ſervice", "api@internal", "must be plain ASCII"),
        (f"{M}.basicauth.uſersfile", "/etc/passwd", "must be plain ASCII"),
        (f"traefik.http.middlewareſ.{STACK}.forwardauth.address", "http://127.0.0.1:8080/api", "must be plain ASCII"),
        ("traefi\u212a.http.routers.x.rule", "Host(`evil`)", "must be plain ASCII"),
        ("traefik.tls.stores.default.defaultcertificate.certfile", "/x", "reaches beyond"),
        ("traefik.frontend.rule", "Host:ci.example.com", "unknown proxy label"),
        (" traefik.http.x", "", "unknown proxy label"),
        ("TRAEFIK.http.routers." + STACK + ".rule", "Host(`evil`)", "another host"),
    ],
)
def test_labels_that_reach_beyond_the_run(key: str, value: str, words: str) -> None:
    [(named, said)] = problems({key: value}, DOMAIN, STACK)
    assert named == key
    assert words in said


def test_what_recipes_do_every_day() -> None:
    labels = {
        "traefik.enable": "true",
        "traefik.docker.network": "proxy",
        "coop-cloud.x.version": "1",
        f"{S}.loadbalancer.server.port": "80",
        f"{R}.rule": f"Host(`{DOMAIN}`)",
        f"{R}.entrypoints": "web-secure",
        f"{R}.tls": "true",
        f"{R}.tls.certresolver": "",
        f"{R}.tls.options": "default",
        f"{R}.tls.domains[0].sans": f"*.{DOMAIN}",
        f"{R}.middlewares": f"{STACK}-redirect, {STACK}_auth@swarm",
        f"{R}.service": STACK,
        f"{M}-redirect.headers.SSLForceHost": "true",
        f"{M}-redirect.headers.customRequestHeaders.X-Forwarded-Proto": "https",
        f"{S}.loadbalancer.server.scheme": "https",
        f"{M}-path.replacepathregex.regex": "^/[a-z]{2,5}/(.*)",
        f"{M}-again.retry.attempts": "3",
        f"{M}-errors.errors.query": "/{status}.html?{url}",
        f"{M}-digest.digestauth.users": "a:realm:0123456789abcdef0123456789abcdef",
        f"{M}-none.basicauth.users": "",
        f"{M}-gzip.compress": "true",
        f"{M}-users.basicauth.users": "a:b,c:$2y$05$x, d:$apr1$x$y,e:{SHA}x",
        f"{M}-limit.rateLimit.average": "5",
        f"{M}-limit.rateLimit.sourceCriterion.ipStrategy.depth": "1",
        f"{M}-big.buffering.maxRequestBodyBytes": "1000000",
        f"{M}-path.replacepathregex.replacement": "/x/$1",
        f"{M}-hosts.headers.accessControlAllowOriginList": "*",
        f"{M}-sts.headers.stsSeconds": "31536000",
        "traefik.tcp.routers.mumble.entrypoints": "mumble",
        "traefik.tcp.services.mumble.loadbalancer.server.port": "1935",
    }
    assert list(problems(labels, DOMAIN, STACK)) == []
    assert list(unruled(labels)) == []
    assert list(misplaced(labels)) == []


@pytest.mark.parametrize(
    ("value", "port"), [("1", 1), ("65535", 65535), ("00080", 80), ("", 0), *((port, 0) for port in NO_PORTS)]
)
def test_the_web_port_is_a_port(value: str, port: int) -> None:
    assert list(ports({f"{S}.loadbalancer.server.port": value}).values()) == [port] * bool(port)


def test_what_the_proxy_puts_aside_is_bounded() -> None:
    key = "traefik.http.middlewares.x"
    labels = {
        f"{key}.Buffering": "true",
        "other": "1",
        f"{key}-y.buffering.maxRequestBodyBytes": "1000",
        f"{key}-z.compress": "true",
    }
    most = str(16 << 20)
    assert bounded(labels) == {
        "other": "1",
        f"{key}-z.compress": "true",
        f"{key}.buffering.maxrequestbodybytes": most,
        f"{key}.buffering.maxresponsebodybytes": most,
        f"{key}-y.buffering.maxrequestbodybytes": "1000",
        f"{key}-y.buffering.maxresponsebodybytes": most,
    }
    for none in ("0", "-1", "9" * 18, "9" * 19, "x"):
        assert bounded({f"{key}.buffering.maxresponsebodybytes": none})[f"{key}.buffering.maxresponsebodybytes"] == most


def test_a_router_without_a_rule() -> None:
    [(key, words)] = unruled({f"{R}.entrypoints": "web", f"{R}.tls": "true", f"{R}-b.rule": "x"})
    assert key == f"{R}.entrypoints"
    assert "has no rule" in words


@pytest.mark.parametrize("start", ["traefik.http.services", "Traefik.HTTP.Services", " traefik.http.services"])
def test_the_proxys_own_health_checks_are_left_out_and_reported(start: str) -> None:
    checks = {
        f"{start}.{STACK}.loadBalancer.healthCheck.path": "http://victim:2375/v1.41/swarm/leave?force=1",
        f"{start}.{STACK}.loadbalancer.healthcheck.headers.X-A": "1",
        f"{start}.other.loadbalancer.HEALTHCHECK.hostname": "victim",
    }
    labels = {f"{S}.loadbalancer.server.port": "80", **checks}
    assert without_tcp_and_udp(labels) == ({f"{S}.loadbalancer.server.port": "80"}, [])
    assert list(problems(labels, DOMAIN, STACK)) == []
    [(keys, words)] = misplaced(labels)
    assert keys == ", ".join(checks) and words.startswith("not deployed")


def test_tcp_and_udp_are_left_out_of_what_a_run_deploys() -> None:
    labels = {
        "traefik.enable": "true",
        f"traefik.tcp.routers.{STACK}.rule": "HostSNI(`*`)",
        f"{R}.rule": f"Host(`{DOMAIN}`)",
        "traefik.udp.services.x.loadbalancer.server.port": "53",
        "mumble.traefik.tcp.x": "",
    }
    stay, left_out = without_tcp_and_udp(labels)
    assert left_out == [f"traefik.tcp.routers.{STACK}.rule", "traefik.udp.services.x.loadbalancer.server.port"]
    assert list(stay) == ["traefik.enable", f"{R}.rule", "mumble.traefik.tcp.x"]
    assert list(labels) != list(stay)  # given back anew, and not changed


@pytest.mark.parametrize(
    ("key", "out"),
    [
        ("traefik.tcp.routers.x.rule", True),
        ("traefik.tcp.routers", True),
        ("traefik.tcp.", True),
        ("TRAEFIK.TCP.x", True),
        ("traefik.Udp.Routers.x.entryPoints", True),
        (" \t\ntraefik.tcp.routers.x.rule", True),
        ("\u00a0traefik.tcp.routers.x.rule", True),
        ("traefik.tcp.routers[0].x.rule", True),
        ("traefik.tcp.ſervices.x.loadbalancer.server.port", True),
        ("traefi\u212a.tcp.routers.x.rule", True),
        ("traefik.tcp", False),
        ("traefik.udp", False),
        ("traefik.tcp[0].routers.x.rule", False),
        ("traefik.tcp[.routers.x.rule", False),
        ("traefik.tcp .routers.x.rule", False),
        ("traefik.tcp/routers.x.rule.y", False),
        ("traefik.tcpx.routers.x.rule", False),
        ("traefik..tcp.routers.x.rule", False),
        ("traefik .tcp.routers.x.rule", False),
        ("traefik[0].tcp.routers.x.rule", False),
        ("traefik.\uff54cp.routers.x.rule", False),
    ],
)
def test_no_label_about_tcp_or_udp_is_deployed_however_it_is_written(key: str, out: bool) -> None:
    labels = {key: "HostSNI(`*`)"}
    assert without_tcp_and_udp(labels) == (({}, [key]) if out else (labels, []))
    assert bool(list(problems(labels, DOMAIN, STACK))) is not out


@pytest.mark.parametrize(
    ("rule", "names"),
    [
        ("Host(`x`)", "Host is for HTTP only"),
        ("HostSNI(`*`) && PathPrefix (`/x`)", "PathPrefix is for HTTP only"),
        ("!(hostregexp(`x`) || Path(`/`) || Path(`/y`))", "hostregexp and Path are for HTTP only"),
        ("HostSNI(`Host(x)`) && ALPN(`h2`) && ClientIP(`10.0.0.0/8`)", ""),
        ('HostSNI("a\\"Host(x)")', ""),
        ("HostSNI(`*`", ""),
        ("", ""),
    ],
)
def test_a_matcher_for_http_in_a_tcp_router_is_reported(rule: str, names: str) -> None:
    for key in (f"traefik.tcp.routers.{STACK}.rule", "traefik.TCP.Routers.mumble.Rule"):
        found = list(misplaced({f"{R}.rule": "Host(`x`)", key: rule, "traefik.tcp.routers.x.service": "Host(`x`)"}))
        assert [key for key, _ in found] == ([key] if names else [])
        assert all(names in words and "HostSNI(`*`)" in words for _, words in found)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {}),
        ({"traefik.docker.network": "proxy"}, {}),
        ({"traefik.swarm.network": "proxy"}, {}),
        ({"Traefik.Swarm.Network": "x", " traefik.docker.network": "y"}, {}),
        ({"traefik.swarm.network": "proxy", "traefik.swarm.lbswarm": "true"}, {"traefik.docker.lbswarm": "true"}),
        ({"traefik.docker.lbSwarm": "true"}, {"traefik.docker.lbswarm": "true"}),
    ],
)
def test_one_label_says_which_network_the_proxy_takes(before: dict[str, str], after: dict[str, str]) -> None:
    labels = {"traefik.enable": "true", **before}
    lead_over(labels, "ccci-x_proxy")
    assert labels == {"traefik.enable": "true", **after, "traefik.docker.network": "ccci-x_proxy"}


_EVIL = """services:
  app:
    image: x
    deploy:
      labels:
        - "traefik.enable=true"
        - "traefik.http.routers.${STACK_NAME}.rule=Host(`ci.example.com`)"
"""


@pytest.mark.parametrize("over", ["services: {app: {deploy: {replicas: 1}}}", "x-y: 1"])
def test_the_policy_names_file_line_and_label_whatever_a_later_file_puts_over_it(over: str, tmp_path: Path) -> None:
    files = {"over.yml": over, ".env.sample": "COMPOSE_FILE=compose.yml:over.yml\n"}
    with pytest.raises(DeployError) as caught:
        admission.check(load(write(tmp_path, _EVIL, **files)))
    assert caught.value.kind == "forbidden"
    rule = "traefik.http.routers.${STACK_NAME}.rule"
    label = f"services.app.deploy.labels: {rule}: Host(`ci.example.com`) is another host; write Host(`${{DOMAIN}}`)"
    assert f"compose.yml:7: {label}" in caught.value.message


def test_labels_of_containers_count_as_well(tmp_path: Path) -> None:
    text = "services:\n  app:\n    image: x\n    labels:\n      traefik.http.routers.x.rule: Host(`evil`)\n"
    with pytest.raises(DeployError, match=r"compose\.yml:5: services\.app\.labels: traefik\.http\.routers\.x\.rule: x is not"):
        admission.check(load(write(tmp_path, text)))


def test_a_later_file_may_add_to_a_router(tmp_path: Path) -> None:
    text = _EVIL.replace("ci.example.com", "${DOMAIN}")
    over = "services: {app: {deploy: {labels: ['traefik.http.routers.${STACK_NAME}.tls=true']}}}"
    admission.check(load(write(tmp_path, text, **{"over.yml": over, ".env.sample": "COMPOSE_FILE=compose.yml:over.yml\n"})))


def test_a_router_without_a_rule_is_named_in_the_file_that_has_it(tmp_path: Path) -> None:
    over = "services:\n  app:\n    deploy:\n      labels:\n        - traefik.http.routers.${STACK_NAME}-x.tls=true\n"
    files = {"over.yml": over, ".env.sample": "COMPOSE_FILE=compose.yml:over.yml\n"}
    with pytest.raises(DeployError, match=r"over\.yml:5: services\.app\.deploy\.labels: .*-x\.tls: the router has no rule"):
        admission.check(load(write(tmp_path, _EVIL.replace("ci.example.com", "${DOMAIN}"), **files)))


def test_no_run_asks_for_a_certificate(tmp_path: Path) -> None:
    text = _EVIL.replace("ci.example.com", "${DOMAIN}") + '        - "traefik.http.routers.${STACK_NAME}.tls.certresolver=prod"\n'
    text += '    labels: ["traefik.http.routers.${STACK_NAME}.tls.certresolver=prod"]\n'
    app = stackfile.of_run(load(write(tmp_path, text)), {}, {}, {}, STACK, True, Bounds())["services"]["app"]
    for labels in (app["labels"], app["deploy"]["labels"]):
        assert labels[f"{R}.tls"] == "true" and "prod" not in labels.values()
    assert not [key for key in labels if "certresolver" in key]


def test_a_proxy_that_leads_everything_to_https_is_no_app() -> None:
    answer = Answer(301, "Moved", "https://web.example.com/", "web.example.com")
    assert not answer.from_app(Address("127.0.0.1", 80, proxied=True))
    assert answer.from_app(Address("127.0.0.1", 443, proxied=True, tls=True))
    assert answer.from_app(Address("127.0.0.1", 8080))
    assert Answer(302, "", "/login", "web.example.com").from_app(Address("127.0.0.1", 80, proxied=True))
    assert Answer(302, "", "https://[", "web.example.com").from_app(Address("127.0.0.1", 80, proxied=True))
