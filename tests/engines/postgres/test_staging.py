"""WAL fetched ahead: what `restore_command` answers, and that no failure looks like the end of the log."""

import shlex
import shutil
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

LOOKS, STOPS = 1, 255
"""Exit codes: at the first PostgreSQL looks into pg_wal, and takes a file that is not there for the end of the log; at
the second it stops."""
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
        return shlex.split(line.replace("%f", name))

    def ask(self, name: str) -> int:
        return subprocess.run(self.command(name), cwd=self.data, timeout=30, check=False).returncode

    def has(self, name: str) -> bool:
        """Whether PostgreSQL finds the file, whole, and will not archive it."""
        if not (self.data / "pg_wal" / name).exists():
            return False
        assert (self.data / "pg_wal" / "archive_status" / f"{name}.done").exists()
        return (self.data / "pg_wal" / name).read_bytes() == self.log.fetch(name)

    def gets(self, name: str) -> bool:
        """Whether PostgreSQL, which asks for the file, finds it then."""
        assert not self.has(name)
        return self.ask(name) == LOOKS and self.has(name)

    def ends_at(self, name: str) -> bool:
        """Whether PostgreSQL, which asks for the file, takes that for the end of the log."""
        return self.ask(name) == LOOKS and not (self.data / "pg_wal" / name).exists()

    def staged(self) -> list[str]:
        return sorted(path.name for path in (self.data / PRIVATE / "wal").iterdir() if path.name in self.names)


@pytest.fixture
def place() -> Iterator[Place]:
    with open_to_all() as folder:
        data = folder / "it's a target"
        (data / PRIVATE).mkdir(parents=True)
        (data / "pg_wal" / "archive_status").mkdir(parents=True)
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
                assert place.gets(name)
            stage.check()
        assert stage.progress() == (len(place.names) - 1, len(place.names))
        assert place.staged() == []

    def test_a_file_that_is_still_to_come(self, place: Place) -> None:
        stage = place.stage()
        waiting = subprocess.Popen(place.command(place.names[3]), cwd=place.data)
        assert wait_until(stage.wanted, timeout=10)
        assert waiting.poll() is None
        with stage.fetching():
            assert waiting.wait(timeout=20) == LOOKS
        assert place.has(place.names[3])

    @pytest.mark.parametrize(
        "number", [0, 1], ids=["a history, to find the newest timeline and to follow it", "a segment"]
    )
    def test_what_it_took_before(self, place: Place, number: int) -> None:
        with place.stage().fetching():
            assert place.gets(place.names[number])
            assert place.ask(place.names[number]) == LOOKS
            assert place.has(place.names[number])

    def test_not_more_ahead_than_is_bounded(self, place: Place) -> None:
        with place.stage().fetching():
            assert wait_until(lambda: len(place.staged()) == 24, timeout=20)
            assert place.gets(place.names[10])
            assert wait_until(lambda: place.names[33] in place.staged(), timeout=20)
            assert place.names[34] not in place.staged()


class TestEnds:
    def test_at_a_file_that_is_not_on_the_list(self, place: Place) -> None:
        with place.stage(place.names[:5]).fetching():
            assert place.ends_at(place.names[5])
            assert place.ends_at("00000003.history")
            assert place.ends_at(place.names[2][:-1] + ".")


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
        assert place.gets(name)

    def test_where_the_list_is_gone(self, place: Place) -> None:
        place.stage()
        (place.data / PRIVATE / "wal" / "coming").unlink()
        assert place.ask(place.names[1]) == STOPS

    def test_where_the_machine_was_started_again_since(self, place: Place) -> None:
        """What was not on disk then may have its name and none of its content, be it taken or not."""
        stage = place.stage()
        with stage.fetching():
            assert place.gets(place.names[1])
            (stage.folder / "boot").write_text("another boot\n")
            assert place.ask(place.names[1]) == STOPS
            assert place.ask(place.names[2]) == STOPS

    def test_where_a_file_cannot_be_moved_to_its_place(self, place: Place) -> None:
        shutil.rmtree(place.data / "pg_wal")
        with place.stage().fetching():
            assert place.ask(place.names[1]) == STOPS


@pytest.mark.parametrize("where", [f"{PRIVATE}/wal", "pg_wal"])
def test_what_an_interrupted_restore_had_fetched_is_fetched_again(place: Place, where: str) -> None:
    """After a crash of the machine a file may have its name and none of its content."""
    place.stage()
    (place.data / where / place.names[1]).write_bytes(b"")
    with place.stage().fetching():
        assert place.gets(place.names[1])


def test_what_a_server_that_has_recovered_took_stays(place: Place) -> None:
    stage = place.stage()
    with stage.fetching():
        assert place.gets(place.names[1])
    stage.open(keep_taken=True)
    assert place.has(place.names[1])
