"""The pieces in which a segment that is not full yet reaches the repository. Pure.

While a receiver writes a segment, what it has is stored as chunks, `log/<timeline>/<segment>.chunks/<start>-<end>`:
the bytes from `start` up to, not including, `end`, both eight hexadecimal digits that count from the segment's
beginning. No chunk is ever replaced. From time to time a later chunk holds again what earlier ones hold, which then go;
so of all that are there, those count that lead furthest.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

__all__ = ["SUFFIX", "Chunk", "covering", "next_start", "reach"]

SUFFIX = ".chunks"
_NAME = re.compile(r"([0-9a-f]{8})-([0-9a-f]{8})")


@dataclass(frozen=True, order=True, slots=True)
class Chunk:
    """The bytes of a segment from `start` up to `end`."""

    start: int
    end: int

    @classmethod
    def of_name(cls, name: str) -> Self | None:
        """Read a chunk's name; None for anything else."""
        match = _NAME.fullmatch(name)
        if match is None or int(match[1], 16) >= int(match[2], 16):
            return None
        return cls(int(match[1], 16), int(match[2], 16))

    @property
    def name(self) -> str:
        """The last part of its key."""
        return f"{self.start:08x}-{self.end:08x}"

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start


def covering(chunks: Iterable[Chunk]) -> tuple[Chunk, ...]:
    """Those that hold everything from the segment's beginning to where that is unbroken, as few as possible."""
    chosen: list[Chunk] = []
    best: Chunk | None = None
    for chunk in sorted(chunks):
        if chunk.start > reach(chosen):
            if best is None or best.end < chunk.start:
                break
            chosen.append(best)
            best = None
        if chunk.end > (best.end if best else reach(chosen)):
            best = chunk
    return (*chosen, best) if best else tuple(chosen)


def reach(cover: Iterable[Chunk]) -> int:
    """Up to where the chunks of a cover lead, in bytes from the segment's beginning."""
    return max((chunk.end for chunk in cover), default=0)


def next_start(cover: Iterable[Chunk], end: int) -> int:
    """Where a new chunk that leads to `end` is to begin.

    It takes those before it in that are no larger than itself. So each is larger than the next, a segment never has
    many, and every byte is stored some times over, not each time anew: the number of both grows with the logarithm.
    """
    ordered = sorted(cover)
    start = reach(ordered)
    while ordered and ordered[-1].size <= end - start:
        start = ordered.pop().start
    return start
