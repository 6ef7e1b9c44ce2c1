"""What a source had configured neither reaches out of a server restored from it nor decides where that one stands."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psycopg
import pytest

from dr_pipelines.repository.repository import Repository
from dr_pipelines.runbooks.closing import how_to_connect
from dr_pipelines.settings import Settings
from dr_pipelines.timing import wait_until
from tests import archived
from tests.archived import Source

pytestmark = pytest.mark.slow

MARKS = "SELECT string_agg(name, ',' ORDER BY name) FROM marks"
SUBSCRIPTION = (
    "CREATE SUBSCRIPTION bookings CONNECTION 'host=127.0.0.1 port=1' PUBLICATION all_of_them WITH (connect = false)",
    "ALTER SUBSCRIPTION bookings ENABLE",
)


@dataclass(frozen=True)
class Story:
    """A backup, then two marks, and between them a moment; then more log, so that there are restart points."""

    repository: Repository
    between: datetime


@pytest.fixture(scope="module")
def story(source: Source) -> Story:
    source.do("CREATE TABLE marks (name text)", *SUBSCRIPTION)
    source.back_up()
    source.do("INSERT INTO marks VALUES ('1st')")
    between = source.ship()
    source.do("INSERT INTO marks VALUES ('2nd')")
    for _ in range(20):
        source.do("CHECKPOINT", "SELECT pg_switch_wal()")
    source.ship()
    return Story(source.repository, between)


@contextmanager
def restored(
    settings: Settings, story: Story, *configuration: str, to: datetime | None = None
) -> Iterator[archived.Restore]:
    """A restored server whose source had these lines in its postgresql.conf."""
    with archived.restore(settings, story.repository, to=to) as restore:
        restore.prepare()
        place = Path(restore.fetch().target)
        with (place / "postgresql.conf").open("a") as file:
            file.writelines(f"{line}\n" for line in configuration)
        restore.apply()
        yield restore


def test_a_subscription_of_the_source_is_not_followed(story: Story, source: Source, settings: Settings) -> None:
    followers = "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'logical replication%'"
    assert wait_until(lambda: source.ask(followers), timeout=30)
    with restored(settings, story) as restore:
        assert restore.ask("SELECT subname FROM pg_subscription WHERE subenabled") == "bookings"
        assert restore.ask(followers) == 0
        assert restore.server is not None
        told = how_to_connect(restore.server, source.server.binaries.folder)
        assert "DISABLE" in told["before"]


@pytest.mark.parametrize("libraries", ["", "auto_explain"])
def test_libraries_of_the_source_are_loaded_and_named(
    story: Story, settings: Settings, caplog: pytest.LogCaptureFixture, libraries: str
) -> None:
    with restored(settings, story, f"shared_preload_libraries = '{libraries}'") as restore:
        assert restore.ask("SHOW shared_preload_libraries") == libraries
    warned = [record.message for record in caplog.records if "shared_preload_libraries" in record.message]
    assert [libraries in message for message in warned] == ([True] if libraries else [])


class TestARecoveryTargetOfTheSource:
    def test_does_not_end_a_restore_to_the_latest_point(self, story: Story, settings: Settings) -> None:
        target = f"recovery_target_time = '{story.between}'"
        with restored(settings, story, target, "recovery_target_action = 'shutdown'") as restore:
            assert restore.ask(MARKS) == "1st,2nd"

    def test_does_not_move_the_end_of_a_restore_to_a_time(self, story: Story, settings: Settings) -> None:
        with restored(settings, story, to=story.between) as restore:
            assert restore.server is not None
            first_commit = restore.server.last_commit_at
        target = ("recovery_target_time = '2020-01-01'", "recovery_target_inclusive = off")
        with restored(settings, story, *target, to=first_commit) as restore:
            assert restore.ask(MARKS) == "1st"


def test_access_rules_of_the_source_that_name_other_files_hold(
    story: Story, source: Source, settings: Settings
) -> None:
    with archived.restore(settings, story.repository) as restore:
        restore.prepare()
        place = Path(restore.fetch().target)
        (place / "pg_hba.conf").write_text("include rules.conf\n")
        (place / "rules.conf").write_text("host all @admins 127.0.0.1/32 scram-sha-256\n")
        (place / "admins").write_text("postgres\n")
        for name in ("rules.conf", "admins"):
            archived.give_to_server(place / name, settings)
        server = restore.apply()
        with psycopg.connect(source.server.dsn(), port=server.port) as connection:
            assert connection.execute("SHOW cluster_name").fetchone() == ("restored",)


def test_the_server_is_started_without_a_complaint(story: Story, settings: Settings) -> None:
    with restored(settings, story, "external_pid_file = '/nonexistent/server.pid'") as restore:
        assert restore.server is not None
        assert "could not" not in (restore.server.data / "dr_restore" / "server.log").read_text()


@pytest.mark.parametrize("setting", ["archive_cleanup_command", "recovery_end_command"])
def test_a_command_of_the_source_for_its_recovery_is_not_carried_out(
    story: Story, settings: Settings, setting: str
) -> None:
    with archived.open_to_all() as foreign:
        foreign.chmod(0o777)
        (foreign / "precious").touch()
        # Restart points, after which one of the commands comes, as often as the log has checkpoints.
        often = ("max_wal_size = '2MB'", "min_wal_size = '2MB'", "recovery_prefetch = off")
        with restored(settings, story, f"{setting} = 'rm {foreign}/precious'", *often) as restore:
            assert restore.ask(MARKS) == "1st,2nd"
        assert (foreign / "precious").exists()
