from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import jsonschema
import pytest

from launcher.spec.job import Limits
from launcher.spec.schema import json_schema
from launcher.spec.source import parse
from launcher.units import parse_duration

CORPUS = Path(__file__).parent.parent / "corpus"
Kind = Literal["job", "site"]
KINDS: list[Kind] = ["job", "site"]
VALID = [(kind, path) for kind in KINDS for path in sorted(CORPUS.glob(f"{kind}/valid/*.yaml"))]


def validator(kind: Kind) -> Any:
    schema = json_schema(kind)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize(("kind", "path"), VALID, ids=lambda x: getattr(x, "stem", x))
def test_a_valid_file_fits_the_schema(kind: Kind, path: Path) -> None:
    data = parse(path.name, path.read_text(encoding="utf-8")).data
    assert list(validator(kind).iter_errors(data)) == []


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("job", "unknown-key"),
        ("job", "unknown-nested-key"),
        ("job", "missing-output"),
        ("job", "text-for-a-number"),
        ("job", "env-name-with-a-dash"),
        ("site", "unknown-key"),
        ("site", "python-name-of-with"),
        ("site", "rate-as-text"),
        ("site", "memory-without-a-unit"),
    ],
)
def test_a_wrong_file_does_not_fit_the_schema(kind: Kind, name: str) -> None:
    path = CORPUS / kind / "invalid" / f"{name}.yaml"
    data = parse(path.name, path.read_text(encoding="utf-8")).data
    assert list(validator(kind).iter_errors(data)) != []


@pytest.mark.parametrize("kind", KINDS)
def test_a_schema_is_plain_json_with_a_title(kind: Kind) -> None:
    schema = json_schema(kind)
    assert json.loads(json.dumps(schema)) == schema
    assert schema["title"] == f"hpc-llm {kind} file"
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_keys_and_defaults_are_those_a_user_writes() -> None:
    job, site = json_schema("job")["$defs"], json_schema("site")["$defs"]
    assert parse_duration(job["Limits"]["properties"]["warn_before"]["default"]) == (
        Limits().warn_before
    )
    assert job["SamplingSpec"]["properties"]["max_tokens"]["default"] == 512
    assert set(site["Launch"]["properties"]) == {"with", "mpi"}
    assert site["Launch"]["required"] == ["with"]
