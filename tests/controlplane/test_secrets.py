"""Secrets at rest: made once, closed in the database, and moved to a new key without loss."""

from __future__ import annotations

import stat
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from django.conf import settings
from django.core.management import call_command
from django.db import connection

from controlplane import rotation, secrets
from controlplane.cli import NO, Exit
from controlplane.secrets import Sealed, SecretUnreadable, decrypt, encrypt, read_or_make, reveal
from enrollment.models import Forge

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("data_dir")]


def stored(forge: Forge) -> str:
    """What the database really holds."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT token FROM enrollment_forge WHERE id = %s", [forge.pk])
        return str(cursor.fetchone()[0])


def forge(number: int = 1, token: str = "hunter2") -> Forge:
    return Forge.objects.create(name=f"forge{number}", url=f"https://git{number}.example.org", token=token)


def run(*words: str) -> str:
    out = StringIO()
    call_command("rotate_keys", *words, stdout=out)
    return out.getvalue()


def test_the_database_holds_no_plain_token() -> None:
    made = forge()
    assert stored(made) != "hunter2"
    assert "hunter2" not in stored(made)
    read = Forge.objects.get()
    assert read.reveal_token() == "hunter2"
    assert made.reveal_token() == "hunter2"


def test_a_token_is_not_shown_by_printing_it() -> None:
    forge()
    read = Forge.objects.get()
    assert f"{read.token} {read.token!r} {vars(read)}".count("hunter2") == 0
    assert str(Sealed("")) == "<empty>"


def test_saving_a_row_keeps_its_token_as_it_is() -> None:
    before = stored(forge())
    read = Forge.objects.get()
    read.name = "other"
    read.save()
    assert stored(read) == before


def test_an_empty_token_stays_empty() -> None:
    made = forge(token="")
    assert stored(made) == ""
    assert reveal(Forge.objects.get().token) == ""


def test_the_first_start_makes_a_private_key_file(data_dir: Path) -> None:
    assert decrypt(encrypt("x")) == "x"
    path = data_dir / "secret-keys"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in data_dir.iterdir()] == ["secret-keys"]


def test_many_first_starts_at_one_moment_agree(data_dir: Path) -> None:
    program = (
        "import sys, uuid; from pathlib import Path; from controlplane.secrets import read_or_make; sys.stdin.read(1);"
        "print(read_or_make(Path(sys.argv[1]), lambda: uuid.uuid4().hex))"
    )
    starts = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(data_dir / "key")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    for start in starts:
        assert start.stdin
        start.stdin.write("x")
        start.stdin.flush()
    assert len({start.communicate()[0] for start in starts}) == 1
    assert [entry.name for entry in data_dir.iterdir()] == ["key"]


def test_one_that_comes_second_takes_what_is_there(data_dir: Path) -> None:
    assert read_or_make(data_dir / "key", lambda: "mine") == "mine\n"
    assert read_or_make(data_dir / "key", lambda: "other") == "mine\n"


def test_without_its_key_a_value_says_what_to_do(data_dir: Path) -> None:
    forge()
    (data_dir / "secret-keys").unlink()
    with pytest.raises(SecretUnreadable, match="cc-ci forge add"):
        Forge.objects.get().reveal_token()


def test_a_new_key_is_put_first_and_everything_moves_to_it(data_dir: Path) -> None:
    first, second = forge(1, "one"), forge(2, "two")
    old = secrets.keys()
    said = run("--new")
    new = secrets.keys()
    assert new[1:] == old and len(new) == 2
    assert stat.S_IMODE((data_dir / "secret-keys").stat().st_mode) == 0o600
    assert "Re-encrypted 2 secrets" in said and "--drop-old" in said
    for made, token in ((first, "one"), (second, "two")):
        assert Fernet(new[0]).decrypt(stored(made).encode()) == token.encode()
    assert "Removed 1 old keys" in run("--drop-old")
    assert secrets.keys() == new[:1]
    assert Forge.objects.get(pk=first.pk).reveal_token() == "one"


def test_killed_between_key_and_rows_it_goes_on() -> None:
    made = forge()
    rotation.write_keys([Fernet.generate_key().decode(), *secrets.keys()])
    assert Forge.objects.get().reveal_token() == "hunter2"
    assert "1 secrets" in run()
    assert "0 secrets" in run()
    assert Fernet(secrets.keys()[0]).decrypt(stored(made).encode()) == b"hunter2"


def test_a_token_saved_meanwhile_is_not_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    made = forge()
    rotation.write_keys([Fernet.generate_key().decode(), *secrets.keys()])
    seen = list(rotation.sealed_values())
    Forge.objects.filter(pk=made.pk).update(token="newer")
    monkeypatch.setattr(rotation, "sealed_values", lambda: seen)
    assert rotation.reencrypt() == 0
    assert Forge.objects.get().reveal_token() == "newer"


def test_old_keys_are_kept_while_a_row_needs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    forge()
    rotation.write_keys([Fernet.generate_key().decode(), *secrets.keys()])
    monkeypatch.setattr("controlplane.management.commands.rotate_keys.reencrypt", lambda: 0)
    with pytest.raises(Exit) as stopped:
        run("--drop-old")
    assert stopped.value.code == NO
    assert len(secrets.keys()) == 2


def test_what_no_key_opens_is_named_and_nothing_is_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    made = forge()
    rotation.write_keys([Fernet.generate_key().decode(), Fernet.generate_key().decode()])
    with pytest.raises(Exit) as stopped:
        run("--drop-old")
    assert stopped.value.code == NO
    assert f"enrollment.Forge {made.pk} token" in capsys.readouterr().err
    assert len(secrets.keys()) == 2


def test_keys_of_the_environment_are_printed_not_written(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = Fernet.generate_key().decode()
    monkeypatch.setattr(settings.CC_CI, "secret_keys", [key])
    made = forge()
    said = run("--new")
    line = next(line for line in said.splitlines() if line.startswith("CC_CI_SECRET_KEYS="))
    new = line.partition("=")[2].split(",")
    assert new[1] == key and len(new) == 2
    assert not list(data_dir.iterdir())
    monkeypatch.setattr(settings.CC_CI, "secret_keys", new)
    assert "can be removed" in run()
    assert Fernet(new[0]).decrypt(stored(made).encode()) == b"hunter2"
