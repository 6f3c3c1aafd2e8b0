"""A server with something to see: recipes, and runs in every state. For the browser's tests and the screenshots."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from django.utils import timezone

from controlplane.models import Host
from enrollment.models import Repository
from runs.harness.stage_table import DEFAULT_STAGES
from runs.models import DeferredItem, State, TestRun
from tests.factories import (
    ArtefactFactory,
    CaseResultFactory,
    CommentFactory,
    DeferredItemFactory,
    ForgeFactory,
    PullRequestFactory,
    RepositoryFactory,
    RunEventFactory,
    StageResultFactory,
    TestRunFactory,
    details,
)

#: Taken by the harness itself, of a page made for this.
PICTURE = Path(__file__).with_name("app.png")

LOG = """\
12:04:02 == Checking out 6f2c19ab04
12:04:03 == Deploying with swarm
12:04:03 Creating network cc-ci-6f2c19ab_internal
12:04:05 Creating service cc-ci-6f2c19ab_app
12:04:06 Creating service cc-ci-6f2c19ab_db
12:04:21 app: 1/1 running, db: 1/1 running
12:04:21 == install: passed, 2 tests
12:04:22 == Running 2 test files of the recipe
12:04:22 tests/test_login.py::test_the_login_page_answers PASSED
12:04:25 tests/test_login.py::test_a_wrong_password_is_refused PASSED
"""
FAILING_LOG = """\
12:04:27 tests/test_upload.py::test_an_upload_survives_a_restart FAILED
12:04:27 == custom: failed, 1 of 3 tests
12:04:31 == Teardown: everything of this run is gone
"""
OUTPUT = """\
    def test_an_upload_survives_a_restart(app):
        app.upload("notes.txt", b"hello")
        app.restart()
>       assert app.download("notes.txt") == b"hello"
E       AssertionError: assert b'404 page not found' == b'hello'
E         At index 0 diff: b'4' != b'h'

tests/test_upload.py:18: AssertionError
--------------------------- the app's last lines ---------------------------
app  | WARN  /data is no mount point, using a temporary folder
app  | INFO  listening on :8080
"""
#: Texts that try to leave their place: markup, the end of a <pre>, no place to break, right to left, emoji, a lost NUL.
HOSTILE = (
    "<script>document.title='owned'</script></pre></details></table><img src=x onerror=alert(1)> {{ 7|add:7 }} {% now 'Y' %} "
    + "W" * 300
    + " \u202egnol dna\u202c \u05e9\u05dc\u05d5\u05dd \U0001f9e8\U0001f468\u200d\U0001f469\u200d\U0001f467 \ufffd &amp; \"'><b>"
)


@dataclass
class Examples:
    passed: TestRun
    failed: TestRun
    running: TestRun
    errored: TestRun
    private: TestRun


def worker() -> None:
    """A machine whose ticker is alive, so that the pages do not warn."""
    Host.objects.update_or_create(name="ci-1", defaults={"ticked_at": timezone.now(), "worked_at": timezone.now()})


def examples() -> Examples:
    """A week of a small server."""
    worker()
    forge = ForgeFactory(name="git.example.org", url="https://git.example.org")
    names = ("cryptpad", "gitea", "hedgedoc", "keycloak", "nextcloud", "wordpress")
    rows = {name: RepositoryFactory(forge=forge, name=name) for name in names}
    members = RepositoryFactory(forge=forge, owner="operators", name="members-portal", private=True)
    _history(list(rows.values()))
    passed = _passed(rows["hedgedoc"])
    private = TestRunFactory(repository=members, passed=True, requested_by="kim", pull_request__title="Rotate the signing key")
    errored = TestRunFactory(
        repository=rows["keycloak"],
        pull_request__title="chore: upgrade to 26.0.1",
        pull_request__number=41,
        state=State.ERRORED,
        reason="The image registry did not answer for 5 minutes, so keycloak/keycloak:26.0.1 could not be pulled.",
        requested_by="sam",
        **_times(timezone.now() - timedelta(minutes=25), 318),
        attempt=1,
        host="ci-1",
        deployer="swarm",
        warnings=["No sandbox: bubblewrap cannot make user namespaces here, so the recipe's tests ran as the plain user cc-ci."],
        teardown={"clean": False, "left": ["volume cc-ci-41b0_data", "secret cc-ci-41b0_db_password_v1"], "seconds": 61.0},
        log="11:39:10 == Pulling keycloak/keycloak:26.0.1\n11:44:10 == The registry did not answer\n",
    )
    return Examples(passed, _failed(rows["nextcloud"]), _running(rows["cryptpad"]), errored, private)


def _history(rows: list[Repository]) -> None:
    """Older runs, so that lists have a second page."""
    outcomes = [State.PASSED, State.PASSED, State.FAILED, State.PASSED, State.SUPERSEDED, State.PASSED, State.TIMED_OUT]
    titles = ("chore: upgrade to 1.4.2", "Use a secret for the database", "Document the backup", "feat: health checks")
    people = ("alice", "sam", "kim")
    for number in range(30):
        begun = timezone.now() - timedelta(hours=7 * (30 - number), minutes=number)
        state = outcomes[number % len(outcomes)]
        run = TestRunFactory(
            repository=rows[number % len(rows)],
            pull_request__title=titles[number % len(titles)],
            pull_request__number=10 + number,
            state=state,
            level={State.PASSED: 4, State.FAILED: 3}.get(state),
            requested_by=people[number % len(people)],
            attempt=1,
            host="ci-1",
            **_times(begun, 60 + 7 * number),
        )
        if state in (State.PASSED, State.FAILED):
            for order, stage in enumerate(DEFAULT_STAGES):
                status = "failed" if stage == "custom" and state == State.FAILED else "passed"
                StageResultFactory(run=run, name=stage, order=order, status=status, seconds=5 + 3 * order + number % 7)


def _times(begun: datetime, seconds: float) -> dict[str, datetime]:
    return {
        "created_at": begun,
        "started_at": begun + timedelta(seconds=3),
        "finished_at": begun + timedelta(seconds=seconds),
    }


def _passed(row: Repository) -> TestRun:
    begun = timezone.now() - timedelta(minutes=52)
    run: TestRun = TestRunFactory(
        repository=row,
        pull_request__title="chore: upgrade to 1.10.2",
        pull_request__number=62,
        passed=True,
        log=LOG + "12:04:31 == Teardown: everything of this run is gone\n",
        **_times(begun, 95),
    )
    install = StageResultFactory(run=run, name="install", order=0, seconds=18.4)
    CaseResultFactory(stage=install, name="the app answers", file="generic", seconds=0.2)
    CaseResultFactory(stage=install, name="test_the_database_is_migrated", file="tests/test_install.py", seconds=1.4)
    upgrade = StageResultFactory(run=run, name="upgrade", order=1, seconds=21.0)
    for name in ("the deployment moved to the commit", "the app answers", "the data is still there"):
        CaseResultFactory(stage=upgrade, name=name, file="generic")
    backup = StageResultFactory(run=run, name="backup", order=2, seconds=2.2)
    CaseResultFactory(stage=backup, name="a backup is made", file="generic", seconds=2.1)
    restore = StageResultFactory(run=run, name="restore", order=3, seconds=6.4)
    CaseResultFactory(stage=restore, name="the backup can be restored", file="generic", seconds=6.0)
    custom = StageResultFactory(run=run, name="custom", order=4, seconds=9.1)
    CaseResultFactory(stage=custom, name="test_the_login_page_answers", file="tests/test_login.py")
    CaseResultFactory(stage=custom, name="test_a_wrong_password_is_refused", file="tests/test_login.py", seconds=2.8)
    _one_after_another(run)
    _trail(run, begun, "passed")
    _kept(run)
    return run


def lost_data() -> TestRun:
    """The run of the demo's recipe whose upgrade loses data."""
    reason = (
        "upgrade: app:/www/notes was on the volume notes and is now on web, which is empty: data that operators have in notes is "
        "no longer visible. Keep the name, or describe in release/<version> how to migrate the volume notes."
    )
    run: TestRun = TestRunFactory(
        repository=RepositoryFactory(name="forgetful-web"),
        pull_request__title="Name the volume after the app",
        failed=True,
        reason=reason,
        requested_by="alice",
        level=1,
        **_times(timezone.now(), 37),
    )
    times = {"install": (4.5, ["passed"]), "upgrade": (11.0, ["failed", "passed", "passed"])}
    for order, stage in enumerate(DEFAULT_STAGES):
        seconds, cases = times.get(stage, (0.0, []))
        status, why = (cases[0], "") if cases else ("skipped", "The stage upgrade failed.")
        row = StageResultFactory(run=run, name=stage, order=order, status=status, seconds=seconds, reason=why)
        for case in cases:
            CaseResultFactory(stage=row, status=case, message=reason)
    rungs = [
        {"level": 1, "name": "install", "status": "reached", "reason": ""},
        {"level": 2, "name": "upgrade", "status": "failed", "reason": "upgrade failed."},
    ]
    run.details = details(
        upgraded_from="1.0.0+1.36.1",
        version="1.1.0+1.36.1",
        level={"value": 1, "rungs": rungs},
        lint=[],
        extras={},
        loosened=[],
    )
    run.save()
    return run


def registry() -> None:
    """The deferred registry: two open entries and a closed one."""
    recipe = Repository.objects.get(name="nextcloud")
    DeferredItemFactory(recipe=recipe, slug="nextcloud-upload-a-large-file", what="Upload a file of 4 GB and read it back.")
    DeferredItemFactory(
        recipe=recipe, slug="nextcloud-calendar-invitations", what="Invite somebody by mail.", why="Needs a mail server."
    )
    DeferredItemFactory(
        recipe=recipe,
        slug="nextcloud-upgrade-two-majors",
        what="Go from 28 to 30 without a step between.",
        state=DeferredItem.State.CLOSED,
        closed_commit="6f2c19ab04d8e7a1c35b9f0e2d4a6c8b1f3e5d79",
        closed_at=timezone.now(),
        ticked=True,
    )


def _one_after_another(run: TestRun) -> None:
    """The times at which the stages of a run began and ended."""
    at = run.created_at + timedelta(seconds=8)
    for stage in run.stage_results.all():
        if stage.seconds:
            stage.started_at, at = at, at + timedelta(seconds=stage.seconds)
            stage.finished_at = at
            stage.save()


def _kept(run: TestRun) -> None:
    """What is kept of a run whose every stage passed, with a remark of lint."""
    names = ("install", "upgrade", "backup and restore", "own tests")
    rungs = [{"level": number, "name": name, "status": "reached", "reason": ""} for number, name in enumerate(names, 1)]
    rungs.append({"level": 5, "name": "lint", "status": "failed", "reason": "1 finding of lint is an error."})
    times = {
        "checkout": 0.8,
        "pull": 6.1,
        "deploy": 0.4,
        "settle": 11.2,
        "upgrade": 19.7,
        "backup": 1.9,
        "restore": 5.2,
        "teardown": 2.4,
    }
    lint = {"rule": "C006", "level": "error", "text": "The image is pinned to no version.", "file": "compose.yml", "line": 14}
    run.details = details(
        upgraded_from="1.9.0+1.10.0",
        version="1.10.0+1.10.2",
        level={"value": 4, "rungs": rungs},
        timings=[{"step": step, "stage": "", "seconds": seconds} for step, seconds in times.items()],
        lint=[lint],
        loosened=[],
    )
    run.level = 4
    run.save()
    for name, kind, title in (
        ("docker-events.txt", "docker_events", "Docker's events"),
        ("junit-custom.xml", "junit", "JUnit of custom"),
        ("results.json", "results", "Results (JSON)"),
        ("service-app.log", "service_log", "Log of app"),
        ("service-db.log", "service_log", "Log of db"),
    ):
        ArtefactFactory(run=run, name=name, kind=kind, title=title, data=LOG.encode() * 9)
    ArtefactFactory(run=run, name="picture.png", kind="picture", title="Screenshot of the app", data=PICTURE.read_bytes())


def _failed(row: Repository) -> TestRun:
    begun = timezone.now() - timedelta(minutes=8)
    pull = PullRequestFactory(repository=row, number=118, title="Keep uploads in the volume 'data'", author_login="alice")
    comment = CommentFactory(pull_request=pull, body="!testme --extra-tests")
    run: TestRun = TestRunFactory(
        pull_request=pull,
        comment=comment,
        failed=True,
        stages=["install", "custom", "extra"],
        reason="custom: 1 of 3 tests failed, test_an_upload_survives_a_restart.",
        log=LOG + FAILING_LOG,
        **_times(begun, 92),
    )
    install = StageResultFactory(run=run, name="install", order=0, seconds=18.4)
    CaseResultFactory(stage=install, name="the app answers", file="generic", seconds=0.2)
    custom = StageResultFactory(run=run, name="custom", order=1, status="failed", seconds=24.6, reason="1 of 3 tests failed.")
    CaseResultFactory(stage=custom, name="test_the_login_page_answers", file="tests/test_login.py")
    CaseResultFactory(stage=custom, name="test_a_wrong_password_is_refused", file="tests/test_login.py", seconds=2.8)
    CaseResultFactory(
        stage=custom,
        name="test_an_upload_survives_a_restart",
        file="tests/test_upload.py",
        status="failed",
        seconds=6.3,
        message="AssertionError: assert b'404 page not found' == b'hello'",
        output=OUTPUT,
    )
    StageResultFactory(
        run=run, name="extra", order=2, status="skipped", seconds=0, reason="Not run, since the stage custom failed."
    )
    _one_after_another(run)
    _trail(run, begun, "failed")
    return run


def _running(row: Repository) -> TestRun:
    run: TestRun = TestRunFactory(
        repository=row,
        pull_request__title="feat: run as an unprivileged user",
        pull_request__number=7,
        running=True,
        stages=["install", "custom", "extra"],
        requested_by="sam",
        deployer="swarm",
        log=LOG,
    )
    begun = run.created_at
    _event(run, begun, 0, "queued", "asked for by sam")
    _event(run, begun, 1, "starting", "")
    _event(run, begun, 2, "running", "")
    for seq, (kind, stage, text, data) in enumerate(
        (
            ("step", "", "Deploying with swarm", {}),
            ("stage_started", "install", "", {}),
            ("stage_finished", "install", "passed, 2 tests", {"status": "passed"}),
            ("stage_started", "custom", "", {}),
            ("step", "custom", "Running 2 test files of the recipe", {}),
        ),
        start=1,
    ):
        _event(run, begun, 3 + seq, kind, text, stage=stage, data=data, seq=seq)
    return run


def _trail(run: TestRun, begun: datetime, verdict: str) -> None:
    _event(run, begun, 0, "queued", f"asked for by {run.requested_by}")
    _event(run, begun, 3, "starting", "on ci-1")
    _event(run, begun, 4, "running", "")
    _event(run, begun, 6, "step", "Deploying with swarm", seq=1)
    _event(run, begun, 24, "stage_finished", "passed", stage="install", seq=2, data={"status": "passed"})
    _event(run, begun, 60, "stage_finished", verdict, stage="custom", seq=3, data={"status": verdict})
    _event(run, begun, 90, verdict, run.reason)


def _event(run: TestRun, begun: datetime, after: float, kind: str, text: str, **fields: object) -> None:
    RunEventFactory(run=run, at=begun + timedelta(seconds=after), kind=kind, text=text, **fields)


def hostile() -> TestRun:
    """A failed run with `HOSTILE` in every field that somebody outside can fill."""
    forge = ForgeFactory(url="https://hostile.example.org")
    row = RepositoryFactory(
        forge=forge, owner="o" + "w" * 90, name=HOSTILE[:200], html_url="javascript:alert(1)", default_branch=HOSTILE[:200]
    )
    pull = PullRequestFactory(repository=row, title=HOSTILE[:500], author_login=HOSTILE[:200], html_url="javascript:alert(2)")
    run: TestRun = TestRunFactory(
        pull_request=pull,
        comment=CommentFactory(pull_request=pull, body=HOSTILE, html_url="javascript:alert(3)", author_login=HOSTILE[:200]),
        failed=True,
        requested_by=HOSTILE[:255],
        reason=HOSTILE,
        warnings=[HOSTILE],
        teardown={"clean": False, "left": [HOSTILE], "seconds": 1.0},
        host=HOSTILE[:100],
        log=f"{HOSTILE}\n" * 40,
    )
    stage = StageResultFactory(run=run, name="custom", status="failed", reason=HOSTILE)
    for name in (HOSTILE[:500], "W" * 500):
        CaseResultFactory(
            stage=stage, name=name, file=HOSTILE[:500], status="failed", message=HOSTILE, output=f"{HOSTILE}\n" * 50
        )
    RunEventFactory(run=run, kind="step", text=HOSTILE, stage="custom")
    return run
