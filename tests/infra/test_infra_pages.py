"""The pages at /infra/: every reason stands there with what lifts it, every command has its counterpart, and no button does
anything unasked, for the wrong person, or in the wrong state."""

from __future__ import annotations

import re
from argparse import ArgumentParser, _SubParsersAction
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from django.utils.html import escape

from controlplane.registry import registry
from infra import admin
from infra.config import apply
from infra.management.commands.infra import Command
from infra.models import InfraApp, InfraFile, InfraRelease, Upgrade
from infra.releases import discovery
from infra.releases.gate import RULES, Preflight
from infra.states import UpgradeState
from infra.upgrades import launcher
from infra.web.actions import BUTTONS, PAGES, WITHOUT
from tests.factories import InfraAppFactory, InfraReleaseFactory, SnapshotFactory, UpgradeFactory

pytestmark = [pytest.mark.django_db, pytest.mark.slow(0.1)]

RUNNING, PATCH, MINOR, MAJOR = "1.0.0+2.0", "1.0.1+2.0", "1.1.0+2.0", "2.0.0+2.0"


@pytest.fixture
def app() -> InfraApp:
    row: InfraApp = InfraAppFactory(name="web")
    return row


@pytest.fixture(autouse=True)
def no_machine(monkeypatch: pytest.MonkeyPatch) -> list[Upgrade]:
    """There is no stack to look at and no repository to read; upgrades that begin are kept here."""
    begun: list[Upgrade] = []
    monkeypatch.setattr("infra.upgrades.enqueue.preflight", lambda app: Preflight())
    monkeypatch.setattr(discovery, "discover", lambda app: [])
    monkeypatch.setattr(launcher, "start", begun.append)
    return begun


def text_of(client: Client, address: str = "/infra/") -> str:
    answer = client.get(address)
    assert answer.status_code == 200
    return answer.content.decode()


# --- every blocker, with what lifts it


def _policy(app: InfraApp, **policy: Any) -> None:
    InfraApp.objects.filter(pk=app.pk).update(policy=policy)


def _release(app: InfraApp, version: str = PATCH, **fields: Any) -> None:
    InfraReleaseFactory(app=app, version=version, **fields)


def _beyond_auto(app: InfraApp) -> None:
    _policy(app, auto="patch")
    _release(app, MINOR)


def _missing_notes(app: InfraApp) -> None:
    _policy(app, missing_notes="hold")
    _release(app, notes=None)


def _not_tested(app: InfraApp) -> None:
    _policy(app, need_test_run=True)
    _release(app)


def _set(**values: Any) -> Callable[[InfraApp], None]:
    def change(app: InfraApp) -> None:
        InfraApp.objects.filter(pk=app.pk).update(**values)

    return change


#: How each blocker comes about, a word of its text, and one of what lifts it.
ON_THE_PAGE: dict[str, tuple[Callable[[InfraApp], Any], str, str]] = {
    "left_major": (
        lambda app: _release(app, MAJOR),
        "The recipe's major version changes from 1 to 2",
        "cc-ci infra approve web 2.0.0+2.0",
    ),
    "right_major": (
        lambda app: _release(app, "1.1.0+3.0"),
        "The app's major version changes from 2 to 3",
        "infra approve web 1.1.0+3.0",
    ),
    "beyond_auto": (_beyond_auto, "more than a patch", "The policy says `auto: patch`."),
    "manual_work": (
        lambda app: _release(app, notes="Migrate by hand."),
        "ask for manual work",
        "cc-ci infra approve web 1.0.1+2.0",
    ),
    "missing_notes": (_missing_notes, "There are no release notes.", "cc-ci infra approve web 1.0.1+2.0"),
    "cooldown": (lambda app: _release(app, tagged_at=timezone.now()), "It is less than 2d old.", "Wait until "),
    "quarantined": (
        lambda app: _release(app, state="quarantined", evidence={"quarantined": "it died."}),
        "It is quarantined: it died.",
        "cc-ci infra lift web 1.0.1+2.0",
    ),
    "lint_failed": (lambda app: _release(app), "It failed lint: no image is pinned", "Wait for a version that fixes it."),
    "not_tested": (_not_tested, "It has not passed a test run on this server.", "need_test_run: false"),
    "not_annotated": (lambda app: _release(app, annotated=False), "Its tag is lightweight", "git tag -a -f 1.0.1+2.0"),
    "maintainers": (
        _set(owner="maintainers"),
        "This app is managed by its maintainers; cc-ci changes nothing.",
        "cc-ci infra adopt web",
    ),
    "contested": (_set(state="contested"), "outside cc-ci.", "restore-ours web"),
    "unknown_version": (_set(running_version=""), "The version of what runs cannot be read", "Deploy a tagged version"),
    "under_way": (
        lambda app: UpgradeFactory(app=app, state=UpgradeState.SOAKING),
        "An upgrade is already running: 1.0.0+2.0 → 1.0.1+2.0, soaking.",
        "Follow it",
    ),
    "rollback_failed": (
        lambda app: UpgradeFactory(app=app, state=UpgradeState.ROLLBACK_FAILED, reason="the disk was full."),
        "A rollback failed, and nothing has been touched since: the disk was full.",
        "Repair it manually, then: cc-ci infra adopt web",
    ),
    "window": (
        _set(window=f"{timezone.now() + timedelta(hours=5):%H:%M}-{timezone.now() + timedelta(hours=6):%H:%M}"),
        "It is outside the maintenance window",
        "or use --now.",
    ),
}
#: What only a look at the machine finds, which the plan of the night takes.
OF_THE_MACHINE: dict[str, tuple[str, str]] = {
    "sick": ("The app is already unhealthy: app: 0/1.", "Fix this first"),
    "busy": ("The host is busy: the load is 9.", "Wait, or use --now."),
    "disk": ("Not enough space for a snapshot: 3 MB are free.", "Free some space, or use another store."),
    "old_image": ("Rollback is not possible: app:1 is gone.", "Run docker pull for that image."),
}


def test_no_blocker_is_left_out() -> None:
    assert {*ON_THE_PAGE, *OF_THE_MACHINE} == {rule.kind for rule in RULES}


@pytest.mark.parametrize("kind", ON_THE_PAGE)
def test_each_blocker_with_what_lifts_it(kind: str, app: InfraApp, admin_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare, text, lift = ON_THE_PAGE[kind]
    if kind == "lint_failed":
        monkeypatch.setitem(registry.answers, "version_evidence", lambda *args: {"passed": True, "lint": ["no image is pinned"]})
    before = text_of(admin_client)
    assert escape(text) not in before
    prepare(app)
    page = text_of(admin_client)
    assert escape(text) in page and escape(lift) in page
    night = text_of(admin_client, "/infra/night/")
    assert escape(text) in night


def test_what_only_the_machine_tells(app: InfraApp, admin_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    live = Preflight(unhealthy="app: 0/1.", busy="the load is 9.", disk="3 MB are free.", old_image="app:1 is gone.")
    monkeypatch.setattr("infra.upgrades.enqueue.preflight", lambda app: live)
    page = text_of(admin_client, "/infra/night/")
    for text, lift in OF_THE_MACHINE.values():
        assert escape(text) in page and escape(lift) in page


def test_the_notes_are_shown_whole_with_the_word_that_holds_them(app: InfraApp, admin_client: Client) -> None:
    _release(app, notes="<i>First</i> this.\nThen a migration by hand.\nThe end.")
    page = text_of(admin_client)
    assert "&lt;i&gt;First&lt;/i&gt; this.\nThen a migration <mark>by hand</mark>.\nThe end.\n" in page


def test_of_many_versions_the_newest_and_the_next_are_shown(
    app: InfraApp, admin_client: Client, django_assert_max_num_queries: Any
) -> None:
    _release(app, PATCH)
    for number in range(40):
        _release(app, f"2.{number}.0+2.0", rank=number + 5)
    with django_assert_max_num_queries(100):
        page = text_of(admin_client)
    assert "<strong>2.39.0+2.0</strong>" in page and f'<strong>{PATCH}</strong>\n    <span class="status good">next' in page
    assert "<strong>2.1.0+2.0</strong>" not in page and "30 more versions between these." in page
    assert admin_client.get(f"/admin/infra/infrarelease/?app__id__exact={app.pk}").status_code == 200


# --- commands and buttons


def _typed() -> set[str]:
    """Every sub-command, and each of its options that makes it do something else."""
    parser: ArgumentParser = Command().create_parser("cc-ci", "infra")
    (actions,) = [one for one in parser._actions if isinstance(one, _SubParsersAction)]
    found = set()
    for name, command in actions.choices.items():
        found.add(name)
        options = {word for one in command._actions for word in one.option_strings if word.startswith("--")}
        found |= {f"{name} {option}" for option in options - HOW}
    return found


#: Options that say how something is told, or where a file is.
HOW = {"--help", "--json", "--file", "--no-wait"}


def _counterparts() -> set[str]:
    words = (re.sub(r"\{\w+\}|keep|replace", "", button.command) for button in BUTTONS.values())
    return {" ".join(word.split()) for word in words} | set(PAGES) | set(WITHOUT)


def test_every_command_has_its_counterpart_and_every_button_its_command() -> None:
    assert _typed() == _counterparts()
    for reason in WITHOUT.values():
        assert reason.endswith(".")


def test_the_admin_has_the_same_buttons() -> None:
    for on, page in (("app", admin.InfraAppAdmin), ("release", admin.InfraReleaseAdmin), ("snapshot", admin.SnapshotAdmin)):
        names = {name for name, button in BUTTONS.items() if button.on == on}
        assert names == set(page.actions) - {"show_plan"}


def test_every_page_of_a_command_is_there(app: InfraApp, admin_client: Client) -> None:
    for name in set(PAGES.values()):
        assert admin_client.get(reverse(name)).status_code == 200
        assert Client().get(reverse(name)).status_code == 302


@pytest.fixture
def row(app: InfraApp) -> Callable[[str], Any]:
    """A row for a button."""
    made = {
        "app": app,
        "release": InfraReleaseFactory(app=app, version=PATCH),
        "snapshot": SnapshotFactory(app=app),
        "server": None,
    }
    return lambda name: made[BUTTONS[name].on]


def address(name: str, row: Any) -> str:
    return reverse("infra-do", args=[name, row.pk] if row else [name])


@pytest.fixture
def pressed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Buttons that do nothing but tell that they were pressed."""
    found: list[tuple[str, str]] = []

    def spy(name: str) -> Callable[[Any, str], str]:
        def act(row: Any, who: str) -> str:
            found.append((name, who))
            return "It was done."

        return act

    for name, button in BUTTONS.items():
        monkeypatch.setitem(BUTTONS, name, replace(button, act=spy(name)))
    return found


@pytest.mark.parametrize("name", BUTTONS)
def test_a_button_says_what_it_does_and_is_for_those_who_may(
    name: str, row: Callable[[str], Any], pressed: list[tuple[str, str]], admin_client: Client
) -> None:
    target, button = address(name, row(name)), BUTTONS[name]
    page = text_of(admin_client, target)
    assert escape(button.says(row(name))) in page and escape(button.typed(row(name))) in page
    assert "{" not in button.says(row(name)) + button.typed(row(name))
    assert 'name="csrfmiddlewaretoken"' in page

    stranger, member, reader = Client(), Client(), Client()
    member.force_login(User.objects.create_user("member"))
    person = User.objects.create_user("reader", is_staff=True)
    person.user_permissions.set(Permission.objects.filter(codename__startswith="view_"))
    reader.force_login(person)
    for client, status in ((stranger, 302), (member, 302), (reader, 403)):
        assert client.post(target).status_code == status
    assert "This needs the permission infra.change_" in reader.post(target).content.decode()
    careless = Client(enforce_csrf_checks=True)
    careless.force_login(User.objects.get(username="admin"))
    assert careless.post(target).status_code == 403
    assert pressed == [], "neither a look, nor a stranger, nor another site presses it"

    answer = admin_client.post(target, follow=True)
    assert pressed == [(name, "admin")]
    assert "It was done." in answer.content.decode()


def test_no_button_is_offered_to_who_may_only_look(app: InfraApp, client: Client) -> None:
    person = User.objects.create_user("reader", is_staff=True)
    person.user_permissions.set(Permission.objects.filter(codename="view_infraapp"))
    client.force_login(person)
    page = text_of(client)
    assert "/infra/do/" not in page


#: Each page with the model that one has to be allowed to see.
PERMITTED = {
    "/infra/": "infraapp",
    "/infra/night/": "infraapp",
    "/infra/file/": "infrafile",
    "/infra/infra.yml": "infrafile",
    "/infra/upgrades/{upgrade}/": "upgrade",
    "/infra/upgrades/{upgrade}/live": "upgrade",
    "/infra/do/adopt/{app}/": "infraapp",
    "/infra/do/apply/": "infraapp",
}


@pytest.mark.parametrize(("address", "model"), PERMITTED.items())
def test_a_page_needs_the_right_to_see_what_is_on_it(address: str, model: str, app: InfraApp, file: Path, client: Client) -> None:
    file.write_text(FILE)
    row = UpgradeFactory(app=app, state=UpgradeState.SUCCEEDED)
    address = address.format(upgrade=row.pk, app=app.pk)
    for staff in (False, True):
        person = User.objects.create_user(f"person-{staff}", is_staff=staff)
        if not staff:  # a right alone does not make one of the staff
            person.user_permissions.set(Permission.objects.filter(content_type__app_label="infra"))
        client.force_login(person)
        assert client.get(address).status_code == (403 if staff or address.endswith("live") else 302)
        assert client.post(address).status_code in (302, 403, 405)
    start = client.get("/").content.decode()
    assert "<bdi>web</bdi>" not in start and '"/infra/"' not in start
    others = Permission.objects.filter(content_type__app_label="infra").exclude(content_type__model=model)
    person.user_permissions.set(others.filter(codename__startswith="view_"))
    client.force_login(User.objects.get(pk=person.pk))
    assert client.get(address).status_code == 403
    for right in ("view", "change"):
        person.user_permissions.set(Permission.objects.filter(codename=f"{right}_{model}"))
        client.force_login(User.objects.get(pk=person.pk))
        # Being asked about what one may not do is an answer of its own, with what it needs.
        asked = client.get(address)
        assert asked.status_code == 200 or (
            asked.status_code == 403 and "This needs the permission infra." in asked.content.decode()
        )


def test_every_page_of_the_apps_is_in_that_table() -> None:
    from infra import urls

    known = {address.removeprefix("/infra/").partition("{")[0] for address in PERMITTED}
    for pattern in urls.urlpatterns:
        route = str(pattern.pattern).partition("<")[0]
        assert any(address.startswith(route) for address in known), route


#: Each button in a state in which it must refuse: how the state comes about, and a word of the refusal.
WRONG: dict[str, tuple[Callable[[InfraApp], Any], str]] = {
    "upgrade": (_set(owner="maintainers"), "This app is managed by its maintainers; cc-ci changes nothing."),
    "upgrade_now": (_set(state="contested"), "It has drifted"),
    "upgrade_to": (lambda app: _policy(app, auto="none"), "The policy allows no unattended upgrade."),
    "rollback": (_set(), "so it does not know the version before."),
    "rollback_with_data": (
        lambda app: UpgradeFactory(app=app, from_version="0.9.0+2.0", to_version=RUNNING, state="succeeded"),
        "There is no snapshot of 0.9.0+2.0.",
    ),
    "releases": (_set(), "Cannot read the releases of web: gone"),
    "adopt": (lambda app: UpgradeFactory(app=app, state="soaking"), "adopt it when it has finished."),
    "restore_ours": (_set(), "has not drifted"),
    "hand_over": (lambda app: UpgradeFactory(app=app, state="deploying"), "hand it over when it has finished."),
    "approve": (_set(), "needs no approval"),
    "lift": (_set(), "is not quarantined."),
    "restore": (_set(state="contested"), "has drifted."),
    "snapshot": (_set(), "web has `snapshots: none` in infra.yml."),
    "deploy": (_set(owner="maintainers"), "is managed by its maintainers"),
    "deploy_fresh": (_set(owner="maintainers"), "is managed by its maintainers"),
    "deploy_keep": (_set(declared=False), "is no longer in infra.yml."),
    "deploy_replace": (_set(declared=False), "is no longer in infra.yml."),
    "deploy_from": (_set(owner="maintainers"), "is managed by its maintainers"),
    "apply": (_set(), "Choose another file with --file"),
}


@pytest.mark.parametrize("name", [name for name in BUTTONS if name != "nightly"])
def test_the_wrong_state_is_refused_in_words(
    name: str,
    app: InfraApp,
    row: Callable[[str], Any],
    admin_client: Client,
    no_machine: list[Upgrade],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    prepare, words = WRONG[name]
    monkeypatch.setattr(settings.CC_CI, "data_dir", tmp_path)
    if name == "releases":

        def gone(app: InfraApp) -> list[Any]:
            raise discovery.NotDiscovered("Cannot read the releases of web: gone")

        monkeypatch.setattr(discovery, "discover", gone)
    prepare(app)
    upgrades, owner = Upgrade.objects.count(), InfraApp.objects.get().owner
    answer = admin_client.post(address(name, row(name)))
    page = answer.content.decode()
    assert answer.status_code == 409
    assert "Refused." in page and escape(words) in page
    assert (Upgrade.objects.count(), InfraApp.objects.get().owner) == (upgrades, owner) and no_machine == []


def test_there_is_no_button_of_another_name(app: InfraApp, admin_client: Client) -> None:
    for target in ("/infra/do/explode/", f"/infra/do/upgrade/{app.pk + 1}/", "/infra/do/upgrade/", f"/infra/do/apply/{app.pk}/"):
        assert admin_client.post(target).status_code == 404


def test_buttons_that_do(app: InfraApp, admin_client: Client, no_machine: list[Upgrade]) -> None:
    _release(app, MAJOR, state="held")
    major = InfraRelease.objects.get()
    assert address("approve", major) in text_of(admin_client)
    said = admin_client.post(address("approve", major), follow=True).content.decode()
    assert "Approved web 2.0.0+2.0: the next upgrade may take it." in said and "approved by <bdi>admin</bdi>" in said
    answer = admin_client.post(address("upgrade_now", app))
    (begun,) = no_machine
    assert answer.headers["Location"] == begun.get_absolute_url() and begun.to_version == MAJOR
    assert begun.trigger == "admin, by button"
    said = admin_client.post(address("upgrade", app)).content.decode()
    assert "Refused." in said
    assert "1 releases of web are known" in admin_client.post(address("releases", app), follow=True).content.decode()


def _offered(page: str) -> set[str]:
    return {name for name in BUTTONS if f'"/infra/do/{name}/' in page}


@pytest.mark.parametrize(
    ("prepare", "offered"),
    [
        (_set(), {"upgrade", "upgrade_now", "hand_over", "releases"}),
        (_set(state="contested"), {"adopt", "restore_ours", "hand_over", "releases"}),
        (_set(owner="maintainers"), {"adopt", "releases"}),
        (_set(declared=False), set()),
        (_set(running_version=""), {"deploy", "deploy_fresh", "deploy_keep", "deploy_replace", "hand_over", "releases"}),
        (
            _set(snapshots={"of": "volumes", "store": "", "keep": 3}),
            {"upgrade", "upgrade_now", "snapshot", "hand_over", "releases"},
        ),
        (
            lambda app: (_set(state="upgrading")(app), UpgradeFactory(app=app, state=UpgradeState.SOAKING)),
            {"rollback", "releases"},
        ),
        (
            lambda app: UpgradeFactory(app=app, state=UpgradeState.ROLLBACK_FAILED),
            {"adopt", "hand_over", "releases"},
        ),
        (
            lambda app: UpgradeFactory(
                app=app, from_version="0.9.0+1", to_version=RUNNING, state="succeeded", snapshot=SnapshotFactory(app=app)
            ),
            {"upgrade", "upgrade_now", "rollback", "rollback_with_data", "restore", "hand_over", "releases"},
        ),
        (lambda app: _release(app), {"upgrade", "upgrade_now", "upgrade_to", "hand_over", "releases"}),
        (
            lambda app: _release(app, state="quarantined", evidence={"quarantined": "x"}),
            {"upgrade", "upgrade_now", "lift", "hand_over", "releases"},
        ),
    ],
    ids=[
        "settled",
        "contested",
        "theirs",
        "undeclared",
        "gone",
        "stateful",
        "upgrading",
        "rollback failed",
        "went back",
        "newer",
        "quarantined",
    ],
)
def test_the_buttons_that_fit_are_offered(
    prepare: Callable[[InfraApp], Any], offered: set[str], app: InfraApp, admin_client: Client
) -> None:
    prepare(app)
    assert _offered(text_of(admin_client)) == offered


@pytest.mark.parametrize("name", [name for name, button in BUTTONS.items() if button.asks and button.on != "server"])
def test_the_admin_asks_first(name: str, row: Callable[[str], Any], pressed: list[tuple[str, str]], admin_client: Client) -> None:
    button, one = BUTTONS[name], row(name)
    target = reverse(f"admin:infra_{one._meta.model_name}_changelist")
    data = {"action": name, "_selected_action": [one.pk]}
    page = admin_client.post(target, data).content.decode()
    assert escape(button.says(one)) in page and 'name="sure"' in page and pressed == []
    admin_client.post(target, {**data, "sure": "yes"}, follow=True)
    assert pressed == [(name, "admin")]


# --- infra.yml


FILE = """\
apps:
  web:
    recipe: web
    source: https://git.example.org/recipes/web.git
    domain: web.example.org
    owner: reconciled
    version: 1.0.0+2.0
    snapshots: none
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(settings.CC_CI, "data_dir", tmp_path)
    path = tmp_path / "infra.yml"
    path.write_text(FILE)
    return path


def test_the_page_of_the_file(file: Path, admin_client: Client) -> None:
    page = text_of(admin_client, "/infra/file/")
    assert "+ web (infra.yml:2)" in page and "not applied yet" in page and '"/infra/do/apply/"' in page
    assert not InfraApp.objects.exists(), "looking writes nothing"
    said = admin_client.post("/infra/do/apply/", follow=True).content.decode()
    assert "1 changes applied." in said and InfraApp.objects.get().name == "web"
    InfraApp.objects.update(running_version=RUNNING)
    page = text_of(admin_client, "/infra/file/")
    assert "The file, the database and what runs agree." in page and "/infra/do/apply/" not in page
    assert "1 apps in" in text_of(admin_client, "/infra/file/?check=1")
    answer = admin_client.get("/infra/infra.yml")
    assert answer.headers["Content-Type"].startswith("text/yaml") and "recipe: web" in answer.content.decode()
    InfraApp.objects.update(running_version=PATCH)
    page = text_of(admin_client, "/infra/file/")
    assert "The file is behind: 1.0.1+2.0 runs" in page and "version: 1.0.1+2.0" in page


def test_a_file_with_errors(file: Path, admin_client: Client) -> None:
    file.write_text(FILE.replace("owner:", "onwer:"))
    assert "unknown key onwer; did you mean owner?" in text_of(admin_client, "/infra/file/")
    answer = admin_client.post("/infra/do/apply/")
    assert answer.status_code == 409 and "did you mean owner?" in answer.content.decode()
    file.unlink()
    assert "Choose another file with --file" in text_of(admin_client, "/infra/file/?check=1")


def test_where_the_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings.CC_CI, "data_dir", tmp_path)
    assert apply.place() == tmp_path / "infra.yml"
    monkeypatch.setattr(settings.CC_CI, "infra_file", Path("/srv/infra/infra.yml"))
    assert apply.place() == Path("/srv/infra/infra.yml")
    InfraFile.objects.create(path="/where/it/was/applied/infra.yml")
    assert apply.place() == Path("/where/it/was/applied/infra.yml")


@pytest.mark.parametrize(
    ("state", "reason", "offered"),
    [
        (
            UpgradeState.FAILED,
            "Its volumes still exist; --volumes keep, or --volumes replace",
            {"deploy_keep", "deploy_replace"},
        ),
        (UpgradeState.ROLLED_BACK, "It never settled.", {"deploy"}),
    ],
)
def test_bringing_up_is_tried_again(
    state: UpgradeState, reason: str, offered: set[str], app: InfraApp, admin_client: Client
) -> None:
    upgrade = UpgradeFactory(app=app, from_version="", to_version=RUNNING, state=state, reason=reason, asked={"kind": "deploy"})
    page = text_of(admin_client, upgrade.get_absolute_url())
    assert _offered(page) == offered and f"<bdi>web</bdi> {RUNNING}: " in page


# --- ways there


def test_the_menus_lead_there(app: InfraApp, admin_client: Client) -> None:
    assert '<a href="/infra/">Apps</a>' in text_of(admin_client, "/runs/")
    assert '<a href="/infra/">Apps</a>' not in Client().get("/runs/").content.decode()
    index = text_of(admin_client, "/admin/")
    assert all(f'href="{reverse(name)}"' in index for name in ("infra", "infra-night", "infra-file"))


def test_an_upgrade_that_is_named_is_a_link(app: InfraApp, admin_client: Client) -> None:
    upgrade = UpgradeFactory(app=app, state=UpgradeState.SOAKING, started_at=timezone.now())
    InfraApp.objects.update(state="upgrading")
    SnapshotFactory(app=app, upgrade=upgrade)
    upgrade.events.create(at=timezone.now(), kind="step", text="x")
    link = f'href="{upgrade.get_absolute_url()}"'
    for page in (
        "/",
        "/infra/",
        "/admin/infra/upgrade/",
        "/admin/infra/upgradeevent/",
        "/admin/infra/snapshot/",
        f"/admin/infra/infraapp/{app.pk}/change/",
        f"/admin/infra/upgrade/{upgrade.pk}/change/",
    ):
        assert link in text_of(admin_client, page), page
    said = text_of(admin_client, upgrade.get_absolute_url())
    assert address("rollback", app) in said


@pytest.mark.parametrize(
    ("state", "change", "offered"),
    [
        (UpgradeState.SOAKING, {}, {"rollback"}),
        (UpgradeState.SUCCEEDED, {"running_version": PATCH}, {"rollback"}),
        (UpgradeState.SUCCEEDED, {}, set()),
        (UpgradeState.ROLLED_BACK, {}, {"lift"}),
        (UpgradeState.ROLLBACK_FAILED, {}, {"adopt"}),
        (UpgradeState.ROLLBACK_FAILED, {"state": "contested"}, {"adopt", "restore_ours", "hand_over"}),
        (UpgradeState.FAILED, {}, set()),
        (UpgradeState.APPROVED, {}, set()),
    ],
)
def test_the_page_of_an_upgrade_says_what_next(
    state: UpgradeState, change: dict[str, str], offered: set[str], app: InfraApp, admin_client: Client
) -> None:
    InfraApp.objects.update(**change) if change else None
    _release(app, state="quarantined")
    upgrade = UpgradeFactory(app=app, state=state)
    assert _offered(text_of(admin_client, upgrade.get_absolute_url())) == offered
    UpgradeFactory(app=app, state=UpgradeState.FAILED)
    page = text_of(admin_client, upgrade.get_absolute_url())
    assert _offered(page) == set() and "There is a later upgrade" in page
