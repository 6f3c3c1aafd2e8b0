"""What the engine does around the stages: settings, a lent realm, extra tests, what is kept of a run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from runs.harness.engine import Engine
from runs.harness.oidc import Provider
from runs.harness.protocol import Images, Oidc, Results, RunFolder, Source, Verdict
from tests.runs.harness.conftest import RECIPES, ROOT, git
from tests.runs.harness.keycloak import Keycloak, keycloak

pytestmark = pytest.mark.slow(0.6)

Run = Callable[..., Results]
OIDC_TEST = """
import requests

def test_logs_in(oidc):
    assert oidc.client_id and oidc.issuer

def test_needs_none(app):
    assert app.get("/").status_code == 200
"""
GREETER = """
version: "3.8"
services:
  app:
    image: none:1
    environment: [GREETING]
    x-cc-ci-process:
      command: [sh, -c, "echo $$GREETING > greeting.txt; exec python3 -m http.server --bind 127.0.0.1 ${PORT}"]
"""


def statuses(results: Results) -> dict[str, str]:
    return {stage.name: stage.status for stage in results.stages}


def cases(results: Results, stage: str) -> dict[str, str]:
    return {case.name: case.status for result in results.stages if result.name == stage for case in result.cases}


# --- settings


def test_a_wrong_setting_fails_the_run_with_the_nearest_right_one(run: Run, make_recipe: Callable[..., Path]) -> None:
    results = run(make_recipe({}, {"cc-ci.toml": "[app]\npth = '/'\n"}))
    assert results.verdict is Verdict.FAILED
    assert results.reason == "cc-ci.toml: unknown setting app.pth; did you mean app.path?"
    assert results.deployments == 0


def test_settings_behind_a_link_out_of_the_recipe_are_refused(run: Run, make_recipe: Callable[..., Path]) -> None:
    recipe = make_recipe({})
    (recipe / "cc-ci.toml").symlink_to("/etc/passwd")
    results = run(recipe)
    assert results.verdict is Verdict.FAILED and "points outside the recipe" in results.reason


@pytest.mark.parametrize(
    ("settings", "status", "words"),
    [
        ("[app]\nstatus = [404]\npath = '/nothing'", "passed", ""),
        ("[app]\nstatus = [200]\npath = '/nothing'", "failed", "within"),
        ("[stages]\ninstall = 'not now'", "not_applicable", "Declared in cc-ci.toml: not now"),
    ],
)
def test_what_is_asked_and_what_counts(
    run: Run, make_recipe: Callable[..., Path], settings: str, status: str, words: str
) -> None:
    limits = {"settle_seconds": 1} if status == "failed" else {}
    results = run(make_recipe({"test_ok": "def test_ok(): pass"}, {"cc-ci.toml": settings}), limits=limits)
    (install,) = [stage for stage in results.stages if stage.name == "install"]
    assert install.status == status
    assert words in install.reason


def test_the_env_of_the_settings_reaches_the_app(run: Run, make_recipe: Callable[..., Path]) -> None:
    recipe = make_recipe(
        {"test_env": "def test_env(app): assert app.get('/greeting.txt').text.strip() == 'hello'"},
        {
            "cc-ci.toml": '[env]\nGREETING = "hello"\n',
            "compose.yml": GREETER,
        },
    )
    results = run(recipe)
    assert results.verdict is Verdict.PASSED, results


def test_data_is_seeded_before_install(run: Run, make_recipe: Callable[..., Path]) -> None:
    hooks = "def before_install(app):\n    assert app.get('/').status_code == 200\n    raise RuntimeError('no seed')\n"
    results = run(make_recipe({"cc_ci_hooks": hooks}))
    assert results.verdict is Verdict.FAILED
    assert "Hook before_install failed" in results.reason and "no seed" in results.reason


# --- a pull request onto a base


@pytest.fixture
def pull(make_recipe: Callable[..., Path]) -> tuple[Source, Source]:
    """A pull request that would loosen a check and touches what an extra test covers; and its base."""
    extra = "import pytest\n@pytest.mark.extra(covers=['www/'])\ndef test_long(app): pass\ndef test_short(app): pass\n"
    folder = make_recipe({"test_page": extra}, {"cc-ci.toml": "[app]\nstatus = [200]\n"})
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "Begin")
    git(folder, "checkout", "--quiet", "-b", "change")
    (folder / "cc-ci.toml").write_text("[app]\nstatus = [200, 404]\n")
    (folder / "www" / "more.html").write_text("more")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "Change")
    sha = git(folder, "rev-parse", "HEAD")
    url = f"file://{folder}"
    return Source(url=url, ref="refs/heads/change", sha=sha), Source(url=url, ref="refs/heads/main")


def test_what_a_pull_request_changes_decides_what_is_suggested(run: Run, pull: tuple[Source, Source]) -> None:
    source, base = pull
    results = run("recipe", source=source, base=base)
    assert results.verdict is Verdict.PASSED, results.reason
    assert results.changed == ["cc-ci.toml", "www/more.html"]
    assert results.loosened == ["cc-ci.toml changes app.status from [200] to [200, 404]: this counts once it is merged."]
    assert results.extras.not_run == 1
    assert [(test.file, test.name) for test in results.extras.suggested] == [("tests/test_page.py", "test_long")]
    assert cases(results, "custom") == {"test_short": "passed"}


def test_extra_tests_run_on_the_same_deployment(run: Run, pull: tuple[Source, Source]) -> None:
    source, base = pull
    results = run("recipe", source=source, base=base, stages=["install", "custom", "extra"])
    assert statuses(results) == dict.fromkeys(["install", "custom", "extra"], "passed")
    assert cases(results, "extra") == {"test_long": "passed"}
    assert (results.deployments, results.extras.not_run) == (1, 0)


# --- a realm of the run's own


@pytest.fixture
def oidc_recipe(make_recipe: Callable[..., Path]) -> Path:
    return make_recipe({"test_login": OIDC_TEST}, {"cc-ci.toml": 'needs = ["oidc"]\n'})


def test_a_realm_is_lent_and_taken_back(run: Run, oidc_recipe: Path) -> None:
    with keycloak() as provider:
        wanted = Oidc(url=provider.url, user=provider.user)
        results = run(oidc_recipe, oidc=wanted, credential={"oidc_password": provider.password})
        assert results.verdict is Verdict.PASSED, results.reason
        assert cases(results, "custom") == {"test_logs_in": "passed", "test_needs_none": "passed"}
        assert list(provider.realms) == ["master"]


def test_without_a_provider_only_what_needs_it_is_not_run(run: Run, oidc_recipe: Path) -> None:
    results = run(oidc_recipe)
    assert results.verdict is Verdict.PASSED
    assert cases(results, "custom") == {"test_logs_in": "skipped", "test_needs_none": "passed"}
    assert any("this server has none" in text for text in results.warnings)


def test_a_provider_that_refuses_is_told_without_the_password(run: Run, oidc_recipe: Path) -> None:
    with keycloak() as provider:
        results = run(
            oidc_recipe, oidc=Oidc(url=provider.url, user=provider.user), credential={"oidc_password": "wr0ng-passw0rd"}
        )
    assert results.verdict is Verdict.PASSED
    assert any("rejected the login of admin" in text for text in results.warnings)
    assert "wr0ng-passw0rd" not in results.model_dump_json()


def test_the_realms_of_dead_runs_are_swept(tmp_path: Path) -> None:
    def sweep(provider: Keycloak) -> str:
        command = [sys.executable, "-m", "runs.harness", "sweep", "--installation", "here", "--runs-dir", str(tmp_path)]
        command += ["--oidc-url", provider.url, "--oidc-user", provider.user]
        given = json.dumps({"oidc_password": provider.password})
        done = subprocess.run(command, cwd=ROOT, input=given, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stdout
        return done.stdout

    with keycloak() as provider:
        ours = Provider(provider.url, provider.user, provider.password, "here").create("a" * 32, "a.example.com")
        theirs = Provider(provider.url, provider.user, provider.password, "there").create("b" * 32, "b.example.com")
        assert f"removed realm {ours.name}" in sweep(provider)
        assert list(provider.realms) == ["master", theirs.name]


# --- what is kept


def test_the_files_of_a_run_are_named_in_its_results(make_folder: Callable[..., RunFolder]) -> None:
    folder = make_folder(RECIPES / "process-web", picture=False)
    results = Engine(folder).run()
    named = {artefact.name: artefact.bytes for artefact in results.artefacts}
    assert {"junit-install.xml", "junit-custom.xml"} <= set(named)
    assert all((folder.path / name).stat().st_size == size for name, size in named.items())
    assert {timing.step for timing in results.timings} >= {"checkout", "deploy", "settle", "tests", "teardown"}


def test_old_images_go_after_the_run_but_those_that_are_kept(
    make_folder: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr("runs.harness.engine.images.prune", lambda *wanted: asked.append(wanted) or ["old:1"])
    folder = make_folder(RECIPES / "process-web", images=Images(most_gb=2, ledger="/tmp/ledger.json", keep=["kept:1"]))
    Engine(folder).run()
    assert asked == [(Path("/tmp/ledger.json"), 2, ["kept:1"])]
    assert "Removed images not used for a long time: old:1" in folder.log.read_text()
