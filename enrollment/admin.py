"""Forges, repositories, pull requests and comments in the admin."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone
from unfold.admin import ModelAdmin
from unfold.decorators import action, display
from unfold.widgets import UnfoldAdminPasswordWidget, UnfoldAdminTextareaWidget, UnfoldAdminTextInputWidget

from controlplane.adminsite import ReadOnlyAdmin
from controlplane.secrets import SecretUnreadable
from enrollment import polling, rights
from enrollment.budget import forgive
from enrollment.clients import client_for
from enrollment.clocks import server_now
from enrollment.enrolling import bare, enroll, refresh_identity
from enrollment.forges.base import ForgeError
from enrollment.hook_admin import look_soon, webhook_of
from enrollment.models import Comment, Forge, PullRequest, Repository
from enrollment.naming import NotNamed, split_name
from enrollment.policy_admin import (
    POLICIES,
    abilities_table,
    rights_table,
    see_now,
    see_rights_now,
    traffic_table,
    traffic_words,
)


def short_list() -> UnfoldAdminTextareaWidget:
    """A field for a list of some names or numbers: two lines, not a page."""
    return UnfoldAdminTextareaWidget(attrs={"rows": 2})


class ForgeForm(forms.ModelForm):  # type: ignore[type-arg]
    """The token is written, never shown."""

    token = forms.CharField(
        required=False,
        strip=True,
        widget=UnfoldAdminPasswordWidget(render_value=False, attrs={"autocomplete": "new-password"}),
        help_text="Write-only: leave empty to keep the one there is. It needs to read repositories, issues and the organisation, "
        "and to write comments.",
    )

    class Meta:
        model = Forge
        fields = ("name", "url", "token", "enabled", "watched_owners", *POLICIES, "webhooks")
        widgets = {"watched_owners": short_list(), "allow": short_list(), "block": short_list()}

    def clean_url(self) -> str:
        try:
            return bare(self.cleaned_data["url"])
        except ValueError as error:
            raise forms.ValidationError(str(error)) from error

    def clean_token(self) -> Any:
        typed = self.cleaned_data["token"]
        if not typed and "token" in self.changed_data:
            self.changed_data.remove("token")  # an empty field differs from the sealed one, and changes nothing
        return typed or self.instance.token

    def clean_watched_owners(self) -> list[str]:
        return _list_of(self.cleaned_data["watched_owners"], str, '["recipes"]')

    def clean_allow(self) -> list[int]:
        return _list_of(self.cleaned_data["allow"], int, "[17, 42]")

    def clean_block(self) -> list[int]:
        return _list_of(self.cleaned_data["block"], int, "[17, 42]")

    def clean(self) -> dict[str, Any] | None:
        """Ask the forge who we are there, so that a wrong address or token is told now."""
        data = super().clean()
        if not self.errors and data and ({"url", "token"} & set(self.changed_data)):
            trial = Forge(url=data["url"], token=data["token"])
            try:
                refresh_identity(trial, client_for(trial))
            except (ForgeError, SecretUnreadable) as error:
                advice = f" {error.advice}" if isinstance(error, ForgeError) else ""
                raise forms.ValidationError(f"{error}.{advice}") from error
            self.instance.version, self.instance.bot_id, self.instance.bot_login = trial.version, trial.bot_id, trial.bot_login
            self.instance.failures, self.instance.backoff_until, self.instance.last_error = 0, None, ""
            self.instance.search, self.instance.search_probed_at = Forge.OwnerFilter.UNKNOWN, None
        return data


def _list_of(value: Any, kind: type, example: str) -> Any:
    if not isinstance(value or [], list) or not all(isinstance(item, kind) for item in value or []):
        raise forms.ValidationError(f"A list is wanted here, such as {example}.")
    return value or []


@admin.register(Forge)
class ForgeAdmin(ModelAdmin):
    form = ForgeForm
    list_display = ("name", "url", "health", "bot_login", "version", "search", "watched", "last_ok_at")
    list_filter = ("enabled", "search")
    search_fields = ("name", "url")
    readonly_fields = (
        "health",
        "bot_login",
        "bot_id",
        "version",
        "search",
        "search_probed_at",
        "cursor",
        "last_ok_at",
        "last_error",
        "last_error_at",
        "failures",
        "backoff_until",
    )
    tables = ("asking", "rights_seen", "abilities_found", "requests_made")
    fieldsets = (
        (None, {"fields": ("name", "url", "token", "enabled")}),
        ("Who is watched, who may ask", {"fields": ("watched_owners", *POLICIES)}),
        ("Webhooks", {"fields": ("webhooks",)}),
        ("How it stands", {"fields": readonly_fields}),
        ("Rights, abilities, requests", {"fields": tables}),
    )
    actions = ["look_now", see_now]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return (*self.readonly_fields, *self.tables)

    @display(description="asking")
    def asking(self, forge: Forge) -> str:
        return traffic_words(forge)

    @display(description="rights")
    def rights_seen(self, forge: Forge) -> str:
        return rights_table(forge)

    @display(description="abilities")
    def abilities_found(self, forge: Forge) -> str:
        return abilities_table(forge)

    @display(description="requests")
    def requests_made(self, forge: Forge) -> str:
        return traffic_table(forge)

    def save_model(self, request: HttpRequest, obj: Forge, form: Any, change: bool) -> None:
        super().save_model(request, obj, form, change)
        if "webhooks" in form.changed_data:
            look_soon(obj)
        if {"url", "token"} & set(form.changed_data):
            rights.forget_tried(obj)

    @display(description="health", label={"well": "success", "failing": "danger", "not looked at yet": "info", "off": "warning"})
    def health(self, forge: Forge) -> str:
        if not forge.enabled:
            return "off"
        if forge.failures or forge.last_error:
            return "failing"
        return "well" if forge.last_ok_at else "not looked at yet"

    @display(description="repositories")
    def watched(self, forge: Forge) -> int:
        return forge.repositories.filter(active=True).count()

    @action(description="Look at them now", permissions=["change"])
    def look_now(self, request: HttpRequest, queryset: QuerySet[Forge]) -> None:
        for forge in queryset:
            forge.backoff_until = None
            forge.save(update_fields=["backoff_until"])
            forgive(forge)
            look = polling.look(forge)
            self.message_user(request, look.words(), messages.WARNING if look.problems else messages.SUCCESS)


class EnrollForm(forms.ModelForm):  # type: ignore[type-arg]
    """Enrolling by hand: a forge and a name; the rest is asked."""

    full_name = forms.CharField(label="Repository", help_text="OWNER/REPO", widget=UnfoldAdminTextInputWidget())

    class Meta:
        model = Repository
        fields = ("forge", "full_name", "allow")
        widgets = {"allow": short_list()}

    def clean_allow(self) -> list[int]:
        return _list_of(self.cleaned_data["allow"], int, "[17, 42]")

    def clean(self) -> dict[str, Any] | None:
        data = super().clean() or {}
        if self.errors:
            return data
        try:
            owner, name = split_name(data["full_name"])
            self.client = client_for(data["forge"])
            self.remote = self.client.repository(owner, name)
        except (NotNamed, SecretUnreadable) as error:
            raise forms.ValidationError(str(error)) from error
        except ForgeError as error:
            raise forms.ValidationError(f"{error}. {error.advice}") from error
        if Repository.objects.filter(forge=data["forge"], forge_repo_id=self.remote.id, active=True).exists():
            raise forms.ValidationError(f"{self.remote.full_name} is watched already.")
        return data


#: What a person may change of a repository.
EDITABLE = ("active", *POLICIES, "allowances", "allowances_for_strangers", "webhooks")


class RepositoryForm(forms.ModelForm):  # type: ignore[type-arg]
    allowances = forms.CharField(
        required=False,
        strip=True,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 3}),
        help_text="What this recipe may ask of the machine though a recipe may not, one a line, as the refusal of a run "
        "prints it: services.app: cap_add NET_ADMIN. It counts for trusted commits alone: those that only people who may ask "
        "here can have pushed. What its containers may reach though it is no public address: network: 10.1.2.3:5432 "
        "(then, as root: cc-ci firewall --apply).",
    )

    class Meta:
        model = Repository
        fields = EDITABLE
        widgets = {"allow": short_list(), "block": short_list()}

    def clean_block(self) -> list[int]:
        return _list_of(self.cleaned_data["block"], int, "[17, 42]")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.initial["allowances"] = "\n".join(self.instance.allowances)

    def clean_allowances(self) -> list[str]:
        return [line.strip() for line in self.cleaned_data["allowances"].splitlines() if line.strip()]

    def clean_allow(self) -> list[int]:
        return _list_of(self.cleaned_data["allow"], int, "[17, 42]")


@admin.register(Repository)
class RepositoryAdmin(ModelAdmin):
    list_display = ("full_name", "forge", "active", "source", "private", "enrolled_at", "trouble")
    list_filter = ("active", "forge", "source", "private")
    search_fields = ("owner", "name")
    list_select_related = ("forge",)
    actions = [see_rights_now]

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        return super().get_form(request, obj, change, form=RepositoryForm if change else EnrollForm, **kwargs)

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        if obj is None:
            return ("forge", "full_name", "allow")
        return (*EDITABLE, *self.get_readonly_fields(request, obj))

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        if obj is None:
            return ()
        names = [field.name for field in Repository._meta.fields if field.name not in ("id", *EDITABLE)]
        return ("webhook", "rights_seen", *names)

    def save_model(self, request: HttpRequest, obj: Repository, form: Any, change: bool) -> None:
        if not change:
            row, _ = enroll(form.cleaned_data["forge"], form.remote, Repository.Source.HAND, form.client)
            row.allow = form.cleaned_data["allow"] or []
            row.save(update_fields=["allow"])
            obj.pk, obj.owner, obj.name = row.pk, row.owner, row.name
            return
        if "active" in form.changed_data:
            obj.source = Repository.Source.HAND
            if obj.active:
                # By the forge's clock: what was said while it was not watched starts nothing.
                now = timezone.now()
                try:
                    client = client_for(obj.forge)
                    client.version()
                    now = server_now(client)
                except (ForgeError, SecretUnreadable) as error:
                    self.message_user(request, f"{error}; the enrolment counts from this machine's clock", messages.WARNING)
                obj.enrolled_at = obj.net_cursor = now
        super().save_model(request, obj, form, change)
        if {"active", "webhooks"} & set(form.changed_data):
            look_soon(obj.forge, obj)

    @display(description="rights")
    def rights_seen(self, row: Repository) -> str:
        return rights_table(row.forge, row)

    @display(description="webhook")
    def webhook(self, row: Repository) -> str:
        return webhook_of(row)

    @display(description="trouble")
    def trouble(self, row: Repository) -> str:
        return row.last_error[:100]


@admin.register(PullRequest)
class PullRequestAdmin(ReadOnlyAdmin):
    list_display = ("__str__", "title", "author_login", "state", "seen_updated_at", "unread")
    list_filter = ("state", "repository__forge")
    search_fields = ("title", "author_login", "repository__owner", "repository__name", "number")
    list_select_related = ("repository",)

    @display(description="comments to read", boolean=True)
    def unread(self, pull: PullRequest) -> bool:
        return pull.comments_wanted_since is not None


@admin.register(Comment)
class CommentAdmin(ReadOnlyAdmin):
    list_display = ("created_at", "pull_request", "author_login", "line", "result", "short_reason", "via")
    list_filter = ("outcome", "via", "forge", ("created_at", admin.DateFieldListFilter))
    search_fields = ("body", "author_login", "forge_comment_id", "reason")
    list_select_related = ("pull_request__repository",)
    date_hierarchy = "created_at"
    actions = ["handle_again"]

    @display(description="comment")
    def line(self, comment: Comment) -> str:
        return " ".join(comment.body.split())[:60]

    @display(
        description="outcome",
        label={"a run": "success", "a reply": "info", "nothing": "warning", "not handled yet": "danger"},
    )
    def result(self, comment: Comment) -> str:
        return Comment.Outcome(comment.outcome).label

    @display(description="reason")
    def short_reason(self, comment: Comment) -> str:
        return (comment.reason or comment.last_error)[:120]

    @action(description="Try those not handled yet again now", permissions=["act"])
    def handle_again(self, request: HttpRequest, queryset: QuerySet[Comment]) -> None:
        waiting = queryset.filter(outcome="").update(next_try_at=timezone.now())
        self.message_user(request, f"{waiting} will be tried within some seconds.")
