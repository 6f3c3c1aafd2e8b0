"""Docker's own reading of compose files: `docker stack config`, in a sandbox, with the recipe's variables as its environment.

The files and the variables are a stranger's, and the variables are the environment of Docker's command (DOCKER_HOST,
LD_PRELOAD, HTTPS_PROXY …). So it runs as nobody, without network, socket or files of ours, with limits on time, memory and what
it prints. What it prints is believed in nothing: it is judged (`admission`), and what was judged is what is deployed.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from infra.deployers import children, sandbox
from infra.deployers.base import DeployError
from infra.deployers.compose import lines
from infra.deployers.compose.files import inside
from infra.deployers.docker_cli import reader_problem

#: Where the checkout lies for Docker: the paths of its answer begin with it. So deep, that `../x` is told from `/x`.
ROOT = "/cc-ci/"
PLACE = f"{ROOT}1/2/3/4/5/6/7/8/recipe"
_SECONDS = 120.0
_MEMORY_MB = 1024
_MOST_OUTPUT = 1 << 19
_MOST_FILES = 50
_DEEPEST = 50  #: levels of a document
_MOST_ENV = 120_000  #: bytes of one variable; Linux takes 128 kB, and 2 MB of all together
_MOST_ENV_TOGETHER = 1_500_000
_MOST_ERROR = 4096
#: What Docker's reader refuses without saying which.
_FORBIDDEN = ("extends", "volume_driver", "volumes_from", "cpu_quota", "cpu_shares", "cpuset", "mem_limit", "memswap_limit")
#: Variables that mean something to the command, or to any program written in Go.
_OF_DOCKERS_OWN = re.compile(r"DOCKER_|LD_|GO(?:MAXPROCS|MEMLIMIT|GC|DEBUG|TRACEBACK|COVERDIR)\Z")
_number = itertools.count()


@dataclass(frozen=True)
class _Answer:
    """What one call of Docker's reader said. `code` is None when it printed too much."""

    code: int | None
    out: str
    err: str


def render(
    checkout: Path, names: Sequence[str], environments: Sequence[Mapping[str, str]], trusted: bool
) -> list[dict[str, Any]]:
    """The canonical document of the compose files `names`, laid over each other, once for each environment.

    Raises DeployError: `invalid_recipe` with Docker's words, file and line; `forbidden` for a file outside the checkout;
    `tool_missing` where Docker's command is too old, or strangers' files cannot be read safely.
    Values are text, but for what Docker itself prints as a number, a boolean or null. Paths begin with PLACE.
    """
    if len(names) > _MOST_FILES:
        raise _invalid(f"The recipe names {len(names)} compose files, more than {_MOST_FILES}.", "Name fewer in COMPOSE_FILE.")
    for name in names:
        check_name(checkout, name)
    answers = _run(checkout, [(names, env) for env in environments], trusted, shown=_MOST_OUTPUT)
    for env, answer in zip(environments, answers, strict=True):
        if answer.code != 0:
            raise _refused(checkout, names, env, answer, trusted)
    return [parse(answer.out) for answer in answers]


def check_name(checkout: Path, name: str) -> None:
    """Raises DeployError unless `name` is a file of the checkout that can be given to Docker."""
    if set(name) & set(',"\r\n'):  # Docker's option is a list
        raise _invalid(f"The name of the compose file {name[:200]!r} has a comma, a quote or a line break in it.", "Rename it.")
    inside(checkout, name)


def problems(checkout: Path, names: Sequence[str], env: Mapping[str, str], trusted: bool) -> dict[str, DeployError]:
    """What Docker refuses of each of these files, read by itself; those that it takes are left out. Raises DeployError."""
    if len(names) > _MOST_FILES:
        raise _invalid(f"The recipe has {len(names)} compose files, more than {_MOST_FILES}.", "Merge or remove some.")
    answers = _run(checkout, [([name], env) for name in names], trusted)
    return {name: _because(checkout, name, env, answer) for name, answer in zip(names, answers, strict=True) if answer.code != 0}


def _refused(checkout: Path, names: Sequence[str], env: Mapping[str, str], answer: _Answer, trusted: bool) -> DeployError:
    """Docker names no file, so each is read by itself: the first that it refuses alone is the one."""
    if len(names) > 1:
        for alone in problems(checkout, names, env, trusted).values():
            return alone
    return _because(checkout, names[-1], env, answer)


def _because(checkout: Path, name: str, env: Mapping[str, str], answer: _Answer) -> DeployError:
    own = sorted(filter(_OF_DOCKERS_OWN.match, env))[:5]
    changed = f" (Docker's command itself is changed by the variables {', '.join(own)}.)" if own else ""
    if answer.code is None:
        return _invalid(f"{name} unfolds to more than {_MOST_OUTPUT >> 10} kB.", f"Use fewer aliases and anchors.{changed}")
    if answer.code == -9:
        return _invalid(f"{name} takes more than {_MEMORY_MB} MB to read.", f"Use fewer aliases and anchors.{changed}")
    said = _words(answer.err)
    if "forbidden properties" in said:
        said = f"{said} ({_forbidden(checkout, name)})"
    fix = f"`docker stack config -c {name}` says the same.{changed}"
    return _invalid(f"Docker refuses {name}{lines.of_error(checkout, name, said)}: {said}.", fix)


def _invalid(message: str, fix: str) -> DeployError:
    return DeployError("invalid_recipe", message, fix)


def _words(said: str) -> str:
    """Docker's error on one line, without the place of the checkout, and without what the loader of programs says.

    Where Docker's command itself broke, what broke, without the stack of calls.
    """
    kept = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith("ERROR: ld.so")]
    kept = [line for line in kept if line.startswith(("panic: ", "fatal error: "))][:1] or kept
    text = " ".join(kept).replace(f"{PLACE}/", "")
    return "".join(c if c.isprintable() else "?" for c in text)[:500].rstrip(". ") or "without a word of why"


def _run(
    checkout: Path, wanted: Sequence[tuple[Sequence[str], Mapping[str, str]]], trusted: bool, shown: int = 0
) -> list[_Answer]:
    """Have Docker read these files under these environments; of what it prints, give the first `shown` bytes."""
    if problem := reader_problem():
        raise DeployError("tool_missing", problem.text, problem.fix)
    isolated = sandbox.available()
    if not isolated.ok and not trusted:
        raise DeployError("tool_missing", f"A stranger's files may only be read in a sandbox. {isolated.reason}", isolated.fix)
    program = os.path.realpath(shutil.which("docker") or "docker")
    mounts = {PLACE: checkout} if program.startswith("/usr/") else {PLACE: checkout, f"{sandbox.PROGRAMS}/docker": Path(program)}
    with tempfile.TemporaryDirectory(prefix="cc-ci-render-") as scratch:
        if isolated.ok:
            mounts[PLACE] = _for_anybody(checkout, Path(scratch))
        box = sandbox.Sandbox(
            f"ccci-render-{os.getpid()}-{next(_number)}",
            bubblewrap=isolated.ok,
            mounts=mounts,
            memory_mb=_MEMORY_MB,
            processes=256,
            disk_mb=64,
            scratch=Path(scratch),
        )
        docker = program if program.startswith("/usr/") else box.where(f"{sandbox.PROGRAMS}/docker")
        config = {
            "jobs": [{"command": _command(docker, box.where(PLACE), names), "env": _environment(env)} for names, env in wanted],
            "most": _MOST_OUTPUT,
            "shown": shown,
            "error": _MOST_ERROR,
        }
        said = _output(box, config)
    try:
        answers = [_answer(one, shown) for one in json.loads(said)]
        if len(answers) != len(wanted):
            raise ValueError
    except (ValueError, LookupError, TypeError, RecursionError):
        raise DeployError("tool_failed", f"Docker's reader could not be run: {_words(said[-300:])}.") from None
    if not isolated.ok:
        here = re.compile(rf"{re.escape(str(checkout))}(?![\w.-])")
        answers = [_Answer(one.code, here.sub(PLACE, one.out), one.err) for one in answers]
    return answers


def _answer(one: Mapping[str, Any], shown: int) -> _Answer:
    """One answer, a stranger's perhaps, held to what the program in the sandbox gives. Raises LookupError, TypeError."""
    out, err = str(one["out"]), str(one["err"])
    return _Answer(one["code"] if len(out) <= shown else None, out[:shown], err[:_MOST_ERROR])


def _for_anybody(checkout: Path, scratch: Path) -> Path:
    """The checkout, or a copy where its modes keep the uid of the sandbox out: a folder may be its owner's alone."""
    entries = [checkout, *(Path(place, name) for place, folders, files in os.walk(checkout) for name in (*folders, *files))]
    modes = [(entry, entry.lstat().st_mode) for entry in entries]
    if all(stat.S_ISLNK(mode) or (mode & 0o4 and (not stat.S_ISDIR(mode) or mode & 0o1)) for _, mode in modes):
        return checkout
    copy = scratch / "recipe"
    for entry, mode in modes:
        target = copy / entry.relative_to(checkout)
        if stat.S_ISDIR(mode):
            target.mkdir()
            target.chmod(0o755)
        elif stat.S_ISLNK(mode):
            target.symlink_to(entry.readlink())
        elif stat.S_ISREG(mode):
            shutil.copyfile(entry, target)
            target.chmod(0o644)
    return copy


def _environment(env: Mapping[str, str]) -> dict[str, str]:
    together = 0
    for name, value in env.items():
        size = len(f"{name}={value}".encode(errors="replace"))
        together += size
        if size > _MOST_ENV:
            raise _invalid(f"The variable {name[:100]} is longer than {_MOST_ENV} bytes.", "Put the text into a file.")
        if "\0" in value:
            raise _invalid(f"The variable {name[:100]} holds a NUL.", "Take it out.")
    if together > _MOST_ENV_TOGETHER:
        raise _invalid(f"All variables together are longer than {_MOST_ENV_TOGETHER} bytes.", "Put texts into files.")
    return dict(env)


def _command(docker: str, place: str, names: Sequence[str]) -> list[str]:
    # Each of these comes before a variable of that meaning, which would be the recipe's.
    fixed = ["--config=/nonexistent", "--host=unix:///nonexistent", "--log-level=error", "--tls=false"]
    return [docker, *fixed, "stack", "config", *(f"--compose-file={place}/{name}" for name in names)]


def _output(box: sandbox.Sandbox, config: Mapping[str, Any]) -> str:
    """What the program in the sandbox prints, no more than can be right, in no more than _SECONDS."""
    process = box.start("render.py", config)
    most = len(config["jobs"]) * 7 * (config["shown"] + config["error"])
    try:
        said = children.collect(process, seconds=_SECONDS, most=most).out
        hungry = box.cgroup and box.cgroup.out_of_memory()
    except children.TooLong as error:
        late = f"Docker did not get through the compose files within {_SECONDS:g} s."
        raise _invalid(late, "Make them smaller.") from error
    except children.TooMuch as error:
        raise DeployError("tool_failed", f"Docker's reader could not be run: {error}.") from error
    finally:
        box.end(process)
    if not said and hungry:
        raise _invalid(f"The compose files take more than {_MEMORY_MB} MB to read.", "Use fewer aliases and anchors.")
    return said.decode(errors="replace")


def _forbidden(checkout: Path, name: str) -> str:
    """The keys that Docker forbids and does not name: which of them stand in a file, with their lines."""
    found = []
    for number, line in enumerate(inside(checkout, name).read_text(errors="replace").splitlines(), 1):
        key = line.strip().partition(":")[0]
        if key in _FORBIDDEN:
            found.append(f"{key} in line {number}")
    return ", ".join(found[:5]) or f"one of {', '.join(_FORBIDDEN)}"


_WHOLE = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")
_BROKEN = re.compile(r"-?[0-9]{1,40}(?:\.[0-9]{1,40}(?:e[-+]?[0-9]{1,2})?|e[-+]?[0-9]{1,2})")


def parse(text: str) -> dict[str, Any]:
    """The document that Docker printed, or a stranger in its place. Raises DeployError."""
    try:
        try:
            document = _read(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        except yaml.scanner.ScannerError:  # libyaml does not take a text that begins with a tab as Docker prints it
            document = _read(text, yaml.SafeLoader)
    except (yaml.YAMLError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        raise _invalid(f"What Docker makes of the compose files cannot be read: {said}.", "Use plain text values.") from error
    if not isinstance(document, dict):
        raise _invalid("What Docker makes of the compose files is no mapping.", "Give them services.")
    return document


def _read(text: str, loader: type[yaml.SafeLoader]) -> Any:
    """What Docker prints: one document of mappings, lists, texts, numbers, booleans and null, as deep as a compose file is.

    Docker prints nothing else that YAML knows (aliases, tags, keys that are no text). Raises yaml.YAMLError, ValueError.
    """
    documents: list[Any] = []
    around: list[tuple[Any, list[str]]] = [(documents, [])]  # what is open, each with its keys so far
    for event in yaml.parse(text, Loader=loader):
        if isinstance(event, yaml.CollectionEndEvent):
            around.pop()
        if not isinstance(event, yaml.NodeEvent):
            continue
        if event.anchor or getattr(event, "tag", None):
            raise ValueError("it has an alias, an anchor or a tag")
        value: Any = {} if isinstance(event, yaml.MappingStartEvent) else []
        if isinstance(event, yaml.ScalarEvent):
            event.value.encode()  # half of a surrogate pair is no text
            value = _scalar(event, text)
        place, keys = around[-1]
        if isinstance(place, list):
            place.append(value)
        elif len(keys) > len(place):
            place[keys[-1]] = value
        elif isinstance(event, yaml.ScalarEvent) and (key := _text(event, text)) not in place:
            keys.append(key)
        else:
            raise ValueError("a key is no text, or is there twice")
        if isinstance(value, (dict, list)):
            around.append((value, []))
        if len(around) > _DEEPEST:
            raise ValueError("it is nested too deeply")
    return documents[0] if len(documents) == 1 else None


def _scalar(event: yaml.ScalarEvent, printed: str) -> Any:
    """Quoted is text, and plain is a number, a boolean or null only where it looks just like it.

    Docker quotes each text that its own reader would take for something else; what looks like it to nobody but a reader of
    YAML 1.1 (`12:30`, `1_000`, `0o17`, `yes`) is text, and so is what is too big for a number.
    """
    text = str(event.value)
    if event.style:
        return _text(event, printed)
    if text in ("null", "~", ""):
        return None
    if text in ("true", "false"):
        return text == "true"
    return int(text) if _WHOLE.fullmatch(text) else float(text) if _BROKEN.fullmatch(text) else text


def _text(event: yaml.ScalarEvent, printed: str) -> str:
    """A text of several lines that begins with line breaks is printed with one too few (`|2`, by the encoder of yaml.v3)."""
    text, at = str(event.value), event.start_mark.index + 1 if event.start_mark else 0
    lost = event.style == "|" and printed[at : at + 1].isdigit() and (not text.startswith(" ") or "\n" not in text)
    return f"\n{text}" if lost else text
