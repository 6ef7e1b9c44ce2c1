"""Cron schedules and expectations, as they are read from the plan."""

from decimal import Decimal

import pytest
from dagster._utils.schedules import is_valid_cron_string
from hypothesis import given
from hypothesis import strategies as st

from dr_pipelines.plan import parse_expectation
from dr_pipelines.plan.values import parse_cron

SCHEDULES = [
    "0 3 * * *",
    "*/15 * * * *",
    "0 0-23/2 * * *",
    "0,30 8-18 * * mon-fri",
    "0 0 1 jan *",
    "59 23 31 12 7",
    "0 0 29 2 *",
    "0 0 31 2,3 *",
    "0 0 13 * FRI",
]


@pytest.mark.parametrize("text", SCHEDULES)
def test_a_schedule_is_accepted_here_and_by_dagster(text: str) -> None:
    assert parse_cron(text) == text
    assert is_valid_cron_string(text)


def test_the_space_between_the_fields_does_not_matter() -> None:
    assert parse_cron("  0 3\t*  * *\n") == "0 3 * * *"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it has 0 fields"),
        ("0 3 * *", "it has 4 fields"),
        ("0 3 * * * *", "it has 6 fields"),
        ("@daily", "it has 1 fields"),
        ("60 3 * * *", 'minute "60" is not between 0 and 59'),
        ("0 24 * * *", 'hour "24" is not between 0 and 23'),
        ("0 3 0 * *", 'day of month "0" is not between 1 and 31'),
        ("0 3 * 13 *", 'month "13" is not between 1 and 12'),
        ("0 3 * * 8", 'day of week "8" is not between 0 and 7'),
        ("0 3 * * someday", 'day of week "someday"'),
        ("-1 3 * * *", 'minute "" is not between'),
        ("1, 3 * * *", 'minute "" is not between'),
        ("30-10 3 * * *", "runs backwards"),
        ("*/0 3 * * *", "has a step that does not fit"),
        ("*/60 3 * * *", "has a step that does not fit"),
        ("*/x 3 * * *", "has a step that does not fit"),
        ("5/10 3 * * *", "has a step that does not fit"),
        ("٣ 3 * * *", "is not between"),
        ("0 3 31 2 mon", "a day that never comes"),
        ("0 3 31 2 *", "a day that never comes"),
        ("0 3 31 4,6,9,11 *", "a day that never comes"),
    ],
)
def test_what_is_no_schedule_is_refused_with_the_field_that_is_wrong(text: str, said: str) -> None:
    with pytest.raises(ValueError, match="expected five fields: minute, hour, day of month") as refused:
        parse_cron(text)
    assert said in str(refused.value)


@given(st.text(alphabet="0123456789*/,- mon", max_size=24))
def test_whatever_is_accepted_dagster_accepts_too(text: str) -> None:
    try:
        schedule = parse_cron(text)
    except ValueError:
        return
    assert is_valid_cron_string(schedule)


@pytest.mark.parametrize(
    ("expectation", "value", "holds"),
    [
        ("> 0", 1, True),
        ("> 0", 0, False),
        (">0", Decimal("0.5"), True),
        (">= 3", 3, True),
        ("< 3", 3, False),
        ("<= 3", 3.0, True),
        ("= 0", 0, True),
        ("= 0", "0", True),
        ("= 0", 1, False),
        ("!= 0", -1, True),
        ("= -1.5", Decimal("-1.50"), True),
        ("true", True, True),
        ("true", "t", True),
        ("true", False, False),
        ("true", 1, False),
        ("false", False, True),
        ("false", "true", False),
        ("> 0", True, False),
        ("> 0", None, False),
        ("!= 0", None, False),
        ("true", None, False),
        ("false", None, False),
        ("> 0", "many", False),
        ("> 0", float("nan"), False),
        ("!= 0", float("nan"), False),
        ("> 0", float("inf"), True),
        ("> 0", [1], False),
    ],
)
def test_an_expectation_holds_for_what_it_says_alone(expectation: str, value: object, holds: bool) -> None:
    assert parse_expectation(expectation).holds(value) is holds


@pytest.mark.parametrize("text", ["> 0", "= 0", "!= 12.50", "<= -3", "true", "false"])
def test_an_expectation_is_written_as_it_is_read(text: str) -> None:
    assert str(parse_expectation(text)) == text
    assert parse_expectation(parse_expectation(text)) == parse_expectation(text)


def test_yamls_bare_true_is_the_word() -> None:
    assert parse_expectation(True) == parse_expectation("true")


@pytest.mark.parametrize("value", ["", "0", "== 0", "> many", ">", "> 0 0", "=> 1", "TRUE?", "> 1e3", "> nan", 0, None])
def test_what_is_no_expectation_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_expectation(value)


@given(st.sampled_from(["=", "!=", ">", ">=", "<", "<="]), st.integers(-(10**9), 10**9), st.integers(-(10**9), 10**9))
def test_each_comparison_has_its_opposite(comparison: str, operand: int, value: int) -> None:
    opposite = {"=": "!=", "!=": "=", ">": "<=", "<=": ">", "<": ">=", ">=": "<"}[comparison]
    one, other = parse_expectation(f"{comparison} {operand}"), parse_expectation(f"{opposite} {operand}")
    assert one.holds(value) is not other.holds(value)
