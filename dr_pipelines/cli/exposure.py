"""`dr exposure`: what would be lost at this moment."""

from typing import Annotated

import typer
from rich.console import Console

from dr_pipelines.cli.frame import Exit, Json, Terminal, table
from dr_pipelines.cli.opening import opened
from dr_pipelines.cli.services import backed_up_services
from dr_pipelines.engines.postgres.exposure import Exposure, read_exposure
from dr_pipelines.engines.verdict import Verdict
from dr_pipelines.errors import UsageError
from dr_pipelines.timing import format_duration, format_moment

__all__ = ["exposure"]


def exposure(
    service: Annotated[str | None, typer.Argument(metavar="SERVICE", help="One service; all where left out.")] = None,
    as_json: Json = False,
) -> int:
    """Say what would be lost if a database's host were gone now: recovery point, exposure, and the RPO beside it.

    Exit code 0 where every exposure is known and within its RPO, else 3.
    """
    terminal = Terminal(as_json=as_json)
    found = []
    with opened(terminal) as around:
        for name in backed_up_services(around, service):
            rpo = None
            if around.plan is not None and any(entry.name == name for entry in around.plan.services):
                rpo = around.plan.objectives(name).rpo
            store = around.repository.service(name)
            found.append(read_exposure(store, name, now=around.clock.wall(), rpo=rpo))
    if not found:
        raise UsageError("neither the plan nor the repository has a service that is backed up")
    terminal.result({"exposures": [_described(entry) for entry in found]}, lambda console: _show(console, found))
    return Exit.DONE if all(entry.verdict is Verdict.MET for entry in found) else Exit.SHORT


def _described(entry: Exposure) -> dict[str, object]:
    return {
        "service": entry.service,
        "measured_at": entry.measured_at,
        "recovery_point": entry.recovery_point,
        "exposure_seconds": entry.exposure.total_seconds() if entry.exposure is not None else None,
        "unknown_since": entry.unknown_since,
        "rpo_objective_seconds": entry.rpo.total_seconds() if entry.rpo is not None else None,
        "verdict": entry.verdict,
        "newest_backup_id": entry.newest_backup_id,
        "newest_backup_at": entry.newest_backup_at,
        "newest_segment": entry.newest_segment,
        "heartbeat_at": entry.heartbeat_at,
        "problem": entry.problem,
    }


def _exposed(entry: Exposure) -> str:
    if entry.unknown_since is None:
        return format_duration(entry.exposure) if entry.exposure is not None else "unknown"
    known = f"at least {format_duration(entry.exposure)}, " if entry.exposure is not None else ""
    return f"{known}unknown since {format_moment(entry.unknown_since)}"


def _show(console: Console, found: list[Exposure]) -> None:
    rows = []
    for entry in found:
        rows.append(
            (
                entry.service,
                _exposed(entry),
                format_duration(entry.rpo) if entry.rpo is not None else "none promised",
                entry.verdict.value,
                format_moment(entry.recovery_point) if entry.recovery_point else "none",
                entry.newest_backup_id or "none",
                entry.newest_segment or "none",
            )
        )
    columns = ("service", "exposure", "RPO", "verdict", "recovery point", "newest backup", "newest log segment")
    console.print(table(*columns, rows=rows), soft_wrap=False)
    for entry in found:
        if entry.problem:
            console.print(f"{entry.service}: {entry.problem}")
