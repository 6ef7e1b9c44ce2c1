"""The server ends, restarts, hangs or is promoted while it is backed up: nothing acknowledged is lost."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from dr_pipelines.engines.postgres.log import Log
from dr_pipelines.engines.postgres.verify import verify
from dr_pipelines.errors import BackupError, ProcessError
from dr_pipelines.processes.identity import give_to
from dr_pipelines.processes.ports import free_port
from dr_pipelines.processes.postgres import Server, running_pid
from dr_pipelines.repository.manifest import survey_backups
from dr_pipelines.repository.repository import Repository
from dr_pipelines.repository.store import Store
from dr_pipelines.settings import Settings
from dr_pipelines.timing import wait_until
from tests import archived
from tests.archived import Source

pytestmark = pytest.mark.slow


def sound(source: Source) -> None:
    """The newest backup, with its log, is what was stored."""
    found = verify(source.store, survey_backups(source.store).complete[0], workers=2, progress=lambda *_: None)
    assert all(check.passed for check in found.checks), found.checks


def kill_postmaster(source: Source) -> None:
    """As the kernel does when memory is short; its children see to their end themselves."""
    pid = running_pid(source.server.data)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


def restart(source: Source) -> None:
    source.server.stop()
    source.start()


ENDS: dict[str, Callable[[Source], None]] = {
    "stopped": lambda source: source.server.stop("fast"),
    "stopped at once": lambda source: source.server.stop("immediate"),
    "its postmaster killed": kill_postmaster,
    "killed as by a host's crash": lambda source: source.server.kill(),
    "restarted": restart,
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_during_a_backup_it_fails_and_leaves_nothing_that_lists_as_complete(
    source: Source, end: Callable[[Source], None]
) -> None:
    store, before = source.store, survey_backups(source.store).complete
    ended: list[int] = []

    def end_it(done: int, total: int) -> None:
        if done > 5_000_000 and not ended:
            ended.append(done)
            end(source)

    try:
        with pytest.raises((BackupError, ProcessError)) as caught:
            source.back_up(progress=end_it)
        assert ended
        assert caught.value.exit_code == 1
        assert survey_backups(store).complete == before
        assert survey_backups(store).incomplete == ()
    finally:
        if end is not restart:
            source.server.kill()
            source.start()
    source.back_up()
    source.ship()
    sound(source)


@pytest.fixture
def pair(settings: Settings, tmp_path: Path) -> Iterator[tuple[Source, Server]]:
    """A primary with a standby that streams from it and would archive to the same spool."""
    repository = archived.new_repository(tmp_path / "repository")
    own = settings.model_copy(update={"repository": repository.url})
    with archived.source(own, repository) as primary, standby_of(primary) as standby:
        primary.options["synchronous_standby_names"] = "standby"
        primary.server.stop()
        primary.start()
        primary.do("CREATE TABLE log (n int)")
        yield primary, standby


@contextmanager
def standby_of(primary: Source) -> Iterator[Server]:
    identity, binaries = primary.server.identity, primary.server.binaries
    data = primary.server.data.parent / "standby"
    dsn = psycopg.conninfo.make_conninfo(primary.server.dsn(), application_name="standby")
    command = [binaries["pg_basebackup"], "-D", str(data), "-d", dsn, "-X", "stream", "-R", "-c", "fast"]
    subprocess.run(command, check=True)
    give_to(data, identity, recursive=True)
    standby = Server(binaries, data, free_port(), identity, primary.server.password)
    standby.start(primary.leases, owner=archived.OWNER, ttl=timedelta(hours=1), options=primary.options)
    try:
        yield standby
    finally:
        standby.kill()
        shutil.rmtree(data)


def acknowledge(server: Server, numbers: range) -> int:
    """The last number that was acknowledged."""
    last = -1
    with suppress(psycopg.Error), psycopg.connect(server.dsn(), autocommit=True) as connection:
        for number in numbers:
            connection.execute("INSERT INTO log VALUES (%s)", [number])
            last = number
    return last


def test_a_standby_that_is_promoted_while_the_primary_is_backed_up_is_followed(
    pair: tuple[Source, Server], settings: Settings
) -> None:
    source, standby = pair
    source.back_up()
    source.stop_agent()
    store = source.store
    old, new = source.server, standby
    both = psycopg.conninfo.make_conninfo(
        old.dsn(), host="127.0.0.1,127.0.0.1", port=f"{old.port},{new.port}", target_session_attrs="read-write"
    )
    source.start_agent(dsn=both)
    last = acknowledge(old, range(500))
    assert last == 499

    def lose_the_primary(done: int, total: int) -> None:
        if done > 5_000_000 and running_pid(old.data) is not None:
            old.kill()
            new_options = {"synchronous_standby_names": ""}
            with psycopg.connect(new.dsn(), autocommit=True) as connection:
                for name, value in new_options.items():
                    connection.execute(f"ALTER SYSTEM SET {name} = '{value}'".encode())
                connection.execute("SELECT pg_promote()")

    with pytest.raises((BackupError, ProcessError)):
        source.back_up(progress=lose_the_primary)
    assert len(survey_backups(store).complete) == 1
    # The command line of its start has the old setting: only a restart takes that away.
    new.stop()
    new.start(
        source.leases,
        owner=archived.OWNER,
        ttl=timedelta(hours=1),
        options=source.options | {"synchronous_standby_names": ""},
    )
    assert acknowledge(new, range(500, 600)) == 599
    source.server = new
    source.ship()
    with archived.restore(source.settings, source.repository) as restore:
        server = restore.run()
        assert server.timeline == 3
        assert restore.ask("SELECT count(*) || ' up to ' || max(n) FROM log") == "600 up to 599"
        assert archived.failed(restore.validate()) == []
    # From the server that took over there can be a backup at once.
    assert source.back_up().details["timeline"] == 2
    source.ship()
    sound(source)


def test_restarted_again_and_again_it_is_sampled_and_its_log_stored(source: Source, repository: Repository) -> None:
    source.do("CREATE TABLE IF NOT EXISTS counted (n int)", "TRUNCATE counted")
    source.back_up()
    for number in range(4):
        source.do(f"INSERT INTO counted VALUES ({number})")
        restart(source)
    source.ship()
    with archived.restore(source.settings, repository) as restore:
        restore.run()
        assert restore.ask("SELECT count(*) FROM counted") == 4
        assert archived.failed(restore.validate()) == []


def test_that_hangs_does_not_hold_the_agent_up(source: Source) -> None:
    """SIGSTOP of all its processes: what is in the spool is stored, and the position says that it does not answer."""
    source.ship()
    log = source.position()
    assert log.problem is None
    pids = source.ask("SELECT string_agg(pid::text, ',') FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
    postmaster = running_pid(source.server.data)
    assert postmaster is not None
    every = [postmaster, *(int(pid) for pid in str(pids).split(","))]
    store = source.store
    for pid in every:
        os.kill(pid, signal.SIGSTOP)
    try:
        assert wait_until(lambda: _position_says(store, "away"), timeout=30)
    finally:
        for pid in reversed(every):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    source.ship()
    assert wait_until(lambda: _position_says(store, "up"), timeout=30)


def _position_says(store: Store, state: str) -> bool:
    position = Log(store).read_position()
    return position is not None and position.server.value == state
