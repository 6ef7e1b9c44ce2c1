"""`dr restore`: bring a database back from the repository alone, in this process. No Dagster, no plan file needed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dr_pipelines.cli.cutover import carry_out_cutover
from dr_pipelines.cli.estimate import estimate, refuse_early
from dr_pipelines.cli.frame import Exit, Json, Terminal
from dr_pipelines.cli.opening import opened
from dr_pipelines.cli.services import who_asks
from dr_pipelines.engines.postgres import target as targets
from dr_pipelines.engines.postgres.connection import connect
from dr_pipelines.engines.postgres.recovery import RestoredServer
from dr_pipelines.engines.verdict import Verdict
from dr_pipelines.errors import DrError, ExecutionError, Locked, RepositoryError, UsageError
from dr_pipelines.processes.identity import open_folder
from dr_pipelines.processes.postgres import find_binaries
from dr_pipelines.reports.table import render_record
from dr_pipelines.repository.folder import FolderStore
from dr_pipelines.repository.identifiers import timed_id
from dr_pipelines.repository.overlay import Overlay
from dr_pipelines.repository.probe import check_writable
from dr_pipelines.repository.repository import Repository
from dr_pipelines.runbooks.closing import BEFORE_A_START, close_failed_restore, close_restore, how_to_connect
from dr_pipelines.runbooks.database_restore import (
    Assessment,
    Surroundings,
    Validated,
    apply_wal,
    assess,
    prepare,
    restore_latest_backup,
    validate,
)
from dr_pipelines.runbooks.execution import Execution, Journal
from dr_pipelines.runbooks.handover import Wish, read_wish
from dr_pipelines.runbooks.record import Record
from dr_pipelines.runbooks.request import RestoreRequest, begin, read_request
from dr_pipelines.timing import format_moment

__all__ = ["restore"]

JOURNALS = "journals"
"""Below the state folder: what is written of a restore whose repository can only be read."""
_CALLED = {
    "target_time": "--to",
    "timeline": "--timeline",
    "outage_started_at": "--outage-start",
    "reason": "--reason",
}


def restore(
    service: Annotated[str, typer.Argument(metavar="SERVICE", help="The service to bring back.")],
    to: Annotated[str, typer.Option("--to", metavar="latest|TIME", help="A time is ISO 8601 with zone.")] = "latest",
    timeline: Annotated[
        str,
        typer.Option(
            "--timeline", metavar="N", help="Which of PostgreSQL's timelines; else the one written then, or the newest."
        ),
    ] = "",
    target: Annotated[
        str | None,
        typer.Option("--target", metavar="DIR", help="A new or empty folder; may be left out in a dry run."),
    ] = None,
    start: Annotated[bool, typer.Option("--start", help="Leave the restored server running.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    outage_start: Annotated[
        str | None,
        typer.Option("--outage-start", metavar="TIME", help="Since when users are hurt; the RTO counts from it."),
    ] = None,
    reason: Annotated[str, typer.Option("--reason", help="Why; it stands in the record.")] = "dr restore, by hand",
    allow_gap: Annotated[bool, typer.Option("--allow-gap", help="Where the log has a hole, restore up to it.")] = False,
    backup: Annotated[
        str,
        typer.Option("--backup", metavar="BACKUP_ID", help="Begin with this one; else the newest that will do."),
    ] = "",
    cutover: Annotated[
        bool, typer.Option("--cutover", help="Let it take the lost server's place, once dr approve allows it.")
    ] = False,
    listen: Annotated[str, typer.Option("--listen", metavar="ADDRESS", help="What the new server listens on.")] = "",
    port: Annotated[int, typer.Option("--port", metavar="N", help="The new server's port.", show_default=False)] = 0,
    address: Annotated[
        str,
        typer.Option("--address", metavar="HOST", help="Where clients find it, if not at what it listens on."),
    ] = "",
    approval_within: Annotated[
        str, typer.Option("--approval-within", metavar="DURATION", help="How long the approval is waited for.")
    ] = "30m",
    despite_findings: Annotated[
        bool, typer.Option("--despite-findings", help="Cut over also where the validation did not pass.")
    ] = False,
    from_url: Annotated[
        str | None, typer.Option("--from", metavar="URL", help="The repository; DR_REPOSITORY where left out.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Restore a database into a new folder, start it, replay the log, and validate it.

    Takes the repository and PostgreSQL of the same major version, nothing else. Afterwards the server is stopped,
    unless --start is given. Interrupted, the same command goes on where it was.

    With --cutover it takes the lost server's place: after an approval the old server is fenced, the new one started
    in production, its clients led there, and a backup taken (docs/cutover.md).

    Exit code 0 where the service is back and RTO, RPO and integrity are met; 3 where it is back and one of them is
    missed or unverified, which RTO and RPO are without --outage-start; 1 where the restore failed; 2 where it was
    refused and nothing was done.
    """
    terminal = Terminal(as_json=as_json)
    if target is not None and not target.strip():
        raise UsageError("--target is empty", hint="give a new or empty folder for the data")
    if target is None and not dry_run:
        raise UsageError(
            "--target is missing", hint="a new or empty folder for the data, such as /var/lib/restored/data"
        )
    with opened(terminal, repository=from_url, needs_plan=False) as around:
        wish = read_wish(
            around.settings,
            service,
            cutover=cutover,
            listen=listen,
            port=port,
            address=address,
            approval_within=approval_within,
            despite_findings=despite_findings,
        )
        request = read_request(
            service=service,
            outage_started_at=outage_start,
            target_time=to,
            target_location=str(Path(target).absolute()) if target else "",
            backup_id=backup,
            reason=reason,
            plan=around.plan,
            now=around.clock.wall(),
            timeline=timeline,
            called=_CALLED,
        )
        if dry_run:
            found = estimate(around, request, allow_gap=allow_gap)
            terminal.result(found.document(), found.show)
            return Exit.DONE
        done = _restore(around, request, wish, allow_gap=allow_gap, start=start)
        document = {"record": done.record.document(), "server": done.handed_over}
        terminal.result(document, lambda console: _show(console, done))
        if done.problem is not None:
            terminal.note(f"dr: {done.problem}")
            return Exit.FAILED
        return Exit.DONE if done.record.verdict is Verdict.MET else Exit.SHORT


@dataclass(frozen=True)
class _Done:
    record: Record
    handed_over: dict[str, str]
    """What the operator needs to know of the server: how it is reached and ended, or started."""
    problem: str | None = None
    """What failed though the service is back."""


def _restore(
    around: Surroundings, request: RestoreRequest, wish: Wish | None, *, allow_gap: bool, start: bool
) -> _Done:
    around, execution = _begin(around, request)
    if wish is not None:
        return _restore_and_cut_over(around, request, execution, wish, allow_gap=allow_gap)
    with _closing(around, execution):
        assessment, server, validated = _carry_out(around, request, execution, allow_gap=allow_gap)
        binaries = find_binaries(around.settings, assessment.major)
        if not start:
            with connect(server.dsn()) as connection:
                connection.execute("CHECKPOINT")  # so that the stop, which is killed after a while, is quick
        record = close_restore(around, assessment, server, validated, None, leave_running=start)
    if start:
        return _Done(record, how_to_connect(server, binaries.folder))
    place = server.data
    return _Done(
        record,
        {
            "data": str(place),
            "start": f"as the user that owns the folder: {binaries.folder / 'pg_ctl'} -D {place} -l {place}.log start",
            "before": BEFORE_A_START,
        },
    )


def _restore_and_cut_over(
    around: Surroundings, request: RestoreRequest, execution: Execution, wish: Wish, *, allow_gap: bool
) -> _Done:
    def restore() -> tuple[Assessment, RestoredServer, Validated]:
        with _closing(around, execution):
            return _carry_out(around, request, execution, allow_gap=allow_gap)

    record, done, said = carry_out_cutover(around, execution, wish, restore, lambda: _end_own(around, execution))
    problem = f"the new server has NO BACKUP: {done.backup_problem}" if done.backup_problem else None
    return _Done(record, said, problem)


def _carry_out(
    around: Surroundings, request: RestoreRequest, execution: Execution, *, allow_gap: bool
) -> tuple[Assessment, RestoredServer, Validated]:
    assessment = assess(around, execution, request.destination, None, allow_gap=allow_gap, backup_id=request.backup_id)
    assessment = prepare(around, assessment, None)
    files = restore_latest_backup(around, assessment, None)
    server = apply_wal(around, assessment, files, None)
    return assessment, server, validate(around, assessment, files, server, None)


def _begin(around: Surroundings, request: RestoreRequest) -> tuple[Surroundings, Execution]:
    """The execution, begun now or gone on with, and surroundings whose repository can be written to."""
    assert request.destination is not None
    now = around.clock.wall()
    if targets.read_note(request.destination) is not None:
        targets.hold(request.destination, around.identity)
    around = _writable(around)
    earlier = _interrupted(around, request.destination)
    if earlier is not None:
        around.notes.info(f"going on with {earlier.id}, which began at {format_moment(earlier.started_at)}")
        # The outage's start is stated once.
        if request.outage_started_at is None:
            request = replace(request, outage_started_at=earlier.outage_started_at)
    else:
        _refuse(around, request)
    execution = begin(
        around.repository,
        request,
        execution_id=earlier.id if earlier is not None else timed_id("restore", now),
        now=now,
        requested_by=who_asks(),
        plan_sha256=around.plan.sha256 if around.plan is not None else None,
        called=_CALLED,
    )
    return around, execution


def _refuse(around: Surroundings, request: RestoreRequest) -> None:
    """Raise what refuses the restore, before anything is written; what makes it fail is the execution's to find."""
    try:
        refuse_early(around, request, allow_gap=True)
    except DrError as error:
        if error.exit_code == Exit.USAGE:
            raise


def _writable(around: Surroundings) -> Surroundings:
    """As they are, or, where the repository can only be read, with journal and record below the state folder."""
    try:
        check_writable(around.repository.store)
    except RepositoryError as error:
        if error.retryable:
            raise
        folder = open_folder(around.settings.state_dir / JOURNALS)
        around.notes.warning(f"the repository cannot be written to, the record goes to {folder}: {error}")
        repository = around.repository
        overlay = Overlay(repository.store, FolderStore(folder))
        repository = Repository(overlay, repository.format_version, repository.id)
        return replace(around, repository=repository)
    return around


def _interrupted(around: Surroundings, place: Path) -> Execution | None:
    """The execution whose unfinished restore lies in the target, where the journal knows it."""
    note = targets.read_note(place)
    if note is None:
        return None
    try:
        return Journal(around.repository.store, note.execution_id).execution()
    except ExecutionError:
        return None


@contextmanager
def _closing(around: Surroundings, execution: Execution) -> Iterator[None]:
    """Where the body fails, leave a record that says so, and no server."""
    try:
        yield
    except BaseException as error:
        _end_own(around, execution)
        # Refused before anything was done, or somebody else is at it; interrupted, it will be gone on with.
        if isinstance(error, Exception) and not (
            isinstance(error, Locked) or (isinstance(error, DrError) and error.exit_code == Exit.USAGE)
        ):
            try:
                close_failed_restore(around, execution, str(error), None)
            except DrError as further:
                around.notes.warning(f"of this failure no record could be left: {further}")
        raise


def _end_own(around: Surroundings, execution: Execution) -> None:
    """End what this process started of the execution; another may be at work on it."""
    for lease in around.leases.of(execution.id):
        if lease.holder_pid == os.getpid():
            around.leases.end(lease)


def _show(console: Console, done: _Done) -> None:
    render_record(done.record, console)
    for name, value in done.handed_over.items():
        console.print(f"{name}: {value}")
