"""How far the log in the repository reaches, and from which moment on nothing is stored yet. Pure.

The agent asks the server now and then for the time and then for its position, in this order: whatever was acknowledged
before that time, asynchronous commits too, has its commit record before that position. Once the unbroken log in the
repository reaches the position, everything up to that time can be brought back.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, PlainSerializer

from dr_pipelines.engines.postgres.wal import Lsn, Segment, settled

__all__ = ["POSITION_VERSION", "LogMode", "Position", "RecoveryPointTracker", "Sample", "ServerState"]

POSITION_VERSION = 1


def _lsn(value: object) -> object:
    return Lsn.parse(value) if isinstance(value, str) else value


LsnText = Annotated[Lsn, BeforeValidator(_lsn), PlainSerializer(str, return_type=str)]


class ServerState(StrEnum):
    """Whether the server answered the agent's last question."""

    UP = "up"
    AWAY = "away"


class LogMode(StrEnum):
    """How a server's log comes to its agent."""

    ARCHIVE = "archive"
    """archive_command puts each segment that is full into the spool."""
    STREAM = "stream"
    """A receiver takes it from the server as it is written."""


class Position(BaseModel):
    """What the agent knew at `heartbeat_at`: the document position.json beside the log."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    position_version: int = POSITION_VERSION
    heartbeat_at: AwareDatetime
    at: AwareDatetime | None = None
    """The server's clock at the newest sample; None where it never answered."""
    lsn: LsnText | None = None
    """The server's insert position just after `at`."""
    timeline: int | None = None
    segment_size: int | None = None
    stored_end: LsnText | None = None
    """Where the unbroken log in the repository ends."""
    mode: LogMode = LogMode.ARCHIVE
    """How the log comes to the agent."""
    receiving: bool = False
    """The server says that it sends its log to the receiver."""
    drained: bool = False
    """Nothing more comes from this server until it is back, and what had come is stored."""
    recovery_point: AwareDatetime | None = None
    """Everything that was acknowledged before is in the stored log (restoring it takes a backup too). None: unknown."""
    recovery_lsn: LsnText | None = None
    """Where a replay of the stored log must get at least for that to be so. None: unknown, as with earlier agents."""
    quiet_xid: int | None = None
    """The next transaction's number at a moment whose log is stored and at which no transaction was under way."""
    server: ServerState
    spool_files: int
    spool_bytes: int
    agent_version: str
    agent_host: str
    foreign_from: str | None = None
    """The server's first segment under whose name another server's is stored; None where there is none."""
    problem: str | None = None
    """What keeps the log from being stored as it should be, for a person; None where nothing does."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One question to the server: its clock first, then what was running, then its position."""

    at: datetime
    lsn: Lsn
    timeline: int
    next_xid: int
    """The number that the next transaction that writes will get."""
    quiet: bool
    """No transaction that has written was under way."""


class RecoveryPointTracker:
    """Turns samples and the end of the stored log into the recovery point.

    A sample waits for the stored log to reach what it needs: its position, or, where the log grows by whole segments,
    the end of the segment that this is in. Of the samples that need the same only the newest can matter; so memory is
    one sample for each segment that is not stored yet, or for each position, and at most `limit`.

    An idle server still writes now and then (a checkpoint), too little to fill a segment and nothing that PostgreSQL
    switches segments for. So a second proof: where nothing was under way at a stored sample, and the next transaction's
    number has not moved since, then nothing was written since that anybody could miss. What a replay must reach is that
    stored sample's position then.
    """

    def __init__(
        self,
        segment_size: int,
        *,
        recovery_point: datetime | None = None,
        recovery_lsn: Lsn | None = None,
        quiet_xid: int | None = None,
        timeline: int | None = None,
        whole_segments: bool = True,
        limit: int = 4096,
    ) -> None:
        self._size, self._limit, self._whole_segments = segment_size, limit, whole_segments
        self._timeline = timeline
        self._waiting: dict[Lsn, Sample] = {}
        """By what they need; all are of the newest one's timeline."""
        self.recovery_point = recovery_point
        self.recovery_lsn = recovery_lsn
        self.quiet_xid = quiet_xid
        self._stored: tuple[int, Lsn] | None = None

    def add(self, sample: Sample) -> None:
        """Take a new sample; samples come in the order of their time."""
        if sample.timeline != self._timeline:
            # Positions of another timeline do not compare with this one's, nor do its transactions; and what was proven
            # of it may be behind where this one left it.
            self._waiting.clear()
            if self._timeline is not None:
                self.recovery_point = self.recovery_lsn = None
            self.quiet_xid = None
            self._timeline = sample.timeline
        needs = settled(sample.lsn, self._size)
        if self._whole_segments:
            needs = Segment.before(needs, sample.timeline, self._size).end
        self._waiting[needs] = sample
        if len(self._waiting) > self._limit:
            # The second oldest: the oldest is what the next stored segment will prove.
            del self._waiting[sorted(self._waiting)[1]]
        self._prove()
        if self.quiet_xid == sample.next_xid:
            self._advance(sample.at)

    def stored(self, end: Lsn, timeline: int) -> None:
        """The unbroken log in the repository reaches `end` on `timeline`."""
        self._stored = (timeline, end)
        self._prove()

    def forget(self) -> None:
        """The stored log has lost something: nothing is proven any more, samples that still wait may prove it again."""
        self.recovery_point = self.recovery_lsn = self.quiet_xid = self._stored = None

    def _prove(self) -> None:
        if self._stored is None:
            return
        timeline, end = self._stored
        if timeline != self._timeline:
            return
        for needs in sorted(lsn for lsn in self._waiting if lsn <= end):
            sample = self._waiting.pop(needs)
            self._advance(sample.at)
            self.recovery_lsn = settled(sample.lsn, self._size)
            self.quiet_xid = sample.next_xid if sample.quiet else None

    def _advance(self, moment: datetime) -> None:
        if self.recovery_point is None or moment > self.recovery_point:
            self.recovery_point = moment
