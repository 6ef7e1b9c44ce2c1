"""A full backup: what is refused, what is left when it fails, and what is taken along."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from dr_pipelines.engines.postgres import base_backup
from dr_pipelines.engines.postgres.backup import take_backup
from dr_pipelines.engines.postgres.connection import connect
from dr_pipelines.engines.postgres.log import Log
from dr_pipelines.engines.postgres.wal import Segment
from dr_pipelines.errors import BackupError, Locked, ProcessError, RepositoryError, RepositoryUnreachable
from dr_pipelines.repository.locks import Lock
from dr_pipelines.repository.manifest import Manifest, clear_incomplete, part_key, survey_backups
from dr_pipelines.repository.repository import Repository
from dr_pipelines.settings import Settings
from dr_pipelines.timing import SystemClock, wait_until
from tests import archived
from tests.archived import Source
from tests.made_up import falter, segment

pytestmark = pytest.mark.slow


@contextmanager
def restarted(source: Source, **options: str) -> Iterator[None]:
    """The server with other settings, for a while."""
    source.server.stop()
    source.start(**options)
    try:
        yield
    finally:
        source.server.stop("immediate")
        source.start()


class TestMade:
    def test_it_lists_as_complete_with_all_its_parts_and_the_log_that_it_needs(self, source: Source) -> None:
        manifest = source.back_up()
        store = source.store
        assert manifest.backup_id in [found.backup_id for found in survey_backups(store).complete]
        assert len(manifest.parts) > 10
        assert all(store.info(part.key) is not None for part in manifest.parts)
        assert Log(store).has(str(manifest.details["stop_segment"]))
        assert manifest.system_identifier == source.system
        assert manifest.started_at < manifest.stopped_at <= source.now()
        assert manifest.details["max_wal_size"] == 64 << 20

    def test_the_log_itself_is_not_in_it(self, source: Source) -> None:
        inside = [entry.path for entry in source.back_up().files if entry.path.startswith("pg_wal/")]
        assert set(inside) <= {"pg_wal/archive_status", "pg_wal/summaries"}

    def test_files_with_names_of_any_kind_are_in_it(self, source: Source) -> None:
        names = [b"with space", b"new\nline", b"quote'\"", "ж".encode(), b"\xff not UTF-8"]
        for name in names:
            path = Path(str(source.server.data) + "/") / name.decode(errors="surrogateescape")
            path.write_text("kept")
            archived.give_to_server(path, source.settings)
        held = {entry.path for entry in source.back_up().files}
        assert {name.decode(errors="surrogateescape") for name in names} <= held

    def test_progress_goes_up_to_the_end(self, source: Source) -> None:
        seen: list[tuple[int, int]] = []
        manifest = source.back_up(progress=lambda done, total: seen.append((done, total)))
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)
        assert seen[-1][0] == manifest.raw_bytes
        assert all(done <= total for done, total in seen)

    def test_a_repository_that_does_not_answer_once_costs_no_backup(
        self, source: Source, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        refused = falter(
            monkeypatch, {"put": "/parts/", "put_if_absent": "manifest.json$", "info": "^log/", "open": "^log/"}
        )
        manifest = source.back_up()
        key = f"log/00000001/{manifest.details['stop_segment']}"
        assert refused >= {("put", manifest.parts[0].key), ("info", key), ("open", key)}
        assert ("put_if_absent", f"backups/{manifest.backup_id}/manifest.json") in refused

    def test_what_an_interrupted_backup_left_is_removed_and_named(self, source: Source) -> None:
        leftover = "20260301T030000Z-full-abcdef"
        source.store.put(part_key(leftover, 0), [b"half"])
        result = take_backup(
            archived.SERVICE,
            source.server.dsn(),
            source.repository,
            source.server.binaries,
            source.settings,
            clock=SystemClock(),
            progress=lambda done, total: None,
        )
        assert result.removed_incomplete == (leftover,)
        assert survey_backups(source.store).incomplete == ()
        # For whoever made it and may wake up.
        assert survey_backups(source.store).abandoned == (leftover,)


class TestReached:
    """The server, as the connection string and libpq's own variables say."""

    def test_with_a_file_of_passwords(self, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        passwords = tmp_path / "passwords"
        passwords.touch(mode=0o600)
        passwords.write_text(f"*:{source.server.port}:*:*:{source.server.password}\n")
        monkeypatch.setenv("PGPASSFILE", str(passwords))
        options = psycopg.conninfo.conninfo_to_dict(source.server.dsn())
        del options["password"]
        assert source.back_up(dsn=psycopg.conninfo.make_conninfo("", **options))

    def test_with_a_service(self, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        options = psycopg.conninfo.conninfo_to_dict(source.server.dsn())
        lines = "".join(f"{key}={value}\n" for key, value in options.items())
        (tmp_path / "services").write_text(f"[hotel]\n{lines}")
        monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
        assert source.back_up(dsn="service=hotel")

    def test_with_secrets_that_no_list_of_processes_shows(self, source: Source) -> None:
        seen: list[bytes] = []

        def look(done: int, total: int) -> None:
            for command in Path("/proc").glob("[0-9]*/cmdline"):
                with suppress(OSError):
                    seen.append(command.read_bytes())

        source.back_up(dsn=psycopg.conninfo.make_conninfo(source.server.dsn(), sslpassword="hunter2"), progress=look)
        assert any(b"/pg_basebackup\0" in command for command in seen)
        assert not any(
            secret in command for command in seen for secret in (source.server.password.encode(), b"hunter2")
        )


class TestRefused:
    """Before anything starts."""

    def test_a_cluster_with_a_further_tablespace(self, source: Source) -> None:
        place = source.folder / "elsewhere"
        place.mkdir()
        archived.give_to_server(place, source.settings)
        before = source.store.names("backups")
        source.do(f"CREATE TABLESPACE elsewhere LOCATION '{place}'")
        with pytest.raises(BackupError, match=r"further tablespaces \(elsewhere\)"):
            source.back_up()
        source.do("DROP TABLESPACE elsewhere")
        assert source.store.names("backups") == before

    @pytest.mark.parametrize(("name", "value"), [("archive_mode", "off"), ("archive_command", "")])
    def test_a_server_that_does_not_archive(self, source: Source, name: str, value: str) -> None:
        before = source.store.names("backups")
        with restarted(source, **{name: value}), pytest.raises(BackupError, match="does not archive its WAL"):
            source.back_up()
        assert source.store.names("backups") == before

    def test_a_standby(self, source: Source) -> None:
        store, before = source.store, source.store.names("backups")
        source.server.stop()
        signal = source.server.data / "standby.signal"
        signal.touch()
        archived.give_to_server(signal, source.settings)
        source.start()
        with pytest.raises(BackupError, match="is a standby"):
            source.back_up()
        source.server.stop()
        signal.unlink()
        source.start()
        assert store.names("backups") == before

    def test_a_server_that_does_not_answer(self, source: Source) -> None:
        source.server.stop()
        try:
            with pytest.raises(ProcessError, match="cannot be reached") as raised:
                source.back_up()
            assert source.server.password not in str(raised.value)
        finally:
            source.start()

    def test_a_second_backup_at_the_same_time(self, source: Source) -> None:
        refused: list[str] = []

        def try_another(done: int, total: int) -> None:
            if not refused:
                with pytest.raises(Locked) as raised:
                    source.back_up()
                refused.append(str(raised.value))

        source.back_up(progress=try_another)
        assert "full backup of database" in refused[0]


class TestFails:
    """And nothing is left that lists as a backup."""

    @pytest.fixture(autouse=True)
    def _nothing_is_left(self, source: Source) -> Iterator[None]:
        before = survey_backups(source.store)
        yield
        after = survey_backups(source.store)
        assert (after.complete, after.incomplete, after.damaged) == (before.complete, (), ())
        assert source.back_up().backup_id

    def test_where_the_end_of_its_log_does_not_reach_the_repository(self, source: Source) -> None:
        with (
            source.without_agent(),
            pytest.raises(BackupError, match=r"the WAL segment 0{7}1\w{16}, .* did not reach the repository") as raised,
        ):
            source.back_up(archive_patience=1)
        assert "agent" in raised.value.hint

    def test_where_the_repository_is_away_until_its_patience_ends(
        self, source: Source, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def away(log: Log, name: str) -> bool:
            raise RepositoryUnreachable("503 Slow Down")

        monkeypatch.setattr(Log, "has", away)
        with pytest.raises(BackupError, match=r"within 1 s; the repository did not always answer: 503 Slow Down"):
            source.back_up(archive_patience=1)

    def test_where_the_archive_command_fails(self, source: Source) -> None:
        with restarted(source, archive_command="false"):
            with pytest.raises(BackupError, match="log was not archived within 1 s") as raised:
                source.back_up(archive_patience=1)
            assert "archive_command" in raised.value.hint

    def test_where_its_connection_is_ended(self, source: Source) -> None:
        def end_it(done: int, total: int) -> None:
            source.do("SELECT pg_terminate_backend(pid) FROM pg_stat_replication WHERE state = 'backup'")

        with pytest.raises(BackupError, match=r"(?s)pg_basebackup failed: .*(terminating connection|server closed)"):
            source.back_up(progress=end_it)

    def test_where_a_connection_is_lost_while_it_is_used(self, source: Source) -> None:
        def lose_it() -> None:
            with connect(source.server.dsn()) as connection:
                connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")

        with pytest.raises(ProcessError, match="has ended the connection: terminating connection") as raised:
            lose_it()
        assert source.server.password not in str(raised.value)

    def test_where_the_role_may_not(self, source: Source) -> None:
        source.do("CREATE ROLE clerk LOGIN PASSWORD 'x'", "GRANT pg_monitor TO clerk")
        dsn = psycopg.conninfo.make_conninfo(source.server.dsn(), user="clerk", password="x")
        with pytest.raises(
            BackupError, match=r"permission denied to start WAL sender|must be superuser or replication"
        ):
            take_backup(
                archived.SERVICE,
                dsn,
                source.repository,
                source.server.binaries,
                source.settings,
                clock=SystemClock(),
                progress=lambda done, total: None,
            )

    def test_where_it_slept_so_long_that_another_took_it_for_dead(
        self, source: Source, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        confirm = Lock.confirm

        def confirm_and_sleep(lock: Lock) -> None:
            confirm(lock)
            assert clear_incomplete(source.store, source.now())

        monkeypatch.setattr(Lock, "confirm", confirm_and_sleep)
        with pytest.raises(BackupError, match="was taken for dead") as raised:
            source.back_up()
        assert "start again" in raised.value.hint

    def test_where_a_part_cannot_be_stored(self, source: Source) -> None:
        store = source.store

        def block(done: int, total: int) -> None:
            # A file where the next part's folder has to be: neither root nor anybody else can write below it.
            for name in store.names("backups"):
                folder = Path(store.url) / "backups" / name
                if not (folder / "manifest.json").exists() and (folder / "parts").is_dir():
                    (folder / "parts").rename(folder / f"moved-{done}")
                    (folder / "parts").touch()

        with pytest.raises(RepositoryError, match="parts"):
            source.back_up(progress=block)


def test_a_backup_leaves_no_thread_behind(source: Source) -> None:
    threads = set(threading.enumerate())
    source.back_up()
    assert set(threading.enumerate()) <= threads


def test_a_backup_ends_though_the_question_for_its_progress_is_never_answered(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()
    monkeypatch.setattr(base_backup, "_watch_archiving", lambda *_: ended.wait())
    monkeypatch.setattr(base_backup, "_WATCHER_PATIENCE", 0.1)
    made: list[Manifest] = []
    making = threading.Thread(target=lambda: made.append(source.back_up()))
    making.start()
    making.join(30)
    ended.set()
    left = making.is_alive()
    making.join()
    assert not left


def test_the_moment_it_stopped_is_before_the_wait_for_its_log(source: Source) -> None:
    """So that a restore to any time after it can be asked for, however long the log took to be stored."""
    made: list[Manifest] = []
    source.stop_agent()
    making = threading.Thread(target=lambda: made.append(source.back_up()))
    making.start()
    sending = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender'"
    assert wait_until(lambda: source.ask(sending), timeout=20)
    assert wait_until(lambda: not source.ask(sending), timeout=20)
    sent_at = source.now()
    assert wait_until(lambda: source.now() - sent_at > timedelta(seconds=0.5), timeout=20)
    waiting_at = source.now()
    source.start_agent()
    making.join()
    assert made[0].stopped_at < waiting_at


@pytest.mark.parametrize("major", [15, 18])
def test_a_log_of_another_server_of_the_same_identifier_completes_no_backup(
    settings: Settings, repository: Repository, major: int
) -> None:
    with archived.source(settings, repository, major=major) as running:
        first = running.back_up()
        running.stop_agent()
        at = Segment.of_name(str(first.details["stop_segment"]), 1 << 20)
        for number in range(at.number + 1, at.number + 8):
            Log(running.store).put(*segment(number))
        with pytest.raises(BackupError, match="another server's"):
            running.back_up()
        assert [manifest.backup_id for manifest in survey_backups(running.store).complete] == [first.backup_id]
