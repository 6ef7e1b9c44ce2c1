"""What a command sees of a runbook that another process carries out."""

import threading
from pathlib import Path

import pytest

from dr_pipelines.errors import TargetRefused
from dr_pipelines.runbooks.progress import LOG_INTERVAL, Entry, EntryKind, ProgressReader, Reporter
from dr_pipelines.timing import FakeClock


class Lines:
    """A log that keeps its lines."""

    def __init__(self) -> None:
        self.info_lines: list[str] = []
        self.warning_lines: list[str] = []

    def info(self, message: str) -> None:
        self.info_lines.append(message)

    def warning(self, message: str) -> None:
        self.warning_lines.append(message)


@pytest.fixture
def log() -> Lines:
    return Lines()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "progress"


def told(file: Path) -> list[tuple[EntryKind, str]]:
    return [(entry.kind, entry.text) for entry in ProgressReader(file).read()]


def test_notes_and_warnings_go_to_the_log_and_to_the_file(log: Lines, clock: FakeClock, file: Path) -> None:
    reporter = Reporter(log, clock, file)
    reporter.info("begun")
    reporter.warning("late")
    assert (log.info_lines, log.warning_lines) == (["begun"], ["late"])
    assert told(file) == [(EntryKind.NOTE, "begun"), (EntryKind.WARNING, "late")]
    assert ProgressReader(file).read()[0].at == clock.wall()


def test_without_a_file_only_the_log_hears(log: Lines, clock: FakeClock, tmp_path: Path) -> None:
    reporter = Reporter.from_environment(log, clock, {})
    with reporter.step("assess"):
        reporter.info("begun")
    assert log.info_lines == ["begun"]
    assert list(tmp_path.iterdir()) == []


def test_the_environment_names_the_file(log: Lines, clock: FakeClock, file: Path) -> None:
    Reporter.from_environment(log, clock, {"DR_PROGRESS": str(file)}).record("20260301T120000Z-drill-abcdef")
    assert told(file) == [(EntryKind.RECORD, "20260301T120000Z-drill-abcdef")]


def test_the_log_hears_of_progress_every_few_seconds_only(log: Lines, clock: FakeClock, file: Path) -> None:
    reporter = Reporter(log, clock, file)
    for done in range(21):
        reporter.progress("copying", done, 20)
        clock.advance(0.5)
    assert log.info_lines == ["copying: 50 %", "copying: 100 %"]
    assert LOG_INTERVAL == 5


def test_the_file_hears_of_progress_more_often_and_always_of_the_end(log: Lines, clock: FakeClock, file: Path) -> None:
    reporter = Reporter(log, clock, file)
    for done in range(12):
        reporter.progress("copying", done, 11)
        clock.advance(0.125)
    entries = ProgressReader(file).read()
    assert [entry.done for entry in entries] == [0, 2, 4, 6, 8, 10, 11]
    assert {entry.total for entry in entries} == {11}


def test_the_end_is_told_once_even_where_it_comes_at_once_and_again(log: Lines, clock: FakeClock, file: Path) -> None:
    reporter = Reporter(log, clock, file)
    for done in (1, 2, 2, 2):
        reporter.progress("copying", done, 2)
    assert [entry.done for entry in ProgressReader(file).read()] == [1, 2]


def test_a_step_is_told_with_how_it_ended(log: Lines, clock: FakeClock, file: Path) -> None:
    reporter = Reporter(log, clock, file)
    with reporter.step("assess"):
        pass
    with pytest.raises(TargetRefused), reporter.step("prepare"):
        raise TargetRefused("/srv/data is not empty", hint="give a new folder")
    assert [(entry.text, entry.outcome) for entry in ProgressReader(file).read() if entry.outcome] == [
        ("assess", "started"),
        ("assess", "done"),
        ("prepare", "started"),
        ("prepare", "failed"),
    ]
    error = ProgressReader(file).read()[-1]
    assert (error.kind, error.text, error.hint) == (EntryKind.ERROR, "/srv/data is not empty", "give a new folder")
    assert (error.code, error.exit_code) == ("target-refused", 2)


def test_a_reader_gets_each_line_once_and_no_half_line(log: Lines, clock: FakeClock, file: Path) -> None:
    reader = ProgressReader(file)
    assert reader.read() == ()
    reporter = Reporter(log, clock, file)
    reporter.info("one")
    assert [entry.text for entry in reader.read()] == ["one"]
    line = Entry(at=clock.wall(), kind=EntryKind.NOTE, text="two").model_dump_json() + "\n"
    with file.open("a") as end:
        end.write(line[:10])
    assert reader.read() == ()
    with file.open("a") as end:
        end.write(line[10:])
    assert [entry.text for entry in reader.read()] == ["two"]


def test_lines_of_several_threads_do_not_mix(log: Lines, clock: FakeClock, file: Path) -> None:
    reporter = Reporter(log, clock, file)

    def talk() -> None:
        for _ in range(50):
            reporter.info("x" * 500)

    threads = [threading.Thread(target=talk) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told(file) == [(EntryKind.NOTE, "x" * 500)] * 200
