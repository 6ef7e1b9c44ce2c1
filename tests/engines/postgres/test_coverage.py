"""What can be restored from the repository alone, up to when, and what is missing."""

from datetime import datetime
from pathlib import Path

import pytest

from dr_pipelines.engines.postgres.coverage import choose, newest_system, systems
from dr_pipelines.engines.postgres.wal import Lsn
from dr_pipelines.errors import AmbiguousTimeline, NotCovered, RestoreError
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


class TestTimelines:
    """The server was lost after 20 minutes, restored to before segment 16.5, and writes on timeline 2 from 30 on."""

    @pytest.fixture
    def left(self, archive: MadeUpArchive) -> MadeUpArchive:
        archive.position(20, 20, timeline=1)
        archive.history(30, 2, 16.5)
        archive.segments(16, 17, 18, timeline=2, later=15)
        archive.position(34, 18, timeline=2)
        return archive

    @pytest.mark.parametrize(
        ("minutes", "timeline", "until"),
        [(6, 1, 20), (16.4, 1, 20), (19, 1, 20), (31, 2, 34), (34, 2, 34), (None, 2, 34)],
    )
    def test_a_time_is_on_the_one_that_was_being_written(
        self, left: MadeUpArchive, minutes: float | None, timeline: int, until: float
    ) -> None:
        covered = choose(left.store, left.at(minutes) if minutes is not None else None)
        assert (covered.chain.towards, covered.recovery_point) == (timeline, left.at(until))
        assert covered.gap is None and covered.doubts == ()

    @pytest.mark.parametrize(("timeline", "until", "end"), [(1, 20, 21), (2, 34, 19)])
    def test_the_end_of_each_is_reached_where_that_is_said(
        self, left: MadeUpArchive, timeline: int, until: float, end: int
    ) -> None:
        covered = choose(left.store, None, timeline=timeline)
        assert (covered.recovery_point, covered.chain.end) == (left.at(until), Lsn(end << 20))
        assert covered.others is None

    def test_between_the_two_it_has_to_be_said_which(self, left: MadeUpArchive) -> None:
        with pytest.raises(
            AmbiguousTimeline, match=r"timeline 1 \(to about .*\), or timeline 2 \(left timeline 1 at"
        ) as refused:
            choose(left.store, left.at(25))
        assert refused.value.hint == "--timeline 1 or --timeline 2"

    def test_while_both_are_written_it_has_to_be_said_which(self, left: MadeUpArchive) -> None:
        left.segments(21, 22, later=10.5)
        for minutes in (30, 31, 32):
            with pytest.raises(AmbiguousTimeline):
                choose(left.store, left.at(minutes))
        # The newest backup leads to the second, which goes on.
        assert choose(left.store, left.at(33)).chain.towards == 2
        assert choose(left.store, left.at(29)).chain.towards == 1

    def test_what_was_stored_of_one_that_was_left_and_never_proven_is_covered_with_a_doubt(
        self, left: MadeUpArchive
    ) -> None:
        left.segments(21, 22, later=1)
        covered = choose(left.store, left.at(22))
        assert covered.chain.towards == 1
        assert "of timeline 1 no more is proven than up to" in covered.doubts[0]
        with pytest.raises(NotCovered):
            choose(left.store, left.at(24), timeline=1)

    def test_one_that_is_not_there_or_that_no_backup_leads_to_is_refused(self, left: MadeUpArchive) -> None:
        with pytest.raises(NotCovered, match="there is no timeline 3"):
            choose(left.store, None, timeline=3)
        left.history(40, 3, 3.5)
        with pytest.raises(NotCovered, match="no backup leads to timeline 3"):
            choose(left.store, None, timeline=3)

    def test_without_a_timeline_of_its_own_log_the_old_goes_over_into_the_new(self, archive: MadeUpArchive) -> None:
        """It was restored to the end of the log: a time at which no server ran is what both have."""
        archive.position(20, 20, timeline=1)
        archive.history(30, 2, 21, reason="no recovery target specified")
        archive.segments(21, 22, timeline=2, later=10)
        archive.position(33, 22, timeline=2)
        for minutes in (6, 19, 25, 33):
            covered = choose(archive.store, archive.at(minutes))
            assert (covered.chain.towards, covered.recovery_point) == (2, archive.at(33))
            assert covered.others is None

    def test_until_an_agent_has_proven_something_of_it_what_was_proven_before_the_split_holds(
        self, archive: MadeUpArchive
    ) -> None:
        archive.position(20, 20, timeline=1)
        archive.history(30, 2, 21, reason="no recovery target specified")
        assert choose(archive.store, None).recovery_point == archive.at(20)

    def test_what_was_proven_behind_the_split_does_not_hold(self, archive: MadeUpArchive) -> None:
        archive.position(20, 20, timeline=1)
        archive.history(30, 2, 16.5)
        covered = choose(archive.store, None)
        assert (covered.chain.towards, covered.recovery_point, covered.proven_lsn) == (2, None, None)

    def test_a_backup_during_which_one_was_left_does_not_lead_to_it(self, archive: MadeUpArchive) -> None:
        archive.history(30, 2, 11.5)
        archive.segments(11, 12, timeline=2, later=20)
        assert choose(archive.store, None).chain.towards == 1
        assert choose(archive.store, None, timeline=2).manifest.stopped_at == archive.at(5)

    def test_a_server_on_one_to_which_no_backup_leads_is_not_covered(self, archive: MadeUpArchive) -> None:
        archive.position(20, 20, timeline=1)
        archive.history(30, 2, 3.5)
        archive.segments(*range(3, 9), timeline=2, later=30)
        archive.position(40, 8, timeline=2)
        covered = choose(archive.store, None)
        assert covered.recovery_point == archive.at(20)
        assert covered.gap is not None
        assert covered.gap.startswith("the server is on timeline 2, to which no backup leads yet")


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
