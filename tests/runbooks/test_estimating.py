"""What an estimate rests on, looked up in a repository; where that cannot be read, less is known and nothing fails."""

import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from dr_pipelines.repository.folder import FolderStore
from dr_pipelines.repository.manifest import read_manifest
from dr_pipelines.repository.records import Records, record_key
from dr_pipelines.runbooks.estimate import Basis, RestoreEstimate
from dr_pipelines.runbooks.estimating import countdown, estimate_from, probe_backup, read_past
from dr_pipelines.timing import FakeClock
from tests.reports.conftest import make_document, make_step
from tests.repository.golden_objects import FULL, put_backup

HERE = socket.gethostname()


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "repository")


class Ticking(FakeClock):
    """Each look at it takes its time."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def monotonic(self) -> float:
        self.advance(self.seconds)
        return super().monotonic()


def put(store: FolderStore, day: float = 0, **members: Any) -> dict[str, Any]:
    document = make_document(day, **members)
    document["environment"] = {**document["environment"], "host": HERE}
    Records(store).put(document)
    return document


def estimate(store: FolderStore, **more: Any) -> RestoreEstimate:
    system = store.child("services/database/7301")
    sizes = {"chained": False, "raw_bytes": 91_234_567, "log_bytes": 117_440_512}
    return estimate_from(Records(store), "database", system, FULL, **sizes | more, clock=Ticking(0.01))


def test_records_of_the_service_are_taken_newest_first(store: FolderStore) -> None:
    newer, older = put(store, 2), put(store, 1)
    put(store, 3, service="another")
    found = [each for each in read_past(Records(store), "database", chained=False) if each.step == "apply_wal"]
    assert [each.record_id for each in found] == [newer["record_id"], older["record_id"]]
    assert (found[0].bytes, found[0].seconds, found[0].here) == (117_440_512, 4.2, True)


def test_a_chain_of_backups_is_measured_for_itself(store: FolderStore) -> None:
    document = make_document()
    chained = put(store, 1, backup={**document["backup"], "based_on": ["20260301T110000Z-full-000001"]})
    whole = put(store, 2)
    for wanted, record in ((True, chained), (False, whole)):
        found = read_past(Records(store), "database", chained=wanted)
        assert {each.record_id for each in found} == {record["record_id"]}


def test_a_step_that_took_two_attempts_or_failed_measures_nothing(store: FolderStore) -> None:
    steps = [
        make_step("prepare", 1, 0.3, None, 0),
        make_step("restore_latest_backup", 2, None, None, 0),
        make_step("restore_latest_backup", 9, 3.0, None, 0, attempt=2),
        make_step("apply_wal", 12, 3.0, None, 0, outcome="failed"),
    ]
    put(store, steps=steps)
    assert [each.step for each in read_past(Records(store), "database", chained=False)] == ["prepare"]


def test_records_that_cannot_be_read_or_are_of_another_kind_are_passed_over(store: FolderStore) -> None:
    good, damaged = put(store, 1), put(store, 2)
    store.put(record_key(damaged["record_id"]), [b"{}"])
    Records(store).put({"record_id": "20260304T120000Z-backup-000001", "service": "database"})
    found = list(read_past(Records(store), "database", chained=False))
    assert {each.record_id for each in found} == {good["record_id"]}


def test_with_a_record_nothing_is_probed(store: FolderStore) -> None:
    put(store)
    made = estimate(store)  # there is no backup that could be
    assert {step.basis for step in made.steps} == {Basis.MEASURED}
    assert made.seconds == pytest.approx(0.9 + 6.1 + 4.2 + 7.5, rel=0.2)


def test_without_one_a_part_is_fetched_and_unpacked(store: FolderStore) -> None:
    system = store.child("services/database/7301")
    put_backup(system, FULL, {"base/1": bytes(1000), "base/2": b"x"})
    raw = max(part.raw_size for part in read_manifest(system, FULL).parts)
    probed = probe_backup(system, FULL, Ticking(0.01))
    assert probed is not None and probed.bytes == raw and probed.seconds > 0
    basis = {step.step: step.basis for step in estimate(store).steps}
    assert basis["restore_latest_backup"] is Basis.PROBED and basis["apply_wal"] is Basis.ASSUMED


def test_a_probe_ends_after_a_second(store: FolderStore) -> None:
    put_backup(store, FULL, {"base/1": bytes(100), "base/2": bytes(9 << 20)})
    probed = probe_backup(store, FULL, Ticking(0.6))
    assert probed is not None and probed.bytes == 1 << 20


@pytest.mark.parametrize("damage", ["part", "manifest", "all"])
def test_a_probe_that_fails_leaves_an_assumption(store: FolderStore, damage: str) -> None:
    system = store.child("services/database/7301")
    put_backup(system, FULL, {"base/1": bytes(100), "base/2": b"x"})
    for item in list(system.list("backups")):
        if damage == "all":
            system.delete(item.key)
        elif damage in item.key:
            system.put(item.key, [b"{}\n" + bytes(100)])
    (step,) = (each for each in estimate(store).steps if each.step == "restore_latest_backup")
    assert step.basis is Basis.ASSUMED


def test_the_remaining_time_is_told_now_and_then_and_not_of_short_steps(store: FolderStore) -> None:
    put(store)
    clock, told = FakeClock(), list[str]()
    left = countdown(estimate(store), "restore_latest_backup", "restoring the backup", clock, told.append)
    for done in range(101):
        left(done, 100)
        clock.advance(1)
    assert [line.partition(": ")[2] for line in told] == [
        f"{percent} % of restoring the backup" for percent in (10, 40, 70, 100)
    ]
    assert all(line.startswith("about ") and "left, by an estimate" in line for line in told)
    quick = countdown(estimate(store), "apply_wal", "applying WAL", clock, told.append)
    quick(1, 2)
    countdown(None, "apply_wal", "applying WAL", clock, told.append)(1, 2)
    clock.advance(timedelta(hours=1).total_seconds())
    assert len(told) == 4
