from django.apps import AppConfig
from django.db.models.signals import post_migrate, pre_migrate


class ControlplaneConfig(AppConfig):
    name = "controlplane"
    verbose_name = "Machinery"

    def ready(self) -> None:
        from django_q.signals import pre_execute

        from controlplane import database, logins, roles
        from controlplane.registry import Card, Recurring, registry
        from controlplane.schedules import note_work

        registry.recur(
            Recurring(
                "controlplane.tasks.tidy",
                "controlplane.tasks.tidy",
                3600,
                text="Delete old queue rows, expired leases and sessions, and stale hosts.",
            )
        )
        registry.recur(
            Recurring(
                "controlplane.tasks.heartbeat",
                "controlplane.tasks.heartbeat",
                5,
                per_host=True,
                text="Prove that this host's queue works; `cc-ci work` restarts a queue that makes no progress.",
            )
        )
        for name in ("settings", "database", "keys", "queue settings", "queue", "recurring tasks", "disk", "logins"):
            registry.check(name, f"controlplane.doctor.check_{name.replace(' ', '_')}")
        registry.card("concerns", Card("", "controlplane.operator_page.concerns", 10, "concerns"))
        logins.watch()
        pre_execute.connect(note_work)
        pre_migrate.connect(database.refuse_between, sender=self)
        post_migrate.connect(_after_migrate, sender=self)
        post_migrate.connect(roles.grant, dispatch_uid="controlplane.roles")


def _after_migrate(**kwargs: object) -> None:
    from django.db import connection

    from controlplane import schedules
    from controlplane.installation import installation_id
    from controlplane.models import Installation, RecurringTask
    from controlplane.secrets import keys

    tables = connection.introspection.table_names()
    if not {Installation._meta.db_table, RecurringTask._meta.db_table} <= set(tables):
        return  # `cc-ci migrate auth`, or back to zero
    schedules.sync()
    installation_id()
    keys()
