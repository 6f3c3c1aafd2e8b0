"""schemathesis finds nothing: whatever the description allows, or forbids, is answered as it says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from django.conf import settings
from django.contrib.auth.models import User
from django.core.management import get_commands, load_command_class
from django.core.signals import request_finished, request_started
from django.db import close_old_connections
from django.test import Client
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from controlplane import api, tokens
from controlplane.config import BASE_DIR
from controlplane.models import ApiToken
from controlplane.wsgi import application
from runs.models import State
from tests.factories import (
    CaseResultFactory,
    DeferredItemFactory,
    InfraAppFactory,
    RepositoryFactory,
    TestRunFactory,
    UpgradeFactory,
)

pytestmark = [pytest.mark.django_db, pytest.mark.slow(8)]

MODES = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)


@pytest.fixture
def in_one_transaction() -> Iterator[None]:
    """Requests leave the test's connection open, as those of Django's own test client do."""
    for signal in (request_started, request_finished):
        signal.disconnect(close_old_connections)
    yield
    for signal in (request_started, request_finished):
        signal.connect(close_old_connections)


@pytest.mark.usefixtures("in_one_transaction")
@pytest.mark.parametrize("count", [60, pytest.param(2000, marks=pytest.mark.long)])
def test_all_answers_are_as_described(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings.CC_CI, "api_requests_per_minute", 100_000)
    monkeypatch.setattr(settings, "AXES_FAILURE_LIMIT", 100_000)  # it tries wrong tokens, too
    run, waiting = CaseResultFactory().stage.run, TestRunFactory(state=State.AWAITING_APPROVAL, trusted=False)
    DeferredItemFactory()
    app = UpgradeFactory(app=InfraAppFactory()).app
    token = tokens.make(User.objects.create_superuser("alice"), "schemathesis", ApiToken.Scope.values)[1]
    headers = {"Authorization": f"Bearer {token}"}
    schema = schemathesis.openapi.from_wsgi("/api/", application)
    known = ({"run_id": str(run.pk)}, {"run_id": str(waiting.pk)}, {"recipe_id": run.repository_id}, {"app_id": app.pk})
    strategies, seen = [], set()
    for result in schema.get_all_operations():
        operation = result.ok()
        assert operation is not None
        for mode in MODES:
            strategies.append(operation.as_strategy(mode))
            # Rows that are there: random ids find none.
            strategies += [
                operation.as_strategy(mode, path_parameters=row) for row in known if f"{{{next(iter(row))}}}" in operation.path
            ]

    @examples(
        max_examples=count,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=st.one_of(strategies))
    def each(case: Any) -> None:
        answer = case.call_and_validate(headers=headers)
        seen.add((case.operation.label, answer.status_code))

    each()
    assert {status for _, status in seen} >= {200, 404, 422}


DOC = (BASE_DIR / "docs/api.md").read_text()


def test_the_docs_name_each_operation_as_it_is() -> None:
    described = {
        (f"{method.upper()} {path}", one["x-scope"], one["description"])
        for path, methods in api.description()["paths"].items()
        for method, one in methods.items()
    }
    assert set(re.findall(r"^\| `((?:GET|POST) /\S+)` \| `(\w+)` \| (.+) \|$", DOC, re.MULTILINE)) == described
    assert re.findall(r"^\| `(\w+)` \| ((?!`).+) \|$", DOC, re.MULTILINE) == [
        (scope.value, scope.label) for scope in ApiToken.Scope
    ]
    statuses = {int(status) for row in re.findall(r"^\| ([\d, ]+) \|", DOC, re.MULTILINE) for status in row.split(", ")}
    assert statuses == {*api._ERRORS, 405}


def test_the_examples_of_the_docs_are_understood(client: Client) -> None:
    app = InfraAppFactory()
    RepositoryFactory(pk=3)
    run = TestRunFactory(pk="7d444840-9dc0-11d1-b245-5ffdce74fad2")
    token = tokens.make(User.objects.create_superuser("alice"), "docs", ApiToken.Scope.values)[1]
    examples = re.findall(r"""curl [^"]+"[^"]+"(.*?)"https://ci\.example\.org(/api/\S*)"$""", DOC, re.MULTILINE | re.DOTALL)
    assert len(examples) == 8 and app and run
    for options, path in examples:
        body = re.search(r"-d '(.*)'", options)
        method = "POST" if body or "-X POST" in options else "GET"
        data = body[1].encode() if body else b""
        headers = {"authorization": f"Bearer {token}"}
        answer = client.generic(method, path, data, content_type="application/json", headers=headers)
        assert answer.status_code == (404 if body else 200), (path, answer.content)  # that recipe is not watched here


def test_the_command_lines_of_the_docs_are_understood() -> None:
    lines = [
        line.partition("#")[0].split() for line in re.findall(r"^cc-ci (.*)$", DOC.replace('"nightly job"', "job"), re.MULTILINE)
    ]
    assert len(lines) == 9
    for name, *words in lines:
        load_command_class(get_commands()[name], name).create_parser("cc-ci", name).parse_args(words)
