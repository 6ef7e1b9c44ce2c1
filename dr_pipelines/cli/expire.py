"""`dr backup expire`: what need not be kept any longer goes."""

from typing import Annotated

import typer
from rich.console import Console

from dr_pipelines.cli.frame import Exit, Json, Terminal, table
from dr_pipelines.cli.opening import opened
from dr_pipelines.engines.postgres.retention import Expiry
from dr_pipelines.errors import ConfigurationError, UsageError
from dr_pipelines.plan import Plan, Retention
from dr_pipelines.runbooks.retention import expire_service
from dr_pipelines.timing import format_bytes, format_moment, parse_duration

__all__ = ["expire"]


def expire(
    service: Annotated[
        str | None, typer.Argument(metavar="SERVICE", help="One service; all that the plan has a retention for.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and remove nothing.")] = False,
    keep: Annotated[
        int | None, typer.Option("--keep", metavar="N", help="Keep the newest N full backups, instead of the plan's.")
    ] = None,
    keep_for: Annotated[
        str | None,
        typer.Option(
            "--keep-for", metavar="30d", help="Keep what leads to any moment of so long, instead of the plan's."
        ),
    ] = None,
    as_json: Json = False,
) -> int:
    """Remove the backups that the plan's retention does not keep, and the log that only they needed.

    The newest good backup never goes, nor what a backup that stays needs to be restored to any time up to now, nor what
    a restore is reading. Says what goes, why the rest stays, and the room that it frees.
    """
    terminal = Terminal(as_json=as_json)
    asked = _asked(keep, keep_for)
    if asked is not None and service is None:
        raise UsageError("--keep and --keep-for are for one service", hint="dr backup expire SERVICE --keep N")
    with opened(terminal, needs_plan=asked is None) as around:
        names = _services(around.plan) if service is None else (service,)
        if service is not None and around.plan is not None and service not in around.repository.services():
            around.plan.require_database(service)
        found = [expire_service(around, name, asked, dry_run=dry_run) for name in names]
    document = {"dry_run": dry_run, "expiries": [_described(expiry) for expiry in found]}
    terminal.result(document, lambda console: _show(console, found, dry_run=dry_run))
    return Exit.DONE


def _asked(keep: int | None, keep_for: str | None) -> Retention | None:
    if keep is None and keep_for is None:
        return None
    if keep is not None and keep < 1:
        raise UsageError(f"--keep {keep} would leave nothing to restore from", hint="give 1 or more")
    try:
        span = parse_duration(keep_for) if keep_for is not None else None
    except ValueError as error:
        raise UsageError(f"--keep-for: {error}") from None
    if span is not None and not span:
        raise UsageError(f"--keep-for {keep_for} is no time at all", hint='give a duration such as "30d"')
    return Retention(keep=keep, keep_for=span)


def _services(plan: Plan | None) -> tuple[str, ...]:
    entries = [entry for entry in plan.services if entry.engine == "postgres"] if plan is not None else []
    names = tuple(entry.name for entry in entries if entry.backup is not None and entry.backup.retention is not None)
    if not names:
        raise ConfigurationError(
            "the plan has no retention for any database, so no backup goes",
            hint="services.NAME.backup.retention: {keep: 7, keep_for: 30d}",
        )
    return names


def _described(expiry: Expiry) -> dict[str, object]:
    span = expiry.retention.keep_for
    return {
        "service": expiry.service,
        "retention": {
            "keep": expiry.retention.keep,
            "keep_for_seconds": span.total_seconds() if span is not None else None,
        },
        "backups": [
            {
                "backup_id": judged.backup.backup_id,
                "system_identifier": judged.backup.system_identifier,
                "ended_at": judged.backup.ended_at,
                "stays": judged.stays,
                "why": judged.why,
                "problem": judged.backup.problem,
                "stored_bytes": expiry.stored_bytes[judged.backup.backup_id],
            }
            for judged in expiry.backups
        ],
        "log_files": expiry.log_files,
        "log_bytes": expiry.log_bytes,
        "log": [
            {"system_identifier": system, "first": files[0].name, "last": files[-1].name, "files": len(files)}
            for system, files in expiry.log.items()
        ],
        "incomplete": list(expiry.leftovers),
        "freed_bytes": expiry.backup_bytes + expiry.log_bytes,
    }


def _show(console: Console, found: list[Expiry], *, dry_run: bool) -> None:
    for expiry in found:
        console.print(f"{expiry.service}, kept: {expiry.retention}")
        rows = [
            (
                judged.backup.backup_id,
                format_moment(judged.backup.ended_at)[:19] + "Z" if judged.backup.ended_at else "",
                format_bytes(expiry.stored_bytes[judged.backup.backup_id]),
                "stays" if judged.stays else "goes",
                judged.why,
            )
            for judged in expiry.backups
        ]
        console.print(table("backup", "ended", "stored", "", "why", rows=rows) if rows else "no backups")
        for backup_id in expiry.leftovers:
            console.print(f"{backup_id}: interrupted; what it left goes" + (", unless it is being made now" * dry_run))
        for files in expiry.log.values():
            console.print(f"log: {len(files)} files go, {files[0].name} to {files[-1].name}")
        would = "would free" if dry_run else "freed"
        console.print(f"{would} {format_bytes(expiry.backup_bytes + expiry.log_bytes)}")
    if dry_run:
        console.print("nothing was removed: this was a dry run")
