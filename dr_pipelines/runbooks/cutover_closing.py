"""The end of a cutover: its record, and what whoever takes over has to know."""

from dr_pipelines.engines.postgres import target
from dr_pipelines.processes.postgres import find_binaries
from dr_pipelines.repository.approvals import Decision
from dr_pipelines.runbooks.closing import SCENARIO, loss_of, put_record
from dr_pipelines.runbooks.cutover import CutOver, achieved
from dr_pipelines.runbooks.database_restore import Surroundings, backup_used
from dr_pipelines.runbooks.handover import Handover, Means, Wish
from dr_pipelines.runbooks.outcome import Restored
from dr_pipelines.runbooks.record import CheckResult, Cutover, CutoverApproval, Record
from dr_pipelines.settings import variable

__all__ = ["account_of", "close_cutover", "close_failed_cutover", "restored_by", "what_is_next"]

_ISOLATION = "the restored server took the place of the one that was lost"
_NOT_YET = "a new server beside the one that was lost; it was to take its place"


def close_cutover(around: Surroundings, handover: Handover, done: CutOver, run_id: str | None) -> Record:
    """Store the record, and let go of the target: the server in it is in production.

    A new backup that failed is an error in the record. Doing it again stores a further record.
    """
    problem = [f"the new server has no backup: {done.backup_problem}"] if done.backup_problem else []
    record = _put(around, handover, done, run_id, isolation=_ISOLATION, errors=tuple(problem))
    target.release(handover.target, server_runs=False)
    return record


def close_failed_cutover(
    around: Surroundings, handover: Handover, wish: Wish, means: Means, error: str, run_id: str | None
) -> Record:
    """A sub-step failed, or nobody approved: the record says so beside what had been found. It can be gone on with."""
    done = achieved(around, handover, wish, means)
    return _put(around, handover, done, run_id, isolation=_NOT_YET, errors=(error,))


def _put(
    around: Surroundings,
    handover: Handover,
    done: CutOver,
    run_id: str | None,
    *,
    isolation: str,
    errors: tuple[str, ...],
) -> Record:
    execution = handover.assessment.execution
    loss = loss_of(handover.assessment, handover.server, handover.validated)
    restored = restored_by(around, handover, done)
    return put_record(around, execution, restored, loss, run_id, scenario=SCENARIO, isolation=isolation, errors=errors)


def restored_by(around: Surroundings, handover: Handover, done: CutOver) -> Restored:
    """What the restore and the cutover found, for the record."""
    validated = handover.validated
    first = (done.healthy,) if done.healthy is not None else ()
    return Restored(
        recovery_point=handover.assessment.recovery_point,
        backup=backup_used(around, handover.assessment),
        checks=(*validated.checks, *first),
        validated_at=validated.validated_at,
        healthy_at=done.healthy_at,
        server_version=find_binaries(around.settings, handover.assessment.major).version,
        estimate=handover.assessment.estimate,
        cutover=account_of(done),
        switched_at=done.switched_at,
    )


def account_of(done: CutOver) -> Cutover:
    """What a record says of a cutover."""
    work = done.work
    return Cutover(
        target=str(work.handover.target),
        old_server=work.old_server,
        new_server=work.new_server,
        approval=_approval_of(done),
        fenced_by=done.fenced_by,
        fence=tuple(CheckResult(name=each.name, passed=each.done, detail=each.detail) for each in done.fence),
        clients_led_by=" and ".join(work.means.led_by) or None if done.switched_at is not None else None,
        log_shipped_by=done.log_shipped_by,
        backup_id=done.backup_id,
        notes=done.notes,
    )


def _approval_of(done: CutOver) -> CutoverApproval | None:
    approval = done.approval
    if approval is None or approval.request is None:
        return None
    request, answer = approval.request, approval.answer
    # What was approved and begun in time has not expired since.
    used = done.fenced_by is not None and answer is not None and answer.decision is Decision.APPROVED
    step = done.work.attempt("approve_cutover")
    seen = step.started_at + step.duration if step is not None and step.duration is not None else None
    return CutoverApproval(
        number=approval.number,
        requested_at=request.requested_at,
        requested_by=request.requested_by,
        expires_at=request.expires_at,
        standing="approved" if used else approval.standing.value,
        answered_at=answer.at if answer is not None else None,
        by=answer.by if answer is not None else None,
        reason=answer.reason if answer is not None else None,
        confirmed=answer.confirmed if answer is not None else (),
        waited_seconds=(seen - request.requested_at).total_seconds() if seen is not None else None,
    )


def what_is_next(handover: Handover, done: CutOver) -> dict[str, str]:
    """For the operator: where the server is, and what remains to be done by hand."""
    work, service = done.work, done.work.execution.service
    said = {
        "data": str(handover.target),
        "address": f"{work.new_server}, with the roles and passwords of the server that was lost",
        "log": done.log_shipped_by or "is not shipped",
        "backup": done.backup_id or f"NONE YET: {done.backup_problem}",
        "next": f"let {variable('dsn', service)} name the new server, for the agent, backups and Dagster; have it and "
        f"its agent started by a service unit; keep the old server from coming back",
    }
    return said | ({"see to": "; ".join(done.notes)} if done.notes else {})
