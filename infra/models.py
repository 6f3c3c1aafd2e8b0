"""The server's own apps: what was declared of them, which releases there are, and every upgrade with its trail."""

from __future__ import annotations

from django.db import models
from django.urls import reverse

from controlplane.secrets import EncryptedTextField
from infra.states import FINAL, WORKING, UpgradeState


class InfraFile(models.Model):
    """One row: the `infra.yml` that was applied last, and what it says beside its apps."""

    path = models.CharField(max_length=1000, help_text="Where the file is; new pins are written there.")
    stores = models.JSONField(default=dict, blank=True)
    git = models.JSONField(default=dict, blank=True)
    host = models.CharField(max_length=100, blank=True, help_text="The machine whose apps these are: where it was applied.")
    applied_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        verbose_name = "infra.yml"
        verbose_name_plural = "infra.yml"

    def __str__(self) -> str:
        return self.path


class InfraApp(models.Model):
    """One app of the server itself. What is declared of it comes from `infra.yml`; the rest is what was seen."""

    class Owner(models.TextChoices):
        RECONCILED = "reconciled", "reconciled by cc-ci"
        MAINTAINERS = "maintainers", "its maintainers"

    class State(models.TextChoices):
        SETTLED = "settled", "settled"
        UPGRADING = "upgrading", "upgrading"
        CONTESTED = "contested", "contested"

    class Deployer(models.TextChoices):
        SWARM = "swarm", "swarm"

    name = models.CharField(max_length=63, unique=True)
    declared = models.BooleanField(default=True, help_text="False: no longer in infra.yml; cc-ci leaves it alone.")
    position = models.PositiveIntegerField(default=0, help_text="Its place in infra.yml.")
    recipe = models.CharField(max_length=100)
    source = models.CharField(max_length=500, help_text="The recipe's git repository.")
    credential = models.CharField(max_length=500, blank=True, help_text="Where the token for it is: env:NAME or file:path.")
    domain = models.CharField(max_length=253)
    server = models.CharField(max_length=100, default="default")
    stack = models.CharField(max_length=63)
    deployer = models.CharField(max_length=10, choices=Deployer.choices, default=Deployer.SWARM)
    owner = models.CharField(max_length=12, choices=Owner.choices, default=Owner.MAINTAINERS)
    state = models.CharField(max_length=10, choices=State.choices, default=State.SETTLED, db_index=True)
    pinned_version = models.CharField(max_length=200, blank=True)
    running_version = models.CharField(max_length=200, blank=True, help_text="As its label was read back last.")
    fingerprint = models.CharField(max_length=200, blank=True, help_text="Of what ran when cc-ci looked or acted last.")
    parts = models.JSONField(default=dict, blank=True, help_text="The same, service by service.")
    left = models.JSONField(default=dict, blank=True, help_text="What cc-ci had left there, in full: specs, images, networks.")
    contested = models.JSONField(default=dict, blank=True, help_text="What changed it without cc-ci, as it was found.")
    fence = models.PositiveBigIntegerField(default=0, help_text="Grows with each change of owner; a late worker is told by it.")
    after = models.JSONField(default=list, blank=True, help_text="Names of apps that come before it.")
    env = models.JSONField(default=dict, blank=True)
    secrets = models.JSONField(default=dict, blank=True, help_text="References (env:NAME, file:path), never values.")
    policy = models.JSONField(default=dict, blank=True)
    window = models.CharField(max_length=100, blank=True)
    health = models.JSONField(default=list, blank=True)
    snapshots = models.JSONField(default=dict, blank=True)

    discovered_at = models.DateTimeField(null=True, blank=True, help_text="When its releases were read last.")
    discovery_error = models.TextField(blank=True)
    unreadable = models.JSONField(default=list, blank=True, help_text="Tags and notes that cannot be used, each with the reason.")

    class Meta:
        ordering = ["position", "name"]
        constraints = [models.UniqueConstraint(fields=["server", "stack"], name="one_app_per_stack")]

    def __str__(self) -> str:
        return self.name

    def get_absolute_url(self) -> str:
        return f"{reverse('infra')}#{self.name}"

    @property
    def ours(self) -> bool:
        """Whether cc-ci may change anything about it."""
        return self.declared and self.owner == self.Owner.RECONCILED


class InfraRelease(models.Model):
    """A version of an app's recipe, from its tags. Held ones wait visibly, each with the reasons and what lifts them."""

    class State(models.TextChoices):
        CANDIDATE = "candidate", "candidate"
        HELD = "held", "held"
        QUARANTINED = "quarantined", "quarantined"

    app = models.ForeignKey(InfraApp, on_delete=models.CASCADE, related_name="releases")
    version = models.CharField(max_length=200)
    rank = models.PositiveIntegerField(default=0, help_text="Its place among the app's versions, lowest first.")
    commit = models.CharField(max_length=64)
    annotated = models.BooleanField(default=True)
    tagged_at = models.DateTimeField(null=True, blank=True, help_text="What the tag says.")
    published_at = models.DateTimeField(help_text="The earliest moment at which it can have been public, as far as is known.")
    notes = models.TextField(null=True, blank=True, help_text="Empty: none were found.")  # noqa: DJ001 - none is not ""
    gone = models.BooleanField(default=False, help_text="The tag is there no more.")

    state = models.CharField(max_length=12, choices=State.choices, default=State.CANDIDATE, db_index=True)
    reasons = models.JSONField(default=list, blank=True, help_text="Why it is not taken, as the gate said last.")
    evidence = models.JSONField(default=dict, blank=True, help_text="What is known from tests, and of a failed upgrade to it.")
    approved_by = models.CharField(max_length=255, blank=True)
    approved_at = models.DateTimeField(null=True, blank=True)
    lifted = models.JSONField(default=list, blank=True, help_text="The blockers that the approval lifts: those that were shown.")
    held_told_at = models.DateTimeField(null=True, blank=True, help_text="When people were told that it is held.")

    class Meta:
        ordering = ["app", "-rank"]
        constraints = [models.UniqueConstraint(fields=["app", "version"], name="one_row_per_release")]

    def __str__(self) -> str:
        return f"{self.app_id and self.app.name} {self.version}"


class Upgrade(models.Model):
    """One upgrade of one app. `infra.upgrades_states` alone changes its state; each step writes down what it will need."""

    app = models.ForeignKey(InfraApp, on_delete=models.CASCADE, related_name="upgrades")
    from_version = models.CharField(max_length=200, blank=True)
    to_version = models.CharField(max_length=200)
    state = models.CharField(max_length=16, choices=UpgradeState.choices, default=UpgradeState.PLANNED, db_index=True)
    trigger = models.CharField(max_length=300, help_text="Who or what asked for it: nightly, or a person and how.")
    reason = models.TextField(blank=True, help_text="One sentence: what failed or why it waits, and what to do.")
    fence = models.PositiveBigIntegerField(default=0, help_text="Of the worker that holds it; a late one moves nothing.")

    specs = models.JSONField(default=dict, blank=True, help_text="All service specs before anything was changed.")
    digests = models.JSONField(default=dict, blank=True, help_text="The images that ran, by service.")
    baseline = models.JSONField(default=dict, blank=True, help_text="What the probes saw before.")
    asked = models.JSONField(default=dict, blank=True, help_text="What was asked for beside the version.")
    facts = models.JSONField(default=dict, blank=True, help_text="What was found on the way and will be needed later.")
    step = models.JSONField(default=dict, blank=True, help_text="What the step under way has announced or done.")
    ran_new = models.BooleanField(default=False, help_text="The new version may have written to the data.")
    snapshot = models.ForeignKey("Snapshot", null=True, blank=True, on_delete=models.SET_NULL, related_name="used_by")

    created_at = models.DateTimeField(auto_now_add=True)
    started_at = models.DateTimeField(null=True, blank=True)
    state_at = models.DateTimeField(null=True, blank=True, help_text="When it came into its state.")
    finished_at = models.DateTimeField(null=True, blank=True)

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
        """From which to which; one alone, where the app was brought up or kept its version."""
        moved = self.from_version and self.from_version != self.to_version
        return f"{self.from_version} → {self.to_version}" if moved else self.to_version

    @property
    def final(self) -> bool:
        return self.state in FINAL


class UpgradeEvent(models.Model):
    """The trail of an upgrade: moves of its state, written with the move, and what its steps told."""

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
    manifest = models.CharField(max_length=64, blank=True, help_text="SHA-256 of the list of what is in it.")
    taken_at = models.DateTimeField()
    kept_because = models.CharField(max_length=300, blank=True, help_text="Why it is not dropped by the policy.")

    class Meta:
        ordering = ["-taken_at"]

    def __str__(self) -> str:
        return f"{self.app_id and self.app.name} {self.version} of {self.taken_at:%Y-%m-%d %H:%M}"


class AppSecret(models.Model):
    """A secret that cc-ci made for an app: the Swarm gives none back, so this is the only copy beside it."""

    app = models.ForeignKey(InfraApp, on_delete=models.CASCADE, related_name="made_secrets")
    name = models.CharField(max_length=200, help_text="Its name in the swarm.")
    value = EncryptedTextField()
    made_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["app", "name"]
        constraints = [models.UniqueConstraint(fields=["app", "name"], name="one_row_per_app_secret")]

    def __str__(self) -> str:
        return self.name


class AlertSent(models.Model):
    """One thing that people were told, so that they are told once."""

    key = models.CharField(max_length=300, unique=True)
    kind = models.CharField(max_length=30)
    app = models.ForeignKey(InfraApp, null=True, blank=True, on_delete=models.SET_NULL, related_name="alerts")
    text = models.TextField()
    at = models.DateTimeField()
    delivered = models.BooleanField(default=False, help_text="Every address that was configured took it.")
    problem = models.TextField(blank=True)

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return self.key
