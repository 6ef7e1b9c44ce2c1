"""How long a restore will take: what was measured counts most, what was not is never called so."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dr_pipelines.runbooks.estimate import (
    STEPS,
    Basis,
    Past,
    Probe,
    RestoreEstimate,
    StepEstimate,
    estimate_restore,
    remaining,
)

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
RESTORE = "restore_latest_backup"
MB = 1_000_000

sizes = st.integers(min_value=1, max_value=1 << 44)
seconds = st.floats(min_value=0.001, max_value=1e6)
pasts = st.lists(
    st.builds(
        Past,
        record_id=st.sampled_from(["a", "b"]),
        at=st.just(NOW),
        step=st.sampled_from(list(STEPS)),
        bytes=sizes,
        seconds=seconds,
        here=st.booleans(),
    ),
    max_size=12,
)
probes = st.none() | st.builds(Probe, bytes=st.integers(min_value=0, max_value=1 << 30), seconds=st.floats(0, 10))


def past(size: int, took: float, *, step: str = RESTORE, here: bool = True, name: str = "r1") -> Past:
    return Past(name, NOW, step, size, took, here)


def of(step: str, size: int, *earlier: Past, probe: Probe | None = None) -> StepEstimate:
    (found,) = (each for each in estimate_restore({step: size}, earlier, probe, NOW).steps if each.step == step)
    return found


@given(pasts, probes, sizes, sizes)
def test_it_is_a_range_around_a_sum(earlier: list[Past], probe: Probe | None, raw: int, log: int) -> None:
    made = estimate_restore({RESTORE: raw, "apply_wal": log, "validate": raw}, earlier, probe, NOW)
    assert [step.step for step in made.steps] == list(STEPS)
    for step in made.steps:
        assert 0 < step.low <= step.seconds <= step.high < float("inf")
    assert made.low <= made.seconds <= made.high
    assert made.seconds == pytest.approx(sum(step.seconds for step in made.steps))


@given(pasts, probes, sizes)
def test_nothing_is_called_measured_that_no_record_has(earlier: list[Past], probe: Probe | None, raw: int) -> None:
    recorded = {each.step for each in earlier}
    for step in estimate_restore({RESTORE: raw}, earlier, probe, NOW).steps:
        assert (step.basis is Basis.MEASURED) == (step.step in recorded)
        assert step.told.startswith({"measured": "measured on", "probed": "probe of", "assumed": "assumed"}[step.basis])


@given(pasts, probes, sizes, sizes)
def test_more_to_do_never_takes_less(earlier: list[Past], probe: Probe | None, one: int, other: int) -> None:
    less, more = sorted((one, other))
    assert of(RESTORE, less, *earlier, probe=probe).seconds <= of(RESTORE, more, *earlier, probe=probe).seconds


@given(sizes, seconds, st.integers(min_value=1, max_value=8))
def test_the_same_again_takes_as_long_again(size: int, took: float, times: int) -> None:
    found = of(RESTORE, size, *[past(size, took)] * times)
    assert found.seconds == pytest.approx(took)
    assert found.low < took < found.high


def test_the_middle_of_the_five_newest_counts_and_one_odd_one_does_not() -> None:
    earlier = [past(100 * MB, took) for took in (10.0, 11.0, 300.0, 10.5, 10.2)]
    found = of(RESTORE, 100 * MB, *earlier, past(100 * MB, 1.0, name="old"))
    assert found.seconds == pytest.approx(10.5)
    assert found.high >= 300 and found.low > 5


def test_twice_as_much_takes_twice_as_long_but_for_the_overhead() -> None:
    found = of("apply_wal", 200 * MB, past(100 * MB, 5.0, step="apply_wal"))
    assert found.seconds == pytest.approx(1.0 + 2 * 4.0)


def test_what_was_measured_here_is_believed_before_what_was_elsewhere() -> None:
    elsewhere = past(100 * MB, 99.0, here=False, name="other")
    here = of(RESTORE, 100 * MB, elsewhere, past(100 * MB, 10.0))
    assert here.seconds == pytest.approx(10.0) and "another machine" not in here.told
    alone = of(RESTORE, 100 * MB, elsewhere)
    assert alone.seconds == pytest.approx(99.0) and "on another machine" in alone.told
    assert alone.high / alone.seconds > here.high / here.seconds


def test_what_was_measured_with_another_size_is_believed_less_and_says_so() -> None:
    similar, far = of(RESTORE, 500 * MB, past(100 * MB, 10.0)), of(RESTORE, 500_000 * MB, past(100 * MB, 10.0))
    assert far.high / far.seconds > similar.high / similar.seconds
    assert "with 95.4 MiB instead of" in far.told and "instead of" not in similar.told


def test_where_nothing_was_measured_a_probe_counts_and_then_an_assumption() -> None:
    probed = of(RESTORE, 400 * MB, probe=Probe(20 * MB, 0.1))
    assert probed.basis is Basis.PROBED and probed.seconds == pytest.approx(0.5 + 2.0)
    for nothing in (None, Probe(0, 1.0), Probe(MB, 0.0)):
        assumed = of(RESTORE, 400 * MB, probe=nothing)
        assert assumed.basis is Basis.ASSUMED and "95.4 MiB/s" in assumed.told
    # A probe of fetching says nothing of replaying.
    assert of("apply_wal", MB, probe=Probe(20 * MB, 0.1)).basis is Basis.ASSUMED


def test_it_says_that_it_is_an_estimate_on_what_it_rests_and_in_which_range() -> None:
    made = estimate_restore(
        {RESTORE: 100 * MB}, [past(100 * MB, 250.0, name="20260301T120000Z-drill-9f86d0")], None, NOW
    )
    assert made.told == (
        "about 4m10s from here until it is validated, by an estimate (2m50s to 6m20s); most of it for "
        "restore_latest_backup: measured on 2026-03-01 by record 20260301T120000Z-drill-9f86d0"
    )


class TestRemaining:
    made = RestoreEstimate(
        NOW,
        tuple(
            StepEstimate(name, expected, expected, expected, Basis.ASSUMED, "")
            for name, expected in (("prepare", 1.0), (RESTORE, 100.0), ("apply_wal", 50.0), ("validate", 10.0))
        ),
    )

    def test_it_begins_with_what_was_expected(self) -> None:
        assert remaining(self.made, RESTORE, 0.0, 0, 1000) == 160
        assert remaining(self.made, "apply_wal", 10.0, 0, 0) == 50

    def test_what_is_seen_corrects_it_the_more_the_further_it_gets(self) -> None:
        # Half as fast as expected: at a quarter of the way 150 s are left of the step, by what was seen.
        early, late = remaining(self.made, RESTORE, 50.0, 250, 1000), remaining(self.made, RESTORE, 180.0, 900, 1000)
        assert early == pytest.approx(0.25 * 150 + 0.75 * 50 + 60)
        assert late == pytest.approx(0.9 * 20 + 60)

    @given(st.floats(0, 1e5), st.integers(0, 1000), st.integers(0, 1000))
    def test_it_is_never_less_than_the_steps_that_follow(self, elapsed: float, done: int, total: int) -> None:
        assert remaining(self.made, RESTORE, elapsed, done, total) >= 60

    def test_at_the_end_of_a_step_the_others_are_left(self) -> None:
        assert remaining(self.made, "validate", 30.0, 7, 7) == 0
        assert remaining(self.made, RESTORE, 30.0, 1000, 1000) == 60

    def test_of_a_step_that_was_not_estimated_nothing_is_said(self) -> None:
        with pytest.raises(ValueError, match="assess is none of the steps"):
            remaining(self.made, "assess", 1.0, 1, 2)
