"""A check and its outcome: what engines, runbooks and drills state about a backup, a server or its rows."""

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Check", "worst"]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    `name` is a stable identifier; `passed` is None where it could not be checked, which never counts as passed;
    `detail` says in one line what was seen, and on a failure exactly where.
    """

    name: str
    passed: bool | None
    detail: str


def worst(checks: Iterable[Check]) -> bool | None:
    """False where any check failed, else None where any could not be made or there are none, else True."""
    outcomes = {check.passed for check in checks}
    if False in outcomes:
        return False
    return None if None in outcomes or not outcomes else True
