"""infra.yml against what is known and what runs: the differences, applying them, and the way back by export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from django.utils import timezone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.config import apply as applying
from infra.config.apply import NotApplied, apply, differences, export
from infra.config.diff import Change
from infra.config.load import dump, parse
from infra.models import InfraApp, InfraFile
from infra.recipe_version import Version
from infra.states import UpgradeState
from tests.factories import InfraAppFactory, UpgradeFactory
from tests.infra.declared import TEXT, documents

pytestmark = [pytest.mark.django_db, pytest.mark.slow(0.4)]
FILE = Path("/srv/server/infra.yml")


def put(text: str) -> list[Change]:
    return apply(parse(text), FILE)


def kinds(changes: list[Change]) -> list[tuple[str, str, str]]:
    return [(change.kind, change.app, change.key) for change in changes]


def run(name: str, version: str) -> None:
    """The app runs this version, as it was seen last."""
    assert InfraApp.objects.filter(name=name).update(running_version=version)


@pytest.fixture
def known() -> None:
    put(TEXT)
    run("traefik", "3.7.0+v3.4.1")
    run("keycloak", "10.7.1+26.6.2")
    run("drone", "1.0.0+2")


def test_the_first_time() -> None:
    changes = put(TEXT)
    assert kinds(changes) == [("change", "", "stores"), ("add", "traefik", ""), ("add", "keycloak", ""), ("add", "drone", "")]
    assert "+ traefik (infra.yml:12)  cc-ci deploys and upgrades it from now on." in [str(change) for change in changes]
    traefik = InfraApp.objects.get(name="traefik")
    assert (traefik.pinned_version, traefik.owner, traefik.stack) == ("3.7.0+v3.4.1", "reconciled", "traefik_example_org")
    assert traefik.policy == {"auto": "patch", "cooldown": "3d"}
    assert traefik.health == [{"http": "/ping", "status": [200]}, {"tcp": "127.0.0.1:443"}]
    keycloak = InfraApp.objects.get(name="keycloak")
    assert keycloak.secrets == {"admin_password": "file:secrets/keycloak-admin"}
    assert keycloak.after == ["traefik"]
    file = InfraFile.objects.get()
    assert (file.path, set(file.stores)) == ("/srv/server/infra.yml", {"local", "far"})


def test_a_second_apply_does_nothing() -> None:
    put(TEXT)
    rows, file = list(InfraApp.objects.values()), InfraFile.objects.values().get()
    assert [kind for kind, _, _ in kinds(put(TEXT))] == ["running", "running"], "only what does not run yet is told"
    assert list(InfraApp.objects.values()) == rows
    assert InfraFile.objects.values().get() == file


@pytest.mark.usefixtures("known")
def test_no_differences() -> None:
    assert differences(parse(TEXT)) == []


@pytest.mark.usefixtures("known")
def test_a_change_says_from_what_to_what_and_where() -> None:
    changes = put(TEXT.replace("Mon-Fri 02:00-05:00 Europe/Berlin", "03:00-04:00").replace("keep: 5", "keep: 6"))
    assert [str(change) for change in changes] == [
        "~ traefik.window: Mon-Fri 02:00-05:00 Europe/Berlin → 03:00-04:00 (infra.yml:21)",
        "~ keycloak.snapshots: {'keep': 5} → {'keep': 6} (infra.yml:45)",
    ]
    assert InfraApp.objects.get(name="traefik").window == "03:00-04:00"


@pytest.mark.usefixtures("known")
def test_of_a_long_policy_only_what_differs_is_shown() -> None:
    changes = put(TEXT.replace("policy: *careful", "policy: {<<: *careful, soak: 30m}"))
    assert [str(change) for change in changes] == ["~ keycloak.policy: {'soak': '5m'} → {'soak': '30m'} (infra.yml:35)"]


@pytest.mark.usefixtures("known")
def test_a_running_version_is_never_lowered() -> None:
    InfraApp.objects.filter(name="traefik").update(pinned_version="3.8.0+v3.5.0", running_version="3.8.0+v3.5.0")
    changes = put(TEXT.replace("Mon-Fri 02:00", "Mon-Fri 01:00"))
    assert kinds(changes) == [("behind", "traefik", "version"), ("change", "traefik", "window")]
    behind = changes[0]
    assert "The file is behind: 3.8.0+v3.5.0 runs, and cc-ci never lowers a version" in behind.reason
    assert (behind.line, behind.commit) == (17, "    version: 3.8.0+v3.5.0       # pinned by cc-ci")
    assert str(behind).endswith("\n    infra.yml:17:     version: 3.8.0+v3.5.0       # pinned by cc-ci")
    row = InfraApp.objects.get(name="traefik")
    assert row.pinned_version == "3.8.0+v3.5.0", "and the pin stays"
    assert row.window.startswith("Mon-Fri 01:00"), "the rest is applied"
    text = TEXT.splitlines(keepends=True)
    text[behind.line - 1] = behind.commit + "\n"
    assert differences(parse("".join(text).replace("Mon-Fri 02:00", "Mon-Fri 01:00"))) == [], "with the line given all is well"


@pytest.mark.usefixtures("known")
def test_the_right_part_counts_too() -> None:
    run("traefik", "3.7.0+v3.4.10")
    assert kinds(put(TEXT)) == [("behind", "traefik", "version")]


def test_what_was_never_seen_is_taken_to_run_as_pinned() -> None:
    put(TEXT)
    changes = put(TEXT.replace("3.7.0+v3.4.1 ", "3.6.0+v3.4.1 "))
    assert ("behind", "traefik", "version") in kinds(changes)
    assert InfraApp.objects.get(name="traefik").pinned_version == "3.7.0+v3.4.1"


@pytest.mark.usefixtures("known")
def test_a_version_that_was_raised_by_hand() -> None:
    changes = put(TEXT.replace("3.7.0+v3.4.1 ", "3.8.0+v3.5.0 "))
    assert kinds(changes) == [("running", "traefik", "version"), ("change", "traefik", "version")]
    assert changes[0].reason == "3.7.0+v3.4.1 runs; 3.8.0+v3.5.0 comes with the next upgrade."
    row = InfraApp.objects.get(name="traefik")
    assert (row.pinned_version, row.running_version) == ("3.8.0+v3.5.0", "3.7.0+v3.4.1")


@pytest.mark.usefixtures("known")
def test_a_running_version_that_cannot_be_read() -> None:
    run("traefik", "chaos")
    changes = put(TEXT.replace("3.7.0+v3.4.1 ", "3.8.0+v3.5.0 "))
    assert kinds(changes) == [("refused", "traefik", "version")]
    assert InfraApp.objects.get(name="traefik").pinned_version == "3.7.0+v3.4.1"


@pytest.mark.usefixtures("known")
def test_another_owner() -> None:
    before = InfraApp.objects.get(name="keycloak").fence
    owner = "    owner: reconciled\n    version: '10.7.1+26.6.2'"
    changes = put(TEXT.replace(owner, owner.replace("reconciled", "maintainers")))
    assert str(changes[0]).endswith("Its maintainers upgrade it; cc-ci changes nothing.")
    row = InfraApp.objects.get(name="keycloak")
    assert row.owner == "maintainers"
    assert row.fence == before + 1, "a worker that began under the old owner is told by it"
    put(TEXT)
    assert InfraApp.objects.get(name="keycloak").fence == before + 2


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("state", [UpgradeState.SNAPSHOTTING, UpgradeState.SOAKING, UpgradeState.ROLLING_BACK])
def test_nothing_of_an_app_is_changed_in_mid_step(state: UpgradeState) -> None:
    row = InfraApp.objects.get(name="keycloak")
    UpgradeFactory(app=row, state=state)
    owner = "    owner: reconciled\n    version: '10.7.1+26.6.2'"
    changes = put(TEXT.replace(owner, owner.replace("reconciled", "maintainers")).replace("Mon-Fri 02:00", "Mon-Fri 01:00"))
    assert kinds(changes) == [("change", "traefik", "window"), ("refused", "keycloak", "owner")]
    assert "apply again when it has finished" in changes[1].reason
    assert InfraApp.objects.get(name="keycloak").owner == "reconciled"
    assert InfraApp.objects.get(name="traefik").window.startswith("Mon-Fri 01:00"), "of others all may be"
    without = TEXT[: TEXT.index('  "keycloak"')]
    assert ("refused", "keycloak", "") in kinds(put(without))
    assert InfraApp.objects.get(name="keycloak").declared


@pytest.mark.usefixtures("known")
def test_who_owns_a_contested_app_is_not_for_the_file_to_say() -> None:
    InfraApp.objects.filter(name="keycloak").update(state="contested")
    owner = "    owner: reconciled\n    version: '10.7.1+26.6.2'"
    text = TEXT.replace(owner, owner.replace("reconciled", "maintainers")).replace("keep: 5", "keep: 6")
    changes = put(text)
    assert kinds(changes) == [("refused", "keycloak", "owner"), ("change", "keycloak", "snapshots")]
    assert "cc-ci infra adopt keycloak, restore-ours keycloak or hand-over keycloak" in changes[0].reason
    assert InfraApp.objects.get(name="keycloak").owner == "reconciled"


@pytest.mark.usefixtures("known")
def test_an_app_that_is_no_longer_declared_runs_on() -> None:
    text = TEXT[: TEXT.index("  drone:")]
    assert kinds(put(text)) == [("remove", "drone", "")]
    row = InfraApp.objects.get(name="drone")
    assert not row.declared and not row.ours and row.running_version == "1.0.0+2"
    assert list(export().apps) == ["traefik", "keycloak"]
    assert differences(parse(text)) == []
    assert kinds(put(TEXT)) == [("add", "drone", "")]
    assert InfraApp.objects.get(name="drone").pk == row.pk, "it comes back with its trail"


@pytest.mark.usefixtures("known")
def test_an_app_that_is_called_otherwise_is_the_same() -> None:
    row = InfraApp.objects.get(name="traefik")
    text = TEXT.replace("  traefik:", "  proxy:").replace("after: traefik", "after: proxy").replace("[traefik,", "[proxy,")
    changes = put(text)
    assert kinds(changes) == [("rename", "proxy", ""), ("change", "keycloak", "after"), ("change", "drone", "after")]
    assert InfraApp.objects.get(name="proxy").pk == row.pk
    assert InfraApp.objects.count() == 3
    assert differences(parse(text)) == []


@pytest.mark.usefixtures("known")
def test_another_stack_is_another_deployment() -> None:
    InfraApp.objects.filter(name="drone").update(fingerprint="abc", discovered_at=timezone.now())
    changes = put(TEXT.replace("domain: ci.example.org", "domain: ci2.example.org"))
    assert kinds(changes) == [("change", "drone", "domain"), ("change", "drone", "stack")]
    assert "The old stack ci_example_org on default keeps running" in changes[0].reason
    row = InfraApp.objects.get(name="drone")
    assert (row.running_version, row.fingerprint) == ("", "")
    assert row.discovered_at
    put(TEXT.replace("/srv/recipes/drone", "/srv/recipes/drone2"))
    assert InfraApp.objects.get(name="drone").discovered_at is None, "nothing is known of another repository"


def test_two_that_change_places() -> None:
    text = "apps:\n" + "".join(
        f"  {name}: {{recipe: r, source: /r, domain: {name}.org, stack: {stack}, owner: maintainers}}\n"
        for name, stack in (("a", "one"), ("b", "two"))
    )
    put(text)
    with pytest.raises(NotApplied, match="swap stacks"):
        put(text.replace("one", "three").replace("two", "one").replace("three", "two"))
    assert differences(parse(text)) == [], "all or nothing"


def test_somebody_else_changes_an_app_in_this_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    put(TEXT)

    def meddle(row: InfraApp, values: dict[str, Any]) -> None:
        InfraApp.objects.filter(pk=row.pk).update(state="upgrading")
        update(row, values)

    update = applying._update
    monkeypatch.setattr(applying, "_update", meddle)
    with pytest.raises(NotApplied, match="traefik was modified concurrently"):
        put(TEXT.replace("Mon-Fri 02:00", "Mon-Fri 01:00"))
    assert InfraApp.objects.get(name="traefik").window.startswith("Mon-Fri 02:00")


def test_export_gives_a_file_that_reads_the_same() -> None:
    declared = parse(TEXT)
    put(TEXT)
    assert export() == declared.document
    assert parse(dump(export())).document == declared.document


def empty() -> None:
    InfraApp.objects.all().delete()
    InfraFile.objects.all().delete()


QUICK = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


@QUICK
@given(documents())
def test_export_and_apply_are_inverse(values: dict[str, Any]) -> None:
    empty()
    declared = parse(yaml.safe_dump(values, allow_unicode=True, sort_keys=False))
    apply(declared, FILE)
    assert export() == declared.document
    assert list(export().apps) == list(declared.apps), "in the file's order"
    rows = list(InfraApp.objects.values())
    again = apply(parse(dump(export())), FILE)
    assert {change.kind for change in again} <= {"running"}
    assert list(InfraApp.objects.values()) == rows


@QUICK
@given(documents(), documents(), st.data())
def test_whatever_was_applied_before_a_file_is_taken_over_and_no_version_lowered(
    first: dict[str, Any], second: dict[str, Any], data: st.DataObject
) -> None:
    empty()
    apply(parse(yaml.safe_dump(first, allow_unicode=True)), FILE)
    for row in InfraApp.objects.exclude(pinned_version=""):
        if data.draw(st.booleans()):
            run(row.name, row.pinned_version)
    before = {row.stack: row.running_version for row in InfraApp.objects.exclude(running_version="")}
    declared = parse(yaml.safe_dump(second, allow_unicode=True))
    changes = apply(declared, FILE)
    behind = {change.app for change in changes if change.kind == "behind"}
    exported = export()
    for name, app in declared.apps.items():
        if name not in behind:
            assert exported.apps[name] == app
        row = InfraApp.objects.get(name=name)
        if (runs := before.get(row.stack)) and row.owner == "reconciled" and row.running_version:
            assert Version.parse(row.pinned_version) >= Version.parse(runs)


def test_another_app_s_stack_is_not_taken() -> None:
    InfraAppFactory(name="old", stack="traefik_example_org", server="default", running_version="9.0.0+1", declared=False)
    changes = put(TEXT)
    assert ("rename", "traefik", "") in kinds(changes), "the stack says that they are the same"
    assert ("behind", "traefik", "version") in kinds(changes), "so it is not lowered"
