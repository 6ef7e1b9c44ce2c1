"""How the data of one object is wrapped: a sealed header line that says what was done to it, then the payload.

What is stored is hashed as it is stored, so that it can be checked where it cannot be decompressed. Data passes
through compression, then encryption (none yet), then hashing. zstandard and hashlib release the interpreter's lock:
several threads wrap and unwrap at a time, each with a compressor of its own that it keeps.
"""

import hashlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Literal, TypeGuard, get_args

import zstandard

from dr_pipelines.errors import FormatTooNew, ObjectCorrupt
from dr_pipelines.repository.sealed import seal, unseal

__all__ = ["Codec", "Encryption", "Envelope", "Wrapped", "check", "known_codec", "unwrap", "unwrap_to", "wrap"]

Codec = Literal["zstd", "none"]
Encryption = Literal["none"]
Buffer = bytes | bytearray | memoryview

FORMAT_VERSION = 1
_MAX_HEADER = 4096
_MAX_WINDOW = 1 << 23
"""Bytes that a zstd frame may ask its reader to remember; levels up to `_MAX_LEVEL` ask for no more."""
_MAX_LEVEL = 19
_OUTPUT = 256 << 10
_STEP = 1 << 20


@dataclass(frozen=True, slots=True)
class Envelope:
    """What was done to the data of an object. Sizes in bytes, hashes in hex.

    `stored_*` are those of the payload as it is stored (without the header line), `raw_*` those of the data.
    `raw_sha256` is there where equal content must be recognised whatever the codec.
    """

    codec: Codec
    encryption: Encryption
    stored_sha256: str
    stored_size: int
    raw_size: int
    raw_sha256: str | None = None

    def header(self) -> bytes:
        """The header line."""
        fields: dict[str, object] = {
            "format_version": FORMAT_VERSION,
            "codec": self.codec,
            "encryption": self.encryption,
            "stored_sha256": self.stored_sha256,
            "stored_size": self.stored_size,
            "raw_size": self.raw_size,
        }
        return seal(fields if self.raw_sha256 is None else fields | {"raw_sha256": self.raw_sha256})


@dataclass(frozen=True, slots=True)
class Wrapped:
    """Data ready to be stored: `chunks` one after another are the object."""

    envelope: Envelope
    chunks: Sequence[bytes | memoryview]


_kept = threading.local()


def _compressor(level: int) -> zstandard.ZstdCompressor:
    # A compressor is not to be shared between threads, and costs more to make than a small object to compress.
    compressors: dict[int, zstandard.ZstdCompressor] = _kept.__dict__.setdefault("compressors", {})
    if level not in compressors:
        compressors[level] = zstandard.ZstdCompressor(level=level)
    return compressors[level]


def _decompressor() -> zstandard.ZstdDecompressor:
    if not hasattr(_kept, "decompressor"):
        _kept.decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
    decompressor: zstandard.ZstdDecompressor = _kept.decompressor
    return decompressor


def wrap(raw: Buffer, *, codec: Codec = "zstd", level: int = 1, hash_raw: bool = False) -> Wrapped:
    """Compress and hash `raw`. Takes as much memory as the result; with codec "none" the chunks are views of `raw`."""
    if not 1 <= level <= _MAX_LEVEL:
        raise ValueError(f"level {level} makes objects that readers refuse; 1 to {_MAX_LEVEL} is possible")
    view = memoryview(raw).cast("B")
    raw_hash = hashlib.sha256(view).hexdigest() if hash_raw else None
    stored: list[bytes | memoryview] = []
    stored_hash = hashlib.sha256()
    if codec == "none":
        stored.append(view)
        stored_hash.update(view)
    else:
        # In chunks that the allocator keeps and the cache holds: one large result costs more in page faults.
        chunker = _compressor(level).chunker(size=len(view), chunk_size=_OUTPUT)
        for start in range(0, len(view), _STEP):
            for chunk in chunker.compress(view[start : start + _STEP]):
                stored_hash.update(chunk)
                stored.append(chunk)
        for chunk in chunker.finish():  # type: ignore[no-untyped-call]
            stored_hash.update(chunk)
            stored.append(chunk)
    envelope = Envelope(
        codec=codec,
        encryption="none",
        stored_sha256=stored_hash.hexdigest(),
        stored_size=sum(len(chunk) for chunk in stored),
        raw_size=len(view),
        raw_sha256=raw_hash,
    )
    return Wrapped(envelope, [envelope.header(), *stored])


def unwrap(stream: BinaryIO, *, max_raw: int, expected_sha256: str | None = None) -> tuple[Envelope, bytes]:
    """Read an object whole; its data may have `max_raw` bytes at most. Raises as `unwrap_to` does."""
    raw = bytearray()
    envelope = unwrap_to(stream, raw.extend, max_raw=max_raw, expected_sha256=expected_sha256)
    return envelope, bytes(raw)


def unwrap_to(
    stream: BinaryIO, take: Callable[[memoryview], object], *, max_raw: int, expected_sha256: str | None = None
) -> Envelope:
    """Read an object piece by piece, in bounded memory: `take` is given its data, each piece valid until it returns.

    It is given them while they are in the processor's cache, which is before all could be checked: what was taken is
    worth something only once this has returned. Never more than `max_raw` bytes, and what the header says.
    `expected_sha256` is the stored hash that the manifest names. Errors name the object by `stream.name`.

    Raises ObjectCorrupt where anything differs from what was written, FormatTooNew, and what `take` raises.
    """
    envelope = _read_header(stream, expected_sha256)
    if envelope.raw_size > max_raw:
        subject = _subject(stream)
        raise ObjectCorrupt(f"{subject} claims to hold {envelope.raw_size} bytes, at most {max_raw} are expected")
    payload = _Payload(stream, envelope)
    raw_hash = hashlib.sha256() if envelope.raw_sha256 else None
    done = 0
    for piece in _pieces(payload):
        done += len(piece)
        if done > envelope.raw_size:
            break
        if raw_hash is not None:
            raw_hash.update(piece)
        take(piece)
    payload.finish()
    if done != envelope.raw_size:
        raise ObjectCorrupt(f"{payload.subject} does not hold the {envelope.raw_size} bytes that its header describes")
    if raw_hash is not None and raw_hash.hexdigest() != envelope.raw_sha256:
        raise ObjectCorrupt(f"{payload.subject} does not hold the data that its header describes")
    return envelope


def check(stream: BinaryIO, *, expected_sha256: str | None = None, decompress: bool = False) -> Envelope:
    """Read an object back and compare its hash and sizes with its header, and with `expected_sha256`.

    With `decompress` its data is also brought back, whatever its size. Raises as `unwrap_to` does.
    """
    if decompress:
        return unwrap_to(stream, len, max_raw=sys.maxsize, expected_sha256=expected_sha256)
    envelope = _read_header(stream, expected_sha256)
    _Payload(stream, envelope).finish()
    return envelope


class _Payload:
    """What follows the header line: read piece by piece into one buffer, hashed on the way."""

    def __init__(self, stream: BinaryIO, envelope: Envelope) -> None:
        self.subject = _subject(stream)
        self.envelope = envelope
        self._stream = stream
        self._left = envelope.stored_size
        self._hash = hashlib.sha256()
        self._view = memoryview(bytearray(max(1, min(_STEP, self._left))))

    def read(self, _size: int = -1) -> memoryview:
        """The next piece, valid until the next call; empty at the end. What the decompressor calls."""
        piece = self._view[: self._left]
        got: int = self._stream.readinto(piece) if piece else 0  # type: ignore[attr-defined]
        self._hash.update(piece[:got])
        self._left -= got
        return piece[:got]

    def finish(self) -> None:
        """Read what is left, and raise ObjectCorrupt unless the payload was the one that the header describes."""
        while self.read():
            pass
        if self._left:
            raise ObjectCorrupt(f"{self.subject} is truncated: {self._left} bytes are missing")
        if self._hash.hexdigest() != self.envelope.stored_sha256:
            raise ObjectCorrupt(f"{self.subject} is damaged: its hash does not match")
        if self._stream.read(1):
            raise ObjectCorrupt(f"{self.subject} is longer than its header says")


def _pieces(payload: _Payload) -> Iterator[memoryview]:
    if payload.envelope.codec == "none":
        while piece := payload.read():
            yield piece
        return
    buffer = memoryview(bytearray(min(_STEP, payload.envelope.raw_size + 1)))
    with _decompressor().stream_reader(payload, read_size=_STEP, closefd=False) as reader:  # type: ignore[arg-type]
        while got := _decompress_some(reader, buffer, payload):
            yield buffer[:got]


def _decompress_some(reader: zstandard.ZstdDecompressionReader, target: memoryview, payload: _Payload) -> int:
    try:
        return reader.readinto(target)
    except zstandard.ZstdError as error:
        # That the stored bytes changed explains more than what the decompressor makes of them.
        payload.finish()
        raise ObjectCorrupt(f"{payload.subject} cannot be decompressed: {error}") from None


def _read_header(stream: BinaryIO, expected_sha256: str | None) -> Envelope:
    subject = _subject(stream)
    fields = unseal(stream.readline(_MAX_HEADER), what=f"the header of {subject}")
    version = fields.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise FormatTooNew(
            f"{subject} was written in format {version}, this version reads up to {FORMAT_VERSION}",
            hint="use the version of dr_pipelines that wrote it, or a newer one",
        )
    codec, encryption, raw_sha256 = fields.get("codec"), fields.get("encryption"), fields.get("raw_sha256")
    if not known_codec(codec, encryption):
        raise FormatTooNew(
            f"{subject} is stored with codec {codec!r} and encryption {encryption!r}, which this version does not know",
            hint="use the version of dr_pipelines that wrote it, or a newer one",
        )
    stored_sha256 = fields.get("stored_sha256")
    stored_size, raw_size = fields.get("stored_size"), fields.get("raw_size")
    if not (_is_size(stored_size) and _is_size(raw_size) and _is_hash(stored_sha256)):
        raise ObjectCorrupt(f"the header of {subject} lacks sizes or a hash")
    if codec == "none" and stored_size != raw_size:
        raise ObjectCorrupt(f"{subject} does not hold the {raw_size} bytes that its header describes")
    if raw_sha256 is not None and not _is_hash(raw_sha256):
        raise ObjectCorrupt(f"the header of {subject} has a raw_sha256 that is no hash")
    if expected_sha256 is not None and stored_sha256 != expected_sha256:
        raise ObjectCorrupt(f"{subject} is whole, but not the object that is expected there: {stored_sha256}")
    return Envelope(codec, encryption, stored_sha256, stored_size, raw_size, raw_sha256)  # type: ignore[arg-type]


def known_codec(codec: object, encryption: object) -> bool:
    """Whether this version can read what was stored so."""
    return codec in get_args(Codec) and encryption in get_args(Encryption)


def _is_size(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_hash(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def _subject(stream: BinaryIO) -> str:
    return str(getattr(stream, "name", "the object"))
