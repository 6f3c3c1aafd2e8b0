from django.apps import AppConfig


class RunsConfig(AppConfig):
    name = "runs"
    verbose_name = "Runs"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from controlplane.registry import Card, Recurring, registry
        from enrollment.signals import comment_received
        from runs import checks, evidence, receivers, reporting, views
        from runs.lifecycle import run_moved

        comment_received.connect(receivers.on_comment, dispatch_uid="runs")
        run_moved.connect(reporting.on_run_moved, dispatch_uid="runs")
        registry.check("deployments", checks.check_judged)
        registry.answer("version_evidence", evidence.version_evidence)
        registry.card("runs", Card("runs/_recent_card.html", views.recent_card, 10))
        registry.card("repositories", Card("runs/_repositories_card.html", views.repositories_card, 20))
        for name, seconds, per_host, text in (
            ("supervise", 1, True, "Look after the runs on this machine."),
            ("dispatch", 5, True, "Start what waits, on this machine's free slots."),
            ("send_reports", 2, False, "Post what should stand on the forges."),
            ("sweep_comments", 5, False, "Handle comments that nobody has."),
            ("sweep_leftovers", 300, True, "Remove what dead runs left behind."),
            ("drop_old_runs", 3600, False, "Drop runs that are older than CC_CI_KEEP_DAYS."),
        ):
            registry.recur(Recurring(f"runs.tasks.{name}", f"runs.tasks.{name}", seconds, per_host, text))
