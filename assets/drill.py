"""The job `database_drill`: a database is made, backed up, destroyed and brought back, and all of it measured."""

import dagster as dg
from pydantic import Field

from assets.restore import close_failed_drill, execution_id_of, restore_lost_database
from assets.values import DatabaseLost, InPlace, StageSet
from assets.work import working
from dr_pipelines.plan import Plan
from dr_pipelines.runbooks import catalogue

__all__ = ["DrillForm", "database_drill", "drill_definitions"]


class DrillForm(dg.Config):
    """How the drill is set up; all of it may be left as it is."""

    service: str = Field(default="database", description="The service of the plan whose promises are measured.")
    size_bytes: int = Field(default=50_000_000, description="How much data the database is loaded with, in bytes.")
    writers: int = Field(default=3, description="How many writers keep it busy, 1 to 32.")
    rate: float = Field(default=25.0, description="Rows a second that each writer writes.")
    archive_timeout: str = Field(
        default="10s", description="The longest that a log segment stays open: bounds what is lost. Such as 10s or 1m."
    )
    log: str = Field(
        default="archive",
        description="How the log leaves the host: archive; stream (the agent is lost with the host); synchronous (the "
        "agent is on a host that survives, and commits wait for it).",
    )
    seed: int | None = Field(default=None, description="Draws the moment of the loss; left empty: any, and it is told.")
    reason: str = Field(default="drill", description="Why, in a few words; it stands in the record.")
    major: int | None = Field(default=None, description="PostgreSQL's major version; left empty: the newest there is.")
    keep: bool = Field(default=False, description="Leave the drill's servers, folders and backups in place.")
    cutover: bool = Field(
        default=True,
        description="Let the restored server take the lost one's place, and an application find it by itself.",
    )
    approve_by_hand: bool = Field(
        default=False, description="Wait for the job answer_approval; the drill itself approves otherwise."
    )
    execution_id: str | None = Field(default=None, description="The execution's id, where the caller has chosen it.")


@dg.op(description="A PostgreSQL of the drill's own, loaded, archiving, backed up, and under write load.")
def set_the_stage(context: dg.OpExecutionContext, config: DrillForm) -> StageSet:
    from dr_pipelines.drills.database import end_drill
    from dr_pipelines.drills.database import set_the_stage as carry_out
    from dr_pipelines.drills.options import read_options

    # What a killed run had begun is ended with the drills that nobody goes on with; a new stage gets a name of its own.
    again = context.run.parent_run_id is not None
    with working(context, "set_the_stage", create=True) as work:
        chosen = None if again else config.execution_id
        execution_id = chosen or execution_id_of(context, "drill", context.run_id)
        options = read_options(
            **config.model_dump(exclude={"execution_id"}),
            requested_by=context.run.tags.get("dr/requested-by", "Dagster"),
            plan=work.around.plan,
        )
        work.on_failure = lambda around, error: end_drill(around, execution_id, None, keep=options.keep)
        staged = carry_out(work.around, options, execution_id)
        context.add_output_metadata({"execution_id": execution_id, "backup_id": staged.backup_id, "seed": options.seed})
    return StageSet(staged)


@dg.op(description="The recovery point is told; then every process of the host is killed and its data are deleted.")
def lose_database(context: dg.OpExecutionContext, stage: StageSet) -> DatabaseLost:
    from dr_pipelines.drills.database import end_drill
    from dr_pipelines.drills.database import lose_database as carry_out
    from dr_pipelines.timing import format_moment

    staged = stage.staged
    with working(context, "lose_database") as work:
        work.on_failure = lambda around, error: end_drill(around, staged.execution_id, None, keep=staged.options.keep)
        lost = carry_out(work.around, staged)
        started = lost.execution.outage_started_at
        context.add_output_metadata(
            {
                "outage_started_at": format_moment(started) if started else "unknown",
                "recovery_point": format_moment(lost.recovery_point) if lost.recovery_point else "unknown",
            }
        )
    return DatabaseLost(lost)


@dg.op(description="The writers' notes are compared with what came back; the record is stored, the drill is ended.")
def measure(context: dg.OpExecutionContext, loss: DatabaseLost, restored: InPlace) -> None:
    from dr_pipelines.drills.database import measure_drill

    with working(context, "measure", close_failed_drill(context, loss)) as work:
        record = measure_drill(
            work.around,
            loss.lost,
            restored.assessment,
            restored.server,
            restored.validated,
            work.run_id,
            errors=restored.problems,
        )
        work.report(record)
        context.add_output_metadata({"record_id": record.record_id, "verdict": str(record.verdict)})


@dg.graph(description="Loses a database and brings it back, timed: the measured RTO and RPO beside the promised ones.")
def database_drill() -> None:
    loss = lose_database(set_the_stage())
    measure(loss, restore_lost_database.alias("runbook")(loss))


def drill_definitions(plan: Plan) -> dg.Definitions:
    """The job."""
    job = database_drill.to_job(
        name="database_drill",
        description=database_drill.description,
        executor_def=dg.in_process_executor,
        tags={"dagster/max_retries": "0"} | catalogue.tags_of(catalogue.database_services(plan), "drill"),
    )
    return dg.Definitions(jobs=[job])
