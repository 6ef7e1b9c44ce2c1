"""`dr backup`: make one, list them, read one back; `expire` has a file of its own."""

from collections.abc import Callable
from typing import Annotated, Literal

import typer
from rich.console import Console

from dr_pipelines.cli.expire import expire
from dr_pipelines.cli.frame import Exit, Json, Terminal, table
from dr_pipelines.cli.opening import opened
from dr_pipelines.cli.services import backed_up_services
from dr_pipelines.engines.postgres.backup import BackupResult
from dr_pipelines.engines.postgres.coverage import systems
from dr_pipelines.engines.postgres.details import look_at_backups
from dr_pipelines.engines.postgres.verify import Verification, verify
from dr_pipelines.engines.verdict import Verdict, judge_checks
from dr_pipelines.errors import ObjectMissing, RestoreError
from dr_pipelines.plan import load_plan
from dr_pipelines.repository.chains import chain_of
from dr_pipelines.repository.manifest import BackupSurvey, Manifest, read_manifest
from dr_pipelines.repository.store import Store
from dr_pipelines.runbooks.backups import back_up, require_dsn, verify_newest
from dr_pipelines.runbooks.database_restore import Surroundings
from dr_pipelines.settings import load_settings
from dr_pipelines.timing import format_bytes, format_duration, format_moment

__all__ = ["app"]

app = typer.Typer(help="Make backups, list them, read them back, let old ones go.", no_args_is_help=True)
app.command(
    "expire", short_help="Let go what need not be kept.", epilog="Example: dr backup expire database --dry-run"
)(expire)

ServiceName = Annotated[str, typer.Argument(metavar="SERVICE", help="A PostgreSQL service of the plan.")]
AnyService = Annotated[str | None, typer.Argument(metavar="SERVICE", help="One service; all where left out.")]
BackupId = Annotated[str | None, typer.Argument(metavar="BACKUP_ID", help="One backup; the newest where left out.")]

_MARKS = {True: "passed", False: "FAILED", None: "not checked"}


Create = Annotated[
    bool, typer.Option("--create", help="Make the empty place that DR_REPOSITORY names a repository first.")
]


@app.command(short_help="Make a full one.", epilog="Example: dr backup full database")
def full(service: ServiceName, create: Create = False, as_json: Json = False) -> int:
    """Make a full backup of a service's server, which DR_DSN__<SERVICE> names.

    Returns when the backup is complete in the repository, with the log that it needs. An empty place is refused unless
    --create is given: it may be where a disk is not mounted.
    """
    return _make(service, "full", create=create, as_json=as_json)


@app.command(short_help="Make one of what changed.", epilog="Example: dr backup incremental database")
def incremental(service: ServiceName, create: Create = False, as_json: Json = False) -> int:
    """Make a backup of what changed since the newest one, on which it is based.

    A full one is made instead, and the reason told, where there is none to base it on, where the newest one's chain is
    broken or has as many incremental ones as the plan's full_every says, and where the server refuses it. It takes
    PostgreSQL 17 and summarize_wal = on: otherwise nothing is made, exit code 2.
    """
    return _make(service, "incremental", create=create, as_json=as_json)


def _make(service: str, kind: Literal["full", "incremental"], *, create: bool, as_json: bool) -> int:
    terminal = Terminal(as_json=as_json)
    # Before anything is made.
    settings = load_settings()
    if settings.has_plan:
        load_plan(settings.plan).require_database(service)
    require_dsn(settings, service)
    with opened(terminal, create=create) as around:
        if around.plan is not None:
            around.plan.require_database(service)
        taken = back_up(around, service, kind)
    terminal.result(_taken(taken), lambda console: _show_taken(console, taken))
    return Exit.DONE


def _taken(taken: BackupResult) -> dict[str, object]:
    return _described(taken.manifest) | {
        "seconds": taken.duration.total_seconds(),
        "waited_for_log_seconds": taken.waited_for_log.total_seconds(),
        "removed_incomplete": list(taken.removed_incomplete),
        "instead": taken.instead,
    }


def _show_taken(console: Console, taken: BackupResult) -> None:
    manifest = taken.manifest
    console.print(
        f"{manifest.backup_id}: {format_bytes(manifest.raw_bytes)} as {format_bytes(manifest.stored_bytes)} in "
        f"{len(manifest.parts)} parts, {format_duration(taken.duration)}, "
        f"of which {format_duration(taken.waited_for_log)} for the log"
    )


def _described(manifest: Manifest) -> dict[str, object]:
    return {
        "service": manifest.service,
        "backup_id": manifest.backup_id,
        "state": "complete",
        "kind": manifest.kind,
        "parent": manifest.parent,
        "system_identifier": manifest.system_identifier,
        "server_version": manifest.server_version,
        "timeline": manifest.details.get("timeline"),
        "started_at": format_moment(manifest.started_at),
        "stopped_at": format_moment(manifest.stopped_at),
        "raw_bytes": manifest.raw_bytes,
        "stored_bytes": manifest.stored_bytes,
        "parts": len(manifest.parts),
    }


@app.command("list", short_help="What there is.", epilog="Example: dr backup list database")
def list_(service: AnyService = None, as_json: Json = False) -> int:
    """List backups, newest first; also what was interrupted, and what is damaged."""
    terminal = Terminal(as_json=as_json)
    with opened(terminal, needs_plan=False) as around:
        found = [
            entry
            for name in backed_up_services(around, service)
            for system in systems(around.repository.service(name))
            for entry in _survey(name, system, around.repository.service(name).child(system))
        ]
    found.sort(key=lambda entry: str(entry["backup_id"]), reverse=True)
    terminal.result({"backups": found}, lambda console: _show_list(console, found))
    return Exit.DONE


def _survey(service: str, system: str, store: Store) -> list[dict[str, object]]:
    survey = look_at_backups(store)
    bare: dict[str, object] = {"service": service, "system_identifier": system}
    found = [_described(manifest) | _in_chain(manifest, survey) for manifest in survey.complete]
    found += [{**bare, "backup_id": backup_id, "state": "incomplete"} for backup_id in survey.incomplete]
    for backup_id, error in survey.damaged:
        found.append({**bare, "backup_id": backup_id, "state": "damaged", "problem": str(error)})
    return found


def _in_chain(manifest: Manifest, survey: BackupSurvey) -> dict[str, object]:
    chain = chain_of(manifest, survey)
    return {"chain": [each.backup_id for each in chain.backups], "problem": chain.broken}


def _show_list(console: Console, found: list[dict[str, object]]) -> None:
    if not found:
        console.print("no backups")
        return
    rows = []
    for entry in found:
        complete = entry["state"] == "complete"
        rows.append(
            (
                str(entry["service"]),
                str(entry["backup_id"]),
                _position(entry) if complete else "",
                str(entry.get("problem") or entry["state"]),
                str(entry["stopped_at"])[:19] + "Z" if complete else "",
                format_bytes(int(str(entry["raw_bytes"]))) if complete else "",
                format_bytes(int(str(entry["stored_bytes"]))) if complete else "",
                f"PostgreSQL {entry['server_version']}, timeline {entry['timeline']}" if complete else "",
            )
        )
    console.print(
        table("service", "backup", "kind", "state", "ended", "size", "stored", "of", rows=rows), soft_wrap=False
    )


def _position(entry: dict[str, object]) -> str:
    """Its kind, and for an incremental one which of its chain it is: "incremental 2"."""
    chain = entry["chain"]
    assert isinstance(chain, list)
    return str(entry["kind"]) + (f" {len(chain) - 1}" if len(chain) > 1 and not entry["problem"] else "")


@app.command("verify", short_help="Read one back, every hash.", epilog="Example: dr backup verify database")
def verify_(service: AnyService = None, backup_id: BackupId = None, as_json: Json = False) -> int:
    """Read a backup and the log that follows it back, every hash of it; nothing is started.

    Exit code 0 where all is as it was stored, 1 where something is damaged or missing, 3 where something could not be
    checked. That a server comes up from it, only a restore or a drill shows.
    """
    terminal = Terminal(as_json=as_json)
    found: list[tuple[str, Verification]] = []
    with opened(terminal) as around:
        for name in backed_up_services(around, service):
            if backup_id is None:
                found.append((name, verify_newest(around, name)))
                continue
            store, manifest = _find_backup(around, name, backup_id)
            report = _reporter(around, manifest.backup_id)
            found.append((name, verify(store, manifest, workers=around.settings.workers, progress=report)))
    if not found:
        raise RestoreError(f"there is no backup in {around.repository.url}", hint="dr backup full SERVICE")
    document = {"verifications": [_verification(name, result) for name, result in found]}
    terminal.result(document, lambda console: _show_verifications(console, found))
    verdict = judge_checks(check for _, result in found for check in result.checks)
    return {Verdict.MET: Exit.DONE, Verdict.MISSED: Exit.FAILED, Verdict.UNVERIFIED: Exit.SHORT}[verdict]


def _reporter(around: Surroundings, backup_id: str) -> Callable[[int, int], None]:
    return lambda done, total: around.progress(f"reading {backup_id} back", done, total)


def _find_backup(around: Surroundings, service: str, backup_id: str) -> tuple[Store, Manifest]:
    home = around.repository.service(service)
    for system in systems(home):
        try:
            return home.child(system), read_manifest(home.child(system), backup_id)
        except ObjectMissing:
            continue
    raise ObjectMissing(f"{service} has no complete backup {backup_id} in {home.url}", hint=f"dr backup list {service}")


def _verification(service: str, result: Verification) -> dict[str, object]:
    return {
        "service": service,
        "backup_id": result.backup_id,
        "bytes_read": result.bytes_read,
        "recovery_point": format_moment(result.recovery_point) if result.recovery_point else None,
        "checks": [{"name": check.name, "passed": check.passed, "detail": check.detail} for check in result.checks],
    }


def _show_verifications(console: Console, found: list[tuple[str, Verification]]) -> None:
    for service, result in found:
        point = format_moment(result.recovery_point) if result.recovery_point else "unknown"
        console.print(f"{service} {result.backup_id}: {format_bytes(result.bytes_read)} read, recovery point {point}")
        for check in result.checks:
            console.print(f"  {_MARKS[check.passed]}: {check.name}: {check.detail}")
