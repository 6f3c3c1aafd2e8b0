"""What a recipe may not ask of the machine, each thing by itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from infra.deployers import policy
from infra.deployers.base import DeployError
from tests.infra.deployers.test_compose import load, recipe

SERVICES = {
    "privileged: true": "services.app: privileged",
    "cap_add: [SYS_ADMIN]": "services.app: cap_add SYS_ADMIN",
    "devices: ['/dev/sda:/dev/sda']": "services.app: devices /dev/sda:/dev/sda",
    "devices: [{source: /dev/kvm, target: /dev/kvm}]": "services.app: devices /dev/kvm",
    "network_mode: host": "services.app: network_mode host",
    "pid: host": "services.app: pid host",
    "ipc: host": "services.app: ipc host",
    "cgroupns_mode: host": "services.app: cgroupns_mode host",
    "security_opt: ['seccomp:unconfined']": "services.app: security_opt seccomp:unconfined",
    "sysctls: {net.core.somaxconn: 1024}": "services.app: sysctls net.core.somaxconn=1024",
    "sysctls: ['kernel.msgmax=1']": "services.app: sysctls kernel.msgmax=1",
    "userns_mode: host": "services.app: userns_mode host",
    "gpus: all": "services.app: gpus all",
    "use_api_socket: true": "services.app: use_api_socket",
    "oom_score_adj: -1000": "services.app: oom_score_adj -1000",
    "label_file: ./labels": "services.app: label_file ./labels",
    "extends: {file: /etc/passwd, service: x}": "services.app: extends file=/etc/passwd",
    "credential_spec: {file: x}": "services.app: credential_spec file=x",
    "volumes: ['/:/host']": "services.app: a bind mount of /.",
    "volumes: ['./data:/data']": "a bind mount of ./data",
    "volumes: ['a/b:/data']": "a bind mount of a/b",
    "volumes: ['~/.ssh:/ssh']": "a bind mount of ~/.ssh",
    "volumes: ['C:\\x:/data']": "a bind mount of C",
    "volumes: ['/var/run/docker.sock:/s:ro']": "a bind mount of /var/run/docker.sock (the docker socket)",
    "volumes: ['${EVIL}:/host']": "a bind mount of /etc",
    "volumes: [{type: bind, source: /etc, target: /x}]": "a bind mount of /etc",
    "volumes: [{type: bind, source: data, target: /x}]": "a bind mount of data",
    "volumes: [{type: npipe, source: x, target: /x}]": "a mount of type npipe",
    "volumes: [{type: cluster, source: x, target: /x}]": "a mount of type cluster",
    "volumes: [{source: /etc, target: /x}]": "a bind mount of /etc",
    "volumes: [{type: tmpfs, target: /y}, {type: image, source: x, target: /x}]": "a mount of type image",
    "env_file: /etc/passwd": "points out of the recipe",
    "env_file: [link]": "points out of the recipe",
    "env_file: [{path: /etc/passwd}]": "has no file",
    "logging: {driver: syslog, options: {syslog-address: 'tcp://10.0.0.1:514'}}": "the log driver syslog",
    "logging: {options: {syslog-address: 'tcp://10.0.0.1:514'}}": "the log option syslog-address",
    "logging: {driver: journald}": "the log driver journald",
    "deploy: {replicas: 5000}": "5000 replicas",
    "deploy: {replicas: '${MANY}'}": "900 replicas",
    "deploy: {resources: {reservations: {devices: [{capabilities: [gpu]}]}}}": "deploy.resources.reservations.devices",
    "deploy: {resources: {reservations: {generic_resources: [{kind: gpu, value: 1}]}}}": "generic_resources",
    "labels: {cc-ci.keep: 'true'}": "services.app.labels: cc-ci.keep: such labels",
    "deploy: {labels: ['cc-ci.installation=other']}": "services.app.deploy.labels: cc-ci.installation: such labels",
    "labels: ['com.docker.stack.namespace=other']": "com.docker.stack.namespace",
    "networks: {default: {driver_opts: {x: y}}}": "driver_opts on the network default",
}
REST = {
    "networks: {host: {external: true}}": "the external network host",
    "networks: {x: {external: {name: other_default}}}": "the external network other_default",
    "networks: {x: {external: true, name: ingress}}": "the external network ingress",
    "networks: {x: {driver: macvlan}}": "the network driver macvlan",
    "networks: {x: {name: other_default}}": "not the stack's own",
    "volumes: {x: {external: true, name: other_data}}": "the external volume other_data",
    "volumes: {x: {name: other_data}}": "not the stack's own",
    "volumes: {x: {driver_opts: {type: none, o: bind, device: /etc}}}": "driver_opts",
    "volumes: {x: {driver: rclone}}": "the volume driver rclone",
    "configs: {x: {file: ../../etc/passwd}}": "points out of the recipe",
    "configs: {x: {file: link}}": "points out of the recipe",
    "configs: {x: {external: true}}": "the external config x",
    "secrets: {x: {file: /etc/shadow}}": "points out of the recipe",
    "secrets: {x: {external: true, name: other_password}}": "not the stack's own",
    "secrets: {x: {external: true}}": "not the stack's own",
    "configs: {x: {environment: DOCKER_AUTH_CONFIG}}": "a config from the environment",
    "secrets: {x: {environment: DOCKER_AUTH_CONFIG}}": "a secret from the environment",
    "secrets: {x: {driver: vault}}": "the driver vault",
    "networks: {x: {ipam: {config: [{subnet: 10.0.0.0/8}]}}}": "ipam",
    "volumes: {x: {labels: {cc-ci.keep: 'true'}}}": "volumes.x.labels: cc-ci.keep",
    "volumes: {x: {x-cluster-spec: {access_mode: {scope: multi}}}}": "a cluster volume",
    "include: [/etc/passwd]": "include",
}


REFUSED = {
    **{f"services: {{app: {{{part}}}}}": words for part, words in SERVICES.items()},
    **{f"services: {{app: {{}}}}\n{part}": words for part, words in REST.items()},
}


@pytest.mark.parametrize(("text", "words"), REFUSED.items())
def test_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/hostname")
    read = load(recipe(tmp_path, text, **{".env.sample": "EVIL=/etc\nMANY=900\n"}))
    with pytest.raises(DeployError) as caught:
        policy.check(read)
    assert caught.value.kind == "forbidden"
    assert words in caught.value.message
    assert "compose.yml:" in caught.value.message


def test_everything_wrong_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(DeployError) as caught:
        policy.check(load(recipe(tmp_path, "services: {a: {privileged: true}, b: {pid: host}}")))
    assert "compose.yml:1: services.a: privileged; compose.yml:1: services.b: pid host" in caught.value.message


def test_the_line_is_named_where_there_is_one_of_its_own(tmp_path: Path) -> None:
    text = "services:\n  app:\n    image: x\n    pid: host\n  $$x: {volumes: ['/:/h']}\nconfigs:\n  c:\n    file: ../x\n"
    with pytest.raises(DeployError) as caught:
        policy.check(load(recipe(tmp_path, text)))
    for words in ("compose.yml:4: services.app: pid", "compose.yml:5: services.$$x: a bind", "compose.yml:7: configs.c: ../x"):
        assert words in caught.value.message


def test_what_recipes_do_every_day_is_allowed(tmp_path: Path) -> None:
    text = """
services:
  app:
    image: x
    volumes: ["data:/data", {type: tmpfs, target: /tmp}, "/anonymous", {type: volume, source: data, target: /b}, "c:/c"]
    tmpfs: [/run]
    networks: {proxy: {aliases: ["${STACK_NAME}_app"]}, internal: {aliases: [db]}}
    logging: {driver: json-file, options: {max-size: 10m}}
    dns: [1.1.1.1]
    extra_hosts: ["a:127.0.0.1"]
    healthcheck: {test: [CMD, "true"]}
    init: true
    ulimits: {nofile: 65536}
    privileged: false
    cap_drop: [ALL]
    cap_add: []
    configs: [{source: conf, target: /c, mode: 0555}]
    deploy: {replicas: 2, placement: {constraints: [node.role == manager]}, resources: {limits: {memory: 1g}}}
    env_file: settings.env
networks: {proxy: {external: true}, internal: , other: {driver: overlay, internal: true}}
volumes: {data: , c: , named: {name: "${STACK_NAME}_named"}}
configs: {conf: {name: "${STACK_NAME}_conf_v1", file: conf.tmpl, template_driver: golang}}
secrets: {pw: {external: true, name: "${STACK_NAME}_pw_v1"}}
"""
    policy.check(load(recipe(tmp_path, text, **{"conf.tmpl": "x", "settings.env": "A=1"})))


HUNGRY = """services:
  app:
    image: x
    cap_add:
      - NET_ADMIN
      - SYS_TIME
    volumes:
      - /srv/media:/media
      - ./data:/data
    networks:
      proxy:
        aliases:
          - keycloak
networks:
  proxy:
    external: true
  other:
    name: ${STACK_NAME}x
"""


def refused(read: Any, *allow: str) -> str:
    """What is still refused; empty when nothing is."""
    try:
        policy.check(read, allow)
    except DeployError as error:
        return str(error)
    return ""


def test_each_thing_has_words_of_its_own_and_its_line(tmp_path: Path) -> None:
    said = refused(load(recipe(tmp_path, HUNGRY)))
    for words in (
        "compose.yml:5: services.app: cap_add NET_ADMIN; compose.yml:6: services.app: cap_add SYS_TIME",
        "compose.yml:8: services.app: a bind mount of /srv/media; compose.yml:9: services.app: a bind mount of ./data",
        "compose.yml:13: services.app: the alias keycloak on the shared network proxy",
        "compose.yml:17: networks.other: the name ${STACK_NAME}x, which is not the stack's own",
    ):
        assert words in said


def test_what_is_allowed_word_for_word_is_skipped_and_nothing_else(tmp_path: Path) -> None:
    read = load(recipe(tmp_path, HUNGRY))
    said = refused(read, "services.app: cap_add NET_ADMIN", " services.app: a bind mount of /srv/media ")
    assert "NET_ADMIN" not in said and "/srv/media" not in said
    assert "SYS_TIME" in said and "./data" in said
    for near in ("services.app: cap_add", "services.db: cap_add SYS_TIME", "cap_add SYS_TIME", "SYS_TIME", "*", ""):
        assert "SYS_TIME" in refused(read, near)


def test_the_error_says_the_very_lines_that_allow_it(tmp_path: Path) -> None:
    text = HUNGRY.replace("      - ./data:/data\n", "")
    read = load(recipe(tmp_path, text))
    offered = re.findall(r"`([^`]+)`", refused(read))
    assert len(offered) == 5
    assert refused(read, *offered) == ""
    for left_out in offered:
        assert left_out in refused(read, *(line for line in offered if line != left_out))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("services: {app: {volumes: ['./data:/data']}}", "services.app: a bind mount of ./data"),
        ("services: {app: {volumes: ['~/x:/data']}}", "services.app: a bind mount of ~/x"),
        ("services: {app: {volumes: ['/srv/../etc:/data']}}", "services.app: a bind mount of /srv/../etc"),
        ("services: {app: {labels: {cc-ci.keep: 'yes'}}}", None),
        ("services: {app: {env_file: /etc/passwd}}", None),
        ("services: {app: {deploy: {labels: {'traefik.http.routers.x.rule': 'Host(`other.example.com`)'}}}}", None),
    ],
)
def test_what_nobody_may_allow(text: str, line: str | None, tmp_path: Path) -> None:
    read = load(recipe(tmp_path, text))
    said = refused(read)
    assert said and "Or allow it" not in said
    line = line or said.partition("compose.yml:1: ")[2].rpartition(". Take it out")[0]
    assert line in said
    assert refused(read, line) == said
