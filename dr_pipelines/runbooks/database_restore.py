"""The runbook "database restore": five steps that bring a lost PostgreSQL back on a new server, and what each hands on.

Each step is a function of its surroundings and of what the steps before it returned. What they return is small and can
be stored, so that a step can be carried out again by another process without those before it: whoever runs them
(Dagster's ops, the command line, a drill) adds nothing but the order.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from dr_pipelines.engines.checks import Check
from dr_pipelines.engines.postgres import coverage, target
from dr_pipelines.engines.postgres import validate as postgres_validate
from dr_pipelines.engines.postgres.log import Log
from dr_pipelines.engines.postgres.receiving import await_drained
from dr_pipelines.engines.postgres.recovery import RestoredServer, start_recovered
from dr_pipelines.engines.postgres.restore import restore_files
from dr_pipelines.engines.postgres.room import Room, require_space, room_for
from dr_pipelines.engines.postgres.wal import Lsn
from dr_pipelines.errors import (
    ConfigurationError,
    ExecutionError,
    LogGap,
    NotCovered,
    ObjectCorrupt,
    ObjectMissing,
)
from dr_pipelines.plan import Plan, Validation, load_plan, parse_plan
from dr_pipelines.processes.identity import Identity, server_identity
from dr_pipelines.processes.leases import Leases
from dr_pipelines.processes.postgres import find_binaries
from dr_pipelines.repository.manifest import Manifest, manifest_sha256, read_manifest
from dr_pipelines.repository.repository import Repository, open_repository
from dr_pipelines.repository.store import Store
from dr_pipelines.repository.uses import note_use, renewed
from dr_pipelines.runbooks.estimate import RestoreEstimate
from dr_pipelines.runbooks.estimating import countdown, estimate_from
from dr_pipelines.runbooks.execution import Execution, Journal
from dr_pipelines.runbooks.record import BackupUsed
from dr_pipelines.runbooks.steps import Notes, StepRunner
from dr_pipelines.settings import Settings
from dr_pipelines.timing import Clock, SystemClock, format_bytes, format_moment

__all__ = [
    "RUNBOOK",
    "Assessment",
    "RestoredFiles",
    "Surroundings",
    "Validated",
    "apply_wal",
    "assess",
    "backup_used",
    "discard",
    "estimate_steps",
    "prepare",
    "restore_latest_backup",
    "steps_of",
    "surroundings",
    "validate",
]

RUNBOOK = "database_restore"
LEASE = timedelta(minutes=30)
"""How long a restored server outlives the last sign of the run that restores it."""


@dataclass(frozen=True)
class Surroundings:
    """What every step works with; made anew by each process that carries out a step."""

    settings: Settings
    plan: Plan | None
    repository: Repository
    clock: Clock
    notes: Notes
    progress: Callable[[str, int, int], None]
    """Called with what is being done, the amount done and the amount to do."""

    @property
    def leases(self) -> Leases:
        """The processes of this machine's state folder."""
        return Leases(self.settings.state_dir, self.clock)

    @property
    def identity(self) -> Identity | None:
        """Who restored servers run as."""
        return server_identity(self.settings)

    def validation_of(self, service: str) -> Validation | None:
        """What the plan wants to be asked of a restored server."""
        return self.plan.service(service).validation if self.plan is not None else None


def surroundings(
    settings: Settings,
    notes: Notes,
    *,
    clock: Clock | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    create: bool = False,
) -> Surroundings:
    """What the settings lead to: the plan at `settings.plan`, else the repository's copy; the repository.

    With `create` an empty place becomes a repository. Raises ConfigurationError where no repository is named,
    PlanError where the plan cannot be accepted.
    """
    if settings.repository is None:
        raise ConfigurationError("DR_REPOSITORY is not set", hint="a folder's path or s3://bucket/prefix")
    the_clock = clock or SystemClock()
    repository = open_repository(settings.repository, settings=settings, create=create, clock=the_clock)
    return Surroundings(settings, _plan(settings, repository), repository, the_clock, notes, progress)


def _plan(settings: Settings, repository: Repository) -> Plan | None:
    if settings.has_plan:
        return load_plan(settings.plan)
    text = repository.latest_plan()
    return parse_plan(text, name=f"the plan in {repository.url}") if text is not None else None


@dataclass(frozen=True)
class Assessment:
    """What is going to be restored, from what, to where."""

    execution: Execution
    target: str
    backup_id: str
    system_identifier: str
    major: int
    files: tuple[str, ...]
    """The files of the log that will be replayed."""
    log_end: str
    """Where the unbroken log ends."""
    recovery_point: datetime | None
    gap: str | None
    raw_bytes: int
    stored_bytes: int
    log_bytes: int
    room: Room
    proven_lsn: Lsn | None = None
    """Where the replay must get for the recovery point; None where that is not known."""
    doubts: tuple[str, ...] = ()
    """What of the repository is damaged and was gone on without."""
    links: tuple[str, ...] = ()
    """The backups that are fetched, oldest first: this one, and before an incremental one what it is based on."""
    timeline: int | None = None
    """The timeline that it leads to; None in what an earlier version assessed: the newest."""
    others: str | None = None
    """Which other timeline has what this one has not, and what leads there; None where none has."""
    estimate: RestoreEstimate | None = None
    """What the steps that are left were expected to take."""

    @property
    def title(self) -> str:
        """How the backup is called, with what it is based on."""
        return self.backup_id + (f", based on {', '.join(reversed(self.links[:-1]))}" if len(self.links) > 1 else "")


@dataclass(frozen=True)
class RestoredFiles:
    """The backup's files lie in the target, and PostgreSQL's own manifest agrees with them."""

    target: str
    parts_fetched: int
    verified: Check


@dataclass(frozen=True)
class Validated:
    """What was found on the restored server, and when."""

    checks: tuple[Check, ...]
    validated_at: datetime
    healthy_at: datetime | None
    """When the application's first query had succeeded; None where it did not."""


def steps_of(around: Surroundings, execution: Execution, run_id: str | None) -> StepRunner:
    """The timer of this execution's steps, with the plan's budgets."""
    budgets = around.plan.budgets(execution.service) if around.plan is not None else {}
    return StepRunner(Journal(around.repository.store, execution.id), budgets, around.clock, around.notes, run_id)


def assess(
    around: Surroundings,
    execution: Execution,
    destination: Path | None,
    run_id: str | None,
    *,
    allow_gap: bool = True,
    backup_id: str | None = None,
) -> Assessment:
    """Step 1: which backup and which of the log, how far that leads, what it will take. Changes nothing.

    An agent that streams the log and has survived its server gets the time to store what it had received.
    """
    with steps_of(around, execution, run_id).step("assess") as tell:
        if await_drained(Log(_store(around, execution)), around.clock) is False:
            around.notes.warning("the agent has received more of the log than it has stored; what it has may be lost")
        assessment = plan_restore(around, execution, destination, backup_id)
        if assessment.gap:
            if not allow_gap:
                raise LogGap(assessment.gap, hint="--allow-gap restores up to the hole")
            around.notes.warning(assessment.gap)
        for doubt in (*assessment.doubts, *filter(None, (assessment.others,))):
            around.notes.warning(doubt)
        expected = estimate_steps(around, assessment)
        around.notes.info(expected.told)
        assessment = replace(assessment, estimate=expected)
        point = format_moment(assessment.recovery_point) if assessment.recovery_point else "unknown"
        tell(
            f"backup {assessment.title} ({format_bytes(assessment.raw_bytes)}), {len(assessment.files)} files of "
            f"the log to timeline {assessment.timeline}, recovery point {point}"
        )
    return assessment


def plan_restore(
    around: Surroundings, execution: Execution, destination: Path | None, backup_id: str | None = None
) -> Assessment:
    """What a restore would take; reads the repository only. Raises NotCovered where that backup does not lead there."""
    store = _store(around, execution)
    place = destination or _scratch(around, execution.id) / "data"
    note = target.read_note(place)
    begun_with = note.backup_id if note is not None and note.execution_id == execution.id else None
    covered = coverage.choose(store, execution.target_time, backup_id or begun_with, execution.timeline)
    manifest = covered.manifest
    if backup_id is not None and manifest.backup_id != backup_id:
        raise NotCovered(
            f"the backup {backup_id} is not one of those in {store.url} that lead to what is asked for",
            hint=f"dr backup list {execution.service}",
        )
    log_bytes = sum("." not in name for name in covered.chain.files) * covered.segment_size
    return Assessment(
        execution=execution,
        target=str(place),
        backup_id=manifest.backup_id,
        system_identifier=manifest.system_identifier,
        major=int(manifest.details["major"]),
        files=covered.chain.files,
        log_end=str(covered.chain.end),
        recovery_point=covered.recovery_point,
        gap=covered.gap,
        raw_bytes=sum(backup.raw_bytes for backup in covered.links),
        stored_bytes=sum(backup.stored_bytes for backup in covered.links),
        log_bytes=log_bytes,
        room=room_for(covered.links, log_bytes),
        proven_lsn=covered.proven_lsn,
        doubts=covered.doubts,
        links=tuple(backup.backup_id for backup in covered.links),
        timeline=covered.chain.towards,
        others=covered.others,
    )


def estimate_steps(around: Surroundings, assessment: Assessment) -> RestoreEstimate:
    """How long the steps after the assessment will take, as far as can be told beforehand; reads the repository."""
    execution = assessment.execution
    return estimate_from(
        around.repository.records,
        execution.service,
        _store(around, execution, assessment.system_identifier),
        assessment.backup_id,
        chained=len(assessment.links) > 1,
        raw_bytes=assessment.raw_bytes,
        log_bytes=assessment.log_bytes,
        clock=around.clock,
    )


def _progress(around: Surroundings, assessment: Assessment, step: str, what: str) -> Callable[[int, int], None]:
    """Tells how far a step is, and now and then how long it will still take."""
    left = countdown(assessment.estimate, step, what, around.clock, around.notes.info)

    def progress(done: int, total: int) -> None:
        around.progress(what, done, total)
        left(done, total)

    return progress


def prepare(around: Surroundings, assessment: Assessment, run_id: str | None) -> Assessment:
    """Step 2: the binaries of the same major version, a new empty target with enough room, and the claim on it.

    The repository is told that the backup is being read, so that it does not expire meanwhile.
    """
    place = Path(assessment.target)
    with steps_of(around, assessment.execution, run_id).step("prepare") as tell, target.writing(place):
        binaries = find_binaries(around.settings, assessment.major)
        if scarce := require_space(place, assessment.room):
            around.notes.warning(scarce)
        resumed = target.claim(place, _note(assessment), around.identity)
        store = _store(around, assessment.execution, assessment.system_identifier)
        note_use(store, assessment.execution.id, assessment.backup_id, around.clock)
        # What was noted does not go any more; it, and what it depends on, must not have gone before.
        for backup_id in assessment.links or (assessment.backup_id,):
            read_manifest(store, backup_id)
        tell(f"{place} with PostgreSQL {binaries.version}" + (", claimed before" if resumed else ""))
    return assessment


def restore_latest_backup(around: Surroundings, assessment: Assessment, run_id: str | None) -> RestoredFiles:
    """Step 3: every part fetched, checked and written; then PostgreSQL's own manifest compared with the files.

    After an interruption only the parts that are missing are fetched.
    """
    place = Path(assessment.target)
    with steps_of(around, assessment.execution, run_id).step("restore_latest_backup") as tell, target.writing(place):
        _require_claim(place, assessment)
        target.hold(place, around.identity)
        store = _store(around, assessment.execution, assessment.system_identifier)
        chain = [read_manifest(store, backup_id) for backup_id in assessment.links or (assessment.backup_id,)]
        binaries = find_binaries(around.settings, assessment.major)
        try:
            with renewed(store, assessment.execution.id, assessment.backup_id, around.clock):
                fetched, verified = restore_files(
                    store,
                    chain,
                    place,
                    binaries,
                    identity=around.identity,
                    workers=around.settings.workers,
                    progress=_progress(around, assessment, "restore_latest_backup", "restoring the backup"),
                )
        except (ObjectCorrupt, ObjectMissing) as error:
            error.hint = error.hint or "an earlier backup and the log after it may do: dr restore --backup BACKUP_ID"
            raise
        parts = sum(len(backup.parts) for backup in chain)
        tell(f"{fetched} of {parts} parts fetched, {format_bytes(assessment.raw_bytes)}; {verified.detail}")
    return RestoredFiles(assessment.target, fetched, verified)


def apply_wal(around: Surroundings, assessment: Assessment, files: RestoredFiles, run_id: str | None) -> RestoredServer:
    """Step 4: the server is started on the restored files and replays the log; it runs when this returns."""
    place = Path(files.target)
    with steps_of(around, assessment.execution, run_id).step("apply_wal") as tell, target.writing(place):
        _require_claim(place, assessment)
        target.hold(place, around.identity)
        store = _store(around, assessment.execution, assessment.system_identifier)
        with (
            around.leases.keep_renewed(assessment.execution.id, LEASE),
            renewed(store, assessment.execution.id, assessment.backup_id, around.clock),
        ):
            manifest = read_manifest(store, assessment.backup_id)
            server = start_recovered(
                place,
                find_binaries(around.settings, assessment.major),
                around.leases,
                Log(store, segment_size=int(manifest.details["wal_segment_size"])),
                assessment.files,
                superuser=str(manifest.details["superuser"]),
                owner=assessment.execution.id,
                ttl=LEASE,
                identity=around.identity,
                workers=around.settings.workers,
                clock=around.clock,
                target_time=assessment.execution.target_time,
                target_timeline=_target_timeline(assessment, manifest),
                proven_until=assessment.recovery_point,
                proven_lsn=assessment.proven_lsn,
                progress=_progress(around, assessment, "apply_wal", "applying WAL"),
                folders=(place.parent,) if place.parent == _scratch(around, assessment.execution.id) else (),
            )
        if server.preloaded:
            around.notes.warning(
                f"the source's shared_preload_libraries are loaded ({server.preloaded}): what they do by themselves, "
                "as pg_cron does its jobs, the restored server does too"
            )
        tell(
            f"replayed to {server.replayed_lsn}, last commit "
            f"{format_moment(server.last_commit_at) if server.last_commit_at else 'none'}"
        )
    return server


def validate(
    around: Surroundings, assessment: Assessment, files: RestoredFiles, server: RestoredServer, run_id: str | None
) -> Validated:
    """Step 5: is it the right server, is its data sound, does the application's first query succeed?

    A check that fails is a finding in the result, not an error: the verdict is made of it.
    """
    with steps_of(around, assessment.execution, run_id).step("validate") as tell:
        manifest = read_manifest(
            _store(around, assessment.execution, assessment.system_identifier), assessment.backup_id
        )
        wishes = around.validation_of(assessment.execution.service)
        with around.leases.keep_renewed(assessment.execution.id, LEASE):
            found = postgres_validate.validate(
                server,
                find_binaries(around.settings, assessment.major),
                manifest,
                wishes,
                log_end=_log_end(assessment, manifest),
                note=around.notes.info,
            )
        validated_at = around.clock.wall()
        first = postgres_validate.first_query(server, wishes)
        healthy_at = around.clock.wall() if first.passed else None
        checks = (files.verified, _log_is_whole(assessment), *found, first)
        failed = [check for check in checks if check.passed is not True]
        for check in failed:
            around.notes.warning(f"check {check.name}: {check.detail}")
        tell(f"{len(checks) - len(failed)} of {len(checks)} checks passed")
    return Validated(checks, validated_at, healthy_at)


def discard(around: Surroundings, execution_id: str, server: RestoredServer | None) -> None:
    """End the restored server of an execution whose target lay below the state folder, and remove what it restored."""
    around.leases.end_owner(execution_id)
    if server is not None:
        shutil.rmtree(server.socket, ignore_errors=True)
    scratch = _scratch(around, execution_id)
    shutil.rmtree(scratch, ignore_errors=True)
    target.let_go(scratch / "data")


def _scratch(around: Surroundings, execution_id: str) -> Path:
    return around.settings.state_dir / "restores" / execution_id


def backup_used(around: Surroundings, assessment: Assessment) -> BackupUsed:
    """What a record says of the backup that was restored from."""
    store = _store(around, assessment.execution, assessment.system_identifier)
    manifest = read_manifest(store, assessment.backup_id)
    return BackupUsed(
        backup_id=manifest.backup_id,
        taken_at=manifest.stopped_at,
        manifest_sha256=manifest_sha256(store, assessment.backup_id),
        system_identifier=manifest.system_identifier,
        based_on=list(assessment.links[:-1]),
        raw_bytes=assessment.raw_bytes,
        stored_bytes=assessment.stored_bytes,
        log_files=len(assessment.files),
        log_bytes=assessment.log_bytes,
    )


def _store(around: Surroundings, execution: Execution, system_identifier: str | None = None) -> Store:
    """Where the backups of a cluster lie: once it is assessed that one, whatever is backed up meanwhile."""
    repository = around.repository
    if execution.sandbox is not None:
        repository = repository.sandbox(execution.sandbox)
    service = repository.service(execution.service)
    return service.child(system_identifier) if system_identifier else coverage.newest_system(service)


def _note(assessment: Assessment) -> target.Note:
    return target.Note(assessment.execution.id, assessment.backup_id, assessment.system_identifier)


def _require_claim(place: Path, assessment: Assessment) -> None:
    if target.read_note(place) != _note(assessment):
        raise ExecutionError(
            f"{place} does not hold the restore of execution {assessment.execution.id}",
            hint="its target was removed, or never prepared: start a new restore",
        )


def _log_is_whole(assessment: Assessment) -> Check:
    return Check("log_is_whole", assessment.gap is None, assessment.gap or f"unbroken up to {assessment.log_end}")


def _target_timeline(assessment: Assessment, manifest: Manifest) -> str:
    """As PostgreSQL has it. The backup's own has no number there, since its history may not be stored."""
    if assessment.timeline is None:
        return "latest"
    return "current" if assessment.timeline == manifest.details["timeline"] else str(assessment.timeline)


def _log_end(assessment: Assessment, manifest: Manifest) -> postgres_validate.LogEnd | None:
    """What the replay was to get to; None for a restore to a time, which ends before."""
    if assessment.execution.target_time is not None:
        return None
    return postgres_validate.LogEnd(
        last_segment=Lsn(Lsn.parse(assessment.log_end).value - int(manifest.details["wal_segment_size"])),
        proven=assessment.proven_lsn,
        recovery_point_stated=assessment.recovery_point is not None,
    )
