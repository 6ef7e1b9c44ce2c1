"""WAL fetched ahead: what `restore_command` answers, and that no failure looks like the end of the log."""

import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dr_pipelines.engines.postgres.log import Log
from dr_pipelines.engines.postgres.staging import Stage
from dr_pipelines.engines.postgres.target import PRIVATE
from dr_pipelines.errors import ObjectCorrupt, ObjectMissing
from dr_pipelines.repository.folder import FolderStore
from dr_pipelines.timing import wait_until
from tests.archived import flip, open_to_all
from tests.made_up import segment

ENDS, STOPS = 1, 255
"""Exit codes: PostgreSQL takes the first for the end of the log, and stops at the second."""
HISTORY = "00000002.history"


@dataclass
class Place:
    """A data directory that is being restored, and the stored log; nobody is PostgreSQL but the test."""

    data: Path
    log: Log
    names: list[str]

    def stage(self, names: list[str] | None = None) -> Stage:
        stage = Stage(self.data, self.log, self.names if names is None else names, None, 2)
        stage.open()
        return stage

    def command(self, name: str) -> list[str]:
        """What PostgreSQL runs for a file of the log."""
        line = Stage(self.data, self.log, [], None, 1).restore_command
        return shlex.split(line.replace("%f", name).replace("%p", "pg_wal/RECOVERYXLOG"))

    def ask(self, name: str) -> int:
        return subprocess.run(self.command(name), cwd=self.data, timeout=30, check=False).returncode

    def taken(self) -> bytes:
        return (self.data / "pg_wal" / "RECOVERYXLOG").read_bytes()

    def staged(self) -> list[str]:
        return sorted(path.name for path in (self.data / PRIVATE / "wal").iterdir() if path.name in self.names)


@pytest.fixture
def place() -> Iterator[Place]:
    with open_to_all() as folder:
        data = folder / "it's a target"
        (data / PRIVATE).mkdir(parents=True)
        (data / "pg_wal").mkdir()
        log = Log(FolderStore(folder / "store"))
        log.put(HISTORY, b"1\t0/5000000\tno recovery target specified\n")
        segments = [segment(number) for number in range(5, 45)]
        for name, raw in segments:
            log.put(name, raw)
        yield Place(data, log, [HISTORY, *(name for name, _ in segments)])


class TestGiven:
    def test_every_file_in_order(self, place: Place) -> None:
        stage = place.stage()
        with stage.fetching():
            for name in place.names:
                assert place.ask(name) == 0
                assert place.taken() == place.log.fetch(name)
            stage.check()
        assert stage.progress() == (len(place.names) - 1, len(place.names))
        assert place.staged() == [HISTORY]

    def test_a_history_as_often_as_it_is_asked_for(self, place: Place) -> None:
        stage = place.stage([HISTORY])
        with stage.fetching():
            assert [place.ask(HISTORY), place.ask(HISTORY)] == [0, 0]
            stage.check()
        assert place.taken() == place.log.fetch(HISTORY)

    def test_a_file_that_is_still_to_come(self, place: Place) -> None:
        stage = place.stage()
        waiting = subprocess.Popen(place.command(place.names[3]), cwd=place.data)
        assert wait_until(stage.wanted, timeout=10)
        assert waiting.poll() is None
        with stage.fetching():
            assert waiting.wait(timeout=20) == 0
        assert place.taken() == place.log.fetch(place.names[3])

    def test_not_more_ahead_than_is_bounded(self, place: Place) -> None:
        with place.stage().fetching():
            assert wait_until(lambda: len(place.staged()) == 24, timeout=20)
            assert place.ask(place.names[10]) == 0
            assert wait_until(lambda: place.names[33] in place.staged(), timeout=20)
            assert place.names[34] not in place.staged()


class TestEnds:
    def test_at_a_file_that_is_not_on_the_list(self, place: Place) -> None:
        with place.stage(place.names[:5]).fetching():
            assert place.ask(place.names[5]) == ENDS
            assert place.ask("00000003.history") == ENDS
            assert place.ask(place.names[2][:-1] + ".") == ENDS

    def test_at_a_file_that_was_taken_before(self, place: Place) -> None:
        """PostgreSQL looks into pg_wal itself."""
        stage = place.stage()
        with stage.fetching():
            assert place.ask(place.names[1]) == 0
            (place.data / "pg_wal" / "RECOVERYXLOG").rename(place.data / "pg_wal" / place.names[1])
            assert place.ask(place.names[1]) == ENDS


class TestStops:
    def test_where_a_segment_is_damaged(self, place: Place) -> None:
        name = place.names[2]
        flip(place.log.store, f"log/{name[:8]}/{name}")
        stage = place.stage()
        with stage.fetching():
            assert place.ask(name) == STOPS
            with pytest.raises(ObjectCorrupt, match=name):
                stage.check()

    def test_where_another_segment_has_its_name(self, place: Place) -> None:
        first, second = (f"log/{name[:8]}/{name}" for name in place.names[2:4])
        place.log.store.put(first, [place.log.store.get(second)])
        stage = place.stage()
        with stage.fetching():
            assert place.ask(place.names[2]) == STOPS
            with pytest.raises(ObjectCorrupt, match="and not from"):
                stage.check()

    def test_where_a_segment_is_gone_from_the_repository(self, place: Place) -> None:
        name = place.names[2]
        place.log.store.delete(f"log/{name[:8]}/{name}")
        stage = place.stage()
        with stage.fetching():
            assert place.ask(name) == STOPS
            with pytest.raises(ObjectMissing, match=name):
                stage.check()

    def test_where_the_fetcher_was_killed(self, place: Place) -> None:
        script = (
            "import sys, pathlib\n"
            "from dr_pipelines.engines.postgres.log import Log\n"
            "from dr_pipelines.engines.postgres.staging import Stage\n"
            "from dr_pipelines.repository.folder import FolderStore\n"
            "Stage(pathlib.Path(sys.argv[1]), Log(FolderStore(sys.argv[2])), sys.argv[3:], None, 1).open()\n"
            "print('open', flush=True)\n"
            "sys.stdin.read()\n"
        )
        with subprocess.Popen(
            [sys.executable, "-c", script, str(place.data), place.log.store.url, *place.names],
            cwd=Path(__file__).parents[3],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as fetcher:
            assert fetcher.stdout is not None and fetcher.stdout.readline() == b"open\n"
            waiting = subprocess.Popen(place.command(place.names[1]), cwd=place.data)
            assert wait_until((place.data / PRIVATE / "wal" / "wanted").exists, timeout=10)
            assert waiting.poll() is None
            fetcher.kill()
            fetcher.wait()
            assert waiting.wait(timeout=20) == STOPS
        # What it had fetched before is still of use.
        name = place.names[1]
        (place.data / PRIVATE / "wal" / name).write_bytes(place.log.fetch(name))
        assert place.ask(name) == 0

    def test_where_the_list_is_gone(self, place: Place) -> None:
        place.stage()
        (place.data / PRIVATE / "wal" / "coming").unlink()
        assert place.ask(place.names[1]) == STOPS

    def test_where_a_file_cannot_be_moved_to_its_place(self, place: Place) -> None:
        (place.data / "pg_wal").rmdir()
        with place.stage().fetching():
            assert place.ask(place.names[1]) == STOPS


def test_what_an_interrupted_restore_had_fetched_is_fetched_again(place: Place) -> None:
    """After a crash of the machine a file may have its name and none of its content."""
    place.stage()
    (place.data / PRIVATE / "wal" / place.names[1]).write_bytes(b"")
    with place.stage().fetching():
        assert place.ask(place.names[1]) == 0
        assert place.taken() == place.log.fetch(place.names[1])
