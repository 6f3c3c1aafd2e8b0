"""A lost machine that comes back, as a multiple of the plain `docker stack deploy`s of its apps, one after the other."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from pathlib import Path

from tests.docker import docker
from tests.e2e.infra_recipes import OLD, Recipe
from tests.e2e.test_rebuild import Machine, new_machine

ROUNDS = 3
APPS = ("front", "one", "two", "three", "four")
APP = """\
  {name}:
    recipe: stateless
    source: {root}/stateless
    domain: {name}.example.org
    {after}
    owner: reconciled
    version: {version}
    snapshots: none
"""


def rebuild(folder: Path) -> None:
    """Prints the ratio: at most 1.15 is asked for."""
    root = folder / "rebuild"
    root.mkdir()
    Recipe(root / "stateless", "stateless")
    texts = [
        APP.format(name=name, root=root, version=OLD, after="after: front" if name != "front" else "after: []") for name in APPS
    ]
    (root / "infra.yml").write_text("apps:\n" + "".join(texts))
    hand, ours = [], []
    with new_machine(root) as machine:
        machine.cc_ci("migrate", "--verbosity=0")
        machine.cc_ci("infra", "apply", "--file=infra.yml")
        for _ in range(ROUNDS):
            hand.append(sum(_by_hand(root, name) for name in APPS))
            _remove_all()
            begun = time.perf_counter()
            machine.cc_ci("infra", "apply", "--restore")
            ours.append(time.perf_counter() - begun)
            _remove_all()
            _forget(machine)
    by_hand, by_us = statistics.median(hand), statistics.median(ours)
    print(f"A lost machine with {len(APPS)} apps without data (one before all others) ÷ their plain stack deploys, waited for")
    print(f"  {by_us:.1f} s ÷ {by_hand:.1f} s = {by_us / by_hand:.2f}")


def _by_hand(root: Path, name: str) -> float:
    stack = f"{name}_example_org"
    env = {**os.environ, "STACK_NAME": stack, "DOMAIN": f"{name}.example.org"}
    command = [
        "docker",
        "stack",
        "deploy",
        "--detach=true",
        "--resolve-image=never",
        f"--compose-file={root}/stateless/compose.yml",
        stack,
    ]
    begun = time.perf_counter()
    subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL, timeout=60)
    while "1/1" not in docker("service", "ls", f"--filter=name={stack}_app", "--format={{.Replicas}}"):
        assert time.perf_counter() - begun < 60
        time.sleep(0.1)
    return time.perf_counter() - begun


def _remove_all() -> None:
    stacks = [f"{name}_example_org" for name in APPS]
    lists = (
        ("service", "ls", "--format={{.Name}}"),
        ("ps", "--all", "--format={{.Names}}"),
        ("network", "ls", "--format={{.Name}}"),
    )
    while any(name.startswith(tuple(stacks)) for command in lists for name in docker(*command).splitlines()):
        # A network says that it is in use for as long as a task stops: the next round asks again.
        docker("stack", "rm", *stacks, timeout=60, check=False)
        time.sleep(0.1)


def _forget(machine: Machine) -> None:
    """A new database, as on a new machine: no app is known to be gone."""
    for path in machine.data.glob("*.sqlite3*"):
        path.unlink()
    machine.cc_ci("migrate", "--verbosity=0")
    machine.cc_ci("infra", "apply", "--file=infra.yml")
