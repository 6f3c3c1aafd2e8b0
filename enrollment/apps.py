from django.apps import AppConfig
from django.conf import settings


class EnrollmentConfig(AppConfig):
    name = "enrollment"
    verbose_name = "Enrollment"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from controlplane.registry import Recurring, registry
        from enrollment import checks

        registry.recur(
            Recurring("enrollment.tasks.poll", "enrollment.tasks.poll", settings.CC_CI.poll_seconds, text="Look at every forge.")
        )
        registry.recur(
            Recurring(
                "enrollment.tasks.find_by_topic", "enrollment.tasks.find_by_topic", 300, text="Enrol repositories by topic."
            )
        )
        registry.check("forges", checks.check_forges)
