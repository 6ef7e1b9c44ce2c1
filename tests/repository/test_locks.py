"""Locks: one holder at a time, whoever is killed, stopped, slow or on another host."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dr_pipelines.errors import Locked
from dr_pipelines.repository.folder import FolderStore
from dr_pipelines.repository.locks import LockHolder, hold
from dr_pipelines.repository.repository import open_repository
from dr_pipelines.repository.sealed import seal, unseal
from dr_pipelines.repository.store import Chunk, Store
from dr_pipelines.settings import Settings
from dr_pipelines.timing import FakeClock, SystemClock, wait_until

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def take(store: Store, clock: FakeClock | None = None) -> None:
    """Take the lock and give it back."""
    with hold(store, "backup", purpose="a test", clock=clock or SystemClock()):
        pass


def is_free(store: Store) -> bool:
    try:
        take(store)
    except Locked:
        return False
    return True


def stored(store: Store) -> LockHolder:
    """What the highest generation says."""
    (name,) = store.names("locks/backup")
    return LockHolder.model_validate(unseal(store.get(f"locks/backup/{name}"), what="it"))


def test_a_lock_that_is_held_is_refused_and_its_holder_named(store: Store) -> None:
    clock = FakeClock(NOON)
    with hold(store, "backup", purpose="full backup of database", clock=clock) as lock:
        assert lock.holds()
        lock.confirm()
        with pytest.raises(Locked) as caught, hold(store, "backup", purpose="another", clock=clock):
            pass
        for word in ("full backup of database", str(os.getpid()), "2026-03-01T12:00:00", "backup"):
            assert word in caught.value.message
        assert caught.value.retryable
        assert lock.holds()


def test_a_lock_given_back_is_free_at_once_also_after_an_error(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), hold(store, "backup", purpose="a test", clock=FakeClock(NOON)):
        raise ZeroDivisionError
    take(store, FakeClock(NOON))
    assert stored(store).released


def test_generations_before_the_last_are_removed(store: Store) -> None:
    for _ in range(5):
        take(store)
    assert store.names("locks/backup") == ["00000005.json"]


def test_locks_of_other_names_and_other_stores_are_others(store: Store) -> None:
    clock = SystemClock()
    with ExitStack() as stack:
        for home in (store, store.child("services/a"), store.child("services/b")):
            for name in ("backup", "retention"):
                stack.enter_context(hold(home, name, purpose="a test", clock=clock))


def somebody(**changes: object) -> LockHolder:
    """A holder on another host that took the lock at noon."""
    fields: dict[str, object] = {
        "token": "t",
        "purpose": "a test",
        "host": "elsewhere",
        "boot": "b",
        "namespace": "n",
        "pid": 1,
        "started": "1",
        "since": NOON,
        "expires_at": NOON + timedelta(seconds=60),
        "ttl_seconds": 60,
    }
    return LockHolder.model_validate(fields | changes)


def put_holder(store: Store, holder: LockHolder, generation: int = 7) -> None:
    store.put(f"locks/backup/{generation:08d}.json", [seal(holder.model_dump(mode="json"))])


def test_a_holder_on_another_host_keeps_the_lock_until_its_time_has_run_out(folder_store: FolderStore) -> None:
    put_holder(folder_store, somebody())
    clock = FakeClock(NOON)
    clock.advance(59.9)
    with pytest.raises(Locked, match="elsewhere"):
        take(folder_store, clock)
    clock.advance(0.1)
    take(folder_store, clock)
    assert folder_store.names("locks/backup") == ["00000008.json"]


def ours(store: Store) -> LockHolder:
    """A holder that is this very process, its time far from over."""
    with hold(store, "backup", purpose="a test", clock=SystemClock()):
        return stored(store).model_copy(update={"expires_at": datetime(2200, 1, 1, tzinfo=UTC)})


def test_a_process_that_has_the_number_of_a_dead_holder_is_not_mistaken_for_it(folder_store: FolderStore) -> None:
    holder = ours(folder_store)
    put_holder(folder_store, holder)
    assert not is_free(folder_store)
    put_holder(folder_store, holder.model_copy(update={"started": "1"}))
    assert is_free(folder_store)


@pytest.mark.parametrize("change", [{"host": "elsewhere"}, {"boot": "another"}, {"namespace": "pid:[1]"}, {"boot": ""}])
def test_a_process_that_cannot_be_seen_from_here_is_not_taken_for_dead(
    folder_store: FolderStore, change: dict[str, str]
) -> None:
    put_holder(folder_store, ours(folder_store).model_copy(update={"started": "1", **change}))
    assert not is_free(folder_store)


def test_a_holder_that_could_not_renew_stops_believing_before_others_may_take_over(folder_store: FolderStore) -> None:
    clock = FakeClock(NOON)
    with hold(folder_store, "backup", purpose="the first", clock=clock) as first:
        clock.advance(44)
        assert first.holds()
        clock.advance(2)
        with pytest.raises(Locked, match="was lost while it was held for: the first"):
            first.confirm()
        with pytest.raises(Locked):
            take(folder_store, clock)
        clock.advance(15)
        with hold(folder_store, "backup", purpose="the second", clock=clock) as second:
            assert second.holds()
            assert not first.holds()
    assert stored(folder_store).purpose == "the second"


def test_a_late_release_does_not_harm_the_next_holder(folder_store: FolderStore) -> None:
    clock = FakeClock(NOON)
    with ExitStack() as late:
        late.enter_context(hold(folder_store, "backup", purpose="the first", clock=clock))
        clock.advance(61)
        with hold(folder_store, "backup", purpose="the second", clock=clock) as second:
            late.close()
            assert second.holds()
            with pytest.raises(Locked, match="the second"):
                take(folder_store, clock)


def test_a_clock_set_back_does_not_lengthen_the_holders_belief(folder_store: FolderStore) -> None:
    clock = FakeClock(NOON)
    with hold(folder_store, "backup", purpose="a test", clock=clock) as lock:
        clock.advance(50)
        clock.now -= timedelta(seconds=50)
        assert not lock.holds()


def test_a_holder_renews(store: Store) -> None:
    with hold(store, "backup", purpose="a test", clock=SystemClock(), ttl=timedelta(seconds=8)) as lock:
        first = stored(store)
        assert wait_until(lambda: stored(store).expires_at > first.since + timedelta(seconds=9), timeout=20)
        assert lock.holds()
        assert not is_free(store)
        assert stored(store).since == first.since


def test_a_damaged_lock_is_held_for_a_while_and_not_for_ever(
    folder_store: FolderStore, flip: Callable[[Store, str, int], None]
) -> None:
    take(folder_store)
    flip(folder_store, "locks/backup/00000001.json", 20)
    with pytest.raises(Locked, match="damaged"):
        take(folder_store, FakeClock(datetime.now(UTC)))
    take(folder_store, FakeClock(datetime.now(UTC) + timedelta(seconds=61)))


class SlowStore(FolderStore):
    """A store that takes its time to replace an object."""

    clock: FakeClock

    def put(self, key: str, chunks: Sequence[Chunk]) -> None:
        super().put(key, chunks)
        self.clock.advance(12)


@pytest.mark.slow
def test_a_renewal_that_arrived_too_late_proves_nothing(tmp_path: Path) -> None:
    store = SlowStore(tmp_path)
    store.clock = FakeClock(NOON)
    with hold(store, "backup", purpose="a test", clock=store.clock, ttl=timedelta(seconds=20)) as lock:
        # Late for the first 20 seconds, though soon enough for the next.
        store.clock.advance(10)
        assert wait_until(lambda: stored(store).expires_at > NOON + timedelta(seconds=20), timeout=20)
        assert not lock.holds()


class Sleeper(FolderStore):
    """A store whose user falls asleep right before its first `put_if_absent`, while `meanwhile` happens."""

    meanwhile: Callable[[], None] | None = None

    def put_if_absent(self, key: str, chunks: Sequence[Chunk]) -> bool:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        return super().put_if_absent(key, chunks)


def test_who_slept_while_the_lock_was_taken_does_not_get_it_as_well(folder_store: FolderStore) -> None:
    sleeper = Sleeper(folder_store.url)
    take(folder_store)
    with ExitStack() as stack:

        def meanwhile() -> None:
            # Taken, given back and taken again: what the sleeper saw is gone, and so is what it wants to put.
            take(folder_store)
            stack.enter_context(hold(folder_store, "backup", purpose="the other", clock=SystemClock()))

        sleeper.meanwhile = meanwhile
        with pytest.raises(Locked, match="the other"):
            take(sleeper)
    assert folder_store.names("locks/backup") == ["00000003.json"]


SCRIPT = """
import sys
from datetime import timedelta
from dr_pipelines.errors import Locked
from dr_pipelines.repository.locks import hold
from dr_pipelines.repository.repository import open_repository
from dr_pipelines.settings import load_settings
from dr_pipelines.timing import SystemClock
store = open_repository(sys.argv[1], settings=load_settings()).store
"""

HOLD = """
with hold(store, "backup", purpose="a test", clock=SystemClock(), ttl=timedelta(seconds=float(sys.argv[2]))) as lock:
    print("held", flush=True)
    sys.stdin.readline()
    print(lock.holds(), flush=True)
"""

CONTEND = """
print("ready", flush=True)
sys.stdin.readline()
won = 0
while won < 10:
    try:
        with hold(store, "backup", purpose="a test", clock=SystemClock()) as lock:
            assert store.put_if_absent("inside", [b""]), "two are inside at once"
            assert lock.holds()
            store.delete("inside")
            won += 1
    except Locked:
        pass
print("won", won, flush=True)
"""


@pytest.fixture(params=["folder", "s3"])
def url(request: pytest.FixtureRequest) -> str:
    """Where a repository is that other processes can open too, of each kind in turn."""
    if request.param == "s3":
        url: str = request.getfixturevalue("s3_url")
        settings: Settings = request.getfixturevalue("s3_settings")
    else:
        url, settings = str(request.getfixturevalue("tmp_path") / "repository"), Settings()
    open_repository(url, settings=settings, create=True)
    return url


@pytest.fixture
def shared(url: str, request: pytest.FixtureRequest) -> Store:
    """The store at `url`."""
    settings = request.getfixturevalue("s3_settings") if url.startswith("s3:") else Settings()
    return open_repository(url, settings=settings).store


@contextmanager
def process(script: str, url: str, request: pytest.FixtureRequest, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Another Python that runs `script` with the repository as `store`."""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    if url.startswith("s3:"):
        settings: Settings = request.getfixturevalue("s3_settings")
        assert settings.s3_endpoint and settings.s3_access_key_id and settings.s3_secret_access_key
        environment["DR_S3_ENDPOINT"] = settings.s3_endpoint
        environment["DR_S3_ACCESS_KEY_ID"] = settings.s3_access_key_id.get_secret_value()
        environment["DR_S3_SECRET_ACCESS_KEY"] = settings.s3_secret_access_key.get_secret_value()
    command = [sys.executable, "-c", SCRIPT + script, url, *arguments]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    ) as started:
        try:
            yield started
        finally:
            started.kill()


def line(started: subprocess.Popen[str]) -> str:
    assert started.stdout is not None
    return started.stdout.readline().strip()


def tell(started: subprocess.Popen[str]) -> None:
    assert started.stdin is not None
    started.stdin.write("\n")
    started.stdin.flush()


@pytest.mark.slow
def test_processes_that_race_for_a_lock_never_hold_it_at_once(url: str, request: pytest.FixtureRequest) -> None:
    with ExitStack() as stack:
        racers = [stack.enter_context(process(CONTEND, url, request)) for _ in range(3)]
        assert [line(racer) for racer in racers] == ["ready"] * 3
        for racer in racers:
            tell(racer)
        assert [line(racer) for racer in racers] == ["won 10"] * 3


def test_a_killed_holder_loses_the_lock_at_once(url: str, shared: Store, request: pytest.FixtureRequest) -> None:
    with process(HOLD, url, request, "3600") as holder:
        assert line(holder) == "held"
        assert not is_free(shared)
        os.kill(holder.pid, signal.SIGKILL)
        # Not waited for yet: until then it is a zombie, which is as dead.
        assert wait_until(lambda: is_free(shared), timeout=20)


@pytest.mark.slow
def test_a_stopped_holder_loses_the_lock_in_time_and_knows_when_it_wakes(
    url: str, shared: Store, request: pytest.FixtureRequest
) -> None:
    with process(HOLD, url, request, "2") as holder:
        assert line(holder) == "held"
        os.kill(holder.pid, signal.SIGSTOP)
        assert wait_until(lambda: is_free(shared), timeout=20)
        os.kill(holder.pid, signal.SIGCONT)
        tell(holder)
        assert line(holder) == "False"
        assert is_free(shared)
