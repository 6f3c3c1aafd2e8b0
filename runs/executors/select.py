"""Which executor a run has: its repository's own choice, else its forge's, else this machine."""

from __future__ import annotations

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
    own = ExecutorChoice.objects.filter(repository=repository).select_related("executor").first()
    if own:
        return own.executor
    return RemoteExecutor.objects.filter(forges=repository.forge_id).first()


def executor_for(run: TestRun) -> Executor:
    """The executor that the run was claimed for. Raises ExecutorError if it was removed since then."""
    if not run.executor_name:
        return LocalExecutor()
    if run.executor is None:
        raise ExecutorError(f"the executor {run.executor_name} was removed while it had this run: ask for a new run")
    return BuildExecutor(run.executor, ENGINES[run.executor.kind])
