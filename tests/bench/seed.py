"""`make seed N=…`: a database with N runs of a server that has worked for a year, to look at pages and to measure them.

It goes into the PostgreSQL of DATABASE_URL, or a SQLite file in var/seed. One that holds anything else is left alone.
"""

from __future__ import annotations

import itertools
import os
import random
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

FORGE = "seed.example.org"
#: Runs that are made at once.
BATCH = 2000
STAGES = ("install", "upgrade", "custom")
PEOPLE = [f"maintainer{number}" for number in range(60)]
LOG = "12:04:02 == Deploying with swarm\n" * 60
#: How runs end, with how often they do.
ENDS = {"passed": 70, "failed": 18, "errored": 4, "timed_out": 2, "cancelled": 3, "superseded": 3}


def seed(number: int, repositories: int = 300) -> None:
    """Make them. Raises SystemExit if the database is somebody's."""
    from enrollment.models import Comment, Delivery, Forge, PullRequest, Repository, WebhookConfig
    from runs.models import Artefact, CaseResult, Report, RunEvent, StageResult, TestRun

    if Forge.objects.exclude(name=FORGE).exists() or TestRun.objects.exists():
        raise SystemExit("This database is in use. Give DATABASE_URL an empty one, or delete var/seed.")
    dice = random.Random(17)
    now = datetime.now(UTC)
    forge, _ = Forge.objects.get_or_create(name=FORGE, defaults={"url": f"https://{FORGE}", "last_ok_at": now})
    rows = Repository.objects.bulk_create(
        Repository(
            forge=forge, forge_repo_id=one, owner="recipes", owner_id=1, name=f"recipe-{one:03}", private=False, enrolled_at=now
        )
        for one in range(repositories)
    )
    WebhookConfig.objects.bulk_create(
        WebhookConfig(forge=forge, repository=row, owner="recipes", owner_id=1, key=f"{row.pk:032}", state="verified")
        for row in rows
    )
    # A pull request has ten runs.
    pulls = PullRequest.objects.bulk_create(
        (
            PullRequest(
                repository=rows[one % repositories],
                number=one // repositories + 1,
                title=f"chore: upgrade to 1.{one}",
                author_login=PEOPLE[one % len(PEOPLE)],
                state="closed",
            )
            for one in range(max(1, number // 10))
        ),
        batch_size=BATCH,
    )
    states = dice.choices(list(ENDS), list(ENDS.values()), k=number)
    for numbers in _batched(range(number), BATCH):
        if numbers[0] % 50_000 == 0 < numbers[0]:
            print(f"  {numbers[0]:,} of {number:,} runs", file=sys.stderr, flush=True)
        runs, comments, stages, cases, events, files, reports, deliveries = ([] for _ in range(8))
        for one in numbers:
            at = now - timedelta(days=365) * (1 - one / number) - timedelta(minutes=5)
            pull = pulls[one % len(pulls)]
            person, state = PEOPLE[one % len(PEOPLE)], states[one]
            texts = {
                "author_id": one % len(PEOPLE),
                "author_login": person,
                "body": "!testme",
                "created_at": at,
                "updated_at": at,
            }
            comment = Comment(forge=forge, forge_comment_id=one, pull_request=pull, outcome="run", handled_at=at, **texts)
            run = TestRun(
                id=UUID(int=dice.getrandbits(128)),
                repository_id=pull.repository_id,
                pull_request=pull,
                comment=comment,
                requested_by=person,
                sha=f"{dice.getrandbits(160):040x}",
                ref=f"refs/pull/{pull.number}/head",
                stages=list(STAGES),
                trusted=True,
                state=state,
                level=3 if state == "passed" else None,
                host="ci-1",
                deployer="swarm",
                attempt=1,
                log=LOG,
                details={"version": "1.1.0+2.1", "timings": [{"step": "pull", "stage": "install", "seconds": 4.2}] * 10},
                started_at=at,
                finished_at=at + timedelta(seconds=90),
            )
            run.created_at = at
            runs.append(run)
            comments.append(comment)
            deliveries.append(
                Delivery(
                    forge=forge,
                    delivery_id=str(one),
                    repository_id=pull.repository_id,
                    number=pull.number,
                    received_at=at,
                    status=202,
                    outcome="stored",
                    body="{}" * 500,
                    comment=comment,
                )
            )
            for order, name in enumerate(STAGES):
                bad = state == "failed" and name == "custom"
                stage = StageResult(
                    run=run, name=name, order=order, status="failed" if bad else "passed", seconds=30, started_at=at
                )
                stages.append(stage)
                cases.append(
                    CaseResult(
                        stage=stage,
                        name=f"test_{name}",
                        file="tests/test_app.py",
                        status=stage.status,
                        seconds=3,
                        output="E  assert\n" * 30 if bad else "",
                    )
                )
            events += [RunEvent(run=run, at=at, kind=kind, attempt=1) for kind in ("queued", "starting", "running", state)]
            files.append(
                Artefact(run=run, name="service-app.log", kind="service_log", title="Log of app", bytes=2000, data=b"x" * 2000)
            )
            reports.append(
                Report(
                    key=f"run:{one}",
                    kind="run",
                    pull_request=pull,
                    run=run,
                    repository_id=pull.repository_id,
                    posted_id=one,
                    posted_at=at,
                )
            )
        for made in (comments, runs, stages, cases, events, files, reports, deliveries):
            _store(made)


def _store(rows: list[Any]) -> None:
    """Store them with the times that they have."""
    automatic = [
        field for field in type(rows[0])._meta.fields if getattr(field, "auto_now_add", False) and field.name == "created_at"
    ]
    for field in automatic:
        field.auto_now_add = False
    try:
        type(rows[0])._default_manager.bulk_create(rows, batch_size=BATCH)
    finally:
        for field in automatic:
            field.auto_now_add = True


def _batched(numbers: Iterable[int], size: int) -> Iterator[tuple[int, ...]]:
    left = iter(numbers)
    while batch := tuple(itertools.islice(left, size)):
        yield batch


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "controlplane.settings")
    os.environ["CC_CI_ENV_FILE"] = ""  # no server's own settings
    os.environ.setdefault("CC_CI_DATA_DIR", "var/seed")
    import django
    from django.core.management import call_command
    from django.db import connection

    django.setup()
    call_command("migrate", verbosity=0)
    number, begun = int(sys.argv[1]), time.monotonic()
    seed(number, *(int(text) for text in sys.argv[2:]))
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")
    print(f"{number} runs in {time.monotonic() - begun:.0f} s, in {connection.settings_dict['NAME']}")


if __name__ == "__main__":
    main()
