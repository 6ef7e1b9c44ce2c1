"""Chunks of segments that are not full: which of them count, how many there are, and what they hold together."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dr_pipelines.engines.postgres.chunks import Chunk, covering, next_start, reach
from dr_pipelines.engines.postgres.log import Log, Stored
from dr_pipelines.errors import ObjectConflict, ObjectCorrupt, ObjectMissing
from dr_pipelines.repository.envelope import wrap
from dr_pipelines.repository.folder import FolderStore
from tests.agent.conftest import SMALL, made_up

bounds = st.tuples(st.integers(0, 40), st.integers(1, 10)).map(lambda pair: Chunk(pair[0], pair[0] + pair[1]))


@pytest.mark.parametrize("name", ["", "1-2", "00000002-00000001", "00000001-00000001", "0000000g-0000001a", "a" * 17])
def test_what_is_no_name_of_a_chunk_is_passed_over(name: str) -> None:
    assert Chunk.of_name(name) is None


def test_a_chunk_is_known_by_its_name() -> None:
    assert Chunk.of_name(Chunk(8192, 8200).name) == Chunk(8192, 8200)


@given(st.lists(bounds))
def test_a_cover_leads_as_far_as_anything_that_is_there(chunks: list[Chunk]) -> None:
    held = {position for chunk in chunks for position in range(chunk.start, chunk.end)}
    unbroken = next(position for position in range(100) if position not in held)
    cover = covering(chunks)
    assert reach(cover) == unbroken
    assert set(cover) <= set(chunks)
    assert all(later.start <= earlier.end < later.end for earlier, later in pairwise(cover))


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=300))
def test_a_segment_never_has_many_chunks_and_no_byte_is_stored_often(sizes: list[int]) -> None:
    cover: tuple[Chunk, ...] = ()
    stored = 0
    for size in sizes:
        end = reach(cover) + size
        chunk = Chunk(next_start(cover, end), end)
        cover = (*(each for each in cover if each.start < chunk.start), chunk)
        stored += chunk.size
        assert covering(cover) == cover
        assert len(cover) <= reach(cover).bit_length() + 1
    assert stored <= sum(sizes) * (len(sizes).bit_length() + 14)


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(FolderStore(tmp_path))


def test_a_segment_is_put_together_from_its_chunks_with_zeros_behind(log: Log) -> None:
    name, raw = made_up(3)
    log.put_chunk(name, Chunk(0, 3000), raw[:3000])
    log.put_chunk(name, Chunk(3000, 4000), raw[3000:4000])
    assert log.fetch(name) == raw[:4000] + bytes(SMALL - 4000)
    assert not log.has(name)
    (segment,) = log.segments()
    assert (segment.name, segment.reaches) == (name, 4000)


def test_the_whole_segment_counts_where_it_is_there(log: Log) -> None:
    name, raw = made_up(3)
    log.put_chunk(name, Chunk(0, 3000), bytes(3000))
    log.put(name, raw)
    assert log.fetch(name) == raw
    assert [segment.reaches for segment in log.segments()] == [None]
    log.drop_chunks(name)
    assert log.chunks(name) == ()


def test_a_chunk_is_stored_once(log: Log) -> None:
    name, raw = made_up(3)
    assert log.put_chunk(name, Chunk(0, 3000), raw[:3000]) is Stored.NEW
    assert log.put_chunk(name, Chunk(0, 3000), raw[:3000]) is Stored.SAME
    with pytest.raises(ObjectConflict, match="00000000-00000bb8"):
        log.put_chunk(name, Chunk(0, 3000), bytes(3000))


def test_a_chunk_that_is_not_as_long_as_its_name_says_is_refused(log: Log) -> None:
    name, raw = made_up(3)
    log.store.put(f"log/{name[:8]}/{name}.chunks/{Chunk(0, 3000).name}", wrap(raw[:2999]).chunks)
    with pytest.raises(ObjectCorrupt, match="holds 2999 bytes"):
        log.fetch(name)


def test_a_segment_of_which_nothing_is_there_is_missing(log: Log) -> None:
    with pytest.raises(ObjectMissing):
        log.fetch(made_up(3)[0])
