"""The job `database_restore`: the runbook's steps as ops, which the drill carries out too."""

from dataclasses import replace
from typing import TYPE_CHECKING, cast

import dagster as dg
from pydantic import Field

from assets.values import Assessed, DatabaseLost, FilesRestored, InPlace, ServerRuns, ServerValidated
from assets.work import RESTORE_TAGS, OnFailure, working
from dr_pipelines.plan import Plan
from dr_pipelines.runbooks import catalogue

if TYPE_CHECKING:
    from dr_pipelines.runbooks.database_restore import Surroundings
    from dr_pipelines.runbooks.record import Record

__all__ = [
    "RestoreForm",
    "close_failed_drill",
    "database_restore",
    "execution_id_of",
    "restore_definitions",
    "restore_lost_database",
]


class RestoreForm(dg.Config):
    """What an operator says when launching a restore; it is checked in the first op, before anything is done."""

    service: str = Field(description="The service of the plan that is brought back, such as database.")
    outage_started_at: str = Field(
        description="When the users were hurt, ISO 8601 with zone, such as 2026-03-01T12:00:00Z: the RTO's start."
    )
    target_time: str = Field(
        default="latest",
        description="latest, or the moment to bring the data back to (ISO 8601 with zone): before a deletion, say.",
    )
    timeline: str = Field(
        default="",
        description="The number of PostgreSQL's timeline. Left empty: the one written at target_time, or the newest.",
    )
    target_location: str = Field(
        default="",
        description="An absolute path: a new or empty folder. Left empty: a new folder below the state folder.",
    )
    backup_id: str = Field(
        default="",
        description="The backup to begin with, where the newest is damaged, say. Left empty: the newest that will do.",
    )
    reason: str = Field(description="Why, in a few words; it stands in the record.")
    cutover: bool = Field(
        default=False,
        description="Let the restored server take the lost one's place, once the job answer_approval allows it. It "
        "takes target_location, listen and port.",
    )
    listen: str = Field(default="", description="Of a cutover: the address that the new server listens on.")
    port: int = Field(default=0, description="Of a cutover: the new server's port.")
    address: str = Field(default="", description="Of a cutover: where clients find it, if not at what it listens on.")
    approval_within: str = Field(default="30m", description="Of a cutover: how long the approval is waited for.")
    despite_findings: bool = Field(default=False, description="Of a cutover: also where the validation did not pass.")


@dg.op(description="Which backup, which of the log, how far that leads and what it takes. Changes nothing.")
def assess(context: dg.OpExecutionContext, config: RestoreForm) -> Assessed:
    from dr_pipelines.errors import UsageError
    from dr_pipelines.runbooks import database_restore as runbook
    from dr_pipelines.runbooks.closing import close_failed_restore
    from dr_pipelines.runbooks.handover import WISHES, read_wish
    from dr_pipelines.runbooks.request import begin, read_request

    with working(context, "assess") as work:
        around = work.around
        now = around.clock.wall()
        said = config.model_dump()
        wish = read_wish(around.settings, config.service, **{name: said.pop(name) for name in WISHES})
        request = read_request(**said, plan=around.plan, now=now)
        if wish is not None and request.destination is None:
            raise UsageError("target_location: a server that takes the lost one's place has a place of its own")
        execution = begin(
            around.repository,
            request,
            # A run that goes on with a failed one goes on with its execution.
            execution_id=execution_id_of(context, "restore", _first_run_of(context)),
            now=now,
            requested_by=context.run.tags.get("dr/requested-by", "Dagster"),
            plan_sha256=around.plan.sha256 if around.plan is not None else None,
        )
        work.on_failure = lambda around, error: close_failed_restore(around, execution, error, work.run_id)
        assessment = runbook.assess(around, execution, request.destination, work.run_id, backup_id=request.backup_id)
        assessed = Assessed(assessment, None, wish)
        context.add_output_metadata(
            {
                "execution_id": execution.id,
                "backup_id": assessment.backup_id,
                "target": assessment.target,
                "raw_bytes": assessment.raw_bytes,
                "log_bytes": assessment.log_bytes,
                **_expected(assessed),
            }
        )
    return assessed


@dg.op(description="The same, of what the drill has destroyed.")
def assess_loss(context: dg.OpExecutionContext, lost: DatabaseLost) -> Assessed:
    from dr_pipelines.runbooks import database_restore as runbook

    with working(context, "assess", close_failed_drill(context, lost)) as work:
        assessment = runbook.assess(work.around, lost.lost.execution, None, work.run_id)
        assessed = Assessed(assessment, lost.lost, None)
        context.add_output_metadata(_expected(assessed))
    return assessed


@dg.op(description="PostgreSQL of the same major version, a new and empty target with enough room, claimed.")
def prepare(context: dg.OpExecutionContext, assessed: Assessed) -> Assessed:
    from dr_pipelines.runbooks import database_restore as runbook

    with working(context, "prepare", _close_failed(context, assessed)) as work:
        return replace(assessed, assessment=runbook.prepare(work.around, assessed.assessment, work.run_id))


@dg.op(description="Every part fetched, checked and written; then compared with PostgreSQL's own manifest.")
def restore_latest_backup(context: dg.OpExecutionContext, prepared: Assessed) -> FilesRestored:
    from dr_pipelines.runbooks import database_restore as runbook

    with working(context, "restore_latest_backup", _close_failed(context, prepared)) as work:
        files = runbook.restore_latest_backup(work.around, prepared.assessment, work.run_id)
        context.add_output_metadata({"parts_fetched": files.parts_fetched, "target": files.target})
    return FilesRestored(prepared.assessment, prepared.lost, prepared.wish, files)


@dg.op(description="The server started on the restored files; it replays the log, and runs.")
def apply_wal(context: dg.OpExecutionContext, restored: FilesRestored) -> ServerRuns:
    from dr_pipelines.runbooks import database_restore as runbook

    with working(context, "apply_wal", _close_failed(context, restored)) as work:
        server = runbook.apply_wal(work.around, restored.assessment, restored.files, work.run_id)
        context.add_output_metadata({"replayed_lsn": server.replayed_lsn, "port": server.port})
    return ServerRuns(restored.assessment, restored.lost, restored.wish, restored.files, server)


@dg.op(description="Is it the right server, are its data sound, does the application's first query succeed?")
def validate(context: dg.OpExecutionContext, running: ServerRuns) -> ServerValidated:
    """A restore that is no drill, and no cutover, ends here: with its record, its server left to the operator."""
    from dr_pipelines.processes.postgres import find_binaries
    from dr_pipelines.runbooks import database_restore as runbook
    from dr_pipelines.runbooks.closing import close_restore, how_to_connect

    with working(context, "validate", _close_failed(context, running)) as work:
        assessment, server = running.assessment, running.server
        validated = runbook.validate(work.around, assessment, running.files, server, work.run_id)
        if running.lost is None and running.wish is None:
            record = close_restore(work.around, assessment, server, validated, work.run_id)
            work.report(record)
            tools = find_binaries(work.around.settings, assessment.major).folder
            context.add_output_metadata(how_to_connect(server, tools))
    return ServerValidated(assessment, running.lost, running.wish, running.files, server, validated)


@dg.op(description="Where it was asked for: approved, the old server fenced, the new one in its place, a backup taken.")
def cutover(context: dg.OpExecutionContext, restored: ServerValidated) -> InPlace:
    """A restore that cuts over ends here; it waits for the job `answer_approval`."""
    from dr_pipelines.drills.database import cut_over_drill
    from dr_pipelines.errors import BackupError
    from dr_pipelines.runbooks.cutover import cut_over
    from dr_pipelines.runbooks.cutover_closing import close_cutover, what_is_next
    from dr_pipelines.runbooks.handover import begin_cutover, means_of

    assessment, server, validated, problems = (
        restored.assessment,
        restored.server,
        restored.validated,
        tuple[str, ...](),
    )
    with working(context, "cutover", _close_failed(context, restored)) as work:
        if restored.lost is not None:
            problems = cut_over_drill(work.around, restored.lost, assessment, server, validated, work.run_id)
        elif restored.wish is not None:
            means = means_of(work.around.settings, assessment.execution.service)
            handover = begin_cutover(work.around, assessment, server, validated, means)
            done = cut_over(work.around, handover, restored.wish, means, work.run_id)
            work.report(close_cutover(work.around, handover, done, work.run_id))
            context.add_output_metadata(what_is_next(handover, done))
            if done.backup_problem is not None:
                raise BackupError(
                    f"the cutover stands, and THE NEW SERVER HAS NO BACKUP: {done.backup_problem}",
                    hint="mend that, and re-execute this run from failure, or dr backup full",
                )
    return InPlace(assessment, restored.lost, restored.wish, restored.files, server, validated, problems)


def _expected(assessed: Assessed) -> dict[str, str | float]:
    """What the steps that are left are expected to take, by an estimate, for those who watch the run."""
    expected = assessed.assessment.estimate
    return {"estimate": expected.told, "estimate_seconds": expected.seconds} if expected is not None else {}


def _close_failed(context: dg.OpExecutionContext, value: Assessed) -> OnFailure:
    """What a failed step leaves: a record, and of a drill nothing else; a restore stays as it is and can be resumed."""
    from dr_pipelines.runbooks.closing import close_failed_restore
    from dr_pipelines.runbooks.cutover_closing import close_failed_cutover
    from dr_pipelines.runbooks.handover import begun_cutover, means_of

    if value.lost is not None:
        return close_failed_drill(context, DatabaseLost(value.lost))
    execution, wish = value.assessment.execution, value.wish

    def close(around: "Surroundings", error: str) -> "Record":
        handover = begun_cutover(around, execution.id) if wish is not None else None
        if wish is None or handover is None:
            return close_failed_restore(around, execution, error, context.run_id)
        means = means_of(around.settings, execution.service)
        return close_failed_cutover(around, handover, wish, means, error, context.run_id)

    return close


def close_failed_drill(context: dg.OpExecutionContext, loss: DatabaseLost) -> OnFailure:
    """What a failed step of a drill does: the record says so, and the drill is ended."""
    from dr_pipelines.drills.database import close_failed

    return lambda around, error: close_failed(around, loss.lost, error, context.run_id)


def _first_run_of(context: dg.OpExecutionContext) -> str:
    return context.run.root_run_id or context.run.tags.get("dagster/root_run_id", context.run_id)


def execution_id_of(context: dg.OpExecutionContext, kind: str, run_id: str) -> str:
    """An execution's id, derived from the run that it begins with: always the same for that run."""
    from dr_pipelines.errors import ExecutionError
    from dr_pipelines.repository.identifiers import timed_id

    record = context.instance.get_run_record_by_id(run_id)
    if record is None:
        raise ExecutionError(f"the run {run_id}, with which this began, is deleted", hint="launch a new run")
    return timed_id(kind, record.create_timestamp, source=run_id)


@dg.graph(description="Brings a lost PostgreSQL back on a new server, step by step, each timed against its budget.")
def database_restore() -> None:
    cutover(validate(apply_wal(restore_latest_backup(prepare(assess())))))


@dg.graph(description="The runbook's steps, carried out on what the drill has destroyed.")
def restore_lost_database(lost: DatabaseLost) -> InPlace:
    steps = prepare(assess_loss.alias("assess")(lost))
    return cast(InPlace, cutover(validate(apply_wal(restore_latest_backup(steps)))))


def restore_definitions(plan: Plan) -> dg.Definitions:
    """The job. Where the plan has one database, its restores wait for each other; else the target's lock has to do."""
    services = catalogue.database_services(plan)
    job = database_restore.to_job(
        name="database_restore",
        description=database_restore.description,
        executor_def=dg.in_process_executor,
        tags=RESTORE_TAGS | catalogue.tags_of(services, "restore"),
    )
    return dg.Definitions(jobs=[job])
