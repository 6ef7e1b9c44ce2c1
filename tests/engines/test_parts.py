"""File data cut into parts and put together again."""

import io
import os
import random
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dr_pipelines.engines.layout import WholeBackup
from dr_pipelines.engines.parts import PartReader, PartWriter
from dr_pipelines.errors import BackupError, ObjectCorrupt, ObjectMissing, RepositoryError, RestoreError
from dr_pipelines.repository.folder import FolderStore
from dr_pipelines.repository.manifest import FileEntry, Manifest
from tests.archived import flip, open_to_all
from tests.made_up import falter

ID = "20260301T030000Z-full-abcdef"
NOW = datetime(2026, 3, 1, 3, tzinfo=UTC)


def write(store: FolderStore, files: dict[str, bytes], *, part_size: int = 1000, workers: int = 2) -> Manifest:
    """A backup of these files."""
    folders = sorted({os.path.dirname(path) for path in files} - {""})
    writer = PartWriter(store, f"backups/{ID}/parts/", part_size=part_size, workers=workers, level=1)
    with writer:
        for folder in folders:
            writer.add(FileEntry(path=folder, kind="folder", mode=0o750, size=0))
        for path, data in files.items():
            index = writer.add(FileEntry(path=path, kind="file", mode=0o640, size=len(data)))
            writer.copy(io.BytesIO(data), index, len(data))
        parts = writer.finish()
    return Manifest(
        backup_id=ID,
        service="database",
        engine="postgres",
        system_identifier="1",
        server_version="18",
        tool_version="1",
        started_at=NOW,
        stopped_at=NOW,
        files=tuple(writer.files),
        parts=parts,
    )


def reader(store: FolderStore, manifest: Manifest, target: Path, *, workers: int = 2) -> PartReader:
    target.mkdir(exist_ok=True)
    return PartReader(
        store, WholeBackup(manifest), target, journal=target.parent / "journal", owner=None, workers=workers
    )


def quiet(done: int, total: int) -> None:
    pass


def content(target: Path) -> dict[str, bytes]:
    return {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()}


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


@pytest.fixture
def files() -> dict[str, bytes]:
    """Ten thousand bytes that need ten parts."""
    return {"base/1": random.Random(1).randbytes(7500), "base/2": b"", "global/x": random.Random(2).randbytes(2500)}


@settings(deadline=None, max_examples=40)
@given(sizes=st.lists(st.integers(0, 5000), max_size=12), part_size=st.integers(1, 3000), workers=st.integers(1, 4))
def test_what_comes_back_is_what_went_in(sizes: list[int], part_size: int, workers: int) -> None:
    files = {f"folder{number % 3}/{number}": random.Random(number).randbytes(size) for number, size in enumerate(sizes)}
    with open_to_all() as folder:
        store = FolderStore(folder / "store")
        manifest = write(store, files, part_size=max(part_size, 50), workers=workers)
        assert all(0 < part.raw_size <= max(part_size, 50) for part in manifest.parts)
        fetched = reader(store, manifest, folder / "target", workers=workers).restore(quiet)
        assert fetched == len(manifest.parts)
        assert content(folder / "target") == files


def test_parts_that_come_in_several_pieces_come_back(store: FolderStore, target: Path) -> None:
    """Read a mebibyte at a time: ranges that end within a piece, begin in one, and take several."""
    sizes = (700_000, 10, 2_500_000, 348_566, 0, 1 << 20, 3)
    files = {f"base/{number}": random.Random(number).randbytes(size) for number, size in enumerate(sizes)}
    manifest = write(store, files, part_size=3 << 20)
    assert reader(store, manifest, target).restore(quiet) == 2
    assert content(target) == files


class TestWriting:
    def test_a_stream_that_ends_early_is_an_error_that_names_the_file(self, store: FolderStore) -> None:
        writer = PartWriter(store, "parts/", part_size=100, workers=1, level=1)
        with pytest.raises(BackupError, match="middle of base/1"), writer:
            writer.copy(io.BytesIO(b"short"), writer.add(FileEntry(path="base/1", kind="file", mode=0, size=9)), 9)

    def test_what_keeps_a_part_from_being_stored_is_raised(self, store: FolderStore, tmp_path: Path) -> None:
        blocked = tmp_path / "store" / "parts"
        blocked.parent.mkdir(parents=True, exist_ok=True)
        blocked.touch()
        writer = PartWriter(store, "parts/", part_size=10, workers=2, level=1)
        entry = FileEntry(path="base/1", kind="file", mode=0, size=1000)
        with pytest.raises(RepositoryError, match="parts"), writer:
            writer.copy(io.BytesIO(bytes(1000)), writer.add(entry), 1000)

    def test_a_store_that_does_not_answer_once_gets_each_part_a_second_time(
        self, store: FolderStore, target: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        refused = falter(monkeypatch, {"put": "/parts/"})
        manifest = write(store, files)
        assert refused == {("put", part.key) for part in manifest.parts}
        reader(store, manifest, target).restore(quiet)
        assert content(target) == files

    def test_after_an_error_nothing_more_is_stored(self, store: FolderStore) -> None:
        writer = PartWriter(store, "parts/", part_size=10, workers=1, level=1)
        entry = FileEntry(path="base/1", kind="file", mode=0, size=15)
        with pytest.raises(BackupError), writer:
            writer.copy(io.BytesIO(bytes(12)), writer.add(entry), 15)
        # Five bytes are missing: what was collected of the second part is not stored.
        assert len(list(store.list("parts/"))) <= 1


class TestReading:
    def test_files_and_folders_get_their_modes(self, store: FolderStore, target: Path, files: dict[str, bytes]) -> None:
        reader(store, write(store, files), target).restore(quiet)
        assert (target / "base").stat().st_mode & 0o777 == 0o750
        assert (target / "base" / "1").stat().st_mode & 0o777 == 0o640

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
    def test_files_and_folders_get_their_owner(self, store: FolderStore, target: Path, files: dict[str, bytes]) -> None:
        manifest = write(store, files)
        target.mkdir()
        journal = target.parent / "journal"
        PartReader(store, WholeBackup(manifest), target, journal=journal, owner=(65534, 65534), workers=1).restore(
            quiet
        )
        assert {path.stat().st_uid for path in target.rglob("*")} == {65534}

    def test_progress_ends_with_all_bytes(self, store: FolderStore, target: Path, files: dict[str, bytes]) -> None:
        seen: list[tuple[int, int]] = []
        reader(store, write(store, files), target).restore(lambda done, total: seen.append((done, total)))
        assert seen[-1] == (10000, 10000)
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)

    @pytest.mark.parametrize("position", [-5, 300], ids=["data", "header"])
    def test_a_part_with_a_flipped_bit_is_named(
        self, store: FolderStore, target: Path, files: dict[str, bytes], position: int
    ) -> None:
        manifest = write(store, files)
        flip(store, manifest.parts[3].key, position)
        with pytest.raises(ObjectCorrupt, match=f"parts/{3:06d}"):
            reader(store, manifest, target).restore(quiet)

    def test_another_part_in_its_place_is_noticed(
        self, store: FolderStore, target: Path, files: dict[str, bytes]
    ) -> None:
        manifest = write(store, files)
        store.put(manifest.parts[3].key, [store.get(manifest.parts[4].key)])
        with pytest.raises(ObjectCorrupt, match=f"parts/{3:06d} is whole, but not the object"):
            reader(store, manifest, target).restore(quiet)

    def test_a_missing_part_is_named(self, store: FolderStore, target: Path, files: dict[str, bytes]) -> None:
        manifest = write(store, files)
        store.delete(manifest.parts[3].key)
        with pytest.raises(ObjectMissing, match=f"parts/{3:06d}"):
            reader(store, manifest, target).restore(quiet)

    def test_a_link_is_refused(self, store: FolderStore, target: Path) -> None:
        manifest = write(store, {"base/1": b"x"})
        link = FileEntry(path="link", kind="link", mode=0o777, size=0, link="base/1")
        with pytest.raises(RestoreError, match="link is a link"):
            reader(store, manifest.model_copy(update={"files": (*manifest.files, link)}), target).restore(quiet)

    def test_a_link_in_the_target_is_not_followed(
        self, store: FolderStore, target: Path, tmp_path: Path, files: dict[str, bytes]
    ) -> None:
        outside = tmp_path / "outside"
        outside.write_text("precious")
        (target / "base").mkdir(parents=True)
        (target / "base" / "1").symlink_to(outside)
        reader(store, write(store, files), target).restore(quiet)
        assert outside.read_text() == "precious"
        assert content(target) == files


class TestGoingOn:
    """After an interruption: only what is missing is fetched again."""

    @pytest.fixture
    def interrupted(self, store: FolderStore, target: Path, files: dict[str, bytes]) -> tuple[Manifest, bytes]:
        """A restore that stopped at the last part, which was not there; that part is there again now."""
        manifest = write(store, files)
        last = store.get(manifest.parts[-1].key)
        store.delete(manifest.parts[-1].key)
        with pytest.raises(ObjectMissing):
            reader(store, manifest, target, workers=1).restore(quiet)
        store.put(manifest.parts[-1].key, [last])
        return manifest, last

    def test_with_the_part_that_is_missing(
        self, store: FolderStore, target: Path, files: dict[str, bytes], interrupted: tuple[Manifest, bytes]
    ) -> None:
        manifest, _ = interrupted
        for part in manifest.parts[:-1]:
            store.delete(part.key)
        assert reader(store, manifest, target).restore(quiet) == 1
        assert content(target) == files
        assert reader(store, manifest, target).restore(quiet) == 0

    @pytest.mark.parametrize(
        ("change", "fetched"),
        [
            (lambda journal: "another boot\n" + journal.partition("\n")[2], 10),
            (lambda journal: journal.removesuffix("\n"), 2),
            (lambda journal: "", 10),
            (lambda journal: journal.partition("\n")[0], 10),
        ],
        ids=["of another boot of the machine", "whose last line is torn", "empty", "whose first line is torn"],
    )
    def test_but_not_with_a_journal(
        self,
        store: FolderStore,
        target: Path,
        files: dict[str, bytes],
        interrupted: tuple[Manifest, bytes],
        change: Callable[[str], str],
        fetched: int,
    ) -> None:
        journal = target.parent / "journal"
        journal.write_text(change(journal.read_text()))
        if fetched == 10:
            (target / "base" / "left-by-a-server").write_text("later than the backup")
        assert reader(store, interrupted[0], target).restore(quiet) == fetched
        assert content(target) == files
        assert reader(store, interrupted[0], target).restore(quiet) == 0
