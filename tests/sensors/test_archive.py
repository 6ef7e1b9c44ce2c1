"""The sensor that watches what reaches the repository."""

import json
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest

from dr_pipelines.errors import ConfigurationError
from dr_pipelines.timing import wait_until
from tests.assets.conftest import Hotel, Machine, definitions, failure_of

pytestmark = pytest.mark.slow

BACKUP, ARCHIVE = "database_full_backup", "database_wal_archive"


def tick(machine: Machine, cursor: str | None) -> dg.SensorResult:
    sensor = definitions().get_repository_def().get_sensor_def("wal_archive_sensor")
    found = sensor(dg.build_sensor_context(instance=machine.instance, cursor=cursor, definitions=definitions()))
    assert isinstance(found, dg.SensorResult)
    return found


def of_kind(result: dg.SensorResult, kind: type[dg.AssetMaterialization] | type[dg.AssetObservation]) -> list[str]:
    return [event.asset_key.to_user_string() for event in events(result) if isinstance(event, kind)]


def events(result: dg.SensorResult) -> Sequence[dg.AssetMaterialization | dg.AssetObservation]:
    return [event for event in result.asset_events if isinstance(event, dg.AssetMaterialization | dg.AssetObservation)]


def observed(result: dg.SensorResult) -> dict[str, dg.MetadataValue]:
    (observation,) = [event for event in events(result) if isinstance(event, dg.AssetObservation)]
    return dict(observation.metadata)


def spooled(hotel: Hotel) -> list[Path]:
    return sorted(path for path in hotel.lab.spool.iterdir() if not path.name.startswith("."))


@pytest.fixture(scope="module")
def silent(hotel: Hotel) -> Hotel:
    """Backed up by a run, then some log; its agent is dead, so that nothing changes by itself."""
    result = hotel.machine.run("database_backup")
    assert result.success, failure_of(result)
    hotel.settle()
    leases = hotel.machine.leases
    for lease in leases.of(hotel.lab.owner, "agent"):
        leases.kill(lease)
    return hotel


def test_before_the_first_backup_it_observes_that_nothing_can_be_restored(machine: Machine, hotel: Hotel) -> None:
    result = tick(machine, None)
    assert of_kind(result, dg.AssetMaterialization) == []
    seen = observed(result)
    assert seen["verdict"].value == "unverified" and "no complete backup" in str(seen["problem"].value)
    assert "exposure_seconds" not in seen


def test_the_first_look_reports_the_archive_and_no_backup_that_a_run_has_reported(
    machine: Machine, silent: Hotel
) -> None:
    result = tick(machine, None)
    assert of_kind(result, dg.AssetMaterialization) == [ARCHIVE]
    (stored,) = [event for event in events(result) if isinstance(event, dg.AssetMaterialization)]
    seen = observed(result)
    assert stored.metadata["exposure_seconds"] == seen["exposure_seconds"], "the asset's page would not show it"
    assert isinstance(seen["exposure_seconds"].value, float)
    assert seen["rpo_objective_seconds"].value == 900


def test_nothing_new_is_observed_and_not_materialized(machine: Machine, silent: Hotel) -> None:
    first = tick(machine, None)
    second = tick(machine, first.cursor)
    assert of_kind(second, dg.AssetMaterialization) == []
    assert of_kind(second, dg.AssetObservation) == [ARCHIVE]
    assert second.cursor == first.cursor


def test_a_new_segment_is_materialized_once(machine: Machine, silent: Hotel) -> None:
    first = tick(machine, None)
    silent.do("CREATE TABLE IF NOT EXISTS more (n int)")
    silent.do("INSERT INTO more VALUES (1)")
    silent.do("SELECT pg_switch_wal()")
    assert wait_until(lambda: spooled(silent), timeout=30)
    # What the agent would do.
    for path in spooled(silent):
        silent.log.put(path.name, path.read_bytes())
        path.unlink()
    second = tick(machine, first.cursor)
    assert of_kind(second, dg.AssetMaterialization) == [ARCHIVE]
    third = tick(machine, second.cursor)
    assert of_kind(third, dg.AssetMaterialization) == []


def test_a_newly_proven_position_is_materialized(machine: Machine, silent: Hotel) -> None:
    first = tick(machine, None)
    position = silent.log.read_position()
    assert position is not None and position.recovery_point is not None
    later = position.recovery_point + timedelta(microseconds=1)
    silent.log.write_position(position.model_copy(update={"recovery_point": later}))
    assert of_kind(tick(machine, first.cursor), dg.AssetMaterialization) == [ARCHIVE]


def test_an_agent_that_is_silent_makes_the_exposure_unknown_since_then(machine: Machine, silent: Hotel) -> None:
    position = silent.log.read_position()
    assert position is not None
    heard = position.heartbeat_at - timedelta(minutes=2)
    silent.log.write_position(position.model_copy(update={"heartbeat_at": heard}))
    seen = observed(tick(machine, None))
    assert seen["unknown_since"].value == heard.timestamp()
    assert seen["verdict"].value == "unverified"
    assert "the agent has been silent" in str(seen["problem"].value)


def test_a_backup_made_outside_of_dagster_reaches_the_catalogue_once(machine: Machine, silent: Hotel) -> None:
    machine.instance.wipe_assets([dg.AssetKey(BACKUP)])
    first = tick(machine, None)
    assert of_kind(first, dg.AssetMaterialization) == [ARCHIVE, BACKUP]
    assert BACKUP not in of_kind(tick(machine, first.cursor), dg.AssetMaterialization)


def test_what_cannot_be_seen_at_the_moment_is_not_reported_again_when_it_is_back(
    machine: Machine, silent: Hotel
) -> None:
    first = tick(machine, None)
    manifests = [item.key for item in silent.store.list("backups") if item.key.endswith("manifest.json")]
    store, key = silent.store, manifests[0]
    content = store.get(key)
    store.delete(key)
    without = tick(machine, first.cursor)
    store.put(key, [content])
    assert of_kind(without, dg.AssetMaterialization) == []
    assert of_kind(tick(machine, without.cursor), dg.AssetMaterialization) == []


def test_a_position_that_is_damaged_is_observed_as_a_problem_and_fails_no_tick(machine: Machine, silent: Hotel) -> None:
    content = silent.store.get("position.json")
    silent.store.put("position.json", [b"{"])
    try:
        result = tick(machine, None)
    finally:
        silent.store.put("position.json", [content])
    seen = observed(result)
    assert seen["verdict"].value == "unverified" and "position.json" in str(seen["problem"].value)


def test_a_machine_without_a_repository_fails_its_ticks(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DR_REPOSITORY")
    with pytest.raises(ConfigurationError, match="DR_REPOSITORY is not set"):
        tick(machine, json.dumps({}))
