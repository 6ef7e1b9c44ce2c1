"""What a repository holds of a cluster that never ran, for tests that need no server."""

import os
import random
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dr_pipelines.engines.postgres.log import Log
from dr_pipelines.engines.postgres.position import Position, ServerState
from dr_pipelines.engines.postgres.wal import Lsn, Segment
from dr_pipelines.errors import RepositoryUnreachable
from dr_pipelines.repository import patience
from dr_pipelines.repository.folder import FolderStore
from dr_pipelines.repository.identifiers import timed_id
from dr_pipelines.repository.manifest import Manifest, write_manifest


def segment(number: int, *, timeline: int = 1, system: int = 7340000000000000001) -> tuple[str, bytes]:
    """Name and content of a segment of 1 MiB that no server has written."""
    made = Segment(timeline, number, 1 << 20)
    header = struct.pack("<HHIQI4xQII", 0xD118, 0x0007, timeline, made.start.value, 0, system, made.size, 8192)
    return made.name, header + random.Random(f"{number} {timeline}").randbytes(1000) + bytes(made.size - 1040)


@dataclass
class MadeUpArchive:
    """What the repository holds of a cluster that never ran: backups without files, segments without records."""

    store: FolderStore
    began_at: datetime = datetime(2026, 3, 1, tzinfo=UTC)

    def at(self, minutes: float) -> datetime:
        return self.began_at + timedelta(minutes=minutes)

    def backup(self, minutes: float, first: int, last: int, *, timeline: int = 1) -> Manifest:
        """A complete backup that stopped then, and needs these segments."""
        manifest = Manifest(
            backup_id=timed_id("full", self.at(minutes)),
            service="database",
            engine="postgres",
            system_identifier="7340000000000000001",
            server_version="18.6",
            tool_version="1",
            started_at=self.at(minutes - 1),
            stopped_at=self.at(minutes),
            files=(),
            parts=(),
            details={
                "start_lsn": str(Segment(1, first, 1 << 20).start + 40),
                "stop_lsn": str(Segment(1, last, 1 << 20).start + 4000),
                "timeline": timeline,
                "start_segment": Segment(timeline, first, 1 << 20).name,
                "stop_segment": Segment(timeline, last, 1 << 20).name,
                "wal_segment_size": 1 << 20,
                "superuser": "postgres",
                "major": 18,
            },
        )
        write_manifest(self.store, manifest)
        return manifest

    def segments(self, *numbers: int, timeline: int = 1, later: float = 0) -> None:
        """Segment n was stored n minutes after the beginning, or later."""
        for number in numbers:
            name, raw = segment(number, timeline=timeline)
            Log(self.store).put(name, raw)
            self._store_at(f"log/{name[:8]}/{name}", number + later)

    def history(self, minutes: float, timeline: int, left_at: float, *, reason: str = "before a time") -> None:
        """That timeline left the first one so many segments into its log, and began then."""
        text = f"1\t{Lsn(int(left_at * (1 << 20)))}\t{reason}\n"
        Log(self.store).put(f"{timeline:08X}.history", text.encode())
        self._store_at(f"log/{timeline:08X}/{timeline:08X}.history", minutes)

    def _store_at(self, key: str, minutes: float) -> None:
        moment = self.at(minutes).timestamp()
        os.utime(f"{self.store.url}/{key}", (moment, moment))

    def key(self, number: int) -> str:
        name = Segment(1, number, 1 << 20).name
        return f"log/{name[:8]}/{name}"

    def position(
        self, minutes: float, end: int, *, timeline: int | None = None, server: ServerState = ServerState.UP
    ) -> None:
        """At that time the agent knew that everything was stored, up to the end of a segment."""
        moment, log = self.at(minutes), Log(self.store)
        log.read_position()  # what an agent does first
        log.write_position(
            Position(
                heartbeat_at=moment,
                at=moment,
                timeline=timeline,
                stored_end=Segment(1, end, 1 << 20).end,
                recovery_point=moment,
                recovery_lsn=Segment(1, end, 1 << 20).start + 5000 if timeline is not None else None,
                server=server,
                spool_files=0,
                spool_bytes=0,
                agent_version="1",
                agent_host="db1",
            )
        )


def falter(monkeypatch: pytest.MonkeyPatch, operations: Mapping[str, str]) -> set[tuple[str, str]]:
    """Each of these operations of a folder, on each key that its pattern finds, does not answer the first time.

    Returns what has not been answered so far. Whoever is patient asks again at once.
    """
    refused: set[tuple[str, str]] = set()

    def first_refused(name: str, pattern: str) -> None:
        answer = getattr(FolderStore, name)

        def operation(store: FolderStore, key: str, *arguments: Any) -> Any:
            if re.search(pattern, key) and (name, key) not in refused:
                refused.add((name, key))
                raise RepositoryUnreachable(f"503 Slow Down: {key}")
            return answer(store, key, *arguments)

        monkeypatch.setattr(FolderStore, name, operation)

    for name, pattern in operations.items():
        first_refused(name, pattern)
    monkeypatch.setattr(patience, "PAUSES", (0.0, 0.0))
    return refused
