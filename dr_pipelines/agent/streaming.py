"""A streamed log, seen from the agent: the receiver of the cluster, what it has that is not full, what is wrong."""

from pathlib import Path

from dr_pipelines.agent.cluster import Cluster
from dr_pipelines.agent.partial import Partials
from dr_pipelines.agent.receiver import Receiver, Stream
from dr_pipelines.agent.sampler import Answer, Sampler, Slot
from dr_pipelines.timing import Clock, format_bytes

__all__ = ["Streaming"]

_LITTLE_ROOM = 0.2
"""The share of what a slot may hold below which it is told that little is left."""


class Streaming:
    """The receiver of one cluster at a time, and the chunks of what it has received."""

    def __init__(self, stream: Stream, dsn: str, clock: Clock) -> None:
        self._stream, self._dsn, self._clock = stream, dsn, clock
        self._receiver: Receiver | None = None
        self._partials: Partials | None = None
        self._folder: Path | None = None
        self._slot: Slot | None = None
        self._shipped_at = float("-inf")
        self._all_shipped = self._ended = False

    def open(self, cluster: Cluster, folder: Path, level: int) -> None:
        """From now on it is this cluster's log, in that folder."""
        self._stop()
        self._folder, self._slot = folder, None
        self._partials = Partials(folder, cluster, level=level)

    def follow(self, answer: Answer) -> None:
        """The server has answered: have its log received, and take what it says of that."""
        assert self._folder is not None
        if self._receiver is None:
            if self._ended:
                return
            self._receiver = Receiver(self._dsn, self._stream, self._folder, answer.major)
            self._receiver.start()
        self._slot = answer.slot
        if answer.slot is not None and answer.slot.active and not self._receiver.at_rest:
            self._receiver.streams()

    def end(self) -> None:
        """Receive nothing more; what has come can still be shipped."""
        self._ended = True
        self._stop()

    def _stop(self) -> None:
        if self._receiver is not None:
            self._receiver.stop()
            self._receiver = None

    def ship(self, *, at_once: bool) -> int:
        """Store what has come, every second or so; returns the bytes. Raises as `Partials.ship` does."""
        now = self._clock.monotonic()
        if self._partials is None or not (at_once or now - self._shipped_at >= self._stream.chunk_every):
            return 0
        at_rest = self._receiver is None or self._receiver.at_rest
        shipped = self._partials.ship()
        if at_rest and self._receiver is not None and self._receiver.cannot_go_on:
            self._partials.remove()
        self._shipped_at, self._all_shipped = now, at_rest
        return shipped

    def receiving(self, sampler: Sampler | None) -> bool:
        """The server has just said that it sends its log."""
        up = sampler is not None and sampler.up
        return up and self._slot is not None and self._slot.active and self._receiver is not None

    def drained(self, sampler: Sampler | None) -> bool:
        """The server is away, and all that had come is stored."""
        return self._all_shipped and (sampler is None or not sampler.up)

    def problems(self, sampler: Sampler | None) -> dict[str, str | None]:
        """What is wrong, by what it is about; None for what is right."""
        up = sampler is not None and sampler.up
        receiving = self._receiver.problem if self._receiver is not None and up else None
        return {
            "receiver": f"the log is not received: {receiving}" if receiving else None,
            "slot": self._about_slot() if up else None,
        }

    def _about_slot(self) -> str | None:
        slot = self._slot
        if slot is None:
            return None
        name = self._stream.slot
        if slot.wal_status == "lost":
            return (
                f"the server has let go of what the slot {name} had to hold (max_slot_wal_keep_size): the log has a "
                "hole, and a full backup makes a new start"
            )
        if slot.wal_status == "unreserved":
            return f"the slot {name} holds more than max_slot_wal_keep_size allows, and is lost at the next checkpoint"
        if slot.room_bytes is not None and slot.room_bytes < _LITTLE_ROOM * (slot.room_bytes + slot.held_bytes):
            return (
                f"the slot {name} holds {format_bytes(slot.held_bytes)} of the server's log, and "
                f"{format_bytes(max(slot.room_bytes, 0))} are left of what it may"
            )
        return None
