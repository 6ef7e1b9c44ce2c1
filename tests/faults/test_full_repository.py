"""The disk of a repository in a folder is full or read-only: it is said, nothing is half, the spool keeps the log."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from dr_pipelines.repository.manifest import survey_backups
from dr_pipelines.repository.repository import Repository
from dr_pipelines.settings import Settings
from dr_pipelines.timing import wait_until
from tests import archived
from tests.archived import Source
from tests.faults.conftest import ROOT
from tests.faults.disks import MIB, Disk, disk, needs_root

pytestmark = [pytest.mark.slow, needs_root]

LARGE = 64 * MIB


@pytest.fixture(scope="module")
def place() -> Iterator[Disk]:
    with archived.open_to_all() as folder, disk(folder / "repository", LARGE) as made:
        yield made


@pytest.fixture(scope="module")
def settings(place: Disk) -> Iterator[Settings]:
    with archived.state() as made:
        yield made.model_copy(update={"repository": str(place.folder), "part_size": 1 << 18})


@pytest.fixture(scope="module")
def source(settings: Settings, repository: Repository) -> Iterator[Source]:
    with archived.source(settings, repository) as running:
        running.do("CREATE TABLE log (text text)")
        running.back_up()
        yield running


def dr(source: Source, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, as a process of its own."""
    own = {"DR_DSN__DATABASE": source.server.dsn(), "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        [sys.executable, "-m", "dr_pipelines.cli", *arguments],
        env=source.settings.as_environment() | own,
        cwd=source.folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def spooled(source: Source) -> list[str]:
    return [name for name in os.listdir(source.spool) if not name.startswith(".")]


def test_full_ends_a_backup_with_what_to_do_and_leaves_nothing_of_it(source: Source, place: Disk) -> None:
    before = survey_backups(source.store)
    place.leave_free(MIB)
    try:
        ran = dr(source, "backup", "full", "database")
        assert (ran.returncode, "No space left on device" in ran.stderr) == (1, True), ran.stderr
        assert "make room there" in ran.stderr
        assert "Traceback" not in ran.stderr
    finally:
        place.resize(LARGE)
    assert survey_backups(source.store) == before
    ran = dr(source, "backup", "full", "database")
    assert ran.returncode == 0, ran.stderr
    verified = dr(source, "backup", "verify", "database")
    assert verified.returncode == 0, verified.stdout


def test_read_only_ends_a_backup_with_what_to_do_and_what_is_there_verifies(source: Source, place: Disk) -> None:
    with source.without_agent(), place.read_only():
        ran = dr(source, "backup", "full", "database")
        assert (ran.returncode, "Read-only file system" in ran.stderr) == (1, True), ran.stderr
        assert "mounted read-only" in ran.stderr
        assert dr(source, "backup", "verify", "database").returncode == 0


@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_the_agent_waits_and_the_spool_keeps_what_comes(source: Source, place: Disk, fault: str) -> None:
    source.stop_agent()
    stale = source.position()
    if fault == "full":
        place.leave_free(0)
    else:
        place.remount("ro")
    try:
        source.start_agent()
        for _ in range(3):
            source.do("INSERT INTO log SELECT md5(n::text) FROM generate_series(1, 5000) n", "SELECT pg_switch_wal()")
        assert wait_until(lambda: len(spooled(source)) >= 3, timeout=20)
        assert source.position() == stale
    finally:
        place.remount("rw", f"size={LARGE}")
    assert wait_until(lambda: not spooled(source), timeout=30)
    source.ship()
    with archived.restore(source.settings, source.repository) as restore:
        restore.run()
        assert restore.ask("SELECT count(*) FROM log") == source.ask("SELECT count(*) FROM log")
