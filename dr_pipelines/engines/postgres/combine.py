"""The files of a chain of backups, made one: each is fetched into a folder of its own, `pg_combinebackup` puts their
blocks together, and the result is moved into the target.

All of it lies in the target, on the file system that it is for, so that the move is some renames. Nothing of it need
survive a crash of the machine, so only the result is brought to disk.
"""

import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from dr_pipelines.engines.parts import PartReader, Progress
from dr_pipelines.engines.postgres.target import PRIVATE
from dr_pipelines.engines.writeback import Writeback
from dr_pipelines.errors import ProcessError, RestoreError
from dr_pipelines.processes.identity import Identity, give_to, run
from dr_pipelines.processes.postgres import Binaries
from dr_pipelines.processes.proc import boot_id
from dr_pipelines.repository.manifest import FileEntry, Manifest
from dr_pipelines.repository.store import Store

__all__ = ["Combiner", "can_link", "whole_path"]

_PREFIX = "INCREMENTAL."
"""What the name of a file begins with of which an incremental backup holds only some blocks."""
_RELATIONS = ("base", "global")
_LONGEST = 48 * 3600.0
_EVERY = 1.0
"""Seconds between two looks at how far pg_combinebackup is."""


class Combiner:
    """Writes below a claimed target what the last backup of a chain describes; the first of the chain is a full one.

    How far it is can be seen in the target: what was fetched, whether the whole was made of it, what of that is moved.
    """

    def __init__(
        self,
        store: Store,
        chain: Sequence[Manifest],
        target: Path,
        binaries: Binaries,
        *,
        identity: Identity | None,
        workers: int,
    ) -> None:
        self._store, self._backups, self._target, self._binaries = store, chain, target, binaries
        self._identity, self._workers = identity, workers
        private = target / PRIVATE
        self._chain, self._whole, self._combined = private / "chain", private / "whole", private / "combined"
        self._to_fetch = sum(backup.raw_bytes for backup in chain)
        # About what the whole has; the rest of the progress.
        self._to_write = max(backup.raw_bytes for backup in chain)

    def restore(self, progress: Progress, meanwhile: Callable[[int], None] = lambda fetched: None) -> int:
        """Write everything; returns the number of parts that were fetched now. Everything is on disk on return.

        Called again after an interruption at any moment it goes on. `meanwhile` is called with that number when all is
        written, while it is brought to disk. Raises RestoreError where the backups make no whole.
        """
        with Writeback(self._target) as writeback:
            fetched = 0
            if not self._is_combined():
                self._begin()
                fetched = self._fetch(progress)
                with self._watching(progress):
                    self._combine()
                self._note_combined()
            self._move()
            with ThreadPoolExecutor(1, "writeback") as pool:
                on_disk = pool.submit(self._finish, writeback)
                meanwhile(fetched)
                on_disk.result()
        return fetched

    def forget(self) -> None:
        """What was written is not to be believed: the next `restore` begins anew."""
        self._combined.unlink(missing_ok=True)
        shutil.rmtree(self._chain, ignore_errors=True)

    def _is_combined(self) -> bool:
        """Whether the whole was made. What was written before a crash of the machine may not have reached the disk."""
        try:
            return self._combined.read_text() == boot_id()
        except FileNotFoundError:
            return False

    def _begin(self) -> None:
        """What was fetched stays, and is believed or not by whoever fetches; what was made of it goes."""
        self._combined.unlink(missing_ok=True)
        for entry in self._target.iterdir():
            if entry.name == PRIVATE:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        shutil.rmtree(self._whole, ignore_errors=True)

    def _fetch(self, progress: Progress) -> int:
        identity = self._identity
        owner = (identity.uid, identity.gid) if identity is not None else None
        fetched = before = 0
        self._make(self._chain)
        for number, backup in enumerate(self._backups):
            folder, journal = self._folder(number), self._chain / f"{number}.parts"
            self._make(folder)
            reader = PartReader(self._store, backup, folder, journal=journal, owner=owner, workers=self._workers)
            fetched += reader.write(_after(before, self._to_fetch + self._to_write, progress))
            before += backup.raw_bytes
        return fetched

    def _folder(self, number: int) -> Path:
        return self._chain / str(number)

    def _make(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        give_to(folder, self._identity)

    def _combine(self) -> None:
        folders = [str(self._folder(number)) for number in range(len(self._backups))]
        # Links would damage backups that somebody needs; these are copies that are thrown away.
        how = ["--link"] if can_link(self._binaries.major) else []
        command = [self._binaries["pg_combinebackup"], *folders, f"--output={self._whole}", "--no-sync", *how]
        try:
            run(command, identity=self._identity, env={"LC_ALL": "C"}, timeout=_LONGEST)
        except ProcessError as error:
            raise RestoreError(
                f"the backups {', '.join(backup.backup_id for backup in self._backups)} could not be made one: "
                f"{error.message}",
                hint="an earlier backup and the log after it may do: dr restore --backup BACKUP_ID",
            ) from error
        # It gives every file the same mode: a script that archive_command calls could not be executed.
        for entry in self._backups[-1].files:
            os.chmod(self._whole / whole_path(entry), entry.mode & 0o777)

    def _note_combined(self) -> None:
        draft = self._combined.with_suffix(".new")
        draft.write_text(boot_id())
        draft.rename(self._combined)

    def _move(self) -> None:
        if self._whole.exists():
            for entry in list(self._whole.iterdir()):
                entry.rename(self._target / entry.name)
            self._whole.rmdir()
        # Before anything is brought to disk: what is gone need not be.
        shutil.rmtree(self._chain, ignore_errors=True)

    def _finish(self, writeback: Writeback) -> None:
        try:
            writeback.finish()
        except OSError:
            # What the disk refused, the page cache may show until it is needed: all of it is to be written again.
            self._combined.unlink()
            raise

    @contextmanager
    def _watching(self, progress: Progress) -> Iterator[None]:
        """Tell how far pg_combinebackup is, by the size of what it has written."""
        over, total = threading.Event(), self._to_fetch + self._to_write

        def watch() -> None:
            while not over.wait(_EVERY):
                done = sum(_size(Path(top) / name) for top, _, names in os.walk(self._whole) for name in names)
                progress(self._to_fetch + min(done, self._to_write), total)

        watcher = threading.Thread(target=watch, name="combine-watcher", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()
        progress(total, total)


def can_link(major: int) -> bool:
    """Whether pg_combinebackup takes a file that did not change by a hard link; that came with PostgreSQL 18."""
    return major >= 18


def whole_path(entry: FileEntry) -> str:
    """The path that an entry of an incremental backup has when it is whole."""
    folder, slash, name = entry.path.rpartition("/")
    # Elsewhere a file of such a name is somebody's own.
    return f"{folder}{slash}{name.removeprefix(_PREFIX)}" if folder.split("/")[0] in _RELATIONS else entry.path


def _after(before: int, total: int, progress: Progress) -> Progress:
    """The progress of one of several."""
    return lambda done, _: progress(before + done, total)


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0
