"""The cutover's approval: asked for, waited for, and good for one attempt at fencing the old server."""

import shlex

import psycopg

from dr_pipelines.engines.postgres.connection import connect, scalar
from dr_pipelines.engines.postgres.fence import Look, Presence, look_at
from dr_pipelines.engines.postgres.log import Log
from dr_pipelines.engines.postgres.recovery import MAINTENANCE
from dr_pipelines.engines.verdict import Verdict, judge_checks
from dr_pipelines.errors import ExecutionError, ProcessError, RepositoryError
from dr_pipelines.repository.approvals import Approval, Request, Standing
from dr_pipelines.runbooks.execution import Outcome
from dr_pipelines.runbooks.handover import Work, is_taken_over
from dr_pipelines.timing import format_moment

__all__ = ["OLD_SERVER_IS_DOWN", "await_approval", "require_timeline_free"]

OLD_SERVER_IS_DOWN = "old-server-is-down"
_LOOK_EVERY = 0.5
_NEW_SERVER = "new server"


def await_approval(work: Work) -> None:
    """Return when somebody has approved the cutover. Where what was approved had begun, nothing is waited for.

    Raises ExecutionError where it was denied, or nobody answered in time.
    """
    fencing = work.attempt("fence")
    if fencing is not None and fencing.outcome is not Outcome.FAILED:
        return
    approval = _usable(work)
    if approval is not None and _lets(work, approval) and work.is_done("approve_cutover"):
        return
    require_timeline_free(work)
    with work.steps.step("approve_cutover") as tell:
        approval = _await_answer(work, approval or _ask(work))
        if not _lets(work, approval):
            raise ExecutionError(
                f"the cutover was not approved: {approval.told}",
                hint="nothing was done to the old server; gone on with, the cutover asks anew",
            )
        tell(approval.told)


def require_timeline_free(work: Work) -> None:
    """Raise ExecutionError where another server that was restored from the same log has taken this one's timeline."""
    timeline = work.handover.server.timeline
    log = Log(work.service_store.child(work.handover.assessment.system_identifier))
    if not is_taken_over(work.handover) and next(iter(log.store.list(f"log/{timeline:08X}/")), None) is not None:
        raise ExecutionError(
            f"the repository holds a log of timeline {timeline} already: another restored server has taken the place",
            hint="restore again, into a new target: that server gets a timeline of its own",
        )


def _usable(work: Work) -> Approval | None:
    """The newest request, where it waits or lets us, and was made since fencing failed last; else None."""
    approval, failed = work.approvals.latest(work.around.clock.wall()), work.attempt("fence")
    if approval is None or approval.request is None or approval.request.facts.get(_NEW_SERVER) != work.new_server:
        return None
    if failed is not None and approval.request.requested_at <= failed.started_at:
        return None
    return approval if approval.standing in (Standing.WAITING, Standing.APPROVED) else None


def _lets(work: Work, approval: Approval) -> bool:
    return approval.allows(work.execution.id, str(work.handover.target))


def _ask(work: Work) -> Approval:
    look, now = look_at(work.old_dsn), work.around.clock.wall()
    alone = work.means.fence_command is None and look.presence is Presence.SILENT
    down = f"the server at {work.old_server} is down, and does not come back by itself"
    request = Request(
        execution_id=work.execution.id,
        target=str(work.handover.target),
        what="cutover",
        service=work.execution.service,
        facts=_facts(work, look),
        confirmations={OLD_SERVER_IS_DOWN: down} if alone else {},
        requested_at=now,
        requested_by=work.execution.requested_by,
        expires_at=now + work.wish.patience,
    )
    return work.approvals.look(work.approvals.ask(request), now)


def _facts(work: Work, look: Look) -> dict[str, str]:
    """What whoever decides has to know."""
    assessment, server, checks = work.handover.assessment, work.handover.server, work.handover.validated.checks
    passed, point = sum(check.passed is True for check in checks), assessment.recovery_point
    despite = "" if judge_checks(checks) is Verdict.MET else ", and it was asked for despite that"
    fencing = ["over SQL"] if look.presence is Presence.ANSWERS else []
    fencing += ["by the team's own command"] if work.means.fence_command else []
    return {
        "reason": work.execution.reason,
        "old server": f"{work.old_server}, {look.presence}"
        + (f", its log is written to {look.position}" if look.position else ""),
        "fencing": " and ".join(fencing) or "by nobody: that it is down has to be known",
        _NEW_SERVER: work.new_server,
        "restored": f"backup {assessment.backup_id} and the log up to {server.replayed_lsn}",
        "recovery point": format_moment(point) if point is not None else "unknown",
        "validation": f"{passed} of {len(checks)} checks passed{despite}",
        "clients": f"led by {' and '.join(work.means.led_by)}" if work.means.led_by else "find the same address",
        **_subscriptions(work),
    }


def _subscriptions(work: Work) -> dict[str, str]:
    """Held back while it is restored, they go on in production, through the slots that the old server has."""
    found = "SELECT string_agg(subname, ', ' ORDER BY subname) FROM pg_subscription WHERE subenabled"
    try:
        with connect(work.handover.server.dsn(MAINTENANCE)) as connection:
            names = scalar(connection, found)
    except (ProcessError, psycopg.Error):
        return {}  # it has been ended since; what it has was told before
    return (
        {"subscriptions": f"go on there: {names}; ALTER SUBSCRIPTION ... DISABLE those that shall not"} if names else {}
    )


def _await_answer(work: Work, approval: Approval) -> Approval:
    request, clock = approval.request, work.around.clock
    assert request is not None
    if approval.standing is Standing.WAITING:
        work.means.when_asked(work.approvals)
        approval = work.approvals.look(approval.number, clock.wall())
    if approval.standing is Standing.WAITING:
        confirm = "".join(f" --confirm {name}" for name in request.confirmations)
        work.around.notes.warning(
            f"waiting for an approval until {format_moment(request.expires_at)}: "
            f"dr approve {work.execution.id} --target {shlex.quote(str(work.handover.target))}{confirm}"
        )
    while approval.standing is Standing.WAITING:
        try:
            approval = work.approvals.look(approval.number, clock.wall())
        except RepositoryError as error:
            # A repository that does not answer for a moment is no answer.
            if not error.retryable or clock.wall() >= request.expires_at:
                raise
        if approval.standing is Standing.WAITING:
            clock.sleep(_LOOK_EVERY)
    return approval
