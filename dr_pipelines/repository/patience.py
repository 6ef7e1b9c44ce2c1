"""Asking again where the repository did not answer, for what may be repeated from its beginning: reads, and puts."""

from collections.abc import Callable
from typing import TypeVar

from dr_pipelines.errors import RepositoryUnreachable
from dr_pipelines.timing import Clock, SystemClock

__all__ = ["PAUSES", "patiently"]

PAUSES = (0.5, 1.0, 2.0, 4.0)
"""Seconds before each further attempt, after those that the client made by itself."""

T = TypeVar("T")


def patiently(ask: Callable[[], T], clock: Clock | None = None) -> T:
    """What `ask` returns. Called again after each of `PAUSES` where the repository did not answer, or stopped in the
    middle of an object; any other error, and the last, is the caller's."""
    the_clock = clock or SystemClock()
    for pause in PAUSES:
        try:
            return ask()
        except RepositoryUnreachable:
            the_clock.sleep(pause)
    return ask()
