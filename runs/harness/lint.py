"""Lint: checks of a recipe without running it. Findings never decide the verdict.

Reads files of the untrusted checkout and runs nothing of it. `RULES` lists them; docs/lint.md explains each.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import yaml

from infra.deployers.base import BackupPlan
from infra.deployers.compose import environment, files, safeyaml
from infra.deployers.compose.environment import EnvironmentProblem, Filling
from infra.deployers.compose.recipe import compose_files as compose_files_of
from infra.deployers.errors import DeployError
from infra.recipe_version import Unreadable, Version
from runs.harness import readme
from runs.harness.protocol import LintFinding

_BIGGEST = 256 << 10
_MOST_FILES = 40
_MOST_FINDINGS = 200

#: The level of each rule; docs/lint.md explains them. An *error* keeps the recipe from the last level. Levels follow abra's own
#: lint where it has the rule.
RULES: Mapping[str, Literal["error", "warning"]] = {
    "C001": "error",
    "C002": "warning",
    "C003": "error",
    "C004": "error",
    "C005": "error",
    "C006": "error",
    "C007": "error",
    "C008": "error",
    "C009": "error",
    "C010": "error",
    "C011": "error",
    "C012": "error",
    "C013": "warning",
    "C014": "error",
    "C015": "warning",
    "C016": "error",
    "C017": "error",
    "C018": "warning",
    "C020": "error",
    "C021": "warning",
    "C022": "warning",
    "C023": "warning",
    "C024": "error",
    "C025": "warning",
    "C026": "warning",
    "C027": "warning",
    "C028": "warning",
    "C029": "warning",
}

#: Sections that are mappings by name.
_SECTIONS = ("services", "networks", "volumes", "secrets", "configs")
#: Suggestions for unknown keys: the keys of services and below, in the 3.x schema.
_KNOWN = (
    *("version", "services", "networks", "volumes", "secrets", "configs"),
    *("build", "cap_add", "cap_drop", "command", "container_name", "credential_spec", "depends_on", "deploy", "devices", "dns"),
    *("dns_search", "domainname", "driver", "driver_opts", "entrypoint", "env_file", "environment", "expose", "external"),
    *("external_links", "extra_hosts", "healthcheck", "hostname", "image", "init", "ipc", "isolation", "labels", "links"),
    *("logging", "mac_address", "network_mode", "pid", "ports", "privileged", "read_only", "restart", "security_opt"),
    *("shm_size", "stdin_open", "stop_grace_period", "stop_signal", "sysctls", "tmpfs", "tty", "ulimits", "user", "userns_mode"),
    *("working_dir", "mode", "endpoint_mode", "replicas", "rollback_config", "update_config", "resources", "restart_policy"),
    *("placement", "constraints", "preferences", "limits", "reservations", "interval", "retries", "start_period", "test"),
    *("timeout", "disable", "parallelism", "delay", "failure_action", "monitor", "max_failure_ratio", "order", "condition"),
)

#: What `docker stack deploy` ignores, some with a warning that nobody sees in a run. (Not here: `build`, `depends_on` and
#: `expose`, which say something to people and other tools.)
_IGNORED = (
    *("cgroup_parent", "cgroupns_mode", "container_name", "devices", "domainname", "external_links", "ipc", "links"),
    *("mac_address", "network_mode", "pid", "privileged", "restart", "security_opt", "shm_size", "tmpfs", "userns_mode"),
)

_COMMENTED = re.compile(r"^[ \t]*#[# \t]*(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_]*)=", re.MULTILINE)
#: As Docker substitutes variables: `$$` is a dollar, `${X:-…}` and `${X-…}` have a default.
_USED = re.compile(r"\$(?:(?P<dollar>\$)|(?P<plain>[A-Za-z_]\w*)|\{(?P<braced>[A-Za-z_]\w*)(?:(?P<default>:?-)|[:?}]))", re.ASCII)
_MODIFIED = re.compile(r"^[# \t]*(SECRET_\w+_VERSION)=[^#\n]*#(.*)$", re.MULTILINE)
_MODIFIER = re.compile(r"(?<![^\s,])([A-Za-z_]+)=")
#: What abra sets, or other rules ask for.
GIVEN = frozenset({"DOMAIN", "STACK_NAME", "LETS_ENCRYPT_ENV", "TYPE", "COMPOSE_FILE"})
_VERSIONED = re.compile(r"\$\{STACK_NAME\}_.+_\$\{([A-Z][A-Z0-9_]*_VERSION)(?::?-[^}$]*)?\}")
_VERSION_LABEL = re.compile(r"coop-cloud\.\$\{?STACK_NAME\}?\.version")


@dataclass
class _File:
    """A compose file as written, without substitution."""

    name: str
    data: dict[str, Any]
    root: yaml.Node | None
    _keys: dict[int, dict[str, tuple[yaml.Node, yaml.Node]]] = field(default_factory=dict)  #: of each mapping that was asked for

    def items(self, section: str) -> list[tuple[str, dict[str, Any]]]:
        found = self.data.get(section)
        return [(str(key), _mapping(value)) for key, value in found.items()] if isinstance(found, dict) else []

    def line(self, *path: str) -> int:
        """The line of the value under these keys, or of its nearest existing parent."""
        node, line = self.root, 1
        for key in path:
            if not isinstance(node, yaml.MappingNode) or not (found := self._under(node).get(key)):
                break
            line, node = found[0].start_mark.line + 1, found[1]
        return line

    def _under(self, node: yaml.MappingNode) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """The keys of a mapping; the first of duplicates."""
        if id(node) not in self._keys:
            self._keys[id(node)] = {str(name.value): (name, value) for name, value in reversed(node.value)}
        return self._keys[id(node)]


@dataclass
class RecipeFiles:
    """The recipe's files that lint checks."""

    checkout: Path
    files: list[_File] = field(default_factory=list)
    exported: set[str] = field(default_factory=set)
    sample: dict[str, str] = field(default_factory=dict)  #: from .env.sample, with variables substituted
    filling: Filling = field(default_factory=lambda: Filling({}))  #: of compose files
    commented: set[str] = field(default_factory=set)
    mentioned: set[str] = field(default_factory=set)  #: words in comments of .env.sample
    has_sample: bool = False
    readable: bool = False  #: the sample
    broken: bool = False  #: variables cannot be checked

    @property
    def main(self) -> _File | None:
        return next((file for file in self.files if file.name == "compose.yml"), None)

    def version(self) -> tuple[str | None, int]:
        """The version label of `app` as written, and its line; None if there is none."""
        file = self.main
        service = dict(file.items("services")).get("app", {}) if file else {}
        labels = _mapping(service.get("deploy")).get("labels")
        # As a key of a mapping its variable is not substituted, so it is another label.
        for item in labels if isinstance(labels, list) else ():
            key, equals, value = str(item).partition("=")
            if equals and _VERSION_LABEL.fullmatch(key.strip()):
                return value.strip(), file.line("services", "app", "deploy", "labels") if file else 0
        return None, 0


def compose_files(checkout: Path) -> list[str]:
    """The names of the compose files in a checkout, including those that no sample names."""
    try:
        names = sorted(path.name for path in checkout.iterdir() if re.fullmatch(r"compose(\..+)?\.ya?ml", path.name))
    except OSError:
        names = []
    return names[:_MOST_FILES]


def lint(
    checkout: Path,
    version_tag: str = "",
    annotated: bool | None = None,
    refused: Mapping[str, DeployError] | None = None,
    given: Collection[str] = (),
) -> list[LintFinding]:
    """Check the recipe in `checkout`. `version_tag`: the tag of its commit, if any, and whether it is `annotated`.

    `refused`: Docker's errors for the compose files it rejects; None if Docker cannot be asked.
    `given`: variables that a run has from elsewhere, such as cc-ci.toml.
    Never raises: unreadable files become findings.
    """
    found: list[LintFinding] = []
    for one in _findings(checkout, version_tag, annotated, refused, given):
        if len(found) == _MOST_FINDINGS:
            break
        if one not in found:
            found.append(one)
    return found


def read(checkout: Path) -> RecipeFiles:
    """The files of a recipe, without unreadable ones."""
    recipe = RecipeFiles(checkout)
    for _ in _read(recipe, by_docker=True):
        pass
    return recipe


def of_backups(plan: BackupPlan) -> Iterator[LintFinding]:
    """Findings about data that the recipe's labels leave without a backup."""
    for problem in plan.problems:
        yield finding("C024", f"{problem}.")
    for name in plan.unsaved:
        yield finding("C025", f"The volume {name} is not backed up.")
    for place in plan.lost:
        yield finding("C025", f"Data written to {place} is lost whenever a task is replaced: it is not on a named volume.")
    for label in plan.unknown:
        yield finding("C026", f"Backups ignore the label {label}.")


def _findings(
    checkout: Path,
    version_tag: str,
    annotated: bool | None,
    refused: Mapping[str, DeployError] | None,
    given: Collection[str],
) -> Iterator[LintFinding]:
    recipe = RecipeFiles(checkout)
    yield from _refused(refused or {})
    yield from _read(recipe, by_docker=refused is not None)
    for file in recipe.files:
        yield from _keys(file)
        yield from _ignored(file)
        yield from _configs(recipe, file)
        yield from _secrets(recipe, file)
        yield from _images(recipe, file)
        yield from _unset(recipe, file, given)
    yield from _health(recipe)
    yield from _version(recipe, version_tag, annotated)
    yield from _metadata(recipe)
    yield from _sample(recipe)


def finding(rule: str, text: str, file: str = "", line: int = 0) -> LintFinding:
    """A finding for one of RULES."""
    return LintFinding(rule=rule, level=RULES[rule], text=_printable(text), file=_printable(file), line=line)


def _printable(text: str) -> str:
    """Untrusted text as one line of bounded length."""
    return "".join(c if c.isprintable() else "?" for c in text)[:500]


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(checkout: Path, name: str) -> str | None:
    """A file of the checkout; None if it does not exist. Raises ValueError if it must not be read, or is too big."""
    try:
        path = checkout / name
        if not path.is_symlink() and not path.exists():
            return None
        path = files.inside(checkout, name)
        if path.stat().st_size > _BIGGEST:
            raise ValueError(f"{name} is larger than {_BIGGEST >> 10} kB")
        return path.read_text(errors="replace")
    except DeployError as error:
        raise ValueError(error.message.rstrip(".")) from error
    except (OSError, RuntimeError) as error:  # a loop of symlinks is a RuntimeError
        raise ValueError(f"{name} is a broken link") from error


def _read(recipe: RecipeFiles, by_docker: bool) -> Iterator[LintFinding]:
    names = compose_files(recipe.checkout)
    if "compose.yml" not in names:
        yield finding("C001", "compose.yml is missing.")
    for name in names:
        text = ""
        try:
            text = _text(recipe.checkout, name) or ""
            data, root = safeyaml.load(text)
            if not isinstance(data, dict):
                raise ValueError("expected a mapping")
            recipe.files.append(_File(name, data, root))
            yield from _nested(recipe.checkout, name)
        except yaml.MarkedYAMLError as error:
            if by_docker:
                continue
            message = f"Cannot read {name}: {error.problem or error.context}."
            yield finding("C001", message, name, safeyaml.line(error, text))
        except Exception as error:  # whatever a hostile file does to the parser
            if not by_docker:
                yield finding("C001", f"Cannot read {name}: {' '.join(str(error).split())}.", name)
    exports, sample = "", None
    try:
        exports = _text(recipe.checkout, "abra.sh") or ""
    except ValueError as error:
        yield finding("C009", f"{error}.", "abra.sh")
    try:
        sample = _text(recipe.checkout, ".env.sample")
    except ValueError as error:
        yield finding("C014", f"{error}.", ".env.sample")
        return
    recipe.has_sample = recipe.readable = sample is not None
    yield from _modifiers(sample or "")
    recipe.commented = {match[1] for match in _COMMENTED.finditer(sample or "")}
    recipe.mentioned = {word for line in (sample or "").splitlines() for word in re.findall(r"\w+", line.partition("#")[2])}
    try:
        recipe.sample = dict(environment.build(sample=sample or "", exports="", recipe="", fixed={}).values)
        both = environment.build(sample=sample or "", exports=exports, recipe="", fixed={"STACK_NAME": "stack"})
        recipe.filling = Filling(both.values)
        recipe.exported = set(environment.build(sample="", exports=exports, recipe="", fixed={}).values)
    except EnvironmentProblem as error:
        recipe.readable, recipe.broken = False, True
        at = re.match(r"(\.env\.sample|abra\.sh):(\d+): (.)", str(error))
        file, line, words = (at[1], int(at[2]), str(error)[at.start(3) :]) if at else (".env.sample", 0, str(error))
        yield finding("C009" if file == "abra.sh" else "C014", f"{words[:1].upper()}{words[1:]}", file, line)


def _modifiers(sample: str) -> Iterator[LintFinding]:
    known = ", ".join(environment.MODIFIERS)
    for line in _MODIFIED.finditer(sample):
        for word in dict.fromkeys(_MODIFIER.findall(line[2])):
            if word not in environment.MODIFIERS and get_close_matches(word, environment.MODIFIERS, 1):
                text = f"{line[1]} has the unknown modifier {word}, which is ignored; known are {known}."
                yield finding("C029", text, ".env.sample", sample.count("\n", 0, line.start()) + 1)


def _keys(file: _File) -> Iterator[LintFinding]:
    version = file.data.get("version")
    if version != "3.8":
        message = "declares no version" if version is None else f"declares version {version!r}"
        yield finding("C002", f'{file.name} {message}; expected "3.8".', file.name, file.line("version"))
    for name, service in file.items("services"):
        for path in (("labels",), ("deploy", "labels")):
            labels: Any = service
            for key in path:
                labels = _mapping(labels).get(key)
            for label in [str(label) for label in _mapping(labels) if "$" in str(label)]:
                message = (
                    f'The variable in the label {label} of {name} is not substituted: write the labels as a list (- "{label}=…").'
                )
                yield finding("C016", message, file.name, file.line("services", name, *path, label))


_NESTED = re.compile(r"\$\{[A-Za-z0-9_]+:?-[^}$]*\$\{")


def _ignored(file: _File) -> Iterator[LintFinding]:
    for name, service in file.items("services"):
        for key in _IGNORED:
            if service.get(key):
                yield finding("C027", f"Swarm ignores {key} of {name}.", file.name, file.line("services", name, key))


def _nested(checkout: Path, name: str) -> Iterator[LintFinding]:
    """Defaults that contain a variable, which `docker stack` does not substitute."""
    for number, line in enumerate((_text(checkout, name) or "").splitlines(), 1):
        if (found := _NESTED.search(line[:2000])) and not line.lstrip().startswith("#"):
            message = f"{found[0]}…}}}} is a default that contains a variable, which Docker does not substitute."
            yield finding("C017", message, name, number)


def _refused(refused: Mapping[str, DeployError]) -> Iterator[LintFinding]:
    """Docker's errors for the compose files it rejects."""
    for name, error in refused.items():
        line = re.search(rf"{re.escape(name)}:(\d+)", error.message)
        unknown = re.search(r"Additional property (\S+) is not allowed", error.message)
        near = get_close_matches(unknown[1][:60], _KNOWN, 1, 0.6) if unknown else []
        hint = f" Did you mean {near[0]}?" if near else ""
        yield finding("C003" if unknown else "C001", error.message + hint, name, int(line[1]) if line else 0)


def _configs(recipe: RecipeFiles, file: _File) -> Iterator[LintFinding]:
    for key, config in file.items("configs"):
        name, line = str(config.get("name") or ""), file.line("configs", key)
        match = _VERSIONED.fullmatch(name[:300])
        if not match:
            message = f"is named {name}" if name else "has no name"
            want = f"${{STACK_NAME}}_{key}_${{{key.upper()}_VERSION}}"
            yield finding("C008", f"The config {key} {message}; expected {want}.", file.name, line)
        elif match[1] not in recipe.exported and not recipe.broken:
            yield finding(
                "C009", f"abra.sh does not export {match[1]}, which the name of the config {key} uses.", file.name, line
            )


def _secrets(recipe: RecipeFiles, file: _File) -> Iterator[LintFinding]:
    for key, secret in file.items("secrets"):
        if not (name := _external_name(key, secret)):
            continue
        line = file.line("secrets", key)
        match = _VERSIONED.fullmatch(name[:300])
        if not match or not match[1].startswith("SECRET_"):
            want = f"${{STACK_NAME}}_{key}_${{SECRET_{key.upper()}_VERSION}}"
            yield finding("C010", f"The external secret {key} is named {name}; expected {want}.", file.name, line)
            continue
        # What only an overlay needs is declared in a comment, to be uncommented with the overlay.
        declared = match[1] in recipe.sample or (file.name != "compose.yml" and match[1] in recipe.commented)
        if not declared and not recipe.broken:
            yield finding("C010", f".env.sample does not declare {match[1]}, which the secret {key} needs.", file.name, line)


def _external_name(key: str, definition: dict[str, Any]) -> str:
    """The name of an external secret; empty if it is not external."""
    external = definition.get("external")
    if isinstance(external, dict):
        return str(external.get("name") or definition.get("name") or key)
    return str(definition.get("name") or key) if external else ""


def _unset(recipe: RecipeFiles, file: _File, given: Collection[str]) -> Iterator[LintFinding]:
    """Variables that nobody sets, so that Docker replaces them with nothing. (Names of configs and secrets: C008 to C010.)"""
    if not recipe.readable:
        return
    known = {*recipe.sample, *recipe.mentioned, *recipe.exported, *GIVEN, *given}
    used = {
        variable: (section, name)
        for section in ("networks", "volumes", "services")
        for name, one in file.items(section)
        # Docker deploys neither of these.
        for variable in without_default([value for key, value in one.items() if key != "build" and str(key)[:2] != "x-"])
    }
    for variable, place in sorted(used.items()):
        if variable not in known and not environment.names_secret_version(variable):
            message = (
                f"{variable} has no default, and .env.sample does not name it: add {variable}=… (behind a # if it is optional), "
                f"write ${{{variable}:-…}}, or $${variable} if the container is to expand it."
            )
            yield finding("C028", message, file.name, file.line(*place))


def without_default(data: Any) -> Collection[str]:
    """Variables used without a default at least once in a compose file's values."""
    found: set[str] = set()
    seen: set[int] = set()  # aliases make the same thing occur thousands of times
    waiting = [data]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, Mapping):
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
        elif isinstance(one, str):
            for use in _USED.finditer(one):
                if not use["default"] and (name := use["plain"] or use["braced"]):
                    found.add(name)
    return found


#: Parts that make a tag permanent: three numbers, a date, or a commit.
_FIXED = re.compile(r"\d+\.\d+\.\d+|\d{4}-\d{2}-\d{2}|\d{6}|(?<![0-9a-z])[0-9a-f]{7,40}(?![0-9a-z])")


_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)


def _images(recipe: RecipeFiles, file: _File) -> Iterator[LintFinding]:
    for name, service in file.items("services"):
        image = service.get("image")
        if not isinstance(image, str):
            continue
        nested = _NESTED.search(image[:2000])  # Docker parses it differently
        try:
            image = recipe.filling.fill(image[:500])
        except EnvironmentProblem:
            continue  # not a valid image name; the deployment reports it
        if "$" in image or not image.strip():
            continue  # Docker rejects an empty name; a variable is the operator's choice
        path, _, digest = image.partition("@")
        _, colon, tag = path.rpartition(":")
        tag = tag if colon and "/" not in tag else ""
        if digest or (tag and tag != "latest"):
            if not (digest or nested) and _TAG.fullmatch(tag) and not _FIXED.search(tag):
                message = (
                    f"The tag {tag} of the image of {name} is a moving tag: the same recipe may deploy a different image later."
                )
                yield finding("C018", message, file.name, file.line("services", name, "image"))
            continue
        message = "is not pinned to a tag" if not tag else "is not pinned: latest is a moving tag"
        yield finding("C012", f"The image {image} of {name} {message}.", file.name, file.line("services", name, "image"))


def _health(recipe: RecipeFiles) -> Iterator[LintFinding]:
    """Checks the compose files that .env.sample selects, merged as Docker merges them."""
    chosen = dict.fromkeys(compose_files_of(recipe.sample))
    merged: dict[str, tuple[_File, dict[str, Any], dict[str, Any]]] = {}
    for file in (file for name in chosen for file in recipe.files if file.name == name):
        for name, service in file.items("services"):
            first, check, deploy = merged.get(name, (file, {}, {}))
            check, deploy = check | _mapping(service.get("healthcheck")), deploy | _mapping(service.get("deploy"))
            merged[name] = (file if "image" in service else first), check, deploy
    for name, (file, check, deploy) in merged.items():
        test = check.get("test") or "NONE"
        has_one = not check.get("disable") and (str(test[0]) if isinstance(test, list) else str(test)) != "NONE"
        ends = _mapping(deploy.get("restart_policy")).get("condition") == "none" or "-job" in str(deploy.get("mode"))
        if not has_one and not ends and deploy.get("replicas") != 0:
            yield finding("C011", _without_health_check(name), file.name, file.line("services", name))


def _without_health_check(service: str) -> str:
    return f"The service {service} has no health check."


def known_health(findings: Sequence[LintFinding], checked: Collection[str]) -> list[LintFinding]:
    """Drops findings about services that were seen to have a health check, which comes from their image."""
    brought = {_printable(_without_health_check(name)) for name in checked}
    return [finding for finding in findings if finding.rule != "C011" or finding.text not in brought]


def _version(recipe: RecipeFiles, version_tag: str, annotated: bool | None) -> Iterator[LintFinding]:
    if version_tag and annotated is False:
        yield finding("C007", f"The tag {version_tag} is lightweight, not annotated.")
    if not recipe.main:
        return
    file = recipe.main.name
    if "app" not in dict(recipe.main.items("services")):
        yield finding("C004", "There is no service named app.", file, recipe.main.line("services"))
        return
    label, line = recipe.version()
    if label is None:
        message = "The service app lacks the label coop-cloud.${STACK_NAME}.version under deploy.labels."
        yield finding("C005", message, file, recipe.main.line("services", "app", "deploy", "labels"))
        return
    try:
        Version.parse(label)
    except Unreadable as error:
        yield finding("C005", f"Invalid version label: {error}", file, line)
        return
    if version_tag and label != version_tag:
        yield finding("C006", f"The version label is {label}, but the tag is {version_tag}.", file, line)
    notes = recipe.checkout / "release"
    if not any(_is_file(notes / name) for name in (label, "next")):
        # A label is raised with the release: until then it is the published version's, whose notes nobody reads again.
        yield finding("C015", f"There are no release notes: write release/{label if version_tag else 'next'}.")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


def metadata(checkout: Path) -> dict[str, str]:
    """The metadata of a checkout's README, by name; empty for one that cannot be read."""
    try:
        return readme.values(_text(checkout, "README.md") or "")
    except ValueError:
        return {}


def _metadata(recipe: RecipeFiles) -> Iterator[LintFinding]:
    try:
        text = _text(recipe.checkout, "README.md")
    except ValueError as error:
        yield finding("C013", f"{error}.", "README.md")
        return
    if text is None:
        yield finding("C013", "README.md is missing.")
        return
    start, end = text.find(readme.START), text.find(readme.END)
    if start < 0 or end < start:
        missing = readme.START if start < 0 else f"{readme.END} after {readme.START}"
        yield finding("C013", f"README.md has no {missing}.", "README.md")
        return
    line = text[:start].count("\n") + 1
    given = readme.values(text)
    if missing_ones := [name for name in readme.NAMES if name not in given]:
        yield finding("C013", f"The metadata lacks {', '.join(missing_ones)}.", "README.md", line)


def _sample(recipe: RecipeFiles) -> Iterator[LintFinding]:
    if not recipe.has_sample:
        yield finding("C014", ".env.sample is missing.")
        return
    for name in ("TYPE", "DOMAIN", "LETS_ENCRYPT_ENV"):
        if recipe.readable and not recipe.sample.get(name):
            yield finding("C014", f".env.sample does not set {name}.", ".env.sample")
