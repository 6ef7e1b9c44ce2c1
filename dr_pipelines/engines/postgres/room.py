"""How much room a restore takes on the target's file system."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dr_pipelines.engines.postgres.blocks import whole_path
from dr_pipelines.engines.postgres.staging import AHEAD
from dr_pipelines.engines.postgres.target import read_note
from dr_pipelines.errors import TargetRefused
from dr_pipelines.repository.manifest import Manifest
from dr_pipelines.timing import format_bytes

__all__ = ["Room", "require_space", "room_for"]

_MARGIN = 256 << 20
"""For what every server writes: its own log, temporary files, a checkpoint's new segments."""
_MAX_WAL_SIZE = 1 << 30
"""PostgreSQL's default, for backups whose manifest does not name it."""


@dataclass(frozen=True)
class Room:
    """Bytes: `least` is what the backup alone takes; with `enough` room will not run out, unless the log is unusual."""

    least: int
    enough: int


def room_for(chain: Sequence[Manifest], log_bytes: int) -> Room:
    """What a restore of the last backup of the chain and of `log_bytes` of log after it takes.

    `enough` is an upper estimate: as if all of the log were new rows, and all blocks of incremental backups too. Most
    log changes pages that are there, or is the empty end of a segment, so that much less may do; compressed page images
    and copied databases can take more.
    """
    manifest = chain[-1]
    replayed = min(log_bytes, int(manifest.details.get("max_wal_size", _MAX_WAL_SIZE)))
    fetched_ahead = min(log_bytes, AHEAD * int(manifest.details["wal_segment_size"]))
    whole, grown = _size_of(chain)
    least = whole + _MARGIN
    return Room(least, least + grown + log_bytes + replayed + fetched_ahead)


def _size_of(chain: Sequence[Manifest]) -> tuple[int, int]:
    """Bytes of the files as they were when last backed up whole, and by how much they may have grown since."""
    sizes = [{entry.path: entry.size for entry in backup.files} for backup in chain]
    whole = grown = 0
    for entry in chain[-1].files:
        path = whole_path(entry)
        for held in reversed(sizes):
            if path in held:
                whole += held[path]
                break
            if path != entry.path:
                grown += held.get(entry.path, 0)
    return whole, grown


def require_space(target: Path, room: Room) -> str | None:
    """Raises TargetRefused where less than the least room is free; a warning where it is less than enough, else None.

    Only a warning, since that is an upper estimate, and no restore is to be stopped that might succeed. What an
    unfinished restore has written there already counts as free.
    """
    folder = target
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < room.enough and read_note(target) is not None:
        free += sum(path.lstat().st_blocks * 512 for path in target.rglob("*"))
    if free < room.least:
        raise TargetRefused(
            f"the restore needs at least {format_bytes(room.least)} and {folder} has {format_bytes(free)} free",
            hint="give a target on another file system",
        )
    if free < room.enough:
        return (
            f"{folder} has {format_bytes(free)} free: enough for the backup, but with the log the restore may take up "
            f"to {format_bytes(room.enough)}, by an upper estimate; where room runs out, it fails"
        )
    return None
