"""Whether the stored log is unbroken, and what a hole costs. No file is read here."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dr_pipelines.engines.postgres.chain import StoredSegment, follow
from dr_pipelines.engines.postgres.wal import Lsn, Segment, Switch

SIZE = 16 << 20
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def at(number: float) -> Lsn:
    """A position so many segments into the log."""
    return Lsn(int(number * SIZE))


def name(number: int, timeline: int = 1) -> str:
    return Segment(timeline, number, SIZE).name


def stored(numbers: Iterable[int], timeline: int = 1) -> list[StoredSegment]:
    """Segments that were stored a minute apart, number 0 at noon."""
    return [StoredSegment(name(number, timeline), 1000, NOON + timedelta(minutes=number)) for number in numbers]


def test_an_unbroken_log_reaches_its_newest_segment() -> None:
    chain = follow(at(3.5), 1, SIZE, stored(range(1, 8)), {})
    assert (chain.end, chain.newest, chain.holes) == (at(8), name(7), ())
    assert chain.files == tuple(name(number) for number in range(3, 8))
    assert chain.end_stored_at == NOON + timedelta(minutes=7)


def test_a_hole_is_named_with_the_time_that_is_lost() -> None:
    chain = follow(at(3), 1, SIZE, stored([3, 4, 7, 8]), {})
    assert chain.end == at(5)
    assert chain.newest == name(8)
    assert chain.missing == (name(5), name(6))
    assert chain.end_stored_at == NOON + timedelta(minutes=4)
    assert chain.files == (name(3), name(4))


def test_every_hole_is_found_and_a_long_one_is_counted() -> None:
    chain = follow(at(1), 1, SIZE, stored([1, 3, 5000]), {})
    assert [hole.count for hole in chain.holes] == [1, 4996]
    assert len(chain.missing) == 21


def test_a_missing_start_is_a_hole_without_a_time_before() -> None:
    chain = follow(at(2.5), 1, SIZE, stored([3, 4]), {})
    assert (chain.end, chain.missing) == (at(2.5), (name(2),))
    assert chain.end_stored_at is None


def test_nothing_stored_is_no_hole() -> None:
    chain = follow(at(2.5), 1, SIZE, stored([0, 1]), {})
    assert (chain.end, chain.newest, chain.holes, chain.files) == (at(2.5), None, (), ())


def test_the_chain_follows_a_promotion() -> None:
    both = stored(range(1, 5)) + stored(range(4, 7), timeline=2)
    chain = follow(at(1), 1, SIZE, both, {2: (Switch(1, at(4.25), "promoted"),)})
    assert (chain.end, chain.timeline, chain.holes) == (at(7), 2, ())
    expected = ["00000002.history", name(1), name(2), name(3), name(4, 2), name(5, 2), name(6, 2)]
    assert chain.files == tuple(expected)


def test_the_chain_follows_two_promotions_and_ignores_a_dead_branch() -> None:
    histories = {
        2: (Switch(1, at(4.25), ""),),
        3: (Switch(1, at(3.5), ""),),
        4: (Switch(1, at(3.5), ""), Switch(3, at(6.5), "")),
    }
    logs = stored(range(1, 9)) + stored([4, 5], 2) + stored([3, 4, 5, 6], 3) + stored([6, 7], 4)
    chain = follow(at(1), 1, SIZE, logs, histories)
    assert (chain.end, chain.timeline, chain.holes) == (at(8), 4, ())
    assert chain.files[3:] == (name(1), name(2), name(3, 3), name(4, 3), name(5, 3), name(6, 4), name(7, 4))


def test_what_the_old_timeline_wrote_after_the_switch_does_not_count() -> None:
    chain = follow(at(1), 1, SIZE, stored(range(1, 9)), {2: (Switch(1, at(4.25), ""),)})
    assert (chain.end, chain.newest, chain.timeline) == (at(4), name(3), 1)


def test_a_timeline_that_was_left_before_the_start_is_not_followed() -> None:
    chain = follow(at(6), 1, SIZE, stored(range(1, 9)), {2: (Switch(1, at(4.25), ""),)})
    assert (chain.end, chain.timeline) == (at(9), 1)


def test_a_hole_just_after_a_switch_is_named_on_the_new_timeline() -> None:
    both = stored(range(1, 5)) + stored([5, 6], timeline=2)
    chain = follow(at(1), 1, SIZE, both, {2: (Switch(1, at(4.25), ""),)})
    assert (chain.end, chain.missing) == (at(4), (name(4, 2),))


@pytest.mark.parametrize("stray", ["000000010000000000000100", "000000000000000000000004"])
def test_a_name_that_no_segment_of_this_size_has_is_passed_over(stray: str) -> None:
    chain = follow(at(3.5), 1, SIZE, [*stored(range(1, 8)), StoredSegment(stray, 1000, NOON)], {})
    assert (chain.end, chain.newest, chain.holes) == (at(8), name(7), ())


@given(st.sets(st.integers(0, 60)), st.integers(0, 60))
def test_the_end_is_reached_without_a_step_over_nothing(numbers: set[int], first: int) -> None:
    chain = follow(at(first), 1, SIZE, stored(numbers), {})
    reached = range(first, chain.end.value // SIZE)
    assert set(reached) <= numbers
    assert chain.end.value // SIZE not in numbers
    later = {number for number in numbers if number >= first}
    assert bool(chain.holes) == (later != set(reached))
    assert sum(hole.count for hole in chain.holes) == len(set(range(first, max(later, default=first))) - later)


@pytest.mark.parametrize("size", [1 << 20, 1 << 30])
def test_any_segment_size_is_followed(size: int) -> None:
    names = [Segment(1, number, size) for number in range(4090, 4100)]
    segments = [StoredSegment(segment.name, 1, NOON) for segment in names]
    assert follow(names[0].start, 1, size, segments, {}).end == names[-1].end


def partial(number: int, reaches: int, timeline: int = 1) -> StoredSegment:
    return StoredSegment(name(number, timeline), 1000, NOON + timedelta(minutes=number), reaches)


def test_a_segment_that_is_not_full_is_the_end_of_the_chain() -> None:
    chain = follow(at(3.5), 1, SIZE, [*stored([3, 4]), partial(5, 4096)], {})
    assert (chain.end, chain.holes, chain.newest) == (at(5) + 4096, (), name(5))
    assert chain.files == (name(3), name(4), name(5))


def test_what_follows_a_segment_that_is_not_full_cannot_be_reached() -> None:
    chain = follow(at(3), 1, SIZE, [*stored([3, 5, 6]), partial(4, 4096)], {})
    assert chain.end == at(4) + 4096
    assert chain.missing == (name(4),)
    assert chain.files == (name(3), name(4))


def test_a_chain_that_begins_behind_what_is_there_of_its_segment_is_empty() -> None:
    assert follow(at(3.5), 1, SIZE, [partial(3, 4096)], {}).end == at(3.5)


def test_the_unfinished_segment_of_a_timeline_that_was_left_is_no_hole() -> None:
    both = [*stored([1, 2, 3]), partial(4, 4096), *stored([4, 5], 2), partial(6, 100, 2)]
    chain = follow(at(1), 1, SIZE, both, {2: (Switch(1, at(4.25), "promoted"),)})
    assert (chain.end, chain.timeline, chain.holes) == (at(6) + 100, 2, ())
