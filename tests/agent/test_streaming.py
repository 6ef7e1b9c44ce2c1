"""A streamed log: what a server writes is in the repository seconds later, whatever happens to server and agent."""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from dr_pipelines.agent.receiver import Stream
from dr_pipelines.engines.postgres.backup import take_backup
from dr_pipelines.engines.postgres.chunks import reach
from dr_pipelines.engines.postgres.connection import scalar
from dr_pipelines.engines.postgres.inspect_streaming import judge_streaming, read_streaming
from dr_pipelines.engines.postgres.position import LogMode, Position
from dr_pipelines.engines.postgres.wal import Lsn, Segment
from dr_pipelines.processes.identity import give_to
from dr_pipelines.processes.leases import Leases
from dr_pipelines.processes.ports import free_port
from dr_pipelines.processes.postgres import Server, all_binaries, find_client_binaries
from dr_pipelines.processes.proc import all_processes
from dr_pipelines.repository.envelope import wrap
from dr_pipelines.repository.repository import Repository, open_repository
from dr_pipelines.settings import Settings
from dr_pipelines.timing import SystemClock, wait_until
from tests.agent.conftest import SMALL, Host, host

pytestmark = pytest.mark.slow

SLOT = "dr_database"


@contextlib.contextmanager
def streaming(machine: tuple[Settings, Leases], repository: Repository, major: int | None = None) -> Iterator[Host]:
    """A server that archives nothing, and no agent yet."""
    settings = machine[0]
    found = all_binaries(settings)
    binaries = found[0] if major is None else next(each for each in found if each.major == major)
    with host(machine, binaries, repository) as running:
        running.server.stop()
        running.options = {"max_wal_size": "64MB", "fsync": "off"}
        running.start()
        running.agents.stream = Stream(lambda major: find_client_binaries(settings, major), SLOT, chunk_every=0.1)
        yield running


@pytest.fixture(params=[None, pytest.param(15, marks=pytest.mark.debian)], ids=["newest", "15"])
def source(
    request: pytest.FixtureRequest, machine: tuple[Settings, Leases], world_readable_folder: Path
) -> Iterator[Host]:
    repository = open_repository(str(world_readable_folder / "repository"), settings=machine[0], create=True)
    with streaming(machine, repository, request.param) as running:
        running.agents.start()
        yield running


@pytest.fixture
def newest(machine: tuple[Settings, Leases], world_readable_folder: Path) -> Iterator[Host]:
    repository = open_repository(str(world_readable_folder / "repository"), settings=machine[0], create=True)
    with streaming(machine, repository) as running:
        running.agents.start()
        yield running


def insert(running: Host, rows: int = 10) -> None:
    running.do("CREATE TABLE IF NOT EXISTS guests (id bigserial, name text)")
    running.do(f"INSERT INTO guests (name) SELECT repeat(md5(i::text), 10) FROM generate_series(1, {rows}) i")


def caught_up(running: Host) -> Position:
    """Wait until all that was acknowledged until now is proven to be stored."""
    moment = running.now()
    return running.agents.await_position(
        lambda position: position.recovery_point and position.recovery_point > moment, running.system
    )


def receivers(running: Host) -> list[int]:
    """The processes that receive into the spool of this host's agents."""
    into = f"--directory={running.agents.spool}/".encode()
    found = []
    for pid in all_processes():
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if words[0].endswith(b"pg_receivewal") and any(word.startswith(into) for word in words):
                found.append(pid)
    return found


def test_what_was_acknowledged_is_proven_though_no_segment_is_full(source: Host) -> None:
    insert(source)
    position = caught_up(source)
    assert position.mode is LogMode.STREAM
    assert position.problem is None
    segment = str(source.ask("SELECT pg_walfile_name(pg_current_wal_lsn())"))
    log = source.agents.log(source.system)
    assert not log.has(segment)
    stored = reach(log.chunks(segment))
    assert 0 < stored < SMALL
    written = (source.server.data / "pg_wal" / segment).read_bytes()
    assert log.fetch(segment)[:stored] == written[:stored]
    assert log.fetch(segment)[stored:] == bytes(SMALL - stored)


def test_an_idle_server_is_not_exposed(source: Host) -> None:
    insert(source)
    caught_up(source)
    for _ in range(3):
        # A commit's last bytes are zeros, and nothing is written after it.
        source.do("INSERT INTO guests (name) VALUES ('one more')")
        caught_up(source)
        caught_up(source)


def test_a_segment_that_is_full_takes_the_place_of_its_chunks(newest: Host) -> None:
    insert(newest)
    caught_up(newest)
    segment = str(newest.ask("SELECT pg_walfile_name(pg_switch_wal())"))
    log = newest.agents.log(newest.system)
    assert wait_until(lambda: log.has(segment) and not log.chunks(segment), timeout=20)
    insert(newest, 10_000)
    position = caught_up(newest)
    assert position.problem is None
    assert wait_until(lambda: not list(newest.agents.spool.glob("*/*0")), timeout=20)
    first = Segment.of_name(log.segments()[0].name, SMALL)
    chain = log.chain(first.start, 1, SMALL)
    assert chain.holes == ()
    assert position.stored_end is not None
    assert chain.end >= position.stored_end
    names = log.store.list("log/")
    assert len([info for info in names if ".chunks/" in info.key]) < 30


def test_a_server_that_is_restarted_is_followed(source: Host) -> None:
    insert(source)
    caught_up(source)
    source.server.kill()
    away = source.agents.await_position(lambda position: position.drained, source_system(source))
    assert away.server == "away"
    source.start()
    insert(source)
    position = caught_up(source)
    assert not position.drained


def source_system(running: Host) -> str:
    """The system identifier of a server that may be away."""
    (name,) = running.agents.repository.service("database").names("")
    return name.rstrip("/")


def test_what_the_receiver_had_when_the_server_was_lost_is_stored(source: Host) -> None:
    source.do("CREATE TABLE marks (n int)")
    caught_up(source)
    system = source.system
    with source.connect() as connection:
        for number in range(200):
            connection.execute("INSERT INTO marks VALUES (%s)", (number,))
        lsn = Lsn.parse(str(connection.execute("SELECT pg_current_wal_lsn()").fetchone()[0]))  # type: ignore[index]
        assert wait_until(
            lambda: (
                connection.execute(
                    "SELECT coalesce(max(flush_lsn) >= %s::pg_lsn, false) FROM pg_stat_replication", (str(lsn),)
                ).fetchone()
                == (True,)
            ),
            timeout=20,
        )
    source.server.kill()
    position = source.agents.await_position(lambda position: position.drained, system)
    assert position.stored_end is not None
    # The log's last bytes may be zeros, which nobody can tell from what was never written.
    assert position.stored_end + 64 > lsn or position.stored_end >= lsn


def test_an_agent_that_was_stopped_goes_on_with_the_chunks_that_are_there(newest: Host) -> None:
    insert(newest)
    caught_up(newest)
    newest.agents.stop()
    assert receivers(newest) == []
    insert(newest)
    newest.agents.start()
    position = caught_up(newest)
    assert position.problem is None
    segment = str(newest.ask("SELECT pg_walfile_name(pg_current_wal_lsn())"))
    log = newest.agents.log(newest.system)
    stored = reach(log.chunks(segment))
    written = (newest.server.data / "pg_wal" / segment).read_bytes()
    assert log.fetch(segment)[:stored] == written[:stored]


def test_an_agent_that_begins_with_an_empty_folder_goes_on(newest: Host) -> None:
    insert(newest)
    caught_up(newest)
    newest.agents.stop()
    for path in newest.agents.spool.glob("*/*"):
        path.unlink()
    insert(newest)
    newest.agents.start()
    assert caught_up(newest).problem is None


def test_a_receiver_that_its_agent_left_behind_is_ended(newest: Host) -> None:
    insert(newest)
    caught_up(newest)
    (pid,) = receivers(newest)
    os.kill(pid, signal.SIGSTOP)
    try:
        folder = next(newest.agents.spool.glob("*/.receiver")).parent
        stat = (folder / ".receiver").read_text()
        assert stat.split()[0] == str(pid)
    finally:
        os.kill(pid, signal.SIGCONT)
    newest.agents.stop()
    tool = find_client_binaries(Settings(), newest.server.binaries.major)["pg_receivewal"]
    options = [
        f"--slot={SLOT}",
        f"--directory={folder}",
        "--synchronous",
        "--no-loop",
        f"--dbname={newest.server.dsn()}",
    ]
    left = subprocess.Popen([tool, *options], stderr=subprocess.DEVNULL)
    (folder / ".receiver").write_text(Path(f"/proc/{left.pid}/stat").read_text())
    newest.agents.start()
    insert(newest)
    assert caught_up(newest).problem is None
    assert left.wait(timeout=20) is not None


def test_a_slot_that_holds_too_much_is_told(newest: Host) -> None:
    insert(newest)
    caught_up(newest)
    (pid,) = receivers(newest)
    os.kill(pid, signal.SIGSTOP)
    try:
        newest.do("ALTER SYSTEM SET max_slot_wal_keep_size = '4MB'")
        newest.do("SELECT pg_reload_conf()")
        for _ in range(6):
            newest.do("SELECT pg_logical_emit_message(false, 'x', repeat('x', 1000000))")
        position = newest.agents.await_position(lambda position: position.problem, newest.system)
        assert f"slot {SLOT} holds" in str(position.problem)
    finally:
        os.kill(pid, signal.SIGCONT)
    newest.agents.await_position(lambda position: position.problem is None, newest.system)


def test_a_slot_that_was_let_go_of_is_a_hole_until_the_next_full_backup(
    source: Host, machine: tuple[Settings, Leases]
) -> None:
    insert(source)
    caught_up(source)
    source.agents.stop()
    source.do("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'")
    source.do("SELECT pg_reload_conf()")
    for _ in range(10):
        source.do("SELECT pg_logical_emit_message(false, 'x', repeat('x', 1000000))")
        source.do("SELECT pg_switch_wal()")
    source.do("CHECKPOINT")
    source.agents.start()
    source.agents.await_position(lambda position: position.problem and "full backup" in position.problem, source.system)
    source.do("ALTER SYSTEM RESET max_slot_wal_keep_size")
    source.do("SELECT pg_reload_conf()")
    settings = machine[0]
    take_backup(
        "database",
        source.server.dsn(),
        source.agents.repository,
        source.server.binaries,
        settings,
        clock=SystemClock(),
        progress=lambda done, total: None,
    )
    insert(source)
    assert caught_up(source).problem is None


@contextlib.contextmanager
def standby_of(running: Host) -> Iterator[Server]:
    """A second server that follows the first."""
    binaries, identity = running.server.binaries, running.server.identity
    data = running.server.data.parent / "standby"
    command = [
        binaries["pg_basebackup"],
        "-D",
        str(data),
        "-d",
        running.server.dsn(),
        "-X",
        "stream",
        "-R",
        "-c",
        "fast",
    ]
    subprocess.run(command, check=True)
    give_to(data, identity, recursive=True)
    standby = Server(binaries, data, free_port(), identity, running.server.password)
    standby.start(running.leases, owner="tests", ttl=timedelta(hours=1), options=running.options)
    try:
        yield standby
    finally:
        standby.kill()


def test_a_standby_that_takes_over_is_followed_onto_its_timeline(newest: Host) -> None:
    system = newest.system
    insert(newest)
    caught_up(newest)
    with standby_of(newest) as standby:
        newest.agents.stop()
        newest.agents.dsn = psycopg.conninfo.make_conninfo(
            newest.server.dsn(),
            host="127.0.0.1,127.0.0.1",
            port=f"{newest.server.port},{standby.port}",
            target_session_attrs="read-write",
        )
        newest.agents.start()
        insert(newest)
        caught_up(newest)
        newest.server.kill()
        with psycopg.connect(standby.dsn(), autocommit=True) as connection:
            connection.execute("SELECT pg_promote()")
            connection.execute("INSERT INTO guests (name) VALUES ('after')")
            moment = scalar(connection, "SELECT clock_timestamp()")
        position = newest.agents.await_position(
            lambda position: position.recovery_point and position.recovery_point > moment, system
        )
        assert (position.timeline, position.problem) == (2, None)
        log = newest.agents.log(system)
        assert log.has("00000002.history")
        first = Segment.of_name(log.segments()[0].name, SMALL)
        chain = log.chain(first.start, 1, SMALL)
        assert (chain.timeline, chain.holes) == (2, ())
        assert position.recovery_lsn is not None
        assert chain.end >= position.recovery_lsn


def test_a_second_server_of_the_same_system_does_not_get_into_the_first_ones_chunks(newest: Host) -> None:
    insert(newest)
    caught_up(newest)
    newest.agents.stop()
    segment = str(newest.ask("SELECT pg_walfile_name(pg_current_wal_lsn())"))
    log = newest.agents.log(newest.system)
    last = log.chunks(segment)[-1]
    raw = bytearray(log.fetch_chunks(segment, log.chunks(segment))[last.start :])
    raw[-1] ^= 0xFF
    log.store.put(f"log/{segment[:8]}/{segment}.chunks/{last.name}", wrap(bytes(raw)).chunks)
    before = {info.key: log.store.get(info.key) for info in log.store.list("log/")}
    newest.agents.start()
    insert(newest)
    position = newest.agents.await_position(lambda position: position.problem, newest.system)
    assert "not what this server has sent" in str(position.problem)
    assert {info.key: log.store.get(info.key) for info in log.store.list("log/")} == before


def test_a_receiver_that_does_not_flush_and_whom_commits_wait_for_is_found(newest: Host) -> None:
    caught_up(newest)
    newest.agents.stop()
    tool = find_client_binaries(Settings(), newest.server.binaries.major)["pg_receivewal"]
    folder = newest.agents.spool / "theirs"
    folder.mkdir()
    dsn = f"{newest.server.dsn()} application_name=theirs"
    theirs = subprocess.Popen([tool, f"--directory={folder}", f"--dbname={dsn}"], stderr=subprocess.DEVNULL)
    try:
        newest.do("ALTER SYSTEM SET synchronous_standby_names = 'theirs'")
        newest.do("SELECT pg_reload_conf()")
        connected = "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'theirs' AND state = 'streaming'"
        assert wait_until(lambda: newest.ask(connected) == 1, timeout=20)
        with newest.connect() as connection:
            found = judge_streaming(
                read_streaming(connection, SLOT), "database", streams=False, rpo=None, agent_is_here=False
            )
        (finding,) = [finding for finding in found if finding.looked_at == "synchronous commits"]
        assert "no commit comes back" in finding.seen
        writing = threading.Thread(target=newest.do, args=["CREATE TABLE never_confirmed (n int)"])
        writing.start()
        waiting = "SELECT max(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        assert wait_until(lambda: newest.ask(waiting), timeout=20)
        newest.ask(f"SELECT pg_cancel_backend(({waiting}))")
        writing.join(timeout=20)
    finally:
        theirs.kill()
        theirs.wait()
