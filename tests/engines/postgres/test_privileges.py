"""The role that backs up: LOGIN and REPLICATION are enough, what is not needed fails, and what is missing is named."""

import re

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from dr_pipelines.agent.sampler import ask
from dr_pipelines.engines.findings import Finding, Level
from dr_pipelines.engines.postgres import base_backup
from dr_pipelines.engines.postgres.connection import connect
from dr_pipelines.engines.postgres.inspect import judge_setup, read_setup
from dr_pipelines.engines.postgres.privileges import FUNCTIONS, missing_privileges, refusal_of_replication
from dr_pipelines.errors import DrError
from dr_pipelines.processes.postgres import find_binaries
from dr_pipelines.settings import Settings
from tests import archived

pytestmark = pytest.mark.slow

ROLE = "backup"
_OTHERS = """
SELECT format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', oid::regprocedure) FROM pg_proc
WHERE pronamespace = 'pg_catalog'::regnamespace AND proname LIKE 'pg\\_%' AND prokind = 'f'
"""


@pytest.fixture(scope="module")
def strict(source: archived.Source) -> archived.Source:
    """A server that gives PUBLIC none of the functions named pg_..., and the role nothing but what is listed."""
    source.do(
        f"CREATE ROLE {ROLE} LOGIN REPLICATION PASSWORD 'x'",
        "CREATE ROLE owner",
        "CREATE DATABASE private OWNER owner",
        "REVOKE CONNECT ON DATABASE private FROM PUBLIC",
        "CREATE TABLE accounts AS SELECT 1 AS id",
    )
    with source.connect() as connection:
        revoke = [statement for (statement,) in connection.execute(_OTHERS.encode()).fetchall()]
    source.do(*revoke, *(f"GRANT EXECUTE ON FUNCTION {name} TO {ROLE}" for name in FUNCTIONS))
    return source


def dsn_of(source: archived.Source, role: str = ROLE) -> str:
    return make_conninfo(source.server.dsn("postgres"), user=role, password="x")


def problems(source: archived.Source) -> list[Finding]:
    """What the doctor finds with the role's own eyes, but for what this server is set up with."""
    with connect(dsn_of(source)) as connection:
        setup = read_setup(connection, dsn_of(source))
    found = judge_setup(setup, "database", spool=source.spool, archive_timeout=None, rpo=None)
    apart = ("archive_timeout", "fsync, full_page_writes")
    return [finding for finding in found if finding.level is Level.PROBLEM and finding.looked_at not in apart]


def sample(source: archived.Source) -> None:
    """What the agent asks."""
    with psycopg.connect(dsn_of(source), autocommit=True) as connection:
        ask(connection, "dr_database")


def watch(source: archived.Source) -> None:
    """What a backup asks while it runs for longer than some seconds."""
    with connect(dsn_of(source)) as connection:
        connection.execute(base_backup._WAITING, ("nobody",))


def use_all(source: archived.Source) -> None:
    sample(source)
    watch(source)
    problems(source)


def test_login_replication_and_the_listed_functions_are_enough(strict: archived.Source) -> None:
    use_all(strict)

    assert strict.back_up(dsn=dsn_of(strict)).raw_bytes > 1 << 20
    assert problems(strict) == []


@pytest.mark.parametrize("function", FUNCTIONS)
def test_each_listed_function_is_needed_and_its_absence_is_named(strict: archived.Source, function: str) -> None:
    strict.do(f"REVOKE EXECUTE ON FUNCTION {function} FROM {ROLE}")
    try:
        with connect(dsn_of(strict)) as connection:
            (missing,) = missing_privileges(connection)
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match=function.partition("(")[0]):
            use_all(strict)
    finally:
        strict.do(f"GRANT EXECUTE ON FUNCTION {function} TO {ROLE}")

    assert (missing.role, missing.function) == (ROLE, function)
    assert missing.grant == f'GRANT EXECUTE ON FUNCTION {function} TO "{ROLE}"'


@pytest.mark.parametrize(
    ("taken", "given", "said"),
    [
        (f"ALTER ROLE {ROLE} NOREPLICATION", f"ALTER ROLE {ROLE} REPLICATION", "WAL ?sender"),
        (f"ALTER ROLE {ROLE} NOLOGIN", f"ALTER ROLE {ROLE} LOGIN", "not permitted to log in"),
    ],
)
def test_each_attribute_is_needed_and_the_server_says_so(
    strict: archived.Source, taken: str, given: str, said: str
) -> None:
    assert refusal_of_replication(dsn_of(strict)) is None
    strict.do(taken)
    try:
        refused = refusal_of_replication(dsn_of(strict))
        with pytest.raises(DrError, match=said):
            strict.back_up(dsn=dsn_of(strict))
    finally:
        strict.do(given)

    assert re.search(said, refused or "")


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM accounts",
        "CREATE TABLE mine (id int)",
        "CREATE ROLE another",
        "ALTER SYSTEM SET archive_command = ''",
        "SELECT pg_switch_wal()",
        "SELECT pg_read_file('PG_VERSION')",
        "COPY (SELECT 1) TO PROGRAM 'cat'",
    ],
)
def test_the_role_may_do_nothing_else(strict: archived.Source, statement: str) -> None:
    with connect(dsn_of(strict)) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(statement.encode())


def test_a_server_as_it_comes_gives_everybody_the_listed_functions(settings: Settings) -> None:
    with archived.cluster(settings, find_binaries(settings)) as plain:
        plain.start()
        with plain.connect() as connection:
            assert missing_privileges(connection, "public") == ()
