"""Who is visiting, by a forge's login, and what the forge says that they may see and do.

Both is asked with the visitor's own token, so that it is what the forge itself would show them; whether they may ask for runs is
asked as about the author of a comment (`access.authorization`). An answer that is not a documented one is no "yes".
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice

from django.conf import settings
from django.contrib.auth import login
from django.contrib.auth.models import User
from django.core.cache import cache
from django.db import IntegrityError, transaction
from django.http import HttpRequest
from django.utils import timezone
from django.utils.crypto import get_random_string

from controlplane.secrets import SecretUnreadable, decrypt, encrypt
from controlplane.untrusted import plain
from enrollment.access import authorization
from enrollment.forge_access.clients import client_for, client_of
from enrollment.forge_access.rate_limit import within
from enrollment.forge_login.oauth import Token, sign_in_of
from enrollment.forges.base import ForgeClient, ForgeError, Garbage
from enrollment.forges.base import User as Somebody
from enrollment.models import Forge, ForgeAccount, Repository
from enrollment.repositories import update_facts

log = logging.getLogger(__name__)

BACKEND = "enrollment.forge_login.backend.ForgeBackend"
#: What a session keeps: the account, the forge's URL, and the encrypted token.
KEPT = "forge_login"
#: For how many seconds answers about what to show are used again, and failures. What is done is always asked for.
FRESH, FAILED = 60, 5
#: The most private repositories of one person that are looked at.
MOST = 1000


class IsOperator(Exception):
    """The account here has rights that no forge's login may give."""


@dataclass(frozen=True)
class Visitor:
    account: ForgeAccount
    client: ForgeClient  #: with the visitor's token
    key: str  #: of this login, for the cache


def log_in(request: HttpRequest, forge: Forge, somebody: Somebody, token: Token) -> None:
    """Log a person in, for as long as the token is good. Makes the account at the first time. Raises IsOperator."""
    account = _account(forge, somebody)
    user = account.user
    if not user.is_active or user.is_staff or user.is_superuser:
        raise IsOperator
    login(request, user, backend=BACKEND)
    request.session[KEPT] = {"account": account.pk, "url": forge.url, "token": encrypt(token.secret)}
    request.session.set_expiry(timezone.now() + timedelta(seconds=token.seconds))


def _account(forge: Forge, somebody: Somebody) -> ForgeAccount:
    """The account of a person, by their id at the forge. One that exists here by the same name is somebody else's."""
    name = plain(somebody.login, 100)
    rows = ForgeAccount.objects.select_related("user").filter(forge=forge, forge_user_id=somebody.id)
    account = rows.first()
    if account is None:
        try:
            with transaction.atomic():
                # The name here is for people who look at lists; nothing is found by it.
                user = User.objects.create_user(f"{name}-{forge.pk}-{get_random_string(10)}", first_name=name)
                return ForgeAccount.objects.create(forge=forge, forge_user_id=somebody.id, login=somebody.login, user=user)
        except IntegrityError:
            account = rows.get()  # another login of the same person was first
    if account.login != somebody.login:
        account.login = somebody.login
        account.save(update_fields=["login"])
        User.objects.filter(pk=account.user_id).update(first_name=name)
    return account


def visitor_of(request: HttpRequest) -> Visitor | None:
    """Who is visiting by a forge's login; None for others, and for who is blocked. Also once that login was switched off."""
    if not hasattr(request, "_visitor"):
        request._visitor = _visitor_of(request)  # type: ignore[attr-defined]
    found: Visitor | None = request._visitor  # type: ignore[attr-defined]
    return found


def _visitor_of(request: HttpRequest) -> Visitor | None:
    kept = request.session.get(KEPT) if getattr(request, "auth", None) is None and request.user.is_authenticated else None
    if not kept:
        return None
    account = ForgeAccount.objects.select_related("forge").filter(pk=kept["account"], user=request.user.pk).first()
    if account is None or account.forge.url != kept["url"] or sign_in_of(account.forge) is None:
        return None
    if account.forge_user_id in account.forge.block:
        return None
    try:
        client = client_of(account.forge, decrypt(kept["token"]))
    except SecretUnreadable:
        return None
    return Visitor(account, client, hashlib.sha256(kept["token"].encode()).hexdigest())


def private_seen(request: HttpRequest) -> Collection[int]:
    """The private repositories (as primary keys) that the request's visitor may see at the forge."""
    visitor = visitor_of(request)
    if visitor is None:
        return ()
    key = f"private-seen-{visitor.key}"
    found: Collection[int] | None = cache.get(key)
    if found is None:
        found = _ask_private(visitor)
        cache.set(key, found or (), FAILED if found is None else FRESH)
    return found or ()


def _ask_private(visitor: Visitor) -> Collection[int] | None:
    """The same, asked; None if the forge did not say."""
    ours = Repository.objects.filter(forge=visitor.account.forge_id, private=True).select_related("forge")
    if not ours.exists():
        return ()
    try:
        with within(settings.CC_CI.http_timeout):
            ids = set(islice(visitor.client.private_repositories(), MOST))
    except ForgeError as error:
        log.warning("cannot see what %s may see: %s", visitor.account, error)
        return None
    number = visitor.account.forge_user_id
    return [row.pk for row in ours.filter(forge_repo_id__in=ids) if number not in row.block]


def person_at(request: HttpRequest, repository: Repository) -> authorization.Person | None:
    """The request's visitor as a person at this repository, asked now; None if they are none there, or may not see it.

    Raises ForgeError and SecretUnreadable if the forge does not say.
    """
    visitor = visitor_of(request)
    if visitor is None or visitor.account.forge_id != repository.forge_id:
        return None
    # With their own token: whoever is gone at the forge, or has another name there by now, is found out.
    somebody = visitor.client.whoami()
    if somebody.id != visitor.account.forge_user_id:
        raise Garbage("the token belongs to somebody else")
    visitor.client.repository_by_id(repository.forge_repo_id)
    client = client_for(repository.forge)
    update_facts(repository, client)
    return authorization.person(somebody, repository, client)


def may_ask_at(request: HttpRequest, repository: Repository) -> bool:
    """Whether to offer the request's visitor what only those get who may ask for runs there."""
    visitor = visitor_of(request)
    if visitor is None or visitor.account.forge_id != repository.forge_id:
        return False
    key = f"may-ask-{visitor.key}-{repository.pk}"
    found: bool | None = cache.get(key)
    if found is None:
        seconds = FRESH
        try:
            with within(settings.CC_CI.http_timeout):
                person = person_at(request, repository)
            found = person is not None and person.trusted
        except (ForgeError, SecretUnreadable) as error:
            log.warning("cannot see what %s may do at %s: %s", visitor.account, repository, error)
            found, seconds = False, FAILED
        cache.set(key, found, seconds)
    return found
