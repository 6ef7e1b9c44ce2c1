"""`dr drill database`: one drill and its record, several and their table, and what it says where it cannot."""

import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from dr_pipelines.cli.drill import _Drilled, _report_all, parse_size
from dr_pipelines.cli.frame import Terminal
from dr_pipelines.errors import TargetRefused, UsageError
from dr_pipelines.processes.leases import Leases
from dr_pipelines.reports.reading import read_record
from tests.cli.conftest import PLAN, ROOT, Dr
from tests.reports.conftest import make_document

FIELDS = {
    *("record_id", "execution_id", "run_id", "service", "outage_started_at", "service_restored_at", "phases"),
    *("rto_seconds", "rto_objective_seconds", "rpo_seconds", "rpo_objective_seconds", "recovery_point"),
    *("steps", "rows", "checks", "verdicts", "verdict"),
}


@pytest.fixture
def drills(dr: Dr) -> Dr:
    """A machine that is set up for drills, with a repository in a folder."""
    return Dr({**dr.environment, "DR_PLAN": str(PLAN), "DR_LAB_REPOSITORY": "folder"}, dr.folder)


@pytest.mark.slow
def test_a_drill_prints_its_record_and_leaves_nothing_but_records(drills: Dr) -> None:
    done = drills("drill", "database", "--size", "1MB", "--archive-timeout", "2s", "--seed", "3", "--json")

    record = done.document
    assert done.code == 0, done.err
    assert set(record) >= FIELDS
    assert record["verdicts"] == {"rto": "met", "rpo": "met", "integrity": "met"}
    assert [set(step) >= {"name", "seconds", "budget_seconds", "outcome"} for step in record["steps"]] == [True] * 10
    assert all(set(check) == {"name", "passed", "detail"} for check in record["checks"])
    assert "seed 3" in done.err and "recovery point" in done.err
    assert not Leases(drills.folder / "state").all()
    assert not any((drills.folder / "state" / "repository" / "drills").glob("*"))

    # Its figures are what the report shows from then on.
    report = drills("report", "adherence", "--json").document
    (database,) = [service for service in report["services"] if service["name"] == "database"]
    assert database["latest"]["drill"]["record_id"] == record["record_id"]


@pytest.mark.slow
def test_several_drills_are_a_table_with_the_oldest_loss(drills: Dr) -> None:
    done = drills("drill", "database", "--size", "1MB", "--archive-timeout", "1s", "--seed", "5", "--times", "2")

    assert "oldest loss (limit 5s)" in done.out
    assert [line.split()[0] for line in done.out.splitlines()[1:3]] == ["5", "6"]
    # What the machine was too busy for shows in the code as in the table.
    assert done.code == (0 if "2 of 2 met every objective" in done.out else 3), done.err


@pytest.mark.slow
def test_an_interrupted_drill_ends_what_it_started(drills: Dr) -> None:
    running = drills.start("drill", "database", "--size", "1MB", "--json")
    assert running.stderr is not None
    for line in running.stderr:
        if "backing up" in line:
            break

    running.send_signal(signal.SIGINT)
    out, _ = running.communicate(timeout=120)

    assert running.returncode == 130
    assert '"interrupted"' in out
    assert not Leases(drills.folder / "state").all()


@pytest.mark.slow
def test_what_the_run_refuses_is_said_with_its_exit_code(drills: Dr) -> None:
    refused = drills("drill", "database", "--postgres", "9", "--json")

    assert refused.code == 2
    assert "PostgreSQL 9" in refused.document["error"]["message"]
    assert refused.document["error"]["code"] == "missing-software"


def test_without_a_checkout_it_says_so(drills: Dr, bare_package: Path) -> None:
    refused = drills("drill", "database", PYTHONPATH=bare_package)

    assert refused.code == 2
    assert "without its checkout" in refused.err


def test_without_dagster_it_says_so(drills: Dr) -> None:
    hiding = "import importlib.util as u; f = u.find_spec; u.find_spec = lambda n: None if n == 'dagster' else f(n)"
    command = f"{hiding}; import sys; sys.argv[1:] = ['drill', 'database']; from dr_pipelines.cli import main; main()"

    environment = {**drills.environment, "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    refused = subprocess.run(
        [sys.executable, "-c", command], env=environment, cwd=drills.folder, capture_output=True, text=True, check=False
    )

    assert refused.returncode == 2, refused.stderr
    assert "Dagster is not installed" in refused.stderr


@pytest.mark.parametrize(
    ("text", "size"), [("50MB", 50_000_000), ("1.5GiB", 1_610_612_736), ("2 GB", 2 * 10**9), ("1000000", 10**6)]
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "50 mb", "-1MB", "50MB!", "1e6"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_size(text)


@pytest.mark.parametrize(
    "option",
    [
        ("--size", "big"),
        ("--size", "5kB"),
        ("--size", "9" * 400),
        ("--archive-timeout", "10"),
        ("--times", "0"),
        ("--writers", "x"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_made(drills: Dr, option: tuple[str, str]) -> None:
    refused = drills("drill", "database", *option)

    assert refused.code == 2
    assert not (drills.folder / "state" / "lab").exists()


def test_a_plan_that_cannot_be_accepted_is_said_before_dagster_is_started(drills: Dr) -> None:
    plan = drills.folder / "plan.yaml"
    plan.write_text(PLAN.read_text().replace("rto: 4h", "rto: 4 hours"))

    refused = drills("drill", "database", "--json", DR_PLAN=plan)

    assert refused.code == 2
    assert refused.document["error"]["code"] == "plan-error"
    assert "plan.yaml:" in refused.document["error"]["message"]


def test_a_restore_that_a_step_refused_has_failed() -> None:
    record = read_record(make_document(0))
    assert _Drilled(1, record, TargetRefused("it is not empty")).code == 1
    assert _Drilled(1, None, UsageError("nothing was begun")).code == 2


@pytest.mark.parametrize(("oldest_loss", "code", "met"), [(13.9, 0, 2), (14.5, 3, 1)])
def test_a_loss_that_the_archive_does_not_explain_counts_as_missed(
    oldest_loss: float, code: int, met: int, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [read_record(make_document(0, rpo_seconds=seconds)) for seconds in (3.0, oldest_loss)]
    drilled = [_Drilled(seed, record, None) for seed, record in enumerate(records)]

    assert _report_all(Terminal(as_json=False), drilled, timedelta(seconds=14)) == code

    closing = capsys.readouterr().out.splitlines()[-1]
    assert f"{met} of 2 met every objective" in closing
    assert ("counts as missed" in closing) == (code == 3)
