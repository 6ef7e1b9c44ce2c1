"""When a schedule of the plan was due last. Pure; cron's five fields in UTC."""

from datetime import UTC, datetime, time, timedelta

from dr_pipelines.plan.values import cron_values, parse_cron

__all__ = ["last_due"]

_FARTHEST = 5 * 366
"""Days: the 29th of February comes within eight years at worst, and no backup is planned for that alone."""


def last_due(cron: str, now: datetime) -> datetime | None:
    """The latest moment at or before `now` at which the schedule was due; None where that was years ago.

    Where both a day of the month and a day of the week are given, either will do, as in cron.
    """
    minutes, hours, days, months, weekdays = cron_values(parse_cron(cron))
    _, _, day_text, _, weekday_text = cron.split()
    moment = now.astimezone(UTC)
    for back in range(_FARTHEST):
        date = moment.date() - timedelta(days=back)
        on_day = date.day in days
        on_weekday = date.isoweekday() % 7 in {day % 7 for day in weekdays}
        either = day_text != "*" and weekday_text != "*"
        if date.month not in months or not ((on_day or on_weekday) if either else (on_day and on_weekday)):
            continue
        times = [time(hour, minute, tzinfo=UTC) for hour in hours for minute in minutes]
        due = [datetime.combine(date, at) for at in times if datetime.combine(date, at) <= moment]
        if due:
            return max(due)
    return None
