from django.apps import AppConfig
from django.db.models.signals import post_migrate


class ControlplaneConfig(AppConfig):
    name = "controlplane"
    verbose_name = "Control plane"

    def ready(self) -> None:
        from controlplane.registry import Recurring, registry

        registry.recur(
            Recurring("controlplane.tasks.tidy", "controlplane.tasks.tidy", 3600, text="Drop old rows of the queue and expired leases.")
        )
        post_migrate.connect(_after_migrate, sender=self)


def _after_migrate(**kwargs: object) -> None:
    from controlplane import schedules
    from controlplane.installation import installation_id

    schedules.sync()
    installation_id()
