"""What a measurement means beside its promise: met, missed or unverified."""

from collections.abc import Iterable
from datetime import timedelta
from enum import StrEnum

from dr_pipelines.engines.checks import Check, worst

__all__ = ["Verdict", "judge", "judge_checks", "worst_of"]


class Verdict(StrEnum):
    """The outcome for one objective. `unverified` could not be measured: it counts as not met."""

    MET = "met"
    MISSED = "missed"
    UNVERIFIED = "unverified"


_FROM_WORST = (Verdict.MISSED, Verdict.UNVERIFIED, Verdict.MET)


def worst_of(*verdicts: Verdict) -> Verdict:
    """The worst of several: missed, then unverified, then met; unverified where there are none."""
    return min(verdicts, key=_FROM_WORST.index, default=Verdict.UNVERIFIED)


def judge(measured: timedelta | None, promised: timedelta | None) -> Verdict:
    """Met where the measured duration is within the promise; unverified where either is missing.

    A duration of zero is a measurement here (nothing was lost). Raises ValueError where one is negative.
    """
    for duration in (measured, promised):
        if duration is not None and duration < timedelta(0):
            raise ValueError(f"a duration of {duration.total_seconds()} s cannot be judged: a clock was set")
    if measured is None or promised is None:
        return Verdict.UNVERIFIED
    return Verdict.MET if measured <= promised else Verdict.MISSED


def judge_checks(checks: Iterable[Check]) -> Verdict:
    """Missed where any check failed, unverified where any could not be made or there are none, else met."""
    match worst(checks):
        case True:
            return Verdict.MET
        case False:
            return Verdict.MISSED
        case None:
            return Verdict.UNVERIFIED
