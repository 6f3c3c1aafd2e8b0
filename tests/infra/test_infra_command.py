"""`cc-ci infra`: what it says, as words and as JSON, and its exit codes; the page, the card and doctor's line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.utils import timezone

from controlplane.cli import DONE, MISUSE, NO, OURS, execute
from infra import doctor
from infra.config.load import parse
from infra.deployers.errors import DeployError
from infra.models import AppSecret, InfraApp, InfraFile, InfraRelease
from infra.releases.evaluate import NotApproved, approve, plan_of, record
from infra.states import UpgradeState
from tests.factories import InfraAppFactory, InfraReleaseFactory, UpgradeFactory
from tests.infra.declared import TEXT
from tests.infra.test_releases import Recipe

pytestmark = [pytest.mark.django_db, pytest.mark.slow(0.1)]

#: A file that can be used as it is: its store and secrets are there.
SMALL = """\
stores: {local: {folder: FOLDER/snapshots}}
apps:
  web:
    recipe: web
    source: FOLDER/recipe
    domain: web.example.org
    owner: reconciled
    version: 1.0.0+2.0
    secrets: {token: "env:WEB_TOKEN"}
    snapshots: {store: local}
"""


class Shell:
    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys
        self.out = self.err = ""

    def __call__(self, *words: str) -> int:
        code = execute(["cc-ci", "infra", *words])
        self.out, self.err = self.capsys.readouterr()
        assert "Traceback" not in self.err
        return code

    def json(self, *words: str, code: int = DONE) -> Any:
        assert self(*words, "--json") == code, self.out + self.err
        assert self.err == ""
        return json.loads(self.out)


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, data_dir: Path) -> Iterator[Shell]:
    # A command closes the connections at its end, and with them the test's transaction.
    monkeypatch.setattr("django.core.management.base.connections.close_all", lambda: None)
    yield Shell(capsys)


@pytest.fixture
def recipe(data_dir: Path) -> Recipe:
    recipe = Recipe(data_dir / "recipe")
    recipe.publish("1.0.0+2.0")
    recipe.publish("1.0.1+2.0", "A typo.")
    recipe.publish("2.0.0+2.0", "Run the <b>migration</b> by hand.")
    return recipe


@pytest.fixture
def file(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (data_dir / "snapshots").mkdir()
    monkeypatch.setenv("WEB_TOKEN", "hush-hush")
    path = data_dir / "infra.yml"
    path.write_text(SMALL.replace("FOLDER", str(data_dir)))
    return path


@pytest.fixture
def web(shell: Shell, file: Path, recipe: Recipe) -> InfraApp:
    """The app is applied, runs, and its releases are known."""
    assert shell("apply") == DONE
    InfraApp.objects.update(running_version="1.0.0+2.0")
    assert shell("releases") == DONE
    app: InfraApp = InfraApp.objects.get()
    return app


# --- diff, apply, export, check


def test_from_a_file_to_rows_and_back(shell: Shell, file: Path) -> None:
    assert shell("diff") == NO
    assert "+ web (infra.yml:3)  cc-ci deploys and upgrades it from now on." in shell.out
    assert not InfraApp.objects.exists(), "diff writes nothing"
    assert shell("apply") == DONE
    assert shell.out.endswith("2 changes applied.\n")
    assert shell("apply") == DONE
    assert shell.out.endswith("Nothing to apply.\n")
    InfraApp.objects.update(running_version="1.0.0+2.0")
    assert shell("diff") == DONE
    assert shell.out == "No differences.\n"
    assert shell("export") == DONE
    assert parse(shell.out).document == parse(file.read_text()).document


def test_the_file_is_remembered(shell: Shell, file: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / "infra.yml"
    other.parent.mkdir()
    file.rename(other)
    assert shell("apply") == MISUSE
    assert "Choose another file with --file" in shell.err
    assert shell("apply", "--file", str(other)) == DONE
    assert InfraFile.objects.get().path == str(other)
    InfraApp.objects.update(running_version="1.0.0+2.0")
    assert shell("diff") == DONE, "it is found there from then on"


def test_the_file_is_behind(shell: Shell, file: Path) -> None:
    assert shell("apply") == DONE
    InfraApp.objects.update(running_version="1.0.1+2.0")
    assert shell("apply") == NO
    assert "The file is behind: 1.0.1+2.0 runs" in shell.out
    assert "    infra.yml:8:     version: 1.0.1+2.0\n" in shell.out
    [change] = shell.json("diff", code=NO)
    assert (change["kind"], change["line"], change["commit"]) == ("behind", 8, "    version: 1.0.1+2.0")


def test_a_file_with_errors(shell: Shell, file: Path) -> None:
    file.write_text(file.read_text().replace("owner:", "onwer:"))
    for action in ("diff", "apply"):
        assert shell(action) == NO
        assert "infra.yml:7: apps.web: unknown key onwer; did you mean owner?" in shell.err
    errors = shell.json("apply", code=NO)["errors"]
    assert {(error["line"], error["place"]) for error in errors} == {(3, "apps.web"), (7, "apps.web")}
    assert not InfraApp.objects.exists()


def test_check(shell: Shell, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shell("check") == DONE
    assert shell.out == f"ok: 1 apps in {file}, 1 stores available\n"
    monkeypatch.delenv("WEB_TOKEN")
    (file.parent / "snapshots").rmdir()
    assert shell("check") == NO
    assert "error: web, token: the environment variable WEB_TOKEN is empty or not set in cc-ci's environment" in shell.out
    assert f"error: store local: the folder {file.parent}/snapshots does not exist  → install -d -m 700" in shell.out
    file.write_text("apps: [")
    assert shell("check") == NO
    assert "error: infra.yml:1: invalid YAML" in shell.out
    file.unlink()
    [finding] = shell.json("check", code=NO)
    assert finding["level"] == "error"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "ACTION"),
        (("fly",), "invalid choice"),
        (("approve", "web"), "VERSION"),
        (("status", "nobody"), "there is no app nobody"),
    ],
)
def test_misuse(shell: Shell, words: tuple[str, ...], said: str) -> None:
    assert shell(*words) == MISUSE
    assert said in shell.err


# --- status, releases, approve


def test_nothing_yet(shell: Shell) -> None:
    assert shell("status") == DONE
    assert shell.out == "No app yet. Write infra.yml, then: cc-ci infra apply --file infra.yml\n"
    assert shell.json("status") == []


def test_status_says_what_is_held_and_what_lifts_it(shell: Shell, web: InfraApp) -> None:
    assert shell("status", "web") == DONE
    assert shell.out.splitlines() == [
        "web: 1.0.0+2.0, newest 2.0.0+2.0 (reconciled by cc-ci, settled)",
        "  next: 1.0.1+2.0",
        "  2.0.0+2.0 is held:",
        "    The recipe's major version changes from 1 to 2: manual work may be needed. Read the release notes. "
        "To allow it: cc-ci infra approve web 2.0.0+2.0",
        "    The release notes ask for manual work: “Run the <b>migration</b> by hand.”. Do what they ask. "
        "To allow it: cc-ci infra approve web 2.0.0+2.0",
        "      1: Run the <b>migration</b> [by hand].",
    ]
    [status] = shell.json("status")
    assert (status["takes"], status["newest"], status["owner"]) == ("1.0.1+2.0", "2.0.0+2.0", "reconciled")
    assert [blocker["kind"] for blocker in status["held"][0]["blockers"]] == ["left_major", "manual_work"]


def test_status_of_an_app_of_its_maintainers_has_their_line(shell: Shell, web: InfraApp) -> None:
    InfraApp.objects.update(owner="maintainers")
    assert shell("status") == DONE
    assert "(managed by its maintainers, settled)" in shell.out
    assert "  manually: abra app upgrade web.example.org 1.0.1+2.0\n" in shell.out
    [status] = shell.json("status")
    assert status["by_hand"] == "abra app upgrade web.example.org 1.0.1+2.0"
    assert status["takes"] == ""


def test_status_of_one_in_trouble(shell: Shell, web: InfraApp) -> None:
    InfraApp.objects.update(state="contested", window="Sat 02:00-02:01")
    upgrade = UpgradeFactory(app=web, state=UpgradeState.ROLLBACK_FAILED, reason="the disk was full.")
    assert shell("status") == DONE
    assert "1.0.1+2.0 is available, but:" in shell.out
    assert "It has drifted: it was changed outside cc-ci." in shell.out
    assert "A rollback failed, and nothing has been touched since: the disk was full." in shell.out
    assert "It is outside the maintenance window Sat 02:00-02:01." in shell.out
    upgrade.step = {"mended": True}
    upgrade.save()
    assert [b["kind"] for b in shell.json("status")[0]["blockers"]] == ["contested", "window"]
    UpgradeFactory(app=web, state=UpgradeState.SOAKING)
    assert [b["kind"] for b in shell.json("status")[0]["blockers"]] == ["contested", "under_way", "window"]


def test_releases(shell: Shell, web: InfraApp, recipe: Recipe) -> None:
    recipe.publish("1.0.2+2.0", annotated=False)
    recipe.git("tag", "latest")
    assert shell("releases", "web") == DONE
    lines = shell.out.splitlines()
    assert lines[0] == "web: 4 releases of web, running 1.0.0+2.0"
    assert lines[1] == "  2.0.0+2.0  2026-01-05, held, notes"
    assert lines[2] == "  1.0.2+2.0  2026-01-05, candidate, lightweight tag, no notes"
    assert lines[-1].startswith("  latest: unusable. Invalid version 'latest'")
    [listed] = shell.json("releases")
    assert [row["version"] for row in listed["releases"]] == ["2.0.0+2.0", "1.0.2+2.0", "1.0.1+2.0", "1.0.0+2.0"]


def test_releases_that_cannot_be_read(shell: Shell, web: InfraApp, recipe: Recipe) -> None:
    recipe.folder.rename(recipe.folder.parent / "moved")
    assert shell("releases") == OURS
    assert "Cannot read the releases of web" in shell.err
    assert "2.0.0+2.0" in shell.out, "what was known is shown all the same"
    assert shell("status") == DONE
    assert "Cannot read the releases of web" in shell.out


def test_approve(shell: Shell, web: InfraApp) -> None:
    assert shell("approve", "web", "2.0.0+2.0") == DONE
    assert shell.out == "Approved web 2.0.0+2.0: the next upgrade may take it.\n"
    row = web.releases.get(version="2.0.0+2.0")
    assert row.state == "candidate" and row.approved_by and row.approved_at
    assert [key.partition(":")[0] for key in row.lifted] == ["left_major", "manual_work"]
    assert shell.json("status")[0]["takes"] == "2.0.0+2.0"
    assert shell("approve", "web", "2.0.0+2.0") == NO
    assert "it is already approved" in shell.err


def test_an_approval_does_not_lift_what_no_person_can(shell: Shell, web: InfraApp) -> None:
    web.releases.filter(version="2.0.0+2.0").update(published_at=timezone.now())
    assert shell("approve", "web", "2.0.0+2.0") == DONE
    assert "  Still blocked: It is less than 2d old. Wait until " in shell.out
    assert shell.json("status")[0]["takes"] == "1.0.1+2.0"


def test_what_cannot_be_approved(web: InfraApp) -> None:
    def refused(version: str) -> str:
        with pytest.raises(NotApproved) as caught:
            approve(web, version, "mia")
        return str(caught.value)

    assert refused("3.0.0+2.0") == "web has no release 3.0.0+2.0. See: cc-ci infra releases web"
    assert refused("1.0.0+2.0") == "1.0.0+2.0 is not newer than what runs (1.0.0+2.0)."
    assert refused("1.0.1+2.0") == "1.0.1+2.0 needs no approval: it has no blocker that an approval can waive."
    web.releases.filter(version="2.0.0+2.0").update(state="quarantined")
    assert refused("2.0.0+2.0") == "2.0.0+2.0 is quarantined. To release it: cc-ci infra lift web 2.0.0+2.0"
    web.owner = InfraApp.Owner.MAINTAINERS
    assert "They run: abra app upgrade web.example.org 1.0.1+2.0" in refused("1.0.1+2.0")
    assert not InfraRelease.objects.exclude(approved_at=None).exists()


def test_a_release_quarantined_in_this_moment_stays_it(web: InfraApp) -> None:
    web.releases.filter(version="2.0.0+2.0").update(state="candidate", reasons=[])
    as_read_before = InfraApp.objects.prefetch_related("releases").get()
    web.releases.filter(version="2.0.0+2.0").update(state="quarantined")
    record(as_read_before, plan_of(web))
    assert web.releases.get(version="2.0.0+2.0").state == "quarantined"


# --- the button, the page, the card, doctor


def test_the_button_approves(web: InfraApp, admin_client: Client) -> None:
    row = web.releases.get(version="2.0.0+2.0")
    values = {"action": "approve", "_selected_action": [row.pk, web.releases.get(version="1.0.1+2.0").pk]}
    page = admin_client.post("/admin/infra/infrarelease/", values, follow=True).content.decode()
    assert "Approved web 2.0.0+2.0: the next upgrade may take it." in page
    assert "1.0.1+2.0 needs no approval" in page
    row.refresh_from_db()
    assert row.approved_by == "admin"


def test_who_may_only_look_may_not_approve(web: InfraApp, client: Client) -> None:
    user = User.objects.create_user("visitor", password="x", is_staff=True)
    user.user_permissions.add(*Permission.objects.filter(codename__startswith="view_"))
    client.force_login(user)
    row = web.releases.get(version="2.0.0+2.0")
    client.post("/admin/infra/infrarelease/", {"action": "approve", "_selected_action": [row.pk]}, follow=True)
    row.refresh_from_db()
    assert row.approved_at is None


def test_the_page_is_for_staff(client: Client) -> None:
    assert client.get("/infra/").status_code == 302
    client.force_login(User.objects.create_user("mia"))
    assert client.get("/infra/").status_code == 302


def test_the_page(web: InfraApp, admin_client: Client) -> None:
    InfraAppFactory(name="drone", maintained=True, domain="ci.example.org")
    InfraReleaseFactory(app=InfraApp.objects.get(name="drone"), version="1.0.1+2.0")
    page = admin_client.get("/infra/").content.decode()
    assert "next: <strong>1.0.1+2.0</strong>" in page
    assert "Run the &lt;b&gt;migration&lt;/b&gt; <mark>by hand</mark>." in page
    assert "cc-ci infra approve web 2.0.0+2.0" in page
    assert '<code class="command">abra app upgrade ci.example.org 1.0.1+2.0</code>' in page
    assert admin_client.post("/infra/").status_code == 405


def test_the_page_without_apps(admin_client: Client) -> None:
    assert "No apps are declared on this server." in admin_client.get("/infra/").content.decode()


def test_the_card(web: InfraApp, client: Client, admin_client: Client) -> None:
    assert "own apps" in admin_client.get("/").content.decode()
    assert "a version is held" in admin_client.get("/").content.decode()
    assert "own apps" not in Client().get("/").content.decode()
    InfraApp.objects.update(declared=False)
    assert "own apps" not in admin_client.get("/").content.decode()


def test_doctor(data_dir: Path, shell: Shell) -> None:
    [finding] = doctor.check_infra()
    assert (finding.level, finding.text) == ("ok", "no infra.yml: cc-ci manages no apps on this server")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings.CC_CI, "infra_file", data_dir / "elsewhere.yml")
        [finding] = doctor.check_infra()
        assert finding.level == "error" and "does not exist" in finding.text and "elsewhere.yml" in finding.text
    (data_dir / "infra.yml").write_text("apps: 3\n")
    [finding] = doctor.check_infra()
    assert finding.level == "error" and "infra.yml:1: apps: must be a valid dictionary" in finding.text
    assert finding.fix == f"$EDITOR +1 {data_dir / 'infra.yml'}"
    (data_dir / "infra.yml").unlink()
    InfraFile.objects.create(path="/nowhere/infra.yml")
    [finding] = doctor.check_infra()
    assert finding.level == "error" and "/nowhere/infra.yml does not exist" in finding.text


def test_doctor_tells_of_releases_that_cannot_be_read(web: InfraApp) -> None:
    InfraApp.objects.update(discovery_error="Cannot read the releases of web: x")
    assert [(finding.level, finding.fix) for finding in doctor.check_infra()] == [("warning", "cc-ci infra releases web")]


@pytest.mark.django_db
def test_doctor_names_secrets_that_would_be_lost_with_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    app = InfraAppFactory(name="web", stack="web", owner="reconciled", snapshots={"of": "volumes", "store": "local", "keep": 2})
    AppSecret.objects.create(app=app, name="web_made_v1", value="x")
    names = ["web_made_v1", "web_given_v2", "web_old_v1"]
    spec = {"TaskTemplate": {"ContainerSpec": {"Secrets": [{"SecretName": name} for name in names]}}}
    monkeypatch.setattr(doctor, "listed", lambda kind, **chosen: [{"ID": "1", "Spec": spec}])
    app.secrets = {"given": "env:GIVEN"}
    app.save()
    [finding] = doctor._not_held()
    assert finding.level == "warning" and "web_old_v1." in finding.text and "made_v1" not in finding.text
    assert finding.fix == "set them in infra.yml: apps.web.secrets"
    app.snapshots = {"of": "none", "store": "", "keep": 3}
    app.save()
    assert not list(doctor._not_held()), "what keeps no data may have new ones"

    def away(kind: str, **chosen: object) -> list[object]:
        raise DeployError("tool_failed", "Docker is away.")

    monkeypatch.setattr(doctor, "listed", away)
    app.snapshots = {"of": "volumes", "store": "local", "keep": 2}
    app.save()
    assert not list(doctor._not_held())


def test_a_restic_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = parse(TEXT).document.stores["far"]
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "restic").write_text("pass word\n")
    tools = tmp_path / "bin"
    tools.mkdir()
    monkeypatch.setenv("PATH", str(tools))
    assert doctor.reach(store, tmp_path) == "restic is not installed: apt-get install restic"
    restic = tools / "restic"
    restic.write_text(
        '#!/bin/sh\n[ "$RESTIC_PASSWORD" = "pass word" ] || exit 1\n'
        'for word; do [ "$word" = "pass word" ] && exit 2; done\nexit 0\n'
    )
    restic.chmod(0o755)
    assert doctor.reach(store, tmp_path) == "", "the password is in no argument"
    (tmp_path / "secrets" / "restic").write_text("wrong")
    assert doctor.reach(store, tmp_path) == "restic cat: exit code 1"
    (tmp_path / "secrets" / "restic").unlink()
    assert "secrets/restic: " in doctor.reach(store, tmp_path)


def test_the_window_of_a_real_clock(web: InfraApp) -> None:
    now = timezone.now()
    inside = f"{now - timedelta(minutes=5):%H:%M}-{now + timedelta(minutes=5):%H:%M}"
    web.window = inside
    assert plan_of(web).takes
    web.window = f"{now + timedelta(minutes=5):%H:%M}-{now + timedelta(minutes=9):%H:%M}"
    assert plan_of(web).takes is None
    assert plan_of(web, any_time=True).takes
