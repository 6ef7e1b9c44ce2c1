"""Names, positions and headers of PostgreSQL's log."""

import re
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dr_pipelines.engines.postgres.wal import (
    FileKind,
    Lsn,
    Segment,
    is_end_of_backup,
    kind_of,
    parse_history,
    read_header,
    segment_before,
    segment_holding,
    settled,
    timeline_of,
)
from dr_pipelines.errors import ObjectCorrupt

MIB = 1 << 20
sizes = st.integers(0, 10).map(lambda power: MIB << power)
positions = st.integers(0, (1 << 64) - (1 << 31)).map(Lsn)


def header(
    *,
    timeline: int = 1,
    start: int = 0x5000000,
    system: int = 7340000000000000001,
    size: int = 16 * MIB,
    magic: int = 0xD118,
) -> bytes:
    """The first bytes of a segment as PostgreSQL writes them."""
    return struct.pack("<HHIQI4xQII", magic, 0x0007, timeline, start, 0, system, size, 8192)


@given(positions)
def test_a_position_reads_back_what_it_writes(lsn: Lsn) -> None:
    assert Lsn.parse(str(lsn)) == lsn


def test_a_position_is_written_as_postgresql_writes_it() -> None:
    assert str(Lsn(0x5000028)) == "0/5000028"
    assert str(Lsn(0x1A_0000_0000)) == "1A/0"
    assert Lsn.parse("1A/FF") - Lsn.parse("1A/0") == 255
    assert Lsn.parse("0/FFFFFFFF") + 1 == Lsn.parse("1/0")
    assert Lsn.parse("9/0") < Lsn.parse("10/0")


@pytest.mark.parametrize("text", ["", "0", "0/", "/5", "0/5000028 ", "0x0/5", "0/123456789", "-1/0"])
def test_what_is_no_position_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="position"):
        Lsn.parse(text)


@given(positions, sizes, st.integers(1, 0xFFFFFFFF))
def test_a_segment_reads_back_its_own_name_and_holds_its_position(lsn: Lsn, size: int, timeline: int) -> None:
    segment = Segment.holding(lsn, timeline, size)
    assert Segment.of_name(segment.name, size) == segment
    assert segment.start <= lsn < segment.end
    assert segment.end - segment.start == size
    assert segment.next().previous() == segment
    assert segment.next().start == segment.end


@pytest.mark.parametrize(
    ("lsn", "size", "name"),
    [
        ("0/5000028", 16 * MIB, "000000010000000000000005"),
        ("1/0", 16 * MIB, "000000010000000100000000"),
        ("0/FFFFFFFF", 16 * MIB, "0000000100000000000000FF"),
        ("0/FFFFFFFF", 1 * MIB, "000000010000000000000FFF"),
        ("3/C0000000", 1024 * MIB, "000000010000000300000003"),
    ],
)
def test_names_are_those_of_pg_walfile_name(lsn: str, size: int, name: str) -> None:
    assert segment_holding(Lsn.parse(lsn), 1, size) == name


def test_a_position_on_a_boundary_needs_only_the_segment_before() -> None:
    boundary = Lsn.parse("0/6000000")
    assert segment_before(boundary, 1, 16 * MIB) == "000000010000000000000005"
    assert segment_holding(boundary, 1, 16 * MIB) == "000000010000000000000006"
    assert segment_before(boundary + 1, 1, 16 * MIB) == "000000010000000000000006"


@pytest.mark.parametrize("size", [0, MIB - 1, 3 * MIB, 2048 * MIB, MIB // 2])
def test_a_segment_size_that_initdb_refuses_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="segment size"):
        Segment.of_name("000000010000000000000005", size)


def test_a_name_that_cannot_be_with_this_segment_size_is_refused() -> None:
    assert Segment.of_name("0000000100000000000000FF", 16 * MIB).next().name == "000000010000000100000000"
    with pytest.raises(ValueError, match="not the name"):
        Segment.of_name("000000010000000000000100", 16 * MIB)


@pytest.mark.parametrize(
    ("into", "counts_as"),
    [(0, 0), (1, 0), (40, 0), (41, 41), (4096, 4096), (8192, 8192), (8192 + 24, 8192), (8192 + 32, 8192 + 32)],
)
def test_just_behind_a_page_header_nothing_has_been_written_yet(into: int, counts_as: int) -> None:
    boundary = Lsn.parse("0/6000000")
    assert settled(boundary + into, 16 * MIB) == boundary + counts_as


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("000000010000000000000005", FileKind.SEGMENT),
        ("00000002.history", FileKind.HISTORY),
        ("000000010000000000000005.00000028.backup", FileKind.BACKUP),
        ("000000010000000000000005.partial", FileKind.PARTIAL),
        ("00000001000000000000000a", None),
        (".000000010000000000000005.812.tmp", None),
        ("000000010000000000000005.gz", None),
        ("../000000010000000000000005", None),
        ("", None),
    ],
)
def test_only_what_postgresql_archives_has_a_kind(name: str, kind: FileKind | None) -> None:
    assert kind_of(name) is kind
    if kind is None:
        with pytest.raises(ValueError, match=re.escape(f'"{name}"')):
            timeline_of(name)


def test_a_header_that_fits_its_name_gives_the_segment() -> None:
    found = read_header(header())
    assert found.system_identifier == "7340000000000000001"
    assert found.check("000000010000000000000005", 16 * MIB).start == Lsn.parse("0/5000000")
    assert found.check("000000010000000000000005.partial", 16 * MIB).number == 5
    # What a promoted server copied from its parent's last segment still carries the parent's timeline.
    assert found.check("000000020000000000000005", 16 * MIB).timeline == 2


@pytest.mark.parametrize(
    ("raw", "name", "size", "match"),
    [
        (header(start=0x6000000), "000000010000000000000005", 16 * MIB, "from 0/6000000"),
        (header(timeline=3), "000000010000000000000005", 16 * MIB, "timeline 3"),
        (header(), "000000010000000000000005", 16 * MIB - 8192, "bytes and not"),
        (header(size=64 * MIB), "000000010000000000000041", 64 * MIB, "not the name"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(raw: bytes, name: str, size: int, match: str) -> None:
    with pytest.raises(ObjectCorrupt, match=match):
        read_header(raw).check(name, size)


@pytest.mark.parametrize("raw", [b"", header()[:39], bytes(8192), header(magic=0x1234), header(size=5), b"x" * 8192])
def test_what_is_no_segment_is_refused(raw: bytes) -> None:
    with pytest.raises(ObjectCorrupt):
        read_header(raw)


def test_a_history_file_names_the_ancestors() -> None:
    text = "1\t0/5000060\tno recovery target specified\n\n# a note\n2\t0/A0000D8\tbefore 2026-01-01 00:00:00+00\n"
    first, second = parse_history(text)
    assert (first.timeline, str(first.at)) == (1, "0/5000060")
    assert (second.timeline, second.reason) == (2, "before 2026-01-01 00:00:00+00")
    assert parse_history("") == ()


@pytest.mark.parametrize("text", ["hello\n", "1 5000060\n", "2\t0/5000060\n1\t0/6000000\n", "1\t0/5\n1\t0/6\n"])
def test_what_is_no_history_is_refused(text: str) -> None:
    with pytest.raises(ObjectCorrupt, match="history"):
        parse_history(text)


@pytest.mark.parametrize("into", [80, 8192, 8192 + 24 + 16, 4096, 40 + 16])
def test_the_end_of_a_backup_is_found_over_page_headers_and_in_the_segment_before(into: int) -> None:
    size, start = 1 << 20, Lsn(0x300028)
    log, at = bytearray(2 * size), size + into
    record = bytes(26) + struct.pack("<Q", start.value) + bytes(6)
    for byte in reversed(record):
        page = (at - 1) // 8192 * 8192
        if at - page <= (40 if page % size == 0 else 24):
            at = page
        at -= 1
        log[at] = byte
    begin = Segment(1, 4, size).start
    stop = begin + size + into
    assert is_end_of_backup(bytes(log), begin, start, stop, size)
    assert not is_end_of_backup(bytes(log), begin, start + 8, stop, size)
    assert not is_end_of_backup(bytes(log), begin, start, Lsn(stop.value - 8), size)
