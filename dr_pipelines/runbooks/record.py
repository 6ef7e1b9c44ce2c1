"""The record: the immutable account of one execution, as it lies in the repository.

Its JSON Schema is docs/record.schema.json. Fields are only added within a format version. Durations are seconds,
moments ISO 8601 in UTC, sizes bytes. What was not measured is null, and the verdict on it `unverified`.
"""

import json
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, PlainSerializer, WithJsonSchema

from dr_pipelines.engines.verdict import Verdict
from dr_pipelines.timing import format_moment

__all__ = [
    "RECORD_VERSION",
    "BackupUsed",
    "CheckResult",
    "Cutover",
    "CutoverApproval",
    "Environment",
    "Estimated",
    "EstimatedStep",
    "Moments",
    "Phases",
    "Record",
    "Rows",
    "StepResult",
    "Verdicts",
    "record_schema",
]

RECORD_VERSION: Literal[1] = 1

Moment = Annotated[
    AwareDatetime,
    PlainSerializer(format_moment, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)


class StepResult(_Part):
    """One attempt at a step."""

    name: str
    attempt: int
    outcome: Literal["done", "failed", "interrupted"]
    overrun: bool
    """It took longer than its budget."""
    seconds: float | None
    """Null where it was interrupted: nobody knows when."""
    budget_seconds: float | None
    started_at: Moment
    ended_at: Moment | None
    run_id: str | None
    detail: str


class CheckResult(_Part):
    """One thing that was looked at; `passed` is null where it could not be checked."""

    name: str
    passed: bool | None
    detail: str


class Moments(_Part):
    """Readings of the wall clock, UTC."""

    outage_started_at: Moment | None
    detected_at: Moment | None
    decided_at: Moment | None
    """When the damage was assessed and it was clear what to restore."""
    restore_started_at: Moment | None
    """When the first byte of the backup was asked for, in the first attempt."""
    restored_at: Moment | None
    """When the log had been replayed and the server ran."""
    validated_at: Moment | None
    """When every check of the restored server had passed; null where one did not."""
    healthy_at: Moment | None
    """When the application's first query had succeeded; after a cutover on the server that took the place."""
    approved_at: Moment | None = None
    """When the cutover's approval had been seen; null where there was none."""
    switched_at: Moment | None = None
    """When everything was ready and the clients began to be led to the server that took the place."""


class Phases(_Part):
    """The stretches of the RTO, in seconds; where it was measured they add up to it."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    detect: float | None
    """Null where nothing had to detect the loss."""
    decide: float | None
    restore: float | None
    validate_: Annotated[float | None, Field(alias="validate")]
    approval: float | None = None
    """Waiting for the cutover's approval, from the end of the validation on; null without a cutover."""
    cutover: float | None = None
    """From the approval until the clients began to be led to the new server; null without a cutover."""
    healthy: float | None


class Rows(_Part):
    """Marked rows, counted on both sides."""

    acknowledged: int
    recovered: int
    lost: int


class BackupUsed(_Part):
    """What was restored from."""

    backup_id: str
    taken_at: Moment
    manifest_sha256: str
    based_on: list[str] = []
    """The ids of the backups that an incremental one is based on, the full one first; their sizes are counted below."""
    system_identifier: str
    raw_bytes: int
    stored_bytes: int
    log_files: int
    log_bytes: int


class CutoverApproval(_Part):
    """Who let the cutover be done, and what was waited for it; the waiting counts."""

    number: int
    """Of the requests of this execution."""
    requested_at: Moment
    requested_by: str
    expires_at: Moment
    standing: Literal["waiting", "approved", "denied", "expired"]
    answered_at: Moment | None
    by: str | None
    reason: str | None
    confirmed: tuple[str, ...]
    """What whoever answered vouched for, such as that the old server is down."""
    waited_seconds: float | None


class Cutover(_Part):
    """How the restored server took the lost one's place; what was not done is null."""

    target: str
    old_server: str
    new_server: str
    approval: CutoverApproval | None
    fenced_by: str | None
    """SQL, the team's own command, or a confirmation; and whose."""
    fence: tuple[CheckResult, ...]
    """What fencing the old server took, and whether it was achieved."""
    clients_led_by: str | None
    log_shipped_by: str | None
    backup_id: str | None
    """The backup that was taken at once."""
    notes: tuple[str, ...]


class EstimatedStep(_Part):
    """What a step was expected to take, and what it took, in seconds."""

    name: str
    estimate_seconds: float
    low_seconds: float
    high_seconds: float
    """Between the two it would have been no surprise."""
    basis: Literal["measured", "probed", "assumed"]
    """What the estimate was made of; itself it is no measurement."""
    told: str
    """Which records that was, what the probe was, or what was assumed."""
    actual_seconds: float | None
    """Null where the step did not go through at the first attempt."""


class Estimated(_Part):
    """What was told beforehand of the steps after the assessment, and how far it was off."""

    made_at: Moment
    estimate_seconds: float
    low_seconds: float
    high_seconds: float
    actual_seconds: float | None
    """Of the same steps; null where one of them did not go through at the first attempt."""
    steps: tuple[EstimatedStep, ...]


class Environment(_Part):
    """Where it ran, with what, and how that is apart from production."""

    host: str
    operating_system: str
    tool_version: str
    server_version: str | None
    repository: str
    clock: str
    isolation: str


class Verdicts(_Part):
    """One for each objective."""

    rto: Verdict
    rpo: Verdict
    integrity: Verdict


class Record(_Part):
    """The account of one execution."""

    record_version: Literal[1] = 1
    record_id: str
    execution_id: str
    attempt: int
    """1 for the first record of an execution; a resume that ends leaves a further one, which supersedes it."""
    run_id: str | None
    run_ids: tuple[str, ...]
    """Every run of the execution, the last one last."""
    kind: Literal["drill", "restore", "restore_test"]
    scenario: str
    runbook: str
    service: str
    tier: str | None
    reason: str
    requested_by: str
    success_criteria: tuple[str, ...]
    plan_version: int | None
    plan_sha256: str | None

    started_at: Moment
    ended_at: Moment
    outage_started_at: Moment | None
    service_restored_at: Moment | None
    target_time: Moment | None
    recovery_point: Moment | None
    """The latest moment that was proven to be restorable, before the loss."""
    recovered_to: Moment | None
    """The moment up to which data came back, as it was found."""

    rto_seconds: float | None
    rto_objective_seconds: float | None
    rto_method: str
    rpo_seconds: float | None
    rpo_objective_seconds: float | None
    rpo_method: str
    rows: Rows | None
    moments: Moments
    phases: Phases
    steps: tuple[StepResult, ...]
    checks: tuple[CheckResult, ...]
    verdicts: Verdicts
    verdict: Verdict
    deviations: tuple[str, ...]
    """What was not as planned: overruns, interruptions, checks that failed, errors."""
    backup: BackupUsed | None
    environment: Environment
    cutover: Cutover | None = None
    """Null where the restored server took nobody's place."""
    estimate: Estimated | None = None
    """Null where none was made, as by earlier versions."""

    def document(self) -> dict[str, object]:
        """As JSON values, in the order of the fields."""
        return dict(json.loads(self.model_dump_json(by_alias=True)))


def record_schema() -> str:
    """The JSON Schema of a record as it is stored, for docs/record.schema.json."""
    schema = Record.model_json_schema(by_alias=True, mode="serialization")
    schema["required"].append("sha256")
    schema["properties"]["sha256"] = {
        "type": "string",
        "pattern": "^[0-9a-f]{64}$",
        "description": "SHA-256 of this document without this field, as canonical JSON (docs/repository-format.md)",
    }
    schema["title"] = "The record of an execution"
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps(dialect | schema, indent=2, ensure_ascii=False) + "\n"
