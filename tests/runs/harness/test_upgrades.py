"""What an upgrade asks of those who keep their `.env`: found by comparing files, and agreeing with Docker's own reader."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.deployers.compose import notes, render
from infra.deployers.compose.recipe import read_environment
from infra.deployers.context import Context
from infra.deployers.errors import DeployError
from runs.harness import upgrades
from tests.infra.deployers.compose.reading import need_reader

SAMPLE = "TYPE=x\nDOMAIN=x.example.com\nLETS_ENCRYPT_ENV=production\n"
COMPOSE = 'version: "3.8"\nservices: {app: {image: x:1, environment: ["A=%s"]}}\n'


def recipe(folder: Path, sample: str = "", **files: str) -> Path:
    folder.mkdir()
    (folder / ".env.sample").write_text(SAMPLE + sample)
    for name, text in {"compose_yml": COMPOSE % "1", **files}.items():
        path = folder / name.replace("_", ".", 1) if name == "compose_yml" else folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return folder


def change(tmp_path: Path, uses: str, sample: str, notes: str = "", before: str = "") -> upgrades.Change:
    old = recipe(tmp_path / "old", before)
    new = recipe(tmp_path / "new", sample, compose_yml=COMPOSE % uses, **({"release/1.1.0+1": notes} if notes else {}))
    return upgrades.change(old, new)


@pytest.mark.parametrize(
    ("uses", "sample", "missing"),
    [
        ("${NEW}", "NEW=x", ["NEW"]),
        ("$NEW", "NEW=x", ["NEW"]),
        ("a-${NEW}-b", "NEW=x", ["NEW"]),
        ("${NEW:?say}", "NEW=x", ["NEW"]),
        ("${NEW:-d}", "NEW=x", []),
        ("${NEW-d}", "NEW=x", []),
        ("$$NEW", "NEW=x", []),
        ("$${NEW}", "NEW=x", []),
        ("${NEW}", "#NEW=x", []),  # nobody has it set
        ("${NEW}", "NEW=", []),  # empty for all
        ("${OTHER}", "NEW=x", []),
        ("${NEW}${NEW:-d}", "NEW=x", ["NEW"]),
    ],
)
def test_which_variables_those_who_upgrade_miss(uses: str, sample: str, missing: list[str], tmp_path: Path) -> None:
    assert [one.name for one in change(tmp_path, uses, sample).missing] == missing
    if sample == "NEW=x" and "NEW" in uses:
        assert [name for name in ["NEW"] if _is_blank_without(name, tmp_path / "new")] == missing


def _is_blank_without(name: str, checkout: Path) -> bool:
    """Whether Docker's own reader leaves a hole, or refuses, where a variable is not set."""
    need_reader()
    try:
        without, with_it = render.render(checkout, ["compose.yml"], [{}, {name: "~here~"}], trusted=True)
    except DeployError:
        return True
    texts = [document["services"]["app"]["environment"]["A"] for document in (without, with_it)]
    return texts[0] != texts[1] and texts[1].replace("~here~", "", 1) in (texts[0], texts[0].replace("d", "~here~"))


def test_what_the_operator_has_or_was_told_is_not_missing(tmp_path: Path) -> None:
    assert change(tmp_path, "${NEW}", "NEW=y", before="NEW=x\n").missing == ()


@pytest.mark.parametrize(("notes", "told"), [("Set NEW in your .env.", True), ("NEWS of today", False), ("RENEW it", False)])
def test_the_notes_tell_by_the_variables_name(notes: str, told: bool, tmp_path: Path) -> None:
    found = change(tmp_path, "${NEW}", "NEW=y", notes)
    assert (found.documented, bool(found.missing)) == (("NEW",) if told else (), not told)


def test_the_upgrade_keeps_the_environment_of_the_day_of_installation(tmp_path: Path) -> None:
    old = recipe(tmp_path / "old", 'KEPT=old\nCOMPOSE_FILE="compose.yml"\n')
    new = recipe(
        tmp_path / "new",
        'KEPT=new\nNEW=x\nTOLD=a$b\nSECRET_KEY_VERSION=v3 # length=7\nCOMPOSE_FILE="compose.yml:compose.more.yml"\n',
        **{"abra.sh": "export CONF_VERSION=v9\n", "release/next": "Set TOLD."},
    )
    given = Context("0" * 32, "i", "x", new, tmp_path, installed=old, env={"OWN": "1"}, env_upgrade={"LATER": "2"})
    env, _ = read_environment(given, new)
    kept = {name: env.values.get(name) for name in ("KEPT", "NEW", "TOLD", "SECRET_KEY_VERSION", "CONF_VERSION", "COMPOSE_FILE")}
    assert kept == {
        "KEPT": "old",
        "NEW": None,
        "TOLD": "a",
        "SECRET_KEY_VERSION": "v3",
        "CONF_VERSION": "v9",
        "COMPOSE_FILE": "compose.yml",
    }
    assert (env.values["OWN"], env.values["LATER"]) == ("1", "2")
    assert env.modifiers["SECRET_KEY_VERSION"].length == 7
    given.installed = None
    assert read_environment(given, new)[0].values["KEPT"] == "new"


def test_the_rules_of_lint(tmp_path: Path) -> None:
    old = recipe(tmp_path / "old", compose_yml=COMPOSE % "1" + "volumes: {data: {}, gone: {}}\n")
    new = recipe(
        tmp_path / "new",
        'NEW=x\nSECRET_KEY_VERSION=v1\nCOMPOSE_FILE="compose.yml:compose.more.yml"\n',
        compose_yml=COMPOSE % "${NEW}" + "volumes: {data: {}}\n",
    )
    found = upgrades.change(old, new)
    said = {one.rule: one.text for one in upgrades.findings(found, "1.0.0+1", "1.1.0+1")}
    assert said["C020"].startswith("NEW is new in .env.sample and has no default in compose.yml: write ${NEW:-x} there")
    assert "SECRET_KEY_VERSION" in said["C021"] and "compose.more.yml" in said["C022"]
    assert "the variable NEW is new" in said["C023"] and "the volume gone was removed" in said["C023"]
    assert "C023" not in {one.rule for one in upgrades.findings(found, "1.0.0+1", "2.0.0+1")}
    last = {one.rule: one.text for one in upgrades.findings(found, "1.0.0+1", "1.0.0+1")}["C023"]
    assert last.startswith("The next version requires"), "the label is raised with the release"
    assert list(upgrades.findings(upgrades.change(old, old), "1.0.0+1", "1.0.1+1")) == []


@pytest.mark.parametrize(
    ("words", "volume", "told"),
    [
        ("The volume `data` is not used any more.", "data", True),
        ("Volumes: app-data becomes files.", "app-data", True),
        ("docker run --rm -v STACK_data:/from -v STACK_files:/to alpine cp -a /from/. /to", "data", True),
        ("mv /var/lib/docker/volumes/${STACK_NAME}_app-data/_data …", "app-data", True),
        ("Your data is safe.", "data", False),
        ("The volume of the database is larger now.", "data", False),
        ("The volume database is larger now.", "data", False),
        ("", "data", False),
    ],
)
def test_the_notes_tell_of_a_volume_by_its_name_and_that_it_is_one(words: str, volume: str, told: bool, tmp_path: Path) -> None:
    found = change(tmp_path, "${NEW}", "NEW=y", words)
    assert notes.tell_of_volume(found.notes, volume) is told
