"""Tests that the server keeps for a recipe that is somebody else's: added to its own, never in their place."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast
from unittest import mock

import pytest

from infra.deployers.compose import recipe as compose
from infra.deployers.context import Context
from infra.deployers.errors import DeployError, Kind
from runs.harness import kept_tests, recipe_config, recipe_tests, stages
from runs.harness.engine import Engine
from runs.harness.kept_tests import KEPT, KeptTestsError
from runs.harness.protocol import CaseResult, Limits, Results, RunFolder, Source, Verdict
from tests.runs.harness.conftest import git

pytestmark = pytest.mark.slow(0.3)

Run = Callable[..., Results]
COMPOSE = "services:\n  app:\n    image: nginx:1.27\n"
GOOD, BAD = "def test_it(app):\n    app.get()\n", "def test_it():\n    assert 0, 'as it should'\n"


@pytest.fixture
def keep(tmp_path: Path) -> Callable[..., Source]:
    """Makes the server's repository of tests: files by their paths in it, as the one commit of its default branch."""

    def make(**files: str) -> Source:
        folder = tmp_path / "kept-tests"
        folder.mkdir()
        git(folder, "init", "--quiet", "--initial-branch=main")
        for name, text in {"README.md": "", **files}.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(text.removeprefix("-> ")) if text.startswith("-> ") else path.write_text(text)
        git(folder, "add", ".")
        git(folder, "commit", "--quiet", "-m", "Tests")
        return Source(url=str(folder), ref="refs/heads/main", sha=git(folder, "rev-parse", "HEAD"))

    return make


def of(recipe: Path, **files: str) -> dict[str, str]:
    return {f"tests/{recipe.name}/{name}": text for name, text in files.items()}


def stage(results: Results, name: str) -> Any:
    return next(stage for stage in results.stages if stage.name == name)


def test_both_run_and_the_report_says_which_came_from_where(make_recipe: Any, run: Run, keep: Any) -> None:
    recipe = make_recipe({"test_custom": GOOD})
    source = keep(**of(recipe, **{"test_custom.py": "def test_kept(app):\n    app.get()\n", "test_install.py": GOOD}))
    results = run(recipe, tests=source)
    assert results.verdict is Verdict.PASSED, results.reason
    assert [(case.name, case.file) for case in stage(results, "custom").cases] == [
        ("test_it", "tests/test_custom.py"),
        ("test_kept", f"{KEPT}tests/{recipe.name}/test_custom.py"),
    ]
    assert [case.name for case in stage(results, "install").cases][1:] == ["test_it"]
    assert results.kept == source.sha[:12]
    assert {artefact.name for artefact in results.artefacts if artefact.kind == "junit"} == {
        "junit-custom.xml",
        "junit-kept-custom.xml",
        "junit-kept-install.xml",
    }


@pytest.mark.parametrize(("own", "theirs", "verdict"), [(GOOD, BAD, "failed"), (BAD, GOOD, "failed"), ("", GOOD, "passed")])
def test_the_verdict_is_of_both(make_recipe: Any, run: Run, keep: Any, own: str, theirs: str, verdict: str) -> None:
    recipe = make_recipe({"test_custom": own} if own else {})
    results = run(recipe, tests=keep(**of(recipe, **{"test_custom.py": theirs})))
    assert results.verdict == verdict
    assert (KEPT in results.reason) is (theirs == BAD)
    assert len(stage(results, "custom").cases) == (2 if own else 1)


def test_no_file_of_the_recipe_reaches_them(make_recipe: Any, run: Run, keep: Any) -> None:
    """A stranger's conftest.py would else decide whether they run, and a module of theirs what they import."""
    hostile = "import pytest\ncollect_ignore_glob = ['*']\n@pytest.fixture(autouse=True)\ndef no():\n    pytest.skip('no')\n"
    recipe = make_recipe({"conftest": hostile, "helper": "VALUE = 'a stranger'\n", "test_custom": GOOD})
    (recipe / "conftest.py").write_text(hostile)
    source = keep(
        **of(
            recipe,
            **{
                "helper.py": "VALUE = 'ours'\n",
                "conftest.py": "import pytest\n@pytest.fixture\ndef mine():\n    return 1\n",
                "test_custom.py": "from helper import VALUE\n\ndef test_kept(mine):\n    assert (VALUE, mine) == ('ours', 1)\n",
            },
        )
    )
    results = run(recipe, tests=source)
    assert results.verdict is Verdict.PASSED, results.reason
    assert [(case.name, case.status) for case in stage(results, "custom").cases if KEPT in case.file] == [("test_kept", "passed")]


def test_hooks_of_both_run(make_recipe: Any, make_folder: Callable[..., RunFolder], keep: Any) -> None:
    hook = "def before_custom(app):\n    print('this is {}')\n"
    recipe = make_recipe({"cc_ci_hooks": hook.format("the recipe"), "test_custom": GOOD})
    folder = make_folder(recipe, tests=keep(**of(recipe, **{"cc_ci_hooks.py": hook.format("the server")})))
    assert Engine(folder).run().verdict is Verdict.PASSED
    said = [line for line in folder.log.read_text().splitlines() if "this is" in line]
    assert ["recipe" in line for line in said] == [True, False]


def test_a_hook_that_fails_says_whose_it_is(make_recipe: Any, run: Run, keep: Any) -> None:
    recipe = make_recipe({"test_custom": GOOD})
    hook = "def before_custom(app):\n    raise ValueError('no')\n"
    results = run(recipe, tests=keep(**of(recipe, **{"cc_ci_hooks.py": hook, "test_custom.py": GOOD})))
    assert results.verdict is Verdict.FAILED
    assert f"{KEPT}Hook before_custom failed" in results.reason


def test_their_settings_count_as_the_base_branchs(make_recipe: Any, run: Run, keep: Any) -> None:
    recipe = make_recipe({"test_custom": GOOD})
    source = keep(**of(recipe, **{"cc-ci.toml": "[app]\nstatus = [204]\n"}))
    results = run(recipe, tests=source, limits=Limits(settle_seconds=60))
    assert results.verdict is Verdict.FAILED and "its last answer was 200" in results.reason


def test_what_a_recipe_says_itself_goes_before_key_by_key() -> None:
    beneath = recipe_config.document(b'[app]\npath = "/ping"\nstatus = [200]\n[env]\nA = "kept"\nB = "kept"\n')
    found = recipe_config.parse(b'[app]\nstatus = [204]\n[env]\nA = "own"\n', beneath)
    assert (found.app.path, found.app.status, found.env.values) == ("/ping", (204,), {"A": "own", "B": "kept"})
    # A pull request that says otherwise than the server does loosens it, and waits.
    base, own = recipe_config.parse(None, beneath), recipe_config.parse(b"[app]\nstatus = [200, 500]\n", beneath)
    counts, told = recipe_config.effective(base, own)
    assert counts.app.status == (200,) and "app.status" in told[0]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("cc-ci.toml", "[", "Cannot read"),
        ("cc-ci.toml", "[ap]\n", "unknown setting ap"),
        ("compose.ci.yml", "#" * 300_000, "kB"),
    ],
)
def test_what_is_wrong_there_is_not_the_recipes_fault(
    make_recipe: Any, run: Run, keep: Any, name: str, text: str, words: str
) -> None:
    recipe = make_recipe({"test_custom": GOOD})
    results = run(recipe, tests=keep(**of(recipe, **{name: text})))
    assert results.verdict is Verdict.ERRORED
    assert words in results.reason and f"tests/{recipe.name}" in results.reason


def test_an_overlay_counts_without_docker_too(make_recipe: Any, run: Run, keep: Any) -> None:
    recipe = make_recipe({"test_custom": GOOD})
    broken = keep(**of(recipe, **{"compose.ci.yml": "services: ["}))
    results = run(recipe, tests=broken)
    assert results.verdict is Verdict.ERRORED
    assert f"With the overlays kept on the server: tests/{recipe.name}/compose.ci.yml" in results.reason


def test_a_repository_that_is_not_there_is_ours(make_recipe: Any, run: Run, keep: Any) -> None:
    source = keep()
    results = run(make_recipe({"test_custom": GOOD}), tests=source.model_copy(update={"sha": "a" * 40}))
    assert results.verdict is Verdict.ERRORED and "The tests kept on the server" in results.reason


def test_a_recipe_without_any_is_tested_as_ever(make_recipe: Any, run: Run, keep: Any) -> None:
    results = run(make_recipe({"test_custom": GOOD}), tests=keep(**{"tests/other/test_custom.py": BAD}))
    assert (results.verdict, results.kept) == (Verdict.PASSED, "")


# --- what a stranger could try


def bring(source: Source, recipe: str, tmp_path: Path, told: list[str] | None = None) -> kept_tests.KeptTests | None:
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    return kept_tests.bring(source, recipe, work, {}, lambda: None, 64, ([] if told is None else told).append)


@pytest.mark.parametrize(
    "name", ["..", ".", "", "../tests/web", "web/../web", "/etc", ".hidden", "a" * 101, "we b", "web\n", "-x"]
)
def test_a_recipes_name_is_no_path(keep: Any, tmp_path: Path, name: str) -> None:
    source = keep(**{"tests/web/test_custom.py": GOOD, "test_custom.py": BAD, "tests/.hidden/test_x.py": BAD})
    assert bring(source, name, tmp_path) is None


def test_only_regular_files_behind_real_folders_are_taken(keep: Any, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    source = keep(
        **{
            "tests/web/test_custom.py": GOOD,
            "tests/web/sub/test_more.py": GOOD,
            "tests/web/test_link.py": f"-> {secret}",
            "tests/web/folder": "-> ../other",
            "tests/web/cc-ci.toml": f"-> {secret}",
            "tests/web/compose.ci.yml": f"-> {secret}",
            "tests/other/test_custom.py": BAD,
            "tests/linked": "-> other",
        }
    )
    told: list[str] = []
    found = bring(source, "web", tmp_path, told)
    assert found is not None
    taken = sorted(path.relative_to(found.folder).as_posix() for path in found.folder.rglob("*") if not path.is_dir())
    assert taken == ["tests/sub/test_more.py", "tests/test_custom.py"]
    assert (found.files, found.config, dict(found.overlays)) == (2, None, {})
    assert "cc-ci.toml, compose.ci.yml, folder, test_link.py" in told[0]
    assert not any(path.is_symlink() for path in found.folder.rglob("*"))
    assert not (tmp_path / "work" / "kept-whole").exists()
    (tmp_path / "again").mkdir()
    assert bring(source, "linked", tmp_path / "again") is None


def test_a_folder_of_tests_that_is_a_symlink_is_none(keep: Any, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere" / "web"
    elsewhere.mkdir(parents=True)
    (elsewhere / "test_custom.py").write_text(BAD)
    assert bring(keep(tests=f"-> {elsewhere.parent}"), "web", tmp_path) is None


@pytest.mark.parametrize(
    ("file", "shown"),
    [
        ("tests/test_custom.py", "tests/test_custom.py"),
        (f"{KEPT}tests/web/test_custom.py", f"tests/{KEPT}tests/web/test_custom.py"),
        (f"{KEPT[:14]}{KEPT}{KEPT[14:]}tests/x.py", f"tests/{KEPT[:14]}{KEPT}{KEPT[14:]}tests/x.py"),
        (f"tests/{KEPT}x.py", f"tests/{KEPT}x.py"),
        ("", "tests/"),  # its name is shown in the place of a file that is not told
    ],
)
def test_a_recipes_test_cannot_pass_for_one_of_the_servers(file: str, shown: str) -> None:
    (case,) = kept_tests.own([CaseResult(name=f"{KEPT}tests/web/test_custom.py", file=file, status="passed")])
    assert case.file == shown


def test_the_folder_can_be_read_in_the_sandbox_whatever_our_umask(keep: Any, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        found = bring(keep(**{"tests/web/sub/test_custom.py": GOOD}), "web", tmp_path)
    finally:
        os.umask(before)
    assert found is not None
    assert {path.stat().st_mode & 0o777 for path in (found.folder, *found.folder.rglob("*"))} == {0o755, 0o644}


# --- overlays, read by Docker


def test_overlays_are_laid_over_each_version(keep: Any, tmp_path: Path) -> None:
    both = "services:\n  app:\n    environment:\n      BOTH: '1'\n"
    older = "services:\n  app:\n    environment:\n      OLDER: '1'\n"
    strangers = "services:\n  app:\n    environment:\n      STRANGER: '1'\n"
    found = bring(keep(**{"tests/web/compose.ci.yml": both, "tests/web/previous.yml": older}), "web", tmp_path)
    assert found is not None and found.files == 2
    environments = []
    names = tuple(kept_tests.overlay_names("0123456789abcdef").values())
    for previous in (False, True):
        checkout = tmp_path / f"checkout-{previous}"
        checkout.mkdir()
        (checkout / "compose.yml").write_text(COMPOSE)
        # Of the recipe's own these are nothing: they are named by nobody.
        (checkout / "compose.ci.yml").write_text(strangers)
        (checkout / "previous.yml").write_text(strangers)
        kept_tests.lay_over(found, checkout, "0123456789abcdef", previous=previous)
        context = Context(
            run_id="0123456789abcdef", installation="test", recipe="web", checkout=checkout, work=tmp_path, overlays=names
        )
        environments.append(compose.load(context, checkout).services["app"]["environment"])
        assert (checkout / "compose.ci.yml").read_text() == strangers
    assert environments == [{"BOTH": "1"}, {"BOTH": "1", "OLDER": "1"}]


def test_a_symlink_where_an_overlay_is_to_lie_is_not_written_through(keep: Any, tmp_path: Path) -> None:
    found = bring(keep(**{"tests/web/compose.ci.yml": COMPOSE}), "web", tmp_path)
    assert found is not None
    victim, checkout = tmp_path / "victim", tmp_path / "checkout"
    victim.write_text("as it was")
    checkout.mkdir()
    (checkout / kept_tests.overlay_names("0123456789abcdef")[kept_tests.OVERLAY]).symlink_to(victim)
    kept_tests.lay_over(found, checkout, "0123456789abcdef", previous=False)
    assert victim.read_text() == "as it was"


def test_an_overlay_that_is_too_big_is_told(keep: Any, tmp_path: Path) -> None:
    with pytest.raises(KeptTestsError, match="larger than 256 kB"):
        bring(keep(**{"tests/web/previous.yml": "#" * 300_000}), "web", tmp_path)


BOTH = {"write_marker", "read_marker"}


@pytest.mark.parametrize(
    ("own", "theirs", "name", "called"),
    [
        (BOTH, set(), "read_marker", ["own"]),
        (set(), BOTH, "read_marker", ["theirs"]),
        (BOTH, BOTH, "read_marker", ["theirs"]),  # a stranger did not write the server's
        (BOTH, {"read_marker"}, "read_marker", ["own"]),  # one alone keeps nothing
        ({"read_marker"}, BOTH, "write_marker", ["theirs"]),
        ({"before_install"}, {"before_install"}, "before_install", ["own", "theirs"]),
        (set(), {"before_install"}, "before_install", ["theirs"]),
        (set(), set(), "before_install", []),
    ],
)
def test_whose_hook_is_called(
    own: set[str], theirs: set[str], name: str, called: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout, folder = tmp_path / "own", tmp_path / "theirs"
    for place, names in ((checkout, own), (folder, theirs)):
        (place / "tests").mkdir(parents=True)
        (place / "tests" / "cc_ci_hooks.py").write_text("".join(f"def {one}(app, *value): ...\n" for one in sorted(names)))
    context = Context("0" * 32, "i", "recipe", checkout, tmp_path)
    found = kept_tests.KeptTests(folder, "tests/recipe", "a" * 40, 1)
    deployer, journal = mock.Mock(), mock.Mock()
    deployer.settle_again.return_value = ["The service db ended."]
    run = stages.Run(context, deployer, journal, cast(Any, None), tmp_path, kept=found)
    ran: list[str] = []

    def hook(name: str, context: Context, *_: object, **__: object) -> recipe_tests.HookResult:
        ran.append(context.checkout.name)
        return recipe_tests.HookResult(True, True, context.checkout.name)

    monkeypatch.setattr(recipe_tests, "hook", hook)
    assert stages._hook(run, name) == (called[-1] if called else "")
    assert ran == called
    # What a hook before a stage restarts has to be up again; one that keeps a marker restarts nothing.
    waited = bool(called) and name.startswith("before_")
    assert deployer.settle_again.called == waited
    told = [mock.call(f"During the hook {name}: The service db ended.")]
    assert journal.warn.call_args_list == (told if waited else [])


@pytest.mark.parametrize(
    ("hook", "kind", "raised"),
    [
        ("before_custom", "exits", stages.HookFailed),
        ("before_custom", "tool_failed", DeployError),
        ("before_upgrade", "exits", None),
        ("before_upgrade", "no_node", DeployError),
    ],
)
def test_what_a_hook_breaks_is_blamed_on_it_but_not_on_the_commit(
    hook: str, kind: Kind, raised: type[Exception] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "cc_ci_hooks.py").write_text(f"def {hook}(app): ...\n")
    deployer, journal = mock.Mock(), mock.Mock()
    deployer.settle_again.side_effect = DeployError(kind, "The service app failed.", "See its log.")
    context = Context("0" * 32, "i", "recipe", tmp_path, tmp_path)
    monkeypatch.setattr(recipe_tests, "hook", lambda *_, **__: recipe_tests.HookResult(True, True, ""))
    run = stages.Run(context, deployer, journal, cast(Any, None), tmp_path)
    with pytest.raises(raised, match="The service app failed") if raised else nullcontext():
        stages._hook(run, hook)
    assert journal.warn.called == (raised is None)
