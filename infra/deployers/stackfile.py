"""Turns a recipe's documents into what is deployed: labelled as ours, no port that is taken, no foreign network. Pure."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

from infra.deployers.compose import Recipe, as_mapping, external_name, inside
from infra.deployers.ports import Port

_RESOLVER = re.compile(r"traefik\.(?:http|tcp)\.routers\.[^.]+\.tls\.certresolver", re.IGNORECASE)


def stackfiles(
    recipe: Recipe,
    labels: Mapping[str, str],
    with_proxy: bool,
    ports: Mapping[str, Sequence[Port]] | None = None,
    mark: Mapping[str, str] | None = None,
    certificates: bool = False,
) -> list[dict[str, Any]]:
    """One document for each compose file, in their order.

    `labels` go on everything, `mark` on the services alone: what differs from one deployment to the next may not stand on a
    container, or every task would be started anew. What is published is `ports` and nothing else. Without a proxy its external
    network becomes a private one of the stack. Files are named by their absolute path, and every `$` is doubled, because the
    variables are filled in already. A router's certresolver becomes plain `tls`, unless it may ask for `certificates`.
    """
    result = []
    unpublished = dict(ports or {})
    # Docker merges the ports of several files by their published number, so that free ones would swallow each other, even if
    # all stand in one file: such a service has to be in one file altogether.
    alone = {name for name, wanted in unpublished.items() if sum(not port.published for port in wanted) > 1}
    for number, (_, original) in enumerate(recipe.documents):
        document = {key: copy.deepcopy(value) for key, value in original.items() if not key.startswith("x-")}
        document.setdefault("version", "3.8")
        if number == 0:
            networks = document.get("networks")
            document["networks"] = {"default": {}, **(networks if isinstance(networks, dict) else {})}
        services = _section(document, "services")
        for name in [name for name in services if name in alone]:
            if name in unpublished:
                services[name] = copy.deepcopy(recipe.services[name])
            else:
                del services[name]
        for name, service in services.items():
            _service(service, recipe, labels, mark or {}, certificates)
            if published := unpublished.pop(name, ()):
                service["ports"] = [port.entry() for port in published]
        for kind in ("networks", "volumes", "configs", "secrets"):
            for name, definition in _section(document, kind).items():
                _definition(kind, name, definition, recipe, labels, with_proxy)
        result.append(_escape(document))
    return result


def _section(document: dict[str, Any], key: str) -> dict[str, dict[str, Any]]:
    """A section of the document with an empty mapping for what is only named."""
    section = document.get(key)
    if not isinstance(section, dict):
        return {}
    for name, value in section.items():
        if not isinstance(value, dict):
            section[name] = {}
    return section


def _service(
    service: dict[str, Any], recipe: Recipe, labels: Mapping[str, str], mark: Mapping[str, str], certificates: bool
) -> None:
    service.pop("ports", None)
    service.pop("build", None)
    for key in [key for key in service if key.startswith("x-")]:
        del service[key]
    service["labels"] = {**as_mapping(service.get("labels")), **labels}
    deploy = service.get("deploy")
    deploy = service["deploy"] = deploy if isinstance(deploy, dict) else {}
    own = as_mapping(deploy.get("labels"))
    deploy["labels"] = {**(own if certificates else _without_certificates(own)), **labels, **mark}
    if files := service.get("env_file"):
        service["env_file"] = [str(inside(recipe.checkout, str(file))) for file in ([files] if isinstance(files, str) else files)]


def _without_certificates(labels: Mapping[str, str]) -> dict[str, str]:
    """A router with TLS keeps it, and shows the proxy's default certificate: no run asks for one of its own."""
    kept: dict[str, str] = {}
    for key, value in labels.items():
        router, _, _ = key.rpartition(".")
        kept |= {router: "true"} if _RESOLVER.fullmatch(key) else {key: value}
    return kept


def _definition(
    kind: str, name: str, definition: dict[str, Any], recipe: Recipe, labels: Mapping[str, str], with_proxy: bool
) -> None:
    if external := external_name(name, definition):
        if kind == "networks" and external == "proxy" and not with_proxy:
            definition.clear()
        else:
            return
    definition["labels"] = {**as_mapping(definition.get("labels")), **labels}
    if kind in ("configs", "secrets") and (file := definition.get("file")):
        definition["file"] = str(inside(recipe.checkout, str(file)))


def _escape(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _escape(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_escape(value) for value in node]
    return node.replace("$", "$$") if isinstance(node, str) else node
