"""A writer's log is read as it was written, torn ends passed over and nonsense refused."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dr_pipelines.lab import schema
from dr_pipelines.lab.marks import Attempt, MarkLog, WriterMarks, read_marks, recovered_marks

from .conftest import Server

NOON = datetime(2026, 3, 1, 12, 0, 0, 5, tzinfo=UTC)
HEAD = "W 3 2026-03-01T12:00:00Z\n"
A1, K1 = "A 1 2026-03-01T12:00:01Z\n", "K 1 2026-03-01T12:00:02Z\n"
A2, K2 = "A 2 2026-03-01T12:00:03Z\n", "K 2 2026-03-01T12:00:04Z\n"
R1, R2 = "R 1 2026-03-01T12:00:02Z DeadlockDetected: detected\n", "R 2 2026-03-01T12:00:04Z again\n"
END = "E 2026-03-01T12:00:05Z server closed the connection\n"


def second(number: int) -> datetime:
    return datetime(2026, 3, 1, 12, 0, number, tzinfo=UTC)


def read(folder: Path, text: str) -> WriterMarks:
    path = folder / "writer.log"
    path.write_text(text)
    return read_marks(path)


def test_what_was_noted_is_read(tmp_path: Path) -> None:
    path = tmp_path / "writer.log"
    with MarkLog(path, 7, NOON) as log:
        log.attempted(1, NOON)
        log.acknowledged(1, NOON + timedelta(seconds=1))
        log.attempted(2, NOON + timedelta(seconds=2))
        log.retried(2, NOON + timedelta(seconds=3), "a deadlock\nDETAIL: on two lines")
        log.attempted(2, NOON + timedelta(seconds=4))
        log.ended(NOON + timedelta(seconds=5), "server closed\nthe connection")
    assert read_marks(path) == WriterMarks(
        7, (Attempt(1, NOON, NOON + timedelta(seconds=1)), Attempt(2, NOON + timedelta(seconds=4)))
    )


def test_a_log_is_of_one_run(tmp_path: Path) -> None:
    MarkLog(tmp_path / "writer.log", 7, NOON).close()
    with pytest.raises(FileExistsError):
        MarkLog(tmp_path / "writer.log", 7, NOON)


@pytest.mark.parametrize(
    ("text", "attempts"),
    [
        (HEAD, ()),
        (HEAD + A1, (Attempt(1, second(1)),)),
        (HEAD + A1 + K1 + A2 + K2, (Attempt(1, second(1), second(2)), Attempt(2, second(3), second(4)))),
        (HEAD + A1 + R1, ()),
        (HEAD + R1 + A1 + K1, (Attempt(1, second(1), second(2)),)),
        (HEAD + A1 + K1 + A2 + R2 + A2 + END, (Attempt(1, second(1), second(2)), Attempt(2, second(3)))),
        (HEAD + A1 + K1 + A2 + END + K2, (Attempt(1, second(1), second(2)), Attempt(2, second(3), second(4)))),
    ],
    ids=["nothing", "open", "two rows", "failed", "failed before its attempt", "tried again", "claimed after the end"],
)
def test_attempts_and_acknowledgements(tmp_path: Path, text: str, attempts: tuple[Attempt, ...]) -> None:
    assert read(tmp_path, text) == WriterMarks(3, attempts)


def test_a_log_torn_anywhere_is_read_up_to_its_last_whole_line(tmp_path: Path) -> None:
    text = HEAD + A1 + K1 + A2 + K2
    for end in range(len(HEAD), len(text)):
        whole = text[: text.rindex("\n", 0, end) + 1]
        assert read(tmp_path, text[:end]) == read(tmp_path, whole)


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("", 1, "no writer is named"),
        ("W 3", 1, "no writer is named"),
        (A1, 1, "one line that names its writer"),
        (HEAD + HEAD, 2, "one line that names its writer"),
        (HEAD + K1, 2, "no row is open"),
        (HEAD + A2, 2, "expected row 1"),
        (HEAD + A1 + A2, 3, "row 1 is still open"),
        (HEAD + A1 + A1, 3, "row 1 is still open"),
        (HEAD + A1 + K2, 3, "expected row 1"),
        (HEAD + A1 + K1 + K1, 4, "no row is open"),
        (HEAD + A1 + K1 + A1, 4, "expected row 2"),
        (HEAD + A1 + R2, 3, "expected row 1"),
        (HEAD + "X 1 2026-03-01T12:00:01Z\n", 2, "not a valid Note"),
        (HEAD + "A one 2026-03-01T12:00:01Z\n", 2, "not a number"),
        (HEAD + "A -1 2026-03-01T12:00:01Z\n", 2, "not a number"),
        (HEAD + "A 1 2026-03-01T12:00:01\n", 2, "no time zone"),
        (HEAD + "A 1 noon\n", 2, "not a moment"),
        (HEAD + "A 1\n", 2, "expected a number and a moment"),
        (HEAD + "A 1 2026-03-01T12:00:01Z more\n", 2, "expected a number and a moment"),
        (HEAD + "E\n", 2, "not a moment"),
        (HEAD + "\n", 2, "not a valid Note"),
        (HEAD + A1[:5] + K1, 2, "expected a number and a moment"),
    ],
)
def test_what_no_writer_writes_is_refused_with_file_and_line(tmp_path: Path, text: str, line: int, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        read(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path}/writer.log:{line}: ")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "writer.log"
    path.write_bytes(HEAD.encode() + b"A \xff\n")
    with pytest.raises(ValueError, match=":2: "):
        read_marks(path)


def test_the_rows_of_a_database_by_writer(any_server: Server) -> None:
    any_server.database()
    with any_server.connect() as connection:
        schema.create(connection)
        connection.execute("SET timezone TO 'Asia/Tokyo'")
        for writer, seq in ((2, 2), (1, 1), (2, 1)):
            connection.execute("INSERT INTO markers VALUES (%s, %s, %s)", (writer, seq, NOON))
        assert recovered_marks(connection) == {1: ((1, NOON),), 2: ((1, NOON), (2, NOON))}
        assert {moment.tzinfo for rows in recovered_marks(connection).values() for _, moment in rows} == {UTC}
