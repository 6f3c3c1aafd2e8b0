from django.apps import AppConfig
from django.conf import settings


class EnrollmentConfig(AppConfig):
    name = "enrollment"
    verbose_name = "Enrollment"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from controlplane.registry import Card, Recurring, registry
        from enrollment import allowances, checks, hook_checks, receiver

        registry.recur(
            Recurring("enrollment.tasks.poll", "enrollment.tasks.poll", settings.CC_CI.poll_seconds, text="Look at every forge.")
        )
        registry.recur(
            Recurring(
                "enrollment.tasks.find_by_topic", "enrollment.tasks.find_by_topic", 300, text="Enrol repositories by topic."
            )
        )
        for name, seconds, text in (
            ("take_deliveries", 5, "Take deliveries that nobody has."),
            ("see_to_hooks", 60, "Find webhooks that miss comments; register and repair those that are due."),
            ("drop_old_deliveries", 3600, "Drop deliveries that are older than CC_CI_DELIVERY_DAYS."),
            ("see_to_rights", 900, "See what the forges can do, and what the tokens may do there."),
            ("drop_old_request_counts", 86400, "Drop the table of requests after 30 days."),
        ):
            registry.recur(Recurring(f"enrollment.tasks.{name}", f"enrollment.tasks.{name}", seconds, text=text))
        registry.card("forges in trouble", Card("enrollment/_trouble_card.html", checks.trouble_card, 5))
        registry.guard("/hooks/", receiver.guard)
        registry.check("forges", checks.check_forges)
        registry.check("webhooks", hook_checks.check_webhooks)
        registry.answer("allowances", allowances.listed)
