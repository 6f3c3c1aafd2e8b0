"""`infra.yml`: what it says, what is wrong with it and where, and that it reads as it was written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings

from infra.config.load import DeclarationError, dump, parse
from infra.config.schema import MANUAL_PATTERNS, App, Check, Git, Policy, Snapshots, Store, seconds
from tests.infra.declared import TEXT, documents


def wrong(text: str) -> list[str]:
    with pytest.raises(DeclarationError) as caught:
        parse(text)
    return str(caught.value).splitlines()


def changed(old: str, new: str) -> str:
    assert TEXT.count(old) == 1, old
    return TEXT.replace(old, new)


def test_a_whole_file() -> None:
    declared = parse(TEXT)
    traefik, keycloak, drone = declared.apps.values()
    assert list(declared.apps) == ["traefik", "keycloak", "drone"]
    assert (traefik.version, traefik.owner, traefik.deployer, traefik.server) == (
        "3.7.0+v3.4.1",
        "reconciled",
        "swarm",
        "default",
    )
    assert traefik.stack == "traefik_example_org", "as abra names it, unless it is said"
    assert (traefik.policy.auto, traefik.policy.left_major, traefik.policy.manual_patterns) == ("patch", "hold", MANUAL_PATTERNS)
    assert keycloak.policy == traefik.policy, "an anchor shares a policy"
    assert traefik.health == (Check(http="/ping", status=(200,)), Check(tcp="127.0.0.1:443"))
    assert [check.kind for check in (*traefik.health, *keycloak.health)] == ["http", "tcp", "command"]
    assert traefik.snapshots and traefik.snapshots.of == "none"
    assert keycloak.snapshots and (keycloak.snapshots.store, keycloak.snapshots.keep) == ("local", 5)
    assert keycloak.after == ("traefik",)
    assert drone.snapshots is None and drone.version == ""
    assert declared.document.stores["far"].password == "file:secrets/restic"
    assert declared.line("apps", "traefik", "version") == 17
    assert declared.line("apps", "keycloak") == 28
    assert declared.line("apps", "keycloak", "window") == 28, "what is not there is where its app is"


def test_the_order() -> None:
    text = "apps:\n" + "".join(
        f"  {name}: {{recipe: r, source: /r, domain: {name}.org, owner: maintainers, after: {after}}}\n"
        for name, after in (("d", "[b, c]"), ("c", "[a]"), ("b", "[a]"), ("a", "[]"), ("e", "[]"))
    )
    assert parse(text).order() == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "apps: {}\n", "---\n"])
def test_an_empty_file(text: str) -> None:
    assert not parse(text).apps


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "version: 3.7.0+v3.4.1 ",
            "verison: 3.7.0+v3.4.1 ",
            "infra.yml:17: apps.traefik: unknown key verison; did you mean version?",
        ),
        ("\napps:\n", "\naps:\n", "infra.yml:11: unknown key aps; did you mean apps?"),
        ("auto: patch", "autom: patch", "infra.yml:19: apps.traefik.policy: unknown key autom; did you mean auto?"),
        ("status: 200", "stat: 200", "infra.yml:24: apps.traefik.health[0]: unknown key stat; did you mean status?"),
        ("folder: /srv", "foldr: /srv", "infra.yml:6: stores.local: unknown key foldr; did you mean folder?"),
        ("keep: 5", "keeep: 5", "infra.yml:45: apps.keycloak.snapshots: unknown key keeep; did you mean keep?"),
        ("auto: patch", "auto: pach", "infra.yml:19: apps.traefik.policy.auto: must be 'none', 'patch' or 'minor'"),
        ("domain: id.example.org", "nodomain: x", "infra.yml:28: apps.keycloak: missing key domain"),
        (
            "version: 3.7.0+v3.4.1 ",
            "version: 3.7.0 ",
            "infra.yml:17: apps.traefik.version: Invalid version '3.7.0': expected X.Y.Z+",
        ),
        ("version: 3.7.0+v3.4.1 ", "version: 3.7 ", "infra.yml:17: apps.traefik.version: must be a string: put it in quotes"),
        ("cooldown: 3d", "cooldown: 3 days", "infra.yml:20: apps.traefik.policy.cooldown: invalid duration '3 days'"),
        ("cooldown: 3d", "cooldown: 90", "infra.yml:20: apps.traefik.policy.cooldown: invalid duration '90': expected"),
        ("cooldown: 3d", "soak: 1h30m", "infra.yml:20: apps.traefik.policy.soak: invalid duration '1h30m': expected"),
        ("02:00-05:00 Europe/Berlin", "02:00-05:00 Berlin", "infra.yml:21: apps.traefik.window: unknown time zone Berlin"),
        ("http: /ping", "http: ping", "infra.yml:23: apps.traefik.health[0].http: must be a path that begins with a slash"),
        ("tcp: 443", "tcp: 99999", "infra.yml:25: apps.traefik.health[1].tcp: must be HOST:PORT"),
        (
            "tcp: 443",
            "seconds: 3",
            "infra.yml:25: apps.traefik.health[1]: a check has exactly one of http, tcp and command; this one has none",
        ),
        ("tcp: 443", "{tcp: 443, body: x}", "infra.yml:25: apps.traefik.health[1]: status and body are only for http checks"),
        (
            "after: traefik",
            "after: treafik",
            "infra.yml:34: apps.keycloak.after[0]: no other app treafik; did you mean traefik?",
        ),
        (
            "store: local,",
            "store: locl,",
            "infra.yml:45: apps.keycloak.snapshots.store: unknown store locl; did you mean local?",
        ),
        (
            "snapshots: {store: local, keep: 5}",
            "snapshots: {keep: 5}",
            "infra.yml:45: apps.keycloak.snapshots: choose a store: one of local, far",
        ),
        ("    snapshots: none\n", "", "infra.yml:12: apps.traefik.snapshots: set `snapshots: none` if the app has no data"),
        (
            "    version: '10.7.1+26.6.2'\n",
            "",
            "infra.yml:28: apps.keycloak.version: an app that cc-ci reconciles needs an initial version",
        ),
        ('EXTRA: "1"', "EXTRA: 1", "infra.yml:37: apps.keycloak.env.EXTRA: must be a string: put it in quotes"),
        ('EXTRA: "1"', "DOMAIN: x", "infra.yml:36: apps.keycloak.env: DOMAIN cannot be set here"),
        ('"keycloak":', "Key Cloak:", "infra.yml:28: apps: invalid name 'Key Cloak': use lowercase letters, digits and hyphens"),
        (
            "domain: id.example.org",
            "domain: traefik.example.org",
            "infra.yml:28: apps.keycloak: keycloak and traefik would use the same stack",
        ),
        (
            "    password: file:secrets/restic\n",
            "",
            "infra.yml:7: stores.far: a restic store needs password: env:NAME or file:path",
        ),
        ("folder: /srv/snapshots ", "folder: snapshots ", "infra.yml:6: stores.local.folder: must be an absolute path"),
        (
            "auto: patch",
            "auto: patch\n      left_major: allow",
            "infra.yml:20: apps.traefik.policy.left_major: left_major: allow has no effect while",
        ),
        (
            "auto: patch",
            "auto: patch\n      auto: minor",
            "infra.yml:20: apps.traefik.policy.auto: duplicate key, first in line 19",
        ),
        (
            "auto: patch",
            "manual_patterns: ['(']",
            "infra.yml:19: apps.traefik.policy.manual_patterns: invalid regular expression '('",
        ),
        ("recipe: keycloak", "recipe: [", "infra.yml:31: invalid YAML: did not find expected"),
    ],
)
def test_errors_have_a_line_and_a_hint(old: str, new: str, said: str) -> None:
    lines = wrong(changed(old, new))
    assert any(line.startswith(said) for line in lines), lines


def test_all_errors_at_once_in_the_order_of_lines() -> None:
    text = changed("auto: patch", "autom: patch").replace("keep: 5", "keep: none").replace("commit: true", "comit: true")
    assert [line.partition(" ")[0] for line in wrong(text)] == ["infra.yml:2:", "infra.yml:19:", "infra.yml:19:", "infra.yml:45:"]


def test_an_order_in_a_circle() -> None:
    text = changed("    snapshots: none", "    after: [drone]\n    snapshots: none")
    assert "infra.yml:26: apps.traefik.after: dependency cycle: traefik after drone after traefik" in wrong(text)


SECRET = "hunter2-is-no-good"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("password: file:secrets/restic", f"password: {SECRET}"),
        ("SMTP_PASSWORD: env:SMTP_PASSWORD", f"SMTP_PASSWORD: {SECRET}"),
        ("admin_password: file:secrets/keycloak-admin", f"admin_password: {SECRET}"),
        ("https://git.example.org/recipes/traefik.git", f"https://bot:{SECRET}@git.example.org/traefik.git"),
        ("https://git.example.org/recipes/traefik.git", f"https://{SECRET}@git.example.org/traefik.git"),
        ("sftp:backup@host.example.org:/cc-ci", f"rest:https://bot:{SECRET}@host.example.org/"),
        ("domain: id.example.org", f"domain: id.example.org\n    credential: {SECRET}"),
    ],
)
def test_secrets_are_refused_and_not_repeated(old: str, new: str) -> None:
    lines = wrong(changed(old, new))
    assert len(lines) == 1
    assert re.match(r"infra.yml:\d+: (apps|stores)\.", lines[0])
    assert "env:NAME" in lines[0]
    assert SECRET not in lines[0]


@pytest.mark.parametrize(
    "source", ["ext::sh -c id", "-u/srv", "--upload-pack=x", "http://git.example.org/a.git", "file://host/x"]
)
def test_sources_that_git_must_not_see(source: str) -> None:
    [line] = wrong(changed("https://git.example.org/recipes/traefik.git", f"'{source}'"))
    assert "must be a git repository" in line


@pytest.mark.parametrize(
    "text",
    [
        "apps: &a\n  x: *a\n",
        "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"{c}: &{c} [{','.join([f'*{p}'] * 10)}]\n" for p, c in zip("abcdefg", "bcdefgh", strict=True)),
        "- a\n- b\n",
        "just words",
        "apps: !!python/object:os.system {}",
        "a: 1\n---\nb: 2\n",
        "\x00",
        "[" * 5000,
        "#" * (1 << 20) + "#",
    ],
    ids=["itself", "laughs", "list", "words", "tag", "two", "nul", "deep", "big"],
)
def test_hostile_files(text: str) -> None:
    assert wrong(text)[0].startswith("infra.yml:")


def test_merged_keys_are_no_doubles() -> None:
    text = changed("policy: *careful", "policy: {<<: *careful, auto: minor}")
    policy = parse(text).apps["keycloak"].policy
    assert (policy.auto, policy.cooldown) == ("minor", "3d")


def test_times() -> None:
    assert [seconds(text) for text in ("0s", "90s", "10m", "12h", "3d", "2w")] == [0, 90, 600, 43200, 259200, 1209600]


def test_the_normal_form_reads_as_it_was_written() -> None:
    declared = parse(TEXT)
    text = dump(declared.document)
    assert parse(text).document == declared.document
    assert dump(parse(text).document) == text
    assert "cooldown: 3d" in text and "soak" not in text, "what is the default anyway is not written"


@settings(max_examples=60)
@given(documents())
def test_every_declaration_reads_as_it_was_written(values: dict[str, Any]) -> None:
    declared = parse(yaml.safe_dump(values, allow_unicode=True, sort_keys=False))
    assert parse(dump(declared.document)).document == declared.document


def test_the_document_has_a_file_that_can_be_used_and_every_key() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "infra.md").read_text()
    example = text.partition("```yaml\n")[2].partition("```")[0]
    assert list(parse(example).apps) == ["traefik", "keycloak", "drone"]
    for section in (App, Policy, Check, Snapshots, Store, Git):
        missing = [name for name in section.model_fields if f"`{name}`" not in text]
        assert not missing, f"docs/infra.md does not know {missing} of {section.__name__}"
    for key, value in Policy().model_dump(mode="json").items():
        shown = str(value).lower() if isinstance(value, bool) else value
        assert key in ("manual_patterns", "harmless_patterns") or f"| `{key}` | `{shown}` |" in text, key
