"""The long-lived apps of a server on its Swarm: what a run's deployment may not do, such an app may, and its data is sacred.

Ports stay as they are written, routers ask for their certificates, and the recipe is not searched for what a stranger might do:
the operator has chosen it. The stack is known by its name, for whoever deployed it first may have set no label of ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.deployers import engine, settling, specs, stacks, volumes
from infra.deployers.base import DeployError
from infra.deployers.compose import ports, stackfile
from infra.deployers.compose.recipe import Recipe
from infra.deployers.docker_cli import LABEL_DEPLOYMENT, call, docker
from infra.deployers.engine import began, inspect, listed
from infra.deployers.stacks import LABEL_STACK, Owned
from infra.deployers.swarm import SwarmDeployer
from infra.deployers.volumes import Volume, Volumes

_STOP_SECONDS = 60.0
#: An update that Swarm stopped goes on with the next one only.
_STUCK = ("paused", "rollback_paused")
#: So often is a spec written when Swarm itself touched the service in between.
_WRITES = 5


@dataclass(frozen=True)
class Part:
    """One service of an app as it is now, in what tells it from any other deployment of it."""

    fingerprint: str  #: of what was asked for, without our mark
    mark: str = ""  #: of the deployment that asked for it
    version: str = ""  #: its label, empty without one
    image: str = ""
    update: str = ""  #: the state of its update: "", updating, completed, paused, rollback_…
    message: str = ""  #: Swarm's words on the update
    wanted: int = 1
    running: int = 0
    health: str = ""
    tasks: tuple[str, ...] = ()  #: the running ones: another id means that it was started anew
    failed: tuple[str, ...] = ()  #: tasks that failed, as far as Swarm remembers
    problem: str = ""  #: the last failure, in Docker's words


@dataclass(frozen=True)
class Recorded:
    """All that is needed to know later what ran: the services' specs, the images' ids, the volumes and how they were made."""

    specs: Mapping[str, Any]
    images: Mapping[str, str]  #: service -> id of the image that its newest container runs
    names: Mapping[str, str]  #: service -> the image as its spec names it
    volumes: Sequence[Volume] = field(default_factory=tuple)
    networks: Mapping[str, Any] = field(default_factory=dict)  #: id -> how it was made: a body for `/networks/create`


class LastingDeployer(SwarmDeployer):
    """An app of the server. `Context.app`, `.app_stack` and `.mark` must be set, and `.ephemeral` be false."""

    deploy_options = ("--prune",)  # what the other version does not have goes; what it has comes back

    @property
    def owned(self) -> Owned:
        return Owned(self.stack, (f"{LABEL_STACK}={self.stack}",))

    def _refuse(self, found: Recipe) -> None:
        pass

    def _published(self, recipe: Recipe) -> dict[str, list[ports.Port]]:
        found = {name: ports.read(service.get("ports") or []) for name, service in recipe.services.items()}
        return {name: own for name, own in found.items() if own}

    def _document(self, recipe: Recipe, published: Mapping[str, Sequence[ports.Port]]) -> dict[str, Any]:
        return stackfile.of_app(recipe, stacks.marks(self.context), {LABEL_DEPLOYMENT: self._mark()}, published)

    def _mark(self) -> str:
        return self.mark

    @property
    def mark(self) -> str:
        """What each service of this deployment is marked with; empty where nothing can be marked."""
        return self.context.mark

    def _secrets_there(self) -> set[str]:
        return {str(secret["Spec"]["Name"]) for secret in listed("secret")}

    def know(self, checkout: Path) -> None:
        """From now on look at the app as a deployment of this checkout. Changes nothing."""
        self._checkout = checkout
        self._recipe = recipe = self.recipe(checkout)
        self._web = recipe.web(frozenset()) or self._exposed(recipe)

    def fetch(self, checkout: Path) -> Sequence[str]:
        """Have a version's images on this machine: their names. Changes nothing else."""
        self._checkout = checkout
        recipe = self.recipe(checkout)
        for image in recipe.images:
            self.context.check()
            self._get(image)
        return recipe.images

    def timeout(self, checkout: Path) -> int:
        """How long the recipe says that it may take to settle, in seconds; 0 when it does not."""
        self._checkout = checkout
        recipe, key = self.recipe(checkout), f"coop-cloud.{self.stack}.timeout"
        found = [value for name in recipe.services if (value := recipe.labels(name).get(key, "")[:9]).isdecimal()]
        return max(map(int, found), default=0)

    def volumes_there(self) -> list[str]:
        """The volumes of the stack that are on this machine, whether it runs or not."""
        names = [str(volume["Name"]) for volume in listed("volume")]
        return sorted({*self.owned.ids("volume"), *(name for name in names if name.startswith(f"{self.stack}_"))})

    def secrets_missing(self) -> dict[str, str]:
        """The secrets that the recipe expects and the Swarm does not have: their names, each with its key in the recipe."""
        there = self._secrets_there()
        recipe = self._recipe or self.recipe(self._checkout)
        return {secret.name: secret.key for secret in recipe.secrets if secret.name not in there}

    def services(self) -> list[dict[str, Any]]:
        """What Docker says of the stack's services now. `parts`, `published` and `record` take it, so that it is asked once."""
        return self.owned.services()

    def parts(self, services: list[dict[str, Any]] | None = None) -> dict[str, Part]:
        """Every service of the stack now, by its short name; empty when nothing runs."""
        services = self.services() if services is None else services
        if not services:
            return {}
        look = settling.look(self.stack, services)
        networks = self._network_names(services)
        seen = {service.name: service for service in look.services}
        found = {}
        for service in services:
            spec = service["Spec"]
            name = str(spec["Name"]).removeprefix(f"{self.stack}_")
            labels, update = spec.get("Labels") or {}, service.get("UpdateStatus") or {}
            tasks = [task for task in look.tasks if task.service == spec["Name"]]
            found[name] = Part(
                settling.fingerprint([service], networks),
                str(labels.get(LABEL_DEPLOYMENT, "")),
                str(labels.get(f"coop-cloud.{self.stack}.version", "")),
                seen[name].image,
                str(update.get("State", "")),
                str(update.get("Message", "")),
                seen[name].wanted,
                seen[name].running,
                seen[name].health,
                tuple(sorted(t.id for t in tasks if t.desired == "Running" and t.state == "Running")),
                tuple(sorted(t.id for t in tasks if t.failed)),
                next((t.error for t in tasks if t.failed and t.error), ""),
            )
        return found

    def docker_began(self) -> str:
        """When Docker itself was started: each of its starts starts all tasks anew. Empty when that cannot be told."""
        return began()

    def published(self, services: list[dict[str, Any]] | None = None) -> dict[str, list[int]]:
        """The ports that each service publishes on this machine."""
        found = {}
        for service in self.services() if services is None else services:
            listed = (service["Spec"].get("EndpointSpec") or {}).get("Ports") or []
            found[str(service["Spec"]["Name"]).removeprefix(f"{self.stack}_")] = [
                int(port["PublishedPort"]) for port in listed if port.get("PublishedPort")
            ]
        return found

    def record(self, services: list[dict[str, Any]] | None = None) -> Recorded:
        """What runs now, in full."""
        services = self.services() if services is None else services
        found = {str(s["Spec"]["Name"]).removeprefix(f"{self.stack}_"): s["Spec"] for s in services}
        images = {}
        for name in found:
            if newest := self.owned.containers(name)[:1]:
                images[name] = str(newest[0]["Image"])
        names = {name: str(spec["TaskTemplate"]["ContainerSpec"]["Image"]) for name, spec in found.items()}
        used = sorted(set().union(*(specs.networks_of(spec) for spec in found.values())))
        networks = {str(one["Id"]): specs.network(one) for one in inspect("network", used)}
        return Recorded(found, images, names, volumes.described(mounted(found)), networks)

    def restore_specs(self, checkout: Path, recorded: Recorded) -> None:
        """Put every service back as it was recorded, whatever the version's files say; services that were not there go.

        `settle` then says whether it came about. `checkout` are the files of the version that ran: they make what a spec needs
        and nobody has any more (a config that was removed). May be called again. Raises DeployError.
        """
        names = {key: str(network["Name"]) for key, network in recorded.networks.items()}
        self._networks_again(recorded.networks)
        now = self._ids()
        if any(specs.missing(spec, names, now) for spec in recorded.specs.values()):
            self.deploy(checkout)
        now = self._ids()
        if lost := sorted({one for spec in recorded.specs.values() for one in specs.missing(spec, names, now)}):
            raise DeployError("tool_failed", f"What ran of {self.stack} needs what is gone: {', '.join(lost)}.", "Make it again.")
        self._begin()
        self.know(checkout)
        there = self.owned.services()
        self._before = settling.specs(there)
        self._count += 1
        by_name = {str(service["Spec"]["Name"]): service for service in there}
        wanted = {str(spec["Name"]): specs.of_now(spec, names, now, self._mark()) for spec in recorded.specs.values()}
        for name in sorted(set(by_name) - set(wanted)):
            docker("service", "rm", name)
        for name, spec in wanted.items():
            self.context.check()
            self._write(spec, by_name.get(name))

    def _write(self, spec: Mapping[str, Any], service: Mapping[str, Any] | None) -> None:
        if service is None:
            engine.post("/services/create", spec)
            return
        if service["Spec"] == spec and (service.get("UpdateStatus") or {}).get("State", "") not in _STUCK:
            return
        for left in reversed(range(_WRITES)):
            try:
                engine.post(f"/services/{service['ID']}/update", spec, version=str(service["Version"]["Index"]))
                return
            except DeployError as error:
                # Swarm's own notes on an update raise the number as well; a spec that changed is somebody's hand.
                now = inspect("service", [service["ID"]]) if "out of sequence" in str(error) and left else []
                if not now or now[0]["Spec"] != service["Spec"]:
                    raise
                service = now[0]

    def _networks_again(self, recorded: Mapping[str, Any]) -> None:
        """Make the stack's own networks that went with it."""
        there = self._ids().networks
        for network in recorded.values():
            if network["Name"] in there or network["Labels"].get(LABEL_STACK) != self.stack:
                continue
            try:
                engine.post("/networks/create", network)
            except DeployError:  # its addresses are another's by now
                engine.post("/networks/create", {**network, "IPAM": {"Driver": network["IPAM"]["Driver"]}})

    def _ids(self) -> specs.Ids:
        networks = {str(network["Name"]): str(network["Id"]) for network in listed("network")}
        files = ({str(one["Spec"]["Name"]): str(one["ID"]) for one in listed(kind)} for kind in ("config", "secret"))
        return specs.Ids(networks, *files)

    def missing_images(self, recorded: Recorded) -> list[str]:
        """The images of what ran that are not on this machine any more, by name. Changes nothing."""
        return [recorded.names[name] for name, image in recorded.images.items() if not inspect("image", [image])]

    def name_images(self, recorded: Recorded) -> None:
        """Let each image's name mean again what ran under it: a tag may have moved since."""
        for service, image in recorded.images.items():
            name = recorded.names[service]
            now = inspect("image", [name])
            if (not now or now[0]["Id"] != image) and "@" not in name:
                docker("image", "tag", image, name)

    def undeploy(self) -> None:
        """Stop all of it with the time that each service gives itself; networks go, data and secrets stay."""
        grace = [
            (service["Spec"]["TaskTemplate"]["ContainerSpec"].get("StopGracePeriod") or 0) / 1e9
            for service in self.owned.services()
        ]
        seconds = _STOP_SECONDS + max(grace, default=0)
        if left := stacks.remove(self.owned, stacks.RUNNING, ephemeral=False, seconds=seconds, check=self._clear):
            raise DeployError("tool_failed", f"The stack {self.stack} did not stop: {', '.join(left)}.", "See Docker's log.")

    def _clear(self) -> None:
        """Remove containers that run no more once their service is gone: Swarm takes seconds for it, and the app is away
        meanwhile. A Swarm whose Docker was started anew in between has forgotten them, and never would.
        """
        self.context.check()
        if self.owned.ids("service"):
            return
        if ended := listed("container", label=self.owned.labels, status=["exited", "created", "dead"]):
            call("rm", *(str(one["Id"]) for one in ended))

    def copier(self, images: Sequence[str]) -> Volumes:
        """What copies the app's volumes, with the first of these images that is here. Raises DeployError."""
        context = self.context
        for image in images:
            if inspect("image", [image]):
                return Volumes(context.installation, context.app, image, context.check)
        raise DeployError("tool_failed", f"No image of {context.app} is here to copy volumes with.", f"docker pull {images[0]}")

    def close(self) -> None:
        """Let go of what watches and locks; the app itself goes on."""
        self._watcher.stop()
        self._leases.release()


def mounted(services: Mapping[str, Any]) -> list[str]:
    """The named volumes that services' specs mount."""
    return sorted(
        {
            str(mount["Source"])
            for spec in services.values()
            for mount in spec["TaskTemplate"]["ContainerSpec"].get("Mounts") or []
            if mount.get("Type") == "volume" and mount.get("Source")
        }
    )
