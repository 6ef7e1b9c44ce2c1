"""Is the restored server what it should be, and are its data sound? Asked of the server that runs."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import psycopg

from dr_pipelines.engines.checks import Check
from dr_pipelines.engines.postgres.connection import connect, scalar
from dr_pipelines.engines.postgres.constraints import check_constraints
from dr_pipelines.engines.postgres.recovery import MAINTENANCE, RestoredServer
from dr_pipelines.engines.postgres.wal import Lsn
from dr_pipelines.errors import ProcessError
from dr_pipelines.plan import Validation
from dr_pipelines.processes.identity import run
from dr_pipelines.processes.postgres import Binaries
from dr_pipelines.repository.manifest import Manifest

__all__ = ["LogEnd", "ask", "databases_of", "first_query", "validate"]

_SCHEMA = "dr_pipelines_amcheck"


@dataclass(frozen=True)
class LogEnd:
    """What a replay of the whole log gets to, as far as that is known without replaying it."""

    last_segment: Lsn
    """Where the log's last segment begins."""
    proven: Lsn | None
    """Where the replay must get for the recovery point to be reached; None: unknown."""
    recovery_point_stated: bool
    """Whether a recovery point is given for what is restored; it holds only where the replay got there."""


def validate(
    server: RestoredServer,
    binaries: Binaries,
    manifest: Manifest,
    wishes: Validation | None,
    *,
    log_end: LogEnd | None,
    note: Callable[[str], None],
) -> tuple[Check, ...]:
    """Every check of a restored server; a check that cannot be carried out has `passed=None` and says why.

    `log_end` is for a restore to the latest point: a replay that ended before it left a part of the log out.
    """
    checks = [_identity(server, manifest)]
    if log_end is not None:
        checks.append(_reached(server, log_end))
    note("pg_amcheck: every table and B-tree index")
    checks.append(_amcheck(server, binaries))
    for database in databases_of(server):
        note(f"constraints of {database}")
        try:
            with connect(server.dsn(database)) as connection:
                checks.append(check_constraints(connection, database))
        except ProcessError as error:
            checks.append(Check(f"constraints_hold[{database}]", None, error.message))
    if wishes is not None:
        note("the plan's smoke queries")
        checks.extend(_smoke(server, wishes))
    return tuple(checks)


def databases_of(server: RestoredServer) -> tuple[str, ...]:
    """The databases that accept connections."""
    # A limit of -2 marks what an interrupted DROP DATABASE left.
    with connect(server.dsn(MAINTENANCE)) as connection:
        rows = connection.execute(
            "SELECT datname FROM pg_database WHERE datallowconn AND datconnlimit <> -2 ORDER BY 1"
        ).fetchall()
    return tuple(str(row[0]) for row in rows)


def first_query(server: RestoredServer, wishes: Validation | None) -> Check:
    """The application's first query, as the plan has it."""
    if wishes is None:
        return Check("application_query", None, "the plan names no application query")
    answer, error = ask(server.dsn(wishes.database), wishes.application_query)
    detail = f"answered {answer}" if error is None else error
    return Check("application_query", error is None, detail)


def _identity(server: RestoredServer, manifest: Manifest) -> Check:
    with connect(server.dsn(MAINTENANCE)) as connection:
        identifier = str(scalar(connection, "SELECT system_identifier FROM pg_control_system()"))
        folder = str(scalar(connection, "SHOW data_directory"))
        recovering = scalar(connection, "SELECT pg_is_in_recovery()")
    problems = []
    if identifier != manifest.system_identifier:
        problems.append(f"system identifier {identifier}, the backup's is {manifest.system_identifier}")
    if Path(folder).resolve() != server.data.resolve():
        problems.append(f"its data lie in {folder}, not in the target {server.data}")
    if recovering:
        problems.append("it is still in recovery")
    return Check("is_the_restored_server", not problems, "; ".join(problems) or f"system {identifier} in {folder}")


def _reached(server: RestoredServer, end: LogEnd) -> Check:
    """A broken record ends a replay just as the log's end does; only a position that was proven tells them apart."""
    replayed = Lsn.parse(server.replayed_lsn)
    passed: bool | None = replayed > end.last_segment and (end.proven is None or replayed >= end.proven)
    detail = f"replayed to {replayed}, the log's last segment begins at {end.last_segment}"
    if end.proven is not None:
        detail += f", the recovery point was proven at {end.proven}"
    elif passed and end.recovery_point_stated:
        passed, detail = None, f"{detail}, at which position the recovery point was proven is not known"
    return Check("log_replayed_to_its_end", passed, detail)


def _amcheck(server: RestoredServer, binaries: Binaries) -> Check:
    """pg_amcheck over all databases; the extension is put into a schema of its own and taken away again."""
    argv = [
        binaries["pg_amcheck"],
        *("--all", f"--install-missing={_SCHEMA}", f"--maintenance-db={MAINTENANCE}", "--no-strict-names", "--jobs=2"),
        *("--host", str(server.socket), "--port", str(server.port), "--username", server.superuser, "--no-password"),
    ]
    env = {"LC_ALL": "C", "PGOPTIONS": "-c statement_timeout=0 -c default_transaction_read_only=off"}
    with connect(server.dsn(MAINTENANCE)) as connection:
        if not scalar(connection, "SELECT count(*) FROM pg_available_extensions WHERE name = 'amcheck'"):
            return Check("amcheck", None, "the extension amcheck is not installed beside these binaries")
    lacking = [name for name in databases_of(server) if not _has_amcheck(server, name)]
    problems = _in_each(server, lacking, f"CREATE SCHEMA IF NOT EXISTS {_SCHEMA}")
    result = run(argv, env=env, timeout=4 * 3600, check=False)
    problems += _in_each(server, lacking, f"DROP EXTENSION IF EXISTS amcheck; DROP SCHEMA IF EXISTS {_SCHEMA}")
    said = re.sub(r"\s+", " ", (result.stdout + result.stderr).strip())[:500]
    if result.returncode == 2:
        return Check("amcheck", False, said)
    if result.returncode == 0 and not problems:
        return Check("amcheck", True, "no corruption found")
    return Check("amcheck", None, "; ".join([said, *problems] if said else problems))


def _in_each(server: RestoredServer, databases: Iterable[str], statements: str) -> list[str]:
    """Execute statements in each of the databases; returns what went wrong."""
    problems = []
    for database in databases:
        try:
            with connect(server.dsn(database)) as connection:
                connection.execute("SET default_transaction_read_only = off")
                connection.execute(statements.encode())
        except (psycopg.Error, ProcessError) as error:
            problems.append(f"{database}: {str(error).strip()}")
    return problems


def _has_amcheck(server: RestoredServer, database: str) -> bool:
    """Whether the source had it; what a validation that was interrupted had installed does not count."""
    try:
        with connect(server.dsn(database)) as connection:
            row = connection.execute(
                "SELECT count(*) FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace "
                "WHERE e.extname = 'amcheck' AND n.nspname <> %s",
                (_SCHEMA,),
            ).fetchone()
    except (psycopg.Error, ProcessError):
        return False
    return bool(row and row[0])


def _smoke(server: RestoredServer, wishes: Validation) -> list[Check]:
    checks = []
    for query in wishes.smoke_queries:
        answer, error = ask(server.dsn(wishes.database), query.sql)
        if error is not None:
            checks.append(Check(f"smoke[{query.name}]", False, error))
        else:
            checks.append(
                Check(f"smoke[{query.name}]", query.expect.holds(answer), f"answered {answer}, expected {query.expect}")
            )
    return checks


def ask(dsn: str, query: str) -> tuple[object, str | None]:
    """The first value of the answer to one of the plan's queries, or what went wrong in PostgreSQL's words."""
    try:
        with connect(dsn) as connection:
            # The plan's queries ask; a restored server is not theirs to change.
            connection.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
            row = connection.execute(query).fetchone()
    except (psycopg.Error, ProcessError) as error:
        return None, str(error).strip()
    return (row[0] if row else None), None
