"""SIGKILL in the middle of a restore: resumed, it fetches only what is missing, and one server stands with all rows."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dr_pipelines.processes.leases import Leases
from dr_pipelines.processes.postgres import running_pid
from dr_pipelines.timing import wait_until
from tests import archived
from tests.archived import Restore, Source
from tests.faults.conftest import Start, Victim

pytestmark = pytest.mark.slow

SEED = 13
ROWS = "SELECT count(*) || ' of ' || max(n) FROM counted"


@pytest.fixture(scope="module", autouse=True)
def kept(source: Source) -> None:
    """A backup and a log after it that takes a moment to replay."""
    source.do("CREATE TABLE counted (n int PRIMARY KEY, text text)")
    source.back_up()
    for number in range(30):
        first = number * 3000 + 1
        source.do(f"INSERT INTO counted SELECT n, md5(n::text) FROM generate_series({first}, {first + 2999}) n")
        source.do(f"UPDATE counted SET text = text || '!' WHERE n >= {first}")
    source.ship()
    source.stop_agent()


@pytest.fixture
def restore(source: Source) -> Iterator[Restore]:
    with archived.restore(source.settings, source.repository) as restore:
        yield restore


def begin(start: Start, restore: Restore) -> Victim:
    settings = restore.around.settings
    return start("tests.faults.child", "restore", restore.execution.id, environment=settings.as_environment())


def private(restore: Restore) -> Path:
    return restore.around.settings.state_dir / "restores" / restore.execution.id / "data" / "dr_restore"


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def comes_back(restore: Restore) -> None:
    """Resumed, it stands with every row, as one server."""
    server = restore.run()
    assert restore.ask(ROWS) == "90000 of 90000"
    assert archived.failed(restore.validate()) == []
    leases = Leases(restore.around.settings.state_dir)
    alive = [lease.pid for lease in leases.of(restore.execution.id) if leases.alive(lease)]
    assert alive == [running_pid(server.data)]


@pytest.mark.parametrize(
    "moment",
    [
        lambda restore: private(restore).exists(),
        lambda restore: "selected new timeline" in read(private(restore) / "server.log"),
    ],
    ids=["claiming its target", "at the end of the recovery"],
)
def test_is_resumed(start: Start, restore: Restore, moment: Callable[[Restore], object]) -> None:
    begin(start, restore).kill_when(lambda: moment(restore))
    comes_back(restore)


def test_resumed_it_fetches_only_the_parts_that_are_missing(start: Start, restore: Restore) -> None:
    begin(start, restore).kill_when(lambda: read(private(restore) / "parts").count("\n") > 20)
    done = read(private(restore) / "parts").count("\n") - 1
    parts = len(archived.newest(restore.around.repository).manifest.parts)
    restore.prepare()
    assert restore.fetch().parts_fetched == parts - done


def test_the_server_of_a_killed_restore_stops_rather_than_open_with_rows_missing(
    start: Start, restore: Restore
) -> None:
    begin(start, restore).kill_when(lambda: read(private(restore) / "server.log").count("fetched log file") > 3)
    log = private(restore) / "server.log"
    ended = "startup process" if wait_until(lambda: "exited with exit code" in read(log), timeout=30) else read(log)
    assert ended == "startup process"
    assert "the fetcher of WAL is gone; resume the restore" in read(log)
    assert "database system is ready to accept connections" not in read(log)
    comes_back(restore)


def test_killed_again_and_again_at_any_moment_it_comes_back(start: Start, restore: Restore) -> None:
    draw = random.Random(SEED)
    for _ in range(5):
        begin(start, restore).kill_after(draw.uniform(0.3, 1.5))
    comes_back(restore)
