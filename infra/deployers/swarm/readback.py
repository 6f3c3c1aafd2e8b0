"""Compares a service in the Swarm with the document that was judged: it must have nothing more. Pure.

`docker stack deploy` reads the document once more, and others can change the Swarm too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from infra.deployers.compose.recipe import mapping, texts
from infra.deployers.docker import images
from infra.deployers.errors import DeployError

#: How the error begins; `doctor` knows such runs by it.
BEGINS = "The Swarm has what was not judged"
_DEFAULT = "default"
#: What Docker says of a container besides what is compared, and that opens it towards nothing (Engine API 1.41 to 1.50).
_KNOWN = (
    *("Image", "Labels", "Command", "Args", "Hostname", "Env", "Dir", "User", "Groups", "Privileges", "TTY", "OpenStdin"),
    *("ReadOnly", "Mounts", "StopSignal", "StopGracePeriod", "Healthcheck", "Hosts", "DNSConfig", "Secrets", "OomScoreAdj"),
    *("Configs", "Isolation", "Init", "Sysctls", "CapabilityAdd", "CapabilityDrop", "Ulimits"),
)
#: The same of a task.
_KNOWN_OF_TASK = ("ContainerSpec", "Resources", "RestartPolicy", "Placement", "Networks", "LogDriver", "ForceUpdate", "Runtime")


def check(document: Mapping[str, Any], stack: str, services: Iterable[Mapping[str, Any]], networks: Mapping[str, str]) -> None:
    """Raises DeployError `not_as_judged` if an inspected service has more than the document says.

    `networks`: names of networks by id. A service that is not in the document may have nothing.
    """
    found = []
    for service in services:
        spec = service["Spec"]
        name = str(spec["Name"]).removeprefix(f"{stack}_")
        own = mapping(mapping(document.get("services")).get(name))
        expected = set(_expected(document, stack, own))
        found += [f"{name}: {change}" for change in _has(spec, networks) if change not in expected]
    if found:
        raise DeployError(
            "not_as_judged",
            f"{BEGINS}: {'; '.join(found[:10])}.",
            "Somebody changed the deployment manually, or Docker interprets it differently: tell this server's administrators.",
        )


def _expected(document: Mapping[str, Any], stack: str, service: Mapping[str, Any]) -> Iterator[str]:
    for mount in service.get("volumes") or []:
        source = str(mount.get("source") or "")
        if mount.get("type") == "volume" and source:
            source = _name(document, "volumes", source, stack)
            volume = mapping(mapping(document.get("volumes")).get(mount.get("source")))
            if volume.get("driver") or volume.get("driver_opts"):
                yield f"a volume driver with options at {mount.get('target')}"
        yield _mount(str(mount.get("type")), source, str(mount.get("target")), bool(mount.get("read_only")))
    for port in service.get("ports") or []:
        yield _port(port.get("published"), port.get("target"), port.get("protocol"), port.get("mode"))
    for network in mapping(service.get("networks")) or [_DEFAULT]:
        yield f"the network {_name(document, 'networks', network, stack)}"
    for capability in service.get("cap_add") or []:
        yield _capability(capability)
    for kind in ("config", "secret"):
        for entry in service.get(f"{kind}s") or []:
            yield f"the {kind} {_name(document, f'{kind}s', str(entry.get('source')), stack)}"
    if service.get("credential_spec"):
        yield "its own privileges"
    for name, value in texts(service.get("sysctls")).items():
        yield f"the sysctl {name}={value}"
    yield f"the image {images.full_name(str(service.get('image')))}"


def _has(spec: Mapping[str, Any], networks: Mapping[str, str]) -> Iterator[str]:
    template = mapping(spec.get("TaskTemplate"))
    container = mapping(template.get("ContainerSpec"))
    for mount in container.get("Mounts") or []:
        kind = str(mount.get("Type", "volume"))
        yield _mount(kind, str(mount.get("Source") or ""), str(mount.get("Target")), bool(mount.get("ReadOnly")))
        driver = mapping(mapping(mount.get("VolumeOptions")).get("DriverConfig"))
        if driver.get("Name") not in (None, "", "local") or driver.get("Options"):
            yield f"a volume driver with options at {mount.get('Target')}"
    for port in mapping(spec.get("EndpointSpec")).get("Ports") or []:
        yield _port(port.get("PublishedPort"), port.get("TargetPort"), port.get("Protocol"), port.get("PublishMode"))
    for network in (*(template.get("Networks") or []), *(spec.get("Networks") or [])):
        target = str(network.get("Target"))
        yield f"the network {networks.get(target, target)}"
    for capability in container.get("CapabilityAdd") or []:
        yield _capability(capability)
    for kind in ("Config", "Secret"):
        for file in container.get(f"{kind}s") or []:
            yield f"the {kind.lower()} {file.get(f'{kind}Name')}"
    privileges = {key: value for key, value in mapping(container.get("Privileges")).items() if value}
    if privileges and privileges != {"NoNewPrivileges": True}:
        yield "its own privileges"
    for name, value in mapping(container.get("Sysctls")).items():
        yield f"the sysctl {name}={value}"
    for group in container.get("Groups") or []:
        yield f"the group {group}"
    if container.get("OomScoreAdj"):
        yield f"the OOM score adjustment {container['OomScoreAdj']}"
    yield f"the image {images.full_name(str(container.get('Image')))}"
    unknown = [key for key in container if key not in _KNOWN] + [key for key in template if key not in _KNOWN_OF_TASK]
    if template.get("Runtime") not in (None, "", "container"):
        unknown.append("Runtime")
    for key in unknown:
        yield f"an unknown setting: {key}"


def _mount(kind: str, source: str, target: str, read_only: bool) -> str:
    return f"a {kind} mount{f' of {source}' if source else ''} at {target}{'' if read_only else ', writable'}"


def _port(published: Any, target: Any, protocol: Any, mode: Any) -> str:
    return f"the port {published or 'any'} for {target}/{protocol or 'tcp'} ({mode or 'ingress'})"


def _capability(name: Any) -> str:
    return f"the capability {str(name).upper().removeprefix('CAP_')}"


def _name(document: Mapping[str, Any], kind: str, key: str, stack: str) -> str:
    """The name in Docker of a volume, network, config or secret of the document."""
    definition = mapping(mapping(document.get(kind)).get(key))
    return str(definition.get("name") or (key if definition.get("external") else f"{stack}_{key}"))
