"""The plan as rows for a person: what is promised for each service, and by what it is kept."""

from dataclasses import dataclass

from dr_pipelines.plan.models import Plan, Service
from dr_pipelines.timing import format_duration

__all__ = ["ServiceRow", "describe"]


@dataclass(frozen=True)
class ServiceRow:
    """One service; durations as people write them. What does not apply is None."""

    name: str
    title: str
    tier: str
    engine: str | None
    rto: str | None
    rto_source: str | None
    rpo: str | None
    rpo_source: str | None
    backup: str | None
    runbook: str | None
    unprotected: str | None


def describe(plan: Plan) -> tuple[ServiceRow, ...]:
    """A row for each service, in the plan's order."""
    return tuple(_describe(plan, service) for service in plan.services)


def _describe(plan: Plan, service: Service) -> ServiceRow:
    objectives = plan.objectives(service)
    return ServiceRow(
        name=service.name,
        title=service.title,
        tier=plan.tier_of(service).title,
        engine=service.engine,
        rto=None if objectives.rto is None else format_duration(objectives.rto),
        rto_source=None if objectives.rto is None else objectives.rto_source,
        rpo=None if objectives.rpo is None else format_duration(objectives.rpo),
        rpo_source=None if objectives.rpo is None else objectives.rpo_source,
        backup=_describe_backup(service),
        runbook=next((runbook.name for runbook in plan.runbooks if runbook.service == service.name), None),
        unprotected=service.unprotected,
    )


def _describe_backup(service: Service) -> str | None:
    if service.backup is None:
        return None
    timeout = format_duration(service.backup.archive_timeout)
    backup = service.backup
    between = f", incremental {backup.incremental} UTC, full every {backup.full_every}" if backup.incremental else ""
    kept = f", kept: {backup.retention}" if backup.retention is not None else ""
    return f"full {backup.full} UTC{between}, log {backup.log}, a segment at most {timeout}{kept}"
