"""The published schema of results.json is the one of the code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from runs.harness.protocol import SCHEMA, Results
from runs.harness.schema import schema

ROOT = Path(__file__).resolve().parents[3]


def test_the_published_schema_is_the_codes() -> None:
    published = json.loads((ROOT / "docs" / "results.schema.json").read_text())
    assert published == schema(), "Type: python -m runs.harness schema > docs/results.schema.json"
    assert published.pop("$id") == f"urn:cc-ci:results:{SCHEMA}"
    assert published.pop("$schema").startswith("https://json-schema.org/")
    assert published == Results.model_json_schema()


def test_the_command_writes_it() -> None:
    command = [sys.executable, "-m", "runs.harness", "schema"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=True)
    assert done.stdout == (ROOT / "docs" / "results.schema.json").read_text()


def test_every_object_of_it_is_closed_and_the_version_is_fixed() -> None:
    objects = [schema(), *(part for part in schema()["$defs"].values() if part["type"] == "object")]
    assert len(objects) > 5
    assert all(part["additionalProperties"] is False for part in objects)
    assert schema()["properties"]["schema_version"]["const"] == SCHEMA
