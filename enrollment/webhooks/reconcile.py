"""Reconcile the hooks at a forge: `plan` decides, this asks the forge and executes.

A pass may be killed anywhere and run again: a hook's key and secret are stored before the forge receives them, the key is in
the hook's URL, and every pass first reads what the forge has.
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
from enrollment.forge_access import permissions
from enrollment.forge_access.clients import client_for, kind_of
from enrollment.forge_access.rate_limit import Purpose
from enrollment.forges.base import (
    Forbidden,
    ForgeClient,
    ForgeError,
    ForgeKind,
    Hook,
    NotFound,
    RateLimited,
    Rejected,
    Unauthorized,
    Unavailable,
    explain,
)
from enrollment.models import Forge, Repository, WebhookConfig
from enrollment.models.webhooks import hooks_address
from enrollment.repositories import FACTS, copy_facts
from enrollment.webhooks.lifecycle import State, move
from enrollment.webhooks.plan import WRITES, Action, DesiredHook, Do, differences, is_desired, key_in, plan
from enrollment.webhooks.registration import Place, current_first, drop_refused, ensure_row, replace_secret
from enrollment.webhooks.result import Coverage, Pass, as_desired, coverage_of, not_taken, why

log = logging.getLogger(__name__)

#: Hours between two checks of a hook that is in sync, or that the forge refuses.
CHECK_HOURS = 6
#: When to check again after a failure.
SOON = timedelta(minutes=15)
#: How long both secrets are valid during a rotation.
OVERLAP = timedelta(minutes=15)
#: Seconds of the lease between renewals, and additional ones for a write, which may have to wait for the budget.
LEASE_SECONDS = 120
PATIENCE_SECONDS = 600


class LeaseLost(Exception):
    """Another process has taken over reconciling the forge's hooks."""


def is_hook_desired(row: Repository) -> bool:
    """Whether a hook is to be registered for a repository."""
    return row.active and is_desired(settings.CC_CI.webhook_autoregister, row.forge.webhooks, row.webhooks)


def reconcile(
    forge: Forge, client: ForgeClient | None = None, *, apply: bool, due_only: bool = False, seconds: float | None = None
) -> Pass:
    """Check a forge's hooks and, with `apply`, create, repair and delete them. `due_only` skips hooks that were checked
    recently; after `seconds` the rest is left for the next pass. Never raises because of the forge.
    """
    result = Pass(forge.name)
    deadline = time.monotonic() + seconds if seconds else float("inf")
    with lease(f"hooks:{forge.pk}", LEASE_SECONDS) if apply else nullcontext() as held:
        if apply and held is None:
            result.skipped = "another process is reconciling its hooks"
            return result
        worker = _Worker(forge, client, apply, due_only, deadline, result, held)
        try:
            worker.run()
        except LeaseLost:
            result.skipped, result.unfinished = "another process has taken over its hooks", True
        except (ForgeError, SecretUnreadable) as error:
            result.problems.append(explain(error))
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
    #: All rows as of the start, by repository or by owner, so that a thousand need one query.
    before: dict[tuple[int | None, int | None], list[WebhookConfig]] = field(default_factory=lambda: defaultdict(list))

    @property
    def kind(self) -> ForgeKind:
        return kind_of(self.forge)

    @property
    def client(self) -> ForgeClient:
        # Created when first needed: if no hook is desired, nothing is asked and no token revealed.
        if self.given is None:
            self.given = client_for(self.forge, Purpose.UPKEEP)
        return self.given

    def run(self) -> None:
        rows = list(Repository.objects.filter(forge=self.forge).select_related("forge").order_by("owner_id", "owner", "name"))
        for hook in sorted(WebhookConfig.objects.filter(forge=self.forge).select_related("repository"), key=current_first):
            self.before[hook.repository_id, None if hook.repository_id else hook.owner_id].append(hook)
        for (owner_id, _), group in groupby(rows, key=lambda row: (row.owner_id, None if row.owner_id else row.owner)):
            self._owner(list(group), owner_id)
        self._left_behind({row.owner_id for row in rows})

    def _left_behind(self, owner_ids: set[int | None]) -> None:
        """Remove the hooks of organisations and repositories that no longer have an enrolment here."""
        left: dict[Place, list[WebhookConfig]] = defaultdict(list)
        for hook in [hook for (pk, _), hooks in self.before.items() if pk is None for hook in hooks]:
            if hook.owner_id is None:  # see `models.webhooks.leave_behind`
                owner, _, name = hook.owner.partition("/")
                left[Place(self.forge, owner, None, gone=name)].append(hook)
            elif hook.owner_id not in owner_ids:
                left[Place(self.forge, hook.owner, hook.owner_id)].append(hook)
        for place, hooks in left.items():
            if self._not_due(hooks):
                continue
            if time.monotonic() > self.deadline:
                self.result.unfinished = True
                return
            self._settle(place, "nothing there is enrolled any more")

    def _not_due(self, hooks: list[WebhookConfig]) -> bool:
        """Whether a place with these rows is left for a later pass. One without rows never is."""
        later = [hook.next_check_at is not None and hook.next_check_at > self.now for hook in hooks]
        return self.due_only and bool(later) and all(later)

    def _owner(self, group: list[Repository], owner_id: int | None) -> None:
        active = [row for row in group if row.active]
        # Repositories that are no longer watched keep their old name.
        witness = (active or group)[0]
        place = Place(self.forge, witness.owner, owner_id)
        # One for all only if all want it: an organisation's hook reports every repository.
        for_all = owner_id is not None and bool(active) and all(is_hook_desired(row) for row in active)
        coverage = self._organisation(place, witness) if for_all else Coverage.NO
        for row in group:
            unwanted, hooks = self._unwanted(row, coverage), self.before[row.pk, None]
            if unwanted and not hooks:
                continue
            if coverage == Coverage.DOUBT and not any(hook.remote_id or hook.by_hand for hook in hooks):
                continue
            if self._not_due(hooks):
                continue
            if time.monotonic() > self.deadline:
                self.result.unfinished = True
                return
            self._settle(Place(self.forge, row.owner, row.owner_id, row), unwanted, row)
        # Rows with neither a repository nor an owner's id are of repositories that were deleted: see `_left_behind`.
        hooks = self.before[None, owner_id] if owner_id is not None else []
        if not for_all and hooks and not self._not_due(hooks):
            # Last, once the repositories' own exist.
            reason = "not all of its repositories want a hook" if active else "none of its repositories is watched"
            self._settle(place, reason, witness)

    def _organisation(self, place: Place, witness: Repository) -> Coverage:
        """Reconcile an organisation's hook. Returns whether it covers the repositories."""
        if self._not_due(self.before[None, place.owner_id]):
            return coverage_of(place.rows())
        actions = self._settle(place, "", witness)
        if not self.apply and any(action.do in (Do.CREATE, Do.UPDATE, Do.ROTATE) for action in actions):
            return Coverage.YES  # it would be, once that is done
        rows = place.rows()
        if not self.apply and any(action.do == Do.REFUSED for action in actions):
            return Coverage.YES if coverage_of(rows) == Coverage.YES and rows[0].state == State.VERIFIED else Coverage.NO
        return coverage_of(rows)

    @staticmethod
    def _unwanted(row: Repository, coverage: Coverage) -> str:
        if not row.active:
            return "the repository is no longer watched"
        if not is_hook_desired(row):
            return "webhooks are off for it"
        return "the organisation's hook covers it" if coverage == Coverage.YES else ""

    # --- one place

    def _hold(self, write: bool = False) -> None:
        """Renew the lease if it is time, and always before a write. Raises LeaseLost if another process has it."""
        if self.held is None or not (write or time.monotonic() > self.renew_at):
            return
        if not self.held.renew(LEASE_SECONDS + (PATIENCE_SECONDS if write else 0)):
            raise LeaseLost
        self.renew_at = time.monotonic() + LEASE_SECONDS / 4

    def _settle(self, place: Place, unwanted: str, witness: Repository | None = None) -> list[Action]:
        """Reconcile one place. Returns what was done there, or would be. `witness` is the row whose id shows the place's
        current name: the repository itself, or one of the organisation's.
        """
        self._hold()
        done: list[Action] = []
        for turn in range(2):  # a rotation makes a new row, which is created in the second turn
            rows = place.rows() if turn else self._before(place)
            if self.apply and not unwanted and all(row.state == State.ROTATING for row in rows):
                ensure_row(place)
                rows = place.rows()
            elif self.apply and unwanted:
                rows = drop_refused(rows)
            if unwanted and not rows:
                break
            try:
                actions = self._plan(place, rows, unwanted)
                if witness is None:
                    # The name may now be another's, and no id can tell: only hooks with a key of these rows are ours.
                    own = {row.key for row in rows}
                    actions = [action for action in actions if not action.hook or key_in(action.hook.url) in own]
                if self.apply and any(action.do in WRITES for action in actions) and self._has_moved(place, witness, rows):
                    break
                if self.apply:
                    self._apply(place, rows, actions)
            except (Unauthorized, RateLimited, Unavailable):
                self._again_soon(rows)
                raise
            except (Forbidden, NotFound) as error:
                # The token may not list them, or may not do this.
                if not self._comes_of_a_move(place, witness, rows, error):
                    done.append(self._refuse(place, rows, why(place, error)))
                break
            except ForgeError as error:
                self.result.problems.append(f"{place}: {explain(error)}")
                self._again_soon(rows)
                break
            done += actions
            self.result.actions += actions
            if not self.apply or not any(action.do == Do.ROTATE for action in actions):
                break
        return done

    def _again_soon(self, rows: list[WebhookConfig]) -> None:
        WebhookConfig.objects.filter(pk__in=[row.pk for row in rows]).update(next_check_at=self.now + SOON)

    def _comes_of_a_move(self, place: Place, witness: Repository | None, rows: list[WebhookConfig], error: ForgeError) -> bool:
        """Whether a first refusal results from an old name, which now belongs to nobody or to somebody else."""
        first = self.apply and any(row.state not in (State.REFUSED, State.ROTATING) for row in rows)
        try:
            return first and (not place.repository or isinstance(error, NotFound)) and self._has_moved(place, witness, rows)
        except (Forbidden, NotFound):
            return False

    def _has_moved(self, place: Place, witness: Repository | None, rows: list[WebhookConfig]) -> bool:
        """Whether a place was renamed, so that the name known here may be somebody else's. If so, the new name is stored and
        the place is checked again in the next pass. Raises ForgeError.
        """
        if witness is None:
            return False
        try:
            remote = self.client.repository_by_id(witness.forge_repo_id)
        except NotFound:
            if place.repository is None:
                return False  # the repository is gone; that says nothing of the organisation
            raise
        if (remote.full_name if place.repository else remote.full_name.partition("/")[0]) == str(place):
            return False
        self.result.problems.append(f"{place} was renamed to {remote.full_name}; its hooks are reconciled in the next pass")
        same_owner = remote.owner_id == witness.owner_id
        copy_facts(witness, remote)
        witness.save(update_fields=FACTS)
        if same_owner and witness.owner_id is not None:
            Repository.objects.filter(forge=self.forge, owner_id=witness.owner_id).update(owner=remote.owner)
        WebhookConfig.objects.filter(pk__in=[row.pk for row in rows]).update(next_check_at=self.now)
        return True

    def _before(self, place: Place) -> list[WebhookConfig]:
        repository = place.repository
        rows = self.before[(repository.pk, None) if repository else (None, place.owner_id)]
        return [row for row in rows if not place.gone or row.owner == str(place)]

    def _plan(self, place: Place, rows: list[WebhookConfig], unwanted: str) -> list[Action]:
        found = list(self.client.hooks(place.owner, place.name))
        known = [as_desired(row, self.now) for row in rows]
        if not unwanted and all(row.rotating for row in known):
            known.insert(0, DesiredHook("", hooks_address(self.forge.pk)))  # only when nothing is applied
        address, reenable = hooks_address(self.forge.pk), settings.CC_CI.webhook_reenable
        return plan(str(place), known, found, address=address, events=self.kind.events, unwanted=unwanted, reenable=reenable)

    def _refuse(self, place: Place, rows: list[WebhookConfig], reason: str) -> Action:
        action = Action(Do.REFUSED, str(place), reason)
        self.result.actions.append(action)
        for row in rows if self.apply else []:
            if row.state != State.ROTATING:
                move(row, "refuse", reason)
            elif row.ends_at and row.ends_at <= self.now:
                row.delete()  # its secret is no longer valid; the hook itself is out of reach
        if self.apply:
            self._checked(place, rows)
        return action

    def _checked(self, place: Place, rows: list[WebhookConfig]) -> None:
        later = self.now + timedelta(hours=CHECK_HOURS * random.uniform(0.9, 1.1))  # noqa: S311
        checked = WebhookConfig.objects.filter(pk__in=[row.pk for row in rows if row.pk])
        if not place.gone and any((row.owner, row.owner_id) != (place.owner, place.owner_id) for row in rows):
            checked.update(owner=place.owner, owner_id=place.owner_id)
        # A row with an end is checked again then.
        checked.exclude(ends_at__gt=self.now).update(checked_at=self.now, next_check_at=later)

    def _apply(self, place: Place, rows: list[WebhookConfig], actions: list[Action]) -> None:
        by_key = {row.key: row for row in rows}
        for action in actions:
            row = by_key.get(action.key)
            if action.do in WRITES:
                self._hold(write=True)
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
        self._checked(place, rows)

    def _create(self, place: Place, row: WebhookConfig, action: Action) -> None:
        move(row, "drift", action.reason)
        self.result.writes += 1
        try:
            with _noted(place):
                hook = self.client.create_hook(
                    place.owner, place.name, url=row.url, secret=row.reveal_secret(), events=self.kind.event_names
                )
        except Rejected as error:
            self._refuse(place, [row], not_taken(row, error))
            return
        self._registered(row, hook, "created" if not row.remote_id else f"created again: {action.reason}")
        if left := differences(hook, row.url, self.kind.events):
            self.result.problems.append(f"{place}: the forge created the hook, but it differs: {'; '.join(left)}")
            move(row, "drift", "; ".join(left))

    def _update(self, place: Place, row: WebhookConfig, action: Action, hook: Hook) -> None:
        move(row, "drift", action.reason)
        events = frozenset(self.kind.event_names)
        whole = replace(hook, url=row.url, events=events, active=True, content_type="json", branch_filter="*")
        self.result.writes += 1
        try:
            with _noted(place):
                answer = self.client.edit_hook(place.owner, place.name, whole)
        except Rejected as error:
            self._refuse(place, [row], not_taken(row, error))
            return
        if left := differences(answer, row.url, self.kind.events):
            self.result.problems.append(f"{place}: the forge accepted the change, but the hook still differs: {'; '.join(left)}")
            return
        self._registered(row, answer, f"repaired: {action.reason}")

    def _found_well(self, row: WebhookConfig, hook: Hook) -> None:
        # Without the id, a process died after creating it; deliveries may have proved it since.
        if row.remote_id != hook.id or row.state in (State.ABSENT, State.DRIFTED, State.DISABLED, State.REFUSED):
            self._registered(row, hook, "exists at the forge as desired")

    def _registered(self, row: WebhookConfig, hook: Hook, reason: str) -> None:
        with transaction.atomic():  # the old one's end is stored together with the new one's start
            move(row, "register", reason, remote_id=hook.id)
            WebhookConfig.objects.filter(pk=row.pk).update(remote_id=hook.id)  # even if a delivery was faster
            ends = timezone.now() + OVERLAP
            older = WebhookConfig.objects.filter(forge=row.forge_id, repository=row.repository_id, state=State.ROTATING)
            if row.repository_id is None:
                older = older.filter(owner_id=row.owner_id)
                # Check the repositories' own now: they are no longer needed.
                WebhookConfig.objects.filter(forge=row.forge_id, owner_id=row.owner_id, repository__isnull=False).update(
                    next_check_at=None
                )
            older.filter(ends_at=None).update(ends_at=ends, next_check_at=ends)

    def _delete(self, place: Place, action: Action, row: WebhookConfig | None, known: Collection[str]) -> None:
        if action.hook:
            key = key_in(action.hook.url)
            if row is None and key not in known and any(other.key == key for other in place.rows()):
                return  # a maintainer created its secret and added it during this pass
            self.result.writes += 1
            try:
                with _noted(place):
                    self.client.delete_hook(place.owner, place.name, action.hook.id)
            except NotFound:
                pass  # already deleted
        if row is not None:
            row.delete()


@contextmanager
def _noted(place: Place) -> Iterator[None]:
    """Record what a write within this block shows about the token's permissions, by success or refusal."""
    if place.gone:
        yield
        return
    try:
        yield
    except Forbidden as error:
        permissions.note_hook_write(place.forge, place.owner, place.repository, str(error))
        raise
    permissions.note_hook_write(place.forge, place.owner, place.repository)
