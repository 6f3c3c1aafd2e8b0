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
    Rejected,
    Unauthorized,
    Unavailable,
)
from enrollment.hook_models import hooks_address
from enrollment.hook_pass import Pass, Told, as_wanted, not_taken, told_by, why
from enrollment.hook_rows import Place, current_first, drop_refused, ensure_row, replace_secret
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
#: Seconds that a pass holds its lease without renewing it, and how many more while it writes: the budget may keep it waiting.
LEASE_SECONDS = 120
PATIENCE_SECONDS = 600


class LeaseLost(Exception):
    """Another process sees to the forge's hooks by now."""


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
        except LeaseLost:
            result.skipped, result.unfinished = "another process has taken over its hooks", True
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
        self._left_behind({row.owner_id for row in rows})

    def _left_behind(self, owner_ids: set[int | None]) -> None:
        """Remove the hooks of organisations, and of repositories, of which nothing is enrolled here any more."""
        left: dict[Place, list[WebhookConfig]] = defaultdict(list)
        for hook in [hook for (pk, _), hooks in self.before.items() if pk is None for hook in hooks]:
            if hook.owner_id is None:  # see `hook_models.leave_behind`
                owner, _, name = hook.owner.partition("/")
                left[Place(self.forge, owner, None, gone=name)].append(hook)
            elif hook.owner_id not in owner_ids:
                left[Place(self.forge, hook.owner, hook.owner_id)].append(hook)
        for place, hooks in left.items():
            if self.due_only and not any(hook.next_check_at is None or hook.next_check_at <= self.now for hook in hooks):
                continue
            if time.monotonic() > self.deadline:
                self.result.unfinished = True
                return
            self._settle(place, "nothing of it is enrolled any more")

    def _due_of(self, name: str, **only: None) -> Iterator[tuple[int, bool]]:
        """For each place with rows whether it is time to look at it."""
        due: dict[int, bool] = {}
        rows = WebhookConfig.objects.filter(forge=self.forge, **only).exclude(**{name: None})
        for pk, at in rows.values_list(name, "next_check_at"):
            due[pk] = due.get(pk, False) or at is None or at <= self.now
        yield from due.items()

    def _owner(self, group: list[Repository], owner_id: int | None, hooked: dict[int, bool], owners: dict[int, bool]) -> None:
        active = [row for row in group if row.active]
        # What is watched no longer keeps the name that it had.
        witness = (active or group)[0]
        place = Place(self.forge, witness.owner, owner_id)
        # One for all only where all want it: an organisation's hook tells of every repository it has.
        for_all = owner_id is not None and bool(active) and all(is_wanted(row) for row in active)
        told = self._organisation(place, owners, witness) if for_all else Told.NO
        for row in group:
            unwanted = self._unwanted(row, told)
            if unwanted and row.pk not in hooked:
                continue
            if told == Told.DOUBT and not any(hook.remote_id or hook.by_hand for hook in self.before[row.pk, None]):
                continue
            if self.due_only and not hooked.get(row.pk, True):
                continue
            if time.monotonic() > self.deadline:
                self.result.unfinished = True
                return
            self._settle(Place(self.forge, row.owner, row.owner_id, row), unwanted, row)
        if not for_all and owner_id in owners and (not self.due_only or owners[owner_id]):
            # Last: the repositories' own stand by now.
            reason = "not all of its repositories want a hook" if active else "none of its repositories is watched"
            self._settle(place, reason, witness)

    def _organisation(self, place: Place, owners: dict[int, bool], witness: Repository) -> Told:
        """See to an organisation's hook. Returns whether it is the one that tells of its repositories."""
        if place.owner_id is not None and self.due_only and not owners.get(place.owner_id, True):
            return told_by(place.rows())
        actions = self._settle(place, "", witness)
        if not self.apply and any(action.do in (Do.CREATE, Do.UPDATE, Do.ROTATE) for action in actions):
            return Told.YES  # it would be, once that is done
        rows = place.rows()
        if not self.apply and any(action.do == Do.REFUSED for action in actions):
            return Told.YES if told_by(rows) == Told.YES and rows[0].state == State.VERIFIED else Told.NO
        return told_by(rows)

    @staticmethod
    def _unwanted(row: Repository, told: Told) -> str:
        if not row.active:
            return "the repository is watched no longer"
        if not is_wanted(row):
            return "hooks are switched off for it"
        return "the organisation's hook tells of it" if told == Told.YES else ""

    # --- one place

    def _hold(self, write: bool = False) -> None:
        """Hold the lease for longer, in any case before a write. Raises LeaseLost when it is somebody else's by now."""
        if self.held is None or not (write or time.monotonic() > self.renew_at):
            return
        if not self.held.renew(LEASE_SECONDS + (PATIENCE_SECONDS if write else 0)):
            raise LeaseLost
        self.renew_at = time.monotonic() + LEASE_SECONDS / 4

    def _settle(self, place: Place, unwanted: str, witness: Repository | None = None) -> list[Action]:
        """Bring one place in order. Returns what is to be done there, or was. `witness` tells by its id how the place is called
        now: itself, or one of the organisation's repositories."""
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
                    # The name may be another's by now, and no id tells: what carries a key of these rows is theirs, and no more.
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
                # Nobody may have listed them, or this very thing could not be done.
                if not self._comes_of_a_move(place, witness, rows, error):
                    done.append(self._refuse(place, rows, why(place, error)))
                break
            except ForgeError as error:
                self.result.problems.append(f"{place}: {error}. {error.advice}")
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
        """Whether a refusal, if it is the first, comes of an old name: one that is nobody's now, or somebody else's."""
        first = self.apply and any(row.state not in (State.REFUSED, State.ROTATING) for row in rows)
        try:
            return first and (not place.repository or isinstance(error, NotFound)) and self._has_moved(place, witness, rows)
        except (Forbidden, NotFound):
            return False

    def _has_moved(self, place: Place, witness: Repository | None, rows: list[WebhookConfig]) -> bool:
        """Whether a place is called otherwise by now: what stands under the name known here is somebody else's then. The new
        name is taken over, and the place is looked at again in the next pass. Raises ForgeError."""
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
        from enrollment.enrolling import FACTS, copy_facts  # which asks for rights, and those know us

        self.result.problems.append(f"{place} has another name now, {remote.full_name}; its hooks wait for the next pass")
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
        known = [as_wanted(row, self.now) for row in rows]
        if not unwanted and all(row.rotating for row in known):
            known.insert(0, Wanted("", hooks_address(self.forge.pk)))  # only when nothing is applied
        reenable = settings.CC_CI.webhook_reenable
        return plan(str(place), known, found, address=hooks_address(self.forge.pk), unwanted=unwanted, reenable=reenable)

    def _refuse(self, place: Place, rows: list[WebhookConfig], reason: str) -> Action:
        action = Action(Do.REFUSED, str(place), reason)
        self.result.actions.append(action)
        for row in rows if self.apply else []:
            if row.state != State.ROTATING:
                move(row, "refuse", reason)
            elif row.ends_at and row.ends_at <= self.now:
                row.delete()  # its secret counts no more; the hook itself is out of reach
        if self.apply:
            self._looked(place, rows)
        return action

    def _looked(self, place: Place, rows: list[WebhookConfig]) -> None:
        later = self.now + timedelta(hours=CHECK_HOURS * random.uniform(0.9, 1.1))  # noqa: S311
        looked = WebhookConfig.objects.filter(pk__in=[row.pk for row in rows if row.pk])
        if not place.gone and any((row.owner, row.owner_id) != (place.owner, place.owner_id) for row in rows):
            looked.update(owner=place.owner, owner_id=place.owner_id)
        # One whose end is set is looked at again then.
        looked.exclude(ends_at__gt=self.now).update(checked_at=self.now, next_check_at=later)

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
        self._looked(place, rows)

    def _create(self, place: Place, row: WebhookConfig, action: Action) -> None:
        move(row, "drift", action.reason)
        self.result.writes += 1
        try:
            with _noted(place):
                hook = self.client.create_hook(place.owner, place.name, url=row.url, secret=row.reveal_secret(), events=EVENTS)
        except Rejected as error:
            self._refuse(place, [row], not_taken(row, error))
            return
        self._registered(row, hook, "made" if not row.remote_id else f"made again: {action.reason}")
        if left := differences(hook, row.url):
            self.result.problems.append(f"{place}: the forge made the hook and says: {'; '.join(left)}")
            move(row, "drift", "; ".join(left))

    def _update(self, place: Place, row: WebhookConfig, action: Action, hook: Hook) -> None:
        move(row, "drift", action.reason)
        whole = replace(hook, url=row.url, events=frozenset(EVENTS), active=True, content_type="json", branch_filter="*")
        self.result.writes += 1
        try:
            with _noted(place):
                answer = self.client.edit_hook(place.owner, place.name, whole)
        except Rejected as error:
            self._refuse(place, [row], not_taken(row, error))
            return
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

    if place.gone:
        yield
        return
    try:
        yield
    except Forbidden as error:
        rights.note_hook_write(place.forge, place.owner, place.repository, str(error))
        raise
    rights.note_hook_write(place.forge, place.owner, place.repository)
