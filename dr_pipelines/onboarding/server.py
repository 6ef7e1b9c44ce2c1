"""What an administrator's connection shows of a server before anything is set up for it. Nothing is changed."""

from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from dr_pipelines.engines.postgres.connection import Connection, ServerFacts, read_facts, scalar
from dr_pipelines.engines.postgres.privileges import Missing, missing_privileges
from dr_pipelines.onboarding.access import Rule

__all__ = ["Administrator", "Role", "Server", "Setting", "Table", "read_server", "read_tables"]

_SETTINGS = (
    "allow_alter_system",
    "archive_command",
    "archive_library",
    "archive_mode",
    "archive_timeout",
    "config_file",
    "data_directory",
    "fsync",
    "full_page_writes",
    "hba_file",
    "listen_addresses",
    "max_replication_slots",
    "max_slot_wal_keep_size",
    "max_wal_senders",
    "port",
    "summarize_wal",
    "wal_level",
)


@dataclass(frozen=True)
class Setting:
    """A setting of the server, as SHOW says it."""

    value: str
    source: str
    """Where it was set: "default", "configuration file", "command line" ..."""
    from_alter_system: bool
    pending_restart: bool
    written: str | None
    """What the configuration's files say, where the administrator may see that: with archive_mode off the server
    itself does not tell its archive_command."""


@dataclass(frozen=True)
class Administrator:
    """Who we are for the server."""

    name: str
    superuser: bool
    may_create_roles: bool
    may_replicate: bool
    address: str | None
    """Where the server sees us; None: on a socket."""
    encrypted: bool


@dataclass(frozen=True)
class Role:
    """A role that is there already."""

    may_login: bool
    may_replicate: bool
    more: tuple[str, ...]
    """What it may besides that backups do not need."""


@dataclass(frozen=True)
class Table:
    """A table that has rows, for a restore to be asked."""

    schema: str
    name: str


@dataclass(frozen=True)
class Server:
    """A server, seen by its administrator."""

    facts: ServerFacts
    administrator: Administrator
    settings: dict[str, Setting]
    rules: tuple[Rule, ...] | None
    """pg_hba.conf, None where the administrator may not read it."""
    access_text: bytes | None
    """The file itself, as the server reads it."""
    role: Role | None
    may_connect: bool
    """Whether the role, else everybody, may connect to its database."""
    missing: tuple[Missing, ...]
    """The functions that the role, else everybody, may not call."""
    archiver_fails: bool
    """Whether the last that archive_command did was to fail."""
    senders_in_use: int
    slots: tuple[str, ...]
    """The replication slots that are there, whoever's."""
    databases: tuple[str, ...]
    """With what their owners keep there, the largest first."""
    closed: tuple[str, ...]
    """Those of them that the administrator may not connect to."""
    tables: tuple[Table, ...] = ()
    """Some tables of the database that a restored server is to be asked in, the largest first."""

    def value(self, name: str) -> str:
        """What a setting is; empty where this version has none of that name, or the administrator may not see it."""
        found = self.settings.get(name)
        return found.value if found else ""

    @property
    def archive_command(self) -> str:
        """archive_command, also where archive_mode is off; empty where none is set."""
        found = self.settings["archive_command"]
        value = (found.written or "") if found.value == "(disabled)" else found.value
        return value.strip()


def read_server(connection: Connection, role: str, connect_to: str) -> Server:
    """Ask the server, and of a role what it has. What the administrator may not see is left out."""
    facts = read_facts(connection)
    administrator = _administrator(connection)
    existing = _role(connection, role)
    databases = _databases(connection)
    who = role if existing else "public"
    return Server(
        facts=facts,
        administrator=administrator,
        settings=_settings(connection, administrator),
        rules=_rules(connection) if administrator.superuser else None,
        access_text=_access_text(connection) if administrator.superuser else None,
        role=existing,
        may_connect=bool(_ask(connection, "SELECT has_database_privilege(%s, %s, 'CONNECT')", who, connect_to)),
        missing=missing_privileges(connection, who),
        archiver_fails=bool(scalar(connection, _ARCHIVER_FAILS)),
        senders_in_use=int(scalar(connection, "SELECT count(*) FROM pg_stat_replication")),
        slots=_slots(connection),
        databases=tuple(databases),
        closed=tuple(name for name, is_open in databases.items() if not is_open),
    )


_ARCHIVER_FAILS: LiteralString = """
SELECT last_failed_time IS NOT NULL AND (last_archived_time IS NULL OR last_failed_time > last_archived_time)
FROM pg_stat_archiver
"""


def _ask(connection: Connection, query: str, *arguments: str) -> Any:
    row = connection.execute(query.encode(), arguments).fetchone()
    assert row is not None
    return row[0]


def _administrator(connection: Connection) -> Administrator:
    row = connection.execute(
        "SELECT rolname, rolsuper, rolcreaterole, rolreplication, host(inet_client_addr()),"
        " coalesce((SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()), false)"
        " FROM pg_roles WHERE rolname = current_user"
    ).fetchone()
    assert row is not None
    return Administrator(*row)


def _settings(connection: Connection, administrator: Administrator) -> dict[str, Setting]:
    rows = connection.execute(
        "SELECT name, current_setting(name), source, coalesce(sourcefile, '') LIKE %s, pending_restart"
        " FROM pg_settings WHERE name = ANY (%s)",
        ["%postgresql.auto.conf", list(_SETTINGS)],
    ).fetchall()
    written: dict[str, str] = {}
    if administrator.superuser:
        written = dict(connection.execute("SELECT name, setting FROM pg_file_settings ORDER BY seqno").fetchall())
    return {
        name: Setting(value, source, from_alter_system, pending_restart, written.get(name))
        for name, value, source, from_alter_system, pending_restart in rows
    }


def _rules(connection: Connection) -> tuple[Rule, ...]:
    # A line with an error is not in force; the column file_name is there from 16 on.
    rows = connection.execute(
        "SELECT line_number, type, database, user_name, address, netmask, auth_method,"
        " coalesce(to_jsonb(rules) ->> 'file_name', '') FROM pg_hba_file_rules AS rules WHERE error IS NULL"
        " ORDER BY coalesce((to_jsonb(rules) ->> 'rule_number')::int, line_number)"
    ).fetchall()
    return tuple(
        Rule(line, kind, tuple(databases), tuple(users), address, netmask, method, file)
        for line, kind, databases, users, address, netmask, method, file in rows
    )


def _access_text(connection: Connection) -> bytes:
    return bytes(scalar(connection, "SELECT pg_read_binary_file(current_setting('hba_file'))"))


def _role(connection: Connection, name: str) -> Role | None:
    row = connection.execute(
        "SELECT rolcanlogin, rolreplication OR rolsuper, rolsuper, rolcreaterole, rolcreatedb, rolbypassrls,"
        " ARRAY(SELECT roleid::regrole::text FROM pg_auth_members WHERE member = pg_roles.oid)"
        " FROM pg_roles WHERE rolname = %s",
        [name],
    ).fetchone()
    if row is None:
        return None
    may_login, may_replicate, *attributes, groups = row
    names = ("SUPERUSER", "CREATEROLE", "CREATEDB", "BYPASSRLS")
    more = [name for name, given in zip(names, attributes, strict=True) if given]
    return Role(may_login, may_replicate, (*more, *(f"member of {group}" for group in groups)))


def _slots(connection: Connection) -> tuple[str, ...]:
    rows = connection.execute("SELECT slot_name FROM pg_replication_slots ORDER BY 1").fetchall()
    return tuple(str(name) for (name,) in rows)


def _databases(connection: Connection) -> dict[str, bool]:
    """The largest first, as far as their sizes may be known; and whether we may connect."""
    rows = connection.execute(
        "SELECT datname, is_open FROM pg_database, LATERAL has_database_privilege(oid, 'CONNECT') AS is_open"
        " WHERE NOT datistemplate AND datallowconn ORDER BY datname = 'postgres',"
        " CASE WHEN is_open THEN pg_database_size(oid) END DESC NULLS LAST, datname"
    ).fetchall()
    return {str(name): bool(is_open) for name, is_open in rows}


def read_tables(connection: Connection) -> tuple[Table, ...]:
    """Some tables of the connection's database that have rows, the largest first, as far as we may look."""
    # A table that somebody has locked is not waited for.
    connection.execute("SET lock_timeout = '1s'; SET statement_timeout = '5s'")
    rows = connection.execute(_TABLES).fetchall()
    return tuple(table for table in (Table(*row) for row in rows) if _has_rows(connection, table))


_TABLES = """
SELECT nspname, relname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE relkind = 'r' AND relpersistence = 'p' AND nspname NOT IN ('pg_catalog', 'information_schema')
AND has_schema_privilege(pg_namespace.oid, 'USAGE') AND has_table_privilege(pg_class.oid, 'SELECT')
ORDER BY pg_relation_size(pg_class.oid) DESC, nspname, relname LIMIT 3
"""


def _has_rows(connection: Connection, table: Table) -> bool:
    query = sql.SQL("SELECT EXISTS (SELECT FROM {})").format(sql.Identifier(table.schema, table.name))
    try:
        row = connection.execute(query).fetchone()
    except (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled):
        return False
    return bool(row and row[0])
