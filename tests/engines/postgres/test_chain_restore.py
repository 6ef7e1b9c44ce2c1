"""A chain of backups restored: what stands afterwards is what the source was, whatever was interrupted."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from dr_pipelines.engines.layout import WholeBackup
from dr_pipelines.engines.parts import PartReader
from dr_pipelines.engines.postgres import coverage
from dr_pipelines.engines.postgres.verify import verify
from dr_pipelines.errors import NotCovered, ObjectMissing, RestoreError
from dr_pipelines.processes.identity import give_to, run, server_identity
from dr_pipelines.repository.manifest import Manifest, delete_backup, survey_backups
from dr_pipelines.repository.repository import Repository
from dr_pipelines.runbooks import database_restore as runbook
from dr_pipelines.settings import Settings
from tests import archived
from tests.archived import Restore, Source

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def source(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    """A server with a full backup and two incremental ones, between which all has happened that changes files."""
    repository = archived.new_repository(tmp_path_factory.mktemp("repository"))
    with archived.source(settings, repository, options={"summarize_wal": "on"}) as running:
        script = running.server.data / "script.sh"
        script.write_text("#!/bin/sh\n")
        script.chmod(0o755)
        (running.server.data / "INCREMENTAL.notes").write_text("mine")
        for path in (script, running.server.data / "INCREMENTAL.notes"):
            archived.give_to_server(path, settings)
        many = "SELECT n, md5(n::text) AS text FROM generate_series(1, 20000) n"
        for table in ("updated", "shrunk", "emptied", "dropped", "grown", "rewritten", "untouched"):
            running.do(f"CREATE TABLE {table} AS {many}")
        running.do("CREATE UNLOGGED TABLE unlogged AS SELECT 1 AS n", "CREATE DATABASE gone", "CREATE DATABASE other")
        running.do(f"CREATE TABLE kept AS {many}", database="other")
        running.do("VACUUM (FREEZE)")
        running.back_up()
        running.do("UPDATE updated SET text = 'first' WHERE n <= 1000", "TRUNCATE emptied", "DROP TABLE dropped")
        running.do("DELETE FROM shrunk WHERE n > 10000", "VACUUM shrunk", f"CREATE TABLE fresh AS {many}")
        running.do("DROP DATABASE gone", "CREATE DATABASE copied TEMPLATE other STRATEGY file_copy")
        running.do("CREATE DATABASE logged TEMPLATE other STRATEGY wal_log")
        running.take_backup(kind="incremental")
        running.do("UPDATE updated SET text = 'second' WHERE n BETWEEN 500 AND 1500", f"INSERT INTO shrunk {many}")
        running.do(f"INSERT INTO grown {many}", "VACUUM FULL rewritten", "UPDATE fresh SET text = '' WHERE n = 7")
        running.do("UPDATE kept SET text = 'changed' WHERE n = 1", database="copied")
        made = running.take_backup(kind="incremental")
        assert (made.manifest.kind, made.instead) == ("incremental", None)
        running.ship()
        yield running


@pytest.fixture
def restore(source: Source) -> Iterator[Restore]:
    with archived.restore(source.settings, source.repository) as restore:
        yield restore


@pytest.fixture
def damaged(source: Source, tmp_path: Path) -> Repository:
    """A copy of the repository."""
    return archived.copy_of(source.repository, tmp_path / "copy")


def chain(source: Source) -> list[Manifest]:
    return sorted(survey_backups(source.store).complete, key=lambda manifest: manifest.stopped_at)


def dump(source: Source, dsn: str) -> str:
    secret = {"PGPASSWORD": source.server.password}
    said = run([source.server.binaries["pg_dumpall"], "--no-unlogged-table-data", "-d", dsn], env=secret, timeout=120)
    # Each dump has a key of its own.
    return "\n".join(line for line in said.stdout.splitlines() if not line.startswith(("\\restrict", "\\unrestrict")))


def test_the_whole_chain_is_brought_back_with_every_row(source: Source, restore: Restore) -> None:
    assessment = restore.prepare()
    assert assessment.links == tuple(manifest.backup_id for manifest in chain(source))
    files = restore.fetch()
    assert 0 < files.parts_fetched < sum(len(manifest.parts) for manifest in chain(source))
    assert files.verified.passed, files.verified
    data = Path(files.target)
    assert (data / "script.sh").stat().st_mode & 0o777 == 0o755
    assert (data / "INCREMENTAL.notes").read_text() == "mine"
    assert [entry.name for entry in data.rglob("INCREMENTAL.*")] == ["INCREMENTAL.notes"]
    server = restore.apply()
    assert archived.failed(restore.validate()) == []
    assert dump(source, server.dsn()) == dump(source, source.server.dsn())
    assert restore.ask("SELECT count(*) FROM unlogged") == 0


def test_an_earlier_link_is_brought_back_as_it_was(source: Source, settings: Settings) -> None:
    first = chain(source)[1]
    with archived.restore(settings, source.repository, to=first.stopped_at) as restore:
        restore.run()
        assert restore.assessment is not None and restore.assessment.backup_id == first.backup_id
        assert restore.ask("SELECT count(*) FILTER (WHERE text = 'first') FROM updated") == 1000
        assert restore.ask("SELECT count(*) FROM grown") == 20000


def test_it_is_read_back_from_its_full_backup_on(source: Source) -> None:
    full, first, last = chain(source)
    found = verify(source.store, last, workers=2, progress=lambda *_: None)
    assert all(check.passed for check in found.checks)
    assert found.bytes_read > full.stored_bytes + first.stored_bytes + last.stored_bytes
    alone = verify(source.store, last, workers=2, progress=lambda *_: None, chain=False)
    assert alone.bytes_read == found.bytes_read - full.stored_bytes - first.stored_bytes


def test_it_is_byte_for_byte_what_pg_combinebackup_makes(source: Source, restore: Restore) -> None:
    place = Path(restore.prepare().target)
    restore.fetch()
    ours = contents(place)
    with archived.open_to_all() as folder:
        theirs = contents(combined(source, folder))
    assert ours.keys() == theirs.keys()
    assert [path for path in ours if ours[path] != theirs[path]] == []


def combined(source: Source, folder: Path) -> Path:
    """The chain as PostgreSQL's own tool makes one of it, from backups that lie in folders."""
    identity, folders = server_identity(source.settings), []
    give_to(folder, identity)
    for number, manifest in enumerate(chain(source)):
        folders.append(folder / str(number))
        folders[-1].mkdir()
        give_to(folders[-1], identity)
        owner = (identity.uid, identity.gid) if identity is not None else None
        journal = folder / f"{number}.parts"
        layout = WholeBackup(manifest)
        reader = PartReader(source.store, layout, folders[-1], journal=journal, owner=owner, workers=2)
        reader.restore(lambda done, total: None)
    tool = source.server.binaries["pg_combinebackup"]
    run([tool, *map(str, folders), "-o", str(folder / "whole")], identity=identity, timeout=300)
    return folder / "whole"


def contents(place: Path) -> dict[str, str]:
    """The hash of every file of a data directory but the list of them, which has other times and checksums."""
    found = {}
    for path in place.rglob("*"):
        if path.is_file() and "dr_restore" not in path.parts and path.name != "backup_manifest":
            with path.open("rb") as file:
                found[str(path.relative_to(place))] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def test_what_was_lost_of_a_file_that_was_put_together_is_noticed(source: Source, restore: Restore) -> None:
    place = Path(restore.prepare().target)
    parts = restore.fetch().parts_fetched
    (place / "dr_restore" / "verified.json").unlink()
    path = place / str(source.ask("SELECT pg_relation_filepath('updated')"))
    with path.open("r+b") as file:
        file.seek(8192)
        file.write(bytes(8192))
    # An earlier attempt had written it well: the disk lost it since, so that all is fetched again.
    again = restore.fetch()
    assert (again.parts_fetched, again.verified.passed) == (parts, True)


class TestABrokenChain:
    def test_the_newest_backup_before_the_break_is_used_and_the_break_told(
        self, source: Source, settings: Settings, damaged: Repository
    ) -> None:
        full, first, last = (manifest.backup_id for manifest in chain(source))
        store = damaged.service(archived.SERVICE).child(source.system)
        archived.flip(store, f"backups/{last}/manifest.json")
        assert coverage.choose(store, None).manifest.backup_id == first
        archived.flip(store, f"backups/{last}/manifest.json")
        archived.flip(store, f"backups/{first}/manifest.json")
        with archived.restore(settings, damaged) as restore:
            assessment = restore.prepare()
            assert assessment.backup_id == full
            told = " ".join(assessment.doubts)
            assert f"the backup {first} cannot be used: the manifest of backup {first} is damaged" in told
            assert f"the backup {last} cannot be used: its chain is broken before {last}: {first}" in told
            restore.fetch()
            restore.apply()
            assert restore.ask("SELECT count(*) FROM grown") == 40000

    def test_it_fails_its_verification_and_is_named(self, source: Source, damaged: Repository) -> None:
        store = damaged.service(archived.SERVICE).child(source.system)
        full, _, last = chain(source)
        delete_backup(store, full.backup_id)
        found = {check.name: check for check in verify(store, last, workers=2, progress=lambda *_: None).checks}
        assert found["chain_is_whole"].passed is False
        assert f"{full.backup_id} is missing" in found["chain_is_whole"].detail

    def test_without_its_full_backup_nothing_can_be_restored(self, source: Source, damaged: Repository) -> None:
        store = damaged.service(archived.SERVICE).child(source.system)
        delete_backup(store, chain(source)[0].backup_id)
        with pytest.raises(RestoreError, match="its chain is broken before"):
            coverage.choose(store, None)

    def test_asked_for_by_name_it_is_refused(self, source: Source, settings: Settings, damaged: Repository) -> None:
        store = damaged.service(archived.SERVICE).child(source.system)
        _, first, last = chain(source)
        delete_backup(store, first.backup_id)
        with archived.restore(settings, damaged) as restore, pytest.raises(NotCovered, match=last.backup_id):
            runbook.assess(restore.around, restore.execution, None, None, backup_id=last.backup_id)

    def test_a_part_that_is_missing_is_named(self, source: Source, settings: Settings, damaged: Repository) -> None:
        store = damaged.service(archived.SERVICE).child(source.system)
        key = chain(source)[1].parts[0].key
        with archived.restore(settings, damaged) as restore:
            restore.prepare()
            store.delete(key)
            with pytest.raises(ObjectMissing, match=key) as raised:
                restore.fetch()
            assert "dr restore --backup" in raised.value.hint

    def test_backups_that_do_not_belong_together_are_not_made_one(self, source: Source, restore: Restore) -> None:
        assessment = restore.prepare()
        full, _, last = assessment.links
        skipping = runbook.Assessment(**{**vars(assessment), "links": (full, last)})
        with pytest.raises(RestoreError, match=f"the backup {last} is not based on {full}: its own label says LSN"):
            runbook.restore_latest_backup(restore.around, skipping, None)
