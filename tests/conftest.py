"""What all tests share. Their settings are in `tests/settings.py`: pytest-django loads those before this file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from django.conf import settings

from tests import shares

if TYPE_CHECKING:
    from tests.world import World


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder for this test alone, in `settings.CC_CI.data_dir`."""
    monkeypatch.setattr(settings.CC_CI, "data_dir", tmp_path)
    return tmp_path


@pytest.fixture
def world(db: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A forge with people, one recipe `recipes/web` with a pull request, and cc-ci enrolled there."""
    from tests.world import World

    monkeypatch.setattr(settings.CC_CI, "data_dir", tmp_path / "data")
    world = World(tmp_path)
    world.connect()
    world.add_recipe("web")
    world.enroll("recipes/web")
    yield world
    world.close()


#: Folders and files whose tests do nothing that differs between databases, and need not run on both.
NO_DATABASE = (
    "enrollment/sandbox",
    "enrollment/test_admin.py",
    "enrollment/test_another_kind.py",
    "enrollment/test_checks.py",
    "enrollment/test_clocks.py",
    "enrollment/test_gitea_client.py",
    "enrollment/test_hooks_by_hand.py",
    "enrollment/test_policies.py",
    "enrollment/test_trust.py",
    "enrollment/test_webhook_",
    "controlplane/test_action_permissions.py",
    "controlplane/test_admin.py",
    "controlplane/test_cli.py",
    "controlplane/test_config.py",
    "controlplane/test_pages.py",
    "controlplane/test_proxy_examples.py",
    "controlplane/test_slow_clients.py",
    "controlplane/test_untrusted.py",
    "runs/harness",
    "runs/test_admin.py",
    "runs/test_approval.py",
    "runs/test_chatops.py",
    "runs/test_deferred_file.py",
    "runs/test_render.py",
    "runs/test_render_hostile.py",
    "runs/test_starting.py",
    "runs/test_test_command.py",
    "runs/test_views.py",
    "infra/deployers",
    "infra/test_checks.py",
    "infra/test_declaration.py",
    "infra/test_gate.py",
    "infra/test_pins.py",
    "infra/test_versions.py",
    "infra/test_window.py",
    "e2e",
    "test_groups.py",
    "test_patterns.py",
)


#: The same, of those that ask the database, and take half the time with one in memory; long forms run on both.
ON_SQLITE = (
    "chaos/test_storm.py",
    "enrollment/test_abilities.py",
    "enrollment/test_budget.py",
    "enrollment/test_mutated_answers.py",
    "enrollment/test_polling.py",
    "enrollment/test_polling_properties.py",
    "enrollment/test_receiver.py",
    "enrollment/test_receiver_fuzz.py",
    "enrollment/test_whose_code.py",
    "enrollment/test_gitea_files.py",
    "controlplane/test_secrets.py",
    "controlplane/test_supervisor.py",
    "infra/test_health.py",
    "infra/test_infra_command.py",
    "infra/test_infra_upgrade_command.py",
    "infra/test_plan.py",
    "infra/test_snapshots.py",
    "runs/test_deferred.py",
    "runs/test_deferred_close.py",
    "enrollment/test_rights.py",
    "enrollment/test_trust_worst_moment.py",
    "enrollment/test_webhooks.py",
    "controlplane/test_work.py",
    "infra/test_infra_pages.py",
    "infra/test_killed_upgrades.py",
    "infra/test_rebuilding.py",
)
#: What is about several machines that share a database: there alone, but for their long forms.
ON_POSTGRESQL = ("chaos/test_crash.py",)

#: What takes longest, the longest first.
LONGEST = (
    "chaos",
    "controlplane/test_work.py",
    "controlplane/test_slow_clients.py",
    "browser",
    "e2e/test_rebuild.py",
    "e2e/test_killed_runs.py",
    "e2e",
    "infra/test_killed_upgrades.py",
    "enrollment/test_mutated_answers.py",
    "runs/harness/test_processes.py",
)


@pytest.hookimpl(tryfirst=True)  # before xdist looks at the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        name = str(item.path.relative_to(here)) if item.path.is_relative_to(here) else ""
        for marker, names in (
            ("no_database", NO_DATABASE),
            ("on_sqlite", ON_SQLITE),
            ("on_postgresql", ON_POSTGRESQL),
        ):
            # One of them, or it would be run nowhere.
            if name.startswith(names) and not item.get_closest_marker("no_database"):
                item.add_marker(marker)
        # What starts whole trees of processes, or a browser, runs one after the other; so does what sweeps the machine.
        for heavy in ("chaos", "browser", "runs/harness/test_processes.py"):
            if item.path.is_relative_to(here / heavy):
                item.add_marker(pytest.mark.xdist_group(heavy))
    # What takes long comes first: else one worker is left alone with it at the end.
    items.sort(key=lambda item: min((n for n, long in enumerate(LONGEST) if item.path.is_relative_to(here / long)), default=99))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """How much of the time each part of cc-ci took."""
    workers = int(getattr(config.option, "numprocesses", None) or 1)
    reports = [report for found in terminalreporter.stats.values() for report in found]
    for line in shares.lines(reports, workers):
        terminalreporter.write_line(line)
