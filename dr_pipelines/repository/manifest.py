"""Backup manifests, the same for every engine: what a backup holds and where each piece of it lies.

The store of these functions is that of one database system, `services/<service>/<system_identifier>`; a part's key is
relative to it. A backup is complete when its manifest is there: it is written last and removed first.

Whoever makes a backup may sleep, lose its lock and wake up only to write the manifest. So before what it left is
removed, a tombstone takes the manifest's key, which nothing but its age takes away again.
"""

import hashlib
import logging
import posixpath
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Annotated, Literal, NamedTuple

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from dr_pipelines.errors import FormatTooNew, ObjectConflict, ObjectCorrupt, ObjectMissing, RepositoryError
from dr_pipelines.repository.envelope import Codec, Encryption, known_codec
from dr_pipelines.repository.identifiers import check_name, is_name, moment_of, timed_id
from dr_pipelines.repository.sealed import seal, unseal
from dr_pipelines.repository.store import Store, check_key

__all__ = [
    "FORMATS",
    "BackupSurvey",
    "FileEntry",
    "Manifest",
    "Part",
    "Range",
    "backup_ids",
    "clear_incomplete",
    "delete_backup",
    "list_backups",
    "manifest_sha256",
    "new_backup_id",
    "part_key",
    "read_manifest",
    "retire_backup",
    "revive_backup",
    "survey_backups",
    "write_manifest",
]

FORMAT_VERSION = 1
FORMATS = {"full": 1, "incremental": 2}
"""By kind, the version of a manifest's format: who knows no incrementals would take one for a whole backup."""
_NEWEST_FORMAT = max(FORMATS.values())
_MAX_MANIFEST = 256 << 20
"""Bytes; some millions of files have less."""
_MAX_PART = 1 << 30
TOMBSTONE_STAYS = timedelta(days=7)
"""Far longer than anybody can be thought to sleep between confirming the lock and writing the manifest."""
_MANIFEST = "manifest.json"
_ABANDONED = "abandoned"
"""What a tombstone says in the place of a manifest."""
_log = logging.getLogger(__name__)

# Strict, since "1" or 1.0 for a size would be the work of something else than this project.
Size = Annotated[int, Field(strict=True, ge=0, le=1 << 50)]
PartSize = Annotated[int, Field(strict=True, ge=0, le=_MAX_PART)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Range(NamedTuple):
    """`length` bytes from `offset` of the file with the index `file` in the manifest's list."""

    file: Size
    offset: Size
    length: Annotated[int, Field(strict=True, ge=1, le=_MAX_PART)]


class _Model(BaseModel):
    # What a later version adds without raising the format's version may be ignored (docs/repository-format.md).
    model_config = ConfigDict(frozen=True, extra="ignore")


class FileEntry(_Model):
    """A file, folder or symbolic link; `path` is relative to the target, `link` is where a link points to.

    A byte of a name that is not UTF-8 is kept as Python's `surrogateescape` has it. `mode` is the permission bits.
    """

    path: str
    kind: Literal["file", "folder", "link"]
    mode: Annotated[int, Field(strict=True, ge=0, le=0o3777)]  # no setuid: whoever restores may be root
    size: Size
    link: str | None = None

    @field_validator("path")
    @classmethod
    def _stays_inside(cls, path: str) -> str:
        _refuse_odd_name(path)
        if path.startswith("/") or any(name in ("", ".", "..") for name in path.split("/")):
            raise ValueError(f"the path {path!r} is not a plain relative one")
        return path

    @model_validator(mode="after")
    def _fits_its_kind(self) -> "FileEntry":
        if self.kind != "file" and self.size:
            raise ValueError(f"{self.path!r} is a {self.kind} and cannot have a size")
        if (self.kind == "link") != (self.link is not None):
            raise ValueError(f"{self.path!r} is a {self.kind}, its link is {self.link!r}")
        if self.link is not None:
            _refuse_odd_name(self.link)
            reached = posixpath.normpath(posixpath.join(posixpath.dirname(self.path), self.link))
            if self.link.startswith("/") or not self.link or reached.split("/")[0] == "..":
                raise ValueError(f"the link {self.path!r} leads out of the target, to {self.link!r}")
        return self


class Part(_Model):
    """One object of a backup: its data is that of its ranges, one after another."""

    key: str
    codec: Codec
    encryption: Encryption
    stored_sha256: Sha256
    stored_size: PartSize
    raw_size: PartSize
    ranges: tuple[Range, ...]

    @model_validator(mode="after")
    def _is_filled_by_its_ranges(self) -> "Part":
        held = sum(piece.length for piece in self.ranges)
        if held != self.raw_size:
            raise ValueError(f"the ranges of {self.key!r} are {held} bytes, its raw_size is {self.raw_size}")
        return self


class Manifest(_Model):
    """What a backup holds. Made or read, it does not contradict itself: every file is covered once, by the parts.

    `parent` is the backup that an incremental one is based on: without it, it cannot be restored.
    """

    format_version: Annotated[int, Field(strict=True, ge=1)] = FORMAT_VERSION
    backup_id: str
    service: str
    engine: str
    kind: Literal["full", "incremental"] = "full"
    parent: str | None = None
    system_identifier: str
    server_version: str
    tool_version: str
    started_at: AwareDatetime
    stopped_at: AwareDatetime
    files: tuple[FileEntry, ...]
    parts: tuple[Part, ...]
    details: Mapping[str, str | int] = Field(default_factory=dict, description="the engine's own")

    @cached_property
    def raw_bytes(self) -> int:
        """Bytes of file data."""
        return sum(part.raw_size for part in self.parts)

    @cached_property
    def stored_bytes(self) -> int:
        """Bytes in the repository, without header lines and the manifest."""
        return sum(part.stored_size for part in self.parts)

    @model_validator(mode="after")
    def _does_not_contradict_itself(self) -> "Manifest":
        try:
            check_name(self.backup_id, "backup")
        except RepositoryError as error:
            raise ValueError(str(error)) from None
        if self.stopped_at < self.started_at:
            raise ValueError("it stopped before it started")
        _refuse_wrong_parent(self)
        _refuse_entries_below_others(self.files)
        _refuse_foreign_parts(self.backup_id, self.parts)
        _refuse_gaps(self.files, self.parts)
        return self


def _refuse_wrong_parent(manifest: Manifest) -> None:
    if manifest.format_version != FORMATS[manifest.kind]:
        raise ValueError(f"the manifest of a backup of kind {manifest.kind} has format {FORMATS[manifest.kind]}")
    if (manifest.kind == "incremental") != (manifest.parent is not None):
        raise ValueError(f"it is {manifest.kind}, its parent is {manifest.parent!r}")
    if manifest.parent is not None:
        try:
            check_name(manifest.parent, "backup")
        except RepositoryError as error:
            raise ValueError(str(error)) from None
        if manifest.parent == manifest.backup_id:
            raise ValueError("it is its own parent")


def _refuse_odd_name(text: str) -> None:
    if "\0" in text:
        raise ValueError("a path has a NUL character")
    try:
        text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        raise ValueError(f"the path {text!r} is not text") from None


def _refuse_entries_below_others(files: tuple[FileEntry, ...]) -> None:
    kinds = {entry.path: entry.kind for entry in files}
    if len(kinds) != len(files):
        raise ValueError("a path is there twice")
    for path in kinds:
        above = posixpath.dirname(path)
        while above:
            # A file written below a link would land wherever the link leads to.
            if kinds.get(above, "folder") != "folder":
                raise ValueError(f"{path!r} lies below {above!r}, which is a {kinds[above]}")
            above = posixpath.dirname(above)


def _refuse_foreign_parts(backup_id: str, parts: tuple[Part, ...]) -> None:
    seen = set()
    for part in parts:
        folder, _, number = part.key.rpartition("/")
        if f"{folder}/" != part_key(backup_id, 0)[:-6] or not (number.isascii() and number.isdigit()):
            raise ValueError(f"{part.key!r} cannot be the key of a part of this backup")
        seen.add(check_key(part.key))
    if len(seen) != len(parts):
        raise ValueError("two parts have the same key")


def _refuse_gaps(files: tuple[FileEntry, ...], parts: tuple[Part, ...]) -> None:
    covered: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for part in parts:
        for piece in part.ranges:
            covered[piece.file].append((piece.offset, piece.length))
    if covered and max(covered) >= len(files):
        raise ValueError(f"a part holds data of file {max(covered)}, there are {len(files)}")
    for index, entry in enumerate(files):
        reached = 0
        for offset, length in sorted(covered.get(index, ())):
            if offset != reached:
                raise ValueError(f"{entry.path!r} is {'missing' if offset > reached else 'held twice'} at {reached}")
            reached += length
        if reached != entry.size:
            raise ValueError(f"the parts hold {reached} bytes of {entry.path!r}, which has {entry.size}")


@dataclass(frozen=True)
class BackupSurvey:
    """All backups of a system: complete ones newest first, ids without a manifest, ids whose manifest is refused.

    `abandoned` are the ids of which nothing is left but the tombstone.
    """

    complete: tuple[Manifest, ...]
    incomplete: tuple[str, ...]
    damaged: tuple[tuple[str, RepositoryError], ...]
    abandoned: tuple[str, ...]


def new_backup_id(kind: str, moment: datetime) -> str:
    """An id such as 20260301T120000Z-full-9f86d0; sorts by time."""
    return timed_id(kind, moment)


def part_key(backup_id: str, number: int) -> str:
    """The key of a backup's part, relative to the system's store."""
    return f"backups/{backup_id}/parts/{number:06d}"


def _manifest_key(backup_id: str) -> str:
    return f"backups/{check_name(backup_id, 'backup')}/{_MANIFEST}"


def write_manifest(store: Store, manifest: Manifest) -> None:
    """Make the backup complete; its parts must be stored.

    Raises ObjectConflict where another manifest is there, or a tombstone, since then its parts are gone.
    """
    key = _manifest_key(manifest.backup_id)
    data = seal(manifest.model_dump(mode="json", exclude_none=True))
    if not store.put_if_absent(key, [data]) and store.get(key, at_most=_MAX_MANIFEST) != data:
        if _is_abandoned(store, manifest.backup_id):
            raise ObjectConflict(f"the backup {manifest.backup_id} was taken for dead, and its parts were removed")
        raise ObjectConflict(f"the backup {manifest.backup_id} is complete already, with another manifest")


def read_manifest(store: Store, backup_id: str) -> Manifest:
    """The manifest of a complete backup. Raises ObjectMissing, ObjectCorrupt, FormatTooNew."""
    what = f"the manifest of backup {backup_id}"
    fields = _read_fields(store, backup_id, what)
    if _ABANDONED in fields:
        raise _no_backup(store, backup_id)
    try:
        manifest = Manifest.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ObjectCorrupt(f"{what} cannot be accepted: {where}{': ' if where else ''}{first['msg']}") from None
    if manifest.backup_id != backup_id:
        raise ObjectCorrupt(f"{what} is that of {manifest.backup_id}")
    return manifest


def _read_fields(store: Store, backup_id: str, what: str) -> dict[str, object]:
    """What lies at a manifest's key: a manifest or a tombstone."""
    key = _manifest_key(backup_id)
    try:
        fields = unseal(store.get(key, at_most=_MAX_MANIFEST), what=what)
    except ObjectMissing:
        raise _no_backup(store, backup_id) from None
    _refuse_newer(fields, what)
    return fields


def _no_backup(store: Store, backup_id: str) -> ObjectMissing:
    return ObjectMissing(f"there is no complete backup {backup_id} in {store.url}", hint="dr backup list shows them")


def _is_abandoned(store: Store, backup_id: str) -> bool:
    try:
        return _ABANDONED in _read_fields(store, backup_id, "")
    except (ObjectMissing, ObjectCorrupt, FormatTooNew):
        return False


def manifest_sha256(store: Store, backup_id: str) -> str:
    """The SHA-256 of a complete backup's manifest as it is stored; with the parts' hashes in it, that of the backup."""
    return hashlib.sha256(store.get(_manifest_key(backup_id), at_most=_MAX_MANIFEST)).hexdigest()


def _refuse_newer(fields: Mapping[str, object], what: str) -> None:
    hint = "use the version of dr_pipelines that wrote it, or a newer one"
    version = fields.get("format_version")
    if isinstance(version, int) and version > _NEWEST_FORMAT:
        raise FormatTooNew(f"{what} has format {version}, this version reads up to {_NEWEST_FORMAT}", hint=hint)
    parts = fields.get("parts")
    for part in parts if isinstance(parts, list) else []:
        if isinstance(part, dict) and not known_codec(part.get("codec"), part.get("encryption")):
            raise FormatTooNew(f"{what} names a codec or encryption that this version does not know", hint=hint)


def backup_ids(store: Store) -> list[str]:
    """The ids of all that may be a backup of the system, sorted; what else lies there is none of ours."""
    return [name[:-1] for name in store.names("backups") if name.endswith("/") and is_name(name[:-1])]


def survey_backups(store: Store) -> BackupSurvey:
    """Look at every backup of the system. One damaged manifest does not hide the others."""
    complete: list[Manifest] = []
    missing: list[str] = []
    damaged: list[tuple[str, RepositoryError]] = []
    abandoned: list[str] = []
    for backup_id in backup_ids(store):
        try:
            complete.append(read_manifest(store, backup_id))
        except ObjectMissing:
            bare = store.names(f"backups/{backup_id}") == [_MANIFEST]
            (abandoned if bare else missing).append(backup_id)
        except (ObjectCorrupt, FormatTooNew) as error:
            damaged.append((backup_id, error))
    complete.sort(key=lambda manifest: (manifest.stopped_at, manifest.backup_id), reverse=True)
    return BackupSurvey(tuple(complete), tuple(missing), tuple(damaged), tuple(abandoned))


def list_backups(store: Store) -> list[tuple[str, Manifest]]:
    """The complete backups as (id, manifest), newest first; a manifest that is refused is logged as an error."""
    survey = survey_backups(store)
    for backup_id, error in survey.damaged:
        _log.error("the backup %s cannot be used: %s", backup_id, error)
    return [(manifest.backup_id, manifest) for manifest in survey.complete]


def clear_incomplete(store: Store, now: datetime, survey: BackupSurvey | None = None) -> tuple[str, ...]:
    """Remove what interrupted backups left; returns their ids. For whoever holds the lock for backups.

    Their tombstones stay, and those go that have stood for `TOMBSTONE_STAYS`. `survey` is what has been seen of the
    backups since the lock is held.
    """
    survey, removed = survey or survey_backups(store), []
    for backup_id in filter(_is_ours, survey.incomplete):
        # False for a tombstone that stands already, and for a manifest that came in this moment: that backup is whole.
        if store.put_if_absent(_manifest_key(backup_id), [_tombstone(backup_id)]) or _is_abandoned(store, backup_id):
            delete_backup(store, backup_id)
            removed.append(backup_id)
    for backup_id in survey.abandoned:
        info = store.info(_manifest_key(backup_id))
        if info is not None and now - info.modified > TOMBSTONE_STAYS:
            store.delete(info.key)
    return tuple(removed)


def _is_ours(backup_id: str) -> bool:
    """Whether this project gave the id: what somebody keeps there under another name is not removed."""
    try:
        moment_of(backup_id)
    except ValueError:
        return False
    return True


def _tombstone(backup_id: str) -> bytes:
    return seal({"format_version": FORMAT_VERSION, "backup_id": backup_id, _ABANDONED: True})


def retire_backup(store: Store, backup_id: str) -> bytes:
    """Put a tombstone in the place of a backup's manifest, and return that; `delete_backup` removes the rest then.

    From now on it lists as incomplete, for nobody to begin with. For whoever holds the lock for backups. Raises
    ObjectMissing where there is nothing in that place.
    """
    manifest = store.get(_manifest_key(backup_id))
    store.put(_manifest_key(backup_id), [_tombstone(backup_id)])
    return manifest


def revive_backup(store: Store, backup_id: str, manifest: bytes) -> None:
    """Take back `retire_backup`, whose result is given; nothing of the backup must have been removed since."""
    store.put(_manifest_key(backup_id), [manifest])


def delete_backup(store: Store, backup_id: str) -> None:
    """Remove the backup, its manifest first, so that what an interruption leaves lists as incomplete. Idempotent.

    A tombstone stays.
    """
    key = _manifest_key(backup_id)
    if not _is_abandoned(store, backup_id):
        store.delete(key)
    for found in list(store.list(f"backups/{backup_id}/")):
        if found.key != key:
            store.delete(found.key)
