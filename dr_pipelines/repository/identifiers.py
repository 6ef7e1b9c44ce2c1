"""Names for things in the repository: such that sort by time, and such that people gave."""

import hashlib
import re
import secrets
from datetime import UTC, datetime

from dr_pipelines.errors import RepositoryError

__all__ = ["check_name", "is_name", "kind_of", "moment_of", "timed_id"]

_TIMED = re.compile(r"(\d{8}T\d{6}Z)-([a-z][a-z0-9_-]{0,39})-[0-9a-f]{6}", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)
_STAMP = "%Y%m%dT%H%M%SZ"


def timed_id(kind: str, moment: datetime, *, source: str | None = None) -> str:
    """A new id such as 20260301T120000Z-full-9f86d0: sorts by time, tells its kind, is unique.

    With a `source`, itself unique, the same arguments give the same id.
    """
    tail = secrets.token_hex(3) if source is None else hashlib.sha256(source.encode()).hexdigest()[:6]
    identifier = f"{moment.astimezone(UTC):{_STAMP}}-{kind}-{tail}"
    moment_of(identifier)
    return identifier


def moment_of(identifier: str) -> datetime:
    """The moment, in whole seconds, that `timed_id` put into the id. Raises ValueError where it is no such id."""
    return datetime.strptime(_match(identifier)[1], _STAMP).replace(tzinfo=UTC)


def kind_of(identifier: str) -> str:
    """The kind that `timed_id` put into the id. Raises ValueError where it is no such id."""
    return _match(identifier)[2]


def _match(identifier: str) -> re.Match[str]:
    match = _TIMED.fullmatch(identifier)
    if match is None:
        raise ValueError(f'"{identifier}" is not an id such as 20260301T120000Z-full-9f86d0')
    return match


def is_name(name: str) -> bool:
    """Whether this can be the name of a service, a sandbox, a lock, a backup."""
    return _NAME.fullmatch(name) is not None


def check_name(name: str, what: str) -> str:
    """Return the name of a service, a sandbox, a lock; raises RepositoryError where it could mean anything else."""
    if not is_name(name):
        raise RepositoryError(
            f"{name!r} cannot be the name of a {what}",
            hint="letters, digits, '.', '_' and '-', the first a letter or digit, 100 at most",
        )
    return name
