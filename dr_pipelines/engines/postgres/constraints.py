"""Constraints checked again on restored rows, rather than believed because the catalogue has them.

PostgreSQL checks a constraint when a row is written; nothing checks it again when files come back from a backup.
For each constraint a query is built from the catalogue that counts the rows which break it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import psycopg

from dr_pipelines.engines.checks import Check
from dr_pipelines.engines.postgres.connection import Connection

__all__ = ["check_constraints"]

# Names come out of the catalogue as PostgreSQL quotes them. Temporary tables of sessions that are gone cannot be read;
# a table's heirs by INHERITS are not bound by its keys, hence ONLY, while a partitioned table is nothing but its parts.
_FOREIGN_KEYS = """
SELECT c.conname, CASE WHEN t.relkind = 'p' THEN '' ELSE 'ONLY ' END || c.conrelid::regclass,
       CASE WHEN r.relkind = 'p' THEN '' ELSE 'ONLY ' END || c.confrelid::regclass,
       (SELECT array_agg(quote_ident(a.attname) ORDER BY k.place) FROM unnest(c.conkey) WITH ORDINALITY k(number, place)
          JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.number),
       (SELECT array_agg(quote_ident(a.attname) ORDER BY k.place)
          FROM unnest(c.confkey) WITH ORDINALITY k(number, place)
          JOIN pg_attribute a ON a.attrelid = c.confrelid AND a.attnum = k.number),
       c.confmatchtype = 'f'
FROM pg_constraint c JOIN pg_class t ON t.oid = c.conrelid JOIN pg_class r ON r.oid = c.confrelid
WHERE c.contype = 'f' AND c.convalidated AND c.conparentid = 0 AND t.relpersistence <> 't'
  AND NOT coalesce((to_jsonb(c) ->> 'conperiod')::boolean, false)
ORDER BY 2, 1
"""

_UNIQUE = """
SELECT i.indexrelid::regclass::text, CASE WHEN t.relkind = 'r' THEN 'ONLY ' ELSE '' END || i.indrelid::regclass,
       (SELECT array_agg(pg_get_indexdef(i.indexrelid, k, false) ORDER BY k) FROM generate_series(1, i.indnkeyatts) k),
       i.indnullsnotdistinct, pg_get_expr(i.indpred, i.indrelid)
FROM pg_index i JOIN pg_class t ON t.oid = i.indrelid JOIN pg_namespace n ON n.oid = t.relnamespace
WHERE i.indisunique AND i.indisvalid AND NOT i.indisexclusion
  AND t.relpersistence <> 't' AND t.relkind IN ('r', 'p', 'm')
  AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
  AND NOT EXISTS (SELECT FROM pg_inherits h WHERE h.inhrelid = i.indexrelid)
ORDER BY 2, 1
"""

_EXCLUSIONS = """
SELECT c.conname, c.conrelid::regclass::text, pg_get_expr(i.indpred, i.indrelid),
       array_agg(pg_get_indexdef(c.conindid, k.place::int, false) ORDER BY k.place),
       array_agg(format('OPERATOR(%I.%s)', n.nspname, o.oprname) ORDER BY k.place)
FROM pg_constraint c JOIN pg_class t ON t.oid = c.conrelid JOIN pg_index i ON i.indexrelid = c.conindid
  CROSS JOIN unnest(c.conexclop) WITH ORDINALITY k(operator, place)
  JOIN pg_operator o ON o.oid = k.operator JOIN pg_namespace n ON n.oid = o.oprnamespace
WHERE t.relkind = 'r' AND t.relpersistence <> 't'
GROUP BY c.oid, c.conname, c.conrelid, i.indpred, i.indrelid ORDER BY 2, 1
"""

_CHECKS = """
SELECT c.conname, c.conrelid::regclass::text, pg_get_expr(c.conbin, c.conrelid)
FROM pg_constraint c JOIN pg_class t ON t.oid = c.conrelid
WHERE c.contype = 'c' AND c.convalidated AND t.relkind = 'r' AND t.relpersistence <> 't' ORDER BY 2, 1
"""

_NOT_NULL = """
SELECT t.oid::regclass::text, array_agg(quote_ident(a.attname) ORDER BY a.attnum)
FROM pg_class t JOIN pg_namespace n ON n.oid = t.relnamespace
  JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum > 0 AND a.attnotnull AND NOT a.attisdropped
WHERE t.relkind = 'r' AND t.relpersistence <> 't' AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
  AND NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conrelid = t.oid AND c.contype = 'n' AND NOT c.convalidated
                    AND a.attnum = ANY (c.conkey))
GROUP BY t.oid ORDER BY 1
"""

# Read the tables themselves: an index that lost an entry must not hide a row from its own check. Nor may a constraint:
# the planner believes it, and leaves out what it says cannot be there.
_PREPARE = """
SET statement_timeout = 0; SET constraint_exclusion = off;
SET enable_indexscan = off; SET enable_indexonlyscan = off; SET enable_bitmapscan = off
"""
_PAIRS_TIMEOUT = "SET statement_timeout = '60s'"
"""Rows are compared in pairs for an exclusion constraint: with many rows of one key that has no end."""

_NAMED = 5


@dataclass(frozen=True)
class _Question:
    """A query that counts the rows which break a constraint."""

    what: str
    query: str


def check_constraints(connection: Connection, database: str) -> Check:
    """Look for rows that break a foreign key, a unique key, an exclusion, a check or a NOT NULL in one database.

    Failed where there are such rows or a table cannot be read because it is damaged; `passed` is None where a question
    could not be answered for another reason.
    """
    broken: list[str] = []
    undecided: list[str] = []
    count = 0
    what = "the catalogue"
    try:
        connection.execute(_PREPARE)
        questions = [*_rows_of_their_own(connection), *_keys(connection)]
        pairs = list(_pairs(connection))
    except psycopg.Error as error:
        (broken if _is_damage(error) else undecided).append(f"{what} cannot be read: {str(error).strip()}")
        questions, pairs = [], []
    for question in [*questions, *pairs]:
        try:
            if question in pairs:
                connection.execute(_PAIRS_TIMEOUT)
            row = connection.execute(question.query.encode()).fetchone()
            if row is not None and row[0]:
                broken.append(f"{question.what}: {row[0]} rows")
        except psycopg.Error as error:
            found = broken if _is_damage(error) else undecided
            found.append(f"{question.what} cannot be checked: {str(error).strip()}")
        count += 1
    problems = broken + undecided
    more = f"; and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
    detail = "; ".join(problems[:_NAMED]) + more if problems else f"{count} constraints hold"
    return Check(f"constraints_hold[{database}]", False if broken else None if undecided else True, detail)


def _is_damage(error: psycopg.Error) -> bool:
    """Data that is corrupted (class XX) or a file that is missing or cannot be read (class 58)."""
    return (error.sqlstate or "")[:2] in ("XX", "58")


def _keys(connection: Connection) -> Iterator[_Question]:
    for name, table, other, columns, other_columns, is_full in connection.execute(_FOREIGN_KEYS).fetchall():
        pairs = " AND ".join(f"r.{theirs} = t.{ours}" for ours, theirs in zip(columns, other_columns, strict=True))
        filled = " AND ".join(f"t.{ours} IS NOT NULL" for ours in columns)
        bad = f"{filled} AND NOT EXISTS (SELECT FROM {other} r WHERE {pairs})"
        if is_full:
            some = " OR ".join(f"t.{ours} IS NOT NULL" for ours in columns)
            bad = f"({bad}) OR (({some}) AND NOT ({filled}))"
        yield _Question(f"foreign key {name} of {_plain(table)}", f"SELECT count(*) FROM {table} t WHERE {bad}")
    for index, table, keys, nulls_are_equal, predicate in connection.execute(_UNIQUE).fetchall():
        conditions = [] if nulls_are_equal else [f"({key}) IS NOT NULL" for key in keys]
        conditions += [f"({predicate})"] if predicate else []
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        groups = ", ".join(f"({key})" for key in keys)
        doubles = f"SELECT FROM {table}{where} GROUP BY {groups} HAVING count(*) > 1"
        yield _Question(f"unique key {index} of {_plain(table)}", f"SELECT count(*) FROM ({doubles}) twice")


def _rows_of_their_own(connection: Connection) -> Iterator[_Question]:
    for name, table, expression in connection.execute(_CHECKS).fetchall():
        yield _Question(f"check {name} of {table}", f"SELECT count(*) FROM ONLY {table} WHERE NOT ({expression})")
    for table, columns in connection.execute(_NOT_NULL).fetchall():
        # Not "IS NULL", which since PostgreSQL 17 is never asked of a column that is NOT NULL; 100 arguments at most.
        groups = (columns[start : start + 100] for start in range(0, len(columns), 100))
        empty = " + ".join(f"num_nulls({', '.join(group)})" for group in groups)
        yield _Question(f"NOT NULL of {table}", f"SELECT count(*) FROM ONLY {table} WHERE {empty} > 0")


def _pairs(connection: Connection) -> Iterator[_Question]:
    for name, table, predicate, keys, operators in connection.execute(_EXCLUSIONS).fetchall():
        values = ", ".join(f"({key}) AS k{number}" for number, key in enumerate(keys))
        rows = f"(SELECT ctid AS place, {values} FROM ONLY {table}{f' WHERE {predicate}' if predicate else ''})"
        meets = " AND ".join(f"a.k{number} {operator} b.k{number}" for number, operator in enumerate(operators))
        query = f"SELECT count(*) FROM {rows} a JOIN {rows} b ON a.place < b.place AND {meets}"
        yield _Question(f"exclusion {name} of {table}", query)


def _plain(table: str) -> str:
    return table.removeprefix("ONLY ")
