"""A backup, full or incremental: what `pg_basebackup` streams, cut into parts on the way, with no second copy on disk.

The WAL that the backup needs comes from the archive, so the manifest, which makes a backup complete, is written after
the segment with the backup's stop position is in the repository.
"""

import contextlib
import io
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import BinaryIO, Literal

from dr_pipelines import __version__
from dr_pipelines.engines.parts import PartWriter, Progress
from dr_pipelines.engines.postgres.base_backup import base_backup
from dr_pipelines.engines.postgres.blocks import FIXED, Blocks, announced_size, is_partial
from dr_pipelines.engines.postgres.connection import (
    ServerFacts,
    connect,
    read_facts,
    scalar,
    without_secrets,
)
from dr_pipelines.engines.postgres.incremental import (
    LABEL,
    OWN_MANIFEST,
    Basis,
    NoBasis,
    find_basis,
    require_incrementals,
)
from dr_pipelines.engines.postgres.log import Log
from dr_pipelines.engines.postgres.receiving import await_receiving
from dr_pipelines.engines.postgres.tar_stream import members
from dr_pipelines.engines.postgres.target import OURS
from dr_pipelines.engines.postgres.verify import log_ends_backup
from dr_pipelines.engines.postgres.wal import Lsn, segment_before, segment_holding
from dr_pipelines.errors import BackupError, DrError, ObjectConflict, RepositoryUnreachable
from dr_pipelines.processes.postgres import Binaries
from dr_pipelines.repository.locks import Lock, hold
from dr_pipelines.repository.manifest import (
    FORMATS,
    FileEntry,
    Manifest,
    Part,
    clear_incomplete,
    delete_backup,
    new_backup_id,
    write_manifest,
)
from dr_pipelines.repository.patience import patiently
from dr_pipelines.repository.repository import Repository
from dr_pipelines.repository.store import Store
from dr_pipelines.settings import Settings
from dr_pipelines.timing import Clock, wait_until

__all__ = ["BackupResult", "take_backup"]

ARCHIVE_PATIENCE = 120.0
"""Seconds that the end of the backup's log may take to be archived, and then to be stored; the agent needs two."""


@dataclass(frozen=True)
class BackupResult:
    """A complete backup and what it took to make it."""

    manifest: Manifest
    duration: timedelta
    waited_for_log: timedelta
    removed_incomplete: tuple[str, ...]
    instead: str | None = None
    """Why it is a full backup where an incremental one was asked for."""


def take_backup(
    service: str,
    dsn: str,
    repository: Repository,
    binaries: Binaries,
    settings: Settings,
    *,
    clock: Clock,
    progress: Progress,
    archive_patience: float = ARCHIVE_PATIENCE,
    kind: Literal["full", "incremental"] = "full",
    full_every: int = 0,
) -> BackupResult:
    """Make a backup of the server at `dsn`. Raises BackupError; then nothing is left that lists as complete.

    Holds the service's backup lock, and first removes what interrupted backups left behind. A log that does not get to
    the repository within `archive_patience` seconds ends the backup.

    An incremental one is based on the newest backup. Where that cannot be (there is none, its chain is broken, has
    `full_every` incremental ones already, or the server refuses), a full one is made, which begins a new chain, and the
    result says why. Raises NoIncrementals, and makes none, where the server never makes incremental ones.
    """
    watch_start = clock.monotonic()
    with connect(dsn) as connection:
        facts = read_facts(connection)
        if kind == "incremental":
            require_incrementals(connection, facts)
    home = repository.service(service)
    store = home.child(facts.system_identifier)
    _refuse_what_cannot_work(facts, dsn, streamed=patiently(lambda: await_receiving(Log(store), clock), clock))
    with hold(home, "backup", purpose=f"{kind} backup of {service}", clock=clock) as lock:
        removed = clear_incomplete(store, clock.wall())
        work = _Work(service, dsn, facts, store, binaries, settings, lock, clock, progress, archive_patience)
        instead = None
        try:
            basis = find_basis(store, facts.major, full_every) if kind == "incremental" else None
            manifest, waited = work.make(basis)
        except NoBasis as error:
            instead = error.message
            manifest, waited = work.make(None)
    return BackupResult(manifest, timedelta(seconds=clock.monotonic() - watch_start), waited, removed, instead)


@dataclass(frozen=True)
class _Work:
    """One backup that is being made, under its lock."""

    service: str
    dsn: str
    facts: ServerFacts
    store: Store
    binaries: Binaries
    settings: Settings
    lock: Lock
    clock: Clock
    progress: Progress
    archive_patience: float

    def make(self, basis: Basis | None) -> tuple[Manifest, timedelta]:
        """Make it complete; returns how long its log was waited for. Raises NoBasis where the server refuses it."""
        store, clock, facts = self.store, self.clock, self.facts
        kind: Literal["full", "incremental"] = "full" if basis is None else "incremental"
        backup_id = new_backup_id(kind, clock.wall())
        try:
            started_at = _server_time(self.dsn)
            files, parts, details = self._store_stream(basis, backup_id)
            # A clock that was set back meanwhile: no moment before the start is one that this backup leads to.
            stopped_at = max(started_at, _server_time(self.dsn))
            waited_from = clock.monotonic()
            _wait_for_log(Log(store), str(details["stop_segment"]), clock, self.archive_patience)
            patiently(lambda: _refuse_foreign_log(Log(store), details), clock)
            waited = timedelta(seconds=clock.monotonic() - waited_from)
            manifest = Manifest(
                format_version=FORMATS[kind],
                backup_id=backup_id,
                service=self.service,
                engine="postgres",
                kind=kind,
                parent=basis.parent.backup_id if basis is not None else None,
                system_identifier=facts.system_identifier,
                server_version=facts.version,
                tool_version=__version__,
                started_at=started_at,
                stopped_at=stopped_at,
                files=files,
                parts=parts,
                details=details,
            )
            _complete(store, manifest, self.lock, clock)
        except BaseException:
            # The error that is under way matters more than one of the tidying; the next backup tidies again.
            with contextlib.suppress(DrError, OSError):
                delete_backup(store, backup_id)
            raise
        return manifest, waited

    def _store_stream(
        self, basis: Basis | None, backup_id: str
    ) -> tuple[tuple[FileEntry, ...], tuple[Part, ...], dict[str, str | int]]:
        with contextlib.ExitStack() as kept:
            parent = kept.enter_context(basis.file()) if basis is not None else None
            name = f"dr_pipelines {backup_id[-6:]}"
            stream = kept.enter_context(base_backup(self.dsn, self.binaries, name, self.archive_patience, parent))
            if parent is not None and not stream.peek(1):
                # Whatever the reason is, a full backup does not need what was refused, or fails with its own words.
                raise NoBasis("pg_basebackup ended before it sent anything")
            return _store_parts(
                stream, self.facts, self.store, backup_id, self.settings, self.progress, incremental=basis is not None
            )


def _complete(store: Store, manifest: Manifest, lock: Lock, clock: Clock) -> None:
    patiently(lock.confirm, clock)
    try:
        patiently(lambda: write_manifest(store, manifest), clock)
    except ObjectConflict as error:
        # This process slept since it confirmed the lock, which somebody else has taken.
        raise BackupError(
            error.message, hint="this process was stopped, or the repository out of reach, for too long; start again"
        ) from error


def _refuse_what_cannot_work(facts: ServerFacts, dsn: str, *, streamed: bool) -> None:
    where = without_secrets(dsn)
    if facts.tablespaces:
        raise BackupError(
            f"the cluster at {where} has further tablespaces ({', '.join(facts.tablespaces)})",
            hint="they are not supported: move their tables to pg_default",
        )
    if facts.in_recovery:
        raise BackupError(f"the server at {where} is a standby", hint="give the primary's DSN")
    archives = facts.archive_mode != "off" and bool(facts.archive_command)
    if not streamed and not archives:
        raise BackupError(
            f"the server at {where} does not archive its WAL, and no agent streams it, so a backup of it could not be "
            "restored",
            hint="start dr agent --stream, or set archive_mode = on and archive_command = '… scripts/backup.sh wal %p "
            "%f'; dr doctor says how",
        )


def _server_time(dsn: str) -> datetime:
    with connect(dsn) as connection:
        moment: datetime = scalar(connection, "SELECT clock_timestamp()")
    return moment.astimezone(UTC)


def _store_parts(
    stream: BinaryIO,
    facts: ServerFacts,
    store: Store,
    backup_id: str,
    settings: Settings,
    progress: Progress,
    *,
    incremental: bool,
) -> tuple[tuple[FileEntry, ...], tuple[Part, ...], dict[str, str | int]]:
    writer = PartWriter(
        store,
        f"backups/{backup_id}/parts/",
        part_size=settings.part_size,
        workers=settings.workers,
        level=settings.compression_level,
    )
    done = 0
    own_manifest = b""
    with writer:
        for member in members(stream):
            if member.path.split("/")[0] in OURS:
                # What a restore had left in this data directory is not the cluster's.
                _skip(stream, member.size)
                continue
            entry = FileEntry(path=member.path, kind=member.kind, mode=member.mode, size=member.size)
            index = writer.add(entry)
            if incremental and member.path in (LABEL, OWN_MANIFEST):
                content = stream.read(member.size)
                own_manifest = content if member.path == OWN_MANIFEST else own_manifest
                writer.put_aside(index, 0, content)
            elif member.path == OWN_MANIFEST:
                own_manifest = stream.read(member.size)
                writer.copy(io.BytesIO(own_manifest), index, member.size)
            elif incremental and is_partial(entry):
                # Which blocks it holds, a restore wants to know of all backups of the chain before it begins.
                header = _header(stream, entry)
                writer.put_aside(index, 0, header)
                writer.copy(stream, index, member.size, len(header))
            elif member.kind == "file":
                writer.copy(stream, index, member.size)
            done += member.size
            progress(done, max(done, facts.size))
        parts = writer.finish()
    return tuple(writer.files), parts, _details(own_manifest, facts)


def _header(stream: BinaryIO, entry: FileEntry) -> bytes:
    header = stream.read(min(FIXED, entry.size))
    try:
        header += stream.read(announced_size(header) - len(header))
        if Blocks.parse(header).size != entry.size:
            raise ValueError(f"{entry.size} bytes do not fit to its header")
        return header
    except ValueError as error:
        raise BackupError(
            f"{entry.path} is not what PostgreSQL 17 and 18 write: {error}",
            hint="this version of PostgreSQL is newer than this version of dr_pipelines: dr backup full",
        ) from None


def _skip(stream: BinaryIO, size: int) -> None:
    while size and (piece := stream.read(min(size, 1 << 20))):
        size -= len(piece)


def _details(own_manifest: bytes, facts: ServerFacts) -> dict[str, str | int]:
    """What a restore needs to know, from PostgreSQL's own manifest (its section WAL-Ranges)."""
    try:
        wal_range = json.loads(own_manifest)["WAL-Ranges"][0]
        start, stop = Lsn.parse(wal_range["Start-LSN"]), Lsn.parse(wal_range["End-LSN"])
        timeline = int(wal_range["Timeline"])
    except (ValueError, KeyError, IndexError) as error:
        raise BackupError(f"pg_basebackup's backup_manifest cannot be read: {error!r}") from None
    return {
        "start_lsn": str(start),
        "stop_lsn": str(stop),
        "timeline": timeline,
        "start_segment": str(segment_holding(start, timeline, facts.segment_size)),
        "stop_segment": str(segment_before(stop, timeline, facts.segment_size)),
        "wal_segment_size": facts.segment_size,
        "max_wal_size": facts.max_wal_size,
        "superuser": facts.superuser,
        "major": facts.major,
    }


def _wait_for_log(log: Log, segment: str, clock: Clock, patience: float) -> None:
    away: RepositoryUnreachable | None = None

    def has_come() -> bool:
        nonlocal away
        try:
            return log.has(segment)
        except RepositoryUnreachable as error:
            away = error
            return False

    if not wait_until(has_come, timeout=patience, clock=clock, interval=0.1):
        raise BackupError(
            f"the WAL segment {segment}, without which the backup is worth nothing, did not reach the repository "
            f"within {patience:.0f} s" + (f"; the repository did not always answer: {away.message}" if away else ""),
            hint="is the agent running, and is archive_command working? dr doctor",
        )


def _refuse_foreign_log(log: Log, details: dict[str, str | int]) -> None:
    if not log_ends_backup(log, details):
        raise BackupError(
            f"the log in the repository is another server's: {details['stop_segment']} does not hold this backup's end",
            hint="two servers of one system identifier archive to one place: stop one of them, or give this one a "
            "repository of its own",
        )
