"""`dr backup`: what it makes, lists and reads back, and what it says where that is not possible."""

import signal
from pathlib import Path

import pytest

from tests.cli.conftest import PLAN, Dr, Hotel

pytestmark = pytest.mark.slow


def test_a_backup_is_listed_with_what_it_is_of(hotel: Hotel) -> None:
    listed = hotel.dr("backup", "list", "--json")

    (entry,) = [entry for entry in listed.document["backups"] if entry["backup_id"] == hotel.backup_id]
    assert listed.code == 0
    assert (entry["service"], entry["state"], entry["kind"]) == ("database", "complete", "full")
    assert entry["raw_bytes"] > entry["stored_bytes"] > 0


def test_the_list_is_a_table_without_cut_off_names(hotel: Hotel) -> None:
    listed = hotel.dr("backup", "list", "database")

    assert hotel.backup_id in listed.out
    assert "PostgreSQL" in listed.out


def test_a_whole_backup_verifies(hotel: Hotel) -> None:
    verified = hotel.dr("backup", "verify", "database", hotel.backup_id, "--json")

    (entry,) = verified.document["verifications"]
    assert verified.code == 0
    assert {check["name"]: check["passed"] for check in entry["checks"]} == {
        "parts_are_what_was_stored": True,
        "log_is_whole": True,
        "log_files_are_what_was_stored": True,
        "log_is_this_backups": True,
    }


def test_a_flipped_byte_fails_the_verification_and_names_the_part(hotel: Hotel, world_readable_folder: Path) -> None:
    copy = world_readable_folder / "repository"
    hotel.copy_repository(copy)
    part = next((copy / "services").rglob("parts/000000"))
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)

    verified = hotel.dr("backup", "verify", DR_REPOSITORY=copy)

    assert verified.code == 1
    assert "FAILED: parts_are_what_was_stored" in verified.out
    assert "parts/000000" in verified.out


def test_what_was_interrupted_is_listed_as_incomplete_and_is_no_backup(
    hotel: Hotel, world_readable_folder: Path
) -> None:
    copy = world_readable_folder / "repository"
    hotel.copy_repository(copy)
    next((copy / "services").rglob("manifest.json")).unlink()

    listed = hotel.dr("backup", "list", "--json", DR_REPOSITORY=copy)
    verified = hotel.dr("backup", "verify", "database", "--json", DR_REPOSITORY=copy)

    assert [entry["state"] for entry in listed.document["backups"]] == ["incomplete"]
    assert (verified.code, verified.document["error"]["code"]) == (1, "restore-error")


def test_a_backup_that_is_not_there_is_an_error_with_the_way_to_the_list(hotel: Hotel) -> None:
    verified = hotel.dr("backup", "verify", "database", "20260101T000000Z-full-abcdef", "--json")

    assert verified.code == 1
    assert verified.document["error"]["code"] == "object-missing"
    assert "dr backup list" in verified.document["error"]["hint"]


def test_a_service_that_the_plan_does_not_know_is_refused(dr: Dr) -> None:
    made = dr("backup", "full", "databse", DR_PLAN=PLAN, DR_REPOSITORY=dr.folder / "repository")

    assert made.code == 2
    assert "database" in made.err
    assert not (dr.folder / "repository").exists()


def test_a_service_of_another_engine_is_refused(dr: Dr) -> None:
    made = dr("backup", "full", "redis", DR_PLAN=PLAN, DR_REPOSITORY=dr.folder / "repository")

    assert made.code == 2
    assert "PostgreSQL" in made.err


def test_without_a_connection_string_the_variable_is_named(dr: Dr) -> None:
    made = dr("backup", "full", "database", DR_PLAN=PLAN, DR_REPOSITORY=dr.folder / "repository")

    assert made.code == 2
    assert "DR_DSN__DATABASE" in made.err
    assert "Traceback" not in made.err


def test_an_empty_place_becomes_a_repository_only_where_that_is_said(dr: Dr) -> None:
    (dr.folder / "mount").mkdir()  # of a disk that is not mounted
    elsewhere = Dr(
        {**dr.environment, "DR_REPOSITORY": str(dr.folder / "mount"), "DR_DSN__DATABASE": "port=1"}, dr.folder
    )

    refused = elsewhere("backup", "full", "database", DR_PLAN=PLAN)

    assert refused.code == 2
    assert "is its disk mounted" in refused.err and "--create" in refused.err
    assert not any((dr.folder / "mount").iterdir())

    elsewhere("backup", "full", "database", "--create", DR_PLAN=PLAN)

    assert (dr.folder / "mount" / "dr-repository.json").exists()


def test_a_server_that_does_not_answer_is_said_without_its_password(dr: Dr) -> None:
    dsn = "host=127.0.0.1 port=1 user=postgres password=hunter2"

    repository = dr.folder / "repository"
    made = dr("backup", "full", "database", "--create", DR_PLAN=PLAN, DR_REPOSITORY=repository, DR_DSN__DATABASE=dsn)

    assert made.code == 1
    assert "cannot be reached" in made.err
    assert "hunter2" not in made.err


def test_an_interrupted_backup_leaves_no_backup_and_no_process(hotel: Hotel, world_readable_folder: Path) -> None:
    # No agent ships the log here, so that the backup waits for it until it is interrupted.
    repository = world_readable_folder / "repository"
    running = hotel.dr.start("backup", "full", "database", "--create", DR_REPOSITORY=repository)
    assert running.stderr is not None
    assert any("backing up: 100 %" in line for line in running.stderr)

    running.send_signal(signal.SIGINT)
    running.communicate(timeout=60)

    listed = hotel.dr("backup", "list", "--json", DR_REPOSITORY=repository)
    assert running.returncode == 130
    assert listed.document == {"backups": []}
    assert not list(repository.rglob("parts/*"))
