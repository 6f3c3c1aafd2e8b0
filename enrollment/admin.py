"""Forges, repositories, pull requests and comments in the admin."""

from __future__ import annotations

import re
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import Count, Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.utils.html import format_html
from unfold.admin import ModelAdmin
from unfold.decorators import display
from unfold.widgets import UnfoldAdminPasswordWidget, UnfoldAdminTextareaWidget, UnfoldAdminTextInputWidget

from controlplane.adminsite import BigAdmin, NotDone, ReadOnlyAdmin, ReadOnlyInline, choices, row_action, values
from controlplane.secrets import SecretUnreadable
from enrollment import removal
from enrollment.forge_access import permissions
from enrollment.forge_access.clients import client_for, kind_of
from enrollment.forge_access.clock_skew import server_now
from enrollment.forge_access.rate_limit import forgive
from enrollment.forge_login.views import redirect_url
from enrollment.forges.base import ForgeClient, ForgeError, explain
from enrollment.lookup import NotNamed, like, split_name
from enrollment.models import Comment, Forge, PullRequest, Repository
from enrollment.permission_admin import (
    POLICIES,
    capabilities_table,
    permissions_table,
    refresh_now,
    refresh_permissions_now,
    traffic_message,
    traffic_table,
)
from enrollment.polling import poller
from enrollment.repositories import bare, enroll, refresh_identity, unenroll
from enrollment.webhooks.admin import reconcile_soon, webhook_of


class CommentInline(ReadOnlyInline):
    """What was said on a pull request."""

    model = Comment
    fields = ("created_at", "author_login", "body", "outcome", "reason")
    ordering = ("-created_at",)


class Lines(forms.Field):
    """A list of names, one per line."""

    def __init__(self, help_text: str) -> None:
        super().__init__(
            required=False, widget=UnfoldAdminTextareaWidget(attrs={"rows": 2}), help_text=f"{help_text} One per line."
        )

    def prepare_value(self, value: Any) -> Any:
        return "\n".join(map(str, value)) if isinstance(value, list) else value

    def to_python(self, value: Any) -> list[str]:
        return [line for line in map(str.strip, (value or "").replace("\0", "").splitlines()) if line]

    def has_changed(self, initial: Any, data: Any) -> bool:
        return [str(one) for one in initial or []] != self.to_python(data)


class PeopleForm(forms.ModelForm):  # type: ignore[type-arg]
    """A form with lists of people: kept as ids, since names can be taken over; shown with names, and taken by name."""

    LISTS = ("allow", "block")

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        for name in self.LISTS:
            if name in self.fields:
                text = f"{self.fields[name].help_text} Names of users or organisations at the forge (@17 for a number), or ids."
                self.fields[name] = Lines(text)
                self.initial[name] = [
                    f"{one} {self.forge.names.get(str(one), '')}".strip() for one in getattr(self.instance, name)
                ]

    @property
    def forge(self) -> Forge:
        """The forge whose users they are. Before it is chosen: an empty one."""
        return self.cleaned_data.get("forge") or Forge() if not self.instance.pk else self.instance.forge

    def client(self) -> ForgeClient:
        return client_for(self.forge)

    def clean(self) -> dict[str, Any] | None:
        data = super().clean() or {}
        for name in self.LISTS:
            if name in data and not self.errors:
                try:
                    data[name] = list(dict.fromkeys(self._id_of(line) for line in data[name]))
                except (ForgeError, SecretUnreadable) as error:
                    self.add_error(name, explain(error))
                except forms.ValidationError as error:
                    self.add_error(name, error)
        return data

    def _id_of(self, line: str) -> int:
        """`17` and `17 alice` are ids, with the name that was shown; anything else is a name, as is `@17`."""
        number = line.split(maxsplit=1)[0]
        if number.isascii() and number.isdigit() and len(number) < 19:
            return int(number)
        if len(line.split()) > 1 or (user := self.client().user(line.removeprefix("@"))) is None:
            message = f"Nobody at the forge has the name {line!r}. If the forge hides them from cc-ci, enter their id."
            raise forms.ValidationError(message)
        self.forge.names[str(user.id)] = user.login
        return user.id


def token_field(needs: str, label: str | None = None) -> forms.CharField:
    return forms.CharField(
        label=label,
        required=False,
        strip=True,
        widget=UnfoldAdminPasswordWidget(render_value=False, attrs={"autocomplete": "new-password"}),
        help_text=f"Write-only: leave empty to keep the current one. {needs}",
    )


class AddressForm(forms.ModelForm):  # type: ignore[type-arg]
    """With a server's `url` and our secrets for it (its `token`), which can be entered and are never shown."""

    def clean_url(self) -> str:
        try:
            return bare(self.cleaned_data["url"])
        except ValueError as error:
            raise forms.ValidationError(str(error)) from error

    def clean_token(self) -> Any:
        return self.secret("token", "token")

    def secret(self, name: str, label: str) -> Any:
        """What was typed into a field for a secret, or the one that is there."""
        typed, present = self.cleaned_data[name], getattr(self.instance, name)
        if not typed and present and self.instance.pk and self.cleaned_data.get("url") != self.instance.url:
            raise forms.ValidationError(f"The URL is another one: enter the {label} again, or it would be sent there.")
        if not typed and name in self.changed_data:
            self.changed_data.remove(name)  # an empty field keeps the current one
        return typed or present


class Removable(ModelAdmin):
    """Of what takes long to delete: a page with counts and "switch off instead", and a task that deletes bit by bit."""

    def get_actions(self, request: HttpRequest) -> Any:
        actions = super().get_actions(request)
        actions.pop("delete_selected", None)  # it would do it in one request
        return actions

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return bool(super().has_change_permission(request, obj)) and not (obj is not None and obj.removal_at)

    def delete_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> HttpResponse:
        row = self.get_object(request, object_id)
        if row is None or not self.has_delete_permission(request, row):
            raise PermissionDenied
        back = redirect(f"admin:{self.opts.app_label}_{self.opts.model_name}_changelist")
        if request.method == "POST" and request.POST.get("do") == "switch off":
            if not self.has_change_permission(request, row):
                raise PermissionDenied
            self.switch_off(row)
            self.log_change(request, row, "Switched off.")
            self.message_user(request, f"{row} is switched off; what belongs to it is kept.", messages.SUCCESS)
            return back
        if request.method == "POST" and request.POST.get("do") == "delete":
            if removal.begin(row):
                self.log_deletions(request, [row])
            text = f"{row} is no longer watched, and is being deleted, which may take minutes. It is listed until it is gone."
            self.message_user(request, text, messages.SUCCESS)
            return back
        context = {"title": f"Delete {row}?", "row": row, "opts": self.opts, "belongings": removal.belongings(row)}
        return render(request, "enrollment/admin_delete.html", {**self.admin_site.each_context(request), **context})

    def switch_off(self, row: Any) -> None:
        raise NotImplementedError


class ForgeForm(AddressForm, PeopleForm):
    watched_owners = Lines("Owners whose repositories with the topic are enrolled.")
    token = token_field("It needs to read repositories, issues and the organisation, and to write comments.")
    oauth_client_secret = token_field("Of the same application.", "Client secret")

    class Meta:
        model = Forge
        fields = (
            *("name", "url", "token", "enabled", "watched_owners", "tests_repository", *POLICIES, "webhooks"),
            *("oauth_client_id", "oauth_client_secret"),
        )

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        # Only of this forge: a run's credential is for it.
        of_forge = Repository.objects.filter(forge=self.instance.pk) if self.instance.pk else Repository.objects.none()
        self.fields["tests_repository"].queryset = of_forge  # type: ignore[attr-defined]

    def clean_watched_owners(self) -> list[str]:
        for owner in self.cleaned_data["watched_owners"]:
            if not re.fullmatch(r"[\w.-]+", owner):
                raise forms.ValidationError(f"Enter one owner per line, without quotes and commas, not {owner!r}.")
        return list(self.cleaned_data["watched_owners"])

    def clean_oauth_client_secret(self) -> Any:
        return self.secret("oauth_client_secret", "client secret")

    @property
    def forge(self) -> Forge:
        return self.instance

    def trial(self) -> Forge:
        """The forge as it was entered."""
        return Forge(url=self.cleaned_data["url"], token=self.cleaned_data["token"], kind=self.instance.kind)

    def client(self) -> ForgeClient:
        return client_for(self.trial())

    def clean(self) -> dict[str, Any] | None:
        """Ask the forge who we are there, so that a wrong URL or token is reported now."""
        data = super().clean()
        if not self.errors and data and ({"url", "token"} & set(self.changed_data)):
            trial = self.trial()
            try:
                refresh_identity(trial, client_for(trial))
            except (ForgeError, SecretUnreadable) as error:
                raise forms.ValidationError(explain(error)) from error
            self.instance.version, self.instance.bot_id, self.instance.bot_login = trial.version, trial.bot_id, trial.bot_login
            self.instance.failures, self.instance.backoff_until, self.instance.last_error = 0, None, ""
            self.instance.search, self.instance.search_probed_at = Forge.OwnerFilter.UNKNOWN, None
        return data


@admin.register(Forge)
class ForgeAdmin(Removable):
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
    tables = ("login_redirect", "asking", "permissions_seen", "capabilities_found", "requests_made")
    fieldsets = (
        (None, {"fields": ("name", "url", "token", "enabled")}),
        ("What is watched, who may ask", {"fields": ("watched_owners", *POLICIES)}),
        ("Tests", {"fields": ("tests_repository",)}),
        ("Webhooks", {"fields": ("webhooks",)}),
        ("Log in with this forge", {"fields": ("login_redirect", "oauth_client_id", "oauth_client_secret")}),
        ("Status", {"fields": readonly_fields}),
        ("Permissions, capabilities, requests", {"fields": tables[1:]}),
    )
    actions = ["poll_now", refresh_now]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return (*self.readonly_fields, *self.tables)

    @display(description="redirect URL")
    def login_redirect(self, forge: Forge) -> str:
        if not forge.pk:
            return "Save the forge first."
        return format_html(
            'Create an OAuth2 application at <a href="{0}">{0}</a> (a confidential client) with the redirect URL '
            "<code>{1}</code>, and enter its client ID and secret here.",
            kind_of(forge).pages.tokens.format(forge=forge.url),
            redirect_url(forge),
        )

    asking = staticmethod(traffic_message)
    permissions_seen = staticmethod(permissions_table)
    capabilities_found = staticmethod(capabilities_table)
    requests_made = staticmethod(traffic_table)

    def save_model(self, request: HttpRequest, obj: Forge, form: Any, change: bool) -> None:
        super().save_model(request, obj, form, change)
        if "webhooks" in form.changed_data:
            reconcile_soon(obj)
        if {"url", "token"} & set(form.changed_data):
            permissions.forget_tried(obj)

    @display(
        description="health",
        label={"healthy": "success", "failing": "danger", "not polled yet": "info", "off": "warning", "being deleted": "warning"},
    )
    def health(self, forge: Forge) -> str:
        if forge.removal_at:
            return "being deleted"
        if not forge.enabled:
            return "off"
        if forge.failures or forge.last_error:
            return "failing"
        return "healthy" if forge.last_ok_at else "not polled yet"

    def switch_off(self, row: Forge) -> None:
        Forge.objects.filter(pk=row.pk).update(enabled=False)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Forge]:
        return super().get_queryset(request).annotate(number=Count("repositories", Q(repositories__active=True)))

    @display(description="repositories")
    def watched(self, forge: Forge) -> int:
        return forge.number  # type: ignore[attr-defined]

    @row_action("Poll now", "change")
    def poll_now(self, request: HttpRequest, forge: Forge) -> str:
        forge.backoff_until = None
        forge.save(update_fields=["backoff_until"])
        forgive(forge)
        result = poller.poll(forge)
        if result.problems:
            raise NotDone(result.text())
        return result.text()


class EnrollForm(PeopleForm):
    """Enrol manually by forge and name; the rest is asked."""

    full_name = forms.CharField(label="Repository", help_text="OWNER/REPO", widget=UnfoldAdminTextInputWidget())

    class Meta:
        model = Repository
        fields = ("forge", "full_name", "allow")

    def clean(self) -> dict[str, Any] | None:
        data = super().clean() or {}
        if self.errors:
            return data
        try:
            owner, name = split_name(data["full_name"])
            self.remote = self.client().repository(owner, name)
        except (NotNamed, SecretUnreadable) as error:
            raise forms.ValidationError(str(error)) from error
        except ForgeError as error:
            raise forms.ValidationError(explain(error)) from error
        if Repository.objects.filter(forge=data["forge"], forge_repo_id=self.remote.id, active=True).exists():
            raise forms.ValidationError(f"{self.remote.full_name} is already watched.")
        return data


#: What a person may change of a repository.
EDITABLE = ("active", *POLICIES, "allowances", "allowances_for_strangers", "slots", "webhooks")


class RepositoryForm(PeopleForm):
    allowances = forms.CharField(
        required=False,
        strip=True,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 3}),
        help_text="What this recipe may have beyond what any recipe may have, one per line, as the message of a "
        "refused run prints it: services.app: cap_add NET_ADMIN. It applies only to trusted commits: those that only "
        "people who may ask here can have pushed. Addresses that its containers may reach although they are "
        "not public: network: 10.1.2.3:5432 (then, as root: cc-ci firewall --apply).",
    )

    class Meta:
        model = Repository
        fields = EDITABLE

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.initial["allowances"] = "\n".join(self.instance.allowances)

    def clean_allowances(self) -> list[str]:
        return [line.strip() for line in self.cleaned_data["allowances"].splitlines() if line.strip()]


@admin.register(Repository)
class RepositoryAdmin(Removable):
    list_display = ("full_name", "forge", "watched", "source", "visibility", "enrolled_at", "trouble")
    list_filter = (
        "active",
        choices("problem", "trouble", {"yes": ("with one", ~Q(last_error="")), "no": ("without", Q(last_error=""))}),
        "forge",
        "source",
        "private",
    )
    search_fields = ("owner", "name")
    list_select_related = ("forge",)
    actions = [refresh_permissions_now]

    def switch_off(self, row: Repository) -> None:
        unenroll(row)
        reconcile_soon(row.forge, row)

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
        return ("webhook", "permissions_seen", *names)

    def save_model(self, request: HttpRequest, obj: Repository, form: Any, change: bool) -> None:
        if not change:
            row, _ = enroll(form.cleaned_data["forge"], form.remote, Repository.Source.HAND, form.client())
            row.allow = form.cleaned_data["allow"] or []
            row.save(update_fields=["allow"])
            form.forge.save(update_fields=["names"])
            obj.pk, obj.owner, obj.name = row.pk, row.owner, row.name
            return
        if "active" in form.changed_data:
            obj.source = Repository.Source.HAND
            if obj.active:
                # By the forge's clock: comments from before it was watched start nothing.
                now = timezone.now()
                try:
                    client = client_for(obj.forge)
                    client.version()
                    now = server_now(client)
                except (ForgeError, SecretUnreadable) as error:
                    self.message_user(request, f"{error}; the enrolment counts from this server's clock", messages.WARNING)
                obj.enrolled_at = obj.net_cursor = now
        super().save_model(request, obj, form, change)
        form.forge.save(update_fields=["names"])
        if {"active", "webhooks"} & set(form.changed_data):
            reconcile_soon(obj.forge, obj)

    permissions_seen = staticmethod(permissions_table)
    webhook = staticmethod(webhook_of)

    @display(description="watched", label={"watched": "success", "not watched": "info", "being deleted": "warning"})
    def watched(self, row: Repository) -> str:
        return "being deleted" if row.removal_at else "watched" if row.active else "not watched"

    @display(description="visibility")
    def visibility(self, row: Repository) -> str:
        return "private" if row.private else "public"

    @display(description="problem")
    def trouble(self, row: Repository) -> str:
        return row.last_error[:100]


class Said(BigAdmin, ReadOnlyAdmin):
    """Of what was said on pull requests: found by #12, a recipe's name, or a text in the newest rows. The names are paths."""

    repository, number = "pull_request__repository", "pull_request__number"

    def get_search_results(self, request: HttpRequest, queryset: QuerySet[Any], search_term: str) -> tuple[QuerySet[Any], bool]:
        term = search_term.strip()
        if term.startswith("#") and term[1:].isdecimal():
            return queryset.filter(**{self.number: int(term[1:][:9])}), False
        if term and not term.endswith("/") and (keys := like(term, Repository.objects.all())):
            return queryset.filter(**{f"{self.repository}__in": keys}), False
        return super().get_search_results(request, queryset, search_term)


@admin.register(PullRequest)
class PullRequestAdmin(Said):
    repository, number = "repository", "number"
    list_display = ("__str__", "title", "author_login", "state", "seen_updated_at", "unread")
    list_filter = (values("state", "state", {"open": "open", "closed": "closed"}), "repository__forge")
    search_fields = ("title", "author_login")
    search_help_text = "A recipe or #12; or a title or author, among the newest"
    list_select_related = ("repository",)
    inlines = (CommentInline,)

    @display(description="comments")
    def unread(self, pull: PullRequest) -> str:
        return "to be read" if pull.comments_wanted_since else "read"


@admin.register(Comment)
class CommentAdmin(Said):
    list_display = ("created_at", "pull_request", "author_login", "line", "result", "short_reason", "via")
    list_filter = ("outcome", "via", "forge", ("created_at", admin.DateFieldListFilter))
    search_fields = ("body", "author_login", "reason")
    search_help_text = "A recipe or #12; or a text or author, among the newest"
    list_select_related = ("pull_request__repository",)
    deferred = ("facts",)
    actions = ("handle_again",)

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

    @row_action("Retry now (those not handled yet)", "act")
    def handle_again(self, request: HttpRequest, comment: Comment) -> str:
        if not Comment.objects.filter(pk=comment.pk, outcome="").update(next_try_at=timezone.now()):
            raise NotDone(f"{comment} is handled already.")
        return f"{comment} will be retried within a few seconds."
