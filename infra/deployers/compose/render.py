"""Docker's own reading of compose files: `docker stack config` in a sandbox, with the recipe's variables as its environment.

Files and variables may be a stranger's, and the variables are the docker command's environment (DOCKER_HOST, LD_PRELOAD,
HTTPS_PROXY …). So it runs unprivileged, without network, socket or files of ours, with limits on time, memory and output. The
output is not trusted: it is judged (`admission`), and exactly what was judged is deployed.
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

from infra.deployers.compose import lines
from infra.deployers.compose.files import inside
from infra.deployers.docker.cli import reader_problem
from infra.deployers.errors import DeployError
from infra.deployers.isolation import bubblewrap, children

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
#: What Docker says of `${NAME:?message}` where NAME has no value.
_REQUIRED = re.compile(r"required variable ([A-Za-z_][A-Za-z0-9_]{0,200}) is missing a value")
#: Variables that mean something to the command, or to any program written in Go.
_OF_DOCKERS_OWN = re.compile(r"DOCKER_|LD_|GO(?:MAXPROCS|MEMLIMIT|GC|DEBUG|TRACEBACK|COVERDIR)\Z")
_number = itertools.count()


@dataclass(frozen=True)
class _Answer:
    """The output of one `docker stack config`. `code` is None if there was too much of it."""

    code: int | None
    out: str
    err: str


def render(
    checkout: Path, names: Sequence[str], environments: Sequence[Mapping[str, str]], trusted: bool
) -> list[dict[str, Any]]:
    """The canonical document of the compose files `names`, merged, once per environment.

    Raises DeployError: `invalid_recipe` with Docker's message, file and line; `forbidden` for a file outside the checkout;
    `tool_missing` if the docker command is too old, or strangers' files cannot be read safely.
    Values are strings, except for what Docker itself prints as a number, boolean or null. Paths start with PLACE.
    """
    if len(names) > _MOST_FILES:
        raise _invalid(f"The recipe names {len(names)} compose files, more than {_MOST_FILES}.", "List fewer in COMPOSE_FILE.")
    for name in names:
        check_name(checkout, name)
    answers = _run(checkout, [(names, env) for env in environments], trusted, shown=_MOST_OUTPUT)
    for env, answer in zip(environments, answers, strict=True):
        if answer.code != 0:
            raise _refused(checkout, names, env, answer, trusted)
    return [parse(answer.out) for answer in answers]


def check_name(checkout: Path, name: str) -> None:
    """Raises DeployError unless `name` is a file of the checkout that can be passed to Docker."""
    if set(name) & set(',"\r\n'):  # Docker's option is a list
        raise _invalid(f"The name of the compose file {name[:200]!r} contains a comma, a quote or a line break.", "Rename it.")
    names_it = "COMPOSE_FILE, in .env.sample or in [env] of cc-ci.toml, names it: correct that, or add the file."
    inside(checkout, name, "" if name == "compose.yml" else names_it)


def problems(checkout: Path, names: Sequence[str], env: Mapping[str, str], trusted: bool) -> dict[str, DeployError]:
    """Docker's error for each of these files, read on its own; valid files are left out. Raises DeployError."""
    if len(names) > _MOST_FILES:
        raise _invalid(f"The recipe has {len(names)} compose files, more than {_MOST_FILES}.", "Merge or remove some.")
    answers = _run(checkout, [([name], env) for name in names], trusted)
    return {name: _because(checkout, name, env, answer) for name, answer in zip(names, answers, strict=True) if answer.code != 0}


def _refused(checkout: Path, names: Sequence[str], env: Mapping[str, str], answer: _Answer, trusted: bool) -> DeployError:
    """Docker's error does not name the file, so each is read on its own: the first one refused is reported."""
    if len(names) > 1:
        for alone in problems(checkout, names, env, trusted).values():
            return alone
    return _because(checkout, names[-1], env, answer)


def _because(checkout: Path, name: str, env: Mapping[str, str], answer: _Answer) -> DeployError:
    own = sorted(filter(_OF_DOCKERS_OWN.match, env))[:5]
    changed = f" (These variables change how the docker command itself behaves: {', '.join(own)}.)" if own else ""
    if answer.code is None:
        return _invalid(f"{name} expands to more than {_MOST_OUTPUT >> 10} kB.", f"Use fewer aliases and anchors.{changed}")
    if answer.code == -9:
        return _invalid(f"Reading {name} takes more than {_MEMORY_MB} MB of memory.", f"Use fewer aliases and anchors.{changed}")
    output = _message(answer.err)
    if "forbidden properties" in output:
        output = f"{output} ({_forbidden(checkout, name)})"
    fix = f"Reproduce it with `docker stack config -c {name}`.{changed}"
    if missing := _REQUIRED.search(output):
        fix = f"Set {missing[1]} in .env.sample, or for tests under [env] in cc-ci.toml. {fix}"
    return _invalid(f"Docker refuses {name}{lines.of_error(checkout, name, output)}: {output}.", fix)


def _invalid(message: str, fix: str) -> DeployError:
    return DeployError("invalid_recipe", message, fix)


def _message(output: str) -> str:
    """Docker's error on one line, without the checkout's path and the dynamic loader's messages.

    If the docker command itself crashed, the reason without the stack trace.
    """
    kept = [line.strip() for line in output.splitlines() if line.strip() and not line.startswith("ERROR: ld.so")]
    kept = [line for line in kept if line.startswith(("panic: ", "fatal error: "))][:1] or kept
    text = " ".join(kept).replace(f"{PLACE}/", "")
    return "".join(c if c.isprintable() else "?" for c in text)[:500].rstrip(". ") or "no error message"


def _run(
    checkout: Path, wanted: Sequence[tuple[Sequence[str], Mapping[str, str]]], trusted: bool, shown: int = 0
) -> list[_Answer]:
    """Have Docker read these files in these environments. Returns up to `shown` bytes of each output."""
    if problem := reader_problem():
        raise DeployError("tool_missing", problem.text, problem.fix)
    isolated = bubblewrap.available()
    if not isolated.ok and not trusted:
        raise DeployError("tool_missing", f"A stranger's files may only be read in a sandbox. {isolated.reason}", isolated.fix)
    program = os.path.realpath(shutil.which("docker") or "docker")
    mounts = (
        {PLACE: checkout} if program.startswith("/usr/") else {PLACE: checkout, f"{bubblewrap.PROGRAMS}/docker": Path(program)}
    )
    with tempfile.TemporaryDirectory(prefix="cc-ci-render-") as scratch:
        if isolated.ok:
            mounts[PLACE] = _for_anybody(checkout, Path(scratch))
        box = bubblewrap.Sandbox(
            f"ccci-render-{os.getpid()}-{next(_number)}",
            bubblewrap=isolated.ok,
            mounts=mounts,
            memory_mb=_MEMORY_MB,
            processes=256,
            disk_mb=64,
            scratch=Path(scratch),
        )
        docker = program if program.startswith("/usr/") else box.where(f"{bubblewrap.PROGRAMS}/docker")
        config = {
            "jobs": [{"command": _command(docker, box.where(PLACE), names), "env": _environment(env)} for names, env in wanted],
            "most": _MOST_OUTPUT,
            "shown": shown,
            "error": _MOST_ERROR,
        }
        output = _output(box, config)
    try:
        answers = [_answer(one, shown) for one in json.loads(output)]
        if len(answers) != len(wanted):
            raise ValueError
    except (ValueError, LookupError, TypeError, RecursionError):
        raise DeployError("tool_failed", f"Could not run docker stack config: {_message(output[-300:])}.") from None
    if not isolated.ok:
        here = re.compile(rf"{re.escape(str(checkout))}(?![\w.-])")
        answers = [_Answer(one.code, here.sub(PLACE, one.out), one.err) for one in answers]
    return answers


def _answer(one: Mapping[str, Any], shown: int) -> _Answer:
    """Validates one answer from the sandbox, which a stranger may have forged. Raises LookupError, TypeError."""
    out, err = str(one["out"]), str(one["err"])
    return _Answer(one["code"] if len(out) <= shown else None, out[:shown], err[:_MOST_ERROR])


def _for_anybody(checkout: Path, scratch: Path) -> Path:
    """The checkout, or a readable copy if its modes keep out the sandbox's uid."""
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
            raise _invalid(f"The variable {name[:100]} is longer than {_MOST_ENV} bytes.", "Move the value into a file.")
        if "\0" in value:
            raise _invalid(f"The variable {name[:100]} contains a NUL character.", "Remove it.")
    if together > _MOST_ENV_TOGETHER:
        raise _invalid(f"All variables together are longer than {_MOST_ENV_TOGETHER} bytes.", "Move long values into files.")
    return dict(env)


def _command(docker: str, place: str, names: Sequence[str]) -> list[str]:
    # Each of these comes before a variable of that meaning, which would be the recipe's.
    fixed = ["--config=/nonexistent", "--host=unix:///nonexistent", "--log-level=error", "--tls=false"]
    return [docker, *fixed, "stack", "config", *(f"--compose-file={place}/{name}" for name in names)]


def _output(box: bubblewrap.Sandbox, config: Mapping[str, Any]) -> str:
    """The output of the program in the sandbox, of limited length, within _SECONDS."""
    process = box.start("render.py", config)
    most = len(config["jobs"]) * 7 * (config["shown"] + config["error"])
    try:
        output = children.collect(process, seconds=_SECONDS, most=most).out
        hungry = box.cgroup and box.cgroup.out_of_memory()
    except children.TooLong as error:
        late = f"Docker did not finish reading the compose files within {_SECONDS:g} s."
        raise _invalid(late, "Make them smaller.") from error
    except children.TooMuch as error:
        raise DeployError("tool_failed", f"Could not run docker stack config: {error}.") from error
    finally:
        box.end(process)
    if not output and hungry:
        raise _invalid(f"Reading the compose files takes more than {_MEMORY_MB} MB of memory.", "Use fewer aliases and anchors.")
    return output.decode(errors="replace")


def _forbidden(checkout: Path, name: str) -> str:
    """Which of the forbidden keys, which Docker does not name, are in a file, with their lines."""
    found = []
    for number, line in enumerate(inside(checkout, name).read_text(errors="replace").splitlines(), 1):
        key = line.strip().partition(":")[0]
        if key in _FORBIDDEN:
            found.append(f"{key} on line {number}")
    return ", ".join(found[:5]) or f"one of {', '.join(_FORBIDDEN)}"


_WHOLE = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")
_BROKEN = re.compile(r"-?[0-9]{1,40}(?:\.[0-9]{1,40}(?:e[-+]?[0-9]{1,2})?|e[-+]?[0-9]{1,2})")


def parse(text: str) -> dict[str, Any]:
    """Parse the document that Docker printed, or that a stranger forged. Raises DeployError."""
    try:
        try:
            document = _read(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        except yaml.scanner.ScannerError:  # libyaml does not take a text that begins with a tab as Docker prints it
            document = _read(text, yaml.SafeLoader)
    except (yaml.YAMLError, ValueError) as error:
        output = " ".join(str(error).split())[:200]
        raise _invalid(
            f"What Docker renders from the compose files cannot be parsed: {output}.", "Use plain text values."
        ) from error
    if not isinstance(document, dict):
        raise _invalid("Docker does not render the compose files to a mapping.", "Check that they define services.")
    return document


def _read(text: str, loader: type[yaml.SafeLoader]) -> Any:
    """Parse Docker's output: one document of mappings, lists, strings, numbers, booleans and null, of limited depth.

    Refuses all other YAML (aliases, tags, keys that are not strings). Raises yaml.YAMLError, ValueError.
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
            raise ValueError("a key is not text, or occurs twice")
        if isinstance(value, (dict, list)):
            around.append((value, []))
        if len(around) > _DEEPEST:
            raise ValueError("it is nested too deeply")
    return documents[0] if len(documents) == 1 else None


def _scalar(event: yaml.ScalarEvent, printed: str) -> Any:
    """Quoted scalars are strings; plain ones are a number, boolean or null only if they look exactly like it.

    Docker quotes every string that its own reader would mistake for another type. What only YAML 1.1 mistakes (`12:30`, `1_000`,
    `0o17`, `yes`) is a string, and so is a number that is too big.
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
    """Restores a line break: yaml.v3 prints multi-line texts that begin with line breaks with one too few (`|2`)."""
    text, at = str(event.value), event.start_mark.index + 1 if event.start_mark else 0
    lost = event.style == "|" and printed[at : at + 1].isdigit() and (not text.startswith(" ") or "\n" not in text)
    return f"\n{text}" if lost else text
