"""Webhooks as counts and ratios: requests of an idle hour, writes of a pass over hooks in sync, receiver ÷ a bare view."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

OWNERS = 5


def idle_hours(folder: Path) -> None:
    """Requests of an idle hour at 1,000 repositories of 5 owners: polling alone, and with a verified hook for each.

    All of them: searches, and what comes round every six hours for each repository, its full listing and the look at its hook.
    """
    from django.conf import settings

    from enrollment.models import WebhookConfig
    from enrollment.webhooks.reconcile import reconcile
    from tests.chaos.air import Air, VirtualTime

    logging.disable(logging.INFO)  # a line for each of a thousand hooks
    print("Requests of an idle hour at 1,000 repositories of 5 owners, a look each 30 s, hooks looked at each minute")
    for version in ("1.15", "1.22"):
        clock = VirtualTime(datetime(2026, 11, 23, 12, tzinfo=UTC))
        with clock.running():
            world = a_thousand(folder / f"hour-{version}", version)
            air = Air(world.remote, clock.wait)
            with air.carrying():
                alone = an_hour(world, clock, air)
                settings.CC_CI.webhook_autoregister = True
                made = reconcile(world.forge, apply=True)
                own = WebhookConfig.objects.filter(repository__isnull=False)  # the organisations' were refused
                own.update(state="verified", state_at=datetime.now(UTC))
                again = reconcile(world.forge, apply=True)
                hooked = an_hour(world, clock, air)
                settings.CC_CI.webhook_autoregister = False
            print(f"  as Gitea {version}: registering took {made.writes} writes;", end=" ")
            print(f"a second pass over {len(again.actions)} hooks in sync: {again.writes} writes")
            print(f"  as Gitea {version}, polling only:        {words(alone)}")
            print(f"  as Gitea {version}, with verified hooks: {words(hooked)}")
            world.close()
            world.forge.delete()
    logging.disable(logging.NOTSET)


def an_hour(world: Any, clock: Any, air: Any) -> Counter[str]:
    """Requests of an hour in which nothing happens, by their kind."""
    from enrollment.forges.gitea.request_kinds import ask_of
    from enrollment.models import Repository, WebhookConfig
    from enrollment.polling import poller
    from enrollment.webhooks.reconcile import reconcile
    from tests.chaos.air import FAIR

    counts: Counter[str] = Counter()

    def heard(request: Any) -> Any:
        counts[ask_of(request.method, request.path.removeprefix("/api/v1")).kind] += 1
        return FAIR

    # As it is after some days: what each repository needs every six hours is spread over them.
    now = datetime.now(UTC)
    for rows, name in ((Repository.objects.all(), "net_due_at"), (WebhookConfig.objects.all(), "next_check_at")):
        spread = list(rows.order_by("pk"))
        for number, row in enumerate(spread):
            setattr(row, name, now + timedelta(hours=6) * number / len(spread))
        rows.bulk_update(spread, [name], batch_size=200)
    world.forge.refresh_from_db()
    poller.poll(world.forge)
    air.strike = heard
    for second in range(0, 3600, 30):
        clock.wait(30)
        world.forge.refresh_from_db()
        look = poller.poll(world.forge)
        assert not look.problems and not look.skipped, look.text()
        if second % 60 == 0:
            reconcile(world.forge, apply=True, due_only=True, seconds=20)
    air.strike = lambda request: FAIR
    return counts


def words(counts: Counter[str]) -> str:
    return f"{counts.total():5} ({', '.join(f'{count} {kind}' for kind, count in counts.most_common())})"


def a_thousand(folder: Path, version: str) -> Any:
    """A world whose bot administers all of 1,000 repositories."""
    from enrollment.fakeforge.model import Repo
    from enrollment.models import Repository
    from tests.world import World

    world = World(folder, version)
    world.connect()
    owners = [world.org, *(world.remote.add_org(f"org{number}", world.admin) for number in range(1, OWNERS))]
    for owner in owners:
        world.remote.add_member(owner, world.bot, "admin")
    first, rows, now = world.remote.repo(world.add_recipe("r0")), [], datetime.now(UTC)
    for number in range(1000):
        owner, repo = owners[number % OWNERS], first
        if number:
            # Without a git repository of its own: a look at comments or hooks needs none.
            key = world.remote.tables.next_id("repos")
            repo = Repo(key, owner.id, owner.login, f"r{number}", first.created, first.updated)
            world.remote.tables.repos[key] = repo
        names = {"owner": repo.owner, "owner_id": repo.owner_id, "name": repo.name, "forge_repo_id": repo.id}
        rows.append(Repository(forge=world.forge, **names, enrolled_at=now, net_cursor=now))
    Repository.objects.bulk_create(rows)
    return world


# --- the receiver


def receiver_ratio() -> None:
    """The receiver's deliveries a second ÷ those of the bare view, on SQLite and on PostgreSQL, each in a process of its own."""
    from tests.postgres import NoPostgres, postgres

    print("Receiver ÷ a bare view (checks an HMAC, inserts one row), in-process WSGI")
    with tempfile.TemporaryDirectory() as folder:
        print(f"  SQLite:     {_measured(f'sqlite:///{folder}/bench.sqlite3')}")
    try:
        with postgres() as url:
            print(f"  PostgreSQL: {_measured(url)}")
    except NoPostgres as problem:
        print(f"  {problem}")


def _measured(url: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CC_CI_")}
        environment |= {"DATABASE_URL": url, "CC_CI_DATA_DIR": folder, "CC_CI_ENV_FILE": "", "CC_CI_HOST": "bench"}
        environment["DJANGO_SETTINGS_MODULE"] = "controlplane.settings"
        done = subprocess.run(
            [sys.executable, "-m", "tests.bench.receiver"], env=environment, capture_output=True, text=True, timeout=600
        )
        if done.returncode:
            raise SystemExit(done.stderr)
        return done.stdout.strip()
