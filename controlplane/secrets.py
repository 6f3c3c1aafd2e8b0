"""Secrets at rest: the keys, Fernet encryption, and a model field that is encrypted in the database.

The keys are kept outside the database: in `CC_CI_SECRET_KEYS`, or in the file `secret-keys` in the data folder (0600), created on
first use. The first key encrypts, all of them decrypt. Without the keys, the tokens in the database are lost and must be entered
again (`cc-ci forge add`); nothing else is.
"""

from __future__ import annotations

import os
import secrets as random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.conf import settings
from django.db import models

if TYPE_CHECKING:
    _TextField = models.TextField[str, str]
else:
    _TextField = models.TextField

KEY_FILE = "secret-keys"
DJANGO_KEY_FILE = "secret-key"


class SecretUnreadable(Exception):
    """None of the keys decrypts a value: keys were changed or lost."""


def read_or_make(path: Path, make: Any) -> str:
    """The text in `path`; created if missing, with mode 0600, and only once even if several processes start together."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{random.token_hex(4)}")
    if not path.exists():
        try:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w") as stream:
                stream.write(make() + "\n")
                stream.flush()
                os.fsync(stream.fileno())
            os.link(temporary, path)  # fails if another process was first, and never exposes half a file
        except FileExistsError:
            pass
        finally:
            temporary.unlink(missing_ok=True)
    return path.read_text()


def keys() -> list[str]:
    """The active keys, the encrypting one first."""
    if settings.CC_CI.secret_keys:
        return list(settings.CC_CI.secret_keys)
    return read_or_make(settings.CC_CI.data_dir / KEY_FILE, lambda: Fernet.generate_key().decode()).split()


def fernet() -> MultiFernet:
    return MultiFernet([Fernet(key) for key in keys()])


def encrypt(text: str) -> str:
    return fernet().encrypt(text.encode()).decode()


def decrypt(token: str) -> str:
    """Decrypt a value. Raises SecretUnreadable if no key fits."""
    try:
        return fernet().decrypt(token.encode()).decode()
    except InvalidToken:
        raise SecretUnreadable(
            "Cannot decrypt a secret in the database: add the old key again to CC_CI_SECRET_KEYS (or to the file "
            f"{KEY_FILE} in the data folder), or enter the token again with `cc-ci forge add`."
        ) from None


class EncryptedTextField(_TextField):
    """Text that is encrypted in the database. An empty string stays empty. Cannot be searched."""

    def get_prep_value(self, value: Any) -> Any:
        if isinstance(value, Sealed):
            return value.token
        return encrypt(str(value)) if value else ""

    def from_db_value(self, value: str | None, expression: Any, connection: Any) -> Any:
        return Sealed(value or "")

    def to_python(self, value: Any) -> Any:
        return value


def reveal(value: str | Sealed) -> str:
    """The plain text of an EncryptedTextField's value, whether just assigned or loaded from the database."""
    return value.reveal() if isinstance(value, Sealed) else value


class Sealed:
    """A secret loaded from the database: decrypted only by `reveal()`, and never shown when printed."""

    def __init__(self, token: str) -> None:
        self.token = token

    def __bool__(self) -> bool:
        return bool(self.token)

    def __repr__(self) -> str:
        return "<sealed>" if self.token else "<empty>"

    __str__ = __repr__

    def reveal(self) -> str:
        return decrypt(self.token) if self.token else ""
