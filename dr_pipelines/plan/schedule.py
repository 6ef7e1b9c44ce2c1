"""When schedules of the plan are due. Pure; cron's five fields in UTC."""

from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta

from dr_pipelines.plan.values import cron_values, parse_cron

__all__ = ["last_due", "meet"]

_FARTHEST = 5 * 366
"""Days: the 29th of February comes within eight years at worst, and no backup is planned for that alone."""
_ANY_DAY = date(2024, 1, 1)


def last_due(cron: str, now: datetime) -> datetime | None:
    """The latest moment at or before `now` at which the schedule was due; None where that was years ago."""
    minutes, hours, *_ = cron_values(parse_cron(cron))
    is_due_on, moment = _days(cron), now.astimezone(UTC)
    for back in range(_FARTHEST):
        day = moment.date() - timedelta(days=back)
        if not is_due_on(day):
            continue
        times = [time(hour, minute, tzinfo=UTC) for hour in hours for minute in minutes]
        due = [datetime.combine(day, at) for at in times if datetime.combine(day, at) <= moment]
        if due:
            return max(due)
    return None


def meet(one: str, other: str) -> bool:
    """Whether two schedules are ever due at the same minute."""
    fields = zip(cron_values(parse_cron(one))[:2], cron_values(parse_cron(other))[:2], strict=True)
    if not all(mine & theirs for mine, theirs in fields):
        return False
    first, second = _days(one), _days(other)
    days = (_ANY_DAY + timedelta(days=number) for number in range(_FARTHEST))
    return any(first(day) and second(day) for day in days)


def _days(cron: str) -> Callable[[date], bool]:
    """Whether the schedule is due on a day.

    Where both a day of the month and a day of the week are given, either will do, as in cron.
    """
    _, _, days, months, weekdays = cron_values(parse_cron(cron))
    _, _, day_text, _, weekday_text = cron.split()
    of_week = {day % 7 for day in weekdays}
    either = day_text != "*" and weekday_text != "*"

    def is_due_on(day: date) -> bool:
        on_day, on_weekday = day.day in days, day.isoweekday() % 7 in of_week
        return day.month in months and ((on_day or on_weekday) if either else (on_day and on_weekday))

    return is_due_on
