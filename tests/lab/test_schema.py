"""The hotel's database has its tables, keeps its rules, and gets as large as was asked for."""

import zlib

import psycopg
import pytest
from psycopg import errors

from dr_pipelines.lab import schema

from .conftest import Server

pytestmark = pytest.mark.slow

GUEST = "INSERT INTO guests (full_name, email, phone) VALUES ('Ana', 'ana@example.org', '1')"
ROOM = "INSERT INTO rooms (number, kind, rate_cents) VALUES ('101', 'single', 9900)"
STAY = (
    "INSERT INTO reservations (guest_id, room_id, arrives_on, leaves_on, status) "
    "VALUES (1, 1, '2026-03-01', '2026-03-02', 'booked')"
)
PAID = "INSERT INTO payments (reservation_id, amount_cents) VALUES (1, 9900)"
MARK = "INSERT INTO markers VALUES (1, 1, now())"


def number(connection: psycopg.Connection, query: str) -> int:
    row = connection.execute(query).fetchone()
    assert row is not None
    return int(row[0])


def rows_of(connection: psycopg.Connection) -> dict[str, tuple[object, ...] | None]:
    digest = "SELECT count(*), md5(string_agg(t::text, ',' ORDER BY id)) FROM {} t"
    return {
        table: connection.execute(digest.format(table)).fetchone()
        for table in ("guests", "rooms", "reservations", "messages", "payments")
    }


@pytest.mark.parametrize("compressible", [True, False])
def test_a_database_of_about_the_size_that_was_asked_for(any_server: Server, compressible: bool) -> None:
    any_server.database()
    told: list[tuple[int, int]] = []
    with any_server.connect() as connection:
        schema.create(connection)
        schema.load(
            connection, 30_000_000, progress=lambda done, of: told.append((done, of)), compressible=compressible
        )
        size = number(connection, "SELECT pg_database_size(current_database())")
        bodies = connection.execute("SELECT body FROM messages ORDER BY id LIMIT 2000").fetchall()
        for table in ("guests", "rooms", "reservations", "messages", "payments"):
            assert number(connection, f"SELECT count(*) FROM {table}") > 100
    assert 30_000_000 <= size < 31_500_000
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1][0] >= 30_000_000
    assert {of for _, of in told} == {30_000_000}
    text = "".join(body for (body,) in bodies).encode()
    ratio = len(text) / len(zlib.compress(text, 1))
    assert ratio > 3 if compressible else ratio < 1.4


def test_the_same_seed_gives_the_same_rows_and_another_gives_others(any_server: Server) -> None:
    found = []
    for seed, zone in ((1, "UTC"), (1, "Asia/Tokyo"), (2, "UTC")):
        any_server.database()
        with any_server.connect() as connection:
            connection.execute(f"SET timezone TO '{zone}'")
            schema.create(connection)
            schema.load(connection, 12_000_000, seed)
            connection.execute("SET timezone TO 'UTC'")
            found.append(rows_of(connection))
    assert found[0] == found[1]
    assert all(found[0][table] != found[2][table] for table in ("guests", "reservations", "messages", "payments"))


def test_more_can_be_loaded_and_written_later(any_server: Server) -> None:
    any_server.database()
    with any_server.connect() as connection:
        schema.create(connection)
        schema.load(connection, 1)
        few = number(connection, "SELECT count(*) FROM guests")
        schema.load(connection, 12_000_000, seed=2)
        assert number(connection, "SELECT count(*) FROM guests") > few > 0
        for statement in (GUEST, ROOM.replace("101", "99"), STAY, PAID):
            connection.execute(statement)


def test_a_load_that_breaks_off_leaves_whole_batches(any_server: Server) -> None:
    def stop(done: int, of: int) -> None:
        raise InterruptedError

    any_server.database()
    with any_server.connect() as connection:
        schema.create(connection)
        with pytest.raises(InterruptedError):
            schema.load(connection, 100_000_000, progress=stop)
        assert number(connection, "SELECT count(*) FROM guests") == 5_000
        assert number(connection, "SELECT count(DISTINCT guest_id) FROM messages") == 5_000


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        (GUEST, errors.UniqueViolation),
        (ROOM, errors.UniqueViolation),
        (ROOM.replace("101", "102").replace("9900", "0"), errors.CheckViolation),
        (STAY.replace("2026-03-02", "2026-03-01"), errors.CheckViolation),
        (STAY.replace("booked", "lost"), errors.CheckViolation),
        (STAY.replace("(1, 1", "(2, 1"), errors.ForeignKeyViolation),
        (STAY.replace("(1, 1", "(1, 2"), errors.ForeignKeyViolation),
        (PAID.replace("9900", "0"), errors.CheckViolation),
        (PAID.replace("(1,", "(2,"), errors.ForeignKeyViolation),
        ("INSERT INTO messages (guest_id, body) VALUES (2, 'x')", errors.ForeignKeyViolation),
        (MARK, errors.UniqueViolation),
        ("INSERT INTO markers VALUES (1, 2, NULL)", errors.NotNullViolation),
    ],
)
def test_what_a_hotel_cannot_have_is_refused(any_server: Server, statement: str, error: type[psycopg.Error]) -> None:
    any_server.database()
    with any_server.connect() as connection:
        schema.create(connection)
        for good in (GUEST, ROOM, STAY, PAID, MARK):
            connection.execute(good)
        with pytest.raises(error):
            connection.execute(statement)
