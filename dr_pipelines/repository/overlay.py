"""A store that reads from one place and writes to another, for a repository that can only be read."""

import builtins
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from heapq import merge
from typing import BinaryIO

from dr_pipelines.repository.store import LARGEST_DOCUMENT, Chunk, ObjectInfo, Store

__all__ = ["Overlay"]


class Overlay:
    """What is in `base`, with what was put into `layer` on top of it; `base` is never written to. See `Store`.

    Only what lies in the layer can be deleted.
    """

    def __init__(self, base: Store, layer: Store) -> None:
        self._base, self._layer = base, layer

    @property
    def url(self) -> str:
        return self._base.url

    def put(self, key: str, chunks: Sequence[Chunk]) -> None:
        self._layer.put(key, chunks)

    def put_if_absent(self, key: str, chunks: Sequence[Chunk]) -> bool:
        return self._base.info(key) is None and self._layer.put_if_absent(key, chunks)

    @contextmanager
    def open(self, key: str) -> Iterator[BinaryIO]:
        with self._holder(key).open(key) as stream:
            yield stream

    def get(self, key: str, *, at_most: int = LARGEST_DOCUMENT) -> bytes:
        return self._holder(key).get(key, at_most=at_most)

    def info(self, key: str) -> ObjectInfo | None:
        return self._layer.info(key) or self._base.info(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        last = None
        # Of two with the same key the layer's comes first, and stands for both.
        for found in merge(self._layer.list(prefix), self._base.list(prefix), key=lambda info: info.key):
            if found.key != last:
                yield found
            last = found.key

    def names(self, prefix: str) -> builtins.list[str]:
        return sorted({*self._layer.names(prefix), *self._base.names(prefix)})

    def delete(self, key: str) -> None:
        self._layer.delete(key)

    def child(self, prefix: str) -> "Overlay":
        return Overlay(self._base.child(prefix), self._layer.child(prefix))

    def free_bytes(self) -> int | None:
        return self._layer.free_bytes()

    def _holder(self, key: str) -> Store:
        return self._layer if self._layer.info(key) is not None else self._base
