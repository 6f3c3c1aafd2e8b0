"""doctor on Docker and the sandbox, each of them broken."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest
from django.conf import settings

from controlplane.registry import Finding
from infra import checks
from infra.deployers.docker import addresses
from infra.deployers.docker.cli import LABEL_RUN
from infra.deployers.isolation import bubblewrap, cgroups, syscalls
from tests.docker import IMAGE, need_swarm
from tests.docker import docker as real

MANAGER = {"ServerVersion": "28.0", "Swarm": {"LocalNodeState": "active", "ControlAvailable": True, "NodeID": "abc"}}


@pytest.fixture(autouse=True)
def automatic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings.CC_CI, "deployer", "auto")


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a `docker` with this shell script first in the PATH."""

    def put(script: str) -> None:
        program = tmp_path / "docker"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return put


def says(info: object) -> str:
    return f"cat <<'END'\n{json.dumps(info)}\nEND"


def only(findings: Iterable[Finding]) -> Finding:
    (finding,) = findings
    assert finding.level == "ok" or finding.fix
    return finding


READS = "if [ $1 = stack ]; then echo 'Usage:  docker stack config [OPTIONS]'; exit; fi\n"


def test_docker_well(docker: Callable[[str], None]) -> None:
    docker(READS + says(MANAGER))
    assert only(checks.check_docker()).level == "ok"


@pytest.mark.parametrize(("deployer", "level"), [("swarm", "error"), ("auto", "warning")])
def test_a_docker_command_that_is_too_old_to_read_recipes(
    docker: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, deployer: str, level: str
) -> None:
    """As in Debian 12: `docker stack` knows no `config` there, and shows its help."""
    monkeypatch.setattr(settings.CC_CI, "deployer", deployer)
    old = "case $1 in stack) echo 'Usage:  docker stack [OPTIONS] COMMAND'; exit;; "
    old += "--version) echo Docker version 20.10.24; exit;; esac\n"
    docker(old + says(MANAGER))
    finding = only(checks.check_docker())
    assert finding.level == level
    assert "too old to read compose files (Docker version 20.10.24)" in finding.text
    assert "apt-get install docker-ce-cli" in finding.fix


def test_no_docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    finding = only(checks.check_docker())
    assert finding.fix == "apt-get install docker.io"


def test_docker_that_is_down(docker: Callable[[str], None]) -> None:
    why = "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?"
    docker(f"{says({'ServerErrors': [why]})}\necho '{why}' >&2; exit 1")
    finding = only(checks.check_docker())
    assert why in finding.text and finding.fix == "systemctl start docker"


def test_docker_that_lets_us_not_in(docker: Callable[[str], None]) -> None:
    docker("echo 'permission denied while trying to connect to the Docker daemon socket' >&2; exit 1")
    assert only(checks.check_docker()).fix == "usermod -aG docker $USER"


def test_docker_that_hangs(docker: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "DOCKER_SECONDS", 0.2)
    docker("exec sleep 5")
    assert only(checks.check_docker()).fix == "systemctl restart docker"


def test_docker_that_talks_nonsense(docker: Callable[[str], None]) -> None:
    docker("echo hello")
    assert "does not respond" in only(checks.check_docker()).text


def test_no_swarm(docker: Callable[[str], None]) -> None:
    docker(says({"Swarm": {"LocalNodeState": "inactive"}}))
    assert only(checks.check_docker()).fix == "docker swarm init --advertise-addr 127.0.0.1"


def test_swarm_worker(docker: Callable[[str], None]) -> None:
    docker(says({"Swarm": {"LocalNodeState": "active", "ControlAvailable": False, "NodeID": "abc"}}))
    assert only(checks.check_docker()).fix == "on a manager: docker node promote abc"


@pytest.mark.parametrize(("deployer", "level"), [("swarm", "error"), ("auto", "warning"), ("process", "ok")])
def test_how_bad_it_is_depends_on_the_deployer(
    docker: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, deployer: str, level: str
) -> None:
    docker("exit 1")
    monkeypatch.setattr(settings.CC_CI, "deployer", deployer)
    assert only(checks.check_docker()).level == level


@pytest.fixture
def no_cache() -> Iterable[None]:
    bubblewrap.available.cache_clear()
    yield
    bubblewrap.available.cache_clear()


@pytest.mark.usefixtures("no_cache")
def test_no_bubblewrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    finding = only(checks.check_sandbox())
    assert (
        finding.level == "error"
        and "bubblewrap (bwrap) is not installed" in finding.text
        and "apt-get install bubblewrap" in finding.fix
    )


@pytest.mark.usefixtures("no_cache")
def test_bubblewrap_that_may_not_do_its_work(docker: Callable[[str], None], tmp_path: Path) -> None:
    docker("exit 1")
    (tmp_path / "docker").rename(tmp_path / "bwrap")
    finding = only(checks.check_sandbox())
    assert finding.level == "error" and "Strangers' code is not run." in finding.text


def test_sandbox_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bubblewrap, "available", lambda: bubblewrap.Availability(True))
    monkeypatch.setattr(bubblewrap, "lacking", lambda: iter(()))
    assert only(checks.check_sandbox()).level == "ok"


def test_a_sandbox_that_cannot_hold_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bubblewrap, "available", lambda: bubblewrap.Availability(True))
    monkeypatch.setattr(cgroups, "lacking", lambda: "processors")
    monkeypatch.setattr(syscalls, "program", lambda: b"")
    findings = list(checks.check_sandbox())
    assert [(finding.level, bool(finding.fix)) for finding in findings] == [("warning", True)] * 2
    assert "the processors of a recipe's code" in findings[0].text and "system calls are not filtered" in findings[1].text


def _sysctl(folder: Path, values: Mapping[str, int]) -> None:
    for name, value in values.items():
        path = folder / name.replace(".", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")


def test_limits_of_the_whole_machine_that_a_run_could_use_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "SYSCTL", tmp_path)
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1 << 20}.__getitem__)
    assert only(checks.check_kernel_limits()).level == "ok"  # a kernel that has none of them
    _sysctl(tmp_path, {"fs.inotify.max_user_instances": 128, "fs.aio-max-nr": 65536, "fs.file-max": 2**63 - 1})
    finding = only(checks.check_kernel_limits())
    assert finding.level == "warning"
    assert finding.text.endswith(" fs.inotify.max_user_instances (128), fs.aio-max-nr (65536)")
    assert finding.fix == (
        f"printf '%s\\n' fs.inotify.max_user_instances=16777216 fs.aio-max-nr=134217728 fs.file-max={2**63 - 1}"
        " > /etc/sysctl.d/90-cc-ci.conf && sysctl --system"
    )
    _sysctl(tmp_path, {name: int(value) for name, value in (word.split("=") for word in finding.fix.split() if "=" in word)})
    assert only(checks.check_kernel_limits()).level == "ok"


@pytest.mark.parametrize(
    ("memory", "size", "number"), [(0, 64, 1), (1023, 512, 2), (8 << 30, 512, 1 << 25), (1 << 45, 64, 2**31 - 1)]
)
def test_what_no_memory_can_hold(memory: int, size: int, number: int) -> None:
    assert checks.enough(memory, size) == number


def test_a_kernel_without_the_forwarding_of_services_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (program := tmp_path / "modprobe").write_text('#!/bin/sh\n[ "$1$2$3" = -n-qip_vs ] && exit "$FOUND"\n')
    program.chmod(0o755)
    monkeypatch.setattr(checks, "swarm_problem", lambda: None)
    monkeypatch.setattr(checks, "IPVS", tmp_path / "ip_vs")
    monkeypatch.setattr(checks.shutil, "which", lambda name, path: str(program))
    monkeypatch.setenv("FOUND", "0")
    assert only(checks.check_service_addresses()).level == "ok"  # Docker will load it
    monkeypatch.setenv("FOUND", "1")
    assert only(checks.check_service_addresses()).level == "warning"
    monkeypatch.setattr(checks.shutil, "which", lambda name, path: None)
    assert "services do not reach one another by name" in only(checks.check_service_addresses()).text
    (tmp_path / "ip_vs").touch()
    assert only(checks.check_service_addresses()).level == "ok"


def test_each_limit_is_one_of_this_kernels() -> None:
    """So that a name that is misspelt is not taken for one that a kernel lacks."""
    assert [name for name in checks.SHARED if not (checks.SYSCTL / name.replace(".", "/")).exists()] == []


@pytest.mark.docker
def test_runs_that_share_a_network_with_others(tmp_path: Path) -> None:
    need_swarm()
    run = f"test-{uuid.uuid4().hex[:8]}"
    real("network", "create", "--driver=overlay", run)
    options = ("--detach", "--replicas=0", f"--network={run}")
    try:
        real("service", "create", *options, f"--name={run}-db", f"--label={LABEL_RUN}={run}", IMAGE)
        assert not [finding for finding in checks.check_networks() if run in finding.text]
        real("service", "create", *options, f"--name={run}-production", IMAGE)
        finding = only(finding for finding in checks.check_networks() if run in finding.text)
        assert finding.level == "warning"
        assert f"runs ({run}-db) share the network {run} with other services ({run}-production)" in finding.text
    finally:
        real("service", "rm", f"{run}-db", f"{run}-production", check=False)
        real("network", "rm", run, check=False)


def network(name: str, subnet: str) -> dict[str, object]:
    return {"Id": f"id-{name}", "Name": name, "IPAM": {"Config": [{"Subnet": subnet}, {"Subnet": "fd00::/64"}]}}


def on(name: str, stack: str, vip: str = "10.0.1.2/24") -> dict[str, object]:
    labels = {"com.docker.stack.namespace": stack}
    return {
        "ID": f"id-{stack}",
        "Spec": {"Name": f"{stack}_app", "Labels": labels, "TaskTemplate": {"Networks": [{"Target": f"id-{name}"}]}},
        "Endpoint": {"VirtualIPs": [{"NetworkID": f"id-{name}", "Addr": vip}] if vip else []},
    }


def held(name: str, stack: str, state: str = "running", node: str = "one") -> dict[str, object]:
    attached = {"Network": {"ID": f"id-{name}"}, "Addresses": ["10.0.1.3/24"]}
    return {"ServiceID": f"id-{stack}", "NodeID": node, "Status": {"State": state}, "NetworksAttachments": [attached]}


@pytest.mark.parametrize(
    ("services", "tasks", "used", "stacks"),
    [
        ([], [], 0, set()),
        ([on("proxy", "a")], [], 1, {"a"}),
        ([on("proxy", "a", vip="")], [], 0, {"a"}),  # it got none
        ([on("proxy", "a")], [held("proxy", "a"), held("proxy", "a", "failed")], 3, {"a"}),
        ([on("proxy", "a"), on("proxy", "b")], [held("proxy", "a"), held("proxy", "b", node="two")], 6, {"a", "b"}),
        ([on("proxy", "a")], [held("proxy", "a", "pending", node="")], 2, {"a"}),
        ([on("other", "a")], [held("other", "a")], 0, set()),
    ],
)
def test_what_takes_an_address(
    services: list[dict[str, object]], tasks: list[dict[str, object]], used: int, stacks: set[str]
) -> None:
    (found,) = addresses.counted([network("proxy", "10.0.1.0/24")], services, tasks)
    assert (found.size, found.used, found.stacks) == (253, used, stacks)


@pytest.mark.parametrize(
    ("use", "level"),
    [
        (addresses.Use("proxy", "10.0.1.0/24", 253, 3), "warning"),
        (addresses.Use("proxy", "10.0.1.0/24", 253, 253), "error"),
        (addresses.Use("proxy", "10.0.0.0/16", 65533, 3), "ok"),
        (addresses.Use("backend", "10.0.1.0/24", 253, 3, frozenset({"a", "b"})), "warning"),
        (addresses.Use("a_default", "10.0.1.0/24", 253, 3, frozenset({"a"})), "ok"),
        (addresses.Use("ingress", "10.0.0.0/24", 253, 9, frozenset({"a", "b"})), "ok"),
        (addresses.Use("ingress", "10.0.0.0/24", 253, 200, frozenset({"a", "b"})), "warning"),
    ],
)
def test_a_small_network_that_apps_share(use: addresses.Use, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "swarm_problem", lambda: "")
    monkeypatch.setattr(addresses, "uses", lambda: [use])
    found = only(checks.check_addresses())
    assert found.level == level
    assert level == "ok" or (use.name in found.text and use.name in found.fix)
