"""Where the data of parts goes: which files there are, and what of each part lies where in them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from dr_pipelines.repository.manifest import FileEntry, Manifest, Part

__all__ = ["Layout", "WholeBackup", "Write"]


class Write(NamedTuple):
    """`length` bytes of a part's data, from `start` on, belong at `offset` of the file with the index `file`."""

    file: int
    offset: int
    start: int
    length: int


class Layout(Protocol):
    """What is to be written, and from what. Parts may be written in any order, each any number of times."""

    @property
    def files(self) -> Sequence[FileEntry]:
        """Every folder and file."""
        ...

    @property
    def parts(self) -> Sequence[Part]:
        """The parts that are needed."""
        ...

    @property
    def raw_bytes(self) -> int:
        """Bytes of the parts' data."""
        ...

    @property
    def contents(self) -> Mapping[int, bytes]:
        """By index: files whose content comes from no part."""
        ...

    @property
    def assembled(self) -> frozenset[int]:
        """Indexes of files that are put together of several backups; what no part holds of them is zero.

        No checksum of a whole file is known for them, so whoever writes them reads them back.
        """
        ...

    def writes(self, number: int) -> Sequence[Write]:
        """What of the part with this number goes where, in the order of its data."""
        ...


class WholeBackup:
    """The layout of a backup that holds all of its files: as its manifest has it."""

    assembled: frozenset[int] = frozenset()
    contents: Mapping[int, bytes] = {}

    def __init__(self, manifest: Manifest) -> None:
        self.files, self.parts, self.raw_bytes = manifest.files, manifest.parts, manifest.raw_bytes

    def writes(self, number: int) -> Sequence[Write]:
        """The part's ranges, one after another."""
        found, start = [], 0
        for piece in self.parts[number].ranges:
            found.append(Write(piece.file, piece.offset, start, piece.length))
            start += piece.length
        return found
