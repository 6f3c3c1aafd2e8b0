"""Which executor a run has: its repository's own choice, else its forge's, else this machine."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from enrollment.models import Repository
from runs.executors.base import Executor, ExecutorError
from runs.executors.builds import BuildExecutor
from runs.executors.drone import Drone
from runs.executors.engine import Engine
from runs.executors.local import LocalExecutor
from runs.executors.woodpecker import Woodpecker
from runs.models import ExecutorChoice, RemoteExecutor, TestRun

#: What each kind of executor is.
ENGINES: dict[str, type[Engine]] = {RemoteExecutor.Kind.DRONE: Drone, RemoteExecutor.Kind.WOODPECKER: Woodpecker}


def choose(repository: Repository) -> RemoteExecutor | None:
    """The executor for a repository's next run; None is this machine."""
    executors = RemoteExecutor.objects.prefetch_related("forges")
    return choose_all({repository.pk: repository.forge_id}, list(executors))[repository.pk]


def choose_all(forges: Mapping[int, int], executors: Collection[RemoteExecutor]) -> dict[int, RemoteExecutor | None]:
    """The executors for the next runs of several repositories, of which the keys are given with their forges' keys.

    `executors`: all that there are.
    """
    if not executors:
        return dict.fromkeys(forges)
    own = ExecutorChoice.objects.filter(repository__in=forges).select_related("executor")
    of_repository = {choice.repository_id: choice.executor for choice in own}
    of_forge: dict[int, RemoteExecutor] = {}
    for row in executors:
        for forge in row.forges.all():
            of_forge.setdefault(forge.pk, row)
    return {key: of_repository[key] if key in of_repository else of_forge.get(forge) for key, forge in forges.items()}


def executor_for(run: TestRun) -> Executor:
    """The executor that the run was claimed for. Raises ExecutorError if it was removed since then."""
    if not run.executor_name:
        return LocalExecutor()
    if run.executor is None:
        raise ExecutorError(f"the executor {run.executor_name} was removed while it had this run: ask for a new run")
    return BuildExecutor(run.executor, ENGINES[run.executor.kind])
