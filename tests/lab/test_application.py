"""What the lab's application notes, read back."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from dr_pipelines.lab.application import Note, main, read_notes

NOTES = """\
B 2026-03-01T12:00:00.000000Z
S 2026-03-01T12:00:01.000000Z 127.0.0.1:5432
F 2026-03-01T12:00:02.000000Z 127.0.0.1:5432 AdminShutdown: it went away
F 2026-03-01T12:00:03.000000Z nowhere OperationalError: connection refused
S 2026-03-01T12:00:04.000000Z 127.0.0.1:5433
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "application.log"


def test_each_answer_and_each_failure_is_read_with_where_it_came_from(log: Path) -> None:
    log.write_text(NOTES + "S 2026-03-01T12:00:05")

    notes = read_notes(log)

    assert [note.answered for note in notes] == [True, False, False, True]
    assert notes[3] == Note(True, datetime(2026, 3, 1, 12, 0, 4, tzinfo=UTC), "127.0.0.1:5433")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "nothing is noted"),
        ("S 2026-03-01T12:00:01Z 127.0.0.1:5432\n", "application.log:1"),
        (NOTES + "B 2026-03-01T12:00:05Z\n", "application.log:6"),
        (NOTES + "S yesterday 127.0.0.1:5432\n", "application.log:6"),
        (NOTES + "S 2026-03-01T12:00:05Z\n", "application.log:6"),
        (NOTES + "X 2026-03-01T12:00:05Z there\n", "application.log:6"),
    ],
)
def test_what_no_application_writes_is_refused_with_its_line(log: Path, text: str, said: str) -> None:
    log.write_text(text)

    with pytest.raises(ValueError, match=said):
        read_notes(log)


def test_without_knowing_how_to_connect_it_ends_at_once(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DR_APPLICATION_DSN", raising=False)

    assert main(["--log", str(log)]) == 2
    assert not log.exists()


def test_a_log_of_another_run_is_not_written_to(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DR_APPLICATION_DSN", "host=127.0.0.1")
    log.write_text(NOTES)

    assert main(["--log", str(log)]) == 2
    assert log.read_text() == NOTES
