"""Pulls images before a deployment, from a mirror first, with a login; and removes the least recently used ones.

Only images that cc-ci pulled itself are ever removed: the ledger, a JSON file on this machine, lists them.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import json
import os
import re
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from infra.deployers.context import Context, Image
from infra.deployers.docker import egress, registries
from infra.deployers.docker.api import get as get_json
from infra.deployers.docker.api import ids, inspect, listed
from infra.deployers.docker.cli import call, environment, last_line
from infra.deployers.errors import DeployError
from infra.deployers.isolation import children

#: What was asked for this lately may belong to a deployment that has no container yet.
_YOUNG_SECONDS = 3600.0
_HUB = ("docker.io/", "index.docker.io/", "registry-1.docker.io/")
#: How Docker says that the connection of a pull was cut.
_CUT = re.compile(
    r"connection reset|TLS handshake timeout|i/o timeout|Client\.Timeout exceeded|context deadline exceeded|context canceled"
    r"|\bEOF\b|server closed idle connection|transport connection broken|broken pipe"
)
#: What Docker itself says of a pull that failed. Whatever else stands there may be the answer of any server that this machine
#: reaches, which a stranger's registry had Docker ask.
_KNOWN = re.compile(
    r"invalid reference format|manifest unknown|name unknown|no matching manifest|not found"
    r"|pull access denied|repository does not exist|requested access to the resource is denied"
    r"|no basic auth credentials|authentication required|unauthorized|incorrect username or password"
    r"|toomanyrequests|You have reached your [a-z ]{0,40}limit"
    r"|error parsing HTTP [0-9]{3}|unexpected HTTP status: [0-9]{3}|unexpected status"
    r"|connection refused|no such host|server misbehaving|no route to host|network is unreachable"
    r"|server gave HTTP response to HTTPS client|certificate signed by unknown authority|certificate has expired|\bx509\b"
    r"|no space left on device|failed to register layer|verification failed"
    rf"|Cannot connect to the Docker daemon|error during connect|{_CUT.pattern}"
)


def get(image: str, context: Context, renew: bool = True) -> None:
    """Make sure that `image` is on this host, since a pull during a deployment would use up its time to settle. Records its use.

    With `renew`, a tag that has moved in its registry is pulled again, once per run. If the registry cannot be asked, or the pull
    fails, the local image is used, with a note in `Context.images`.

    Raises DeployError: `image_missing` if its registry says that there is none (the mirror's word is not enough),
    `image_denied` if the registry denies it (also for images that do not exist), `pull_failed` (ours) for everything else,
    `invalid_recipe` for an invalid image name, `forbidden` for an image of a registry that runs may not use: Docker pulls
    from this machine, past the rules for a run's network.
    """
    # Noted before the look, so that nobody takes it away between the look and the deployment.
    note_use(context.image_ledger, image)
    here = next(iter(inspect("image", [image])), None)
    if here and (image in context.images or not renew or not _moved(image, here, context)):
        context.images.setdefault(image, Image(_digest(image, here)))
        return
    if context.ephemeral and (problem := _out_of_bounds(registry(image), context.registries)):
        fix = "Use an image from another registry, or add this one to the registries that runs may pull from (CC_CI_REGISTRIES)."
        raise DeployError("forbidden", f"The image {image} is missing on this host, and {problem}.", fix)
    context.report(f"Pulling {image}")
    started = time.monotonic()
    # A registry's slowness counts neither against the stage nor against the app.
    with context.timed("pull"), context.apart(context.pulls.left), _login(context) as options:
        message = _from_mirror(image, context, options)
        if message is not None and (problem := _pull(image, options, context)):
            if not here:
                raise _failed(image, problem, message)
            _note(image, here, f"its tag moved, but could not be pulled again ({problem}): using the local image", context)
            return
    if here:
        _keep_account(context.image_ledger, image, here)
    note_use(context.image_ledger, image, pulled=True)
    where = "" if message is not None else " from the mirror"
    context.report(f"Pulled {image}{where} in {time.monotonic() - started:.1f} s")
    now = next(iter(inspect("image", [image])), {})
    context.images[image] = Image(_digest(image, now), "its tag moved: pulled again" if here else "")


def by_digest(image: str, context: Context) -> str:
    """The name under which a service gets the image that is on this host.

    For a tag, Swarm asks the registry at each start of a task, and starts what the tag means by then. An image made here has no
    digest, nor has one that is here under a mirror's name alone.
    """
    known = context.images.get(image, Image())
    named = f"{image}@{known.digest}"
    return named if known.digest and "@" not in image and inspect("image", [named]) else image


def _moved(image: str, here: Mapping[str, Any], context: Context) -> bool:
    """Whether the registry has another image under this name than this host. An image built here is in no registry."""
    known = {str(name).rpartition("@")[2] for name in here.get("RepoDigests") or []}
    if "@" in image or not known:
        return False
    try:
        with context.apart(context.pulls.left), context.pulls.runs():
            return _asked(image, context) not in known
    except registries.Unasked as error:
        _note(image, here, f"its registry was not asked ({error}): using the local image", context)
        return False


def _note(image: str, here: Mapping[str, Any], note: str, context: Context) -> None:
    context.images[image] = Image(_digest(image, here), note)
    context.report(f"{image}: {note}")


def _digest(image: str, here: Mapping[str, Any]) -> str:
    """The digest under which the image's own registry knows it, else any: an image from a mirror only has the mirror's."""
    names = [str(name) for name in here.get("RepoDigests") or []]
    own = _untagged(full_name(image).partition("@")[0])
    return next((name for name in names if full_name(name).partition("@")[0] == own), *names[:1] or [""]).rpartition("@")[2]


def _asked(image: str, context: Context) -> str:
    """The digest that a pull would fetch, from the mirror first, as in a pull. Raises registries.Unasked."""

    def rules(own: str = "") -> registries.Rules:
        return registries.Rules(partial(_refused, context, own), _insecure, context.registry_auth)

    if name := mirrored(image, context.mirror):
        with contextlib.suppress(registries.Unasked):
            return registries.digest(name, registry(name), rules(own=registry(name)))
    host = registry(image)
    if context.ephemeral and context.registries and (problem := _out_of_bounds(host, context.registries)):
        raise registries.Unasked(problem)
    return registries.digest(image, host, rules())


def _refused(context: Context, own: str, host: str, found: Sequence[str]) -> str:
    """Why a server may not be asked for a digest or token: as for pulls, what a run names must be on the internet.

    `own` is the mirror, if that is what is asked: a registry that a run names must not get its token from there.
    """
    if not context.ephemeral or host in context.registries or (own and host == own):
        return ""
    return _off_the_internet(host, found)


def _insecure(host: str, found: Sequence[str]) -> bool:
    """Whether Docker on this host uses a registry without checking its certificate."""
    config = (get_json("/info") or {}).get("RegistryConfig") or {}
    if ((config.get("IndexConfigs") or {}).get(host) or {}).get("Secure") is False:
        return True
    ranges = [ipaddress.ip_network(str(one), strict=False) for one in config.get("InsecureRegistryCIDRs") or []]
    return bool(found) and all(any(ipaddress.ip_address(one.partition("%")[0]) in net for net in ranges) for one in found)


_LATE = "the pull timed out"


def _failed(image: str, problem: str, mirrors: str) -> DeployError:
    if "invalid reference format" in problem:
        return DeployError("invalid_recipe", f"{image!r} is not a valid image name.", "Correct it in compose.yml.")
    message = f"The image {image} is missing on this host and could not be pulled: {problem}."
    if mirrors:
        message += f" The mirror reported: {mirrors}."
    if "denied" in problem:  # Docker Hub says so of what it does not have, too
        fix = "Check the image's name in compose.yml; a private image needs a login (CC_CI_REGISTRY_AUTH)."
        return DeployError("image_denied", message, fix)
    if re.search(r"manifest unknown|name unknown|no matching manifest|not found", problem):
        return DeployError("image_missing", message, "Check the image's name and tag in compose.yml.")
    fix = "Check that this server can reach the registry, and that its login (CC_CI_REGISTRY_AUTH) is correct."
    if problem.startswith(_LATE):
        fix = (
            "Start the run again: layers already pulled are kept. A mirror (CC_CI_REGISTRY_MIRROR) or a higher "
            "CC_CI_PULL_SECONDS may help."
        )
    if re.search(r"no space left on device|failed to register layer", problem):
        fix = "Free disk space where Docker keeps its images (see docker system df), and start the run again."
    elif _CUT.search(problem):
        fix = "The connection to the registry was interrupted. Start the run again: layers already pulled are kept."
    return DeployError("pull_failed", message, fix)


def _from_mirror(image: str, context: Context, options: list[str]) -> str | None:
    """Pull an image of Docker Hub from the mirror. None on success; else the error, or empty if the mirror was not asked."""
    name = mirrored(image, context.mirror)
    if not name:
        return ""
    if problem := _pull(name, options, context):
        context.log(f"The mirror did not provide {image}: {problem}")
        return problem
    note_use(context.image_ledger, name, pulled=True)
    tagged = call("image", "tag", name, image)
    return last_line(tagged.stderr) if tagged.returncode else None


def registry(image: str) -> str:
    """The registry that Docker asks for an image, as `host` or `host:port`."""
    first, slash, _ = image.partition("/")
    elsewhere = slash and (first == "localhost" or {".", ":"} & set(first) or first != first.lower())
    return first.lower() if elsewhere and f"{first}/" not in _HUB else "docker.io"


def _out_of_bounds(host: str, allowed: Collection[str]) -> str:
    """Why a run may not pull from there; empty if it may."""
    if allowed:
        return "" if host in allowed else f"runs may pull only from {', '.join(sorted(allowed))}, not from {host}"
    if problem := _off_the_internet(host, ()):
        return problem
    try:
        return _off_the_internet(host, registries.addresses(host.partition(":")[0]))
    except registries.Unasked:  # it has none; Docker says the same
        return ""


def _off_the_internet(host: str, found: Sequence[str]) -> str:
    """Why a server is not asked on behalf of a run: because of its name, or because one of its addresses is not public."""
    name = host.partition(":")[0]
    try:
        ipaddress.ip_address(name)
        return f"its registry {host} is given as an IP address"
    except ValueError:
        pass
    if "." not in name:
        return f"its registry {host} has no public name"
    return f"its registry {host} is not on the internet" if any(map(egress.is_private, found)) else ""


def mirrored(image: str, mirror: str) -> str:
    """The name of an image of Docker Hub on `mirror`; empty for other registries, and for names with a digest.

    (An image that was pulled from elsewhere cannot get a name with a digest.)
    """
    if not mirror or registry(image) != "docker.io" or "@" in image:
        return ""
    path = next((image.removeprefix(host) for host in _HUB if image.startswith(host)), image)
    return f"{mirror.rstrip('/')}/{path if '/' in path else f'library/{path}'}"


@contextlib.contextmanager
def _login(context: Context) -> Iterator[list[str]]:
    """Docker's options for the run's logins, in a file that nobody else can read and that is removed at once."""
    if not context.registry_auth:
        yield []
        return
    with tempfile.TemporaryDirectory(prefix="docker-", dir=context.work, ignore_cleanup_errors=True) as folder:
        file = Path(folder, "config.json")
        file.touch(0o600)
        file.write_text(context.registry_auth)
        yield ["--config", folder]


def _pull(image: str, options: list[str], context: Context) -> str:
    """Why docker could not pull; empty if it did. Raises what `check` raises, after ending the pull."""
    command = ["docker", *options, "pull", "--quiet", "--", image]
    try:
        with context.pulls.runs():
            done = children.run(command, env=environment(), seconds=context.pulls.left, check=context.check)
    except FileNotFoundError as error:
        raise DeployError("tool_missing", "The docker command is not installed.", "Install Docker.") from error
    except children.TooLong:
        return f"{_LATE} (all pulls of a run together may take {context.pulls.most:g} s)"
    except children.TooMuch as error:
        return str(error)
    return _known_message(last_line(done.err.decode(errors="replace"))) if done.code else ""


def _known_message(message: str) -> str:
    """The part of Docker's message to show: its own phrases, from before any quoted answer of a server."""
    known = dict.fromkeys(_KNOWN.findall(message.partition("response body")[0]))
    return ": ".join(known) or "see the Docker daemon's log for the reason"


@dataclass(frozen=True)
class _Use:
    """A ledger entry: the image that we pulled under a name, and when it was last used (seconds since 1970)."""

    id: str
    used: float


def note_use(ledger: Path | None, image: str, *, pulled: bool = False, now: float | None = None) -> None:
    """Record that `image` is used now. Images that we did not pull ourselves are not recorded."""
    if ledger is None:
        return
    now = time.time() if now is None else now
    found = inspect("image", [image]) if pulled else []
    with _locked(ledger):
        uses = _read(ledger)
        if found:
            uses[image] = _Use(str(found[0]["Id"]), now)
        elif image in uses:
            uses[image] = _Use(uses[image].id, now)
        else:
            return
        _write(ledger, uses)


def _keep_account(ledger: Path | None, image: str, former: Mapping[str, Any]) -> None:
    """Keep an image of ours that lost its name to a newer one in the ledger, by digest, so that it is pruned some day."""
    digest = _digest(image, former)
    if ledger is None or not digest:
        return
    with _locked(ledger):
        uses = _read(ledger)
        if image in uses and uses[image].id == str(former["Id"]):
            uses[f"{_untagged(image)}@{digest}"] = uses[image]
            _write(ledger, uses)


def prune(ledger: Path | None, most_gb: float, keep: Collection[str] = (), now: float | None = None) -> list[str]:
    """Remove the least recently used images that we pulled, until at most `most_gb` GB are left (0: keep all). Returns names.

    Spares an image that a container or service uses, that `keep` names (it may be needed for a rollback), that was used
    within the last hour, or that is not the one we pulled. Removes without force, so docker has the last word.
    """
    if ledger is None or most_gb <= 0:
        return []
    now = time.time() if now is None else now
    removed: list[str] = []
    with _locked(ledger, "prune", wait=False) as first:
        if not first:  # somebody is at it
            return []
        here = _ours(ledger)
        spared = _in_use() | set(keep)
        spared |= {str(item["Id"]) for item in inspect("image", sorted(spared))}
        for name, use in sorted(_read(ledger).items(), key=lambda item: item[1].used):
            if sum({found.id: found.size for found in here.values()}.values()) <= most_gb * 1e9:
                break
            if name in here and not {name, use.id} & spared and now - use.used > _YOUNG_SECONDS and _remove(ledger, name, use):
                del here[name]
                removed.append(name)
    return removed


@dataclass(frozen=True)
class _Here:
    id: str
    size: int


def _ours(ledger: Path) -> dict[str, _Here]:
    """The images that we pulled and that are still here. Missing and replaced ones are dropped from the ledger."""
    with _locked(ledger):
        uses = _read(ledger)
        found = inspect("image", sorted(uses))
        by_name = {name: item for item in found for name in _names(item)}
        here = {}
        for name, use in uses.items():
            item = by_name.get(full_name(name))
            if item and str(item["Id"]) == use.id:
                here[name] = _Here(use.id, int(item.get("Size") or 0))
        _write(ledger, {name: use for name, use in uses.items() if name in here})
    return here


def _names(item: Mapping[str, object]) -> Iterator[str]:
    for key in ("RepoTags", "RepoDigests"):
        names = item.get(key)
        yield from (full_name(str(name)) for name in (names if isinstance(names, list) else ()))


def full_name(name: str) -> str:
    """A name as docker lists it: without Docker Hub's host, with a tag; with a digest, without the tag."""
    for start in _HUB:
        name = name.removeprefix(start)
    name = name.removeprefix("library/")
    if "@" in name:
        path, _, digest = name.partition("@")
        return f"{_untagged(path)}@{digest}"
    return name if _untagged(name) != name else f"{name}:latest"


def _untagged(name: str) -> str:
    path, colon, tag = name.rpartition(":")
    return path if colon and "/" not in tag else name


def _in_use() -> set[str]:
    """Ids and names of the images of all containers, running or not, and of all services, whoever owns them."""
    containers = inspect("container", ids("container"))
    used = {str(item.get("Image")) for item in containers}
    used |= {str((item.get("Config") or {}).get("Image")) for item in containers}
    for service in listed("service"):
        spec = service["Spec"]
        for task in (spec.get("TaskTemplate"), (service.get("PreviousSpec") or {}).get("TaskTemplate")):
            name = str(((task or {}).get("ContainerSpec") or {}).get("Image") or "")
            used |= {name, name.partition("@")[0]}
    return used - {"", "None"}


def _remove(ledger: Path, name: str, use: _Use) -> bool:
    """Remove one image unless it was used since it was chosen."""
    with _locked(ledger):
        uses = _read(ledger)
        if uses.get(name) != use or call("image", "rm", "--", name, timeout=120).returncode:
            return False
        del uses[name]
        _write(ledger, uses)
    return True


@contextlib.contextmanager
def _locked(ledger: Path, what: str = "lock", wait: bool = True) -> Iterator[bool]:
    """Hold a lock next to the ledger. Without `wait`, yields False if somebody else holds it."""
    ledger.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(ledger.with_name(f"{ledger.name}.{what}"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            got = True
        except BlockingIOError:
            got = False
        yield got
    finally:
        os.close(handle)


def _read(ledger: Path) -> dict[str, _Use]:
    """The ledger; empty if it is unreadable, so that nothing is removed because of it."""
    try:
        entries = json.loads(ledger.read_text())["images"]
        return {str(name): _Use(str(entry["id"]), float(entry["used"])) for name, entry in entries.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _write(ledger: Path, uses: Mapping[str, _Use]) -> None:
    text = json.dumps({"version": 1, "images": {name: {"id": use.id, "used": use.used} for name, use in uses.items()}}, indent=1)
    temporary = ledger.with_name(f".{ledger.name}.{os.urandom(6).hex()}")
    temporary.write_text(text)
    temporary.replace(ledger)
