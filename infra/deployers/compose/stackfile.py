"""Turns a recipe's document into what is deployed: with our labels, free ports and private networks. Pure.

Docker is given JSON, so that no string becomes a number on the way.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from infra.deployers.compose import routes
from infra.deployers.compose.bounds import keep_within
from infra.deployers.compose.files import inside
from infra.deployers.compose.ports import Port
from infra.deployers.compose.recipe import Recipe, mapping, relative, texts
from infra.deployers.context import Bounds

#: The network of a run that the server's proxy joins.
_FRONT = "cc-ci-front"
_FOLDED = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
#: Lists in which Docker wants each entry once, and may have made two of one, such as when files are laid over each other.
_ONCE = (
    *("cap_add", "cap_drop", "dns", "dns_search", "extra_hosts", "tmpfs", "depends_on", "devices", "security_opt", "expose"),
    *("external_links", "links"),
)
_RESOLVER = re.compile(r"traefik\.(?:http|tcp)\.routers\.[^.]+\.tls\.certresolver", re.IGNORECASE)


def of_run(
    recipe: Recipe,
    labels: Mapping[str, str],
    mark: Mapping[str, str],
    ports: Mapping[str, Sequence[Port]],
    stack: str,
    proxied: bool,
    bounds: Bounds,
) -> dict[str, Any]:
    """The document of a run.

    `labels` go on everything, `mark` on the services only: a label that changes with each deployment would restart every task
    if it were on a container. Only `ports` are published. Every external network is the proxy's (`admission`) and becomes a
    private one of the stack. If the run is `proxied`, the services on it that have routes get one more network, which the
    proxy joins (`front`). A router's certresolver becomes plain `tls`; TCP and UDP routers are left out. No service gets more
    resources than `bounds`.
    """
    document = _copy(recipe)
    keep_within(document, bounds)
    networks = document["networks"]
    shared = {key for key, network in networks.items() if network.get("external")}
    networks |= {key: {"driver": "overlay"} for key in shared}
    for service in document["services"].values():
        deploy = service.setdefault("deploy", {})
        for labelled in (service, deploy):
            kept, _ = routes.without_tcp_and_udp(texts(labelled.get("labels")))
            labelled["labels"] = routes.bounded(_without_certificates(kept))
        own = service.get("networks") or {"default": None}
        if proxied and routes.any_of(deploy["labels"]) and shared & own.keys():
            networks[_FRONT] = {"driver": "overlay", "attachable": True}
            service["networks"] = {**own, _FRONT: None}
            routes.lead_over(deploy["labels"], f"{stack}_{_FRONT}")
            if not own_hostname(str(service.get("hostname") or ""), recipe):
                del service["hostname"]
    return _labelled(document, labels, mark, ports)


def own_hostname(name: str, recipe: Recipe) -> bool:
    """Whether a hostname, under which Docker knows a container on each of its networks, is empty or the run's own."""
    domain = recipe.env.get("DOMAIN", "")
    return not name or name.startswith(recipe.env["STACK_NAME"]) or name == domain or name.endswith(f".{domain}")


def of_app(
    recipe: Recipe, labels: Mapping[str, str], mark: Mapping[str, str], ports: Mapping[str, Sequence[Port]]
) -> dict[str, Any]:
    """The document of one of the server's own apps: the recipe's, with our labels."""
    return _labelled(_copy(recipe), labels, mark, ports)


def text(document: Mapping[str, Any]) -> str:
    """The JSON for Docker: every `$` in a value is doubled, because variables are expanded already (keys have none).

    Docker reads it as YAML, which does not know surrogate pairs and folds some characters that JSON leaves alone.
    """
    written = json.dumps(_escape(document), indent=1, ensure_ascii=False)
    return _FOLDED.sub(lambda match: f"\\u{ord(match[0]):04x}", written)


def front(document: Mapping[str, Any], stack: str) -> list[str]:
    """The name of the run's network that the proxy has to join, if any.

    Services have only aliases there that begin with the stack's name (`aliases`).
    """
    return [f"{stack}_{_FRONT}"] if _FRONT in document["networks"] else []


def _copy(recipe: Recipe) -> dict[str, Any]:
    """The document without tools' extensions, what was already read (`env_file`), and what is never deployed (`build`)."""
    document = copy.deepcopy({key: value for key, value in recipe.document.items() if key != "version" and key[:2] != "x-"})
    for kind in ("services", "networks", "volumes", "configs", "secrets"):
        section = document[kind] = {key: mapping(value) for key, value in mapping(document.get(kind)).items()}
        for definition in section.values():
            for key in [key for key in definition if key[:2] == "x-" and key != "x-cluster-spec"]:
                del definition[key]
            if definition.get("external"):
                definition.pop("file", None)
            if kind in ("configs", "secrets") and (file := definition.get("file")):
                definition["file"] = str(inside(recipe.checkout, relative(str(file))))
    if app := document["services"].get("app"):
        # As abra does: templates of configs read what no compose file names.
        app["environment"] = {**recipe.env, **mapping(app.get("environment"))}
    for service in document["services"].values():
        service.pop("env_file", None)
        service.pop("build", None)
        _readable_again(service)
        for mount in service.get("volumes") or []:
            source = str(mount.get("source"))
            if mount.get("type") == "bind" and (inner := relative(source)) != source:
                mount["source"] = str(recipe.checkout / inner)
    return document


def _readable_again(service: dict[str, Any]) -> None:
    """Rewrites what Docker printed of a service to a form that Docker accepts and reads in the same way."""
    for key in _ONCE:
        if isinstance(listed := service.get(key), list):
            service[key] = list(dict.fromkeys(listed))
    for network in mapping(service.get("networks")).values():
        if mapping(network).get("aliases"):
            network["aliases"] = list(dict.fromkeys(network["aliases"]))
    if hosts := service.get("extra_hosts"):  # printed with a colon, but cut at an equals sign first when there is one
        service["extra_hosts"] = [str(host).replace(":", "=", 1) for host in hosts]
    for limit in mapping(service.get("ulimits")).values():
        if isinstance(limit, dict):  # a zero is left out
            limit.setdefault("soft", 0)
            limit.setdefault("hard", 0)


def _labelled(
    document: dict[str, Any], labels: Mapping[str, str], mark: Mapping[str, str], ports: Mapping[str, Sequence[Port]]
) -> dict[str, Any]:
    for name, service in document["services"].items():
        service["labels"] = {**texts(service.get("labels")), **labels}
        deploy = service.setdefault("deploy", {})
        deploy["labels"] = {**texts(deploy.get("labels")), **labels, **mark}
        service.pop("ports", None)
        if published := ports.get(name):
            service["ports"] = [port.entry() for port in published]
    document["networks"].setdefault("default", {})
    for kind in ("networks", "volumes", "configs", "secrets"):
        for definition in document[kind].values():
            if not definition.get("external"):
                definition["labels"] = {**texts(definition.get("labels")), **labels}
    return document


def _without_certificates(labels: Mapping[str, str]) -> dict[str, str]:
    """Routers keep TLS, but with the proxy's default certificate: a run requests none of its own."""
    kept: dict[str, str] = {}
    for key, value in labels.items():
        router, _, _ = key.rpartition(".")
        kept |= {router: "true"} if _RESOLVER.fullmatch(key) else {key: value}
    return kept


def _escape(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _escape(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_escape(value) for value in node]
    return node.replace("$", "$$") if isinstance(node, str) else node
