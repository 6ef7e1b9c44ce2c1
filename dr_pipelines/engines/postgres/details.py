"""What a manifest says of a PostgreSQL cluster: the member `details`, checked before anything is done with it."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace

from dr_pipelines.engines.postgres.wal import Lsn, is_segment_size
from dr_pipelines.errors import ObjectCorrupt, RepositoryError
from dr_pipelines.repository.manifest import BackupSurvey, Manifest, survey_backups
from dr_pipelines.repository.store import Store

__all__ = ["check_details", "look_at_backups"]

_LONGEST_NAME = 63
_MAX_SIZE = 1 << 50


def check_details(manifest: Manifest) -> Manifest:
    """The manifest, where its details are such as a restore can work with. Raises ObjectCorrupt that names the member.

    Whatever wrote them may have been no version of this project.
    """
    details = manifest.details
    for name, is_right in _MEMBERS.items():
        if not (value := details.get(name)) or not is_right(value):
            raise ObjectCorrupt(
                f"the manifest of backup {manifest.backup_id} cannot be accepted: details.{name}: {value!r}"[:300]
            )
    kept = details.get("max_wal_size", 0)
    if type(kept) is not int or not 0 <= kept <= _MAX_SIZE:
        raise ObjectCorrupt(f"the manifest of backup {manifest.backup_id} cannot be accepted: details.max_wal_size")
    if not _ends_after_its_start(details):
        raise ObjectCorrupt(f"the manifest of backup {manifest.backup_id} cannot be accepted: it ends before it starts")
    return manifest


def look_at_backups(store: Store) -> BackupSurvey:
    """As `survey_backups`; a backup whose details cannot be worked with is among the damaged."""
    survey = survey_backups(store)
    usable: list[Manifest] = []
    damaged: list[tuple[str, RepositoryError]] = []
    for manifest in survey.complete:
        try:
            usable.append(check_details(manifest))
        except ObjectCorrupt as error:
            damaged.append((manifest.backup_id, error))
    return replace(survey, complete=tuple(usable), damaged=(*survey.damaged, *damaged))


def _is_position(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}", value) is not None


def _is_number(most: int) -> Callable[[object], bool]:
    return lambda value: type(value) is int and 0 < value <= most


def _is_user(value: object) -> bool:
    return isinstance(value, str) and "\0" not in value and len(value.encode(errors="replace")) <= _LONGEST_NAME


_MEMBERS: Mapping[str, Callable[[object], bool]] = {
    "start_lsn": _is_position,
    "stop_lsn": _is_position,
    "timeline": _is_number(0xFFFFFFFF),
    "wal_segment_size": lambda value: type(value) is int and is_segment_size(value),
    "major": _is_number(999),
    "superuser": _is_user,
}


def _ends_after_its_start(details: Mapping[str, str | int]) -> bool:
    return Lsn.parse(str(details["start_lsn"])) < Lsn.parse(str(details["stop_lsn"]))
