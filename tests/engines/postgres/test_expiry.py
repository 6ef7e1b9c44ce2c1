"""What need not be kept goes, and everything that stays can be restored as before."""

from datetime import timedelta
from pathlib import Path

import pytest

from dr_pipelines.engines.postgres.coverage import choose
from dr_pipelines.engines.postgres.expiry import expire
from dr_pipelines.engines.postgres.exposure import read_exposure
from dr_pipelines.engines.postgres.retention import Expiry
from dr_pipelines.engines.postgres.verify import verify
from dr_pipelines.errors import FormatTooNew, Locked, NotCovered, ObjectCorrupt, ObjectMissing
from dr_pipelines.plan import Retention
from dr_pipelines.repository.folder import FolderStore
from dr_pipelines.repository.locks import hold
from dr_pipelines.repository.manifest import list_backups, read_manifest, retire_backup, survey_backups, write_manifest
from dr_pipelines.repository.repository import Repository
from dr_pipelines.repository.sealed import seal
from dr_pipelines.repository.store import Store
from dr_pipelines.repository.uses import forget_use, note_use
from dr_pipelines.settings import Settings
from dr_pipelines.timing import FakeClock, SystemClock, format_moment
from tests import archived
from tests.made_up import MadeUpArchive

MARKS = "SELECT string_agg(name, ',' ORDER BY at) FROM marks"
ONE = Retention(keep=1)


def keys(repository: Repository) -> set[str]:
    """Every object but the locks."""
    return {found.key for found in repository.store.list("") if "/locks/" not in found.key}


def stays(expiry: Expiry) -> list[str]:
    return [each.backup.backup_id for each in expiry.backups if each.stays]


@pytest.mark.slow
def test_of_three_backups_one_stays_and_leads_to_everything_after_it(place: tuple[Settings, Repository]) -> None:
    settings, repository = place
    with archived.source(settings, repository) as source:
        source.do("CREATE TABLE marks (name text, at timestamptz DEFAULT clock_timestamp())")
        taken = []
        for mark in ("first", "second", "third"):
            taken.append(source.back_up())
            source.do(f"INSERT INTO marks VALUES ('{mark}')")
        between = source.ship()
        source.do("INSERT INTO marks VALUES ('fourth')")
        source.ship()
        source.stop_agent()
        source.server.kill()
        store = repository.service(archived.SERVICE).child(taken[0].system_identifier)
        now = SystemClock().wall()
    home = repository.service(archived.SERVICE)
    exposure, covered = read_exposure(home, "database", now=now, rpo=None), archived.newest(repository)
    before = keys(repository)

    foreseen = expire("database", repository, ONE, clock=SystemClock(), dry_run=True)
    assert keys(repository) == before
    done = expire("database", repository, ONE, clock=SystemClock())

    assert done == foreseen
    assert stays(done) == [taken[-1].backup_id]
    assert [backup_id for backup_id, _ in list_backups(store)] == [taken[-1].backup_id]
    # Nothing that looks at the newest backup sees a difference.
    assert read_exposure(home, "database", now=now, rpo=None) == exposure
    assert archived.newest(repository).chain == covered.chain
    assert all(check.passed for check in verify(store, taken[-1], workers=2, progress=lambda *_: None).checks)
    # All that is left is what this one needs, and two tombstones.
    gone = before - keys(repository)
    assert {key for key in gone if "/log/" in key} == {
        found
        for found in before
        if "/log/" in found and found.rpartition("/")[2][8:24] < str(taken[-1].details["start_segment"])[8:]
    }
    assert {key.split("/")[4] for key in gone if "/backups/" in key} == {each.backup_id for each in taken[:2]}
    assert {key for key in keys(repository) if any(each.backup_id in key for each in taken[:2])} == {
        f"services/database/{each.system_identifier}/backups/{each.backup_id}/manifest.json" for each in taken[:2]
    }
    for moment, found in ((None, "first,second,third,fourth"), (between, "first,second,third")):
        with archived.restore(settings, repository, to=moment) as restore:
            restore.run()
            assert restore.ask(MARKS) == found
            assert archived.failed(restore.validate()) == []
    with pytest.raises(NotCovered) as refused:
        choose(store, taken[1].stopped_at + timedelta(seconds=0.001))
    assert f"{format_moment(taken[-1].stopped_at)} to " in refused.value.message


@pytest.mark.slow
def test_a_backup_that_a_restore_reads_stays_until_that_has_ended(settings: Settings, repository: Repository) -> None:
    with archived.source(settings, repository) as source:
        source.do("CREATE TABLE marks (name text, at timestamptz DEFAULT clock_timestamp())")
        first = source.back_up()
        source.do("INSERT INTO marks VALUES ('first')")
        between = source.ship()
        second = source.back_up()
        source.stop_agent()
        source.server.kill()
    with archived.restore(settings, repository, to=between) as restore:
        restore.prepare()
        for _ in range(2):
            expiry = expire("database", repository, ONE, clock=SystemClock())
            assert stays(expiry) == [second.backup_id, first.backup_id]
            assert restore.execution.id in expiry.backups[1].why
        restore.fetch()
        expire("database", repository, ONE, clock=SystemClock())
        restore.apply()
        assert restore.ask(MARKS) == "first"
        # A killed restore may be gone on with for a day.
        later = FakeClock(SystemClock().wall() + timedelta(hours=23))
        assert len(stays(expire("database", repository, ONE, clock=later))) == 2
        later.advance(2 * 3600)
        assert stays(expire("database", repository, ONE, clock=later)) == [second.backup_id]
        assert not [key for key in keys(repository) if "/uses/" in key]
    with archived.restore(settings, repository, to=between) as restore, pytest.raises(NotCovered):
        restore.prepare()


@pytest.fixture
def made_up(repository: Repository) -> MadeUpArchive:
    """A cluster that never ran: backups at 5, 12 and 20 minutes, and a log up to segment 30."""
    store = repository.service("database").child("7340000000000000001")
    assert isinstance(store, FolderStore)
    archive = MadeUpArchive(store)
    archive.segments(*range(3, 31))
    for minutes in (5, 12, 20):
        archive.backup(minutes, minutes - 1, minutes)
    archive.position(30, 30)
    return archive


@pytest.fixture
def clock(made_up: MadeUpArchive) -> FakeClock:
    return FakeClock(made_up.at(60))


def listed(store: Store) -> list[str]:
    return [f"{manifest.stopped_at:%M}" for manifest in survey_backups(store).complete]


class TestNothingIsRemoved:
    def refused(self, repository: Repository, clock: FakeClock, kind: type[Exception], said: str) -> None:
        before = keys(repository)
        with pytest.raises(kind, match=said):
            expire("database", repository, ONE, clock=clock)
        assert keys(repository) == before

    def test_while_a_backup_is_being_made(
        self, repository: Repository, made_up: MadeUpArchive, clock: FakeClock
    ) -> None:
        with hold(repository.service("database"), "backup", purpose="a backup", clock=clock):
            self.refused(repository, clock, Locked, "for: a backup")

    def test_beside_a_backup_of_a_newer_version(
        self, repository: Repository, made_up: MadeUpArchive, clock: FakeClock
    ) -> None:
        newer = "20260301T004000Z-full-abcdef"
        made_up.store.put(f"backups/{newer}/manifest.json", [seal({"format_version": 99})])
        self.refused(repository, clock, FormatTooNew, f"nothing may be removed beside {newer}")

    def test_where_a_history_cannot_be_read(
        self, repository: Repository, made_up: MadeUpArchive, clock: FakeClock
    ) -> None:
        made_up.store.put("log/00000002/00000002.history", [b"x"])
        self.refused(repository, clock, ObjectCorrupt, "00000002.history is not a sealed document")

    def test_where_the_note_of_a_restore_cannot_be_read(self, repository: Repository, made_up: MadeUpArchive) -> None:
        made_up.store.put("uses/restore-1.json", [b"x"])
        clock = FakeClock(SystemClock().wall())
        self.refused(repository, clock, ObjectCorrupt, "uses/restore-1.json")
        clock.advance(25 * 3600)
        assert expire("database", repository, ONE, clock=clock).going

    def test_in_a_dry_run_which_needs_no_lock(
        self, repository: Repository, made_up: MadeUpArchive, clock: FakeClock
    ) -> None:
        before = keys(repository)
        with hold(repository.service("database"), "backup", purpose="a backup", clock=clock):
            assert len(expire("database", repository, ONE, clock=clock, dry_run=True).going) == 2
        assert keys(repository) == before


def test_a_restore_that_begins_in_the_moment_of_expiry_keeps_its_backup(
    repository: Repository, made_up: MadeUpArchive, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    oldest = survey_backups(made_up.store).complete[-1]

    def begin_first(store: Store, backup_id: str) -> bytes:
        if backup_id == oldest.backup_id:
            note_use(store, "restore-1", backup_id, clock)
        return retire_backup(store, backup_id)

    before = keys(repository)
    with monkeypatch.context() as patch:
        patch.setattr("dr_pipelines.engines.postgres.expiry.retire_backup", begin_first)
        expiry = expire("database", repository, ONE, clock=clock)

    assert [each.stays for each in expiry.backups] == [True, False, True]
    assert "restore-1" in expiry.backups[-1].why
    assert listed(made_up.store) == ["20", "05"]
    # No log is missing that it needs.
    assert {key for key in before if "/log/" in key} <= keys(repository)
    assert choose(made_up.store, made_up.at(6)).chain.end == choose(made_up.store, None).chain.end
    forget_use(made_up.store, "restore-1")
    expire("database", repository, ONE, clock=clock)
    assert listed(made_up.store) == ["20"]


def test_a_restore_of_a_chain_that_begins_in_that_moment_keeps_all_of_it(
    repository: Repository, made_up: MadeUpArchive, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest, middle, oldest = survey_backups(made_up.store).complete
    update = {"kind": "incremental", "format_version": 2, "parent": oldest.backup_id}
    made_up.store.delete(f"backups/{middle.backup_id}/manifest.json")
    write_manifest(made_up.store, middle.model_copy(update=update))

    def begin_first(store: Store, backup_id: str) -> bytes:
        if backup_id == middle.backup_id:
            note_use(store, "restore-1", backup_id, clock)
        return retire_backup(store, backup_id)

    monkeypatch.setattr("dr_pipelines.engines.postgres.expiry.retire_backup", begin_first)
    expiry = expire("database", repository, ONE, clock=clock)

    assert stays(expiry) == [newest.backup_id, middle.backup_id, oldest.backup_id]
    assert listed(made_up.store) == ["20", "12", "05"]


def test_a_restore_that_begins_after_it_is_refused(
    repository: Repository, made_up: MadeUpArchive, clock: FakeClock
) -> None:
    oldest = survey_backups(made_up.store).complete[-1].backup_id
    expire("database", repository, ONE, clock=clock)
    note_use(made_up.store, "restore-1", oldest, clock)
    with pytest.raises(ObjectMissing, match="no complete backup"):
        read_manifest(made_up.store, oldest)


def test_what_an_interrupted_backup_left_goes_too(
    repository: Repository, made_up: MadeUpArchive, clock: FakeClock
) -> None:
    made_up.store.put("backups/20260301T003000Z-full-abcdef/parts/000000", [b"half"])
    expiry = expire("database", repository, Retention(keep=3), clock=clock)
    assert (expiry.leftovers, expiry.going) == (("20260301T003000Z-full-abcdef",), ())
    assert not list(made_up.store.list("backups/20260301T003000Z-full-abcdef/parts"))


def test_again_nothing_is_left_to_go(repository: Repository, made_up: MadeUpArchive, clock: FakeClock) -> None:
    expire("database", repository, Retention(keep=2), clock=clock)
    assert listed(made_up.store) == ["20", "12"]
    again = expire("database", repository, Retention(keep=2), clock=clock)
    assert (again.going, again.log, again.leftovers) == ((), {}, ())


def test_a_cluster_that_was_replaced_is_gone_in_the_end(
    repository: Repository, made_up: MadeUpArchive, clock: FakeClock, tmp_path: Path
) -> None:
    new = repository.service("database").child("7350000000000000001")
    assert isinstance(new, FolderStore)
    archive = MadeUpArchive(new)
    archive.segments(*range(40, 50))
    archive.backup(45, 44, 45)
    # Files of the old one that are younger than that: it may be at work.
    expire("database", repository, ONE, clock=clock)
    assert listed(made_up.store) == []
    assert made_up.store.info("position.json") is not None
    archive.backup(24 * 60 * 9999, 48, 49)  # when its agent has been silent for long
    expire("database", repository, ONE, clock=FakeClock(archive.at(24 * 60 * 9999 + 1)))
    assert not list(made_up.store.list(""))
