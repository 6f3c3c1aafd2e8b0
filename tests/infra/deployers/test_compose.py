"""Reading a recipe's compose files: variables, overlays, ports, secrets."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from infra.deployers import compose, ports, stackfile
from infra.deployers.base import Context, DeployError
from infra.deployers.interpolate import Unset, interpolate

RECIPES = Path(__file__).resolve().parents[2] / "data" / "recipes"
RUN = "0123456789abcdef0123456789abcdef"


def context(checkout: Path) -> Context:
    return Context(RUN, "here", checkout.name, checkout, checkout, domain="web.example.com")


def load(checkout: Path) -> compose.Recipe:
    return compose.load(checkout, compose.environment(context(checkout)))


def recipe(folder: Path, text: str, **files: str) -> Path:
    (folder / "compose.yml").write_text(text)
    for name, content in files.items():
        (folder / name).write_text(content)
    return folder


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("plain", "plain"),
        ("$A-${A}", "1-1"),
        ("$$A ${EMPTY}|${UNSET}", "$A |"),
        ("${UNSET:-d} ${EMPTY:-d} ${EMPTY-d} ${A:-d}", "d d  1"),
        ("${A:+yes}${EMPTY:+no}${EMPTY+there}", "yesthere"),
        ("${UNSET:-${EMPTY:-${A}}/x}", "1/x"),
        ("${UNSET:-a b:c}", "a b:c"),
        ("${A?needed}", "1"),
    ],
)
def test_variables(text: str, filled: str) -> None:
    assert interpolate(text, {"A": "1", "EMPTY": ""}) == filled


@pytest.mark.parametrize(
    "text", ["${UNSET:?say why}", "${EMPTY:?}", "${", "${A", "$ ", "${A!x}", "${1}", "${X:-" * 50 + "}" * 50]
)
def test_variables_that_cannot_be_filled(text: str) -> None:
    with pytest.raises(Unset):
        interpolate(text, {"A": "1", "EMPTY": ""})


def test_the_environment_is_the_sample_the_exported_versions_and_the_runs_own(tmp_path: Path) -> None:
    sample = "# a comment\nDOMAIN=sample.example.com\nA=1 # one\nB='two # words'\nC=\"3\"\nLETS_ENCRYPT_ENV=production\n#D=4\n"
    abra = "export X_VERSION=v3\n  export Y_VERSION='v4' # raised\nexport Z_VERSION=$(touch /tmp/x)\n"
    abra += "export PATH=/evil\nfoo() { :; }\n"
    folder = recipe(tmp_path, "services: {app: {}}", **{".env.sample": sample, "abra.sh": abra})
    assert compose.environment(context(folder)) == {
        "A": "1",
        "B": "two # words",
        "C": "3",
        "X_VERSION": "v3",
        "Y_VERSION": "v4",
        "DOMAIN": "web.example.com",
        "LETS_ENCRYPT_ENV": "",
        "STACK_NAME": "ccci-0123456789ab",
    }


def test_overlays_ports_versions_images_and_secrets() -> None:
    read = load(RECIPES / "web")
    assert [name for name, _ in read.documents] == ["compose.yml", "compose.greeting.yml"]
    app = read.services["app"]
    assert app["environment"] == {"DOMAIN": "web.example.com", "PRICE": "5$", "GREETING": "hello web.example.com"}
    assert read.web({80}) == ("app", 8080)
    assert read.version() == "1.0.0+1.36.1"
    assert read.images == ["cc-ci-test/busybox:1"]
    [secret] = read.secrets()
    assert secret == compose.Secret("ccci-0123456789ab_session_key_v1", "session_key", 48)


def test_a_port_is_the_labels_else_a_published_one_that_is_the_webs(tmp_path: Path) -> None:
    text = 'services: {db: {ports: ["5432:5432"]}, app: {ports: ["25:25", "127.0.0.1:99:8080/tcp", {target: 80}]}}'
    assert load(recipe(tmp_path, text)).web({80, 8080}) == ("app", 8080)
    assert load(recipe(tmp_path, "services: {db: {ports: ['5432:5432']}}")).web({80}) is None


def test_processes_get_their_ports_filled_in(tmp_path: Path) -> None:
    text = "services:\n  app: {x-cc-ci-process: 'run --port ${PORT} \"a b\" ${PORT_DB} ${X:-d}', environment: {K: 5, NO: }}\n"
    text += "  db: {x-cc-ci-process: [sleep, 9]}"
    app, db = load(recipe(tmp_path, text)).processes({"app": 8000, "db": 8001}, {"PORT_DB": "8001"})
    assert app == compose.Process("app", ["run", "--port", "8000", "a b", "8001", "d"], {"K": "5"}, True)
    assert db == compose.Process("db", ["sleep", "9"], {}, False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("services: [", "compose.yml cannot be read"),
        ("- a list", "is no compose file"),
        ("version: '3.8'", "has no services"),
        ("services: {app: {image: '${TAG:?set TAG}'}}", "TAG is needed: set TAG"),
        ("services: {app: {x: !!python/object/apply:os.system [id]}}", "cannot be read"),
        ("services: {app: {image: x}}\n#" + "x" * (1 << 20), "bigger than a megabyte"),
        (
            "a: &a [x,x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
            "d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\nservices: {app: {x: [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]}}",
            "too many nodes",
        ),
    ],
)
def test_what_cannot_be_read_says_why(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(DeployError) as caught:
        load(recipe(tmp_path, text))
    assert words in caught.value.message
    assert caught.value.recipes_fault


@pytest.mark.parametrize("name", ["../outside.yml", "link.yml", "/etc/passwd", ".git/config"])
def test_files_are_read_from_inside_only(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "recipe"
    (folder / ".git").mkdir(parents=True)
    (folder / ".git" / "config").write_text("services: {}")
    (tmp_path / "outside.yml").write_text("services: {app: {}}")
    (folder / "link.yml").symlink_to("../outside.yml")
    recipe(folder, "services: {app: {}}", **{".env.sample": f"COMPOSE_FILE=compose.yml:{name}\n"})
    with pytest.raises(DeployError, match="points out of the recipe") as caught:
        load(folder)
    assert caught.value.kind == "forbidden"


def test_a_missing_overlay_is_named(tmp_path: Path) -> None:
    with pytest.raises(DeployError, match=r"no file compose\.smtp\.yml"):
        load(recipe(tmp_path, "services: {app: {}}", **{".env.sample": "COMPOSE_FILE=compose.yml:compose.smtp.yml\n"}))


def test_what_is_deployed_is_labelled_unpublished_and_filled_in(tmp_path: Path) -> None:
    folder = tmp_path / "web"
    shutil.copytree(RECIPES / "web", folder)
    first, second = stackfile.stackfiles(load(folder), {"mark": "1"}, with_proxy=False)
    app = first["services"]["app"]
    assert "ports" not in app
    assert app["labels"] == {"mark": "1"}
    assert app["deploy"]["labels"]["mark"] == "1"
    assert app["deploy"]["labels"]["traefik.http.routers.ccci-0123456789ab.rule"] == "Host(`web.example.com`)"
    assert app["environment"] == {"DOMAIN": "web.example.com", "PRICE": "5$$"}  # docker fills in once more
    assert first["networks"] == {
        "default": {"labels": {"mark": "1"}},
        "proxy": {"labels": {"mark": "1"}},
        "internal": {"labels": {"mark": "1"}},
    }
    assert first["volumes"] == {"data": {"labels": {"mark": "1"}}}
    assert first["configs"]["index"] == {
        "name": "ccci-0123456789ab_index_v2",
        "file": str(folder / "index.html"),
        "labels": {"mark": "1"},
    }
    assert first["secrets"]["session_key"] == {"external": True, "name": "ccci-0123456789ab_session_key_v1"}
    assert second["services"]["app"]["deploy"]["labels"] == {"mark": "1"}
    with_proxy, _ = stackfile.stackfiles(load(folder), {"mark": "1"}, with_proxy=True)
    assert with_proxy["networks"]["proxy"] == {"external": True}


TWO_FILES = {
    "base": """
services:
  app:
    image: a
    environment: [A=1]
    networks: [front]
    secrets: [key]
    volumes: ["data:/data", "old:/cache"]
    command: [one, two]
    ports: ["2222:22"]
    deploy: {labels: ["coop-cloud.${STACK_NAME}.version=1.0.0+1"]}
  db: {image: b}
networks: {front: }
volumes: {data: , old: , new: }
secrets: {key: {external: true}}
""",
    "over": """
services:
  app:
    environment: {B: "2"}
    networks: {back: {aliases: [it]}}
    secrets: [{source: key, target: other}]
    volumes: ["new:/cache"]
    command: [three]
    ports: ["25:25"]
  db: {command: [run]}
networks: {back: }
""",
}


def two_files(folder: Path) -> compose.Recipe:
    recipe(folder, TWO_FILES["base"], **{"over.yml": TWO_FILES["over"], ".env": "COMPOSE_FILE=compose.yml:over.yml"})
    return load(folder)


def test_a_service_with_two_free_ports_is_put_into_one_file(tmp_path: Path) -> None:
    """Else Docker, which merges them by their published number, would keep one."""
    loaded = two_files(tmp_path)
    first, second = stackfile.stackfiles(loaded, {}, False, ports.plan(loaded.services, None, ()))
    assert [port["target"] for port in first["services"]["app"]["ports"]] == [22, 25]
    assert "app" not in second["services"]
    assert second["services"]["db"]["command"] == ["run"]
    app = first["services"]["app"]
    assert app["environment"] == {"A": "1", "B": "2"}
    assert app["networks"] == {"front": None, "back": {"aliases": ["it"]}}
    assert app["secrets"] == [{"source": "key", "target": "other"}]
    assert app["volumes"] == ["data:/data", "new:/cache"]
    assert app["command"] == ["three"]
    # One free port, or fixed ones, keep their files.
    first, second = stackfile.stackfiles(loaded, {}, False, ports.plan(loaded.services, None, {25}))
    assert [port["target"] for port in first["services"]["app"]["ports"]] == [22, 25]
    assert second["services"]["app"]["command"] == ["three"]
    assert "ports" not in second["services"]["app"]


def test_the_deployments_mark_stands_on_the_service_alone(tmp_path: Path) -> None:
    first, _ = stackfile.stackfiles(two_files(tmp_path), {"ours": "1"}, False, {}, {"number": "2"})
    app = first["services"]["app"]
    assert app["labels"] == {"ours": "1"}  # on a container it would start every task anew
    assert app["deploy"]["labels"].items() >= {"ours": "1", "number": "2"}.items()


def test_what_the_run_adds_to_the_env_comes_over_the_sample_but_not_over_the_runs_own_names(tmp_path: Path) -> None:
    recipe(tmp_path, "services: {app: {image: '${IMAGE}'}}", **{".env.sample": "IMAGE=a\nDOMAIN=x\n"})
    given = context(tmp_path)
    given.env = {"IMAGE": "b", "DOMAIN": "elsewhere.example.com", "STACK_NAME": "theirs", "LETS_ENCRYPT_ENV": "production"}
    env = compose.environment(given)
    assert env["IMAGE"] == "b"
    assert (env["DOMAIN"], env["STACK_NAME"], env["LETS_ENCRYPT_ENV"]) == ("web.example.com", given.stack, "")


def test_volumes_with_a_name_of_their_own_are_known_by_their_key(tmp_path: Path) -> None:
    text = "services: {app: {image: a}}\nvolumes: {data: , rows: {name: mine}, far: {external: {name: theirs}}}"
    assert load(recipe(tmp_path, text)).volume_keys == {"mine": "rows", "theirs": "far"}
