"""What the role that backs a server up needs there: LOGIN, REPLICATION, a database to connect to, and nothing else.

On a server where PUBLIC has what it comes with, that is all. Where somebody took a function away from PUBLIC, the role
needs it granted in the database that it connects to; `missing_privileges` says which, and what for.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from psycopg import sql

from dr_pipelines.engines.postgres.connection import Connection, connect
from dr_pipelines.errors import ProcessError

__all__ = ["FUNCTIONS", "Missing", "missing_privileges", "refusal_of_replication"]

FUNCTIONS = {
    "pg_control_checkpoint()": "backups and the doctor: on which timeline the server is",
    "pg_control_system()": "backups and the agent: which cluster it is",
    "pg_current_snapshot()": "the agent: the recovery point",
    "pg_current_wal_insert_lsn()": "the agent: the recovery point",
    "pg_current_wal_lsn()": "the agent and the doctor: what a streamed log's slot holds",
    "pg_get_replication_slots()": "the agent and the doctor: what a streamed log's slot holds",
    "pg_is_in_recovery()": "backups: a standby is refused",
    "pg_show_all_settings()": "backups and the agent: the size of a log segment",
    "pg_size_bytes(text)": "backups: how much log there may be",
    "pg_snapshot_xmax(pg_snapshot)": "the agent: the recovery point",
    "pg_snapshot_xmin(pg_snapshot)": "the agent: the recovery point",
    "pg_stat_get_activity(integer)": "backups: whether one waits for the archive in vain",
    "pg_stat_get_archiver()": "the doctor: whether the archiver works",
    "pg_stat_get_progress_info(text)": "backups: whether one waits for the archive in vain",
    "pg_tablespace_size(oid)": "backups: how far one has come",
    "pg_wal_lsn_diff(pg_lsn,pg_lsn)": "the agent and the doctor: what a streamed log's slot holds",
    "pg_walfile_name(pg_lsn)": "the agent: on which timeline the server is",
}
"""The functions that are called as the role, directly or by a view, and what breaks where it may not."""


@dataclass(frozen=True)
class Missing:
    """A privilege that the role lacks."""

    role: str
    function: str
    needed_for: str

    @property
    def grant(self) -> str:
        """The statement that gives it, in the database that the role connects to."""
        statement = sql.SQL("GRANT EXECUTE ON FUNCTION {} TO {}")
        return statement.format(sql.SQL(self.function), sql.Identifier(self.role)).as_string(None)


def missing_privileges(connection: Connection, role: str | None = None) -> tuple[Missing, ...]:
    """What `role` lacks, else the role that asks, in this database; "public": what everybody lacks."""
    row = connection.execute(
        "SELECT coalesce(%s, current_user::text), array_agg(name) FROM unnest(%s::text[]) AS name"
        " WHERE NOT has_function_privilege(coalesce(%s, current_user::text), name, 'EXECUTE')",
        [role, list(FUNCTIONS), role],
    ).fetchone()
    assert row is not None
    who, names = row
    found: Iterable[str] = sorted(names or ())
    return tuple(Missing(who, name, FUNCTIONS[name]) for name in found)


def refusal_of_replication(dsn: str) -> str | None:
    """Why the role of the DSN may not take a base backup, in the server's own words; None where it may.

    Tried, not looked up: the role's attribute, pg_hba.conf and the number of senders all have a say.
    """
    try:
        with connect(dsn, replication=True):
            return None
    except ProcessError as error:
        return error.message.partition("FATAL:")[2].strip() or error.message
