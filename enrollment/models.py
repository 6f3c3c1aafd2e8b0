"""Forges, the repositories and pull requests that are watched there, and the comments that speak to cc-ci."""

from __future__ import annotations

from django.db import models

from controlplane.secrets import EncryptedTextField, reveal


class Webhooks(models.TextChoices):
    """Whether cc-ci registers hooks by itself: for a forge, and for a repository, which counts before its forge."""

    INHERIT = "", "as set"
    ON = "on", "on"
    OFF = "off", "off"


class Switch(models.TextChoices):
    """A repository's own word on a policy, which counts before its forge's."""

    INHERIT = "", "as its forge has it"
    ON = "on", "yes"
    OFF = "off", "no"


class Forge(models.Model):
    """A Gitea or Forgejo server, the token for it, and how the last looks at it went."""

    class OwnerFilter(models.TextChoices):
        UNKNOWN = "unknown", "not known yet"
        WORKS = "works", "works"
        IGNORED = "ignored", "ignored by the server"
        REFUSED = "refused", "search refused"

    name = models.CharField(max_length=100, unique=True)
    kind = models.CharField(max_length=20, default="gitea", editable=False, help_text="One of enrollment.clients.KINDS.")
    # Not a URLField: Django's refuses hosts without a dot, which is what a forge is called beside us in a container network.
    url = models.CharField(max_length=200, unique=True, help_text="Such as https://git.coopcloud.tech, without /api.")
    token = EncryptedTextField(blank=True, default="")
    enabled = models.BooleanField(default=True)
    watched_owners = models.JSONField(
        default=list, blank=True, help_text="Owners whose repositories with the topic are enrolled, as a list of names."
    )
    allow = models.JSONField(default=list, blank=True, help_text="Ids of users who may always ask, as a list of numbers.")
    block = models.JSONField(
        default=list, blank=True, help_text="Ids of users who get nothing, whatever else says yes, as a list of numbers."
    )
    members_may_ask = models.BooleanField(default=True, help_text="Whether every member of a repository's organisation may ask.")
    team = models.CharField(
        max_length=255, blank=True, help_text="Name of a team of the organisation whose members may ask. cc-ci has to be in it."
    )
    collaborators_may_ask = models.BooleanField(default=True, help_text="Whether a repository's collaborators may ask there.")
    strangers_await_approval = models.BooleanField(
        default=False,
        help_text="Whether the author of a pull request who may not ask gets a run that waits for a maintainer's approval.",
    )
    webhooks = models.CharField(
        max_length=3,
        choices=Webhooks.choices,
        default=Webhooks.INHERIT,
        blank=True,
        help_text="Whether hooks are registered here; as set: as WEBHOOK_AUTOREGISTER says.",
    )

    bot_id = models.BigIntegerField(null=True, blank=True, editable=False)
    bot_login = models.CharField(max_length=255, blank=True, editable=False)
    version = models.CharField(max_length=100, blank=True, editable=False)
    #: What the server can do, as it was found: {name: {"value": …, "evidence": …}}; see enrollment.abilities.
    abilities = models.JSONField(default=dict, blank=True, editable=False)
    abilities_version = models.CharField(max_length=100, blank=True, editable=False)
    abilities_at = models.DateTimeField(null=True, blank=True, editable=False, help_text="Empty: to be asked again.")
    search = models.CharField(max_length=10, choices=OwnerFilter.choices, default=OwnerFilter.UNKNOWN, editable=False)
    search_probed_at = models.DateTimeField(null=True, blank=True, editable=False)
    cursor = models.DateTimeField(null=True, blank=True, editable=False, help_text="Server's time up to which all is seen.")

    #: Owners whose hooks tell of everything: {owner: [the forge's time up to which all is seen, our time of that look]}.
    rarely = models.JSONField(default=dict, blank=True, editable=False)

    last_ok_at = models.DateTimeField(null=True, blank=True, editable=False)
    last_error = models.TextField(blank=True, editable=False)
    last_error_at = models.DateTimeField(null=True, blank=True, editable=False)
    failures = models.PositiveIntegerField(default=0, editable=False, help_text="Failed looks in a row.")
    backoff_until = models.DateTimeField(null=True, blank=True, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name

    def reveal_token(self) -> str:
        return reveal(self.token)


class RepositoryQuerySet(models.QuerySet["Repository"]):
    def watched(self) -> RepositoryQuerySet:
        return self.filter(active=True, forge__enabled=True)


class Repository(models.Model):
    """A recipe's repository. Known by the forge's id: names change, and freed names are taken by others."""

    class Source(models.TextChoices):
        HAND = "hand", "by hand"
        TOPIC = "topic", "by topic"

    forge = models.ForeignKey(Forge, on_delete=models.CASCADE, related_name="repositories")
    forge_repo_id = models.BigIntegerField()
    owner = models.CharField(max_length=255)
    owner_id = models.BigIntegerField(null=True, blank=True)
    name = models.CharField(max_length=255)
    private = models.BooleanField(default=True, help_text="As the forge says. Runs of private ones are shown after login only.")
    default_branch = models.CharField(max_length=255, default="main")
    clone_url = models.CharField(max_length=500, blank=True)
    html_url = models.CharField(max_length=500, blank=True)

    active = models.BooleanField(default=True, help_text="Whether it is watched.")
    source = models.CharField(max_length=10, choices=Source.choices, default=Source.HAND)
    enrolled_at = models.DateTimeField(help_text="Server's time; older comments never start anything.")
    allow = models.JSONField(default=list, blank=True, help_text="Ids of users who may ask here, as a list of numbers.")
    block = models.JSONField(default=list, blank=True, help_text="Ids of users who get nothing here, as a list of numbers.")
    members_may_ask = models.CharField(max_length=3, choices=Switch.choices, default=Switch.INHERIT, blank=True)
    team = models.CharField(
        max_length=255, blank=True, help_text="Name of a team whose members may ask here. Empty: the forge's."
    )
    collaborators_may_ask = models.CharField(max_length=3, choices=Switch.choices, default=Switch.INHERIT, blank=True)
    strangers_await_approval = models.CharField(max_length=3, choices=Switch.choices, default=Switch.INHERIT, blank=True)
    allowances = models.JSONField(
        default=list,
        blank=True,
        help_text="What this recipe's compose files may ask for though a recipe may not: lines as a refusal prints them. "
        "They count for trusted commits only.",
    )
    allowances_for_strangers = models.BooleanField(
        default=False,
        help_text="Whether strangers' commits get what is allowed, too. With the Docker socket allowed it makes anybody root on "
        "this server who can open a pull request and have it run.",
    )
    webhooks = models.CharField(
        max_length=3,
        choices=Webhooks.choices,
        default=Webhooks.INHERIT,
        blank=True,
        help_text="Whether a hook is registered for it; as set: as its forge has it.",
    )

    net_cursor = models.DateTimeField(null=True, blank=True, editable=False, help_text="Server's time of the last full listing.")
    net_due_at = models.DateTimeField(null=True, blank=True, editable=False, db_index=True)
    status_refused_at = models.DateTimeField(null=True, blank=True, editable=False, help_text="When a commit status was refused.")
    last_error = models.TextField(blank=True, editable=False)
    last_error_at = models.DateTimeField(null=True, blank=True, editable=False)

    objects = RepositoryQuerySet.as_manager()

    class Meta:
        ordering = ["owner", "name"]
        verbose_name_plural = "repositories"
        constraints = [models.UniqueConstraint(fields=["forge", "forge_repo_id"], name="one_row_per_repository")]

    def __str__(self) -> str:
        return self.full_name

    @property
    def full_name(self) -> str:
        return f"{self.owner}/{self.name}"


class PullRequest(models.Model):
    """A pull request as last seen. Its head moves; a run pins the commit for itself."""

    repository = models.ForeignKey(Repository, on_delete=models.CASCADE, related_name="pull_requests")
    number = models.PositiveIntegerField()
    title = models.CharField(max_length=500, blank=True)
    author_id = models.BigIntegerField(null=True, blank=True)
    author_login = models.CharField(max_length=255, blank=True)
    state = models.CharField(max_length=20, blank=True)
    html_url = models.CharField(max_length=500, blank=True)
    head_sha = models.CharField(max_length=64, blank=True)
    base_ref = models.CharField(max_length=255, blank=True)
    seen_updated_at = models.DateTimeField(null=True, blank=True, help_text="The forge's time of its last change.")
    comments_wanted_since = models.DateTimeField(
        null=True, blank=True, db_index=True, help_text="Comments from this time on are still to be read."
    )
    comments_next_try_at = models.DateTimeField(null=True, blank=True)
    comments_failures = models.PositiveIntegerField(default=0)

    class Meta:
        ordering = ["repository", "-number"]
        constraints = [models.UniqueConstraint(fields=["repository", "number"], name="one_row_per_pull_request")]

    def __str__(self) -> str:
        return f"{self.repository.full_name}#{self.number}"


class Comment(models.Model):
    """A comment that may hold a command. Unique by (forge, comment id): this is where exactly-once begins."""

    class Outcome(models.TextChoices):
        NEW = "", "not handled yet"
        RUN = "run", "a run"
        JOINED = "joined", "joined a run of the same commit"
        ACTED = "acted", "an action on a run"
        REPLY = "reply", "a reply"
        IGNORED = "ignored", "nothing"

    class Via(models.TextChoices):
        POLL = "poll", "polling"
        NET = "net", "full listing"
        DELIVERY = "delivery", "webhook"

    forge = models.ForeignKey(Forge, on_delete=models.CASCADE, related_name="comments")
    forge_comment_id = models.BigIntegerField()
    pull_request = models.ForeignKey(PullRequest, on_delete=models.CASCADE, related_name="comments")
    author_id = models.BigIntegerField()
    author_login = models.CharField(max_length=255)
    body = models.TextField()
    html_url = models.CharField(max_length=500, blank=True)
    created_at = models.DateTimeField(help_text="The forge's time.")
    updated_at = models.DateTimeField(help_text="The forge's time.")
    via = models.CharField(max_length=10, choices=Via.choices, default=Via.POLL)
    seen_at = models.DateTimeField(auto_now_add=True)

    outcome = models.CharField(max_length=10, choices=Outcome.choices, default=Outcome.NEW, blank=True)
    reason = models.TextField(blank=True, help_text="What was decided, and why.")
    facts = models.JSONField(default=dict, blank=True, help_text="What the decision about trust stood on.")
    handled_at = models.DateTimeField(null=True, blank=True)
    tries = models.PositiveIntegerField(default=0)
    next_try_at = models.DateTimeField(null=True, blank=True)
    last_error = models.TextField(blank=True)

    class Meta:
        ordering = ["-created_at", "-forge_comment_id"]
        constraints = [models.UniqueConstraint(fields=["forge", "forge_comment_id"], name="one_row_per_comment")]
        indexes = [models.Index(fields=["outcome", "next_try_at"])]

    def __str__(self) -> str:
        return f"comment {self.forge_comment_id} by {self.author_login}"

    @property
    def edited(self) -> bool:
        return self.updated_at != self.created_at


# The rest of the models, in a file of their own.
from enrollment.hook_models import Delivery, WebhookConfig  # noqa: E402
from enrollment.policy_models import RequestCount, Right, Traffic  # noqa: E402

__all__ = [
    "Comment",
    "Delivery",
    "Forge",
    "PullRequest",
    "Repository",
    "RepositoryQuerySet",
    "RequestCount",
    "Right",
    "Switch",
    "Traffic",
    "WebhookConfig",
    "Webhooks",
]
