"""The end of a restore that is no drill: its record, and the restored server handed over to the operator."""

import shlex
import shutil
from datetime import timedelta
from pathlib import Path

from dr_pipelines.engines.postgres import target
from dr_pipelines.engines.postgres.exposure import CLOCKS_APART
from dr_pipelines.engines.postgres.recovery import RestoredServer
from dr_pipelines.errors import RepositoryError
from dr_pipelines.processes.postgres import find_binaries
from dr_pipelines.repository.uses import forget_use
from dr_pipelines.runbooks.database_restore import Assessment, Surroundings, Validated, backup_used
from dr_pipelines.runbooks.execution import Execution, Journal
from dr_pipelines.runbooks.outcome import Loss, Restored, environment, make_record
from dr_pipelines.runbooks.record import Record
from dr_pipelines.timing import format_moment

__all__ = ["BEFORE_A_START", "close_failed_restore", "close_restore", "how_to_connect", "loss_of", "put_record"]

SCENARIO = "a restore for real: the outage's start is what the operator stated, no markers were written before it"
_ISOLATION = "a new server beside the one that was lost; nothing was put in its place"
BEFORE_A_START = (
    "its configuration is that of the server that was lost: see to its port and its archive_command. Its subscriptions "
    "run again too: ALTER SUBSCRIPTION ... DISABLE those that another server still follows, or add "
    "-o '-c max_logical_replication_workers=0' to the start"
)
"""What matters before a restored server is started with its own configuration."""


def close_restore(
    around: Surroundings,
    assessment: Assessment,
    server: RestoredServer,
    validated: Validated,
    run_id: str | None,
    *,
    leave_running: bool = True,
) -> Record:
    """Store the record and let go of the server, which then runs until somebody ends it, or end it.

    Doing it again, after an interruption, stores a further record, which supersedes the first.
    """
    execution = assessment.execution
    version = find_binaries(around.settings, assessment.major).version
    restored = Restored(
        recovery_point=assessment.recovery_point,
        backup=backup_used(around, assessment),
        checks=validated.checks,
        validated_at=validated.validated_at,
        healthy_at=validated.healthy_at,
        server_version=version,
        estimate=assessment.estimate,
    )
    loss = loss_of(assessment, server, validated)
    record = put_record(around, execution, restored, loss, run_id, scenario=SCENARIO, isolation=_ISOLATION)
    _let_go(around, assessment)
    for lease in around.leases.of(execution.id):
        if not leave_running:
            around.leases.end(lease)
        around.leases.release(lease)
    target.release(server.data, server_runs=leave_running)
    if not leave_running:
        shutil.rmtree(server.socket, ignore_errors=True)
    return record


def _let_go(around: Surroundings, assessment: Assessment) -> None:
    """What the restore was reading may expire."""
    store = around.repository.service(assessment.execution.service).child(assessment.system_identifier)
    try:
        forget_use(store, assessment.execution.id)
    except RepositoryError as error:
        around.notes.warning(f"the backup {assessment.backup_id} counts as being read for another day: {error}")


def close_failed_restore(around: Surroundings, execution: Execution, error: str, run_id: str | None) -> Record:
    """A step failed: the record says so, and what was not measured is unverified.

    The target and the journal stay, so that the execution can be resumed; a resume that ends leaves a further record.
    """
    nothing = Loss(None, "not measured: the restore failed", None, None)
    return put_record(
        around, execution, Restored(), nothing, run_id, scenario=SCENARIO, isolation=_ISOLATION, errors=(error,)
    )


def loss_of(assessment: Assessment, server: RestoredServer, validated: Validated) -> Loss:
    """What a restore without markers lost: the outage's start minus what is known to have come back."""
    execution = assessment.execution
    reached_end = any(check.name == "log_replayed_to_its_end" and check.passed for check in validated.checks)
    if execution.target_time is not None:
        recovered_to, how = execution.target_time, "the time that was asked for"
    elif reached_end and assessment.recovery_point is not None:
        recovered_to = max(filter(None, (server.last_commit_at, assessment.recovery_point)))
        how = "the later of the last replayed commit and the proven recovery point, the log being replayed to its end"
    elif server.last_commit_at is not None:
        recovered_to, how = server.last_commit_at, "the last replayed commit"
    else:
        nothing = "not measured: no commit was replayed, and the replay is not known to have got to a recovery point"
        return Loss(None, nothing, None, None)
    if execution.outage_started_at is None:
        return Loss(None, "not measured: the outage's start was not stated", recovered_to, None)
    if recovered_to - validated.validated_at > CLOCKS_APART:
        ahead = "not measured: what came back is dated ahead of this machine's clock, so one of the clocks is wrong"
        return Loss(None, ahead, recovered_to, None)
    return Loss(
        rpo=max(execution.outage_started_at - recovered_to, timedelta(0)),
        method=f"no markers: outage's start minus {how}; 0 where that is later",
        recovered_to=recovered_to,
        rows=None,
    )


def how_to_connect(server: RestoredServer, postgres_bin: Path) -> dict[str, str]:
    """For the operator: the folder, the commands that connect to the restored server and end it, and what is next."""
    control = shlex.join([str(postgres_bin / "pg_ctl"), "-D", str(server.data), "stop"])
    return {
        "data": str(server.data),
        "address": f"127.0.0.1:{server.port}, with the roles and passwords of the server that was lost",
        "psql": f"psql {shlex.quote(server.dsn())}",
        "stop": f"as the user that owns the folder: {control}",
        "before": BEFORE_A_START,
    }


def put_record(
    around: Surroundings,
    execution: Execution,
    restored: Restored,
    loss: Loss,
    run_id: str | None,
    *,
    scenario: str,
    isolation: str,
    errors: tuple[str, ...] = (),
) -> Record:
    """Make the record of an execution and store it, with a copy of the plan that it was held against."""
    record = make_record(
        execution,
        Journal(around.repository.store, execution.id).steps(),
        restored,
        loss,
        around.plan,
        environment(around.repository.store.url, restored.server_version, isolation),
        ended_at=around.clock.wall(),
        run_id=run_id,
        scenario=scenario,
        errors=errors,
    )
    around.repository.records.put(record.document())
    if around.plan is not None:
        around.repository.remember_plan(around.plan.text)
    around.notes.info(
        f"record {record.record_id}: {record.verdict}"
        + (f", recovered to {format_moment(loss.recovered_to)}" if loss.recovered_to else "")
    )
    return record
