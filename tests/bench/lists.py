"""`make seed N=…`, then `python -m tests.bench.lists`: queries and time of each of the admin's lists, and of its start page."""

from __future__ import annotations

import os
import sys
import time

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "controlplane.settings")
os.environ["CC_CI_ENV_FILE"] = ""
os.environ.setdefault("CC_CI_DATA_DIR", "var/seed")


def main(addresses: list[str]) -> None:
    import django

    django.setup()
    from django.conf import settings
    from django.contrib import admin
    from django.contrib.auth.models import User
    from django.db import connection
    from django.test import Client
    from django.test.utils import CaptureQueriesContext
    from django.urls import reverse

    settings.ALLOWED_HOSTS = ["*"]
    user, _ = User.objects.get_or_create(username="bench", defaults={"is_staff": True, "is_superuser": True})
    client = Client()
    client.force_login(user)
    import controlplane.urls  # noqa: F401 - registers the lists

    lists = [reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist") for model in admin.site._registry]
    client.get(reverse("admin:index"))  # templates are compiled once
    print(f"{connection.vendor}: queries, ms, of these in the database, address")
    for address in addresses or [reverse("admin:index"), *lists]:
        with CaptureQueriesContext(connection) as queries:
            begun = time.perf_counter()
            status = client.get(address).status_code
            seconds = time.perf_counter() - begun
        database = sum(float(query["time"]) for query in queries)
        print(
            f"{len(queries):3} {seconds * 1000:7.0f} {database * 1000:7.0f}  {address}{'' if status == 200 else f' {status}'}",
            flush=True,
        )
        if "-v" in os.environ.get("BENCH", "") and database > 0.05:
            for query in sorted(queries, key=lambda query: -float(query["time"]))[:3]:
                print("        ", query["time"], query["sql"][:400])


if __name__ == "__main__":
    main(sys.argv[1:])
