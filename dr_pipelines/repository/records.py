"""Records: the immutable accounts of executions, backups and restore tests, one sealed JSON document each."""

import builtins
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

from pydantic import BaseModel

from dr_pipelines.errors import ObjectConflict, RepositoryError
from dr_pipelines.repository.identifiers import kind_of, moment_of, timed_id
from dr_pipelines.repository.sealed import seal, unseal
from dr_pipelines.repository.store import Store

__all__ = ["Records", "new_record_id", "record_key"]

Record = Mapping[str, object]


def new_record_id(kind: str, moment: datetime) -> str:
    """An id such as 20260301T120000Z-drill-9f86d0; sorts by time."""
    return timed_id(kind, moment)


class Records:
    """The records of a repository, `records/<yyyy>/<mm>/<record_id>.json`. None is ever changed."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def put(self, record: Record | BaseModel) -> str:
        """Store a record, which has a member `record_id` of `new_record_id`'s form; returns its key.

        Doing it again is harmless. Raises ObjectConflict where another record has that id.
        """
        document = record.model_dump(mode="json") if isinstance(record, BaseModel) else record
        key = record_key(str(document.get("record_id")))
        data = seal(document)
        if not self._store.put_if_absent(key, [data]) and self._store.get(key) != data:
            raise ObjectConflict(f"there is another record {document['record_id']}; records are never changed")
        return key

    def get(self, record_id: str) -> dict[str, object]:
        """A record. Raises ObjectMissing, ObjectCorrupt."""
        return unseal(self._store.get(record_key(record_id)), what=f"the record {record_id}")

    def ids(self, *, since: datetime | None = None, kind: str | None = None) -> Iterator[str]:
        """The ids of records, newest first: those whose id has this `kind` and a moment at or after `since`."""
        since = since and since.astimezone(UTC).replace(microsecond=0)  # ids are in whole seconds, UTC
        for year in self._folders(""):
            for month in self._folders(year):
                if since is not None and f"{year}{month}" < f"{since:%Y/%m/}":
                    return
                for record_id in self._record_ids(year + month):
                    if since is not None and moment_of(record_id) < since:
                        return
                    if kind is None or kind_of(record_id) == kind:
                        yield record_id

    def list(
        self, *, since: datetime | None = None, service: str | None = None, kind: str | None = None
    ) -> Iterator[dict[str, object]]:
        """Records, newest first, filtered by their id's moment and kind and by their member `service`.

        Raises ObjectCorrupt at a damaged one; whoever wants to go on past it takes `ids` and `get`.
        """
        for record_id in self.ids(since=since, kind=kind):
            record = self.get(record_id)
            if service is None or record.get("service") == service:
                yield record

    def _folders(self, below: str) -> builtins.list[str]:
        names = self._store.names(f"records/{below}")
        return sorted((name for name in names if name.endswith("/") and name[:-1].isdigit()), reverse=True)

    def _record_ids(self, folder: str) -> Iterator[str]:
        for name in reversed(self._store.names(f"records/{folder}")):
            record_id = name.removesuffix(".json")
            try:
                moment_of(record_id)
            except ValueError:
                continue
            yield record_id


def record_key(record_id: str) -> str:
    """Where a record lies in the repository. Raises RepositoryError where this is no record's id."""
    try:
        return f"records/{moment_of(record_id):%Y/%m}/{record_id}.json"
    except ValueError as error:
        raise RepositoryError(f"this cannot be a record: {error}") from None
