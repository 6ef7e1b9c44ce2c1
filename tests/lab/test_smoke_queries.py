"""The shipped plan's queries, asked of the hotel's database: they hold, and each catches what it is there for."""

from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from dr_pipelines.lab import schema
from dr_pipelines.plan import Validation, load_plan

if TYPE_CHECKING:
    from tests.lab.conftest import Server

PLAN = load_plan(Path(__file__).parents[2] / "recovery-plan.yaml")

# By smoke query: what makes it fail, once the constraints that forbid it are gone.
DAMAGE = {
    "guests_exist": "DELETE FROM guests",
    "rooms_exist": "DELETE FROM rooms",
    "guest_ids_are_unique": "INSERT INTO guests SELECT * FROM guests LIMIT 1",
    "no_reservation_without_guest_or_room": "UPDATE reservations SET room_id = -1 WHERE id = 1",
    "no_message_without_guest": "UPDATE messages SET guest_id = -1 WHERE id = 1",
    "no_payment_without_reservation": "UPDATE payments SET reservation_id = -1 WHERE id = 1",
}


def _validation() -> Validation:
    validation = PLAN.service("database").validation
    assert validation is not None
    return validation


def _failing(connection: psycopg.Connection) -> list[str]:
    failing = []
    for query in _validation().smoke_queries:
        row = connection.execute(query.sql.encode()).fetchone()
        assert row is not None
        assert len(row) == 1
        if not query.expect.holds(row[0]):
            failing.append(query.name)
    return failing


@pytest.fixture(scope="module")
def hotel(any_server: "Server") -> str:
    """The connection string of a small hotel's database."""
    any_server.database()
    with any_server.connect() as connection:
        schema.create(connection)
        schema.load(connection, 1)
    return str(any_server.dsn)


def test_every_query_holds_for_a_sound_database(hotel: str) -> None:
    with psycopg.connect(hotel) as connection:
        assert _failing(connection) == []
        row = connection.execute(_validation().application_query.encode()).fetchone()
        assert row is not None


def test_every_query_is_shown_to_catch_something() -> None:
    assert set(DAMAGE) == {query.name for query in _validation().smoke_queries}


@pytest.mark.parametrize(("name", "damage"), DAMAGE.items(), ids=DAMAGE.keys())
def test_a_query_fails_for_the_damage_it_is_there_for(hotel: str, name: str, damage: str) -> None:
    with psycopg.connect(hotel) as connection:
        rows = connection.execute(
            "SELECT conrelid::regclass::text, conname FROM pg_constraint WHERE contype IN ('f', 'p', 'u') "
            "AND connamespace = 'public'::regnamespace ORDER BY contype"  # foreign keys first, what they need later
        ).fetchall()
        for table, constraint in rows:
            connection.execute(f"ALTER TABLE {table} DROP CONSTRAINT {constraint}".encode())
        connection.execute("ALTER TABLE guests ALTER id DROP IDENTITY IF EXISTS")
        connection.execute(damage.encode())
        assert name in _failing(connection)
        connection.rollback()
