"""The files kept from a run besides its results: service logs, Docker's events, JUnit, a screenshot. Secrets are redacted."""

from __future__ import annotations

import re
from pathlib import Path

from infra.deployers.base import Deployer
from runs.harness import screenshot
from runs.harness.events import Journal
from runs.harness.protocol import Artefact, RunFolder
from runs.harness.stages import Run

#: Number of last lines kept from each service's log.
LOG_LINES = 2000
BIGGEST = 2 << 20
EVENTS = "docker-events.txt"
PICTURE = "picture.png"


def keep_logs(deployer: Deployer, folder: Path, journal: Journal) -> None:
    """Save the logs of all services and the machine's events before they are gone. Never raises."""
    try:
        services = [service.name for service in deployer.state().services]
        texts = {f"service-{_safe(name)}.log": deployer.logs(name, LOG_LINES) for name in services}
        texts[EVENTS] = "\n".join(deployer.events())
        for name, text in texts.items():
            if text.strip():
                _write(folder / name, journal, text)
    except Exception as error:  # the teardown comes next, and has to
        journal.log(f"Could not save the services' logs: {error!r}")


def picture(run: Run) -> None:
    """Take a screenshot of the app while it is up. Failing to is not an error; the log says why."""
    why = screenshot.take(
        run.context, run.deployer, run.folder, run.deployer.secrets, path=run.config.picture.path, check=run.deadlines.check
    )
    run.journal.step(f"No screenshot: {why}" if why else "Took a screenshot of the app")


def finish(folder: RunFolder, journal: Journal) -> list[Artefact]:
    """Redact remaining secrets in the test results, and list the artefacts."""
    found = []
    for path in sorted(folder.path.glob("junit-*.xml")):
        text = path.read_text(errors="replace")
        if (clean := journal.without_secrets(text, path.name)) != text:
            _rewrite(path, clean)
        stage = path.stem.removeprefix("junit-")
        found.append(Artefact(name=path.name, kind="junit", title=f"JUnit of {stage}", bytes=path.stat().st_size))
    for path in sorted(folder.path.glob("service-*.log")):
        service = path.stem.removeprefix("service-")
        found.append(Artefact(name=path.name, kind="service_log", title=f"Log of {service}", bytes=path.stat().st_size))
    for name, kind, title in ((EVENTS, "docker_events", "Docker's events"), (PICTURE, "picture", "Screenshot of the app")):
        path = folder.path / name
        if path.exists():
            found.append(Artefact.model_validate({"name": name, "kind": kind, "title": title, "bytes": path.stat().st_size}))
    return found


def _write(path: Path, journal: Journal, text: str) -> None:
    path.write_bytes(journal.clean(text, path.name).encode()[-BIGGEST:])


def _rewrite(path: Path, text: str) -> None:
    """Replace a file's content with `text`. If there is no space for it, delete the file, because it contains secrets."""
    try:
        path.write_text(text)
    except OSError:
        path.unlink(missing_ok=True)


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)[:80]
