"""The disk of pg_wal is full or breaks: PostgreSQL ends, as it must, and comes back with all that it acknowledged."""

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

from dr_pipelines.engines.postgres.log import Log
from dr_pipelines.engines.postgres.position import ServerState
from dr_pipelines.repository.manifest import survey_backups
from dr_pipelines.settings import Settings
from dr_pipelines.timing import wait_until
from tests import archived
from tests.archived import Source
from tests.faults.disks import MIB, breakable, disk, needs_loop

pytestmark = [pytest.mark.slow, needs_loop]

SIZE = 48 * MIB


@pytest.fixture
def place() -> Iterator[Path]:
    with archived.open_to_all() as folder:
        yield folder / "wal"


@pytest.fixture
def source(settings: Settings, tmp_path: Path) -> Iterator[Source]:
    """A server that has been backed up."""
    repository = archived.new_repository(tmp_path / "repository")
    own = settings.model_copy(update={"repository": repository.url})
    with archived.source(own, repository) as running:
        running.do("CREATE TABLE log (n int)")
        running.back_up()
        yield running


def move_wal(source: Source, place: Path) -> None:
    """Put pg_wal there, and archive nothing any more: that is what fills it in real life."""
    source.server.stop()
    wal = source.server.data / "pg_wal"
    shutil.copytree(wal, place, dirs_exist_ok=True)
    for path in (place, *place.rglob("*")):
        archived.give_to_server(path, source.settings)
    shutil.rmtree(wal)
    wal.symlink_to(place)
    # What is acknowledged has to be on the disk, which is about to fail.
    source.options["fsync"] = "on"
    source.start(archive_command="false")
    assert wait_until(lambda: source.position().server is ServerState.UP, timeout=20)


def is_away(log: Log) -> bool:
    position = log.read_position()
    return position is not None and position.server is ServerState.AWAY


def write_until_it_ends(source: Source) -> int:
    """The last number that was acknowledged."""
    last, log = 0, Log(source.store)
    with suppress(psycopg.Error), source.connect() as connection:
        while last < 10_000:
            connection.execute("INSERT INTO log SELECT %s FROM generate_series(1, 500)", [last + 1])
            last += 1
    assert last < 10_000
    assert wait_until(lambda: is_away(log), timeout=20)
    return last


def comes_back(source: Source, last: int) -> None:
    source.start()
    found = source.ask("SELECT max(n) FROM log")
    # A commit whose answer the end of the server cut off may be there.
    assert found in (last, last + 1)
    source.ship()
    assert survey_backups(source.store).incomplete == ()
    with archived.restore(source.settings, source.repository) as restore:
        restore.run()
        assert restore.ask("SELECT max(n) FROM log") == found
        assert archived.failed(restore.validate()) == []


def test_full(source: Source, place: Path) -> None:
    with disk(place, SIZE) as small:
        move_wal(source, place)
        source.do("INSERT INTO log VALUES (0)")
        small.leave_free(2 * MIB)
        last = write_until_it_ends(source)
        source.server.kill()
        small.resize(2 * SIZE)
        comes_back(source, last)
        source.stop_agent()
        source.server.kill()


def test_turned_read_only_by_an_error(source: Source, place: Path) -> None:
    with breakable(place, SIZE) as broken:
        move_wal(source, place)
        source.do("INSERT INTO log VALUES (0)")
        broken.fail()
        last = write_until_it_ends(source)
        source.server.kill()
        broken.mend()
        comes_back(source, last)
        source.stop_agent()
        source.server.kill()
