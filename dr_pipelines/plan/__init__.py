"""The recovery plan: what was promised for each service, read from its file and checked."""

from dr_pipelines.plan.checks import check_plan
from dr_pipelines.plan.findings import Finding, Level
from dr_pipelines.plan.models import (
    FULL_EVERY,
    PLAN_VERSION,
    RESTORE_STEPS,
    Engine,
    Objectives,
    Plan,
    PostgresBackup,
    Retention,
    Runbook,
    Service,
    SmokeQuery,
    Step,
    Tier,
    Validation,
)
from dr_pipelines.plan.reading import inspect_plan, load_plan, parse_plan, read_plan_text
from dr_pipelines.plan.schema import write_json_schema
from dr_pipelines.plan.show import ServiceRow, describe
from dr_pipelines.plan.values import Expectation, parse_expectation

__all__ = [
    "FULL_EVERY",
    "PLAN_VERSION",
    "RESTORE_STEPS",
    "Engine",
    "Expectation",
    "Finding",
    "Level",
    "Objectives",
    "Plan",
    "PostgresBackup",
    "Retention",
    "Runbook",
    "Service",
    "ServiceRow",
    "SmokeQuery",
    "Step",
    "Tier",
    "Validation",
    "check_plan",
    "describe",
    "inspect_plan",
    "load_plan",
    "parse_expectation",
    "parse_plan",
    "read_plan_text",
    "write_json_schema",
]
