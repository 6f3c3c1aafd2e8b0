"""An app that does not run is brought up: at its pinned version, with the data of a snapshot, or with none.

It is an upgrade from nothing, carried out by the same machine: announced before it is done, killed anywhere and gone on with. Its
way back is to stop the app again; the snapshot stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from django.db import transaction
from django.db.models import F

from infra import alerts, evidence, running
from infra.deployers.lasting import LastingDeployer
from infra.models import AppSecret, InfraApp, InfraRelease, Snapshot, Upgrade
from infra.states import UpgradeState
from infra.upgrades import Machine, settle_seconds
from infra.worker import Failed

KIND = "deploy"


class BringUp(Machine):
    """The steps of bringing an app up. `Upgrade.asked`: `data` (a snapshot's number, or None), `secrets` (the names of those
    that its data was used with), `volumes` (`keep` or `replace` those that are still there; empty: there must be none).
    """

    looks = 1  # it has just settled, and there is nothing to go back to

    def _begin(self) -> None:
        app, asked = self.app, self.upgrade.asked
        if not app.ours:
            raise Failed(f"{app.name} is its maintainers'.")
        self._remember(commits={"new": self._commit()})
        new = self._deployer("new")
        if new.parts():
            raise Failed(f"{app.name} runs already.")
        if (there := new.volumes_there()) and not asked.get("volumes"):
            raise Failed(
                f"Its volumes are still there ({', '.join(there)}), and may hold more than any snapshot. To go on with them: "
                f"cc-ci infra deploy {app.name} --volumes keep. To put the snapshot in their place: --volumes replace"
            )
        if unknown := self._unknown_secrets(new):
            raise Failed(
                f"Its data was used with secrets that cc-ci did not make and cannot make again: {', '.join(unknown)}. "
                f"Give them in infra.yml, for example: secrets: {{{unknown[0]}: file:{unknown[0]}}}"
            )
        self.report(f"Having the images of {self.upgrade.to_version} here")
        images = list(new.fetch(self.folder / "new"))
        facts = {**self.upgrade.facts, "images": images, "settle_seconds": settle_seconds(app, new.timeout(self.folder / "new"))}
        with transaction.atomic():
            rows = InfraApp.objects.filter(
                pk=app.pk, fence=app.fence, owner=InfraApp.Owner.RECONCILED, declared=True, state=app.state
            ).exclude(state=InfraApp.State.UPGRADING)
            values: dict[str, Any] = {"state": InfraApp.State.UPGRADING, "fence": F("fence") + 1, "contested": {}}
            if not rows.update(**values, running_version="", fingerprint="", parts={}):
                raise Failed("The app was changed in this moment.")
            self._move("snapshot", "Nothing of it runs.", baseline={"parts": {}, "probes": {}}, facts=facts)
        app.refresh_from_db()

    def _commit(self) -> str:
        row = InfraRelease.objects.filter(app=self.app, version=self.upgrade.to_version).first()
        if row is None or not row.commit:
            raise Failed(f"No release {self.upgrade.to_version or '(unknown)'} of {self.app.recipe} is known.")
        return row.commit

    def _unknown_secrets(self, new: LastingDeployer) -> list[str]:
        """The keys of secrets that the data was used with, and that nobody can give any more."""
        used = set(self.upgrade.asked.get("secrets", ()))
        made = set(AppSecret.objects.filter(app=self.app).values_list("name", flat=True))
        missing = new.secrets_missing()
        return sorted(key for name, key in missing.items() if name in used - made and key not in self.app.secrets)

    def _snapshot(self) -> None:
        self._guard("look")
        data = self.upgrade.asked.get("data")
        words = f"The data of {Snapshot.objects.get(pk=data)} comes first." if data else "It begins with what is there."
        self._move("deploy", words, step={})

    def _soak(self) -> None:
        """There is nothing to go back to, and the pin is what it was."""
        self._guard("finish")
        self._finish("succeed", self._deployer("new"), self.upgrade.to_version, "It is up.")

    def _copy_images(self) -> Sequence[str]:
        return list(self.upgrade.facts["images"])

    def _roll_back(self) -> None:
        self._guard("look back")
        new = self._deployer("new")
        self._look(new, missing=True)
        if "logs" not in self.upgrade.facts:
            self._remember(**evidence.collect(new, lambda text: running.without_secrets(self.app, text)))
        self._guard("stop")
        new.undeploy()
        self._remember(announced=[], deployed={})  # nothing of it has to be there any more
        self._finish("rolled_back", new, "", self.upgrade.reason)
        words = (
            f"{self.app.name} could not be brought up as {self.upgrade.to_version}, and was stopped again: {self.upgrade.reason}"
        )
        alerts.tell("rolled_back", self.app, words, key=str(self.upgrade.pk))


def unfinished(app: InfraApp) -> Mapping[str, Any]:
    """What was asked for when the app was brought up last, if that failed after its data was touched, and nothing of it was
    seen since: what is in its volumes is then our own half-done work.
    """
    last: Upgrade | None = app.upgrades.exclude(state=UpgradeState.FAILED).first()
    if last is None or app.fingerprint:
        return {}
    half_done = last.asked.get("kind") == KIND and last.state == UpgradeState.ROLLED_BACK and last.ran_new
    return dict(last.asked) if half_done else {}
