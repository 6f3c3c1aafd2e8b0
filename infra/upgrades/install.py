"""Deploy an app that does not run: at its pinned version, with a snapshot's data or without data.

It is an upgrade from nothing, by the same executor: each intent is recorded first, and a killed worker is resumed. Its rollback
stops the app again; the snapshot is kept.
"""

from __future__ import annotations

from collections.abc import Sequence

from django.db import transaction

from infra import alerts
from infra.deployers.swarm.persistent import PersistentDeployer
from infra.lifecycle import with_facts
from infra.models import AppSecret, InfraApp, Snapshot, Upgrade
from infra.runtime import inspect
from infra.states import UpgradeState
from infra.upgrade_records import Request
from infra.upgrades import quarantine
from infra.upgrades.executor import UpgradeExecutor, settle_seconds
from infra.upgrades.session import Failed

KIND = "deploy"


class InstallExecutor(UpgradeExecutor):
    """The steps of deploying an app that does not run."""

    looks = 1  # it has just converged, and there is nothing to go back to

    def _begin(self) -> None:
        app = self.app
        if not app.ours:
            raise Failed(f"{app.name} is managed by its maintainers.")
        self._remember(commits={"new": self._commit()})
        new = self._deployer("new")
        if new.parts():
            raise Failed(f"{app.name} is already running.")
        if (there := new.volumes_there()) and not self.upgrade.request.volumes:
            raise Failed(
                f"Its volumes still exist ({', '.join(there)}), and may contain data that no snapshot has. To keep them: "
                f"cc-ci infra deploy {app.name} --volumes keep. To replace them with the snapshot: --volumes replace"
            )
        if unknown := self._unknown_secrets(new):
            raise Failed(
                f"Its data was used with secrets that cc-ci did not generate and cannot recreate: {', '.join(unknown)}. "
                f"Set them in infra.yml, for example: secrets: {{{unknown[0]}: file:{unknown[0]}}}"
            )
        self.report(f"Fetching the images of {self.upgrade.to_version}")
        images = list(new.fetch(self.folder / "new"))
        settle = settle_seconds(app, new.timeout(self.folder / "new"))
        facts = with_facts(self.upgrade, images=images, settle_seconds=settle)
        with transaction.atomic():
            self._take_app(running_version="", fingerprint="", parts={})
            self._move("snapshot", "It is not running.", baseline={"parts": {}, "probes": {}}, facts=facts)

    def _commit(self) -> str:
        row = self.app.release(self.upgrade.to_version)
        if row is None or not row.commit:
            raise Failed(f"No release {self.upgrade.to_version or '(unknown)'} of {self.app.recipe} is known.")
        return row.commit

    def _unknown_secrets(self, new: PersistentDeployer) -> list[str]:
        """The keys of secrets that the data was used with and that nobody provides any more."""
        used = set(self.upgrade.request.secrets)
        made = set(AppSecret.objects.filter(app=self.app).values_list("name", flat=True))
        missing = new.secrets_missing()
        return sorted(key for name, key in missing.items() if name in used - made and key not in self.app.secrets)

    def _snapshot(self) -> None:
        self._guard("look")
        data = self.upgrade.request.data
        words = f"Restoring {Snapshot.objects.get(pk=data)} first." if data else "Starting with the existing data."
        self._move("deploy", words, step={})

    def _soak(self) -> None:
        """There is nothing to go back to, and the pin does not change."""
        self._guard("finish")
        self._finish("succeed", self._deployer("new"), self.upgrade.to_version, "The app is up.")

    def _copy_images(self) -> Sequence[str]:
        return self.upgrade.found.images

    def _roll_back(self) -> None:
        self._guard("look back")
        new = self._deployer("new")
        self._inspect(new, missing=True)
        if self.upgrade.found.logs is None:
            self._remember(**quarantine.collect(new, lambda text: inspect.without_secrets(self.app, text)))
        self._guard("stop")
        new.undeploy()
        self._remember(announced=[], deployed={})  # none of it has to exist any more
        self._finish("rolled_back", new, "", self.upgrade.reason)
        words = f"Could not deploy {self.app.name} {self.upgrade.to_version}; stopped it again: {self.upgrade.reason}"
        alerts.tell("rolled_back", self.app, words, key=str(self.upgrade.pk))


def unfinished(app: InfraApp) -> Request | None:
    """The last request to deploy the app, if that failed after its data was touched and the app was not seen since: what is in
    its volumes is then our own unfinished work.
    """
    last: Upgrade | None = app.upgrades.exclude(state=UpgradeState.FAILED).first()
    if last is None or app.fingerprint:
        return None
    half_done = last.request.kind == KIND and last.state == UpgradeState.ROLLED_BACK and last.ran_new
    return last.request if half_done else None
