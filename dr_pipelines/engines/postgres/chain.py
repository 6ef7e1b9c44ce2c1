"""Whether the stored log is unbroken: which segments a replay from a position needs, and which of them are missing.

Pure. A replay leads to one timeline, the newest that descends from the one it starts on unless another is meant; from
the segment on in which a timeline was left, the next one's segments are read.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from dr_pipelines.engines.postgres.wal import Lsn, Segment, Switch

__all__ = ["Chain", "Hole", "StoredSegment", "by_segment", "follow", "leads_to"]

_NAMED = 20
"""How many missing segments of one hole are named."""


@dataclass(frozen=True, slots=True)
class StoredSegment:
    """A segment in the repository."""

    name: str
    stored_bytes: int
    stored_at: datetime
    reaches: int | None = None
    """How many bytes from its beginning are stored where it is not full yet; None: all."""


@dataclass(frozen=True, slots=True)
class Hole:
    """Consecutive segments that are not stored though later ones are."""

    missing: tuple[str, ...]
    """The first of them by name, at most 20."""
    count: int


@dataclass(frozen=True, slots=True)
class Chain:
    """The stored log from a position on."""

    start: Lsn
    end: Lsn
    """Everything from `start` up to here is stored; equal to `start` where nothing is."""
    timeline: int
    """The timeline of the last segment before `end`."""
    towards: int
    """The timeline that it leads to, whether anything of that is stored or not."""
    files: tuple[str, ...]
    """What a replay up to `end` reads: history files, then the segments in order.

    All histories, since a server that ends its recovery takes for its own the first timeline that has none.
    """
    end_stored_at: datetime | None
    """When the last segment before `end` was stored."""
    newest: str | None
    """The newest stored segment, behind all holes."""
    holes: tuple[Hole, ...]

    @property
    def missing(self) -> tuple[str, ...]:
        """The names of missing segments, at most 20 of each hole."""
        return tuple(name for hole in self.holes for name in hole.missing)


def by_segment(stored: Iterable[StoredSegment], size: int) -> dict[Segment, StoredSegment]:
    """What is stored, by segment; a name that no segment of this size has is passed over: no replay asks for it."""
    found: dict[Segment, StoredSegment] = {}
    for each in stored:
        with suppress(ValueError):
            found[Segment.of_name(each.name, size)] = each
    return found


def leads_to(timeline: int, at: Lsn, towards: int, histories: Mapping[int, tuple[Switch, ...]]) -> bool:
    """Whether a replay can get from this position of `timeline` to `towards`: it was left there, or later."""
    left = histories.get(towards, ())
    return towards == timeline or any(past.timeline == timeline and past.at >= at for past in left)


def follow(
    start: Lsn,
    timeline: int,
    size: int,
    stored: Iterable[StoredSegment],
    histories: Mapping[int, tuple[Switch, ...]],
    *,
    consistent: Lsn | None = None,
    towards: int | None = None,
) -> Chain:
    """The chain from `start` on `timeline`, among what is stored; `histories` holds the parsed history files.

    It leads to the timeline `towards`, to which `leads_to` must be true, or else to the newest that descends; from
    `consistent` on, which is where a backup's files are, and not before.
    """
    path = _path(consistent or start, timeline, size, histories, towards)
    segments = by_segment(stored, size)
    first = start.value // size
    on_path = sorted(
        (segment for segment in segments if segment.number >= first and segment == _at(segment.number, path, size)),
        key=lambda segment: segment.number,
    )
    unbroken = list(_unbroken(first, on_path, segments))
    # Where something follows one that is not full, the rest of that one is missing.
    whole = [segment for segment in on_path if segments[segment].reaches is None or segment == on_path[-1]]
    last = segments[unbroken[-1]] if unbroken else None
    return Chain(
        start=start,
        end=max(start, _end(unbroken[-1], segments)) if unbroken else start,
        timeline=unbroken[-1].timeline if unbroken else timeline,
        towards=path[-1][0],
        files=(*(f"{number:08X}.history" for number in sorted(histories)), *(segment.name for segment in unbroken)),
        end_stored_at=last.stored_at if last else None,
        newest=on_path[-1].name if on_path else None,
        holes=tuple(_holes(first, whole, path, size)),
    )


def _end(segment: Segment, segments: Mapping[Segment, StoredSegment]) -> Lsn:
    reaches = segments[segment].reaches
    return segment.end if reaches is None else segment.start + reaches


Path = tuple[tuple[int, int], ...]
"""Pairs of a timeline and the number of the first segment that is read from it."""


def _path(at: Lsn, timeline: int, size: int, histories: Mapping[int, tuple[Switch, ...]], towards: int | None) -> Path:
    if towards is None:
        towards = max(candidate for candidate in (timeline, *histories) if leads_to(timeline, at, candidate, histories))
    switches = [past for past in histories.get(towards, ()) if past.timeline >= timeline] if towards != timeline else []
    followers = [*(past.timeline for past in switches[1:]), towards]
    pairs = [(follower, past.at.value // size) for past, follower in zip(switches, followers, strict=False)]
    return ((timeline, 0), *pairs)


def _at(number: int, path: Path, size: int) -> Segment:
    """The segment that a replay along the path reads at this number."""
    return Segment(next(timeline for timeline, begin in reversed(path) if begin <= number), number, size)


def _unbroken(first: int, on_path: Iterable[Segment], segments: Mapping[Segment, StoredSegment]) -> Iterator[Segment]:
    for expected, segment in enumerate(on_path, first):
        if segment.number != expected:
            return
        yield segment
        if segments[segment].reaches is not None:
            return


def _holes(first: int, on_path: list[Segment], path: Path, size: int) -> Iterator[Hole]:
    expected = first
    for segment in on_path:
        if segment.number != expected:
            named = range(expected, min(segment.number, expected + _NAMED))
            yield Hole(
                missing=tuple(_at(number, path, size).name for number in named),
                count=segment.number - expected,
            )
        expected = segment.number + 1
