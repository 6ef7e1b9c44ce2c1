"""Which backups of a service stay and which go. Pure.

The backups of all clusters that the service has had stand in one row by time: those of a cluster that was replaced go
as the new one's come to be as many, or as old, as are to be kept. A backup that is not good counts for nothing: it
neither takes a good one's place nor goes before it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from dr_pipelines.plan import Retention
from dr_pipelines.timing import format_duration

__all__ = ["Held", "Judged", "judge"]

FULL = "full"
_NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Held:
    """A backup that is there."""

    backup_id: str
    system_identifier: str
    kind: str
    ended_at: datetime | None
    """The first moment that it can be restored to; None where nothing says when it was made."""
    parent: str | None = None
    """The backup without which this one is worth nothing."""
    problem: str | None = None
    """Why it is not good, as far as that can be seen without reading it whole; None where it is."""
    used_by: tuple[str, ...] = ()
    """The restores that are reading it."""


@dataclass(frozen=True)
class Judged:
    """A backup, whether it stays, and why, in words."""

    backup: Held
    stays: bool
    why: str


def judge(held: Sequence[Held], retention: Retention, now: datetime) -> tuple[Judged, ...]:
    """What becomes of each backup, newest first. The newest good one always stays.

    `keep` keeps the newest so many good full backups with what depends on them, `keep_for` what it takes to restore to
    any moment of that span: everything younger, and the newest that is at least that old. What a backup depends on
    stays as long as it does, and so does what a restore is reading. One that is not good stays while a good one that is
    older does.
    """
    row = sorted(held, key=lambda each: (each.ended_at or _NEVER, each.backup_id), reverse=True)
    known = {each.backup_id: each for each in row}
    good = [each for each in row if _problem(each, known) is None and each.ended_at is not None]
    why = _kept(good, known, retention, now)
    for each in row:
        if each.used_by:
            why.setdefault(each.backup_id, f"is being read by {', '.join(each.used_by)}")
    _keep_ancestors(why, known)
    oldest = min((each.ended_at for each in good if each.backup_id in why and each.ended_at), default=None)
    return tuple(_judge(each, known, why, oldest, retention) for each in row)


def _kept(good: Sequence[Held], known: Mapping[str, Held], retention: Retention, now: datetime) -> dict[str, str]:
    """Of the good backups those that number or age keep, each with the reason."""
    why: dict[str, str] = {}
    if retention.keep is not None:
        fulls = [each.backup_id for each in good if each.kind == FULL][: retention.keep]
        for place, backup_id in enumerate(fulls, 1):
            why[backup_id] = f"full backup {place} of {retention.keep}"
        for each in good:
            root = _chain(each, known)[-1].backup_id
            if root in fulls:
                why.setdefault(each.backup_id, f"depends on {root}")
    if retention.keep_for is not None:
        span = format_duration(retention.keep_for)
        for each in good:
            assert each.ended_at is not None
            young = now - each.ended_at < retention.keep_for
            why.setdefault(each.backup_id, f"younger than {span}" if young else f"leads to {span} ago")
            if not young:
                break
    for newest in good[:1]:
        why.setdefault(newest.backup_id, "the newest")
    return why


def _keep_ancestors(why: dict[str, str], known: Mapping[str, Held]) -> None:
    for backup_id in list(why):
        for ancestor in _chain(known[backup_id], known)[1:]:
            why.setdefault(ancestor.backup_id, f"{backup_id} depends on it")


def _judge(
    each: Held, known: Mapping[str, Held], why: Mapping[str, str], oldest: datetime | None, retention: Retention
) -> Judged:
    problem = _problem(each, known)
    if each.backup_id in why:
        return Judged(each, True, why[each.backup_id] + (f"; not good: {problem}" if problem else ""))
    if problem is None and each.ended_at is not None:
        return Judged(each, False, f"not kept by {retention}")
    said = f"not good, so it counts for nothing: {problem or 'nothing says when it was made'}"
    if oldest is None or each.ended_at is None or each.ended_at >= oldest:
        return Judged(each, True, said)
    return Judged(each, False, f"{said}; older than every good one that stays")


def _chain(each: Held, known: Mapping[str, Held]) -> list[Held]:
    """The backup, what it depends on, what that depends on, as far as they are there."""
    chain = [each]
    while (parent := known.get(chain[-1].parent or "")) is not None and parent not in chain:
        chain.append(parent)
    return chain


def _problem(each: Held, known: Mapping[str, Held]) -> str | None:
    """What is wrong with the backup or with one that it depends on."""
    chain = _chain(each, known)
    for member in chain:
        if member.problem is not None:
            return member.problem if member is each else f"{member.backup_id}: {member.problem}"
    missing = chain[-1].parent
    return f"{missing}, which it depends on, is missing" if missing is not None else None
