"""Images: pulled before a deployment, from a mirror first, with a login; the least recently used ones go again.

Nothing is ever removed that cc-ci did not pull itself: the ledger, a JSON file of this machine, says what that is.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import json
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from infra.deployers import children, egress
from infra.deployers.base import Context, DeployError
from infra.deployers.docker_cli import call, environment, last_line
from infra.deployers.engine import ids, inspect, listed

_PULL_SECONDS = 900.0
#: What was asked for this lately may belong to a deployment that has no container yet.
_YOUNG_SECONDS = 3600.0
_HUB = ("docker.io/", "index.docker.io/", "registry-1.docker.io/")
#: What Docker itself says of a pull that failed. Whatever else stands there may be the answer of any server that this machine
#: reaches, which a stranger's registry had Docker ask.
_KNOWN = re.compile(
    r"invalid reference format|manifest unknown|name unknown|no matching manifest|not found"
    r"|pull access denied|repository does not exist|requested access to the resource is denied"
    r"|no basic auth credentials|authentication required|unauthorized|incorrect username or password"
    r"|toomanyrequests|You have reached your [a-z ]{0,40}limit"
    r"|error parsing HTTP [0-9]{3}|unexpected HTTP status: [0-9]{3}|unexpected status"
    r"|connection refused|connection reset|no such host|server misbehaving|no route to host|network is unreachable"
    r"|TLS handshake timeout|i/o timeout|Client\.Timeout exceeded|context deadline exceeded|context canceled|\bEOF\b"
    r"|server gave HTTP response to HTTPS client|certificate signed by unknown authority|certificate has expired|\bx509\b"
    r"|no space left on device|failed to register layer|verification failed"
    r"|Cannot connect to the Docker daemon|error during connect"
)


def get(image: str, context: Context) -> None:
    """Have `image` here, since a pull inside a deployment would eat its time to settle. Notes that it was used.

    Raises DeployError: `pull_failed` (ours) with docker's words, `invalid_recipe` for what is no image's name, `forbidden` for an
    image of a registry that runs may not have asked: Docker asks it from this machine, past the rules for a run's network.
    """
    # Noted before the look, so that nobody takes it away between the look and the deployment.
    note_use(context.image_ledger, image)
    if inspect("image", [image]):
        return
    if context.ephemeral and (problem := _out_of_bounds(registry(image), context.registries)):
        fix = "Take the image from another, or add this one to those that runs may pull from (CC_CI_REGISTRIES)."
        raise DeployError("forbidden", f"The image {image} is not here, and {problem}.", fix)
    context.report(f"Pulling {image}")
    started = time.monotonic()
    with context.timed("pull"), _login(context) as options:
        said = _from_mirror(image, context, options)
        if said is not None and (problem := _pull(image, options, context.check)):
            raise _failed(image, problem, said)
    note_use(context.image_ledger, image, pulled=True)
    where = "" if said is not None else " from the mirror"
    context.report(f"Pulled {image}{where} in {time.monotonic() - started:.1f} s")


def _failed(image: str, problem: str, mirrors: str) -> DeployError:
    if "invalid reference format" in problem:
        return DeployError("invalid_recipe", f"{image!r} is no image's name.", "Correct it in compose.yml.")
    said = f"The image {image} is not here and could not be pulled: {problem}."
    if mirrors:
        said += f" The mirror said: {mirrors}."
    fix = "See whether the registry answers from this server, and whether its login (settings) is right."
    if re.search(r"manifest unknown|not found|does not exist", problem):
        fix = "Check the image's name and tag in compose.yml; a private one needs a login (settings)."
    return DeployError("pull_failed", said, fix)


def _from_mirror(image: str, context: Context, options: list[str]) -> str | None:
    """Ask the mirror for an image of Docker Hub. None when it gave it; else its words, or nothing when it was not asked."""
    name = mirrored(image, context.mirror)
    if not name:
        return ""
    if problem := _pull(name, options, context.check):
        context.log(f"The mirror has no {image}: {problem}")
        return problem
    note_use(context.image_ledger, name, pulled=True)
    tagged = call("image", "tag", name, image)
    return last_line(tagged.stderr) if tagged.returncode else None


def registry(image: str) -> str:
    """The registry that Docker asks for an image, as `host` or `host:port`."""
    first, slash, _ = image.partition("/")
    elsewhere = slash and (first == "localhost" or {".", ":"} & set(first) or first != first.lower())
    return first.lower() if elsewhere and f"{first}/" not in _HUB else "docker.io"


def _out_of_bounds(host: str, registries: Collection[str]) -> str:
    """Why a run may have nothing pulled from there; empty when it may."""
    if registries:
        return "" if host in registries else f"runs pull from {', '.join(sorted(registries))} alone, not from {host}"
    name = host.partition(":")[0]
    try:
        ipaddress.ip_address(name)
        return f"its registry {host} is named by an address"
    except ValueError:
        pass
    if "." not in name:
        return f"its registry {host} has no public name"
    try:
        found = {str(address[0]) for *_, address in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):  # Docker says the same
        return ""
    return f"its registry {host} is not on the internet" if any(map(egress.is_private, found)) else ""


def mirrored(image: str, mirror: str) -> str:
    """The name under which `mirror` has an image of Docker Hub; empty for others, and for those with a digest.

    (An image that was pulled from elsewhere cannot get a name with a digest.)
    """
    if not mirror or registry(image) != "docker.io" or "@" in image:
        return ""
    path = next((image.removeprefix(host) for host in _HUB if image.startswith(host)), image)
    return f"{mirror.rstrip('/')}/{path if '/' in path else f'library/{path}'}"


@contextlib.contextmanager
def _login(context: Context) -> Iterator[list[str]]:
    """Docker's options that bring the run's logins along, in a file that nobody else reads and that goes at once."""
    if not context.registry_auth:
        yield []
        return
    folder = Path(tempfile.mkdtemp(prefix="docker-", dir=context.work))  # 0700
    try:
        handle = os.open(folder / "config.json", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(context.registry_auth)
        yield ["--config", str(folder)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _pull(image: str, options: list[str], check: Callable[[], None]) -> str:
    """Why docker could not pull; empty when it did. Raises what `check` raises, with the pull ended."""
    command = ["docker", *options, "pull", "--quiet", "--", image]
    try:
        done = children.run(command, env=environment(), seconds=_PULL_SECONDS, check=check)
    except FileNotFoundError as error:
        raise DeployError("tool_missing", "There is no docker command here.", "Install Docker.") from error
    except children.TooLong:
        return f"it took more than {_PULL_SECONDS:g} s"
    except children.TooMuch as error:
        return str(error)
    return _told(last_line(done.err.decode(errors="replace"))) if done.code else ""


def _told(said: str) -> str:
    """What is told of Docker's words: those that are its own, and come before the answer of a server that it quotes."""
    known = dict.fromkeys(_KNOWN.findall(said.partition("response body")[0]))
    return ": ".join(known) or "for a reason that stands in the log of Docker's daemon"


@dataclass(frozen=True)
class _Use:
    """What the ledger says of one name: the image that we pulled under it, and when it was used last (seconds, epoch)."""

    id: str
    used: float


def note_use(ledger: Path | None, image: str, *, pulled: bool = False, now: float | None = None) -> None:
    """Note that `image` is used now. One that we did not pull ourselves is never written down."""
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


def prune(ledger: Path | None, most_gb: float, keep: Collection[str] = (), now: float | None = None) -> list[str]:
    """Remove the least recently used images that we pulled, until at most `most_gb` GB of them are here (0: keep all).

    Never one that a container or a service uses, that `keep` names (it may be needed for a way back), that was used within
    the hour, or that is another image than the one we pulled. Without force, so docker has the last word. Gives the names.
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
    """What we pulled and is still here. What is gone, or was replaced by somebody else, is struck from the ledger."""
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
    """A name as docker lists it: without Docker Hub's host, with a tag; a digest makes the tag idle."""
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
    """Ids and names of the images of all containers, running or not, and of all services, anybody's."""
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
    """Remove one image unless it was used since it was looked at."""
    with _locked(ledger):
        uses = _read(ledger)
        if uses.get(name) != use or call("image", "rm", "--", name, timeout=120).returncode:
            return False
        del uses[name]
        _write(ledger, uses)
    return True


@contextlib.contextmanager
def _locked(ledger: Path, what: str = "lock", wait: bool = True) -> Iterator[bool]:
    """Hold a lock beside the ledger. Without `wait`, gives False when another holds it."""
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
    """The ledger; an unreadable one is empty, so that nothing is removed for its sake."""
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
