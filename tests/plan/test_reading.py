"""What a plan may be and what it may not: each refusal has file, line, field, what was found and what is expected."""

import re
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dr_pipelines.errors import PlanError, UsageError
from dr_pipelines.plan import Level, Plan, check_plan, inspect_plan, load_plan, parse_plan
from tests.plan.conftest import SMALL


def _refusal(text: str) -> str:
    with pytest.raises(PlanError) as refused:
        parse_plan(text, name="plan.yaml")
    return refused.value.message


def _spoil(text: str, old: str, new: str) -> tuple[str, int]:
    """The text with the one `old` replaced, and the line it stands on."""
    assert text.count(old) == 1, old
    return text.replace(old, new), text[: text.index(old)].count("\n") + 1


def test_a_sound_plan_is_accepted_without_findings(small: str) -> None:
    plan, findings = inspect_plan(small)
    assert plan is not None
    assert findings == check_plan(plan) == ()
    assert plan.text == small
    assert plan == parse_plan(small)


REFUSED = {
    "unknown key": (
        "    engine: postgres",
        "    engin: postgres",
        "services.database.engin",
        '"engin" is not a key of this mapping; did you mean "engine"?',
    ),
    "unknown section": ("runbooks:", "runboks:", "runboks", 'did you mean "runbooks"? known: plan_version, tiers'),
    "unknown unit": (
        "rto: 2h",
        "rto: 2hours",
        "tiers.critical.rto",
        '"2hours" is not a duration; expected a number with a unit, such as "15m"',
    ),
    "no unit": (
        "budget: 20m",
        "budget: 20",
        "restore_latest_backup.budget",
        "found 20, which YAML reads as a number; expected a dur",
    ),
    "fraction": (
        "rto: 2h",
        "rto: 1.5",
        "tiers.critical.rto",
        "found 1.5, which YAML reads as a number; expected the re",
    ),
    "negative": ("rto: 2h", "rto: -2h", "tiers.critical.rto", '"-2h" is not a duration; expected'),
    "base 60": (
        "rto: 2h",
        "rto: 1:30",
        "tiers.critical.rto",
        "found 1:30, which YAML reads as a number in base 60; ex",
    ),
    "no time at all": (
        "budget: 20m",
        "budget: 0s",
        "restore_latest_backup.budget",
        '"0s" is no time at all; expected more than 0s',
    ),
    "unknown tier": (
        "tier: critical",
        "tier: critcal",
        "services.database.tier",
        'there is no tier "critcal"; did you mean "critical"? known: critical',
    ),
    "unknown service": (
        "service: database",
        "service: redis",
        "runbooks.database_restore.service",
        'there is no service "redis"; known: database',
    ),
    "unknown engine": (
        "engine: postgres",
        "engine: oracle",
        "services.database.engine",
        'found "oracle"; expected one of postgres, redis, mariadb, application, secrets',
    ),
    "name of other letters": (
        "name: critical",
        "name: Very Critical",
        "tiers.0.name",
        'found "Very Critical"; expected a',
    ),
    "hyphen where Dagster has none": (
        "name: validate",
        "name: vali-date",
        "vali-date.name",
        "small letters, digits and _",
    ),
    "word that is a boolean": (
        "title: Database\n",
        "title: no\n",
        "services.database.title",
        "found no, which YAML reads as false (quotes make it text); expected text",
    ),
    "date": (
        "title: Database\n",
        "title: 2026-01-01\n",
        "services.database.title",
        "which YAML reads as a date; expected",
    ),
    "empty text": ("title: Database\n", 'title: " "\n', "services.database.title", 'found " "; expected text'),
    "empty value": ("rpo: 15m", "rpo:", "tiers.critical.rpo", "found nothing; expected a value, or the key left out"),
    "empty optional value": ("engine: postgres", "engine: ~", "services.database.engine", "found nothing; expected"),
    "mapping for text": (
        "title: Database\n",
        "title: {a: b}\n",
        "services.database.title",
        "found a mapping; expected text",
    ),
    "text for a mapping": ("  - name: critical", "  - just text\n  - name: critical", "tiers.0", "expected a mapping"),
    "tag": (
        "title: Database\n",
        "title: !!python/name:os.system x\n",
        "services.database.title",
        "with the tag python/na",
    ),
    "merge key": ("    engine: postgres", "    <<: {engine: postgres}", "services.database.<<", "is not a key of this"),
    "key that is a list": ("    engine: postgres", "    ? [a]\n    : b", "services.database", "found a list as a key"),
    "cron": (
        '"0 3 * * *"',
        '"0 25 * * *"',
        "services.database.backup.full",
        'hour "25" is not between 0 and 23; expected five fields',
    ),
    "log that is not continuous": (
        "log: continuous",
        "log: hourly",
        "backup.log",
        'found "hourly"; expected continuous',
    ),
    "expectation": ('"> 0"', '"some"', "guests_exist.expect", '"some" is not an expectation; expected "true"'),
    "version that is text": ("plan_version: 1", 'plan_version: "1"', "plan_version", 'found "1"; expected 1'),
    "version that is a boolean": (
        "plan_version: 1",
        "plan_version: yes",
        "plan_version",
        "found yes, which YAML reads as",
    ),
    "version before the first": (
        "plan_version: 1",
        "plan_version: 0",
        "plan_version",
        "found 0, which YAML reads as a num",
    ),
    "octal": (
        "plan_version: 1",
        "plan_version: 01",
        "plan_version",
        "found 01, which YAML reads as a number; expected 1",
    ),
    "newer version": (
        "plan_version: 1",
        "plan_version: 2",
        "plan_version",
        "found 2, a newer format; expected 1, or a newer release of dr_pipelines",
    ),
}


@pytest.mark.parametrize(("old", "new", "field", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_with_line_field_and_what_is_expected(small: str, old: str, new: str, field: str, said: str) -> None:
    text, line = _spoil(small, old, new)
    found = [problem for problem in _refusal(text).splitlines() if said in problem]
    assert len(found) == 1, _refusal(text)
    assert re.match(rf"\s*plan\.yaml:{line}: \S*{re.escape(field)}: ", found[0])


@pytest.mark.parametrize(
    ("gone", "field", "line"),
    [
        ("plan_version: 1\n", "plan_version", 1),
        ("    rto: 2h\n", "tiers.critical.rto", 3),
        ("    tier: critical\n", "services.database.tier", 8),
        ("      archive_timeout: 60s\n", "services.database.backup.archive_timeout", 13),
        ("        budget: 7m\n", "runbooks.database_restore.steps.validate.budget", 33),
    ],
)
def test_a_missing_field_is_refused_at_the_entry_that_lacks_it(small: str, gone: str, field: str, line: int) -> None:
    text, _ = _spoil(small, gone, "")
    assert re.match(rf"plan\.yaml:{line}: {field}: missing; expected .", _refusal(text))


def test_one_problem_is_said_once_and_nothing_follows_from_it(small: str) -> None:
    for old, new, _, _ in REFUSED.values():
        if old in ("name: critical", "  - name: critical", "runbooks:", "    engine: postgres", "engine: postgres"):
            continue  # what it was is missing, or referred to, too
        assert "\n" not in _refusal(_spoil(small, old, new)[0])


def test_all_problems_are_said_at_once_in_the_order_of_the_lines(small: str) -> None:
    spoiled = small
    for old, new in (
        ("tier: critical", "tier: critcal"),
        ("budget: 20m", "budget: 20"),
        ('"> 0"', '"some"'),
        ("service: database", "service: databse"),
        ("rto: 2h", "rto: 2hours"),
    ):
        spoiled, _ = _spoil(spoiled, old, new)
    message = _refusal(spoiled)
    lines = [int(line) for line in re.findall(r"^  plan\.yaml:(\d+): ", message, re.MULTILINE)]
    assert message.startswith("plan.yaml cannot be accepted, 5 problems:")
    assert lines == [5, 10, 21, 26, 32]


def test_what_is_too_long_is_said_beside_what_is_wrong_elsewhere(small: str) -> None:
    text, _ = _spoil(small, "title: Critical", "titel: Critical")
    text += "  - name: other\n    titel: x\n"
    text = text.replace("tiers:\n", "tiers:\n  - {name: low, title: Low, rto: 1w, rpo: 30s}\n")
    text = text.replace("tier: critical", "tier: low").replace("    rpo: 10m\n    backup", "    backup")
    message = _refusal(text)
    assert "services.database.backup.archive_timeout: a log segment may stay open for 1m, longer than" in message
    assert "tiers.critical.titel" in message


def test_a_flood_of_problems_is_cut(small: str) -> None:
    text = small + "".join(f"k{number}: 1\n" for number in range(200))
    message = _refusal(text)
    assert "200 problems" in message
    assert message.endswith("and 150 more")


def test_a_long_value_is_shown_in_part(small: str) -> None:
    for spoiled in (
        _spoil(small, "rto: 2h", f"rto: {'9' * 100_000}s"),
        _spoil(small, "    engine", f"    {'x' * 1000}"),
    ):
        assert len(_refusal(spoiled[0])) < 2000


DUPLICATES = {
    "tier": ("services:\n", "  - {name: critical, title: C, rto: 1h, rpo: 1h}\nservices:\n", 7, "tiers.1.name"),
    "service": ("runbooks:\n", "  - {name: database, title: D, tier: critical}\nrunbooks:\n", 23, "services.1.name"),
    "step": ("name: validate", "name: restore_latest_backup", 33, "runbooks.database_restore.steps.1.name"),
    "smoke query": (
        "      application_query",
        "        - {name: guests_exist, sql: SELECT 1, expect: '= 1'}\n      application_query",
        22,
        "services.database.validation.smoke_queries.1.name",
    ),
}


@pytest.mark.parametrize(("old", "new", "line", "field"), DUPLICATES.values(), ids=DUPLICATES.keys())
def test_a_name_that_is_there_twice_is_refused(small: str, old: str, new: str, line: int, field: str) -> None:
    text, _ = _spoil(small, old, new)
    assert re.search(
        rf'^ *plan\.yaml:{line}: {field}: the name "\w+" is taken \(line \d+\)', _refusal(text), re.MULTILINE
    )


def test_a_second_runbook_for_a_service_is_refused(small: str) -> None:
    again = small[small.index("  - name: database_restore") :].replace("name: database_restore", "name: other")
    assert re.match(
        r'plan\.yaml:41: runbooks\.other\.service: "database" has a runbook already \(line 26\); expected one',
        _refusal(small + again),
    )


@pytest.mark.parametrize(
    ("old", "again", "line"),
    [("    rto: 2h\n", "    rto: 3h\n", 6), ("plan_version: 1\n", "plan_version: 1\n", 2)],
)
def test_a_key_that_is_there_twice_is_refused(small: str, old: str, again: str, line: int) -> None:
    text, first = _spoil(small, old, old + again)
    key = old.strip().partition(":")[0]
    assert f'the key "{key}" is there twice (first on line {first}); expected it once' in _refusal(text)
    assert _refusal(text).startswith(f"plan.yaml:{line}: ")


def test_aliases_are_refused_without_being_followed(small: str) -> None:
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    for number, name in enumerate("bcdefghijk"):
        previous = "abcdefghijk"[number]
        bomb += f"{name}: &{name} [{', '.join([f'*{previous}'] * 9)}]\n"
    assert "found the alias *a; expected the value written out" in _refusal(small + bomb)


def test_an_alias_is_refused_at_its_field(small: str) -> None:
    text, line = _spoil(small.replace("rto: 2h", "rto: &long 2h"), "    rto: 1h", "    rto: *long")
    assert _refusal(text).startswith(
        f"plan.yaml:{line}: runbooks.database_restore.rto: found the alias *long; expected"
    )


NOT_YAML = {
    "empty": ("", 1, "the file is empty"),
    "comments alone": ("# nothing\n", 1, "the file is empty"),
    "a list": ("- a\n", 1, "found a list; expected a mapping"),
    "text": ("hello\n", 1, 'found "hello"; expected a mapping'),
    "two documents": ("a: 1\n---\nb: 2\n", 2, "not YAML: expected a single document"),
    "a tab": ("a:\n\tb: 1\n", 2, "not YAML: "),
    "an open bracket": ("a: 1\nb: [1, 2\n", 3, "not YAML: "),
    "a control character": ("a: 1\nb: \x07\n", 2, "not YAML: the character '\\x07'"),
    "too deep": ("a: 1\nb: " + "[" * 5000, 2, "not YAML: nested more than 20 deep"),
}


@pytest.mark.parametrize(("text", "line", "said"), NOT_YAML.values(), ids=NOT_YAML.keys())
def test_what_is_no_yaml_mapping_is_refused_with_its_line(text: str, line: int, said: str) -> None:
    assert _refusal(text).startswith(f"plan.yaml:{line}: {said}")


def test_a_file_is_read_as_it_stands(small: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_bytes(small.replace("\n", "\r\n").encode())
    plan = load_plan(path)
    assert plan.text.encode() == path.read_bytes()
    assert plan.lines["services.database.backup.archive_timeout"] == 16


FILES = {
    "not there": (None, ": there is no such file; expected a recovery plan"),
    "not UTF-8": (b"a: 1\nb: caf\xe9\n", ":2: found the byte 0xe9, which is not UTF-8; expected text in UTF-8"),
    "UTF-16": ("plan_version: 1".encode("utf-16"), ":1: found the byte 0xff, which is not UTF-8"),
    "too large": (
        b"# " + b"x" * 1_000_000,
        ": found more than 1000000 bytes; expected a recovery plan of at most 1 MB",
    ),
}


@pytest.mark.parametrize(("content", "said"), FILES.values(), ids=FILES.keys())
def test_a_file_that_cannot_be_a_plan_is_refused(content: bytes | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PlanError) as refused:
        load_plan(path)
    assert refused.value.message.startswith(f"{path}{said}")
    assert refused.value.hint


@pytest.mark.parametrize("place", ["", "/dev/zero"])
def test_what_is_no_file_is_refused(place: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="not a file"):
        load_plan(Path(place) if place else tmp_path)


def test_text_that_is_too_large_is_refused_without_reading_it() -> None:
    assert "found more than 1000000 bytes" in _refusal("#" * 1_000_001)


@pytest.mark.parametrize("section", ["tiers", "services", "runbooks.database_restore.steps"])
def test_a_list_that_needs_an_entry_is_refused_without_one(small: str, section: str) -> None:
    key = section.rpartition(".")[2]
    begin = small.index(f"{key}:")
    end = {"tiers": small.index("services:"), "services": small.index("runbooks:"), "steps": len(small)}[key]
    assert f"{section}: found a list; expected a list of at least one" in _refusal(
        f"{small[:begin]}{key}: []\n{small[end:]}"
    )


@given(st.data())
def test_whatever_is_written_into_a_plan_it_is_accepted_or_refused_with_a_line(data: st.DataObject) -> None:
    begin = data.draw(st.integers(0, len(SMALL)))
    end = data.draw(st.integers(begin, min(begin + 40, len(SMALL))))
    written = data.draw(st.text(max_size=10) | st.text(alphabet="\n -:[]{}#&*!|>'\"%@`?,ab1~<=.", max_size=10))
    plan, findings = inspect_plan(SMALL[:begin] + written + SMALL[end:])
    errors = [finding for finding in findings if finding.level is Level.ERROR]
    assert (plan is None) == bool(errors)
    assert all(finding.line for finding in findings)


def test_findings_are_given_with_the_refusal(small: str) -> None:
    plan, findings = inspect_plan(small.replace("rto: 2h", "rto: 2hours").replace("rto: 1h", "rto: 30m"))
    assert plan is None
    assert [(finding.level, finding.line) for finding in findings] == [(Level.ERROR, 5)]


def test_a_plan_answers_by_name(small: str) -> None:
    plan = parse_plan(small)
    assert plan.service("database").tier == plan.tier_of("database").name == plan.tier_of(plan.services[0]).name
    assert plan.runbook("database_restore") is plan.runbook_for("database")
    assert list(plan.budgets("database").values()) == [timedelta(minutes=each) for each in (20, 7, 1, 1, 1)]
    assert len(plan.sha256) == 64
    assert plan.sha256 != parse_plan(small + "#").sha256


def test_a_name_that_is_not_in_the_plan_is_a_usage_error_that_names_those_that_are(small: str) -> None:
    plan = parse_plan(
        small.replace("runbooks:", "  - {name: cache, title: C, tier: critical, engine: redis}\nrunbooks:")
    )
    with pytest.raises(UsageError, match=r'no service "databse".*did you mean "database"\? known: database, cache'):
        plan.service("databse")
    with pytest.raises(UsageError, match=r'no runbook "x" in the plan \(known: database_restore\)'):
        plan.runbook("x")
    with pytest.raises(UsageError, match=r'"cache" is no PostgreSQL service of the plan \(those are: database\)'):
        plan.require_database("cache")
    assert plan.runbook_for("cache") is None
    assert plan.budgets("cache") == {}
    with pytest.raises(UsageError, match='no service "nothing"'):
        plan.objectives("nothing")


def test_a_services_own_objective_goes_before_its_tiers(small: str) -> None:
    objectives = parse_plan(small).objectives("database")
    assert (objectives.rto, objectives.rto_source) == (timedelta(hours=2), "tier")
    assert (objectives.rpo, objectives.rpo_source) == (timedelta(minutes=10), "service")


def test_an_objective_of_zero_is_the_services_own(small: str) -> None:
    text = small.replace(
        "runbooks:", "  - {name: api, title: A, tier: critical, engine: application, rpo: 0s}\nrunbooks:"
    )
    objectives = parse_plan(text).objectives("api")
    assert (objectives.rpo, objectives.rpo_source) == (timedelta(0), "service")


def test_an_unprotected_service_has_no_objectives(small: str) -> None:
    text = small.replace("runbooks:", "  - {name: test, title: T, tier: critical, unprotected: made anew}\nrunbooks:")
    plan: Plan = parse_plan(text)
    assert plan.objectives("test").rto is None
    assert plan.objectives("test").rpo is None
