"""What the terminal shows: every figure beside its promise, everything that did not pass, and no borrowed markup."""

from collections.abc import Callable
from datetime import datetime
from io import StringIO

import pytest
from rich.console import Console

from dr_pipelines.plan import Plan
from dr_pipelines.reports.adherence import adherence
from dr_pipelines.reports.table import render_adherence, render_record
from dr_pipelines.runbooks.record import Record, StepResult
from tests.reports.conftest import CUTOVER, PHASES, make_estimate

MakeRecord = Callable[..., Record]


def console(width: int = 100, *, terminal: bool = False) -> tuple[Console, StringIO]:
    """A console that writes to the text beside it."""
    text = StringIO()
    return Console(file=text, width=width, force_terminal=terminal, color_system="standard" if terminal else None), text


def shown(record: Record, width: int = 100) -> str:
    """A record as the terminal shows it."""
    screen, text = console(width)
    render_record(record, screen)
    return text.getvalue()


def line_with(text: str, word: str) -> str:
    """The first line that begins with a word, its columns one blank apart."""
    return next(" ".join(line.split()) for line in text.splitlines() if line.strip().startswith(word))


def test_verdicts_stand_beside_figures_and_promises(make_record: MakeRecord) -> None:
    text = shown(make_record())

    assert line_with(text, "RTO") == "RTO 20.4s 1h ✓ met"
    assert line_with(text, "RPO") == "RPO 0.9s 10m ✓ met"
    assert line_with(text, "integrity") == "integrity 12 of 12 checks passed all ✓ met"
    assert "phases: decide 1.3s, restore 11.2s, validate 7.6s, healthy 0.3s" in text


def test_steps_stand_beside_their_budgets(make_record: MakeRecord) -> None:
    text = shown(make_record())

    assert line_with(text, "restore latest backup") == "restore latest backup 6.1s 20m 0.5 % done"


def test_rows_points_and_places_are_told(make_record: MakeRecord) -> None:
    text = shown(make_record())

    assert line_with(text, "rows") == "rows 1412 acknowledged, 1391 recovered, 21 lost"
    assert line_with(text, "recovery point").endswith("2026-03-01 11:59:58 UTC, as proven before the loss")
    assert "records/2026/03/20260301T120000Z-drill-9f86d0.json in s3://backups/hotel" in text
    assert line_with(text, "run ") == "run 6f1c9c1e-8a51-4d3b-a0b4-0d6f5d2c7a11"


@pytest.mark.parametrize(
    ("actual", "told"), [(17.3, "they took 17.3s"), (None, "so it cannot be compared")], ids=["compared", "not"]
)
def test_an_estimate_is_called_one_and_stands_beside_what_it_took(
    make_record: MakeRecord, actual: float | None, told: str
) -> None:
    text = shown(make_record(estimate=make_estimate(actual)), width=200)

    assert "20s (12s to 33s)" in line_with(text, "estimated")
    assert told in line_with(text, "estimated")
    assert "estimated" not in shown(make_record())


def test_checks_that_did_not_pass_are_named_and_the_others_counted(make_record: MakeRecord) -> None:
    checks = [
        {"name": "amcheck", "passed": True, "detail": "sound"},
        {"name": "no_unknown_rows", "passed": False, "detail": "row 7"},
        {"name": "log_is_whole", "passed": None, "detail": "nobody to ask"},
    ]
    text = shown(make_record(checks=checks))

    assert "checks: 1 of 3 passed" in text
    assert "no_unknown_rows failed: row 7" in text
    assert "log_is_whole could not be made: nobody to ask" in text
    assert "sound" not in text
    assert line_with(text, "integrity").endswith("✗ missed")


def test_a_failed_restore_shows_what_was_not_measured(make_record: MakeRecord) -> None:
    record = make_record(
        rto_seconds=None, rpo_seconds=None, rows=None, backup=None, recovery_point=None, checks=[], steps=[],
        deviations=["part 3 is damaged"], run_ids=[],
    )  # fmt: skip
    text = shown(record)

    assert line_with(text, "RTO") == "RTO not measured 1h ? unverified"
    assert "deviation: part 3 is damaged" in text
    assert line_with(text, "recovery point") == "recovery point not known"
    assert line_with(text, "run") == "run none: without Dagster"


def test_overruns_interruptions_and_further_attempts_are_shown(make_record: MakeRecord) -> None:
    step = make_record().steps[0]
    steps: list[StepResult] = [
        step.model_copy(update={"outcome": "interrupted", "seconds": None, "ended_at": None}),
        step.model_copy(update={"attempt": 2, "seconds": 330.0, "overrun": True}),
    ]
    text = shown(make_record(steps=[each.model_dump(mode="json") for each in steps]))

    assert line_with(text, "assess") == "assess – 5m – interrupted"
    assert line_with(text, "assess (attempt 2)") == "assess (attempt 2) 5m30s 5m 110 % done, over its budget"


def test_words_of_a_record_drive_neither_rich_nor_the_terminal(make_record: MakeRecord) -> None:
    hostile = "[bold red]danger[/] \x1b[2J\x07 \u202ekcab \ud800 line\nbreak"
    record = make_record(
        deviations=[hostile], checks=[{"name": hostile, "passed": False, "detail": hostile}], execution_id=hostile
    )

    text = shown(record, width=400)

    assert "[bold red]danger[/] �[2J� �kcab � line break" in text
    assert not set(text) & {"\x1b", "\x07", "\u202e", "\ud800"}


def test_every_service_has_a_line(plan: Plan, make_record: MakeRecord, now: datetime) -> None:
    screen, text = console()
    report = adherence(plan, [make_record(rto_seconds=4000.0)], now=now, off=["the schedule is stopped"])

    render_adherence(report, screen)

    assert line_with(text.getvalue(), "Database ") == "Database 1h6m40s / 1h 0.9s / 10m ✗ missed 30 days ago"
    assert (
        line_with(text.getvalue(), "Redis") == "Redis not measured / 1h not measured / 15m ? unverified never measured"
    )
    assert line_with(text.getvalue(), "Dev/Test") == "Dev/Test – – – unprotected by decision"
    assert "off: the schedule is stopped" in text.getvalue()
    assert plan.sha256 in text.getvalue()


def test_a_real_restore_is_shown_beside_the_drill(plan: Plan, make_record: MakeRecord, now: datetime) -> None:
    screen, text = console()

    render_adherence(adherence(plan, [make_record(), make_record(1, kind="restore")], now=now), screen)

    assert "Database: drill" in text.getvalue()
    assert "Database: real restore" in text.getvalue()


@pytest.mark.parametrize(("number", "trend"), [(4, False), (5, True)])
def test_no_trend_is_claimed_on_fewer_than_five(
    plan: Plan, make_record: MakeRecord, now: datetime, number: int, trend: bool
) -> None:
    screen, text = console()

    render_adherence(adherence(plan, [make_record(day) for day in range(number)], now=now), screen)

    assert f"RTO over time: n {number}, median 20.4s, 90th percentile 20.4s" in text.getvalue()
    assert ("too few for a trend" not in text.getvalue()) is trend


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_figure_is_cut_off_in_a_narrow_terminal(
    plan: Plan, make_record: MakeRecord, now: datetime, width: int
) -> None:
    screen, text = console(width, terminal=True)

    render_adherence(adherence(plan, [make_record()], now=now), screen)

    assert "…" not in text.getvalue()


def test_a_cutover_is_told_and_waiting_for_its_approval_is_shown_apart(make_record: MakeRecord) -> None:
    text = shown(make_record(cutover=CUTOVER, phases={**PHASES, "healthy": 0.3}))

    assert "validate 7.6s, approval 1m, cutover 2s, healthy 0.3s" in text
    assert line_with(text, "cutover") == "cutover from 10.0.0.5:5432 to 10.0.0.7:5432"
    assert line_with(text, "approval") == "approval approved by grace, after 1m"
    assert line_with(text, "new backup") == "new backup NONE"
    assert line_with(text, "see to") == "see to synchronous_standby_names is emptied"


def test_a_cutover_that_was_denied_led_nobody_anywhere(make_record: MakeRecord) -> None:
    denied = CUTOVER | {"fenced_by": None, "clients_led_by": None}

    text = shown(make_record(cutover=denied, phases={**PHASES, "cutover": None, "healthy": None}))

    assert line_with(text, "old server") == "old server NOT FENCED"
    assert line_with(text, "clients") == "clients not led anywhere"


def test_without_a_cutover_nothing_is_told_of_one(make_record: MakeRecord) -> None:
    assert "approval" not in shown(make_record())
