"""Tables with a column, and a value in it, of every type that the catalogue has: nobody has to think of a new one."""

from collections.abc import Iterator
from dataclasses import dataclass

import psycopg

COLUMNS = 60
"""Of one table; a row has to fit into a page."""

ODD = "tab\there, back\\slash, \\. and line\nbreak, ä 奶 🧀 '\"$"
# What stands here is odd on purpose; a value that another type takes is found among the candidates.
VALUES = {
    '"char"': "\\",
    "aclitem": "postgres=arwdDxt/postgres",
    "bytea": r"\x00ff5c5c27",
    "character varying": ODD,
    "circle": "<(1,2),3>",
    "datemultirange": "{[2026-01-01,2026-02-01),[2026-03-01,infinity)}",
    "daterange": "[-infinity,2026-01-01)",
    "double precision": "-0.1e-300",
    "interval": "-1 year 2 mons -3 days 04:05:06.789",
    "json": '{"a" : [1, null, "\\u00e4 \\\\"], "a":2}',
    "jsonb": '{"a": [1, null, "ä \\\\", 1e-400]}',
    "jsonpath": '$."a"[*] ? (@ > 1 && @ like_regex "^x" flag "i")',
    "line": "{1,-2,3}",
    "name": ODD,
    "numeric": "-12345678901234567890.000000000012345678900",
    "pg_lsn": "16/B374D848",
    "pg_snapshot": "10:20:10,14,15",
    "polygon": "((0,0),(1,1),(0,1.5))",
    "real": "NaN",
    "text": ODD,
    "tsquery": "'it''s' & !'b':*AB <2> 'c'",
    "tsvector": "'it''s':1A,2B 'word':16383",
    "txid_snapshot": "10:20:10,14,15",
    "xml": '<a b="c">ä&amp;</a>',
}
CANDIDATES = (
    *("1", "1 2", "a", "(1,2)", "10:11:12.5+02", "2026-03-01 10:11:12.123456+02", "(1,2),(3,4)", "192.0.2.0/24"),
    *("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "08:00:2b:01:02:03", "08:00:2b:01:02:03:04:05", "[1,2)", "{[1,2),[5,6)}"),
    *("[2026-03-01 10:00:00,infinity)", "{[2026-03-01 10:00:00,)}", "pg_class", "upper(text)", "int4in", "||/"),
    *("+(integer,integer)", "simple", "pg_catalog", "postgres", '"C"', "YES", "978-0-393-04002-9"),
    *("a=>1", "[1,2,3]", "{1:2}/3"),
)
# These take no value from a text; PostgreSQL keeps some of its own.
EXPRESSIONS = {
    "pg_node_tree": "(SELECT adbin FROM pg_attrdef LIMIT 1)",
    "pg_ndistinct": "(SELECT stxdndistinct FROM pg_statistic_ext_data LIMIT 1)",
    "pg_dependencies": "(SELECT stxddependencies FROM pg_statistic_ext_data LIMIT 1)",
    "pg_mcv_list": "(SELECT stxdmcv FROM pg_statistic_ext_data LIMIT 1)",
}
_FOR_EXPRESSIONS = (
    "CREATE TABLE correlated AS SELECT n % 10 AS a, n % 5 AS b FROM generate_series(1, 1000) n",
    "ALTER TABLE correlated ADD COLUMN c integer DEFAULT 1 + random()",
    "CREATE STATISTICS correlation (ndistinct, dependencies, mcv) ON a, b FROM correlated",
    "ANALYZE correlated",
)
_TYPES = """
    SELECT format_type(t.oid, NULL), t.typrelid::regclass::text,
        CASE WHEN t.typcategory = 'A' AND t.typsubscript = 'array_subscript_handler'::regproc AND t.typlen = -1
            AND t.typelem <> 0 AND e.typarray = t.oid THEN format_type(t.typelem, NULL) END
    FROM pg_type t LEFT JOIN pg_type e ON e.oid = t.typelem
    WHERE t.typtype <> 'p' AND t.typisdefined AND (t.oid < 16384) = %s
        AND (t.oid < 16384 OR coalesce((SELECT relkind = 'c' FROM pg_class
            WHERE oid = greatest(t.typrelid, e.typrelid)), true))
    ORDER BY t.oid
"""


@dataclass(frozen=True)
class Stored:
    """What became of the types of a database."""

    with_value: frozenset[str]
    without_value: frozenset[str]
    """A table can have a column of it, and nothing was found that puts a value into it."""
    refused: frozenset[str]
    """No table can have a column of it, says PostgreSQL, since it would hold a pseudo-type."""


def store_types(connection: psycopg.Connection, *, built_in: bool) -> Stored:
    """Make the tables: of PostgreSQL's own types, or of those that were added to the database since."""
    if built_in:
        for statement in _FOR_EXPRESSIONS:
            connection.execute(statement.encode())
    found = connection.execute(_TYPES, [built_in]).fetchall()
    values: dict[str, str | None] = {}
    refused = set()
    # Arrays after what they are arrays of.
    for name, relation, element in sorted(found, key=lambda row: row[2] is not None):
        try:
            connection.execute(f"CREATE TEMPORARY TABLE probe (v {name})".encode())
        except psycopg.errors.InvalidTableDefinition:
            refused.add(name)
            continue
        values[name] = next(_accepted(connection, name, relation, values.get(element) if element else None), None)
        connection.execute("DROP TABLE probe")
    # What stays NULL has a column as well.
    columns = list(values.items())
    for first in range(0, len(columns), COLUMNS):
        some = list(enumerate(columns[first : first + COLUMNS], first))
        kind = "types" if built_in else "added_types"
        declared = ", ".join(f"v{number} {name}" for number, (name, _) in some)
        connection.execute(f"CREATE TABLE {kind}_{first} ({declared})".encode())
        chosen = ", ".join(value or "NULL" for _, (_, value) in some)
        connection.execute(f"INSERT INTO {kind}_{first} VALUES ({chosen})".encode())
    with_value = frozenset(name for name, value in columns if value is not None)
    return Stored(with_value, frozenset(values) - with_value, frozenset(refused))


def _accepted(connection: psycopg.Connection, name: str, relation: str, element: str | None) -> Iterator[str]:
    """The expressions that PostgreSQL accepts as a value of the type."""
    for expression in _expressions(name, relation, element):
        try:
            connection.execute(f"TRUNCATE probe; INSERT INTO probe VALUES ({expression})".encode())
            row = connection.execute("SELECT num_nonnulls(v) FROM probe").fetchone()
        except psycopg.OperationalError:
            raise
        except psycopg.DatabaseError:  # not a value of this type
            continue
        if row == (1,):
            yield expression


def _expressions(name: str, relation: str, element: str | None) -> Iterator[str]:
    if element is not None:
        yield f"ARRAY[NULL, {element}]::{name}"
    elif relation != "-":
        yield f"(SELECT r FROM {relation} r LIMIT 1)"
        yield f"jsonb_populate_record(NULL::{name}, '{{}}')"
    elif name in EXPRESSIONS:
        yield EXPRESSIONS[name]
    else:
        for text in (VALUES[name],) if name in VALUES else CANDIDATES:
            escaped = text.replace("\\", "\\\\").replace("'", "\\'")
            yield f"E'{escaped}'::{name}"
