"""The agent beside real servers: PostgreSQL of the wheel and of Debian, the repository in a folder and on S3."""

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from pydantic import SecretStr

from dr_pipelines.agent.sampler import Sampler
from dr_pipelines.engines.postgres.position import ServerState
from dr_pipelines.engines.postgres.wal import Segment
from dr_pipelines.processes.leases import Leases
from dr_pipelines.processes.postgres import all_binaries, initdb
from dr_pipelines.processes.seaweed import ObjectStorage
from dr_pipelines.repository.repository import Repository, open_repository
from dr_pipelines.settings import Settings
from dr_pipelines.timing import SystemClock, wait_until
from tests.agent.conftest import SMALL, Host, host, wheel

pytestmark = pytest.mark.slow

SECOND = timedelta(seconds=1)


@pytest.fixture(params=["wheel", pytest.param("debian", marks=pytest.mark.debian)])
def any_host(
    request: pytest.FixtureRequest, machine: tuple[Settings, Leases], any_repository: Repository
) -> Iterator[Host]:
    """A server of each version, with each kind of repository."""
    settings = machine[0]
    found = all_binaries(settings)
    binaries = found[0] if request.param == "wheel" else next(b for b in found if b.major == 15)
    with host(machine, binaries, any_repository) as running:
        yield running


@pytest.fixture(params=["folder", "s3"])
def any_repository(request: pytest.FixtureRequest, world_readable_folder: Path) -> Repository:
    """A new repository."""
    if request.param == "folder":
        return open_repository(str(world_readable_folder / "repository"), settings=Settings(), create=True)
    url = f"s3://dr-pipelines/{world_readable_folder.name}"
    return open_repository(url, settings=request.getfixturevalue("bucket"), create=True)


def write(running: Host, rows: int = 5000) -> None:
    """Some 3 MB of log, acknowledged."""
    running.do("CREATE TABLE IF NOT EXISTS guests (id bigserial, name text)")
    running.do(f"INSERT INTO guests (name) SELECT repeat(md5(i::text), 10) FROM generate_series(1, {rows}) i")


def switch(running: Host) -> None:
    """Switch segments when the agent has seen all that was written: what the server writes by itself next is none."""
    moment = running.now()
    running.agents.await_position(lambda position: position.at and position.at > moment, running.system)
    running.do("SELECT pg_switch_wal()")


def test_a_full_segment_is_in_the_repository_within_two_seconds(any_host: Host) -> None:
    agents = any_host.agents
    agents.start()
    agents.await_position(lambda position: position.server is ServerState.UP, any_host.system)
    write(any_host)
    name = str(any_host.ask("SELECT pg_walfile_name(pg_switch_wal())"))
    assert wait_until(lambda: (agents.spool / name).exists() or agents.log(any_host.system).has(name), timeout=20)
    assert wait_until(lambda: agents.log(any_host.system).has(name), timeout=2)
    agents.await_empty()
    log = agents.log(any_host.system)
    first = Segment.of_name(log.segments()[0].name, SMALL)
    chain = log.chain(first.start, 1, SMALL)
    assert (chain.holes, chain.newest) == ((), name)
    agents.await_position(lambda position: position.stored_end == chain.end, any_host.system)


def test_the_recovery_point_passes_what_was_acknowledged_before_the_switch(any_host: Host) -> None:
    agents = any_host.agents
    agents.start()
    write(any_host)
    moment = any_host.now()
    switch(any_host)
    position = agents.await_position(
        lambda position: position.recovery_point and position.recovery_point > moment, any_host.system
    )
    assert position.problem is None
    assert position.server is ServerState.UP


def test_what_was_acknowledged_after_the_stored_log_is_behind_the_recovery_point(folder_host: Host) -> None:
    agents = folder_host.agents
    agents.start()
    write(folder_host, 10)
    switch(folder_host)
    agents.await_position(lambda position: position.recovery_point, folder_host.system)
    # Asynchronous: acknowledged before its commit record is on disk.
    with folder_host.connect() as connection:
        connection.execute("SET synchronous_commit = off")
        connection.execute("INSERT INTO guests (name) VALUES ('late')")
    moment = folder_host.now()
    position = agents.await_position(lambda position: position.at and position.at > moment + SECOND, folder_host.system)
    assert position.recovery_point is not None
    assert position.recovery_point < moment


def test_an_idle_server_is_not_exposed_though_it_writes_checkpoints(folder_host: Host) -> None:
    agents = folder_host.agents
    agents.start()
    write(folder_host, 10)
    switch(folder_host)
    moment = folder_host.now()
    agents.await_position(lambda p: p.recovery_point and p.recovery_point > moment, folder_host.system)
    folder_host.do("CHECKPOINT")
    moment = folder_host.now() + SECOND
    position = agents.await_position(lambda p: p.recovery_point and p.recovery_point > moment, folder_host.system)
    assert position.lsn is not None
    assert position.stored_end is not None
    assert position.lsn > position.stored_end + 40


def test_a_transaction_that_is_open_over_the_switch_is_not_taken_for_stored(folder_host: Host) -> None:
    agents = folder_host.agents
    agents.start()
    write(folder_host, 10)
    with folder_host.connect() as connection:
        connection.execute("BEGIN")
        connection.execute("INSERT INTO guests (name) VALUES ('open')")
        folder_host.do("SELECT pg_switch_wal()")
        agents.await_position(lambda position: position.recovery_point, folder_host.system)
        connection.execute("COMMIT")
    moment = folder_host.now()
    position = agents.await_position(lambda p: p.at and p.at > moment + SECOND, folder_host.system)
    assert position.recovery_point is not None
    assert position.recovery_point < moment


def test_a_server_that_dies_and_comes_back_is_shipped_for_and_sampled_again(folder_host: Host) -> None:
    agents, system = folder_host.agents, folder_host.system
    agents.start()
    write(folder_host)
    switch(folder_host)
    before = agents.await_position(lambda position: position.recovery_point, system)
    folder_host.server.kill()
    away = agents.await_position(lambda position: position.server is ServerState.AWAY, system)
    assert away.recovery_point is not None
    assert before.recovery_point is not None
    assert away.recovery_point >= before.recovery_point
    assert away.lsn is not None
    folder_host.start()
    moment = folder_host.now()
    switch(folder_host)
    agents.await_position(lambda position: position.recovery_point and position.recovery_point > moment, system)


def test_an_agent_that_comes_back_goes_on_with_what_was_proven(folder_host: Host) -> None:
    agents, system = folder_host.agents, folder_host.system
    agents.start()
    write(folder_host, 10)
    switch(folder_host)
    moment = folder_host.now()
    agents.await_position(lambda p: p.recovery_point and p.recovery_point > moment, system)
    folder_host.do("CHECKPOINT")
    agents.stop()
    stopped = agents.position(system)
    moment = folder_host.now() + SECOND
    agents.start()
    later = agents.await_position(lambda p: p.recovery_point and p.recovery_point > moment, system)
    assert later.stored_end == stopped.stored_end


def test_while_no_agent_runs_the_spool_keeps_everything(folder_host: Host) -> None:
    write(folder_host)
    folder_host.do("SELECT pg_switch_wal()")
    last = str(folder_host.ask("SELECT pg_walfile_name(pg_switch_wal())"))
    assert wait_until(lambda: len(folder_host.agents.waiting()) > 2, timeout=20)
    folder_host.agents.start()
    log = folder_host.agents.log(folder_host.system)
    folder_host.agents.await_empty()
    names = [segment.name for segment in log.segments()]
    assert int(names[-1], 16) - int(names[0], 16) == len(names) - 1
    assert int(last, 16) - int(names[-1], 16) <= 1


def test_a_promotion_is_followed(folder_host: Host) -> None:
    agents, system = folder_host.agents, folder_host.system
    agents.start()
    write(folder_host)
    switch(folder_host)
    agents.await_position(lambda position: position.recovery_point, system)
    folder_host.server.stop()
    signal = folder_host.server.data / "recovery.signal"
    signal.touch()
    if os.geteuid() == 0:
        shutil.chown(signal, folder_host.server.data.owner(), folder_host.server.data.group())
    folder_host.start(restore_command="false")
    # Until it has been promoted it has no insert position to ask for.
    assert wait_until(lambda: folder_host.ask("SELECT pg_is_in_recovery()") is False, timeout=30)
    moment = folder_host.now()
    write(folder_host)
    folder_host.do("SELECT pg_switch_wal()")
    position = agents.await_position(lambda p: p.recovery_point and p.recovery_point > moment, system)
    assert position.timeline == 2
    assert agents.log(system).has("00000002.history")


def test_a_new_server_in_the_old_ones_place_gets_a_log_of_its_own(folder_host: Host) -> None:
    agents, first = folder_host.agents, folder_host.system
    agents.start()
    write(folder_host, 10)
    switch(folder_host)
    agents.await_position(lambda position: position.recovery_point, first)
    folder_host.server.stop()
    agents.await_empty()
    binaries, data = folder_host.server.binaries, folder_host.server.data
    shutil.rmtree(data)
    server = folder_host.server
    initdb(binaries, data, identity=server.identity, password=server.password, options=["--wal-segsize=1", "--no-sync"])
    folder_host.start()
    assert folder_host.system != first
    write(folder_host, 10)
    folder_host.do("SELECT pg_switch_wal()")
    agents.await_position(lambda position: position.recovery_point, folder_host.system)
    assert agents.position(first).stored_end is not None


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system: needs root")
def test_a_full_spool_keeps_the_segment_with_the_server_which_goes_on(folder_host: Host) -> None:
    agents = folder_host.agents
    owner, group = agents.spool.owner(), agents.spool.group()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1536k", "tmpfs", agents.spool], check=True)
    try:
        shutil.chown(agents.spool, owner, group)
        write(folder_host)
        failed = "SELECT failed_count > 0 FROM pg_stat_archiver"
        assert wait_until(lambda: folder_host.ask(failed), timeout=30)
        assert [(agents.spool / name).stat().st_size for name in agents.waiting()] == [1 << 20]
        agents.start()
        last = str(folder_host.ask("SELECT pg_walfile_name(pg_switch_wal())"))
        assert wait_until(lambda: agents.log(folder_host.system).has(last), timeout=60)
        segments = agents.log(folder_host.system).segments()
        assert int(last, 16) - int(segments[0].name, 16) == len(segments) - 1
    finally:
        agents.stop()
        folder_host.server.kill()
        subprocess.run(["umount", agents.spool], check=True)


def test_an_s3_service_that_is_away_is_waited_for(
    machine: tuple[Settings, Leases], world_readable_folder: Path
) -> None:
    settings, leases = machine
    place = world_readable_folder / "s3"
    storage = ObjectStorage.start(settings, leases, owner="tests", folder=place)
    keys = settings.model_copy(
        update={
            "s3_endpoint": storage.endpoint,
            "s3_access_key_id": SecretStr(storage.access_key),
            "s3_secret_access_key": SecretStr(storage.secret_key),
        }
    )
    repository = open_repository("s3://dr-pipelines/here", settings=keys, create=True)
    try:
        with host(machine, wheel(settings), repository) as running:
            running.agents.start()
            running.agents.await_position(lambda position: position.server is ServerState.UP, running.system)
            storage.stop(leases)
            write(running)
            assert wait_until(running.agents.waiting, timeout=20)
            storage = ObjectStorage.start(settings, leases, owner="tests", folder=place)
            running.agents.await_empty(timeout=60)
            last = str(running.ask("SELECT pg_walfile_name(pg_switch_wal())"))
            assert wait_until(lambda: running.agents.log(running.system).has(last), timeout=20)
    finally:
        storage.stop(leases)


def test_a_standby_is_no_server_to_sample(folder_host: Host) -> None:
    """Its log is its primary's; the agent says why it takes no samples."""
    folder_host.server.stop()
    standby = folder_host.server.data / "standby.signal"
    standby.touch()
    if os.geteuid() == 0:
        shutil.chown(standby, folder_host.server.data.owner(), folder_host.server.data.group())
    folder_host.start(restore_command="false", hot_standby="on")
    stop = threading.Event()
    sampler = Sampler(folder_host.server.dsn(), clock=SystemClock(), stop=stop, every=0.1)
    sampler.start()
    try:
        assert wait_until(lambda: "recovery" in str(sampler.problem), timeout=20), sampler.problem
        assert not sampler.up
        assert sampler.drain() == []
    finally:
        stop.set()
        sampler.join()


def test_a_wrong_password_is_a_problem_that_is_told_without_the_password(folder_host: Host) -> None:
    folder_host.agents.dsn = psycopg.conninfo.make_conninfo(folder_host.server.dsn(), password="s3cr3t-and-wrong")
    folder_host.agents.start()
    folder_host.do("SELECT pg_switch_wal()")
    write(folder_host)
    position = folder_host.agents.await_position(lambda position: position.problem, folder_host.system)
    assert "password authentication failed" in str(position.problem)
    assert "s3cr3t" not in position.model_dump_json()
