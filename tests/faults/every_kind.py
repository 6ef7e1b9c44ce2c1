"""A small sound repository that holds an object of every kind, made without a server, to be damaged."""

import io
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from dr_pipelines.engines.parts import PartWriter
from dr_pipelines.engines.postgres.chunks import Chunk
from dr_pipelines.engines.postgres.log import Log
from dr_pipelines.engines.postgres.position import Position, ServerState
from dr_pipelines.engines.postgres.wal import Lsn, Segment
from dr_pipelines.repository.identifiers import timed_id
from dr_pipelines.repository.locks import hold
from dr_pipelines.repository.manifest import FileEntry, Manifest, write_manifest
from dr_pipelines.repository.repository import Repository, open_repository
from dr_pipelines.repository.sealed import seal
from dr_pipelines.repository.store import Store
from dr_pipelines.runbooks.execution import Event, EventKind, Execution, Journal
from dr_pipelines.settings import Settings
from dr_pipelines.timing import SystemClock
from tests import archived

GOLDEN = Path(__file__).parents[1] / "repository" / "formats" / "1-objects" / "repository"
CHUNKS = (Chunk(0, 4000), Chunk(4000, 6000))
"""What is stored of the newest segment."""
SERVICE, SYSTEM = "database", 7340000000000000001
SIZE = 1 << 20
FILES = {
    "PG_VERSION": b"18\n",
    "backup_label": b"START WAL LOCATION: 0/500028 (file 000000010000000000000005)\n",
    "base/1/16384": os.urandom(150_000),
    "global/pg_control": bytes(8192),
}
PLAN = """\
plan_version: 1
tiers: [{name: critical, title: Critical, rto: 1h, rpo: 5m}]
services:
  - name: database
    title: Database
    tier: critical
    engine: postgres
    backup: {full: "0 3 * * *", log: continuous, archive_timeout: 60s}
    validation:
      smoke_queries: [{name: one, sql: SELECT 1, expect: "= 1"}]
      application_query: SELECT 1
"""


def _segment(number: int, timeline: int, *, ended: tuple[Lsn, Lsn] | None = None) -> tuple[str, bytes]:
    """A segment that no server wrote; with `ended` it says that the backup begun at the first stopped at the second."""
    segment = Segment(timeline, number, SIZE)
    content = bytearray(os.urandom(8192) + bytes(SIZE - 8192))
    struct.pack_into("<HHIQI4xQII", content, 0, 0xD118, 0x0007, timeline, segment.start.value, 0, SYSTEM, SIZE, 8192)
    if ended is not None:
        start, stop = ended
        struct.pack_into("<Q", content, stop - segment.start - 14, start.value)
    return segment.name, bytes(content)


@dataclass
class EveryKind:
    """Two backups, the later of two parts; a log over a promotion that ends in chunks; and all that lies around."""

    repository: Repository
    older: Manifest = field(init=False)
    newer: Manifest = field(init=False)
    execution: str = field(init=False)
    record: str = field(init=False)

    @property
    def folder(self) -> Path:
        return Path(self.repository.url)

    @property
    def store(self) -> Store:
        return self.repository.service(SERVICE).child(str(SYSTEM))

    @property
    def keys(self) -> dict[str, str]:
        """One object of each kind, by what it is."""
        at = f"services/{SERVICE}/{SYSTEM}"
        segments = [Segment(1, 5, SIZE).name, Segment(2, 6, SIZE).name]
        return {
            "root": "dr-repository.json",
            "lock": f"services/{SERVICE}/locks/backup/00000001.json",
            "manifest": f"{at}/backups/{self.newer.backup_id}/manifest.json",
            "part": f"{at}/{self.newer.parts[1].key}",
            "tombstone": next(iter(self._named("abandoned"))),
            "segment": f"{at}/log/00000001/{segments[0]}",
            "chunk": f"{at}/log/00000002/{Segment(2, 8, SIZE).name}.chunks/{CHUNKS[1].name}",
            "history": f"{at}/log/00000002/00000002.history",
            "backup note": f"{at}/log/00000001/{segments[0]}.00000028.backup",
            "partial segment": f"{at}/log/00000001/{Segment(1, 6, SIZE).name}.partial",
            "position": f"{at}/position.json",
            "position that was left": f"{at}/positions/00000001.json",
            "execution": f"executions/{self.execution}/execution.json",
            "event": f"executions/{self.execution}/events/000000.json",
            "approval": f"executions/{self.execution}/approvals/000001/request.json",
            "answer": f"executions/{self.execution}/approvals/000001/answer.json",
            "fence": f"executions/{self.execution}/cutover/fence.json",
            "use": f"{at}/uses/{self.execution}.json",
            "record": f"records/{self.record[:4]}/{self.record[4:6]}/{self.record}.json",
            "plan": next(found.key for found in self.repository.store.list("plans/") if found.key.endswith(".yaml")),
            "plan pointer": "plans/current.json",
        }

    def _named(self, text: str) -> Iterator[str]:
        for found in self.repository.store.list("services/"):
            if found.key.endswith("manifest.json") and text.encode() in self.repository.store.get(found.key):
                yield found.key

    def copy(self, folder: Path) -> "EveryKind":
        """The same once more, in a new folder."""
        copied = EveryKind(archived.copy_of(self.repository, folder))
        copied.older, copied.newer, copied.execution, copied.record = (
            self.older,
            self.newer,
            self.execution,
            self.record,
        )
        return copied


def make(folder: Path) -> EveryKind:
    """The repository, in a new folder. Its newest backup stopped some minutes ago."""
    made = EveryKind(open_repository(str(folder), settings=Settings(), create=True))
    now = datetime.now(UTC)
    with hold(made.repository.service(SERVICE), "backup", purpose="a backup", clock=SystemClock()):
        made.older = _back_up(made.store, now - timedelta(minutes=20), 3)
        made.newer = _back_up(made.store, now - timedelta(minutes=10), 5)
    _leave_tombstone(made.store, now)
    _fill_log(made)
    _tell_of_the_timeline_before(made.store, now)
    tell_position(made.store, now)
    made.repository.remember_plan(PLAN)
    made.execution = _execute(made.repository, now)
    made.record = timed_id("backup", now)
    made.repository.records.put({"record_id": made.record, "record_version": 1, "service": SERVICE, "kind": "backup"})
    _take_from_golden(made)
    return made


def _back_up(store: Store, stopped_at: datetime, number: int) -> Manifest:
    """A complete backup whose log is the segment `number` of timeline 1."""
    backup_id = timed_id("full", stopped_at - timedelta(minutes=1))
    with PartWriter(store, f"backups/{backup_id}/parts/", part_size=100_000, workers=2, level=1) as writer:
        writer.add(FileEntry(path="base", kind="folder", mode=0o700, size=0))
        for path, content in FILES.items():
            index = writer.add(FileEntry(path=path, kind="file", mode=0o600, size=len(content)))
            writer.copy(io.BytesIO(content), index, len(content))
        parts = writer.finish()
    start, stop = _bounds(number)
    manifest = Manifest(
        backup_id=backup_id,
        service=SERVICE,
        engine="postgres",
        system_identifier=str(SYSTEM),
        server_version="18.6",
        tool_version="1",
        started_at=stopped_at - timedelta(minutes=1),
        stopped_at=stopped_at,
        files=tuple(writer.files),
        parts=parts,
        details={
            "start_lsn": str(start),
            "stop_lsn": str(stop),
            "timeline": 1,
            "start_segment": Segment(1, number, SIZE).name,
            "stop_segment": Segment(1, number, SIZE).name,
            "wal_segment_size": SIZE,
            "superuser": "postgres",
            "major": 18,
        },
    )
    write_manifest(store, manifest)
    return manifest


def _bounds(number: int) -> tuple[Lsn, Lsn]:
    segment = Segment(1, number, SIZE)
    return segment.start + 40, segment.start + 4000


def _leave_tombstone(store: Store, now: datetime) -> None:
    backup_id = timed_id("full", now - timedelta(minutes=15))
    tombstone = seal({"format_version": 1, "backup_id": backup_id, "abandoned": True})
    store.put(f"backups/{backup_id}/manifest.json", [tombstone])


def _fill_log(made: EveryKind) -> None:
    log = Log(made.store)
    for number in (3, 4, 5):
        log.put(*_segment(number, 1, ended=_bounds(number)))
    log.put(f"{Segment(1, 5, SIZE).name}.00000028.backup", b"START WAL LOCATION: 0/500028\n")
    name, content = _segment(6, 1)
    log.put(f"{name}.partial", content)
    log.put("00000002.history", f"1\t{Segment(1, 6, SIZE).start + 8192}\tno recovery target specified\n".encode())
    for number in (6, 7):
        log.put(*_segment(number, 2))
    name, content = _segment(8, 2)
    for chunk in CHUNKS:
        log.put_chunk(name, chunk, content[chunk.start : chunk.end])
    for found in (*made.store.list("log/00000001/"), *made.store.list("log/00000002/")):
        moment = (made.newer.stopped_at + timedelta(seconds=1)).timestamp()
        os.utime(f"{made.store.url}/{found.key}", (moment, moment))


def _tell_of_the_timeline_before(store: Store, now: datetime) -> None:
    """What an agent had said last of timeline 1."""
    left = Position(
        heartbeat_at=now - timedelta(minutes=5),
        timeline=1,
        recovery_point=now - timedelta(minutes=5),
        recovery_lsn=Segment(1, 5, SIZE).end,
        server=ServerState.AWAY,
        spool_files=0,
        spool_bytes=0,
        agent_version="1",
        agent_host="db1",
    )
    store.put("positions/00000001.json", [seal(left.model_dump(mode="json"))])


def tell_position(store: Store, now: datetime | None = None) -> None:
    """The agent has just said that everything is stored."""
    now, end = now or datetime.now(UTC), Segment(2, 8, SIZE).start + CHUNKS[-1].end
    Log(store).write_position(
        Position(
            heartbeat_at=now,
            at=now,
            lsn=end,
            timeline=2,
            segment_size=SIZE,
            stored_end=end,
            recovery_point=now - timedelta(seconds=20),
            recovery_lsn=end,
            server=ServerState.UP,
            spool_files=0,
            spool_bytes=0,
            agent_version="1",
            agent_host="db1",
        )
    )


def _take_from_golden(made: EveryKind) -> None:
    """What nothing here looks into: as it was kept of this format."""
    for kind in ("approval", "answer", "fence", "use"):
        key = made.keys[kind]
        (kept,) = GOLDEN.rglob(f"{key.split('/')[-2]}/*.json" if kind == "use" else "/".join(key.split("/")[2:]))
        made.repository.store.put(key, [kept.read_bytes()])


def _execute(repository: Repository, now: datetime) -> str:
    execution_id = timed_id("restore", now)
    journal = Journal(repository.store, execution_id)
    journal.begin(
        Execution(
            id=execution_id,
            kind="restore",
            runbook="database_restore",
            service=SERVICE,
            outage_started_at=None,
            started_at=now,
            target_time=None,
            reason="tests",
            requested_by="tests",
            plan_sha256=None,
        )
    )
    journal.append(Event(step="assess", kind=EventKind.STARTED, attempt=1, at=now, run_id=None))
    return execution_id
