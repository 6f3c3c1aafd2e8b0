"""What can be said of a recipe without running it. Reported, never a verdict by itself.

Reads files of the checkout, which is a stranger's, and runs nothing. `RULES` is the whole of what is looked at; docs/lint.md
explains it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import yaml

from infra.deployers import safeyaml
from infra.deployers.base import DeployError
from infra.deployers.compose import environment, files
from infra.deployers.compose.environment import EnvironmentProblem, Filling
from infra.versions import Unreadable, Version
from runs.harness.protocol import LintFinding

_BIGGEST = 256 << 10
_MOST_FILES = 40
_MOST_FINDINGS = 200


@dataclass(frozen=True)
class Rule:
    """One rule. An *error* keeps the recipe from the last level; levels follow abra's own lint where it has the rule."""

    id: str
    level: Literal["error", "warning"]
    what: str
    fix: str


RULES: Mapping[str, Rule] = {
    rule.id: rule
    for rule in (
        Rule("C001", "error", "Docker takes every compose file (`docker stack config`).", "Correct it at the line named."),
        Rule("C002", "warning", 'Compose files say `version: "3.8"`.', 'Write `version: "3.8"` at the top.'),
        Rule("C003", "error", "Compose files hold known keys only.", "Correct the key; the nearest that Docker knows is named."),
        Rule("C004", "error", "A service `app` is there.", "Call the service that answers the web `app`."),
        Rule(
            "C005",
            "error",
            "The service `app` has the label `coop-cloud.${STACK_NAME}.version`, readable as `X.Y.Z+<app version>`.",
            "Put it under `deploy.labels` of `app`; `abra recipe sync` writes it.",
        ),
        Rule("C006", "error", "The label and the tag of a published version agree.", "Run `abra recipe sync` before a release."),
        Rule(
            "C007", "error", "Tags of versions are annotated.", "Make the tag with `git tag -a`, or with `abra recipe release`."
        ),
        Rule(
            "C008",
            "error",
            "Configs are named `${STACK_NAME}_<config>_${<CONFIG>_VERSION}`: one cannot be changed in place.",
            "Name it so, and raise the version in abra.sh whenever the file changes.",
        ),
        Rule("C009", "error", "abra.sh exports the version of every config.", "Add `export <CONFIG>_VERSION=v1` to abra.sh."),
        Rule(
            "C010",
            "error",
            "External secrets are named `${STACK_NAME}_<secret>_${SECRET_<NAME>_VERSION}`; .env.sample declares that version.",
            "Add `SECRET_<NAME>_VERSION=v1` to .env.sample (commented out where an overlay needs it).",
        ),
        Rule("C011", "warning", "Every service has a health check.", "Add a `healthcheck`, so that broken is told from running."),
        Rule("C012", "error", "Images are pinned to a tag that is not `latest`.", "Name the version, such as `nginx:1.27.3`."),
        Rule(
            "C013",
            "warning",
            "README.md has its metadata between `<!-- metadata -->` and `<!-- endmetadata -->`, all of it.",
            "Fill in Category, Status, Image, Healthcheck, Backups, Email, Tests and SSO.",
        ),
        Rule("C014", "error", ".env.sample sets TYPE, DOMAIN and LETS_ENCRYPT_ENV.", "Add the missing line to .env.sample."),
        Rule(
            "C015",
            "warning",
            "There are release notes for the version.",
            "Write `release/<version>` (no extension), or `release/next` for the version to come.",
        ),
        Rule(
            "C016",
            "error",
            "Labels whose name has a variable in it are written as a list.",
            'Write `- "name=value"`: Docker fills variables into values, and never into the keys of a mapping.',
        ),
        Rule(
            "C017",
            "error",
            "No default holds a variable: `docker stack` knows no `${A:-${B}}`.",
            "Give the variable a default in .env.sample, where `${A:-$B}` is filled in.",
        ),
    )
}

#: The sections that hold things by name.
_SECTIONS = ("services", "networks", "volumes", "secrets", "configs")
#: What people mean when Docker does not know a key: the keys of services and of what lies beneath them, in the 3.x schema.
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
_METADATA = ("Category", "Status", "Image", "Healthcheck", "Backups", "Email", "Tests", "SSO")

_COMMENTED = re.compile(r"^[ \t]*#[# \t]*(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_]*)=", re.MULTILINE)
_METADATUM = re.compile(r"^[ \t]*[*-][ \t]+\*\*([^*\n]{1,40})\*\*:[ \t]*\S", re.MULTILINE)
_VERSIONED = re.compile(r"\$\{STACK_NAME\}_.+_\$\{([A-Z][A-Z0-9_]*_VERSION)(?::?-[^}$]*)?\}")
_VERSION_LABEL = re.compile(r"coop-cloud\.\$\{?STACK_NAME\}?\.version")


@dataclass
class _File:
    """A compose file as it is written: nothing filled in."""

    name: str
    data: dict[str, Any]
    root: yaml.Node | None
    _keys: dict[int, dict[str, tuple[yaml.Node, yaml.Node]]] = field(default_factory=dict)  #: of each mapping that was asked for

    def items(self, section: str) -> list[tuple[str, dict[str, Any]]]:
        found = self.data.get(section)
        return [(str(key), _mapping(value)) for key, value in found.items()] if isinstance(found, dict) else []

    def line(self, *path: str) -> int:
        """The line of what lies under these keys, or of the nearest above it."""
        node, line = self.root, 1
        for key in path:
            if not isinstance(node, yaml.MappingNode) or not (found := self._under(node).get(key)):
                break
            line, node = found[0].start_mark.line + 1, found[1]
        return line

    def _under(self, node: yaml.MappingNode) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """The keys of a mapping; the first of those that are there twice."""
        if id(node) not in self._keys:
            self._keys[id(node)] = {str(name.value): (name, value) for name, value in reversed(node.value)}
        return self._keys[id(node)]


@dataclass
class _Recipe:
    """What lint looks at."""

    checkout: Path
    files: list[_File] = field(default_factory=list)
    exported: set[str] = field(default_factory=set)
    sample: dict[str, str] = field(default_factory=dict)  #: as .env.sample sets them, filled in
    filling: Filling = field(default_factory=lambda: Filling({}))  #: of compose files
    commented: set[str] = field(default_factory=set)
    has_sample: bool = False
    readable: bool = False  #: the sample
    broken: bool = False  #: nothing can be said of variables

    @property
    def main(self) -> _File | None:
        return next((file for file in self.files if file.name == "compose.yml"), None)

    def version(self) -> tuple[str | None, int]:
        """The version label of `app` as it is written, and its line; None when there is none."""
        file = self.main
        service = dict(file.items("services")).get("app", {}) if file else {}
        labels = _mapping(service.get("deploy")).get("labels")
        # As a key of a mapping it keeps its dollar, and is another label.
        for item in labels if isinstance(labels, list) else ():
            key, equals, value = str(item).partition("=")
            if equals and _VERSION_LABEL.fullmatch(key.strip()):
                return value.strip(), file.line("services", "app", "deploy", "labels") if file else 0
        return None, 0


def compose_files(checkout: Path) -> list[str]:
    """The names of the compose files in a checkout, those that no sample names included."""
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
) -> list[LintFinding]:
    """Look at the recipe in `checkout`. `version_tag`: the tag of its commit, if any, and whether that is `annotated`.

    `refused` is what Docker says of the compose files that it does not take; None where it cannot be asked.
    Never raises: what cannot be read is a finding.
    """
    found: list[LintFinding] = []
    for finding in _findings(checkout, version_tag, annotated, refused):
        if len(found) == _MOST_FINDINGS:
            break
        if finding not in found:
            found.append(finding)
    return found


def _findings(
    checkout: Path, version_tag: str, annotated: bool | None, refused: Mapping[str, DeployError] | None
) -> Iterator[LintFinding]:
    recipe = _Recipe(checkout)
    yield from _refused(refused or {})
    yield from _read(recipe, by_docker=refused is not None)
    for file in recipe.files:
        yield from _keys(file)
        yield from _configs(recipe, file)
        yield from _secrets(recipe, file)
        yield from _images(recipe, file)
    yield from _health(recipe)
    yield from _version(recipe, version_tag, annotated)
    yield from _metadata(recipe)
    yield from _sample(recipe)


def _finding(rule: str, text: str, file: str = "", line: int = 0) -> LintFinding:
    return LintFinding(rule=rule, level=RULES[rule].level, text=_printable(text), file=_printable(file), line=line)


def _printable(text: str) -> str:
    """What a stranger wrote, on one line of bounded length."""
    return "".join(c if c.isprintable() else "?" for c in text)[:500]


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(checkout: Path, name: str) -> str | None:
    """A file of the checkout; None when it is not there. Raises ValueError when it may not be read, or is too big."""
    try:
        path = checkout / name
        if not path.is_symlink() and not path.exists():
            return None
        path = files.inside(checkout, name)
        if path.stat().st_size > _BIGGEST:
            raise ValueError(f"{name} is bigger than {_BIGGEST >> 10} kB")
        return path.read_text(errors="replace")
    except DeployError as error:
        raise ValueError(error.message.rstrip(".")) from error
    except (OSError, RuntimeError) as error:  # a loop of symlinks is a RuntimeError
        raise ValueError(f"{name} leads nowhere") from error


def _read(recipe: _Recipe, by_docker: bool) -> Iterator[LintFinding]:
    names = compose_files(recipe.checkout)
    if "compose.yml" not in names:
        yield _finding("C001", "There is no compose.yml.")
    for name in names:
        text = ""
        try:
            text = _text(recipe.checkout, name) or ""
            data, root = safeyaml.load(text)
            if not isinstance(data, dict):
                raise ValueError("it is no mapping")
            recipe.files.append(_File(name, data, root))
            yield from _nested(recipe.checkout, name)
        except yaml.MarkedYAMLError as error:
            if by_docker:
                continue
            words = f"{name} cannot be read: {error.problem or error.context}."
            yield _finding("C001", words, name, safeyaml.line(error, text))
        except Exception as error:  # whatever a hostile file makes of a parser, it is a file that cannot be read
            if not by_docker:
                yield _finding("C001", f"{name} cannot be read: {' '.join(str(error).split())}.", name)
    exports, sample = "", None
    try:
        exports = _text(recipe.checkout, "abra.sh") or ""
    except ValueError as error:
        yield _finding("C009", f"{error}.", "abra.sh")
    try:
        sample = _text(recipe.checkout, ".env.sample")
    except ValueError as error:
        yield _finding("C014", f"{error}.", ".env.sample")
        return
    recipe.has_sample = recipe.readable = sample is not None
    recipe.commented = {match[1] for match in _COMMENTED.finditer(sample or "")}
    try:
        recipe.sample = dict(environment.build(sample=sample or "", exports="", recipe="", fixed={}).values)
        both = environment.build(sample=sample or "", exports=exports, recipe="", fixed={"STACK_NAME": "stack"})
        recipe.filling = Filling(both.values)
        recipe.exported = set(environment.build(sample="", exports=exports, recipe="", fixed={}).values)
    except EnvironmentProblem as error:
        recipe.readable, recipe.broken = False, True
        at = re.match(r"\.env\.sample:(\d+)", str(error))
        yield _finding("C014", str(error), ".env.sample", int(at[1]) if at else 0)


def _keys(file: _File) -> Iterator[LintFinding]:
    version = file.data.get("version")
    if version != "3.8":
        said = "has no version" if version is None else f"says version {version!r}"
        yield _finding("C002", f'{file.name} {said}; it should be "3.8".', file.name, file.line("version"))
    for name, service in file.items("services"):
        for path in (("labels",), ("deploy", "labels")):
            labels: Any = service
            for key in path:
                labels = _mapping(labels).get(key)
            for label in [str(label) for label in _mapping(labels) if "$" in str(label)]:
                said = f'The label {label} of {name} keeps its dollar: write the labels as a list (- "{label}=…").'
                yield _finding("C016", said, file.name, file.line("services", name, *path, label))


_NESTED = re.compile(r"\$\{[A-Za-z0-9_]+:?-[^}$]*\$\{")


def _nested(checkout: Path, name: str) -> Iterator[LintFinding]:
    """Defaults that hold a variable themselves, which Docker's `stack` leaves as text."""
    for number, line in enumerate((_text(checkout, name) or "").splitlines(), 1):
        if (found := _NESTED.search(line[:2000])) and not line.lstrip().startswith("#"):
            said = f"{found[0]}…}}}} is a default with a variable in it, which Docker leaves as text."
            yield _finding("C017", said, name, number)


def _refused(refused: Mapping[str, DeployError]) -> Iterator[LintFinding]:
    """What Docker says of compose files that it does not take."""
    for name, error in refused.items():
        line = re.search(rf"{re.escape(name)}:(\d+)", error.message)
        unknown = re.search(r"Additional property (\S+) is not allowed", error.message)
        near = get_close_matches(unknown[1][:60], _KNOWN, 1, 0.6) if unknown else []
        hint = f" Did you mean {near[0]}?" if near else ""
        yield _finding("C003" if unknown else "C001", error.message + hint, name, int(line[1]) if line else 0)


def _configs(recipe: _Recipe, file: _File) -> Iterator[LintFinding]:
    for key, config in file.items("configs"):
        name, line = str(config.get("name") or ""), file.line("configs", key)
        match = _VERSIONED.fullmatch(name[:300])
        if not match:
            said = f"is named {name}" if name else "has no name"
            want = f"${{STACK_NAME}}_{key}_${{{key.upper()}_VERSION}}"
            yield _finding("C008", f"The config {key} {said}; it should be {want}.", file.name, line)
        elif match[1] not in recipe.exported and not recipe.broken:
            yield _finding("C009", f"abra.sh does not export {match[1]}, which the config {key} is named after.", file.name, line)


def _secrets(recipe: _Recipe, file: _File) -> Iterator[LintFinding]:
    for key, secret in file.items("secrets"):
        if not (name := _external_name(key, secret)):
            continue
        line = file.line("secrets", key)
        match = _VERSIONED.fullmatch(name[:300])
        if not match or not match[1].startswith("SECRET_"):
            want = f"${{STACK_NAME}}_{key}_${{SECRET_{key.upper()}_VERSION}}"
            yield _finding("C010", f"The external secret {key} is named {name}; it should be {want}.", file.name, line)
            continue
        # What only an overlay needs is declared as a comment, to be taken in together with the overlay.
        declared = match[1] in recipe.sample or (file.name != "compose.yml" and match[1] in recipe.commented)
        if not declared and not recipe.broken:
            yield _finding("C010", f".env.sample does not declare {match[1]}, which the secret {key} needs.", file.name, line)


def _external_name(key: str, definition: dict[str, Any]) -> str:
    """The name of an external secret; empty for one that is not external."""
    external = definition.get("external")
    if isinstance(external, dict):
        return str(external.get("name") or definition.get("name") or key)
    return str(definition.get("name") or key) if external else ""


def _images(recipe: _Recipe, file: _File) -> Iterator[LintFinding]:
    for name, service in file.items("services"):
        image = service.get("image")
        if not isinstance(image, str):
            continue
        try:
            image = recipe.filling.fill(image[:500])
        except EnvironmentProblem:
            continue  # no image has such a name; whoever deploys it says so
        if "$" in image:
            continue  # what it becomes is the operator's choice
        path, _, digest = image.partition("@")
        _, colon, tag = path.rpartition(":")
        tag = tag if colon and "/" not in tag else ""
        if digest or (tag and tag != "latest"):
            continue
        said = "is not pinned to a tag" if not tag else "is pinned to nothing: latest moves"
        yield _finding("C012", f"The image {image} of {name} {said}.", file.name, file.line("services", name, "image"))


def _health(recipe: _Recipe) -> Iterator[LintFinding]:
    checked: set[str] = set()
    first: dict[str, _File] = {}
    for file in recipe.files:
        for name, service in file.items("services"):
            if "image" in service or name not in first:
                first.setdefault(name, file)
            check = service.get("healthcheck")
            if isinstance(check, dict) and not check.get("disable") and check.get("test"):
                checked.add(name)
    for name, file in first.items():
        if name not in checked:
            yield _finding("C011", f"The service {name} has no health check.", file.name, file.line("services", name))


def _version(recipe: _Recipe, version_tag: str, annotated: bool | None) -> Iterator[LintFinding]:
    if version_tag and annotated is False:
        yield _finding("C007", f"The tag {version_tag} is lightweight.")
    if not recipe.main:
        return
    file = recipe.main.name
    if "app" not in dict(recipe.main.items("services")):
        yield _finding("C004", "There is no service app.", file, recipe.main.line("services"))
        return
    label, line = recipe.version()
    if label is None:
        said = "The service app has no label coop-cloud.${STACK_NAME}.version under deploy.labels."
        yield _finding("C005", said, file, recipe.main.line("services", "app", "deploy", "labels"))
        return
    try:
        Version.parse(label)
    except Unreadable as error:
        yield _finding("C005", f"The version label cannot be read: {error}", file, line)
        return
    if version_tag and label != version_tag:
        yield _finding("C006", f"The version label says {label}, and the tag {version_tag}.", file, line)
    notes = recipe.checkout / "release"
    if not any(_is_file(notes / name) for name in (label, "next")):
        yield _finding("C015", f"There are no notes release/{label}.")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


def _metadata(recipe: _Recipe) -> Iterator[LintFinding]:
    try:
        text = _text(recipe.checkout, "README.md")
    except ValueError as error:
        yield _finding("C013", f"{error}.", "README.md")
        return
    if text is None:
        yield _finding("C013", "There is no README.md.")
        return
    start, end = text.find("<!-- metadata -->"), text.find("<!-- endmetadata -->")
    if start < 0 or end < start:
        missing = "<!-- metadata -->" if start < 0 else "<!-- endmetadata --> behind it"
        yield _finding("C013", f"README.md has no {missing}.", "README.md")
        return
    line = text[:start].count("\n") + 1
    given = {match[1] for match in _METADATUM.finditer(text[start:end])}
    if missing_ones := [name for name in _METADATA if name not in given]:
        yield _finding("C013", f"The metadata says nothing of {', '.join(missing_ones)}.", "README.md", line)


def _sample(recipe: _Recipe) -> Iterator[LintFinding]:
    if not recipe.has_sample:
        yield _finding("C014", "There is no .env.sample.")
        return
    for name in ("TYPE", "DOMAIN", "LETS_ENCRYPT_ENV"):
        if recipe.readable and not recipe.sample.get(name):
            yield _finding("C014", f".env.sample does not set {name}.", ".env.sample")
