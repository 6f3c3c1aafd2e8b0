"""An app on this host: its recipe at a version, its deployer, and what runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.db import IntegrityError, transaction

from controlplane.installation import installation_id
from controlplane.secrets import SecretUnreadable, reveal
from infra.config import apply, secret_refs
from infra.config.schema import App, Check
from infra.config.secret_refs import Unresolved
from infra.deployers.context import Context, Secret, random_secret
from infra.deployers.docker.volumes import Volume
from infra.deployers.errors import DeployError
from infra.deployers.isolation import trees
from infra.deployers.swarm.persistent import PersistentDeployer, ServiceState, StackBaseline
from infra.git.mirror import Mirror, environment
from infra.git.runner import GitError
from infra.models import AppSecret, InfraApp, InfraFile, Snapshot, Upgrade
from infra.releases import discovery
from infra.states import WORKING

#: Minimum time to converge, in seconds; the recipe's label may raise it.
SETTLE_SECONDS = 300
#: Shorter secrets occur in texts by chance.
_SHORTEST_SECRET = 6


class NotReachable(Exception):
    """cc-ci cannot inspect or change the app from here; the message says why and what to do."""


def folder_of(upgrade: Upgrade) -> Path:
    """An upgrade's own folder on this host: checkouts, generated files, the log."""
    return Path(settings.CC_CI.data_dir) / "infra" / "upgrades" / str(upgrade.pk)


def work_of(app: InfraApp) -> Path:
    return Path(settings.CC_CI.data_dir) / "infra" / "apps" / app.name


def checks_of(app: InfraApp) -> tuple[Check, ...]:
    return apply.app_of(app).health


def checkout(app: InfraApp, commit: str, folder: Path) -> Path:
    """Check out the recipe at a commit of its mirror into `folder`. Raises NotReachable."""
    try:
        mirror = discovery.mirror_of(app)
        _files(mirror, commit, folder)
    except (GitError, discovery.NotDiscovered, OSError) as error:
        raise NotReachable(f"Cannot check out the recipe of {app.name} at {commit[:12]}: {error}") from error
    return folder


def _files(mirror: Mirror, commit: str, folder: Path) -> None:
    """git writes the files itself; the repository stays outside."""
    if (folder / ".complete").exists():
        return
    trees.remove(folder)
    folder.mkdir(parents=True)
    index = folder.with_name(f".{folder.name}.index")
    index.unlink(missing_ok=True)
    env = {**environment(mirror.url), "GIT_INDEX_FILE": str(index)}  # without the token: nothing is fetched
    try:
        mirror.git.run(f"--work-tree={folder}", "checkout", "--quiet", "--force", commit, "--", ".", env=env)
    finally:
        index.unlink(missing_ok=True)
    (folder / ".complete").touch()


def make_deployer(context: Context) -> PersistentDeployer:
    """The deployer of an app."""
    return PersistentDeployer(context)


def deployer_for(
    app: InfraApp,
    files: Path,
    work: Path,
    *,
    mark: str = "",
    seconds: int = SETTLE_SECONDS,
    check: Callable[[], None] = lambda: None,
    report: Callable[[str], None] = lambda text: None,
    log: Callable[[str], None] = lambda text: None,
) -> PersistentDeployer:
    """The deployer of an app, for the recipe in `files`. Raises NotReachable and DeployError."""
    if not are_here():
        raise NotReachable(f"{app.name} is managed on another host: the one where `cc-ci infra apply` was run.")
    if app.server != "default":
        raise NotReachable(f"{app.name} is on the server {app.server}; this cc-ci can only reach its own host's Docker.")
    work.mkdir(parents=True, exist_ok=True, mode=0o700)
    config = settings.CC_CI
    declared = apply.app_of(app)
    first = next((one for one in declared.health if one.http), None)
    context = Context(
        run_id=f"app-{app.pk}",
        installation=installation_id(),
        recipe=app.recipe,
        checkout=files,
        work=work,
        domain=app.domain,
        proxy_url="" if is_proxy(app) else config.proxy_url,
        settle_seconds=seconds,
        env=_env(app, declared),
        locks=Path(config.data_dir) / "locks",
        mirror=config.registry_mirror,
        registry_auth=config.registry_auth.read_text() if config.registry_auth else "",
        image_ledger=Path(config.data_dir) / "images.json",
        health_path=first.http if first else "/",
        health_status=first.status if first else (),
        app=app.name,
        app_stack=app.stack,
        mark=mark,
        secret=lambda secret: secret_of(app, secret),
        ephemeral=False,
        report=report,
        log=log,
        check=check,
    )
    return make_deployer(context)


def are_here() -> bool:
    """Whether the apps belong to this host: those of an infra.yml belong to the host on which it was applied."""
    file = InfraFile.objects.first()
    return file is None or file.host in ("", settings.CC_CI.host)


def is_proxy(app: InfraApp) -> bool:
    """Whether this app is the proxy that serves the others: it publishes the port of CC_CI_PROXY_URL.

    The proxy is probed at its task's own address, so that no probe depends on the app that is being upgraded.
    """
    if not settings.CC_CI.proxy_url:
        return False
    parts = urlsplit(settings.CC_CI.proxy_url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    specs = app.parts.values()
    return any(port in spec.get("ports", ()) for spec in specs) or app.recipe == "traefik"


def _folder() -> Path:
    file = InfraFile.objects.first()
    return Path(file.path).parent if file else Path(settings.CC_CI.data_dir)


def _env(app: InfraApp, declared: App) -> dict[str, str]:
    """The app's `.env`, with references resolved. Raises NotReachable."""
    try:
        return {
            key: secret_refs.resolve(value, _folder()) if value.startswith(("env:", "file:")) else value
            for key, value in declared.env.items()
        }
    except Unresolved as error:
        raise NotReachable(f"A value in {app.name}'s env is missing: {error}.") from error


def secret_of(app: InfraApp, secret: Secret) -> str:
    """The value for a secret that Swarm lacks: from infra.yml, from an earlier deployment, or a new one.

    A new value is stored first, encrypted: Swarm never returns it. Raises DeployError.
    """
    if reference := app.secrets.get(secret.key):
        try:
            return secret_refs.resolve(reference, _folder())
        except Unresolved as error:
            raise DeployError(
                "tool_failed", f"The secret {secret.key} of {app.name} is missing: {error}.", "Provide it."
            ) from error
    if not secret.generate and not app.made_secrets.filter(name=secret.name).exists():
        said = f"The secret {secret.key} of {app.name} is not generated (generate=false in its .env.sample)."
        raise DeployError("tool_failed", said, f"Set it in infra.yml, under secrets: {secret.key}.")
    with suppress(IntegrityError), transaction.atomic():
        AppSecret.objects.create(app=app, name=secret.name, value=random_secret(secret))
    return reveal(AppSecret.objects.get(app=app, name=secret.name).value)


def without_secrets(app: InfraApp, text: str) -> str:
    """A text of the app, such as its log, without the values of its secrets: it is shown on pages and in alerts."""
    try:
        values = [reveal(secret.value) for secret in app.made_secrets.all()]
    except SecretUnreadable:
        return "(Not shown: it may contain secrets, and the key to recognize them is missing from CC_CI_SECRET_KEYS.)"
    for reference in app.secrets.values():
        with suppress(Unresolved):
            values.append(secret_refs.resolve(reference, _folder()))
    for value in values:
        if len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, "***")
    return text


@dataclass(frozen=True)
class Seen:
    """What runs of an app now."""

    parts: dict[str, ServiceState]
    ports: dict[str, list[int]]
    recorded: StackBaseline | None = None  #: only if requested

    @property
    def version(self) -> str:
        """The version label of `app`, else of another service."""
        names = sorted(self.parts, key=lambda name: (name != "app", name))
        return next((self.parts[name].version for name in names if self.parts[name].version), "")

    @property
    def fingerprint(self) -> str:
        return fingerprint(part.fingerprint for part in self.parts.values())

    def columns(self) -> dict[str, Any]:
        """The columns of an app's row."""
        left = {"left": asdict(self.recorded)} if self.recorded else {}
        return {"running_version": self.version[:200], "fingerprint": self.fingerprint, "parts": self._rows(), **left}

    def _rows(self) -> dict[str, dict[str, Any]]:
        """What identifies each service."""
        return {
            name: {
                "fingerprint": part.fingerprint,
                "mark": part.mark,
                "version": part.version,
                "image": part.image,
                "ports": self.ports.get(name, []),
            }
            for name, part in self.parts.items()
        }


def fingerprint(parts: Iterable[str]) -> str:
    """One fingerprint for all services; empty if nothing runs."""
    from hashlib import sha256

    found = sorted(parts)
    return sha256(" ".join(found).encode()).hexdigest() if found else ""


def seen_by(deployer: PersistentDeployer, *, full: bool = False) -> Seen:
    services = deployer.services()
    return Seen(deployer.parts(services), deployer.published(services), deployer.record(services) if full else None)


def left(app: InfraApp) -> StackBaseline | None:
    """What cc-ci had deployed, in full, as far as it was recorded."""
    if not app.left:
        return None
    return StackBaseline(**{**app.left, "volumes": [Volume(**volume) for volume in app.left["volumes"]]})


def see(app: InfraApp, *, full: bool = False) -> Seen:
    """Inspect an app, whatever recipe it is from. Raises NotReachable and DeployError."""
    work = work_of(app)
    deployer = deployer_for(app, work, work)
    try:
        return seen_by(deployer, full=full)
    finally:
        deployer.close()


def known_parts(rows: dict[str, Any]) -> dict[str, ServiceState]:
    """Parse what `parts_as_rows` stored."""
    return {
        name: ServiceState(**{**row, "tasks": tuple(row["tasks"]), "failed": tuple(row["failed"])}) for name, row in rows.items()
    }


def parts_as_rows(parts: dict[str, ServiceState]) -> dict[str, Any]:
    return {name: asdict(part) for name, part in parts.items()}


def images_kept() -> list[str]:
    """The images that a rollback may need: those that run, of current upgrades, and of versions with a snapshot."""
    kept: set[str] = set()
    for app in InfraApp.objects.filter(declared=True):
        kept |= {str(part["image"]) for part in app.parts.values() if part.get("image")}
    for upgrade in Upgrade.objects.filter(state__in=WORKING):
        kept |= {str(image["name"]) for image in upgrade.digests.values()}
    used = Snapshot.objects.exclude(upgrade=None).select_related("upgrade")
    for snapshot in used:
        assert snapshot.upgrade
        kept |= {str(image["name"]) for image in snapshot.upgrade.digests.values()}
    for app in InfraApp.objects.filter(declared=True):  # the version before may be wanted for a rollback
        if last := app.upgrades.filter(state="succeeded").first():
            kept |= {str(image["name"]) for image in last.digests.values()}
    return sorted(kept)
