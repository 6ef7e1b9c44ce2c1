"""How a PostgreSQL server is asked what it is."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from dr_pipelines.errors import ConfigurationError, ProcessError

__all__ = ["ServerFacts", "connect", "for_a_tool", "read_facts", "scalar", "without_secrets"]

Connection = psycopg.Connection[tuple[Any, ...]]
_LIVENESS = {"keepalives_idle": "30", "keepalives_interval": "10", "keepalives_count": "6", "tcp_user_timeout": "90000"}
"""So that a peer that is gone without a word (power, a firewall that forgets) is an error after a minute and a half."""


@contextmanager
def connect(dsn: str, *, timeout: int = 10, replication: bool = False) -> Iterator[Connection]:
    """A connection in autocommit mode, which ends where its peer is gone; with `replication` as a base backup's.

    Raises ProcessError, without secrets, where the server does not answer, and where the connection is lost while it is
    in use. What the server refuses on a connection that stands raises psycopg's own errors.
    """
    try:
        connection = psycopg.connect(
            make_conninfo("", **_with_liveness(dsn), **({"replication": "true"} if replication else {})),
            autocommit=True,
            connect_timeout=timeout,
            application_name="dr_pipelines",
            # In a database whose encoding is SQL_ASCII texts would come as bytes.
            client_encoding="UTF8",
        )
    except psycopg.OperationalError as error:
        words = str(error).strip()
        problem, running = "cannot be reached", "is the server running, and "
        if "FATAL:" in words:  # the server's own words: to ask whether it runs would lead astray
            problem, running = "refuses", ""
        raise ProcessError(
            f"PostgreSQL at {without_secrets(dsn)} {problem}: {words}",
            hint=f"{running}is DR_DSN__<SERVICE> right? dr doctor",
        ) from None
    except psycopg.ProgrammingError as error:
        # libpq quotes what it stumbles over, which may be a piece of a password.
        problem = re.sub('".*"', '"…"', str(error).strip())
        raise ConfigurationError(f"the connection string cannot be read: {problem}", hint="DR_DSN__<SERVICE>") from None
    with connection:
        try:
            yield connection
        except psycopg.OperationalError as error:
            if not connection.broken:
                raise
            raise ProcessError(
                f"PostgreSQL at {without_secrets(dsn)} has ended the connection: {' '.join(str(error).split())}",
                hint="was it stopped, or did it crash? its own log says why",
            ) from None


def _with_liveness(dsn: str) -> dict[str, str]:
    return _LIVENESS | {key: str(value) for key, value in conninfo_to_dict(dsn).items()}


def without_secrets(dsn: str) -> str:
    """A connection string that may be shown."""
    hidden = _hidden_options()
    return " ".join(f"{key}={value}" for key, value in conninfo_to_dict(dsn).items() if key not in hidden)


def _hidden_options() -> dict[str, str | None]:
    """What libpq itself would not show, such as `password` and `sslpassword`, with the variable that may hold it."""
    return {
        option.keyword.decode(): option.envvar.decode() if option.envvar else None
        for option in psycopg.pq.Conninfo.get_defaults()
        if option.dispchar
    }


@contextmanager
def for_a_tool(dsn: str, name: str) -> Iterator[tuple[str, dict[str, str]]]:
    """How one of PostgreSQL's tools connects as `connect` does, but as `name`: its connection string and environment.

    Every user of the machine may see the string, and none the environment, which goes with it: ours, since libpq reads
    variables for whatever the string leaves out (PGHOST, PGPASSFILE, PGSERVICEFILE, PGSSLROOTCERT). The tool must have
    ended when the block does.
    """
    hidden, shown, unnamed = _hidden_options(), {"application_name": name}, {}
    environment = {**os.environ, "LC_ALL": "C"}
    for key, value in _with_liveness(dsn).items():
        if key in hidden:
            if (variable := hidden[key]) is not None:
                environment[variable] = value
            else:
                unnamed[key] = value
        elif key not in ("application_name", "dbname"):
            shown[key] = value
    with ExitStack() as kept:
        if unnamed:
            # No variable holds them. A service's file can, but a connection has one service only.
            if "service" in shown or "PGSERVICE" in environment:
                raise ConfigurationError(
                    f"{', '.join(unnamed)} cannot be given to PostgreSQL's tools beside a service",
                    hint="move it from DR_DSN__<SERVICE> into the service's file",
                )
            file = kept.enter_context(tempfile.NamedTemporaryFile("w", prefix="dr-service-"))
            file.write("[dr_pipelines]\n" + "".join(f"{key}={value}\n" for key, value in unnamed.items()))
            file.flush()
            environment |= {"PGSERVICEFILE": file.name, "PGSERVICE": "dr_pipelines"}
        yield make_conninfo("", **shown), environment


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
    """Bytes of all databases, as far as they lie in the tablespace that the asked one lies in."""
    superuser: str
    tablespaces: tuple[str, ...]
    archive_mode: str
    archive_command: str
    archive_timeout: int
    """Seconds; 0: a segment is archived only when it is full."""
    max_wal_size: int
    """Bytes that the log in the data directory may reach before a checkpoint is due."""
    data_checksums: bool
    in_recovery: bool


# The size of each database would need a privilege on each; that of one's own tablespace may be asked by everybody.
_SIZE: LiteralString = "SELECT pg_tablespace_size(dattablespace) FROM pg_database WHERE datname = current_database()"


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
        size=int(scalar(connection, _SIZE)),
        superuser=str(scalar(connection, "SELECT rolname FROM pg_roles WHERE oid = 10")),
        tablespaces=tuple(str(row[0]) for row in tablespaces),
        archive_mode=str(scalar(connection, "SHOW archive_mode")),
        archive_command=str(scalar(connection, "SHOW archive_command")),
        archive_timeout=int(scalar(connection, "SELECT setting FROM pg_settings WHERE name = 'archive_timeout'")),
        max_wal_size=int(scalar(connection, "SELECT pg_size_bytes(current_setting('max_wal_size'))")),
        data_checksums=scalar(connection, "SHOW data_checksums") == "on",
        in_recovery=bool(scalar(connection, "SELECT pg_is_in_recovery()")),
    )
