"""The server's own apps: what is declared, which releases exist, and every upgrade with its trail."""

from __future__ import annotations

from typing import Any

from django.db import models
from django.urls import reverse

from controlplane.secrets import EncryptedTextField
from infra.states import FINAL, MENDED, UNDER_WAY, WORKING, UpgradeState
from infra.upgrade_records import Facts, Request


class InfraFile(models.Model):
    """A single row: the `infra.yml` that was applied last, and its settings other than the apps."""

    path = models.CharField(max_length=1000, help_text="Where the file is; new pins are written there.")
    stores = models.JSONField(default=dict, blank=True)
    git = models.JSONField(default=dict, blank=True)
    host = models.CharField(max_length=100, blank=True, help_text="The host the apps belong to: where the file was applied.")
    applied_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        verbose_name = "infra.yml"
        verbose_name_plural = "infra.yml"

    def __str__(self) -> str:
        return self.path


#: The last upgrade in one of these states decides whether an app is lost.
DECISIVE = (*WORKING, UpgradeState.ROLLBACK_FAILED, UpgradeState.SUCCEEDED)


def _is_lost(state: str | None, step: dict[str, Any] | None) -> bool:
    """Whether the rollback of an upgrade failed, and nobody has repaired the app since."""
    return state == UpgradeState.ROLLBACK_FAILED and not (step or {}).get(MENDED)


class InfraAppQuerySet(models.QuerySet["InfraApp"]):
    def with_last_upgrade(self) -> InfraAppQuerySet:
        """For `lost`: the last upgrade of each that is active, succeeded, or could not be rolled back."""
        last = Upgrade.objects.filter(app=models.OuterRef("pk"), state__in=DECISIVE).order_by("-id")
        return self.annotate(
            last_id=last.values("pk")[:1], last_state=last.values("state")[:1], last_step=last.values("step")[:1]
        )


class InfraApp(models.Model):
    """One app of the server itself. What is declared comes from `infra.yml`; the rest is what was seen."""

    class Owner(models.TextChoices):
        RECONCILED = "reconciled", "reconciled by cc-ci"
        MAINTAINERS = "maintainers", "managed by its maintainers"

    class State(models.TextChoices):
        SETTLED = "settled", "settled"
        UPGRADING = "upgrading", "upgrading"
        DRIFTED = "contested", "drifted"

    class Deployer(models.TextChoices):
        SWARM = "swarm", "swarm"

    name = models.CharField(max_length=63, unique=True)
    declared = models.BooleanField(default=True, help_text="No: no longer in infra.yml; cc-ci leaves it alone.")
    position = models.PositiveIntegerField(default=0, help_text="Position in infra.yml.")
    recipe = models.CharField(max_length=100)
    source = models.CharField(max_length=500, help_text="The recipe's git repository.")
    credential = models.CharField(max_length=500, blank=True, help_text="Where its token is: env:NAME or file:path.")
    domain = models.CharField(max_length=253)
    server = models.CharField(max_length=100, default="default")
    stack = models.CharField(max_length=63)
    deployer = models.CharField(max_length=10, choices=Deployer.choices, default=Deployer.SWARM)
    owner = models.CharField(max_length=12, choices=Owner.choices, default=Owner.MAINTAINERS)
    state = models.CharField(max_length=10, choices=State.choices, default=State.SETTLED, db_index=True)
    pinned_version = models.CharField(max_length=200, blank=True)
    running_version = models.CharField(max_length=200, blank=True, help_text="From the version label, when last read.")
    fingerprint = models.CharField(max_length=200, blank=True, help_text="Of what ran when cc-ci last inspected or changed it.")
    parts = models.JSONField(default=dict, blank=True, help_text="The same for each service.")
    left = models.JSONField(default=dict, blank=True, help_text="What cc-ci had deployed, in full: specs, images, networks.")
    contested = models.JSONField(default=dict, blank=True, help_text="Changes made outside cc-ci, as found.")
    fence = models.PositiveBigIntegerField(
        default=0, help_text="Grows with each transition, so that a late worker changes nothing."
    )
    after = models.JSONField(default=list, blank=True, help_text="Names of apps that come before it.")
    env = models.JSONField(default=dict, blank=True)
    secrets = models.JSONField(default=dict, blank=True, help_text="References (env:NAME, file:path), never values.")
    policy = models.JSONField(default=dict, blank=True)
    window = models.CharField(max_length=100, blank=True)
    health = models.JSONField(default=list, blank=True)
    snapshots = models.JSONField(default=dict, blank=True)

    discovered_at = models.DateTimeField(null=True, blank=True, help_text="When its releases were last read.")
    discovery_error = models.TextField(blank=True)
    unreadable = models.JSONField(default=list, blank=True, help_text="Tags and notes that cannot be used, each with the reason.")

    objects = InfraAppQuerySet.as_manager()

    class Meta:
        ordering = ["position", "name"]
        verbose_name = "app"
        constraints = [models.UniqueConstraint(fields=["server", "stack"], name="one_app_per_stack")]

    def __str__(self) -> str:
        return self.name

    def get_absolute_url(self) -> str:
        return f"{reverse('infra')}#{self.name}"

    @property
    def ours(self) -> bool:
        """Whether cc-ci may change the app."""
        return self.declared and self.owner == self.Owner.RECONCILED

    def release(self, version: str) -> InfraRelease | None:
        return self.releases.filter(version=version).first()

    def under_way(self) -> Upgrade | None:
        """The upgrade that is active or about to start."""
        return self.upgrades.under_way().first()

    def rollback_failed(self) -> Upgrade | None:
        """The upgrade whose rollback failed, unless somebody has repaired the app since."""
        last = self.upgrades.filter(state__in=DECISIVE).first()
        return last if last and _is_lost(last.state, last.step) else None

    @property
    def lost(self) -> bool:
        """The same of one that was read `with_last_upgrade`, without another query."""
        row: Any = self
        return _is_lost(row.last_state, row.last_step)

    def last_success(self) -> Upgrade | None:
        """The upgrade that led to the running version, if cc-ci did it; snapshots do not change the version."""
        done = self.upgrades.filter(state=UpgradeState.SUCCEEDED, to_version=self.running_version)
        last = done.exclude(from_version=models.F("to_version")).first()
        return last if last and last.from_version else None


class InfraRelease(models.Model):
    """A version of an app's recipe, from its tags. Held ones stay listed, each with its blockers and remedies."""

    class State(models.TextChoices):
        CANDIDATE = "candidate", "candidate"
        HELD = "held", "held"
        QUARANTINED = "quarantined", "quarantined"

    app = models.ForeignKey(InfraApp, on_delete=models.CASCADE, related_name="releases")
    version = models.CharField(max_length=200)
    rank = models.PositiveIntegerField(default=0, help_text="Position among the app's versions, lowest first.")
    commit = models.CharField(max_length=64)
    annotated = models.BooleanField(default=True)
    tagged_at = models.DateTimeField(null=True, blank=True, help_text="As given by the tag.")
    published_at = models.DateTimeField(help_text="The earliest time at which it can have been public.")
    notes = models.TextField(null=True, blank=True, help_text="Empty: none were found.")  # noqa: DJ001 - none is not ""
    gone = models.BooleanField(default=False, help_text="The tag no longer exists.")

    state = models.CharField(max_length=12, choices=State.choices, default=State.CANDIDATE, db_index=True)
    reasons = models.JSONField(default=list, blank=True, help_text="The gate's latest blockers.")
    evidence = models.JSONField(default=dict, blank=True, help_text="Test results, and evidence of a failed upgrade to it.")
    approved_by = models.CharField(max_length=255, blank=True)
    approved_at = models.DateTimeField(null=True, blank=True)
    lifted = models.JSONField(default=list, blank=True, help_text="The blockers that the approval waives: those that were shown.")
    held_told_at = models.DateTimeField(null=True, blank=True, help_text="When people were alerted that it is held.")

    class Meta:
        ordering = ["app", "-rank"]
        verbose_name = "release"
        constraints = [models.UniqueConstraint(fields=["app", "version"], name="one_row_per_release")]

    def __str__(self) -> str:
        return f"{self.app_id and self.app.name} {self.version}"


class UpgradeQuerySet(models.QuerySet["Upgrade"]):
    def under_way(self) -> UpgradeQuerySet:
        return self.filter(state__in=UNDER_WAY)


class Upgrade(models.Model):
    """One upgrade of one app. Only `infra.lifecycle` changes its state; each step records what later ones need."""

    app = models.ForeignKey(InfraApp, on_delete=models.CASCADE, related_name="upgrades")
    from_version = models.CharField(max_length=200, blank=True)
    to_version = models.CharField(max_length=200)
    state = models.CharField(max_length=16, choices=UpgradeState.choices, default=UpgradeState.PLANNED, db_index=True)
    trigger = models.CharField(max_length=300, help_text="Who or what requested it: nightly, or a person and how.")
    reason = models.TextField(blank=True, help_text="One sentence: what failed or why it waits, and what to do.")
    fence = models.PositiveBigIntegerField(default=0, help_text="Of the lease that holds it; an older worker changes nothing.")

    specs = models.JSONField(default=dict, blank=True, help_text="All service specs before the upgrade.")
    digests = models.JSONField(default=dict, blank=True, help_text="The images that ran, by service.")
    baseline = models.JSONField(default=dict, blank=True, help_text="Probe results before the upgrade.")
    asked = models.JSONField(default=dict, blank=True, help_text="The request, apart from the version.")
    facts = models.JSONField(default=dict, blank=True, help_text="Facts that later steps need.")
    step = models.JSONField(default=dict, blank=True, help_text="What the current step has announced or done.")
    ran_new = models.BooleanField(default=False, help_text="The new version may have written to the data.")
    snapshot = models.ForeignKey("Snapshot", null=True, blank=True, on_delete=models.SET_NULL, related_name="used_by")

    created_at = models.DateTimeField(auto_now_add=True)
    started_at = models.DateTimeField(null=True, blank=True)
    state_at = models.DateTimeField(null=True, blank=True, help_text="When it entered its state.")
    finished_at = models.DateTimeField(null=True, blank=True)

    objects = UpgradeQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["app"], name="one_upgrade_at_work_per_app", condition=models.Q(state__in=[str(s) for s in WORKING])
            )
        ]

    def __str__(self) -> str:
        return f"{self.app_id and self.app.name} {self.versions}"

    def get_absolute_url(self) -> str:
        return reverse("infra-upgrade", args=[self.pk])

    @property
    def versions(self) -> str:
        """The versions, as "from → to"; only one for a deployment or if the version stays."""
        moved = self.from_version and self.from_version != self.to_version
        return f"{self.from_version} → {self.to_version}" if moved else self.to_version

    @property
    def final(self) -> bool:
        return self.state in FINAL

    @property
    def request(self) -> Request:
        return Request.from_json(self.asked)

    @property
    def found(self) -> Facts:
        return Facts.from_json(self.facts)


class UpgradeEvent(models.Model):
    """An upgrade's trail: its transitions, written together with them, and the reports of its steps."""

    upgrade = models.ForeignKey(Upgrade, on_delete=models.CASCADE, related_name="events")
    at = models.DateTimeField()
    kind = models.CharField(max_length=30)
    text = models.TextField(blank=True)
    data = models.JSONField(default=dict, blank=True)
    fence = models.PositiveBigIntegerField(default=0)

    class Meta:
        ordering = ["id"]

    def __str__(self) -> str:
        return f"{self.kind} {self.text}"


class Snapshot(models.Model):
    """A copy of an app's volumes at one version, in a store of `infra.yml`."""

    app = models.ForeignKey(InfraApp, on_delete=models.CASCADE, related_name="taken")
    upgrade = models.ForeignKey(Upgrade, null=True, blank=True, on_delete=models.SET_NULL, related_name="snapshots")
    version = models.CharField(max_length=200)
    store = models.CharField(max_length=63)
    location = models.CharField(max_length=1000, help_text="Its folder in the store, or restic's id of it.")
    proved = models.BooleanField(default=False, help_text="It was read back, and paths, modes, owners and contents agreed.")
    bytes = models.PositiveBigIntegerField(default=0)
    manifest = models.CharField(max_length=64, blank=True, help_text="SHA-256 of its list of files.")
    taken_at = models.DateTimeField()
    kept_because = models.CharField(max_length=300, blank=True, help_text="Why it is kept beyond the policy.")

    class Meta:
        ordering = ["-taken_at"]

    def __str__(self) -> str:
        return f"{self.app_id and self.app.name} {self.version} of {self.taken_at:%Y-%m-%d %H:%M}"


class AppSecret(models.Model):
    """A secret that cc-ci generated for an app: Swarm never returns it, so this is the only other copy."""

    app = models.ForeignKey(InfraApp, on_delete=models.CASCADE, related_name="made_secrets")
    name = models.CharField(max_length=200, help_text="Its name in Swarm.")
    value = EncryptedTextField()
    made_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["app", "name"]
        constraints = [models.UniqueConstraint(fields=["app", "name"], name="one_row_per_app_secret")]

    def __str__(self) -> str:
        return self.name


class AlertSent(models.Model):
    """One alert that was sent, so that it is sent once."""

    key = models.CharField(max_length=300, unique=True)
    kind = models.CharField(max_length=30)
    app = models.ForeignKey(InfraApp, null=True, blank=True, on_delete=models.SET_NULL, related_name="alerts")
    text = models.TextField()
    page = models.CharField(max_length=300, blank=True, help_text="URL of a page of ours, if it is not about an app.")
    at = models.DateTimeField()
    delivered = models.BooleanField(default=False, help_text="Delivered to every configured address.")
    problem = models.TextField(blank=True)

    class Meta:
        ordering = ["-id"]
        verbose_name = "alert"

    def __str__(self) -> str:
        return self.key
