"""The plan that ships, its JSON Schema, and what is shown of it."""

import json
import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from dr_pipelines.plan import Level, Plan, Retention, check_plan, describe, load_plan, parse_plan, write_json_schema
from dr_pipelines.plan.models import PlanDocument

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads(write_json_schema())
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return load_plan(ROOT / "recovery-plan.yaml")


def test_the_tiers_promise_what_the_guide_says(plan: Plan) -> None:
    assert [(tier.rto, tier.rpo) for tier in plan.tiers] == [
        (HOUR, 15 * MINUTE),
        (4 * HOUR, HOUR),
        (24 * HOUR, 24 * HOUR),
        (timedelta(weeks=1), timedelta(weeks=1)),
    ]


@pytest.mark.parametrize(
    ("service", "tier", "rto", "rpo", "source"),
    [
        ("api", "critical", HOUR, timedelta(0), "service"),
        ("database", "critical", HOUR, 15 * MINUTE, "service"),
        ("redis", "high", 4 * HOUR, HOUR, "service"),
        ("pms", "high", 2 * HOUR, 2 * HOUR, "service"),
        ("whatsapp", "high", 4 * HOUR, HOUR, "tier"),
        ("monitoring", "medium", 24 * HOUR, 24 * HOUR, "tier"),
        ("dev-test", "low", None, None, "tier"),
    ],
)
def test_each_service_has_its_objectives(
    plan: Plan, service: str, tier: str, rto: timedelta | None, rpo: timedelta | None, source: str
) -> None:
    objectives = plan.objectives(service)
    assert plan.tier_of(service).name == tier
    assert (objectives.rto, objectives.rpo) == (rto, rpo)
    assert (objectives.rto_source, objectives.rpo_source) == (source, source)


def test_the_database_is_backed_up_daily_and_its_log_continuously(plan: Plan) -> None:
    backup = plan.service("database").backup
    assert backup is not None
    assert (backup.full, backup.log, backup.archive_timeout) == ("0 3 * * *", "continuous", MINUTE)
    assert backup.retention == Retention(keep=7, keep_for=timedelta(days=30))


def test_the_database_is_restored_in_five_steps(plan: Plan) -> None:
    runbook = plan.runbook("database_restore")
    assert runbook is plan.runbook_for("database")
    assert (runbook.name, runbook.title, runbook.rto, runbook.rpo) == (
        "database_restore",
        "Database loss",
        HOUR,
        15 * MINUTE,
    )
    assert [(step.name, step.budget // MINUTE) for step in runbook.steps] == [
        ("assess", 5),
        ("prepare", 10),
        ("restore_latest_backup", 20),
        ("apply_wal", 15),
        ("validate", 10),
    ]


def test_it_warns_of_used_up_time_and_of_what_nothing_backs_up(plan: Plan) -> None:
    findings = check_plan(plan)
    assert {finding.level for finding in findings} == {Level.WARNING}
    assert [finding.where for finding in findings] == [
        "services.whatsapp",
        "services.monitoring",
        "runbooks.database_restore.steps",
    ]


def test_the_rows_say_which_objective_applies_and_why_a_service_is_unprotected(plan: Plan) -> None:
    rows = {row.name: row for row in describe(plan)}
    assert list(rows) == [service.name for service in plan.services]
    database, whatsapp, dev_test = rows["database"], rows["whatsapp"], rows["dev-test"]
    assert (database.rto, database.rto_source, database.rpo, database.rpo_source) == ("1h", "service", "15m", "service")
    assert database.backup == (
        "full 0 3 * * * UTC, log continuous, a segment at most 1m, kept: the newest 7 full backups and 30d"
    )
    assert (database.engine, database.runbook, database.unprotected) == ("postgres", "database_restore", None)
    assert (whatsapp.tier, whatsapp.rto, whatsapp.rto_source, whatsapp.backup) == ("Tier 2 (High)", "4h", "tier", None)
    assert (dev_test.rto, dev_test.rto_source, dev_test.rpo, dev_test.rpo_source) == (None, None, None, None)
    assert dev_test.unprotected
    assert rows["api"].rpo == "0s"


def test_what_was_read_can_be_written_and_read_again(plan: Plan) -> None:
    values = {key: getattr(plan, key) for key in ("plan_version", "tiers", "services", "runbooks")}
    document = PlanDocument(**values).model_dump(mode="json", exclude_none=True)
    again = parse_plan(yaml.safe_dump(document, sort_keys=False))
    assert (again.tiers, again.services, again.runbooks) == (plan.tiers, plan.services, plan.runbooks)


def test_the_committed_schema_is_current() -> None:
    assert (ROOT / "recovery-plan.schema.json").read_text() == write_json_schema(), (
        "write it anew: python -c \"from dr_pipelines.plan import write_json_schema as w; print(w(), end='')\" "
        "> recovery-plan.schema.json"
    )


def test_editors_find_the_schema() -> None:
    first = (ROOT / "recovery-plan.yaml").read_text().splitlines()[0]
    assert first == "# yaml-language-server: $schema=./recovery-plan.schema.json"


def test_the_schema_describes_every_field() -> None:
    for name, definition in [("plan", SCHEMA), *SCHEMA["$defs"].items()]:
        for field, schema in definition["properties"].items():
            assert schema.get("description"), f"{name}.{field}"


def _complaints(value: object, schema: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """What is wrong with `value` by the part of JSON Schema that is used here; another keyword is a KeyError."""
    if "$ref" in schema:
        schema = SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")] | {"description": ""}
    kinds: Mapping[str, type] = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}
    wanted = schema.get("type", list(kinds))
    if not isinstance(value, tuple(kinds[kind] for kind in ([wanted] if isinstance(wanted, str) else wanted))):
        yield f"{path}: not {wanted}"
        return
    for keyword, wish in schema.items():
        match keyword:
            case "type" | "title" | "description" | "examples" | "$schema" | "$defs" | "properties":
                continue
            case "const" | "enum":
                right = value == wish if keyword == "const" else value in wish
            case "minimum" | "maximum":
                right = isinstance(value, int) and (value >= wish if keyword == "minimum" else value <= wish)
            case "pattern":
                right = not isinstance(value, str) or bool(re.search(wish, value))
            case "minLength" | "minItems":
                right = not isinstance(value, str | list) or len(value) >= wish
            case "required":
                right = isinstance(value, dict) and set(wish) <= set(value)
            case "additionalProperties":
                right = isinstance(value, dict) and not wish and set(value) <= set(schema["properties"])
            case "items":
                for index, item in enumerate(value if isinstance(value, list) else []):
                    yield from _complaints(item, wish, f"{path}.{index}")
                continue
            case _:
                raise KeyError(keyword)
        if not right:
            yield f"{path}: {keyword}"
    for name, part in value.items() if isinstance(value, dict) else []:
        if name in schema.get("properties", {}):
            yield from _complaints(part, schema["properties"][name], f"{path}.{name}")


def test_the_plan_fits_the_schema() -> None:
    value = yaml.safe_load((ROOT / "recovery-plan.yaml").read_text())
    assert list(_complaints(value, SCHEMA)) == []


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("rto: 2h", "rto: 2hours", ".tiers.0.rto: pattern"),
        ("rto: 2h", "rto:", ".tiers.0.rto: not string"),
        ("rto: 2h", "rto: 15", ".tiers.0.rto: not string"),
        ("    rto: 2h\n", "", ".tiers.0: required"),
        ("engine: postgres", "engin: postgres", ".services.0: additionalProperties"),
        ("engine: postgres", "engine: oracle", ".services.0.engine: enum"),
        ("log: continuous", "log: hourly", ".services.0.backup.log: const"),
        ("plan_version: 1", "plan_version: 2", ".plan_version: maximum"),
        ('"> 0"', '"some"', ".services.0.validation.smoke_queries.0.expect: pattern"),
    ],
)
def test_the_schema_refuses_what_the_plan_refuses(small: str, old: str, new: str, complaint: str) -> None:
    assert list(_complaints(yaml.safe_load(small), SCHEMA)) == []
    assert complaint in list(_complaints(yaml.safe_load(small.replace(old, new)), SCHEMA))
