"""What a loss cost is worked out from the writers' notes and the rows that came back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dr_pipelines.drills.measure import ACKNOWLEDGEMENT_TOLERANCE, Measurement, Rows, measure
from dr_pipelines.engines.checks import Check
from dr_pipelines.lab.marks import Attempt, WriterMarks

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
GAPLESS = "rows_are_a_gapless_prefix"
COVERED = "acknowledged_before_recovery_point_are_there"
ONE_MORE = "at_most_one_unacknowledged_row"
UNKNOWN = "no_unknown_rows"
TOO_LATE = "nothing_acknowledged_after_outage"
FORWARD = "time_stamps_go_forward"


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def steady(writer: int, rows: int, *, unacknowledged: int = 0) -> WriterMarks:
    """A row each second, seq 1 at second 1, acknowledged half a second later; the last ones perhaps not."""
    return WriterMarks(
        writer,
        tuple(Attempt(n, at(n), at(n + 0.5) if n <= rows - unacknowledged else None) for n in range(1, rows + 1)),
    )


def outcomes(measurement: Measurement) -> dict[str, bool | None]:
    return {check.name: check.passed for check in measurement.checks}


def failed(measurement: Measurement) -> list[Check]:
    return [check for check in measurement.checks if check.passed is not True]


def of(measurement: Measurement, name: str) -> Check:
    return next(check for check in measurement.checks if check.name == name)


class TestDataLoss:
    def test_nothing_lost_is_an_rpo_of_zero(self) -> None:
        result = measure([steady(1, 10)], {1: range(1, 11)}, outage_started_at=at(11), recovery_point=at(10.5))
        assert result.rpo == timedelta(0)
        assert result.rows == Rows(acknowledged=10, recovered=10, lost=0)
        assert not failed(result)

    def test_a_loss_counts_from_the_newest_row_that_came_back(self) -> None:
        result = measure([steady(1, 10)], {1: range(1, 8)}, outage_started_at=at(11), recovery_point=at(7.5))
        assert result.rpo == timedelta(seconds=4)
        assert result.rows == Rows(acknowledged=10, recovered=7, lost=3)
        assert not failed(result)

    def test_rows_beyond_a_gap_do_not_shorten_it(self) -> None:
        result = measure([steady(1, 10)], {1: [1, 2, 4, 5, 6]}, outage_started_at=at(11), recovery_point=at(0))
        assert result.rpo == timedelta(seconds=9)

    def test_the_worst_writer_counts(self) -> None:
        result = measure(
            [steady(1, 10), steady(2, 10), steady(3, 10)],
            {1: range(1, 10), 2: range(1, 6), 3: range(1, 11)},
            outage_started_at=at(11),
            recovery_point=at(5.5),
        )
        assert result.rpo == timedelta(seconds=6)
        assert result.rows == Rows(acknowledged=30, recovered=24, lost=6)

    def test_where_nothing_of_a_writer_came_back_it_is_not_measured(self) -> None:
        result = measure(
            [steady(1, 10), steady(2, 10)], {1: range(1, 11)}, outage_started_at=at(11), recovery_point=at(5)
        )
        assert result.rpo is None
        assert result.unmeasured is not None and "writer 2" in result.unmeasured
        assert result.rows == Rows(acknowledged=20, recovered=10, lost=10)
        assert of(result, COVERED).passed is False

    def test_where_the_first_row_is_missing_it_is_not_measured_either(self) -> None:
        result = measure([steady(1, 10)], {1: range(2, 11)}, outage_started_at=at(11), recovery_point=None)
        assert result.rpo is None

    def test_an_unacknowledged_row_that_came_back_counts_as_recovered_to_that_moment_only(self) -> None:
        marks = steady(1, 5, unacknowledged=1)
        result = measure([marks], {1: range(1, 6)}, outage_started_at=at(6), recovery_point=at(4.5))
        assert result.rows == Rows(acknowledged=4, recovered=4, lost=0)
        assert result.rpo == timedelta(0)
        assert not failed(result)

    def test_an_unacknowledged_row_that_is_gone_is_no_loss(self) -> None:
        marks = steady(1, 5, unacknowledged=1)
        result = measure([marks], {1: range(1, 5)}, outage_started_at=at(6), recovery_point=at(4.5))
        assert result.rpo == timedelta(0)
        assert not failed(result)

    def test_a_row_lost_in_the_moment_of_the_kill_gives_no_negative_duration(self) -> None:
        marks = WriterMarks(1, (Attempt(1, at(5.01), at(5.02)), Attempt(2, at(5.03), at(5.04))))
        result = measure([marks], {1: [1]}, outage_started_at=at(5), recovery_point=at(4))
        assert result.rpo == timedelta(0)
        assert result.rows.lost == 1

    @pytest.mark.parametrize("marks", [[], [WriterMarks(1, ())]])
    def test_without_marks_nothing_is_measured(self, marks: list[WriterMarks]) -> None:
        result = measure(marks, {}, outage_started_at=at(1), recovery_point=at(1))
        assert result.rpo is None
        assert set(outcomes(result).values()) == {None}

    def test_without_an_acknowledgement_the_rpo_is_not_measured(self) -> None:
        result = measure([steady(1, 1, unacknowledged=1)], {}, outage_started_at=at(3), recovery_point=at(3))
        assert result.rpo is None
        assert result.rows == Rows(0, 0, 0)

    def test_two_logs_of_one_writer_are_refused(self) -> None:
        with pytest.raises(ValueError, match="same writer"):
            measure([steady(1, 1), steady(1, 2)], {}, outage_started_at=at(3), recovery_point=None)


class TestEachCheckCatches:
    def test_a_row_missing_in_the_middle(self) -> None:
        result = measure([steady(4, 9)], {4: [1, 2, 4]}, outage_started_at=at(10), recovery_point=at(2.5))
        assert failed(result) == [Check(GAPLESS, False, "writer 4 lacks row 3 though row 4 is there")]

    def test_a_row_that_is_there_twice(self) -> None:
        result = measure([steady(4, 3)], {4: [1, 2, 3, 2]}, outage_started_at=at(4), recovery_point=at(3.5))
        assert failed(result) == [Check(GAPLESS, False, "writer 4 has row 2 more than once")]

    def test_a_row_acknowledged_at_the_recovery_point_that_is_gone(self) -> None:
        result = measure([steady(2, 5)], {2: range(1, 5)}, outage_started_at=at(6), recovery_point=at(5.5))
        detail = "writer 2 lacks row 5, acknowledged at 2026-03-01T12:00:05.500000Z"
        assert failed(result) == [Check(COVERED, False, detail)]

    def test_but_not_one_that_was_acknowledged_after_it(self) -> None:
        result = measure([steady(2, 5)], {2: range(1, 5)}, outage_started_at=at(6), recovery_point=at(5.499999))
        assert not failed(result)

    def test_two_unacknowledged_rows_of_one_writer(self) -> None:
        result = measure(
            [steady(1, 6, unacknowledged=2)], {1: range(1, 7)}, outage_started_at=at(7), recovery_point=at(4.5)
        )
        assert failed(result) == [Check(ONE_MORE, False, "writer 1 got back 2 of them, rows 5 and 6 first")]

    @pytest.mark.parametrize(("writer", "seq"), [(1, 6), (1, 0), (7, 1)])
    def test_a_row_that_nobody_attempted(self, writer: int, seq: int) -> None:
        rows = {1: [1, 2, 3, 4, 5]}
        rows.setdefault(writer, []).append(seq)
        result = measure([steady(1, 5)], rows, outage_started_at=at(6), recovery_point=at(5.5))
        assert failed(result) == [Check(UNKNOWN, False, f"writer {writer} never attempted row {seq}")]

    def test_an_acknowledgement_claimed_after_the_outage(self) -> None:
        marks, limit = steady(1, 3), at(3) + ACKNOWLEDGEMENT_TOLERANCE
        within = WriterMarks(1, (*marks.attempts[:2], Attempt(3, at(2.9), limit)))
        beyond = WriterMarks(1, (*marks.attempts[:2], Attempt(3, at(2.9), limit + timedelta(microseconds=1))))
        for claimed, passed in ((within, True), (beyond, False)):
            result = measure([claimed], {1: [1, 2, 3]}, outage_started_at=at(3), recovery_point=at(2.5))
            assert of(result, TOO_LATE).passed is passed
        assert "writer 1 claims that row 3" in of(result, TOO_LATE).detail

    def test_an_acknowledgement_that_never_was(self) -> None:
        marks = steady(1, 5, unacknowledged=1)
        forged = WriterMarks(1, (*marks.attempts[:4], replace(marks.attempts[4], acknowledged_at=at(5.1))))
        result = measure([forged], {1: range(1, 5)}, outage_started_at=at(6), recovery_point=at(5.2))
        assert [check.name for check in failed(result)] == [COVERED]
        assert result.rpo == timedelta(seconds=2)

    def test_a_clock_that_was_set_back_leaves_the_figures_unverified(self) -> None:
        marks = WriterMarks(3, (Attempt(1, at(1), at(2)), Attempt(2, at(1.5), at(3))))
        result = measure([marks], {3: [1, 2]}, outage_started_at=at(4), recovery_point=at(3))
        assert [(check.name, check.passed) for check in failed(result)] == [(FORWARD, None)]
        assert "writer 3 row 2" in of(result, FORWARD).detail

    def test_but_not_a_clock_that_stood_still(self) -> None:
        marks = WriterMarks(3, (Attempt(1, at(1), at(1)), Attempt(2, at(1), at(1))))
        result = measure([marks], {3: [1, 2]}, outage_started_at=at(4), recovery_point=at(3))
        assert not failed(result)

    @pytest.mark.parametrize("recovery_point", [None, at(1)])
    def test_a_recovery_point_that_proves_nothing_is_unverified(self, recovery_point: datetime | None) -> None:
        result = measure([steady(1, 3)], {1: [1, 2, 3]}, outage_started_at=at(4), recovery_point=recovery_point)
        assert outcomes(result)[COVERED] is None

    def test_many_problems_are_counted_and_the_first_ones_named(self) -> None:
        result = measure([steady(1, 50)], {}, outage_started_at=at(51), recovery_point=at(50.5))
        assert of(result, COVERED).detail.endswith("; and 47 more")


@dataclass(frozen=True)
class Loss:
    """A loss with all that can go wrong in it, each row of the table on its own line."""

    attempted: tuple[tuple[int, int, float, float | None], ...]
    """Writer, seq, seconds of the attempt, seconds of the acknowledgement."""
    found: tuple[tuple[int, int], ...]
    outage: float
    recovery_point: float

    def measure(self) -> Measurement:
        marks = [
            WriterMarks(
                writer,
                tuple(
                    Attempt(seq, at(asked), None if answered is None else at(answered))
                    for number, seq, asked, answered in self.attempted
                    if number == writer
                ),
            )
            for writer in sorted({row[0] for row in self.attempted})
        ]
        rows: dict[int, list[int]] = {}
        for writer, seq in self.found:
            rows.setdefault(writer, []).append(seq)
        return measure(marks, rows, outage_started_at=at(self.outage), recovery_point=at(self.recovery_point))


@st.composite
def written(draw: st.DrawFn) -> tuple[tuple[int, int, float, float | None], ...]:
    """Up to four writers, each with up to twelve rows, the last of which may be open."""
    rows: list[tuple[int, int, float, float | None]] = []
    is_open = st.booleans()
    for writer in range(1, 1 + draw(st.integers(1, 4))):
        moment = 0
        pauses = draw(st.lists(st.tuples(st.integers(1, 2000), st.integers(1, 300)), max_size=12))
        for seq, (pause, delay) in enumerate(pauses, start=1):
            asked, moment = moment + pause, moment + pause + delay
            rows.append((writer, seq, asked / 1000, moment / 1000))
        if draw(is_open) and pauses:
            rows[-1] = (*rows[-1][:3], None)
    return tuple(rows)


def end_of(rows: Sequence[tuple[int, int, float, float | None]]) -> float:
    return max((answered or asked for _, _, asked, answered in rows), default=0)


@st.composite
def clean_losses(draw: st.DrawFn) -> Loss:
    """What came back are exactly the rows up to a moment, as a sound restore leaves them."""
    rows = draw(written())
    outage = end_of(rows) + draw(st.integers(0, 2000)) / 1000
    restored_to = draw(st.integers(0, 30000)) / 1000
    found = tuple((writer, seq) for writer, seq, asked, _ in rows if asked <= restored_to)
    return Loss(rows, found, outage, draw(st.integers(0, int(restored_to * 1000))) / 1000)


@st.composite
def losses(draw: st.DrawFn) -> Loss:
    """A loss after which rows were deleted, doubled, or come from nowhere."""
    loss = draw(clean_losses())
    gone = draw(st.sets(st.sampled_from(loss.found))) if loss.found else set()
    twice = draw(st.lists(st.sampled_from(loss.found), max_size=2)) if loss.found else []
    strange = draw(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 14)), max_size=2))
    found = draw(st.permutations([*(row for row in loss.found if row not in gone), *twice, *strange]))
    return replace(loss, found=tuple(found), recovery_point=draw(st.integers(0, 30000)) / 1000)


def expected_rpo(loss: Loss) -> timedelta | None:
    """Row by row from the newest to the oldest: the first that has all its predecessors is where the loss begins."""
    if all(answered is None for *_, answered in loss.attempted):
        return None
    worst = timedelta(0)
    for writer in {row[0] for row in loss.attempted}:
        mine = {seq: (asked, answered) for number, seq, asked, answered in loss.attempted if number == writer}
        if all((writer, seq) in loss.found for seq, (_, answered) in mine.items() if answered is not None):
            continue
        reached = None
        for seq in range(max(mine), 0, -1):
            if {(writer, earlier) for earlier in range(1, seq + 1)} <= set(loss.found):
                reached = mine[seq][0]
                break
        if reached is None:
            return None
        worst = max(worst, at(loss.outage) - at(reached))
    return worst


def expected_outcomes(loss: Loss) -> Mapping[str, bool | None]:
    """Each rule said as a sentence about sets of rows."""
    asked = {(writer, seq) for writer, seq, *_ in loss.attempted}
    known = set(loss.found) & asked
    proven = {(w, seq) for w, seq, _, answered in loss.attempted if answered and answered <= loss.recovery_point}
    unanswered = {(w, seq) for w, seq, _, answered in loss.attempted if answered is None}
    logged = [row for row in loss.found if row[0] in {writer for writer, _ in asked}]
    some = bool(asked)
    return {
        GAPLESS: len(set(logged)) == len(logged) and all((w, seq - 1) in known or seq == 1 for w, seq in known)
        if some
        else None,
        COVERED: proven <= known if proven else None,
        ONE_MORE: all(sum(w == writer for w, _ in unanswered & known) < 2 for writer in range(6)) if some else None,
        UNKNOWN: False if set(loss.found) - asked else (True if some else None),
        TOO_LATE: True if asked - unanswered else None,
        FORWARD: True if some else None,
    }


@settings(deadline=None)
@given(clean_losses())
def test_a_sound_restore_passes_whatever_the_moment_of_the_loss(loss: Loss) -> None:
    result = loss.measure()
    assert False not in outcomes(result).values()
    assert result.rpo == expected_rpo(loss)


@settings(deadline=None)
@given(losses())
def test_any_damage_is_measured_as_an_independent_count_says(loss: Loss) -> None:
    result = loss.measure()
    assert result.rpo == expected_rpo(loss)
    assert outcomes(result) == expected_outcomes(loss)
    acknowledged = {(writer, seq) for writer, seq, _, answered in loss.attempted if answered}
    lost = len(acknowledged - set(loss.found))
    assert result.rows == Rows(len(acknowledged), len(acknowledged) - lost, lost)


@settings(deadline=None)
@given(clean_losses(), st.data())
def test_no_deleted_row_goes_unnoticed(loss: Loss, data: st.DataObject) -> None:
    acknowledged = {(writer, seq) for writer, seq, _, answered in loss.attempted if answered}
    there = sorted(acknowledged & set(loss.found))
    if not there:
        return
    gone = data.draw(st.sampled_from(there))
    before = loss.measure()
    after = replace(loss, found=tuple(row for row in loss.found if row != gone)).measure()
    assert after.rows.lost == before.rows.lost + 1
    is_last = (gone[0], gone[1] + 1) not in loss.found
    assert is_last or of(after, GAPLESS).passed is False
    assert after.rpo is None or (before.rpo is not None and after.rpo >= before.rpo)
