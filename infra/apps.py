from django.apps import AppConfig


class InfraConfig(AppConfig):
    name = "infra"
    verbose_name = "Infra apps"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from controlplane.registry import Card, Recurring, registry
        from infra import checks, doctor, running, views
        from infra.firewall import check as firewall

        registry.check("docker", checks.check_docker)
        registry.check("networks", checks.check_networks)
        registry.check("sandbox", checks.check_sandbox)
        registry.check("kernel limits", checks.check_kernel_limits)
        registry.check("firewall", firewall.check_firewall)
        registry.check("infra", doctor.check_infra)
        registry.card("infra", Card("infra/_card.html", views.card, 30))
        registry.recur(
            Recurring("infra.tasks.discover", "infra.tasks.discover", 86400, text="Look for releases of this server's own apps.")
        )
        registry.recur(
            Recurring("infra.nightly", "infra.tasks.nightly_step", 60, True, text="Begin the next upgrade of this server's apps.")
        )
        registry.recur(
            Recurring(
                "infra.supervise",
                "infra.tasks.supervise",
                15,
                True,
                text="See that upgrades go on, and that nobody else did one.",
            )
        )
        registry.answer("images_kept", running.images_kept)
