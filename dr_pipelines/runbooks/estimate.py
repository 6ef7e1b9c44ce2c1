"""How long a restore will take, from what there is to do and how fast it went before. Pure; an estimate is no figure.

A step's seconds are taken to be its overhead, and its bytes divided by a rate. Where the rate comes from is told with
each: from records of earlier executions, from a probe made just now, or from nothing but experience. Each of them is
believed less than the one before, and what has other sizes than what was measured is believed less, too: so an estimate
is a range.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from statistics import median

from dr_pipelines.timing import format_bytes, format_duration

__all__ = [
    "STEPS",
    "Basis",
    "Past",
    "Probe",
    "RestoreEstimate",
    "StepEstimate",
    "Work",
    "estimate_restore",
    "remaining",
    "rounded",
]

USED = 5
"""So many of the newest records are believed; older ones are of another time."""
_SHORTEST = 0.001
"""Seconds; what a shorter probe says is about the clock."""
_SIMILAR = 10
"""What has ten times as many bytes as what was measured, or a tenth, is of another kind."""


class Basis(StrEnum):
    """Where a rate comes from."""

    MEASURED = "measured"
    PROBED = "probed"
    ASSUMED = "assumed"


@dataclass(frozen=True, slots=True)
class Work:
    """What a step has to do, and what it is assumed to take where nobody measured it."""

    overhead: float
    """Seconds, whatever the size: processes start, a server comes up."""
    assumed_rate: float
    """Bytes a second."""


STEPS: Mapping[str, Work] = {
    "prepare": Work(overhead=0.3, assumed_rate=float("inf")),
    "restore_latest_backup": Work(overhead=0.5, assumed_rate=100e6),
    "apply_wal": Work(overhead=1.0, assumed_rate=100e6),
    "validate": Work(overhead=1.0, assumed_rate=200e6),
}
"""The steps that are left once the damage is assessed, in their order."""


@dataclass(frozen=True, slots=True)
class Past:
    """What a step took in an earlier execution, where it went through at the first attempt."""

    record_id: str
    at: datetime
    step: str
    bytes: int
    seconds: float
    here: bool
    """On this machine."""


@dataclass(frozen=True, slots=True)
class Probe:
    """How fast a part of the backup was fetched and unpacked just now."""

    bytes: int
    """Of file data."""
    seconds: float


@dataclass(frozen=True, slots=True)
class StepEstimate:
    """What a step is expected to take, in seconds; `low` and `high` bound what would be no surprise."""

    step: str
    seconds: float
    low: float
    high: float
    basis: Basis
    told: str
    """Where that comes from, for a person."""

    @property
    def range(self) -> str:
        """The seconds, for a person."""
        return f"about {rounded(self.seconds)} ({rounded(self.low)} to {rounded(self.high)})"


@dataclass(frozen=True, slots=True)
class RestoreEstimate:
    """What the steps of a restore are expected to take, made at `made_at`."""

    made_at: datetime
    steps: tuple[StepEstimate, ...]

    @property
    def seconds(self) -> float:
        """All steps together."""
        return sum(step.seconds for step in self.steps)

    @property
    def low(self) -> float:
        """Seconds; less would be a surprise."""
        return sum(step.low for step in self.steps)

    @property
    def high(self) -> float:
        """Seconds; more would be a surprise."""
        return sum(step.high for step in self.steps)

    def document(self) -> dict[str, object]:
        """As JSON values; durations in seconds."""
        return {
            "made_at": self.made_at,
            "estimate_seconds": self.seconds,
            "low_seconds": self.low,
            "high_seconds": self.high,
            "steps": [
                {
                    "name": step.step,
                    "estimate_seconds": step.seconds,
                    "low_seconds": step.low,
                    "high_seconds": step.high,
                    "basis": step.basis.value,
                    "told": step.told,
                }
                for step in self.steps
            ],
        }

    @property
    def told(self) -> str:
        """In a line: about how long, in which range, and on what that rests most."""
        longest = max(self.steps, key=lambda step: step.seconds)
        return (
            f"about {rounded(self.seconds)} from here until it is validated, by an estimate ({rounded(self.low)} to "
            f"{rounded(self.high)}); most of it for {longest.step}: {longest.told}"
        )


def estimate_restore(
    sizes: Mapping[str, int], past: Sequence[Past], probe: Probe | None, made_at: datetime
) -> RestoreEstimate:
    """The estimate for steps that have so many bytes to work through; `past` is sorted newest first."""
    return RestoreEstimate(made_at, tuple(_estimate(name, sizes.get(name, 0), past, probe) for name in STEPS))


def _estimate(step: str, size: int, past: Sequence[Past], probe: Probe | None) -> StepEstimate:
    measured = [each for each in past if each.step == step and each.seconds > 0]
    here = [each for each in measured if each.here]
    if measured:
        return _from_records(step, size, (here or measured)[:USED], here=bool(here))
    work = STEPS[step]
    if probe is not None and step == "restore_latest_backup" and probe.bytes > 0 and probe.seconds >= _SHORTEST:
        rate = probe.bytes / probe.seconds
        told = (
            f"probe of this machine just now: {format_bytes(probe.bytes)} fetched and unpacked at "
            f"{format_bytes(int(rate))}/s; that writing keeps up is assumed"
        )
        return _spread(step, work.overhead + size / rate, 2.0, Basis.PROBED, told)
    told = "assumed, since nothing was measured"
    if work.assumed_rate != float("inf"):
        told += f": {format_bytes(int(work.assumed_rate))}/s"
    return _spread(step, work.overhead + size / work.assumed_rate, 3.0, Basis.ASSUMED, told)


def _from_records(step: str, size: int, records: Sequence[Past], *, here: bool) -> StepEstimate:
    expected = [_scaled(step, size, each) for each in records]
    centre = median(expected)
    # One record says nothing of how much the next one differs.
    factor = 1.2 if len(records) > 2 else 1.5
    similar = any(each.bytes <= size * _SIMILAR and size <= each.bytes * _SIMILAR for each in records)
    factor *= (1.0 if here else 2.0) * (1.0 if similar or not size else 2.0)
    newest = records[0]
    told = f"measured on {newest.at:%Y-%m-%d} by record {newest.record_id}"
    told += f" and {len(records) - 1} before it" if len(records) > 1 else ""
    told += "" if here else ", on another machine"
    if not similar and size:
        told += f", with {format_bytes(newest.bytes)} instead of {format_bytes(size)}"
    return StepEstimate(
        step, centre, min(*expected, centre / factor), max(*expected, centre * factor), Basis.MEASURED, told
    )


def _scaled(step: str, size: int, past: Past) -> float:
    """What `past` would have taken for so many bytes: its overhead does not grow with them."""
    if past.bytes <= 0:
        return past.seconds
    overhead = min(STEPS[step].overhead, past.seconds / 2)
    return overhead + (past.seconds - overhead) * size / past.bytes


def _spread(step: str, seconds: float, factor: float, basis: Basis, told: str) -> StepEstimate:
    return StepEstimate(step, seconds, seconds / factor, seconds * factor, basis, told)


def remaining(estimate: RestoreEstimate, step: str, elapsed: float, done: int, total: int) -> float:
    """Seconds until all steps are over, with `done` of `total` of this one done after `elapsed` seconds of it.

    The farther the step has come, the more what was seen of it counts, and the less what was expected.
    """
    names = [each.step for each in estimate.steps]
    if step not in names:
        raise ValueError(f"{step} is none of the steps that were estimated: {', '.join(names)}")
    place = names.index(step)
    share = min(1.0, done / total) if total > 0 else 0.0
    expected = max(0.0, estimate.steps[place].seconds - elapsed)
    seen = elapsed * (1 - share) / share if share else expected
    return share * seen + (1 - share) * expected + sum(each.seconds for each in estimate.steps[place + 1 :])


def rounded(seconds: float) -> str:
    """Seconds for a person, not more exact than an estimate is."""
    step = 1 if seconds < 60 else 10 if seconds < 600 else 60
    return format_duration(timedelta(seconds=max(1, round(seconds / step) * step)))
