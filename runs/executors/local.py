"""Runs on this machine: the harness as a process of its own, known by its folder (docs/run-folder.md)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from django.conf import settings

from controlplane.installation import installation_id
from controlplane.registry import registry
from runs.executors.base import ExecutorError, Observation
from runs.harness.protocol import AppLimits, FolderState, Images, Limits, Oidc, Request, Results, RunFolder, Source
from runs.models import TestRun

START_SECONDS = 20
#: Of the log, at most this much is taken over at one look, and kept in all.
LOG_BYTES = 512 * 1024
#: Bigger files of a run stay where they are.
ARTEFACT_BYTES = 4 << 20


class LocalExecutor:
    def start(self, run: TestRun) -> None:
        folder = RunFolder(run.folder)
        if folder.state() is not FolderState.NOT_STARTED:
            return
        request = request_for(run)
        try:
            folder.write_request(request)
        except OSError as error:
            raise ExecutorError(f"{folder.path} cannot be written: {error.strerror}") from error
        command = [sys.executable, "-m", "runs.harness", "start", str(folder.path)]
        try:
            done = subprocess.run(
                command,
                input=json.dumps(credential_for(run)),
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
            raise ExecutorError(f"the harness could not be started: {error}") from error
        if done.returncode != 0:
            raise ExecutorError(f"the harness did not start: {(done.stderr or done.stdout).strip()[-500:]}")

    def observe(self, run: TestRun) -> Observation:
        folder = RunFolder(run.folder)
        # The state first: what it wrote before its end is then surely in the files.
        state = folder.state()
        try:
            results = folder.results()
        except ValueError as error:
            raise ExecutorError(f"the results cannot be read: {error}") from error
        log, offset = _new_log(folder.log, run.log_offset)
        files = artefacts_of(folder, results) if results else {}
        return Observation(state, list(folder.events(run.event_seq)), log, offset, results, files)

    def stop(self, run: TestRun) -> None:
        folder = RunFolder(run.folder)
        if folder.path.is_dir():
            try:
                folder.cancel.touch()
            except OSError:  # the disk is full
                _signal(folder, signal.SIGTERM)

    def kill(self, run: TestRun) -> None:
        _signal(RunFolder(run.folder), signal.SIGKILL)


def request_for(run: TestRun) -> Request:
    config, row = settings.CC_CI, run.repository
    counts = run.trusted or row.allowances_for_strangers
    return Request(
        run_id=str(run.id),
        installation_id=installation_id(),
        recipe=run.repository.name,
        source=Source(url=run.repository.clone_url, ref=run.ref, sha=run.sha),
        base=Source(url=run.repository.clone_url, ref=f"refs/heads/{run.base_ref or run.repository.default_branch}"),
        stages=run.stages,
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
    """What a run may use on this server."""
    config = settings.CC_CI
    return Limits(
        run_seconds=config.run_seconds,
        stage_seconds=config.stage_seconds,
        memory_mb=config.memory_mb,
        processes=config.processes,
        disk_mb=config.disk_mb,
        app=AppLimits(
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
    """The parts of a request that are the same for all runs of this machine."""
    config = settings.CC_CI
    data = Path(config.data_dir)
    return {
        "images": Images(
            mirror=config.registry_mirror,
            registries=config.registries,
            most_gb=config.image_gb,
            ledger=str(data / "images.json"),
            # Asked only where images are removed: a run on a laptop has no database.
            keep=list(registry.ask("images_kept", default=[])) if config.image_gb else [],
        ),
        "oidc": Oidc(url=config.oidc_url, user=config.oidc_user) if config.oidc_url else None,
        "locks": str(data / "locks"),
        "picture": config.pictures,
    }


def credential_for(run: TestRun) -> dict[str, str]:
    """The secrets that the harness itself needs. They go over a pipe, never into a file, and no recipe's code sees them."""
    credential = shared_credential()
    if run.repository.private:
        forge = run.repository.forge
        credential |= {"git_username": forge.bot_login or "cc-ci", "git_token": forge.reveal_token()}
    return credential


def shared_credential() -> dict[str, str]:
    """The logins that all runs of this machine share: of registries, of the OIDC provider."""
    config = settings.CC_CI
    credential = {}
    if config.registry_auth:
        credential["registry_auth"] = config.registry_auth.read_text()
    if config.oidc_url:
        credential["oidc_password"] = config.oidc_password.get_secret_value()
    return credential


def harness_environment() -> dict[str, str]:
    """The harness needs to find programs and Docker, and none of our settings: no database, no key, no token."""
    names = (
        "PATH",
        "HOME",
        "LANG",
        "TZ",
        "TMPDIR",
        "DOCKER_HOST",
        "DOCKER_CONTEXT",
        "DOCKER_CONFIG",
        "XDG_RUNTIME_DIR",
        "CC_CI_CHROMIUM",
    )
    return {name: os.environ[name] for name in names if name in os.environ}


def sweep() -> None:
    """Start a process that removes what runs of this installation left behind and no living run owns."""
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
    # Nobody needs its end, but somebody has to take notice of it, else it stays as a zombie.
    threading.Thread(target=process.wait, daemon=True).start()


def artefacts_of(folder: RunFolder, results: Results) -> dict[str, bytes]:
    """The files that the results name, and the results themselves; one that is too big is left out."""
    names = ["results.json", *(artefact.name for artefact in results.artefacts)]
    files = {}
    for name in names:
        path = folder.path / Path(name).name
        if path.is_file() and not path.is_symlink() and path.stat().st_size <= ARTEFACT_BYTES:
            files[name] = path.read_bytes()
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
    text = data.decode("utf-8", "replace").replace("\0", "\N{REPLACEMENT CHARACTER}")
    return text, start + len(data)


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
