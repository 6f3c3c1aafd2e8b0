"""Every test fails when the recipe's tests, or the app, can read a planted secret."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import hunt


def test_environment(app):
    assert not hunt.hunt("environment")


def test_proc(app):
    assert not hunt.hunt("proc")


def test_file(app):
    assert not hunt.hunt("file")


def test_git_config(app):
    assert not hunt.hunt("git_config")


def test_database(app):
    assert not hunt.hunt("database")


def test_dotenv(app):
    assert not hunt.hunt("dotenv")


def test_socket(app):
    assert not hunt.hunt("socket")


def test_keyring(app):
    assert not hunt.hunt("keyring")


def test_shared_memory(app):
    assert not hunt.hunt("shared_memory")


def test_descriptor(app):
    assert not hunt.hunt("descriptor")


def test_the_app_found_nothing_either(app):
    found = app.get("/").json()
    assert sorted(found) == sorted(hunt.KINDS)
    assert not any(found.values()), found
