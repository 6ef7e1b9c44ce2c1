"""What a crash of the host leaves behind, cleared before Dagster is started again: `python -m assets.clearing`.

A run whose process was killed together with Dagster's daemon stays 'started' for ever, holds its slot of each pool, and
lets the next run of its service wait for good. Each such run is reported failed, so that it can be re-executed from
failure. A run whose process is alive (a drill that somebody started from the command line) is left alone.
"""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
from dagster import DagsterEventType

from dr_pipelines.errors import DrError
from dr_pipelines.processes import proc
from dr_pipelines.processes.leases import Leases
from dr_pipelines.settings import load_settings

__all__ = ["clear"]

_UNFINISHED = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
_TOLERANCE = timedelta(seconds=2)
"""Between the kernel's count of ticks and the clock that stamps events."""


def clear(instance: dg.DagsterInstance) -> tuple[str, ...]:
    """Report every unfinished run whose process is gone, free its slots; returns the runs' ids.

    To be called where no daemon and no webserver works with this home: what they were about to launch counts as gone.
    """
    cleared = []
    for run in instance.get_runs(filters=dg.RunsFilter(statuses=_UNFINISHED)):
        if _is_alive(instance, run.run_id):
            continue
        why = "its process is gone: the host or Dagster was stopped while it ran"
        if run.status is dg.DagsterRunStatus.CANCELING:
            instance.report_run_canceled(run, why)
        else:
            instance.report_run_failed(run, why)
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
        cleared.append(run.run_id)
    return tuple(cleared)


def _is_alive(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Whether the process that last told of itself in the run's log still runs."""
    entries = instance.all_logs(run_id, of_type=DagsterEventType.ENGINE_EVENT)
    for entry in reversed(entries):
        event = entry.dagster_event
        pid = event.engine_event_data.metadata.get("pid") if event is not None else None
        if pid is not None and str(pid.value).isdigit():
            return _same_process(int(str(pid.value)), datetime.fromtimestamp(entry.timestamp, UTC))
    return False


def _same_process(pid: int, seen_at: datetime) -> bool:
    """Whether the process with this id is the one that had it then: process ids are used again."""
    process = proc.look_up(pid)
    if process is None or process.dead:
        return False
    booted_at = next(
        int(line.split()[1]) for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime")
    )
    started_at = datetime.fromtimestamp(booted_at + process.start_ticks / _TICKS, UTC)
    return started_at <= seen_at + _TOLERANCE


_TICKS = 100
"""Of /proc, per second: the same on every Linux that Python runs on."""


def main() -> int:
    """Clear the home that the settings name, and end what expired in the state folder."""
    try:
        from dr_pipelines.runbooks.dagster_home import prepare_home

        settings = load_settings()
        with dg.DagsterInstance.from_config(str(prepare_home(settings))) as instance:
            for run_id in clear(instance):
                print(f"run {run_id}: reported failed, its process is gone")
        for lease in Leases(settings.state_dir).reap():
            print(f"{lease.kind} of {lease.owner}: ended, nobody had renewed its lease")
    except DrError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
