"""The `swarm` deployer: a recipe as a stack on the local Docker Swarm.

`docker stack deploy` does not report success, so the result is read back: the state of every task and update, health, and the
deployment's own mark on every service, which a silent rollback removes.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from infra.deployers import messages
from infra.deployers.base import Backup, BackupPart, BackupPlan, Deployer, Deployment, SavedData
from infra.deployers.compose import admission, bounds, ports, recipe, routes, stackfile
from infra.deployers.compose.recipe import Recipe
from infra.deployers.context import Context
from infra.deployers.docker import addresses, api, disk_usage, egress, files, images, proxy, stacks
from infra.deployers.docker.api import inspect, listed, swarm_problem
from infra.deployers.docker.cli import LABEL_DEPLOYMENT, LABEL_INSTALLATION, docker, last_line, stack_deploy, tail
from infra.deployers.docker.events import EventFollower
from infra.deployers.docker.stacks import Owned, list_ours, remove_run, sweep
from infra.deployers.docker.volumes import Volumes
from infra.deployers.errors import DeployError
from infra.deployers.isolation import cgroups
from infra.deployers.probe import Address
from infra.deployers.readiness import Asker
from infra.deployers.swarm import aliases, convergence, patience, readback, saved_data
from infra.deployers.swarm.backups import Backups, Labelled, labelled, plan
from infra.deployers.swarm.restart import down

__all__ = ["SwarmDeployer", "list_ours", "remove_run", "swarm_problem", "sweep"]

#: Ports that an image may expose, or a recipe publish, because it speaks HTTP there.
_WEB_PORTS = frozenset({80, 3000, 4000, 5000, 8000, 8008, 8080, 8081, 8088, 8888, 9000})
_DEPLOY_SECONDS = 120.0
#: A task that ends at once is running for a moment, again and again, though the app may answer: only time tells.
_QUIET_SECONDS = 2.0
#: When to look again after an event, in seconds: Swarm's books lag behind what its nodes do. The last step is the net for what no
#: event tells, such as a task that no node takes.
_LOOKS = (0.1, 0.2, 0.4, 0.8, 1.5)
#: When to ask an app again that does not answer yet.
_ASKS = (0.1, 0.15, 0.2, 0.3, 0.5)


class SwarmDeployer(Deployer):
    name = "swarm"
    abilities = frozenset({"upgrade", "backup", "execute", "save"})
    deploy_options: Sequence[str] = ()  #: more of `docker stack deploy`

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._checkout = context.checkout
        self._recipe: Recipe | None = None
        self._read: dict[object, Recipe] = {}
        self._web: tuple[str, int] | None = None
        self._asker = Asker(context)
        self._watcher = EventFollower(self.stack)
        self._leases = ports.Leases(context)
        self._secrets: dict[str, str] = {}  # by their names in the Swarm
        self._data: SavedData | None = None  # that the first deployment starts on
        self._given: Mapping[str, str] = {}  # the secrets of that data
        self._begun = False
        self._count = 0
        self._created = 0
        self._before: dict[str, convergence.Spec] = {}
        self._settler: convergence.Settler | None = None
        self._networks: dict[str, str] = {}
        self._meter = disk_usage.Meter(self.owned, context.bounds.volumes_mb << 20)
        self._reported: list[str] = []
        self._joined: list[str] = []  # networks of ours that the server's proxy has to be on
        self._judged: dict[str, dict[str, Any]] = {}  # by the mark of the deployment: the document that it was made of

    @property
    def stack(self) -> str:
        return self.context.stack

    @property
    def owned(self) -> Owned:
        """This deployment's objects on the machine."""
        return stacks.of_run(self.context.installation, self.context.run_id, self.stack)

    @property
    def deployments(self) -> int:
        return self._created

    @property
    def secrets(self) -> Sequence[str]:
        return tuple(self._secrets.values())

    def images_here(self) -> bool:
        """Whether every service of the recipe has an image, and all of them are already on this machine."""
        recipe = self.recipe(self._checkout)
        if not all(service.get("image") for service in recipe.services.values()):
            return False
        return len(inspect("image", list(recipe.images))) == len(recipe.images)

    def new(self, checkout: Path | None = None) -> None:
        self._begin()
        self._checkout = checkout or self.context.checkout
        self._create_secrets(self.recipe(self._checkout))

    def deploy(self, checkout: Path | None = None) -> None:
        self._begin()
        self._checkout = checkout or self.context.checkout
        self._put()

    def _begin(self) -> None:
        """Once, before anything is created: remove what an earlier, killed attempt of this run left."""
        if not self._begun and self.context.ephemeral and (left := stacks.remove(self.owned)):
            raise _stuck(self.stack, left)
        if not self._begun and self._data and (left := stacks.remove(self._of_stack())):
            raise _stuck(self.stack, left)
        self._begun = True
        self._watcher.start()

    def _of_stack(self) -> Owned:
        """What any run has under this stack name: it is the same for all that start on the same data, one after the other."""
        return Owned(self.stack, (f"{LABEL_INSTALLATION}={self.context.installation}", f"{stacks.LABEL_STACK}={self.stack}"))

    def recipe(self, checkout: Path) -> Recipe:
        context = self.context
        given = (context.env, context.env_upgrade, context.lent, context.secret_values)
        known = (checkout, context.installed, tuple(context.overlays), *(tuple(sorted(values.items())) for values in given))
        if known not in self._read:  # Docker takes a quarter of a second, and several steps ask
            found = recipe.load(context, checkout)
            self._refuse(found)
            self._read[known] = found
        return self._read[known]

    def refused(self, checkout: Path, names: Sequence[str]) -> Mapping[str, DeployError] | None:
        return recipe.problems(self.context, checkout, names)

    def _refuse(self, found: Recipe) -> None:
        context = self.context
        admission.check(found, context.allow, context.withheld, trusted=context.trusted)
        if message := list(bounds.too_many(found, context.bounds)):
            raise DeployError("forbidden", f"The recipe has {'; '.join(message)}.", "Move what tests do not need to an overlay.")

    def _put(self) -> None:
        context = self.context
        self._recipe = recipe = self.recipe(self._checkout)
        for image in recipe.images:
            self._get(image)
        self._web = None if context.no_web else recipe.web(_WEB_PORTS) or self._exposed(recipe)
        published = self._published(recipe)
        self._leases.take(port.published for own in published.values() for port in own if port.published)
        self._create_secrets(recipe)
        if self._data:
            saved_data.load(self._data, self._copies(recipe), self._marks())
            self._data = None
        self._before = convergence.specs(self.owned.services())
        self._created += not self._before
        self._count += 1
        document = self._document(recipe, published)
        for service in document["services"].values():
            if image := service.get("image"):
                service["image"] = images.by_digest(image, context)
        path = context.work / f"stack-{self._count}.json"
        path.write_text(stackfile.text(document))
        self._judged[self._mark()] = document
        options = ["--resolve-image=never", *self.deploy_options, f"--compose-file={path}", self.stack]
        with self._host() as host:
            done = stack_deploy(*options, host=host, timeout=_DEPLOY_SECONDS)
        if done.returncode:
            message = last_line(done.stderr)
            raise messages.refused(message, recipe.config_of(message))
        if self.context.ephemeral:
            self._meter.start()

    def exceeded(self) -> str:
        return self._meter.exceeded()

    @contextmanager
    def _host(self) -> Iterator[str]:
        """The host for the docker command; it drops the aliases under which a stranger's services could answer the proxy."""
        if not self._joined:
            yield f"unix://{api.socket_path()}"
            return
        with aliases.without(self._joined, self.stack) as host:
            yield host

    def _join(self) -> bool:
        """Connect the server's proxy to the network on which it reaches this run's services.

        Returns whether it is connected, or does not run in a container here.

        Call it before each request: the proxy cannot join before a task is here, and may be restarted at any time.
        """
        url = self.context.proxy_url
        return not self._joined or bool(proxy.join(self._joined, url)) or not proxy.containers(url)

    def _published(self, recipe: Recipe) -> dict[str, list[ports.Port]]:
        return ports.plan(recipe.services, self._web, self.context.exclusive_ports)

    def _document(self, recipe: Recipe, published: Mapping[str, Sequence[ports.Port]]) -> dict[str, Any]:
        mark = {LABEL_DEPLOYMENT: self._mark()}
        document = stackfile.of_run(
            recipe, stacks.marks(self.context), mark, published, self.stack, bool(self.context.proxy_url), self.context.bounds
        )
        self._joined = stackfile.front(document, self.stack)
        if egress.make(self.stack, {**stacks.marks(self.context), stacks.LABEL_STACK: self.stack}, self.context.allow):
            egress.attach(document, self.stack)
        everything = {name: recipe.labels(name) for name in recipe.services}
        for name, service in recipe.services.items():
            labels = everything[name]
            if service.get("hostname") and "hostname" not in document["services"][name]:
                self._tell(
                    f"{name} runs without its hostname {service['hostname']}, because the server's proxy would "
                    "resolve that name to it."
                )
            if routes.without_tcp_and_udp(labels)[1]:
                direct = ": its published ports are reached directly" if published.get(name) else ""
                self._tell(f"The TCP and UDP routers of {name} (`traefik.tcp`, `traefik.udp`) are not deployed{direct}.")
            for key, message in (*routes.misplaced(labels), *routes.unserved(labels, list(everything.values()))):
                self._tell(f"{key} of {name}: {message}.")
        return document

    def _tell(self, text: str) -> None:
        """Add a line to the report, once."""
        if text not in self._reported:
            self._reported.append(text)
            self.context.warn(text)

    def _get(self, image: str) -> None:
        """Pull a missing image, since a pull during the deployment would use up its time to settle."""
        images.get(image, self.context)

    def _mark(self) -> str:
        """The mark that tells this deployment's services from earlier ones."""
        return str(self._count)

    def _exposed(self, recipe: Recipe) -> tuple[str, int] | None:
        """The port that the image of `app` exposes."""
        image = str(recipe.services.get("app", {}).get("image") or "")
        exposed = sorted(int(key.partition("/")[0]) for key in _image_config(image).get("ExposedPorts") or {})
        return next((("app", port) for port in exposed if port in _WEB_PORTS), None)

    def _create_secrets(self, recipe: Recipe) -> None:
        """Create the secrets that the recipe expects. A run's values are written nowhere else, unless its data is saved."""
        there = self._secrets_there()
        for secret in recipe.secrets:
            if secret.name in there:
                continue
            # One that is given, and empty since nobody lent what it is made of, is made up all the same.
            made = replace(secret, generate=True) if secret.key in recipe.secret_values else secret
            wanted = recipe.secret_values.get(secret.key, "")
            # What was lent to the run that left the data was taken back at its end.
            lent = any(text in wanted for text in self.context.lent.values())
            value = wanted if lent else self._given.get(secret.name) or wanted or self.context.secret(made)
            options = [f"--label={key}={text}" for key, text in self._marks().items()]
            docker("secret", "create", *options, "--", secret.name, "-", given=value)
            self._secrets[secret.name] = value
            there.add(secret.name)

    def _marks(self) -> dict[str, str]:
        """The labels of what we create beside the stack: with its own, a person's `docker stack rm` takes that away too."""
        return {**stacks.marks(self.context), stacks.LABEL_STACK: self.stack}

    def _copies(self, recipe: Recipe) -> Volumes:
        return Volumes(stacks.marks(self.context), next(iter(recipe.images), ""), self.context.check)

    def _secrets_there(self) -> set[str]:
        return {item["Spec"]["Name"] for item in listed("secret", label=self.owned.labels)}

    def state(self) -> Deployment:
        services = self._services()
        return self._deployment(services, convergence.poll(self.stack, services))

    def dropped(self) -> Sequence[str]:
        names = {str(service["Spec"]["Name"]).removeprefix(f"{self.stack}_") for service in self.owned.services()}
        return sorted(names - self._recipe.services.keys()) if self._recipe else []

    def _services(self) -> list[dict[str, Any]]:
        """The recipe's services. One that an upgrade's files no longer have keeps running unchanged and is left out."""
        everything = self.owned.services()
        self._check(everything)
        if not (recipe := self._recipe):
            return everything
        names = {f"{self.stack}_{name}" for name in recipe.services}
        return [service for service in everything if service["Spec"]["Name"] in names]

    def _deployment(self, services: list[dict[str, Any]], poll: convergence.Poll) -> Deployment:
        publishing = any((service["Spec"].get("EndpointSpec") or {}).get("Ports") for service in services)
        return Deployment(
            poll.services,
            poll.version,
            self._web is not None,
            convergence.fingerprint(services, self._network_names(services)),
            ports.in_use(services, self.owned.containers(), self.stack) if publishing else {},
        )

    def _check(self, services: Sequence[dict[str, Any]]) -> None:
        """Raises DeployError if a service in the Swarm has more than the document from which it was deployed."""
        names = self._network_names(list(services))
        for service in services:
            mark = str((service["Spec"].get("Labels") or {}).get(LABEL_DEPLOYMENT, ""))
            if mark in self._judged:
                readback.check(self._judged[mark], self.stack, [service], names)
            elif self.context.ephemeral:
                readback.check({}, self.stack, [service], names)

    def _network_names(self, services: list[dict[str, Any]]) -> dict[str, str]:
        """The names of the services' networks by id."""
        used = {network["Target"] for s in services for network in s["Spec"]["TaskTemplate"].get("Networks") or []}
        if not used <= self._networks.keys():
            self._networks = {str(network["Id"]): str(network["Name"]) for network in listed("network")}
        return self._networks

    def settle(self) -> Deployment:
        recipe = self._recipe
        self._settler = convergence.Settler(
            self._mark(),
            self._before,
            self._last_lines,
            out_of_memory=self._out_of_memory,
            version=recipe.version() if recipe else "",
            asked=max(self.context.asked_seconds, timeout(recipe) if recipe else 0),
            tell=self._watcher.note,
            networks=self._networks_of,
            web=self._web[0] if self._web else "",
            healthy=self._settler.healthy if self._settler else set(),
        )
        with self.context.apart(self.context.settle_seconds):
            return self._settle(self._settler, self.context.settle_seconds)

    def still_up(self) -> Sequence[str]:
        if not self._settler:
            return ()
        poll = convergence.poll(self.stack, self._services())
        told = [
            f"The service {poll.short(name)} is started every {pause} s: it counts as up if it ended with 0."
            for name, spec in poll.inspected.items()
            if (pause := convergence.pause_of(spec)) and poll.short(name) != self._settler.web and poll.ended_well(name)
        ]
        if fell := self._settler.fell(poll):
            self.context.report(f"Watching whether it stays up now: {', '.join(fell)}")
            self._watch(self._settler.after())
        told += [f"The service {name} ended after it had been up, and was started again: {why}." for name, why in fell.items()]
        return told

    def settle_again(self) -> Sequence[str]:
        if not self._settler:
            return ()
        settler = self._watch(self._settler.after(hook=True))
        fallen = {} if settler.on_purpose else settler.fallen
        return [f"The service {name} ended meanwhile, and was started again: {why}." for name, why in fallen.items()]

    def _watch(self, settler: convergence.Settler) -> convergence.Settler:
        self._settler = settler
        seconds = max(self.context.settle_seconds, 3 * patience.STAYS_AGAIN)
        with self.context.apart(seconds):
            self._settle(settler, seconds)
        return settler

    def _settle(self, settler: convergence.Settler, seconds: float) -> Deployment:
        until = time.monotonic() + seconds
        message, quiet_since, failures, steps = "", 0.0, 0, 0
        while True:
            services = self._services()
            poll = convergence.poll(self.stack, services)
            done = settler.judge(poll)
            if settler.failures != failures or not (done or self._web):  # with a web port, one that ends with 0 breaks no quiet
                quiet_since, failures = 0.0, settler.failures
            if done:
                quiet_since = quiet_since or time.monotonic()
            quiet = time.monotonic() - quiet_since if quiet_since else 0.0
            answers = done and (not self._web or (self._join() and self._asker.answers(self.address())))
            if answers and quiet >= _QUIET_SECONDS:
                return self._deployment(services, poll)
            now = Deployment(poll.services, poll.version, self._web is not None)
            text = f"Waiting: {now}"
            if done:
                text = f"Watching: {now}" if answers else "Waiting: the app does not answer yet"
            if text != message:
                message = text
                self.context.report(text)
            if time.monotonic() > until and not answers:
                raise self._too_late(now, done, settler, seconds)
            pause = _LOOKS[min(steps, len(_LOOKS) - 1)]
            if answers:
                pause = min(pause, max(_QUIET_SECONDS - quiet, 0.0))
            steps = 0 if self._rest(pause, asking=done and not answers) else steps + 1

    def _networks_of(self, service: str) -> list[addresses.Use]:
        """How full a service's networks are. `service`: its name in the swarm."""
        specs = [one["Spec"]["TaskTemplate"] for one in self.owned.services() if one["Spec"]["Name"] == service]
        return addresses.uses({str(network["Target"]) for spec in specs for network in spec.get("Networks") or []})

    def _rest(self, seconds: float, asking: bool) -> bool:
        """Wait for an event, at most `seconds`, or until the app answers. Returns whether something happened."""
        until, asks = time.monotonic() + seconds, 0
        while (left := until - time.monotonic()) > 0:
            self.context.check()
            if self._watcher.wait(min(left, _ASKS[min(asks, len(_ASKS) - 1)] if asking else 0.25)):
                return True
            asks += 1
            if asking and self._asker.answers(self.address()):
                return True
        self.context.check()
        return False

    def _too_late(self, now: Deployment, done: bool, settler: convergence.Settler, seconds: float) -> DeployError:
        waiting = [
            service
            for service in now.services
            if service.running < service.wanted or service.health == "starting" or settler.in_doubt(service.name)
        ]
        waiting.sort(key=lambda service: not service.restarts)  # what fails first: others may wait for it
        asked_for = self._asked_for()
        if done:
            address = self.address()
            assert address and self._web
            return self._asker.late(address, self._web[1], asked_for)
        name = waiting[0].name if waiting else "app"
        problem = f" {waiting[0].problem}." if waiting and waiting[0].problem else ""
        last = self._last_lines(name)
        if waiting and waiting[0].health in ("starting", "unhealthy"):
            return DeployError(
                "never_healthy",
                f"The health check of {name} did not pass within {seconds:g} s.{problem}{asked_for}{last}",
                "Try the health check's command inside the container.",
            )
        whose = f" {name}:{problem}" if problem else ""
        return DeployError("never_healthy", f"{now} after {seconds:g} s.{whose}{asked_for}{last}", "See the services' logs.")

    def _asked_for(self) -> str:
        """A note that the recipe's own label asks for more time than the run has, if it does."""
        wanted = timeout(self._recipe) if self._recipe else 0
        if wanted > self.context.settle_seconds:
            return f" (The recipe's label coop-cloud.${{STACK_NAME}}.timeout asks for {wanted} s.)"
        return ""

    def _last_lines(self, service: str) -> str:
        """The last health report and log lines of a failing service, for an error message."""
        message = ""
        found = sorted(self.owned.containers(service), key=lambda item: bool(item["State"]["Running"]))
        for container in found:
            health = (container["State"].get("Health") or {}).get("Log") or []
            if health and (code := health[-1].get("ExitCode")):
                output = str(health[-1].get("Output", "")).strip()
                said = messages.quoted("Health check output", output, 300)
                message = said if output else f" The health check ended with exit code {code}, and printed nothing."
                break
        if any(cgroups.refused_processes(str(container["Id"])) for container in found):
            message += f" It tried to start more than the {self.context.bounds.processes} processes that it may have."
        # The newest may be one that waits to be started, or that ended without a word after others that said why.
        lines = next((text for container in found if (text := _log(str(container["Id"]), 5).strip())), "")
        return message + messages.log_end(lines)

    def _out_of_memory(self, tasks: Collection[str]) -> bool:
        ended = [one for one in self.owned.containers() if one["Config"]["Labels"].get("com.docker.swarm.task.id") in tasks]
        return any(one["State"].get("OOMKilled") and not one["State"]["Running"] for one in ended)

    def address(self) -> Address | None:
        """The proxy's address if there is one, else the task's own address on its outgoing bridge (`egress`)."""
        if not self._web:
            return None
        if self.context.proxy_url:
            parts = urlsplit(self.context.proxy_url)
            tls = parts.scheme == "https"
            return Address(parts.hostname or "", parts.port or (443 if tls else 80), tls=tls, proxied=True)
        service, port = self._web
        with suppress(DeployError):
            container = self.owned.container(service)
            for network in inspect("network", [egress.network(self.stack), egress.GATEWAY]):
                entry = (network.get("Containers") or {}).get(container)
                if entry and (host := entry["IPv4Address"].partition("/")[0]):
                    return Address(host, port)
        return Address("", port)  # nobody there now: every connection fails

    def logs(self, service: str = "", lines: int = 50) -> str:
        names = [service] if service else list(self._recipe.services if self._recipe else ())
        text = []
        for name in names:
            for container in self.owned.containers(name)[:1]:
                text += [f"{name} | {line}" for line in _log(str(container["Id"]), lines).splitlines()]
        return "\n".join(text[-lines:] if service else text)

    def events(self) -> Sequence[str]:
        return self._watcher.lines()

    def execute(self, service: str, command: Sequence[str], timeout: float = 60.0) -> tuple[int, str]:
        return tail("exec", self.owned.container(service), *command, timeout=timeout)

    def read(self, service: str, path: str, most: int = 1 << 20) -> bytes | None:
        return files.read(self.owned.container(service), path, most)

    def write(self, service: str, path: str, data: bytes) -> None:
        files.write(self.owned.container(service), path, data)

    def _labelled(self) -> list[Labelled]:
        """The services, those with running tasks that keep running first: a job may have nothing left to ask."""
        names = self._recipe.volume_keys if self._recipe else {}
        services = self._services()
        running = {_service_of(one) for one in listed("container", label=self.owned.labels, status=["running"])}
        services.sort(key=lambda one: (one["Spec"]["Name"] not in running, not convergence.restarts(one["Spec"])))
        return [labelled(one["Spec"], self.stack, names) for one in services]

    def mounts(self) -> Sequence[BackupPart]:
        found = [(service.name, mount) for service in self._labelled() for mount in service.mounts]
        return [BackupPart(name, mount.target, mount.key) for name, mount in found]

    def backups(self) -> BackupPlan:
        return plan([one.losing(list(_image_config(one.image).get("Volumes") or {})) for one in self._labelled()])

    def backup(self, folder: Path) -> Backup:
        return self._backups(self._labelled()).backup(folder)

    def restore(self, backup: Backup) -> None:
        self._backups(self._labelled()).restore(backup)

    def restart(self, backup: Backup) -> list[str]:
        services = self._labelled()
        backups = self._backups(services)
        volumes = backups.owners(backup)
        owners = [service.name for service in services if any(mount.source in volumes for mount in service.mounts)]
        rounds = {str(one["Spec"]["Name"]) for one in self._services() if convergence.pause_of(one["Spec"])}
        names = [name for one in owners if (name := f"{self.stack}_{one}") in rounds or _runs(self.owned.containers(one))]
        assert self._recipe
        here = self._copies(self._recipe)
        with down(self.owned, names, self.context.check, self.context.settle_seconds):
            found = backups.overwritten(backup, here.manifest)
        self._before = convergence.specs(self.owned.services())  # an update of before is no longer waited for
        return found

    def _backups(self, services: Sequence[Labelled]) -> Backups:
        context = self.context
        most = context.disk_mb << 20
        return Backups(services, self.owned.container, self.execute, context.report, context.check, most)

    def save(self, folder: Path, most: int) -> SavedData:
        assert self._recipe
        # With its grace period, so that a database is not copied as if the power had failed.
        running, seconds = stacks.RUNNING, float(self.context.settle_seconds)
        if left := stacks.remove(self.owned, running, ephemeral=False, seconds=seconds, check=self.context.check):
            raise _stuck(self.stack, left)
        volumes = saved_data.save(self.owned, self._copies(self._recipe), folder, most)
        return SavedData(folder, volumes, dict(self._secrets))

    def start_on(self, data: SavedData) -> None:
        self._data, self._given = data, data.secrets

    def keep(self) -> str:
        self._watcher.stop()
        labels = " ".join(f"-f label={label}" for label in self.owned.labels)
        # A volume is in use until its containers are gone, which takes Docker a while.
        volumes = f"until docker volume ls -q {labels} | xargs -r docker volume rm; do sleep 2; done"
        leave = "".join(
            f"docker network disconnect --force {network} {container[:12]}; "
            for network in self._joined
            for container in proxy.containers(self.context.proxy_url)
        )
        rest = f"docker stack rm {self.stack}; {egress.removal(self.stack)}; {volumes}"
        return f"the stack {self.stack}. Remove it with: {leave}{rest}"

    def start_over(self) -> None:
        self._log_all()
        if left := stacks.remove(self.owned):
            raise _stuck(self.stack, left)
        self._leases.release()
        self._recipe, self._judged, self._joined = None, {}, []

    def undeploy(self) -> None:
        self._log_all()
        if left := stacks.remove(self.owned, stacks.RUNNING, self.context.ephemeral):
            raise _stuck(self.stack, left)

    def teardown(self) -> list[str]:
        self._log_all()
        try:
            return stacks.remove(self.owned, ephemeral=self.context.ephemeral)
        except DeployError as error:
            return [f"the stack {self.stack}: {error}"]
        finally:
            self._meter.stop()
            self._watcher.stop()
            self._leases.release()

    def _log_all(self) -> None:
        with suppress(DeployError):
            if text := self.logs(lines=200):
                self.context.log(text)


def timeout(recipe: Recipe) -> int:
    """The recipe's own timeout for coming up, from its label, in seconds; 0 without one."""
    label = recipe.label("timeout")[:9]
    return int(label) if label.isdecimal() else 0


def _service_of(container: Mapping[str, Any]) -> str:
    return str((container.get("Labels") or {}).get(stacks.LABEL_SERVICE, ""))


def _image_config(image: str) -> Mapping[str, Any]:
    """The container configuration of a local image."""
    found = inspect("image", [image]) if image else []
    return (found[0].get("Config") or {}) if found else {}


def _runs(found: Sequence[dict[str, Any]]) -> bool:
    """Whether any of a service's containers is running; those of a completed job are not."""
    return any(container["State"]["Running"] for container in found)


def _stuck(stack: str, left: Sequence[str]) -> DeployError:
    return DeployError(
        "tool_failed", f"The stack {stack} could not be removed; left: {', '.join(left)}.", "See the Docker daemon's log."
    )


def _log(container: str, lines: int) -> str:
    return tail("logs", f"--tail={lines}", container)[1]
