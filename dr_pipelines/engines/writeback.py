"""Much written data brought to disk: begun while the rest is still being written, ended with one call for all files."""

import ctypes
import os
from pathlib import Path

__all__ = ["Writeback"]

_WORTH_BEGINNING = 1 << 20
"""Bytes: small writes are left to the end, where the kernel puts them together."""
_SYNC_FILE_RANGE_WRITE = 2


class Writeback:
    """What is written to the file system of `folder` while the block runs is on disk when `finish` returns.

    The kernel remembers for whoever has the folder open that data could not be written: opened before the first write,
    it keeps an error of the background from being missed. One call for all is faster than one for each of thousands of
    files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._library = ctypes.CDLL(None, use_errno=True)
        # Without its types a size beyond 2 GiB would be cut.
        self._library.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)

    def __enter__(self) -> "Writeback":
        self._descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def begin(self, descriptor: int, offset: int, size: int) -> None:
        """Let the disk begin with these bytes of an open file. A courtesy: what comes of it, `finish` says."""
        if size >= _WORTH_BEGINNING:
            self._library.sync_file_range(descriptor, offset, size, _SYNC_FILE_RANGE_WRITE)

    def finish(self) -> None:
        """Return when everything is on disk. Raises OSError where anything could not be written since the beginning."""
        if self._library.syncfs(self._descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(self._folder))
