"""What a recipe may not ask of the machine, each thing by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.deployers import policy
from infra.deployers.base import DeployError
from tests.infra.deployers.test_compose import load, recipe

SERVICES = {
    "privileged: true": "privileged",
    "cap_add: [SYS_ADMIN]": "cap_add",
    "devices: ['/dev/sda:/dev/sda']": "devices",
    "network_mode: host": "network_mode",
    "pid: host": "pid",
    "ipc: host": "ipc",
    "security_opt: ['seccomp:unconfined']": "security_opt",
    "userns_mode: host": "userns_mode",
    "extends: {file: /etc/passwd, service: x}": "extends",
    "volumes: ['/:/host']": "a bind mount of /",
    "volumes: ['./data:/data']": "a bind mount of ./data",
    "volumes: ['~/.ssh:/ssh']": "a bind mount of ~/.ssh",
    "volumes: ['/var/run/docker.sock:/s:ro']": "docker.sock",
    "volumes: ['${EVIL}:/host']": "a bind mount of /etc",
    "volumes: [{type: bind, source: /etc, target: /x}]": "a mount of type bind",
    "volumes: [{type: npipe, source: x, target: /x}]": "a mount of type npipe",
    "volumes: [{source: /etc, target: /x}]": "a bind mount of /etc",
    "env_file: /etc/passwd": "points out of the recipe",
    "env_file: [link]": "points out of the recipe",
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
    "include: [/etc/passwd]": "include",
}


@pytest.mark.parametrize(
    "text", [*(f"services: {{app: {{{text}}}}}" for text in SERVICES), *(f"services: {{app: {{}}}}\n{text}" for text in REST)]
)
def test_refused(text: str, tmp_path: Path) -> None:
    words = next(words for part, words in {**SERVICES, **REST}.items() if part in text)
    (tmp_path / "link").symlink_to("/etc/hostname")
    read = load(recipe(tmp_path, text, **{".env.sample": "EVIL=/etc\n"}))
    with pytest.raises(DeployError) as caught:
        policy.check(read)
    assert caught.value.kind == "forbidden"
    assert words in caught.value.message
    assert "compose.yml:" in caught.value.message


def test_everything_wrong_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(DeployError) as caught:
        policy.check(load(recipe(tmp_path, "services: {a: {privileged: true}, b: {pid: host}}")))
    assert "compose.yml:1: services.a: privileged; compose.yml:1: services.b: pid" in caught.value.message


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
    volumes: ["data:/data", {type: tmpfs, target: /tmp}, "/anonymous", {type: volume, source: data, target: /b}]
    networks: [proxy, internal]
    configs: [{source: conf, target: /c, mode: 0555}]
    env_file: settings.env
networks: {proxy: {external: true}, internal: , other: {driver: overlay, internal: true}}
volumes: {data: , named: {name: "${STACK_NAME}_named"}}
configs: {conf: {name: "${STACK_NAME}_conf_v1", file: conf.tmpl, template_driver: golang}}
secrets: {pw: {external: true, name: "${STACK_NAME}_pw_v1"}}
"""
    policy.check(load(recipe(tmp_path, text, **{"conf.tmpl": "x", "settings.env": "A=1"})))
