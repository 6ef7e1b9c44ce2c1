"""What the agent knows of one cluster: its log in the repository, how far that is unbroken, its recovery point."""

import logging
from dataclasses import dataclass
from datetime import datetime

from dr_pipelines.agent.journal import say
from dr_pipelines.engines.postgres.chain import by_segment
from dr_pipelines.engines.postgres.details import check_details
from dr_pipelines.engines.postgres.log import Chain, Log, Stored
from dr_pipelines.engines.postgres.position import LogMode, Position, RecoveryPointTracker, Sample
from dr_pipelines.engines.postgres.wal import FileKind, Lsn, Segment, kind_of, parse_history, read_header
from dr_pipelines.errors import FormatTooNew, ObjectConflict, ObjectCorrupt, ObjectMissing
from dr_pipelines.repository.manifest import backup_ids, read_manifest
from dr_pipelines.repository.store import Store
from dr_pipelines.timing import Clock

__all__ = ["Cluster"]

_LOOK_AGAIN = 300.0
"""Seconds after which the stored log is listed again: what was removed from it since would not be noticed otherwise."""
_LOOK_AGAIN_AT_HOLE = 15.0
"""The same while it has a hole: a new backup, or the missing segment, mends it."""
_LOOK_AT_HOLE = 2.0
"""The same where something was shipped meanwhile."""


@dataclass(frozen=True, slots=True)
class _Start:
    """Where the replay of the newest complete backup begins."""

    backup_id: str
    lsn: Lsn
    timeline: int


def _sample_of(position: Position) -> Sample | None:
    """The sample that an earlier agent told last, to be told until the server answers again; it proves nothing."""
    if position.at is None or position.lsn is None or position.timeline is None:
        return None
    return Sample(position.at, position.lsn, position.timeline, next_xid=0, quiet=False)


class Cluster:
    """One cluster's place in the repository, `services/<service>/<system identifier>`, seen from its agent."""

    def __init__(
        self, service_store: Store, system_identifier: str, segment_size: int, clock: Clock, *, mode: LogMode
    ) -> None:
        """Reads what an earlier agent left. Raises RepositoryError."""
        self.system_identifier, self.segment_size = system_identifier, segment_size
        self.log = Log(service_store.child(system_identifier))
        self.sample: Sample | None = None
        self.stored_end: Lsn | None = None
        self.problem: str | None = None
        self._pending: list[Sample] | None = []
        self._foreign: set[Segment] = set()
        self._clock, self._mode = clock, mode
        self._stored_timeline = 0
        self._stale, self._refreshed_at = True, float("-inf")
        self._start: _Start | None = None
        try:
            position = self.log.read_position()
        except ObjectCorrupt as error:
            say("position-unreadable", logging.WARNING, error=error)
            position = None
        whole = mode is LogMode.ARCHIVE
        if position is None:
            self._tracker = RecoveryPointTracker(segment_size, whole_segments=whole)
        else:
            self.stored_end = position.stored_end
            self.sample = _sample_of(position)
            self._tracker = RecoveryPointTracker(
                segment_size,
                recovery_point=position.recovery_point,
                recovery_lsn=position.recovery_lsn,
                quiet_xid=position.quiet_xid,
                timeline=position.timeline,
                whole_segments=whole,
            )
        self.refresh()

    @property
    def recovery_point(self) -> datetime | None:
        """Everything acknowledged before is in the stored log."""
        return self._tracker.recovery_point

    @property
    def recovery_lsn(self) -> Lsn | None:
        """Where a replay must get for the recovery point."""
        return self._tracker.recovery_lsn

    @property
    def quiet_xid(self) -> int | None:
        """What a later agent needs to go on with the proof for an idle server."""
        return self._tracker.quiet_xid

    def add(self, sample: Sample) -> None:
        """The server's newest answer."""
        self.sample = sample
        if self._pending is None:
            self._tracker.add(sample)
        else:
            self._pending.append(sample)

    def settle(self) -> None:
        """The spool was looked through: what is stored may prove something from now on."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            for sample in pending:
                self._tracker.add(sample)
            self.refresh()

    @property
    def foreign(self) -> str | None:
        """The first segment of this server whose name in the repository is another server's segment's."""
        return min(self._foreign).name if self._foreign else None

    def put(self, name: str, raw: bytes, *, level: int) -> Stored:
        """Store a file of this cluster's log. Raises ObjectCorrupt, ObjectConflict, RepositoryError."""
        self.check(name, raw)
        try:
            result = self.log.put(name, raw, level=level)
        except ObjectConflict:
            if kind_of(name) is FileKind.SEGMENT:
                self._foreign.add(Segment.of_name(name, self.segment_size))
                self.refresh()
            raise
        self.gone(name)
        return result

    def gone(self, name: str) -> None:
        """A file was stored after all, or is no longer in the spool."""
        if kind_of(name) is FileKind.SEGMENT and self._foreign:
            self._foreign = {segment for segment in self._foreign if segment.name != name}
            self._stale = True

    def check(self, name: str, raw: bytes) -> None:
        """Raise ObjectCorrupt or ObjectConflict for a file that has no place in this cluster's log."""
        kind = kind_of(name)
        if kind is FileKind.HISTORY:
            parse_history(raw.decode(errors="replace"))
        if kind in (FileKind.SEGMENT, FileKind.PARTIAL):
            self.check_head(name, raw, len(raw))

    def check_head(self, name: str, head: bytes, size: int) -> None:
        """The same for a segment, also one that is not full, of `size` bytes that begins with `head`."""
        header = read_header(head)
        if header.system_identifier != self.system_identifier:
            raise ObjectConflict(
                f"{name} is of the cluster {header.system_identifier}, this is {self.system_identifier}",
                hint="does another server archive into this spool? move the file away",
            )
        header.check(name, size)

    def stored(self, name: str) -> None:
        """A file of the log is in the repository now."""
        if kind_of(name) is FileKind.HISTORY:
            self._stale = True
        if kind_of(name) is not FileKind.SEGMENT:
            return
        segment = Segment.of_name(name, self.segment_size)
        self.received(segment, segment.size)
        if self._mode is LogMode.STREAM:
            # Where an agent was killed before this, the file is still there, and comes here again.
            self.log.drop_chunks(name)

    def received(self, segment: Segment, size: int) -> None:
        """The first `size` bytes of a segment are in the repository now."""
        end = segment.start + size
        leads_on = self.stored_end is not None and segment.start <= self.stored_end <= end
        if leads_on and segment.timeline == self._stored_timeline and self.problem is None:
            self._reached(end, segment.timeline)
        else:
            self._stale = True

    def refresh_where_due(self) -> None:
        """Look again where something came out of order, or where the last look is long ago. Raises RepositoryError."""
        since = self._clock.monotonic() - self._refreshed_at
        # While there is a hole, all that is shipped comes out of order.
        stale = self._stale and (self.problem is None or since >= _LOOK_AT_HOLE)
        if stale or since >= (_LOOK_AGAIN_AT_HOLE if self.problem else _LOOK_AGAIN):
            self.refresh()

    def refresh(self) -> None:
        """Find out from the repository how far the log is unbroken. Raises RepositoryError."""
        try:
            chain = self._chain()
        except (ObjectCorrupt, FormatTooNew) as error:
            self.problem = str(error)
        else:
            self._take(chain)
        self._stale, self._refreshed_at = False, self._clock.monotonic()

    def _take(self, chain: Chain | None) -> None:
        end = self._own(chain.end, chain.timeline) if chain else None
        if self.stored_end is not None and (end is None or end < self.stored_end):
            self._tracker.forget()
        self.stored_end = end
        self.problem = None
        if chain is None:
            return
        self._stored_timeline = chain.timeline
        self._reached(chain.end, chain.timeline)
        if chain.holes:
            hole = chain.holes[0]
            more = f" and {hole.count - 1} more" if hole.count > 1 else ""
            self.problem = (
                f"the stored log ends at {chain.end}: {hole.missing[0]}{more} is missing, later segments cannot be "
                "reached (a new full backup makes a new start)"
            )

    def _reached(self, end: Lsn, timeline: int) -> None:
        self.stored_end = self._own(end, timeline)
        if self._pending is None:
            self._tracker.stored(self.stored_end, timeline)

    def _own(self, end: Lsn, timeline: int) -> Lsn:
        """How far the stored log is this server's: nothing is from the first segment on that another one stored."""
        return min([end, *(segment.start for segment in self._foreign if segment.timeline == timeline)])

    def _chain(self) -> Chain | None:
        """From the newest complete backup on or, where there is none yet, from the first stored segment on."""
        self._start = self._newest_backup()
        if self._start is not None:
            return self.log.chain(self._start.lsn, self._start.timeline, self.segment_size)
        segments = by_segment(self.log.segments(), self.segment_size)
        if not segments:
            return None
        first = min(segments)
        return self.log.chain(first.start, first.timeline, self.segment_size)

    def _newest_backup(self) -> _Start | None:
        for backup_id in reversed(backup_ids(self.log.store)):
            if self._start is not None and self._start.backup_id == backup_id:
                return self._start
            try:
                details = check_details(read_manifest(self.log.store, backup_id)).details
            except (ObjectMissing, ObjectCorrupt, FormatTooNew):
                # Not complete, or of no use to a restore.
                continue
            return _Start(backup_id, Lsn.parse(str(details["start_lsn"])), int(details["timeline"]))
        return None
