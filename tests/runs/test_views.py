"""The pages of runs: what they say, to whom, and that texts from outside stay texts."""

from __future__ import annotations

import gzip
import re
import uuid
import zipfile
from datetime import timedelta
from io import BytesIO

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from runs.models import CaseResult, State, TestRun
from tests.browser.examples import HOSTILE, hostile
from tests.factories import (
    ArtefactFactory,
    CaseResultFactory,
    PullRequestFactory,
    RepositoryFactory,
    RunEventFactory,
    StageResultFactory,
    TestRunFactory,
    details,
)

pytestmark = pytest.mark.django_db


@pytest.fixture
def staff(client: Client) -> Client:
    client.force_login(User.objects.create_superuser("operator"))
    return client


@pytest.fixture
def somebody() -> Client:
    client = Client()
    client.force_login(User.objects.create_user("somebody"))
    return client


def page(client: Client, run: TestRun) -> str:
    answer = client.get(run.get_absolute_url())
    assert answer.status_code == 200
    return answer.content.decode()


def failed_run() -> TestRun:
    run: TestRun = TestRunFactory(failed=True, log="the whole log\n")
    stage = StageResultFactory(run=run, name="custom", status="failed", reason="1 of 2 tests failed.", seconds=75)
    CaseResultFactory(stage=stage, name="test_that_passes")
    CaseResultFactory(stage=stage, name="test_that_fails", status="failed", message="assert 1 == 2", output="line one\nline two")
    return run


# --- what is kept of a run


def test_the_page_shows_level_extras_lint_times_and_files(client: Client) -> None:
    run = TestRunFactory(failed=True, details=details(), level=2)
    ArtefactFactory(run=run)
    ArtefactFactory(run=run, name="picture.png", kind="picture", data=b"png")
    text = page(client, run)
    for words in (
        "Level 2 of 5",
        "The recipe declares no backups.",
        "1 extra test of this recipe was not run.",
        "extra/test_heavy.py::test_many_users",
        "C010 warning",
        "compose.yml:12",
        "4.2 s",
        "Log of app",
        "counts once it is merged",
        f"<code>sha256:{'a1' * 32}</code>",
        "its tag moved: pulled again",
        "none: built on the server",
        "upgraded from <bdi>1.0.0+2.0</bdi>",
        "* **Backups**: No\n* **Tests**: 3</code>",
        f'<img src="/runs/{run.pk}/files/picture.png"',
    ):
        assert words in text, words


def test_a_running_run_has_no_files_yet(client: Client) -> None:
    assert "Times and files" not in page(client, TestRunFactory(running=True))


@pytest.mark.parametrize(
    ("kind", "content_type"),
    [("picture", "image/png"), ("results", "application/json"), ("junit", "text/plain"), ("service_log", "text/plain")],
)
def test_a_file_of_a_run_is_never_a_page(client: Client, kind: str, content_type: str) -> None:
    file = ArtefactFactory(kind=kind, data=b"<script>alert(1)</script>")
    answer = client.get(file.get_absolute_url())
    assert answer.content == b"<script>alert(1)</script>"
    assert answer["Content-Type"].startswith(content_type)
    assert answer["X-Content-Type-Options"] == "nosniff"
    assert "sandbox" in answer["Content-Security-Policy"]


def test_a_file_of_a_private_run_is_for_those_who_may_see_it(client: Client, somebody: Client, staff: Client) -> None:
    file = ArtefactFactory(run__pull_request__repository__private=True)
    stranger = Client().get(file.get_absolute_url())
    assert stranger.status_code == 302 and "login" in stranger["Location"]
    assert somebody.get(file.get_absolute_url()).status_code == 404
    answer = staff.get(file.get_absolute_url())
    assert answer.status_code == 200 and "private" in answer["Cache-Control"]


def test_a_file_that_is_not_there(client: Client) -> None:
    run = TestRunFactory(passed=True)
    assert client.get(reverse("run-artefact", args=[run.pk, "nothing.txt"])).status_code == 404


# --- one run


def test_a_failed_run_answers_the_questions_in_their_order(client: Client) -> None:
    text = page(client, failed_run())
    wanted = [
        "</bdi> failed</h1>",
        "1 test failed",
        "test_that_fails",
        "assert 1 == 2",
        "line two",
        "Next steps",
        "!testme retry",
        "Last passed",
        "Stages",
        "1 min 15 s",
        "1 of 2 tests failed.",
        "test_that_passes",
        "the whole log",
        "Trail",
    ]
    places = [text.index(words) for words in wanted]
    assert places == sorted(places)


def test_an_error_is_told_once(client: Client) -> None:
    error = "No HTTP response from 10.0.0.7:8080."
    level = {"value": 0, "rungs": [{"level": 1, "name": "install", "status": "failed", "reason": f"install failed: {error}"}]}
    run = TestRunFactory(state=State.FAILED, reason=f"install: {error}", details=details(level=level))
    stage = StageResultFactory(run=run, name="install", order=0, status="failed", reason=error)
    CaseResultFactory(stage=stage, name="the app answers", file="generic", status="failed", message=error, output="app | hello")
    text = client.get(run.get_absolute_url()).content.decode().partition("</head>")[2]
    assert text.count(error.rstrip(".")) == 1
    assert "app | hello" in text


def test_the_facts_link_to_the_forge(client: Client) -> None:
    run = failed_run()
    text = page(client, run)
    assert f'href="{run.repository.html_url}/commit/{run.sha}"' in text
    assert f'href="{run.pull_request.html_url}"' in text
    assert "by <bdi>alice</bdi>" in text
    assert "swarm" in text


def test_a_passed_run_says_so_in_words_and_in_the_tab(client: Client) -> None:
    run = TestRunFactory(passed=True, pull_request__repository__name="hello-web")
    text = page(client, run)
    assert "<bdi>hello-web</bdi> passed</h1>" in text
    assert "<title>passed: hello-web · cc-ci</title>" in text
    assert "favicon-passed.svg" in text
    assert "Last passed" not in text


@pytest.mark.parametrize("state", State.values)
def test_every_state_has_a_page(client: Client, state: str) -> None:
    assert "Next steps" in page(client, TestRunFactory(state=state))


def test_a_run_of_a_branch_has_no_pull_request(client: Client) -> None:
    text = page(client, TestRunFactory(pull_request=None, passed=True))
    assert "refs/heads/main" in text
    assert "Pull request" not in text
    assert "!testme retry" not in text


def test_warnings_and_an_unclean_teardown_stand_out(client: Client) -> None:
    run = TestRunFactory(passed=True, warnings=["No sandbox."], teardown={"clean": False, "left": ["volume x"], "seconds": 1})
    text = page(client, run)
    assert "<bdi>No sandbox.</bdi>" in text
    assert "The teardown left something behind." in text
    assert "volume x" in text


def test_a_clean_teardown_is_no_callout(client: Client) -> None:
    assert "left something behind" not in page(client, TestRunFactory(passed=True))


def test_a_running_run_shows_its_steps(client: Client) -> None:
    run = TestRunFactory(running=True, stages=["install", "upgrade", "custom"])
    RunEventFactory(run=run, kind="stage_started", stage="install", seq=1)
    RunEventFactory(run=run, kind="stage_finished", stage="install", seq=2, data={"status": "passed"})
    RunEventFactory(run=run, kind="stage_started", stage="upgrade", seq=3)
    steps = re.findall(r'step-name">(\w+)</span>\s*<span class="step-status">([\w ]+)<', page(client, run))
    assert steps == [("install", "passed"), ("upgrade", "running"), ("custom", "waiting")]


def test_nothing_waits_in_a_run_that_ended_without_results(client: Client) -> None:
    run = TestRunFactory(state=State.ERRORED, stages=["install", "custom"], attempt=1)
    RunEventFactory(run=run, kind="stage_started", stage="install", seq=1)
    text = page(client, run)
    assert "not finished" in text
    assert "not run" in text
    assert "waiting" not in text


def test_a_queued_run_says_its_place(client: Client) -> None:
    first = TestRunFactory()
    assert "Its place in the queue is 2." in page(client, TestRunFactory())
    assert "It is next in the queue." in page(client, first)


def test_a_run_that_is_being_stopped_says_so(client: Client) -> None:
    run = TestRunFactory(running=True, stop_wanted="cancelled", stop_reason="asked by bob")
    text = page(client, run)
    assert "being stopped" in text
    assert "asked by bob" in text


def test_an_older_run_points_to_the_newer_one(client: Client) -> None:
    pull = PullRequestFactory()
    old = TestRunFactory(pull_request=pull, failed=True)
    new = TestRunFactory(pull_request=pull, repository=pull.repository)
    TestRunFactory(repository=pull.repository)  # of another pull request
    assert "a newer run</a>" in page(client, old)
    assert new.get_absolute_url() in page(client, old)
    assert "a newer run</a>" not in page(client, new)


def test_since_when_it_fails(client: Client) -> None:
    row = RepositoryFactory()
    good = TestRunFactory(repository=row, passed=True, created_at=timezone.now() - timedelta(days=3))
    text = page(client, TestRunFactory(repository=row, failed=True))
    assert f'Last passed</dt><dd><a href="{good.get_absolute_url()}">' in text
    assert "Never on this server" in page(client, TestRunFactory(failed=True))


def test_it_says_itself_how_to_follow_without_javascript(client: Client) -> None:
    assert "This page does not update itself." in page(client, TestRunFactory(running=True))
    assert "This page does not update itself." not in page(client, TestRunFactory(passed=True))


def test_only_the_end_of_a_long_log_is_on_the_page(client: Client) -> None:
    run = TestRunFactory(passed=True, log="FIRST\n" + "x" * 200_100 + "\nLAST\n")
    text = page(client, run)
    assert "FIRST" not in text
    assert "LAST" in text
    assert "Only the end is shown here" in text
    assert b"".join(client.get(reverse("run-log", args=[run.id]))).startswith(b"FIRST")


def test_staff_gets_a_link_to_the_admin(client: Client, staff: Client) -> None:
    run = TestRunFactory(passed=True)
    address = reverse("admin:runs_testrun_change", args=[run.pk])
    assert address in page(staff, run)
    assert address not in page(Client(), run)


def test_an_unknown_run_is_not_found(client: Client) -> None:
    answer = client.get(reverse("run", args=[uuid.uuid4()]))
    assert answer.status_code == 404
    assert "Page not found" in answer.content.decode()


def test_the_page_of_a_run_with_many_tests_takes_few_queries(client: Client, django_assert_max_num_queries) -> None:  # type: ignore[no-untyped-def]
    run = TestRunFactory(failed=True)
    for order in range(4):
        stage = StageResultFactory(run=run, order=order, status="failed")
        for _ in range(5):
            CaseResultFactory(stage=stage, status="failed")
    with django_assert_max_num_queries(10):
        page(client, run)


# --- live


def test_live_says_what_the_page_says(client: Client) -> None:
    run = failed_run()
    answer = client.get(reverse("run-live", args=[run.id])).json()
    assert answer["state"] == "failed"
    assert answer["final"] is True
    assert answer["log"] == "the whole log\n"
    assert answer["title"].startswith("failed: ")
    text = page(client, run)
    for name in ("summary", "failing", "stages", "trail"):
        assert answer["parts"][name].strip() in text


def test_live_leaves_out_a_log_that_the_reader_has(client: Client) -> None:
    run = TestRunFactory(running=True, log="one\n", log_offset=4)
    address = reverse("run-live", args=[run.id])
    mark = client.get(address).json()["log_mark"]
    assert client.get(address, {"seen": mark}).json()["log"] is None
    TestRun.objects.update(log="one\ntwo\n", log_offset=8)
    answer = client.get(address, {"seen": mark}).json()
    assert (answer["log"], answer["more"]) == ("two\n", True)


@pytest.mark.parametrize("seen", ["", "0-4-4", "1-x-4", "1-²-4", "1-99-4", "1-0-0", "nonsense", "1-" + "9" * 400])
def test_live_says_all_to_a_reader_whose_log_is_not_known(client: Client, seen: str) -> None:
    run = TestRunFactory(running=True, log="one\ntwö\n", log_offset=10, attempt=1)
    TestRun.objects.update(log_offset=10)  # nine bytes are kept, one is lost
    answer = client.get(reverse("run-live", args=[run.id]), {"seen": seen}).json()
    assert (answer["log"], answer["more"]) == ("one\ntwö\n", False)


def test_the_log_is_plain_text_that_no_browser_takes_for_a_page(client: Client) -> None:
    run = TestRunFactory(passed=True, log="<script>alert(1)</script>")
    answer = client.get(reverse("run-log", args=[run.id]))
    assert answer["Content-Type"] == "text/plain; charset=utf-8"
    assert answer["X-Content-Type-Options"] == "nosniff"
    assert b"".join(answer) == b"<script>alert(1)</script>"


def test_a_long_log_is_had_whole(client: Client) -> None:
    run = TestRunFactory(passed=True, log="the end\n")
    whole = b"the beginning\n" * 20_000 + b"the end\n"
    file = ArtefactFactory(run=run, name="log.txt.gz", kind="log", data=gzip.compress(whole))
    assert b"".join(client.get(reverse("run-log", args=[run.id]))) == whole
    assert client.get(file.get_absolute_url())["Content-Type"] == "application/gzip"


def test_all_files_in_one_archive(client: Client) -> None:
    run = TestRunFactory(passed=True, log="the log\n")
    ArtefactFactory(run=run, name="service-app.log", data=b"an app's log")
    ArtefactFactory(run=run, name="picture.png", kind="picture", data=b"png")
    assert reverse("run-files", args=[run.pk]) in page(client, run)
    answer = client.get(reverse("run-files", args=[run.pk]))
    assert answer["Content-Disposition"] == f'attachment; filename="run-{run.short_id}.zip"'
    with zipfile.ZipFile(BytesIO(b"".join(answer))) as files:
        assert {name: files.read(name) for name in files.namelist()} == {
            "service-app.log": b"an app's log",
            "picture.png": b"png",
            "log.txt": b"the log\n",
        }


def test_the_tests_of_a_run_are_searched(client: Client) -> None:
    run = TestRunFactory(passed=True)
    stage = StageResultFactory(run=run, name="custom")
    for number in range(600):
        CaseResultFactory(stage=stage, name=f"test_{number:03}", file="tests/test_many.py")
    found = client.get(run.get_absolute_url(), {"tests": " TEST_59 "}).content.decode()
    assert "10 of 600 tests of custom" in found and "test_599" in found and "test_100" not in found
    assert "test_599" not in page(client, run)
    nothing = client.get(run.get_absolute_url(), {"tests": "<b>"}).content.decode()
    assert "0 of 600 tests of custom" in nothing and 'value="&lt;b&gt;"' in nothing


# --- who may see what


@pytest.fixture
def private() -> TestRun:
    run: TestRun = TestRunFactory(
        pull_request__repository__private=True, pull_request__repository__name="hidden-recipe", passed=True
    )
    return run


@pytest.mark.parametrize("name", ["run", "run-log", "run-files"])
def test_a_private_run_sends_a_stranger_to_the_login(client: Client, private: TestRun, name: str) -> None:
    address = reverse(name, args=[private.id])
    answer = client.get(address)
    assert answer.status_code == 302
    assert answer["Location"] == f"{reverse('login')}?next={address}"


def test_live_of_a_private_run_is_forbidden_in_json(client: Client, private: TestRun) -> None:
    answer = client.get(reverse("run-live", args=[private.id]))
    assert answer.status_code == 403
    assert answer.json() == {"error": "login"}


@pytest.mark.parametrize("name", ["run", "run-log", "run-live"])
def test_a_private_run_is_not_there_for_an_account_without_rights(somebody: Client, private: TestRun, name: str) -> None:
    assert somebody.get(reverse(name, args=[private.id])).status_code == 404


@pytest.mark.parametrize("name", ["run", "run-log", "run-live"])
def test_staff_sees_a_private_run(staff: Client, private: TestRun, name: str) -> None:
    answer = staff.get(reverse(name, args=[private.id]))
    assert answer.status_code == 200


@pytest.mark.parametrize("address", ["/", "/runs/", "/runs/?repository=recipes/hidden-recipe", "/runs/?state=passed"])
def test_lists_do_not_tell_strangers_of_private_runs(client: Client, somebody: Client, private: TestRun, address: str) -> None:
    for reader in (client, somebody):
        text = reader.get(address).content.decode()
        assert private.get_absolute_url() not in text
        assert "<bdi>recipes/hidden-recipe</bdi>" not in text
        assert '<option value="recipes/hidden-recipe"' not in text


@pytest.mark.parametrize("address", ["/", "/runs/"])
def test_lists_tell_staff_of_private_runs(staff: Client, private: TestRun, address: str) -> None:
    text = staff.get(address).content.decode()
    assert private.get_absolute_url() in text
    assert '<span class="tag">private</span>' in text


def test_a_public_run_does_not_point_to_a_private_one(client: Client, private: TestRun) -> None:
    public = TestRunFactory(failed=True)
    assert private.get_absolute_url() not in page(client, public)


# --- the list


def rows(client: Client, query: str = "") -> list[str]:
    return re.findall(r'class="row-link" href="/runs/([0-9a-f-]+)/"', client.get(f"/runs/{query}").content.decode())


def test_the_list_has_the_newest_first(client: Client) -> None:
    old = TestRunFactory(created_at=timezone.now() - timedelta(hours=1))
    new = TestRunFactory()
    assert rows(client) == [str(new.id), str(old.id)]


def test_the_list_is_filtered(client: Client) -> None:
    passed = TestRunFactory(passed=True, pull_request__repository__name="one")
    queued = TestRunFactory(pull_request__repository__name="two")
    assert rows(client, "?state=passed") == [str(passed.id)]
    assert rows(client, "?state=active") == [str(queued.id)]
    assert rows(client, "?repository=recipes/two") == [str(queued.id)]
    assert rows(client, "?repository=recipes/two&state=passed") == []
    assert len(rows(client, "?state=nonsense&page=nonsense")) == 2


def test_a_page_of_the_list_keeps_the_filter(client: Client) -> None:
    row = RepositoryFactory(name="many")
    pull = PullRequestFactory(repository=row)
    TestRunFactory.create_batch(30, pull_request=pull, repository=row)
    at = timezone.now()
    TestRun.objects.filter(pk__in=[run.pk for run in TestRun.objects.all()[:20]]).update(created_at=at)  # as old, over the edge
    seen, path = [], "?repository=recipes/many"
    while path:
        text = client.get(f"/runs/{path}").content.decode()
        seen += rows(client, path)
        found = re.search(r'rel="next" href="([^"]+)"', text)
        path = found[1].replace("&amp;", "&") if found else ""
        assert not path or "repository=" in path
    assert len(seen) == len(set(seen)) == 30
    assert "Newest" in text


@pytest.mark.parametrize(
    "before",
    [
        *("", "x", "_", "2026-01-01_x", "2026-01-01T00:00:00+00:00_0", "9999-12-31T23:59:59-23:00_1", "a_b_c"),
        *(f"{at}_{'0' * 32}" for at in ("9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00")),  # no years of UTC
    ],
)
def test_what_is_no_place_in_the_list_is_its_beginning(client: Client, before: str) -> None:
    run = TestRunFactory()
    assert run.get_absolute_url() in client.get("/runs/", {"before": before}).content.decode()


def test_runs_are_found_by_what_people_have_in_hand(client: Client) -> None:
    pull = PullRequestFactory(repository=RepositoryFactory(name="wordpress"), number=118)
    run = TestRunFactory(pull_request=pull, repository=pull.repository, sha="ab" * 20, requested_by="kim")
    pull = PullRequestFactory(repository=RepositoryFactory(name="gitea"), number=7)
    other = TestRunFactory(pull_request=pull, repository=pull.repository, sha="cd" * 20, requested_by="sam")
    words = ("#118", "118", "abababab", run.sha, run.short_id, str(run.pk), "WordPr", "recipes/word", "kim", f" {run.short_id} ")
    for word in words:
        page = client.get("/runs/", {"search": word}).content.decode()
        assert run.get_absolute_url() in page and other.get_absolute_url() not in page, word
    for word in ("#119", "abababac", "nobody", "%", "_", "\u202e", "f" * 65, "1" * 30, "-" * 9, "#" + "9" * 9):
        assert "No matching runs" in client.get("/runs/", {"search": word}).content.decode(), word
    private = TestRunFactory(repository=RepositoryFactory(name="secret", private=True))
    assert private.get_absolute_url() not in client.get("/runs/", {"search": "secret"}).content.decode()
    # Else whoever asks for a run under such a name learns which private repositories there are.
    namesake = TestRunFactory(requested_by="secret")
    assert namesake.get_absolute_url() in client.get("/runs/", {"search": "secret"}).content.decode()


def test_an_empty_list_says_what_to_do(client: Client) -> None:
    text = client.get("/runs/").content.decode()
    assert "There are no runs to show yet." in text
    assert ">!testme<" in text
    TestRunFactory()
    assert "No matching runs." in client.get("/runs/?state=passed").content.decode()


# --- texts from outside


def assert_harmless(text: str) -> None:
    """No markup of HOSTILE got through: the tags on the page are the templates' own."""
    assert "<script>" not in text
    assert "<img src=x" not in text
    assert "javascript:" not in text
    assert "<b>" not in text
    assert text.count("</pre>") == text.count("<pre ")
    assert text.count("</details>") == text.count("<details")
    assert "{{ 7|add:7 }}" in text or "7|add" not in text


def test_hostile_texts_stay_texts(client: Client, staff: Client) -> None:
    run = hostile()
    for address in (run.get_absolute_url(), "/", "/runs/"):
        for reader in (Client(), staff):
            answer = reader.get(address)
            assert answer.status_code == 200
            assert_harmless(answer.content.decode())
    for part in Client().get(reverse("run-live", args=[run.id])).json()["parts"].values():
        assert_harmless(part)
    assert "&lt;script&gt;" in page(client, run)
    assert b"".join(client.get(reverse("run-log", args=[run.id]))).decode() == f"{HOSTILE}\n" * 40


def test_no_page_has_a_style_or_script_of_its_own(client: Client) -> None:
    """The policy would not let it work; this finds it before a browser does."""
    for address in ("/", "/runs/", failed_run().get_absolute_url()):
        answer = client.get(address)
        text = answer.content.decode()
        assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?! src=)", text)
        assert "'unsafe" not in answer["Content-Security-Policy"]


def test_a_run_with_thousands_of_tests_has_a_short_page(client: Client) -> None:
    run = TestRunFactory(state=State.FAILED)
    stage = StageResultFactory(run=run, name="custom", order=0, status="failed")
    CaseResult.objects.bulk_create(CaseResult(stage=stage, name=f"test_{number}_", status="failed") for number in range(600))
    page = client.get(run.get_absolute_url()).content.decode()
    assert "600 tests failed" in page and "the first 100;" in page and "the first 500;" in page
    assert page.count('<details class="case-box"') == 100 and page.count("test_599_") == 0


# --- buttons


def press(client: Client, run: TestRun, name: str) -> str:
    return client.post(f"/runs/{run.pk}/do/{name}/", follow=True).content.decode()


def test_the_buttons_of_a_run_are_those_of_its_state_for_who_may(client: Client) -> None:
    run, done = TestRunFactory(state=State.QUEUED), TestRunFactory(passed=True)
    assert "/do/" not in client.get(run.get_absolute_url()).content.decode()
    client.force_login(User.objects.create_superuser("operator"))
    for shown, hidden in ((run, "again"), (done, "cancel")):
        page = client.get(shown.get_absolute_url()).content.decode()
        (form,) = [line for line in page.splitlines() if f"/do/{hidden}/" in line]
        assert " hidden>" in form and page.count(" hidden>") >= 2


def test_a_run_is_repeated_and_cancelled_by_buttons(client: Client) -> None:
    client.force_login(User.objects.create_superuser("operator"))
    done = TestRunFactory(passed=True)
    assert "is queued." in press(client, done, "again-with-extra-tests")
    new = TestRun.objects.get(retry_of=done)
    assert "extra" in new.stages and new.requested_by == "operator"
    assert "is being stopped" in press(client, new, "cancel")
    assert TestRun.objects.get(pk=new.pk).state == State.CANCELLED
    assert "cancelled already" in press(client, new, "cancel")
    assert "is not awaiting approval" in press(client, done, "approve")


def test_a_run_of_a_repository_that_is_no_longer_watched_is_not_repeated(client: Client) -> None:
    client.force_login(User.objects.create_superuser("operator"))
    run = TestRunFactory(passed=True, repository=RepositoryFactory(active=False))
    assert "is no longer watched" in press(client, run, "again")
    assert TestRun.objects.count() == 1


def test_nobody_else_presses_a_button(client: Client) -> None:
    run, private = TestRunFactory(), TestRunFactory(repository=RepositoryFactory(private=True))
    url = f"/runs/{run.pk}/do/cancel/"
    assert client.get(url).status_code == 405
    assert "login" in client.post(url)["Location"]
    assert client.post(f"/runs/{private.pk}/do/cancel/").status_code == 404
    client.force_login(User.objects.create_user("staff", is_staff=True))
    assert client.post(url).status_code == 403
    client.force_login(User.objects.create_superuser("operator"))
    assert client.post(f"/runs/{run.pk}/do/delete/").status_code == 404
    assert Client(enforce_csrf_checks=True).post(url).status_code == 403
    assert TestRun.objects.get(pk=run.pk).state == State.QUEUED


def test_a_run_is_compared_with_the_last_that_passed(client: Client) -> None:
    row = RepositoryFactory()
    before = TestRunFactory(repository=row, passed=True, created_at=timezone.now() - timedelta(hours=2))
    now = TestRunFactory(repository=row, failed=True)
    for run, status in ((before, "passed"), (now, "failed")):
        CaseResultFactory(stage=StageResultFactory(run=run, name="custom"), name="test_login", status=status)
    page = client.get(now.get_absolute_url()).content.decode()
    assert "Since the recipe last passed" in page and "Fail now" in page
    assert f"cc-ci run {row.clone_url} --ref {now.ref} --sha {now.sha}" in page
