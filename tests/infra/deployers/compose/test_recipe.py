"""A recipe as Docker reads it: environment, overlays, ports, secrets, versions; and what is handed to Docker again."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from infra.deployers.compose import admission, ports, stackfile
from infra.deployers.compose.recipe import Recipe, read_environment
from infra.deployers.context import Bounds, Secret, random_secret
from infra.deployers.errors import DeployError
from infra.deployers.swarm import convergence
from tests.infra.deployers.compose.reading import STACK, context, load, write

pytestmark = pytest.mark.slow(0.1)

RECIPES = Path(__file__).resolve().parents[3] / "data" / "recipes"
APP = "services: {app: {image: x}}"


def test_the_environment_is_the_sample_what_abra_sh_exports_and_the_runs_own(tmp_path: Path) -> None:
    sample = "# a comment\nDOMAIN=sample.example.com\nA=1 # one\nB='two # words'\nC=\"3\"\nLETS_ENCRYPT_ENV=production\n#D=4\n"
    abra = "export X_VERSION=v3 Z=1\n  export Y_VERSION='v4' # raised\nexport W_VERSION=$(touch /tmp/x)\nfoo() { :; }\n"
    folder = write(tmp_path, APP, **{".env.sample": sample, "abra.sh": abra})
    env, _ = read_environment(context(folder), folder)
    assert env.values == {
        "A": "1",
        "B": "two # words",
        "C": "3",
        "X_VERSION": "v3",
        "Y_VERSION": "v4",
        "Z": "1",
        "DOMAIN": "web.example.com",
        "LETS_ENCRYPT_ENV": "",
        "STACK_NAME": STACK,
    }


def test_the_settings_are_filled_in_and_come_over_the_sample_but_not_over_the_runs_own_names(tmp_path: Path) -> None:
    folder = write(tmp_path / "new", APP, **{".env.sample": "IMAGE=a\nDOMAIN=x\nURL=https://new.example.com\n"})
    old = write(tmp_path / "old", APP)
    given = context(folder)
    given.env = {"IMAGE": "$IMAGE-b", "DOMAIN": "elsewhere", "STACK_NAME": "theirs", "LETS_ENCRYPT_ENV": "production"}
    given.env_upgrade = {"ONLY_NEW": "https://${DOMAIN}/${LENT}"}
    given.lent = {"LENT": "realm"}
    given.secret_values = {"oidc-secret": "${LENT}-secret"}
    env, secrets = read_environment(given, folder)
    assert env.values["IMAGE"] == "a-b"
    assert env.values["URL"] == "https://web.example.com"
    assert (env.values["DOMAIN"], env.values["STACK_NAME"], env.values["LETS_ENCRYPT_ENV"]) == ("web.example.com", STACK, "")
    assert env.values["ONLY_NEW"] == "https://web.example.com/realm"
    assert secrets == {"oidc-secret": "realm-secret"}
    before, _ = read_environment(given, old)
    assert "ONLY_NEW" not in before.values and before.values["IMAGE"] == "-b"
    assert not [name for name in env.values if name.startswith("CC_CI_SECRET")]


def test_a_sample_that_cannot_be_read_names_file_and_line(tmp_path: Path) -> None:
    folder = write(tmp_path, APP, **{".env.sample": "A=1\nB='open\n"})
    with pytest.raises(DeployError, match=r"\.env\.sample:2: unclosed single quote") as caught:
        load(folder)
    assert caught.value.recipes_fault


def test_overlays_ports_versions_images_and_secrets() -> None:
    read = load(RECIPES / "web")
    assert read.names == ["compose.yml", "compose.greeting.yml"]
    app = read.services["app"]
    assert app["environment"] == {"DOMAIN": "web.example.com", "PRICE": "5$", "GREETING": "hello web.example.com"}
    assert read.web({80}) == ("app", 8080)
    assert read.version() == "1.0.0+1.36.1"
    assert read.images == ["cc-ci-test/busybox:1"]
    assert read.secrets == [Secret(f"{STACK}_session_key_v1", "session_key", 48)]


def test_a_port_is_the_labels_else_a_published_one_that_is_the_webs(tmp_path: Path) -> None:
    app = 'app: {image: x, ports: ["25:25", "127.0.0.1:99:8080/tcp", {target: 80}]}'
    text = f"services: {{db: {{image: x, ports: ['5432:5432']}}, {app}}}"
    assert load(write(tmp_path, text)).web({80, 8080}) == ("app", 8080)
    assert load(write(tmp_path, "services: {db: {image: x, ports: ['5432:5432']}}")).web({80}) is None


SECRETS = """
services:
  app: {image: x, secrets: [plain, swapped, hexed, given]}
secrets:
  plain: {external: true, name: "${STACK_NAME}_plain_${SECRET_PLAIN_VERSION}"}
  swapped: {external: true, name: "${STACK_NAME}_other_${SECRET_OTHER_VERSION}"}
  hexed: {external: true, name: "${STACK_NAME}_hexed_${SECRET_HEXED_VERSION}"}
  given: {external: true, name: "${STACK_NAME}_given_${SECRET_GIVEN_VERSION}"}
  unused: {external: true, name: "${STACK_NAME}_unused_v1"}
"""
SAMPLE = """
SECRET_PLAIN_VERSION=v1
SECRET_SWAPPED_VERSION=v1 # length=5
SECRET_OTHER_VERSION=v1 # length=20
SECRET_HEXED_VERSION=v2 # length=64 charset=hex
SECRET_GIVEN_VERSION=v1 # generate=false
"""


def test_the_variable_in_a_secrets_name_decides_its_modifiers(tmp_path: Path) -> None:
    read = load(write(tmp_path, SECRETS, **{".env.sample": SAMPLE}))
    by_key = {secret.key: secret for secret in read.secrets}
    assert set(by_key) == {"plain", "swapped", "hexed", "given"}, "one that no service uses is not made"
    assert by_key["plain"] == Secret(f"{STACK}_plain_v1", "plain")
    assert by_key["swapped"].length == 20
    value = random_secret(by_key["hexed"])
    assert len(value) == 64 and set(value) <= set("0123456789abcdef")
    with pytest.raises(DeployError) as caught:
        random_secret(by_key["given"])
    assert caught.value.recipes_fault and "given" in caught.value.message
    assert '[secrets]: given = "…"' in caught.value.fix


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        (SAMPLE.replace("charset=hex", "charset=klingon"), "unknown charset"),
        (SAMPLE.replace("length=64", "length=0"), "invalid length"),
        (
            SAMPLE.replace("SECRET_PLAIN_VERSION=v1", ""),
            "secret plain has no version, because SECRET_PLAIN_VERSION has no value: ccci-0123456789ab_plain_. "
            "Add the line SECRET_PLAIN_VERSION=v1 to .env.sample.",
        ),
        (
            SAMPLE.replace("SECRET_PLAIN_VERSION=v1", "SECRET_PLANE_VERSION=v1"),
            "SECRET_PLAIN_VERSION=v1 to .env.sample, or write SECRET_PLANE_VERSION in the compose file if that is meant.",
        ),
        (SAMPLE.replace("SECRET_PLAIN_VERSION=v1", "SECRET_PLAIN_VERSION=" + "v" * 50), "has 74 characters; Docker allows 64"),
    ],
)
def test_secrets_that_cannot_be_made_say_why(sample: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(DeployError) as caught:
        load(write(tmp_path, SECRETS, **{".env.sample": sample}))
    assert words in str(caught.value) and caught.value.recipes_fault


@pytest.mark.parametrize("name", ["../outside.yml", "link.yml", "/etc/passwd", ".git/config"])
def test_files_are_read_from_inside_only(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "recipe"
    write(folder, APP, **{".env.sample": f"COMPOSE_FILE=compose.yml:{name}\n", ".git/config": APP, "../outside.yml": APP})
    (folder / "link.yml").symlink_to("../outside.yml")
    with pytest.raises(DeployError, match="points outside the recipe") as caught:
        load(folder)
    assert caught.value.kind == "forbidden"


def test_a_missing_overlay_is_named(tmp_path: Path) -> None:
    with pytest.raises(DeployError, match=r"no file compose\.smtp\.yml") as caught:
        load(write(tmp_path, APP, **{".env.sample": "COMPOSE_FILE=compose.yml:compose.smtp.yml\n"}))
    assert "COMPOSE_FILE, in .env.sample or" in caught.value.fix


def test_volumes_with_a_name_of_their_own_are_known_by_their_key(tmp_path: Path) -> None:
    text = f"{APP}\nvolumes: {{data: , rows: {{name: mine}}, far: {{external: {{name: theirs}}}}}}"
    assert load(write(tmp_path, text)).volume_keys == {"mine": "rows", "theirs": "far"}


# --- what is deployed


def deployed(read: Recipe, published: Any = None, proxied: bool = False) -> dict[str, Any]:
    return stackfile.of_run(read, {"ours": "1"}, {"number": "2"}, published or {}, STACK, proxied, Bounds())


def test_what_is_deployed_is_labelled_unpublished_and_filled_in(tmp_path: Path) -> None:
    folder = tmp_path / "web"
    shutil.copytree(RECIPES / "web", folder)
    read = load(folder)
    document = deployed(read)
    app = document["services"]["app"]
    assert "ports" not in app
    assert app["labels"] == {"ours": "1"}
    assert app["deploy"]["labels"].items() >= {"ours": "1", "number": "2"}.items()
    assert app["deploy"]["labels"][f"traefik.http.routers.{STACK}.rule"] == "Host(`web.example.com`)"
    assert app["environment"]["PRICE"] == "5$"
    handed = json.loads(stackfile.text(document))
    assert handed["services"]["app"]["environment"]["PRICE"] == "5$$", "Docker fills in once more"
    assert document["volumes"] == {"data": {"labels": {"ours": "1"}}}
    assert document["configs"]["index"] == {
        "name": f"{STACK}_index_v2",
        "file": str(folder / "index.html"),
        "labels": {"ours": "1"},
    }
    assert document["secrets"]["session_key"] == {"external": True, "name": f"{STACK}_session_key_v1"}
    assert "version" not in document


PROXIED = """
services:
  app:
    image: x
    hostname: keycloak
    networks: [shared, default]
    deploy: {labels: ["traefik.docker.network=proxy", "traefik.http.routers.${STACK_NAME}.rule=Host(`${DOMAIN}`)"]}
  api:
    image: x
    hostname: api.${DOMAIN}
    networks: [shared]
    deploy: {labels: ["traefik.http.routers.${STACK_NAME}-api.rule=x"]}
  db: {image: x, hostname: db, networks: [shared]}
networks: {shared: {external: true, name: proxy}}
"""


def test_a_run_is_not_on_the_network_of_the_proxy_but_what_has_routes_is_on_one_that_the_proxy_joins(tmp_path: Path) -> None:
    read = load(write(tmp_path, PROXIED))
    document = deployed(read, proxied=True)
    services = document["services"]
    assert document["networks"]["shared"] == {"driver": "overlay", "labels": {"ours": "1"}}, "for the run's own names"
    assert document["networks"]["cc-ci-front"] == {"driver": "overlay", "attachable": True, "labels": {"ours": "1"}}
    assert stackfile.front(document, STACK) == [f"{STACK}_cc-ci-front"]
    assert list(services["app"]["networks"]) == ["default", "shared", "cc-ci-front"]
    assert list(services["db"]["networks"]) == ["shared"]
    assert services["app"]["deploy"]["labels"]["traefik.docker.network"] == f"{STACK}_cc-ci-front"
    assert [services[name].get("hostname") for name in services] == ["api.web.example.com", None, "db"]
    alone = deployed(read)
    assert stackfile.front(alone, STACK) == [] and list(alone["services"]["app"]["networks"]) == ["default", "shared"]
    assert alone["services"]["app"]["hostname"] == "keycloak"
    of_app = stackfile.of_app(read, {}, {}, {})
    assert of_app["networks"]["shared"] == {"external": True, "name": "proxy"}, "the server's own apps share it"


def test_what_is_on_the_proxys_network_by_default_alone_is_on_the_one_that_the_proxy_joins(tmp_path: Path) -> None:
    text = """
services:
  app: {image: x, deploy: {labels: ["traefik.http.routers.${STACK_NAME}.rule=Host(`${DOMAIN}`)"]}}
  db: {image: x}
networks: {default: {external: true, name: proxy}}
"""
    document = deployed(load(write(tmp_path, text)), proxied=True)
    assert stackfile.front(document, STACK) == [f"{STACK}_cc-ci-front"]
    assert list(document["services"]["app"]["networks"]) == ["default", "cc-ci-front"]
    assert not document["services"]["db"].get("networks")


@pytest.mark.parametrize(("app", "version"), [("", ""), ("2.0", "2.0"), (None, "1.0")])
def test_the_version_is_that_of_app_also_when_it_is_empty_as_it_is_read_back(
    app: str | None, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "services:\n"
    for name, value in (("app", app), ("db", "1.0")):
        label = "" if value is None else f"coop-cloud.${{STACK_NAME}}.version={value}"
        text += f"  {name}: {{image: x, deploy: {{labels: ['{label or 'other=x'}']}}}}\n"
    read = load(write(tmp_path, text))
    monkeypatch.setattr(convergence, "listed", lambda *_, **__: [])
    there = [{"ID": name, "Spec": {"Name": f"{STACK}_{name}", "Labels": read.labels(name)}} for name in read.services]
    assert read.version() == convergence.poll(STACK, there).version == version


def test_routers_of_tcp_and_udp_and_certificates_are_left_out_for_runs_alone(tmp_path: Path) -> None:
    text = """
services:
  app:
    image: x
    deploy:
      labels:
        - "traefik.tcp.routers.x.rule=HostSNI(`*`)"
        - "traefik.http.routers.${STACK_NAME}.tls.certresolver=production"
"""
    read = load(write(tmp_path, text))
    labels = deployed(read)["services"]["app"]["deploy"]["labels"]
    assert labels == {f"traefik.http.routers.{STACK}.tls": "true", "ours": "1", "number": "2"}
    kept = stackfile.of_app(read, {}, {}, {})["services"]["app"]["deploy"]["labels"]
    assert len(kept) == 2 and "traefik.tcp.routers.x.rule" in kept


def test_published_ports_are_those_of_the_plan(tmp_path: Path) -> None:
    read = load(write(tmp_path, 'services: {app: {image: x, ports: ["2222:22", "25:25"]}}'))
    document = deployed(read, ports.plan(read.services, None, {25}))
    assert document["services"]["app"]["ports"] == [
        {"target": 22, "protocol": "tcp", "mode": "ingress"},
        {"target": 25, "protocol": "tcp", "mode": "ingress", "published": 25},
    ]


@pytest.mark.parametrize(("source", "shown"), [("../x", "../x"), ("..", ".."), (".", "."), ("./a/../b", "./b"), ("/x", "/x")])
def test_what_lies_beside_the_checkout_is_told_from_what_lies_at_the_top(source: str, shown: str, tmp_path: Path) -> None:
    read = load(write(tmp_path / "recipe", f"services: {{app: {{image: x, volumes: ['{source}:/data']}}}}"))
    with pytest.raises(DeployError, match=re.escape(f"services.app: a bind mount of {shown}")) as caught:
        admission.check(read)
    assert ("Or allow it" in caught.value.fix) == (shown == "/x")
    [mount] = stackfile.of_app(read, {}, {}, {})["services"]["app"]["volumes"]
    assert Path(mount["source"]).resolve() == (tmp_path / "recipe" / source).resolve()


def test_the_service_app_has_all_variables_and_its_own_count(tmp_path: Path) -> None:
    """As abra does it (`ExposeAllEnv`): a config's template reads what no compose file names."""
    text = "services: {app: {image: x, environment: [MAIL=own, EMPTY]}, db: {image: x}}"
    read = load(write(tmp_path, text, **{".env.sample": "MAIL=sample\nTHEME=dark\n", "abra.sh": "export CONF_VERSION=v1\n"}))
    for document in (deployed(read), stackfile.of_app(read, {}, {}, {})):
        environment = document["services"]["app"]["environment"]
        assert environment.items() >= {"MAIL": "own", "THEME": "dark", "CONF_VERSION": "v1", "STACK_NAME": STACK}.items()
        assert environment["EMPTY"] is None
        assert not document["services"]["db"].get("environment")


def test_the_web_port_of_several_is_the_stacks_own(tmp_path: Path) -> None:
    labels = [
        f'"traefik.http.services.${{STACK_NAME}}{name}.loadbalancer.server.port={port}"'
        for name, port in (("-console", 9), ("", 80))
    ]
    assert load(write(tmp_path, f"services: {{app: {{image: x, deploy: {{labels: [{', '.join(labels)}]}}}}}}")).web(()) == (
        "app",
        80,
    )


ROUTED = """
services:
  app:
    image: x
    deploy:
      labels:
        - "traefik.http.routers.${STACK_NAME}-ws.rule=Host(`ws.${DOMAIN}`)"
        - "traefik.http.routers.${STACK_NAME}-ws.service=${STACK_NAME}-ws"
        - "traefik.http.services.${STACK_NAME}-ws.loadbalancer.server.port=9"
"""
OF_THE_DOMAIN = """\
        - "traefik.http.routers.${STACK_NAME}-api.rule=Host(`${DOMAIN}`) && PathPrefix(`/api`)"
        - "traefik.http.routers.${STACK_NAME}-api.service=${STACK_NAME}-api"
        - "traefik.http.services.${STACK_NAME}-api.loadbalancer.server.port=10"
        - "traefik.http.routers.${STACK_NAME}-pages.rule=Host(`${DOMAIN}`)"
        - "traefik.http.routers.${STACK_NAME}-pages.service=${STACK_NAME}-pages@docker"
        - "traefik.http.services.${STACK_NAME}-pages.loadbalancer.server.port=80"
"""
FRONT = """\
  front:
    image: x
    deploy:
      labels:
        - "traefik.http.routers.${STACK_NAME}.rule=Host(`www.${DOMAIN}`, `${DOMAIN}`)"
        - "traefik.http.services.${STACK_NAME}.loadbalancer.server.port=81"
"""
LEADING_THERE = """\
        - "traefik.http.routers.${STACK_NAME}-front.rule=Host(`${DOMAIN}`)"
        - "traefik.http.routers.${STACK_NAME}-front.service=${STACK_NAME}"
"""


@pytest.mark.parametrize(
    ("text", "web"),
    [
        (ROUTED, ("app", 9)),
        (ROUTED + OF_THE_DOMAIN, ("app", 80)),
        (
            ROUTED + OF_THE_DOMAIN.replace('Host(`${DOMAIN}`)"', 'Host(`${DOMAIN}`) || Host(`www.much-longer.${DOMAIN}`)"'),
            ("app", 80),
        ),
        (ROUTED + FRONT, ("front", 81)),
        (ROUTED + LEADING_THERE + FRONT.replace("`, `${DOMAIN}`", "`"), ("front", 81)),
        (ROUTED + FRONT.replace("`, `${DOMAIN}`)", "`) && !Host(`${DOMAIN}`)"), ("app", 9)),
        (ROUTED + FRONT.replace("`, `${DOMAIN}`)", "`) && Header(`X`, `${DOMAIN}`)"), ("app", 9)),
        (ROUTED.replace("ws.${DOMAIN}`)", "${DOMAIN}`) && PathPrefix(`/ws`)") + FRONT, ("front", 81)),
    ],
    ids=[
        "another host",
        "several routers",
        "of hosts",
        "another service",
        "by another's router",
        "not for it",
        "a header",
        "a part of it",
    ],
)
def test_the_web_is_what_the_proxy_serves_under_the_domain_itself(text: str, web: tuple[str, int], tmp_path: Path) -> None:
    assert load(write(tmp_path, text)).web(()) == web


def test_a_config_whose_name_docker_does_not_take_is_named(tmp_path: Path) -> None:
    text = f"{APP}\nconfigs: {{conf: {{file: conf, name: '${{STACK_NAME}}_{'x' * 60}'}}}}"
    with pytest.raises(DeployError, match="The name of the config conf has 78 characters; Docker allows 64"):
        load(write(tmp_path, text, conf="x"))
