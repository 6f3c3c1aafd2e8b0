"""Queries, size and time of each page, with few runs and with many, on PostgreSQL; part of `make bench`.

`python -m tests.bench.pages [ADDRESS …]` measures the database of `make seed` instead; BENCH=-v shows its slowest queries.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass

from tests.postgres import postgres

FEW, MANY = 1_000, int(os.environ.get("BENCH_RUNS", 1_000_000))
#: The same in both, so that the pages have as many rows: each has more runs than a page shows.
REPOSITORIES = 30
#: A page may take this much longer with MANY runs, and so many queries.
RATIO, QUERIES = 1.5, 20
#: Both databases are measured in turns, so many times; the fastest of so many requests each counts.
ROUNDS, TIMES = 3, 5


@dataclass
class Page:
    """What a page takes. `seconds`: of these `database` in the database."""

    address: str
    status: int
    queries: int
    bytes: int
    seconds: float
    database: float


def compare() -> None:
    """Seed two databases, measure each page in both, and print the ratios."""
    print(f"Pages with {FEW:,} and {MANY:,} runs of {REPOSITORIES} recipes, on PostgreSQL (limits: {QUERIES} queries, {RATIO})")
    with postgres() as url:
        environments = [_seeded(url, number) for number in (FEW, MANY)]
        rounds = [[_measured(environment) for environment in environments] for _ in range(ROUNDS)]
    few, many = (
        [min(pages, key=lambda page: page.seconds) for pages in zip(*of_one, strict=True)] for of_one in zip(*rounds, strict=True)
    )
    print("  queries      kB      ms      ms  ratio  page")
    for one, other in zip(few, many, strict=True):
        ratio = other.seconds / one.seconds
        over = "" if ratio <= RATIO and other.queries <= QUERIES else "  over the limit"
        name = one.address if one.status == other.status == 200 else f"{one.address} {other.status}"
        sizes = f"{other.queries:9} {other.bytes / 1000:7.0f} {one.seconds * 1000:7.0f} {other.seconds * 1000:7.0f}"
        print(f"{sizes} {ratio:6.2f}  {name}{over}", flush=True)


def _seeded(url: str, number: int) -> dict[str, str]:
    """Make a database of its own, and give the environment in which it is used."""
    import psycopg

    with psycopg.connect(url, autocommit=True) as server:
        server.execute(f"CREATE DATABASE runs_{number}".encode())
    environment = {**os.environ, "DATABASE_URL": f"{url.rpartition('/')[0]}/runs_{number}"}
    environment["DJANGO_SETTINGS_MODULE"] = "controlplane.settings"
    seed = [sys.executable, "-m", "tests.bench.seed", str(number), str(REPOSITORIES)]
    subprocess.run(seed, check=True, env=environment)
    return environment


def _measured(environment: dict[str, str]) -> list[Page]:
    command = [sys.executable, "-m", "tests.bench.pages", "--json"]
    done = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True)
    return [Page(**one) for one in json.loads(done.stdout)]


def measure(addresses: list[str], verbose: bool) -> list[Page]:
    """The pages of the database of the settings: those with these addresses, or all."""
    import django

    django.setup()
    from django.conf import settings
    from django.contrib.auth.models import User
    from django.db import connection
    from django.test import Client
    from django.test.utils import CaptureQueriesContext

    settings.ALLOWED_HOSTS = ["*"]
    user, _ = User.objects.get_or_create(username="bench", defaults={"is_staff": True, "is_superuser": True})
    public, admin = Client(), Client()
    admin.force_login(user)
    pages = []
    for address in addresses or (*_public(), *_admin()):
        client = admin if address.startswith("/admin/") else public
        client.get(address)  # templates are compiled once
        fastest: Page | None = None
        for _ in range(TIMES):
            with CaptureQueriesContext(connection) as queries:
                begun = time.perf_counter()
                answer = client.get(address)
                seconds = time.perf_counter() - begun
            database = sum(float(query["time"]) for query in queries)
            if fastest is None or seconds < fastest.seconds:
                fastest = Page(address, answer.status_code, len(queries), len(answer.content), seconds, database)
        assert fastest
        pages.append(fastest)
        if verbose and fastest.database > 0.05:
            for query in sorted(queries, key=lambda query: -float(query["time"]))[:3]:
                print("        ", query["time"], query["sql"][:400], file=sys.stderr)
    return pages


def _public() -> list[str]:
    from enrollment.models import Repository
    from runs.models import TestRun

    run = TestRun.objects.select_related("pull_request", "repository").exclude(pull_request=None).latest("created_at")
    row: Repository = run.repository
    recipe = f"/recipes/{row.pk}/"
    lists = ["/", "/?sort=level", "/?search=recipe-01", "/runs/", "/runs/?state=failed", f"/runs/?repository={row.full_name}"]
    found = [f"/runs/?search={words}" for words in ("%231", "maintainer7", "recipe-01", run.sha, run.short_id, "nothing")]
    shared = [f"/badge/{row.full_name}.svg", f"{recipe}feed/", f"/recipes/runs/{run.pk}.png"]
    return [
        *(*lists, *found, run.get_absolute_url(), f"{run.get_absolute_url()}live/"),
        *(recipe, f"{recipe}pulls/{run.pull_request.number}/", f"/runs/tests/{row.pk}/"),  # type: ignore[union-attr]  # above
        *(*shared, "/deferred/", "/docs/", "/login/"),
    ]


def _admin() -> list[str]:
    from django.contrib import admin
    from django.urls import reverse

    import controlplane.urls  # noqa: F401 - registers the lists

    models = [model._meta for model in admin.site._registry]
    return ["/admin/", *(reverse(f"admin:{one.app_label}_{one.model_name}_changelist") for one in models)]


def main(arguments: list[str]) -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "controlplane.settings")
    os.environ["CC_CI_ENV_FILE"] = ""
    os.environ.setdefault("CC_CI_DATA_DIR", "var/seed")
    pages = measure([one for one in arguments if one != "--json"], "-v" in os.environ.get("BENCH", ""))
    if "--json" in arguments:
        print(json.dumps([asdict(page) for page in pages]))
        return
    print("queries, kB, ms, of these in the database, page")
    for one in pages:
        status = "" if one.status == 200 else f" {one.status}"
        times = f"{one.seconds * 1000:7.0f} {one.database * 1000:7.0f}"
        print(f"{one.queries:3} {one.bytes / 1000:7.0f} {times}  {one.address}{status}")


if __name__ == "__main__":
    main(sys.argv[1:])
