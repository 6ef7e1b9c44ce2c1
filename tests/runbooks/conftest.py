"""An execution of the database restore, step by step, without a server."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dr_pipelines.plan import Plan, parse_plan
from dr_pipelines.repository.folder import FolderStore
from dr_pipelines.runbooks.execution import Execution, Journal, Outcome, StepState

PLAN = """\
plan_version: 1
tiers:
  - name: critical
    title: Critical
    rto: 1h
    rpo: 15m
services:
  - name: database
    title: Database
    tier: critical
    engine: postgres
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
runbooks:
  - name: database_restore
    title: Database loss
    service: database
    rto: 1h
    rpo: 15m
    steps:
      - name: assess
        title: Assess
        budget: 5m
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

OUTAGE = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)

MakeStep = Callable[..., StepState]


@pytest.fixture
def plan() -> Plan:
    """A plan with one database: RTO 1 h, RPO 15 min, a runbook of four steps."""
    return parse_plan(PLAN)


@pytest.fixture
def outage() -> datetime:
    """When the users were hurt."""
    return OUTAGE


@pytest.fixture
def execution(plan: Plan) -> Execution:
    """A drill that began a minute before its loss."""
    return Execution(
        id="20260301T115900Z-drill-9f86d0",
        kind="drill",
        runbook="database_restore",
        service="database",
        outage_started_at=OUTAGE,
        started_at=OUTAGE - timedelta(minutes=1),
        target_time=None,
        reason="quarterly drill",
        requested_by="ada",
        plan_sha256=plan.sha256,
    )


@pytest.fixture
def journal(tmp_path: Path, execution: Execution) -> Journal:
    """An empty journal in a folder."""
    return Journal(FolderStore(tmp_path / "repository"), execution.id)


@pytest.fixture
def make_step() -> MakeStep:
    """Makes an attempt at a step from its name, its start and its length, both in seconds, from the outage's start."""

    def make(
        name: str,
        start: float,
        length: float | None,
        *,
        outcome: Outcome = Outcome.DONE,
        attempt: int = 1,
        run_id: str = "run-1",
        detail: str = "",
    ) -> StepState:
        duration = timedelta(seconds=length) if length is not None else None
        return StepState(name, attempt, outcome, OUTAGE + timedelta(seconds=start), duration, detail, run_id)

    return make
