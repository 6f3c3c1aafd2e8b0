"""Reading compose files without Docker, for the deployer `process`."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.deployers.compose import plain
from infra.deployers.compose.recipe import Recipe
from infra.deployers.errors import DeployError
from infra.deployers.swarm import backups
from tests.infra.deployers.compose.reading import context, write


def load(checkout: Path) -> Recipe:
    return plain.load(context(checkout), checkout)


def test_processes_get_their_ports_filled_in(tmp_path: Path) -> None:
    text = "services:\n  app: {x-cc-ci-process: 'run --port ${PORT} \"a b\" ${PORT_DB} ${X:-d}', environment: {K: 5, NO: }}\n"
    text += "  db: {x-cc-ci-process: [sleep, 9]}"
    read = load(write(tmp_path, text))
    assert plain.all_processes(read)
    app, db = plain.processes(read, {"app": 8000, "db": 8001}, {"PORT_DB": "8001"})
    assert app == plain.Process("app", ["run", "--port", "8000", "a b", "8001", "d"], {"K": "5"}, True)
    assert db == plain.Process("db", ["sleep", "9"], {}, False)


def test_a_service_without_a_command_cannot_run_as_a_process(tmp_path: Path) -> None:
    read = load(write(tmp_path, "services: {app: {image: x}, db: {x-cc-ci-process: ''}}"))
    assert not plain.all_processes(read)
    with pytest.raises(DeployError, match="The service app has no `x-cc-ci-process`"):
        plain.processes(read, {"app": 1, "db": 2}, {})


def test_later_files_come_over_earlier_ones(tmp_path: Path) -> None:
    first = """
services:
  app:
    x-cc-ci-process: one
    environment: [A=1, B=1, TAKEN]
    deploy: {labels: ["coop-cloud.${STACK_NAME}.version=1.0.0+1"]}
"""
    second = "services: {app: {x-cc-ci-process: two, environment: {B: '2'}}, db: {x-cc-ci-process: three}}"
    sample = "COMPOSE_FILE=compose.yml:over.yml\nTAKEN=over\n"
    read = load(write(tmp_path, first, **{"over.yml": second, ".env.sample": sample}))
    assert read.services["app"]["environment"] == {"A": "1", "B": "2", "TAKEN": "over"}
    assert read.version() == "1.0.0+1"
    assert [process.command for process in plain.processes(read, {"app": 1, "db": 2}, {})] == [["two"], ["three"]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("services: [", "compose.yml cannot be read"),
        ("- a list", "is not a compose file"),
        ("version: '3.8'", "has no services"),
        ("services: {app: {x: !!python/object/apply:os.system [id]}}", "cannot be read"),
        ("services: {app: {image: x}}\n#" + "x" * (1 << 20), "larger than 1 MB"),
        (
            "a: &a [x,x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
            "d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\nservices: {app: {x: [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]}}",
            "too many nodes",
        ),
    ],
)
def test_what_cannot_be_read_says_why(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(DeployError) as caught:
        load(write(tmp_path, text))
    assert words in caught.value.message
    assert caught.value.recipes_fault


@pytest.mark.parametrize("name", ["../outside.yml", "link.yml", "/etc/passwd", ".git/config"])
def test_files_are_read_from_inside_only(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "recipe"
    (folder / ".git").mkdir(parents=True)
    (folder / ".git" / "config").write_text("services: {}")
    (tmp_path / "outside.yml").write_text("services: {app: {}}")
    (folder / "link.yml").symlink_to("../outside.yml")
    write(folder, "services: {app: {}}", **{".env.sample": f"COMPOSE_FILE=compose.yml:{name}\n"})
    with pytest.raises(DeployError, match="points outside the recipe") as caught:
        load(folder)
    assert caught.value.kind == "forbidden"


def test_a_missing_overlay_is_named(tmp_path: Path) -> None:
    with pytest.raises(DeployError, match=r"no file compose\.smtp\.yml"):
        load(write(tmp_path, "services: {app: {}}", **{".env.sample": "COMPOSE_FILE=compose.yml:compose.smtp.yml\n"}))


def test_what_a_process_does_not_have_is_left_out(tmp_path: Path) -> None:
    """Short forms are Docker's to read: whoever reads the recipe afterwards takes mounts for mappings."""
    kept = "x-cc-ci-process: run, deploy: {labels: [backupbot.backup=true]}"
    read = load(write(tmp_path, f"services: {{app: {{{kept}, volumes: ['data:/data'], ports: ['80:80'], configs: [c]}}}}"))
    assert read.services["app"].keys() == {"x-cc-ci-process", "environment", "deploy"}
    assert [service.wanted for service in backups.of_recipe(read)] == [True]
