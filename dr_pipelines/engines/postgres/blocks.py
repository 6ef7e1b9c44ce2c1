"""Files of which an incremental backup holds only some blocks: `INCREMENTAL.<name>`, as PostgreSQL 17 and 18 have it.

Such a file begins with four-byte numbers in the server's order of bytes: a magic number, how many blocks follow, from
which block on nothing older counts, and the number of each block. Where there are blocks, zeros fill this header up to
a multiple of a block's size; then come the blocks, in the order of their numbers.
"""

import struct
from array import array
from dataclasses import dataclass
from itertools import pairwise

from dr_pipelines.repository.manifest import FileEntry

__all__ = ["BLOCK", "FIXED", "Blocks", "announced_size", "is_partial", "whole_path"]

BLOCK = 8192
"""Bytes; PostgreSQL can be built with others, which nobody ships."""
FIXED = 12
"""Bytes of the header before the numbers of the blocks."""
_MAGIC = 0xD3AE1F0D
_PREFIX = "INCREMENTAL."
_RELATIONS = ("base", "global")
_MOST = 131072
"""Blocks of one file: 1 GiB, a segment of a relation."""


@dataclass(frozen=True)
class Blocks:
    """The header of such a file."""

    numbers: "array[int]"
    """Which blocks it holds, in ascending order."""
    keeps: int
    """Blocks of the parent's file from this one on do not count: it was shorter once, or is that short now."""

    @property
    def start(self) -> int:
        """Where the first block begins in the file."""
        return header_size(len(self.numbers))

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.start + len(self.numbers) * BLOCK

    @property
    def length(self) -> int:
        """Blocks of the whole file."""
        return max(self.keeps, self.numbers[-1] + 1 if self.numbers else 0)

    @classmethod
    def parse(cls, header: bytes) -> "Blocks":
        """Read a header of `header_size` bytes or more. Raises ValueError where it is none."""
        count, keeps = _fixed(header)
        numbers = array("I", header[FIXED : FIXED + 4 * count])
        if len(numbers) != count:
            raise ValueError("it is cut off")
        if any(later <= earlier for earlier, later in pairwise(numbers)) or (count and numbers[-1] >= _MOST):
            raise ValueError("its blocks are not in order, or beyond the end of a segment")
        return cls(numbers, keeps)


def header_size(count: int) -> int:
    """Bytes of the header of a file with that many blocks."""
    return -(-(FIXED + 4 * count) // BLOCK) * BLOCK if count else FIXED


def announced_size(header: bytes) -> int:
    """Bytes of the header that begins with these 12 bytes. Raises ValueError where it is none."""
    return header_size(_fixed(header)[0])


def is_partial(entry: FileEntry) -> bool:
    """Whether an entry of an incremental backup is such a file. Elsewhere one of such a name is somebody's own."""
    folder, _, name = entry.path.rpartition("/")
    return entry.kind == "file" and name.startswith(_PREFIX) and folder.split("/")[0] in _RELATIONS


def whole_path(entry: FileEntry) -> str:
    """The path that an entry of an incremental backup has when it is whole."""
    if not is_partial(entry):
        return entry.path
    folder, _, name = entry.path.rpartition("/")
    return f"{folder}/{name.removeprefix(_PREFIX)}"


def _fixed(header: bytes) -> tuple[int, int]:
    if len(header) < FIXED:
        raise ValueError("it is cut off")
    magic, count, keeps = struct.unpack("=III", header[:FIXED])
    if magic != _MAGIC:
        raise ValueError(f"it begins with {magic:#x}, not with {_MAGIC:#x}")
    if count > _MOST or keeps > _MOST:
        raise ValueError("it has more blocks than a segment")
    return count, keeps
