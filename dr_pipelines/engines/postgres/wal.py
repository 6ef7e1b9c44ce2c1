"""The names, positions and headers of PostgreSQL's write-ahead log. Pure: nothing here reads a file or asks a server.

A position in the log (`Lsn`) counts bytes since the cluster was made. The log is cut into segments of one size, a power
of two from 1 MiB to 1 GiB that is fixed by initdb; a segment's name holds its timeline and its number.
"""

import itertools
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from dr_pipelines.errors import ObjectCorrupt

__all__ = [
    "END_OF_BACKUP_BYTES",
    "HEADER_BYTES",
    "PAGE",
    "FileKind",
    "Lsn",
    "Segment",
    "SegmentHeader",
    "Switch",
    "is_end_of_backup",
    "is_segment_size",
    "kind_of",
    "parse_history",
    "read_header",
    "record_end",
    "segment_before",
    "segment_holding",
    "settled",
    "timeline_of",
]

HEADER_BYTES = 40
"""The size of the long page header that every segment begins with."""

END_OF_BACKUP_BYTES = 40
"""The size of the record with which a backup ends."""

_MIB = 1 << 20
PAGE = 8192
"""Bytes of a page of the log, each of which begins with a header of its own."""
_PAGE_HEADER_BYTES = 24
_NAME = re.compile(r"[0-9A-F]{24}")
_HISTORY_LINE = re.compile(r"\s*(\d+)\s+([0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8})(?:\s+(.*))?")
_HEADER = struct.Struct("<HHIQI4xQII")
_PAGE_HEADER = struct.Struct("<HHIQI")
_CONTINUED, _LONG_HEADER = 0x0001, 0x0002


@dataclass(frozen=True, order=True, slots=True)
class Lsn:
    """A position in the log, in bytes; written "0/5000028" as PostgreSQL does."""

    value: int

    def __post_init__(self) -> None:
        if not 0 <= self.value < 1 << 64:
            raise ValueError(f"{self.value} is not a position in the log")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "0/5000028". Raises ValueError for anything else."""
        match = re.fullmatch(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})", text)
        if match is None:
            raise ValueError(f'"{text}" is not a position in the log; expected two hexadecimal numbers as in 0/5000028')
        return cls(int(match[1], 16) << 32 | int(match[2], 16))

    def __str__(self) -> str:
        return f"{self.value >> 32:X}/{self.value & 0xFFFFFFFF:X}"

    def __int__(self) -> int:
        return self.value

    def __add__(self, size: int) -> "Lsn":
        return Lsn(self.value + size)

    def __sub__(self, other: "Lsn") -> int:
        return self.value - other.value


@dataclass(frozen=True, order=True, slots=True)
class Segment:
    """One segment of the log: the bytes from `start` up to, not including, `end`. Sorts by timeline, then number."""

    timeline: int
    number: int
    size: int
    """Bytes of every segment of this cluster."""

    def __post_init__(self) -> None:
        _check_size(self.size)
        if self.timeline < 1 or self.number < 0:
            raise ValueError(f"there is no segment {self.number} on timeline {self.timeline}")

    @classmethod
    def of_name(cls, name: str, size: int) -> Self:
        """Read a name of 24 hexadecimal digits. Raises ValueError where it cannot be one with this segment size."""
        _check_size(size)
        if not _NAME.fullmatch(name):
            raise ValueError(f'"{name}" is not the name of a WAL segment')
        high, low = int(name[8:16], 16), int(name[16:], 16)
        if low >= (1 << 32) // size:
            raise ValueError(f'"{name}" is not the name of a WAL segment of {size} bytes')
        return cls(int(name[:8], 16), high * ((1 << 32) // size) + low, size)

    @classmethod
    def holding(cls, lsn: Lsn, timeline: int, size: int) -> Self:
        """The segment that the byte at `lsn` is in."""
        return cls(timeline, lsn.value // _check_size(size), size)

    @classmethod
    def before(cls, lsn: Lsn, timeline: int, size: int) -> Self:
        """The segment that the last byte before `lsn` is in: the one that is needed to have everything up to `lsn`."""
        return cls(timeline, max(lsn.value - 1, 0) // _check_size(size), size)

    @property
    def name(self) -> str:
        """The file name that PostgreSQL gives it."""
        high, low = divmod(self.number, (1 << 32) // self.size)
        return f"{self.timeline:08X}{high:08X}{low:08X}"

    def __str__(self) -> str:
        return self.name

    @property
    def start(self) -> Lsn:
        """Its first byte."""
        return Lsn(self.number * self.size)

    @property
    def end(self) -> Lsn:
        """The byte after its last one."""
        return Lsn((self.number + 1) * self.size)

    def next(self) -> "Segment":
        """The one that follows on the same timeline."""
        return Segment(self.timeline, self.number + 1, self.size)

    def previous(self) -> "Segment":
        """The one before on the same timeline. Raises ValueError for the very first."""
        return Segment(self.timeline, self.number - 1, self.size)

    def on(self, timeline: int) -> "Segment":
        """The same stretch of the log on another timeline."""
        return Segment(timeline, self.number, self.size)


def segment_holding(lsn: Lsn, timeline: int, size: int) -> str:
    """The name of the segment that the byte at `lsn` is in."""
    return Segment.holding(lsn, timeline, size).name


def segment_before(lsn: Lsn, timeline: int, size: int) -> str:
    """The name of the segment that the last byte before `lsn` is in."""
    return Segment.before(lsn, timeline, size).name


def is_segment_size(size: int) -> bool:
    """Whether initdb could have made segments of this size."""
    return _MIB <= size <= 1 << 30 and size & (size - 1) == 0


def _check_size(size: int) -> int:
    if not is_segment_size(size):
        raise ValueError(f"{size} bytes is not a WAL segment size: a power of two from 1 MiB to 1 GiB is")
    return size


def settled(lsn: Lsn, size: int) -> Lsn:
    """Where the log's content really ends for an insert position of `lsn`.

    A server whose last record fills a page, or that has switched segments since, says that it is just behind the next
    page's header. Nothing is there yet, so that counts as the page's beginning, which is where a replay says it ended.
    """
    page = lsn.value // PAGE * PAGE
    header = HEADER_BYTES if page % _check_size(size) == 0 else _PAGE_HEADER_BYTES
    return Lsn(page) if lsn.value - page <= header else lsn


def is_end_of_backup(log: bytes, begin: Lsn, start: Lsn, stop: Lsn, size: int) -> bool:
    """Whether the record that ends at `stop` says that the backup begun at `start` ended there.

    `log` holds whole segments of `size` bytes, from `begin` up to at least `stop`.
    """
    record, at = b"", stop.value
    while len(record) < END_OF_BACKUP_BYTES and at > begin.value:
        page = (at - 1) // PAGE * PAGE
        content = page + (HEADER_BYTES if page % size == 0 else _PAGE_HEADER_BYTES)
        first = max(content, at - (END_OF_BACKUP_BYTES - len(record)))
        record = log[first - begin.value : max(at, first) - begin.value] + record
        at = page if first == content else first
    # The record's header has 24 bytes and its data's 2; what follows the data aligns the next record.
    return len(record) == END_OF_BACKUP_BYTES and record[26:34] == struct.pack("<Q", start.value)


class FileKind(StrEnum):
    """What PostgreSQL hands to archive_command."""

    SEGMENT = "segment"
    HISTORY = "history"
    """Where a timeline came from; needed to follow it."""
    BACKUP = "backup"
    """A note about a base backup; nothing needs it, people read it."""
    PARTIAL = "partial"
    """The unfinished last segment of a timeline that was left at a promotion."""


_KINDS = (
    (FileKind.SEGMENT, _NAME),
    (FileKind.HISTORY, re.compile(r"[0-9A-F]{8}\.history")),
    (FileKind.BACKUP, re.compile(r"[0-9A-F]{24}\.[0-9A-F]{8}\.backup")),
    (FileKind.PARTIAL, re.compile(r"[0-9A-F]{24}\.partial")),
)


def kind_of(name: str) -> FileKind | None:
    """What a file of this name is; None for what PostgreSQL does not archive."""
    return next((kind for kind, pattern in _KINDS if pattern.fullmatch(name)), None)


def timeline_of(name: str) -> int:
    """The timeline that an archived file belongs to. Raises ValueError for what PostgreSQL does not archive."""
    if kind_of(name) is None:
        raise ValueError(f'"{name}" is not the name of a file that PostgreSQL archives')
    return int(name[:8], 16)


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """What the first page of a segment says of itself."""

    magic: int
    timeline: int
    start: Lsn
    system_identifier: str
    segment_size: int
    block_size: int

    def check(self, name: str, size: int) -> Segment:
        """The segment, where header, name (also with `.partial`) and size of the file fit. Raises ObjectCorrupt."""
        if size != self.segment_size:
            raise ObjectCorrupt(f"{name} has {size} bytes and not {self.segment_size} as its header says")
        try:
            segment = Segment.of_name(name.removesuffix(".partial"), self.segment_size)
        except ValueError as error:
            raise ObjectCorrupt(f"{name}: {error}") from None
        if segment.start != self.start:
            raise ObjectCorrupt(f"{name} holds the log from {self.start} and not from {segment.start} as its name says")
        # The first segment of a new timeline begins with what its parent had written up to the switch.
        if self.timeline > segment.timeline:
            raise ObjectCorrupt(f"{name} holds the log of timeline {self.timeline}")
        return segment


def read_header(raw: bytes) -> SegmentHeader:
    """Read the first bytes (at least `HEADER_BYTES`) of a segment. Raises ObjectCorrupt for anything else."""
    if len(raw) < HEADER_BYTES:
        raise ObjectCorrupt(f"{len(raw)} bytes are too few for a WAL segment")
    magic, info, timeline, address, _, system, size, block = _HEADER.unpack_from(raw)
    # The lower byte of the magic number goes up with the major version.
    if magic >> 8 != 0xD1 or not info & _LONG_HEADER or timeline < 1 or not is_segment_size(size):
        raise ObjectCorrupt("this is no WAL segment: it does not begin with a page header of one")
    return SegmentHeader(magic, timeline, Lsn(address), str(system), size, block)


def record_end(page: bytes, offset: int) -> int | None:
    """Where, in a page of the log, the record ends that the byte before `offset` belongs to, aligned as the next is.

    None where it goes on in the next page, or the page is no page of the log.
    """
    _, info, _, _, rest = _PAGE_HEADER.unpack_from(page)
    position = HEADER_BYTES if info & _LONG_HEADER else _PAGE_HEADER_BYTES
    if info & _CONTINUED:
        position += _aligned(rest)
    while position < offset:
        if position + 4 > len(page) or not (size := int.from_bytes(page[position : position + 4], "little")):
            return None
        position += _aligned(size)
    return position if position <= len(page) else None


def _aligned(size: int) -> int:
    return -(-size // 8) * 8


@dataclass(frozen=True, slots=True)
class Switch:
    """A timeline was left at a position for the next one of its history."""

    timeline: int
    at: Lsn
    reason: str


def parse_history(text: str) -> tuple[Switch, ...]:
    """Read a `.history` file: the ancestors of its timeline, oldest first. Raises ObjectCorrupt."""
    switches: list[Switch] = []
    for line in _content(text.splitlines()):
        match = _HISTORY_LINE.fullmatch(line)
        if match is None:
            raise ObjectCorrupt(f'this is no timeline history: "{line[:80]}"')
        switches.append(Switch(int(match[1]), Lsn.parse(match[2]), (match[3] or "").strip()))
    if any(later.timeline <= earlier.timeline for earlier, later in itertools.pairwise(switches)):
        raise ObjectCorrupt("this is no timeline history: its timelines do not go up")
    return tuple(switches)


def _content(lines: Iterable[str]) -> Iterable[str]:
    return (line for line in lines if line.strip() and not line.lstrip().startswith("#"))
