"""Records of drills as they could have been."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dr_pipelines.engines.verdict import Verdict, worst_of
from dr_pipelines.plan import Plan, parse_plan
from dr_pipelines.reports.reading import read_record
from dr_pipelines.runbooks.record import Record

PLAN = """\
plan_version: 1
tiers:
  - name: critical
    title: Tier 1 (Critical)
    rto: 1h
    rpo: 15m
  - name: low
    title: Tier 4 (Low)
    rto: 1w
    rpo: 1w
services:
  - name: database
    title: Database
    tier: critical
    engine: postgres
    rpo: 10m
    backup:
      full: "0 3 * * *"
      log: continuous
      archive_timeout: 60s
    validation:
      smoke_queries:
        - name: guests_exist
          sql: SELECT count(*) FROM guests
          expect: "> 0"
      application_query: SELECT 1
  - name: redis
    title: Redis
    tier: critical
    engine: redis
  - name: dev-test
    title: Dev/Test
    tier: low
    unprotected: it is made anew from the checkout
runbooks:
  - name: database_restore
    title: Database loss
    service: database
    rto: 1h
    rpo: 10m
    steps:
      - name: assess
        title: Assess
        budget: 5m
      - name: prepare
        title: Prepare
        budget: 10m
      - name: restore_latest_backup
        title: Restore
        budget: 20m
      - name: apply_wal
        title: Apply the WAL
        budget: 15m
      - name: validate
        title: Validate
        budget: 10m
"""

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
STEPS = (
    ("assess", 0.4, 0.9, 300.0),
    ("prepare", 1.5, 0.3, 600.0),
    ("restore_latest_backup", 2.0, 6.1, 1200.0),
    ("apply_wal", 8.3, 4.2, 900.0),
    ("validate", 12.7, 7.5, 600.0),
)

CUTOVER: dict[str, Any] = {
    "target": "/srv/restored/data",
    "old_server": "10.0.0.5:5432",
    "new_server": "10.0.0.7:5432",
    "approval": {
        "number": 1,
        "requested_at": "2026-03-01T12:00:20Z",
        "requested_by": "ada",
        "expires_at": "2026-03-01T12:30:20Z",
        "standing": "approved",
        "answered_at": "2026-03-01T12:01:20Z",
        "by": "grace",
        "reason": "go",
        "confirmed": [],
        "waited_seconds": 60.0,
    },
    "fenced_by": "SQL",
    "fence": [],
    "clients_led_by": "the file /etc/pg_service.conf",
    "log_shipped_by": "an agent",
    "backup_id": None,
    "notes": ["synchronous_standby_names is emptied"],
}
PHASES = {"detect": None, "decide": 1.3, "restore": 11.2, "validate": 7.6, "approval": 60.0, "cutover": 2.0}
"""What a record says of a cutover, and of its phases but the last."""

MakeRecord = Callable[..., Record]


@pytest.fixture
def plan_text() -> str:
    """A plan of a database, a Redis that nobody drilled, and a service that is unprotected by decision."""
    return PLAN


@pytest.fixture
def plan() -> Plan:
    """The plan of `plan_text`: RTO 1 h, RPO of the database 10 min."""
    return parse_plan(PLAN)


@pytest.fixture
def now() -> datetime:
    """When reports are made."""
    return NOON + timedelta(days=30)


@pytest.fixture
def document() -> Callable[..., dict[str, Any]]:
    """Makes what is stored of a drill that met everything; `day` is when, what else is given replaces members."""
    return make_document


@pytest.fixture
def make_record() -> MakeRecord:
    """Makes the record of a drill that met everything; `day` is when, what else is given replaces members.

    Verdicts follow from the figures that are given.
    """

    def make(day: float = 0, **members: Any) -> Record:
        return read_record(make_document(day, **members))

    return make


def moment(offset: float, day: float = 0) -> str:
    """A moment `offset` seconds after the outage of a drill."""
    return (NOON + timedelta(days=day, seconds=offset)).isoformat().replace("+00:00", "Z")


def make_step(name: str, start: float, length: float | None, budget: float | None, day: float, **more: Any) -> Any:
    """What is stored of an attempt at a step; times in seconds from the outage's start."""
    return {
        "name": name,
        "attempt": 1,
        "outcome": "done" if length is not None else "interrupted",
        "overrun": length is not None and budget is not None and length > budget,
        "seconds": length,
        "budget_seconds": budget,
        "started_at": moment(start, day),
        "ended_at": moment(start + length, day) if length is not None else None,
        "run_id": "6f1c9c1e-8a51-4d3b-a0b4-0d6f5d2c7a11",
        "detail": f"{name} as told",
        **more,
    }


def judged(seconds: float | None, promised: float | None) -> Verdict:
    """The verdict on a figure."""
    if seconds is None or promised is None:
        return Verdict.UNVERIFIED
    return Verdict.MET if seconds <= promised else Verdict.MISSED


def make_estimate(actual: float | None = 17.3) -> dict[str, Any]:
    """What is stored of the estimate of a drill, and of how far it was off."""
    figures = {"estimate_seconds": 20.0, "low_seconds": 12.0, "high_seconds": 33.0, "actual_seconds": actual}
    step = {"name": "apply_wal", "basis": "assumed", "told": "assumed, since nothing was measured", **figures}
    return {"made_at": moment(1), **figures, "steps": [step]}


def make_document(day: float = 0, *, kind: str = "drill", **members: Any) -> dict[str, Any]:
    """What is stored of a drill."""
    stamp = f"{NOON + timedelta(days=day):%Y%m%dT%H%M%SZ}"
    checks = [{"name": f"check_{n}", "passed": True, "detail": f"seen {n} times"} for n in range(1, 13)]
    record: dict[str, Any] = {
        "record_version": 1,
        "record_id": f"{stamp}-{kind}-9f86d0",
        "execution_id": f"{stamp}-{kind}-0c1d2e",
        "attempt": 1,
        "run_id": "6f1c9c1e-8a51-4d3b-a0b4-0d6f5d2c7a11",
        "run_ids": ["6f1c9c1e-8a51-4d3b-a0b4-0d6f5d2c7a11"],
        "kind": kind,
        "scenario": "the database's host is lost: every process killed with SIGKILL, data and spool deleted",
        "runbook": "database_restore",
        "service": "database",
        "tier": "critical",
        "reason": "quarterly drill",
        "requested_by": "ada",
        "success_criteria": [
            "the service is back within 1h of the outage's start",
            "no more than 10m of acknowledged data is lost",
            "every check of the restored data passes",
        ],
        "plan_version": 1,
        "plan_sha256": parse_plan(PLAN).sha256,
        "started_at": moment(-40, day),
        "ended_at": moment(21, day),
        "outage_started_at": moment(0, day),
        "service_restored_at": moment(20.4, day),
        "target_time": None,
        "recovery_point": moment(-1.8, day),
        "recovered_to": moment(-0.9, day),
        "rto_seconds": 20.4,
        "rto_objective_seconds": 3600.0,
        "rto_method": "wall clock, from the outage's start until the first query had succeeded",
        "rpo_seconds": 0.9,
        "rpo_objective_seconds": 600.0,
        "rpo_method": "markers: outage's start minus the newest recovered row of the unbroken sequence",
        "rows": {"acknowledged": 1412, "recovered": 1391, "lost": 21},
        "moments": {
            "outage_started_at": moment(0, day),
            "detected_at": None,
            "decided_at": moment(1.3, day),
            "restore_started_at": moment(2.0, day),
            "restored_at": moment(12.5, day),
            "validated_at": moment(20.1, day),
            "healthy_at": moment(20.4, day),
        },
        "phases": {"detect": None, "decide": 1.3, "restore": 11.2, "validate": 7.6, "healthy": 0.3},
        "steps": [make_step(*step, day) for step in STEPS],
        "checks": checks,
        "deviations": [],
        "backup": {
            "backup_id": f"{stamp}-full-77aa01",
            "taken_at": moment(-30, day),
            "manifest_sha256": "b5bb9d8014a0f9b1d61e21e796d78dccdf1352f23cd32812f4850b878ae4944c",
            "system_identifier": "7301234567890123456",
            "raw_bytes": 91_234_567,
            "stored_bytes": 23_456_789,
            "log_files": 7,
            "log_bytes": 117_440_512,
        },
        "environment": {
            "host": "recovery-1",
            "operating_system": "Linux-6.1",
            "tool_version": "0.1.0",
            "server_version": "18.1",
            "repository": "s3://backups/hotel",
            "clock": "this host's wall clock, UTC",
            "isolation": "a copy on this machine, made for the drill",
        },
        **members,
    }
    passed = {check["passed"] for check in record["checks"]}
    integrity = (
        Verdict.MISSED if False in passed else Verdict.UNVERIFIED if None in passed or not passed else Verdict.MET
    )
    rto = judged(record["rto_seconds"], record["rto_objective_seconds"])
    rpo = judged(record["rpo_seconds"], record["rpo_objective_seconds"])
    record.setdefault("verdicts", {"rto": rto, "rpo": rpo, "integrity": integrity})
    record.setdefault("verdict", worst_of(rto, rpo, integrity))
    return record
