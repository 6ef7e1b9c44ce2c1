"""Records of executions as they are read back from the repository."""

from collections.abc import Callable, Mapping
from typing import get_args

from pydantic import ValidationError

from dr_pipelines.errors import FormatTooNew, ObjectCorrupt, ObjectMissing
from dr_pipelines.repository.repository import Repository
from dr_pipelines.runbooks.record import RECORD_VERSION, Record

__all__ = ["read_record", "read_records"]

_KINDS = get_args(Record.model_fields["kind"].annotation)


def read_record(document: Mapping[str, object]) -> Record:
    """A record from what is stored of it; members that this version does not know are left out.

    Raises FormatTooNew where a newer version wrote it, ObjectCorrupt where it is no record of an execution.
    """
    what = f"the record {document.get('record_id', 'without an id')}"
    version = document.get("record_version")
    if type(version) is not int or version < 1:
        raise ObjectCorrupt(f"{what} lacks its record_version")
    if version > RECORD_VERSION:
        raise FormatTooNew(
            f"{what} has record version {version}, this version reads up to {RECORD_VERSION}",
            hint="use the version of dr_pipelines that wrote it, or a newer one",
        )
    try:
        return Record.model_validate(dict(document))
    except ValidationError as error:
        first = error.errors()[0]
        raise ObjectCorrupt(
            f"{what} is not a record of an execution: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        ) from None


def read_records(repository: Repository, unreadable: Callable[[str], None] | None = None) -> list[Record]:
    """Every execution's records, newest first.

    A record that cannot be read (damaged, newer) raises, as `read_record` and `Records.get` do; with `unreadable`
    each such is told of in one line and left out, so that one damaged record does not hide all others.
    """
    records = []
    for record_id in repository.records.ids():
        try:
            document = repository.records.get(record_id)
            if document.get("record_version") == RECORD_VERSION and document.get("kind") not in _KINDS:
                continue
            records.append(read_record(document))
        except (ObjectCorrupt, ObjectMissing, FormatTooNew) as error:
            if unreadable is None:
                raise
            unreadable(f"the record {record_id} is left out: {error}")
    return records
