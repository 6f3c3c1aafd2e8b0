"""`cc-ci rotate_keys`: re-encrypt the database's secrets with the first key, optionally adding a new or dropping old ones."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from cryptography.fernet import Fernet
from django.conf import settings
from django.core.management.base import BaseCommand

from controlplane.cli import NO, Exit
from controlplane.rotation import key_file, reencrypt, unreadable, write_keys
from controlplane.secrets import keys


class Command(BaseCommand):
    help = "Re-encrypt all secrets in the database with the first key. Safe to interrupt and to run again."

    def add_arguments(self, parser: ArgumentParser) -> None:
        what = parser.add_mutually_exclusive_group()
        what.add_argument("--new", action="store_true", help="first generate a new key and put it in front")
        what.add_argument(
            "--drop-old", action="store_true", help="afterwards remove all keys but the first, if none of them is needed"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        from_environment = bool(settings.CC_CI.secret_keys)
        if options["new"]:
            new = [Fernet.generate_key().decode(), *keys()]
            if from_environment:
                self.stdout.write("The keys come from CC_CI_SECRET_KEYS. Set this everywhere, restart cc-ci, then run")
                self.stdout.write("`cc-ci rotate_keys`:\n")
                self.stdout.write(f"CC_CI_SECRET_KEYS={','.join(new)}")
                return
            write_keys(new)
            self.stdout.write(f"Added a new first key to {key_file()}.")
        self.stdout.write(f"Re-encrypted {reencrypt()} secrets with the first key.")
        if lost := unreadable():
            self.stderr.write("No key decrypts: " + ", ".join(lost))
            self.stderr.write("Add the old key again after the first, or enter these secrets again (`cc-ci forge add`).")
            raise Exit(NO)
        self._old_keys(from_environment, options["drop_old"])

    def _old_keys(self, from_environment: bool, drop: bool) -> None:
        first, *old = keys()
        if not old:
            return
        if needed := unreadable([first]):
            # Saved by a process that still encrypts with an old key.
            self.stderr.write(
                "The old keys are still needed by: " + ", ".join(needed) + ". Restart all of cc-ci and run this again."
            )
            raise Exit(NO)
        if from_environment:
            self.stdout.write(f"The last {len(old)} keys in CC_CI_SECRET_KEYS can be removed once all of cc-ci runs with")
            self.stdout.write("the first. Older backups of the database still need them.")
        elif drop:
            write_keys([first])
            self.stdout.write(f"Removed {len(old)} old keys from {key_file()}.")
        else:
            self.stdout.write(f"The last {len(old)} keys in {key_file()} are no longer needed, except by older backups of the")
            self.stdout.write("database. To remove them: cc-ci rotate_keys --drop-old")
