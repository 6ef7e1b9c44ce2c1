"""A repository with one object of each kind, made up and the same on every day: what it costs no server to keep."""

import json
import re
import shutil
import socket
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from dr_pipelines.engines.postgres.chunks import Chunk
from dr_pipelines.engines.postgres.log import Log
from dr_pipelines.engines.postgres.position import LogMode, Position, ServerState
from dr_pipelines.engines.postgres.wal import Lsn
from dr_pipelines.reports.reading import read_record
from dr_pipelines.repository.approvals import Approvals, Decision, Request
from dr_pipelines.repository.envelope import wrap
from dr_pipelines.repository.locks import hold
from dr_pipelines.repository.manifest import (
    FORMATS,
    FileEntry,
    Manifest,
    Part,
    Range,
    clear_incomplete,
    part_key,
    write_manifest,
)
from dr_pipelines.repository.repository import Repository, open_repository
from dr_pipelines.repository.sealed import seal, unseal
from dr_pipelines.repository.store import Store
from dr_pipelines.repository.uses import note_use
from dr_pipelines.runbooks.execution import Event, EventKind, Execution, Journal
from dr_pipelines.runbooks.handover import Results
from dr_pipelines.settings import Settings
from dr_pipelines.timing import FakeClock
from tests.made_up import segment
from tests.reports.conftest import PLAN, make_document

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
SYSTEM = "services/database/7340000000000000001"
FULL, INCREMENTAL = "20260301T120000Z-full-9f86d0", "20260301T130000Z-incremental-77aa01"
ABANDONED, INTERRUPTED = "20260301T100000Z-full-000001", "20260301T140000Z-full-000002"
EXECUTION, SANDBOX = "20260301T150000Z-restore-abcdef", "20260301T160000Z-drill-fedcba"
FILES = {"base/1": bytes(range(60)) + bytes(90), "PG_VERSION": b"18\n", "empty": b"", "odd \udcff name": b"odd"}
CHANGED = {"base/INCREMENTAL.1": b"blocks that changed " * 3, "PG_VERSION": b"18\n"}
HISTORY = b"1\t0/500028\tno recovery target specified\n"
POSITION = Position(
    heartbeat_at=NOON + timedelta(seconds=5),
    at=NOON,
    lsn=Lsn.parse("0/7A2C8"),
    timeline=1,
    segment_size=1 << 20,
    stored_end=Lsn.parse("0/7A2C8"),
    mode=LogMode.STREAM,
    recovery_point=NOON,
    recovery_lsn=Lsn.parse("0/7A2C8"),
    quiet_xid=731,
    server=ServerState.UP,
    spool_files=0,
    spool_bytes=0,
    agent_version="0.1.0",
    agent_host="db1",
    problem="nothing to worry about",
)
LATER = POSITION.model_copy(update={"timeline": 2, "lsn": Lsn.parse("0/500384"), "problem": None})
FENCE = {"by": "ada", "measures": []}


def make_objects(folder: Path) -> None:
    """The repository, in `folder`/repository."""
    place = folder / "repository"
    repository = open_repository(str(place), settings=Settings(), create=True, clock=FakeClock(NOON))
    repository.remember_plan(PLAN)
    repository.records.put(read_record(make_document()).document())
    _execution(repository)
    repository.sandbox(SANDBOX).store.child(SYSTEM).put(f"log/00000001/{segment(3)[0]}", wrap(b"x").chunks)
    store, clock = repository.store.child(SYSTEM), FakeClock(NOON)
    put_backup(store, FULL, FILES)
    put_backup(store, INCREMENTAL, CHANGED, parent=FULL)
    store.put(part_key(ABANDONED, 0), wrap(b"half").chunks)
    clear_incomplete(store, NOON)
    store.put(part_key(INTERRUPTED, 0), wrap(b"half").chunks)
    _log(Log(store))
    note_use(store, EXECUTION, FULL, clock)
    with hold(repository.service("database"), "backup", purpose="full backup of database", clock=clock):
        pass
    anonymous(place, str(place))


def put_backup(store: Store, backup_id: str, files: dict[str, bytes], *, parent: str | None = None) -> None:
    """The worked example of the document, and some more: files cut into parts of 100 bytes."""
    entries = [FileEntry(path="base", kind="folder", mode=0o700, size=0)]
    pieces: list[tuple[Range, bytes]] = []
    for number, (path, content) in enumerate(files.items(), start=1):
        entries.append(FileEntry(path=path, kind="file", mode=0o400, size=len(content)))
        pieces += [
            (Range(number, start, len(content[start : start + 100])), content[start : start + 100])
            for start in range(0, len(content), 100)
        ]
    entries.append(FileEntry(path="link", kind="link", mode=0o777, size=0, link="base/1"))
    parts = []
    for number, held in enumerate((pieces[:1], pieces[1:])):
        wrapped = wrap(b"".join(data for _, data in held), codec="none" if number else "zstd")
        store.put(part_key(backup_id, number), wrapped.chunks)
        envelope = wrapped.envelope
        parts.append(
            Part(
                key=part_key(backup_id, number),
                codec=envelope.codec,
                encryption=envelope.encryption,
                stored_sha256=envelope.stored_sha256,
                stored_size=envelope.stored_size,
                raw_size=envelope.raw_size,
                ranges=tuple(piece for piece, _ in held),
            )
        )
    kind = "full" if parent is None else "incremental"
    manifest = Manifest(
        format_version=FORMATS[kind],
        backup_id=backup_id,
        service="database",
        engine="postgres",
        kind=kind,
        parent=parent,
        system_identifier=SYSTEM.rpartition("/")[2],
        server_version="18.1",
        tool_version="0.1.0",
        started_at=NOON - timedelta(minutes=1),
        stopped_at=NOON if parent is None else NOON + timedelta(hours=1),
        files=tuple(entries),
        parts=tuple(parts),
        details={
            "start_lsn": "0/300028",
            "stop_lsn": "0/300100",
            "timeline": 1,
            "start_segment": segment(3)[0],
            "stop_segment": segment(3)[0],
            "wal_segment_size": 1 << 20,
            "max_wal_size": 1 << 30,
            "major": 18,
            "superuser": "postgres",
        },
    )
    write_manifest(store, manifest)


def _log(log: Log) -> None:
    for number in (3, 4):
        log.put(*segment(number))
    name, raw = segment(5)
    log.put(f"{segment(3)[0]}.00000028.backup", b"START WAL LOCATION: 0/300028 (file ...)\n")
    log.put("00000002.history", HISTORY)
    log.put(f"{name}.partial", raw)
    # Of the new timeline's first segment there are chunks, of which one holds again what another one does.
    name, raw = segment(5, timeline=2)
    for start, end in ((0, 400), (400, 700), (400, 900)):
        log.put_chunk(name, Chunk(start, end), raw[start:end])
    for position in (POSITION, LATER):
        log.write_position(position)


def _execution(repository: Repository) -> None:
    execution = Execution(
        id=EXECUTION,
        kind="restore",
        runbook="database_restore",
        service="database",
        outage_started_at=NOON,
        started_at=NOON + timedelta(seconds=30),
        target_time=NOON,
        reason="the disk died",
        requested_by="ada",
        plan_sha256=None,
    )
    journal = Journal(repository.store, EXECUTION)
    journal.begin(execution)
    journal.append(Event(step="assess", kind=EventKind.STARTED, attempt=1, at=NOON, run_id="6f1c9c1e"))
    journal.append(
        Event(step="assess", kind=EventKind.DONE, attempt=1, at=NOON, run_id=None, seconds=1.5, detail="assessed")
    )
    approvals = Approvals(repository.store, EXECUTION)
    approvals.ask(
        Request(
            execution_id=EXECUTION,
            target="/srv/data",
            what="cutover",
            service="database",
            facts={"lost": "nothing"},
            confirmations={"old_server_is_gone": "the old server is gone"},
            requested_at=NOON,
            requested_by="ada",
            expires_at=NOON + timedelta(hours=1),
        )
    )
    approvals.answer(
        Decision.APPROVED,
        target="/srv/data",
        by="grace",
        now=NOON,
        reason="go on",
        confirmed=("old_server_is_gone",),
    )
    Results(repository.store, EXECUTION).put("fence", FENCE)


_NOT_THE_SAME = {
    "id": "2f0e6c1e-7a39-4a44-9d5c-0d8f4f3a2b11",
    "created_at": "2026-03-01T12:00:00.000000Z",
    "token": "0" * 32,
    "boot": "00000000-0000-0000-0000-000000000000",
    "namespace": "pid:[4026531836]",
    "pid": 4711,
    "started": "1000",
}


def anonymous(folder: Path, url: str) -> None:
    """Take out of the documents what is of this machine or of this moment; manifests have nothing of the kind."""
    names = {url: "/srv/repository", socket.gethostname(): "db1", tempfile.gettempdir(): "/srv"}
    for path in folder.rglob("*.json"):
        if path.name == "manifest.json":
            continue
        document = unseal(path.read_bytes(), what=str(path))
        text = json.dumps(document)
        for name, instead in names.items():
            text = text.replace(name, instead)
        document = json.loads(re.sub(r"/srv/dr-test-\w+", "/srv/dr", text))
        if path.name == "dr-repository.json" or "locks" in path.parts:
            document |= {name: value for name, value in _NOT_THE_SAME.items() if name in document}
        if "environment" in document:
            document["environment"]["operating_system"] = "Linux"
        path.write_bytes(seal(document))
    shutil.rmtree(folder / ".tmp", ignore_errors=True)
