"""What goes of a service's backups and of its log, and what stays. Pure: decided from what was seen of the repository.

A backup needs the log from its first segment on, along every timeline that descends from its own: then it can be
restored to any time up to now, on each of them. Log of a timeline to which no backup that stays leads goes when it was
stored before the oldest of them was begun; what came later may have its backup yet to come.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property

from dr_pipelines.engines.postgres.chain import leads_to
from dr_pipelines.engines.postgres.wal import FileKind, Lsn, Segment, Switch, kind_of, timeline_of
from dr_pipelines.plan import Retention
from dr_pipelines.repository.identifiers import moment_of
from dr_pipelines.repository.manifest import BackupSurvey, Manifest
from dr_pipelines.repository.retention import Held, Judged, judge
from dr_pipelines.timing import format_moment

__all__ = ["GRACE", "Anchor", "Expiry", "LogFile", "Seen", "decide", "useless_log"]

_AHEAD = timedelta(hours=1)
"""How far a server's clock may be ahead of ours for its backups to be put in order with the others."""


GRACE = timedelta(days=1)
"""How long what an interruption left may lie there before it counts as left."""


@dataclass(frozen=True)
class LogFile:
    """A file of the log in the repository; `name` is PostgreSQL's."""

    key: str
    name: str
    stored_bytes: int
    stored_at: datetime
    chunk: bool = False
    """A piece of the segment of this name, which is not full yet or was not when it was stored."""


@dataclass(frozen=True)
class Seen:
    """What lies in the repository of one cluster."""

    system_identifier: str
    survey: BackupSurvey
    objects: Mapping[str, int]
    """Every object below backups/, with its size."""
    log: tuple[LogFile, ...]
    histories: Mapping[int, tuple[Switch, ...]]
    heard_at: datetime | None
    """When an agent last reported, by the store's clock."""
    used_by: Mapping[str, tuple[str, ...]]
    """By backup: the restores that are reading it."""

    def stored_bytes(self, backup_id: str) -> int:
        """What a backup takes in the repository."""
        return sum(size for key, size in self.objects.items() if key.startswith(f"backups/{backup_id}/"))


@dataclass(frozen=True)
class Expiry:
    """What goes of a service's backups and log, what stays, and why."""

    service: str
    retention: Retention
    backups: tuple[Judged, ...]
    """Newest first."""
    stored_bytes: Mapping[str, int]
    """By backup."""
    log: Mapping[str, tuple[LogFile, ...]]
    """What goes of the log, by system identifier, the oldest first."""
    over: tuple[str, ...]
    """The clusters of which nothing is left then."""
    leftovers: tuple[str, ...]
    """Backups that were interrupted, or whose removal was, and go as well."""

    @cached_property
    def going(self) -> tuple[Held, ...]:
        """The backups that go, each before what it depends on."""
        going = [judged.backup for judged in self.backups if not judged.stays]
        parents = {backup.backup_id: backup.parent for backup in going}

        def depth(backup: Held) -> int:
            links, parent = 0, backup.parent
            while parent is not None and links < len(parents):
                links, parent = links + 1, parents.get(parent)
            return links

        return tuple(sorted(going, key=depth, reverse=True))

    @cached_property
    def backup_bytes(self) -> int:
        """What the backups that go take in the repository, without what was interrupted."""
        return sum(self.stored_bytes[backup.backup_id] for backup in self.going)

    @cached_property
    def log_files(self) -> int:
        """How many files of the log go."""
        return sum(map(len, self.log.values()))

    @cached_property
    def log_bytes(self) -> int:
        """What the log that goes takes in the repository."""
        return sum(file.stored_bytes for files in self.log.values() for file in files)


def decide(service: str, retention: Retention, clusters: Sequence[Seen], now: datetime) -> Expiry:
    """What the retention makes of all the clusters that the service has had."""
    judged = judge([held for cluster in clusters for held in _held(cluster, now)], retention, now)
    stay = {each.backup.backup_id for each in judged if each.stays}
    before = min((began for cluster in clusters for name, began in _begun(cluster) if name in stay), default=None)
    log = {
        cluster.system_identifier: useless_log(
            cluster.log, _anchors(cluster, stay), cluster.histories, before, stale=now - GRACE
        )
        for cluster in clusters
        if before is not None
    }
    over = [
        cluster.system_identifier
        for cluster in clusters
        if before is not None
        and not any(each.stays for each in judged if each.backup.system_identifier == cluster.system_identifier)
        and len(log[cluster.system_identifier]) == len(cluster.log)
        and (cluster.heard_at is None or cluster.heard_at < before)
    ]
    return Expiry(
        service=service,
        retention=retention,
        backups=judged,
        stored_bytes={
            held.backup_id: cluster.stored_bytes(held.backup_id) for cluster in clusters for held in _held(cluster, now)
        },
        log={system: files for system, files in log.items() if files},
        over=tuple(over),
        leftovers=tuple(backup_id for cluster in clusters for backup_id in cluster.survey.incomplete),
    )


def _held(cluster: Seen, now: datetime) -> Iterator[Held]:
    names = {file.name for file in cluster.log if not file.chunk}
    for manifest in cluster.survey.complete:
        yield Held(
            backup_id=manifest.backup_id,
            system_identifier=cluster.system_identifier,
            kind=manifest.kind,
            ended_at=manifest.stopped_at if _moment_of(manifest.backup_id) is not None else None,
            parent=manifest.parent,
            problem=_problem(manifest, cluster.objects, names, now),
            used_by=cluster.used_by.get(manifest.backup_id, ()),
        )
    for backup_id, error in cluster.survey.damaged:
        yield Held(
            backup_id=backup_id,
            system_identifier=cluster.system_identifier,
            kind="unknown",
            ended_at=_moment_of(backup_id),
            problem=error.message,
            used_by=cluster.used_by.get(backup_id, ()),
        )


def _problem(manifest: Manifest, objects: Mapping[str, int], log: set[str], now: datetime) -> str | None:
    """Why a backup cannot be good, as far as a listing shows it; `dr backup verify` reads it whole."""
    for part in manifest.parts:
        stored = objects.get(part.key)
        if stored is None or stored < part.stored_size:
            return f"{part.key} is {'missing' if stored is None else f'truncated: {stored} bytes'}"
    first, last = _own_segments(manifest)
    for number in range(first.number, last.number + 1):
        if (name := Segment(first.timeline, number, first.size).name) not in log:
            return f"{name}, without which it is not consistent, is missing from the log"
    if manifest.stopped_at > now + _AHEAD:
        return f"it ended at {format_moment(manifest.stopped_at)}, which is yet to come: a clock is wrong"
    return None


def _own_segments(manifest: Manifest) -> tuple[Segment, Segment]:
    """The first and the last segment that a backup needs to be consistent."""
    details = manifest.details
    timeline, size = int(details["timeline"]), int(details["wal_segment_size"])
    start, stop = Lsn.parse(str(details["start_lsn"])), Lsn.parse(str(details["stop_lsn"]))
    return Segment.holding(start, timeline, size), Segment.before(stop, timeline, size)


def _moment_of(backup_id: str) -> datetime | None:
    try:
        return moment_of(backup_id)
    except ValueError:
        return None


def _begun(cluster: Seen) -> Iterator[tuple[str, datetime]]:
    """When each backup was begun."""
    for manifest in cluster.survey.complete:
        yield manifest.backup_id, manifest.started_at
    for backup_id, _ in cluster.survey.damaged:
        yield backup_id, _moment_of(backup_id) or datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Anchor:
    """Where the log begins that a backup needs: the position, and the segment that it is in."""

    start: Lsn
    segment: Segment


def _anchors(cluster: Seen, stay: set[str]) -> list[Anchor]:
    staying = [manifest for manifest in cluster.survey.complete if manifest.backup_id in stay]
    return [Anchor(Lsn.parse(str(manifest.details["start_lsn"])), _own_segments(manifest)[0]) for manifest in staying]


def useless_log(
    files: Iterable[LogFile],
    anchors: Sequence[Anchor],
    histories: Mapping[int, tuple[Switch, ...]],
    before: datetime,
    *,
    stale: datetime,
) -> tuple[LogFile, ...]:
    """The files that none of a cluster's backups that stay needs, in the order in which they may go: oldest log first.

    `anchors` are those of the backups that stay, `before` is when the oldest of the service's was begun. A timeline's
    history stays as long as log of it or of a later one does. A chunk of a segment that is stored whole goes where it
    was stored before `stale`: an agent that was killed has left it. What PostgreSQL does not archive is left alone.
    """
    known = [file for file in files if kind_of(file.name) is not None]
    whole = {file.name for file in known if not file.chunk}
    reaching = {
        timeline: [each for each in anchors if leads_to(each.segment.timeline, each.start, timeline, histories)]
        for timeline in {timeline_of(file.name) for file in known}
    }

    def stays(file: LogFile) -> bool:
        if file.chunk and file.name in whole and file.stored_at < stale:
            return False
        if not (leading := reaching[timeline_of(file.name)]):
            return file.stored_at >= before
        return kind_of(file.name) is FileKind.HISTORY or any(
            _place(file.name) >= _place(anchor.segment.name) for anchor in leading
        )

    log = [file for file in known if kind_of(file.name) is not FileKind.HISTORY]
    useless = [file for file in log if not stays(file)]
    useless.sort(key=lambda file: (_place(file.name), file.key))
    newest = max((timeline_of(file.name) for file in log if stays(file)), default=0)
    for file in known:
        if kind_of(file.name) is FileKind.HISTORY and timeline_of(file.name) > newest and not stays(file):
            useless.append(file)
    return tuple(useless)


def _place(name: str) -> str:
    """Where in the log a file belongs, whatever its timeline: that of a segment, of a partial one, of a note."""
    return name[8:24]
