from django.apps import AppConfig


class InfraConfig(AppConfig):
    name = "infra"
    verbose_name = "Own apps"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from controlplane.registry import Card, Recurring, registry

        registry.check("docker", "infra.checks.check_docker")
        registry.check("networks", "infra.checks.check_networks")
        registry.check("addresses", "infra.checks.check_addresses")
        registry.check("sandbox", "infra.checks.check_sandbox")
        registry.check("kernel limits", "infra.checks.check_kernel_limits")
        registry.check("service addresses", "infra.checks.check_service_addresses")
        registry.check("firewall", "infra.firewall.check.check_firewall")
        registry.check("infra", "infra.doctor.check_infra")
        registry.router("/infra", "infra.web.api.router")
        registry.card("infra", Card("infra/_card.html", "infra.web.views.card", 30))
        registry.card("apps' concerns", Card("", "infra.web.operator_cards.concerns", 20, "concerns"))
        registry.card("apps' figures", Card("", "infra.web.operator_cards.figures", 20, "now"))
        registry.recur(
            Recurring("infra.tasks.discover", "infra.tasks.discover", 86400, text="Look for releases of this server's own apps.")
        )
        registry.recur(
            Recurring("infra.nightly", "infra.tasks.nightly_step", 60, True, text="Start the next upgrade of this server's apps.")
        )
        registry.recur(
            Recurring("infra.supervise", "infra.tasks.supervise", 15, True, text="Resume orphaned upgrades, and detect drift.")
        )
        registry.recur(Recurring("infra.retry_alerts", "infra.tasks.retry_alerts", 60, text="Send failed alerts again."))
        registry.answer("alert", "infra.alerts.from_another_app")
        registry.answer("images_kept", "infra.runtime.inspect.images_kept")
