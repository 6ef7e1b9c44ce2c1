"""The files of a backup, brought back: compared with PostgreSQL's own manifest, on from an interruption."""

import fcntl
from dataclasses import replace
from pathlib import Path

import pytest

from dr_pipelines.engines.postgres import target
from dr_pipelines.engines.postgres.restore import restore_files
from dr_pipelines.errors import ExecutionError, Locked, ObjectCorrupt, ObjectMissing, RestoreError, TargetRefused
from dr_pipelines.repository.folder import FolderStore
from dr_pipelines.repository.manifest import FileEntry
from dr_pipelines.repository.repository import Repository
from dr_pipelines.runbooks import database_restore as runbook
from dr_pipelines.settings import Settings
from tests import archived
from tests.archived import Source, flip
from tests.made_up import MadeUpArchive

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def kept(source: Source) -> Repository:
    source.do("CREATE TABLE big AS SELECT repeat(md5(n::text), 20) FROM generate_series(1, 5000) n")
    source.back_up()
    source.stop_agent()
    return source.repository


@pytest.fixture
def damaged(kept: Repository, tmp_path: Path) -> Repository:
    return archived.copy_of(kept, tmp_path / "damaged")


def test_every_file_is_as_it_was_backed_up(kept: Repository, settings: Settings) -> None:
    with archived.restore(settings, kept) as restore:
        assessment = restore.prepare()
        files = restore.fetch()
        covered = archived.newest(kept)
        assert files.parts_fetched == len(covered.manifest.parts)
        assert files.verified.passed, files.verified.detail
        there = {str(path.relative_to(assessment.target)) for path in Path(assessment.target).rglob("*")}
        assert {entry.path for entry in covered.manifest.files} <= there


def test_a_file_that_differs_is_named(kept: Repository, settings: Settings) -> None:
    with archived.restore(settings, kept) as restore:
        place = Path(restore.prepare().target)

        def meddle(what: str, done: int, total: int) -> None:
            if done == total:
                (place / "PG_VERSION").write_text("17\n")
                (place / "stranger").write_text("")

        restore.around = replace(restore.around, progress=meddle)
        files = restore.fetch()
        assert files.verified.passed is False
        assert "PG_VERSION" in files.verified.detail
        assert "stranger" in files.verified.detail


def test_what_an_earlier_attempt_had_written_and_the_disk_lost_is_written_again(
    kept: Repository, settings: Settings
) -> None:
    parts = len(archived.newest(kept).manifest.parts)
    with archived.restore(settings, kept) as restore:
        place = Path(restore.prepare().target)
        restore.fetch()
        # As after an attempt that was killed before it compared the files.
        (place / target.PRIVATE / "verified.json").unlink()
        (place / "PG_VERSION").write_text("\0\0\0")
        again = restore.fetch()
        assert again.parts_fetched == parts
        assert again.verified.passed, again.verified.detail


def test_files_that_a_server_has_changed_since_are_not_compared_again(kept: Repository, settings: Settings) -> None:
    with archived.restore(settings, kept) as restore:
        place = Path(restore.prepare().target)
        first = restore.fetch()
        (place / "PG_VERSION").write_text("17\n")
        assert restore.fetch().verified == first.verified


def test_only_the_parts_that_are_missing_are_fetched_again(damaged: Repository, settings: Settings) -> None:
    covered = archived.newest(damaged)
    store = damaged.service(archived.SERVICE).child(covered.manifest.system_identifier)
    last = covered.manifest.parts[-1].key
    data = store.get(last)
    store.delete(last)
    with archived.restore(settings, damaged) as restore:
        restore.prepare()
        with pytest.raises(ObjectMissing, match=last):
            restore.fetch()
        store.put(last, [data])
        restore.prepare()
        again = restore.fetch()
        assert 1 <= again.parts_fetched < len(covered.manifest.parts)
        assert again.verified.passed


def test_a_damaged_part_is_named(damaged: Repository, settings: Settings) -> None:
    covered = archived.newest(damaged)
    key = covered.manifest.parts[1].key
    flip(damaged.service(archived.SERVICE).child(covered.manifest.system_identifier), key)
    with archived.restore(settings, damaged) as restore:
        restore.prepare()
        with pytest.raises(ObjectCorrupt, match=key):
            restore.fetch()


def test_a_target_that_was_not_prepared_or_is_anothers_is_refused(kept: Repository, settings: Settings) -> None:
    with archived.restore(settings, kept) as restore:
        assessment = runbook.assess(restore.around, restore.execution, None, None)
        with pytest.raises(ExecutionError, match="does not hold the restore of execution"):
            runbook.restore_latest_backup(restore.around, assessment, None)
        assert not Path(assessment.target).exists()


def test_a_target_that_is_being_restored_into_is_refused(kept: Repository, settings: Settings) -> None:
    with archived.restore(settings, kept) as restore:
        place = Path(restore.prepare().target)
        target.let_go(place)
        with (place / target.PRIVATE / "lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with pytest.raises(Locked):
                restore.fetch()


def test_a_target_that_is_not_empty_is_refused_and_untouched(
    kept: Repository, settings: Settings, world_readable_folder: Path
) -> None:
    place = world_readable_folder / "data"
    place.mkdir()
    (place / "precious").touch()
    before = archived.files_below(world_readable_folder)
    with archived.restore(settings, kept, target=place) as restore:
        with pytest.raises(TargetRefused):
            restore.prepare()
        assert archived.files_below(world_readable_folder) == before


@pytest.mark.parametrize("path", ["dr_restore", "dr_restore/restore.json", "dr_restore.hba.conf"])
def test_a_backup_that_would_write_over_the_notes_of_the_restore_is_refused(
    kept: Repository, settings: Settings, source: Source, path: str
) -> None:
    manifest = archived.newest(kept).manifest
    entry = FileEntry(path=path, kind="file", mode=0o600, size=0)
    with archived.restore(settings, kept) as restore:
        place = Path(restore.prepare().target)
        before = archived.files_below(place)
        with pytest.raises(RestoreError, match="where a restore keeps its notes"):
            restore_files(
                source.store,
                [manifest.model_copy(update={"files": (*manifest.files, entry)})],
                place,
                source.server.binaries,
                identity=None,
                workers=1,
                progress=lambda *_: None,
            )
        assert archived.files_below(place) == before


def test_a_new_cluster_that_is_backed_up_meanwhile_does_not_change_what_is_restored(
    damaged: Repository, settings: Settings
) -> None:
    with archived.restore(settings, damaged) as restore:
        restore.prepare()
        service = Path(damaged.service(archived.SERVICE).url)
        MadeUpArchive(FolderStore(service / "1"), restore.execution.started_at).backup(5, 4, 5)
        assert restore.fetch().verified.passed
