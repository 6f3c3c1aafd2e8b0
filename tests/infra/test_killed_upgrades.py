"""The matrix: an upgrade is killed, loses its lease, meets a full disk or a Docker that starts anew, at any point of any step.

Workers are real processes on a real database. At the end the new version is healthy, or the old one is, data byte for byte.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from controlplane.models import Lease
from infra.models import InfraApp, InfraFile, Upgrade
from infra.states import UpgradeState
from tests.infra.folder_app import BAD, FAULTS, GOOD, OLD
from tests.infra.machine import Scene, log_of

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.crash, pytest.mark.forks]

FORWARD = ("record", "fetch", "stop", "pack", "prove", "deploy", "settle", "probe")
BACK = ("stop", "put back", "deploy back", "settle back", "probe back")
WHEN = ("before", "during", "after")
#: Between the steps there is only the database: a worker is killed there, or was too late.
#: (Within a transaction nobody else comes.)
BETWEEN = {
    "killed": ("move snapshot", "move deploy", "move verify", "move soak", "move succeed"),
    "lost lease": ("move deploy", "move verify", "move soak"),
}
BETWEEN_BACK = {"killed": ("move roll_back", "move rolled_back"), "lost lease": ("move roll_back",)}


def run(root: Path, monkeypatch: pytest.MonkeyPatch, version: str, point: str, when: str, fault: str, stateful: bool) -> str:
    """One case of the matrix: how it ended."""
    for model in (Upgrade, InfraApp, InfraFile, Lease):
        model.objects.all().delete()
    scene = Scene(root, monkeypatch, stateful=stateful)
    upgrade = scene.upgrade(version)
    scene.machine.plan(point, when, fault)
    scene.until_the_end(upgrade)
    case = f"{version} {point} {when} {fault}"
    assert scene.machine.met, f"{case}: the fault was never met"
    if upgrade.state == UpgradeState.SUCCEEDED:
        assert scene.is_new(version), f"{case}: {log_of(upgrade)}"
        assert (scene.app.running_version, scene.app.pinned_version) == (version, version)
    else:
        assert upgrade.state in (UpgradeState.FAILED, UpgradeState.ROLLED_BACK), f"{case}: {upgrade.state}\n{log_of(upgrade)}"
        assert scene.is_as_before(), f"{case}: {log_of(upgrade)}"
        assert scene.app.running_version == scene.app.pinned_version == OLD
    assert scene.app.state == InfraApp.State.SETTLED, case
    return str(upgrade.state)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("version", [GOOD, BAD])
def test_the_matrix(version: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = FORWARD if version == GOOD else BACK
    ends: Counter[str] = Counter()
    cases = [(point, when) for point in points for when in WHEN]
    between = (BETWEEN if version == GOOD else BETWEEN_BACK).get(fault, ())
    cases += [(point, when) for point in between for when in ("before", "after")]
    cases += [("pin", "before")] if version == GOOD and between else []
    for number, (point, when) in enumerate(cases):
        ends[run(tmp_path / str(number), monkeypatch, version, point, when, fault, stateful=True)] += 1
    print(f"\n{fault}, {'the way forward' if version == GOOD else 'the way back'}: {dict(ends)}, {sum(ends.values())} cases")
    assert sum(ends.values()) == len(cases) >= len(points) * len(WHEN)
    if version == BAD:
        assert set(ends) == {UpgradeState.ROLLED_BACK}
    if fault == "killed" and version == GOOD:
        assert set(ends) == {UpgradeState.SUCCEEDED}, "being killed is nobody's fault, and costs nothing but time"
