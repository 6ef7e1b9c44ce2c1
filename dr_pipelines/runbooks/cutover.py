"""The runbook step "cutover": the restored server takes the lost one's place, after somebody has approved it.

Five sub-steps, each with its own entry in the journal: the approval is waited for; the old server is fenced, before
anything else; the restored server comes back in production; the clients are led to it, and the application's first
query has to succeed there; a new backup is taken at once. Killed at whatever moment, the same call goes on: what was
achieved is not done again, and what is done again changes nothing.
"""

from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from dr_pipelines.engines.checks import Check
from dr_pipelines.engines.postgres import validate as postgres_validate
from dr_pipelines.engines.postgres.backup import take_backup
from dr_pipelines.engines.postgres.connection import connect
from dr_pipelines.engines.postgres.fence import Measure
from dr_pipelines.engines.verdict import Verdict, judge_checks
from dr_pipelines.errors import DrError, ExecutionError, ProcessError
from dr_pipelines.processes.postgres import find_binaries
from dr_pipelines.repository.approvals import Approval
from dr_pipelines.repository.locks import hold
from dr_pipelines.runbooks.asking import await_approval
from dr_pipelines.runbooks.clients import at_address, lead_file_to, run_command
from dr_pipelines.runbooks.database_restore import LEASE, Surroundings
from dr_pipelines.runbooks.execution import Outcome
from dr_pipelines.runbooks.fencing import fence_old_server, measures_of
from dr_pipelines.runbooks.handover import Handover, Means, Wish, Work, moment_in
from dr_pipelines.runbooks.production import is_in_target, take_over
from dr_pipelines.timing import format_moment, wait_until

__all__ = ["CutOver", "achieved", "cut_over"]

_PATIENCE = 30.0
"""Seconds in which the new server answers the application."""


@dataclass(frozen=True)
class CutOver:
    """What was achieved of a cutover; what was not is None."""

    work: Work
    approval: Approval | None
    fenced_by: str | None
    fence: tuple[Measure, ...]
    log_shipped_by: str | None
    switched_at: datetime | None
    healthy: Check | None
    healthy_at: datetime | None
    """When the application's first query had succeeded at the new address."""
    backup_id: str | None
    backup_problem: str | None
    """Why there is no new backup, where it was tried."""
    notes: tuple[str, ...]


def cut_over(around: Surroundings, handover: Handover, wish: Wish, means: Means, run_id: str | None) -> CutOver:
    """Carry the cutover out, from wherever it stands.

    Raises ExecutionError where the validation did not pass and nobody said that it does not matter, where it was not
    approved, or where the old server could not be fenced: then no client was led anywhere. A new backup that fails is
    told in the result; the cutover stands.
    """
    work = Work(around, handover, wish, means, run_id)
    _require_valid(work)
    with around.leases.keep_renewed(work.execution.id, LEASE):
        await_approval(work)
        purpose = f"cutover of {work.execution.service} to {handover.target}"
        with hold(work.service_store, "cutover", purpose=purpose, clock=around.clock) as lock:
            fence_old_server(work)
            take_over(work)
            lock.confirm()
            _switch(work)
        _back_up(work)
    return achieved(around, handover, wish, means)


def _require_valid(work: Work) -> None:
    checks = work.handover.validated.checks
    if judge_checks(checks) is not Verdict.MET and not work.wish.despite_findings:
        found = ", ".join(check.name for check in checks if check.passed is not True)
        raise ExecutionError(
            f"the validation did not pass, so the restored server takes nobody's place: {found}",
            hint="look at the restored server; --despite-findings cuts over all the same",
        )


def _switch(work: Work) -> None:
    """Lead the clients to the new server, and ask it what the application asks first."""
    if work.is_done("switch_clients"):
        return
    with work.steps.step("switch_clients") as tell:
        led = " and ".join(work.means.led_by) or "the address is the same"
        if work.results.get("switch") is not None:
            tell(f"{led}, before")
            return
        switched_at = work.around.clock.wall()
        if work.means.connection_file is not None:
            lead_file_to(work.means.connection_file, work.execution.service, work.wish.address)
        if work.means.switch_command is not None:
            run_command(work.means.switch_command, work.for_commands())
        first = _first_query(work)
        healthy_at = work.around.clock.wall() if first.passed else None
        result = {
            "switched_at": format_moment(switched_at),
            "healthy_at": format_moment(healthy_at) if healthy_at is not None else None,
            "healthy": asdict(first),
        }
        work.results.put("switch", result)
        if not first.passed:
            work.around.notes.warning(f"the application's query at the new address: {first.detail}")
        tell(f"{led}; {first.detail}")


def _first_query(work: Work) -> Check:
    """Asked where clients are led to, as a client where it is known how those connect."""
    name, wishes = "application_query_at_the_new_address", work.around.validation_of(work.execution.service)
    if wishes is None:
        return Check(name, None, "the plan names no application query")
    asked = work.means.client_dsn or at_address(work.means.admin_dsn or work.means.dsn, work.wish.address)
    named = conninfo_to_dict(asked).get("dbname") if work.means.client_dsn else None
    dsn = make_conninfo(asked, dbname=named or wishes.database)
    problem: str | None = None

    def succeeds() -> bool:
        nonlocal problem
        problem = _ask_new(dsn, wishes.application_query, work.handover.target)
        return problem is None

    wait_until(succeeds, timeout=_PATIENCE, clock=work.around.clock, interval=0.2)
    return Check(name, problem is None, problem or f"answered at {work.new_server}")


def _ask_new(dsn: str, query: str, target: Path) -> str | None:
    """What is wrong with the answer; None where it came from the server in the target."""
    try:
        with connect(dsn) as connection:
            if not is_in_target(connection, target):
                return "clients are still led to another server"
    except (ProcessError, psycopg.Error, OSError) as error:
        return str(error).strip()
    return postgres_validate.ask(dsn, query)[1]


def _back_up(work: Work) -> None:
    """A new history begins here: a backup of it, at once. Where it fails, that is told and journaled."""
    if work.is_done("back_up"):
        return
    try:
        with work.steps.step("back_up") as tell:
            if (result := work.results.get("backup")) is not None:
                tell(str(result["backup_id"]))
                return
            taken = take_backup(
                work.execution.service,
                work.new_dsn,
                work.repository,
                find_binaries(work.around.settings, work.handover.assessment.major),
                work.around.settings,
                clock=work.around.clock,
                progress=lambda done, total: work.around.progress("backing up", done, total),
            )
            work.results.put("backup", {"backup_id": taken.manifest.backup_id})
            tell(taken.manifest.backup_id)
    except (DrError, psycopg.Error, OSError) as error:
        work.around.notes.warning(f"THE NEW SERVER HAS NO BACKUP YET: {' '.join(str(error).split())}")


def achieved(around: Surroundings, handover: Handover, wish: Wish, means: Means) -> CutOver:
    """What the steps have written down so far. Changes nothing."""
    work = Work(around, handover, wish, means, None)
    production, fencing = work.results.get("take_over"), work.results.get("fence")
    switch, backup = work.results.get("switch"), work.results.get("backup")
    healthy = switch.get("healthy") if switch is not None else None
    notes, tried = production.get("notes") if production is not None else None, work.attempt("back_up")
    return CutOver(
        work=work,
        approval=work.approvals.latest(around.clock.wall()),
        fenced_by=str(fencing["by"]) if fencing is not None else None,
        fence=measures_of(fencing),
        log_shipped_by=str(production["log"]) if production is not None else None,
        switched_at=moment_in(switch, "switched_at"),
        healthy=Check(**healthy) if isinstance(healthy, dict) else None,
        healthy_at=moment_in(switch, "healthy_at"),
        backup_id=str(backup["backup_id"]) if backup is not None else None,
        backup_problem=tried.detail if tried is not None and tried.outcome is Outcome.FAILED else None,
        notes=tuple(str(note) for note in notes) if isinstance(notes, list) else (),
    )
