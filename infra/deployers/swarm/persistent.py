"""A server's persistent apps on its Swarm: they may do what a run's deployment may not, and their data must not be lost.

Ports stay as written, routers request certificates, and the recipe is not checked for hostile content, because the operator chose
it. The stack is known by its name, since whoever deployed it first may not have set our labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.deployers.compose import ports, stackfile
from infra.deployers.compose.recipe import Recipe
from infra.deployers.docker import api, images, service_specs, stacks, volumes
from infra.deployers.docker.api import began, inspect, listed
from infra.deployers.docker.cli import LABEL_DEPLOYMENT, docker
from infra.deployers.docker.stacks import LABEL_STACK, Owned
from infra.deployers.docker.volumes import Volume, Volumes
from infra.deployers.errors import DeployError
from infra.deployers.swarm import convergence
from infra.deployers.swarm.ephemeral import SwarmDeployer, timeout

_STOP_SECONDS = 60.0
#: An update that Swarm stopped goes on with the next one only.
_STUCK = ("paused", "rollback_paused")
#: So often is a spec written when Swarm itself touched the service in between.
_WRITES = 5


@dataclass(frozen=True)
class ServiceState:
    """The current state of one service of an app, with everything that identifies its deployment."""

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
class StackBaseline:
    """Everything needed to tell later what ran: service specs, image ids, volumes and how they were created."""

    specs: Mapping[str, Any]
    images: Mapping[str, str]  #: service -> id of the image that its newest container runs
    names: Mapping[str, str]  #: service -> the image as its spec names it
    volumes: Sequence[Volume] = field(default_factory=tuple)
    networks: Mapping[str, Any] = field(default_factory=dict)  #: id -> how it was made: a body for `/networks/create`


class PersistentDeployer(SwarmDeployer):
    """Deploys an app of the server. `Context.app`, `.app_stack` and `.mark` must be set, and `.ephemeral` must be false."""

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
        """The mark on each service of this deployment; empty if there is none."""
        return self.context.mark

    def _secrets_there(self) -> set[str]:
        return {str(secret["Spec"]["Name"]) for secret in listed("secret")}

    def know(self, checkout: Path) -> None:
        """Treat the app as a deployment of this checkout from now on. Changes nothing."""
        self._checkout = checkout
        self._recipe = recipe = self.recipe(checkout)
        self._web = recipe.web(frozenset()) or self._exposed(recipe)

    def fetch(self, checkout: Path) -> Sequence[str]:
        """Pull a version's images. Returns their names. Changes nothing else."""
        self._checkout = checkout
        recipe = self.recipe(checkout)
        for image in recipe.images:
            self.context.check()
            images.get(image, self.context)
        return recipe.images

    def _get(self, image: str) -> None:
        # A tag that moved is fetched for a new version alone: what ran, and is put back, is the image that its name means here.
        images.get(image, self.context, renew=False)

    def timeout(self, checkout: Path) -> int:
        """The recipe's own timeout for settling, in seconds; 0 without one."""
        self._checkout = checkout
        return timeout(self.recipe(checkout))

    def volumes_there(self) -> list[str]:
        """The stack's volumes on this machine, whether it runs or not."""
        names = [str(volume["Name"]) for volume in listed("volume")]
        return sorted({*self.owned.ids("volume"), *(name for name in names if name.startswith(f"{self.stack}_"))})

    def secrets_missing(self) -> dict[str, str]:
        """The secrets that the recipe expects and the Swarm lacks: their names, each with its key in the recipe."""
        there = self._secrets_there()
        recipe = self._recipe or self.recipe(self._checkout)
        return {secret.name: secret.key for secret in recipe.secrets if secret.name not in there}

    def services(self) -> list[dict[str, Any]]:
        """The stack's services as Docker reports them now. `parts`, `published` and `record` accept it, to ask only once."""
        return self.owned.services()

    def parts(self, services: list[dict[str, Any]] | None = None) -> dict[str, ServiceState]:
        """The current state of every service of the stack, by its short name; empty if nothing runs."""
        services = self.services() if services is None else services
        if not services:
            return {}
        poll = convergence.poll(self.stack, services)
        networks = self._network_names(services)
        seen = {service.name: service for service in poll.services}
        found = {}
        for service in services:
            spec = service["Spec"]
            name = str(spec["Name"]).removeprefix(f"{self.stack}_")
            labels, update = spec.get("Labels") or {}, service.get("UpdateStatus") or {}
            tasks = [task for task in poll.tasks if task.service == spec["Name"]]
            found[name] = ServiceState(
                convergence.fingerprint([service], networks),
                str(labels.get(LABEL_DEPLOYMENT, "")),
                str(labels.get(f"coop-cloud.{self.stack}.version", "")),
                seen[name].image,
                poll.update(spec["Name"]),
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
        """When Docker itself was started, which restarts all tasks. Empty if that cannot be determined."""
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

    def record(self, services: list[dict[str, Any]] | None = None) -> StackBaseline:
        """A full record of what runs now."""
        services = self.services() if services is None else services
        found = {str(s["Spec"]["Name"]).removeprefix(f"{self.stack}_"): s["Spec"] for s in services}
        images = {}
        for name in found:
            if newest := self.owned.containers(name)[:1]:
                images[name] = str(newest[0]["Image"])
        names = {name: str(spec["TaskTemplate"]["ContainerSpec"]["Image"]) for name, spec in found.items()}
        used = sorted(set().union(*(service_specs.networks_of(spec) for spec in found.values())))
        networks = {str(one["Id"]): service_specs.network(one) for one in inspect("network", used)}
        return StackBaseline(found, images, names, volumes.described(mounted(found)), networks)

    def restore_specs(self, checkout: Path, recorded: StackBaseline) -> None:
        """Restore every service to its recorded spec, whatever the version's files say, and remove services not recorded.

        `settle` then tells whether it succeeded. `checkout`: the files of the version that ran; they recreate what a spec
        needs and no longer exists (a config that was removed). Can be called repeatedly. Raises DeployError.
        """
        names = {key: str(network["Name"]) for key, network in recorded.networks.items()}
        self._networks_again(recorded.networks)
        now = self._ids()
        if any(service_specs.missing(spec, names, now) for spec in recorded.specs.values()):
            self.deploy(checkout)
        now = self._ids()
        if lost := sorted({one for spec in recorded.specs.values() for one in service_specs.missing(spec, names, now)}):
            raise DeployError(
                "tool_failed",
                f"The services recorded for {self.stack} need objects that no longer exist: {', '.join(lost)}.",
                "Recreate them.",
            )
        self._begin()
        self.know(checkout)
        there = self.owned.services()
        self._before = convergence.specs(there)
        self._count += 1
        by_name = {str(service["Spec"]["Name"]): service for service in there}
        wanted = {str(spec["Name"]): service_specs.of_now(spec, names, now, self._mark()) for spec in recorded.specs.values()}
        for name in sorted(set(by_name) - set(wanted)):
            docker("service", "rm", name)
        for name, spec in wanted.items():
            self.context.check()
            self._write(spec, by_name.get(name))

    def _write(self, spec: Mapping[str, Any], service: Mapping[str, Any] | None) -> None:
        if service is None:
            api.post("/services/create", spec)
            return
        if service["Spec"] == spec and (service.get("UpdateStatus") or {}).get("State", "") not in _STUCK:
            return
        for left in reversed(range(_WRITES)):
            try:
                api.post(f"/services/{service['ID']}/update", spec, version=str(service["Version"]["Index"]))
                return
            except DeployError as error:
                # Swarm's own notes on an update raise the number as well; a spec that changed is somebody's hand.
                now = inspect("service", [service["ID"]]) if "out of sequence" in str(error) and left else []
                if not now or now[0]["Spec"] != service["Spec"]:
                    raise
                service = now[0]

    def _networks_again(self, recorded: Mapping[str, Any]) -> None:
        """Recreate the stack's own networks that were removed with it."""
        there = self._ids().networks
        for network in recorded.values():
            if network["Name"] in there or network["Labels"].get(LABEL_STACK) != self.stack:
                continue
            try:
                api.post("/networks/create", network)
            except DeployError:  # its addresses are another's by now
                api.post("/networks/create", {**network, "IPAM": {"Driver": network["IPAM"]["Driver"]}})

    def _ids(self) -> service_specs.Ids:
        networks = {str(network["Name"]): str(network["Id"]) for network in listed("network")}
        files = ({str(one["Spec"]["Name"]): str(one["ID"]) for one in listed(kind)} for kind in ("config", "secret"))
        return service_specs.Ids(networks, *files)

    def missing_images(self, recorded: StackBaseline) -> list[str]:
        """The names of recorded images that are no longer on this machine. Changes nothing."""
        return [recorded.names[name] for name, image in recorded.images.items() if not inspect("image", [image])]

    def name_images(self, recorded: StackBaseline) -> None:
        """Point each image's name to the recorded image again: a tag may have moved since."""
        for service, image in recorded.images.items():
            name = recorded.names[service]
            now = inspect("image", [name])
            if (not now or now[0]["Id"] != image) and "@" not in name:
                docker("image", "tag", image, name)

    def undeploy(self) -> None:
        """Stop everything, with each service's own grace period; networks are removed, data and secrets are kept."""
        grace = [
            (service["Spec"]["TaskTemplate"]["ContainerSpec"].get("StopGracePeriod") or 0) / 1e9
            for service in self.owned.services()
        ]
        seconds = _STOP_SECONDS + max(grace, default=0)
        if left := stacks.remove(self.owned, stacks.RUNNING, ephemeral=False, seconds=seconds, check=self.context.check):
            raise DeployError(
                "tool_failed", f"The stack {self.stack} did not stop: {', '.join(left)}.", "Check the Docker daemon's log."
            )

    def copier(self, images: Sequence[str]) -> Volumes:
        """The copier of the app's volumes, using the first of these images that is on this host. Raises DeployError."""
        context = self.context
        for image in images:
            if inspect("image", [image]):
                return Volumes(stacks.marks(context), image, context.check)
        raise DeployError(
            "tool_failed", f"No image of {context.app} is on this host to copy volumes with.", f"docker pull {images[0]}"
        )

    def close(self) -> None:
        """Release watchers and locks; the app itself keeps running."""
        self._watcher.stop()
        self._leases.release()


def mounted(services: Mapping[str, Any]) -> list[str]:
    """The named volumes mounted in these services' specs."""
    return sorted(
        {
            str(mount["Source"])
            for spec in services.values()
            for mount in spec["TaskTemplate"]["ContainerSpec"].get("Mounts") or []
            if mount.get("Type") == "volume" and mount.get("Source")
        }
    )
