"""A recipe as it will run: the canonical document of its compose files, and the secrets it expects to exist."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any

from infra.deployers.compose import environment, notes, render, routes
from infra.deployers.compose.environment import Environment, EnvironmentProblem, Modifiers
from infra.deployers.compose.files import exists, inside, text
from infra.deployers.context import Context, Secret
from infra.deployers.errors import DeployError

#: What the Swarm takes for the name of a secret or a config.
_LONGEST_NAME = 64
_TOKEN = re.compile(r"ccci[0-9]{1,9}mark")
_VERSIONED = re.compile(r"\$\{?STACK_NAME\}?([\w.-]*)\$\{?(\w+)")


@dataclass(frozen=True)
class Recipe:
    """A recipe's compose files, merged and expanded: `document` is what Docker renders from them.

    Its paths start with `render.PLACE`, which stands for `checkout`.
    """

    checkout: Path
    env: Mapping[str, str]
    document: Mapping[str, Any]
    names: Sequence[str] = ("compose.yml",)  #: the compose files
    secrets: Sequence[Secret] = ()  #: external ones that a service uses: somebody has to create them before a deployment
    secret_values: Mapping[str, str] = field(default_factory=dict)  #: those that the recipe gives for tests, by the secret's key

    @cached_property
    def services(self) -> dict[str, dict[str, Any]]:
        return {str(name): mapping(service) for name, service in mapping(self.document.get("services")).items()}

    @property
    def images(self) -> list[str]:
        return sorted({str(service["image"]) for service in self.services.values() if service.get("image")})

    def labels(self, service: str) -> dict[str, str]:
        """A service's labels in the Swarm (`deploy.labels`)."""
        return texts(mapping(self.services.get(service, {}).get("deploy")).get("labels"))

    def label(self, name: str) -> str:
        """The label `coop-cloud.<stack>.<name>` of the first service that has it, even if empty; `app` comes first.

        A running stack is read in the same way (`convergence.poll`).
        """
        key = f"coop-cloud.{self.env.get('STACK_NAME', '')}.{name}"
        return next((labels[key] for service in self._app_first() if key in (labels := self.labels(service))), "")

    def version(self) -> str:
        return self.label("version")

    def _app_first(self) -> list[str]:
        return sorted(self.services, key=lambda name: (name != "app", name))

    def web(self, known: Collection[int]) -> tuple[str, int] | None:
        """The service and port that serve the web: by Traefik's labels, else a published port that is in `known`.

        The one to which the proxy forwards a GET of `/` at the domain itself comes first, then `app`.
        """
        domain = self.env.get("DOMAIN", "")
        labels = {name: self.labels(name) for name in self._app_first()}
        serving = [found for one in labels.values() for found in routes.serving(one, domain).items()]
        rank = dict(sorted(serving, key=itemgetter(1)))  # the greatest of each
        routed = [(name, port, to) for name, one in labels.items() for to, port in routes.ports(one).items()]
        if routed:
            name, port, _ = max(routed, key=lambda one: (one[2] in rank, rank.get(one[2])))  # the first of equal ones
            return name, port
        for name in labels:
            for entry in self.services[name].get("ports") or []:
                if entry.get("target") in known:
                    return name, int(entry["target"])
        return None

    @property
    def volume_keys(self) -> dict[str, str]:
        """Volumes with an explicit name in Docker: that name -> the key in the files."""
        volumes = mapping(self.document.get("volumes"))
        return {str(given): key for key, volume in volumes.items() if (given := mapping(volume).get("name"))}

    def version_variable(self, name: str) -> str:
        """The variable with whose value the name of a secret or config ends; empty if the compose files do not show it."""
        written = "\n".join(text(self.checkout, file) for file in self.names)
        found = ((one, f"{self.env['STACK_NAME']}{middle}{self.env.get(one, '')}") for middle, one in _VERSIONED.findall(written))
        return next((variable for variable, whole in found if whole == name), "")

    def config_of(self, message: str) -> tuple[str, str]:
        """The file of the config that Docker's message names, and the variable with its version."""
        for definition in mapping(self.document.get("configs")).values():
            if (name := str(mapping(definition).get("name"))) in re.split("[ :]", message):
                return relative(str(definition.get("file"))), self.version_variable(name)
        return "", ""

    def files(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """Every file of the checkout that the document names: its keys and its path in the checkout.

        Files outside the checkout keep their absolute path.
        """
        for kind in ("configs", "secrets"):
            for key, definition in mapping(self.document.get(kind)).items():
                # Of an external one Docker reads no file.
                if not mapping(definition).get("external") and (file := mapping(definition).get("file")):
                    yield (kind, key), relative(str(file))
        for name, service in self.services.items():
            files = service.get("env_file")
            for file in files if isinstance(files, list) else []:
                yield ("services", name, "env_file"), str(file)


def relative(path: str) -> str:
    """A path of the document, relative to the checkout."""
    return os.path.relpath(path, render.PLACE) if path.startswith(render.ROOT) else path


def mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def texts(value: Any) -> dict[str, str]:
    """Labels as a mapping of strings."""
    return {str(key): "" if text is None else str(text) for key, text in mapping(value).items()}


def load(context: Context, checkout: Path) -> Recipe:
    """Read the recipe in `checkout` with Docker, for this run or app. Raises DeployError."""
    env, given = read_environment(context, checkout)
    names = [*compose_files(env.values), *overlays_in(context, checkout)]
    # Which variable a secret's name is made of decides what its value should be: a second reading shows where each one went.
    tokens = {name: f"ccci{number}mark" for number, name in enumerate(env.modifiers)}  # by which _TOKEN finds them
    environments = [env.values, {**env.values, **tokens}] if tokens else [env.values]
    document, *marked = render.render(checkout, names, environments, context.trusted)
    found = {token: env.modifiers[name] for name, token in tokens.items()}
    recipe = Recipe(checkout, env.values, document, names)
    try:
        _names(document)
        secrets = list(_secrets(recipe, marked[0] if marked else document, found))
    except (TypeError, AttributeError) as error:  # nothing that Docker's reader gives, but what a recipe may make of it
        raise DeployError("invalid_recipe", f"Docker does not render {' and '.join(names)} to a valid compose file.") from error
    recipe = replace(recipe, secrets=secrets, secret_values=given)
    if not recipe.services:
        raise DeployError("invalid_recipe", f"{names[0]} has no services.")
    return recipe


def _names(document: Mapping[str, Any]) -> None:
    """Raises DeployError for a secret or config whose name Docker does not accept."""
    for kind in ("secret", "config"):
        for key, definition in mapping(document.get(f"{kind}s")).items():
            name = str(mapping(definition).get("name") or "")
            if len(name) > _LONGEST_NAME:
                message = f"The name of the {kind} {key} has {len(name)} characters; Docker allows {_LONGEST_NAME}: {name}."
                raise DeployError("invalid_recipe", message, "Shorten it.")


def problems(context: Context, checkout: Path, names: Sequence[str]) -> dict[str, DeployError] | None:
    """Docker's error for each of these compose files, read on its own; None if there is no environment to read them with.

    Raises DeployError if Docker cannot be asked.
    """
    try:
        env, _ = read_environment(context, checkout)
    except DeployError:
        return None
    found = {}
    readable = []
    for name in names:
        try:
            render.check_name(checkout, name)
            readable.append(name)
        except DeployError as error:
            found[name] = error
    refused = render.problems(checkout, readable, env.values, context.trusted) if readable else {}
    # An overlay that is not chosen may want what only those set who choose it.
    chosen = compose_files(env.values)
    return found | {name: error for name, error in refused.items() if name in chosen or "required variable" not in error.message}


def overlays_in(context: Context, checkout: Path) -> list[str]:
    """The server's overlays that exist in this checkout."""
    return [name for name in context.overlays if exists(checkout, name)]


def compose_files(env: Mapping[str, str]) -> list[str]:
    return [name for name in env.get("COMPOSE_FILE", "").split(":") if name] or ["compose.yml"]


def read_environment(context: Context, checkout: Path) -> tuple[Environment, dict[str, str]]:
    """The variables of a recipe's files, and the secrets' values for tests. Raises DeployError invalid_recipe."""
    fixed = {"STACK_NAME": context.stack, "DOMAIN": context.domain, **context.lent}
    if not context.app:  # no run asks for a certificate
        fixed["LETS_ENCRYPT_ENV"] = ""
    added = [("[env] in cc-ci.toml", context.env)]
    if checkout == context.checkout:
        added.append(("[env.upgrade] in cc-ci.toml", context.env_upgrade))
    # Filled in like the others, under names that no recipe has.
    values = {f"CC_CI_SECRET_{number}": value for number, value in enumerate(context.secret_values.values())}
    added.append(("[secrets] in cc-ci.toml", values))
    kept_env = context.installed if checkout == context.checkout else None  # an upgrade does not touch the operator's
    try:
        own = _built(context, checkout, checkout, fixed, added)
        env = own if kept_env is None else _kept(context, checkout, kept_env, own, fixed, added)
    except EnvironmentProblem as error:
        raise DeployError("invalid_recipe", str(error)) from error
    kept = {key: value for key, value in env.values.items() if key not in values}
    given = dict(zip(context.secret_values, (env.values[name] for name in values), strict=True))
    return Environment(kept, env.modifiers), given


def _built(
    context: Context, checkout: Path, home: Path, fixed: Mapping[str, str], added: Sequence[tuple[str, Mapping[str, str]]]
) -> Environment:
    """The environment of the recipe in `checkout`, built from the sample in `home`."""
    # The file of an app of the server. A recipe's own `.env` is nobody's: `abra app new` takes the sample.
    name = ".env" if context.app and exists(home, ".env") else ".env.sample"
    return environment.build(
        sample=text(home, name),
        exports=text(checkout, "abra.sh"),
        recipe=context.recipe,
        fixed=fixed,
        added=added,
        sample_name=name,
    )


def _kept(
    context: Context,
    checkout: Path,
    installed: Path,
    own: Environment,
    fixed: Mapping[str, str],
    added: Sequence[tuple[str, Mapping[str, str]]],
) -> Environment:
    """The environment of an upgrade: the one from installation, plus what an operator has to add: new secrets, and variables
    that the release notes mention. `own` is the environment from the recipe's own sample.
    """
    before = _built(context, checkout, installed, fixed, ())
    mentioned = notes.mentioned(checkout, installed)
    by_hand = {
        name: value.replace("$", r"\$")
        for name, value in own.values.items()
        if name not in before.values and (environment.names_secret_version(name) or name in mentioned)
    }
    kept = _built(context, checkout, installed, fixed, [(".env.sample", by_hand), *added])
    return Environment(kept.values, {**own.modifiers, **kept.modifiers})


def _secrets(recipe: Recipe, marked: Mapping[str, Any], modifiers: Mapping[str, Modifiers]) -> Iterator[Secret]:
    services = mapping(recipe.document.get("services")).values()
    used = {str(mapping(entry).get("source")) for service in services for entry in mapping(service).get("secrets") or []}
    for key, definition in mapping(recipe.document.get("secrets")).items():
        if not mapping(definition).get("external") or key not in used:
            continue
        name = str(definition.get("name") or key)
        if name.endswith("_"):
            variable = recipe.version_variable(name) or "SECRET_…_VERSION"
            given = [one for one, value in recipe.env.items() if value and len(one) < _LONGEST_NAME]
            near = get_close_matches(variable[:_LONGEST_NAME], given, 1, 0.9)
            typo = f", or write {near[0]} in the compose file if that is meant" if near else ""
            message = f"The name of the secret {key} has no version, because {variable} has no value: {name}."
            raise DeployError("invalid_recipe", message, f"Add the line {variable}=v1 to .env.sample{typo}.")
        shown = str(mapping(mapping(marked.get("secrets")).get(key)).get("name") or "")
        token = _TOKEN.search(shown)
        asked = modifiers.get(token[0], Modifiers()) if token else Modifiers()
        yield Secret(name, key, asked.length, environment.alphabet(asked.charset), asked.generate)


def check_files(recipe: Recipe) -> Iterator[tuple[tuple[str, ...], str]]:
    """Problems with the files that the document names: the keys and the message."""
    for path, name in recipe.files():
        try:
            inside(recipe.checkout, name)
        except DeployError as error:
            yield path, error.message.rstrip(".")
