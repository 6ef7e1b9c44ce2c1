"""Promises beside what was measured: the latest drill counts, kinds are never mixed, and nothing is made up."""

import json
import re
from collections.abc import Callable
from datetime import datetime, timedelta

import pytest

from dr_pipelines.engines.verdict import Verdict
from dr_pipelines.plan import Plan, parse_plan
from dr_pipelines.reports.adherence import Adherence, ServiceAdherence, adherence
from dr_pipelines.runbooks.record import Record

MakeRecord = Callable[..., Record]
MET, MISSED, UNVERIFIED = Verdict.MET, Verdict.MISSED, Verdict.UNVERIFIED


def database(report: Adherence) -> ServiceAdherence:
    """What is said of the database."""
    return report.services[0]


def test_a_service_without_a_record_is_unverified_and_never_drilled(plan: Plan, now: datetime) -> None:
    report = adherence(plan, [], now=now)

    service = database(report)
    assert (service.latest, service.verdicts, service.verdict) == (None, None, UNVERIFIED)
    assert service.needs_test == "never drilled"
    assert service.histories == ()
    assert report.verdict is UNVERIFIED
    assert report.plan_changed == ()


def test_a_service_that_is_unprotected_by_decision_has_no_verdict(plan: Plan, now: datetime) -> None:
    service = adherence(plan, [], now=now).services[2]

    assert service.unprotected == "it is made anew from the checkout"
    assert (service.verdict, service.needs_test, service.objectives.rto) == (None, None, None)


def test_it_says_whose_objective_applies(plan: Plan, now: datetime) -> None:
    service = database(adherence(plan, [], now=now))

    assert (service.objectives.rto, service.objectives.rto_source) == (timedelta(hours=1), "tier")
    assert (service.objectives.rpo, service.objectives.rpo_source) == (timedelta(minutes=10), "service")


def test_the_latest_drill_counts(plan: Plan, make_record: MakeRecord, now: datetime) -> None:
    records = [make_record(2, rto_seconds=4000.0), make_record(9, rto_seconds=30.0), make_record(5)]

    service = database(adherence(plan, records, now=now))

    assert service.latest is not None
    assert service.latest.rto_seconds == 30.0
    assert service.verdict is MET
    assert service.needs_test is None


def test_a_drill_that_failed_after_one_that_met_everything_is_what_counts(
    plan: Plan, make_record: MakeRecord, now: datetime
) -> None:
    records = [make_record(1), make_record(2, rto_seconds=None, rpo_seconds=None, checks=[])]

    report = adherence(plan, records, now=now)

    assert database(report).verdict is UNVERIFIED
    assert report.verdict is UNVERIFIED


def test_the_latest_attempt_of_an_execution_supersedes_the_others(
    plan: Plan, make_record: MakeRecord, now: datetime
) -> None:
    failed = make_record(1, rto_seconds=None)
    resumed = make_record(1, attempt=2, record_id="20260302T121000Z-drill-aaaaaa")

    for records in ([failed, resumed], [resumed, failed]):
        service = database(adherence(plan, records, now=now))
        assert service.latest == resumed
        drills = service.history("drill")
        assert drills is not None
        assert drills.records == (resumed,)


def test_kinds_are_never_mixed(plan: Plan, make_record: MakeRecord, now: datetime) -> None:
    drill, real = make_record(1), make_record(2, kind="restore", rto_seconds=5000.0)
    tested = make_record(3, kind="restore_test", rto_seconds=7.0)

    service = database(adherence(plan, [tested, real, drill], now=now))

    assert service.latest == drill
    assert service.verdict is MET
    found = [(h.kind, h.latest.rto_seconds, h.rto.n) for h in service.histories]
    assert found == [("drill", 20.4, 1), ("restore", 5000.0, 1), ("restore_test", 7.0, 1)]
    assert service.judge(real).rto is MISSED


def test_a_real_restore_alone_is_no_drill(plan: Plan, make_record: MakeRecord, now: datetime) -> None:
    service = database(adherence(plan, [make_record(kind="restore")], now=now))

    assert (service.latest, service.verdict, service.needs_test) == (None, UNVERIFIED, "never drilled")


def test_figures_are_judged_by_what_is_promised_today(plan_text: str, make_record: MakeRecord, now: datetime) -> None:
    stricter = parse_plan(re.sub(r"budget: \w+", "budget: 1m", plan_text.replace("rto: 1h", "rto: 10m")))
    record = make_record(rto_seconds=700.0)
    assert record.verdicts.rto is MET

    report = adherence(stricter, [record], now=now)

    verdicts = database(report).verdicts
    assert verdicts is not None
    assert (verdicts.rto, verdicts.rpo, verdicts.integrity) == (MISSED, MET, MET)
    assert report.verdict is MISSED


def test_a_plan_that_changed_since_the_drill_is_told_of(plan_text: str, make_record: MakeRecord, now: datetime) -> None:
    report = adherence(parse_plan(plan_text + "# a word more\n"), [make_record()], now=now)

    told = "the plan changed since the drill of 2026-03-01 11:59:20 UTC"
    assert database(report).needs_test == told
    assert report.plan_changed == (f"Database: {told}",)


def test_records_of_a_service_that_the_plan_no_longer_has_are_told_of(
    plan: Plan, make_record: MakeRecord, now: datetime
) -> None:
    report = adherence(plan, [make_record(service="ledger")], now=now)

    assert report.plan_changed == ("ledger: there are records of it, and the plan no longer has it",)


def test_what_is_switched_off_is_carried_along(plan: Plan, now: datetime) -> None:
    assert adherence(plan, [], now=now, off=["the schedule is stopped"]).off == ("the schedule is stopped",)


@pytest.mark.parametrize(
    ("values", "median", "p90", "trend"),
    [
        ([10.0], 10, 10, False),
        ([40.0, 10.0], 10, 40, False),
        ([30.0, 10.0, 20.0, 40.0], 20, 40, False),
        ([50.0, 10.0, 20.0, 40.0, 30.0], 30, 50, True),
        ([float(n) for n in range(10, 110, 10)], 50, 90, True),
        ([float(n) for n in range(10, 120, 10)], 60, 100, True),
    ],
)
def test_figures_over_time_are_by_nearest_rank(
    plan: Plan, make_record: MakeRecord, now: datetime, values: list[float], median: int, p90: int, trend: bool
) -> None:
    records = [make_record(day, rto_seconds=value) for day, value in enumerate(values)]
    drills = database(adherence(plan, records, now=now)).history("drill")

    assert drills is not None
    assert (drills.rto.n, drills.rto.median, drills.rto.p90, drills.rto.trend) == (
        len(values),
        timedelta(seconds=median),
        timedelta(seconds=p90),
        trend,
    )


def test_what_was_not_measured_is_in_no_figure(plan: Plan, make_record: MakeRecord, now: datetime) -> None:
    records = [make_record(1), make_record(2, rto_seconds=None), make_record(3, rpo_seconds=None)]
    drills = database(adherence(plan, records, now=now)).history("drill")

    assert drills is not None
    assert (len(drills.records), drills.rto.n, drills.rpo.n) == (3, 2, 2)


def test_figures_of_nothing_are_none(plan: Plan, make_record: MakeRecord, now: datetime) -> None:
    drills = database(adherence(plan, [make_record(rto_seconds=None)], now=now)).history("drill")

    assert drills is not None
    assert (drills.rto.n, drills.rto.median, drills.rto.p90) == (0, None, None)


def test_as_json_it_holds_promises_figures_and_the_latest_records(
    plan: Plan, make_record: MakeRecord, now: datetime
) -> None:
    record, real = make_record(), make_record(1, kind="restore")
    report = adherence(plan, [record, real], now=now, off=["a sensor is stopped"])

    document = json.loads(json.dumps(report.to_document()))

    assert document["generated_at"] == "2026-03-31T12:00:00.000000Z"
    assert document["plan_sha256"] == plan.sha256
    assert (document["verdict"], document["off"]) == ("unverified", ["a sensor is stopped"])
    first, second, third = document["services"]
    assert (first["rto_objective_seconds"], first["rpo_objective_seconds"]) == (3600.0, 600.0)
    assert first["verdicts"] == {"rto": "met", "rpo": "met", "integrity": "met"}
    assert first["latest"] == {"drill": record.document(), "restore": real.document(), "restore_test": None}
    assert first["history"]["drill"]["rto"] == {"n": 1, "median_seconds": 20.4, "p90_seconds": 20.4, "trend": False}
    assert first["history"]["drill"]["executions"][0]["record_id"] == record.record_id
    assert (second["verdict"], second["verdicts"], second["needs_test"]) == ("unverified", None, "never drilled")
    assert (third["verdict"], third["unprotected"]) == (None, "it is made anew from the checkout")
