"""Envelopes: what was wrapped comes back exactly, and nothing else ever does."""

import hashlib
import io
import os
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import BinaryIO

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from dr_pipelines.errors import DrError, FormatTooNew, ObjectCorrupt
from dr_pipelines.repository.envelope import Codec, Envelope, check, unwrap, unwrap_to, wrap
from dr_pipelines.repository.sealed import seal

SAMPLE = b"some rows, some rows, some more rows; " * 20


def stored(raw: bytes, *, codec: Codec = "zstd", hash_raw: bool = False) -> bytes:
    return b"".join(wrap(raw, codec=codec, hash_raw=hash_raw).chunks)


def forged(payload: bytes, *, codec: Codec = "zstd", raw_size: int, raw_sha256: str | None = None) -> bytes:
    """An object whose hashes are right and whose claims are not."""
    digest = hashlib.sha256(payload).hexdigest()
    return Envelope(codec, "none", digest, len(payload), raw_size, raw_sha256).header() + payload


def by_unwrap(data: bytes) -> Envelope:
    return unwrap(io.BytesIO(data), max_raw=1 << 20)[0]


def by_unwrap_to(data: bytes) -> Envelope:
    return unwrap_to(io.BytesIO(data), len, max_raw=1 << 20)


def by_check(data: bytes) -> Envelope:
    return check(io.BytesIO(data))


def by_test_decompression(data: bytes) -> Envelope:
    return check(io.BytesIO(data), decompress=True)


Reader = Callable[[bytes], Envelope]
READERS: list[Reader] = [by_unwrap, by_unwrap_to, by_check, by_test_decompression]
DECOMPRESSING: list[Reader] = [by_unwrap, by_unwrap_to, by_test_decompression]


@given(raw=st.binary(max_size=5_000), times=st.integers(0, 300), hash_raw=st.booleans())
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("codec", ["zstd", "none"])
def test_what_is_wrapped_comes_back(raw: bytes, times: int, hash_raw: bool, codec: Codec) -> None:
    raw = raw * times
    wrapped = wrap(raw, codec=codec, hash_raw=hash_raw)
    data = b"".join(wrapped.chunks)
    assert unwrap(io.BytesIO(data), max_raw=len(raw)) == (wrapped.envelope, raw)
    taken = bytearray()
    assert unwrap_to(io.BytesIO(data), taken.extend, max_raw=len(raw)) == wrapped.envelope
    assert taken == raw
    assert check(io.BytesIO(data), decompress=True) == check(io.BytesIO(data)) == wrapped.envelope
    assert wrapped.envelope.raw_sha256 == (hashlib.sha256(raw).hexdigest() if hash_raw else None)


def test_the_payload_is_plain_zstd_behind_one_line_of_json() -> None:
    header, payload = stored(SAMPLE).split(b"\n", 1)
    assert header.startswith(b'{"codec":"zstd","encryption":"none","format_version":1,"raw_size":760,')
    assert zstandard.ZstdDecompressor().decompress(payload) == SAMPLE


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("codec", ["zstd", "none"])
def test_any_changed_bit_is_found(read: Reader, codec: Codec) -> None:
    data = stored(SAMPLE[:100], codec=codec, hash_raw=True)
    for position in range(len(data)):
        for bit in (0x01, 0x20, 0x80):
            changed = bytearray(data)
            changed[position] ^= bit
            with pytest.raises(ObjectCorrupt):
                read(bytes(changed))


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("codec", ["zstd", "none"])
def test_an_object_cut_short_or_too_long_is_found(read: Reader, codec: Codec) -> None:
    data = stored(SAMPLE, codec=codec)
    for length in range(len(data)):
        with pytest.raises(ObjectCorrupt):
            read(data[:length])
    with pytest.raises(ObjectCorrupt, match="longer"):
        read(data + b"\0")


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("data", [b"", b"\n", b"{}\n", b"\0" * 5000, b"{" * 5000 + b"\n", os.urandom(300)])
def test_something_else_is_no_object_of_ours(read: Reader, data: bytes) -> None:
    with pytest.raises(ObjectCorrupt):
        read(data)


@pytest.mark.parametrize("read", DECOMPRESSING)
@pytest.mark.parametrize("claimed", [0, 10, 759, 761, 1 << 20])
def test_an_object_that_holds_more_or_less_than_it_claims_is_refused(read: Reader, claimed: int) -> None:
    with pytest.raises(ObjectCorrupt, match="does not hold"):
        read(forged(zstandard.compress(SAMPLE), raw_size=claimed))
    with pytest.raises(ObjectCorrupt, match="does not hold"):
        read(forged(SAMPLE, codec="none", raw_size=claimed))


@pytest.mark.parametrize("read", DECOMPRESSING)
def test_a_payload_that_is_not_zstd_is_refused(read: Reader) -> None:
    with pytest.raises(ObjectCorrupt, match="cannot be decompressed"):
        read(forged(b"not compressed at all", raw_size=21))


@pytest.mark.parametrize("read", DECOMPRESSING)
def test_other_data_than_the_hash_of_the_data_says_is_refused(read: Reader) -> None:
    other = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(ObjectCorrupt, match="does not hold the data"):
        read(forged(zstandard.compress(SAMPLE), raw_size=len(SAMPLE), raw_sha256=other))


def test_of_a_bomb_nothing_is_taken_beyond_what_it_claims_and_what_is_expected() -> None:
    bomb = zstandard.compress(bytes(b"\xff" * (64 << 20)))
    for claimed in (1024, 2048, 64 << 20):
        taken = bytearray()
        with pytest.raises(ObjectCorrupt):
            unwrap_to(io.BytesIO(forged(bomb, raw_size=claimed)), taken.extend, max_raw=2048)
        assert len(taken) <= 2048
    with pytest.raises(ObjectCorrupt, match="at most 1024 are expected"):
        unwrap(io.BytesIO(forged(bomb, raw_size=64 << 20)), max_raw=1024)


def test_a_frame_that_asks_for_much_memory_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=27, write_content_size=0)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    payload = compressor.compress(SAMPLE) + compressor.flush()
    for read in DECOMPRESSING:
        with pytest.raises(ObjectCorrupt, match="memory"):
            read(forged(payload, raw_size=len(SAMPLE)))


def test_the_strongest_level_can_be_read_and_a_stronger_one_is_not_written() -> None:
    raw = os.urandom(1000) * 20_000
    data = b"".join(wrap(raw, level=19).chunks)
    assert unwrap(io.BytesIO(data), max_raw=len(raw))[1] == raw
    with pytest.raises(ValueError, match="1 to 19"):
        wrap(raw, level=20)


def test_a_whole_object_in_the_wrong_place_is_refused() -> None:
    expected = wrap(b"this part").envelope.stored_sha256
    other = stored(b"another part")
    readers: list[Callable[[BinaryIO], Envelope]] = [
        lambda stream: unwrap_to(stream, len, max_raw=100, expected_sha256=expected),
        lambda stream: check(stream, expected_sha256=expected),
    ]
    for read in readers:
        with pytest.raises(ObjectCorrupt, match="not the object that is expected"):
            read(io.BytesIO(other))


@pytest.mark.parametrize("changes", [{"format_version": 2}, {"codec": "brotli"}, {"encryption": "age"}])
def test_what_a_newer_version_wrote_is_refused_as_such(changes: dict[str, object]) -> None:
    fields = {"format_version": 1, "codec": "none", "encryption": "none", "stored_size": 0, "raw_size": 0}
    header = seal(fields | {"stored_sha256": hashlib.sha256().hexdigest()} | changes)
    for read in READERS:
        with pytest.raises(FormatTooNew) as caught:
            read(header)
        assert "newer" in caught.value.hint


@pytest.mark.parametrize(
    "changes", [{"raw_size": -1}, {"raw_size": "3"}, {"stored_size": True}, {"stored_sha256": "00"}, {"raw_sha256": 7}]
)
def test_a_header_that_makes_no_sense_is_refused(changes: dict[str, object]) -> None:
    fields = {"format_version": 1, "codec": "none", "encryption": "none", "stored_size": 0, "raw_size": 0}
    header = seal(fields | {"stored_sha256": hashlib.sha256().hexdigest()} | changes)
    for read in READERS:
        with pytest.raises(ObjectCorrupt, match="header"):
            read(header)


class Trickle(io.RawIOBase):
    """A stream that gives few bytes at a time, as a network does."""

    name = "s3://bucket/part"

    def __init__(self, data: bytes) -> None:
        self._rest = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        return self._rest.readinto(memoryview(buffer)[:7])


def trickle(data: bytes) -> BinaryIO:
    return io.BufferedReader(Trickle(data), 16)


@pytest.mark.parametrize("codec", ["zstd", "none"])
def test_a_stream_may_give_few_bytes_at_a_time(codec: Codec) -> None:
    assert unwrap(trickle(stored(SAMPLE, codec=codec)), max_raw=len(SAMPLE))[1] == SAMPLE
    check(trickle(stored(SAMPLE, codec=codec)), decompress=True)


def test_errors_name_the_object() -> None:
    data = bytearray(stored(SAMPLE))
    data[-3] ^= 1
    with pytest.raises(DrError, match="s3://bucket/part is damaged: its hash does not match"):
        unwrap_to(trickle(bytes(data)), len, max_raw=1000)


def test_memory_stays_bounded() -> None:
    raw = os.urandom(8 << 20)
    wrapped = wrap(raw)
    data = b"".join(wrapped.chunks)
    unwrap_to(io.BytesIO(data), len, max_raw=len(raw))
    tracemalloc.start()
    try:
        unwrap_to(io.BytesIO(data), len, max_raw=len(raw))
        check(io.BytesIO(data), decompress=True)
        assert tracemalloc.get_traced_memory()[1] < 3 << 20
        tracemalloc.reset_peak()
        wrap(raw)
        assert tracemalloc.get_traced_memory()[1] < wrapped.envelope.stored_size + (2 << 20)
    finally:
        tracemalloc.stop()


def test_threads_do_not_disturb_one_another() -> None:
    def there_and_back(number: int) -> None:
        raw = os.urandom(500_000 + number) * 2
        for level in (1, 3):
            wrapped = wrap(raw, level=level)
            found = unwrap(io.BytesIO(b"".join(wrapped.chunks)), max_raw=len(raw))
            assert found == (wrapped.envelope, raw)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(there_and_back, range(16)))


def test_a_failed_object_leaves_nothing_behind_for_the_next() -> None:
    """The decompressor is kept from object to object."""
    good, bad = stored(SAMPLE), bytearray(stored(os.urandom(1000)))
    bad[-500] ^= 1
    for _ in range(3):
        with pytest.raises(ObjectCorrupt):
            by_unwrap(bytes(bad))
        assert unwrap(io.BytesIO(good), max_raw=1000)[1] == SAMPLE


def test_the_header_is_that_of_the_envelope() -> None:
    envelope = wrap(SAMPLE, hash_raw=True).envelope
    assert stored(SAMPLE, hash_raw=True).startswith(envelope.header())
    assert replace(envelope, raw_sha256=None).header() != envelope.header()
