"""Where this machine keeps recipes' known-good data: one folder for each repository, with the newest data of a run that passed.

A run's data is adopted by renaming its folder, so that there is always a whole one. What is older is deleted afterwards, except
while a run uses it.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from django.conf import settings
from django.db.models import Q
from django.utils import timezone

from controlplane.secrets import SecretUnreadable, decrypt, encrypt
from enrollment.models import Repository
from infra.deployers.isolation import trees
from runs.harness import known_good
from runs.harness.protocol import FolderState, Results, RunFolder, Verdict, write_atomically
from runs.harness.stage_table import DEFAULT_STAGES
from runs.models import HOLDING, TestRun

log = logging.getLogger(__name__)

#: The secrets' values in data that was adopted, encrypted.
SEALED = "secrets.sealed"
#: How long after the end of a run its data may still be about to be adopted.
ADOPTING = timedelta(hours=1)


def wanted(run: TestRun) -> bool:
    """Whether a run's data becomes the recipe's known-good data if it passes: a full run of the default branch as it was then.

    Nothing that a pull request could bring about, and no run that repeats another, perhaps on an older commit.
    """
    row = run.repository
    first = run.pull_request_id is None and run.retry_of_id is None and not run.quick and not run.taken_over
    whole = set(run.stages) >= set(DEFAULT_STAGES) and not run.upgrade_from
    return run.trusted and first and whole and run.ref == f"refs/heads/{row.default_branch}" and not run.executor_name


def start_of(repository_id: int) -> tuple[str, dict[str, str]]:
    """The folder of a repository's known-good data on this machine, and what the credential has of it; empty without any."""
    folder = max(_all(repository_id), default=None)
    if folder is None or not settings.CC_CI.known_good_mb:
        return "", {}
    try:
        return str(folder), {"known_good": decrypt((folder / SEALED).read_text())}
    except (OSError, ValueError, SecretUnreadable) as error:
        log.warning("the known-good data in %s cannot be used: %s", folder, error)
        return "", {}


def adopt(run: TestRun, results: Results) -> None:
    """Make what a run saved the repository's known-good data, if the run passed. Never raises: the verdict is in already."""
    made = run.folder / known_good.FOLDER
    # Named by the time it was asked for: of two runs the one of the newer commit may have ended first.
    target = _home(run.repository_id) / f"{run.created_at:%Y%m%dT%H%M%S.%f}-{run.id.hex}"
    try:
        passed = results.verdict is Verdict.PASSED and results.teardown.clean and results.sha == run.sha
        if passed and wanted(run) and (made / known_good.FILE).is_file():
            secrets = made / known_good.SECRETS
            write_atomically(made / SEALED, encrypt(secrets.read_text()), 0o600)
            secrets.unlink()
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            made.rename(target)
            newest = max(_all(run.repository_id))
            for folder in target.parent.iterdir():
                if folder < newest:  # another worker may just have adopted newer data
                    known_good.delete(folder)
    except (OSError, ValueError) as error:
        log.warning("%s: its data could not be kept for quick runs: %s", run, error)
    finally:
        trees.remove(made)


def forget() -> None:
    """Delete known-good data of repositories that are no longer watched, all if none is to be kept, and what nobody adopted."""
    found = list((Path(settings.CC_CI.data_dir) / "runs").glob(f"*/*/{known_good.FOLDER}"))
    under_way = Q(state__in=HOLDING) | Q(finished_at__gt=timezone.now() - ADOPTING)
    awaited = {run.folder for run in TestRun.objects.filter(under_way).only("attempt")} if found else set()
    for made in found:
        state = RunFolder(made.parent).state()
        # Its harness was killed, or whoever should have adopted it: its secrets are readable.
        if state is FolderState.LOST or (state is FolderState.FINISHED and made.parent not in awaited):
            trees.remove(made)
    if not _home().is_dir():
        return
    watched = {str(key) for key in Repository.objects.watched().values_list("pk", flat=True)}
    for home in _home().iterdir():
        if home.name not in watched or not settings.CC_CI.known_good_mb:
            with suppress(OSError):  # it is tried again
                for folder in home.iterdir():
                    known_good.delete(folder)
                home.rmdir()


def _home(repository_id: int | str = "") -> Path:
    return Path(settings.CC_CI.data_dir) / known_good.FOLDER / str(repository_id)


def _all(repository_id: int) -> list[Path]:
    home = _home(repository_id)
    return [folder for folder in home.iterdir() if (folder / known_good.FILE).is_file()] if home.is_dir() else []
