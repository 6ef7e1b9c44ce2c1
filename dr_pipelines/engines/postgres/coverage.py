"""What can be restored from the repository alone: which backup, which of the log, up to when, and what is missing."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from dr_pipelines.engines.postgres.chain import Chain, follow, leads_to
from dr_pipelines.engines.postgres.details import check_details, look_at_backups
from dr_pipelines.engines.postgres.log import LEFT, Log, StoredLog
from dr_pipelines.engines.postgres.position import Position
from dr_pipelines.engines.postgres.timelines import Timeline, goes_on_after, newest_from, read_timelines, timelines_at
from dr_pipelines.engines.postgres.wal import Lsn
from dr_pipelines.errors import (
    AmbiguousTimeline,
    FormatTooNew,
    NotCovered,
    ObjectCorrupt,
    RepositoryError,
    RestoreError,
)
from dr_pipelines.repository.chains import chain_of, restorable
from dr_pipelines.repository.manifest import Manifest
from dr_pipelines.repository.store import Store
from dr_pipelines.timing import format_moment

__all__ = ["Coverage", "choose", "cover", "newest_system", "systems"]


@dataclass(frozen=True)
class Coverage:
    """A backup, the log that follows it, and how far that leads."""

    manifest: Manifest
    chain: Chain
    earliest: datetime
    """The earliest time that any complete backup can be restored to."""
    recovery_point: datetime | None
    """The latest time that is proven, None where the agent never proved any; with a gap, about when that begins."""
    proven_lsn: Lsn | None
    """Where a replay must get for the recovery point; None where that is not known, as with a gap."""
    gap: str | None
    """What of the log is missing and what that loses; None where nothing is."""
    position: Position | None
    """What the agent said last; None where it never did, or where that cannot be read."""
    doubts: tuple[str, ...]
    """What else could not be read, and is gone on without: damaged manifests of other backups, the position."""
    links: tuple[Manifest, ...]
    """What a restore of it needs, oldest first: it alone, or the chain that an incremental backup is the last of."""
    timelines: Mapping[int, Timeline]
    """All that there are; `chain.towards` is the one that this leads to."""
    others: str | None = None
    """Which other timeline has what this one has not, and what leads there; None where none has."""

    @property
    def segment_size(self) -> int:
        """Bytes of a segment of this cluster's log."""
        return int(self.manifest.details["wal_segment_size"])


def systems(service_store: Store) -> tuple[str, ...]:
    """The system identifiers of the clusters that a service has had."""
    return tuple(name.rstrip("/") for name in service_store.names("") if name.rstrip("/").isdigit())


def newest_system(service_store: Store) -> Store:
    """The part of a service's store that holds the cluster with the newest complete backup.

    Raises RestoreError where there is no complete backup.
    """
    newest: tuple[datetime, str] | None = None
    damaged: list[tuple[str, RepositoryError]] = []
    for name in systems(service_store):
        survey = restorable(look_at_backups(service_store.child(name)))
        damaged += survey.damaged
        for manifest in survey.complete[:1]:
            if newest is None or manifest.stopped_at > newest[0]:
                newest = (manifest.stopped_at, name)
    if newest is None:
        raise _no_backup(service_store, damaged)
    return service_store.child(newest[1])


def _no_backup(store: Store, damaged: Iterable[tuple[str, RepositoryError]]) -> RestoreError:
    refused = "".join(f"; {backup_id} cannot be used: {error}" for backup_id, error in damaged)
    return RestoreError(f"there is no complete backup in {store.url}{refused}", hint="dr backup full SERVICE")


def choose(
    store: Store, target_time: datetime | None, backup_id: str | None = None, timeline: int | None = None
) -> Coverage:
    """What a restore to `target_time`, or to the latest point, takes: the newest backup that will do.

    With `backup_id` it is that one, where it will do: a restore that goes on has begun with it. An incremental backup
    whose chain is broken does not do; that is one of the doubts. A hole in the log is no error here: the coverage ends
    before it and says what is lost.

    It leads to `timeline`; where none is given, to the one that was being written at the target time, or else to the
    newest that descends from the newest backup. Raises NotCovered with the covered range for a time outside of it or a
    timeline that is not there, AmbiguousTimeline for a time that several have, RestoreError where there is no complete
    backup.
    """
    survey = restorable(look_at_backups(store))
    backups = survey.complete
    if not backups:
        raise _no_backup(store, survey.damaged)
    stored = Log(store).look()
    proven, unread = _proven(store)
    timelines = read_timelines(stored, backups, proven)
    wanted = timeline
    if timeline is None and target_time is not None:
        wanted = _timeline_at(target_time, timelines, stored, backups)
    leading = [manifest for manifest in backups if wanted is None or _leads_to(manifest, wanted, stored)]
    if not leading and timeline is not None:
        raise _no_way_to(timeline, timelines)
    earliest = min(manifest.stopped_at for manifest in leading or backups)
    usable = [manifest for manifest in leading if target_time is None or manifest.stopped_at <= target_time]
    begun_with = [manifest for manifest in usable if manifest.backup_id == backup_id]
    chosen = max(begun_with or usable or leading or backups, key=lambda manifest: manifest.stopped_at)
    coverage = cover(store, chosen, earliest, stored=stored, towards=wanted if leading else None)
    damaged = tuple(f"the backup {name} cannot be used: {error.message}" for name, error in survey.damaged)
    coverage = replace(
        coverage,
        doubts=(*damaged, *unread, *coverage.doubts),
        links=chain_of(chosen, survey).backups,
        timelines=timelines,
        others=_others(coverage, timelines, stored) if timeline is None else None,
    )
    if target_time is not None:
        coverage = _within(coverage, target_time, newest=newest_from(backups[0], stored), usable=bool(usable))
    return coverage


def _within(coverage: Coverage, target_time: datetime, *, newest: int, usable: bool) -> Coverage:
    """The coverage, where the time is within it; of a timeline that was left up to when it was stored, with a doubt."""
    proven = coverage.recovery_point or coverage.manifest.stopped_at
    own = coverage.timelines.get(coverage.chain.towards)
    until = own.until if own is not None and own.number != newest and coverage.gap is None else None
    latest = max(proven, until or proven)
    if not usable or target_time > latest:
        raise NotCovered(
            f"{format_moment(target_time)} is outside of what the repository covers: "
            f"{format_moment(coverage.earliest)} to {format_moment(latest)}"
            + (f"; {coverage.gap}" if coverage.gap else ""),
            hint="give a time within that range, or latest",
        )
    if target_time <= proven:
        return coverage
    doubt = f"of timeline {coverage.chain.towards} no more is proven than up to {format_moment(proven)}: where the log "
    doubt += "behind that has no commit after the time asked for, the restore fails, and latest is what there is"
    return replace(coverage, doubts=(*coverage.doubts, doubt))


def _leads_to(manifest: Manifest, timeline: int, stored: StoredLog) -> bool:
    own, stop = int(manifest.details["timeline"]), Lsn.parse(str(manifest.details["stop_lsn"]))
    return leads_to(own, stop, timeline, stored.histories)


def _timeline_at(
    moment: datetime, timelines: Mapping[int, Timeline], stored: StoredLog, backups: Sequence[Manifest]
) -> int:
    newest, size = newest_from(backups[0], stored), int(backups[0].details["wal_segment_size"])
    found = timelines_at(moment, timelines, stored, size, newest=newest)
    if len(found) > 1:
        raise AmbiguousTimeline(
            f"it has to be said which timeline is meant at {format_moment(moment)}: "
            + ", or ".join(str(timelines[number]) for number in found),
            hint=" or ".join(f"--timeline {number}" for number in found),
        )
    return found[0] if found else newest


def _no_way_to(timeline: int, timelines: Mapping[int, Timeline]) -> NotCovered:
    if timeline not in timelines:
        there = ", ".join(str(each) for each in timelines.values())
        return NotCovered(f"there is no timeline {timeline} in the repository", hint=f"there are: {there}")
    return NotCovered(
        f"no backup leads to {timelines[timeline]}", hint="dr backup list shows the timeline that each backup is of"
    )


def _others(coverage: Coverage, timelines: Mapping[int, Timeline], stored: StoredLog) -> str | None:
    """What is on other timelines, behind where they and this one parted, as far as any backup may lead there."""
    own, size = coverage.chain.towards, coverage.segment_size
    ancestors = [past.timeline for past in stored.histories.get(own, ())]
    parted = [number for number in ancestors if number in timelines and goes_on_after(number, own, stored, size)]
    parted += [number for number, history in stored.histories.items() if own in {past.timeline for past in history}]
    if not parted:
        return None
    listed = "; ".join(f"{timelines[number]}: --timeline {number}" for number in sorted(set(parted)))
    return f"this leads to {timelines[own]}, and there is another: {listed}"


def cover(
    store: Store,
    manifest: Manifest,
    earliest: datetime | None = None,
    *,
    stored: StoredLog | None = None,
    towards: int | None = None,
) -> Coverage:
    """How far one backup and the log after it lead, to a timeline or else to the newest that descends.

    Raises RestoreError where that is not to the backup's own end.
    """
    position, doubts = _position(store)
    details = check_details(manifest).details
    start, stop = Lsn.parse(str(details["start_lsn"])), Lsn.parse(str(details["stop_lsn"]))
    stored = stored or Log(store).look()
    size = int(details["wal_segment_size"])
    chain = follow(
        start,
        int(details["timeline"]),
        size,
        stored.segments,
        stored.histories,
        consistent=stop,
        towards=towards,
    )
    if chain.end < stop:
        raise RestoreError(
            f"the backup {manifest.backup_id} cannot be restored: it needs the log up to {stop}, which ends at "
            f"{chain.end}",
            hint=f"missing: {', '.join(chain.missing) or 'the newest segments'}; restore to a time before this backup",
        )
    proof = _proof(store, position, chain.towards, stored)
    recovery_point = proof.recovery_point
    gap = None
    if chain.holes:
        gap = f"the log has a hole: {', '.join(chain.missing)} missing"
    elif proof.stored_end is not None and chain.end < proof.stored_end:
        gap = f"the log ends at {chain.end}, though it had reached {proof.stored_end}: its newest segments are gone"
    elif position is not None and towards is None:
        gap = _out_of_reach(position, chain, stored)
    if gap is not None:
        lost_from = chain.end_stored_at or manifest.stopped_at
        known = position.recovery_point if position is not None else None
        until = format_moment(known) if known else "its end"
        gap += f"; what was written from about {format_moment(lost_from)} to {until} is lost"
        recovery_point = min(lost_from, recovery_point) if recovery_point else lost_from
    return Coverage(
        manifest=manifest,
        chain=chain,
        earliest=earliest or manifest.stopped_at,
        recovery_point=recovery_point,
        proven_lsn=proof.recovery_lsn if gap is None else None,
        gap=gap,
        position=position,
        doubts=doubts,
        links=(manifest,),
        timelines=read_timelines(stored, [manifest], {}),
    )


def _out_of_reach(position: Position, chain: Chain, stored: StoredLog) -> str | None:
    """What of the log cannot be restored to since it is of a timeline to which no backup leads."""
    current, way = position.timeline, {past.timeline for past in stored.histories.get(chain.towards, ())}
    if current is None or current == chain.towards or current in way:
        return None
    if current not in stored.histories and current > chain.towards:
        reached = f", though it had reached {position.stored_end}" if position.stored_end is not None else ""
        return f"the log ends at {chain.end}{reached} on timeline {current}, whose history is missing"
    return f"the server is on timeline {current}, to which no backup leads yet: a full backup makes a new start"


@dataclass(frozen=True)
class _Proof:
    """Up to where the stored log is proven to hold everything, on the way to a timeline."""

    recovery_point: datetime | None = None
    recovery_lsn: Lsn | None = None
    stored_end: Lsn | None = None


def _proof(store: Store, position: Position | None, towards: int, stored: StoredLog) -> _Proof:
    """What an agent proved of the timeline itself, or else of one before it, up to where that was left."""
    if position is not None and position.timeline in (None, towards) and position.recovery_point is not None:
        return _Proof(position.recovery_point, position.recovery_lsn, position.stored_end)
    if position is None:
        return _Proof()
    ends: dict[int, Lsn | None] = {past.timeline: past.at for past in stored.histories.get(towards, ())}
    for timeline, end in reversed(({**ends, towards: None}).items()):
        told = position if position.timeline == timeline else _left(store, timeline)
        if told is None or told.recovery_point is None:
            continue
        if end is None:
            return _Proof(told.recovery_point, told.recovery_lsn, told.stored_end)
        # What was proven behind where it was left is not on the way.
        if told.recovery_lsn is not None and told.recovery_lsn <= end:
            return _Proof(told.recovery_point, told.recovery_lsn, min(end, told.stored_end or end))
    return _Proof()


def _proven(store: Store) -> tuple[dict[int, datetime], tuple[str, ...]]:
    """By timeline that was left: its recovery point; and what of that cannot be read, of which less is known then."""
    proven: dict[int, datetime] = {}
    doubts: list[str] = []
    for name in store.names(LEFT):
        if not re.fullmatch(r"[0-9A-F]{8}\.json", name):
            continue
        try:
            told = Log(store).read_position(int(name[:8], 16))
        except (ObjectCorrupt, FormatTooNew) as error:
            doubts.append(f"{error.message}; up to when everything of that timeline is stored is not known")
            continue
        if told is not None and told.timeline is not None and told.recovery_point is not None:
            proven[told.timeline] = told.recovery_point
    return proven, tuple(doubts)


def _left(store: Store, timeline: int) -> Position | None:
    """What an agent said last of a timeline that was left; one that cannot be read proves nothing."""
    try:
        return Log(store).read_position(timeline)
    except (ObjectCorrupt, FormatTooNew):
        return None


def _position(store: Store) -> tuple[Position | None, tuple[str, ...]]:
    """What the agent said last. A restore does not need it: where it is damaged, less is known, and that is said."""
    try:
        return Log(store).read_position(), ()
    except ObjectCorrupt as error:
        return None, (f"{error.message}; up to when everything is stored is not known",)
