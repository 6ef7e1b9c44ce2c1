"""Where records lie, and in which order they are listed."""

from pathlib import Path

import pytest

from dr_pipelines.errors import ObjectConflict, RepositoryError
from dr_pipelines.repository.folder import FolderStore
from dr_pipelines.repository.records import Records, record_key

DRILL = "20260301T120000Z-drill-9f86d0"


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(FolderStore(tmp_path))


def test_a_record_lies_below_its_month(records: Records) -> None:
    assert records.put({"record_id": DRILL}) == f"records/2026/03/{DRILL}.json" == record_key(DRILL)
    assert records.get(DRILL) == {"record_id": DRILL}


def test_records_are_listed_newest_first(records: Records) -> None:
    others = ["20260301T120001Z-restore-9f86d0", "20260228T235959Z-full-9f86d0"]
    for record_id in (DRILL, *others):
        records.put({"record_id": record_id})

    assert list(records.ids()) == [others[0], DRILL, others[1]]
    assert list(records.ids(kind="drill")) == [DRILL]


def test_a_record_is_never_changed(records: Records) -> None:
    records.put({"record_id": DRILL, "verdict": "missed"})
    records.put({"record_id": DRILL, "verdict": "missed"})

    with pytest.raises(ObjectConflict):
        records.put({"record_id": DRILL, "verdict": "met"})


@pytest.mark.parametrize("record_id", ["", "None", f"{DRILL}.1", f"../{DRILL}", f"{DRILL}/x"])
def test_what_is_no_record_id_is_refused(records: Records, record_id: str) -> None:
    with pytest.raises(RepositoryError, match="cannot be a record"):
        records.put({"record_id": record_id})
