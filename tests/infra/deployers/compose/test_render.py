"""Docker's reader in its sandbox: its output, our messages about it, and that it reaches nothing of ours."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.deployers.compose import admission, recipe, render
from infra.deployers.compose.render import PLACE
from infra.deployers.compose.stackfile import text
from infra.deployers.errors import DeployError
from infra.deployers.isolation import bubblewrap, cgroups
from tests.infra.deployers.compose.reading import STACK, context, load, need_reader, write
from tests.infra.deployers.recorder import deployed

pytestmark = pytest.mark.slow(0.3)

APP = "services: {app: {image: x, environment: {A: '${A}', UNSET: }}}\n"


@pytest.fixture(autouse=True)
def reader() -> None:
    need_reader()


def need_sandbox() -> None:
    if not bubblewrap.available().ok:
        pytest.skip(bubblewrap.available().reason)


def documents(folder: Path, *environments: dict[str, str]) -> list[dict[str, Any]]:
    return render.render(folder, ["compose.yml"], environments, trusted=False)


def refused(folder: Path, names: tuple[str, ...] = ("compose.yml",), **env: str) -> DeployError:
    with pytest.raises(DeployError) as caught:
        render.render(folder, names, [env], trusted=False)
    return caught.value


# --- what a recipe's variables do to Docker's command

HARMLESS = [
    *("DOCKER_HOST=x", "DOCKER_CONTEXT=nope", "DOCKER_CONFIG=/etc/passwd", "DOCKER_TLS_VERIFY=1", "DOCKER_TLS=1"),
    *("DOCKER_CERT_PATH=/etc", "DOCKER_API_VERSION=99", "DOCKER_CONTENT_TRUST=1", "DOCKER_DEFAULT_PLATFORM=x"),
    *("DOCKER_HIDE_LEGACY_COMMANDS=1", "DOCKER_STACK_ORCHESTRATOR=kubernetes", "DOCKER_CLI_HINTS=1", "DOCKER_AUTH_CONFIG={"),
    *("DOCKER_CLI_PLUGIN_ORIGINAL_CLI_COMMAND=x", "DOCKER_CLI_EXPERIMENTAL=x", "DOCKER_CLI_OTEL_EXPORTER_OTLP_ENDPOINT=http://x"),
    *(
        "OTEL_EXPORTER_OTLP_ENDPOINT=unix:///x",
        "COMPOSE_FILE=other.yml",
        "COMPOSE_PROJECT_NAME=x",
        "COMPOSE_ENV_FILES=/etc/passwd",
    ),
    *(f"LD_PRELOAD={PLACE}/x.so", f"LD_LIBRARY_PATH={PLACE}", f"LD_AUDIT={PLACE}/x.so", "LD_DEBUG=all", f"GCONV_PATH={PLACE}"),
    *("PATH=/x", "HOME=/root", "TMPDIR=/nope", "LANG=x", "TERM=x", "PWD=/", f"SHELL={PLACE}/x", f"BASH_ENV={PLACE}/x", "IFS=x"),
    *("HTTP_PROXY=http://x", "HTTPS_PROXY=http://x", "ALL_PROXY=socks5://x", "NO_PROXY=x", "SSL_CERT_FILE=x", "SSH_AUTH_SOCK=/x"),
    *("GODEBUG=inittrace=1", "GODEBUG=x=,,", "GOMEMLIMIT=1", "GOGC=off", "GOTRACEBACK=crash", "GOCOVERDIR=/tmp", "GORACE=x"),
    *(f"PYTHONPATH={PLACE}", f"PYTHONSTARTUP={PLACE}/x.py", "NO_COLOR=1", "DEBUG=1", "NOTIFY_SOCKET=/x", "XDG_RUNTIME_DIR=/x"),
]
BREAKING = ["DOCKER_API_VERSION=foo", "DOCKER_CUSTOM_HEADERS=x", "GOMEMLIMIT=x", "GOMAXPROCS=100000"]


def test_variables_of_the_commands_own_change_nothing(tmp_path: Path) -> None:
    names = sorted({line.partition("=")[0] for line in HARMLESS})
    keys = "".join(f"      {name}: ${{{name}}}\n" for name in names)
    folder = write(tmp_path, f"services:\n  app:\n    image: x\n    environment:\n{keys}")
    environments = [dict([line.split("=", 1)]) for line in HARMLESS]
    for env, document in zip(environments, documents(folder, *environments), strict=True):
        shown = dict.fromkeys(names, "") | env
        assert document == {"version": "3.13", "services": {"app": {"image": "x", "environment": shown}}}


@pytest.mark.parametrize("line", BREAKING)
def test_variables_that_break_the_command_are_named(line: str, tmp_path: Path) -> None:
    name, _, value = line.partition("=")
    error = refused(write(tmp_path, APP), **{name: value})
    assert error.recipes_fault and "compose.yml" in error.message
    assert f"These variables change how the docker command itself behaves: {name}." in error.fix


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"A": "x" * 130_000}, "The variable A is longer than 120000 bytes."),
        ({"A": "\N{EURO SIGN}" * 50_000}, "The variable A is longer than 120000 bytes."),
        ({"A" * 130_000: "x"}, f"The variable {'A' * 100} is longer than 120000 bytes."),
        ({f"A{n}": "x" * 100_000 for n in range(16)}, "All variables together are longer than 1500000 bytes."),
        ({"A": "a\0b"}, "The variable A contains a NUL character."),
    ],
)
def test_variables_that_no_command_takes(env: dict[str, str], words: str, tmp_path: Path) -> None:
    assert refused(write(tmp_path, APP), **env).message == words


def test_the_longest_variables_are_taken(tmp_path: Path) -> None:
    env = {f"A{n}": "\N{EURO SIGN}" * 33_000 for n in range(13)} | {"A": "y" * 119_000}
    [document] = documents(write(tmp_path, APP), env)
    assert document["services"]["app"]["environment"] == {"A": "y" * 119_000, "UNSET": None}


# --- a stranger in the reader's place: a program that is put before Docker's command and reports or does what it likes


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a Python program in place of Docker's command."""

    def make(program: str) -> None:
        (tmp_path / "bin").mkdir()
        file = tmp_path / "bin" / "docker"
        helped = "import sys\nif '--help' in sys.argv: sys.exit(print('docker stack config'))\n"
        file.write_text(f"#!{bubblewrap.interpreter()} -I\n{helped}{program}")
        file.chmod(0o755)
        monkeypatch.setenv("PATH", f"{file.parent}:{os.environ['PATH']}")

    return make


REPORT = """
import json, os, pathlib, socket

def tried(do):
    try:
        return str(do())[:2000]
    except Exception as error:
        return f"{type(error).__name__}: {error}"

def connected(family, address):
    with socket.socket(family) as stream:
        stream.settimeout(2)
        stream.connect(address)
    return "connected"

ask = json.loads(os.environ["ASK"])
report = {
    "ids": [os.getuid(), os.geteuid(), os.getgid(), *os.getgroups()],
    "env": dict(os.environ),
    "root": sorted(os.listdir("/")),
    "recipe": sorted(os.listdir(ask["recipe"])),
    "interfaces": [name for _, name in socket.if_nameindex()],
    "processes": [pathlib.Path("/proc", name, "cmdline").read_text() for name in os.listdir("/proc") if name.isdigit()],
    "fds": [tried(lambda: os.readlink(f"/proc/self/fd/{fd}")) for fd in os.listdir("/proc/self/fd")],
    "read": {path: tried(pathlib.Path(path).read_text) for path in ask["read"]},
    "write": {path: tried(lambda: pathlib.Path(path).write_text("x")) for path in ask["write"]},
    "tcp": {port: tried(lambda: connected(socket.AF_INET, ("127.0.0.1", port))) for port in ask["tcp"]},
    "unix": {path: tried(lambda: connected(socket.AF_UNIX, path.replace("@", chr(0)))) for path in ask["unix"]},
    "out": tried(lambda: socket.create_connection(("1.1.1.1", 53), 2)),
    "capabilities": [line for line in open("/proc/self/status") if line.startswith(("Cap", "NoNewPrivs", "Seccomp"))],
}
print(json.dumps({"services": {"app": {"image": "x", "environment": {"REPORT": json.dumps(report)}}}}))
"""


def test_nothing_of_ours_is_within_reach(tmp_path: Path, fake: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither our environment, files, processes and sockets, nor the network."""
    need_sandbox()
    monkeypatch.setenv("CC_CI_SECRET_KEYS", "our-secret")
    secret = tmp_path / "secret"
    secret.write_text("our-secret")
    secret.chmod(0o644)
    folder = write(tmp_path / "recipe", APP)
    (folder / "link").symlink_to(secret)
    (folder / "out").symlink_to("/")
    fake(REPORT)
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind("\0cc-ci-test-render")
        abstract.listen()
        port = tcp.getsockname()[1]
        ask = {
            "read": [
                *(
                    __file__,
                    str(secret),
                    f"{PLACE}/link",
                    f"{PLACE}/out{secret}",
                    f"{PLACE}/../secret",
                    f"/proc/{os.getpid()}/environ",
                ),
                *("/root/.docker/config.json", "/proc/1/environ", "/proc/1/root/etc/shadow", "/etc/shadow", "/etc/hostname"),
            ],
            "write": [f"{PLACE}/compose.yml", "/usr/bin/x", "/etc/x", "/opt/cc-ci/render.py", "/x", str(tmp_path / "x")],
            "recipe": PLACE,
            "tcp": [port],
            "unix": ["/var/run/docker.sock", "/run/docker.sock", "@cc-ci-test-render", "/run/systemd/private"],
        }
        [document] = documents(folder, {"A": "1", "ASK": json.dumps(ask)})
    report = json.loads(document["services"]["app"]["environment"]["REPORT"])
    assert all(one >= 1_900_000_000 for one in report["ids"])
    assert report["env"].keys() - {"LC_CTYPE"} == {"A", "ASK"}
    assert not {"var", "run", "srv", "sys", "boot"} & set(report["root"])
    assert report["recipe"] == ["compose.yml", "link", "out"]
    assert report["interfaces"] == ["lo"]
    assert len(report["processes"]) <= 8 and "pytest" not in str(report["processes"])
    inside = ("/dev/null", "/tmp/#", "/proc/", "/opt/cc-ci/docker", "FileNotFoundError")
    assert [fd for fd in report["fds"] if not fd.startswith(inside)] == []
    assert "our-secret" not in json.dumps({**report, "env": 0})
    for path, said in report["read"].items():
        assert said.startswith(("FileNotFoundError", "PermissionError")) or path == "/proc/1/environ", (path, said)
    for kind in ("write", "tcp", "unix"):
        assert [said for said in report[kind].values() if "Error" not in said] == [], kind
    assert "Error" in report["out"]
    assert [line.split()[1].strip("0") for line in report["capabilities"] if line.startswith("Cap")] == [""] * 5
    assert "NoNewPrivs:\t1\n" in report["capabilities"]
    assert (folder / "compose.yml").read_text() == APP


def test_a_library_that_is_loaded_first_forges_what_is_judged_and_reaches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LD_PRELOAD works on a docker command that is linked dynamically, as Debian's is."""
    need_sandbox()
    if not shutil.which("gcc"):
        pytest.skip("there is no gcc here")
    folder = write(tmp_path / "recipe", APP, **{".env.sample": f"LD_PRELOAD={PLACE}/evil.so\n"})
    (tmp_path / "secret").write_text("x")
    evil = """
    #include <stdio.h>
    #include <stdlib.h>
    #include <unistd.h>
    __attribute__((constructor)) static void evil(void) {
        int root = access("/var/run/docker.sock", F_OK) == 0 || access("SECRET", F_OK) == 0 || getuid() < 1000;
        printf("services:\\n  app:\\n    image: x\\n    privileged: true\\n    hostname: %s\\n", root ? "reached" : "nothing");
        exit(0);
    }
    """
    plain = '#include <stdio.h>\nint main(void) { puts("Usage: docker stack config"); return 0; }\n'
    (tmp_path / "bin").mkdir()
    for source, options, target in (
        (evil.replace("SECRET", str(tmp_path / "secret")), ["-shared", "-fPIC"], folder / "evil.so"),
        (plain, [], tmp_path / "bin" / "docker"),
    ):
        (tmp_path / "source.c").write_text(source)
        subprocess.run(["gcc", *options, "-o", target, tmp_path / "source.c"], check=True)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    read = load(folder, trusted=False)
    assert read.services["app"]["hostname"] == "nothing"
    with pytest.raises(DeployError, match=r"services\.app: privileged"):
        admission.check(read)


#: What a stranger may print in the reader's place, and what is said of it; nothing where it is a document like any other.
FORGED = {
    "nothing": ("", "does not render the compose files to a mapping"),
    "a list": ("[services]", "does not render the compose files to a mapping"),
    "no services": ("services: {}", "has no services"),
    "services in a list": ("services: [app]", "has no services"),
    "no YAML": ("services: {", "cannot be parsed"),
    "two documents": ("a: 1\n---\nb: 1", "does not render the compose files to a mapping"),
    "very deep": ("[" * 200_000, "nested too deeply"),
    "an alias": ("services: {app: &a {image: x}, b: *a}", "an alias, an anchor or a tag"),
    "a bomb": (
        "a: &a [x]\n" + "".join(f"{chr(n + 1)}: &{chr(n + 1)} [{f'*{chr(n)},' * 9}]\n" for n in range(97, 120)),
        "an alias",
    ),
    "a tag": ("services: !!python/object/apply:os.system [id]", "an alias, an anchor or a tag"),
    "an empty number": ('services: {app: {image: !!int ""}}', "an alias, an anchor or a tag"),
    "a key that is a list": ("services: {? [app] : {image: x}}", "a key is not text"),
    "a key given twice": ("services: {1: {privileged: true}, '1': {image: x}}", "a key is not text, or occurs twice"),
    "a surrogate": (r'services: {app: {image: "\ud800"}}', "cannot be parsed"),
    "a NUL": ("services: {app: {image: \0}}", "cannot be parsed"),
    "a merge key": ("services: {app: {image: x, <<: {privileged: true}}}", "services.app: << privileged=True"),
    "a huge number": (
        f"services: {{app: {{image: x, deploy: {{replicas: {'9' * 5000}}}}}}}",
        "deploy.replicas in an unsupported form",
    ),
    "infinity": (
        "services: {app: {image: x, deploy: {update_config: {max_failure_ratio: 1e999}}}}",
        "max_failure_ratio in an unsupported form",
    ),
    "nothing deployed": ("services: {app: {image: x, deploy: }}", "deploy in an unsupported form"),
    "keys of numbers": ("services: {1: {image: x, 2: y}}", "services.1: 2 y"),
    "short mounts": ("services: {app: {image: x, volumes: ['/:/host']}}", "a mount of type None"),
    "one mount": ("services: {app: {image: x, volumes: '/:/host'}}", "volumes in an unsupported form"),
    "a number of mounts": ("services: {app: {image: x, volumes: 5}}", "volumes in an unsupported form"),
    "a source that is a list": ("services: {app: {image: x, volumes: [{type: volume, source: [a]}]}}", "a mount of ['a']"),
    "a secret that is a list": ("services: {app: {image: x, secrets: [{source: [a]}]}}", "the secret ['a']"),
    "secrets that are a number": ("services: {app: {image: x, secrets: 1}}", ""),
    "aliases in a text": ("services: {app: {image: x, networks: {default: {aliases: ab}}}}", "aliases in an unsupported form"),
    "a number of aliases": ("services: {app: {image: x, networks: {default: {aliases: 1}}}}", "aliases in an unsupported form"),
    "networks in a list": (
        "services: {app: {image: x, networks: [host]}}\nnetworks: {host: {external: true}}",
        "networks in an unsupported form",
    ),
    "external as a mapping": (
        "services: {app: {image: x, networks: {host: }}}\nnetworks: {host: {external: {}}}",
        "external in an unsupported form",
    ),
    "a volume of others": ("services: {app: {image: x}}\nvolumes: {v: {external: {}}}", "external in an unsupported form"),
    "a secret of others": (
        "services: {app: {image: x, secrets: [{source: s}]}}\nsecrets: {s: {external: {}}}",
        "external in an unsupported form",
    ),
    "a secret without a name": ("services: {app: {image: x}}\nsecrets: {s: {external: true, name: }}", "name s, which is not"),
    "options in a list": (
        "services: {app: {image: x}}\nvolumes: {v: {driver_opts: [type=none]}}",
        "driver_opts in an unsupported form",
    ),
    "a name that is a list": (
        f"services: {{app: {{image: x}}}}\nvolumes: {{v: {{name: [{STACK}_v]}}}}",
        "which is not the stack's own",
    ),
    "files of variables in a number": ("services: {app: {image: x, env_file: 1}}", "env_file in an unsupported form"),
    "a file that is a list": ("services: {app: {image: x}}\nconfigs: {c: {file: [compose.yml]}}", "file in an unsupported form"),
    "an image with a NUL": (r'services: {app: {image: "a\0b"}}', "an invalid image name"),
    "an image longer than a command line": (f"services: {{app: {{image: {'x' * 200_000}}}}}", "an invalid image name"),
    "no image": ("services: {app: {image: }}", "an invalid image name: None"),
    "a name with a NUL": (r'services: {"a\0b": {image: x}}', "services: the name 'a\\x00b'"),
    "a name with a path": ("services: {app: {image: x}}\nvolumes: {../x: {}}", "volumes: the name '../x'"),
    "keys in capitals": ("services: {app: {image: x, Privileged: true}}", "services.app: Privileged"),
    "keys beside services": ("services: {app: {image: x}}\nprivileged: true", "privileged"),
}


@pytest.mark.parametrize("what", FORGED)
def test_whatever_is_printed_ends_in_words(what: str, tmp_path: Path, fake: Callable[[str], None]) -> None:
    printed, words = FORGED[what]
    folder = write(tmp_path / "recipe", APP)
    (folder / "printed").write_text(printed)
    fake(f"import os\nos.write(1, open('{PLACE}/printed', 'rb').read())")
    with pytest.raises(DeployError) as caught:
        admission.check(load(folder, trusted=False))
    assert caught.value.kind in ("invalid_recipe", "forbidden")
    assert words in caught.value.message


def test_a_variable_that_has_to_be_set_is_named_with_the_place_to_set_it(tmp_path: Path) -> None:
    text = "services: {app: {image: x, environment: {LIMIT: '${PHP_MEMORY_LIMIT:?say how much}'}}}"
    error = refused(write(tmp_path / "recipe", text))
    assert "PHP_MEMORY_LIMIT" in error.message and error.fix.startswith(
        "Set PHP_MEMORY_LIMIT in .env.sample, or for tests under [env]"
    )


ENDLESS = {
    "output": ("import os\nwhile True: os.write(1, b'x' * 65536)", "expands to more than 512 kB"),
    "errors": ("import os\nwhile True: os.write(2, b'x' * 65536)", "Docker refuses compose.yml: xxx"),
    "memory": ("kept = []\nwhile True: kept.append(bytearray(1 << 22))", "takes more than 60 MB of memory"),
    "time": ("while True: pass", "did not finish reading the compose files within 3 s"),
    "sleep": ("import time\ntime.sleep(1000)", "did not finish reading the compose files within 3 s"),
    "children": ("import os, time\nwhile True:\n  if os.fork() == 0: time.sleep(1000)", ""),
    "a child that stays": (
        "import os, time\nif os.fork() == 0: os.setsid() or time.sleep(1000)\nos._exit(3)",
        "no error message",
    ),
}


@pytest.mark.parametrize("what", ENDLESS)
def test_what_does_not_end_is_ended(
    what: str, tmp_path: Path, fake: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    need_sandbox()
    if what in ("time", "sleep", "children"):  # the others end by something else, however slow the machine is
        monkeypatch.setattr(render, "_SECONDS", 3.0)
    monkeypatch.setattr(render, "_MEMORY_MB", 60)
    program, words = ENDLESS[what]
    fake(program)
    error = refused(write(tmp_path / "recipe", APP), MARK=str(tmp_path))
    assert error.kind == "invalid_recipe" and words in error.message
    assert alive(f"MARK={tmp_path}") == [] == list(cgroups.existing(f"ccci-render-{os.getpid()}-"))


def alive(variable: str) -> list[str]:
    """The processes that have this in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            found += [str(path)] if variable.encode() in path.read_bytes().split(b"\0") else []
    return found


#: What the reader's parent may be made to say by it: both have one uid, and so it can take the parent's pipe.
ANSWERS = [
    "[]",
    "{}",
    "null",
    "[1]",
    '[{"code": 0}]',
    "[" * 200_000,
    '[{"code": 0, "out": "a: 1", "err": ""}]' * 2,
    "\udcff",
    "x" * 9_000_000,
    json.dumps([{"code": 0, "out": "x-a:\n" + "- a\n" * 600_000 + "- |\n \ta\n- \t\n@", "err": ""}]),
]


@pytest.mark.parametrize("number", range(len(ANSWERS)))
def test_an_answer_that_is_forged_ends_in_words(number: int, tmp_path: Path, fake: Callable[[str], None]) -> None:
    need_sandbox()
    yama = Path("/proc/sys/kernel/yama/ptrace_scope")
    if yama.exists() and yama.read_text().strip() != "0":
        pytest.skip("here no process may take what its parent has open")
    folder = write(tmp_path / "recipe", APP)
    (folder / "printed").write_bytes(ANSWERS[number].encode(errors="surrogateescape"))
    fake(
        "import ctypes, os, signal\n"
        "pidfd_getfd, parent = 438, os.getppid()\n"
        "with open(ctypes.CDLL(None).syscall(pidfd_getfd, os.pidfd_open(parent), 1, 0), 'wb') as out:\n"
        f"    out.write(open('{PLACE}/printed', 'rb').read())\n"
        "os.kill(parent, signal.SIGKILL)"
    )
    began = time.process_time()
    error = refused(folder)
    assert error.kind in ("tool_failed", "invalid_recipe")
    assert error.message.isprintable() and len(error.message) < 600 and "Traceback" not in error.message
    assert time.process_time() - began < 100


# --- what Docker says, with file and line

WRONG = {
    "services:\n  app:\n    image: x\n    image: y\n": (4, 'mapping key "image" already defined'),
    "services:\n  app:\n    image: x\n    environment:\n      A: true\n": (5, "services.app.environment.A"),
    "services:\n  app:\n    image: x\n    labels:\n      a: true\n": (5, "services.app.labels.a"),
    "services:\n  app:\n    image: x\n    gpus: all\n": (4, "Additional property gpus is not allowed"),
    "services:\n  app:\n    image: x\n    hostname: ${A:+y}\n": (4, "services.app.hostname"),
    "services:\n  app:\n    image: [\n": (3, "yaml"),
    "services:\n  app:\n\timage: x\n": (3, "yaml"),
    "services:\n  app:\n    image: x\n    mem_limit: 1g\n": (4, "mem_limit on line 4"),
}


def test_errors_name_file_and_line(tmp_path: Path) -> None:
    names = {f"compose.{number}.yml": text for number, text in enumerate(WRONG)}
    write(tmp_path, "services: {app: {image: x}}", **names)
    found = recipe.problems(context(tmp_path), tmp_path, list(names))
    assert found is not None
    for (name, error), (line, words) in zip(found.items(), WRONG.values(), strict=True):
        assert error.message.startswith(f"Docker refuses {name}:{line}: "), names[name]
        assert words in error.message
        assert error.fix == f"Reproduce it with `docker stack config -c {name}`."


def test_of_several_files_the_one_that_is_wrong_is_named(tmp_path: Path) -> None:
    over = "services:\n  app:\n    bogus: 1\n"
    folder = write(tmp_path, APP, **{"compose.over.yml": over, "last.yml": APP})
    error = refused(folder, ("compose.yml", "compose.over.yml", "last.yml"))
    assert error.message.startswith("Docker refuses compose.over.yml:3: services.app Additional property bogus")


def test_files_that_are_wrong_only_together(tmp_path: Path) -> None:
    folder = write(tmp_path, f'version: "3.8"\n{APP}', **{"o.yml": f'version: "3.3"\n{APP}'})
    error = refused(folder, ("compose.yml", "o.yml"))
    assert error.recipes_fault and error.message.startswith("Docker refuses o.yml: version mismatch")


def test_names_of_compose_files(tmp_path: Path) -> None:
    odd = ["-", "-x.yml", "a b.yml", "ä.yml", "x=y.yml", "$HOME.yml", "sub/%s.yml"]
    folder = write(tmp_path, APP, **{name: f"services: {{app: {{labels: {{n{n}: x}}}}}}" for n, name in enumerate(odd)})
    [document] = render.render(folder, ["compose.yml", *odd], [{}], trusted=False)
    assert len(document["services"]["app"]["labels"]) == len(odd)
    for name in ("a,b.yml", 'a".yml', "a\nb.yml"):
        (folder / name).write_text(APP)
        assert "a comma, a quote or a line break" in refused(folder, (name,)).message
    assert "has no file" in refused(folder, ("none.yml",)).message
    assert "has no file" in refused(folder, ("sub",)).message
    assert "more than 50" in refused(folder, ("compose.yml",) * 51).message
    with pytest.raises(DeployError, match="The recipe has 51 compose files, more than 50"):
        render.problems(folder, ["compose.yml"] * 51, {}, trusted=False)


def test_very_many_files_are_read_a_few_at_a_time(tmp_path: Path) -> None:
    names = {f"c{number}.yml": f"services: {{app: {{image: x, bogus{number}: 1}}}}" for number in range(50)}
    found = render.problems(write(tmp_path, APP, **names), list(names), {}, trusted=False)
    assert [f"bogus{number} " in error.message for number, error in enumerate(found.values())] == [True] * 50


# --- where there is no sandbox, or no such command


def test_a_trusted_run_without_bubblewrap_reads_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = "configs: {c: {file: ./conf.txt}}\n"
    mounts = "services: {app: {image: x, env_file: a.env, configs: [c], volumes: ['./data:/d', '.:/h'], hostname: '${A}'}}\n"
    folder = write(tmp_path, mounts + more, **{"conf.txt": "x", "a.env": "B=1"})
    sandboxed = documents(folder, {"A": "1"}, {"A": "2"})
    monkeypatch.setattr(bubblewrap, "available", lambda: bubblewrap.Availability(False, "There is no bubblewrap.", "Install it."))
    assert render.render(folder, ["compose.yml"], [{"A": "1"}, {"A": "2"}], trusted=True) == sandboxed
    with pytest.raises(
        DeployError, match=r"A stranger's files may only be read in a sandbox\. There is no bubblewrap\."
    ) as caught:
        documents(folder, {})
    assert caught.value.kind == "tool_missing" and not caught.value.recipes_fault


def test_too_old_a_command_is_said_with_the_line_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    version = "Docker version 20.10.24, build 297e128"
    old = f"#!/bin/sh\nif [ \"$1\" = --version ]; then echo '{version}'; else echo 'Usage:  docker stack [OPTIONS] COMMAND'; fi\n"
    (tmp_path / "bin" / "docker").write_text(old)
    (tmp_path / "bin" / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    error = refused(write(tmp_path / "recipe", APP))
    assert error.kind == "tool_missing"
    assert f"too old to read compose files ({version})" in error.message
    assert "apt-get install docker-ce-cli" in error.fix


# --- text stays what it is


def _is_printed_truly(text: str) -> bool:
    """Docker's printer tells line breaks from blanks only where a text of several lines begins with none (known, and rare)."""
    return "\n" not in text or not text.lstrip("\n").startswith((" ", "\x85", "\u2028", "\u2029"))


ODD = st.text(st.sampled_from(" \n\t\"'\\$#:-|>{}[]&*!%@`,?=~1eabny\r\x7f\ufeff\x85\u2028"), max_size=12)
ANY = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
TEXTS = st.lists((ANY | ODD).filter(_is_printed_truly), min_size=30, max_size=60)


def survives(folder: Path, texts: list[str]) -> None:
    env = {f"V{number}": value for number, value in enumerate(texts)}
    keys = "".join(f"      K{number}: ${{V{number}}}\n" for number in range(len(texts)))
    write(folder, f"services:\n  app:\n    image: x\n    environment:\n{keys}")
    [document] = documents(folder, env)
    expected = {f"K{number}": value for number, value in enumerate(texts)}
    assert document["services"]["app"]["environment"] == expected
    handed = folder / "handed.json"
    handed.write_text(text(document))
    recorded = deployed([handed], {}, STACK)
    assert recorded.code == 0, recorded.stderr
    given = recorded.services[f"{STACK}_app"]["TaskTemplate"]["ContainerSpec"]["Env"]
    assert sorted(given) == sorted(f"{key}={value}" for key, value in expected.items())


SLOW = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large, HealthCheck.large_base_example]


@settings(max_examples=8, suppress_health_check=SLOW)
@given(texts=TEXTS)
def test_any_text_reaches_the_swarm_as_it_is(texts: list[str], tmp_path: Path) -> None:
    survives(tmp_path, texts)


@pytest.mark.long
@pytest.mark.timeout(3600)
@settings(max_examples=300, suppress_health_check=SLOW)
@given(texts=TEXTS)
def test_very_many_texts_reach_the_swarm_as_they_are(texts: list[str], tmp_path: Path) -> None:
    survives(tmp_path, texts)
