"""A restored server in production: what it has of the source's surroundings leads nowhere but into itself."""

import socket
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from dr_pipelines.engines.postgres.archive_script import install_archive_script
from dr_pipelines.engines.postgres.production import (
    Production,
    archive_command,
    mark_for_archive,
    prepare_production,
    require_free_port,
    set_settings,
)
from dr_pipelines.errors import ConfigurationError, RestoreError
from dr_pipelines.processes.identity import run, server_identity
from dr_pipelines.processes.ports import free_port
from dr_pipelines.processes.postgres import find_binaries
from dr_pipelines.settings import Settings
from tests import archived
from tests.archived import Cluster

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stopped() -> Iterator[Cluster]:
    """A cluster that has filled some segments without archiving them, and was stopped."""
    with archived.state() as settings, archived.cluster(settings, find_binaries(settings)) as made:
        made.start(wal_keep_size="64MB")
        made.do("CREATE TABLE rows AS SELECT 1 AS n")
        for _ in range(3):
            made.do("INSERT INTO rows VALUES (1)", "SELECT pg_switch_wal()")
        made.server.stop()
        yield made


@pytest.fixture
def data(stopped: Cluster) -> Iterator[Path]:
    """Its data directory, whose configuration is as it was afterwards."""
    place = stopped.server.data
    kept = {name: (place / name).read_bytes() for name in ("postgresql.conf", "postgresql.auto.conf")}
    yield place
    for name, content in kept.items():
        (place / name).write_bytes(content)
    for note in (place / "pg_wal" / "archive_status").iterdir():
        note.unlink()


WANTED = Production("127.0.0.1", 5499, archive_command(Path("/it's/a script"), Path("/a\\b spool")), None)


def prepare(stopped: Cluster, wanted: Production = WANTED) -> tuple[str, ...]:
    identity = server_identity(Settings())
    return prepare_production(stopped.server.data, stopped.server.binaries, identity, wanted, timeline=1)


def effective(stopped: Cluster, name: str) -> str:
    """What a server started with the data directory alone would have."""
    command = [stopped.server.binaries["postgres"], "-C", name, "-D", str(stopped.server.data)]
    return run(command, identity=server_identity(Settings()), timeout=30).stdout.strip()


def append(data: Path, *lines: str) -> None:
    with (data / "postgresql.conf").open("a") as file:
        file.writelines(f"{line}\n" for line in lines)


def test_its_address_and_its_archive_are_its_own_whoever_starts_it(stopped: Cluster, data: Path) -> None:
    append(data, "port = 1", "archive_mode = off", "archive_command = 'cp %p /the/source/has/it'")

    assert prepare(stopped) == ()
    assert prepare(stopped) == ()

    assert effective(stopped, "port") == "5499"
    assert effective(stopped, "archive_mode") == "on"
    assert effective(stopped, "archive_command") == WANTED.archive_command
    assert (data / "postgresql.auto.conf").read_text().count("archive_command") == 1


def test_settings_that_lead_to_where_the_source_lies_are_led_back(stopped: Cluster, data: Path) -> None:
    elsewhere = data.parent / "live"
    append(data, f"data_directory = '{elsewhere}'", f"hba_file = '{elsewhere}/pg_hba.conf'")

    prepare(stopped)

    assert effective(stopped, "data_directory") == str(data)
    assert effective(stopped, "hba_file") == str(data / "pg_hba.conf")


def test_commits_do_not_wait_for_standbys_that_follow_the_source(stopped: Cluster, data: Path) -> None:
    append(data, "synchronous_standby_names = 'FIRST 1 (a, b)'")

    (told,) = prepare(stopped)

    assert effective(stopped, "synchronous_standby_names") == ""
    assert "FIRST 1 (a, b)" in told


@pytest.mark.parametrize(("own", "expected"), [("0", "60"), ("300", "60"), ("30", "30")])
def test_a_segment_stays_open_no_longer_than_promised(stopped: Cluster, data: Path, own: str, expected: str) -> None:
    append(data, f"archive_timeout = {own}")

    prepare(stopped, Production("127.0.0.1", 5499, "true", timedelta(seconds=60)))

    assert effective(stopped, "archive_timeout") == expected


def test_a_socket_folder_that_is_not_there_is_done_without(stopped: Cluster, data: Path) -> None:
    append(data, "unix_socket_directories = '/tmp, /run/of/the/source'")

    (told,) = prepare(stopped)

    assert effective(stopped, "unix_socket_directories") == "/tmp"
    assert "/run/of/the/source" in told


def test_a_configuration_that_cannot_be_read_is_said_with_what_to_mend(stopped: Cluster, data: Path) -> None:
    append(data, "port = many")

    with pytest.raises(RestoreError, match="port") as refused:
        prepare(stopped)

    assert f"{data}/postgresql.conf" in refused.value.hint


def test_what_it_wrote_while_it_did_not_archive_is_handed_over_and_what_it_was_restored_from_is_not(
    stopped: Cluster, data: Path
) -> None:
    log = data / "pg_wal"
    segments = sorted(path.name for path in log.iterdir() if path.is_file() and len(path.name) == 24)
    # As if it had begun its timeline while it recovered: the first segment came from the repository.
    (log / "00000001.history").write_text("")
    (log / "000000020000000000000001").write_bytes(b"")
    identity = server_identity(Settings())

    try:
        for _ in range(2):
            mark_for_archive(data, stopped.server.binaries, 1, identity)
    finally:
        (log / "00000001.history").unlink()
        (log / "000000020000000000000001").unlink()

    notes = {note.name for note in (log / "archive_status").iterdir()}
    assert "00000001.history.ready" in notes
    assert "000000020000000000000001.done" in notes
    ready = sorted(name.removesuffix(".ready") for name in notes if name.endswith(".ready") and len(name) > 24)
    assert ready and ready == segments[: len(ready)]
    assert len(ready) >= 3
    assert len(ready) < len(segments)  # the open one, and those that are to be used again
    owner = data.stat().st_uid
    assert {note.stat().st_uid for note in (log / "archive_status").iterdir()} == {owner}


def test_a_setting_is_replaced_wherever_it_stood_in_the_file(data: Path) -> None:
    place = data / "postgresql.auto.conf"
    place.write_text("# do not edit\nPort = 1\nport_range = 7\nwork_mem = '1MB'\nport=2\n")

    set_settings(data, {"port": "5499", "work_mem": "it's"}, None)

    assert place.read_text() == "# do not edit\nport_range = 7\nport = '5499'\nwork_mem = 'it''s'\n"


def test_a_port_that_another_server_has_is_refused_and_one_that_is_free_is_not() -> None:
    port = free_port()
    require_free_port("127.0.0.1", port)
    require_free_port("*", port)
    with socket.create_server(("127.0.0.1", port)):
        for listen in ("127.0.0.1", "localhost, 127.0.0.1"):
            with pytest.raises(ConfigurationError, match=f"port {port}: Address already in use"):
                require_free_port(listen, port)
    with pytest.raises(ConfigurationError, match=r"192\.0\.2\.1"):
        require_free_port("192.0.2.1", port)


def test_the_script_that_archives_lies_where_servers_can_run_it_and_is_the_newest(world_readable_folder: Path) -> None:
    place = install_archive_script(world_readable_folder)
    place.write_text("of an older version")

    assert install_archive_script(world_readable_folder) == place
    assert place.read_bytes() == archived.SCRIPT.read_bytes()
    usage = run([str(place)], identity=server_identity(Settings()), timeout=10, check=False)
    assert usage.returncode == 2 and "usage" in usage.stderr
