"""Clocks that are set while everything runs: all rows come back, and what cannot be measured is not claimed."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dr_pipelines.engines.postgres.exposure import read_exposure
from dr_pipelines.engines.postgres.wal import Lsn, settled
from dr_pipelines.engines.verdict import Verdict
from dr_pipelines.repository.manifest import survey_backups
from dr_pipelines.runbooks.closing import loss_of
from dr_pipelines.settings import Settings
from dr_pipelines.timing import wait_until
from tests import archived
from tests.archived import SERVICE, Source
from tests.faults.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.needs("faketime")]

HOUR = timedelta(hours=1)


class SetClock:
    """The wall clock of the processes that are started with `environment`; the monotonic one stays what it is."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "clock"
        self.set(timedelta(0))
        library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
        self.environment = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
            # Shared memory of its own is not needed, and would be left behind.
            "FAKETIME_DISABLE_SHM": "1",
        }

    def set(self, apart: timedelta) -> None:
        """From now on it is so far ahead of the real one, or behind."""
        draft = self._file.with_suffix(".new")
        draft.write_text(f"{apart.total_seconds():+.0f}\n")
        draft.chmod(0o644)
        draft.rename(self._file)


@pytest.fixture
def clock(world_readable_folder: Path) -> SetClock:
    return SetClock(world_readable_folder)


@pytest.fixture
def source(settings: Settings, clock: SetClock, tmp_path: Path) -> Iterator[Source]:
    """A server with a clock of its own; its agent has the machine's."""
    repository = archived.new_repository(tmp_path / "repository")
    own = settings.model_copy(update={"repository": repository.url})
    with archived.source(own, repository) as running:
        running.server.stop()
        running.environment.update(clock.environment)
        running.start()
        running.do("CREATE TABLE log (n int)")
        running.back_up()
        running.ship()
        yield running


def exposure(source: Source) -> Verdict:
    store = source.repository.service(SERVICE)
    return read_exposure(store, SERVICE, now=datetime.now(UTC), rpo=timedelta(minutes=10)).verdict


def write(source: Source, count: int = 1000) -> None:
    source.do(f"INSERT INTO log SELECT generate_series(1, {count})", "SELECT pg_switch_wal()")


def everything_comes_back(source: Source) -> None:
    """To the latest point, whatever the clocks said."""
    written = settled(Lsn.parse(str(source.ask("SELECT pg_current_wal_insert_lsn()::text"))), 1 << 20)

    def stored() -> bool:
        source.do("SELECT pg_switch_wal()")
        end = source.position().stored_end
        return end is not None and end >= written

    assert wait_until(stored, timeout=30, interval=0.2)
    with archived.restore(source.settings, source.repository) as restore:
        restore.run()
        assert restore.ask("SELECT count(*) FROM log") == source.ask("SELECT count(*) FROM log")
        checks = restore.validate().checks
        assert [check for check in checks if check.passed is False] == []


def test_the_servers_set_forward_is_noticed_and_measures_nothing(source: Source, clock: SetClock) -> None:
    assert exposure(source) is Verdict.MET
    clock.set(HOUR)
    write(source)
    assert source.now() - datetime.now(UTC) > HOUR - timedelta(minutes=1)
    source.ship()
    assert exposure(source) is Verdict.UNVERIFIED
    everything_comes_back(source)
    with archived.restore(source.settings, source.repository) as restore:
        server = restore.run()
        assert restore.assessment is not None
        loss = loss_of(restore.assessment, server, restore.validate())
        assert (loss.rpo, "one of the clocks is wrong" in loss.method) == (None, True)
    # Set right again: what was proven with the wrong clock is not taken for more than it is.
    clock.set(timedelta(0))
    write(source)
    assert exposure(source) is Verdict.UNVERIFIED
    everything_comes_back(source)


def test_the_servers_set_back_never_takes_the_recovery_point_back(source: Source, clock: SetClock) -> None:
    proven = source.position().recovery_point
    assert proven is not None
    clock.set(-HOUR)
    write(source)
    assert datetime.now(UTC) - source.now() > HOUR - timedelta(minutes=1)
    everything_comes_back(source)
    later = source.position().recovery_point
    assert later is not None
    assert later >= proven


@pytest.mark.parametrize("apart", [HOUR, -HOUR], ids=["forward", "back"])
def test_the_servers_set_during_a_backup_leaves_one_that_restores(
    source: Source, clock: SetClock, apart: timedelta
) -> None:
    def set_it(done: int, total: int) -> None:
        clock.set(apart)

    write(source)
    manifest = source.back_up(progress=set_it)
    assert manifest.stopped_at >= manifest.started_at
    write(source)
    everything_comes_back(source)
    backup_ids = {backup.backup_id for backup in survey_backups(source.store).complete}
    assert manifest.backup_id in backup_ids
    assert len(backup_ids) == 2


@contextmanager
def agent_of(source: Source, clock: SetClock) -> Iterator[None]:
    """An agent as a process of its own, with that clock."""
    own = {"DR_DSN__DATABASE": source.server.dsn(), "DR_SPOOL__DATABASE": str(source.spool)}
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)} | source.settings.as_environment() | own
    process = subprocess.Popen(
        [sys.executable, "-m", "dr_pipelines.agent"],
        env=environment | clock.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
    )
    try:
        yield
        process.terminate()
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()


def test_the_agents_set_while_it_ships_stores_all_and_is_noticed(source: Source, clock: SetClock) -> None:
    source.stop_agent()
    source.server.stop()
    source.environment.clear()
    source.start()
    with agent_of(source, clock):
        write(source)
        assert wait_until(lambda: exposure(source) is Verdict.MET, timeout=20)
        for apart in (HOUR, -HOUR):
            clock.set(apart)
            write(source)
            assert wait_until(lambda: exposure(source) is not Verdict.MET, timeout=20)
        everything_comes_back(source)
    assert not [name for name in os.listdir(source.spool) if not name.startswith(".")]
