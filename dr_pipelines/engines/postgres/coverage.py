"""What can be restored from the repository alone: which backup, which of the log, up to when, and what is missing."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime

from dr_pipelines.engines.postgres.chain import Chain
from dr_pipelines.engines.postgres.details import check_details, look_at_backups
from dr_pipelines.engines.postgres.log import Log
from dr_pipelines.engines.postgres.position import Position
from dr_pipelines.engines.postgres.wal import Lsn
from dr_pipelines.errors import NotCovered, ObjectCorrupt, RepositoryError, RestoreError
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


def choose(store: Store, target_time: datetime | None, backup_id: str | None = None) -> Coverage:
    """What a restore to `target_time`, or to the latest point, takes: the newest backup that will do.

    With `backup_id` it is that one, where it will do: a restore that goes on has begun with it. An incremental backup
    whose chain is broken does not do; that is one of the doubts. A hole in the log is no error here: the coverage ends
    before it and says what is lost. Raises NotCovered with the covered range for a time outside of it, RestoreError
    where there is no complete backup.
    """
    survey = restorable(look_at_backups(store))
    backups = survey.complete
    if not backups:
        raise _no_backup(store, survey.damaged)
    earliest = min(manifest.stopped_at for manifest in backups)
    usable = [manifest for manifest in backups if target_time is None or manifest.stopped_at <= target_time]
    begun_with = [manifest for manifest in usable if manifest.backup_id == backup_id]
    chosen = max(begun_with or usable or backups, key=lambda manifest: manifest.stopped_at)
    coverage = cover(store, chosen, earliest)
    damaged = tuple(f"the backup {name} cannot be used: {error.message}" for name, error in survey.damaged)
    links = chain_of(chosen, survey).backups
    coverage = replace(coverage, doubts=(*damaged, *coverage.doubts), links=links)
    if target_time is not None:
        latest = coverage.recovery_point or coverage.manifest.stopped_at
        if not usable or target_time > latest:
            raise NotCovered(
                f"{format_moment(target_time)} is outside of what the repository covers: "
                f"{format_moment(earliest)} to {format_moment(latest)}" + (f"; {coverage.gap}" if coverage.gap else ""),
                hint="give a time within that range, or latest",
            )
    return coverage


def cover(store: Store, manifest: Manifest, earliest: datetime | None = None) -> Coverage:
    """How far one backup and the log after it lead. Raises RestoreError where that is not to the backup's own end."""
    position, doubts = _position(store)
    details = check_details(manifest).details
    start, stop = Lsn.parse(str(details["start_lsn"])), Lsn.parse(str(details["stop_lsn"]))
    chain = Log(store).chain(start, int(details["timeline"]), int(details["wal_segment_size"]))
    if chain.end < stop:
        raise RestoreError(
            f"the backup {manifest.backup_id} cannot be restored: it needs the log up to {stop}, which ends at "
            f"{chain.end}",
            hint=f"missing: {', '.join(chain.missing) or 'the newest segments'}; restore to a time before this backup",
        )
    recovery_point = position.recovery_point if position is not None else None
    gap = None
    if chain.holes:
        gap = f"the log has a hole: {', '.join(chain.missing)} missing"
    elif position is not None and position.stored_end is not None and chain.end < position.stored_end:
        gap = f"the log ends at {chain.end}, though it had reached {position.stored_end}: its newest segments are gone"
    if gap is not None:
        lost_from = chain.end_stored_at or manifest.stopped_at
        until = format_moment(recovery_point) if recovery_point else "its end"
        gap += f"; what was written from about {format_moment(lost_from)} to {until} is lost"
        recovery_point = min(lost_from, recovery_point) if recovery_point else lost_from
    proven_lsn = position.recovery_lsn if position is not None and gap is None else None
    earliest = earliest or manifest.stopped_at
    return Coverage(manifest, chain, earliest, recovery_point, proven_lsn, gap, position, doubts, (manifest,))


def _position(store: Store) -> tuple[Position | None, tuple[str, ...]]:
    """What the agent said last. A restore does not need it: where it is damaged, less is known, and that is said."""
    try:
        return Log(store).read_position(), ()
    except ObjectCorrupt as error:
        return None, (f"{error.message}; up to when everything is stored is not known",)
