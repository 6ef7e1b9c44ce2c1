"""A process that is let go of runs on, and nothing of ours ends it or removes what it works with."""

import os
import signal
from datetime import timedelta
from pathlib import Path

from dr_pipelines.processes.leases import FOLDER_MARK, Leases
from dr_pipelines.timing import FakeClock, wait_until


def test_what_was_released_is_neither_ended_nor_removed(state: Path, leases: Leases) -> None:
    folder = state / "restores"
    folder.mkdir()
    lease = leases.start(
        ["sleep", "300"], kind="postgres", owner="a", log=state / "log", ttl=timedelta(minutes=1), folders=[folder]
    )
    leases.release(lease)
    try:
        assert leases.all(ending=True) == []
        assert not (folder / FOLDER_MARK).exists()
        later = FakeClock()
        later.advance(10 * 365 * 86400)
        Leases(state, later).reap()
        leases.end_owner("a")
        assert leases.alive(lease) and folder.is_dir()
    finally:
        os.kill(lease.pid, signal.SIGKILL)
    assert wait_until(lambda: not leases.alive(lease), timeout=10)


def test_a_folder_that_another_lease_names_stays_scratch(state: Path, leases: Leases) -> None:
    folder = state / "shared"
    folder.mkdir()
    ttl = timedelta(minutes=1)
    first = leases.start(["sleep", "300"], kind="x", owner="a", log=state / "log", ttl=ttl, folders=[folder])
    leases.start(["sleep", "300"], kind="x", owner="b", log=state / "log", ttl=ttl, folders=[folder])
    leases.release(first)
    leases.end_owner("b")
    assert not folder.exists()
    os.kill(first.pid, signal.SIGKILL)
    assert wait_until(lambda: not leases.alive(first), timeout=10)
