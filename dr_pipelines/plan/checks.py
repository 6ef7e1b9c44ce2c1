"""Whether a plan can keep what it promises, as far as that can be seen without running anything."""

from collections.abc import Iterator
from datetime import timedelta

from dr_pipelines.plan.findings import Finding, Level
from dr_pipelines.plan.models import CUTOVER_STEPS, RESTORE_STEPS, Plan, Runbook, Service
from dr_pipelines.plan.schedule import meet
from dr_pipelines.timing import format_duration

__all__ = ["check_plan"]


def check_plan(plan: Plan) -> tuple[Finding, ...]:
    """What contradicts itself (errors) or leaves no headroom (warnings), by line.

    An interval or a sum of budgets that is as long as its objective is a warning, a longer one an error.
    """
    findings = [finding for service in plan.services for finding in _check_service(plan, service)]
    findings += _check_identifiers(plan)
    findings += [finding for runbook in plan.runbooks for finding in _check_runbook(plan, runbook)]
    return tuple(sorted(findings, key=lambda finding: finding.line or 0))


def _finding(plan: Plan, level: Level, where: str, message: str) -> Finding:
    known = where
    while known and known not in plan.lines:
        known = known.rpartition(".")[0]
    return Finding(level, where, message, plan.lines.get(known))


def _check_service(plan: Plan, service: Service) -> Iterator[Finding]:
    where = f"services.{service.name}"
    if service.unprotected is not None:
        for key in ("engine", "rto", "rpo", "backup", "validation"):
            if getattr(service, key) is not None:
                message = f"{service.name} is unprotected by decision; expected no {key}, or no unprotected"
                yield _finding(plan, Level.ERROR, f"{where}.{key}", message)
        return
    if service.engine is None:
        message = f"nothing backs {service.name} up; expected an engine, or unprotected with the reason"
        yield _finding(plan, Level.WARNING, where, message)
    for key in ("backup", "validation"):
        given = getattr(service, key) is not None
        if given and service.engine != "postgres":
            message = f"found {key} with the engine {service.engine or 'left out'}; expected it with postgres alone"
            yield _finding(plan, Level.ERROR, f"{where}.{key}", message)
        elif service.engine == "postgres" and not given:
            purpose = "is kept" if key == "backup" else "is shown after a restore"
            yield _finding(plan, Level.WARNING, where, f"no {key}, so nothing that was promised {purpose}")
    if service.engine == "postgres" and plan.runbook_for(service.name) is None:
        yield _finding(plan, Level.WARNING, where, "no runbook, so a restore's steps are held against no budget")
    yield from _check_log(plan, service)
    yield from _check_incremental(plan, service)
    yield from _check_retention(plan, service)


def _check_identifiers(plan: Plan) -> Iterator[Finding]:
    seen: dict[str, str] = {}
    for service in plan.services:
        other = seen.setdefault(service.name.replace("-", "_"), service.name)
        if other != service.name:
            message = f'variables and assets cannot tell it from "{other}"; expected another name'
            yield _finding(plan, Level.ERROR, f"services.{service.name}.name", message)


def _check_log(plan: Plan, service: Service) -> Iterator[Finding]:
    objectives = plan.objectives(service)
    if service.backup is not None and objectives.rpo is not None:
        yield from _headroom(
            plan,
            f"services.{service.name}.backup.archive_timeout",
            said="a log segment may stay open for",
            taken=service.backup.archive_timeout,
            allowed=objectives.rpo,
            objective=f"RPO of the {objectives.rpo_source}",
        )


def _check_incremental(plan: Plan, service: Service) -> Iterator[Finding]:
    backup = service.backup
    if backup is not None and backup.incremental is not None and meet(backup.full, backup.incremental):
        message = "at times due together with the full backup, and one of the two is refused then; expected other times"
        yield _finding(plan, Level.WARNING, f"services.{service.name}.backup.incremental", message)


def _check_retention(plan: Plan, service: Service) -> Iterator[Finding]:
    retention = service.backup.retention if service.backup is not None else None
    if retention is None:
        return
    where, rpo = f"services.{service.name}.backup.retention", plan.objectives(service).rpo
    if retention.keep is None and retention.keep_for is None:
        message = "nothing says what is kept, so the last backup would go too; expected keep, keep_for or both"
        yield _finding(plan, Level.ERROR, where, message)
    if rpo is not None and retention.keep_for is not None and retention.keep_for < rpo:
        found = f"found {format_duration(retention.keep_for)}, shorter than the RPO"
        message = f"{found}: a moment that it promises could be gone; expected {format_duration(rpo)} or more"
        yield _finding(plan, Level.ERROR, f"{where}.keep_for", message)
    if retention.keep == 1 and retention.keep_for is None:
        message = "each new backup is then the only one: where it, or the data in it, is damaged, nothing is left"
        yield _finding(plan, Level.WARNING, f"{where}.keep", message)


def _check_runbook(plan: Plan, runbook: Runbook) -> Iterator[Finding]:
    where = f"runbooks.{runbook.name}"
    total = sum((step.budget for step in runbook.steps), timedelta(0))
    yield from _headroom(
        plan,
        f"{where}.steps",
        said="the steps add up to",
        taken=total,
        allowed=runbook.rto,
        objective="runbook's RTO",
    )
    if plan.service(runbook.service).engine == "postgres":
        yield from _check_step_names(plan, runbook)
    objectives = plan.objectives(runbook.service)
    promises = (("rto", runbook.rto, objectives.rto), ("rpo", runbook.rpo, objectives.rpo))
    for key, own, promised in promises:
        if promised is not None and own > promised:
            limit = f"the {key.upper()} of {runbook.service}, {format_duration(promised)}"
            message = f"found {format_duration(own)}; expected at most {limit}"
            yield _finding(plan, Level.ERROR, f"{where}.{key}", message)


def _check_step_names(plan: Plan, runbook: Runbook) -> Iterator[Finding]:
    where, names = f"runbooks.{runbook.name}.steps", [step.name for step in runbook.steps]
    steps = ", ".join((*RESTORE_STEPS, *CUTOVER_STEPS))
    for name in names:
        if name not in RESTORE_STEPS and name not in CUTOVER_STEPS:
            message = f"a restore has no step {name}, so its budget is never used; its steps: {steps}"
            yield _finding(plan, Level.WARNING, f"{where}.{name}", message)
    missing = [name for name in RESTORE_STEPS if name not in names]
    if missing:
        yield _finding(plan, Level.WARNING, where, f"no budget for {', '.join(missing)}, which a restore carries out")


def _headroom(
    plan: Plan, where: str, *, said: str, taken: timedelta, allowed: timedelta, objective: str
) -> Iterator[Finding]:
    if taken < allowed:
        return
    said = f"{said} {format_duration(taken)}"
    if taken > allowed:
        message = f"{said}, longer than the {objective}; expected less than {format_duration(allowed)}"
        yield _finding(plan, Level.ERROR, where, message)
    else:
        message = f"{said}, which uses the {objective} up ({format_duration(allowed)}); no headroom is left"
        yield _finding(plan, Level.WARNING, where, message)
