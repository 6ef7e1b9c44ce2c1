"""Expiry: backups that need not be kept any longer go, and the log that only they needed.

Decided and removed under the service's lock for backups, in an order that may be broken off anywhere: manifests first,
the newest first, so that nothing lists that does not restore; then the parts; then the log, the oldest first. What an
interruption leaves, the next expiry recognises and removes, and the next backup as far as it is parts.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime

from dr_pipelines.engines.postgres.chunks import SUFFIX, Chunk
from dr_pipelines.engines.postgres.coverage import systems
from dr_pipelines.engines.postgres.details import look_at_backups
from dr_pipelines.engines.postgres.log import LEFT, POSITION_KEY, Log
from dr_pipelines.engines.postgres.retention import Expiry, LogFile, Seen, decide
from dr_pipelines.engines.postgres.wal import FileKind, kind_of
from dr_pipelines.errors import FormatTooNew
from dr_pipelines.plan import Retention
from dr_pipelines.repository.locks import hold
from dr_pipelines.repository.manifest import (
    clear_incomplete,
    delete_backup,
    retire_backup,
    revive_backup,
)
from dr_pipelines.repository.repository import Repository
from dr_pipelines.repository.retention import Judged
from dr_pipelines.repository.store import ObjectInfo, Store
from dr_pipelines.repository.uses import clear_uses, read_uses
from dr_pipelines.timing import Clock

__all__ = ["expire"]

Progress = Callable[[int, int], None]


def expire(
    service: str,
    repository: Repository,
    retention: Retention,
    *,
    clock: Clock,
    dry_run: bool = False,
    progress: Progress = lambda done, total: None,
) -> Expiry:
    """Remove what the retention does not keep; in a dry run only say what that is.

    Holds the service's lock for backups, and raises Locked where somebody else does. Raises FormatTooNew where there is
    a backup that this version cannot read, and ObjectCorrupt where it cannot be known what is needed; nothing is
    removed then. Interrupted, it is to be carried out again.
    """
    home = repository.service(service)
    if dry_run:
        return decide(service, retention, _look(home, clock.wall()), clock.wall())
    with hold(home, "backup", purpose=f"expiry of {service}", clock=clock) as lock:
        clusters = _look(home, clock.wall())
        expiry = decide(service, retention, clusters, clock.wall())
        lock.confirm()
        stores = {cluster.system_identifier: home.child(cluster.system_identifier) for cluster in clusters}
        for cluster in clusters:
            store = stores[cluster.system_identifier]
            clear_incomplete(store, clock.wall(), cluster.survey)
            clear_uses(store, clock.wall())
        expiry = _retire(expiry, stores, clock.wall())
        lock.confirm()
        _remove(expiry, stores, progress)
    return expiry


def _look(home: Store, now: datetime) -> list[Seen]:
    return [_look_at(home.child(system), system, now) for system in systems(home)]


def _look_at(store: Store, system: str, now: datetime) -> Seen:
    survey = look_at_backups(store)
    for backup_id, error in survey.damaged:
        if isinstance(error, FormatTooNew):
            # What that one depends on cannot be known here.
            raise FormatTooNew(f"nothing may be removed beside {backup_id}: {error.message}", hint=error.hint)
    used_by: dict[str, tuple[str, ...]] = {}
    for use in read_uses(store, now):
        used_by[use.backup_id] = (*used_by.get(use.backup_id, ()), use.user)
    position = store.info(POSITION_KEY)
    files = [_log_file(found) for found in store.list("log/")]
    return Seen(
        system_identifier=system,
        survey=survey,
        objects={found.key: found.size for found in store.list("backups/")},
        log=tuple(files),
        histories=Log(store).histories(file.name for file in files if kind_of(file.name) is FileKind.HISTORY),
        heard_at=position.modified if position is not None else None,
        used_by=used_by,
    )


def _log_file(found: ObjectInfo) -> LogFile:
    folder, _, name = found.key.rpartition("/")
    chunk = folder.endswith(SUFFIX) and Chunk.of_name(name) is not None
    if chunk:
        name = folder.rpartition("/")[2].removesuffix(SUFFIX)
    return LogFile(found.key, name, found.size, found.modified, chunk)


def _retire(expiry: Expiry, stores: Mapping[str, Store], now: datetime) -> Expiry:
    """Take the manifests away, and give one back where a restore has begun to read its backup since we looked.

    The newest go first, so what a backup depends on has not been touched when that one turns out to be read.
    """
    spared: dict[str, str] = {}
    parents = {backup.backup_id: backup.parent for backup in expiry.going}
    for backup in expiry.going:
        if backup.backup_id in spared:
            continue
        store = stores[backup.system_identifier]
        manifest = retire_backup(store, backup.backup_id)
        users = [use.user for use in read_uses(store, now) if use.backup_id == backup.backup_id]
        if users:
            revive_backup(store, backup.backup_id, manifest)
            link: str | None = backup.backup_id
            while link is not None:
                spared[link] = users[0]
                link = parents.get(link)
    if not spared:
        return expiry
    backups = tuple(
        Judged(each.backup, True, f"is being read by {spared[each.backup.backup_id]}")
        if each.backup.backup_id in spared
        else each
        for each in expiry.backups
    )
    # What of the log those need was not asked, so all of it stays until the next expiry.
    return replace(expiry, backups=backups, log={}, over=())


def _remove(expiry: Expiry, stores: Mapping[str, Store], progress: Progress) -> None:
    done, total = 0, len(expiry.going) + expiry.log_files
    for backup in expiry.going:
        delete_backup(stores[backup.system_identifier], backup.backup_id)
        progress(done := done + 1, total)
    for system, files in expiry.log.items():
        for file in files:
            stores[system].delete(file.key)
            progress(done := done + 1, total)
    for system in expiry.over:
        for key in (POSITION_KEY, *(f"{LEFT}{name}" for name in stores[system].names(LEFT))):
            stores[system].delete(key)
