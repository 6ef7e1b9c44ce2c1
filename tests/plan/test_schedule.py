"""When a cron schedule was due last, and whether two ever are due together."""

from datetime import UTC, datetime

import pytest

from dr_pipelines.plan.schedule import last_due, meet

NOW = datetime(2026, 3, 4, 12, 30, tzinfo=UTC)  # a Wednesday


@pytest.mark.parametrize(
    ("cron", "due"),
    [
        ("0 3 * * *", datetime(2026, 3, 4, 3, tzinfo=UTC)),
        ("0 13 * * *", datetime(2026, 3, 3, 13, tzinfo=UTC)),
        ("30 12 * * *", NOW),
        ("*/20 * * * *", datetime(2026, 3, 4, 12, 20, tzinfo=UTC)),
        ("0 3 * * sun", datetime(2026, 3, 1, 3, tzinfo=UTC)),
        ("0 3 * * 7", datetime(2026, 3, 1, 3, tzinfo=UTC)),
        ("0 3 1 * *", datetime(2026, 3, 1, 3, tzinfo=UTC)),
        ("0 3 31 * *", datetime(2026, 1, 31, 3, tzinfo=UTC)),
        ("0 3 1 * tue", datetime(2026, 3, 3, 3, tzinfo=UTC)),
        ("0 3 29 2 *", datetime(2024, 2, 29, 3, tzinfo=UTC)),
        ("0 3 5 3 *", datetime(2025, 3, 5, 3, tzinfo=UTC)),
    ],
)
def test_the_last_time_is_found(cron: str, due: datetime) -> None:
    assert last_due(cron, NOW) == due


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("0 3 * * *", "0 3 * * *", True),
        ("0 3 * * *", "0 9,15,21 * * *", False),
        ("0 3 * * *", "30 3 * * *", False),
        ("0 3 * * 0", "0 3 * * 1-6", False),
        ("0 3 * * sun", "0 3 * * *", True),
        ("0 3 1 * *", "0 3 * * 1", True),
        ("0 3 1 * *", "0 3 2-31 * *", False),
        ("0 3 1 * tue", "0 3 * * tue", True),
        ("*/20 * * * *", "40 * * * *", True),
        ("0 3 29 2 *", "0 3 * * *", True),
    ],
)
def test_two_that_are_ever_due_together_meet(one: str, other: str, *, expected: bool) -> None:
    assert meet(one, other) is meet(other, one) is expected
