"""Applying the log: to its end, to a time, on from an interruption; nothing but a missing segment is its end."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from dr_pipelines.engines.postgres.chain import StoredSegment
from dr_pipelines.engines.postgres.log import Log
from dr_pipelines.errors import NotCovered, ObjectCorrupt, ObjectMissing, RestoreError
from dr_pipelines.processes.identity import run, server_identity
from dr_pipelines.processes.leases import Leases
from dr_pipelines.processes.postgres import running_pid
from dr_pipelines.repository.repository import Repository
from dr_pipelines.repository.store import Store
from dr_pipelines.runbooks.closing import loss_of
from dr_pipelines.settings import Settings
from tests import archived
from tests.archived import Source

pytestmark = pytest.mark.slow

MARKS = "SELECT string_agg(name, ',' ORDER BY at) FROM marks"


@dataclass(frozen=True)
class Story:
    """A backup, a mark, a moment, another at which no superuser may log in, a second mark, and nothing more."""

    repository: Repository
    backed_up_at: datetime
    between: datetime
    locked: datetime
    second_at: datetime
    point: datetime


@pytest.fixture(scope="module")
def story(source: Source) -> Story:
    source.do("CREATE TABLE marks (name text, at timestamptz DEFAULT clock_timestamp())")
    backed_up_at = source.back_up().stopped_at
    source.do("INSERT INTO marks VALUES ('first')")
    between = source.ship()
    with source.connect() as connection:
        connection.execute("ALTER ROLE postgres NOLOGIN")
        row = connection.execute("SELECT clock_timestamp()").fetchone()
        connection.execute("ALTER ROLE postgres LOGIN")
    assert row is not None
    locked: datetime = row[0].astimezone(UTC)
    # The second mark is not the first thing in its segment.
    source.do("CREATE TABLE others (n int)", "INSERT INTO marks VALUES ('second')")
    second_at = source.now()
    return Story(source.repository, backed_up_at, between, locked, second_at, source.ship())


@pytest.fixture
def damaged(story: Story, tmp_path: Path) -> Repository:
    """The story's repository once more, to be damaged."""
    return archived.copy_of(story.repository, tmp_path / "damaged")


def log_of(repository: Repository) -> tuple[Store, tuple[StoredSegment, ...]]:
    """The cluster's store, and the segments that a restore needs, in order."""
    covered = archived.newest(repository)
    store = repository.service(archived.SERVICE).child(covered.manifest.system_identifier)
    return store, tuple(segment for segment in Log(store).segments() if segment.name in covered.chain.files)


def key(segment: StoredSegment) -> str:
    return f"log/{segment.name[:8]}/{segment.name}"


def nothing_runs(restore: archived.Restore) -> bool:
    assert restore.assessment is not None
    leases = Leases(restore.around.settings.state_dir)
    alive = [lease for lease in leases.of(restore.execution.id) if leases.alive(lease)]
    return not alive and running_pid(Path(restore.assessment.target)) is None


class TestTo:
    def test_the_latest_point(self, story: Story, settings: Settings) -> None:
        with archived.restore(settings, story.repository) as restore:
            server = restore.run()
            assert restore.ask(MARKS) == "first,second"
            assert server.timeline == 2
            assert server.last_commit_at is not None
            assert story.between < server.last_commit_at <= story.second_at
            assert archived.failed(restore.validate()) == []

    def test_a_time_between_two_marks(self, story: Story, settings: Settings) -> None:
        with archived.restore(settings, story.repository, to=story.between) as restore:
            restore.run()
            assert restore.ask(MARKS) == "first"

    def test_the_first_moment_after_the_backup(self, story: Story, settings: Settings) -> None:
        with archived.restore(settings, story.repository, to=story.backed_up_at) as restore:
            restore.run()
            assert restore.ask(MARKS) is None

    def test_a_time_after_which_nothing_was_committed(self, story: Story, settings: Settings) -> None:
        with archived.restore(settings, story.repository, to=story.point) as restore:
            server = restore.run()
            assert restore.ask(MARKS) == "first,second"
            log = (server.data / "dr_restore" / "server.log").read_text()
            assert "recovery ended before configured recovery target was reached" in log

    @pytest.mark.parametrize("seconds", [-1, 1])
    def test_no_time_that_is_not_covered(self, story: Story, settings: Settings, seconds: int) -> None:
        beyond = story.backed_up_at if seconds < 0 else datetime.now(UTC)
        with archived.restore(settings, story.repository, to=beyond + timedelta(seconds=seconds)) as restore:
            with pytest.raises(NotCovered) as refused:
                restore.prepare()
            assert f"{story.backed_up_at:%Y-%m-%dT%H:%M:%S.%fZ} to " in refused.value.message
            assert not (settings.state_dir / "restores" / restore.execution.id).exists()


class TestTheLogEnds:
    """With an error, rather than earlier than it should."""

    def fails(self, settings: Settings, repository: Repository, kind: type[Exception], named: str) -> None:
        with archived.restore(settings, repository) as restore:
            restore.prepare()
            restore.fetch()
            with pytest.raises(kind) as raised:
                restore.apply()
            assert named in str(raised.value)
            assert nothing_runs(restore)

    def test_not_at_a_segment_that_is_damaged(self, damaged: Repository, settings: Settings) -> None:
        store, segments = log_of(damaged)
        archived.flip(store, key(segments[-1]))
        self.fails(settings, damaged, ObjectCorrupt, segments[-1].name)

    def test_not_at_another_segment_under_its_name(self, damaged: Repository, settings: Settings) -> None:
        store, segments = log_of(damaged)
        store.put(key(segments[-1]), [store.get(key(segments[-2]))])
        self.fails(settings, damaged, ObjectCorrupt, segments[-1].name)

    def test_not_at_a_segment_that_vanishes_after_it_was_seen(self, damaged: Repository, settings: Settings) -> None:
        store, segments = log_of(damaged)
        with archived.restore(settings, damaged) as restore:
            restore.prepare()
            restore.fetch()
            lost = store.get(key(segments[-1]))
            store.delete(key(segments[-1]))
            with pytest.raises(ObjectMissing):
                restore.apply()
            assert nothing_runs(restore)
            store.put(key(segments[-1]), [lost])
            restore.apply()
            assert restore.ask(MARKS) == "first,second"

    def test_before_the_target_time_where_a_hole_is_behind(self, damaged: Repository, settings: Settings) -> None:
        store, segments = log_of(damaged)
        store.delete(key(segments[-1]))
        target_time = segments[-2].stored_at
        with archived.restore(settings, damaged, to=target_time) as restore:
            restore.prepare()
            restore.fetch()
            with pytest.raises(RestoreError, match="recovery ended before configured recovery target was reached"):
                restore.apply()
            assert nothing_runs(restore)


class TestALogThatIsBrokenInside:
    """Stored as it came, so that no hash tells: PostgreSQL takes the broken record for the end."""

    @pytest.fixture(params=["before its last segment", "in its last segment"])
    def broken(self, request: pytest.FixtureRequest, damaged: Repository) -> Repository:
        covered = archived.newest(damaged)
        store, _ = log_of(damaged)
        names = covered.chain.files
        if request.param == "in its last segment":
            name = names[-1]
            raw = bytearray(Log(store).fetch(name))
            raw[raw.index(b"second")] ^= 0xFF
        else:
            name = names[names.index(str(covered.manifest.details["stop_segment"])) + 1]
            assert name != names[-1]
            raw = bytearray(Log(store).fetch(name))
            raw[60] ^= 0xFF
        store.delete(f"log/{name[:8]}/{name}")
        Log(store).put(name, bytes(raw))
        return damaged

    def test_is_found_when_the_server_is_validated(self, broken: Repository, settings: Settings) -> None:
        with archived.restore(settings, broken) as restore:
            restore.run()
            assert [line.split(":")[0] for line in archived.failed(restore.validate())] == ["log_replayed_to_its_end"]

    def test_is_not_taken_for_a_database_that_was_idle(
        self, story: Story, broken: Repository, settings: Settings
    ) -> None:
        with archived.restore(settings, broken, to=story.point) as restore:
            restore.prepare()
            restore.fetch()
            for _attempt in range(2):
                with pytest.raises(RestoreError, match=r"the replay ended at .*, the log was proven to lead to"):
                    restore.apply()
                assert nothing_runs(restore)


class TestWhereNobodyKnowsWhatPositionWasProven:
    """An earlier agent did not say it, and without it a broken record looks like the end of the log."""

    @pytest.fixture
    def earlier(self, damaged: Repository) -> Repository:
        log = Log(log_of(damaged)[0])
        position = log.read_position()
        assert position is not None
        log.write_position(position.model_copy(update={"recovery_lsn": None}))
        return damaged

    def test_the_latest_point_is_restored_and_unverified(self, earlier: Repository, settings: Settings) -> None:
        with archived.restore(settings, earlier) as restore:
            server = restore.run()
            assert restore.ask(MARKS) == "first,second"
            validated = restore.validate()
            assert [line.split(":")[0] for line in archived.failed(validated)] == ["log_replayed_to_its_end"]
            assert [check.passed for check in validated.checks if check.name == "log_replayed_to_its_end"] == [None]
            assert restore.assessment is not None
            assert loss_of(restore.assessment, server, validated).recovered_to == server.last_commit_at

    def test_the_logs_end_is_not_taken_for_a_time_after_it(
        self, story: Story, earlier: Repository, settings: Settings
    ) -> None:
        with archived.restore(settings, earlier, to=story.point) as restore:
            restore.prepare()
            restore.fetch()
            with pytest.raises(RestoreError, match="recovery ended before configured recovery target was reached"):
                restore.apply()
            assert nothing_runs(restore)


class TestResume:
    def test_takes_over_a_server_that_has_recovered(self, story: Story, settings: Settings) -> None:
        with archived.restore(settings, story.repository, to=story.between) as restore:
            first = restore.run()
            assert restore.apply() == first
            leases = Leases(settings.state_dir)
            assert [leases.alive(lease) for lease in leases.of(restore.execution.id)] == [True]

    def test_starts_a_recovered_server_that_was_killed_again(self, story: Story, settings: Settings) -> None:
        with archived.restore(settings, story.repository, to=story.between) as restore:
            first = restore.run()
            leases = Leases(settings.state_dir)
            for lease in leases.of(restore.execution.id, "postgres"):
                leases.kill(lease)
            again = restore.apply()
            assert restore.ask(MARKS) == "first"
            assert again.timeline == first.timeline

    def test_does_not_take_what_the_restored_server_wrote_for_what_was_replayed(
        self, story: Story, settings: Settings
    ) -> None:
        with archived.restore(settings, story.repository) as restore:
            first = restore.run()
            with psycopg.connect(first.dsn()) as connection:
                connection.execute("INSERT INTO others SELECT generate_series(1, 10000)")
            leases = Leases(settings.state_dir)
            for lease in leases.of(restore.execution.id, "postgres"):
                leases.kill(lease)
            again = restore.apply()
            assert restore.ask("SELECT count(*) FROM others") == 10000
            assert (again.replayed_lsn, again.last_commit_at) == (first.replayed_lsn, None)


def test_a_server_that_refuses_the_superuser_fails_and_can_be_opened_as_it_says(
    story: Story, settings: Settings
) -> None:
    with archived.restore(settings, story.repository, to=story.locked) as restore:
        with pytest.raises(RestoreError, match='role "postgres" is not permitted to log in') as refused:
            restore.run()
        assert nothing_runs(restore)
        advised = refused.value.hint.split("such as: ")[1].split("; then")[0]
        run(["sh", "-c", advised], identity=server_identity(settings), timeout=60)
        restore.apply()
        assert restore.ask(MARKS) == "first"


@pytest.mark.parametrize(
    "name",
    [f"{'x' * 200}/{'y' * 200}", '-it\'s a "target" with 100% $HOME `id`;\n & Zürich ж'],
    ids=["long", "odd"],
)
def test_a_target_may_be_called_anything(story: Story, settings: Settings, name: str) -> None:
    with (
        archived.open_to_all() as folder,
        archived.restore(settings, story.repository, target=folder / name) as restore,
    ):
        restore.run()
        assert restore.ask(MARKS) == "first,second"
        assert archived.failed(restore.validate()) == []


def test_a_configuration_that_these_binaries_refuse_can_be_mended(story: Story, settings: Settings) -> None:
    with archived.restore(settings, story.repository) as restore:
        restore.prepare()
        files = restore.fetch()
        configuration = Path(files.target) / "postgresql.conf"
        good = configuration.read_text()
        configuration.write_text(good + "\nno_such_setting = on\n")
        with pytest.raises(RestoreError, match="no_such_setting") as refused:
            restore.apply()
        assert "postgresql.conf" in refused.value.hint
        configuration.write_text(good)
        restore.apply()
        assert restore.ask(MARKS) == "first,second"


AWKWARD_CONFIGURATION = """
data_directory = '{data}'
hba_file = '{data}/access.conf'
ident_file = '{data}/identities.conf'
external_pid_file = '{data}/../server.pid'
unix_socket_directories = '/nonexistent'
listen_addresses = '203.0.113.1'
port = 1
logging_collector = on
synchronous_standby_names = 'nobody'
recovery_target = 'immediate'
recovery_min_apply_delay = '1d'
default_transaction_read_only = on
statement_timeout = 100
archive_command = 'false'
"""


@pytest.fixture(scope="module")
def awkward(
    settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[archived.Restore, archived.Source]]:
    """A restored server whose source had set, and called things, what gets in the way; and that source."""
    repository = archived.new_repository(tmp_path_factory.mktemp("awkward"))
    with archived.source(settings, repository) as source:
        source.do(
            'CREATE DATABASE "it\'s a ""db"" = %s ж"',
            "CREATE DATABASE ascii ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0",
            "CREATE DATABASE closed ALLOW_CONNECTIONS false",
            "CREATE UNLOGGED TABLE unlogged AS SELECT 1 AS n",
        )
        source.do("CREATE TABLE kept AS SELECT generate_series(1, 10) AS n", database='it\'s a "db" = %s ж')
        data = source.server.data
        (data / "access.conf").write_text("host all all 127.0.0.1/32 scram-sha-256\n")
        with (data / "postgresql.conf").open("a") as file:
            file.write(AWKWARD_CONFIGURATION.format(data=data))
        (data / "pg_hba.conf").write_bytes(b"# Z\xfcrich\nlocal all all reject\n")
        (data / "postgresql.auto.conf").write_bytes(b"# Z\xfcrich\nwork_mem = '5MB'\nrestore_command = 'false'\n")
        (data / "dr_restore").mkdir()
        (data / "dr_restore" / "restore.json").write_text("{}")
        (data / "dr_restore.hba.conf").write_text("")
        for path in (data / "access.conf", *data.glob("dr_restore*"), data / "dr_restore" / "restore.json"):
            archived.give_to_server(path, settings)
        source.back_up()
        source.do("DROP TABLE IF EXISTS nothing", "CREATE TABLE after_backup AS SELECT 1 AS n")
        source.ship()
        with archived.restore(settings, repository) as restore:
            restore.run()
            yield restore, source


class TestNothingOfTheSourcesSurroundingsIsUsed:
    """Not its folders, addresses, targets, archive, encodings."""

    def test_it_runs_in_its_own_folder(self, awkward: tuple[archived.Restore, Source]) -> None:
        restore, source = awkward
        assert restore.ask("SHOW data_directory") == str(restore.server and restore.server.data)
        assert restore.ask("SHOW listen_addresses") == "127.0.0.1"
        assert running_pid(source.server.data) is not None

    def test_it_does_not_archive(self, awkward: tuple[archived.Restore, Source]) -> None:
        assert awkward[0].ask("SHOW archive_mode") == "off"

    def test_a_recovery_target_of_the_source_does_not_stop_it(self, awkward: tuple[archived.Restore, Source]) -> None:
        assert awkward[0].ask("SELECT count(*) FROM after_backup") == 1

    def test_settings_of_the_source_that_harm_nobody_stay(self, awkward: tuple[archived.Restore, Source]) -> None:
        restore, _ = awkward
        assert restore.server is not None
        assert restore.ask("SHOW work_mem") == "5MB"
        assert (restore.server.data / "postgresql.auto.conf").read_bytes() == b"# Z\xfcrich\nwork_mem = '5MB'\n"

    def test_every_database_is_there(self, awkward: tuple[archived.Restore, Source]) -> None:
        assert awkward[0].ask("SELECT count(*) FROM kept", 'it\'s a "db" = %s ж') == 10

    def test_an_unlogged_table_is_there_and_empty(self, awkward: tuple[archived.Restore, Source]) -> None:
        assert awkward[0].ask("SELECT count(*) FROM unlogged") == 0

    def test_notes_of_a_restore_in_the_source_are_not_taken_along(
        self, awkward: tuple[archived.Restore, Source]
    ) -> None:
        restore, _ = awkward
        assert restore.assessment is not None
        covered = archived.newest(restore.around.repository)
        assert not [entry.path for entry in covered.manifest.files if entry.path.startswith("dr_restore")]

    def test_it_is_found_sound(self, awkward: tuple[archived.Restore, Source]) -> None:
        validated = awkward[0].validate()
        assert archived.failed(validated) == []
        assert 'constraints_hold[it\'s a "db" = %s ж]' in [check.name for check in validated.checks]


def test_a_cluster_without_the_database_postgres(settings: Settings, repository: Repository) -> None:
    with archived.source(settings, repository) as source:
        source.do("CREATE DATABASE hotel")
        source.database = "hotel"
        with source.without_agent():
            source.do("DROP DATABASE postgres WITH (FORCE)")
        source.back_up()
        source.ship()
        with archived.restore(settings, repository) as restore:
            restore.run()
            assert archived.failed(restore.validate()) == []


@pytest.mark.debian
def test_a_configuration_that_lies_elsewhere_as_debian_has_it(settings: Settings, repository: Repository) -> None:
    with archived.source(settings, repository, major=15) as source:
        elsewhere = source.folder / "etc"
        elsewhere.mkdir()
        data = source.server.data
        for name in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf"):
            (data / name).rename(elsewhere / name)
        with (elsewhere / "postgresql.conf").open("a") as file:
            file.write(f"data_directory = '{data}'\nmax_prepared_transactions = 5\nmax_connections = 50\n")
        source.server.stop()
        source.start(
            config_file=str(elsewhere / "postgresql.conf"),
            hba_file=str(elsewhere / "pg_hba.conf"),
            ident_file=str(elsewhere / "pg_ident.conf"),
        )
        source.do("CREATE TABLE marks (n int)", "BEGIN; INSERT INTO marks VALUES (1); PREPARE TRANSACTION 'under way'")
        source.back_up()
        source.do("INSERT INTO marks VALUES (2)", "BEGIN; INSERT INTO marks VALUES (3); PREPARE TRANSACTION 'later'")
        source.ship()
        with archived.restore(settings, repository) as restore:
            restore.run()
            assert restore.ask("SELECT count(*) FROM marks") == 1
            assert restore.ask("SELECT string_agg(gid, ',' ORDER BY gid) FROM pg_prepared_xacts") == "later,under way"
            assert restore.ask("SHOW max_connections") == "50"
            assert archived.failed(restore.validate()) == []
