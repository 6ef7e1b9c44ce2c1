"""How a PostgreSQL server is asked what it is."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg

from dr_pipelines.errors import ConfigurationError, ProcessError

__all__ = ["ServerFacts", "connect", "read_facts", "scalar"]

Connection = psycopg.Connection[tuple[Any, ...]]


@contextmanager
def connect(dsn: str, *, timeout: int = 10) -> Iterator[Connection]:
    """A connection in autocommit mode. Raises ProcessError, without the password, where the server does not answer."""
    try:
        # In a database whose encoding is SQL_ASCII texts would come as bytes.
        connection = psycopg.connect(
            dsn, autocommit=True, connect_timeout=timeout, application_name="dr_pipelines", client_encoding="UTF8"
        )
    except psycopg.OperationalError as error:
        raise ProcessError(
            f"PostgreSQL at {without_password(dsn)} cannot be reached: {str(error).strip()}",
            hint="is the server running, and is DR_DSN__<SERVICE> right? dr doctor",
        ) from None
    except psycopg.ProgrammingError as error:
        raise ConfigurationError(f"the connection string cannot be read: {error}", hint="DR_DSN__<SERVICE>") from None
    with connection:
        yield connection


def without_password(dsn: str) -> str:
    """A connection string that may be shown."""
    pieces = psycopg.conninfo.conninfo_to_dict(dsn)
    return " ".join(f"{key}={value}" for key, value in pieces.items() if key != "password")


def scalar(connection: Connection, query: LiteralString) -> Any:
    """The one value that a query returns."""
    row = connection.execute(query).fetchone()
    assert row is not None, query
    return row[0]


@dataclass(frozen=True)
class ServerFacts:
    """What a running server says of itself."""

    major: int
    version: str
    system_identifier: str
    timeline: int
    segment_size: int
    size: int
    """Bytes of all databases."""
    superuser: str
    tablespaces: tuple[str, ...]
    archive_mode: str
    archive_command: str
    archive_timeout: int
    """Seconds; 0: a segment is archived only when it is full."""
    data_checksums: bool
    in_recovery: bool


def read_facts(connection: Connection) -> ServerFacts:
    """Ask a running server. What needs a privilege that the role lacks raises psycopg's own error."""
    number = int(scalar(connection, "SHOW server_version_num"))
    timeline = int(scalar(connection, "SELECT timeline_id FROM pg_control_checkpoint()"))
    tablespaces = connection.execute(
        "SELECT spcname FROM pg_tablespace WHERE spcname NOT IN ('pg_default', 'pg_global') ORDER BY 1"
    ).fetchall()
    return ServerFacts(
        major=number // 10000,
        version=str(scalar(connection, "SHOW server_version")),
        system_identifier=str(scalar(connection, "SELECT system_identifier FROM pg_control_system()")),
        timeline=timeline,
        segment_size=int(scalar(connection, "SELECT setting FROM pg_settings WHERE name = 'wal_segment_size'")),
        size=int(scalar(connection, "SELECT coalesce(sum(pg_database_size(oid)), 0) FROM pg_database")),
        superuser=str(scalar(connection, "SELECT rolname FROM pg_roles WHERE oid = 10")),
        tablespaces=tuple(str(row[0]) for row in tablespaces),
        archive_mode=str(scalar(connection, "SHOW archive_mode")),
        archive_command=str(scalar(connection, "SHOW archive_command")),
        archive_timeout=int(scalar(connection, "SELECT setting FROM pg_settings WHERE name = 'archive_timeout'")),
        data_checksums=scalar(connection, "SHOW data_checksums") == "on",
        in_recovery=bool(scalar(connection, "SELECT pg_is_in_recovery()")),
    )
