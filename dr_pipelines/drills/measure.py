"""What a loss cost, from the writers' own notes and the rows that came back: the RPO, row counts and integrity."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from itertools import pairwise, takewhile

from dr_pipelines.engines.checks import Check
from dr_pipelines.lab.marks import Attempt, WriterMarks
from dr_pipelines.timing import format_moment

__all__ = ["ACKNOWLEDGEMENT_TOLERANCE", "Measurement", "Rows", "measure"]

ACKNOWLEDGEMENT_TOLERANCE = timedelta(seconds=1)
"""How long after the outage's start a writer may still note an acknowledgement that it got before: killing takes a
moment, and so does being scheduled on a busy machine."""

_NAMED_AT_MOST = 3


@dataclass(frozen=True)
class Rows:
    """Markers over all writers: `acknowledged` are those whose commit was, and each is either recovered or lost.

    A row that came back without having been acknowledged is in none of the three.
    """

    acknowledged: int
    recovered: int
    lost: int


@dataclass(frozen=True)
class Measurement:
    """The RPO, or None and why it was not measured; the rows; the checks of integrity."""

    rpo: timedelta | None
    unmeasured: str | None
    rows: Rows
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class _Writer:
    """One writer's notes beside what came back of them."""

    number: int
    attempts: tuple[Attempt, ...]
    recovered: Sequence[int]

    @cached_property
    def returned(self) -> frozenset[int]:
        return frozenset(self.recovered)

    @cached_property
    def acknowledged(self) -> tuple[tuple[int, datetime], ...]:
        """Row and moment of each acknowledgement."""
        return tuple((row.seq, row.acknowledged_at) for row in self.attempts if row.acknowledged_at)

    @cached_property
    def lost(self) -> tuple[int, ...]:
        """The rows that were acknowledged and did not come back."""
        return tuple(seq for seq, _ in self.acknowledged if seq not in self.returned)

    @cached_property
    def unbroken(self) -> tuple[Attempt, ...]:
        """The attempts from the first one on that came back without a gap."""
        return tuple(takewhile(lambda row: row.seq in self.returned, self.attempts))

    def data_loss(self, outage_started_at: datetime) -> timedelta | None:
        """How far back the loss reaches; zero where no acknowledged row is lost, None where no row is left to tell."""
        if not self.lost:
            return timedelta(0)
        if not self.unbroken:
            return None
        return max(timedelta(0), outage_started_at - self.unbroken[-1].attempted_at)


def measure(
    marks: Sequence[WriterMarks],
    recovered: Mapping[int, Sequence[int]],
    *,
    outage_started_at: datetime,
    recovery_point: datetime | None,
) -> Measurement:
    """Compare what the writers noted with the rows that the restored database holds.

    `recovered` has each writer's rows by number, `recovery_point` is the one that was printed before the outage. The
    RPO is the worst over the writers: outage start minus the attempt of the newest row of the unbroken sequence that
    came back. Where that sequence is empty for a writer that lost rows, nothing says how far back the loss reaches, and
    no RPO is measured. Raises ValueError where two logs are of the same writer.
    """
    if len({log.writer for log in marks}) != len(marks):
        raise ValueError("two logs are of the same writer: the rows of one cannot be told from those of the other")
    writers = [_Writer(log.writer, log.attempts, recovered.get(log.writer, ())) for log in marks]
    acknowledged = sum(len(writer.acknowledged) for writer in writers)
    lost = sum(len(writer.lost) for writer in writers)
    rpo, unmeasured = _rpo(writers, outage_started_at)
    return Measurement(
        rpo=rpo,
        unmeasured=unmeasured,
        rows=Rows(acknowledged, acknowledged - lost, lost),
        checks=(
            _gapless_prefix(writers),
            _covered(writers, recovery_point),
            _at_most_one_unacknowledged(writers),
            _no_unknown_rows(writers, recovered),
            _nothing_acknowledged_after(writers, outage_started_at),
            _time_stamps_go_forward(writers),
        ),
    )


def _rpo(writers: Sequence[_Writer], outage_started_at: datetime) -> tuple[timedelta | None, str | None]:
    if not any(writer.acknowledged for writer in writers):
        return None, "no row was acknowledged before the outage"
    losses = {writer.number: writer.data_loss(outage_started_at) for writer in writers}
    gone = [str(number) for number, loss in losses.items() if loss is None]
    if gone:
        return None, f"of writer {', '.join(gone)} not even the first row came back, so the loss has no known beginning"
    return max(loss for loss in losses.values() if loss is not None), None


def _gapless_prefix(writers: Sequence[_Writer]) -> Check:
    problems = []
    for writer in writers:
        length = len(writer.unbroken)
        beyond = [row.seq for row in writer.attempts[length:] if row.seq in writer.returned]
        if beyond:
            missing = writer.attempts[length].seq
            problems.append(f"writer {writer.number} lacks row {missing} though row {beyond[0]} is there")
        twice = [seq for seq, times in Counter(writer.recovered).items() if times > 1]
        if twice:
            problems.append(f"writer {writer.number} has row {min(twice)} more than once")
    good = "; ".join(f"writer {w.number}: {len(w.unbroken)} of {len(w.attempts)} attempts" for w in writers)
    return _check("rows_are_a_gapless_prefix", problems, good, examined=any(w.attempts for w in writers))


def _covered(writers: Sequence[_Writer], recovery_point: datetime | None) -> Check:
    name = "acknowledged_before_recovery_point_are_there"
    if recovery_point is None:
        return Check(name, None, "no recovery point was stated before the outage")
    before = [
        (writer, seq, moment) for writer in writers for seq, moment in writer.acknowledged if moment <= recovery_point
    ]
    problems = [
        f"writer {writer.number} lacks row {seq}, acknowledged at {format_moment(moment)}"
        for writer, seq, moment in before
        if seq not in writer.returned
    ]
    good = f"{len(before)} rows were acknowledged up to {format_moment(recovery_point)}"
    return _check(name, problems, good, examined=bool(before))


def _at_most_one_unacknowledged(writers: Sequence[_Writer]) -> Check:
    problems, total = [], 0
    for writer in writers:
        more = [a.seq for a in writer.attempts if a.acknowledged_at is None and a.seq in writer.returned]
        total += len(more)
        if len(more) > 1:
            problems.append(f"writer {writer.number} got back {len(more)} of them, rows {more[0]} and {more[1]} first")
    good = f"{total} rows came back whose acknowledgement was not noted, none or one a writer"
    return _check("at_most_one_unacknowledged_row", problems, good, examined=any(w.attempts for w in writers))


def _no_unknown_rows(writers: Sequence[_Writer], recovered: Mapping[int, Sequence[int]]) -> Check:
    attempted = {writer.number: {attempt.seq for attempt in writer.attempts} for writer in writers}
    problems = [
        f"writer {number} never attempted row {seq}"
        for number, rows in sorted(recovered.items())
        for seq in sorted(set(rows) - attempted.get(number, set()))
    ]
    good = f"each of {sum(map(len, recovered.values()))} rows was attempted"
    return _check("no_unknown_rows", problems, good, examined=any(attempted.values()))


def _nothing_acknowledged_after(writers: Sequence[_Writer], outage_started_at: datetime) -> Check:
    latest = outage_started_at + ACKNOWLEDGEMENT_TOLERANCE
    problems = [
        f"writer {writer.number} claims that row {seq} was acknowledged at {format_moment(moment)}, "
        f"after the outage's start at {format_moment(outage_started_at)}"
        for writer in writers
        for seq, moment in writer.acknowledged
        if moment > latest
    ]
    good = f"no acknowledgement is later than {ACKNOWLEDGEMENT_TOLERANCE.total_seconds():g} s after the outage's start"
    return _check("nothing_acknowledged_after_outage", problems, good, examined=any(w.acknowledged for w in writers))


def _time_stamps_go_forward(writers: Sequence[_Writer]) -> Check:
    """A clock that was set makes every figure doubtful, but says nothing against the rows: unverified, not failed."""
    name = "time_stamps_go_forward"
    for writer in writers:
        moments = [
            (attempt.seq, moment)
            for attempt in writer.attempts
            for moment in (attempt.attempted_at, attempt.acknowledged_at)
            if moment
        ]
        for (_, earlier), (seq, later) in pairwise(moments):
            if later < earlier:
                went_back = f"{format_moment(later)} follows {format_moment(earlier)}"
                return Check(name, None, f"the clock was set: writer {writer.number} row {seq}, {went_back}")
    return _check(name, [], "the clock was not set back", examined=any(w.attempts for w in writers))


def _check(name: str, problems: Sequence[str], good: str, *, examined: bool) -> Check:
    if problems:
        rest = len(problems) - _NAMED_AT_MOST
        more = f"; and {rest} more" if rest > 0 else ""
        return Check(name, False, "; ".join(problems[:_NAMED_AT_MOST]) + more)
    return Check(name, True, good) if examined else Check(name, None, "there was nothing to compare with")
