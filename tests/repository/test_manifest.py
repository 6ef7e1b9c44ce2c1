"""Manifests: only what describes a whole backup is accepted, and a backup is complete only with one."""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import ValidationError

from dr_pipelines.errors import FormatTooNew, ObjectConflict, ObjectCorrupt, ObjectMissing, RepositoryError
from dr_pipelines.repository.folder import FolderStore
from dr_pipelines.repository.manifest import (
    TOMBSTONE_STAYS,
    BackupSurvey,
    FileEntry,
    Manifest,
    Part,
    Range,
    clear_incomplete,
    delete_backup,
    list_backups,
    manifest_sha256,
    new_backup_id,
    part_key,
    read_manifest,
    survey_backups,
    write_manifest,
)
from dr_pipelines.repository.sealed import seal
from dr_pipelines.repository.store import Chunk, Store

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
ID = "20260301T120000Z-full-9f86d0"


def part(number: int, *ranges: Range, backup_id: str = ID) -> Part:
    return Part(
        key=part_key(backup_id, number),
        codec="zstd",
        encryption="none",
        stored_sha256="0" * 64,
        stored_size=10,
        raw_size=sum(piece.length for piece in ranges),
        ranges=ranges,
    )


def manifest(backup_id: str = ID, *, moment: datetime = NOON) -> Manifest:
    """A backup of four entries in two parts; the file of 150 bytes lies in both."""
    return Manifest(
        backup_id=backup_id,
        service="database",
        engine="postgres",
        system_identifier="7301",
        server_version="18.1",
        tool_version="0.1.0",
        started_at=moment - timedelta(minutes=1),
        stopped_at=moment,
        files=(
            FileEntry(path="base", kind="folder", mode=0o700, size=0),
            FileEntry(path="base/1", kind="file", mode=0o600, size=150),
            FileEntry(path="base/empty \udcff", kind="file", mode=0o600, size=0),
            FileEntry(path="current", kind="link", mode=0o777, size=0, link="base/../base/1"),
        ),
        parts=(
            part(0, Range(1, 0, 100), backup_id=backup_id),
            part(1, Range(file=1, offset=100, length=50), backup_id=backup_id),
        ),
        details={"start_lsn": "0/2000028", "timeline": 1},
    )


def put_backup(store: Store, made: Manifest, *, complete: bool = True) -> Manifest:
    for each in made.parts:
        store.put(each.key, [b"the part"])
    if complete:
        write_manifest(store, made)
    return made


def test_a_manifest_comes_back_as_it_was_written(store: Store) -> None:
    made = put_backup(store, manifest())
    read = read_manifest(store, ID)
    assert read == made
    assert (read.raw_bytes, read.stored_bytes, read.format_version, read.kind) == (150, 20, 1, "full")
    assert (read.parts[1].ranges[0].offset, read.files[1].path) == (100, "base/1")


def test_a_manifest_is_plain_json(folder_store: FolderStore) -> None:
    write_manifest(folder_store, manifest())
    fields = json.loads(folder_store.get(f"backups/{ID}/manifest.json"))
    assert fields["parts"][0]["ranges"] == [[1, 0, 100]]
    assert fields["started_at"] == "2026-03-01T11:59:00Z"
    assert fields["files"][0] == {"path": "base", "kind": "folder", "mode": 448, "size": 0}


def test_writing_it_again_is_harmless_and_another_is_refused(store: Store) -> None:
    write_manifest(store, manifest())
    write_manifest(store, manifest())
    digest = manifest_sha256(store, ID)
    with pytest.raises(ObjectConflict):
        write_manifest(store, manifest(moment=NOON + timedelta(hours=1)))
    assert manifest_sha256(store, ID) == digest


def test_backups_are_listed_newest_first_and_apart_from_incomplete_ones(store: Store) -> None:
    ids = [new_backup_id("full", NOON + timedelta(days=day)) for day in range(3)]
    for day in (1, 0, 2):
        put_backup(store, manifest(ids[day], moment=NOON + timedelta(days=day)), complete=day != 1)
    assert [(found, read.backup_id) for found, read in list_backups(store)] == [(ids[2], ids[2]), (ids[0], ids[0])]
    assert survey_backups(store).incomplete == (ids[1],)
    with pytest.raises(ObjectMissing, match=ids[1]):
        read_manifest(store, ids[1])


def test_a_repository_without_backups_lists_none(store: Store) -> None:
    assert list_backups(store) == []
    assert survey_backups(store).incomplete == ()


def test_one_damaged_manifest_does_not_hide_the_others(
    store: Store, flip: Callable[[Store, str, int], None], caplog: pytest.LogCaptureFixture
) -> None:
    other = new_backup_id("full", NOON)
    for backup_id in (ID, other):
        put_backup(store, manifest(backup_id))
    flip(store, f"backups/{ID}/manifest.json", 100)
    survey = survey_backups(store)
    assert [found.backup_id for found in survey.complete] == [other]
    assert [(found, type(error)) for found, error in survey.damaged] == [(ID, ObjectCorrupt)]
    assert [found for found, _ in list_backups(store)] == [other]
    assert ID in caplog.text
    # It is no leftover that may be tidied away: a person decides.
    assert survey_backups(store).incomplete == ()


def test_a_deleted_backup_is_gone_and_deleting_again_is_harmless(store: Store) -> None:
    other = new_backup_id("full", NOON)
    for backup_id in (ID, other):
        put_backup(store, manifest(backup_id))
    for _ in range(2):
        delete_backup(store, ID)
        assert [found for found, _ in list_backups(store)] == [other]
        assert survey_backups(store).incomplete == ()
        assert list(store.list(f"backups/{ID}/")) == []
    assert len(list(store.list(""))) == 3


class Dying(FolderStore):
    """A store whose user dies at its second delete."""

    deletes = 0

    def delete(self, key: str) -> None:
        self.deletes += 1
        if self.deletes == 2:
            raise KeyboardInterrupt
        super().delete(key)


def test_an_interrupted_deletion_leaves_what_lists_as_incomplete(folder_store: FolderStore) -> None:
    put_backup(folder_store, manifest())
    with pytest.raises(KeyboardInterrupt):
        delete_backup(Dying(folder_store.url), ID)
    assert list_backups(folder_store) == []
    assert survey_backups(folder_store).incomplete == (ID,)


class TestAbandoned:
    """A backup that was taken for dead, and whose maker wakes up."""

    def test_its_manifest_is_refused_once_its_parts_are_removed(self, store: Store) -> None:
        made = put_backup(store, manifest(), complete=False)
        assert clear_incomplete(store, NOON) == (ID,)
        with pytest.raises(ObjectConflict, match="taken for dead"):
            write_manifest(store, made)
        with pytest.raises(ObjectMissing):
            read_manifest(store, ID)
        assert [found.key for found in store.list(f"backups/{ID}/")] == [f"backups/{ID}/manifest.json"]

    def test_it_is_neither_complete_nor_incomplete_nor_damaged(self, store: Store) -> None:
        put_backup(store, manifest(), complete=False)
        clear_incomplete(store, NOON)
        assert survey_backups(store) == BackupSurvey((), (), (), (ID,))
        assert list_backups(store) == []
        assert clear_incomplete(store, NOON) == ()

    def test_parts_that_it_stored_later_are_incomplete_and_removed(self, store: Store) -> None:
        made = put_backup(store, manifest(), complete=False)
        clear_incomplete(store, NOON)
        put_backup(store, made, complete=False)
        assert survey_backups(store).incomplete == (ID,)
        assert clear_incomplete(store, NOON) == (ID,)
        with pytest.raises(ObjectConflict):
            write_manifest(store, made)

    def test_what_it_removes_itself_leaves_the_tombstone(self, store: Store) -> None:
        made = put_backup(store, manifest(), complete=False)
        clear_incomplete(store, NOON)
        put_backup(store, made, complete=False)
        delete_backup(store, ID)
        assert survey_backups(store).abandoned == (ID,)

    def test_one_that_completes_while_others_look_is_kept_whole(self, folder_store: FolderStore) -> None:
        made = put_backup(folder_store, manifest(), complete=False)
        assert clear_incomplete(CompletedMeanwhile(folder_store.url), NOON) == ()
        assert survey_backups(folder_store).complete == (made,)
        assert all(folder_store.info(part.key) for part in made.parts)

    def test_one_whose_clearing_was_interrupted_cannot_be_completed(self, folder_store: FolderStore) -> None:
        made = put_backup(folder_store, manifest(), complete=False)
        with pytest.raises(KeyboardInterrupt):
            clear_incomplete(Dying(folder_store.url), NOON)
        with pytest.raises(ObjectConflict):
            write_manifest(folder_store, made)
        assert survey_backups(folder_store).incomplete == (ID,)

    def test_its_tombstone_goes_when_it_is_old(self, store: Store) -> None:
        put_backup(store, manifest(), complete=False)
        clear_incomplete(store, NOON)
        info = store.info(f"backups/{ID}/manifest.json")
        assert info is not None
        clear_incomplete(store, info.modified + TOMBSTONE_STAYS - timedelta(hours=1))
        assert survey_backups(store).abandoned == (ID,)
        clear_incomplete(store, info.modified + TOMBSTONE_STAYS + timedelta(hours=1))
        assert store.names("backups") == []


class CompletedMeanwhile(FolderStore):
    """A store in which the backup becomes complete right before anybody puts anything in place of its manifest."""

    def put_if_absent(self, key: str, chunks: Sequence[Chunk]) -> bool:
        write_manifest(FolderStore(self.url), manifest())
        return super().put_if_absent(key, chunks)


@pytest.mark.parametrize("backup_id", ["..", "a/b", "", "../other"])
def test_an_id_that_leads_elsewhere_is_no_backups(folder_store: FolderStore, backup_id: str) -> None:
    for act in (read_manifest, delete_backup):
        with pytest.raises(RepositoryError, match="name of a backup"):
            act(folder_store, backup_id)


def test_any_changed_byte_is_found(folder_store: FolderStore, flip: Callable[[Store, str, int], None]) -> None:
    write_manifest(folder_store, manifest())
    key = f"backups/{ID}/manifest.json"
    whole = folder_store.get(key)
    for position in range(0, len(whole), 7):
        flip(folder_store, key, position)
        with pytest.raises(ObjectCorrupt, match=ID):
            read_manifest(folder_store, ID)
        folder_store.put(key, [whole[:position]])
        with pytest.raises(ObjectCorrupt, match=ID):
            read_manifest(folder_store, ID)
        folder_store.put(key, [whole])
    assert read_manifest(folder_store, ID) == manifest()


Fields = dict[str, object]


def hostile(folder_store: FolderStore, change: Callable[[Fields], object]) -> None:
    """Store a manifest with a right hash and a change."""
    fields = manifest().model_dump(mode="json", exclude_none=True)
    change(fields)
    folder_store.put(f"backups/{ID}/manifest.json", [seal(fields)])


def set_at(*path: str | int, to: object) -> Callable[[Fields], None]:
    def change(fields: Fields) -> None:
        place: object = fields
        for step in path[:-1]:
            place = place[step]  # type: ignore[index]
        place[path[-1]] = to  # type: ignore[index]

    return change


def add_file(**changes: object) -> Callable[[Fields], None]:
    def change(fields: Fields) -> None:
        entry = {"path": "new", "kind": "file", "mode": 0o600, "size": 0} | changes
        fields["files"].append(entry)  # type: ignore[attr-defined]

    return change


INCREMENTAL = {"kind": "incremental", "format_version": 2}
HOSTILE: dict[str, tuple[Callable[[Fields], object], str]] = {
    "a path that climbs": (add_file(path="base/../../etc/passwd"), "not a plain relative one"),
    "an absolute path": (add_file(path="/etc/passwd"), "not a plain relative one"),
    "a path with an empty name": (add_file(path="base//x"), "not a plain relative one"),
    "the target itself": (add_file(path=".", kind="folder"), "not a plain relative one"),
    "no path": (add_file(path=""), "not a plain relative one"),
    "a NUL in a path": (add_file(path="a\0b"), "NUL"),
    "half a character in a path": (add_file(path="\ud800"), "not text"),
    "a path twice": (add_file(path="base/1"), "twice"),
    "a file below a file": (add_file(path="base/1/x"), "which is a file"),
    "a file below a link": (add_file(path="current/x/y"), "which is a link"),
    "a link that climbs": (add_file(kind="link", link="../x"), "leads out"),
    "a link that climbs later": (add_file(path="base/l", kind="link", link="a/../../../x"), "leads out"),
    "an absolute link": (add_file(kind="link", link="/etc"), "leads out"),
    "an empty link": (add_file(kind="link", link=""), "leads out"),
    "a NUL in a link": (add_file(kind="link", link="a\0"), "NUL"),
    "a link without an end": (add_file(kind="link"), "is a link"),
    "a file with a link": (add_file(link="base/1"), "is a file"),
    "a device": (add_file(kind="device"), "files.4.kind"),
    "setuid": (add_file(mode=0o4755), "files.4.mode"),
    "a mode as text": (add_file(mode="600"), "files.4.mode"),
    "a size without parts": (add_file(size=1), "hold 0 bytes"),
    "a folder with a size": (set_at("files", 0, "size", to=5), "cannot have a size"),
    "a negative size": (set_at("files", 1, "size", to=-1), "files.1.size"),
    "an absurd size": (set_at("files", 1, "size", to=1 << 60), "files.1.size"),
    "a fraction of a byte": (set_at("files", 1, "size", to=150.5), "files.1.size"),
    "a file not covered to its end": (set_at("files", 1, "size", to=151), "hold 150 bytes"),
    "a file covered beyond its end": (set_at("files", 1, "size", to=149), "hold 150 bytes"),
    "a gap": (set_at("parts", 1, "ranges", to=[[1, 101, 50]]), "missing at 100"),
    "an overlap": (set_at("parts", 1, "ranges", to=[[1, 99, 50]]), "held twice at 100"),
    "a range of a folder": (set_at("parts", 1, "ranges", to=[[0, 0, 50]]), "which has 0"),
    "a range of no file": (set_at("parts", 1, "ranges", to=[[4, 0, 50]]), "there are 4"),
    "a range of a negative file": (set_at("parts", 1, "ranges", to=[[-3, 100, 50]]), r"ranges\.0\.0:"),
    "a negative range": (set_at("parts", 1, "ranges", to=[[1, 100, 100], [1, 200, -50]]), r"ranges\.1\.2:"),
    "an empty range": (set_at("parts", 1, "ranges", to=[[1, 100, 50], [1, 150, 0]]), r"ranges\.1\.2:"),
    "a part that holds more than its ranges": (set_at("parts", 1, "raw_size", to=51), "its raw_size is 51"),
    "a part of absurd size": (set_at("parts", 1, "stored_size", to=1 << 40), "parts.1.stored_size"),
    "a part missing": (lambda fields: fields.update(parts=[fields["parts"][0]]), "hold 100 bytes"),  # type: ignore[index]
    "a part that is another": (set_at("parts", 1, "key", to=part_key(ID, 0)), "same key"),
    "a part elsewhere": (
        set_at("parts", 1, "key", to=part_key("another", 1)),
        "cannot be the key",
    ),
    "a part that climbs": (set_at("parts", 1, "key", to=f"backups/{ID}/parts/../../x"), "cannot be the key"),
    "a part that is the manifest": (set_at("parts", 1, "key", to=f"backups/{ID}/manifest.json"), "cannot be the key"),
    "a hash that is none": (set_at("parts", 1, "stored_sha256", to="0" * 63), "stored_sha256"),
    "the manifest of another backup": (set_at("backup_id", to="other"), "cannot be the key"),
    "an id that climbs": (set_at("backup_id", to="../x"), "name of a backup"),
    "a time without a zone": (set_at("stopped_at", to="2026-03-01T12:00:00"), "stopped_at"),
    "an end before the start": (set_at("stopped_at", to="2026-02-01T12:00:00Z"), "stopped before it started"),
    "no files": (lambda fields: fields.pop("files"), "files"),
    "no version": (set_at("format_version", to=0), "format_version"),
    "a full one with a parent": (set_at("parent", to="other"), "its parent is 'other'"),
    "a full one of the incremental ones' format": (set_at("format_version", to=2), "kind full has format 1"),
    "an incremental one of the full ones' format": (
        lambda fields: fields.update(kind="incremental", parent="other"),
        "kind incremental has format 2",
    ),
    "an incremental one without a parent": (lambda fields: fields.update(INCREMENTAL), "its parent is None"),
    "its own parent": (lambda fields: fields.update(INCREMENTAL, parent=ID), "its own parent"),
    "a parent elsewhere": (lambda fields: fields.update(INCREMENTAL, parent="../x"), "name of a backup"),
    "another kind": (set_at("kind", to="differential"), "kind"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_manifest_is_refused(folder_store: FolderStore, name: str) -> None:
    change, words = HOSTILE[name]
    hostile(folder_store, change)
    with pytest.raises(ObjectCorrupt, match=words):
        read_manifest(folder_store, ID)


def test_a_manifest_that_contradicts_itself_is_not_made() -> None:
    whole = manifest()
    with pytest.raises(ValidationError, match="hold 100 bytes"):
        Manifest(**{**dict(whole), "parts": whole.parts[:1]})


@pytest.mark.parametrize(
    "change",
    [
        set_at("format_version", to=3),
        set_at("parts", 0, "codec", to="brotli"),
        set_at("parts", 1, "encryption", to="age"),
    ],
)
def test_what_a_newer_version_wrote_is_refused_as_such(
    folder_store: FolderStore, change: Callable[[Fields], None]
) -> None:
    hostile(folder_store, change)
    with pytest.raises(FormatTooNew) as caught:
        read_manifest(folder_store, ID)
    assert "newer" in caught.value.hint


def test_what_a_newer_version_of_the_same_format_adds_is_ignored(folder_store: FolderStore) -> None:
    def change(fields: Fields) -> None:
        fields["note"] = "new"
        set_at("parts", 0, "note", to=[1])(fields)
        set_at("details", "note", to="new")(fields)

    hostile(folder_store, change)
    assert read_manifest(folder_store, ID).parts == manifest().parts


def test_a_large_manifest_is_written_and_read(folder_store: FolderStore) -> None:
    count = 20_000
    made = manifest().model_copy(
        update={
            "files": tuple(FileEntry(path=f"base/{n}", kind="file", mode=0o600, size=8192) for n in range(count)),
            "parts": tuple(
                part(n, *(Range(file, 0, 8192) for file in range(n * 100, (n + 1) * 100))) for n in range(count // 100)
            ),
        }
    )
    write_manifest(folder_store, made)
    assert read_manifest(folder_store, ID).raw_bytes == count * 8192
