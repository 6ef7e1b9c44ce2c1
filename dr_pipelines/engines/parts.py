"""File data cut into independent parts, and put together again: the same for every engine.

A part holds ranges of files. It is compressed, hashed and stored by itself, so parts travel several at a time, an
interrupted transfer goes on with the next part, and a large file does not wait for one thread. The hot loops are those
of hashlib's and zstandard's C code, which release the interpreter's lock; Python only passes buffers on.
"""

import os
import queue
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from dr_pipelines.engines.writeback import Writeback
from dr_pipelines.errors import BackupError, ObjectCorrupt, RestoreError
from dr_pipelines.processes.proc import boot_id
from dr_pipelines.repository.envelope import Envelope, unwrap_into, wrap
from dr_pipelines.repository.manifest import FileEntry, Manifest, Part, Range
from dr_pipelines.repository.patience import patiently
from dr_pipelines.repository.store import Store

__all__ = ["PartReader", "PartWriter", "Progress"]

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes to do; may be called from any thread, one call at a time."""


class PartWriter:
    """Cuts what is copied into it into parts and stores them, `workers` at a time.

    Memory is bounded by `workers + 1` buffers of `part_size` bytes and what compressing them needs. The first error of
    a worker is raised by the next call. Use as a context manager: leaving it after an exception waits for the workers
    and stores nothing more.
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

    def copy(self, stream: BinaryIO, index: int, size: int) -> None:
        """Copy `size` bytes from the stream as the data of file `index`. Raises BackupError where it ends before."""
        offset = 0
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

    def finish(self) -> tuple[Part, ...]:
        """Store what is left and wait until every part is stored."""
        if self._used:
            self._submit()
        return tuple(part.result() for part in self._parts)

    def _submit(self) -> None:
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
    """Writes a backup's files below a target folder, its parts fetched, checked and written `workers` at a time.

    `owner` is the (user, group) id that the files get. Each worker has a contiguous run of parts of its own, since
    threads that write to one file wait for each other. What is done is noted in `journal`, so that a second call after
    an interruption fetches only the rest; without a journal that can be believed, whatever is in the target goes first.
    """

    def __init__(
        self,
        store: Store,
        manifest: Manifest,
        target: Path,
        *,
        journal: Path,
        owner: tuple[int, int] | None,
        workers: int,
    ) -> None:
        self._store, self._manifest, self._target = store, manifest, target
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

    def write(self, progress: Progress) -> int:
        """As `restore`, of files that are needed for a while only: nothing is brought to disk."""
        return self._write(None, progress)

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

    def _write(self, writeback: Writeback | None, progress: Progress) -> int:
        done = self._already_done()
        if not done:
            self._clear()
            self._create_entries()
        parts = self._manifest.parts
        todo = [number for number in range(len(parts)) if number not in done]
        self._done_bytes = sum(parts[number].raw_size for number in done)
        share = -(-len(todo) // self._workers) if todo else 0
        runs = [todo[start : start + share] for start in range(0, len(todo), share)] if share else []
        # Written anew: what would be appended to a torn last line would be another number.
        draft = self._journal.with_name(f".{self._journal.name}.new")
        draft.write_text("".join(f"{line}\n" for line in (boot_id(), *sorted(done))))
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

    def _already_done(self) -> set[int]:
        try:
            # What follows the last line's end was not written to its end.
            boot, *lines = self._journal.read_text().split("\n")[:-1]
        except (FileNotFoundError, ValueError):
            return set()
        # What was written before a crash of the machine may never have reached the disk.
        return {int(line) for line in lines if line.isdigit()} if boot == boot_id() else set()

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
        for entry in self._manifest.files:
            path = self._target / entry.path
            if entry.kind == "folder":
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            elif entry.kind == "file":
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
                os.close(os.open(path, flags, 0o600))
            else:
                raise RestoreError(f"{entry.path} is a {entry.kind}; only files and folders are restored")
            os.chmod(path, entry.mode & 0o777)
            if self._owner is not None:
                os.chown(path, *self._owner, follow_symlinks=False)

    def _restore_run(
        self, run: Sequence[int], journal: BinaryIO, writeback: Writeback | None, progress: Progress
    ) -> None:
        parts = [self._manifest.parts[number] for number in run]
        buffer = bytearray(max(part.raw_size for part in parts))
        scratch = bytearray(1 << 20)
        try:
            with _Files(self._target, self._manifest.files, writeback) as files:
                for number, part in zip(run, parts, strict=True):
                    if self._stop.is_set():
                        return
                    self._restore_part(part, buffer, scratch, files)
                    with self._lock:
                        journal.write(f"{number}\n".encode())
                        self._done_bytes += part.raw_size
                        progress(self._done_bytes, self._manifest.raw_bytes)
        except BaseException:
            self._stop.set()
            raise

    def _restore_part(self, part: Part, buffer: bytearray, scratch: bytearray, files: "_Files") -> None:
        def fetch() -> Envelope:
            with self._store.open(part.key) as stream:
                return unwrap_into(stream, buffer, expected_sha256=part.stored_sha256, scratch=scratch)

        envelope = patiently(fetch)
        if envelope.raw_size != part.raw_size:
            raise ObjectCorrupt(f"{part.key} holds {envelope.raw_size} bytes, its manifest says {part.raw_size}")
        position = 0
        view = memoryview(buffer)
        for piece in part.ranges:
            files.write(piece.file, piece.offset, view[position : position + piece.length])
            position += piece.length


class _Files:
    """The files of one worker's run: the last one stays open, since ranges of a file follow one another."""

    def __init__(self, target: Path, entries: Sequence[FileEntry], writeback: Writeback | None) -> None:
        self._target, self._entries, self._writeback = target, entries, writeback
        self._open: tuple[int, int] | None = None

    def __enter__(self) -> "_Files":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def write(self, file: int, offset: int, data: memoryview) -> None:
        if self._open is None or self._open[0] != file:
            self._close()
            path = self._target / self._entries[file].path
            self._open = (file, os.open(path, os.O_WRONLY | os.O_NOFOLLOW))
        start, size = offset, len(data)
        while data:
            written = os.pwrite(self._open[1], data, offset)
            data, offset = data[written:], offset + written
        if self._writeback is not None:
            self._writeback.begin(self._open[1], start, size)

    def _close(self) -> None:
        if self._open is not None:
            os.close(self._open[1])
            self._open = None
