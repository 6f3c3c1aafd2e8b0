"""doctor's lines on webhooks: whether the forges can reach us, which hooks are unhealthy, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from controlplane.registry import Finding
from enrollment.models import Forge, Repository, WebhookConfig
from enrollment.models.webhooks import hooks_address
from enrollment.webhooks.lifecycle import State
from enrollment.webhooks.reconcile import is_hook_desired

#: What to type, or to do, about each problematic state.
FIXES = {
    State.REFUSED: "fix what the reason says, or add the hook manually: the repository's page in the admin has the steps",
    State.UNHEALTHY: "cc-ci reconcile_webhooks; then check the hook's recent deliveries at the forge",
    State.DRIFTED: "cc-ci reconcile_webhooks --apply",
    State.DISABLED: "enable it at the forge, or set CC_CI_WEBHOOK_REENABLE=1",
}


def check_webhooks() -> Iterator[Finding]:
    """Yields nothing where no hook is desired and none exists."""
    for forge in Forge.objects.filter(enabled=True):
        rows = list(Repository.objects.filter(forge=forge, active=True).select_related("forge"))
        hooks = list(WebhookConfig.objects.filter(forge=forge).select_related("repository"))
        if any(is_hook_desired(row) for row in rows) or hooks:
            yield from _check(forge, rows, hooks)


def _check(forge: Forge, rows: list[Repository], hooks: list[WebhookConfig]) -> Iterator[Finding]:
    name, clean = f"webhooks of {forge.name}", True
    host = urlsplit(hooks_address(forge.pk)).hostname
    if host in ("localhost", "127.0.0.1", "::1") and urlsplit(forge.url).hostname not in ("localhost", "127.0.0.1", "::1"):
        clean = False
        text = f"the forge cannot deliver to {hooks_address(forge.pk)}: only this host can reach that address"
        yield Finding(name, "error", text, "CC_CI_BASE_URL=https://ci.example.org, or CC_CI_WEBHOOK_URL")
    # A token rarely owns the organisation; that matters only if the repositories' hooks are refused, too.
    shown = [hook for hook in hooks if hook.repository_id is not None or hook.state != State.REFUSED]
    for state, fix in FIXES.items():
        if found := [hook for hook in shown if hook.state == state]:
            clean = False
            places = ", ".join(hook.place for hook in found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
            yield Finding(name, "warning", f"{state}: {places}. {found[0].reason}".rstrip(), fix)
    if clean:
        verified = sum(hook.state == State.VERIFIED for hook in hooks)
        yield Finding(name, "ok", f"{verified} of {len(shown)} verified, {len(rows)} repositories; polling continues as well")
