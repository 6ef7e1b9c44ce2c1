"""What an estimate of a restore rests on, looked up: records of earlier executions, or a short probe of the repository.

No estimate is worth a restore: where something of this cannot be read, the estimate says so and knows less.
"""

import socket
from collections.abc import Callable, Iterator
from itertools import islice

import zstandard
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from dr_pipelines.errors import RepositoryError
from dr_pipelines.repository.manifest import read_manifest
from dr_pipelines.repository.records import Records
from dr_pipelines.repository.store import Store
from dr_pipelines.runbooks.estimate import (
    STEPS,
    Past,
    Probe,
    RestoreEstimate,
    estimate_restore,
    remaining,
    rounded,
)
from dr_pipelines.timing import Clock

__all__ = ["countdown", "estimate_from", "probe_backup", "read_past"]

_LOOKED_AT = 20
"""So many of the newest records are looked at for those of one service."""
_PROBE_SECONDS = 1.0
_STEP, _MAX_HEADER, _MAX_WINDOW = 1 << 20, 4096, 1 << 23
_FIRST_TOLD, _TOLD_EVERY = 10.0, 30.0
"""Seconds into a step after which the remaining time is told, and between two times."""


class _Step(BaseModel):
    model_config = ConfigDict(extra="ignore")

    name: str
    attempt: int
    outcome: str
    seconds: float | None


class _Backup(BaseModel):
    model_config = ConfigDict(extra="ignore")

    based_on: tuple[str, ...] = ()
    raw_bytes: int
    log_bytes: int


class _Environment(BaseModel):
    model_config = ConfigDict(extra="ignore")

    host: str


class _Record(BaseModel):
    """What of a record matters here; so those of earlier and later versions do too."""

    model_config = ConfigDict(extra="ignore")

    record_id: str
    service: str
    ended_at: AwareDatetime
    steps: tuple[_Step, ...]
    backup: _Backup | None
    environment: _Environment


def estimate_from(
    records: Records,
    service: str,
    store: Store,
    backup_id: str,
    *,
    chained: bool,
    raw_bytes: int,
    log_bytes: int,
    clock: Clock,
) -> RestoreEstimate:
    """The estimate for a restore of a backup, which lies in `store`, and of so much log; `chained` where it takes more
    than one backup, and then `raw_bytes` is of all of them.
    """
    past = tuple(read_past(records, service, chained=chained))
    known = any(each.step == "restore_latest_backup" for each in past)
    sizes = {"restore_latest_backup": raw_bytes, "apply_wal": log_bytes, "validate": raw_bytes}
    return estimate_restore(sizes, past, None if known else probe_backup(store, backup_id, clock), clock.wall())


def read_past(records: Records, service: str, *, chained: bool) -> Iterator[Past]:
    """What the steps took in the newest executions for this service, newest first; one that cannot be read is none.

    Of a chain of backups each is fetched and they are made one: that is measured for itself.
    """
    here = socket.gethostname()
    for record in _newest(records):
        backup = record.backup
        if record.service != service or backup is None or bool(backup.based_on) is not chained:
            continue
        attempts = [step.name for step in record.steps]
        sizes = {"restore_latest_backup": backup.raw_bytes, "apply_wal": backup.log_bytes, "validate": backup.raw_bytes}
        for step in record.steps:
            # Of a second attempt nobody knows how much the first one had left to it.
            if step.name in STEPS and step.outcome == "done" and step.seconds and attempts.count(step.name) == 1:
                yield Past(
                    record_id=record.record_id,
                    at=record.ended_at,
                    step=step.name,
                    bytes=sizes.get(step.name, 0),
                    seconds=step.seconds,
                    here=record.environment.host == here,
                )


def _newest(records: Records) -> Iterator[_Record]:
    try:
        for record_id in islice(records.ids(), _LOOKED_AT):
            try:
                yield _Record.model_validate(records.get(record_id))
            except (ValidationError, RepositoryError):
                continue  # of another kind, or damaged, which the report tells of
    except RepositoryError:
        return


def probe_backup(store: Store, backup_id: str, clock: Clock) -> Probe | None:
    """Fetch and unpack what a second is enough for, of the largest part; None where that cannot be read."""
    got = 0
    try:
        manifest = read_manifest(store, backup_id)
        if not manifest.parts:
            return None
        part = max(manifest.parts, key=lambda part: part.raw_size)
        started = clock.monotonic()
        with store.open(part.key) as stream:
            stream.readline(_MAX_HEADER)
            # Piece by piece, so that nothing that is stored there makes it take more memory than that.
            unpack = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
            reader = unpack.stream_reader(stream, closefd=False) if part.codec == "zstd" else stream
            while clock.monotonic() - started < _PROBE_SECONDS and (piece := reader.read(_STEP)):
                got += len(piece)
    except (RepositoryError, zstandard.ZstdError):
        return None
    return Probe(got, clock.monotonic() - started)


def countdown(
    estimate: RestoreEstimate | None, step: str, what: str, clock: Clock, tell: Callable[[str], None]
) -> Callable[[int, int], None]:
    """To be called with what is done of a step: tells now and then how long all of it will go on, by an estimate."""
    started = clock.monotonic()
    due = started + _FIRST_TOLD

    def told(done: int, total: int) -> None:
        nonlocal due
        now = clock.monotonic()
        if estimate is None or now < due or total <= 0:
            return
        due = now + _TOLD_EVERY
        left = remaining(estimate, step, now - started, done, total)
        tell(f"about {rounded(left)} left, by an estimate: {100 * done // total} % of {what}")

    return told
