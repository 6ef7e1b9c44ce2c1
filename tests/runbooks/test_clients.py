"""Leading clients: of the file that they follow nothing changes but the address, and nobody ever sees half of it."""

import os
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from dr_pipelines.errors import ConfigurationError, ProcessError
from dr_pipelines.runbooks.clients import address_of, at_address, lead_file_to, run_command
from dr_pipelines.settings import Settings

FILE = """\
# who asks what
[other]
host=10.0.0.9
port=5433

[database]
  host=10.0.0.5
hostaddr=10.0.0.5
port=5432
user=hotel
# not the port=1 of old
connect_timeout=5
[third]
port=1
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pg_service.conf"
    path.write_text(FILE)
    return path


def test_the_section_of_the_service_names_the_new_server_and_all_else_stays(file: Path) -> None:
    lead_file_to(file, "database", ("10.0.0.7", "5440"))

    assert (
        file.read_text()
        == """\
# who asks what
[other]
host=10.0.0.9
port=5433

[database]
host=10.0.0.7
port=5440
user=hotel
# not the port=1 of old
connect_timeout=5
[third]
port=1
"""
    )


def test_done_again_it_changes_nothing(file: Path) -> None:
    lead_file_to(file, "database", ("10.0.0.7", "5440"))
    once = file.read_text()

    lead_file_to(file, "database", ("10.0.0.7", "5440"))

    assert file.read_text() == once


@pytest.mark.parametrize("text", ["", "[other]\nhost=a\n", "[other]\nhost=a"])
def test_a_section_that_is_not_there_is_added(tmp_path: Path, text: str) -> None:
    file = tmp_path / "pg_service.conf"
    if text:
        file.write_text(text)

    lead_file_to(file, "database", ("10.0.0.7", "5440"))

    added = "[database]\nhost=10.0.0.7\nport=5440\n"
    assert file.read_text() == (f"[other]\nhost=a\n\n{added}" if text else added)
    assert file.stat().st_mode & 0o777 == 0o644


def test_mode_and_link_stay_and_nothing_else_is_left(file: Path) -> None:
    file.chmod(0o640)
    link = file.with_name("link")
    link.symlink_to(file)

    lead_file_to(link, "database", ("10.0.0.7", "5440"))

    assert link.is_symlink() and "10.0.0.7" in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in file.parent.iterdir()) == ["link", "pg_service.conf"]


def test_who_has_it_open_sees_the_old_one_to_its_end(file: Path) -> None:
    with file.open() as reading:
        lead_file_to(file, "database", ("10.0.0.7", "5440"))
        assert reading.read() == FILE


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be replaced: No such file"):
        lead_file_to(tmp_path / "none" / "file", "database", ("10.0.0.7", "5440"))


@pytest.mark.parametrize(
    ("dsn", "address"),
    [
        ("host=10.0.0.5 user=a", ("10.0.0.5", "5432")),
        ("hostaddr=10.0.0.5 port=5433", ("10.0.0.5", "5433")),
        ("postgresql://ada:secret@db.example.org:5555/postgres", ("db.example.org", "5555")),
        ("service=database user=a", ("10.0.0.5", "5432")),
        ("service=database port=9", ("10.0.0.5", "9")),
    ],
)
def test_where_a_connection_string_leads(file: Path, dsn: str, address: tuple[str, str]) -> None:
    settings = Settings(connection_file={"database": file})

    assert address_of(settings, "database", dsn) == address


@pytest.mark.parametrize("dsn", ["user=a", "service=nobody", "host=a,b", "host=a port=1,2"])
def test_one_that_leads_nowhere_or_to_several_servers_is_refused(file: Path, dsn: str) -> None:
    with pytest.raises(ConfigurationError, match="DR_DSN__DATABASE names"):
        address_of(Settings(connection_file={"database": file}), "database", dsn)


def test_one_that_cannot_be_read_is_refused_without_its_secrets() -> None:
    with pytest.raises(ConfigurationError, match="cannot be read") as refused:
        address_of(Settings(), "database", "host=a passwort=secret")
    assert "secret" not in str(refused.value)


def test_the_same_connection_elsewhere_keeps_all_but_the_address() -> None:
    led = at_address("hostaddr=10.0.0.5 host=old port=1 user=ada password='it\\'s' dbname=x", ("10.0.0.7", "5440"))

    expected = {"dbname": "x", "host": "10.0.0.7", "password": "it's", "port": "5440", "user": "ada"}
    assert conninfo_to_dict(led) == expected


def test_over_a_services_file_the_address_wins() -> None:
    assert "hostaddr=''" in at_address("service=database", ("10.0.0.7", "5440"))


def test_a_command_knows_what_it_is_about_and_its_failure_is_told(tmp_path: Path) -> None:
    run_command(f'echo "$DR_NEW_HOST $DR_NEW_PORT" > {tmp_path}/said', {"DR_NEW_HOST": "a", "DR_NEW_PORT": "1"})

    assert (tmp_path / "said").read_text() == "a 1\n"
    assert "DR_NEW_HOST" not in os.environ
    with pytest.raises(ProcessError, match="exit code 3: no such server"):
        run_command("echo no such server >&2; exit 3", {})
