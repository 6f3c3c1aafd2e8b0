"""What lint says of a recipe: one that is right, each thing that can be wrong, and files that mean harm."""

from __future__ import annotations

import json
import os
import re
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from infra.deployers.base import BackupPlan
from infra.deployers.compose import recipe as recipes
from infra.deployers.compose import safeyaml
from runs.harness import lint
from runs.harness.lint import RULES
from runs.harness.protocol import LintFinding
from tests.docker import IMAGE, docker, need_swarm
from tests.infra.deployers.compose.reading import context, need_reader

pytestmark = pytest.mark.slow(0.1)

ROOT = Path(__file__).resolve().parents[3]

COMPOSE = """version: "3.8"

services:
  app:
    image: nginx:1.27.3
    configs:
      - source: conf
        target: /etc/conf
    secrets: [password]
    healthcheck:
      test: [CMD, "true"]
    deploy:
      labels:
        - "coop-cloud.${STACK_NAME}.version=1.2.0+1.27.3"

configs:
  conf:
    name: ${STACK_NAME}_conf_${CONF_VERSION}
    file: conf.tmpl

secrets:
  password:
    external: true
    name: ${STACK_NAME}_password_${SECRET_PASSWORD_VERSION}
"""
OVERLAY = """version: '3.8'
services:
  app:
    environment: [MAIL=yes]
    secrets: [smtp_password]
secrets:
  smtp_password: {external: true, name: "${STACK_NAME}_smtp_${SECRET_SMTP_VERSION}"}
"""
README = """# nice
<!-- metadata -->

* **Category**: Apps
* **Status**: 4
* **Image**: [`nginx`](https://hub.docker.com/_/nginx), 4, upstream
* **Healthcheck**: Yes
* **Backups**: No
* **Email**: No
* **Tests**: 2
* **SSO**: No

<!-- endmetadata -->
"""
SAMPLE = """TYPE=nice
DOMAIN=nice.example.com
## Domain aliases
#EXTRA_DOMAINS=', `www.nice.example.com`'
LETS_ENCRYPT_ENV=production
SECRET_PASSWORD_VERSION=v1 # length=32
#SECRET_SMTP_VERSION=v1
"""
FILES = {
    "compose.yml": COMPOSE,
    "compose.smtp.yml": OVERLAY,
    "abra.sh": "export CONF_VERSION=v3\n",
    ".env.sample": SAMPLE,
    "README.md": README,
    "release/1.2.0+1.27.3": "Nothing to do.\n",
}


@pytest.fixture
def nice(tmp_path: Path) -> Callable[..., Path]:
    """A recipe with nothing wrong, but for what is given: a file's text, None for no file, or a pair to replace in it."""

    def make(changes: dict[str, str | tuple[str, str] | None] | None = None) -> Path:
        for name, text in FILES.items():
            change = (changes or {}).get(name, text)
            if isinstance(change, tuple):
                assert change[0] in text
                change = text.replace(*change)
            if change is not None:
                path = tmp_path / name
                path.parent.mkdir(exist_ok=True)
                path.write_text(change)
        return tmp_path

    return make


def test_a_recipe_with_nothing_wrong(nice: Callable[..., Path]) -> None:
    assert lint.lint(nice()) == []
    assert lint.lint(nice(), "1.2.0+1.27.3", True) == []


def test_the_recipe_of_the_demo_has_nothing_wrong() -> None:
    found = lint.lint(ROOT / "enrollment" / "fakeforge" / "recipes" / "hello-web")
    assert [finding for finding in found if finding.level == "error"] == []


def linted(folder: Path) -> list[LintFinding]:
    """What a run says: Docker is asked, too."""
    need_reader()
    return lint.lint(folder, refused=recipes.problems(context(folder), folder, lint.compose_files(folder)))


WRONG = {
    "C001-yaml": ("compose.yml", ("services:\n", "services: [\n"), "Docker refuses compose.yml:"),
    "C001-twice": ("compose.yml", ("    image:", "    image: x\n    image:"), 'line 6: mapping key "image" already defined'),
    "C001-boolean": ("compose.smtp.yml", ("[MAIL=yes]", "{MAIL: true}"), "services.app.environment.MAIL must be a string"),
    "C001-nested": ("compose.yml", ("nginx:1.27.3", "nginx:1${A:+y}"), "invalid interpolation format"),
    "C001-overlay": ("compose.smtp.yml", "- a list", "Docker refuses compose.smtp.yml: top-level object must be a mapping"),
    "C001-none": ("compose.yml", None, "compose.yml is missing."),
    "C002-old": ("compose.yml", ('"3.8"', '"3.7"'), "declares version '3.7'"),
    "C002-number": ("compose.yml", ('"3.8"', "3.8"), "declares version 3.8;"),
    "C002-none": ("compose.smtp.yml", ("version: '3.8'\n", ""), "compose.smtp.yml declares no version"),
    "C003-top": ("compose.yml", ("\nsecrets:", "\nsecretz:"), "property secretz is not allowed. Did you mean secrets?"),
    "C003-service": (
        "compose.yml",
        ("    image:", "    imag: x\n    image:"),
        "services.app Additional property imag is not allowed. Did you mean image?",
    ),
    "C003-deploy": (
        "compose.yml",
        ("      labels:", "      replica: 2\n      labels:"),
        "deploy Additional property replica is not allowed. Did you mean replicas?",
    ),
    "C003-health": ("compose.yml", ("      test:", "      intervall: 1s\n      test:"), "Did you mean interval?"),
    "C001-list": ("compose.smtp.yml", "version: '3.8'\nnetworks: [proxy]\n", "networks must be a mapping"),
    "C004": ("compose.yml", ("  app:", "  web:"), "There is no service named app."),
    "C005-none": ("compose.yml", ("coop-cloud.${STACK_NAME}.version", "coop.${STACK_NAME}.version"), "lacks the label"),
    "C005-form": ("compose.yml", ("=1.2.0+1.27.3", "=v1.2.0"), "Invalid version 'v1.2.0'"),
    "C005-map": (
        "compose.yml",
        ('- "coop-cloud.${STACK_NAME}.version=1.2.0+1.27.3"', 'coop-cloud.${STACK_NAME}.version: "1.2.0+1.27.3"'),
        "lacks the label",
    ),
    "C016": (
        "compose.yml",
        ('- "coop-cloud.${STACK_NAME}.version=1.2.0+1.27.3"', 'coop-cloud.${STACK_NAME}.version: "1.2.0+1.27.3"'),
        "The variable in the label coop-cloud.${STACK_NAME}.version of app is not substituted: write the labels as a list",
    ),
    "C017": ("compose.yml", ("nginx:1.27.3", "nginx:${TAG:-1${MINOR}}"), "${TAG:-1${…}} is a default that contains a variable"),
    "C014-quote": (".env.sample", ("TYPE=nice", 'TYPE="nice'), "Unclosed double quote in the value of"),
    "C008-name": ("compose.yml", ("_conf_${CONF_VERSION}", "_conf"), "expected ${STACK_NAME}_conf_${CONF_VERSION}"),
    "C008-none": ("compose.yml", ("    name: ${STACK_NAME}_conf_${CONF_VERSION}\n", ""), "The config conf has no name"),
    "C009": ("abra.sh", "CONF_VERSION=v3\n", "abra.sh does not export CONF_VERSION"),
    "C009-none": ("abra.sh", None, "abra.sh does not export CONF_VERSION"),
    "C010-name": ("compose.yml", ("_${SECRET_PASSWORD_VERSION}", "_v1"), "expected ${STACK_NAME}_password_${SECRET_"),
    "C010-none": (".env.sample", ("SECRET_PASSWORD_VERSION=v1", ""), "does not declare SECRET_PASSWORD_VERSION"),
    "C010-comment": (".env.sample", ("SECRET_PASSWORD", "#SECRET_PASSWORD"), "does not declare SECRET_PASSWORD_VERSION"),
    "C010-overlay": (".env.sample", ("#SECRET_SMTP_VERSION=v1", ""), "does not declare SECRET_SMTP_VERSION"),
    "C011-none": ("compose.yml", ('    healthcheck:\n      test: [CMD, "true"]\n', ""), "app has no health check"),
    "C011-none-of-docker": ("compose.yml", ('test: [CMD, "true"]', 'test: ["NONE"]'), "app has no health check"),
    "C011-off": ("compose.yml", ('test: [CMD, "true"]', "disable: true"), "app has no health check"),
    "C012-none": ("compose.yml", ("nginx:1.27.3", "nginx"), "nginx of app is not pinned"),
    "C012-port": ("compose.yml", ("nginx:1.27.3", "registry:5000/nginx"), "is not pinned"),
    "C012-latest": ("compose.yml", ("nginx:1.27.3", "nginx:latest"), "latest is a moving tag"),
    "C012-variable": ("compose.yml", ("nginx:1.27.3", "nginx:${TAG:-latest}"), "latest is a moving tag"),
    "C018": ("compose.yml", ("nginx:1.27.3", "nginx:1.27"), "The tag 1.27 of the image of app is a moving tag"),
    "C013-none": ("README.md", None, "README.md is missing."),
    "C013-markers": ("README.md", ("<!-- metadata -->", ""), "has no <!-- metadata -->"),
    "C013-end": ("README.md", ("<!-- endmetadata -->", ""), "no <!-- endmetadata --> after"),
    "C013-fields": ("README.md", ("* **Tests**: 2\n* **SSO**: No", "* **Tests**:"), "lacks Tests, SSO"),
    "C014-none": (".env.sample", ("DOMAIN=", "#DOMAIN="), "does not set DOMAIN"),
    "C014-empty": (".env.sample", ("TYPE=nice", "TYPE="), "does not set TYPE"),
    "C027": ("compose.yml", ("nginx:1.27.3", "nginx:1.27.3\n    restart: always"), "Swarm ignores restart of app"),
    "C028": (
        "compose.yml",
        ("nginx:1.27.3", "nginx:1.27.3\n    command: [$FOO]"),
        "FOO has no default, and .env.sample does not name",
    ),
    "C028-overlay": ("compose.smtp.yml", ("MAIL=yes", "MAIL=$FOO"), "no default, and .env.sample does not name it: add FOO=…"),
    "C029": (".env.sample", ("length=32", "charset=hex, lenght=32"), "SECRET_PASSWORD_VERSION has the unknown modifier lenght"),
    "C029-commented": (
        ".env.sample",
        ("SMTP_VERSION=v1", "SMTP_VERSION=v1 # of x?y=z bs=4 lengths=4"),
        "unknown modifier lengths, which",
    ),
    "C015": ("release/1.2.0+1.27.3", None, "There are no release notes: write release/next"),
}


@pytest.mark.parametrize("what", WRONG)
def test_each_thing_that_can_be_wrong_is_found(what: str, nice: Callable[..., Path]) -> None:
    file, change, words = WRONG[what]
    found = linted(nice({file: change}))
    rule = what[:4]
    [finding] = [f for f in found if f.rule == rule]
    assert words in finding.text
    assert finding.level == RULES[rule]
    if rule != "C001" and what != "C014-quote":  # what cannot be read is missed elsewhere as well
        also = {"C002": {"C001"}, "C004": {"C011"}, "C005": {"C016"}, "C016": {"C005"}, "C017": {"C028"}}
        assert {f.rule for f in found} - {rule} <= {"C015"} | also.get(rule, set())


@pytest.mark.parametrize(
    ("rule", "file", "text", "line"),
    [("C014", ".env.sample", "DOMAIN=d\nTYPE='open", 2), ("C009", "abra.sh", f"\nexport A={'x' * 100_001}", 2)],
)
def test_an_environment_that_cannot_be_built_is_a_finding_at_its_place(
    rule: str, file: str, text: str, line: int, nice: Callable[..., Path]
) -> None:
    [found] = [one for one in linted(nice({file: text})) if one.rule == rule]
    assert (found.file, found.line) == (file, line)
    assert file not in found.text


@pytest.mark.parametrize(
    ("tag", "moves"),
    [
        *((tag, True) for tag in ("1", "0.4", "stable", "1.27-alpine", "v2", "16.4", "edge", "main", "lts")),
        *(
            (tag, False)
            for tag in ("1.27.3", "v1.27.3-alpine", "2024.10.1", "2024-10-01", "20241001", "RELEASE.2024-10-01T00-00-00Z")
        ),
        *((tag, False) for tag in ("sha-0a1b2c3", "1@sha256:" + "0" * 64)),
    ],
)
def test_a_tag_that_moves_is_warned_of(tag: str, moves: bool, nice: Callable[..., Path]) -> None:
    found = [f for f in linted(nice({"compose.yml": ("nginx:1.27.3", f"nginx:{tag}")})) if f.rule == "C018"]
    assert [(f.level, tag in f.text, f.line) for f in found] == ([("warning", True, 5)] if moves else [])


def test_an_image_without_a_name_is_docker_s_to_refuse(nice: Callable[..., Path]) -> None:
    assert not [f for f in linted(nice({"compose.yml": ("nginx:1.27.3", "''")})) if f.rule == "C012"]


def test_tag_and_label(nice: Callable[..., Path]) -> None:
    folder = nice()
    [finding] = lint.lint(folder, "1.3.0+1.27.3", True)
    assert (finding.rule, finding.text) == ("C006", "The version label is 1.2.0+1.27.3, but the tag is 1.3.0+1.27.3.")
    [finding] = lint.lint(folder, "1.2.0+1.27.3", False)
    assert (finding.rule, finding.text) == ("C007", "The tag 1.2.0+1.27.3 is lightweight, not annotated.")
    assert lint.lint(folder, "", False) == []
    (folder / "release" / "1.2.0+1.27.3").unlink()
    [finding] = lint.lint(folder, "1.2.0+1.27.3", True)
    assert finding.text == "There are no release notes: write release/1.2.0+1.27.3."


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (("nginx:1.27.3", "nginx"), 5),
        (("_conf_${CONF_VERSION}", "_conf"), 17),
        (('"3.8"', '"3.7"'), 1),
        (("  app:", "  web:"), 3),
    ],
)
def test_the_line_is_named(change: tuple[str, str], line: int, nice: Callable[..., Path]) -> None:
    [finding] = [f for f in lint.lint(nice({"compose.yml": change})) if f.rule not in ("C005", "C011", "C015")]
    assert (finding.file, finding.line) == ("compose.yml", line)


def test_what_recipes_do_is_right(nice: Callable[..., Path]) -> None:
    text = COMPOSE.replace("nginx:1.27.3", "nginx@sha256:" + "0" * 64).replace("services:", "x-env: &env {A: 1}\nservices:")
    text = text.replace("    secrets: [password]", "    secrets: [password]\n    environment:\n      <<: *env")
    assert linted(nice({"compose.yml": text})) == []
    (nice() / "release" / "1.2.0+1.27.3").rename(nice() / "release" / "next")
    assert "C015" not in {f.rule for f in lint.lint(nice({"release/1.2.0+1.27.3": None}))}


@pytest.mark.parametrize(
    ("sample", "command"),
    [
        *(
            ("", text)
            for text in ("$$FOO", "$${FOO}", "${FOO:-}", "${FOO-x}", "'{{.Task.Slot}}'", "$DOMAIN", "${TESTS_SET}", "${cat x}")
        ),
        *((text, "$FOO") for text in ("FOO=\n", "#FOO=\n", "# FOO=bar\n", "#FOO: bar\n", "# Set FOO to whatever\n")),
        *(("", f"x\n    {key}: {{a: $FOO}}") for key in ("build", "x-mine")),
    ],
)
def test_a_variable_that_is_named_or_not_docker_s_is_right(sample: str, command: str, nice: Callable[..., Path]) -> None:
    folder = nice({".env.sample": SAMPLE + sample, "compose.yml": ("image:", f"command: {command}\n    image:")})
    assert lint.lint(folder, given={"TESTS_SET"}) == []


_BOMB = "a0: &a0 {k: v}\n" + "".join(
    f"a{level}: &a{level} {{<<: [{', '.join([f'*a{level - 1}'] * 10)}]}}\n" for level in range(1, 12)
)
_ALIASES = "a0: &a0 [x]\n" + "".join(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 12))

HOSTILE = {
    "merge bomb": _BOMB,
    "alias bomb": _ALIASES + "services: {app: {labels: *a11, deploy: {labels: *a11}}}\nversion: *a11\nsecrets: *a11\n",
    "itself": "services: &s {app: *s}\nconfigs: &c {x: *c}\n",
    "merges itself": "services: &s\n  <<: *s\n",
    "deep": "a: " + "[" * 5000,
    "object": "services: !!python/object/apply:os.system [id]",
    "big": "#" + "x" * (300 << 10),
    "binary": "\x00\x01\x02",
    "keys": "? [a, b]\n: 1\n? {a: 1}\n: 2\n1: 2\nnull: 3\nservices: {1: {2: 3}, null: {}, app: null}\n",
    "lists": "services: [app]\nconfigs: [x]\nsecrets: 5\nversion: {a: 1}\n",
    "labels": "services: {app: {deploy: {labels: [[1], {a: 2}, null, 5]}, image: [x], healthcheck: 7}}",
    "number": "services: {app: {image: " + "9" * 5000 + "}}",
    "date": "services: {app: {image: 2024-99-99}}",
    "escape": "services: {'\\e[31m\\n': {imag: x}}",
    "two": "a: 1\n---\nb: 2\n",
    "empty": "",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_yaml_is_a_finding_at_most(what: str, nice: Callable[..., Path]) -> None:
    folder = nice({"compose.yml": HOSTILE[what]})
    found = lint.lint(folder)
    assert [f for f in found if f.file == "compose.yml"]
    assert all(f.text.isprintable() and len(f.text) <= 500 for f in [*found, *linted(folder)])


def test_files_that_lead_elsewhere_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("version: SECRET")
    checkout = tmp_path / "recipe"
    checkout.mkdir()
    for name in ("compose.yml", "abra.sh", "README.md", ".env.sample"):
        (checkout / name).symlink_to("../outside")
    (checkout / "compose.loop.yml").symlink_to("compose.loop.yml")
    (checkout / "compose.dir.yml").mkdir()
    os.mkfifo(checkout / "compose.pipe.yml")
    found = linted(checkout)
    assert "SECRET" not in str(found)
    assert {f.file for f in found if f.rule == "C001"} >= {f"compose.{name}.yml" for name in ("dir", "loop", "pipe")}
    assert {f.rule for f in found if "points outside the recipe" in f.text} == {"C001", "C009", "C013", "C014"}


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    assert {f.rule for f in lint.lint(tmp_path / "nowhere")} == {"C001", "C013", "C014"}


def test_findings_are_bounded(nice: Callable[..., Path]) -> None:
    text = "services: {" + ", ".join(f"k{number}: {{image: x}}" for number in range(1000)) + "}"
    assert len(lint.lint(nice({"compose.yml": text}))) == 200


_scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=8), st.sampled_from(["${", "$", "*a", "latest"]))
_names = st.sampled_from(
    ["version", "services", "app", "image", "deploy", "labels", "configs", "secrets", "name", "external", "x"]
)
_trees = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_names, inner, max_size=4), max_leaves=15
)


@given(_trees)
def test_any_document_gives_findings_and_no_error(tmp_path_factory: pytest.TempPathFactory, tree: object) -> None:
    folder = tmp_path_factory.getbasetemp() / "any"
    folder.mkdir(exist_ok=True)
    (folder / "compose.yml").write_text(yaml.safe_dump(tree))
    assert all(isinstance(finding, LintFinding) for finding in lint.lint(folder))


@pytest.mark.parametrize("start", ["%YAML 1.3\n---\n", "a: |\n  \tb\n", "a: >\n \tb\n", "a: |2\n  \tb\n"])
def test_what_libyaml_does_not_take_is_not_given_to_what_is_slower(start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml, "SafeLoader", None)
    with pytest.raises(yaml.YAMLError):
        safeyaml.load(f"{start}z: [{'a,' * 520_000}]\n")


@pytest.mark.parametrize("number", ["1" + ":10" * 80_000, "1" + ":10" * 80_000 + ".5", "!!int '0x" + "f" * 240_000 + "'"])
def test_a_number_takes_no_longer_than_a_text(number: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml.SafeLoader, "construct_document", None)  # where the square of its length is taken
    with pytest.raises(safeyaml.TooMuch, match="a number of more than 1000 characters"):
        safeyaml.load(f"a: {number}\n")


def test_one_long_text_that_aliases_repeat_is_read_once() -> None:
    text = "$$" * 30_000 + "$FOO"
    assert lint.without_default({"command": [text] * 45_000}) == {"FOO"}


@pytest.mark.parametrize("text", [_BOMB, _ALIASES, "a: &a [*a]", "&a {x: {<<: *a}}"])
def test_what_unfolds_to_too_much_is_refused_before_it_is_built(text: str) -> None:
    with pytest.raises(safeyaml.TooMuch):
        safeyaml.load(text)
    assert safeyaml.load("a: &a {x: 1}\nb: {<<: *a, y: 2}")[0] == {"a": {"x": 1}, "b": {"x": 1, "y": 2}}


def test_the_page_tells_the_rules_as_they_are() -> None:
    rows = re.findall(r"^\| (C\d{3}) \| (\w+) \| .+ \| .+ \|$", (ROOT / "docs" / "lint.md").read_text(), re.MULTILINE)
    assert rows == list(RULES.items())


def test_a_label_is_spelt_as_in_the_recipe() -> None:
    [found] = lint.of_backups(BackupPlan(problems=["backupbot.backup=true of app backs up nothing"]))
    assert found.text == "backupbot.backup=true of app backs up nothing."


@pytest.mark.docker
def test_swarm_ignores_the_options_that_we_warn_about(tmp_path: Path) -> None:
    need_swarm()
    given = {
        **dict.fromkeys(lint._IGNORED, "host"),
        "cgroup_parent": "/x",
        "mac_address": "02:42:ac:11:65:43",
        "devices": ["/dev/null:/dev/null"],
        "external_links": ["x"],
        "links": ["x"],
        "shm_size": "1m",
        "tmpfs": ["/x"],
        "security_opt": ["no-new-privileges:true"],
        "privileged": True,
        "restart": "always",
        "build": ".",
        "expose": ["80"],
    }
    stack, file = f"cc-ci-test-{uuid.uuid4().hex[:8]}", tmp_path / "compose.yml"
    file.write_text(yaml.safe_dump({"services": {"app": {"image": IMAGE, "deploy": {"replicas": 0}, **given}}}))
    command = ["docker", "stack", "deploy", "--resolve-image=never", f"--compose-file={file}", stack]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True).stderr
        spec = json.loads(docker("service", "inspect", f"{stack}_app"))[0]["Spec"]
    finally:
        docker("stack", "rm", stack)
    ignored = re.search(r"Ignoring unsupported options: (.*)", told)
    also = re.findall(r"^(\w+): ", told, re.MULTILINE)
    assert ignored and {*ignored[1].split(", "), *also} == {*lint._IGNORED, "build", "expose"} - {"tmpfs"}
    assert "tmpfs" not in json.dumps(spec), "of which it says nothing"
