"""What is different between two runs of a recipe: images, and tests that began or ceased to fail. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from runs.case_history import FAILING, Case, case_of
from runs.models import CaseResult, TestRun


@dataclass(frozen=True)
class Comparison:
    """`images`: (name, before, now) of each whose tag or digest differs; empty where there was or is none."""

    before: TestRun
    now: TestRun
    images: tuple[tuple[str, str, str], ...] = ()
    now_failing: tuple[Case, ...] = ()
    now_passing: tuple[Case, ...] = ()

    @property
    def same(self) -> bool:
        return not (self.images or self.now_failing or self.now_passing)


def compare(before: TestRun, now: TestRun) -> Comparison:
    """What is different in `now`. A test that only one of the runs has counts only if it fails now."""
    verdicts_before, verdicts_now = _verdicts(before), _verdicts(now)
    images_before, images_now = _images(before.details), _images(now.details)
    return Comparison(
        before,
        now,
        tuple(
            (name, images_before.get(name, ""), images_now.get(name, ""))
            for name in sorted({**images_before, **images_now})
            if images_before.get(name) != images_now.get(name)
        ),
        tuple(case for case, passed in verdicts_now.items() if not passed and verdicts_before.get(case) is not False),
        tuple(case for case, passed in verdicts_now.items() if passed and verdicts_before.get(case) is False),
    )


def _verdicts(run: TestRun) -> dict[Case, bool]:
    """Whether each test passed, of those that came to a verdict; one that ran several times by the worst."""
    found: dict[Case, bool] = {}
    for case in _cases(run):
        if case.status == "passed" or case.status in FAILING:
            found[case_of(case)] = found.get(case_of(case), True) and case.status == "passed"
    return found


def _cases(run: TestRun) -> Iterable[CaseResult]:
    return (case for stage in run.stage_results.all() for case in stage.cases.all())


def _images(details: Mapping[str, Any]) -> dict[str, str]:
    """The tag, or as much of the digest as people compare, of each image by its name."""
    found = {}
    for image in details.get("images", []):
        name, colon, tag = image["name"].partition("@")[0].rpartition(":")
        if not colon or "/" in tag:  # a port
            name, tag = f"{name}{colon}{tag}", ""
        digest = (image.get("digest") or "").removeprefix("sha256:")[:12]
        found[name] = " ".join(part for part in (tag, digest) if part)
    return found
