"""The database drill: a PostgreSQL under write load is backed up, destroyed, and brought back by the runbook.

Three acts, each a function of its own, so that Dagster can show and time them and a test can come between them:
`set_the_stage`, `lose_database`, then the runbook's five steps, then `measure_drill`. `close_failed` is what happens
instead of the last where a step fails; `carry_out` is all that follows the loss. The drill's backups lie in a sandbox
of the repository and go when it ends; its record stays.
"""

import random
import shutil
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from dr_pipelines.drills.cutover import Cutting
from dr_pipelines.drills.loss import measure_loss
from dr_pipelines.engines.postgres import coverage
from dr_pipelines.engines.postgres.backup import take_backup
from dr_pipelines.engines.postgres.log import Log
from dr_pipelines.engines.postgres.recovery import RestoredServer
from dr_pipelines.errors import DrError, ExecutionError, ProcessError
from dr_pipelines.lab import database as lab_database
from dr_pipelines.lab.clients import start_application
from dr_pipelines.lab.database import DATABASE, LabDatabase, LogWay
from dr_pipelines.processes.identity import end_of
from dr_pipelines.processes.leases import Lease
from dr_pipelines.processes.postgres import find_binaries
from dr_pipelines.repository.store import Store
from dr_pipelines.runbooks.closing import put_record
from dr_pipelines.runbooks.database_restore import (
    LEASE,
    RUNBOOK,
    Assessment,
    Surroundings,
    Validated,
    apply_wal,
    assess,
    backup_used,
    discard,
    prepare,
    restore_latest_backup,
    validate,
)
from dr_pipelines.runbooks.execution import Execution, Journal
from dr_pipelines.runbooks.handover import begun_cutover
from dr_pipelines.runbooks.outcome import Loss, Restored
from dr_pipelines.runbooks.record import Record
from dr_pipelines.timing import format_bytes, format_duration, format_moment, wait_until

__all__ = [
    "DrillOptions",
    "Lost",
    "Staged",
    "carry_out",
    "close_failed",
    "cut_over_drill",
    "lose_database",
    "measure_drill",
    "set_the_stage",
]

SCENARIO = "the database's host is lost: every process killed with SIGKILL, data and spool deleted"
_WAYS = {
    "archive": "",
    "stream": ", the receiver of its log with it",
    "synchronous": "; the receiver of its log, which every commit waits for, is on a host that survives",
}
_PATIENCE = 60.0


@dataclass(frozen=True)
class DrillOptions:
    """How a drill is set up."""

    service: str = "database"
    size_bytes: int = 50_000_000
    writers: int = 3
    rate: float = 25.0
    """Rows a second, of each writer."""
    archive_timeout: timedelta = timedelta(seconds=10)
    log: LogWay = "archive"
    seed: int = 0
    """Draws how long the writers go on before the loss."""
    major: int | None = None
    """The PostgreSQL to drill with; None for the newest that is installed."""
    reason: str = "drill"
    requested_by: str = ""
    keep: bool = False
    """Leave the servers, folders and backups of the drill in place."""
    cutover: bool = False
    """Let the restored server take the lost one's place, and an application find it by itself."""
    approve_by_hand: bool = False
    """Let somebody else than the drill approve the cutover."""


@dataclass(frozen=True)
class Staged:
    """A database host under load, with a backup and a log in the drill's part of the repository."""

    execution_id: str
    started_at: datetime
    options: DrillOptions
    lab_folder: str
    backup_id: str


@dataclass(frozen=True)
class Lost:
    """The host is gone."""

    execution: Execution
    options: DrillOptions
    lab_folder: str
    recovery_point: datetime | None
    """What the repository proved, as it was printed before the loss."""


def set_the_stage(around: Surroundings, options: DrillOptions, execution_id: str) -> Staged:
    """Make the host, load it, back it up and let writers write to it.

    First ends what earlier drills left behind whose run is dead.
    """
    started_at = around.clock.wall()
    leases, notes = around.leases, around.notes
    _end_orphans(around)
    with leases.keep_renewed(_owner(execution_id), LEASE):
        notes.info(f"starting PostgreSQL and loading {format_bytes(options.size_bytes)} of a hotel's data")
        lab = lab_database.create(
            around.settings,
            leases,
            _owner(execution_id),
            ttl=LEASE,
            archive_timeout=options.archive_timeout,
            size_bytes=options.size_bytes,
            progress=lambda done, total: around.progress("loading", done, total),
            major=options.major,
            log=options.log,
        )
        lab_database.start_agent(
            lab, options.service, leases, around.settings.as_environment(), ttl=LEASE, sandbox=execution_id
        )
        lab_database.start_writers(lab, leases, options.writers, options.rate, ttl=LEASE)
        if options.cutover:
            start_application(lab, options.service, leases, ttl=LEASE)
        sandbox = around.repository.sandbox(execution_id)
        if options.log != "archive":
            _wait_for_stream(sandbox.service(options.service), lab)
        taken = take_backup(
            options.service,
            lab.dsn("postgres"),
            sandbox,
            find_binaries(around.settings, lab.major),
            around.settings,
            clock=around.clock,
            progress=lambda done, total: around.progress("backing up", done, total),
        )
        manifest = taken.manifest
        notes.info(
            f"backup {manifest.backup_id}: {format_bytes(manifest.raw_bytes)} as {format_bytes(manifest.stored_bytes)} "
            f"in {len(manifest.parts)} parts, {format_duration(taken.duration)}, while {options.writers} writers wrote"
        )
    return Staged(execution_id, started_at, options, str(lab.folder), manifest.backup_id)


def lose_database(around: Surroundings, staged: Staged) -> Lost:
    """Let the writers go on for a drawn while, print the recovery point, and destroy the host.

    Carried out again after an interruption, it goes on with the loss that was begun and with its moment. Raises
    ExecutionError where the host is gone and nobody wrote down since when.
    """
    leases, options = around.leases, staged.options
    lab = _lab(staged.lab_folder)
    journal = Journal(around.repository.store, staged.execution_id)
    store = drill_store(around, staged.execution_id, options.service)
    with leases.keep_renewed(lab.owner, LEASE):
        execution = journal.begun()
        if execution is None:
            if not lab_database.is_up(lab, leases):
                raise ExecutionError(
                    "the drill's host is gone, and since when was not written down", hint="start a new drill"
                )
            _let_writers_go_on(around, staged, store)
            point = _recovery_point(store)
            around.notes.info(f"recovery point: {format_moment(point) if point else 'unknown'}")
            around.notes.warning("killing every process of the database's host, deleting its data and its spool")
            # Written down at once, before the slow part: it is the start of the RTO, whatever happens from here on.
            outage = lab_database.kill_host(lab, leases, around.clock)
            execution = journal.begin(_execution(around, staged, outage))
        else:
            point = _recovery_point(store)
        lab_database.delete_host(lab)
    return Lost(execution, options, staged.lab_folder, point)


def _let_writers_go_on(around: Surroundings, staged: Staged, store: Store) -> None:
    """Until the log after the backup has reached the repository, and then for a drawn while."""
    options = staged.options
    backup_end = coverage.choose(store, None).manifest.stopped_at
    patience = _PATIENCE + 2 * options.archive_timeout.total_seconds()
    if not wait_until(lambda: (_recovery_point(store) or backup_end) > backup_end, timeout=patience, interval=0.2):
        said = end_of(Path(staged.lab_folder) / "agent.log", lines=3)
        raise ProcessError(
            f"the log written after the backup did not reach the repository within {patience:.0f} s: {said}"
        )
    # Anywhere in the cycle of the archive's switches, so that what is lost is measured and not arranged.
    pause = random.Random(options.seed).uniform(1.0, 1.0 + options.archive_timeout.total_seconds())
    around.notes.info(f"the writers go on for {pause:.1f} s (seed {options.seed})")
    around.clock.sleep(pause)


def _execution(around: Surroundings, staged: Staged, outage_started_at: datetime) -> Execution:
    return Execution(
        id=staged.execution_id,
        kind="drill",
        runbook=RUNBOOK,
        service=staged.options.service,
        outage_started_at=outage_started_at,
        started_at=staged.started_at,
        target_time=None,
        reason=staged.options.reason,
        requested_by=staged.options.requested_by,
        plan_sha256=around.plan.sha256 if around.plan is not None else None,
        sandbox=staged.execution_id,
    )


def measure_drill(
    around: Surroundings,
    lost: Lost,
    assessment: Assessment,
    server: RestoredServer,
    validated: Validated,
    run_id: str | None,
    *,
    errors: tuple[str, ...] = (),
) -> Record:
    """Compare the writers' notes with what came back, write the record, and end what the drill started."""
    handover = begun_cutover(around, lost.execution.id)
    if handover is not None:
        cutting = _cutting(around, lost)
        dsn, restored = cutting.dsn(), cutting.restored(handover, lost.recovery_point)
    else:
        dsn = server.dsn(DATABASE)
        restored = Restored(
            recovery_point=lost.recovery_point,
            backup=backup_used(around, assessment),
            checks=validated.checks,
            validated_at=validated.validated_at,
            healthy_at=validated.healthy_at,
            server_version=find_binaries(around.settings, assessment.major).version,
            estimate=assessment.estimate,
        )
    lab, leases, writers = _lab(lost.lab_folder), around.leases, lost.options.writers
    loss = measure_loss(lab, leases, writers, dsn, lost.execution.outage_started_at, lost.recovery_point)
    record = _put_record(around, lost, restored, loss, run_id, errors=errors)
    try:
        end_drill(around, lost.execution.id, server, keep=lost.options.keep)
    except (DrError, OSError) as error:
        # What was measured stays measured; what was not cleared away has a lease that runs out.
        around.notes.warning(f"not all of the drill could be cleared away: {error}")
    return record


def cut_over_drill(
    around: Surroundings,
    lost: Lost,
    assessment: Assessment,
    server: RestoredServer,
    validated: Validated,
    run_id: str | None,
) -> tuple[str, ...]:
    """Let the restored server take the lost one's place, where it is to; returns what went wrong all the same."""
    if not lost.options.cutover:
        return ()
    problem = _cutting(around, lost).carry_out(assessment, server, validated, run_id)
    return (f"the new server has no backup: {problem}",) if problem is not None else ()


def _cutting(around: Surroundings, lost: Lost) -> Cutting:
    return Cutting(around, lost.execution, _lab(lost.lab_folder), lost.options.approve_by_hand)


def carry_out(around: Surroundings, lost: Lost, run_id: str | None) -> Record:
    """The runbook's five steps after the loss, and the measurement. A step that fails ends in a record that says so."""
    try:
        assessment = prepare(around, assess(around, lost.execution, None, run_id), run_id)
        files = restore_latest_backup(around, assessment, run_id)
        server = apply_wal(around, assessment, files, run_id)
        validated = validate(around, assessment, files, server, run_id)
        errors = cut_over_drill(around, lost, assessment, server, validated, run_id)
        return measure_drill(around, lost, assessment, server, validated, run_id, errors=errors)
    except Exception as error:
        # Whatever it is, it goes into the record, which is what a drill is for.
        around.notes.warning(f"the drill failed: {error!r}")
        return close_failed(around, lost, str(error) if isinstance(error, DrError) else repr(error), run_id)


def close_failed(around: Surroundings, lost: Lost, error: str, run_id: str | None) -> Record:
    """A step failed: the record says so, every figure that was not measured is unverified, and the drill is ended."""
    nothing = Loss(None, "not measured: the restore failed", None, None)
    restored, handover = Restored(recovery_point=lost.recovery_point), begun_cutover(around, lost.execution.id)
    if handover is not None:
        try:
            restored = _cutting(around, lost).restored(handover, lost.recovery_point)
        except (ValueError, OSError, DrError) as further:
            around.notes.warning(f"what the cutover had achieved cannot be told: {further}")
    record = _put_record(around, lost, restored, nothing, run_id, errors=(error,))
    end_drill(around, lost.execution.id, None, keep=lost.options.keep)
    return record


def end_drill(around: Surroundings, execution_id: str, server: RestoredServer | None, *, keep: bool) -> None:
    """End every process of a drill and remove its folders and its part of the repository, unless `keep`."""
    if keep:
        around.notes.info(
            f"kept: the servers, folders and backups of {execution_id}; their leases run out by themselves"
        )
        return
    discard(around, execution_id, server)
    around.leases.end_owner(_owner(execution_id))
    # Its folder goes with a lease, and a run that was killed early had none yet.
    shutil.rmtree(around.settings.state_dir / "lab" / _owner(execution_id), ignore_errors=True)
    around.repository.remove_sandbox(execution_id)


def _end_orphans(around: Surroundings) -> None:
    """End what a drill left behind whose run was killed: its processes, its folders, its part of the repository."""
    orphans = around.leases.reap(dead_holders=_is_a_drills)
    for execution_id in sorted({lease.owner.removeprefix("lab-") for lease in orphans if _is_a_drills(lease)}):
        around.notes.warning(f"ended what the drill {execution_id}, whose run is gone, had left behind")
        # Also what its run had only begun to start when it was killed.
        end_drill(around, execution_id, None, keep=False)


def drill_store(around: Surroundings, execution_id: str, service: str) -> Store:
    """Where the backups and the log of a drill lie."""
    return coverage.newest_system(around.repository.sandbox(execution_id).service(service))


def _put_record(
    around: Surroundings, lost: Lost, restored: Restored, loss: Loss, run_id: str | None, errors: tuple[str, ...]
) -> Record:
    isolation = (
        "a copy on this machine, made for the drill: its own server, data and network ports; "
        f"{_how_the_log_left(lost.options)}, {format_bytes(lost.options.size_bytes)}"
    )
    scenario = SCENARIO + _WAYS[lost.options.log]
    return put_record(
        around, lost.execution, restored, loss, run_id, scenario=scenario, isolation=isolation, errors=errors
    )


def _wait_for_stream(service_store: Store, lab: LabDatabase) -> None:
    """Return when the agent has told that it streams: without it no backup is taken."""

    def told() -> bool:
        return any(Log(service_store.child(name)).read_position() for name in coverage.systems(service_store))

    if not wait_until(told, timeout=_PATIENCE, interval=0.1):
        raise ProcessError(f"the lab's agent does not stream: {end_of(lab.folder / 'agent.log', lines=3)}")


def _how_the_log_left(options: DrillOptions) -> str:
    if options.log == "archive":
        return f"archive_timeout {options.archive_timeout.total_seconds():.0f} s"
    return "its log streamed" + (", synchronously" if options.log == "synchronous" else "")


def _lab(folder: str) -> LabDatabase:
    lab = lab_database.load(Path(folder))
    if lab is None:
        raise ProcessError(
            f"the drill's host in {folder} is gone: a drill that failed or was given up is ended",
            hint="start a new drill",
        )
    return lab


def _recovery_point(store: Store) -> datetime | None:
    position = Log(store).read_position()
    return position.recovery_point if position is not None else None


def _owner(execution_id: str) -> str:
    return f"lab-{execution_id}"


def _is_a_drills(lease: Lease) -> bool:
    return "-drill-" in lease.owner
