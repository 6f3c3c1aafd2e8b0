"""Deliveries a second of the receiver ÷ those of a bare Django view, as a script on a new database (DATABASE_URL).

Both are driven in this process through the same WSGI handler and middleware, by the same loop, in turns: a server's own work
before them would be the same for both, and only bring the ratio nearer to 1.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import json
import logging
import statistics
import sys
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import django

django.setup()

from django.core.management import call_command  # noqa: E402
from django.db import connection, models  # noqa: E402
from django.http import HttpRequest, HttpResponse  # noqa: E402
from django.urls import path  # noqa: E402
from django.views.decorators.csrf import csrf_exempt  # noqa: E402

from controlplane import urls  # noqa: E402
from controlplane.wsgi import application  # noqa: E402
from enrollment.models import Delivery, Forge, Repository, WebhookConfig  # noqa: E402

#: Deliveries of one turn, and turns of each; the first are for warming up.
TURN, TURNS, WARM = 50, 40, 4
SECRET = "a-secret-of-the-bench"
CAPTURED = Path(__file__).parents[1] / "data" / "gitea" / "deliveries" / "pull_comment_created.issue_comment.json"


class Row(models.Model):
    """What the bare view inserts: what any receiver has to keep. Each delivery once, what it said, and when, to drop it again."""

    name = models.CharField(max_length=100, unique=True)
    event = models.CharField(max_length=50)
    body = models.TextField()
    received_at = models.DateTimeField(auto_now_add=True, db_index=True)

    class Meta:
        app_label = "bench"

    def __str__(self) -> str:
        return self.name


@csrf_exempt
def bare(request: HttpRequest) -> HttpResponse:
    """What the receiver is measured against: an HMAC over the body, and one row."""
    right = hmac.new(SECRET.encode(), request.body, hashlib.sha256).hexdigest()
    if not hmac.compare_digest(right, request.headers.get("X-Gitea-Signature", "")):
        return HttpResponse(status=401)
    given = request.headers
    Row.objects.create(name=given["X-Gitea-Delivery"], event=given["X-Gitea-Event"], body=request.body.decode())
    return HttpResponse(status=202)


def main() -> None:
    logging.disable(logging.CRITICAL)
    call_command("migrate", verbosity=0)
    with connection.schema_editor() as editor:
        editor.create_model(Row)
    urls.urlpatterns.insert(0, path("bare/", bare))
    hook = a_hook()
    places = {"bare": ("/bare/", ""), "receiver": (f"/hooks/{hook.forge_id}/", f"hook={hook.key}")}
    rates: dict[str, list[float]] = {name: [] for name in places}
    for turn in range(TURNS + WARM):
        for name in sorted(places, reverse=bool(turn % 2)):  # who comes first changes
            requests = [delivery(*places[name]) for _ in range(TURN)]
            begun = time.perf_counter()
            for request in requests:
                answered = call(application, request)
                assert answered == 202, f"{name} answered {answered}"
            if turn >= WARM:
                rates[name].append(TURN / (time.perf_counter() - begun))
    assert Delivery.objects.count() == Row.objects.count() == (TURNS + WARM) * TURN
    ours, floor = (statistics.median(rates[name]) for name in ("receiver", "bare"))
    ratio = statistics.median(one / other for one, other in zip(rates["receiver"], rates["bare"], strict=True))
    print(f"{ours:.0f}/s ÷ {floor:.0f}/s = {ratio:.2f}  (median of {TURNS} turns; at least 0.8 is asked for)")


def a_hook() -> WebhookConfig:
    now = datetime.now(UTC)
    forge = Forge.objects.create(name="bench", url="http://forge.example", token="none")
    row = Repository.objects.create(forge=forge, forge_repo_id=3, owner="recipes", owner_id=2, name="keycloak", enrolled_at=now)
    return WebhookConfig.objects.create(
        forge=forge, repository=row, owner="recipes", owner_id=2, key="0123456789abcdef", secret=SECRET, state="verified"
    )


def delivery(where: str, query: str) -> dict[str, Any]:
    """A captured delivery as a WSGI environment, with an id, a comment and a signature of its own."""
    data = json.loads(json.loads(CAPTURED.read_text())["body"])
    data["comment"]["id"] = uuid.uuid4().int % 2**62
    body = json.dumps(data, indent=2).encode()
    return {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": where,
        "QUERY_STRING": query,
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "127.0.0.1:8000",
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(body)),
        "HTTP_X_GITEA_EVENT": "issue_comment",
        "HTTP_X_GITEA_DELIVERY": str(uuid.uuid4()),
        "HTTP_X_GITEA_SIGNATURE": hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest(),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": sys.stderr,
        "wsgi.version": (1, 0),
        "wsgi.multithread": False,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }


def call(application: Callable[..., Any], environment: dict[str, Any]) -> int:
    """One request; gives the status it was answered with."""
    status: list[str] = []
    answer = application(environment, lambda line, headers, *_: status.append(line))
    for _ in answer:
        pass
    answer.close()
    return int(status[0].split()[0])


main()
