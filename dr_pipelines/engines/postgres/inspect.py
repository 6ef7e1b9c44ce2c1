"""Is a running server set up so that it can be backed up and brought back? Asked of the server itself.

What is read and what it means are kept apart: `read_setup` asks, `judge_setup` is pure.
"""

import re
import shlex
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from dr_pipelines.engines.findings import Finding, Level
from dr_pipelines.engines.postgres.connection import Connection, ServerFacts, read_facts, scalar
from dr_pipelines.engines.postgres.privileges import Missing, missing_privileges, refusal_of_replication
from dr_pipelines.engines.postgres.wal import FileKind, Segment, kind_of
from dr_pipelines.timing import format_duration, format_moment

__all__ = ["ArchiverState", "Setup", "judge_missing", "judge_setup", "read_setup", "spool_of_command"]

_OURS = "DR_SPOOL='{spool}' /path/to/scripts/backup.sh wal %p %f"
_BACKLOG = 16
"""Files waiting to be archived from which on the archiver is taken to be behind."""


@dataclass(frozen=True)
class ArchiverState:
    """What pg_stat_archiver says, and how many files wait for the archiver."""

    archived: int
    last_archived_at: datetime | None
    failed: int
    last_failed_file: str | None
    last_failed_at: datetime | None
    waiting: int | None
    """None where that is not known."""


@dataclass(frozen=True)
class Setup:
    """What a server's setup is, as far as backups and restores depend on it."""

    facts: ServerFacts
    wal_level: str
    full_page_writes: bool
    fsync: bool
    max_wal_senders: int
    replication_refused: str | None
    """Why the role that asked may not take a base backup; None where it may."""
    missing: tuple[Missing, ...]
    """The privileges that it lacks."""
    archiver: ArchiverState


def read_setup(connection: Connection, dsn: str) -> Setup:
    """Ask a running server, by a connection that `dsn` has led to.

    What needs a privilege that the role lacks raises psycopg's own error.
    """
    facts = read_facts(connection)
    return Setup(
        facts=facts,
        wal_level=str(scalar(connection, "SHOW wal_level")),
        full_page_writes=scalar(connection, "SHOW full_page_writes") == "on",
        fsync=scalar(connection, "SHOW fsync") == "on",
        max_wal_senders=int(scalar(connection, "SHOW max_wal_senders")),
        replication_refused=refusal_of_replication(dsn),
        missing=missing_privileges(connection),
        archiver=_read_archiver(connection, facts),
    )


def _read_archiver(connection: Connection, facts: ServerFacts) -> ArchiverState:
    row = connection.execute(
        "SELECT archived_count, last_archived_wal, last_archived_time, failed_count, last_failed_wal, last_failed_time,"
        " CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_walfile_name(pg_current_wal_insert_lsn()) END "
        "FROM pg_stat_archiver"
    ).fetchone()
    assert row is not None
    archived, last_archived_file, last_archived_at, failed, last_failed_file, last_failed_at, current = row
    waiting = None
    # Not counted in the folder of pg_wal, where a role needs a privilege to look.
    if last_archived_file and current and kind_of(last_archived_file) not in (None, FileKind.HISTORY):
        done, open_one = (Segment.of_name(name[:24], facts.segment_size) for name in (last_archived_file, current))
        waiting = max(open_one.number - done.number - 1, 0)
    return ArchiverState(
        archived=int(archived),
        last_archived_at=last_archived_at and last_archived_at.astimezone(UTC),
        failed=int(failed),
        last_failed_file=last_failed_file,
        last_failed_at=last_failed_at and last_failed_at.astimezone(UTC),
        waiting=waiting,
    )


def judge_setup(
    setup: Setup,
    area: str,
    *,
    spool: Path,
    archive_timeout: timedelta | None,
    rpo: timedelta | None,
    streams: bool = False,
) -> tuple[Finding, ...]:
    """What the setup means. `spool` is where the agent looks, `archive_timeout` what the plan allows at most.

    Where the agent streams the log, who else archives it is nobody's business here; but a base backup waits for him.
    """
    facts = setup.facts
    archiving = [
        _archive_mode(facts),
        _archive_command(facts, spool),
        _archive_timeout(facts, archive_timeout, rpo),
        _archiver(setup.archiver),
    ]
    if streams:
        archiving = archiving[-1:] if facts.archive_mode != "off" else []
    found = [
        *archiving,
        _base_backup(setup),
        _tablespaces(facts),
        _durability(setup),
        _checksums(facts),
    ]
    server = f"PostgreSQL {facts.version}, system {facts.system_identifier}, timeline {facts.timeline}"
    first = ("the server", Level.OK, server, "")
    if facts.in_recovery:
        first = ("the server", Level.PROBLEM, f"{server}, a standby", "give the primary's DSN")
    return (*(Finding(area, *entry) for entry in (first, *found)), *judge_missing(setup.missing, area))


def judge_missing(missing: tuple[Missing, ...], area: str) -> tuple[Finding, ...]:
    """What it means that the role lacks these privileges."""
    return tuple(
        Finding(
            area,
            "privileges",
            Level.PROBLEM,
            f"{each.role} may not call {each.function}, which is for {each.needed_for}",
            f"{each.grant}; in the database of the DSN",
        )
        for each in missing
    )


_Entry = tuple[str, Level, str, str]


def _archive_mode(facts: ServerFacts) -> _Entry:
    if facts.archive_mode == "off":
        mend = "archive_mode = on in postgresql.conf, then restart the server"
        return "archive_mode", Level.PROBLEM, "off: the log goes nowhere", mend
    return "archive_mode", Level.OK, facts.archive_mode, ""


def spool_of_command(command: str) -> Path | None:
    """The folder that an archive_command of ours puts segments in; None where it is not ours or does not name it."""
    named = re.search(r"(?:^|\s)DR_SPOOL=('[^']*'|\"[^\"]*\"|\S+)", command)
    return Path(shlex.split(named[1])[0]) if named and shlex.split(named[1]) else None


def _archive_command(facts: ServerFacts, spool: Path) -> _Entry:
    command, mend = facts.archive_command, f'archive_command = "{_OURS.format(spool=spool)}", then reload the server'
    looked_at = "archive_command"
    if not command or command == "(disabled)":
        return looked_at, Level.PROBLEM, "none is set", mend
    if not re.search(r"backup\.sh['\"]?\s+wal\s+['\"]?%p['\"]?\s+['\"]?%f\b", command):
        if re.search(r"(^|[\s/;&])cp\s", command):
            seen = f"a plain cp, which overwrites, tears and is never on disk for certain: {command}"
            return looked_at, Level.PROBLEM, seen, mend
        return looked_at, Level.PROBLEM, f"not scripts/backup.sh, so the agent gets nothing: {command}", mend
    named = spool_of_command(command)
    if named is None:
        seen = f"it does not name the spool, so whether the agent looks there is not known: {command}"
        return looked_at, Level.WARNING, seen, mend
    if named != spool:
        return (
            looked_at,
            Level.PROBLEM,
            f"it puts segments into {named}, and the agent looks into {spool}",
            f"set the agent's DR_SPOOL__<SERVICE> to {named}, or {mend}",
        )
    return looked_at, Level.OK, command, ""


def _archive_timeout(facts: ServerFacts, allowed: timedelta | None, rpo: timedelta | None) -> _Entry:
    seconds, looked_at = facts.archive_timeout, "archive_timeout"
    wished = allowed or timedelta(seconds=60)
    mend = f"archive_timeout = {int(wished.total_seconds())}s, then reload the server"
    if seconds == 0:
        seen = "0: what is in a segment that is not full is in no repository, however long that takes"
        return looked_at, Level.PROBLEM, seen, mend
    taken = timedelta(seconds=seconds)
    if allowed is not None and taken > allowed:
        over_rpo = rpo is not None and taken > rpo
        seen = f"{format_duration(taken)}, and the plan allows {format_duration(allowed)}"
        return looked_at, Level.PROBLEM if over_rpo else Level.WARNING, seen, mend
    return looked_at, Level.OK, format_duration(taken), ""


def _archiver(state: ArchiverState) -> _Entry:
    looked_at = "the archiver"
    waiting = f", {state.waiting} files wait" if state.waiting else ""
    if state.last_failed_at and (state.last_archived_at is None or state.last_failed_at > state.last_archived_at):
        last = f"{state.last_failed_file} at {format_moment(state.last_failed_at)}"
        seen = f"it fails: {state.failed} times by now, {last}{waiting}"
        mend = "the server's log has the words of archive_command; until it is mended pg_wal fills up, and backups wait"
        return looked_at, Level.PROBLEM, seen, mend
    if state.waiting is not None and state.waiting > _BACKLOG:
        return looked_at, Level.WARNING, f"it is behind{waiting}", "is the spool's disk slow or full?"
    if state.last_archived_at is None:
        return looked_at, Level.OK, f"nothing archived yet{waiting}", ""
    past = f", {state.failed} failures before that" if state.failed else ""
    seen = f"{state.archived} files archived, the last at {format_moment(state.last_archived_at)}{past}{waiting}"
    return looked_at, Level.OK, seen, ""


def _base_backup(setup: Setup) -> _Entry:
    looked_at = "base backups"
    if setup.wal_level == "minimal":
        return looked_at, Level.PROBLEM, "wal_level is minimal", "wal_level = replica, then restart the server"
    if setup.max_wal_senders < 1:
        return looked_at, Level.PROBLEM, "max_wal_senders is 0", "max_wal_senders = 10, then restart the server"
    if setup.replication_refused is not None:
        seen = f"the role of the DSN may not take one: {setup.replication_refused}"
        mend = (
            'ALTER ROLE ... REPLICATION, and a line for the database "replication" in pg_hba.conf; dr init says which'
        )
        return looked_at, Level.PROBLEM, seen, mend
    return looked_at, Level.OK, f"wal_level {setup.wal_level}, {setup.max_wal_senders} senders", ""


def _tablespaces(facts: ServerFacts) -> _Entry:
    if facts.tablespaces:
        seen = f"further ones, of which no backup is made: {', '.join(facts.tablespaces)}"
        return "tablespaces", Level.PROBLEM, seen, "move their tables and indexes to pg_default, then drop them"
    return "tablespaces", Level.OK, "none but PostgreSQL's own", ""


def _durability(setup: Setup) -> _Entry:
    looked_at = "fsync, full_page_writes"
    off = [name for name, on in (("fsync", setup.fsync), ("full_page_writes", setup.full_page_writes)) if not on]
    if off:
        seen = f"{' and '.join(off)} off: a crash of the machine can ruin the data, and backups of it"
        return looked_at, Level.PROBLEM, seen, "; ".join(f"{name} = on" for name in off) + ", then reload the server"
    return looked_at, Level.OK, "on", ""


def _checksums(facts: ServerFacts) -> _Entry:
    if facts.data_checksums:
        return "data checksums", Level.OK, "on", ""
    seen = "off: what a disk damaged is backed up as if it were right"
    return "data checksums", Level.WARNING, seen, "pg_checksums --enable, while the server is stopped"
