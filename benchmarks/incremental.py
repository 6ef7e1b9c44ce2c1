"""Incremental backups and the restore of a chain, beside the full backup that the chain begins with.

Between two backups one key range is updated that covers a tenth of the blocks, each time another one. The new versions
of its rows take as much again, in the place of those that the update before left dead.
"""

import shutil
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

from benchmarks.database import SERVICE, Database, database
from benchmarks.measuring import Measured, measure, median, spread, verdict
from dr_pipelines.engines.postgres.connection import connect
from dr_pipelines.errors import ProcessError
from dr_pipelines.repository.manifest import Manifest, survey_backups
from dr_pipelines.repository.repository import open_repository
from dr_pipelines.repository.store import Store
from dr_pipelines.timing import format_bytes

__all__ = ["run"]

_LENGTH = 6
"""Incremental backups in a chain."""
_TABLES, _SHARE = 4, 0.4
"""The tables that the rows are spread over; what of one is updated: a tenth of all."""
_FULL, _INCREMENTAL = "dr backup full", "dr backup incremental"
_RESTORE = "dr restore (files), the full backup"
_RESTORE_CHAIN = f"dr restore (files), it and {_LENGTH} incremental ones"
_LIMITS = {_INCREMENTAL: 0.25, _RESTORE_CHAIN: 2.5}


def run(folder: Path, size_bytes: int, rounds: int, major: int, *, until: float = float("inf")) -> str:
    """Measure and return the section; no round begins after `until`, by the monotonic clock."""
    times: dict[str, list[Measured]] = defaultdict(list)
    sizes: dict[str, list[int]] = defaultdict(list)
    with database(folder, size_bytes, major) as made:
        with connect(made.dsn) as connection:
            connection.execute("ALTER SYSTEM SET summarize_wal = on")
            connection.execute("SELECT pg_reload_conf()")
        for number in range(rounds):
            if time.monotonic() > until:
                break
            _round(made, times, sizes, number * _LENGTH)
            print(f"round {number + 1} of {rounds}: {_told(times, sizes)}", file=sys.stderr, flush=True)
        size, version = made.size(), made.binaries.version
    return _section(times, sizes, size, version)


def _round(made: Database, times: dict[str, list[Measured]], sizes: dict[str, list[int]], first: int) -> None:
    def back_up(name: str, kind: str) -> Manifest:
        subprocess.run(["sync", "-f", str(made.folder)], check=True)
        times[name].append(_ours(made, kind))
        newest = survey_backups(_store(made)).complete[0]
        sizes[name].append(newest.stored_bytes)
        return newest

    def restore(name: str, backup: Manifest) -> None:
        target = made.folder / "restored" / "data"
        subprocess.run(["sync", "-f", str(made.folder)], check=True)
        times[name].append(_ours(made, "restore", str(target), backup.backup_id))
        shutil.rmtree(target.parent)

    full = back_up(_FULL, "backup")
    restore(_RESTORE, full)
    for number in range(first, first + _LENGTH):
        _change(made, number)
        newest = back_up(_INCREMENTAL, "incremental")
    restore(_RESTORE_CHAIN, newest)
    shutil.rmtree(Path(_store(made).url) / "backups")


def _ours(made: Database, *arguments: str) -> Measured:
    return measure([sys.executable, "-m", "benchmarks.ours", *arguments], made.environment)


def _store(made: Database) -> Store:
    assert made.settings.repository is not None
    service = open_repository(made.settings.repository, settings=made.settings).service(SERVICE)
    (system,) = (name for name in service.names("") if name.rstrip("/").isdigit())
    return service.child(system)


def _change(made: Database, number: int) -> None:
    """Update another key range, and let what the one before left be used again, as autovacuum does in time."""
    table, start = number % _TABLES, (number // _TABLES) % 2 * 0.5
    with connect(made.dsn) as connection:
        found = connection.execute(f"SELECT max(id) FROM messages_{table}").fetchone()
        assert found is not None
        low, high = int(found[0] * start), int(found[0] * (start + _SHARE))
        connection.execute(f"UPDATE messages_{table} SET body = body WHERE id > {low} AND id <= {high}")
        connection.execute(f"VACUUM messages_{table}")
        # As one is in time: what a backup's own checkpoint has to write is the server's work, not the backup's.
        connection.execute("CHECKPOINT")


def _told(times: dict[str, list[Measured]], sizes: dict[str, list[int]]) -> str:
    told = [f"{name} {median(runs):.1f} s" for name, runs in times.items()]
    return ", ".join([*told, *(f"{name} {format_bytes(max(found))}" for name, found in sizes.items())])


def _section(times: dict[str, list[Measured]], sizes: dict[str, list[int]], size: int, version: str) -> str:
    if not times:
        raise ProcessError("nothing was measured")
    lines = [
        f"PostgreSQL {version}, {format_bytes(size)}; between two backups one key range is updated that covers a tenth",
        "of the blocks, each time another one; the new versions of its rows take as much again. Ratios are to the full",
        "backup that the chain begins with, and to its restore. PostgreSQL itself looks only once a second whether the",
        "log of a backup has been archived, which is up to a second of each.",
        "",
        "| | seconds | fastest to slowest | ratio | size | ratio | |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, base in ((_FULL, _FULL), (_INCREMENTAL, _FULL), (_RESTORE, _RESTORE), (_RESTORE_CHAIN, _RESTORE)):
        ratio = median(times[name]) / median(times[base])
        stored = sorted(sizes[name])[len(sizes[name]) // 2] if name in sizes else None
        share = stored / sorted(sizes[base])[len(sizes[base]) // 2] if stored is not None else None
        limit = _LIMITS.get(name)
        lines.append(
            f"| {name} | {median(times[name]):.1f} | {spread(times[name])} | {ratio:.2f} "
            f"| {format_bytes(stored) if stored is not None else ''} | {f'{share:.2f}' if share is not None else ''} "
            f"| {verdict(max(ratio, share or 0), limit) if limit is not None else ''} |"
        )
    return "\n".join(lines)
