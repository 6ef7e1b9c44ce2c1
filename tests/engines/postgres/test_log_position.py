"""The recovery point from samples and the stored log's end. Pure."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dr_pipelines.engines.postgres.log import Log
from dr_pipelines.engines.postgres.position import Position, RecoveryPointTracker, Sample, ServerState
from dr_pipelines.engines.postgres.wal import Lsn
from dr_pipelines.repository.folder import FolderStore

SIZE = 16 << 20
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def second(number: float) -> datetime:
    return NOON + timedelta(seconds=number)


def at(number: float) -> Lsn:
    """A position so many segments into the log."""
    return Lsn(int(number * SIZE))


def sample(seconds: float, lsn: Lsn, *, timeline: int = 1, next_xid: int = 0, quiet: bool = False) -> Sample:
    return Sample(second(seconds), lsn, timeline, next_xid or 700 + int(seconds), quiet)


def test_the_newest_sample_that_is_stored_is_the_recovery_point() -> None:
    tracker = RecoveryPointTracker(SIZE)
    for number in range(10):
        tracker.add(sample(number, at(1 + number / 4)))
    assert tracker.recovery_point is None
    tracker.stored(at(2), 1)
    assert tracker.recovery_point == second(4)
    tracker.stored(at(3), 1)
    assert tracker.recovery_point == second(8)


def test_a_sample_that_is_stored_already_counts_at_once() -> None:
    tracker = RecoveryPointTracker(SIZE)
    tracker.stored(at(2), 1)
    tracker.add(sample(1, at(2)))
    assert tracker.recovery_point == second(1)


def test_an_idle_server_after_a_switch_is_not_exposed() -> None:
    tracker = RecoveryPointTracker(SIZE)
    tracker.stored(at(2), 1)
    for number in range(100):
        tracker.add(sample(number, at(2) + 40))
    assert tracker.recovery_point == second(99)


def test_a_byte_behind_the_page_header_is_exposed() -> None:
    tracker = RecoveryPointTracker(SIZE)
    tracker.stored(at(2), 1)
    tracker.add(sample(1, at(2) + 40))
    tracker.add(sample(2, at(2) + 41))
    assert tracker.recovery_point == second(1)


def test_a_checkpoint_on_an_idle_server_is_no_exposure() -> None:
    tracker = RecoveryPointTracker(SIZE)
    tracker.stored(at(2), 1)
    tracker.add(sample(1, at(2), next_xid=700, quiet=True))
    tracker.add(sample(300, at(2) + 232, next_xid=700, quiet=True))
    assert tracker.recovery_point == second(300)


def test_a_transaction_since_the_stored_log_is_exposure() -> None:
    tracker = RecoveryPointTracker(SIZE)
    tracker.stored(at(2), 1)
    tracker.add(sample(1, at(2), next_xid=700, quiet=True))
    tracker.add(sample(2, at(2) + 232, next_xid=701, quiet=True))
    assert tracker.recovery_point == second(1)


def test_a_transaction_that_was_under_way_at_the_stored_sample_may_have_committed_since() -> None:
    tracker = RecoveryPointTracker(SIZE)
    tracker.stored(at(2), 1)
    tracker.add(sample(1, at(2), next_xid=700, quiet=False))
    tracker.add(sample(2, at(2) + 232, next_xid=700, quiet=True))
    assert tracker.recovery_point == second(1)


class TestTheReplayMustReach:
    """A whole log always leads there, and one that is broken before has lost what was acknowledged."""

    def test_the_position_of_the_stored_sample(self) -> None:
        tracker = RecoveryPointTracker(SIZE)
        tracker.add(sample(1, at(1.5)))
        tracker.add(sample(2, at(2.5)))
        tracker.stored(at(2), 1)
        assert (tracker.recovery_point, tracker.recovery_lsn) == (second(1), at(1.5))

    @pytest.mark.parametrize("header", [(at(2), 40), (at(1.5), 24)], ids=["of a segment", "of a page"])
    def test_no_page_header_that_nothing_follows(self, header: tuple[Lsn, int]) -> None:
        boundary, size = header
        tracker = RecoveryPointTracker(SIZE)
        tracker.add(sample(1, boundary + size))
        tracker.stored(at(2), 1)
        assert tracker.recovery_lsn == boundary

    def test_what_was_stored_when_an_idle_server_was_last_seen_to_write(self) -> None:
        tracker = RecoveryPointTracker(SIZE)
        tracker.stored(at(2), 1)
        tracker.add(sample(1, at(1.75), next_xid=700, quiet=True))
        tracker.add(sample(300, at(2) + 232, next_xid=700, quiet=True))
        assert (tracker.recovery_point, tracker.recovery_lsn) == (second(300), at(1.75))

    def test_nothing_behind_a_hole(self) -> None:
        tracker = RecoveryPointTracker(SIZE)
        tracker.stored(at(2), 1)
        tracker.add(sample(1, at(2)))
        tracker.forget()
        assert tracker.recovery_lsn is None


def test_what_was_proven_survives_a_restart() -> None:
    before = RecoveryPointTracker(SIZE)
    before.stored(at(2), 1)
    before.add(sample(1, at(2), next_xid=700, quiet=True))
    after = RecoveryPointTracker(
        SIZE,
        recovery_point=before.recovery_point,
        recovery_lsn=before.recovery_lsn,
        quiet_xid=before.quiet_xid,
        timeline=1,
    )
    after.stored(at(2), 1)
    after.add(sample(500, at(2) + 232, next_xid=700, quiet=True))
    assert (after.recovery_point, after.recovery_lsn) == (second(500), at(2))


def test_transactions_of_another_timeline_do_not_compare() -> None:
    tracker = RecoveryPointTracker(SIZE, recovery_point=second(1), recovery_lsn=at(2), quiet_xid=700, timeline=1)
    tracker.stored(at(2), 1)
    tracker.add(sample(2, at(2) + 232, timeline=2, next_xid=700, quiet=True))
    # Nor is what was proven of that one proven of this one, which may have left it before.
    assert (tracker.recovery_point, tracker.recovery_lsn) == (None, None)


def test_positions_of_another_timeline_do_not_count() -> None:
    tracker = RecoveryPointTracker(SIZE)
    tracker.stored(at(3), 1)
    tracker.add(sample(2, at(2.5), timeline=2))
    assert tracker.recovery_point is None
    tracker.stored(at(3), 2)
    assert tracker.recovery_point == second(2)


def test_a_hole_takes_every_proof_away() -> None:
    tracker = RecoveryPointTracker(SIZE)
    tracker.stored(at(3), 1)
    tracker.add(sample(1, at(3), next_xid=700, quiet=True))
    tracker.forget()
    tracker.stored(at(2), 1)
    tracker.add(sample(2, at(3) + 100, next_xid=700, quiet=True))
    assert tracker.recovery_point is None
    tracker.stored(at(4), 1)
    assert tracker.recovery_point == second(2)


def test_the_recovery_point_never_goes_back_with_a_clock() -> None:
    tracker = RecoveryPointTracker(SIZE)
    tracker.stored(at(2), 1)
    tracker.add(sample(10, at(2)))
    tracker.add(sample(5, at(2)))
    assert tracker.recovery_point == second(10)


def test_memory_is_bounded_while_nothing_is_stored() -> None:
    tracker = RecoveryPointTracker(SIZE, limit=50)
    for number in range(1000):
        tracker.add(sample(number, at(1 + number)))
    assert len(tracker._waiting) == 50
    tracker.stored(at(1000), 1)
    assert tracker.recovery_point == second(999)


steps = st.lists(st.tuples(st.sampled_from(["write", "store"]), st.floats(0, 3)), max_size=60)


@given(steps)
def test_the_recovery_point_is_always_the_newest_stored_sample(script: list[tuple[str, float]]) -> None:
    tracker = RecoveryPointTracker(SIZE)
    samples: list[Sample] = []
    position, end = 1.5, 1
    for number, (kind, amount) in enumerate(script):
        if kind == "write":
            position += amount
            samples.append(sample(number, at(position)))
            tracker.add(samples[-1])
        else:
            end = min(end + int(amount), int(position))
            tracker.stored(at(end), 1)
        expected = [taken.at for taken in samples if taken.lsn.value <= end * SIZE + 40]
        assert tracker.recovery_point == max(expected, default=None)
        assert tracker.recovery_lsn is None or tracker.recovery_lsn <= at(end)


def test_a_position_reads_back_what_it_writes() -> None:
    position = Position(
        heartbeat_at=NOON,
        at=second(1),
        lsn=at(2.5),
        timeline=1,
        segment_size=SIZE,
        stored_end=at(2),
        recovery_point=NOON,
        recovery_lsn=at(1.5),
        quiet_xid=700,
        server=ServerState.UP,
        spool_files=0,
        spool_bytes=0,
        agent_version="0.1",
        agent_host="db1",
    )
    written = position.model_dump(mode="json")
    assert written["lsn"] == "0/2800000"
    assert Position.model_validate(written) == position
    del written["recovery_lsn"]
    assert Position.model_validate(written).recovery_lsn is None, "as an earlier agent wrote it"
    with pytest.raises(ValueError, match="position in the log"):
        Position.model_validate(written | {"lsn": "x"})


def told(seconds: float, timeline: int, *, server: ServerState = ServerState.UP) -> Position:
    """What an agent says at that second."""
    return Position(
        heartbeat_at=second(seconds),
        timeline=timeline,
        server=server,
        spool_files=0,
        spool_bytes=0,
        agent_version="1",
        agent_host="a",
    )


class TestTwoAgents:
    """That of a server whose place another one has taken, and that of the other one."""

    def test_of_an_older_timeline_it_is_kept_beside_what_counts(self, tmp_path: Path) -> None:
        old, new = Log(FolderStore(tmp_path)), Log(FolderStore(tmp_path))
        assert old.tell_position(told(1, 1))
        assert new.tell_position(told(2, 2))

        assert not old.tell_position(told(3, 1))
        assert new.tell_position(told(4, 2))
        assert not old.tell_position(told(500, 1))

        assert Log(FolderStore(tmp_path)).read_position() == told(4, 2)
        assert Log(FolderStore(tmp_path)).read_position(1) == told(500, 1)

    def test_begun_anew_where_its_server_is_away_it_says_nothing_while_the_other_one_answers(
        self, tmp_path: Path
    ) -> None:
        new = Log(FolderStore(tmp_path))
        assert new.tell_position(told(1, 2))
        old = Log(FolderStore(tmp_path))
        assert old.read_position() == told(1, 2)
        assert new.tell_position(told(6, 2))

        assert not old.tell_position(told(7, 2, server=ServerState.AWAY))
        assert new.read_position() == told(6, 2)

    def test_one_that_takes_over_from_an_agent_that_is_gone_speaks(self, tmp_path: Path) -> None:
        assert Log(FolderStore(tmp_path)).tell_position(told(1, 2))

        # It has read what the one before it said, as an agent does when it begins.
        next_one = Log(FolderStore(tmp_path))
        next_one.read_position()
        assert next_one.tell_position(told(2, 2, server=ServerState.AWAY))

        # And one that has not speaks when nobody has for a while.
        assert Log(FolderStore(tmp_path)).tell_position(told(40, 2, server=ServerState.AWAY))

    def test_a_position_that_cannot_be_read_is_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "position.json").write_bytes(b"{}")

        assert Log(FolderStore(tmp_path)).tell_position(told(1, 1))
