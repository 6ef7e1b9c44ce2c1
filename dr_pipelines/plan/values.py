"""The small types that a plan's fields are made of: names, durations, schedules, expectations.

Each is read from text by a function that raises ValueError with what was found and what is expected.
"""

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal, InvalidOperation
from typing import Annotated

from pydantic import PlainSerializer, PlainValidator, StringConstraints, WithJsonSchema

from dr_pipelines.timing import format_duration, parse_duration

__all__ = [
    "Cron",
    "Duration",
    "Expectation",
    "Expected",
    "Identifier",
    "Name",
    "PositiveDuration",
    "Text",
    "cron_values",
    "parse_cron",
    "parse_expectation",
]

Text = Annotated[str, StringConstraints(min_length=1, pattern=r"\S")]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]
# Runbooks and steps become Dagster jobs and ops, whose names have no hyphen.
Identifier = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,62}$")]


def _read_duration(value: object) -> timedelta:
    if isinstance(value, timedelta):
        return value
    if not isinstance(value, str):
        raise ValueError("expected a duration")
    return parse_duration(value)


def _read_positive_duration(value: object) -> timedelta:
    duration = _read_duration(value)
    if duration <= timedelta(0):
        raise ValueError(f'"{value}" is no time at all; expected more than 0s')
    return duration


_DURATION_SCHEMA = WithJsonSchema(
    {
        "type": "string",
        "pattern": r"^(?=.)([0-9]+w)?([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?$",
        "examples": ["15m", "1h30m"],
    }
)
_AS_TEXT = PlainSerializer(format_duration, return_type=str)
Duration = Annotated[timedelta, PlainValidator(_read_duration), _AS_TEXT, _DURATION_SCHEMA]
PositiveDuration = Annotated[timedelta, PlainValidator(_read_positive_duration), _AS_TEXT, _DURATION_SCHEMA]


@dataclass(frozen=True)
class _CronField:
    name: str
    low: int
    high: int
    words: tuple[str, ...] = ()

    def number(self, text: str) -> int:
        """The number that `text` (a number, or a word such as "mon") stands for."""
        if text.lower() in self.words:
            return self.words.index(text.lower()) + self.low
        if not re.fullmatch(r"[0-9]{1,2}", text) or not self.low <= int(text) <= self.high:
            raise ValueError(f'{self.name} "{text}" is not between {self.low} and {self.high}')
        return int(text)

    def values(self, text: str) -> frozenset[int]:
        """Every number that the field's text, such as "1-5,*/20", stands for."""
        return frozenset(number for item in text.split(",") for number in self._item(item))

    def _item(self, item: str) -> range:
        span, slash, step_text = item.partition("/")
        first, dash, last = span.partition("-")
        if span == "*":
            low, high = self.low, self.high
        else:
            low = self.number(first)
            high = self.number(last) if dash else low
        if low > high:
            raise ValueError(f'{self.name} "{item}" runs backwards')
        if not slash:
            return range(low, high + 1)
        if low == high or not re.fullmatch(r"[0-9]{1,2}", step_text) or not 1 <= int(step_text) <= high - low:
            raise ValueError(f'{self.name} "{item}" has a step that does not fit')
        return range(low, high + 1, int(step_text))


_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_CRON_FIELDS = (
    _CronField("minute", 0, 59),
    _CronField("hour", 0, 23),
    _CronField("day of month", 1, 31),
    _CronField("month", 1, 12, _MONTHS),
    _CronField("day of week", 0, 7, ("sun", "mon", "tue", "wed", "thu", "fri", "sat")),
)
_LONGEST_MONTH = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def parse_cron(value: object) -> str:
    """Check a cron schedule of five fields (UTC) and give it back with single spaces.

    Raises ValueError where a field is out of its range, or where the schedule names no day that exists.
    """
    if not isinstance(value, str):
        raise ValueError("expected a cron schedule")
    texts = value.split()
    expected = 'expected five fields: minute, hour, day of month, month, day of week, such as "0 3 * * *"'
    if len(texts) != len(_CRON_FIELDS):
        raise ValueError(f'"{value}" is not a cron schedule, it has {len(texts)} fields; {expected}')
    try:
        _, _, days, months, _ = (field.values(text) for field, text in zip(_CRON_FIELDS, texts, strict=True))
    except ValueError as problem:
        raise ValueError(f'"{value}" is not a cron schedule: {problem}; {expected}') from None
    # Where a day of the week is given too, cron takes either; Dagster refuses the schedule all the same.
    if not any(min(days) <= _LONGEST_MONTH[month - 1] for month in months):
        raise ValueError(f'"{value}" names a day that never comes; {expected}')
    return " ".join(texts)


def cron_values(cron: str) -> tuple[frozenset[int], ...]:
    """The numbers that each of a schedule's five fields stands for; days of the week from 0 or 7, Sunday, on."""
    return tuple(field.values(text) for field, text in zip(_CRON_FIELDS, cron.split(), strict=True))


Cron = Annotated[
    str,
    PlainValidator(parse_cron),
    WithJsonSchema({"type": "string", "pattern": r"^\s*\S+(\s+\S+){4}\s*$", "examples": ["0 3 * * *"]}),
]

_COMPARISONS: Mapping[str, Callable[[Decimal, Decimal], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
_COMPARISON = re.compile(r"(=|!=|>=|<=|>|<)\s*(-?[0-9]{1,30}(?:\.[0-9]{1,30})?)")
_BOOLEANS = {"true": True, "t": True, "false": False, "f": False}


@dataclass(frozen=True)
class Expectation:
    """How the single value of a query must be: a comparison with a number ("> 0"), or "true" or "false"."""

    comparison: str
    operand: Decimal | bool

    def holds(self, value: object) -> bool:
        """Whether `value` is as expected, as a driver returns it or as psql prints it. NULL never is."""
        if isinstance(self.operand, bool):
            found = _BOOLEANS.get(value.strip().lower()) if isinstance(value, str) else value
            return found is self.operand
        # A bool is an int in Python: "> 0" must not hold for a query that returned true.
        if isinstance(value, bool) or not isinstance(value, int | float | Decimal | str):
            return False
        try:
            number = value if isinstance(value, Decimal) else Decimal(str(value).strip())
        except InvalidOperation:
            return False
        return not number.is_nan() and _COMPARISONS[self.comparison](number, self.operand)

    def __str__(self) -> str:
        return str(self.operand).lower() if isinstance(self.operand, bool) else f"{self.comparison} {self.operand}"


def parse_expectation(value: object) -> Expectation:
    """Read "> 0", "= 12.5", "true" ... Raises ValueError otherwise."""
    if isinstance(value, Expectation):
        return value
    if isinstance(value, bool):  # YAML's bare true and false
        return Expectation("=", value)
    if not isinstance(value, str):
        raise ValueError("expected a comparison")
    if value in ("true", "false"):
        return Expectation("=", value == "true")
    match = _COMPARISON.fullmatch(value.strip())
    if match is None:
        raise ValueError(
            f'"{value}" is not an expectation; expected "true", "false", or =, !=, >, >=, <, <= and a number: "> 0"'
        )
    return Expectation(match[1], Decimal(match[2]))


Expected = Annotated[
    Expectation,
    PlainValidator(parse_expectation),
    PlainSerializer(str, return_type=str),
    WithJsonSchema(
        {
            "type": ["string", "boolean"],
            "pattern": r"^(true|false|\s*(=|!=|>=|<=|>|<)\s*-?[0-9]+(\.[0-9]+)?\s*)$",
            "examples": ["> 0", "= 0", True],
        }
    ),
]
