"""All encrypted values of all models: finds unreadable ones, and re-encrypts with the first key."""

from __future__ import annotations

import os
import secrets as random
from collections.abc import Iterator
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken
from django.apps import apps
from django.conf import settings
from django.db import models

from controlplane.secrets import KEY_FILE, EncryptedTextField, Sealed, fernet, keys


def key_file() -> Path:
    return Path(settings.CC_CI.data_dir) / KEY_FILE


def sealed_fields() -> Iterator[tuple[type[models.Model], str]]:
    """Every encrypted field of every model."""
    for model in apps.get_models():
        for field in model._meta.get_fields():
            if isinstance(field, EncryptedTextField) and field.model is model and not model._meta.proxy:
                yield model, field.name


def sealed_values() -> Iterator[tuple[type[models.Model], str, object, str]]:
    """Every non-empty encrypted value: model, field, primary key, token."""
    for model, field in sealed_fields():
        for pk, sealed in model._default_manager.values_list("pk", field):
            if isinstance(sealed, Sealed) and sealed:
                yield model, field, pk, sealed.token


def unreadable(with_keys: list[str] | None = None) -> list[str]:
    """The values that no key (of `with_keys`, default: the active ones) decrypts, as `enrollment.Forge 3 token`."""
    boxes = [Fernet(key) for key in (with_keys if with_keys is not None else keys())]
    return [
        f"{model._meta.label} {pk} {field}"
        for model, field, pk, token in sealed_values()
        if not any(_opens(box, token) for box in boxes)
    ]


def reencrypt() -> int:
    """Re-encrypt with the first key every value encrypted with another. Returns how many were.

    Each row is one UPDATE on condition that its value is unchanged, so a value saved meanwhile is kept (the first key encrypted
    it anyway). May be killed at any point and run again. Skips values that no key decrypts.
    """
    first, all_keys, changed = Fernet(keys()[0]), fernet(), 0
    for model, field, pk, token in sealed_values():
        if _opens(first, token):
            continue
        try:
            renewed = Sealed(all_keys.rotate(token.encode()).decode())
        except InvalidToken:
            continue
        # A Sealed is stored unchanged, so this compares ciphertexts.
        changed += model._default_manager.filter(pk=pk, **{field: Sealed(token)}).update(**{field: renewed})
    return changed


def write_keys(new: list[str]) -> None:
    """Replace the key file atomically, with mode 0600, and sync it to disk."""
    path = key_file()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{random.token_hex(4)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as stream:
        stream.write("\n".join(new) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _opens(box: Fernet, token: str) -> bool:
    try:
        box.decrypt(token.encode())
    except InvalidToken:
        return False
    return True
