"""The published schema of a record is current, and what is stored follows it."""

import json
import re
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from dr_pipelines.engines.checks import Check
from dr_pipelines.plan import Plan
from dr_pipelines.reports.reading import read_record
from dr_pipelines.repository.sealed import seal
from dr_pipelines.runbooks.execution import Execution, Outcome, StepState
from dr_pipelines.runbooks.outcome import Loss, Restored, environment, make_record
from dr_pipelines.runbooks.record import Record, record_schema

SCHEMA = Path(__file__).parents[2] / "docs/record.schema.json"

TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


def problems(schema: Any, value: Any, root: Any, path: str = "record") -> Iterator[str]:
    """Where a value does not follow those keywords of JSON Schema that the record's schema uses."""
    if "$ref" in schema:
        yield from problems(root["$defs"][schema["$ref"].rpartition("/")[2]], value, root, path)
        return
    if "anyOf" in schema and all(list(problems(each, value, root, path)) for each in schema["anyOf"]):
        yield f"{path} is none of what it may be"
    kind = schema.get("type")
    if kind and (not isinstance(value, TYPES[kind]) or (kind != "boolean" and isinstance(value, bool))):
        yield f"{path} is not of type {kind}"
        return
    if "const" in schema and value != schema["const"]:
        yield f"{path} is not {schema['const']}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path} is not one of {schema['enum']}"
    if "pattern" in schema and not re.search(schema["pattern"], value):
        yield f"{path} does not match {schema['pattern']}"
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{path} lacks {name}"
    for name, member in schema.get("properties", {}).items():
        if name in value:
            yield from problems(member, value[name], root, f"{path}.{name}")
    for number, item in enumerate(value if "items" in schema else ()):
        yield from problems(schema["items"], item, root, f"{path}[{number}]")


@pytest.fixture
def schema() -> Any:
    return json.loads(SCHEMA.read_text())


@pytest.fixture
def stored(make_record: Callable[..., Record]) -> Any:
    """A record as it lies in the repository."""
    return json.loads(seal(make_record().document()))


def test_the_published_schema_is_current() -> None:
    assert SCHEMA.read_text() == record_schema(), "write record_schema() to docs/record.schema.json"


def test_a_stored_record_follows_the_schema(schema: Any, stored: Any) -> None:
    assert list(problems(schema, stored, schema)) == []


def test_a_record_of_an_execution_that_measured_nothing_follows_it_too(
    schema: Any, make_record: Callable[..., Record]
) -> None:
    empty = make_record(
        rto_seconds=None, rpo_seconds=None, rows=None, backup=None, steps=[], checks=[], outage_started_at=None
    )

    assert list(problems(schema, json.loads(seal(empty.document())), schema)) == []


def test_a_record_as_a_runbook_makes_it_follows_it(schema: Any, plan: Plan, now: datetime) -> None:
    execution = Execution(
        id="20260331T120000Z-drill-9f86d0",
        kind="drill",
        runbook="database_restore",
        service="database",
        outage_started_at=now,
        started_at=now,
        target_time=None,
        reason="",
        requested_by="",
        plan_sha256=None,
    )
    later = now + timedelta(seconds=9)
    step = StepState("assess", 1, Outcome.DONE, now, timedelta(seconds=1), "", None)
    restored = Restored(checks=(Check("amcheck", True, ""),), validated_at=later, healthy_at=later)
    record = make_record(
        execution,
        [step],
        restored,
        Loss(timedelta(0), "markers", later, None),
        plan,
        environment("/backups", "18.1", "a copy"),
        ended_at=later,
        run_id=None,
        scenario="",
    )

    assert list(problems(schema, json.loads(seal(record.document())), schema)) == []


def test_every_field_that_is_stored_is_described(schema: Any, stored: Any) -> None:
    assert (
        set(stored) == set(schema["properties"]) == set(schema["required"]) | {"record_version", "cutover", "estimate"}
    )


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda record: record.pop("verdict"), "record lacks verdict"),
        (lambda record: record.pop("sha256"), "record lacks sha256"),
        (lambda record: record.update(kind="rehearsal"), "record.kind is not one of"),
        (lambda record: record.update(record_version=2), "record.record_version is not 1"),
        (lambda record: record["steps"][0].update(outcome="running"), r"record.steps\[0\].outcome is not one of"),
        (lambda record: record["verdicts"].update(rto="passed"), "record.verdicts.rto is not one of"),
        (lambda record: record.update(rto_seconds="20"), "record.rto_seconds is none of"),
    ],
)
def test_what_is_not_a_record_does_not_follow_it(
    schema: Any, stored: Any, spoil: Callable[[Any], None], problem: str
) -> None:
    spoil(stored)

    assert re.match(problem, next(problems(schema, stored, schema)))


def test_a_record_is_read_back_as_it_was(make_record: Callable[..., Record]) -> None:
    record = make_record()

    assert read_record(json.loads(json.dumps(record.document()))) == record
