"""Exposure: what would be lost if the database's host were gone at this moment.

An idle database is not exposed: where the log in the repository reaches what the server has written, the recovery point
is now. Where the server or the agent does not answer, the recovery point is the last that was proven, and how much was
written since then is not known.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from dr_pipelines.engines.postgres.coverage import choose, newest_system
from dr_pipelines.engines.postgres.position import ServerState
from dr_pipelines.engines.verdict import Verdict, judge
from dr_pipelines.errors import RestoreError
from dr_pipelines.repository.store import Store
from dr_pipelines.timing import format_duration, format_moment

__all__ = ["CLOCKS_APART", "HEARTBEAT_LIMIT", "Exposure", "read_exposure"]

HEARTBEAT_LIMIT = timedelta(seconds=20)
"""An agent that was silent for longer is not believed to be at work; it writes every five seconds."""

CLOCKS_APART = timedelta(seconds=5)
"""How far ahead of our clock the server's and the agent's may be, for their moments to be compared with ours."""


@dataclass(frozen=True)
class Exposure:
    """The exposure of one service, from one repository."""

    service: str
    measured_at: datetime
    recovery_point: datetime | None
    """None: nothing can be restored, as far as is known."""
    exposure: timedelta | None
    """`measured_at` minus the recovery point; at least this much where `unknown_since` is set.

    None where there is no recovery point, or one that is ahead of our clock: that measures the clocks.
    """
    unknown_since: datetime | None
    """Since when nobody can say what was written and not stored; None where the server answered just now."""
    rpo: timedelta | None
    newest_backup_id: str | None
    newest_backup_at: datetime | None
    newest_segment: str | None
    heartbeat_at: datetime | None
    problem: str | None

    @property
    def verdict(self) -> Verdict:
        """Met only where the exposure is known and within the RPO."""
        if self.unknown_since is not None and judge(self.exposure, self.rpo) is Verdict.MET:
            return Verdict.UNVERIFIED
        return judge(self.exposure, self.rpo)


def read_exposure(service_store: Store, service: str, *, now: datetime, rpo: timedelta | None) -> Exposure:
    """Ask the repository; nothing else is needed."""
    try:
        store = newest_system(service_store)
        covered = choose(store, None)
    except RestoreError as error:
        return Exposure(service, now, None, None, None, rpo, None, None, None, None, str(error))
    position = covered.position
    told = position.problem if position is not None else None
    problems = [text for text in (covered.gap, *covered.doubts, told) if text]
    unknown_since = None
    if position is None:
        unknown_since = covered.chain.end_stored_at or covered.manifest.stopped_at
        problems.append("no agent has reported")
    elif now - position.heartbeat_at > HEARTBEAT_LIMIT:
        unknown_since = position.heartbeat_at
        problems.append(f"the agent has been silent since {format_moment(position.heartbeat_at)}")
    elif position.server is ServerState.AWAY:
        unknown_since = position.at or position.heartbeat_at
        problems.append("the server does not answer the agent")
    if position is not None and position.foreign_from is not None:
        unknown_since = min(unknown_since or now, position.recovery_point or covered.manifest.stopped_at)
        problems.append(f"from {position.foreign_from} on the stored log is another server's")
    point = covered.recovery_point
    heard = (point, position.heartbeat_at if position is not None else None)
    ahead = max((moment - now for moment in heard if moment is not None), default=timedelta(0))
    if ahead > CLOCKS_APART:
        # An agent that ended would be as far ahead: as little is known as where none has reported.
        unknown_since = min(now, unknown_since or now, covered.chain.end_stored_at or covered.manifest.stopped_at)
        problems.append(f"the clocks are apart by {format_duration(ahead)}")
    return Exposure(
        service=service,
        measured_at=now,
        recovery_point=point,
        exposure=_exposure(point, now),
        unknown_since=unknown_since,
        rpo=rpo,
        newest_backup_id=covered.manifest.backup_id,
        newest_backup_at=covered.manifest.stopped_at,
        newest_segment=covered.chain.newest,
        heartbeat_at=position.heartbeat_at if position is not None else None,
        problem="; ".join(problems) or None,
    )


def _exposure(point: datetime | None, now: datetime) -> timedelta | None:
    return max(now - point, timedelta(0)) if point is not None and point - now <= CLOCKS_APART else None
