"""File data cut into independent parts, and put together again: the same for every engine.

A part holds ranges of files. It is compressed, hashed and stored by itself, so parts travel several at a time, an
interrupted transfer goes on with the next part, and a large file does not wait for one thread. The hot loops are those
of hashlib's and zstandard's C code, which release the interpreter's lock; Python only passes buffers on.
"""

import contextlib
import io
import os
import queue
import re
import shutil
import threading
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from dr_pipelines.engines.layout import Layout, Write
from dr_pipelines.engines.writeback import Writeback
from dr_pipelines.errors import BackupError, ObjectCorrupt, RestoreError
from dr_pipelines.processes.proc import boot_id
from dr_pipelines.repository.envelope import Envelope, unwrap_to, wrap
from dr_pipelines.repository.manifest import FileEntry, Part, Range
from dr_pipelines.repository.patience import patiently
from dr_pipelines.repository.store import Store

__all__ = ["PartReader", "PartWriter", "Progress"]

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes to do; may be called from any thread, one call at a time."""


class PartWriter:
    """Cuts what is copied into it into parts and stores them, `workers` at a time.

    Memory is bounded by `workers + 1` buffers of `part_size` bytes, one more of what is put aside, and what compressing
    them needs. The first error of a worker is raised by the next call. Use as a context manager: leaving it after an
    exception waits for the workers and stores nothing more.
    """

    def __init__(self, store: Store, prefix: str, *, part_size: int, workers: int, level: int) -> None:
        self.files: list[FileEntry] = []
        self._store, self._prefix, self._level = store, prefix, level
        self._free: queue.SimpleQueue[bytearray] = queue.SimpleQueue()
        for _ in range(workers + 1):
            self._free.put(bytearray(part_size))
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="part")
        self._parts: list[Future[Part]] = []
        self._buffer: bytearray | None = None
        self._used = 0
        self._ranges: list[Range] = []
        self._part_size = part_size
        self._aside: list[tuple[int, int, bytes]] = []
        self._aside_bytes = 0
        self._failed = threading.Event()

    def __enter__(self) -> "PartWriter":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self._failed.set()
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)

    def add(self, entry: FileEntry) -> int:
        """Note a file, folder or link; returns its index for `copy`."""
        self.files.append(entry)
        return len(self.files) - 1

    def copy(self, stream: BinaryIO, index: int, size: int, offset: int = 0) -> None:
        """Copy bytes from the stream as the data of file `index`, from `offset` on, up to its `size`.

        Raises BackupError where the stream ends before.
        """
        while offset < size:
            if self._buffer is None:
                self._raise_failure()
                self._buffer = self._free.get()
            room = min(size - offset, len(self._buffer) - self._used)
            with memoryview(self._buffer)[self._used : self._used + room] as view:
                read = _read_fully(stream, view)
            if read < room:
                raise BackupError(f"the stream ended in the middle of {self.files[index].path}")
            self._ranges.append(Range(file=index, offset=offset, length=room))
            offset += room
            self._used += room
            if self._used == len(self._buffer):
                self._submit()

    def put_aside(self, index: int, offset: int, data: bytes) -> None:
        """Note data of a file that readers want without the rest: it comes into parts with its like."""
        self._aside.append((index, offset, data))
        self._aside_bytes += len(data)
        if self._aside_bytes >= self._part_size:
            self._store_aside()

    def _store_aside(self) -> None:
        self._submit()
        for index, offset, data in self._aside:
            self.copy(io.BytesIO(data), index, offset + len(data), offset)
        self._aside, self._aside_bytes = [], 0
        self._submit()

    def finish(self) -> tuple[Part, ...]:
        """Store what is left and wait until every part is stored."""
        self._store_aside()
        return tuple(part.result() for part in self._parts)

    def _submit(self) -> None:
        if not self._used:
            return
        assert self._buffer is not None
        buffer, used, ranges = self._buffer, self._used, tuple(self._ranges)
        self._buffer, self._used, self._ranges = None, 0, []
        self._parts.append(self._pool.submit(self._store_part, len(self._parts), buffer, used, ranges))

    def _store_part(self, number: int, buffer: bytearray, used: int, ranges: tuple[Range, ...]) -> Part:
        try:
            if self._failed.is_set():
                raise BackupError("stopped because another part could not be stored")
            key = f"{self._prefix}{number:06d}"
            with memoryview(buffer)[:used] as view:
                wrapped = wrap(view, level=self._level)
            patiently(lambda: self._store.put(key, wrapped.chunks))
            envelope = wrapped.envelope
            return Part(
                key=key,
                codec=envelope.codec,
                encryption=envelope.encryption,
                stored_sha256=envelope.stored_sha256,
                stored_size=envelope.stored_size,
                raw_size=envelope.raw_size,
                ranges=ranges,
            )
        except BaseException:
            self._failed.set()
            raise
        finally:
            self._free.put(buffer)

    def _raise_failure(self) -> None:
        if self._failed.is_set():
            for part in self._parts:
                if part.done() and (error := part.exception()) is not None:
                    raise error


def _read_fully(stream: BinaryIO, view: memoryview) -> int:
    done = 0
    while done < len(view):
        read = stream.readinto(view[done:])  # type: ignore[attr-defined]
        if not read:
            break
        done += read
    return done


class PartReader:
    """Writes a backup's files below a target folder, its parts fetched, written and checked `workers` at a time.

    `owner` is the (user, group) id that the files get. Each worker has a contiguous run of parts of its own, since
    threads that write to one file wait for each other. What is done is noted in `journal`, so that a second call after
    an interruption fetches only the rest; without a journal that can be believed, whatever is in the target goes first.
    """

    def __init__(
        self,
        store: Store,
        layout: Layout,
        target: Path,
        *,
        journal: Path,
        owner: tuple[int, int] | None,
        workers: int,
    ) -> None:
        self._store, self._layout, self._target = store, layout, target
        self._journal, self._owner, self._workers = journal, owner, workers
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._done_bytes = 0

    def restore(self, progress: Progress, meanwhile: Callable[[int], None] = lambda fetched: None) -> int:
        """Write everything; returns the number of parts that were fetched now. Everything is on disk on return.

        `meanwhile` is called with that number when all is written, while the last of it is brought to disk.
        """
        with Writeback(self._target) as writeback:
            fetched = self._write(writeback, progress)
            with ThreadPoolExecutor(1, "writeback") as pool:
                on_disk = pool.submit(self._finish, writeback)
                meanwhile(fetched)
                on_disk.result()
        return fetched

    def read_back(self) -> tuple[str, ...]:
        """Read what went into files put together of several backups; returns the parts that it differs from."""
        done = self._already_done()

        def differs(number: int) -> bool:
            checksum = 0
            with contextlib.ExitStack() as kept:
                opened: dict[int, BinaryIO] = {}
                for file, offset, _, length in self._layout.writes(number):
                    if file not in self._layout.assembled:
                        continue
                    if file not in opened:
                        path = self._target / self._layout.files[file].path
                        opened[file] = kept.enter_context(open(path, "rb", buffering=0))
                    checksum = zlib.crc32(os.pread(opened[file].fileno(), length, offset), checksum)
            return checksum != done.get(number)

        with ThreadPoolExecutor(self._workers, "read") as pool:
            wrong = pool.map(differs, range(len(self._layout.parts)))
            return tuple(part.key for part, differ in zip(self._layout.parts, wrong, strict=True) if differ)

    def forget(self) -> None:
        """What was written is not to be believed: the next `restore` begins anew."""
        self._journal.unlink(missing_ok=True)

    def _finish(self, writeback: Writeback) -> None:
        try:
            writeback.finish()
        except OSError:
            # What the disk refused, the page cache may show until it is needed, and the kernel tells of it only once.
            self.forget()
            raise

    def _write(self, writeback: Writeback, progress: Progress) -> int:
        done = self._already_done()
        if not done:
            self._clear()
            self._create_entries()
        parts = self._layout.parts
        todo = [number for number in range(len(parts)) if number not in done]
        self._done_bytes = sum(parts[number].raw_size for number in done)
        share = -(-len(todo) // self._workers) if todo else 0
        runs = [todo[start : start + share] for start in range(0, len(todo), share)] if share else []
        # Written anew: what would be appended to a torn last line would be another number.
        draft = self._journal.with_name(f".{self._journal.name}.new")
        draft.write_text("".join(f"{line}\n" for line in (boot_id(), *(f"{part} {sum}" for part, sum in done.items()))))
        draft.rename(self._journal)
        with open(self._journal, "ab", buffering=0) as journal, ThreadPoolExecutor(self._workers, "part") as pool:
            workers = [pool.submit(self._restore_run, run, journal, writeback, progress) for run in runs]
            try:
                for worker in workers:
                    worker.result()
            except BaseException:
                self._stop.set()
                raise
        return len(todo)

    def _already_done(self) -> dict[int, int]:
        """The parts that are written, each with the checksum of what of it went into files put together of several."""
        try:
            # What follows the last line's end was not written to its end.
            boot, *lines = self._journal.read_text().split("\n")[:-1]
        except (FileNotFoundError, ValueError):
            return {}
        # What was written before a crash of the machine may never have reached the disk.
        matches = (re.fullmatch(r"(\d+) (\d+)", line) for line in lines)
        return {int(match[1]): int(match[2]) for match in matches if match} if boot == boot_id() else {}

    def _clear(self) -> None:
        """Begin anew: what an attempt left of which nothing is certain may be more than files that are overwritten."""
        for entry in self._target.iterdir():
            if entry in (self._journal, self._journal.parent):
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def _create_entries(self) -> None:
        for number, entry in enumerate(self._layout.files):
            path = self._target / entry.path
            if entry.kind == "folder":
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            elif entry.kind == "file":
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
                with open(os.open(path, flags, 0o600), "wb") as file:
                    file.write(self._layout.contents.get(number, b""))
                    if number in self._layout.assembled:
                        file.truncate(entry.size)
            else:
                raise RestoreError(f"{entry.path} is a {entry.kind}; only files and folders are restored")
            os.chmod(path, entry.mode & 0o777)
            if self._owner is not None:
                os.chown(path, *self._owner, follow_symlinks=False)

    def _restore_run(self, run: Sequence[int], journal: BinaryIO, writeback: Writeback, progress: Progress) -> None:
        try:
            with _Files(self._target, self._layout.files, writeback) as files:
                for number in run:
                    if self._stop.is_set():
                        return
                    part = self._layout.parts[number]
                    checksum = self._restore_part(part, self._layout.writes(number), files)
                    with self._lock:
                        journal.write(f"{number} {checksum}\n".encode())
                        self._done_bytes += part.raw_size
                        progress(self._done_bytes, self._layout.raw_bytes)
        except BaseException:
            self._stop.set()
            raise

    def _restore_part(self, part: Part, writes: Sequence[Write], files: "_Files") -> int:
        """Returns the checksum of what went into files put together of several backups."""

        def fetch() -> tuple[Envelope, int]:
            placing = _Placing(writes, files, self._layout.assembled)
            with self._store.open(part.key) as stream:
                envelope = unwrap_to(stream, placing.take, max_raw=part.raw_size, expected_sha256=part.stored_sha256)
            return envelope, placing.checksum

        envelope, checksum = patiently(fetch)
        if envelope.raw_size != part.raw_size:
            raise ObjectCorrupt(f"{part.key} holds {envelope.raw_size} bytes, its manifest says {part.raw_size}")
        return checksum


class _Placing:
    """Writes the data of one part, which it is given piece by piece, to its places."""

    def __init__(self, writes: Sequence[Write], files: "_Files", summed: frozenset[int]) -> None:
        self.checksum = 0
        """Of what went into the files with these indexes."""
        self._files, self._summed = files, summed
        self._writes = iter(writes)
        self._write = next(self._writes, None)
        self._position = 0

    def take(self, data: memoryview) -> None:
        """The next piece."""
        begin, self._position = self._position, self._position + len(data)
        while (write := self._write) is not None and write.start < self._position:
            first, last = max(write.start, begin), min(write.start + write.length, self._position)
            piece = data[first - begin : last - begin]
            self._files.write(write, first - write.start, piece)
            if write.file in self._summed:
                self.checksum = zlib.crc32(piece, self.checksum)
            if last < write.start + write.length:
                return
            self._write = next(self._writes, None)


class _Files:
    """The files of one worker's run: the last one stays open, since ranges of a file follow one another."""

    def __init__(self, target: Path, entries: Sequence[FileEntry], writeback: Writeback) -> None:
        self._target, self._entries, self._writeback = target, entries, writeback
        self._open: tuple[int, int] | None = None

    def __enter__(self) -> "_Files":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def write(self, write: Write, done: int, data: memoryview) -> None:
        """Write what follows the `done` bytes of it that were written before."""
        if self._open is None or self._open[0] != write.file:
            self._close()
            path = self._target / self._entries[write.file].path
            self._open = (write.file, os.open(path, os.O_WRONLY | os.O_NOFOLLOW))
        while data:
            written = os.pwrite(self._open[1], data, write.offset + done)
            data, done = data[written:], done + written
        if done == write.length:
            self._writeback.begin(self._open[1], write.offset, write.length)

    def _close(self) -> None:
        if self._open is not None:
            os.close(self._open[1])
            self._open = None
