from typing import Any

from django.apps import AppConfig


class RunsConfig(AppConfig):
    name = "runs"
    verbose_name = "Runs"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from controlplane.registry import Card, Recurring, registry
        from enrollment.signals import comment_received, head_moved
        from runs import receivers
        from runs.lifecycle import run_moved

        comment_received.connect(receivers.on_comment, dispatch_uid="runs")
        run_moved.connect(_report, dispatch_uid="runs")
        head_moved.connect(_head_moved, dispatch_uid="runs")
        registry.check("deployments", "runs.checks.check_judged")
        registry.check("executors", "runs.executors.check.check_executors")
        registry.guard("/runs/executors/", "runs.executors.hook.guard")
        registry.answer("version_evidence", "runs.track_record.version_evidence")
        registry.answer("delete_runs", "runs.tasks.delete_runs")
        registry.card("now", Card("runs/_now_card.html", "runs.views.now_card", 10, fresh=True))
        registry.card("repositories", Card("runs/_repositories_card.html", "runs.recipe_pages.repositories_card", 20))
        registry.card("runs", Card("runs/_recent_card.html", "runs.views.recent_card", 30, fresh=True))
        registry.card("commands", Card("runs/_commands_card.html", "runs.views.commands_card", 40))
        registry.card("runs' concerns", Card("", "runs.operator_cards.concerns", 40, "concerns"))
        registry.card("runs' figures", Card("", "runs.operator_cards.figures", 10, "now"))
        registry.card("trend of runs", Card("runs/_trend_card.html", "runs.operator_cards.trend", 10, "trends"))
        registry.router("/runs", "runs.api.router")
        registry.router("/recipes", "runs.api.recipes")
        registry.router("/deferred", "runs.deferred.api.router")
        for name, seconds, per_host, text in (
            ("supervise", 1, True, "Watch the runs on this machine."),
            ("dispatch", 5, True, "Start queued runs on free slots."),
            ("send_reports", 2, False, "Post due reports to the forges."),
            ("sweep_comments", 5, False, "Handle comments that were not handled yet."),
            ("scheduled_step", 300, False, "Start scheduled runs that are due, and report changes of their verdicts."),
            ("weekly_digest", 3600, False, "Send the digest of last week's scheduled runs."),
            ("sweep_leftovers", 300, True, "Remove what dead runs left behind."),
            ("drop_old_runs", 3600, False, "Delete runs older than CC_CI_KEEP_DAYS."),
        ):
            registry.recur(Recurring(f"runs.tasks.{name}", f"runs.tasks.{name}", seconds, per_host, text))


def _report(**kwargs: Any) -> None:
    from runs import reporting  # which imports much that most commands do without

    reporting.on_run_moved(**kwargs)


def _head_moved(**kwargs: Any) -> None:
    from runs import reporting

    reporting.on_head_moved(**kwargs)
