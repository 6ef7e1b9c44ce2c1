"""Which timeline a moment is on. Pure.

A server that ends its recovery goes on on a timeline of its own. Where it was restored to an earlier moment, what the
one before it had written after that moment is on the old timeline alone; where it was restored to the end of the log,
nothing is, and the new timeline simply goes on. Both can be restored to, so a moment that two of them have is no
moment yet.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from dr_pipelines.engines.postgres.chain import by_segment, leads_to
from dr_pipelines.engines.postgres.log import StoredLog
from dr_pipelines.engines.postgres.wal import Lsn, Switch
from dr_pipelines.repository.manifest import Manifest
from dr_pipelines.timing import format_moment

__all__ = ["Timeline", "goes_on_after", "newest_from", "read_timelines", "timelines_at"]

_TO_THE_END = "no recovery target specified"
"""What PostgreSQL writes into a history where the log was replayed to its end."""


@dataclass(frozen=True)
class Timeline:
    """One timeline, and when it was written as far as the repository shows."""

    number: int
    left: Switch | None
    """The timeline that it comes from, and where it left that; None where nothing says so."""
    begun_at: datetime | None
    """Since when there is anything of it; None for the first."""
    until: datetime | None
    """Up to when it was written, as far as that can be seen: when the last of it was stored, or what an agent proved of
    a server that wrote no more; None where nothing is stored."""

    def __str__(self) -> str:
        """In words, such as "timeline 2 (left timeline 1 at 0/5000100; from ... to ...)"."""
        left = f"left timeline {self.left.timeline} at {self.left.at}" if self.left is not None else ""
        begun = f"from {format_moment(self.begun_at)}" if self.begun_at is not None else ""
        until = f"to about {format_moment(self.until)}" if self.until is not None else ""
        said = "; ".join(part for part in (left, " ".join(part for part in (begun, until) if part)) if part)
        return f"timeline {self.number}" + (f" ({said})" if said else "")


def read_timelines(
    stored: StoredLog, backups: Iterable[Manifest], proven: Mapping[int, datetime]
) -> dict[int, Timeline]:
    """Every timeline of which there is a history, log or a backup, by number; `proven` are their recovery points."""
    signs: dict[int, list[datetime]] = {number: [moment] for number, moment in stored.begun.items()}
    ends: dict[int, list[datetime]] = {}
    for segment in stored.segments:
        number = int(segment.name[:8], 16)
        signs.setdefault(number, []).append(segment.stored_at)
        ends.setdefault(number, []).append(segment.stored_at)
    for manifest in backups:
        number = int(manifest.details["timeline"])
        signs.setdefault(number, []).append(manifest.started_at)
        ends.setdefault(number, []).append(manifest.stopped_at)
    for number, moment in proven.items():
        ends.setdefault(number, []).append(moment)
    first = min(signs, default=0)
    return {
        number: Timeline(
            number=number,
            left=history[-1] if (history := stored.histories.get(number)) else None,
            begun_at=min(signs[number]) if number != first else None,
            until=max(ends.get(number, ()), default=None),
        )
        for number in sorted(signs)
    }


def newest_from(manifest: Manifest, stored: StoredLog) -> int:
    """The newest timeline that a backup leads to."""
    own, stop = int(manifest.details["timeline"]), Lsn.parse(str(manifest.details["stop_lsn"]))
    candidates = (own, *stored.histories)
    return max(number for number in candidates if leads_to(own, stop, number, stored.histories))


def goes_on_after(old: int, new: int, stored: StoredLog, size: int) -> bool:
    """Whether there is log of `old` behind where its descendant `new` left it."""
    switch = next(past for past in stored.histories[new] if past.timeline == old)
    number, offset = divmod(switch.at.value, size)
    for segment, found in by_segment(stored.segments, size).items():
        if segment.timeline != old or segment.number < number:
            continue
        if segment.number > number:
            return True
        # What is behind the end of a log that was replayed to its end is half a record at most.
        if offset and (found.reaches is None or (found.reaches > offset and switch.reason != _TO_THE_END)):
            return True
    return False


def timelines_at(
    moment: datetime, timelines: Mapping[int, Timeline], stored: StoredLog, size: int, *, newest: int
) -> tuple[int, ...]:
    """The timelines that a restore to this moment may mean: one, or several between which somebody has to decide.

    Those that were being written then; between two, the one that ended before and the one that began after. A timeline
    that does not go on after another has left it means that one. `newest` is still being written.
    """
    begun = [each for each in timelines.values() if each.begun_at is None or each.begun_at <= moment]
    meant = [each for each in begun if each.number == newest or (each.until is not None and moment <= each.until)]
    if not meant:
        ended = [(each.until, each.number) for each in begun if each.until is not None]
        later = [(each.begun_at, each.number) for each in timelines.values() if each.begun_at and each not in begun]
        meant = [timelines[number] for _, number in (*sorted(ended)[-1:], *sorted(later)[:1])]
    return tuple(sorted({_goes_over_into(each.number, stored, size) for each in meant}))


def _goes_over_into(number: int, stored: StoredLog, size: int) -> int:
    """The newest timeline that has all that this one has, and goes on."""
    heirs = [
        heir
        for heir, history in stored.histories.items()
        if any(past.timeline == number for past in history) and not goes_on_after(number, heir, stored, size)
    ]
    # An heir's own heirs have it among their ancestors.
    return _goes_over_into(max(heirs), stored, size) if heirs else number
