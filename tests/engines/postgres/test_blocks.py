"""The headers of files of which an incremental backup holds only some blocks."""

import struct
from array import array

import pytest

from dr_pipelines.engines.postgres.blocks import BLOCK, Blocks, announced_size, is_partial, whole_path
from dr_pipelines.repository.manifest import FileEntry

MAGIC = 0xD3AE1F0D


def header(*numbers: int, keeps: int = 0, magic: int = MAGIC, count: int | None = None) -> bytes:
    """As PostgreSQL writes it."""
    content = struct.pack("=III", magic, len(numbers) if count is None else count, keeps)
    content += array("I", numbers).tobytes()
    return content + bytes(-len(content) % BLOCK) if numbers else content


def test_it_says_which_blocks_follow_and_how_long_the_whole_is() -> None:
    blocks = Blocks.parse(header(3, 4, 9, keeps=7))
    assert (list(blocks.numbers), blocks.keeps, blocks.length) == ([3, 4, 9], 7, 10)
    assert (blocks.start, blocks.size) == (BLOCK, 4 * BLOCK)
    assert Blocks.parse(header(1, keeps=7)).length == 7


def test_without_blocks_it_is_12_bytes_long() -> None:
    blocks = Blocks.parse(header(keeps=5))
    assert (list(blocks.numbers), blocks.length, blocks.start, blocks.size) == ([], 5, 12, 12)


@pytest.mark.parametrize("count", [1, 2045, 2046, 131072])
def test_its_size_is_announced_by_its_beginning(count: int) -> None:
    whole = header(*range(count))
    assert announced_size(whole[:12]) == len(whole)
    assert Blocks.parse(whole).start == len(whole)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cut off"),
        (header(1, 2)[:16], "cut off"),
        (header(1, magic=MAGIC + 1), "begins with 0xd3ae1f0e"),
        (header(2, 1), "not in order"),
        (header(1, 1), "not in order"),
        (header(131072), "beyond the end"),
        (header(keeps=131073), "more blocks than a segment"),
        (header(count=131073), "more blocks than a segment"),
    ],
)
def test_what_is_no_such_header_is_refused(content: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Blocks.parse(content)


@pytest.mark.parametrize(
    ("path", "whole"),
    [
        ("base/5/INCREMENTAL.1259", "base/5/1259"),
        ("global/INCREMENTAL.1262_fsm", "global/1262_fsm"),
        ("base/5/1259", "base/5/1259"),
        ("INCREMENTAL.notes", "INCREMENTAL.notes"),
        ("pg_xact/INCREMENTAL.0000", "pg_xact/INCREMENTAL.0000"),
    ],
)
def test_only_relations_have_such_files(path: str, whole: str) -> None:
    entry = FileEntry(path=path, kind="file", mode=0o600, size=0)
    assert (whole_path(entry), is_partial(entry)) == (whole, path != whole)
