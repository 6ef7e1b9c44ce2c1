"""Incremental backups: what one is based on, and when a full one is made instead, and why."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Literal

import pytest

from dr_pipelines.engines.findings import Finding, Level
from dr_pipelines.engines.parts import PartWriter
from dr_pipelines.engines.postgres.backup import BackupResult
from dr_pipelines.engines.postgres.connection import connect, read_facts
from dr_pipelines.engines.postgres.incremental import OWN_MANIFEST, NoBasis, find_basis, judge_incrementals
from dr_pipelines.errors import NoIncrementals
from dr_pipelines.repository.chains import chain_of
from dr_pipelines.repository.folder import FolderStore
from dr_pipelines.repository.manifest import (
    FORMATS,
    FileEntry,
    Manifest,
    delete_backup,
    part_key,
    survey_backups,
    write_manifest,
)
from dr_pipelines.repository.repository import Repository
from dr_pipelines.repository.store import Store
from dr_pipelines.settings import Settings
from tests import archived
from tests.archived import Source

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def folder_store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path)


@pytest.fixture(scope="module")
def source(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    """A server that summarizes its log, with one table much larger than what changes in it."""
    repository = archived.new_repository(tmp_path_factory.mktemp("repository"))
    with archived.source(settings, repository) as running:
        running.do("ALTER SYSTEM SET summarize_wal = on", "SELECT pg_reload_conf()")
        running.do("CREATE TABLE rows AS SELECT n, md5(n::text) AS text FROM generate_series(1, 200000) n")
        # Else whoever reads it first sets hint bits in every block.
        running.do("VACUUM (FREEZE) rows")
        yield running


def incremental(source: Source) -> BackupResult:
    source.do("UPDATE rows SET text = md5(text) WHERE n <= 100")
    return source.take_backup(kind="incremental")


def of_a_new_chain(source: Source) -> list[Manifest]:
    """A full backup and two incremental ones."""
    made = [source.back_up(), incremental(source).manifest, incremental(source).manifest]
    assert [each.kind for each in made] == ["full", "incremental", "incremental"]
    return made


@pytest.mark.slow
class TestMade:
    def test_it_holds_what_changed_since_its_parent(self, source: Source) -> None:
        full, first, second = of_a_new_chain(source)
        assert (first.parent, second.parent) == (full.backup_id, first.backup_id)
        assert (full.parent, full.format_version, first.format_version) == (None, 1, 2)
        assert first.raw_bytes < full.raw_bytes / 4
        assert any(entry.path.rpartition("/")[2].startswith("INCREMENTAL.") for entry in first.files)
        survey = survey_backups(source.store)
        assert survey.complete[0] == second
        assert chain_of(second, survey).backups == (full, first, second)


@pytest.mark.slow
class TestAFullOneInstead:
    def test_where_there_is_nothing_to_base_it_on(self, settings: Settings, repository: Repository) -> None:
        with archived.source(settings, repository, options={"summarize_wal": "on"}) as running:
            made = running.take_backup(kind="incremental")
        assert (made.manifest.kind, made.instead) == ("full", "there is no backup that it could be based on")

    def test_where_the_chain_is_broken_which_begins_a_new_one(self, source: Source) -> None:
        _, first, second = of_a_new_chain(source)
        delete_backup(source.store, first.backup_id)
        made = incremental(source)
        assert made.manifest.kind == "full"
        assert made.instead == (
            f"the newest backup, {second.backup_id}, cannot be used: its chain is broken before {second.backup_id}: "
            f"{first.backup_id} is missing"
        )
        assert incremental(source).manifest.parent == made.manifest.backup_id

    def test_where_the_log_was_not_summarized_for_a_while(self, source: Source) -> None:
        source.back_up()
        with summarizing(source, "off"):
            source.do("UPDATE rows SET text = 'unseen' WHERE n <= 10")
            # Only what the log in pg_wal does not reach back to is lost to the summaries.
            for _ in range(2):
                source.do("SELECT pg_switch_wal()", "CHECKPOINT")
        forget_summaries(source)
        made = incremental(source)
        assert made.manifest.kind == "full"
        assert made.instead is not None and "WAL summaries are required on timeline 1" in made.instead
        assert incremental(source).instead is None


@pytest.mark.slow
class TestNone:
    def test_where_the_server_does_not_summarize_its_log(self, source: Source) -> None:
        before = source.store.names("backups")
        with summarizing(source, "off"), pytest.raises(NoIncrementals) as refused:
            incremental(source)
        assert refused.value.message.startswith("summarize_wal is off")
        assert "ALTER SYSTEM SET summarize_wal = on" in refused.value.hint
        assert source.store.names("backups") == before

    def test_is_a_warning_of_doctor_where_the_plan_has_them(self, source: Source) -> None:
        def judged() -> Finding:
            with connect(source.server.dsn()) as connection:
                return judge_incrementals(connection, read_facts(connection), "database")

        assert judged().level is Level.OK
        with summarizing(source, "off"):
            found = judged()
        assert (found.level, found.seen.startswith("summarize_wal is off")) == (Level.WARNING, True)

    @pytest.mark.debian
    def test_before_postgresql_17(self, settings: Settings, repository: Repository) -> None:
        with archived.source(settings, repository, major=15) as running:
            with pytest.raises(NoIncrementals, match=r"PostgreSQL 15\.\d+ .*makes no incremental backups"):
                running.take_backup(kind="incremental")
            assert running.store.names("backups") == []


class TestBasis:
    def test_is_the_newest_backup_with_its_own_list_of_files(self, folder_store: FolderStore) -> None:
        put_chain(folder_store, 3)
        basis = find_basis(folder_store, 18, 3)
        assert (basis.parent.backup_id, basis.own_manifest) == ("2", b"list of 2 " * 3000)
        with basis.file() as file:
            assert file.read_bytes() == basis.own_manifest

    @pytest.mark.parametrize(("full_every", "based"), [(0, False), (1, False), (2, False), (3, True)])
    def test_is_none_after_so_many_incremental_ones(
        self, folder_store: FolderStore, full_every: int, *, based: bool
    ) -> None:
        put_chain(folder_store, 3)
        with nullcontext() if based else pytest.raises(NoBasis, match="there were 2 incremental ones"):
            find_basis(folder_store, 18, full_every)

    def test_is_no_backup_of_another_major_version(self, folder_store: FolderStore) -> None:
        put_chain(folder_store, 1)
        with pytest.raises(NoBasis, match=r"0, is one of PostgreSQL 18\.6"):
            find_basis(folder_store, 19, 3)

    @pytest.mark.parametrize(
        ("damage", "words"),
        [
            (lambda store: delete_backup(store, "1"), "2, cannot be used: its chain is broken before 2: 1 is missing"),
            (lambda store: delete_backup(store, "0"), "its chain is broken before 1: 0 is missing"),
            (lambda store: archived.flip(store, "backups/1/manifest.json"), "1 cannot be used: the manifest of backup"),
            (lambda store: archived.flip(store, "backups/2/manifest.json"), "the newest backup, 2, cannot be used"),
            (lambda store: store.delete(part_key("0", 0)), "of the backup 0 backups/0/parts/000000 is missing"),
            (
                lambda store: cut_off(store, part_key("1", 1)),
                "of the backup 1 backups/1/parts/000001 is",
            ),
            (
                lambda store: archived.flip(store, part_key("2", 0), -5),
                "newest backup, 2, cannot be used: .*damaged",
            ),
        ],
        ids=[
            "without a link",
            "without the full one",
            "with a damaged manifest",
            "with a damaged newest manifest",
            "without a part",
            "with a part cut off",
            "with a damaged list of files",
        ],
    )
    def test_is_none_where_the_chain_is_broken_and_the_break_is_named(
        self, folder_store: FolderStore, damage: Callable[[Store], None], words: str
    ) -> None:
        put_chain(folder_store, 3)
        find_basis(folder_store, 18, 3)
        damage(folder_store)
        with pytest.raises(NoBasis, match=words):
            find_basis(folder_store, 18, 3)


def put_chain(store: Store, length: int) -> None:
    """Backups "0" (full), "1", ... of two files each, in parts that the second one does not fit into."""
    for number in range(length):
        content = {"PG_VERSION": b"18", OWN_MANIFEST: b"list of %d " % number * 3000}
        with PartWriter(store, part_key(str(number), 0)[:-6], part_size=20_000, workers=1, level=1) as writer:
            for path, data in content.items():
                index = writer.add(FileEntry(path=path, kind="file", mode=0o600, size=len(data)))
                writer.copy(BytesIO(data), index, len(data))
            parts = writer.finish()
        kind: Literal["full", "incremental"] = "incremental" if number else "full"
        made = Manifest(
            format_version=FORMATS[kind],
            backup_id=str(number),
            service="database",
            engine="postgres",
            kind=kind,
            parent=str(number - 1) if number else None,
            system_identifier="7301",
            server_version="18.6",
            tool_version="1",
            started_at=NOON + timedelta(hours=number),
            stopped_at=NOON + timedelta(hours=number),
            files=tuple(writer.files),
            parts=parts,
            details={
                "start_lsn": "0/2000028",
                "stop_lsn": "0/2000100",
                "timeline": 1,
                "wal_segment_size": 1 << 24,
                "major": 18,
                "superuser": "postgres",
            },
        )
        write_manifest(store, made)


def cut_off(store: Store, key: str) -> None:
    store.put(key, [store.get(key)[:-1]])


@contextmanager
def summarizing(source: Source, value: str) -> Iterator[None]:
    source.do(f"ALTER SYSTEM SET summarize_wal = {value}", "SELECT pg_reload_conf()")
    try:
        yield
    finally:
        source.do("ALTER SYSTEM SET summarize_wal = on", "SELECT pg_reload_conf()")


def forget_summaries(source: Source) -> None:
    """What PostgreSQL does with those that are older than wal_summary_keep_time."""
    source.server.stop()
    for summary in (source.server.data / "pg_wal" / "summaries").iterdir():
        summary.unlink()
    source.start()
