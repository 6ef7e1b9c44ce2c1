"""Who is reading a backup, and until when that is believed; retiring a backup, and taking that back."""

from datetime import timedelta

import pytest

from dr_pipelines.errors import ObjectCorrupt, ObjectMissing, RepositoryUnreachable
from dr_pipelines.repository import uses
from dr_pipelines.repository.folder import FolderStore
from dr_pipelines.repository.manifest import (
    clear_incomplete,
    delete_backup,
    read_manifest,
    retire_backup,
    revive_backup,
    survey_backups,
    write_manifest,
)
from dr_pipelines.repository.store import Store
from dr_pipelines.repository.uses import STAYS, clear_uses, forget_use, note_use, read_uses, renewed
from dr_pipelines.timing import FakeClock, wait_until
from tests.repository.test_manifest import ID, manifest


def readers(store: Store, clock: FakeClock) -> list[tuple[str, str]]:
    return [(use.user, use.backup_id) for use in read_uses(store, clock.wall())]


def test_a_note_counts_for_a_day_and_goes_when_it_is_over(store: Store) -> None:
    clock = FakeClock()
    note_use(store, "restore-1", ID, clock)
    note_use(store, "restore-2", ID, clock)
    assert readers(store, clock) == [("restore-1", ID), ("restore-2", ID)]
    forget_use(store, "restore-1")
    forget_use(store, "restore-1")
    clock.advance(STAYS.total_seconds() - 1)
    clear_uses(store, clock.wall())
    assert readers(store, clock) == [("restore-2", ID)]
    clock.advance(1)
    assert readers(store, clock) == []
    clear_uses(store, clock.wall())
    assert store.names("uses") == []


def test_a_note_is_renewed_while_the_reader_works(folder_store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    monkeypatch.setattr(uses, "STAYS", timedelta(seconds=0.24))
    answer, refused = FolderStore.put, 0

    def put(store: FolderStore, key: str, chunks: list[bytes]) -> None:
        nonlocal refused
        if clock.now.hour == 1 and refused < 3:
            refused += 1
            raise RepositoryUnreachable("503 Slow Down")
        answer(store, key, chunks)

    with monkeypatch.context() as patch, renewed(folder_store, "restore-1", ID, clock):
        patch.setattr(FolderStore, "put", put)
        # One that does not answer for a while does not end it.
        clock.advance(3600)
        assert wait_until(lambda: refused == 3, timeout=10)
        assert wait_until(lambda: readers(folder_store, clock) == [("restore-1", ID)], timeout=10)
    clock.advance(1)
    assert readers(folder_store, clock) == []


def test_a_note_that_is_damaged_counts_as_long_as_one_that_is_not(store: Store) -> None:
    note_use(store, "restore-1", ID, FakeClock())
    store.put("uses/restore-1.json", [store.get("uses/restore-1.json").replace(b"restore-1", b"restore-2")])
    info = store.info("uses/restore-1.json")
    assert info is not None
    for ask in (read_uses, clear_uses):
        with pytest.raises(ObjectCorrupt, match=r"uses/restore-1\.json .*nothing may be removed"):
            ask(store, info.modified + STAYS - timedelta(seconds=1))
    assert read_uses(store, info.modified + STAYS) == ()


class TestABackupThatIsRetired:
    @pytest.fixture(autouse=True)
    def backup(self, store: Store) -> None:
        for part in manifest().parts:
            store.put(part.key, [b"data"])
        write_manifest(store, manifest())

    def test_is_none_for_anybody_and_its_parts_go_with_the_next_that_clears_up(self, store: Store) -> None:
        retire_backup(store, ID)
        with pytest.raises(ObjectMissing):
            read_manifest(store, ID)
        assert survey_backups(store).incomplete == (ID,)
        assert clear_incomplete(store, FakeClock().wall()) == (ID,)
        assert survey_backups(store).abandoned == (ID,)
        assert store.names(f"backups/{ID}") == ["manifest.json"]

    def test_is_as_it_was_when_that_is_taken_back(self, store: Store) -> None:
        revive_backup(store, ID, retire_backup(store, ID))
        assert survey_backups(store).complete == (manifest(),)

    def test_cannot_be_completed_again_by_whoever_made_it(self, store: Store) -> None:
        retire_backup(store, ID)
        delete_backup(store, ID)
        with pytest.raises(Exception, match="taken for dead"):
            write_manifest(store, manifest())

    def test_that_is_not_there_cannot_be(self, store: Store) -> None:
        with pytest.raises(ObjectMissing):
            retire_backup(store, "20260101T000000Z-full-abcdef")
