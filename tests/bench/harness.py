"""A whole run on the Swarm as a multiple of the same steps typed by hand, measured in turns."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from runs.harness.protocol import Limits, Request, RunFolder, Source, Verdict
from tests.docker import IMAGE, docker, need_swarm
from tests.waiting import until

ROUNDS = 5
COMPOSE = """\
version: "3.8"
services:
  app:
    image: {image}
    command: {command}
    networks: [inner]
    volumes: ["data:/data"]
    deploy:
      labels:
        - "traefik.http.services.${{STACK_NAME}}.loadbalancer.server.port=8080"
networks:
  inner:
volumes:
  data:
"""
COMMANDS = {
    "a process that ignores SIGTERM": ["httpd", "-f", "-p", "8080", "-h", "/bin"],
    "one that stops at once": ["sh", "-c", "trap 'exit 0' TERM; httpd -f -p 8080 -h /bin & wait"],
}
TEST = "def test_answers(app):\n    assert app.get('/sh').status_code == 200\n"


def whole_runs(folder: Path) -> None:
    """Prints the ratios: at most 0.7 and 1.10 are asked for."""
    need_swarm()
    print("A whole run on the Swarm ÷ the same steps by hand (deploy, wait, pytest, remove, wait until all is gone)")
    for name, command in COMMANDS.items():
        recipe = folder / f"bench-{len(command)}"
        (recipe / "tests").mkdir(parents=True)
        (recipe / "compose.yml").write_text(COMPOSE.format(image=IMAGE, command=json.dumps(command)))
        (recipe / "tests" / "test_page.py").write_text(TEST)
        times: dict[Callable[[Path, Path], None], list[float]] = {by_hand: [], by_harness: []}
        for _ in range(ROUNDS):
            for way, taken in times.items():
                begun = time.perf_counter()
                way(recipe, folder)
                taken.append(time.perf_counter() - begun)
        hand, harness = (statistics.median(times[way]) for way in (by_hand, by_harness))
        print(f"  {name}: {harness:.1f} s ÷ {hand:.1f} s = {harness / hand:.2f}")


def by_harness(recipe: Path, folder: Path) -> None:
    run_id = uuid.uuid4().hex
    place = RunFolder(folder / "runs" / run_id / "1")
    place.write_request(
        Request(
            run_id=run_id,
            installation_id="bench",
            recipe="bench",
            source=Source(url=str(recipe)),
            stages=["install", "custom"],
            deployer="swarm",
            limits=Limits(run_seconds=120),
            picture=False,
        )
    )
    command = [sys.executable, "-m", "runs.harness", "run", str(place.path)]
    subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=180, check=True)
    results = place.results()
    assert results and results.verdict is Verdict.PASSED, results


def by_hand(recipe: Path, _folder: Path) -> None:
    """What a person types, with no waste: looks ten times a second, and lets Docker stop the processes as it does."""
    stack = f"hand-{uuid.uuid4().hex[:8]}"
    environment = {**os.environ, "STACK_NAME": stack}
    subprocess.run(
        ["docker", "stack", "deploy", "--resolve-image=never", "--detach=true", "-c", str(recipe / "compose.yml"), stack],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=60,
        check=True,
    )
    until(lambda: docker("service", "ls", f"--filter=name={stack}_app", "--format={{.Replicas}}") == "1/1")
    container = docker("ps", "--quiet", "--no-trunc", f"--filter=label=com.docker.stack.namespace={stack}")
    bridge = json.loads(docker("network", "inspect", "docker_gwbridge"))[0]["Containers"]
    url = f"http://{bridge[container]['IPv4Address'].partition('/')[0]}:8080"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "cc_ci_plugin",
            "-p",
            "no:cacheprovider",
            "-c",
            os.devnull,
            "--rootdir",
            str(recipe),
            str(recipe / "tests"),
        ],
        env={**os.environ, "CC_CI_URL": url, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(PLUGINS)},
        stdout=subprocess.DEVNULL,
        timeout=60,
        check=True,
    )
    docker("stack", "rm", stack)
    label = f"--filter=label=com.docker.stack.namespace={stack}"
    kinds = (("service", "ls"), ("ps", "--all"), ("network", "ls"))
    until(lambda: not any(docker(*kind, "--quiet", label) for kind in kinds))
    docker("volume", "rm", f"{stack}_data")


PLUGINS = Path(__file__).resolve().parents[2] / "runs" / "harness" / "guest"
