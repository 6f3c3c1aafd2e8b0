"""`cc-ci rotate_keys`: encrypt the secrets in the database with the first key, after making a new one or dropping old ones."""

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
    help = "Encrypt all secrets in the database with the first key. Safe to interrupt and to run again."

    def add_arguments(self, parser: ArgumentParser) -> None:
        what = parser.add_mutually_exclusive_group()
        what.add_argument("--new", action="store_true", help="first make a new key and put it in front")
        what.add_argument("--drop-old", action="store_true", help="afterwards remove all keys but the first, if none is needed")

    def handle(self, *args: Any, **options: Any) -> None:
        from_environment = bool(settings.CC_CI.secret_keys)
        if options["new"]:
            new = [Fernet.generate_key().decode(), *keys()]
            if from_environment:
                self.stdout.write("The keys come from CC_CI_SECRET_KEYS. Put this there, everywhere, then start again and type")
                self.stdout.write("`cc-ci rotate_keys`:\n")
                self.stdout.write(f"CC_CI_SECRET_KEYS={','.join(new)}")
                return
            write_keys(new)
            self.stdout.write(f"A new first key stands in {key_file()}.")
        self.stdout.write(f"{reencrypt()} secrets were encrypted anew with the first key.")
        if lost := unreadable():
            self.stderr.write("No key decrypts: " + ", ".join(lost))
            self.stderr.write("Put the old key back behind the first, or give these secrets again (`cc-ci forge add`).")
            raise Exit(NO)
        self._old_keys(from_environment, options["drop_old"])

    def _old_keys(self, from_environment: bool, drop: bool) -> None:
        first, *old = keys()
        if not old:
            return
        if needed := unreadable([first]):
            # Saved by a process that still has the old keys in front.
            self.stderr.write(
                "The old keys are still needed by: " + ", ".join(needed) + ". Restart all of cc-ci and run this again."
            )
            raise Exit(NO)
        if from_environment:
            self.stdout.write(f"The last {len(old)} of the keys in CC_CI_SECRET_KEYS can be removed, once all of cc-ci runs with")
            self.stdout.write("the first. A backup of the database from before now still needs them.")
        elif drop:
            write_keys([first])
            self.stdout.write(f"{len(old)} old keys were removed from {key_file()}.")
        else:
            self.stdout.write(f"The last {len(old)} of the keys in {key_file()} are needed no more, save by older backups of the")
            self.stdout.write("database. To remove them: cc-ci rotate_keys --drop-old")
