"""What the agent makes of what it finds in the spool. No server: the segments are made up."""

import logging
import os
import subprocess
import threading
from datetime import datetime
from pathlib import Path

import pytest

from dr_pipelines.agent import run_agent
from dr_pipelines.agent.cluster import Cluster
from dr_pipelines.engines.postgres.log import Stored
from dr_pipelines.engines.postgres.position import LogMode, Sample, ServerState
from dr_pipelines.engines.postgres.wal import Lsn
from dr_pipelines.errors import ConfigurationError, Locked, ObjectConflict, ObjectCorrupt, ObjectMissing, UsageError
from dr_pipelines.timing import SystemClock, wait_until
from tests.agent.conftest import SMALL, SYSTEM, Agents, made_up

HISTORY = ("00000002.history", b"1\t0/480000\tpromoted\n")


def end(number: int) -> Lsn:
    """Where a segment of this number ends."""
    return Lsn((number + 1) * SMALL)


def proven(cluster: Cluster) -> tuple[datetime | None, Lsn | None]:
    return cluster.recovery_point, cluster.stored_end


def test_a_spooled_segment_is_stored_and_taken_out_of_the_spool(agents: Agents) -> None:
    name, content = made_up(4)
    agents.drop((name, content))
    agents.start()
    agents.await_empty()
    assert agents.log().fetch(name) == content
    position = agents.await_position(lambda position: position.stored_end == end(4))
    assert (position.problem, position.server, position.recovery_point) == (None, ServerState.AWAY, None)
    assert (position.spool_files, position.spool_bytes) == (0, 0)


def test_what_comes_while_it_runs_is_shipped_in_order(agents: Agents, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    agents.drop(made_up(5, timeline=2), HISTORY, made_up(4), made_up(3))
    agents.start()
    agents.await_empty()
    agents.drop(made_up(6, timeline=2))
    agents.await_empty()
    lines = [vars(record)["fields"] for record in caplog.records if record.message == "shipped"]
    names = [made_up(3)[0], made_up(4)[0], made_up(5, timeline=2)[0], made_up(6, timeline=2)[0]]
    assert [line["file"] for line in lines] == [HISTORY[0], *names]
    assert all(line["bytes"] > 0 and line["seconds"] >= 0 and line["result"] == Stored.NEW for line in lines)


def test_the_stored_end_follows_a_promotion(agents: Agents) -> None:
    agents.drop(made_up(3), HISTORY, made_up(4, timeline=2), made_up(5, timeline=2))
    agents.start()
    agents.await_position(lambda position: position.stored_end == end(5))


@pytest.mark.parametrize("suffix", [".partial", ".00000028.backup"])
def test_partial_segments_and_backup_notes_are_stored_too(agents: Agents, suffix: str) -> None:
    name, content = made_up(4)
    agents.drop(made_up(3), (name + suffix, content))
    agents.start()
    agents.await_empty()
    assert agents.log().fetch(name + suffix) == content
    agents.await_position(lambda position: position.stored_end == end(3))


def test_a_put_whose_removal_never_came_is_neither_lost_nor_doubled(agents: Agents) -> None:
    name, content = made_up(4)
    assert agents.log().put(name, content) is Stored.NEW
    agents.drop((name, content))
    agents.start()
    agents.await_empty()
    assert [segment.name for segment in agents.log().segments()] == [name]
    assert agents.log().fetch(name) == content


def test_other_content_stays_in_the_spool_and_stops_the_chain_but_not_the_others(agents: Agents) -> None:
    agents.log().put(*made_up(3))
    stored = made_up(4)
    agents.log().put(f"{stored[0]}.partial", stored[1])
    agents.drop(made_up(3, seed=9), made_up(4), made_up(5))
    agents.start()
    agents.await_position(lambda position: position.spool_files == 1)
    position = agents.await_position(lambda position: position.stored_end == end(2))
    assert agents.waiting() == [stored[0].replace("4", "3")]
    assert position.foreign_from == made_up(3)[0]
    assert position.problem is not None
    assert "other content" in position.problem
    assert position.spool_files == 1
    assert agents.log().fetch(made_up(3)[0]) == made_up(3)[1]


@pytest.mark.parametrize(
    ("file", "match"),
    [
        (made_up(4, system=99), "of the cluster 99"),
        ((made_up(4)[0], made_up(4)[1][:-8192]), "bytes and not"),
        ((made_up(4)[0], made_up(5)[1]), "from 0/500000"),
        ((made_up(4)[0], b""), "too few"),
        ((made_up(4)[0], bytes(SMALL)), "no WAL segment"),
        (("00000002.history", b"\0" * 100), "no timeline history"),
    ],
)
def test_what_is_no_segment_of_this_cluster_stays_and_the_others_go_on(
    agents: Agents, file: tuple[str, bytes], match: str
) -> None:
    agents.log().put(*made_up(2))
    agents.drop(made_up(3))
    agents.start()
    agents.await_empty()
    agents.drop(file, made_up(6))
    position = agents.await_position(lambda position: position.problem and match in position.problem)
    assert agents.waiting() == [file[0]]
    assert not agents.log().has(file[0])
    assert agents.log().has(made_up(6)[0])
    # Segments 4 and 5 are missing, so 6 cannot be reached.
    assert position.stored_end == end(3)


IMPOSSIBLE = "000000010000000000001000"
"""No segment of 1 MiB has this name."""


def test_a_stored_name_that_no_segment_can_have_keeps_nothing_else_from_being_stored(agents: Agents) -> None:
    agents.log().put(IMPOSSIBLE, b"")
    agents.log().put("000000000000000000000001", b"")
    agents.drop(made_up(3))
    agents.start()
    agents.await_position(lambda position: position.stored_end == end(3) and position.problem is None)


def test_a_spooled_name_that_no_segment_can_have_ends_nothing_beside_a_conflict(agents: Agents) -> None:
    agents.log().put(*made_up(3))
    agents.drop(made_up(3, seed=9), (IMPOSSIBLE, b"x"))
    agents.start()
    agents.await_position(lambda position: position.problem and IMPOSSIBLE in position.problem)
    (agents.spool / IMPOSSIBLE).unlink()
    agents.await_position(lambda position: position.spool_files == 1 and IMPOSSIBLE not in str(position.problem))
    agents.drop(made_up(4))
    agents.await_position(lambda position: position.spool_files == 1 and agents.log().has(made_up(4)[0]))


def test_a_hole_is_named_and_mended_by_the_missing_segment(agents: Agents) -> None:
    agents.drop(made_up(3), made_up(5))
    agents.start()
    position = agents.await_position(lambda position: position.problem)
    assert position.stored_end == end(3)
    assert made_up(4)[0] in str(position.problem)
    agents.drop(made_up(4))
    position = agents.await_position(lambda position: position.stored_end == end(5))
    assert agents.await_position(lambda position: position.problem is None)


def test_a_segment_that_vanished_from_the_repository_is_noticed_at_the_next_start(agents: Agents) -> None:
    agents.drop(made_up(3), made_up(4), made_up(5))
    agents.start()
    agents.await_position(lambda position: position.stored_end == end(5))
    agents.stop()
    name = made_up(4)[0]
    agents.log().store.delete(f"log/00000001/{name}")
    agents.start()
    position = agents.await_position(lambda position: position.problem)
    assert position.stored_end == end(3)
    assert name in str(position.problem)


def test_from_a_segment_on_that_another_server_stored_nothing_is_this_servers_until_it_is_gone(agents: Agents) -> None:
    for number in (3, 4, 5):
        agents.log().put(*made_up(number))
    name, content = made_up(4, seed=9)
    for _ in range(2):
        agents.drop((name, content))
        agents.start()
        agents.await_position(lambda position: (position.foreign_from, position.stored_end) == (name, end(3)))
        agents.stop()
    agents.start()
    (agents.spool / name).unlink()
    agents.await_position(lambda position: (position.foreign_from, position.stored_end) == (None, end(5)))


def test_what_the_repository_holds_proves_nothing_before_the_spool_was_looked_through(agents: Agents) -> None:
    for number in (3, 4, 5):
        agents.log().put(*made_up(number))
    cluster = Cluster(agents.repository.service("database"), str(SYSTEM), SMALL, SystemClock(), mode=LogMode.ARCHIVE)
    moment = SystemClock().wall()
    cluster.add(Sample(moment, end(4), timeline=1, next_xid=9, quiet=True))
    assert cluster.recovery_point is None
    with pytest.raises(ObjectConflict):
        cluster.put(*made_up(4, seed=9), level=1)
    cluster.settle()
    assert proven(cluster) == (None, end(3))
    cluster.gone(made_up(4)[0])
    cluster.refresh_where_due()
    assert proven(cluster) == (moment, end(5))


def test_a_refused_file_that_was_mended_is_shipped(agents: Agents) -> None:
    name, content = made_up(4)
    agents.drop(made_up(3), (name, content[:5000]))
    agents.start()
    agents.await_position(lambda position: position.problem)
    agents.drop((name, content))
    agents.await_empty()
    agents.await_position(lambda position: position.problem is None and position.stored_end == end(4))


def test_a_strange_file_is_named_and_left_and_hidden_ones_are_ignored(agents: Agents) -> None:
    (agents.spool / "notes.txt").write_text("mine")
    (agents.spool / f".{made_up(4)[0]}.812.tmp").write_bytes(b"half")
    agents.drop(made_up(3))
    agents.start()
    position = agents.await_position(lambda position: position.problem)
    assert "notes.txt" in str(position.problem)
    assert agents.waiting() == ["notes.txt"]


def test_the_heartbeat_goes_on_while_nothing_changes(agents: Agents) -> None:
    agents.drop(made_up(3))
    agents.start()
    first = agents.await_position(lambda position: position.stored_end == end(3))
    agents.await_position(lambda position: (position.heartbeat_at - first.heartbeat_at).total_seconds() > 1)


def test_an_agent_with_nothing_to_ask_goes_on_with_the_only_cluster_that_is_stored(agents: Agents) -> None:
    agents.drop(made_up(3))
    agents.start()
    first = agents.await_position(lambda position: position.stored_end == end(3))
    agents.stop()
    agents.start()
    agents.await_position(lambda position: (position.heartbeat_at - first.heartbeat_at).total_seconds() > 1)


def test_a_repository_that_is_away_is_waited_for(agents: Agents, caplog: pytest.LogCaptureFixture) -> None:
    place = Path(agents.repository.url)
    agents.drop(made_up(3))
    agents.start()
    agents.await_empty()
    place.rename(place.with_name("away"))
    agents.drop(made_up(4), made_up(5))
    assert wait_until(lambda: "problem" in caplog.messages, timeout=20)
    assert len(agents.waiting()) == 2
    place.with_name("away").rename(place)
    agents.await_empty()
    agents.await_position(lambda position: position.stored_end == end(5) and position.problem is None)


def test_told_to_stop_while_the_repository_is_away_it_leaves_the_spool_as_it_is(agents: Agents) -> None:
    place = Path(agents.repository.url)
    place.rename(place.with_name("away"))
    agents.drop(made_up(4))
    agents.start()
    agents.stop()
    assert agents.waiting() == [made_up(4)[0]]


def test_two_agents_never_work_on_one_spool(agents: Agents) -> None:
    agents.drop(made_up(3))
    agents.start()
    agents.await_empty()
    with pytest.raises(Locked, match=f"process {os.getpid()}"):
        run_agent(agents.options(), clock=SystemClock(), stop=agents._running[0][1])


def test_a_spool_that_is_not_there_is_refused_with_what_to_do(agents: Agents) -> None:
    agents.spool.rmdir()
    with pytest.raises(ConfigurationError, match="install -d"):
        run_agent(agents.options(), clock=SystemClock(), stop=_set())


def test_a_connection_string_that_cannot_be_read_is_refused_without_repeating_it(agents: Agents) -> None:
    agents.dsn = "host=db password=s3cr3t hidden"
    with pytest.raises(ConfigurationError) as caught:
        run_agent(agents.options(), clock=SystemClock(), stop=_set())
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system: needs root")
def test_a_spool_that_turns_read_only_is_shipped_once_and_emptied_later(agents: Agents) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", agents.spool], check=True)
    try:
        agents.drop(made_up(3))
        agents.start()
        agents.await_empty()
        agents.stop()
        agents.drop(made_up(4))
        # As the kernel does by itself after a disk's error.
        subprocess.run(["mount", "-o", "remount,ro", agents.spool], check=True)
        agents.start()
        position = agents.await_position(lambda position: position.stored_end == end(4) and position.problem)
        assert "cannot be removed" in str(position.problem)
        subprocess.run(["mount", "-o", "remount,rw", agents.spool], check=True)
        agents.await_empty()
        agents.await_position(lambda position: position.problem is None)
    finally:
        agents.stop()
        subprocess.run(["umount", agents.spool], check=True)


class TestLog:
    """The stored log by itself."""

    def test_the_same_again_changes_nothing_and_other_content_is_refused(self, agents: Agents) -> None:
        name, content = made_up(3)
        log = agents.log()
        assert (log.put(name, content), log.put(name, content, level=9)) == (Stored.NEW, Stored.SAME)
        with pytest.raises(ObjectConflict, match=name):
            log.put(*made_up(3, seed=1))
        assert log.fetch(name) == content

    def test_what_is_not_there_is_missing(self, agents: Agents) -> None:
        assert not agents.log().has(made_up(3)[0])
        assert agents.log().segments() == ()
        assert agents.log().read_position() is None
        with pytest.raises(ObjectMissing):
            agents.log().fetch(made_up(3)[0])

    def test_a_flipped_byte_is_found_on_reading_and_before_a_copy_is_thrown_away(self, agents: Agents) -> None:
        name, content = made_up(3)
        agents.log().put(name, content)
        path = next(Path(agents.repository.url).rglob(name))
        raw = bytearray(path.read_bytes())
        raw[-100] ^= 1
        path.write_bytes(raw)
        with pytest.raises(ObjectCorrupt, match=name):
            agents.log().fetch(name)
        with pytest.raises(ObjectCorrupt, match=name):
            agents.log().put(name, content)

    def test_only_names_that_postgresql_gives_are_taken(self, agents: Agents) -> None:
        for name in ("../../x", "x", "position.json"):
            with pytest.raises(UsageError):
                agents.log().put(name, b"x")

    def test_the_chain_is_that_of_what_is_stored(self, agents: Agents) -> None:
        for number in (3, 4, 6):
            agents.log().put(*made_up(number))
        chain = agents.log().chain(Lsn(3 * SMALL + 100), 1, SMALL)
        assert (chain.end, chain.missing) == (end(4), (made_up(5)[0],))


def _set() -> threading.Event:
    event = threading.Event()
    event.set()
    return event
