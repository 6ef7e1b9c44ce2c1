"""Verify: read a backup and its log back, hashes and formats, without starting anything.

A hash that matches says that what is stored is what was written; that a server comes up from it, only a restore test or
a drill shows.
"""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

from dr_pipelines.engines.checks import Check
from dr_pipelines.engines.parts import Progress
from dr_pipelines.engines.postgres.chain import Chain
from dr_pipelines.engines.postgres.coverage import cover
from dr_pipelines.engines.postgres.log import Log
from dr_pipelines.engines.postgres.wal import (
    END_OF_BACKUP_BYTES,
    HEADER_BYTES,
    FileKind,
    Lsn,
    Segment,
    is_end_of_backup,
    kind_of,
    read_header,
)
from dr_pipelines.errors import ObjectCorrupt, ObjectMissing, RestoreError
from dr_pipelines.repository.chains import chain_of
from dr_pipelines.repository.envelope import check
from dr_pipelines.repository.manifest import BackupSurvey, Manifest, Part, survey_backups
from dr_pipelines.repository.patience import patiently
from dr_pipelines.repository.store import Store
from dr_pipelines.timing import format_bytes

__all__ = ["Verification", "log_ends_backup", "verify"]

_NAMED = 5


@dataclass(frozen=True)
class Verification:
    """What reading one backup and the log after it back has shown."""

    backup_id: str
    checks: tuple[Check, ...]
    bytes_read: int
    recovery_point: datetime | None


def verify(
    store: Store,
    manifest: Manifest,
    *,
    workers: int,
    progress: Progress,
    among: BackupSurvey | None = None,
    chain: bool = True,
) -> Verification:
    """Read every part of the backup and every file of the log that follows it.

    Of an incremental backup every part of its chain is read, unless `chain` is off, and `chain_is_whole` says whether
    each backup is there that it is based on.

    Checks `parts_are_what_was_stored`, `log_is_whole` (no segment missing from the backup to the newest; a hole names
    the missing ones and the time that is lost), `log_files_are_what_was_stored` and, where the backup's own log is
    there, `log_is_this_backups` (it was written by the server that was backed up, not by another one of its names).
    Where the backup was chosen `among` others because it is the newest, `manifests_are_what_was_stored` says whether
    one that cannot be read was passed over; where the agent's position is damaged, `position_is_what_was_stored` fails.
    """
    links = chain_of(manifest, among or survey_backups(store)) if manifest.parent is not None else None
    backups = links.backups if links is not None and chain else (manifest,)
    wanted = [part for backup in backups for part in backup.parts]
    total = sum(backup.stored_bytes for backup in backups)
    done = 0
    bad: list[str] = []

    def read_part(part: Part) -> str | None:
        def read() -> None:
            with store.open(part.key) as stream:
                check(stream, expected_sha256=part.stored_sha256, decompress=True)

        try:
            patiently(read)
        except (ObjectCorrupt, ObjectMissing) as error:
            return str(error)
        return None

    with ThreadPoolExecutor(workers, "verify") as pool:
        for part, problem in zip(wanted, pool.map(read_part, wanted), strict=True):
            done += part.stored_size
            progress(done, total)
            if problem is not None:
                bad.append(problem)
    parts = Check(
        "parts_are_what_was_stored",
        not bad,
        _named(bad) or f"{len(wanted)} parts, {format_bytes(total)} stored",
    )
    others = _others(among) if among is not None else ()
    if links is not None:
        detail = links.broken or f"{len(links.backups)} backups, from {links.backups[0].backup_id} on"
        others += (Check("chain_is_whole", links.broken is None, detail),)
    try:
        coverage = patiently(lambda: cover(store, manifest))
    except (RestoreError, ObjectCorrupt) as error:
        whole = Check("log_is_whole", False, str(error))
        return Verification(manifest.backup_id, (parts, whole, *others), done, None)
    others += tuple(Check("position_is_what_was_stored", False, doubt) for doubt in coverage.doubts)
    whole = Check("log_is_whole", coverage.gap is None, coverage.gap or f"unbroken up to {coverage.chain.end}")
    log = Log(store, segment_size=coverage.segment_size)
    files, read = _log_files(log, coverage.chain, workers)
    own = _own_log(log, manifest)
    checks = (parts, whole, files, *own, *others)
    return Verification(manifest.backup_id, checks, done + read, coverage.recovery_point)


def log_ends_backup(log: Log, details: Mapping[str, str | int]) -> bool:
    """Whether the stored log says, where the backup stopped, that this backup ended there.

    Two servers of one system identifier write different segments of the same names. Raises ObjectMissing and
    ObjectCorrupt.
    """
    start, stop = Lsn.parse(str(details["start_lsn"])), Lsn.parse(str(details["stop_lsn"]))
    size = int(details["wal_segment_size"])
    segment = Segment.before(stop, int(details["timeline"]), size)
    begin, raw = segment.start, log.fetch(segment.name)
    if segment.number and stop - begin < HEADER_BYTES + END_OF_BACKUP_BYTES:
        begin, raw = segment.previous().start, log.fetch(segment.previous().name) + raw
    return is_end_of_backup(raw, begin, start, stop, size)


def _others(survey: BackupSurvey) -> tuple[Check, ...]:
    bad = [f"{backup_id}: {error.message}" for backup_id, error in survey.damaged]
    detail = _named(bad) or f"{len(survey.complete)} backups"
    return (Check("manifests_are_what_was_stored", not bad, detail),)


def _own_log(log: Log, manifest: Manifest) -> tuple[Check, ...]:
    try:
        own = patiently(lambda: log_ends_backup(log, manifest.details))
    except (ObjectCorrupt, ObjectMissing):
        # The checks of the log's files have said it.
        return ()
    stop = manifest.details["stop_lsn"]
    detail = f"the backup's end is in it at {stop}" if own else f"at {stop} it is another server's than the backup's"
    return (Check("log_is_this_backups", own, detail),)


def _log_files(log: Log, chain: Chain, workers: int) -> tuple[Check, int]:
    def read_file(name: str) -> tuple[str | None, int]:
        try:
            raw = patiently(lambda: log.fetch(name))
            if kind_of(name) is FileKind.SEGMENT:
                read_header(raw).check(name, len(raw))
        except (ObjectCorrupt, ObjectMissing) as error:
            return str(error), 0
        return None, len(raw)

    with ThreadPoolExecutor(workers, "verify") as pool:
        results = list(pool.map(read_file, chain.files))
    bad = [problem for problem, _ in results if problem is not None]
    detail = _named(bad) or f"{len(chain.files)} files of the log"
    return Check("log_files_are_what_was_stored", not bad, detail), sum(size for _, size in results)


def _named(problems: Iterable[str]) -> str:
    listed = list(problems)
    more = f"; and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
    return "; ".join(listed[:_NAMED]) + more
