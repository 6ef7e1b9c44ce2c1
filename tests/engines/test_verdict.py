"""Verdicts: what was not measured is never met."""

from datetime import timedelta
from itertools import permutations

import pytest

from dr_pipelines.engines.checks import Check, worst
from dr_pipelines.engines.verdict import Verdict, judge, judge_checks, worst_of

PASSED = Check("rows", True, "all there")
FAILED = Check("hashes", False, "part 3 differs")
UNKNOWN = Check("log", None, "the server did not answer")


@pytest.mark.parametrize(
    ("measured", "promised", "verdict"),
    [
        (timedelta(seconds=1), timedelta(seconds=2), Verdict.MET),
        (timedelta(seconds=2), timedelta(seconds=2), Verdict.MET),
        (timedelta(seconds=2, microseconds=1), timedelta(seconds=2), Verdict.MISSED),
        (timedelta(0), timedelta(0), Verdict.MET),
        (None, timedelta(hours=1), Verdict.UNVERIFIED),
        (timedelta(seconds=1), None, Verdict.UNVERIFIED),
    ],
)
def test_a_measurement_is_judged_by_its_promise(
    measured: timedelta | None, promised: timedelta | None, verdict: Verdict
) -> None:
    assert judge(measured, promised) is verdict


def test_a_negative_duration_is_refused() -> None:
    with pytest.raises(ValueError, match="a clock was set"):
        judge(timedelta(seconds=-1), timedelta(seconds=1))


def test_missed_is_worse_than_unverified_is_worse_than_met() -> None:
    for order in permutations(Verdict):
        assert worst_of(*order) is Verdict.MISSED
    assert worst_of(Verdict.MET, Verdict.UNVERIFIED) is Verdict.UNVERIFIED
    assert worst_of(Verdict.MET, Verdict.MET) is Verdict.MET
    assert worst_of() is Verdict.UNVERIFIED


@pytest.mark.parametrize(
    ("checks", "outcome", "verdict"),
    [
        ([PASSED], True, Verdict.MET),
        ([PASSED, UNKNOWN], None, Verdict.UNVERIFIED),
        ([UNKNOWN, FAILED, PASSED], False, Verdict.MISSED),
        ([], None, Verdict.UNVERIFIED),
    ],
)
def test_checks_are_judged_by_the_worst(checks: list[Check], outcome: bool | None, verdict: Verdict) -> None:
    assert worst(checks) is outcome
    assert judge_checks(iter(checks)) is verdict
