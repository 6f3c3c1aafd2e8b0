"""How much of the machine a run's services may have, decided from the files alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from infra.deployers.compose.bounds import _bytes, _seconds, keep_within, too_many
from infra.deployers.context import Bounds
from infra.deployers.docker.disk_usage import size
from tests.infra.deployers.compose.reading import load, write

SMALL = Bounds(memory_mb=64, cpus=0.5, processes=32, log_mb=4)


def bounded(service: dict[str, Any], bounds: Bounds = SMALL) -> dict[str, Any]:
    document = {"services": {"app": service}}
    keep_within(document, bounds)
    return document["services"]["app"]


def test_a_service_that_says_nothing_has_the_servers_limits_and_a_bounded_log() -> None:
    app = bounded({"image": "x"})
    assert app["deploy"]["resources"]["limits"] == {"memory": str(64 << 20), "cpus": "0.5", "pids": 32}
    assert app["logging"] == {"driver": "json-file", "options": {"max-size": "2m", "max-file": "2"}}


@pytest.mark.parametrize(
    ("given", "dropped"),
    [
        ({}, ["NET_RAW"]),
        ({"cap_drop": ["ALL"]}, ["ALL", "NET_RAW"]),
        ({"cap_drop": ["NET_RAW"]}, ["NET_RAW"]),
        ({"cap_add": ["NET_ADMIN"]}, ["NET_RAW"]),
        ({"cap_add": ["cap_net_raw"], "cap_drop": ["CHOWN"]}, ["CHOWN"]),  # as an enrolment may allow
    ],
)
def test_packets_of_its_own_are_for_whom_an_enrolment_allows_them(given: dict[str, Any], dropped: list[str]) -> None:
    assert bounded(given)["cap_drop"] == dropped


def test_the_recipes_own_count_where_they_are_smaller() -> None:
    limits = {"memory": "1048576", "cpus": "0.25", "pids": 5}
    assert bounded({"deploy": {"resources": {"limits": dict(limits)}}})["deploy"]["resources"]["limits"] == limits
    greedy = {"memory": "8g", "cpus": "64", "pids": 100_000}
    app = bounded({"deploy": {"resources": {"limits": greedy, "reservations": {"memory": "4g", "cpus": "8"}}}})
    assert app["deploy"]["resources"] == {"limits": {"memory": str(64 << 20), "cpus": "0.5", "pids": 32}}, "nothing is reserved"
    none = {"memory": "0", "cpus": "0", "pids": -1}  # Docker's words for no limit
    assert bounded({"deploy": {"resources": {"limits": none}}})["deploy"]["resources"]["limits"] == {
        "memory": str(64 << 20),
        "cpus": "0.5",
        "pids": 32,
    }


@pytest.mark.parametrize(
    ("given", "becomes"),
    [
        *(("0.25", "0.25"), (".25", "0.25"), ("1.", "0.5"), ("64", "0.5"), ("0", "0.5"), (None, "0.5")),
        *((text, "0.5") for text in ("3/2", "1/1000000000000", "1e1", "nan", "inf", "-1", "0x10", "1_0", "\u0663", "")),
    ],
)
def test_the_processors_are_ours_to_limit_however_they_are_written(given: str | None, becomes: str) -> None:
    resources = {"limits": {"cpus": given}, "reservations": {"cpus": given}}
    assert bounded({"deploy": {"resources": resources}})["deploy"]["resources"] == {
        "limits": {"memory": str(64 << 20), "cpus": becomes, "pids": 32}
    }


@pytest.mark.parametrize(
    ("given", "becomes"),
    [
        (
            {"driver": "local", "options": {"max-size": "1t", "compress": "false"}},
            {"compress": "false", "max-size": "2m", "max-file": "2"},
        ),
        ({"options": {"tag": '{{pad "x" 1000000000000 0}}', "env": "A"}}, {"env": "A", "max-size": "2m", "max-file": "2"}),
        ({"options": {"max-file": "1000"}}, {"max-size": "2m", "max-file": "2"}),
        ({"driver": "none"}, None),
    ],
)
def test_a_log_is_bounded_whatever_the_recipe_says(given: dict[str, Any], becomes: dict[str, str] | None) -> None:
    logging = bounded({"logging": given})["logging"]
    assert logging["driver"] == given.get("driver", "json-file")
    assert logging.get("options") == becomes


@pytest.mark.parametrize(
    ("interval", "becomes"),
    [("1ms", "1s"), ("500ms", "1s"), ("999999us", "1s"), ("1s", "1s"), ("1m30s", "1m30s"), ("0s", "0s"), ("0.5s", "1s")],
)
def test_health_checks_are_no_more_often_than_each_second(interval: str, becomes: str) -> None:
    check = bounded({"healthcheck": {"test": ["CMD", "true"], "interval": interval, "start_interval": interval}})["healthcheck"]
    assert (check["interval"], check["start_interval"]) == (becomes, becomes)


def test_how_many_things_a_run_may_have(tmp_path: Path) -> None:
    text = "services:\n" + "".join(f"  s{number}: {{image: x, deploy: {{replicas: 2}}}}\n" for number in range(11))
    text += "networks:\n" + "".join(f"  n{number}: \n" for number in range(3))
    recipe = load(write(tmp_path, text))
    assert list(too_many(recipe, Bounds())) == ["22 tasks, more than the 20 allowed per run on this server (CC_CI_MOST_TASKS)"]
    said = list(too_many(recipe, Bounds(services=10, networks=2, tasks=22)))
    assert [words.split(" (")[0].split(",")[0] for words in said] == ["11 services", "3 networks"]


def test_sizes_as_docker_prints_them(tmp_path: Path) -> None:
    written = {"52428800": 52428800, "64M": 64 << 20, "1.5g": 3 << 29, "1kb": 1024, "0.5GiB": 1 << 29, "20000p": 0}
    text = "services:\n" + "".join(
        f"  s{number}: {{image: x, deploy: {{resources: {{limits: {{memory: {size}}}}}}}}}\n"
        for number, size in enumerate(f'"{size}"' for size in written)
    )
    services = load(write(tmp_path, text)).services.values()
    assert [_bytes(service["deploy"]["resources"]["limits"]["memory"]) for service in services] == list(written.values())
    assert [_bytes(other) for other in (None, "", "x", "1g", "-1", "1e3", "9" * 5000)] == [0] * 7


@pytest.mark.parametrize(("text", "seconds"), [("1h2m3.5s", 3723.5), ("10µs", 1e-5), ("", 0), ("5", 0), ("-1s", 0)])
def test_durations(text: str, seconds: float) -> None:
    assert _seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "number"), [("1.2GB", 1_200_000_000), ("5B (virtual 8MB)", 5), ("0B", 0), ("None", 0), ("12kB", 12_000)]
)
def test_sizes_as_docker_shows_them(text: str, number: int) -> None:
    assert size(text) == number
