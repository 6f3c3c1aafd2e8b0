"""Forges, the watched repositories and pull requests there, and the comments addressed to cc-ci."""

from __future__ import annotations

from django.db import models

from controlplane.secrets import EncryptedTextField, reveal


class Webhooks(models.TextChoices):
    """Whether cc-ci registers hooks automatically: for a forge, and for a repository, whose value takes precedence."""

    INHERIT = "", "default"
    ON = "on", "on"
    OFF = "off", "off"


class Switch(models.TextChoices):
    """A repository's value of a policy, which takes precedence over its forge's."""

    INHERIT = "", "inherit from the forge"
    ON = "on", "yes"
    OFF = "off", "no"


class Forge(models.Model):
    """A Gitea or Forgejo server, the token for it, and the state of polling."""

    class OwnerFilter(models.TextChoices):
        UNKNOWN = "unknown", "not known yet"
        WORKS = "works", "works"
        IGNORED = "ignored", "ignored by the server"
        REFUSED = "refused", "search refused"

    name = models.CharField(max_length=100, unique=True)
    kind = models.CharField(max_length=20, default="gitea", editable=False, help_text="Kind of forge, such as gitea.")
    # Not a URLField: Django's rejects hosts without a dot, as forges in the same container network have.
    url = models.CharField(max_length=200, unique=True, help_text="Such as https://git.coopcloud.tech, without /api.")
    token = EncryptedTextField(blank=True, default="")
    oauth_client_id = models.CharField(
        "client ID",
        max_length=255,
        blank=True,
        help_text="Of the OAuth2 application there. Empty: nobody logs in with this forge.",
    )
    oauth_client_secret = EncryptedTextField("client secret", blank=True, default="")
    enabled = models.BooleanField(default=True)
    watched_owners = models.JSONField(
        default=list, blank=True, help_text="Owners whose repositories with the topic are enrolled."
    )
    allow = models.JSONField(default=list, blank=True, help_text="Users who may always ask.")
    block = models.JSONField(default=list, blank=True, help_text="Users who get nothing, whatever else applies.")
    names = models.JSONField(default=dict, blank=True, help_text="Names of the users on lists, by id, as they were when entered.")
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
        help_text="Whether hooks are registered here; default: as WEBHOOK_AUTOREGISTER says.",
    )

    tests_repository = models.ForeignKey(
        "Repository",
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        related_name="tests_of",
        help_text="A repository of this forge whose tests are added to the recipes' own, from "
        "`tests/<recipe>/`. Whoever may push there decides how they are tested.",
    )

    bot_id = models.BigIntegerField(null=True, blank=True, editable=False)
    bot_login = models.CharField(max_length=255, blank=True, editable=False)
    version = models.CharField(max_length=100, blank=True, editable=False)
    #: What the server can do, as it was found: {name: {"value": …, "evidence": …}}; see enrollment.forge_access.capabilities.
    abilities = models.JSONField(default=dict, blank=True, editable=False)
    abilities_version = models.CharField(max_length=100, blank=True, editable=False)
    abilities_at = models.DateTimeField(null=True, blank=True, editable=False, help_text="Empty: will be asked again.")
    search = models.CharField(max_length=10, choices=OwnerFilter.choices, default=OwnerFilter.UNKNOWN, editable=False)
    search_probed_at = models.DateTimeField(null=True, blank=True, editable=False)
    cursor = models.DateTimeField(
        null=True, blank=True, editable=False, help_text="The forge's time up to which everything was read."
    )

    #: Owners whose hooks cover everything: {owner: [the forge's time up to which all was read, our time of that poll]}.
    rarely = models.JSONField(default=dict, blank=True, editable=False)

    last_ok_at = models.DateTimeField(null=True, blank=True, editable=False)
    last_error = models.TextField(blank=True, editable=False)
    last_error_at = models.DateTimeField(null=True, blank=True, editable=False)
    failures = models.PositiveIntegerField(default=0, editable=False, help_text="Failed polls in a row.")
    backoff_until = models.DateTimeField(null=True, blank=True, editable=False)
    #: Changed by `enrollment.removal` alone, like that of a repository.
    removal_at = models.DateTimeField(null=True, blank=True, editable=False, help_text="Since when it is being deleted.")
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
    """A recipe's repository. Identified by the forge's id: names change, and freed names are taken by others."""

    class Source(models.TextChoices):
        HAND = "hand", "manually"
        TOPIC = "topic", "by topic"

    forge = models.ForeignKey(Forge, on_delete=models.CASCADE, related_name="repositories")
    forge_repo_id = models.BigIntegerField()
    owner = models.CharField(max_length=255)
    owner_id = models.BigIntegerField(null=True, blank=True)
    name = models.CharField(max_length=255)
    private = models.BooleanField(
        default=True, help_text="As reported by the forge. Runs of private repositories are shown only after login."
    )
    default_branch = models.CharField(max_length=255, default="main")
    clone_url = models.CharField(max_length=500, blank=True)
    html_url = models.CharField(max_length=500, blank=True)

    active = models.BooleanField(default=True, help_text="Whether it is watched.")
    source = models.CharField(max_length=10, choices=Source.choices, default=Source.HAND)
    enrolled_at = models.DateTimeField(help_text="The forge's time; older comments never start anything.")
    allow = models.JSONField(default=list, blank=True, help_text="Users who may ask here.")
    block = models.JSONField(default=list, blank=True, help_text="Users who get nothing here.")
    members_may_ask = models.CharField(max_length=3, choices=Switch.choices, default=Switch.INHERIT, blank=True)
    team = models.CharField(
        max_length=255, blank=True, help_text="Name of a team whose members may ask here. Empty: the forge's."
    )
    collaborators_may_ask = models.CharField(max_length=3, choices=Switch.choices, default=Switch.INHERIT, blank=True)
    strangers_await_approval = models.CharField(max_length=3, choices=Switch.choices, default=Switch.INHERIT, blank=True)
    allowances = models.JSONField(
        default=list,
        blank=True,
        help_text="What this recipe's compose files may use beyond what any recipe may: lines as a refused run prints "
        "them. Only for trusted commits.",
    )
    allowances_for_strangers = models.BooleanField(
        default=False,
        help_text="Whether strangers' commits get the allowances, too. With the Docker socket allowed, anybody who can "
        "open a pull request and have it run is root on this server.",
    )
    slots = models.PositiveSmallIntegerField(
        null=True,
        blank=True,
        help_text="Concurrent runs of this recipe anywhere. 0: no limit. Empty: as CC_CI_REPOSITORY_SLOTS says.",
    )
    webhooks = models.CharField(
        max_length=3,
        choices=Webhooks.choices,
        default=Webhooks.INHERIT,
        blank=True,
        help_text="Whether a hook is registered for it; default: as its forge's setting says.",
    )

    net_cursor = models.DateTimeField(
        null=True, blank=True, editable=False, help_text="The forge's time of the last full listing."
    )
    net_due_at = models.DateTimeField(null=True, blank=True, editable=False, db_index=True)
    status_refused_at = models.DateTimeField(null=True, blank=True, editable=False, help_text="When a commit status was refused.")
    last_error = models.TextField(blank=True, editable=False)
    last_error_at = models.DateTimeField(null=True, blank=True, editable=False)
    removal_at = models.DateTimeField(null=True, blank=True, editable=False, help_text="Since when it is being deleted.")

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
    """A pull request as last seen. Its head moves; each run pins its own commit."""

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
        null=True, blank=True, db_index=True, help_text="Comments since this time are still to be read."
    )
    comments_next_try_at = models.DateTimeField(null=True, blank=True)
    comments_failures = models.PositiveIntegerField(default=0)

    class Meta:
        ordering = ["repository", "-number"]
        constraints = [models.UniqueConstraint(fields=["repository", "number"], name="one_row_per_pull_request")]

    def __str__(self) -> str:
        return f"{self.repository.full_name}#{self.number}"


class Comment(models.Model):
    """A comment that may contain a command. Unique by (forge, comment id): this is where exactly-once begins."""

    class Outcome(models.TextChoices):
        NEW = "", "not handled yet"
        RUN = "run", "a run"
        JOINED = "joined", "joined a run of the same commit"
        ACTED = "acted", "an action on a run"
        REPLY = "reply", "a reply"
        IGNORED = "ignored", "nothing"

    class Via(models.TextChoices):
        POLL = "poll", "polling"
        RESYNC = "net", "full resync"
        DELIVERY = "delivery", "webhook"
        REVIEW = "review", "polling, as a review"

    forge = models.ForeignKey(Forge, on_delete=models.CASCADE, related_name="comments")
    forge_comment_id = models.BigIntegerField()
    pull_request = models.ForeignKey(PullRequest, on_delete=models.CASCADE, related_name="comments")
    author_id = models.BigIntegerField()
    author_login = models.CharField(max_length=255)
    body = models.TextField()
    html_url = models.CharField(max_length=500, blank=True)
    #: Of a review, when it was begun: a commit pushed later may not have been reviewed.
    created_at = models.DateTimeField(help_text="The forge's time.")
    updated_at = models.DateTimeField(help_text="The forge's time.")
    via = models.CharField(max_length=10, choices=Via.choices, default=Via.POLL)
    seen_at = models.DateTimeField(auto_now_add=True)

    outcome = models.CharField(max_length=10, choices=Outcome.choices, default=Outcome.NEW, blank=True)
    reason = models.TextField(blank=True, help_text="What was decided, and why.")
    facts = models.JSONField(default=dict, blank=True, help_text="What the decision about trust was based on.")
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
        """Whether somebody else may have written the text. A review's text is written once, when it is submitted."""
        return self.via != self.Via.REVIEW and self.updated_at != self.created_at
