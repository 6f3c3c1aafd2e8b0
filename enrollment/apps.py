from django.apps import AppConfig
from django.conf import settings


class EnrollmentConfig(AppConfig):
    name = "enrollment"
    verbose_name = "Watched"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from controlplane.registry import Card, Recurring, registry

        for name, seconds, text in (
            ("poll", settings.CC_CI.poll_seconds, "Poll every forge."),
            ("find_by_topic", 300, "Enrol repositories by topic."),
            ("take_deliveries", 5, "Process waiting webhook deliveries."),
            ("see_to_hooks", 60, "Find webhooks that missed comments; register and repair those that are due."),
            ("drop_old_deliveries", 3600, "Drop deliveries older than CC_CI_DELIVERY_DAYS."),
            ("see_to_rights", 900, "Check the forges' capabilities and the tokens' permissions."),
            ("delete_removed", 10, "Delete the forges and repositories that a person chose to delete, a little at a time."),
            ("drop_old_request_counts", 86400, "Drop request statistics older than 30 days."),
        ):
            registry.recur(Recurring(f"enrollment.tasks.{name}", f"enrollment.tasks.{name}", seconds, text=text))
        registry.card("forges in trouble", Card("enrollment/_trouble_card.html", "enrollment.checks.trouble_card", 5))
        registry.card("forges' concerns", Card("", "enrollment.operator_cards.concerns", 30, "concerns"))
        registry.guard("/hooks/", "enrollment.webhooks.receiver.guard")
        registry.check("forges", "enrollment.checks.check_forges")
        registry.check("webhooks", "enrollment.webhooks.checks.check_webhooks")
        registry.answer("forge logins", "enrollment.forge_login.views.offers")
        registry.answer("allowances", "enrollment.access.allowances.listed")
