"""Clocks, stopwatches, and durations and sizes as people write them.

Wall clock (`Clock.wall`, UTC with zone) for moments that several processes share, monotonic clock
(`Clock.monotonic`, seconds) for what begins and ends within one process. A measured duration that is zero or negative
is refused: it means that a clock was set, or that nothing was measured.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Protocol

__all__ = [
    "Clock",
    "FakeClock",
    "Stopwatch",
    "SystemClock",
    "format_ago",
    "format_bytes",
    "format_duration",
    "format_moment",
    "measured_between",
    "parse_duration",
    "parse_moment",
    "wait_until",
]


class Clock(Protocol):
    """Where the time comes from; injected, so that tests decide what time it is."""

    def wall(self) -> datetime:
        """Now, in UTC, with zone."""
        ...

    def monotonic(self) -> float:
        """Seconds since some fixed moment; never goes back within one process."""
        ...

    def sleep(self, seconds: float) -> None:
        """Let `seconds` pass."""
        ...


class SystemClock:
    """This machine's clock."""

    def wall(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


@dataclass
class FakeClock:
    """A clock that moves only when it is told to; `sleep` moves it."""

    now: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    ticks: float = field(default=0.0)

    def wall(self) -> datetime:
        return self.now

    def monotonic(self) -> float:
        return self.ticks

    def sleep(self, seconds: float) -> None:
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Let both clocks go on by `seconds`."""
        self.now += timedelta(seconds=seconds)
        self.ticks += seconds


@dataclass
class Stopwatch:
    """Measures one stretch of time within one process."""

    clock: Clock
    started_at: datetime = field(init=False)
    _start: float = field(init=False)

    def __post_init__(self) -> None:
        self.started_at = self.clock.wall()
        self._start = self.clock.monotonic()

    def elapsed(self) -> timedelta:
        """The time since it was started."""
        return timedelta(seconds=self.clock.monotonic() - self._start)


def measured_between(start: datetime, end: datetime) -> timedelta:
    """The duration between two readings of the wall clock, perhaps by two processes.

    Raises ValueError where it is zero or negative, or where a zone is missing.
    """
    if start.tzinfo is None or end.tzinfo is None:
        raise ValueError("a moment without a time zone cannot be measured")
    duration = end - start
    if duration <= timedelta(0):
        raise ValueError(
            f"a measured duration of {duration.total_seconds()} s ({format_moment(start)} to {format_moment(end)}) "
            "is refused: a clock was set, or nothing was measured"
        )
    return duration


def wait_until(
    condition: Callable[[], object], *, timeout: float, clock: Clock | None = None, interval: float = 0.05
) -> bool:
    """Ask `condition()` again and again until it is true; False when `timeout` seconds have passed first."""
    the_clock = clock or SystemClock()
    deadline = the_clock.monotonic() + timeout
    while not condition():
        if the_clock.monotonic() >= deadline:
            return False
        the_clock.sleep(interval)
    return True


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_DURATION = re.compile(r"(?:[0-9]{1,9}[smhdw])+")


def parse_duration(text: str) -> timedelta:
    """Read a duration such as "15m", "1h", "1h30m", "1w" or "0s".

    Units are s, m, h, d, w, each at most once and from the largest to the smallest. Raises ValueError otherwise.
    """
    if not _DURATION.fullmatch(text):
        raise ValueError(f'"{text}" is not a duration; expected a number with a unit, such as "15m", "1h30m" or "1w"')
    pieces = re.findall(r"([0-9]+)([smhdw])", text)
    sizes = [_UNITS[unit] for _, unit in pieces]
    if sizes != sorted(set(sizes), reverse=True):
        raise ValueError(f'"{text}" is not a duration; expected each unit once, the largest first, such as "1h30m"')
    try:
        return timedelta(seconds=sum(int(number) * _UNITS[unit] for number, unit in pieces))
    except OverflowError:
        raise ValueError(f'"{text}" is longer than any duration can be') from None


def format_duration(duration: timedelta) -> str:
    """Write a duration for a person and so that `parse_duration` reads whole seconds back: "1h30m", "4.2s", "0s"."""
    seconds = duration.total_seconds()
    if seconds < 0:
        return f"-{format_duration(-duration)}"
    if seconds != int(seconds) and round(seconds, 1) < 60:
        return f"{seconds:.1f}s" if seconds >= 0.05 else f"{seconds * 1000:.0f}ms"
    rest = round(seconds)
    if rest % _UNITS["w"] == 0 and rest:
        return f"{rest // _UNITS['w']}w"
    pieces = []
    for unit in "dhms":
        number, rest = divmod(rest, _UNITS[unit])
        if number:
            pieces.append(f"{number}{unit}")
    return "".join(pieces) or "0s"


def format_ago(age: timedelta) -> str:
    """Write how long ago another clock's moment was: "5s ago", or "6m from now: the clocks are apart"."""
    if age > -timedelta(seconds=1):
        return f"{format_duration(max(age, timedelta(0)))} ago"
    return f"{format_duration(-age)} from now: the clocks are apart"


def parse_moment(text: str) -> datetime:
    """Read an ISO 8601 moment that has a zone, such as "2026-03-01T12:00:00Z"; the result is in UTC.

    Raises ValueError where it is something else or has no zone: recovery is no place to guess a zone.
    """
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(
            f'"{text}" is not a moment; expected ISO 8601 with zone, such as 2026-03-01T12:00:00Z'
        ) from None
    if moment.tzinfo is None:
        raise ValueError(f'"{text}" has no time zone; for UTC it ends in Z, such as 2026-03-01T12:00:00Z')
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError(f'"{text}" is outside the years 1 to 9999 in UTC') from None


def format_moment(moment: datetime) -> str:
    """Write a moment as ISO 8601 in UTC with microseconds, which sorts as text."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def format_bytes(size: int) -> str:
    """Write a size for a person: "0 B", "16.0 MiB"."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
