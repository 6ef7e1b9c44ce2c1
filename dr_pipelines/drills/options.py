"""How a drill is set up, from what somebody filled in."""

import secrets
from typing import get_args

from dr_pipelines.drills.database import DrillOptions
from dr_pipelines.errors import UsageError
from dr_pipelines.lab.database import LogWay
from dr_pipelines.plan import Plan
from dr_pipelines.timing import parse_duration

__all__ = ["read_options"]

_SIZE = (1_000_000, 1_000_000_000_000)
_WRITERS = (1, 32)
_RATE = (0.1, 10_000.0)
_ARCHIVE_TIMEOUT = (1, 3600)


def read_options(
    *,
    service: str,
    size_bytes: int,
    writers: int,
    rate: float,
    archive_timeout: str,
    log: str,
    seed: int | None,
    major: int | None,
    reason: str,
    requested_by: str,
    keep: bool,
    cutover: bool,
    approve_by_hand: bool,
    plan: Plan | None,
) -> DrillOptions:
    """What was filled in, checked before anything is made; without a seed one is drawn.

    Raises UsageError that names what cannot be accepted.
    """
    if plan is not None:
        plan.require_database(service)
    try:
        timeout = parse_duration(archive_timeout)
    except ValueError as error:
        raise UsageError(f"archive_timeout: {error}") from None
    if approve_by_hand and not cutover:
        raise UsageError("approve_by_hand: without a cutover there is nothing to approve")
    _within("size_bytes", size_bytes, _SIZE)
    _within("writers", writers, _WRITERS)
    _within("rate", rate, _RATE)
    _within("archive_timeout in seconds", timeout.total_seconds(), _ARCHIVE_TIMEOUT)
    return DrillOptions(
        service=service,
        size_bytes=size_bytes,
        writers=writers,
        rate=rate,
        archive_timeout=timeout,
        log=_way(log),
        seed=seed if seed is not None else secrets.randbelow(1_000_000),
        major=major,
        reason=reason.strip() or "drill",
        requested_by=requested_by,
        keep=keep,
        cutover=cutover,
        approve_by_hand=approve_by_hand,
    )


def _way(log: str) -> LogWay:
    for way in get_args(LogWay):
        if log == way:
            return way  # type: ignore[no-any-return]
    raise UsageError(f'log: "{log}" is none of {", ".join(get_args(LogWay))}')


def _within(name: str, value: float, bounds: tuple[float, float]) -> None:
    low, high = bounds
    if not low <= value <= high:
        raise UsageError(f"{name}: {value:g} is not within {low:g} to {high:g}")
