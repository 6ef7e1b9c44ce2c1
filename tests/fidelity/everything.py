"""A cluster that holds one of everything that PostgreSQL can store, and the account of it that pg_dumpall gives."""

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import psycopg

from dr_pipelines.processes.postgres import Binaries
from tests.archived import Cluster
from tests.fidelity.types import Stored, store_types

FOLDER = Path(__file__).parent
DATABASES = (
    "CREATE DATABASE things OWNER owner CONNECTION LIMIT 50",
    "CREATE DATABASE types",
    "CREATE DATABASE extended",
    "CREATE DATABASE latin TEMPLATE template0 ENCODING LATIN1 LOCALE 'C'",
    "CREATE DATABASE \"raw bytes\" TEMPLATE template0 ENCODING SQL_ASCII LOCALE 'POSIX'",
    "CREATE DATABASE japanese TEMPLATE template0 ENCODING EUC_JP LOCALE 'C'",
    "CREATE DATABASE pattern IS_TEMPLATE true",
    "CREATE DATABASE closed",
    "ALTER DATABASE things SET work_mem = '9MB'",
    "ALTER DATABASE things SET search_path = things, public",
    "ALTER ROLE app IN DATABASE things SET statement_timeout = '1min'",
    "REVOKE CONNECT, TEMPORARY ON DATABASE things FROM PUBLIC",
    "GRANT CONNECT ON DATABASE things TO app WITH GRANT OPTION",
    "COMMENT ON DATABASE things IS 'everything'",
)
# A locale provider of its own, of those that an installation has; "default" is the operating system's.
PROVIDERS = (
    "CREATE DATABASE german TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'de-u-co-phonebk'",
    "CREATE DATABASE built_in TEMPLATE template0 LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8'",
)


KINDS = """
    ACCESS METHOD|AGGREGATE|CAST|COLLATION|CONSTRAINT TRIGGER|DATABASE|DEFAULT CONVERSION|DOMAIN
    |EVENT TRIGGER|EXTENSION|FOREIGN DATA WRAPPER|FOREIGN TABLE|FUNCTION|INDEX|LANGUAGE|MATERIALIZED VIEW|OPERATOR
    |OPERATOR CLASS|OPERATOR FAMILY|POLICY|PROCEDURE|PUBLICATION|ROLE|RULE|SCHEMA|SEQUENCE|SERVER|STATISTICS
    |SUBSCRIPTION|TABLE|TEXT SEARCH CONFIGURATION|TEXT SEARCH DICTIONARY|TEXT SEARCH PARSER|TEXT SEARCH TEMPLATE
    |TRANSFORM|TRIGGER|TYPE|UNIQUE INDEX|UNLOGGED SEQUENCE|UNLOGGED TABLE|USER MAPPING|VIEW
"""
"""Of objects that CREATE makes; a word that stands after it in no line of a dump was left out."""


def make_first(cluster: Cluster) -> None:
    """Roles, databases, and one with one of each kind of object; written by whoever runs the cluster."""
    cluster.do((FOLDER / "globals.sql").read_text(), *DATABASES)
    cluster.do((FOLDER / "things.sql").read_text(), database="things")
    if cluster.server.binaries.major >= 18:
        cluster.do((FOLDER / "things-18.sql").read_text(), database="things")


def make_rest(cluster: Cluster) -> Stored:
    """Further encodings and locales, every type, every extension; returns what became of the built-in types."""
    for statement in PROVIDERS:
        try:
            cluster.do(statement)
        except (psycopg.errors.FeatureNotSupported, psycopg.errors.SyntaxError, psycopg.errors.InvalidParameterValue):
            continue  # this installation was built without it
    for database, text in (("latin", "Käse"), ("japanese", "日本"), ("pattern", "1"), ("closed", "kept")):
        cluster.do("SET client_encoding = UTF8", f"CREATE TABLE t AS SELECT '{text}'::text AS v", database=database)
    cluster.do(r"CREATE TABLE t AS SELECT E'\xe4\xff' AS v", database="raw bytes")
    cluster.do("ALTER DATABASE closed ALLOW_CONNECTIONS false")
    with cluster.connect("types") as connection:
        stored = store_types(connection, built_in=True)
    with cluster.connect("extended") as connection:
        extend(connection)
        store_types(connection, built_in=False)
    return stored


def extend(connection: psycopg.Connection) -> None:
    """Create every extension that the installation has; what one of them needs comes with it."""
    connection.execute("CREATE SCHEMA extensions")
    names = connection.execute("SELECT name FROM pg_available_extensions ORDER BY name").fetchall()
    for (name,) in names:
        connection.execute(f'CREATE EXTENSION IF NOT EXISTS "{name}" CASCADE'.encode())
    connection.execute("ALTER EXTENSION citext SET SCHEMA extensions")
    connection.execute(
        "CREATE TABLE documents (id uuid DEFAULT gen_random_uuid(), tags hstore, area cube, name extensions.citext);"
        "INSERT INTO documents SELECT md5(n::text)::uuid, hstore('n', n::text), cube(n), 'Name ' || n"
        " FROM generate_series(1, 100) n;"
        "CREATE INDEX ON documents USING gin (tags); CREATE INDEX ON documents USING gist (area);"
        "CREATE INDEX ON documents USING gin (name gin_trgm_ops)"
    )


def dump(dsn: str, tools: Binaries, *, password: str = "") -> list[str]:
    """What pg_dumpall writes, line by line, without what stands in unlogged tables."""
    # Else newer ones put a random word of their own into it.
    key = [] if "--restrict-key" not in _help(tools) else ["--restrict-key=same"]
    command = [tools["pg_dumpall"], "--no-unlogged-table-data", *key, "-d", dsn]
    env = {"PATH": os.environ["PATH"], "TZ": "UTC", "PGPASSWORD": password}
    done = subprocess.run(command, capture_output=True, timeout=300, env=env)
    assert done.returncode == 0, done.stderr.decode()
    # Bytes of several encodings: each of them is a character here, so that none is lost.
    return done.stdout.decode("latin-1").split("\n")


def _help(tools: Binaries) -> str:
    return subprocess.run([tools["pg_dumpall"], "--help"], capture_output=True, text=True, check=True).stdout


_SETVAL = re.compile(r"SELECT pg_catalog\.setval\('(.+)', (-?\d+), (true|false)\);")


def sequences(dumped: Sequence[str]) -> dict[str, int]:
    """By name, where the sequences stand."""
    found = (_SETVAL.fullmatch(line) for line in dumped)
    return {match[1]: int(match[2]) for match in found if match}


def without_sequences(dumped: Sequence[str]) -> list[str]:
    """The dump with the names of sequences, without their positions."""
    return [_SETVAL.sub(r"setval \1", line) for line in dumped]


def kinds_missing(dumped: Sequence[str]) -> set[str]:
    """The kinds of objects of which the dump makes none."""
    text = "\n".join(dumped)
    kinds = {kind.strip() for kind in KINDS.split("|")}
    words = "(OR REPLACE |TRUSTED |PROCEDURAL )*"
    return {kind for kind in kinds if not re.search(rf"^CREATE {words}{kind} ", text, re.MULTILINE)}
