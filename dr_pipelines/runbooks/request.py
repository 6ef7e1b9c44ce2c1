"""What an operator asks of a restore, checked before anything is done."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import MappingProxyType

from dr_pipelines.errors import UsageError
from dr_pipelines.plan import Plan
from dr_pipelines.repository.repository import Repository
from dr_pipelines.runbooks.database_restore import RUNBOOK
from dr_pipelines.runbooks.execution import Execution, Journal
from dr_pipelines.timing import format_moment, parse_moment

__all__ = ["LATEST", "RestoreRequest", "begin", "read_request"]

LATEST = "latest"


@dataclass(frozen=True)
class RestoreRequest:
    """A restore that was asked for."""

    service: str
    outage_started_at: datetime | None
    target_time: datetime | None
    """None: the latest point."""
    destination: Path | None
    """None: a new folder below the state folder."""
    backup_id: str | None
    """None: the newest that will do."""
    reason: str
    timeline: int | None = None
    """None: the one that was being written at the target time, or the newest."""


def read_request(
    *,
    service: str,
    outage_started_at: str | None,
    target_time: str,
    target_location: str,
    backup_id: str,
    reason: str,
    plan: Plan | None,
    now: datetime,
    timeline: str = "",
    called: Mapping[str, str] = MappingProxyType({}),
) -> RestoreRequest:
    """What the texts say. Raises UsageError that names the one that cannot be accepted.

    `called` says what whoever asks calls the fields, where that is something else than here.
    """

    def name(field: str) -> str:
        return called.get(field, field)

    began = outage_started_at
    if plan is not None:
        plan.require_database(service)
    if not reason.strip():
        raise UsageError(f"{name('reason')}: it is empty", hint="say why, in a few words: it stands in the record")
    wanted = target_time.strip()
    destination = Path(target_location.strip()) if target_location.strip() else None
    if destination is not None and not destination.is_absolute():
        raise UsageError(f"{name('target_location')}: {destination} is not an absolute path")
    return RestoreRequest(
        service=service,
        outage_started_at=_past(name("outage_started_at"), began, now) if began is not None else None,
        target_time=None if wanted == LATEST else _past(name("target_time"), wanted, now),
        destination=destination,
        backup_id=backup_id.strip() or None,
        reason=reason.strip(),
        timeline=_timeline(name("timeline"), timeline.strip()),
    )


def begin(
    repository: Repository,
    request: RestoreRequest,
    *,
    execution_id: str,
    now: datetime,
    requested_by: str,
    plan_sha256: str | None,
    called: Mapping[str, str] = MappingProxyType({}),
) -> Execution:
    """The execution with this id: begun now, or, where it had begun before, as it began.

    `called` is that of `read_request`. Raises UsageError where it began for something else than what is asked for now.
    """
    execution = Journal(repository.store, execution_id).begin(
        Execution(
            id=execution_id,
            kind="restore",
            runbook=RUNBOOK,
            service=request.service,
            outage_started_at=request.outage_started_at,
            started_at=now,
            target_time=request.target_time,
            timeline=request.timeline,
            reason=request.reason,
            requested_by=requested_by,
            plan_sha256=plan_sha256,
        )
    )
    for name in ("service", "outage_started_at", "target_time", "timeline"):
        fixed, asked = getattr(execution, name), getattr(request, name)
        if fixed != asked:
            raise UsageError(
                f"{called.get(name, name)}: execution {execution_id} began with {_shown(fixed)}, and now "
                f"{_shown(asked)} is asked for",
                hint="launch a new restore instead of going on with that one",
            )
    return execution


def _timeline(field: str, text: str) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 1 << 32):
        raise UsageError(f'{field}: "{text}" is no timeline', hint="a number from 1 on, as dr backup list shows it")
    return int(text)


def _past(field: str, text: str, now: datetime) -> datetime:
    try:
        moment = parse_moment(text)
    except ValueError as error:
        raise UsageError(f"{field}: {error}") from None
    if moment > now:
        raise UsageError(f"{field}: {format_moment(moment)} is yet to come", hint=f"it is {format_moment(now)}")
    return moment


def _shown(value: object) -> str:
    return format_moment(value) if isinstance(value, datetime) else str(value) if value is not None else LATEST
