"""Clocks, durations and moments."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dr_pipelines.timing import (
    FakeClock,
    Stopwatch,
    SystemClock,
    format_ago,
    format_bytes,
    format_duration,
    format_moment,
    measured_between,
    parse_duration,
    parse_moment,
    wait_until,
)

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
MAX_SECONDS = 999_999_999 * 86400


@given(st.integers(min_value=0, max_value=MAX_SECONDS))
def test_a_duration_of_whole_seconds_reads_back_as_it_was_written(seconds: int) -> None:
    duration = timedelta(seconds=seconds)
    assert parse_duration(format_duration(duration)) == duration


@given(st.lists(st.integers(min_value=0, max_value=10_000), min_size=5, max_size=5))
def test_a_duration_is_the_sum_of_its_units(numbers: list[int]) -> None:
    weeks, days, hours, minutes, seconds = numbers
    text = f"{weeks}w{days}d{hours}h{minutes}m{seconds}s"
    assert parse_duration(text) == timedelta(weeks=weeks, days=days, hours=hours, minutes=minutes, seconds=seconds)


@given(st.text(max_size=20))
def test_any_text_is_a_duration_or_a_value_error(text: str) -> None:
    try:
        duration = parse_duration(text)
    except ValueError:
        return
    assert duration >= timedelta(0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "15",
        "15 m",
        "15min",
        "1H",
        "m",
        "-1m",
        "1.5h",
        "30m1h",
        "1h1h",
        "1:30",
        " 1h",
        "1h\n",
        "١٥m",
        "9" * 5000 + "s",
    ],
)
def test_what_is_not_a_duration_is_refused_with_what_is_expected(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration; expected"):
        parse_duration(text)


def test_a_duration_longer_than_time_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="longer than any duration"):
        parse_duration("999999999w")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.004, "4ms"),
        (4.24, "4.2s"),
        (59.94, "59.9s"),
        (59.97, "1m"),
        (90, "1m30s"),
        (3600, "1h"),
        (7 * 86400, "1w"),
        (8 * 86400, "8d"),
        (-90, "-1m30s"),
    ],
)
def test_a_duration_is_written_for_a_person(seconds: float, text: str) -> None:
    assert format_duration(timedelta(seconds=seconds)) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "5s ago"), (0, "0s ago"), (-0.5, "0s ago"), (-360, "6m from now: the clocks are apart")],
)
def test_how_long_ago_something_was_is_never_negative(seconds: float, text: str) -> None:
    assert format_ago(timedelta(seconds=seconds)) == text


@given(st.datetimes(timezones=st.just(UTC)))
def test_a_moment_reads_back_as_it_was_written(moment: datetime) -> None:
    assert parse_moment(format_moment(moment)) == moment


@given(st.datetimes(timezones=st.just(UTC)), st.datetimes(timezones=st.just(UTC)))
def test_moments_sort_as_text(one: datetime, other: datetime) -> None:
    assert (one < other) == (format_moment(one) < format_moment(other))


def test_a_moment_of_another_zone_is_in_utc_afterwards() -> None:
    moment = parse_moment("2026-03-01T13:00:00+01:00")
    assert moment == NOON
    assert moment.tzinfo is UTC
    assert format_moment(NOON.astimezone(timezone(timedelta(hours=-5)))) == "2026-03-01T12:00:00.000000Z"


@pytest.mark.parametrize("text", ["2026-03-01T12:00:00", "2026-03-01"])
def test_a_moment_without_zone_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no time zone"):
        parse_moment(text)


@pytest.mark.parametrize("text", ["", "now", "latest", "12:00", "2026-13-01T00:00:00Z"])
def test_what_is_not_a_moment_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a moment; expected ISO 8601"):
        parse_moment(text)


def test_a_moment_that_utc_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="outside the years"):
        parse_moment("0001-01-01T00:00:00+14:00")


def test_the_time_between_two_moments_is_measured_across_zones() -> None:
    later = (NOON + timedelta(seconds=90)).astimezone(timezone(timedelta(hours=2)))
    assert measured_between(NOON, later) == timedelta(seconds=90)


@pytest.mark.parametrize("seconds", [0, -1])
def test_a_measured_duration_of_zero_or_less_is_refused(seconds: int) -> None:
    with pytest.raises(ValueError, match="is refused"):
        measured_between(NOON, NOON + timedelta(seconds=seconds))


def test_a_moment_without_zone_is_not_measured() -> None:
    naive = NOON.replace(tzinfo=None)
    for start, end in ((naive, NOON), (NOON, naive)):
        with pytest.raises(ValueError, match="without a time zone"):
            measured_between(start, end)


def test_a_stopwatch_measures_by_the_monotonic_clock_alone() -> None:
    clock = FakeClock(now=NOON)
    stopwatch = Stopwatch(clock)
    clock.advance(5)
    clock.now -= timedelta(hours=1)  # somebody sets the wall clock back
    assert stopwatch.elapsed() == timedelta(seconds=5)
    assert stopwatch.started_at == NOON


def test_the_system_clock_is_in_utc_and_never_goes_back() -> None:
    clock = SystemClock()
    assert clock.wall().utcoffset() == timedelta(0)
    before = clock.monotonic()
    clock.sleep(0)
    assert clock.monotonic() >= before


def test_waiting_ends_as_soon_as_the_condition_is_true() -> None:
    clock = FakeClock()
    assert wait_until(lambda: clock.ticks >= 3, timeout=10, clock=clock, interval=1)
    assert clock.ticks == 3


def test_waiting_ends_at_the_timeout_with_false() -> None:
    clock = FakeClock()
    assert not wait_until(lambda: False, timeout=10, clock=clock, interval=1)
    assert clock.ticks == 10


def test_a_condition_is_asked_once_even_without_time_to_wait() -> None:
    assert wait_until(lambda: True, timeout=0, clock=FakeClock())


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (16 << 20, "16.0 MiB"), (3 << 40, "3.0 TiB")]
)
def test_a_size_is_written_for_a_person(size: int, text: str) -> None:
    assert format_bytes(size) == text
