"""Fencing a server: whose place another one takes must neither answer clients nor archive any more.

What can be done over SQL is done here, and holds when that server is started again: its archiver stopped, its
databases closed to everybody (template1, which holds nothing, stays open to superusers, to look and to undo it), its
subscriptions disabled, its roles no longer allowed to replicate, every session ended. Doing it again changes nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from dr_pipelines.engines.postgres.connection import Connection, connect, scalar
from dr_pipelines.engines.postgres.recovery import MAINTENANCE
from dr_pipelines.errors import ProcessError
from dr_pipelines.timing import Clock, wait_until

__all__ = ["FENCED_COMMAND", "Look", "Measure", "Presence", "fence", "look_at"]

FENCED_COMMAND = "echo 'fenced by dr_pipelines: another server has taken the place of this one' >&2; false"
"""The archive_command of a fenced server: it keeps its log."""
_RELOADED = 5.0
"""Seconds in which a server takes a changed setting."""
_PATIENCE = 20.0
"""Seconds in which every session ends that is told to."""
_OTHERS = """
SELECT pid FROM pg_stat_activity
WHERE pid <> pg_backend_pid() AND backend_type IN ('client backend', 'walsender', 'logical replication worker',
    'logical replication apply worker', 'logical replication parallel worker', 'parallel worker')
"""


class Presence(StrEnum):
    """Whether a server is there."""

    ANSWERS = "answers"
    REFUSES = "refuses us"
    """It is there, and lets us not in: whether it answers others is not known."""
    SILENT = "does not answer"


@dataclass(frozen=True)
class Look:
    """What a look at a server found; None where it did not let us ask."""

    presence: Presence
    said: str
    system_identifier: str | None = None
    started_at: datetime | None = None
    """When this server was started, to the microsecond: tells two servers of one system identifier apart."""
    position: str | None = None
    """How far its log is written."""


@dataclass(frozen=True)
class Measure:
    """One thing that fencing takes, and whether it was achieved."""

    name: str
    done: bool
    detail: str
    essential: bool
    """Without it the server is not fenced."""


def look_at(dsn: str, *, timeout: int = 5) -> Look:
    """Ask the server at `dsn` who it is, in the database that fencing leaves open, else in its own. Changes nothing."""
    found = _look_at(_maintenance(dsn), timeout)
    # Whoever backs it up may have been let into one database alone.
    return _look_at(dsn, timeout) if found.presence is Presence.REFUSES else found


def _look_at(dsn: str, timeout: int) -> Look:
    try:
        with connect(dsn, timeout=timeout) as connection:
            recovering = scalar(connection, "SELECT pg_is_in_recovery()")
            written = "SELECT pg_last_wal_replay_lsn()::text" if recovering else "SELECT pg_current_wal_lsn()::text"
            return Look(
                Presence.ANSWERS,
                "it answers",
                str(scalar(connection, "SELECT system_identifier FROM pg_control_system()")),
                scalar(connection, "SELECT pg_postmaster_start_time()"),
                str(scalar(connection, written)),
            )
    except ProcessError as error:
        refused = "FATAL:" in error.message
        return Look(Presence.REFUSES if refused else Presence.SILENT, error.message)
    except psycopg.Error as error:
        return Look(Presence.REFUSES, str(error).strip())


def fence(dsn: str, *, clock: Clock, note: Callable[[str], None]) -> tuple[Measure, ...]:
    """Fence the server at `dsn`, as far as its role may; every measure says whether it was achieved.

    The caller has made sure that it is the server that is meant. Raises ProcessError where it does not let us in.
    """
    with connect(_maintenance(dsn)) as connection:
        # A commit here must not wait for a standby that may be gone, nor for a lock that nobody gives back.
        for setting in ("synchronous_commit = local", "statement_timeout = '30s'", "lock_timeout = '10s'"):
            connection.execute(f"SET {setting}".encode())
        connection.execute("SET default_transaction_read_only = off")
        measures = []
        for name, measure, essential in (
            # First what carries its log away: that it was fenced is in there, too, and is nobody else's.
            ("archiver_stopped", _stop_archiver, True),
            ("replication_refused", _refuse_replication, False),
            ("subscriptions_disabled", _disable_subscriptions, False),
            ("databases_closed", _close_databases, True),
            ("sessions_ended", _end_sessions, True),
        ):
            note(f"fencing the old server: {name.replace('_', ' ')}")
            try:
                problem, detail = measure(connection, dsn, clock)
            except (psycopg.Error, ProcessError) as error:
                problem, detail = " ".join(str(error).split()), ""
            measures.append(Measure(name, problem is None, problem or detail, essential))
    measures.append(_refuses(dsn))
    return tuple(measures)


_Outcome = tuple[str | None, str]
"""What was not achieved, None where all was; and what was done."""


def _stop_archiver(connection: Connection, dsn: str, clock: Clock) -> _Outcome:  # noqa: ARG001
    if scalar(connection, "SHOW archive_mode") == "off":
        return None, "it does not archive"
    before = str(scalar(connection, "SHOW archive_command"))
    library = "SELECT coalesce(current_setting('archive_library', true), '')"
    if scalar(connection, library):
        connection.execute("ALTER SYSTEM SET archive_library = ''")
    if not before.startswith(FENCED_COMMAND):
        # What it was stays there as a comment, for whoever undoes this.
        command = f"{FENCED_COMMAND} # it was: {' '.join(before.split())}"
        connection.execute(sql.SQL("ALTER SYSTEM SET archive_command = {}").format(sql.Literal(command)))
    connection.execute("SELECT pg_reload_conf()")

    def is_stopped() -> bool:
        command = str(scalar(connection, "SHOW archive_command"))
        return command.startswith(FENCED_COMMAND) and not scalar(connection, library)

    # One that was given on the command line wins over what is set here.
    if not wait_until(is_stopped, timeout=_RELOADED, clock=clock):
        return "its archive_command or archive_library stays as it was: the command line that started it has it", ""
    return None, "archive_command fails from now on"


def _disable_subscriptions(connection: Connection, dsn: str, clock: Clock) -> _Outcome:  # noqa: ARG001
    """Else it would go on taking from its publishers what the new server is to get through the same slots."""
    enabled = connection.execute(
        "SELECT d.datname, s.subname FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid "
        "WHERE s.subenabled AND d.datallowconn ORDER BY 1, 2"
    ).fetchall()
    for database, name in enabled:
        with connect(make_conninfo(dsn, dbname=database)) as there:
            there.execute("SET synchronous_commit = local")
            there.execute(sql.SQL("ALTER SUBSCRIPTION {} DISABLE").format(sql.Identifier(name)))
    return None, ", ".join(f"{name} in {database}" for database, name in enabled) or "it has none that run"


def _close_databases(connection: Connection, dsn: str, clock: Clock) -> _Outcome:  # noqa: ARG001
    """ALTER DATABASE keeps superusers out, too; the database one is in cannot be closed, so that others are let in."""
    names = [
        str(row[0])
        for row in connection.execute(
            "SELECT datname FROM pg_database WHERE datallowconn AND datname <> %s ORDER BY 1", (MAINTENANCE,)
        ).fetchall()
    ]
    for name in names:
        connection.execute(sql.SQL("ALTER DATABASE {} WITH ALLOW_CONNECTIONS false").format(sql.Identifier(name)))
    connection.execute(sql.SQL("ALTER DATABASE {} WITH CONNECTION LIMIT 0").format(sql.Identifier(MAINTENANCE)))
    return None, f"{', '.join(names) or 'closed before'}; {MAINTENANCE} is open to superusers alone"


def _refuse_replication(connection: Connection, dsn: str, clock: Clock) -> _Outcome:  # noqa: ARG001
    """A standby or a receiver that follows the fenced server would take its log for the one that counts."""
    roles = [
        str(row[0])
        for row in connection.execute(
            "SELECT rolname FROM pg_roles WHERE rolreplication AND NOT rolsuper ORDER BY 1"
        ).fetchall()
    ]
    for role in roles:
        connection.execute(sql.SQL("ALTER ROLE {} NOREPLICATION").format(sql.Identifier(role)))
    following = connection.execute(
        "SELECT DISTINCT usename FROM pg_stat_activity JOIN pg_roles ON rolname = usename "
        "WHERE backend_type = 'walsender' AND rolsuper ORDER BY 1"
    ).fetchall()
    connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'walsender'")
    if following:
        return f"{', '.join(str(row[0]) for row in following)}, a superuser, follows it and can come again", ""
    return None, f"no longer: {', '.join(roles)}" if roles else "no role but superusers may replicate"


def _end_sessions(connection: Connection, dsn: str, clock: Clock) -> _Outcome:  # noqa: ARG001
    ended: set[int] = set()

    def alone() -> bool:
        others = [int(row[0]) for row in connection.execute(_OTHERS).fetchall()]
        for pid in others:
            connection.execute("SELECT pg_terminate_backend(%s)", (pid,))
        ended.update(others)
        return not others

    if not wait_until(alone, timeout=_PATIENCE, clock=clock, interval=0.1):
        return f"{len(connection.execute(_OTHERS).fetchall())} sessions go on or come again", ""
    return None, f"{len(ended)} sessions were ended"


def _refuses(dsn: str) -> Measure:
    """Whether a client that comes as before is refused: what counts, however it was achieved."""
    wanted = conninfo_to_dict(dsn).get("dbname") or MAINTENANCE
    database = "postgres" if wanted == MAINTENANCE else str(wanted)
    try:
        with connect(make_conninfo(dsn, dbname=database), timeout=5):
            return Measure("connections_refused", False, f"it still lets clients into {database}", True)
    except ProcessError as error:
        return Measure("connections_refused", True, " ".join(error.message.split()), True)


def _maintenance(dsn: str) -> str:
    return make_conninfo(dsn, dbname=MAINTENANCE)
