"""An agent that stands still for a while, and two at once: nothing is lost, and nobody is told what is not so."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from dr_pipelines.engines.postgres.exposure import read_exposure
from dr_pipelines.engines.postgres.log import Log
from dr_pipelines.engines.verdict import Verdict
from dr_pipelines.repository.repository import Repository
from dr_pipelines.settings import Settings
from dr_pipelines.timing import SystemClock, wait_until
from tests import archived
from tests.archived import SERVICE, Source
from tests.faults.conftest import ROOT

pytestmark = pytest.mark.slow

StartAgent = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture(scope="module")
def source(settings: Settings, repository: Repository) -> Iterator[Source]:
    """A backed up server without an agent."""
    with archived.source(settings, repository) as running:
        running.do("CREATE TABLE log (n int)")
        running.back_up()
        running.ship()
        running.stop_agent()
        yield running


@pytest.fixture
def agent(source: Source, tmp_path: Path) -> Iterator[StartAgent]:
    """Starts an agent as a process of its own, over this spool or another one."""
    started: list[subprocess.Popen[bytes]] = []

    def start(spool: Path | None = None) -> subprocess.Popen[bytes]:
        own = {"DR_DSN__DATABASE": source.server.dsn(), "DR_SPOOL__DATABASE": str(spool or source.spool)}
        environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)} | source.settings.as_environment() | own
        with (tmp_path / f"agent{len(started)}.log").open("wb") as log:
            command = [sys.executable, "-m", "dr_pipelines.agent"]
            started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=ROOT))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def spooled(source: Source) -> list[str]:
    return sorted(name for name in os.listdir(source.spool) if not name.startswith("."))


def write(source: Source, segments: int = 3) -> None:
    for _ in range(segments):
        source.do("INSERT INTO log SELECT generate_series(1, 5000)", "SELECT pg_switch_wal()")


def everything_comes_back(source: Source) -> None:
    source.ship()
    with archived.restore(source.settings, source.repository) as restore:
        restore.run()
        assert restore.ask("SELECT count(*) FROM log") == source.ask("SELECT count(*) FROM log")
        assert archived.failed(restore.validate()) == []


def test_stopped_for_a_while_it_goes_on_where_it_was(source: Source, agent: StartAgent) -> None:
    process = agent()
    source.ship()
    process.send_signal(signal.SIGSTOP)
    stale = source.position()
    write(source)
    assert wait_until(lambda: len(spooled(source)) >= 3, timeout=20)
    # Nobody takes its silence for a log that is stored.
    later = SystemClock().wall() + timedelta(minutes=1)
    seen = read_exposure(source.repository.service(SERVICE), SERVICE, now=later, rpo=timedelta(hours=1))
    assert seen.verdict is Verdict.UNVERIFIED
    assert "silent since" in str(seen.problem)
    # Its spool stays its own: the kernel keeps the lock of whoever stands still.
    second = agent()
    assert second.wait(timeout=30) == 1
    assert source.position() == stale
    process.send_signal(signal.SIGCONT)
    assert wait_until(lambda: not spooled(source), timeout=30)
    everything_comes_back(source)
    process.terminate()
    assert process.wait(timeout=30) == 0


def test_two_over_spools_of_their_own_store_one_log(source: Source, agent: StartAgent, tmp_path: Path) -> None:
    """As after a failover where nobody stopped the old host's: both have the same segments."""
    write(source)
    assert wait_until(lambda: len(spooled(source)) >= 3, timeout=20)
    other = tmp_path / "spool"
    other.mkdir()
    for name in spooled(source):
        (other / name).write_bytes((source.spool / name).read_bytes())
    both = agent(), agent(other)
    assert wait_until(lambda: not spooled(source) and not os.listdir(other)[1:], timeout=30)
    everything_comes_back(source)
    for process in both:
        process.terminate()
        assert process.wait(timeout=30) == 0
    names = [segment.name for segment in Log(source.store).segments()]
    assert len(names) == len(set(names))
    assert source.position().problem is None
