"""The continuous log of one PostgreSQL cluster in the repository: `log/<timeline>/<file name>`, and `position.json`.

Every file is stored once, compressed and hashed, under the name that PostgreSQL gave it, and never replaced: a second
one of that name is either the same or an error. Of a segment that is not full yet chunks may be there; once it is
stored whole, they mean nothing. Clusters do not mix, since the place is that of one system identifier.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from pydantic import ValidationError

from dr_pipelines.engines.postgres.chain import Chain, StoredSegment, follow
from dr_pipelines.engines.postgres.chunks import SUFFIX, Chunk, covering, reach
from dr_pipelines.engines.postgres.position import POSITION_VERSION, Position, ServerState
from dr_pipelines.engines.postgres.wal import (
    FileKind,
    Lsn,
    Switch,
    kind_of,
    parse_history,
    read_header,
    timeline_of,
)
from dr_pipelines.errors import FormatTooNew, ObjectConflict, ObjectCorrupt, ObjectMissing, UsageError
from dr_pipelines.repository.envelope import unwrap, unwrap_to, wrap
from dr_pipelines.repository.sealed import seal, unseal
from dr_pipelines.repository.store import Store

__all__ = ["LEFT", "POSITION_KEY", "Chain", "Log", "Stored", "StoredLog", "StoredSegment"]

POSITION_KEY = "position.json"
LEFT = "positions/"
"""What an agent said last of each timeline that was left."""
_SILENT = timedelta(seconds=30)
"""An agent that has said nothing for longer does not keep another one from speaking."""
_LARGEST = 1 << 30
_ATTEMPTS = 5
"""How often chunks are looked for that went while they were read: something that holds more is in their place."""
_LARGEST_NOTE = 1 << 20
"""Bytes of a history or of a note about a backup: they have some lines."""


class Stored(StrEnum):
    """What became of a file that was to be stored."""

    NEW = "new"
    SAME = "same"
    """It was there already, with the same content."""


@dataclass(frozen=True)
class StoredLog:
    """What is stored of a cluster's log, seen at one moment."""

    segments: tuple[StoredSegment, ...]
    """Sorted by name: by timeline, then by position."""
    histories: Mapping[int, tuple[Switch, ...]]
    """By timeline: its ancestors, and where each was left."""
    begun: Mapping[int, datetime]
    """By timeline: when its history was stored, which a server does as it begins it."""


class Log:
    """The stored log of one cluster; `store` is the place services/<service>/<system identifier> of the repository."""

    def __init__(self, store: Store, *, segment_size: int = _LARGEST) -> None:
        """With the cluster's `segment_size` what claims to hold more is refused before any memory is spent on it."""
        self.store = store
        self._segment_size = segment_size
        self._told: Position | None = None

    def put(self, name: str, raw: bytes, *, level: int = 1) -> Stored:
        """Store a file of the log; the same again changes nothing.

        Raises ObjectConflict where other content is stored under that name, and ObjectCorrupt where what is stored
        cannot be read any more; nothing is replaced then. UsageError for a name that PostgreSQL does not archive.
        """
        key = _key(name)
        wrapped = wrap(raw, level=level, hash_raw=True)
        if self.store.put_if_absent(key, wrapped.chunks):
            return Stored.NEW
        # Read whole, not only its envelope: the caller is about to throw its own copy away.
        with self.store.open(key) as stream:
            content = unwrap(stream, max_raw=_LARGEST)[1]
        if content != raw:
            raise ObjectConflict(f"{name} is stored already, with other content", hint=self._whose(name))
        return Stored.SAME

    def _whose(self, name: str) -> str:
        if (timeline := timeline_of(name)) == 1:
            return f"does a second server archive to {self.store.url}? compare with `dr backup verify`"
        return (
            f"another server that was restored from the same log archives timeline {timeline} to {self.store.url}: "
            "stop this one and restore again, which gives it a timeline of its own"
        )

    def has(self, name: str) -> bool:
        """Whether a file of this name is stored, whole."""
        return self.store.info(_key(name)) is not None

    def fetch(self, name: str) -> bytes:
        """A file of the log as PostgreSQL handed it over; a segment of which chunks are stored has zeros behind them.

        That is what a segment holds that is not full, and where a replay of it ends. Raises ObjectMissing,
        ObjectCorrupt.
        """
        raw = bytearray()
        self.fetch_to(name, raw.extend)
        return bytes(raw)

    def fetch_to(self, name: str, take: Callable[[memoryview], object]) -> int:
        """As `fetch`, piece by piece, as `unwrap_to` gives them; returns how many bytes the file has."""
        for _ in range(_ATTEMPTS - 1):
            try:
                return self._fetch_to(name, take)
            except ObjectMissing:
                if not self.chunks(name) and not self.has(name):
                    raise
        return self._fetch_to(name, take)

    def _fetch_to(self, name: str, take: Callable[[memoryview], object]) -> int:
        kind = kind_of(name)
        largest = self._segment_size if kind in (FileKind.SEGMENT, FileKind.PARTIAL) else _LARGEST_NOTE
        try:
            with self.store.open(_key(name)) as stream:
                return unwrap_to(stream, take, max_raw=largest).raw_size
        except ObjectMissing:
            if kind is not FileKind.SEGMENT or not (cover := self.chunks(name)):
                raise
        raw = self.fetch_chunks(name, cover)
        size = read_header(raw).segment_size
        if max(size, len(raw)) > self._segment_size:
            raise ObjectCorrupt(f"the chunks of {name} claim to be of a segment of {size} bytes")
        take(memoryview(raw.ljust(size, b"\0")))
        return size

    def put_chunk(self, name: str, chunk: Chunk, raw: bytes, *, level: int = 1) -> Stored:
        """Store a chunk of the segment `name`, durably. Raises as `put` does."""
        key = f"{_chunks_key(name)}{chunk.name}"
        if self.store.put_if_absent(key, wrap(raw, level=level).chunks):
            return Stored.NEW
        with self.store.open(key) as stream:
            content = unwrap(stream, max_raw=_LARGEST)[1]
        if content != raw:
            raise ObjectConflict(
                f"bytes {chunk.name} of {name} are stored already, with other content",
                hint=f"does a second server's log go to {self.store.url}?",
            )
        return Stored.SAME

    def chunks(self, name: str) -> tuple[Chunk, ...]:
        """The chunks of a segment that lead from its beginning as far as there are any."""
        return covering(self._all_chunks(name))

    def _all_chunks(self, name: str) -> list[Chunk]:
        found = (Chunk.of_name(entry) for entry in self.store.names(_chunks_key(name)))
        return [chunk for chunk in found if chunk is not None]

    def fetch_chunks(self, name: str, cover: tuple[Chunk, ...]) -> bytes:
        """What the chunks of a cover hold, from the segment's beginning on. Raises ObjectMissing, ObjectCorrupt."""
        raw = bytearray()
        for chunk in cover:
            key = f"{_chunks_key(name)}{chunk.name}"
            with self.store.open(key) as stream:
                content = unwrap(stream, max_raw=self._segment_size)[1]
            if len(content) != chunk.size:
                raise ObjectCorrupt(f"{key} holds {len(content)} bytes, its name says {chunk.size}")
            raw[chunk.start :] = content
        return bytes(raw)

    def drop_chunks(self, name: str, keep: tuple[Chunk, ...] = ()) -> None:
        """Remove a segment's chunks but those to `keep`: for whoever stored what takes their place."""
        for chunk in self._all_chunks(name):
            if chunk not in keep:
                self.drop_chunk(name, chunk)

    def drop_chunk(self, name: str, chunk: Chunk) -> None:
        """Remove one chunk, where another one holds what it held."""
        self.store.delete(f"{_chunks_key(name)}{chunk.name}")

    def segments(self) -> tuple[StoredSegment, ...]:
        """The segments that are stored, whole or in part, sorted by name: by timeline, then by position."""
        return self._listing()[0]

    def look(self) -> StoredLog:
        """All that is stored. Raises ObjectCorrupt where a history cannot be read."""
        segments, histories = self._listing()
        begun = {timeline_of(name): moment for name, moment in histories.items()}
        return StoredLog(segments, self.histories(histories), begun)

    def chain(self, start: Lsn, timeline: int, segment_size: int, *, consistent: Lsn | None = None) -> Chain:
        """What is stored from `start` on `timeline` on, along the newest timeline that descends from there.

        One that was left before `consistent` is none.
        """
        stored = self.look()
        return follow(start, timeline, segment_size, stored.segments, stored.histories, consistent=consistent)

    def read_position(self, timeline: int | None = None) -> Position | None:
        """What the agent said last, or last of a timeline that was left; None where it never did.

        Raises ObjectCorrupt, FormatTooNew.
        """
        key = POSITION_KEY if timeline is None else _left_key(timeline)
        try:
            document = unseal(self.store.get(key), what=key)
        except ObjectMissing:
            return None
        version = document.get("position_version")
        if isinstance(version, int) and version > POSITION_VERSION:
            raise FormatTooNew(f"{key} has version {version}; this project reads up to {POSITION_VERSION}")
        try:
            position = Position.model_validate(document)
        except ValidationError as error:
            raise ObjectCorrupt(f"{key} cannot be read: {error}") from None
        if timeline is None:
            self._told = position
        return position

    def write_position(self, position: Position) -> None:
        """Replace what the agent said last; that of a timeline which is left now is kept beside it."""
        told = self._told
        if told is not None and told.timeline is not None and told.timeline != position.timeline:
            self.store.put(_left_key(told.timeline), [seal(told.model_dump(mode="json"))])
        self.store.put(POSITION_KEY, [seal(position.model_dump(mode="json"))])
        self._told = position

    def tell_position(self, position: Position) -> bool:
        """Write it, unless another server has taken the place of this agent's since: then False.

        What that one's agent says stays. Of an older timeline it is kept beside it; of a server that is away nothing is
        said while the other one answers.
        """
        stored = self._stored_position()
        if stored is not None and stored != self._told:
            if position.timeline is not None and position.timeline < (stored.timeline or 0):
                self.store.put(_left_key(position.timeline), [seal(position.model_dump(mode="json"))])
                return False
            recently = position.heartbeat_at - stored.heartbeat_at < _SILENT
            if position.server is ServerState.AWAY and stored.server is ServerState.UP and recently:
                return False
        self.write_position(position)
        return True

    def _stored_position(self) -> Position | None:
        """What is stored now; None where nothing is, or nothing that can be read: then there is nothing to keep."""
        told = self._told
        try:
            return self.read_position()
        except (ObjectCorrupt, FormatTooNew):
            return None
        finally:
            self._told = told

    def _listing(self) -> tuple[tuple[StoredSegment, ...], dict[str, datetime]]:
        segments: dict[str, StoredSegment] = {}
        histories: dict[str, datetime] = {}
        chunks: defaultdict[str, list[tuple[Chunk, int, datetime]]] = defaultdict(list)
        for found in self.store.list("log/"):
            folder, _, name = found.key.rpartition("/")
            kind, chunk = kind_of(name), Chunk.of_name(name)
            if kind is FileKind.SEGMENT:
                segments[name] = StoredSegment(name, found.size, found.modified)
            elif kind is FileKind.HISTORY:
                histories[name] = found.modified
            elif chunk is not None and folder.endswith(SUFFIX):
                segment = folder.rpartition("/")[2].removesuffix(SUFFIX)
                chunks[segment].append((chunk, found.size, found.modified))
        for segment, pieces in chunks.items():
            cover = covering(chunk for chunk, _, _ in pieces)
            if cover and kind_of(segment) is FileKind.SEGMENT and segment not in segments:
                size = sum(size for chunk, size, _ in pieces if chunk in cover)
                newest = max(modified for chunk, _, modified in pieces if chunk in cover)
                segments[segment] = StoredSegment(segment, size, newest, reach(cover))
        return tuple(segments[name] for name in sorted(segments)), histories

    def histories(self, names: Iterable[str]) -> dict[int, tuple[Switch, ...]]:
        """What the history files of these names say, by timeline. Raises ObjectMissing, ObjectCorrupt."""
        return {timeline_of(name): self._history(name) for name in names}

    def _history(self, name: str) -> tuple[Switch, ...]:
        try:
            return parse_history(self.fetch(name).decode(errors="replace"))
        except ObjectCorrupt as error:
            raise ObjectCorrupt(
                f"{name}: {error.message}",
                hint="move the object away; a server of that timeline has the file in pg_wal, and copied to the spool "
                "it is stored again; without it the log ends where the timeline before was left",
            ) from None


def _left_key(timeline: int) -> str:
    return f"{LEFT}{timeline:08X}.json"


def _key(name: str) -> str:
    if kind_of(name) is None:
        raise UsageError(f'"{name}" is not the name of a file that PostgreSQL archives')
    return f"log/{name[:8]}/{name}"


def _chunks_key(name: str) -> str:
    if kind_of(name) is not FileKind.SEGMENT:
        raise UsageError(f'"{name}" is not the name of a segment')
    return f"log/{name[:8]}/{name}{SUFFIX}/"
