"""From what an execution left behind to its record: phases, figures, verdicts. Pure but for `environment`."""

import platform
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

from dr_pipelines import __version__
from dr_pipelines.engines.checks import Check
from dr_pipelines.engines.verdict import Verdict, judge, judge_checks, worst_of
from dr_pipelines.plan import Plan
from dr_pipelines.repository.records import new_record_id
from dr_pipelines.runbooks.estimate import RestoreEstimate
from dr_pipelines.runbooks.execution import INTERRUPTED, Execution, Outcome, StepState
from dr_pipelines.runbooks.record import (
    BackupUsed,
    CheckResult,
    Cutover,
    Environment,
    Estimated,
    EstimatedStep,
    Moments,
    Phases,
    Record,
    Rows,
    StepResult,
    Verdicts,
)
from dr_pipelines.timing import format_duration, format_moment, measured_between

__all__ = ["Loss", "Restored", "environment", "make_record"]

RTO_METHOD = (
    "wall clock, from the outage's start until validation had passed and the application's first query had succeeded "
    "on the restored server, whichever came later"
)


CUTOVER_RTO_METHOD = (
    "wall clock, from the outage's start until validation had passed and the application's first query had succeeded "
    "on the server that took the lost one's place; waiting for the approval is counted"
)


@dataclass(frozen=True)
class Loss:
    """How much was lost, and how that is known."""

    rpo: timedelta | None
    method: str
    recovered_to: datetime | None
    rows: Rows | None
    checks: tuple[Check, ...] = ()


@dataclass(frozen=True)
class Restored:
    """What the five steps found; fields are None where they did not get that far."""

    recovery_point: datetime | None = None
    backup: BackupUsed | None = None
    checks: tuple[Check, ...] = ()
    validated_at: datetime | None = None
    healthy_at: datetime | None = None
    server_version: str | None = None
    cutover: Cutover | None = None
    """What was done of a cutover; None where none was asked for."""
    switched_at: datetime | None = None
    noted_by: str | None = None
    """Whose notes say when the application's query had succeeded, where it is not this process's."""
    estimate: RestoreEstimate | None = None


def make_record(
    execution: Execution,
    steps: Sequence[StepState],
    restored: Restored,
    loss: Loss,
    plan: Plan | None,
    where: Environment,
    *,
    ended_at: datetime,
    run_id: str | None,
    scenario: str,
    errors: Sequence[str] = (),
) -> Record:
    """The record of an execution that has ended.

    A figure that was not measured, or cannot be true, is None, its method says why, and its verdict is unverified. An
    execution with errors is never met in integrity.
    """
    # Longer than a function should be: a record has this many fields.
    moments = _moments(execution, steps, restored)
    back_at = _service_back_at(moments)
    rto, rto_method = _measure_rto(moments, restored)
    rpo, rpo_method = _accept_rpo(loss)
    objectives = plan.objectives(execution.service) if plan is not None else None
    promised_rto = objectives.rto if objectives is not None else None
    promised_rpo = objectives.rpo if objectives is not None else None
    checks = (*restored.checks, *loss.checks)
    verdicts = Verdicts(
        rto=judge(rto, promised_rto),
        rpo=judge(rpo, promised_rpo),
        integrity=_integrity(checks, errors),
    )
    step_results = tuple(_step_result(state, plan, execution) for state in steps)
    run_ids = tuple(dict.fromkeys([state.run_id for state in steps if state.run_id] + ([run_id] if run_id else [])))
    return Record(
        record_id=new_record_id(execution.kind, ended_at),
        execution_id=execution.id,
        # A resume is a further run, or at least a further attempt at a step.
        attempt=max(1 + len(steps) - len({state.step for state in steps}), len(run_ids)),
        run_id=run_id,
        run_ids=run_ids,
        kind="drill" if execution.kind == "drill" else "restore",
        scenario=scenario,
        runbook=execution.runbook,
        service=execution.service,
        tier=plan.tier_of(execution.service).name if plan is not None else None,
        reason=execution.reason,
        requested_by=execution.requested_by,
        success_criteria=_criteria(promised_rto, promised_rpo),
        plan_version=plan.plan_version if plan is not None else None,
        plan_sha256=plan.sha256 if plan is not None else None,
        started_at=execution.started_at,
        ended_at=ended_at,
        outage_started_at=execution.outage_started_at,
        service_restored_at=back_at,
        target_time=execution.target_time,
        recovery_point=restored.recovery_point,
        recovered_to=loss.recovered_to,
        rto_seconds=rto.total_seconds() if rto is not None else None,
        rto_objective_seconds=promised_rto.total_seconds() if promised_rto is not None else None,
        rto_method=rto_method,
        rpo_seconds=rpo.total_seconds() if rpo is not None else None,
        rpo_objective_seconds=promised_rpo.total_seconds() if promised_rpo is not None else None,
        rpo_method=rpo_method,
        rows=loss.rows,
        moments=moments,
        phases=_phases(moments),
        steps=step_results,
        checks=tuple(CheckResult(name=check.name, passed=check.passed, detail=check.detail) for check in checks),
        verdicts=verdicts,
        verdict=worst_of(verdicts.rto, verdicts.rpo, verdicts.integrity),
        deviations=(
            *_deviations(step_results, checks),
            *errors,
            *([f"RTO {rto_method}"] if rto is None else []),
            *([f"RPO {rpo_method}"] if rpo is None else []),
        ),
        backup=restored.backup,
        environment=where,
        cutover=restored.cutover,
        estimate=_estimated(restored.estimate, steps),
    )


def environment(repository_url: str, server_version: str | None, isolation: str) -> Environment:
    """This machine, as a record describes it."""
    return Environment(
        host=socket.gethostname(),
        operating_system=platform.platform(),
        tool_version=__version__,
        server_version=server_version,
        repository=repository_url,
        clock="this host's wall clock, UTC, across processes; its monotonic clock within a step",
        isolation=isolation,
    )


def _moments(execution: Execution, steps: Sequence[StepState], restored: Restored) -> Moments:
    return Moments(
        outage_started_at=execution.outage_started_at,
        detected_at=None,
        decided_at=_end_of(steps, "assess"),
        restore_started_at=next((state.started_at for state in steps if state.step == "restore_latest_backup"), None),
        restored_at=_end_of(steps, "apply_wal"),
        validated_at=restored.validated_at if judge_checks(restored.checks) is Verdict.MET else None,
        healthy_at=restored.healthy_at,
        # By this side's clock, as all the others: when the answer had been seen.
        approved_at=_end_of(steps, "approve_cutover"),
        switched_at=restored.switched_at,
    )


def _end_of(steps: Sequence[StepState], name: str) -> datetime | None:
    ends = [
        state.started_at + state.duration
        for state in steps
        if state.step == name and state.outcome is Outcome.DONE and state.duration is not None
    ]
    return ends[-1] if ends else None


def _service_back_at(moments: Moments) -> datetime | None:
    """When validation had passed and the first query had succeeded, whichever came later."""
    if moments.validated_at is None or moments.healthy_at is None:
        return None
    return max(moments.validated_at, moments.healthy_at)


def _measure_rto(moments: Moments, restored: Restored) -> tuple[timedelta | None, str]:
    """The RTO and how it was measured, or None and why it was not."""
    back_at = _service_back_at(moments)
    method = RTO_METHOD if restored.cutover is None else CUTOVER_RTO_METHOD
    method += f"; by {restored.noted_by}" if restored.noted_by else ""
    if moments.outage_started_at is None:
        return None, "not measured: the outage's start was not stated"
    if restored.validated_at is None:
        return None, "not measured: the restored server was not validated"
    if moments.validated_at is None:
        failed = ", ".join(check.name for check in restored.checks if check.passed is not True)
        return None, f"not measured: validation did not pass ({failed or 'nothing was checked'})"
    if restored.cutover is not None and moments.switched_at is None:
        return None, "not measured: the cutover was not carried out, so nobody's queries got to the restored server"
    if back_at is None:
        return None, "not measured: the application's first query did not succeed"
    restoring = (moments.outage_started_at, moments.decided_at, moments.restored_at, moments.validated_at)
    readings = (*restoring, moments.approved_at, moments.switched_at, back_at)
    for earlier, later in pairwise(moment for moment in readings if moment is not None):
        if later < earlier:
            return None, (
                f"not measured: a clock was set, {format_moment(later)} was read after {format_moment(earlier)}"
            )
    try:
        return measured_between(moments.outage_started_at, back_at), method
    except ValueError as error:
        return None, f"not measured: {error}"


def _accept_rpo(loss: Loss) -> tuple[timedelta | None, str]:
    if loss.rpo is not None and loss.rpo < timedelta(0):
        return None, f"not measured: {loss.rpo.total_seconds()} s of loss cannot be, a clock was set ({loss.method})"
    return loss.rpo, loss.method


def _phases(moments: Moments) -> Phases:
    return Phases(
        detect=None,
        decide=_stretch(moments.outage_started_at, moments.decided_at),
        restore=_stretch(moments.decided_at, moments.restored_at),
        validate_=_stretch(moments.restored_at, moments.validated_at),
        approval=_stretch(moments.validated_at, moments.approved_at),
        cutover=_stretch(moments.approved_at, moments.switched_at),
        healthy=_stretch(moments.switched_at or moments.validated_at, _service_back_at(moments)),
    )


def _stretch(start: datetime | None, end: datetime | None) -> float | None:
    """The seconds between two moments; None where one is missing, or where a clock was set between them."""
    if start is None or end is None or end < start:
        return None
    return (end - start).total_seconds()


def _integrity(checks: Sequence[Check], errors: Sequence[str]) -> Verdict:
    verdict = judge_checks(checks)
    return worst_of(verdict, Verdict.UNVERIFIED) if errors else verdict


def _step_result(state: StepState, plan: Plan | None, execution: Execution) -> StepResult:
    budget = plan.budgets(execution.service).get(state.step) if plan is not None else None
    # A record is made when the execution has ended: what the journal leaves running has lost its run.
    gone = state.outcome in (Outcome.RUNNING, Outcome.INTERRUPTED)
    return StepResult(
        name=state.step,
        attempt=state.attempt,
        outcome="interrupted" if gone else "done" if state.outcome is Outcome.DONE else "failed",
        overrun=budget is not None and state.duration is not None and state.duration > budget,
        seconds=state.duration.total_seconds() if state.duration is not None else None,
        budget_seconds=budget.total_seconds() if budget is not None else None,
        started_at=state.started_at,
        ended_at=state.started_at + state.duration if state.duration is not None else None,
        run_id=state.run_id,
        detail=INTERRUPTED if gone else state.detail,
    )


def _estimated(estimate: RestoreEstimate | None, steps: Sequence[StepState]) -> Estimated | None:
    """The estimate beside what it then took; with a step that took more than one attempt it cannot be compared."""
    if estimate is None:
        return None
    found = []
    for step in estimate.steps:
        attempts = [state for state in steps if state.step == step.step]
        took = attempts[0].duration if len(attempts) == 1 and attempts[0].outcome is Outcome.DONE else None
        found.append(
            EstimatedStep(
                name=step.step,
                estimate_seconds=step.seconds,
                low_seconds=step.low,
                high_seconds=step.high,
                basis=step.basis.value,
                told=step.told,
                actual_seconds=took.total_seconds() if took is not None else None,
            )
        )
    taken = [step.actual_seconds for step in found if step.actual_seconds is not None]
    return Estimated(
        made_at=estimate.made_at,
        estimate_seconds=estimate.seconds,
        low_seconds=estimate.low,
        high_seconds=estimate.high,
        actual_seconds=sum(taken) if len(taken) == len(found) else None,
        steps=tuple(found),
    )


def _criteria(rto: timedelta | None, rpo: timedelta | None) -> tuple[str, ...]:
    criteria = []
    if rto is not None:
        criteria.append(f"the service is back within {format_duration(rto)} of the outage's start")
    if rpo is not None:
        criteria.append(f"no more than {format_duration(rpo)} of acknowledged data is lost")
    return (*criteria, "every check of the restored data passes")


def _deviations(steps: Sequence[StepResult], checks: Sequence[Check]) -> tuple[str, ...]:
    found = []
    for step in steps:
        if step.outcome != "done":
            told = f", {step.detail}" if step.detail else ""
            found.append(f"step {step.name}, attempt {step.attempt}: {step.outcome}{told}")
        if step.overrun and step.seconds is not None and step.budget_seconds is not None:
            taken, budget = (format_duration(timedelta(seconds=value)) for value in (step.seconds, step.budget_seconds))
            found.append(f"step {step.name}, attempt {step.attempt}: overran its budget of {budget}, took {taken}")
    found += [
        f"check {check.name} {'could not be made' if check.passed is None else 'failed'}: {check.detail}"
        for check in checks
        if check.passed is not True
    ]
    return tuple(found)
