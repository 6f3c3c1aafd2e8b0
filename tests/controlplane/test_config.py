"""Settings: where they come from, and that a wrong one stops the start with its name and the reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from controlplane import config, configuration
from controlplane.config import BASE_DIR, ConfigurationError, load, parse_database_url, unknown_names
from controlplane.configuration import PATH, document


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for field in config.Config.model_fields.values():
        monkeypatch.delenv(str(field.alias), raising=False)


def test_defaults() -> None:
    loaded = load()
    assert loaded.data_dir == BASE_DIR / "var"
    assert loaded.is_sqlite
    assert loaded.queue_timeout < loaded.queue_retry
    assert loaded.host


def test_environment_goes_before_the_env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "env").write_text("CC_CI_SLOTS=3\nCC_CI_TOPIC=of-the-file\n")
    monkeypatch.setenv("CC_CI_ENV_FILE", str(tmp_path / "env"))
    monkeypatch.setenv("CC_CI_SLOTS", "5")
    loaded = load()
    assert (loaded.slots, loaded.topic) == (5, "of-the-file")


def test_words_are_split_at_commas_and_spaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC_CI_BOTS", "renovate, weblate drone")
    monkeypatch.setenv("CC_CI_PROXIES", "127.0.0.1 10.0.0.0/8")
    assert load().proxies == ["127.0.0.1", "10.0.0.0/8"]
    monkeypatch.setenv("CC_CI_REGISTRIES", "index.docker.io, Registry.example.org:5000")
    assert load().bots == ["renovate", "weblate", "drone"]
    assert load().registries == ["docker.io", "registry.example.org:5000"]


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("CC_CI_POLL_SECONDS", "0", "must be at least 1, but is '0'"),
        ("CC_CI_POLL_SECONDS", "often", "must be a number, but is 'often'"),
        ("CC_CI_DEPLOYER", "kubernetes", "must be 'auto', 'swarm' or 'process', but is 'kubernetes'"),
        ("CC_CI_BASE_URL", "ci.example.org", "must look like https://ci.example.org"),
        ("CC_CI_BASE_URL", "", "must not be empty"),
        ("CC_CI_PROXY_URL", "tcp://proxy", "must look like"),
        ("CC_CI_HOST", "a host", "but is 'a host'"),
        ("CC_CI_REGISTRIES", "docker.io https://ghcr.io", "invalid registry https://ghcr.io"),
        ("CC_CI_SCHEDULE_WINDOW", "25:00-26:00", "invalid time 25:00"),
        ("CC_CI_SECRET_KEYS", "hunter2", "key number 1 is not a Fernet key"),
        ("DATABASE_URL", "mysql://db/x", "must begin with sqlite:// or postgresql://"),
        ("DATABASE_URL", "postgresql://db:port/x", "the port must be a number"),
        ("DATABASE_URL", "postgresql://db", "missing database name"),
        ("DATABASE_URL", "sqlite://relative.sqlite3", "must look like sqlite:///"),
        ("DEBUG", "perhaps", "must be true or false, but is 'perhaps'"),
    ],
)
def test_wrong_value(monkeypatch: pytest.MonkeyPatch, name: str, value: str, reason: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as caught:
        load()
    assert str(caught.value).startswith(f"{name}: ")
    assert reason in str(caught.value)


def test_all_wrong_values_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC_CI_SLOTS", "0")
    monkeypatch.setenv("CC_CI_WORKERS", "0")
    with pytest.raises(ConfigurationError) as caught:
        load()
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == ["CC_CI_SLOTS", "CC_CI_WORKERS"]


@pytest.mark.parametrize("name", ["CC_CI_SECRET_KEYS", "DATABASE_URL"])
def test_a_wrong_secret_is_not_repeated(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "mysql://user:hunter2@db/x")
    with pytest.raises(ConfigurationError) as caught:
        load()
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (
            {"CC_CI_QUEUE_TIMEOUT": "90", "CC_CI_QUEUE_RETRY": "90"},
            "CC_CI_QUEUE_RETRY (90) must be more than CC_CI_QUEUE_TIMEOUT (90)",
        ),
        ({"CC_CI_QUEUE_TIMEOUT": "20", "CC_CI_HTTP_TIMEOUT": "20"}, "CC_CI_HTTP_TIMEOUT must be less than CC_CI_QUEUE_TIMEOUT"),
    ],
)
def test_queue_times_are_checked_against_each_other(monkeypatch: pytest.MonkeyPatch, values: dict[str, str], named: str) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match="^" + named.replace("(", r"\(").replace(")", r"\)")):
        load()


def test_database_urls() -> None:
    here = Path("/srv/project")
    assert parse_database_url("sqlite:///var/x.sqlite3", here)["NAME"] == "/srv/project/var/x.sqlite3"
    assert parse_database_url("sqlite:////data/x.sqlite3", here)["NAME"] == "/data/x.sqlite3"
    postgres = parse_database_url("postgresql://me:p%40ss@db:5433/name?sslmode=require", here)
    assert (postgres["USER"], postgres["PASSWORD"], postgres["HOST"], postgres["PORT"]) == ("me", "p@ss", "db", 5433)
    assert (postgres["NAME"], postgres["OPTIONS"]) == ("name", {"sslmode": "require"})
    assert parse_database_url("postgresql://me@/name", here)["HOST"] == ""


def test_unknown_names_come_with_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "env").write_text("DATABSE_URL=sqlite:///x\nPOSTGRES_PASSWORD=x\n")
    monkeypatch.setenv("CC_CI_ENV_FILE", str(tmp_path / "env"))
    monkeypatch.setenv("CC_CI_BASEURL", "https://ci.example.org")
    monkeypatch.setenv("CC_CI_QXZ", "1")
    assert unknown_names() == [("CC_CI_BASEURL", "CC_CI_BASE_URL"), ("CC_CI_QXZ", ""), ("DATABSE_URL", "DATABASE_URL")]


def test_the_document_is_the_table() -> None:
    assert PATH.read_text() == document(), "type: cc-ci configuration --write"
    for field in config.Config.model_fields.values():
        assert field.alias and field.description


@pytest.mark.parametrize("times", [0, 2])
def test_a_document_without_a_place_for_the_table(times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configuration, "folder", lambda: tmp_path)
    (tmp_path / "configuration.md").write_text(f"# Ours\n\n{configuration.HEADING}| old |\n\nMore.\n")
    assert document().startswith(f"# Ours\n\n{configuration.HEADING}| `SECRET_KEY` | text |")
    assert document().endswith("number, at least 1 | `90` | Days to keep finished runs and their logs. |\n\nMore.\n")
    (tmp_path / "configuration.md").write_text(f"# Ours\n\n{configuration.HEADING * times}")
    with pytest.raises(CommandError, match=f"once, but has it {times} times"):
        call_command("configuration")
