"""Template tags for all apps: times, external URLs, the version."""

from __future__ import annotations

from datetime import datetime
from urllib.parse import urlsplit

from django import template
from django.conf import settings
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from controlplane import untrusted

register = template.Library()


@register.simple_tag
def version() -> str:
    """The version of cc-ci. A tag, not a context processor: error pages have no context processors."""
    return str(settings.VERSION)


@register.inclusion_tag("controlplane/_command.html")
def command(text: str) -> dict[str, str]:
    """Something to type, with a button that copies it where scripts run."""
    return {"text": text}


@register.filter
def when(value: datetime | None) -> SafeString | str:
    """A time as `5 min ago`, or as a date if more than a month ago; the exact time is its title."""
    if value is None:
        return "–"
    return format_html('<time datetime="{}" title="{}">{}</time>', value.isoformat(), exact(value), _relative(value))


@register.filter
def exact(value: datetime | None) -> str:
    """A time to the second, in UTC, such as `3 Mar 2026, 14:05:09 UTC`."""
    if value is None:
        return "–"
    value = timezone.localtime(value)
    return f"{value.day} {value:%b %Y, %H:%M:%S} {value.tzname()}"


def _relative(value: datetime) -> str:
    seconds = (timezone.now() - value).total_seconds()
    if seconds < -60 or seconds >= 30 * 86400:
        value = timezone.localtime(value)
        return f"{value.day} {value:%b %Y}"
    if seconds < 5:
        return "just now"
    for size, unit in ((86400, "day"), (3600, "h"), (60, "min")):
        if seconds >= size:
            number = int(seconds // size)
            return f"{number} {unit}{'s' if unit == 'day' and number > 1 else ''} ago"
    return f"{int(seconds)} s ago"


@register.filter
def plain(text: str) -> str:
    """Text from outside for where it is shown beyond our own pages."""
    return untrusted.plain(text, at_forge=False)


@register.filter
def weblink(url: str) -> str:
    """A forge's URL if it is http(s); else empty, so that no `javascript:` becomes a link."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    return url if parts.scheme in ("http", "https") and parts.netloc else ""
