"""What a recipe may not ask of the machine, one by one, and what it may."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.deployers.compose import admission, recipe
from infra.deployers.compose.recipe import Recipe
from infra.deployers.errors import DeployError
from tests.infra.deployers.compose.reading import context, load, need_reader, write

pytestmark = pytest.mark.slow(0.2)

TEMPLATE = "a template with more than env, secret, config, if, else, end, eq, ne, and, or, not and fields such as .Service.Name"
#: What may stand in a service, and the words that refuse it.
SERVICES = {
    "privileged: true": "privileged",
    "cap_add: [SYS_ADMIN]": "cap_add SYS_ADMIN",
    "devices: ['/dev/sda:/dev/sda']": "devices /dev/sda:/dev/sda",
    "network_mode: host": "network_mode host",
    "pid: host": "pid host",
    "ipc: host": "ipc host",
    "cgroup_parent: /x": "cgroup_parent /x",
    "cgroupns_mode: host": "cgroupns_mode host",
    "security_opt: ['seccomp:unconfined']": "security_opt seccomp:unconfined",
    "security_opt: ['no-new-privileges:false']": "security_opt no-new-privileges:false",
    "sysctls: {net.core.somaxconn: 1024}": "sysctls net.core.somaxconn=1024",
    "sysctls: ['kernel.msgmax=1']": "sysctls kernel.msgmax=1",
    "userns_mode: host": "userns_mode host",
    "isolation: hyperv": "isolation hyperv",
    "credential_spec: {file: x}": "credential_spec file=x",
    "external_links: [other]": "external_links other",
    "volumes: ['/:/host']": "a bind mount of /",
    "volumes: ['a:x/../../../../../../../..:/host']": "a bind mount of ../../../../../../..",
    "volumes: ['ä:x/../../../../../../../../../../../../../..:/host']": "a bind mount of /",
    "volumes: ['./data:/data']": "a bind mount of ./data",
    "volumes: ['.:/data']": "a bind mount of .",
    "volumes: ['a/b:/data']": "a mount of a/b, which is not a volume of the recipe",
    "volumes: ['~/.ssh:/ssh']": "a bind mount of /home/x/.ssh",
    "volumes: ['C:\\x:/data']": "a bind mount of C:\\x",
    "volumes: ['é:/x:/data']": "a bind mount of ./é:/x",
    "volumes: ['/var/run/docker.sock:/s:ro']": "a bind mount of /var/run/docker.sock (the docker socket)",
    "volumes: ['${EVIL}:/host']": "a bind mount of /etc",
    "volumes: [{type: bind, source: /etc, target: /x}]": "a bind mount of /etc",
    "volumes: [{type: bind, source: data, target: /x}]": "a bind mount of ./data",
    "volumes: [{type: npipe, source: x, target: /x}]": "a mount of type npipe",
    "volumes: [{type: cluster, source: x, target: /x}]": "a mount of type cluster",
    "volumes: [{type: image, source: x, target: /x}]": "a mount of type image",
    "volumes: [{type: volume, source: a, target: /x, volume: {subpath: ..}}]": "volumes.volume.subpath ..",
    "volumes: ['other:/x']": "a mount of other, which is not a volume of the recipe",
    "logging: {driver: syslog}": "the log driver syslog",
    "logging: {options: {syslog-address: 'tcp://10.0.0.1:514'}}": "the log option syslog-address",
    "logging: {driver: local, options: {max-buffer-size: 100g}}": "the log option max-buffer-size",
    "deploy: {replicas: 5000}": "5000 replicas, more than 20",
    "deploy: {replicas: '${MANY}'}": "900 replicas, more than 20",
    "hostname: '{{pad \"x\" 1000000000000 0}}'": f'hostname={{{{pad "x" 1000000000000 0}}}}, {TEMPLATE}',
    "environment: ['A=${DOUBLED}']": f"environment A={{{{$a := print 1}}}}{{{{$a}}}}, {TEMPLATE}",
    "environment: {B: '{{.Service.Labels}}'}": f"environment B={{{{.Service.Labels}}}}, {TEMPLATE}",
    "volumes: ['/x{{template \"x\"}}']": f'volumes target=/x{{{{template "x"}}}}, {TEMPLATE}',
    "volumes: [{type: tmpfs, target: '/{{len}}'}]": f"volumes target=/{{{{len}}}}, {TEMPLATE}",
    "ulimits: {rtprio: 99}": "ulimits rtprio",
    "networks: {default: {driver_opts: {x: y}}}": "driver_opts on the network default",
    "networks: {default: {ipv4_address: 10.0.0.2}}": "ipv4_address on the network default",
    "networks: {proxy: {aliases: [keycloak]}}": "the alias keycloak on the shared network proxy",
}
#: The same of its labels, whose own path comes before the words.
SAMPLE = "EVIL=/etc\nMANY=900\nHOME=/home/x\nDOUBLED='{{$a := print 1}}{{$a}}'\n"
LABELS = {
    "labels: {cc-ci.keep: 'true'}": "labels: cc-ci.keep: labels with this prefix",
    "deploy: {labels: ['cc-ci.installation=other']}": "deploy.labels: cc-ci.installation: labels with this prefix",
    "labels: ['com.docker.stack.namespace=other']": "labels: com.docker.stack.namespace: labels with this prefix",
    "labels: {' CC-CI.run': x}": "labels:  CC-CI.run: labels with this prefix",
    "deploy: {labels: {traefik.http.routers.o.rule: x}}": "deploy.labels: traefik.http.routers.o.rule: o is not a name",
    "deploy: {labels: {'traefik.http.routers.${STACK_NAME}.rule': x}}": "variables in the keys of a mapping are not expanded",
}
#: The same of a file with variables: what stands in it, once Docker has read it.
ENV_FILES = {
    "/etc/passwd": "/etc/passwd points outside the recipe",
    "/proc/self/environ": "/proc/self/environ points outside the recipe",
}
#: What may stand under networks, volumes, configs or secrets.
REST = [
    ("networks", "host: {external: true}", "the external network host"),
    ("networks", "a: {external: true, name: other_default}", "the external network other_default"),
    ("networks", "b: {external: true, name: ingress}", "the external network ingress"),
    ("networks", "c: {driver: macvlan}", "the network driver macvlan"),
    ("networks", "d: {driver_opts: {encrypted: ''}}", "driver_opts"),
    ("networks", "e: {name: other_default}", "the name other_default, which is not the stack's own"),
    ("networks", "f: {name: '${STACK_NAME}x'}", "the name ${STACK_NAME}x, which is not the stack's own"),
    ("networks", "g: {ipam: {config: [{subnet: 10.0.0.0/8}]}}", "ipam"),
    ("networks", "cc-ci-front: {external: true, name: proxy}", "a name that begins with cc-ci-"),
    ("networks", "h: {name: '${STACK_NAME}_cc-ci-front'}", "a name that begins with cc-ci-"),
    ("volumes", "a: {external: true, name: other_data}", "the external volume other_data"),
    ("volumes", "b: {external: true}", "the external volume b"),
    ("volumes", "c: {name: other_data}", "the name other_data, which is not the stack's own"),
    ("volumes", "d: {name: '${STACK_NAME}_/../x'}", "which is not the stack's own"),
    ("volumes", "e: {driver_opts: {type: none, o: bind, device: /etc}}", "driver_opts, which can mount any folder: device=/etc"),
    ("volumes", "f: {driver: rclone}", "the volume driver rclone"),
    ("volumes", "g: {labels: {cc-ci.keep: 'true'}}", "labels: cc-ci.keep"),
    ("volumes", "i: {labels: {a: '{{range}}'}}", f"labels a={{{{range}}}}, {TEMPLATE}"),
    ("volumes", "h: {x-cluster-spec: {access_mode: {scope: multi}}}", "a cluster volume"),
    ("configs", "a: {file: ../../etc/passwd}", "points outside the recipe"),
    ("configs", "b: {file: link}", "points outside the recipe"),
    ("configs", "c: {file: .git/config}", "points outside the recipe"),
    ("configs", "d: {file: missing}", "The recipe has no file missing"),
    ("configs", "e: {external: true}", "the external config e"),
    ("configs", "f: {file: compose.yml, name: other_conf}", "the name other_conf, which is not the stack's own"),
    ("configs", "h: {file: doubled.tmpl, template_driver: golang}", f"the template doubled.tmpl with {TEMPLATE[16:]}"),
    ("configs", "g: {file: plain, template_driver: x}", "template_driver x"),
    ("secrets", "a: {file: /etc/shadow}", "points outside the recipe"),
    ("secrets", "b: {external: true, name: other_password}", "the name other_password, which is not the stack's own"),
    ("secrets", "c: {external: true}", "the name c, which is not the stack's own"),
    ("secrets", "d: {driver: vault}", "the driver vault"),
]
#: What Docker's reader itself refuses, and what it says. (Where a newer one takes it, `_each` refuses it.)
DOCKER_REFUSES = {
    "services: {app: {image: x, gpus: all}}": "gpus",
    "services: {app: {image: x, use_api_socket: true}}": "use_api_socket",
    "services: {app: {image: x, label_file: ./labels}}": "label_file",
    "services: {app: {image: x, runtime: other}}": "runtime",
    "services: {app: {image: x, uts: host}}": "uts",
    "services: {app: {image: x, group_add: [docker]}}": "group_add",
    "services: {app: {image: x, device_cgroup_rules: ['c *:* rwm']}}": "device_cgroup_rules",
    "services: {app: {image: x, devices: [{source: /dev/kvm, target: /dev/kvm}]}}": "devices.0",
    "services: {app: {image: x, extends: {file: /etc/passwd, service: x}}}": "extends",
    "services: {app: {image: x, volumes_from: [other]}}": "volumes_from",
    "services: {app: {image: x, volumes: [{source: /etc, target: /x}]}}": "type is required",
    "services: {app: {image: x, env_file: [{path: /etc/passwd}]}}": "env_file.0",
    "services: {app: {image: x, env_file: link}}": "link",
    "services: {app: {image: x, deploy: {resources: {reservations: {devices: [{capabilities: [gpu]}]}}}}}": "devices",
    "services: {app: {image: x}}\nconfigs: {x: {environment: DOCKER_AUTH_CONFIG}}": "environment",
    "services: {app: {image: x}}\nconfigs: {x: {content: y}}": "content",
    "services: {app: {image: x}}\nsecrets: {x: {environment: DOCKER_AUTH_CONFIG}}": "environment",
    "services: {app: {image: x}}\ninclude: [/etc/passwd]": "include",
    "services: {app: {image: x, Privileged: true}}": "Privileged",
    "services: {app: {image: x}, app: {image: x, privileged: true}}": "already defined",
    'services: {app: {image: x, "<<": {privileged: true}}}': "<<",
}


def by_path(read: Recipe) -> dict[str, list[str]]:
    """All problems' words, by what they are about: `services.s1`, `volumes.a`."""
    found: dict[str, list[str]] = {}
    for problem in admission.problems(read):
        rest = ".".join(problem.path[2:])
        found.setdefault(".".join(problem.path[:2]), []).append(f"{rest}: {problem.message}" if rest else problem.message)
    return found


def test_each_thing_of_a_service(tmp_path: Path) -> None:
    cases = SERVICES | LABELS | {f"env_file: {file}": f"env_file: {words}" for file, words in ENV_FILES.items()}
    text = "networks: {proxy: {external: true}}\nvolumes: {a: }\nservices:\n"
    text += "".join(f"  s{number}: {{image: x, {part}}}\n" for number, part in enumerate(cases))
    found = by_path(load(write(tmp_path, text, **{".env.sample": SAMPLE})))
    assert len(found) == len(cases)
    for number, (part, words) in enumerate(cases.items()):
        said = found[f"services.s{number}"]
        assert words in said if part in SERVICES else any(words in one for one in said), part


def test_each_thing_beside_services(tmp_path: Path) -> None:
    text = "services: {app: {image: x}}\n"
    for kind in ("networks", "volumes", "configs", "secrets"):
        text += f"{kind}:\n" + "".join(f"  {part}\n" for of, part, _ in REST if of == kind)
    (tmp_path / "link").symlink_to("/etc/hostname")
    found = by_path(load(write(tmp_path, text, **{".git/config": "x", "doubled.tmpl": "{{$a := 1}}", "plain": "x"})))
    assert len(found) == len(REST)
    for kind, part, words in REST:
        [said] = found[f"{kind}.{part.partition(':')[0]}"]
        assert words in said, part


def test_what_docker_refuses_is_its_own_word_with_file_and_line(tmp_path: Path) -> None:
    need_reader()
    (tmp_path / "link").symlink_to("/etc/hostname")
    names = {f"compose.{number}.yml": text for number, text in enumerate(DOCKER_REFUSES)}
    write(tmp_path, "services: {app: {image: x}}", **names)
    found = recipe.problems(context(tmp_path), tmp_path, list(names))
    assert found is not None and found.keys() == names.keys()
    for (name, error), (text, words) in zip(found.items(), DOCKER_REFUSES.items(), strict=True):
        assert error.message.startswith(f"Docker refuses {name}"), text
        assert words in error.message and error.recipes_fault, text


@pytest.mark.parametrize("files", ["compose.yml:link", "compose.yml:../outside.yml", "compose.yml:/etc/passwd", ".git/c.yml"])
def test_a_compose_file_outside(files: str, tmp_path: Path) -> None:
    (tmp_path / "outside.yml").write_text("services: {}")
    folder = write(tmp_path / "r", "services: {}", **{".env.sample": f"COMPOSE_FILE={files}", ".git/c.yml": "services: {}"})
    (folder / "link").symlink_to(tmp_path / "outside.yml")
    with pytest.raises(DeployError, match="points outside the recipe") as caught:
        load(folder)
    assert caught.value.kind == "forbidden"


def test_everything_wrong_is_told_at_once(tmp_path: Path) -> None:
    said = refused(load(write(tmp_path, "services: {a: {image: x, privileged: true}, b: {image: x, pid: host}}")))
    assert "compose.yml:1: services.a: privileged; compose.yml:1: services.b: pid host." in said


def test_of_very_much_the_first_ten_are_told(tmp_path: Path) -> None:
    said = refused(load(write(tmp_path, f"services: {{a: {{image: x, cap_add: {[f'C{n}' for n in range(10, 40)]}}}}}")))
    assert "cap_add C19; and 20 more." in said and "C20" not in said


def test_what_is_long_or_no_text_for_people_is_shown_shortened(tmp_path: Path) -> None:
    said = refused(load(write(tmp_path, rf'services: {{a: {{image: x, pid: "{"y" * 5000}", ipc: "\e[31m\nred"}}}}')))
    assert len(said) < 2000 and said.isprintable()
    assert "services.a: ipc ?[31m?red" in said and "Or allow it" not in said


def test_the_line_is_named_where_there_is_one_of_its_own(tmp_path: Path) -> None:
    text = (
        "services:\n  app:\n    image: x\n    pid: host\n  a.b: {image: x, volumes: ['/:/h']}\nconfigs:\n  c:\n    file: ../x\n"
    )
    over = "services:\n  app:\n    labels:\n      - x=y\n      - cc-ci.keep=true\n"
    folder = write(tmp_path, text, **{"o.yml": over, ".env.sample": "COMPOSE_FILE=compose.yml:o.yml"})
    said = refused(load(folder))
    for words in (
        "compose.yml:4: services.app: pid",
        "compose.yml:5: services.a.b: a bind",
        "compose.yml:7: configs.c: ",
        "o.yml:5: services.app.labels: cc-ci.keep",
    ):
        assert words in said


def test_what_recipes_do_every_day_is_admitted(tmp_path: Path) -> None:
    text = """
version: "3.13"
x-common: &common {restart: always, tty: false}
services:
  app:
    <<: *common
    image: x
    x-note: [anything, {at: all}]
    command: ["a", "--b", "{{range}}"]
    entrypoint: /docker-entrypoint.sh
    environment: [A=1, "B=${B}", C, "NODE={{.Node.Hostname}}", 'F={{index .Service.Labels "com.docker.stack.namespace"}}']
    volumes:
      - "data:/data"
      - {type: tmpfs, target: /tmp, tmpfs: {size: 1000000}}
      - "/anonymous"
      - {type: volume, source: data, target: /b, read_only: true, volume: {nocopy: true}}
      - "more:/c:ro"
    tmpfs: [/run]
    networks: {proxy: {aliases: ["${STACK_NAME}_app"]}, internal: {aliases: [db]}}
    logging: {driver: json-file, options: {max-size: 10m, tag: "{{.Name}}"}}
    dns: [1.1.1.1]
    hostname: "${DOMAIN}"
    container_name: app
    user: "1000:1000"
    working_dir: /x
    extra_hosts: ["a:127.0.0.1"]
    healthcheck: {test: [CMD, "true", "{{define}}"], interval: 5s, retries: 3, start_period: 1m}
    init: true
    ulimits: {nofile: 65536, nproc: {soft: 1, hard: 2}}
    privileged: false
    cap_drop: [ALL]
    cap_add: []
    security_opt: ["no-new-privileges:true"]
    shm_size: 64m
    stop_grace_period: 1m
    ports: ["22:22", {target: 80, published: 8080, mode: host}]
    configs: [{source: conf, target: /c, mode: 0555}, conf]
    secrets: [pw, {source: file, uid: "1"}]
    env_file: settings.env
    build: .
    labels: [backupbot.backup=true, "x={{.Other}}"]
    deploy:
      mode: replicated
      replicas: 2
      labels: ["traefik.enable=true", "traefik.http.routers.${STACK_NAME}.rule=Host(`${DOMAIN}`)"]
      placement: {constraints: [node.role == manager], preferences: [{spread: node.labels.x}], max_replicas_per_node: 1}
      resources: {limits: {memory: 1g, cpus: "0.5", pids: 100}, reservations: {memory: 10m}}
      update_config: {failure_action: rollback, order: start-first, max_failure_ratio: 0.5, delay: 1s, parallelism: 1}
      rollback_config: {order: start-first}
      restart_policy: {condition: on-failure, delay: 5s, max_attempts: 3, window: 1m}
      endpoint_mode: dnsrr
  second: {image: y}
networks: {proxy: {external: true}, internal: , other: {driver: overlay, internal: true, attachable: true, labels: {a: b}}}
volumes: {data: , more: , named: {name: "${STACK_NAME}_named", driver: local}}
configs: {conf: {name: "${STACK_NAME}_conf_v1", file: conf.tmpl, template_driver: golang}}
secrets: {pw: {external: true, name: "${STACK_NAME}_pw_v1"}, file: {file: conf.tmpl}}
"""
    files = {"conf.tmpl": "x", "settings.env": "A=1", ".env.sample": "B=2"}
    assert refused(load(write(tmp_path, text, **files))) == ""


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


def refused(read: Recipe, *allow: str) -> str:
    """What is still refused; empty when nothing is."""
    try:
        admission.check(read, allow)
    except DeployError as error:
        assert error.kind == "forbidden"
        return str(error)
    return ""


def test_each_thing_has_words_of_its_own_and_its_line(tmp_path: Path) -> None:
    said = refused(load(write(tmp_path, HUNGRY)))
    for words in (
        "compose.yml:5: services.app: cap_add NET_ADMIN; compose.yml:6: services.app: cap_add SYS_TIME",
        "compose.yml:8: services.app: a bind mount of /srv/media; compose.yml:9: services.app: a bind mount of ./data",
        "compose.yml:13: services.app: the alias keycloak on the shared network proxy",
        "compose.yml:18: networks.other: the name ${STACK_NAME}x, which is not the stack's own",
    ):
        assert words in said


def test_what_is_allowed_word_for_word_is_skipped_and_nothing_else(tmp_path: Path) -> None:
    read = load(write(tmp_path, HUNGRY))
    said = refused(read, "services.app: cap_add NET_ADMIN", " services.app: a bind mount of /srv/media ")
    assert "NET_ADMIN" not in said and "/srv/media" not in said
    assert "SYS_TIME" in said and "./data" in said
    for near in ("services.app: cap_add", "services.db: cap_add SYS_TIME", "cap_add SYS_TIME", "SYS_TIME", "*", ""):
        assert "SYS_TIME" in refused(read, near)


def test_the_error_says_the_very_lines_that_allow_it(tmp_path: Path) -> None:
    read = load(write(tmp_path, HUNGRY.replace("      - ./data:/data\n", "")))
    offered = re.findall(r"`([^`]+)`", refused(read))
    assert len(offered) == 5
    assert refused(read, *offered) == ""
    for left_out in offered:
        assert left_out in refused(read, *(line for line in offered if line != left_out))


#: What reaches beyond the run's own, and so is not for one enrolment to allow.
NOBODY = """
services:
  checkout: {image: x, volumes: ['./data:/data']}
  dots: {image: x, volumes: ['/srv/../etc:/data']}
  label: {image: x, labels: {cc-ci.keep: 'yes'}}
  variables: {image: x, env_file: /etc/passwd}
  route: {image: x, deploy: {labels: {traefik.http.routers.x.rule: 'Host(`other.example.com`)'}}}
  undeclared: {image: x, volumes: ['other_data:/data']}
networks: {n: {name: "${STACK_NAME}_cc-ci-front"}}
configs: {c: {file: /etc/passwd}}
"""


def test_what_nobody_may_allow(tmp_path: Path) -> None:
    read = load(write(tmp_path, NOBODY))
    said = refused(read)
    lines = list(_words(read))
    assert len(lines) == 8 and "Or allow it" not in said
    assert refused(read, *lines) == said


def _words(read: Recipe) -> Iterator[str]:
    for problem in admission.problems(read):
        yield str(problem)


def test_a_template_is_refused_with_its_own_file_and_line_and_can_be_allowed(tmp_path: Path) -> None:
    text = "services: {db: {image: x}}\nconfigs: {c: {file: db.tmpl, template_driver: golang}, d: {file: db.tmpl}}\n"
    read = load(write(tmp_path, text, **{"db.tmpl": '{{ env "A" }}\n{{ if env "B" }}\n{{ range }}x{{ end }}\n'}))
    said = refused(read)
    assert f"db.tmpl:3: configs.c: the template db.tmpl with {TEMPLATE[16:]}." in said
    [offered] = re.findall(r"`([^`]+)`", said)
    assert refused(read, offered) == ""


def test_what_all_variables_of_the_sample_are_is_judged_for_the_service_that_gets_them(tmp_path: Path) -> None:
    files = {".env.sample": "A='{{range}}'\nB='{{range}}'\n"}
    said = refused(load(write(tmp_path / "app", "services: {app: {image: x, environment: [B=1]}}", **files)))
    assert "services.app: environment A={{range}}" in said and "B=" not in said
    assert refused(load(write(tmp_path / "db", "services: {db: {image: x}}", **files))) == ""


@pytest.mark.parametrize("looked_up", ["env", "secret", "config"])
def test_a_template_makes_no_more_of_itself_than_a_file_may_have(looked_up: str, tmp_path: Path) -> None:
    text = """
services: {db: {image: x, environment: ["LONG=${LONG}"], configs: [c, big], secrets: [big]}}
configs: {c: {file: c.tmpl, template_driver: golang}, big: {file: big}}
secrets: {big: {file: big}}
"""
    files = {"big": "x" * 50_000, ".env.sample": f"LONG={'x' * 50_000}\n"}
    for times, words in (
        (20, ""),
        (21, "c.tmpl:1: configs.c: the template c.tmpl with more than a megabyte once it is filled in"),
    ):
        read = load(write(tmp_path, text, **files, **{"c.tmpl": f'{{{{ {looked_up} "big" }}}}' * times}))
        assert words in refused(read) and bool(words) == bool(refused(read))
