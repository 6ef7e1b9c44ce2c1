"""Headroom: an interval or a sum of budgets as long as its objective is a warning, a longer one is refused."""

from datetime import timedelta

import pytest

from dr_pipelines.errors import PlanError
from dr_pipelines.plan import Finding, Level, check_plan, inspect_plan, parse_plan


def _only(text: str) -> Finding:
    plan, findings = inspect_plan(text)
    (finding,) = findings
    assert (plan is None) == (finding.level is Level.ERROR)
    return finding


@pytest.mark.parametrize(
    ("archive_timeout", "level"), [("9m59s", None), ("10m", Level.WARNING), ("10m1s", Level.ERROR), ("1d", Level.ERROR)]
)
def test_archive_timeout_is_held_against_the_rpo(small: str, archive_timeout: str, level: Level | None) -> None:
    text = small.replace("archive_timeout: 60s", f"archive_timeout: {archive_timeout}")
    if level is None:
        assert check_plan(parse_plan(text)) == ()
        return
    finding = _only(text)
    assert (finding.level, finding.where, finding.line) == (level, "services.database.backup.archive_timeout", 16)
    assert "RPO of the service" in finding.message


def test_archive_timeout_is_held_against_the_tiers_rpo_where_the_service_has_none(small: str) -> None:
    finding = _only(small.replace("    rpo: 10m\n    backup", "    backup").replace("60s", "15m"))
    assert finding.level is Level.WARNING
    assert "uses the RPO of the tier up (15m)" in finding.message


def _with_retention(small: str, retention: str) -> str:
    return small.replace("archive_timeout: 60s\n", f"archive_timeout: 60s\n      retention: {{{retention}}}\n")


@pytest.mark.parametrize(
    ("retention", "key", "said"),
    [
        ("", "", "nothing says what is kept"),
        ("keep: 0", ".keep", "found 0, which YAML reads as a number; expected 1 or more"),
        ("keep: seven", ".keep", 'found "seven"; expected 1 or more'),
        ("keep_for: 0s", ".keep_for", '"0s" is no time at all'),
        ("keep_for: 30", ".keep_for", "found 30, which YAML reads as a number; expected a duration with its unit"),
        ("keep_for: 9m", ".keep_for", "found 9m, shorter than the RPO"),
        ("keep: 7, keep_days: 30", ".keep_days", '"keep_days" is not a key'),
    ],
)
def test_a_retention_that_keeps_nothing_or_less_than_the_rpo_is_refused(
    small: str, retention: str, key: str, said: str
) -> None:
    finding = _only(_with_retention(small, retention))
    assert finding.level is Level.ERROR
    assert (finding.where, finding.line) == (f"services.database.backup.retention{key}", 17)
    assert finding.message.startswith(said)


def test_a_single_backup_is_a_warning(small: str) -> None:
    finding = _only(_with_retention(small, "keep: 1"))
    assert (finding.level, finding.where) == (Level.WARNING, "services.database.backup.retention.keep")


@pytest.mark.parametrize("retention", ["keep: 2", "keep_for: 10m", "keep: 1, keep_for: 30d"])
def test_a_retention_by_number_or_age_is_accepted(small: str, retention: str) -> None:
    assert check_plan(parse_plan(_with_retention(small, retention))) == ()


@pytest.mark.parametrize(("budget", "level"), [("49m", None), ("50m", Level.WARNING), ("51m", Level.ERROR)])
def test_the_sum_of_the_steps_is_held_against_the_runbooks_rto(small: str, budget: str, level: Level | None) -> None:
    text = small.replace("budget: 20m", f"budget: {budget}")
    if level is None:
        assert check_plan(parse_plan(text)) == ()
        return
    finding = _only(text)
    assert (finding.level, finding.where, finding.line) == (level, "runbooks.database_restore.steps", 29)


@pytest.mark.parametrize(
    ("old", "new", "key", "line", "said"),
    [
        ("    rto: 1h\n", "    rto: 3h\n", "rto", 27, "found 3h; expected at most the RTO of database, 2h"),
        ("    rpo: 10m\n    steps", "    rpo: 11m\n    steps", "rpo", 28, "found 11m; expected at most the RPO of d"),
    ],
)
def test_a_runbook_may_not_take_more_than_its_service_promises(
    small: str, old: str, new: str, key: str, line: int, said: str
) -> None:
    assert small.count(old) == 1
    finding = _only(small.replace(old, new))
    assert (finding.level, finding.where, finding.line) == (Level.ERROR, f"runbooks.database_restore.{key}", line)
    assert finding.message.startswith(said)


def test_a_runbook_may_take_all_that_its_service_promises(small: str) -> None:
    assert check_plan(parse_plan(small.replace("rto: 1h", "rto: 2h"))) == ()


@pytest.mark.parametrize(
    "given", ["engine: redis", "rto: 1h", "rpo: 0s", "backup: {full: 0 3 * * *, log: continuous, archive_timeout: 1m}"]
)
def test_an_unprotected_service_promises_nothing_else(small: str, given: str) -> None:
    service = f"  - {{name: test, title: T, tier: critical, unprotected: made anew, {given}}}\nrunbooks:"
    finding = _only(small.replace("runbooks:", service))
    key = given.partition(":")[0]
    assert (finding.level, finding.where, finding.line) == (Level.ERROR, f"services.test.{key}", 23)


@pytest.mark.parametrize("engine", ["engine: redis, ", ""])
def test_a_backup_that_no_engine_reads_is_refused(small: str, engine: str) -> None:
    backup = "backup: {full: 0 3 * * *, log: continuous, archive_timeout: 1m}"
    text = small.replace("runbooks:", f"  - {{name: x, title: X, tier: critical, {engine}{backup}}}\nrunbooks:")
    plan, findings = inspect_plan(text)
    assert plan is None
    assert [finding.where for finding in findings if finding.level is Level.ERROR] == ["services.x.backup"]


def test_a_service_that_nothing_backs_up_and_nobody_decided_on_is_a_warning(small: str) -> None:
    finding = _only(small.replace("runbooks:", "  - {name: x, title: X, tier: critical}\nrunbooks:"))
    assert (finding.level, finding.where, finding.line) == (Level.WARNING, "services.x", 23)


@pytest.mark.parametrize(
    ("begin", "end"), [("    backup:\n", "    validation:\n"), ("    validation:\n", "runbooks:\n")]
)
def test_a_database_without_backup_or_validation_is_a_warning(small: str, begin: str, end: str) -> None:
    text = small[: small.index(begin)] + small[small.index(end) :]
    finding = _only(text)
    assert (finding.level, finding.where, finding.line) == (Level.WARNING, "services.database", 8)
    assert finding.message.startswith(f"no {begin.strip().rstrip(':')}, so nothing")


def test_a_database_without_a_runbook_is_a_warning(small: str) -> None:
    finding = _only(small[: small.index("runbooks:")])
    assert (finding.level, finding.where, finding.line) == (Level.WARNING, "services.database", 8)
    assert finding.message.startswith("no runbook")


def test_names_that_differ_in_hyphens_alone_are_refused(small: str) -> None:
    services = "".join(f"  - {{name: {name}, title: X, tier: critical, engine: redis}}\n" for name in ("a-b", "a_b"))
    finding = _only(small.replace("runbooks:", services + "runbooks:"))
    assert (finding.level, finding.where, finding.line) == (Level.ERROR, "services.a_b.name", 24)
    assert '"a-b"' in finding.message


def test_budgets_that_no_restore_reads_are_warnings(small: str) -> None:
    plan, findings = inspect_plan(small.replace("name: assess", "name: asses"))
    assert plan is not None
    assert [(finding.level, finding.message.partition(",")[0]) for finding in findings] == [
        (Level.WARNING, "no budget for assess"),
        (Level.WARNING, "a restore has no step asses"),
    ]


def test_a_budget_for_a_cutovers_step_is_no_warning_and_none_is_asked_for(small: str) -> None:
    plan, findings = inspect_plan(small + "      - {name: fence, title: Fence, budget: 1m}\n")
    assert plan is not None
    assert findings == ()
    assert plan.budgets("database")["fence"] == timedelta(minutes=1)


def test_what_is_too_long_refuses_the_plan_with_its_line(small: str) -> None:
    with pytest.raises(
        PlanError, match=r"^recovery-plan\.yaml:29: runbooks\.database_restore\.steps: the steps add up to"
    ):
        parse_plan(small.replace("budget: 20m", "budget: 2h"))


def test_a_plan_with_warnings_alone_is_accepted(small: str) -> None:
    plan = parse_plan(small.replace("budget: 20m", "budget: 50m"))
    (finding,) = check_plan(plan)
    assert finding.located("plan.yaml") == (
        "plan.yaml:29: runbooks.database_restore.steps: "
        "the steps add up to 1h, which uses the runbook's RTO up (1h); no headroom is left"
    )


def test_incremental_backups_that_are_due_with_full_ones_are_warned_of(small: str) -> None:
    text = small.replace("      log: continuous\n", '      log: continuous\n      incremental: "0 9,15 * * *"\n')
    assert check_plan(parse_plan(text)) == ()
    finding = _only(text.replace("0 9,15", "0 3,15"))
    assert (finding.level, finding.where) == (Level.WARNING, "services.database.backup.incremental")
    assert "due together with the full backup" in finding.message


@pytest.mark.parametrize(
    ("line", "said"), [("full_every: 0", "1 to 100"), ("full_every: often", "1 to 100"), ("incremental: daily", "cron")]
)
def test_incremental_backups_are_scheduled_and_counted_properly(small: str, line: str, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        parse_plan(small.replace("      log: continuous\n", f"      log: continuous\n      {line}\n"))
