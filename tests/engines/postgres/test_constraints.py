"""Constraints checked again: each kind is shown to hold and to be caught when it is broken behind PostgreSQL's back."""

from collections.abc import Iterator
from dataclasses import dataclass

import psycopg
import pytest

from dr_pipelines.engines.checks import Check
from dr_pipelines.engines.postgres.connection import connect
from dr_pipelines.engines.postgres.constraints import check_constraints
from dr_pipelines.processes.postgres import all_binaries
from dr_pipelines.settings import Settings
from tests import archived
from tests.archived import Cluster

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["newest", "oldest"])
def server(request: pytest.FixtureRequest, settings: Settings) -> Iterator[Cluster]:
    """A server of the newest and one of the oldest version that is installed."""
    installed = all_binaries(settings)
    with archived.cluster(settings, installed[0 if request.param == "newest" else -1]) as made:
        made.start()
        yield made


@dataclass
class Database:
    """A database of one test."""

    server: Cluster
    name: str

    def do(self, *statements: str) -> None:
        self.server.do(*statements, database=self.name)

    def unchecked(self, *statements: str) -> None:
        """Without triggers, so without foreign keys."""
        self.do("SET session_replication_role = replica", *statements)

    def unsorted(self, index: str, *statements: str) -> None:
        """While an index is not kept up, and then as if it had been."""
        self.do(f"UPDATE pg_index SET indisready = false, indisvalid = false WHERE indexrelid = '{index}'::regclass")
        self.do(*statements)
        self.do(f"UPDATE pg_index SET indisready = true, indisvalid = true WHERE indexrelid = '{index}'::regclass")

    def check(self) -> Check:
        with connect(self.server.server.dsn(self.name)) as connection:
            return check_constraints(connection, self.name)

    def finds(self, words: str) -> None:
        found = self.check()
        assert found.passed is False
        assert words in found.detail

    def holds(self) -> None:
        found = self.check()
        assert found.passed is True, found.detail


@pytest.fixture
def database(server: Cluster) -> Iterator[Database]:
    server.do("CREATE DATABASE tested")
    yield Database(server, "tested")
    server.do("DROP DATABASE tested WITH (FORCE)")


class TestForeignKeys:
    def test_a_row_without_its_parent(self, database: Database) -> None:
        database.do(
            'CREATE TABLE "the guests" (id int PRIMARY KEY)',
            'CREATE TABLE stays (guest int REFERENCES "the guests")',
            'INSERT INTO "the guests" VALUES (1)',
            "INSERT INTO stays VALUES (1), (NULL)",
        )
        database.holds()
        database.unchecked("INSERT INTO stays VALUES (2), (3)")
        database.finds("foreign key stays_guest_fkey of stays: 2 rows")

    def test_a_parent_that_is_gone(self, database: Database) -> None:
        database.do(
            "CREATE TABLE guests (id int PRIMARY KEY)",
            "CREATE TABLE stays (guest int REFERENCES guests)",
            "INSERT INTO guests VALUES (1)",
            "INSERT INTO stays VALUES (1)",
        )
        database.unchecked("DELETE FROM guests")
        database.finds("foreign key stays_guest_fkey of stays: 1 rows")

    def test_of_several_columns_simple_and_full(self, database: Database) -> None:
        database.do(
            "CREATE TABLE rooms (house int, number int, PRIMARY KEY (house, number))",
            "CREATE TABLE a (house int, number int, FOREIGN KEY (house, number) REFERENCES rooms)",
            "CREATE TABLE b (house int, number int, FOREIGN KEY (house, number) REFERENCES rooms MATCH FULL)",
            "INSERT INTO a VALUES (1, NULL)",
            "INSERT INTO b VALUES (NULL, NULL)",
        )
        database.holds()
        database.unchecked("INSERT INTO b VALUES (1, NULL)")
        database.finds("foreign key b_house_number_fkey of b: 1 rows")

    def test_between_partitioned_tables(self, database: Database) -> None:
        database.do(
            "CREATE TABLE guests (id int PRIMARY KEY) PARTITION BY RANGE (id)",
            "CREATE TABLE guests_1 PARTITION OF guests FOR VALUES FROM (0) TO (10)",
            "CREATE TABLE guests_2 PARTITION OF guests FOR VALUES FROM (10) TO (20)",
            "CREATE TABLE stays (guest int REFERENCES guests) PARTITION BY RANGE (guest)",
            "CREATE TABLE stays_1 PARTITION OF stays DEFAULT",
            "INSERT INTO guests VALUES (1), (11)",
            "INSERT INTO stays VALUES (1), (11)",
        )
        database.holds()
        database.unchecked("INSERT INTO stays VALUES (2)")
        database.finds("foreign key stays_guest_fkey of stays: 1 rows")

    def test_a_key_that_was_never_validated_is_not_asked_for(self, database: Database) -> None:
        database.do(
            "CREATE TABLE guests (id int PRIMARY KEY)",
            "CREATE TABLE stays (guest int)",
            "INSERT INTO stays VALUES (1)",
            "ALTER TABLE stays ADD FOREIGN KEY (guest) REFERENCES guests NOT VALID",
        )
        database.holds()


class TestUniqueKeys:
    def test_a_row_that_is_there_twice(self, database: Database) -> None:
        database.do('CREATE TABLE rooms ("Number" int PRIMARY KEY)', "INSERT INTO rooms VALUES (1)")
        database.holds()
        database.unsorted("rooms_pkey", "INSERT INTO rooms VALUES (1), (1), (2)")
        database.finds("unique key rooms_pkey of rooms: 1 rows")

    def test_nulls_are_distinct_unless_they_are_not(self, database: Database) -> None:
        database.do(
            "CREATE TABLE a (n int UNIQUE)",
            "CREATE TABLE b (n int UNIQUE NULLS NOT DISTINCT)",
            "INSERT INTO a VALUES (NULL), (NULL)",
            "INSERT INTO b VALUES (NULL)",
        )
        database.holds()
        database.unsorted("b_n_key", "INSERT INTO b VALUES (NULL)")
        database.finds("unique key b_n_key of b: 1 rows")

    def test_of_some_rows_and_of_expressions(self, database: Database) -> None:
        database.do(
            "CREATE TABLE guests (email text, gone boolean)",
            "CREATE UNIQUE INDEX one_address ON guests (lower(email)) WHERE NOT gone",
            "INSERT INTO guests VALUES ('a@x', false), ('A@X', true), ('a@x', true)",
        )
        database.holds()
        database.unsorted("one_address", "INSERT INTO guests VALUES ('A@x', false)")
        database.finds("unique key one_address of guests: 1 rows")

    def test_columns_that_an_index_only_carries_do_not_count(self, database: Database) -> None:
        database.do(
            "CREATE TABLE rooms (n int, note text)",
            "CREATE UNIQUE INDEX one_room ON rooms (n) INCLUDE (note)",
        )
        database.unsorted("one_room", "INSERT INTO rooms VALUES (1, 'a'), (1, 'b')")
        database.finds("unique key one_room of rooms: 1 rows")

    def test_of_a_partitioned_table_and_of_one_partition_alone(self, database: Database) -> None:
        database.do(
            "CREATE TABLE stays (day int, room int, PRIMARY KEY (day, room)) PARTITION BY RANGE (day)",
            "CREATE TABLE stays_1 PARTITION OF stays DEFAULT",
            "CREATE UNIQUE INDEX one_room ON stays_1 (room)",
            "INSERT INTO stays VALUES (1, 1), (1, 2)",
        )
        database.holds()
        database.unsorted("one_room", "INSERT INTO stays VALUES (2, 1)")
        database.finds("unique key one_room of stays_1: 1 rows")

    def test_a_table_is_not_blamed_for_its_heirs(self, database: Database) -> None:
        database.do(
            "CREATE TABLE people (id int PRIMARY KEY)",
            "CREATE TABLE staff () INHERITS (people)",
            "CREATE TABLE badges (person int REFERENCES people)",
            "INSERT INTO people VALUES (1)",
            "INSERT INTO staff VALUES (1)",
        )
        database.holds()
        database.unchecked("DELETE FROM ONLY people", "INSERT INTO badges VALUES (1)")
        database.finds("foreign key badges_person_fkey of badges: 1 rows")


class TestRowsOfTheirOwn:
    def test_a_value_that_breaks_a_check(self, database: Database) -> None:
        database.do("CREATE TABLE rooms (rate int CHECK (rate > 0))", "INSERT INTO rooms VALUES (1), (NULL)")
        database.holds()
        database.do(
            "ALTER TABLE rooms DROP CONSTRAINT rooms_rate_check",
            "INSERT INTO rooms VALUES (-1)",
            "ALTER TABLE rooms ADD CHECK (rate > 0) NOT VALID",
        )
        database.holds()
        database.do("UPDATE pg_constraint SET convalidated = true WHERE conname = 'rooms_rate_check'")
        database.finds("check rooms_rate_check of rooms: 1 rows")
        database.do("ALTER DATABASE tested SET constraint_exclusion = on")
        database.finds("check rooms_rate_check of rooms: 1 rows")

    def test_of_very_many_columns(self, database: Database) -> None:
        columns = ", ".join(f"c{number} int NOT NULL DEFAULT 0" for number in range(250))
        database.do(f"CREATE TABLE wide ({columns})", "INSERT INTO wide DEFAULT VALUES")
        database.holds()
        column = "WHERE attrelid = 'wide'::regclass AND attname = 'c249'"
        database.do(
            f"UPDATE pg_attribute SET attnotnull = false {column}",
            "INSERT INTO wide (c249) VALUES (NULL)",
            f"UPDATE pg_attribute SET attnotnull = true {column}",
        )
        database.finds("NOT NULL of wide: 1 rows")

    def test_a_check_that_heirs_do_not_have(self, database: Database) -> None:
        database.do(
            "CREATE TABLE rooms (rate int, CHECK (rate > 0) NO INHERIT)",
            "CREATE TABLE suites () INHERITS (rooms)",
            "INSERT INTO suites VALUES (-1)",
        )
        database.holds()

    def test_a_null_where_none_may_be(self, database: Database) -> None:
        database.do('CREATE TABLE rooms ("select" int NOT NULL, b int)', "INSERT INTO rooms VALUES (1, NULL)")
        database.holds()
        column = "WHERE attrelid = 'rooms'::regclass AND attname = 'select'"
        database.do(
            f"UPDATE pg_attribute SET attnotnull = false {column}",
            "INSERT INTO rooms VALUES (NULL, 1)",
            f"UPDATE pg_attribute SET attnotnull = true {column}",
        )
        database.finds("NOT NULL of rooms: 1 rows")


class TestExclusions:
    def test_two_stays_in_one_room_at_a_time(self, database: Database) -> None:
        database.do(
            "CREATE TABLE stays (days daterange, gone boolean, EXCLUDE USING gist (days WITH &&) WHERE (NOT gone))",
            "INSERT INTO stays VALUES ('[2026-03-01,2026-03-05)', false), ('[2026-03-02,2026-03-03)', true)",
        )
        database.holds()
        database.unsorted("stays_days_excl", "INSERT INTO stays VALUES ('[2026-03-04,2026-03-06)', false)")
        database.finds("exclusion stays_days_excl of stays: 1 rows")


class TestWhatIsNotThere:
    def test_a_database_without_tables(self, database: Database) -> None:
        assert database.check() == Check("constraints_hold[tested]", True, "0 constraints hold")

    def test_temporary_tables_of_others_are_left_alone(self, database: Database) -> None:
        """After a restore the catalogue still has those of sessions that are gone."""
        with database.server.connect("tested") as other:
            other.execute("CREATE TEMPORARY TABLE mine (n int PRIMARY KEY CHECK (n > 0))")
            other.execute("CREATE TEMPORARY TABLE ours (n int REFERENCES mine, EXCLUDE USING btree (n WITH =))")
            database.holds()


class TestDamage:
    def test_a_table_whose_file_is_gone_is_a_finding(self, database: Database) -> None:
        database.do("CREATE TABLE rooms (n int NOT NULL)", "INSERT INTO rooms VALUES (1)", "CHECKPOINT")
        path = database.server.ask("SELECT pg_relation_filepath('rooms')", "tested")
        database.server.server.stop()
        (database.server.server.data / str(path)).unlink()
        database.server.start()
        found = database.check()
        assert found.passed is False
        assert "NOT NULL of rooms cannot be checked: could not open file" in found.detail

    def test_a_question_that_cannot_be_answered_leaves_it_open(self, database: Database) -> None:
        database.do(
            "CREATE FUNCTION broken(int) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN $1 > 0; END'",
            "CREATE TABLE rooms (n int NOT NULL CHECK (broken(n)))",
            "INSERT INTO rooms VALUES (1)",
            "CREATE OR REPLACE FUNCTION broken(int) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS "
            "'BEGIN RAISE EXCEPTION ''no more''; END'",
        )
        found = database.check()
        assert found.passed is None
        assert "check rooms_n_check of rooms cannot be checked: no more" in found.detail

    def test_many_problems_are_counted_and_the_first_ones_named(self, database: Database) -> None:
        database.do("CREATE TABLE guests (id int PRIMARY KEY)")
        for number in range(9):
            database.do(f"CREATE TABLE t{number} (guest int REFERENCES guests)")
            database.unchecked(f"INSERT INTO t{number} VALUES (1)")
        found = database.check()
        assert "of t0: 1 rows" in found.detail
        assert found.detail.endswith("; and 4 more")


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_of_another_encoding(server: Cluster, encoding: str) -> None:
    server.do(f"CREATE DATABASE other ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0")
    try:
        database = Database(server, "other")
        with psycopg.connect(server.server.dsn("other"), autocommit=True, client_encoding="LATIN1") as connection:
            connection.execute('CREATE TABLE "zürich" (n int NOT NULL CHECK (n > 0))'.encode("latin-1"))
        if encoding == "LATIN1":
            database.holds()
        else:
            assert database.check().passed is None
    finally:
        server.do("DROP DATABASE other WITH (FORCE)")
