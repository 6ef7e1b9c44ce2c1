"""The continuous log of one PostgreSQL cluster in the repository: `log/<timeline>/<file name>`, and `position.json`.

Every file is stored once, compressed and hashed, under the name that PostgreSQL gave it, and never replaced: a second
one of that name is either the same or an error. Clusters do not mix, since the place is that of one system identifier.
"""

from enum import StrEnum

from pydantic import ValidationError

from dr_pipelines.engines.postgres.chain import Chain, StoredSegment, follow
from dr_pipelines.engines.postgres.position import POSITION_VERSION, Position
from dr_pipelines.engines.postgres.wal import FileKind, Lsn, Switch, kind_of, parse_history, timeline_of
from dr_pipelines.errors import FormatTooNew, ObjectConflict, ObjectCorrupt, ObjectMissing, UsageError
from dr_pipelines.repository.envelope import unwrap, wrap
from dr_pipelines.repository.sealed import seal, unseal
from dr_pipelines.repository.store import Store

__all__ = ["POSITION_KEY", "Chain", "Log", "Stored", "StoredSegment"]

POSITION_KEY = "position.json"
_LARGEST = 1 << 30


class Stored(StrEnum):
    """What became of a file that was to be stored."""

    NEW = "new"
    SAME = "same"
    """It was there already, with the same content."""


class Log:
    """The stored log of one cluster; `store` is the place services/<service>/<system identifier> of the repository."""

    def __init__(self, store: Store) -> None:
        self.store = store

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
            raise ObjectConflict(
                f"{name} is stored already, with other content",
                hint=f"does a second server archive to {self.store.url}? compare with `dr backup verify`",
            )
        return Stored.SAME

    def has(self, name: str) -> bool:
        """Whether a file of this name is stored."""
        return self.store.info(_key(name)) is not None

    def fetch(self, name: str) -> bytes:
        """A file of the log as PostgreSQL handed it over. Raises ObjectMissing, ObjectCorrupt."""
        with self.store.open(_key(name)) as stream:
            return unwrap(stream, max_raw=_LARGEST)[1]

    def segments(self) -> tuple[StoredSegment, ...]:
        """The segments that are stored, sorted by name: by timeline, then by position."""
        return self._listing()[0]

    def chain(self, start: Lsn, timeline: int, segment_size: int) -> Chain:
        """What is stored from `start` on `timeline` on, along the newest timeline that descends from there."""
        segments, histories = self._listing()
        return follow(start, timeline, segment_size, segments, self._histories(histories))

    def read_position(self) -> Position | None:
        """What the agent said last; None where it never did. Raises ObjectCorrupt, FormatTooNew."""
        try:
            document = unseal(self.store.get(POSITION_KEY), what=POSITION_KEY)
        except ObjectMissing:
            return None
        version = document.get("position_version")
        if isinstance(version, int) and version > POSITION_VERSION:
            raise FormatTooNew(f"{POSITION_KEY} has version {version}; this project reads up to {POSITION_VERSION}")
        try:
            return Position.model_validate(document)
        except ValidationError as error:
            raise ObjectCorrupt(f"{POSITION_KEY} cannot be read: {error}") from None

    def write_position(self, position: Position) -> None:
        """Replace what the agent said last."""
        self.store.put(POSITION_KEY, [seal(position.model_dump(mode="json"))])

    def _listing(self) -> tuple[tuple[StoredSegment, ...], tuple[str, ...]]:
        segments: list[StoredSegment] = []
        histories: list[str] = []
        for found in self.store.list("log/"):
            name = found.key.rpartition("/")[2]
            kind = kind_of(name)
            if kind is FileKind.SEGMENT:
                segments.append(StoredSegment(name, found.size, found.modified))
            elif kind is FileKind.HISTORY:
                histories.append(name)
        return tuple(sorted(segments, key=lambda segment: segment.name)), tuple(histories)

    def _histories(self, names: tuple[str, ...]) -> dict[int, tuple[Switch, ...]]:
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


def _key(name: str) -> str:
    if kind_of(name) is None:
        raise UsageError(f'"{name}" is not the name of a file that PostgreSQL archives')
    return f"log/{name[:8]}/{name}"
