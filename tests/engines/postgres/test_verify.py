"""Verify: a backup and its log read back, and each kind of damage named."""

from pathlib import Path

import pytest

from dr_pipelines.engines.postgres.log import Log
from dr_pipelines.engines.postgres.verify import Verification, verify
from dr_pipelines.engines.postgres.wal import Lsn
from dr_pipelines.repository.repository import Repository
from dr_pipelines.repository.store import Store
from tests import archived
from tests.archived import Source, flip
from tests.made_up import falter

pytestmark = pytest.mark.slow

PARTS, WHOLE, FILES = "parts_are_what_was_stored", "log_is_whole", "log_files_are_what_was_stored"
OWN = "log_is_this_backups"


@pytest.fixture(scope="module")
def kept(source: Source) -> Repository:
    """A backup and several segments after it."""
    source.back_up()
    for number in range(4):
        source.do(f"CREATE TABLE t{number} AS SELECT 1 AS n")
        source.ship()
    source.stop_agent()
    return source.repository


@pytest.fixture
def damaged(kept: Repository, tmp_path: Path) -> Repository:
    return archived.copy_of(kept, tmp_path / "damaged")


def verified(repository: Repository) -> Verification:
    return verify(store_of(repository), archived.newest(repository).manifest, workers=2, progress=lambda *_: None)


def store_of(repository: Repository) -> Store:
    manifest = archived.newest(repository).manifest
    return repository.service(archived.SERVICE).child(manifest.system_identifier)


def bad(found: Verification) -> dict[str, str]:
    return {check.name: check.detail for check in found.checks if not check.passed}


def log_key(repository: Repository, place: int) -> str:
    names = [name for name in archived.newest(repository).chain.files if "." not in name]
    return f"log/{names[place][:8]}/{names[place]}"


def test_a_sound_backup_passes_every_check(kept: Repository) -> None:
    found = verified(kept)
    assert [check.name for check in found.checks] == [PARTS, WHOLE, FILES, OWN]
    assert bad(found) == {}
    assert found.recovery_point == archived.newest(kept).recovery_point is not None


def test_everything_is_read(kept: Repository) -> None:
    covered = archived.newest(kept)
    seen: list[tuple[int, int]] = []
    found = verify(store_of(kept), covered.manifest, workers=2, progress=lambda *step: seen.append(step))
    assert seen[-1] == (covered.manifest.stored_bytes, covered.manifest.stored_bytes)
    assert found.bytes_read == covered.manifest.stored_bytes + len(covered.chain.files) * (1 << 20)


def test_what_is_not_answered_once_is_asked_for_again(kept: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    store, manifest = store_of(kept), archived.newest(kept).manifest
    refused = falter(monkeypatch, {"open": "^(backups|log)/", "list": "^log/$"})
    found = verify(store, manifest, workers=2, progress=lambda *_: None)
    assert bad(found) == {}
    assert refused >= {("open", part.key) for part in manifest.parts} | {("list", "log/")}


def test_a_flipped_bit_in_a_part_is_named(damaged: Repository) -> None:
    key = archived.newest(damaged).manifest.parts[2].key
    flip(store_of(damaged), key)
    assert key in bad(verified(damaged))[PARTS]


def test_a_missing_part_is_named(damaged: Repository) -> None:
    key = archived.newest(damaged).manifest.parts[2].key
    store_of(damaged).delete(key)
    assert key in bad(verified(damaged))[PARTS]


def test_many_bad_parts_are_counted_and_the_first_named(damaged: Repository) -> None:
    parts = archived.newest(damaged).manifest.parts
    for part in parts:
        store_of(damaged).delete(part.key)
    detail = bad(verified(damaged))[PARTS]
    assert parts[0].key in detail
    assert detail.endswith(f"; and {len(parts) - 5} more")


def test_a_flipped_bit_in_a_segment_is_named(damaged: Repository) -> None:
    key = log_key(damaged, -1)
    flip(store_of(damaged), key)
    assert list(bad(verified(damaged))) == [FILES]
    assert key in bad(verified(damaged))[FILES]


def test_another_segment_in_its_place_is_named(damaged: Repository) -> None:
    store = store_of(damaged)
    store.put(log_key(damaged, -1), [store.get(log_key(damaged, -2))])
    assert log_key(damaged, -1).rpartition("/")[2] in bad(verified(damaged))[FILES]


def test_a_hole_names_the_missing_segment_and_the_time_that_is_lost(damaged: Repository) -> None:
    key = log_key(damaged, -2)
    point = archived.newest(damaged).recovery_point
    store_of(damaged).delete(key)
    found = verified(damaged)
    assert list(bad(found)) == [WHOLE]
    assert f"{key.rpartition('/')[2]} missing" in bad(found)[WHOLE]
    assert f"to {point:%Y-%m-%dT%H:%M:%S.%fZ} is lost" in bad(found)[WHOLE]
    assert found.recovery_point is not None and point is not None and found.recovery_point < point


def test_a_log_that_does_not_reach_the_end_of_the_backup_fails(damaged: Repository) -> None:
    covered = archived.newest(damaged)
    store = store_of(damaged)
    for segment in Log(store).segments():
        store.delete(f"log/{segment.name[:8]}/{segment.name}")
    found = verify(store, covered.manifest, workers=2, progress=lambda *_: None)
    assert "cannot be restored" in bad(found)[WHOLE]
    assert found.recovery_point is None


def test_a_log_that_another_server_of_the_same_identifier_wrote_is_not_the_backups(damaged: Repository) -> None:
    details = archived.newest(damaged).manifest.details
    name, stop = str(details["stop_segment"]), Lsn.parse(str(details["stop_lsn"])).value % (1 << 20)
    log = Log(store_of(damaged))
    raw = log.fetch(name)
    log.store.delete(f"log/{name[:8]}/{name}")
    log.put(name, raw[: stop - 40] + bytes(40) + raw[stop:])
    assert list(bad(verified(damaged))) == [OWN]
