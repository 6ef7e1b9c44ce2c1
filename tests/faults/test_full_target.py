"""The target's disk is full, or turns read-only, in the middle of a restore: it fails with what to do, and goes on."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from dr_pipelines.engines.postgres import target as targets
from dr_pipelines.errors import RestoreError, TargetRefused
from dr_pipelines.processes.leases import Leases
from tests import archived
from tests.archived import Restore, Source
from tests.faults.disks import MIB, Disk, breakable, disk, needs_loop, needs_root

pytestmark = [pytest.mark.slow, needs_root]

LARGE = 400 * MIB
ROWS = "SELECT count(*) || ' of ' || max(n) FROM counted"


@pytest.fixture(scope="module", autouse=True)
def kept(source: Source) -> None:
    """A backup and a log after it that takes room to replay."""
    source.do("CREATE TABLE counted (n int PRIMARY KEY, text text)")
    source.back_up()
    for first in range(1, 60_000, 5000):
        source.do(
            f"INSERT INTO counted SELECT n, repeat(md5(n::text), 10) FROM generate_series({first}, {first + 4999}) n"
        )
    source.ship()
    source.stop_agent()


@pytest.fixture
def small() -> Iterator[Disk]:
    with archived.open_to_all() as folder, disk(folder / "disk", LARGE) as made:
        yield made


@pytest.fixture
def restore(source: Source, small: Disk) -> Iterator[Restore]:
    with archived.restore(source.settings, source.repository, target=small.folder / "data") as restore:
        yield restore


@contextmanager
def full(small: Disk, free: int) -> Iterator[None]:
    small.leave_free(free)
    try:
        yield
    finally:
        small.resize(LARGE)


@contextmanager
def read_only(small: Disk) -> Iterator[None]:
    # No mount can be asked to turn read-only while the lock in it is open, though a disk's error makes it so.
    targets.let_go(small.folder / "data")
    with small.read_only():
        yield


def nothing_runs(restore: Restore) -> bool:
    leases = Leases(restore.around.settings.state_dir)
    return not any(leases.alive(lease) for lease in leases.of(restore.execution.id))


def comes_back(restore: Restore) -> None:
    restore.run()
    assert restore.ask(ROWS) == "60000 of 60000"
    assert archived.failed(restore.validate()) == []


FAULTS: dict[str, tuple[Callable[[Disk], AbstractContextManager[None]], str, str]] = {
    "full": (lambda small: full(small, 4 * MIB), "No space left on device", "make room"),
    "read-only": (read_only, "Read-only file system", "make it writable"),
}


@pytest.mark.parametrize(("fault", "said", "hint"), FAULTS.values(), ids=FAULTS)
def test_among_the_parts(
    restore: Restore,
    small: Disk,
    fault: Callable[[Disk], AbstractContextManager[None]],
    said: str,
    hint: str,
) -> None:
    restore.prepare()
    with fault(small):
        with pytest.raises(RestoreError, match=said) as caught:
            restore.fetch()
        assert caught.value.exit_code == 1
        assert hint in caught.value.hint
        assert "resume" in caught.value.hint
    comes_back(restore)


@pytest.mark.parametrize(("fault", "said", "hint"), FAULTS.values(), ids=FAULTS)
def test_while_the_log_is_replayed(
    restore: Restore,
    small: Disk,
    fault: Callable[[Disk], AbstractContextManager[None]],
    said: str,
    hint: str,
) -> None:
    restore.prepare()
    restore.fetch()
    with fault(small):
        with pytest.raises(RestoreError, match=said):
            restore.apply()
        assert nothing_runs(restore)
    comes_back(restore)


@needs_loop
def test_a_disk_that_fails_among_the_parts_is_mended_and_the_restore_goes_on(source: Source) -> None:
    """What it had not yet brought to disk is lost, though the restore had noted it."""
    with (
        archived.open_to_all() as folder,
        breakable(folder / "disk", LARGE) as broken,
        archived.restore(source.settings, source.repository, target=broken.folder / "data") as restore,
    ):
        usual, noted = restore.around, list[int]()

        def fail_in_the_middle(what: str, done: int, total: int) -> None:
            noted.append(done)
            if len(noted) == 20:
                broken.fail()

        restore.prepare()
        restore.around = replace(usual, progress=fail_in_the_middle)
        with pytest.raises(RestoreError, match="Read-only file system"):
            restore.fetch()
        targets.let_go(broken.folder / "data")
        broken.mend()
        restore.around = usual
        comes_back(restore)


def test_before_anything_is_done(restore: Restore, small: Disk) -> None:
    with small.read_only(), pytest.raises(TargetRefused, match="nothing can be written into"):
        restore.prepare()
    with full(small, 100 * MIB), pytest.raises(TargetRefused, match="needs at least"):
        restore.prepare()
    assert list(Path(small.folder).iterdir()) == []
    comes_back(restore)
