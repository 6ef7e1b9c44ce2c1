"""Single files of a backup, or how they begin: read into memory, from the parts that hold them and no others."""

from collections.abc import Callable, Iterable
from functools import partial

from dr_pipelines.errors import ObjectMissing
from dr_pipelines.repository.envelope import unwrap
from dr_pipelines.repository.manifest import Manifest, Part
from dr_pipelines.repository.patience import patiently
from dr_pipelines.repository.store import Store

__all__ = ["read_beginnings", "read_file"]


def read_file(store: Store, manifest: Manifest, path: str) -> bytes:
    """The content of one file. Raises ObjectMissing where the backup has no such file."""
    index = next((number for number, entry in enumerate(manifest.files) if entry.path == path), None)
    if index is None:
        raise ObjectMissing(f"the backup {manifest.backup_id} holds no {path}")
    size = manifest.files[index].size
    return read_beginnings(store, manifest, [index], lambda _: size)[index]


def read_beginnings(
    store: Store, manifest: Manifest, indexes: Iterable[int], needed: Callable[[bytes], int]
) -> dict[int, bytes]:
    """How some files of a backup begin, by index: of each as many bytes as `needed` says of what is read so far.

    What lies together in few parts is read with few requests. A file that ends before is returned whole.
    """
    found = {index: bytearray() for index in indexes}
    missing = {index for index in found if manifest.files[index].size and needed(b"")}
    # The pieces of a file follow one another in the order of the parts; more than one pass is for other writers.
    while missing:
        before = sum(len(content) for content in found.values())
        for part in manifest.parts:
            if not any(piece.file in missing and piece.offset == len(found[piece.file]) for piece in part.ranges):
                continue
            raw = patiently(partial(_raw, store, part))
            start = 0
            for piece in part.ranges:
                content = found.get(piece.file)
                if content is not None and piece.offset == len(content) and piece.file in missing:
                    content += raw[start : start + piece.length]
                    if len(content) >= min(needed(bytes(content)), manifest.files[piece.file].size):
                        missing.discard(piece.file)
                start += piece.length
        if sum(len(content) for content in found.values()) == before:
            break
    return {index: bytes(content) for index, content in found.items()}


def _raw(store: Store, part: Part) -> bytes:
    with store.open(part.key) as stream:
        return unwrap(stream, max_raw=part.raw_size, expected_sha256=part.stored_sha256)[1]
