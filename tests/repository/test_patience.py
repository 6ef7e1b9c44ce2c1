"""Reads are asked for again where the repository did not answer, and only then."""

from collections.abc import Callable

import pytest

from dr_pipelines.errors import ObjectCorrupt, RepositoryUnreachable
from dr_pipelines.repository.patience import PAUSES, patiently
from dr_pipelines.timing import FakeClock


def failing(times: int, error: Exception) -> tuple[list[int], Callable[[], str]]:
    calls: list[int] = []

    def read() -> str:
        calls.append(len(calls))
        if len(calls) <= times:
            raise error
        return "read"

    return calls, read


def test_a_read_that_gets_no_answer_is_asked_for_again() -> None:
    clock = FakeClock()
    calls, read = failing(2, RepositoryUnreachable("away"))
    assert patiently(read, clock) == "read"
    assert len(calls) == 3
    assert clock.monotonic() == sum(PAUSES[:2])


def test_the_last_error_is_the_callers() -> None:
    calls, read = failing(99, RepositoryUnreachable("away"))
    with pytest.raises(RepositoryUnreachable):
        patiently(read, FakeClock())
    assert len(calls) == len(PAUSES) + 1


def test_an_answer_that_is_wrong_is_not_asked_for_again() -> None:
    calls, read = failing(1, ObjectCorrupt("damaged"))
    with pytest.raises(ObjectCorrupt):
        patiently(read, FakeClock())
    assert len(calls) == 1
