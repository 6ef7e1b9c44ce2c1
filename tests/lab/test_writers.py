"""Writers against a real server: whatever is killed, their notes and its rows agree."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import pytest

from dr_pipelines.drills.measure import Rows, measure
from dr_pipelines.engines.checks import worst
from dr_pipelines.lab import schema
from dr_pipelines.lab.marks import WriterMarks, read_marks, recovered_marks
from dr_pipelines.timing import wait_until

from .conftest import Server

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).parents[2]
ON_MARKERS = "CREATE {kind} TRIGGER watch {when} INSERT ON markers {how} FOR EACH ROW EXECUTE FUNCTION watch()"


class Writer:
    """A writer's process and its log."""

    def __init__(self, number: int, log: Path, dsn: str, rate: float) -> None:
        self.number, self.log = number, log
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "dr_pipelines.lab.writers"),
                *("--writer", str(number), "--log", str(log), "--rate", str(rate)),
            ],
            env={**os.environ, "DR_WRITER_DSN": dsn},
            cwd=CHECKOUT,
            stderr=subprocess.PIPE,
            text=True,
        )

    def notes(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def acknowledged(self) -> int:
        return sum(line.startswith("K ") for line in self.notes())

    def wait_for(self, rows: int) -> None:
        assert wait_until(lambda: self.acknowledged() >= rows, timeout=30), self.notes()[-3:]

    def end(self) -> tuple[int, str]:
        """Wait for the end; exit code and what it said."""
        _, said = self.process.communicate(timeout=30)
        return self.process.returncode, said

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def marks(self) -> WriterMarks:
        return read_marks(self.log)


Start = Callable[..., Writer]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    logs = count()
    with ExitStack() as cleanup:

        def start_writer(server: Server, number: int = 1, rate: float = 200) -> Writer:
            writer = Writer(number, tmp_path / f"{next(logs)}.log", server.dsn, rate)
            assert writer.process.stderr
            cleanup.callback(writer.process.stderr.close)
            cleanup.callback(writer.kill)
            return writer

        yield start_writer


@pytest.fixture
def hotel(any_server: Server) -> Server:
    return make_hotel(any_server)


def make_hotel(server: Server) -> Server:
    server.database()
    with server.connect() as connection:
        schema.create(connection)
        schema.load(connection, 1)
    return server


def watch_markers(server: Server, body: str, *, at_commit: bool = False) -> None:
    """Let the server run `body` on each marker, when it is written or when its transaction commits."""
    how = ("CONSTRAINT", "AFTER", "DEFERRABLE INITIALLY DEFERRED") if at_commit else ("", "BEFORE", "")
    with server.connect() as connection:
        connection.execute("CREATE SEQUENCE calls")
        connection.execute(
            f"CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} RETURN NEW; END $$"
        )
        connection.execute(ON_MARKERS.format(kind=how[0], when=how[1], how=how[2]))


def recovered(server: Server) -> dict[int, list[int]]:
    with server.connect() as connection:
        return {writer: [seq for seq, _ in rows] for writer, rows in recovered_marks(connection).items()}


def waits_for_lock(server: Server) -> bool:
    with server.connect() as connection:
        query = (
            "SELECT 1 FROM pg_stat_activity "
            "WHERE application_name = 'writer-1' AND wait_event_type = 'Lock' AND datname = current_database()"
        )
        return connection.execute(query).fetchone() is not None


def test_each_row_comes_with_what_a_hotel_does(hotel: Server, start: Start) -> None:
    counts = ", ".join(f"(SELECT count(*) FROM {table})" for table in ("messages", "reservations", "payments"))
    with hotel.connect() as connection:
        before = connection.execute(f"SELECT {counts}").fetchone()
        writer = start(hotel)
        writer.wait_for(40)
        writer.process.terminate()
        assert writer.end() == (0, "")
        after = connection.execute(f"SELECT {counts}").fetchone()
        rows = recovered_marks(connection)[1]
    assert before
    assert after
    messages, reservations, payments = (now - then for now, then in zip(after, before, strict=True))
    assert reservations == payments > 0 < messages
    assert messages + reservations == len(rows) == len(writer.marks().attempts)
    assert rows == tuple((row.seq, row.attempted_at) for row in writer.marks().attempts)


def test_it_does_not_write_faster_than_was_asked(hotel: Server, start: Start) -> None:
    writer = start(hotel, rate=50)
    writer.wait_for(21)
    attempts = writer.marks().attempts
    assert attempts[20].attempted_at - attempts[0].attempted_at > timedelta(seconds=0.3)


def test_what_was_acknowledged_survives_the_servers_sudden_death(server: Server, start: Start) -> None:
    make_hotel(server)
    writers = [start(server, number) for number in (1, 2, 3)]
    for writer in writers:
        writer.wait_for(30)
    recovery_point = datetime.now(UTC)
    for writer in writers:
        writer.wait_for(50)
    outage = datetime.now(UTC)
    server.kill()
    for writer in writers:
        assert writer.end() == (0, "")
        assert writer.notes()[-1].startswith("E ")
    server.start()
    result = measure(
        [writer.marks() for writer in writers],
        recovered(server),
        outage_started_at=outage,
        recovery_point=recovery_point,
    )
    assert worst(result.checks) is True, result.checks
    assert result.rpo == timedelta(0)
    assert result.rows.acknowledged == result.rows.recovered >= 150


def test_rows_that_a_restore_lost_are_found(hotel: Server, start: Start) -> None:
    writer = start(hotel)
    writer.wait_for(30)
    writer.process.terminate()
    writer.end()
    marks = writer.marks()
    with hotel.connect() as connection:
        connection.execute("DELETE FROM markers WHERE seq > 20")
    outage = marks.attempts[-1].attempted_at + timedelta(seconds=1)
    result = measure([marks], recovered(hotel), outage_started_at=outage, recovery_point=outage)
    assert result.rows == Rows(len(marks.attempts), 20, len(marks.attempts) - 20)
    assert result.rpo == outage - marks.attempts[19].attempted_at
    assert [check.name for check in result.checks if not check.passed] == [
        "acknowledged_before_recovery_point_are_there"
    ]


def test_a_killed_writer_leaves_a_log_that_agrees_with_the_rows(hotel: Server, start: Start) -> None:
    writer = start(hotel, rate=1000)
    writer.wait_for(50)
    writer.kill()
    with hotel.connect() as connection:
        gone = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'writer-1' AND datname = current_database()"
        assert wait_until(lambda: connection.execute(gone).fetchone() is None, timeout=10)
    assert not writer.notes()[-1].startswith("E ")
    now = datetime.now(UTC)
    result = measure([writer.marks()], recovered(hotel), outage_started_at=now, recovery_point=now)
    assert worst(result.checks) is True, result.checks
    assert result.rpo == timedelta(0)


@pytest.mark.parametrize("killed", ["connection", "writer"])
def test_a_commit_whose_answer_never_came_stays_open(hotel: Server, start: Start, killed: str) -> None:
    watch_markers(hotel, "IF NEW.seq = 3 THEN PERFORM pg_advisory_xact_lock(1); END IF;", at_commit=True)
    with hotel.connect() as connection:
        connection.execute("SELECT pg_advisory_lock(1)")
        writer = start(hotel)
        assert wait_until(lambda: waits_for_lock(hotel), timeout=30)
        if killed == "writer":
            writer.kill()
        else:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'writer-1' AND datname = current_database()"
            )
            assert writer.end() == (0, "")
            assert "AdminShutdown" in writer.notes()[-1]
        connection.execute("SELECT pg_advisory_unlock(1)")
    rows = 3 if killed == "writer" else 2
    assert wait_until(lambda: len(recovered(hotel)[1]) == rows, timeout=10)
    assert [row.acknowledged_at is None for row in writer.marks().attempts] == [False, False, True]
    now = datetime.now(UTC)
    result = measure([writer.marks()], recovered(hotel), outage_started_at=now, recovery_point=now)
    assert worst(result.checks) is True, result.checks
    assert result.rows == Rows(2, 2, 0)


@pytest.mark.parametrize("at_commit", [False, True], ids=["in the transaction", "at its commit"])
@pytest.mark.parametrize(("state", "name"), [("40001", "SerializationFailure"), ("40P01", "DeadlockDetected")])
def test_a_transaction_that_fails_by_itself_is_tried_again(
    hotel: Server, start: Start, state: str, name: str, at_commit: bool
) -> None:
    body = f"IF nextval('calls') IN (1, 5, 6) THEN RAISE 'not now' USING ERRCODE = '{state}'; END IF;"
    watch_markers(hotel, body, at_commit=at_commit)
    writer = start(hotel)
    writer.wait_for(10)
    writer.process.terminate()
    assert writer.end() == (0, "")
    retried = [line.split(" ")[:2] + line.split(" ")[3:4] for line in writer.notes() if line.startswith("R ")]
    assert retried == [["R", "1", f"{name}:"], ["R", "4", f"{name}:"], ["R", "4", f"{name}:"]]
    marks = writer.marks()
    assert all(row.acknowledged_at for row in marks.attempts)
    assert recovered(hotel) == {1: [row.seq for row in marks.attempts]}


def test_another_error_ends_it_and_is_said(hotel: Server, start: Start) -> None:
    watch_markers(hotel, "IF NEW.seq = 5 THEN RAISE 'the hotel is closed'; END IF;")
    writer = start(hotel)
    code, said = writer.end()
    assert code == 1
    assert "the hotel is closed" in said
    assert "the hotel is closed" in writer.notes()[-1]
    assert recovered(hotel) == {1: [row.seq for row in writer.marks().attempts]} == {1: [1, 2, 3, 4]}


def test_told_to_end_it_finishes_the_transaction_that_it_is_in(hotel: Server, start: Start) -> None:
    watch_markers(hotel, "IF NEW.seq = 3 THEN PERFORM pg_advisory_xact_lock(1); END IF;", at_commit=True)
    with hotel.connect() as connection:
        connection.execute("SELECT pg_advisory_lock(1)")
        writer = start(hotel)
        assert wait_until(lambda: waits_for_lock(hotel), timeout=30)
        writer.process.send_signal(signal.SIGTERM)
        assert writer.process.poll() is None
        connection.execute("SELECT pg_advisory_unlock(1)")
    assert writer.end() == (0, "")
    assert writer.notes()[-1].split(" ", 2)[::2] == ["E", "told to end"]
    assert [bool(row.acknowledged_at) for row in writer.marks().attempts] == [True, True, True]
    assert recovered(hotel) == {1: [1, 2, 3]}


def test_an_acknowledgement_means_that_the_row_is_on_disk(hotel: Server, start: Start) -> None:
    with hotel.connect() as connection:
        connection.execute(f"ALTER DATABASE {connection.info.dbname} SET synchronous_commit TO off")
    watch_markers(hotel, "IF current_setting('synchronous_commit') <> 'on' THEN RAISE 'not on disk'; END IF;")
    writer = start(hotel)
    writer.wait_for(1)


def test_a_number_is_used_once(hotel: Server, start: Start) -> None:
    first = start(hotel)
    first.wait_for(1)
    code, said = start(hotel).end()
    assert code == 2
    assert "give it another number" in said
    start(hotel, 2).wait_for(1)


def test_an_empty_hotel_is_refused(any_server: Server, start: Start) -> None:
    any_server.database()
    with any_server.connect() as connection:
        schema.create(connection)
    code, said = start(any_server).end()
    assert code == 2
    assert "load data first" in said


def test_a_log_that_is_there_is_not_touched(hotel: Server, tmp_path: Path) -> None:
    log = tmp_path / "writer.log"
    log.write_text("kept")
    code, said = Writer(1, log, hotel.dsn, 10).end()
    assert code == 2
    assert "name a new file" in said
    assert log.read_text() == "kept"


@pytest.mark.parametrize(
    ("dsn", "code", "expected"),
    [("", 2, "DR_WRITER_DSN"), ("host=127.0.0.1 port=1", 1, "cannot reach the database")],
)
def test_without_a_database_it_says_what_is_missing(tmp_path: Path, dsn: str, code: int, expected: str) -> None:
    result, said = Writer(1, tmp_path / "writer.log", dsn, 10).end()
    assert result == code
    assert expected in said


@pytest.mark.parametrize(("number", "rate"), [(1, 0), (1, -1), (-1, 10)])
def test_numbers_that_make_no_sense_are_refused(tmp_path: Path, number: int, rate: float) -> None:
    code, said = Writer(number, tmp_path / "writer.log", "host=127.0.0.1", rate).end()
    assert code == 2
    assert "must be above 0" in said
    assert not (tmp_path / "writer.log").exists()
