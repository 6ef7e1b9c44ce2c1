"""`dr restore`: a database back from the repository alone, refusals before anything is touched, and going on."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest

from dr_pipelines.processes.leases import Leases
from dr_pipelines.processes.postgres import find_binaries, running_pid
from dr_pipelines.processes.proc import is_alive, look_up
from dr_pipelines.timing import wait_until
from tests.cli.conftest import PLAN, Dr, Hotel

pytestmark = pytest.mark.slow


@pytest.fixture
def alone(hotel: Hotel, dr: Dr) -> Dr:
    """A machine that has a copy of the repository and nothing else: no plan, no server, no agent."""
    hotel.copy_repository(dr.folder / "repository")
    return Dr({**dr.environment, "DR_REPOSITORY": str(dr.folder / "repository")}, dr.folder)


def names_in(server: dict[str, str]) -> set[str]:
    """The guests that the tests wrote, from a restored server that was left running."""
    dsn = server["psql"].removeprefix("psql ").strip("'").replace("dbname=postgres", "dbname=hotel")
    with psycopg.connect(dsn) as connection:
        rows = connection.execute("SELECT full_name FROM guests WHERE full_name IN ('before', 'after')").fetchall()
    return {str(name) for (name,) in rows}


@contextmanager
def read_only(folder: Path) -> Iterator[list[str]]:
    """Nobody can write to the folder; yields what a command has to be started with, since that does not stop root."""
    if os.geteuid() == 0:
        prefix = ["unshare", "--mount", "sh", "-c", 'mount --bind -o ro "$0" "$0" && exec "$@"', str(folder)]
        if subprocess.run([*prefix, "true"], check=False).returncode:
            pytest.skip("this container may not mount a folder read-only")
        yield prefix
        return
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for path in folders:
        path.chmod(0o500)
    yield []
    for path in folders:
        path.chmod(0o700)


def stop(data: Path) -> None:
    """What the operator is told to do to a server that was left running."""
    server = look_up(int((data / "postmaster.pid").read_text().splitlines()[0]))
    assert server is not None
    os.kill(server.pid, signal.SIGINT)
    assert wait_until(lambda: not is_alive(*server.key), timeout=30)


def test_latest_brings_back_the_last_write_and_leaves_the_server_running(alone: Dr) -> None:
    data = alone.folder / "restored" / "data"
    outage = datetime.now(UTC).isoformat()

    done = alone("restore", "database", "--target", data, "--start", "--outage-start", outage, "--json")

    assert done.code == 0, done.err
    record = done.document["record"]
    assert record["verdicts"] == {"rto": "met", "rpo": "met", "integrity": "met"}
    assert names_in(done.document["server"]) == {"before", "after"}
    stop(data)
    assert not (data / "dr_restore" / "restore.json").exists()


@pytest.mark.parametrize("umask", ["022", "077"])
def test_a_base_backup_of_the_restored_server_can_be_taken_while_it_runs(hotel: Hotel, alone: Dr, umask: str) -> None:
    data, base = alone.folder / "data", alone.folder / "base"
    prefix = ["sh", "-c", f'umask {umask}; exec "$@"', "sh"]
    done = alone("restore", "database", "--target", data, "--start", "--json", prefix=prefix)
    assert done.code == 3, done.err
    port = (data / "postmaster.pid").read_text().splitlines()[3]
    dsn = psycopg.conninfo.make_conninfo(hotel.lab.dsn("postgres"), host="127.0.0.1", port=port)
    tool = find_binaries(hotel.settings, hotel.lab.major)["pg_basebackup"]

    taken = subprocess.run(
        [tool, "-d", dsn, "-D", base, "-Ft", "-X", "none", "-c", "fast"], capture_output=True, text=True, check=False
    )

    stop(data)
    assert taken.returncode == 0, taken.stderr
    assert (base / "base.tar").stat().st_size > 1 << 20
    assert {path.name for path in (data / "dr_restore").iterdir()} == {"server.log"}


def test_without_an_outage_start_the_restore_is_done_and_unverified(alone: Dr) -> None:
    data = alone.folder / "data"

    done = alone("restore", "database", "--target", data)

    assert done.code == 3
    assert "the outage's start was not stated" in done.out
    assert not (data / "postmaster.pid").exists()
    assert not list(data.glob("dr_restore*"))
    assert "pg_ctl" in done.out
    # What it read may expire again.
    assert not list((alone.folder / "repository").rglob("uses/*"))


def test_the_record_lies_in_the_repository(alone: Dr) -> None:
    done = alone("restore", "database", "--target", alone.folder / "data", "--reason", "a test of it", "--json")

    record_id = done.document["record"]["record_id"]
    stored = json.loads(next((alone.folder / "repository" / "records").rglob(f"{record_id}.json")).read_text())
    assert stored["reason"] == "a test of it"
    assert [step["name"] for step in stored["steps"]] == [
        "assess", "prepare", "restore_latest_backup", "apply_wal", "validate",
    ]  # fmt: skip


def test_a_dry_run_says_what_would_be_done_and_does_nothing(alone: Dr) -> None:
    before = sorted(path for path in alone.folder.rglob("*") if "state" not in path.parts)

    said = alone("restore", "database", "--dry-run", "--target", alone.folder / "data", "--json")

    found = said.document
    assert said.code == 0
    assert found["stored_bytes"] < found["raw_bytes"] < found["needed_bytes"] < found["enough_bytes"]
    assert found["enough_bytes"] < found["free_bytes"]
    assert found["covered_from"] < found["covered_to"]
    estimate = found["estimate"]
    assert 0 < estimate["low_seconds"] < estimate["estimate_seconds"] < estimate["high_seconds"]
    assert before == sorted(path for path in alone.folder.rglob("*") if "state" not in path.parts)


def test_after_one_restore_the_next_ones_take_about_what_was_estimated(alone: Dr) -> None:
    first, *later = (
        alone("restore", "database", "--target", alone.folder / f"data{number}", "--json").document["record"][
            "estimate"
        ]
        for number in range(3)
    )

    assert {step["basis"] for step in first["steps"]} == {"probed", "assumed"}
    assert {step["basis"] for step in (*later[0]["steps"], *later[1]["steps"])} == {"measured"}
    # One of them, since a machine that is shared may stand still for a moment.
    off = [each["actual_seconds"] / each["estimate_seconds"] for each in later]
    assert any(0.5 <= factor <= 2 for factor in off), later
    said = alone("restore", "database", "--dry-run")
    assert "by an estimate" in said.out and "measured on" in said.out and "by record" in said.out


@pytest.mark.parametrize(
    ("moment", "said"),
    [
        ("2020-01-01T00:00:00Z", "outside of what the repository covers"),
        ("2999-01-01T00:00:00Z", "yet to come"),
        ("2020-01-01T00:00:00", "no time zone"),
        ("yesterday", "not a moment"),
    ],
)
def test_a_time_that_cannot_be_restored_is_refused(alone: Dr, moment: str, said: str) -> None:
    refused = alone("restore", "database", "--to", moment, "--target", alone.folder / "data")

    assert refused.code == 2
    assert said in refused.err
    assert not (alone.folder / "data").exists()
    assert not (alone.folder / "repository" / "records").exists()


def test_a_target_that_is_not_empty_is_refused_and_stays_as_it_is(alone: Dr) -> None:
    target = alone.folder / "data"
    target.mkdir()
    (target / "precious").write_text("keep me")

    for more in ([], ["--dry-run"]):
        refused = alone("restore", "database", "--target", target, *more, "--json")

        assert (refused.code, refused.document["error"]["code"]) == (2, "target-refused")
    assert [path.name for path in target.iterdir()] == ["precious"]

    assert not (alone.folder / "repository" / "executions").exists()


def test_an_empty_target_is_refused(alone: Dr) -> None:
    refused = alone("restore", "database", "--target", "")

    assert refused.code == 2
    assert "--target is empty" in refused.err


def test_a_second_restore_into_the_same_target_is_refused_and_harms_nothing(alone: Dr) -> None:
    data = alone.folder / "data"
    running = alone.start("restore", "database", "--target", data, "--json")
    assert wait_until(lambda: (data / "dr_restore" / "restore.json").exists(), timeout=60)

    second = alone("restore", "database", "--target", data, "--json")

    out, err = running.communicate(timeout=120)
    assert (second.code, second.document["error"]["code"]) == (1, "locked"), second.err
    assert running.returncode == 3, err
    assert json.loads(out)["record"]["verdicts"]["integrity"] == "met"
    assert len(list((alone.folder / "repository" / "records").rglob("*.json"))) == 1
    assert len(list((alone.folder / "repository" / "executions").iterdir())) == 1


def test_a_target_is_asked_for(alone: Dr) -> None:
    refused = alone("restore", "database")

    assert refused.code == 2
    assert "--target" in refused.err


def test_a_hole_in_the_log_stops_the_restore_unless_it_is_allowed(hotel: Hotel, alone: Dr) -> None:
    hotel.write("later")
    hotel.settle()
    shutil.rmtree(alone.folder / "repository")
    hotel.copy_repository(alone.folder / "repository")
    segments = sorted((alone.folder / "repository" / "services").rglob("log/*/0*"))
    segments[-2].unlink()

    refused = alone("restore", "database", "--dry-run", "--json")
    allowed = alone("restore", "database", "--dry-run", "--allow-gap", "--json")

    assert (refused.code, refused.document["error"]["code"]) == (1, "log-gap")
    assert segments[-2].name in refused.document["error"]["message"]
    assert allowed.code == 0
    assert segments[-2].name in allowed.document["gap"]


def test_a_damaged_part_fails_the_restore_with_a_record_that_names_it(alone: Dr) -> None:
    part = next((alone.folder / "repository" / "services").rglob("parts/000000"))
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)

    failed = alone("restore", "database", "--target", alone.folder / "data", "--json")

    (record,) = (alone.folder / "repository" / "records").rglob("*.json")
    stored = json.loads(record.read_text())
    assert (failed.code, failed.document["error"]["code"]) == (1, "object-corrupt")
    assert stored["verdict"] == "unverified"
    assert "parts/000000" in json.dumps(stored["deviations"])
    assert "--backup" in failed.document["error"]["hint"]


def test_the_backup_to_begin_with_can_be_named(hotel: Hotel, alone: Dr) -> None:
    named = alone("restore", "database", "--dry-run", "--json", "--backup", hotel.backup_id)
    unknown = alone("restore", "database", "--dry-run", "--json", "--backup", "20200101T000000Z-full-abcdef")

    assert named.document["backup_id"] == hotel.backup_id
    assert (unknown.code, unknown.document["error"]["code"]) == (2, "not-covered")
    assert "20200101T000000Z-full-abcdef" in unknown.document["error"]["message"]
    assert "dr backup list" in unknown.document["error"]["hint"]


def test_from_overrides_the_configured_repository(alone: Dr) -> None:
    said = alone(
        *("restore", "database", "--dry-run", "--json", "--from", alone.folder / "repository"),
        DR_REPOSITORY="/nowhere/at/all",
    )

    assert said.document["repository"] == str(alone.folder / "repository")


@pytest.mark.parametrize("option", ["--to", "--outage-start"])
def test_a_time_that_cannot_be_read_is_named_by_its_option(alone: Dr, option: str) -> None:
    refused = alone("restore", "database", "--dry-run", "--json", option, "yesterday")

    assert refused.code == 2
    assert refused.document["error"]["message"].startswith(f'{option}: "yesterday" is not a moment')


def test_a_repository_that_is_not_there_is_said(dr: Dr) -> None:
    refused = dr("restore", "database", "--target", dr.folder / "data", DR_REPOSITORY=dr.folder / "none")

    assert refused.code == 2
    assert "there is no repository" in refused.err


def test_a_repository_that_can_only_be_read_is_enough(alone: Dr) -> None:
    repository = alone.folder / "repository"
    restore = ("restore", "database", "--target", alone.folder / "data", "--json")

    with read_only(repository) as prefix:
        done = alone(*restore, prefix=prefix)

    record_id = done.document["record"]["record_id"]
    assert done.code == 3, done.err
    assert "the repository cannot be written to" in done.err
    assert not list(repository.rglob(f"{record_id}.json"))
    assert list((alone.folder / "state" / "journals" / "records").rglob(f"{record_id}.json"))


def test_a_plan_that_cannot_be_accepted_does_not_stop_a_restore(alone: Dr) -> None:
    (alone.folder / "recovery-plan.yaml").write_text("plan_version: [")

    said = alone("restore", "database", "--dry-run")

    assert said.code == 0
    assert "without a plan" in said.err


def test_a_plan_without_a_runbook_takes_the_budgets_away_and_nothing_else(alone: Dr) -> None:
    text = PLAN.read_text()
    (alone.folder / "recovery-plan.yaml").write_text(text[: text.index("runbooks:")])

    done = alone("restore", "database", "--target", alone.folder / "restored" / "data", "--json")

    assert done.code == 3, done.err
    record = done.document["record"]
    assert record["verdicts"]["integrity"] == "met"
    assert {step["budget_seconds"] for step in record["steps"]} == {None}
    assert record["rto_objective_seconds"] == 3600


@pytest.mark.parametrize("content", [b"{}", b"\xff\xfe", b""])
def test_a_damaged_plan_in_the_repository_does_not_stop_a_restore(alone: Dr, content: bytes) -> None:
    plans = alone.folder / "repository" / "plans"
    plans.mkdir(exist_ok=True)
    (plans / "current.json").write_bytes(content)

    for command in (["restore", "database", "--dry-run"], ["backup", "list", "database"]):
        said = alone(*command)

        assert said.code == 0, said.err
        assert said.err.count("without a plan") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_an_interrupted_restore_ends_its_server_and_the_same_command_goes_on(alone: Dr, number: signal.Signals) -> None:
    data = alone.folder / "data"
    running = alone.start("restore", "database", "--target", data)
    assert wait_until(lambda: (data / "postmaster.pid").exists(), timeout=60)

    running.send_signal(number)
    _, err = running.communicate(timeout=60)

    assert running.returncode == (130 if number is signal.SIGINT else 143), err
    assert "what was started is ended" in err
    # Not the file: a server that was interrupted in the moment of its start is killed, and leaves it.
    assert wait_until(lambda: running_pid(data) is None, timeout=10)
    again = alone("restore", "database", "--target", data, "--json")
    assert again.code == 3, again.err
    assert again.document["record"]["verdicts"]["integrity"] == "met"
    assert "going on with" in again.err


def test_a_killed_restore_is_gone_on_with_from_the_outage_start_that_was_stated(alone: Dr) -> None:
    data = alone.folder / "data"
    outage = datetime.now(UTC).isoformat()
    running = alone.start("restore", "database", "--target", data, "--outage-start", outage)
    assert wait_until(lambda: (data / "dr_restore" / "wal").exists(), timeout=60)
    running.kill()
    running.communicate()

    again = alone("restore", "database", "--target", data, "--json")

    record = again.document["record"]
    assert again.code == 0, again.err
    assert datetime.fromisoformat(record["outage_started_at"]) == datetime.fromisoformat(outage)
    assert not Leases(alone.folder / "state").all()


def test_another_time_is_no_going_on(hotel: Hotel, alone: Dr) -> None:
    data = alone.folder / "data"
    running = alone.start("restore", "database", "--target", data)
    assert wait_until(lambda: (data / "dr_restore" / "restore.json").exists(), timeout=60)
    running.kill()
    running.communicate()

    refused = alone("restore", "database", "--target", data, "--to", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))

    assert refused.code == 2
    assert (data / "dr_restore" / "restore.json").exists()


def test_the_plan_in_the_repository_gives_the_promises(alone: Dr) -> None:
    done = alone("restore", "database", "--target", alone.folder / "data", "--json")

    assert done.document["record"]["rto_objective_seconds"] == 3600
    assert PLAN.exists() and not (alone.folder / "recovery-plan.yaml").exists()
