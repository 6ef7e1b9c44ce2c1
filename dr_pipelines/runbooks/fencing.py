"""Fencing the server whose place is taken: before anything else, and nothing else is done where it cannot be."""

from dataclasses import asdict

from dr_pipelines.engines.postgres.fence import Look, Measure, Presence, fence, look_at
from dr_pipelines.errors import ExecutionError
from dr_pipelines.runbooks.asking import OLD_SERVER_IS_DOWN, require_timeline_free
from dr_pipelines.runbooks.clients import run_command
from dr_pipelines.runbooks.handover import Work
from dr_pipelines.timing import wait_until

__all__ = ["fence_old_server", "measures_of"]

_PATIENCE = 30.0
"""Seconds in which a server that the team's own command stops falls silent."""


def fence_old_server(work: Work) -> None:
    """Put the old server out of action. Raises ExecutionError where that cannot be made sure of."""
    if work.is_done("fence"):
        return
    with work.steps.step("fence") as tell:
        result = work.results.get("fence")
        if result is None:
            require_timeline_free(work)
            by, measures = _fence(work)
            for measure in measures:
                if not measure.done:
                    work.around.notes.warning(f"fencing, {measure.name}: {measure.detail}")
            result = work.results.put("fence", {"by": by, "measures": [asdict(measure) for measure in measures]})
        tell(f"{work.old_server}: {result['by']}")


def measures_of(result: dict[str, object] | None) -> tuple[Measure, ...]:
    """The measures of a result that was written down."""
    found = result.get("measures") if result is not None else None
    return tuple(Measure(**each) for each in found if isinstance(each, dict)) if isinstance(found, list) else ()


def _fence(work: Work) -> tuple[str, tuple[Measure, ...]]:
    look, measures = look_at(work.old_dsn), tuple[Measure, ...]()
    if look.presence is Presence.ANSWERS:
        _require_old(work, look)
        measures = fence(work.old_dsn, clock=work.around.clock, note=work.around.notes.info)
    holds = bool(measures) and all(measure.done for measure in measures if measure.essential)
    if work.means.fence_command is not None:
        work.around.notes.info("fencing the old server: the team's own command")
        run_command(work.means.fence_command, work.for_commands())
        if not holds and not wait_until(lambda: _is_silent(work), timeout=_PATIENCE, clock=work.around.clock):
            raise _not_fenced(work, "the fencing command ended well, and the server is still there", measures)
        return "the team's own command" + (", and SQL" if holds else ""), measures
    if holds:
        return "SQL", measures
    if look.presence is Presence.SILENT:
        approval = work.approvals.latest(work.around.clock.wall())
        answer = approval.answer if approval is not None else None
        if answer is not None and OLD_SERVER_IS_DOWN in answer.confirmed:
            return f"it is down, confirmed by {answer.by}", measures
        raise _not_fenced(work, "it does not answer any more, and nobody has confirmed that it is down", measures)
    raise _not_fenced(work, look.said, measures)


def _is_silent(work: Work) -> bool:
    return look_at(work.old_dsn, timeout=2).presence is Presence.SILENT


def _require_old(work: Work, look: Look) -> None:
    """What answers at the old address may be another cluster, or the restored server itself."""
    own = look_at(work.handover.server.dsn(), timeout=2)
    wanted = work.handover.assessment.system_identifier
    if look.system_identifier != wanted:
        problem = f"is of the system {look.system_identifier}, not of {wanted}"
    elif own.started_at is not None and own.started_at == look.started_at:
        problem = "is the restored one itself"
    else:
        return
    raise ExecutionError(
        f"the server at {work.old_server} {problem}: nothing was done to it",
        hint="DR_DSN__<SERVICE> names the server whose place is taken",
    )


def _not_fenced(work: Work, why: str, measures: tuple[Measure, ...]) -> ExecutionError:
    lacking = "; ".join(f"{each.name}: {each.detail}" for each in measures if each.essential and not each.done)
    return ExecutionError(
        f"the old server at {work.old_server} is not fenced: {lacking or why}",
        hint="no client was led anywhere; name a superuser in DR_ADMIN_DSN, or a command that stops that server in "
        "DR_FENCE__<SERVICE>, or stop it yourself, then go on: an approval is asked for anew",
    )
