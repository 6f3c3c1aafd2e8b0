"""The words for a rung of the ladder in what is kept of earlier runs: people did not know the former ones."""

from django.db import migrations

WORDS = {"climbed": "reached", "passed_over": "does_not_apply", "stopped": "not_tested"}


def rename(apps, schema_editor, words=WORDS):
    runs = apps.get_model("runs", "TestRun").objects.exclude(details={})
    for run in runs.only("details").iterator(chunk_size=200):
        rungs = (run.details.get("level") or {}).get("rungs") or []
        if any(rung.get("status") in words for rung in rungs):
            for rung in rungs:
                rung["status"] = words.get(rung.get("status"), rung.get("status"))
            run.save(update_fields=["details"])


def back(apps, schema_editor):
    rename(apps, schema_editor, {after: before for before, after in WORDS.items()} | {"failed": "stopped"})


class Migration(migrations.Migration):
    dependencies = [("runs", "0003_harness")]

    operations = [migrations.RunPython(rename, back)]
