from django.apps import AppConfig


class InfraConfig(AppConfig):
    name = "infra"
    verbose_name = "Infra apps"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from controlplane.registry import registry
        from infra import checks

        registry.check("docker", checks.check_docker)
        registry.check("sandbox", checks.check_sandbox)
