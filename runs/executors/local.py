"""Runs on this machine: the harness as a separate process, identified by its folder (docs/run-folder.md)."""

from __future__ import annotations

import codecs
import gzip
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.conf import settings

from controlplane.installation import installation_id
from controlplane.registry import registry
from controlplane.secrets import SecretUnreadable
from enrollment.forge_access.clients import client_for
from enrollment.forge_access.rate_limit import Purpose
from enrollment.forges.base import ForgeError
from enrollment.repositories import update_facts
from infra.deployers.context import Bounds
from runs import known_good
from runs.executors.base import ExecutorError, Observation
from runs.harness.events import LONGEST_LOG
from runs.harness.protocol import FolderState, Images, Limits, Oidc, Request, Results, RunFolder, Source
from runs.models import TestRun

START_SECONDS = 20
#: Beyond its own time limit the harness gets this long to tear down before it is killed.
GRACE = timedelta(seconds=90)
#: Maximum bytes of the log to read at once, and to keep.
LOG_BYTES = 512 * 1024
#: Larger files of a run are not stored.
ARTEFACT_BYTES = 4 << 20
#: The file with the whole of a log that is longer than LOG_BYTES.
WHOLE_LOG = "log.txt.gz"


class LocalExecutor:
    def start(self, run: TestRun) -> None:
        folder = RunFolder(run.folder)
        if folder.state() is not FolderState.NOT_STARTED:
            return
        try:
            request, credential = request_for(run), credential_for(run)
        except (ForgeError, SecretUnreadable) as error:
            raise ExecutorError(f"cannot determine the commit of the tests kept on the server: {error}") from error
        # Known-good data is on this machine only: to start on, or to leave.
        if run.quick:
            request.quick, secrets = known_good.start_of(run.repository_id)
            credential |= secrets
        request.known_good_mb = settings.CC_CI.known_good_mb if known_good.wanted(run) else 0
        try:
            folder.write_request(request)
        except OSError as error:
            raise ExecutorError(f"cannot write {folder.path}: {error.strerror}") from error
        command = [sys.executable, "-m", "runs.harness", "start", str(folder.path)]
        try:
            done = subprocess.run(
                command,
                input=json.dumps(credential),
                text=True,
                capture_output=True,
                timeout=START_SECONDS,
                cwd=settings.BASE_DIR,
                env=harness_environment(),
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ExecutorError(f"the harness did not start within {START_SECONDS} s") from None
        except OSError as error:
            raise ExecutorError(f"could not start the harness: {error}") from error
        if done.returncode != 0:
            raise ExecutorError(f"the harness did not start: {(done.stderr or done.stdout).strip()[-500:]}")

    def observe(self, run: TestRun) -> Observation:
        folder = RunFolder(run.folder)
        # The state first: everything written before the end is then certainly in the files.
        return in_folder(run, folder.state())

    def stop(self, run: TestRun) -> None:
        folder = RunFolder(run.folder)
        if folder.path.is_dir():
            try:
                folder.cancel.touch()
            except OSError:  # the disk is full
                _signal(folder, signal.SIGTERM)

    def kill(self, run: TestRun) -> None:
        _signal(RunFolder(run.folder), signal.SIGKILL)

    def longest(self, run: TestRun) -> timedelta:
        seconds = settings.CC_CI.run_seconds
        # A quick run may first wait as long as this for another one that uses the same data.
        longest = limits().longest + (seconds if run.quick else 0)
        most = min(seconds + RunFolder(run.folder).apart(), longest)
        return timedelta(seconds=most) + GRACE

    def sweep(self) -> None:
        sweep()


def in_folder(run: TestRun, state: FolderState) -> Observation:
    """What the run's folder holds that is new. Raises ExecutorError for results that cannot be read."""
    folder = RunFolder(run.folder)
    try:
        results = folder.results()
    except ValueError as error:
        raise ExecutorError(f"cannot read the results: {error}") from error
    log, offset = _new_log(folder.log, run.log_offset)
    files = artefacts_of(folder, results) if results else {}
    return Observation(state, list(folder.events(run.event_seq)), log, offset, results, files)


def tests_for(run: TestRun) -> Source | None:
    """The test repository configured for the run's forge, at its newest commit. Raises ForgeError and SecretUnreadable."""
    row = run.repository.forge.tests_repository
    if row is None:
        return None
    client = client_for(run.repository.forge, Purpose.ANSWERS)
    update_facts(row, client)  # by its id: names can be reused
    sha = client.branch_head(row.owner, row.name, row.default_branch)
    return Source(url=row.clone_url, ref=f"refs/heads/{row.default_branch}", sha=sha)


def request_for(run: TestRun) -> Request:
    """The request for the harness. Raises ForgeError and SecretUnreadable."""
    config, row = settings.CC_CI, run.repository
    counts = run.trusted or row.allowances_for_strangers
    return Request(
        run_id=str(run.id),
        installation_id=installation_id(),
        recipe=run.repository.name,
        source=Source(url=run.repository.clone_url, ref=run.ref, sha=run.sha),
        base=Source(url=run.repository.clone_url, ref=f"refs/heads/{run.base_ref or run.repository.default_branch}"),
        tests=tests_for(run),
        stages=run.stages,
        upgrade_from=run.upgrade_from,
        quick="" if run.quick else None,
        deployer=config.deployer,
        trusted=run.trusted,
        domain=f"{run.id.hex[:12]}.{config.domain}" if config.domain else "",
        proxy_url=config.proxy_url,
        limits=limits(),
        allow=row.allowances if counts else [],
        withheld=[] if counts else row.allowances,
        **shared_of_machine(),
    )


def limits() -> Limits:
    """The resources that a run may use on this server."""
    config = settings.CC_CI
    return Limits(
        run_seconds=config.run_seconds,
        stage_seconds=config.stage_seconds,
        start_seconds=config.start_seconds,
        pull_seconds=config.pull_seconds,
        memory_mb=config.memory_mb,
        processes=config.processes,
        disk_mb=config.disk_mb,
        app=Bounds(
            memory_mb=config.app_memory_mb,
            cpus=config.app_cpus,
            processes=config.app_processes,
            log_mb=config.app_log_mb,
            tasks=config.most_tasks,
            services=config.most_services,
            secrets=config.most_secrets,
            configs=config.most_configs,
            networks=config.most_networks,
            volumes_mb=config.volumes_mb,
        ),
    )


def shared_of_machine() -> dict[str, Any]:
    """The parts of a request that are the same for all runs on this machine."""
    config = settings.CC_CI
    data = Path(config.data_dir)
    return {
        "images": Images(
            mirror=config.registry_mirror,
            registries=config.registries,
            most_gb=config.image_gb,
            ledger=str(data / "images.json"),
            # Only queried if images are removed: a local run has no database.
            keep=list(registry.ask("images_kept", default=[])) if config.image_gb else [],
        ),
        "oidc": Oidc(url=config.oidc_url, user=config.oidc_user) if config.oidc_url else None,
        "locks": str(data / "locks"),
        "picture": config.pictures,
    }


def credential_for(run: TestRun) -> dict[str, str]:
    """The secrets that the harness needs. They are sent over a pipe, never written to a file, and no recipe code sees them."""
    credential = shared_credential()
    forge = run.repository.forge
    if run.repository.private or (forge.tests_repository and forge.tests_repository.private):
        credential |= {"git_username": forge.bot_login or "cc-ci", "git_token": forge.reveal_token()}
    return credential


def shared_credential() -> dict[str, str]:
    """The credentials shared by all runs on this machine: of registries and the OIDC provider."""
    config = settings.CC_CI
    credential = {}
    if config.registry_auth:
        credential["registry_auth"] = config.registry_auth.read_text()
    if config.oidc_url:
        credential["oidc_password"] = config.oidc_password.get_secret_value()
    return credential


def harness_environment() -> dict[str, str]:
    """The harness's environment: what it needs to find programs and Docker, without our settings (database, keys, tokens)."""
    names = (
        *("PATH", "HOME", "LANG", "TZ", "TMPDIR", "XDG_RUNTIME_DIR", "CC_CI_CHROMIUM"),
        *("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG", "DOCKER_CERT_PATH", "DOCKER_TLS_VERIFY"),
    )
    return {name: os.environ[name] for name in names if name in os.environ}


def sweep() -> None:
    """Start a process that removes what this installation's runs left behind and no live run owns."""
    log = Path(settings.CC_CI.data_dir) / "sweep.log"
    command = [sys.executable, "-m", "runs.harness", "sweep", "--installation", installation_id()]
    command += ["--runs-dir", str(Path(settings.CC_CI.data_dir) / "runs")]
    if settings.CC_CI.oidc_url:
        command += ["--oidc-url", settings.CC_CI.oidc_url, "--oidc-user", settings.CC_CI.oidc_user]
    with log.open("ab") as stream:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=stream,
            stderr=stream,
            cwd=settings.BASE_DIR,
            env=harness_environment(),
            start_new_session=True,
        )
    assert process.stdin
    with suppress(OSError), process.stdin as pipe:
        pipe.write(json.dumps({"oidc_password": settings.CC_CI.oidc_password.get_secret_value()}).encode())
    # Nobody needs its exit code, but it has to be reaped, or it remains a zombie.
    threading.Thread(target=process.wait, daemon=True).start()


def artefacts_of(folder: RunFolder, results: Results) -> dict[str, bytes]:
    """The files named in the results, the results themselves, and a log that is longer than what a row keeps of it, compressed.

    Skips files that are too big.
    """
    names = {"results.json", *(artefact.name for artefact in results.artefacts)}
    files = {}
    for name in names - {WHOLE_LOG}:  # that one is made here
        path = folder.path / Path(name).name
        if path.is_file() and not path.is_symlink() and path.stat().st_size <= ARTEFACT_BYTES:
            files[name] = path.read_bytes()
    if folder.log.is_file() and LOG_BYTES < folder.log.stat().st_size <= 2 * LONGEST_LOG:
        files[WHOLE_LOG] = gzip.compress(folder.log.read_bytes(), mtime=0)
    return files


def _new_log(path: Path, offset: int) -> tuple[str, int]:
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            start = max(offset, size - LOG_BYTES)
            stream.seek(start)
            data = stream.read(LOG_BYTES)
    except FileNotFoundError:
        return "", offset
    # Of a character that is only begun, the rest comes later.
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(data).replace("\0", "\N{REPLACEMENT CHARACTER}")
    return text, start + len(data) - len(decoder.getstate()[0])


def _signal(folder: RunFolder, number: signal.Signals) -> None:
    """Send a signal to the harness of a folder, if there is one."""
    if folder.state() is not FolderState.RUNNING:
        return
    pid = _pid(folder)
    # The lock is held and the process is ours: it names this folder on its command line.
    if pid and str(folder.path).encode() in _command_line(pid):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


def _pid(folder: RunFolder) -> int | None:
    try:
        return int(json.loads(folder.begun.read_text())["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
