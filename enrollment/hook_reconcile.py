"""Make the hooks at a forge what they should be. What is to be done is decided in `webhooks`; here it is asked for and done.

It may be killed anywhere and run again: a hook's key and secret are written down before the forge hears of them, the key
stands in its URL, and every pass begins by looking at what stands at the far side.
"""

from __future__ import annotations

import logging
import random
import time
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import groupby

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from controlplane.leases import Held, lease
from controlplane.secrets import SecretUnreadable
from enrollment.budget import Purpose
from enrollment.clients import client_for
from enrollment.forges.base import (
    Forbidden,
    ForgeClient,
    ForgeError,
    Hook,
    NotFound,
    RateLimited,
    Unauthorized,
    Unavailable,
)
from enrollment.hook_models import hooks_address
from enrollment.hook_rows import Place, current_first, ensure_row, replace_secret
from enrollment.hook_states import State, move
from enrollment.models import Forge, Repository, WebhookConfig
from enrollment.webhooks import EVENTS, WRITES, Action, Do, Wanted, differences, key_in, plan, wanted

log = logging.getLogger(__name__)

#: Hours between two looks at a hook that is well, or that the forge refuses.
CHECK_HOURS = 6
#: When to look again after a failure.
SOON = timedelta(minutes=15)
#: How long both secrets count when one takes the other's place.
OVERLAP = timedelta(minutes=15)
#: A hook that looks right and is unhealthy for longer gets a new secret; at most one each NEW_SECRET_AFTER.
SILENT_AFTER = timedelta(hours=6)
NEW_SECRET_AFTER = timedelta(days=1)
#: Seconds that a pass holds its lease without renewing it.
LEASE_SECONDS = 120


@dataclass
class Pass:
    """What a look at a forge's hooks found: the plan and, when it was applied, how often something was written there."""

    forge: str
    actions: list[Action] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    writes: int = 0
    unfinished: bool = False
    skipped: str = ""

    def words(self) -> str:
        if self.skipped:
            return f"{self.forge}: {self.skipped}"
        changes = sum(action.do in WRITES for action in self.actions)
        text = f"{self.forge}: {len(self.actions)} hooks looked at, {changes} to change, {self.writes} writes"
        return f"{text}, {len(self.problems)} problems" if self.problems else text


def is_wanted(row: Repository) -> bool:
    """Whether a hook is to be registered for a repository."""
    return row.active and wanted(settings.CC_CI.webhook_autoregister, row.forge.webhooks, row.webhooks)


def reconcile(
    forge: Forge, client: ForgeClient | None = None, *, apply: bool, due_only: bool = False, seconds: float | None = None
) -> Pass:
    """Look at a forge's hooks and, with `apply`, make them what they should be. `due_only` leaves out what was looked at
    lately; after `seconds` the rest is left for the next pass. Never raises for what the forge does."""
    result = Pass(forge.name)
    deadline = time.monotonic() + seconds if seconds else float("inf")
    with lease(f"hooks:{forge.pk}", LEASE_SECONDS) if apply else nullcontext() as held:
        if apply and held is None:
            result.skipped = "another process sees to its hooks"
            return result
        worker = _Worker(forge, client, apply, due_only, deadline, result, held)
        try:
            worker.run()
        except (ForgeError, SecretUnreadable) as error:
            result.problems.append(f"{error}. {error.advice}" if isinstance(error, ForgeError) else str(error))
    return result


@dataclass
class _Worker:
    """One pass over one forge."""

    forge: Forge
    given: ForgeClient | None
    apply: bool
    due_only: bool
    deadline: float  #: of time.monotonic()
    result: Pass
    held: Held | None
    now: datetime = field(default_factory=timezone.now)
    renew_at: float = field(default_factory=lambda: time.monotonic() + LEASE_SECONDS / 4)
    #: All rows as they were at the beginning, by repository, or by owner: a thousand are read at once.
    before: dict[tuple[int | None, int | None], list[WebhookConfig]] = field(default_factory=lambda: defaultdict(list))

    @property
    def client(self) -> ForgeClient:
        # Made when it is first needed: where no hook is wanted, nothing is asked, and no token revealed.
        if self.given is None:
            self.given = client_for(self.forge, Purpose.UPKEEP)
        return self.given

    def run(self) -> None:
        rows = list(Repository.objects.filter(forge=self.forge).select_related("forge").order_by("owner_id", "owner", "name"))
        hooked = dict(self._due_of("repository"))
        owners = dict(self._due_of("owner_id", repository=None))
        for hook in sorted(WebhookConfig.objects.filter(forge=self.forge).select_related("repository"), key=current_first):
            self.before[hook.repository_id, None if hook.repository_id else hook.owner_id].append(hook)
        for (owner_id, _), group in groupby(rows, key=lambda row: (row.owner_id, None if row.owner_id else row.owner)):
            self._owner(list(group), owner_id, hooked, owners)

    def _due_of(self, name: str, **only: None) -> Iterator[tuple[int, bool]]:
        """For each place with rows whether it is time to look at it."""
        due: dict[int, bool] = {}
        rows = WebhookConfig.objects.filter(forge=self.forge, **only).exclude(**{name: None})
        for pk, at in rows.values_list(name, "next_check_at"):
            due[pk] = due.get(pk, False) or at is None or at <= self.now
        yield from due.items()

    def _owner(self, group: list[Repository], owner_id: int | None, hooked: dict[int, bool], owners: dict[int, bool]) -> None:
        place = Place(self.forge, group[0].owner, owner_id)
        active = [row for row in group if row.active]
        # One for all only where all want it: an organisation's hook tells of every repository it has.
        for_all = owner_id is not None and bool(active) and all(is_wanted(row) for row in active)
        by_organisation = for_all and self._organisation(place, owners)
        for row in group:
            unwanted = self._unwanted(row, by_organisation)
            if unwanted and row.pk not in hooked:
                continue
            if self.due_only and not hooked.get(row.pk, True):
                continue
            if time.monotonic() > self.deadline:
                self.result.unfinished = True
                return
            self._settle(Place(self.forge, row.owner, row.owner_id, row), unwanted)
        if not for_all and owner_id in owners and (not self.due_only or owners[owner_id]):
            # Last: the repositories' own stand by now.
            self._settle(place, "not all of its repositories want a hook" if active else "none of its repositories is watched")

    def _organisation(self, place: Place, owners: dict[int, bool]) -> bool:
        """See to an organisation's hook. Returns whether it is the one that tells of its repositories."""
        if place.owner_id is not None and self.due_only and not owners.get(place.owner_id, True):
            return any(row.state not in (State.REFUSED, State.ROTATING) for row in place.rows())
        return self._settle(place, "")

    @staticmethod
    def _unwanted(row: Repository, by_organisation: bool) -> str:
        if not row.active:
            return "the repository is watched no longer"
        if not is_wanted(row):
            return "hooks are switched off for it"
        return "the organisation's hook tells of it" if by_organisation else ""

    # --- one place

    def _settle(self, place: Place, unwanted: str) -> bool:
        """Bring one place in order. Returns whether hooks there can be seen to, and one is wanted."""
        if self.held and time.monotonic() > self.renew_at:
            self.held.renew(LEASE_SECONDS)
            self.renew_at = time.monotonic() + LEASE_SECONDS / 4
        for turn in range(2):  # a rotation makes a new row, which is created in the second turn
            rows = place.rows() if turn else self._before(place)
            if self.apply and not unwanted and all(row.state == State.ROTATING for row in rows):
                ensure_row(place)
                rows = place.rows()
            elif self.apply and unwanted:
                rows = _drop_refused(rows)
            if unwanted and not rows:
                return False
            try:
                actions = self._plan(place, rows, unwanted)
                if self.apply:
                    self._apply(place, rows, actions)
            except (Unauthorized, RateLimited, Unavailable):
                WebhookConfig.objects.filter(pk__in=[row.pk for row in rows]).update(next_check_at=self.now + SOON)
                raise
            except (Forbidden, NotFound) as error:
                # Nobody may have listed them, or this very thing could not be done.
                self._refuse(place, rows, _why(place, error), unwanted)
                return any(row.state == State.VERIFIED for row in rows)
            except ForgeError as error:
                self.result.problems.append(f"{place}: {error}. {error.advice}")
                WebhookConfig.objects.filter(pk__in=[row.pk for row in rows]).update(next_check_at=self.now + SOON)
                return any(row.state != State.REFUSED for row in rows)
            self.result.actions += actions
            if not self.apply or not any(action.do == Do.ROTATE for action in actions):
                break
        return not unwanted

    def _before(self, place: Place) -> list[WebhookConfig]:
        repository = place.repository
        return list(self.before[(repository.pk, None) if repository else (None, place.owner_id)])

    def _plan(self, place: Place, rows: list[WebhookConfig], unwanted: str) -> list[Action]:
        found = list(self.client.hooks(place.owner, place.name))
        known = [_as_wanted(row, self.now) for row in rows]
        if not unwanted and all(row.rotating for row in known):
            known.insert(0, Wanted("", hooks_address(self.forge.pk)))  # only when nothing is applied
        reenable = settings.CC_CI.webhook_reenable
        return plan(str(place), known, found, address=hooks_address(self.forge.pk), unwanted=unwanted, reenable=reenable)

    def _refuse(self, place: Place, rows: list[WebhookConfig], reason: str, unwanted: str) -> None:
        self.result.actions.append(Action(Do.REFUSED, str(place), reason))
        if not self.apply:
            return
        for row in rows:
            if row.state != State.ROTATING:
                move(row, "refuse", reason)
            elif row.ends_at and row.ends_at <= self.now:
                row.delete()  # its secret counts no more; the hook itself is out of reach
        self._looked(place, rows)

    def _looked(self, place: Place, rows: list[WebhookConfig]) -> None:
        later = self.now + timedelta(hours=CHECK_HOURS * random.uniform(0.9, 1.1))  # noqa: S311
        looked = WebhookConfig.objects.filter(pk__in=[row.pk for row in rows if row.pk])
        if any((row.owner, row.owner_id) != (place.owner, place.owner_id) for row in rows):
            looked.update(owner=place.owner, owner_id=place.owner_id)
        # One whose end is set is looked at again then.
        looked.exclude(ends_at__gt=self.now).update(checked_at=self.now, next_check_at=later)

    def _apply(self, place: Place, rows: list[WebhookConfig], actions: list[Action]) -> None:
        by_key = {row.key: row for row in rows}
        for action in actions:
            row = by_key.get(action.key)
            if action.do == Do.DELETE:
                self._delete(place, action, row, by_key)
            elif row is None:
                continue
            elif action.do == Do.FORGET:
                row.delete()
            elif action.do == Do.ROTATE:
                replace_secret(row, action.reason)
            elif action.do == Do.CREATE:
                self._create(place, row, action)
            elif action.do == Do.UPDATE and action.hook:
                self._update(place, row, action, action.hook)
            elif action.do == Do.DISABLED:
                move(row, "disable", action.reason)
            elif action.do == Do.NOTHING and action.hook and row.state != State.ROTATING:
                self._found_well(row, action.hook)
        self._looked(place, rows)

    def _create(self, place: Place, row: WebhookConfig, action: Action) -> None:
        if place.repository and self.client.repository_by_id(place.repository.forge_repo_id).full_name != str(place):
            # Renamed a moment ago, and the name may be somebody else's now. The next listing brings the new one.
            self.result.problems.append(f"{place} has another name now; its hook waits for that")
            Repository.objects.filter(pk=place.repository.pk).update(net_due_at=self.now)
            return
        move(row, "drift", action.reason)
        self.result.writes += 1
        with _noted(place):
            hook = self.client.create_hook(place.owner, place.name, url=row.url, secret=row.reveal_secret(), events=EVENTS)
        self._registered(row, hook, "made" if not row.remote_id else f"made again: {action.reason}")

    def _update(self, place: Place, row: WebhookConfig, action: Action, hook: Hook) -> None:
        move(row, "drift", action.reason)
        whole = replace(hook, url=row.url, events=frozenset(EVENTS), active=True, content_type="json", branch_filter="*")
        self.result.writes += 1
        with _noted(place):
            answer = self.client.edit_hook(place.owner, place.name, whole)
        if left := differences(answer, row.url):
            self.result.problems.append(f"{place}: the forge took the change and still says: {'; '.join(left)}")
            return
        self._registered(row, answer, f"repaired: {action.reason}")

    def _found_well(self, row: WebhookConfig, hook: Hook) -> None:
        # Without the number, somebody died after it was made; deliveries may have proved it since.
        if row.remote_id != hook.id or row.state in (State.ABSENT, State.DRIFTED, State.DISABLED, State.REFUSED):
            self._registered(row, hook, "found at the forge as it should be")

    def _registered(self, row: WebhookConfig, hook: Hook, reason: str) -> None:
        with transaction.atomic():  # the end of the old one's time is written down with the new one's beginning
            move(row, "register", reason, remote_id=hook.id)
            WebhookConfig.objects.filter(pk=row.pk).update(remote_id=hook.id)  # also when a delivery was faster
            ends = timezone.now() + OVERLAP
            older = WebhookConfig.objects.filter(forge=row.forge_id, repository=row.repository_id, state=State.ROTATING)
            if row.repository_id is None:
                older = older.filter(owner_id=row.owner_id)
                # The repositories' own are to be looked at now: they are not needed any more.
                WebhookConfig.objects.filter(forge=row.forge_id, owner_id=row.owner_id, repository__isnull=False).update(
                    next_check_at=None
                )
            older.filter(ends_at=None).update(ends_at=ends, next_check_at=ends)

    def _delete(self, place: Place, action: Action, row: WebhookConfig | None, known: Collection[str]) -> None:
        if action.hook:
            key = key_in(action.hook.url)
            if row is None and key not in known and any(other.key == key for other in place.rows()):
                return  # a maintainer asked for its secret, and added it, while this pass went on
            self.result.writes += 1
            try:
                with _noted(place):
                    self.client.delete_hook(place.owner, place.name, action.hook.id)
            except NotFound:
                pass  # somebody was faster
        if row is not None:
            row.delete()


@contextmanager
def _noted(place: Place) -> Iterator[None]:
    """A write within this block shows what the token may do, by success or refusal."""
    from enrollment import rights  # which asks whether hooks are wanted, and so knows us

    try:
        yield
    except Forbidden as error:
        rights.note_hook_write(place.forge, place.owner, place.repository, str(error))
        raise
    rights.note_hook_write(place.forge, place.owner, place.repository)


def _drop_refused(rows: list[WebhookConfig]) -> list[WebhookConfig]:
    """Drop those of which nothing stands at the forge. Returns the others."""
    gone = [row.pk for row in rows if row.state == State.REFUSED and row.remote_id is None and not row.by_hand]
    if gone:
        WebhookConfig.objects.filter(pk__in=gone).delete()
    return [row for row in rows if row.pk not in gone]


def _why(place: Place, error: ForgeError) -> str:
    if place.repository is None:
        return f"The token does not own {place.owner} ({error}). Each repository gets a hook of its own, where the token may."
    return f"The token has no admin right at {place} ({error}). Give it one, or add the hook by hand."


def _as_wanted(row: WebhookConfig, now: datetime) -> Wanted:
    try:
        row.reveal_secret()
        unreadable = False
    except SecretUnreadable:
        unreadable = True
    rotating = row.state == State.ROTATING
    return Wanted(
        key=row.key,
        url=row.url,
        remote_id=row.remote_id,
        seen=row.remote_id is not None,
        by_hand=row.by_hand,
        rotating=rotating,
        ended=rotating and row.ends_at is not None and row.ends_at <= now,
        unreadable=unreadable and not rotating,
        silent=row.state == State.UNHEALTHY and row.state_at < now - SILENT_AFTER and row.created_at < now - NEW_SECRET_AFTER,
    )
