"""The deployer `swarm`: a recipe as a stack on the local Docker Swarm, with nothing published.

`docker stack deploy` says nothing about success, so what counts is read back: the state of every task, of every update,
health, and the deployment's own mark on every service, which a silent rollback takes away again.
"""

from __future__ import annotations

import secrets as random
import string
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from infra.deployers import compose, images, policy, settling
from infra.deployers.base import Address, Answer, Context, Deployer, DeployError, Deployment, probe
from infra.deployers.docker_cli import (
    KINDS,
    LABEL_DEPLOYMENT,
    LABEL_INSTALLATION,
    LABEL_KEEP,
    LABEL_RUN,
    call,
    docker,
    ids,
    inspect,
    labels_of,
    last_line,
    swarm_problem,
    tail,
)
from infra.deployers.stackfile import stackfiles

__all__ = ["SwarmDeployer", "list_ours", "remove_run", "swarm_problem", "sweep"]

#: Ports that an image may expose, or a recipe publish, because it speaks HTTP there.
_WEB_PORTS = frozenset({80, 3000, 4000, 5000, 8000, 8008, 8080, 8081, 8088, 8888, 9000})
_TEARDOWN_SECONDS = 60.0
_DEPLOY_SECONDS = 120.0
#: A task that ends at once is running for a moment, again and again. Without a port to ask only time tells.
_QUIET_SECONDS = 2.0


class SwarmDeployer(Deployer):
    name = "swarm"
    abilities = frozenset({"upgrade", "backup", "execute"})

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._checkout = context.checkout
        self._recipe: compose.Recipe | None = None
        self._web: tuple[str, int] | None = None
        self._said: Answer | None = None
        self._count = 0
        self._created = 0
        self._before: dict[str, settling.Spec] = {}

    @property
    def labels(self) -> dict[str, str]:
        """What marks everything of this run as ours."""
        labels = {LABEL_INSTALLATION: self.context.installation, LABEL_RUN: self.context.run_id}
        return {**labels, LABEL_KEEP: "true"} if self.context.keep else labels

    def images_here(self) -> bool:
        """Whether every service of the recipe has an image, and all of them are on this machine already."""
        recipe = self._load()
        if not all(service.get("image") for service in recipe.services.values()):
            return False
        return not call("image", "inspect", *recipe.images).returncode

    @property
    def deployments(self) -> int:
        return self._created

    def deploy(self, checkout: Path | None = None) -> None:
        if not self._count:
            remove_run(self.context.installation, self.context.run_id)  # an earlier attempt that was killed
        self._checkout = checkout or self.context.checkout
        self._put()

    def _load(self) -> compose.Recipe:
        context = self.context
        env = compose.environment(context, self._checkout)
        recipe = compose.load(self._checkout, env)
        policy.check(recipe, context.allow)
        return recipe

    def _put(self) -> None:
        self._recipe = recipe = self._load()
        for image in recipe.images:
            self._get(image)
        self._web = recipe.web(_WEB_PORTS) or self._exposed(recipe)
        self._create_secrets(recipe)
        self._before = settling.specs(self._services())
        self._created += not self._before
        self._count += 1
        labels = {**self.labels, LABEL_DEPLOYMENT: str(self._count)}
        options: list[str] = []
        for number, document in enumerate(stackfiles(recipe, labels, bool(self.context.proxy_url))):
            path = self.context.work / f"stack-{self._count}-{number}.yml"
            path.write_text(yaml.safe_dump(document, sort_keys=False))
            options += ["--compose-file", str(path)]
        done = call("stack", "deploy", "--resolve-image=never", *options, self.context.stack, timeout=_DEPLOY_SECONDS)
        if done.returncode:
            raise _refused(done)

    def _get(self, image: str) -> None:
        """Pull an image that is not here, since a pull inside the deployment would eat its time to settle."""
        images.get(image, self.context)

    def _exposed(self, recipe: compose.Recipe) -> tuple[str, int] | None:
        """The port that the image of `app` says it listens on."""
        image = str(recipe.services.get("app", {}).get("image") or "")
        for item in inspect("image", [image] if image else []):
            ports = sorted(int(key.partition("/")[0]) for key in (item.get("Config") or {}).get("ExposedPorts") or {})
            for port in ports:
                if port in _WEB_PORTS:
                    return "app", port
        return None

    def _create_secrets(self, recipe: compose.Recipe) -> None:
        """Random values for what the recipe expects to be there. They are never written anywhere else."""
        there = {item["Spec"]["Name"] for item in inspect("secret", ids("secret", self._ours))}
        for secret in recipe.secrets():
            if secret.name in there:
                continue
            value = "".join(random.choice(string.ascii_letters + string.digits) for _ in range(secret.length))
            # With the stack's own label `docker stack rm` takes them away too, which a person may use.
            labels = {**self.labels, "com.docker.stack.namespace": self.context.stack}
            options = [f"--label={key}={text}" for key, text in labels.items()]
            docker("secret", "create", *options, "--", secret.name, "-", given=value)
            there.add(secret.name)

    @property
    def _ours(self) -> str:
        return f"{LABEL_RUN}={self.context.run_id}"

    def _services(self) -> list[dict[str, Any]]:
        found = inspect("service", ids("service", self._ours, f"{LABEL_INSTALLATION}={self.context.installation}"))
        return sorted(found, key=lambda service: str(service["Spec"]["Name"]))

    def _look(self) -> settling.Look:
        return settling.look(self.context.stack, self._services())

    def state(self) -> Deployment:
        look = self._look()
        return Deployment(look.services, look.version, self._web is not None)

    def settle(self) -> Deployment:
        settler = settling.Settler(str(self._count), self._before, self._last_words)
        until = time.monotonic() + self.context.settle_seconds
        said, quiet_since = "", 0.0
        while True:
            self.context.check()
            look = self._look()
            done = settler.judge(look)
            quiet_since = (quiet_since or time.monotonic()) if done else 0.0
            now = Deployment(look.services, look.version, self._web is not None)
            if done and (self._answers() if self._web else time.monotonic() - quiet_since >= _QUIET_SECONDS):
                return now
            text = f"Waiting: {now}"
            if done:
                text = "Waiting: the app does not answer yet" if self._web else f"Watching: {now}"
            if text != said:
                said = text
                self.context.report(text)
            if time.monotonic() > until:
                raise self._too_late(now, done)
            time.sleep(0.25)

    def _answers(self) -> bool:
        address = self.address()
        self._said = answer = probe(address, self.context.domain, timeout=3) if address else None
        return bool(address and answer and answer.from_app(address))

    def _too_late(self, now: Deployment, done: bool) -> DeployError:
        seconds = self.context.settle_seconds
        waiting = [service for service in now.services if service.running < service.wanted or service.health == "starting"]
        if done:
            if self.context.proxy_url:
                return self._not_through_proxy()
            said = f"Everything runs, but the app did not answer on port {self._web[1] if self._web else 0}"
            return DeployError("never_answered", f"{said} within {seconds} s.", "See the services' logs.")
        name = waiting[0].name if waiting else "app"
        problem = f" {waiting[0].problem}." if waiting and waiting[0].problem else ""
        words = self._last_words(name)
        if any(service.health for service in waiting):
            return DeployError(
                "never_healthy",
                f"The health check of {name} was never green within {seconds} s.{problem}{words}",
                "Try the health check's command inside the container.",
            )
        return DeployError("never_healthy", f"{now} after {seconds} s.{problem}{words}", "See the services' logs.")

    def _not_through_proxy(self) -> DeployError:
        context, answer, address = self.context, self._said, self.address()
        assert address
        proxy = f"the server's proxy at {context.proxy_url}"
        if answer is None:
            try:
                address.connect(3, context.domain).close()
            except OSError as error:
                said = f"Everything runs, but {proxy} cannot be reached: {error}."
                return DeployError("tool_failed", said, "Start it, or correct CC_CI_PROXY_URL.")
        elif answer.only_to_https(address):
            said = f"Everything runs, but {proxy} only leads to https, for every host."
            return DeployError("tool_failed", said, "Give CC_CI_PROXY_URL its https:// address.")
        said = f"Everything runs, but {proxy} gave no answer of the app for {context.domain} within {context.settle_seconds} s:"
        if answer is None:
            return DeployError("never_answered", f"{said} it stayed silent.", "See the services' logs.")
        if answer.status == 404:
            fix = "Check the labels traefik.http.routers.*.rule and .entrypoints, and traefik.enable."
            return DeployError("never_answered", f"{said} none of its routers knows that host.", fix)
        fix = "Check the label loadbalancer.server.port, and that the service is on the network proxy."
        return DeployError("never_answered", f"{said} the last one was {answer.status}.", fix)

    def _last_words(self, service: str) -> str:
        """The last health report and log lines of a service that fails, for an error's text."""
        said = ""
        containers = sorted(self._containers(service), key=lambda item: bool(item["State"]["Running"]))
        for container in containers:
            health = (container["State"].get("Health") or {}).get("Log") or []
            if health and (output := str(health[-1].get("Output", "")).strip()):
                said = f" The health check says: {output[-300:]}"
                break
        lines = "\n".join(_log(str(container["Id"]), 5) for container in containers[:1]).strip()
        return said + (f" Its last words: {lines[-500:]}" if lines else "")

    def _containers(self, service: str) -> list[dict[str, Any]]:
        """All containers of a service, running ones first, then the youngest."""
        name = f"{self.context.stack}_{service}"
        found = inspect("container", ids("container", self._ours, f"com.docker.swarm.service.name={name}"))
        return sorted(found, key=lambda item: (item["State"]["Running"], str(item["Created"])), reverse=True)

    def _container(self, service: str) -> str:
        for container in self._containers(service):
            if container["State"]["Running"]:
                return str(container["Id"])
        raise DeployError("tool_failed", f"No container of {service} is running.")

    def address(self) -> Address | None:
        """Through the proxy when there is one, else the task's own address on docker_gwbridge."""
        if not self._web:
            return None
        if self.context.proxy_url:
            parts = urlsplit(self.context.proxy_url)
            tls = parts.scheme == "https"
            return Address(parts.hostname or "", parts.port or (443 if tls else 80), tls=tls, proxied=True)
        service, port = self._web
        with suppress(DeployError):
            container = self._container(service)
            for network in inspect("network", ["docker_gwbridge"]):
                entry = (network.get("Containers") or {}).get(container)
                if entry and (host := entry["IPv4Address"].partition("/")[0]):
                    return Address(host, port)
        return Address("", port)  # nobody there now: every connection fails

    def logs(self, service: str = "", lines: int = 50) -> str:
        names = [service] if service else list(self._recipe.services if self._recipe else ())
        text = []
        for name in names:
            for container in self._containers(name)[:1]:
                text += [f"{name} | {line}" for line in _log(str(container["Id"]), lines).splitlines()]
        return "\n".join(text[-lines:] if service else text)

    def execute(self, service: str, command: Sequence[str], timeout: float = 60.0) -> tuple[int, str]:
        return tail("exec", self._container(service), *command, timeout=timeout)

    def keep(self) -> str:
        stack = self.context.stack
        volumes = f"docker volume rm $(docker volume ls -q -f label={self._ours})"
        return f"the stack {stack}. Remove it with: docker stack rm {stack}; {volumes}"

    def teardown(self) -> list[str]:
        with suppress(DeployError):
            if text := self.logs(lines=200):
                self.context.log(text)
        try:
            return remove_run(self.context.installation, self.context.run_id)
        except DeployError as error:
            return [f"the stack {self.context.stack}: {error}"]


def _log(container: str, lines: int) -> str:
    return tail("logs", f"--tail={lines}", container)[1]


def _refused(done: subprocess.CompletedProcess[str]) -> DeployError:
    said = last_line(done.stderr)
    if "only updates to Labels are allowed" in said:
        return DeployError(
            "config_immutable",
            f"A config or secret changed under its old name: {said}.",
            "Raise its version in abra.sh: configs cannot be changed in place.",
        )
    if 'network "proxy" is declared as external' in said:
        fix = "Run `docker network create --driver=overlay proxy`, or empty CC_CI_PROXY_URL."
        return DeployError("tool_missing", "The server's proxy has no network here: there is no overlay network proxy.", fix)
    if "Cannot connect to the Docker daemon" in said or "context deadline" in said:
        return DeployError("tool_failed", f"docker stack deploy: {said}.")
    return DeployError("invalid_recipe", f"Docker refuses the recipe: {said}.", "Check compose.yml.")


def remove_run(installation: str, run_id: str, seconds: float = _TEARDOWN_SECONDS) -> list[str]:
    """Remove all that carries both labels, and wait until it is gone. Gives what is left after `seconds`.

    The containers are killed at once: a run's deployment is thrown away, so nobody needs their grace (3 s instead of 16).
    By labels, never by the stack's name, which somebody else's stack may bear.
    """
    labels = (f"{LABEL_INSTALLATION}={installation}", f"{LABEL_RUN}={run_id}")
    until = time.monotonic() + seconds
    wait, removed = 0.1, False
    while True:
        left = {kind: found for kind in KINDS if (found := ids(kind, *labels))}
        if not left and not removed:
            return []
        # A task that was just being started may still make its container: believe "gone" at the second look.
        removed = bool(left)
        if time.monotonic() > until:
            return [f"{kind} {name}" for kind, names in left.items() for name in names]
        for kind, names in left.items():
            command = ["rm", "--force", "--volumes"] if kind == "container" else [kind, "rm"]
            # A network or volume in use says no; the next round asks again.
            call(*command, *names)
        time.sleep(wait)
        wait = min(wait * 1.5, 1.0)


def list_ours(installation: str) -> dict[str, Mapping[str, str]]:
    """The runs that have anything on this swarm under this installation's label, with the labels of one thing each."""
    runs: dict[str, Mapping[str, str]] = {}
    for kind in KINDS:
        for item in inspect(kind, ids(kind, f"{LABEL_INSTALLATION}={installation}", LABEL_RUN)):
            labels = labels_of(kind, item)
            runs.setdefault(labels[LABEL_RUN], labels)
    return runs


def sweep(installation: str, alive: Callable[[str], bool]) -> tuple[list[str], list[str]]:
    """Remove what runs that live no more left; those that a person kept stay. Gives (runs removed, things left).

    `alive` is asked after the look: a run that begins meanwhile has nothing on the list.
    """
    removed, left = [], []
    for run_id, labels in list_ours(installation).items():
        if labels.get(LABEL_KEEP) or alive(run_id):
            continue
        still = remove_run(installation, run_id)
        left += still
        removed += [] if still else [f"run {run_id}"]
    return removed, left
