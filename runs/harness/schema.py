"""The published JSON Schema of results.json: `python -m runs.harness schema > docs/results.schema.json`."""

from __future__ import annotations

import json
from typing import Any

from runs.harness.protocol import SCHEMA, Results


def schema() -> dict[str, Any]:
    """The schema of results.json in this version. Its `$id` ends in the version, which `schema_version` repeats."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": f"urn:cc-ci:results:{SCHEMA}"}
    return {**head, **Results.model_json_schema()}


def text() -> str:
    return json.dumps(schema(), indent=1, sort_keys=True) + "\n"
