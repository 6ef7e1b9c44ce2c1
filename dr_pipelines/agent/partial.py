"""Segments that a receiver still writes, shipped in chunks.

A receiver makes each new file full of zeros and writes it from its beginning on. So where the last byte is that is not
zero, all before it have been written: it is looked for first, and what lies before it is read after that. The log's own
last bytes may be zeros too: where nothing has come since the last look, the last record says itself where it ends.
"""

import os
from contextlib import suppress
from pathlib import Path

from dr_pipelines.agent.cluster import Cluster
from dr_pipelines.engines.postgres.chunks import Chunk, next_start, reach
from dr_pipelines.engines.postgres.wal import HEADER_BYTES, PAGE, Segment, record_end
from dr_pipelines.errors import ObjectConflict

__all__ = ["SUFFIX", "Partials"]

SUFFIX = ".partial"


class Partials:
    """What of the unfinished segments in one folder the repository holds."""

    def __init__(self, folder: Path, cluster: Cluster, *, level: int) -> None:
        self._folder, self._cluster, self._level = folder, cluster, level
        self._covers: dict[str, tuple[Chunk, ...]] = {}
        self._uncompared: dict[str, bytes] = {}
        """What an earlier agent stored of a segment, until all of that has been received here too and is the same."""
        self._ends: dict[str, int] = {}
        """Where the content ended at the last look."""

    def ship(self) -> int:
        """Store what was received since; returns the bytes.

        Raises ObjectCorrupt and ObjectConflict for a file that has no place in this cluster's log, RepositoryError and
        OSError.
        """
        names = self.names()
        for name in self._covers.keys() - set(names):
            del self._covers[name]
            self._uncompared.pop(name, None)
            self._ends.pop(name, None)
        return sum(map(self._ship, names))

    def names(self) -> list[str]:
        """The segments that are not full, oldest timeline first."""
        found = (entry.name for entry in os.scandir(self._folder) if entry.name.endswith(SUFFIX))
        return sorted(name.removesuffix(SUFFIX) for name in found if not name.startswith("."))

    def remove(self) -> None:
        """Remove the files; for when the server cannot go on with them, and all that they hold is stored."""
        for name in self.names():
            with suppress(FileNotFoundError):
                (self._folder / f"{name}{SUFFIX}").unlink()

    def _ship(self, name: str) -> int:
        segment = Segment.of_name(name, self._cluster.segment_size)
        try:
            file = os.open(self._folder / f"{name}{SUFFIX}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            # It is full by now, and has another name.
            return 0
        try:
            if name not in self._covers:
                self._look_up(name)
            self._compare(name, file)
            cover = self._covers[name]
            end = _content_end(file, segment.size)
            if end == self._ends.get(name):
                end = _with_trailing_zeros(file, end)
            else:
                self._ends[name] = end
            if end <= reach(cover):
                return 0
            chunk = Chunk(next_start(cover, end), end)
            raw = os.pread(file, chunk.size, chunk.start)
            self._cluster.check_head(name, os.pread(file, HEADER_BYTES, 0), os.fstat(file).st_size)
        finally:
            os.close(file)
        self._cluster.log.put_chunk(name, chunk, raw, level=self._level)
        kept = (*(earlier for earlier in cover if earlier.start < chunk.start), chunk)
        self._covers[name] = kept
        self._cluster.received(segment, end)
        for earlier in set(cover) - set(kept):
            self._cluster.log.drop_chunk(name, earlier)
        return end - reach(cover)

    def _look_up(self, name: str) -> None:
        """Find out what an earlier agent stored."""
        log = self._cluster.log
        cover = log.chunks(name)
        self._uncompared[name] = log.fetch_chunks(name, cover)
        log.drop_chunks(name, keep=cover)
        self._covers[name] = cover

    def _compare(self, name: str, file: int) -> None:
        """Raise ObjectConflict where what is stored is not the log that is received here."""
        stored = self._uncompared.get(name)
        if stored is None:
            return
        here = os.pread(file, _content_end(file, self._cluster.segment_size), 0)
        if here[: len(stored)] != stored[: len(here)]:
            raise ObjectConflict(
                f"what is stored of {name} is not what this server has sent",
                hint="do two servers of one system identifier stream to one place?",
            )
        if len(here) >= len(stored):
            del self._uncompared[name]


def _content_end(file: int, size: int) -> int:
    """Where the content of a file ends: behind its last byte that is not zero.

    Each page of the log begins with a mark that is not zero, and pages are written one after another.
    """
    low, high = 0, size // PAGE
    while low < high:
        middle = (low + high) // 2
        if os.pread(file, 2, middle * PAGE).strip(b"\0"):
            low = middle + 1
        else:
            high = middle
    last = (low - 1) * PAGE
    return last + len(os.pread(file, PAGE, last).rstrip(b"\0")) if low else 0


def _with_trailing_zeros(file: int, end: int) -> int:
    """Where the record that has its last byte that is not zero before `end` really ends; `end` where that is unknown.

    To be asked only when nothing is being written: a record that is on its way looks the same.
    """
    start = max(end - 1, 0) // PAGE * PAGE
    return start + (record_end(os.pread(file, PAGE, start), end - start) or end - start)
