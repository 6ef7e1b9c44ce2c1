"""What can be restored from the repository alone, up to when, and what is missing."""

from datetime import datetime
from pathlib import Path

import pytest

from dr_pipelines.engines.postgres.coverage import choose, newest_system, systems
from dr_pipelines.errors import NotCovered, RestoreError
from dr_pipelines.repository.folder import FolderStore
from dr_pipelines.repository.sealed import seal
from dr_pipelines.timing import format_moment
from tests.made_up import MadeUpArchive


@pytest.fixture
def archive(tmp_path: Path) -> MadeUpArchive:
    """Backups at 5 and 12 minutes; a log that is unbroken up to segment 20, which is known to hold all up to then."""
    archive = MadeUpArchive(FolderStore(tmp_path))
    archive.segments(*range(4, 21))
    archive.backup(5, 4, 5)
    archive.backup(12, 11, 12)
    archive.position(20, 20)
    return archive


class TestTheBackupThatIsUsed:
    def test_is_the_newest_for_the_latest_point(self, archive: MadeUpArchive) -> None:
        covered = choose(archive.store, None)
        assert covered.manifest.stopped_at == archive.at(12)
        assert covered.recovery_point == archive.at(20)
        assert covered.gap is None
        assert len(covered.chain.files) == 10

    @pytest.mark.parametrize(("minutes", "stopped"), [(5, 5), (11.99, 5), (12, 12), (20, 12)])
    def test_is_the_newest_that_is_not_after_the_target(
        self, archive: MadeUpArchive, minutes: float, stopped: float
    ) -> None:
        covered = choose(archive.store, archive.at(minutes))
        assert covered.manifest.stopped_at == archive.at(stopped)
        assert covered.earliest == archive.at(5)

    def test_is_the_one_that_a_restore_has_begun_with(self, archive: MadeUpArchive) -> None:
        older = choose(archive.store, archive.at(6)).manifest.backup_id
        assert choose(archive.store, None, older).manifest.backup_id == older
        assert choose(archive.store, None, "20260101T000000Z-full-000000").manifest.stopped_at == archive.at(12)

    def test_is_one_of_the_cluster_with_the_newest_backup(self, tmp_path: Path) -> None:
        service = FolderStore(tmp_path)
        for system, minutes in (("111", 5), ("222", 12), ("333", 8)):
            MadeUpArchive(service.child(system)).backup(minutes, 4, 5)
        service.put("locks/backup/00000001.json", [b"{}"])
        assert systems(service) == ("111", "222", "333")
        assert newest_system(service).url.endswith("/222")


class TestATimeThatIsNotCovered:
    @pytest.mark.parametrize("minutes", [4.99, 20.01])
    def test_is_refused_with_the_range_that_is(self, archive: MadeUpArchive, minutes: float) -> None:
        with pytest.raises(NotCovered) as refused:
            choose(archive.store, archive.at(minutes))
        assert f"{format_moment(archive.at(5))} to {format_moment(archive.at(20))}" in refused.value.message

    def test_is_any_after_the_backup_where_no_agent_proved_more(self, tmp_path: Path) -> None:
        archive = MadeUpArchive(FolderStore(tmp_path))
        archive.segments(4, 5, 6)
        archive.backup(5, 4, 5)
        assert choose(archive.store, None).recovery_point is None
        with pytest.raises(NotCovered):
            choose(archive.store, archive.at(6))

    def test_behind_a_hole_is_refused_with_the_hole(self, archive: MadeUpArchive) -> None:
        archive.store.delete(archive.key(15))
        with pytest.raises(NotCovered, match="the log has a hole: 00000001000000000000000F missing"):
            choose(archive.store, archive.at(16))


class TestALogWithAHole:
    def covered_until(self, archive: MadeUpArchive, moment: datetime, *words: str) -> None:
        covered = choose(archive.store, None)
        assert covered.recovery_point == moment
        assert covered.gap is not None
        for word in words:
            assert word in covered.gap

    def test_leads_up_to_the_hole_and_names_what_is_missing_and_lost(self, archive: MadeUpArchive) -> None:
        for number in (15, 16):
            archive.store.delete(archive.key(number))
        self.covered_until(
            archive,
            archive.at(14),
            "00000001000000000000000F, 000000010000000000000010 missing",
            f"from about {format_moment(archive.at(14))} to {format_moment(archive.at(20))} is lost",
        )

    def test_is_noticed_where_the_newest_segments_are_gone(self, archive: MadeUpArchive) -> None:
        for number in (19, 20):
            archive.store.delete(archive.key(number))
        self.covered_until(archive, archive.at(18), "ends at 0/1300000, though it had reached 0/1500000")

    def test_before_a_backup_does_not_matter_to_it(self, archive: MadeUpArchive) -> None:
        archive.store.delete(archive.key(8))
        assert choose(archive.store, None).gap is None
        assert choose(archive.store, archive.at(6)).gap is not None

    def test_within_what_a_backup_needs_makes_it_useless(self, archive: MadeUpArchive) -> None:
        archive.store.delete(archive.key(12))
        with pytest.raises(RestoreError, match="cannot be restored: it needs the log up to 0/C00FA0") as raised:
            choose(archive.store, None)
        assert "00000001000000000000000C" in raised.value.hint


class TestWithoutABackup:
    def test_nothing_can_be_restored(self, tmp_path: Path) -> None:
        for ask in (newest_system, lambda store: choose(store, None)):
            with pytest.raises(RestoreError, match="no complete backup"):
                ask(FolderStore(tmp_path))

    @pytest.mark.parametrize("path", ["../evil", "/etc/evil", "base/../../evil", "a//b"])
    def test_one_whose_paths_lead_out_of_the_target_is_none(self, tmp_path: Path, path: str) -> None:
        archive = MadeUpArchive(FolderStore(tmp_path / "1"))
        archive.segments(4, 5)
        document = archive.backup(5, 4, 5).model_dump(mode="json", exclude_none=True)
        document["files"] = [{"path": path, "kind": "file", "mode": 0o600, "size": 0}]
        archive.store.put(f"backups/{document['backup_id']}/manifest.json", [seal(document)])
        for ask in (newest_system, lambda store: choose(store.child("1"), None)):
            with pytest.raises(RestoreError, match=r"no complete backup .* cannot be used: .*plain relative"):
                ask(FolderStore(tmp_path))

    def test_a_damaged_one_does_not_hide_the_others(self, archive: MadeUpArchive) -> None:
        newest = choose(archive.store, None).manifest.backup_id
        archive.store.put(f"backups/{newest}/manifest.json", [b"{}"])
        assert choose(archive.store, None).manifest.stopped_at == archive.at(5)
