"""Asking again where the repository did not answer, for reads that may be repeated from their beginning."""

from collections.abc import Callable
from typing import TypeVar

from dr_pipelines.errors import RepositoryUnreachable
from dr_pipelines.timing import Clock, SystemClock

__all__ = ["PAUSES", "patiently"]

PAUSES = (0.5, 1.0, 2.0, 4.0)
"""Seconds before each further attempt, after those that the client made by itself."""

T = TypeVar("T")


def patiently(read: Callable[[], T], clock: Clock | None = None) -> T:
    """What `read` returns. Called again after each of `PAUSES` where the repository did not answer, or stopped in the
    middle of an object; any other error, and the last, is the caller's."""
    the_clock = clock or SystemClock()
    for pause in PAUSES:
        try:
            return read()
        except RepositoryUnreachable:
            the_clock.sleep(pause)
    return read()
