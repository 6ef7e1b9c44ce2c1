"""Locks in the repository, which any store can keep: all they need is `put_if_absent`.

A lock is a row of generations, `locks/<name>/<%08d>.json`; the highest one says who holds it, or that nobody does.
Whoever takes the lock puts the next generation, which only one can do. The holder renews its own from a thread. A
holder that does not renew any more loses the lock when its time has run out, at once where it can be seen to be dead.

Clocks of different hosts may be apart by a quarter of the time to live: that long before others may take the lock, its
holder stops believing that it has it. No lock of this kind can stop a holder that slept since it last asked; so what
is done under it must be harmless when done late (a new backup's parts have names that nobody else uses; where others
took it for dead, its manifest is refused).
"""

import contextlib
import logging
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from dr_pipelines.errors import Locked, ObjectCorrupt, ObjectMissing, RepositoryError
from dr_pipelines.repository.identifiers import check_name
from dr_pipelines.repository.sealed import seal, unseal
from dr_pipelines.repository.store import Store
from dr_pipelines.timing import Clock, format_moment

__all__ = ["DEFAULT_TTL", "Lock", "LockHolder", "hold"]

DEFAULT_TTL = timedelta(seconds=60)
_ATTEMPTS = 16
_log = logging.getLogger(__name__)


class LockHolder(BaseModel):
    """What a generation says: who holds the lock, for what, since and until when.

    `boot` and `namespace` tell the host's start and its container; with them, pid and `started` mean one process.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    token: str
    purpose: str
    host: str
    boot: str
    namespace: str
    pid: int
    started: str
    since: AwareDatetime
    expires_at: AwareDatetime
    ttl_seconds: Annotated[float, Field(gt=0)]
    released: bool = False

    @property
    def ttl(self) -> timedelta:
        """How long the lock outlives its last renewal."""
        return timedelta(seconds=self.ttl_seconds)

    def is_free(self, now: datetime) -> bool:
        """Whether somebody else may take the lock."""
        return self.released or now >= self.expires_at or self._is_dead()

    def _is_dead(self) -> bool:
        here = (socket.gethostname(), _boot(), _namespace())
        if not (self.boot and self.namespace) or (self.host, self.boot, self.namespace) != here:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass  # another user's process; perhaps /proc hides it as well
        state = _state_and_start(self.pid)
        return state is not None and (state[0] in "ZX" or state[1] != self.started)


class Lock:
    """A lock that this process holds, renewed by a thread. Made by `hold`."""

    def __init__(
        self, store: Store, name: str, generation: int, holder: LockHolder, clock: Clock, begun: float
    ) -> None:
        self.name, self.generation, self.holder = name, generation, holder
        self._store, self._clock = store, clock
        self._renewed = (holder.since, begun)
        self._lost = False
        self._guard = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lock-{name}", daemon=True)

    def holds(self) -> bool:
        """Whether the lock is still held, asked of the repository now. Raises RepositoryUnreachable."""
        with self._guard:
            return self._is_trusted() and self._is_highest()

    def confirm(self) -> None:
        """Raise Locked unless the lock is still held; to be called right before what cannot be taken back."""
        if not self.holds():
            raise Locked(
                f"the lock {self.name} was lost while it was held for: {self.holder.purpose}",
                hint="this process was stopped, or the repository out of reach, for too long; start again",
            )

    def start(self) -> None:
        """Begin to renew."""
        self._thread.start()

    def release(self) -> None:
        """Let others have the lock. Where the repository cannot be told, it is theirs when its time has run out."""
        self._stop.set()
        self._thread.join()
        try:
            with self._guard:
                if self._is_trusted():
                    self._put(self.holder.model_copy(update={"released": True}))
        except RepositoryError as error:
            _log.warning("the lock %s could not be released: %s", self.name, error)

    def _keep(self) -> None:
        while not self._stop.wait(self.holder.ttl_seconds / 5):
            try:
                if not self._renew():
                    _log.error("the lock %s was lost", self.name)
                    return
            except RepositoryError as error:
                _log.warning("the lock %s could not be renewed: %s", self.name, error)

    def _renew(self) -> bool:
        with self._guard:
            if not self._is_trusted():
                return False
            moment = (self._clock.wall(), self._clock.monotonic())
            renewed = self.holder.model_copy(update={"expires_at": moment[0] + self.holder.ttl})
            self._put(renewed)
            # A renewal that arrived after others may have looked proves nothing.
            if not (self._is_trusted() and self._is_highest()):
                return False
            self._renewed, self.holder = moment, renewed
            return True

    def _is_trusted(self) -> bool:
        # Both clocks: the monotonic one stands still while a machine sleeps, the other may be set.
        by_wall = self._clock.wall() - self._renewed[0]
        by_monotonic = timedelta(seconds=self._clock.monotonic() - self._renewed[1])
        if max(by_wall, by_monotonic) >= self.holder.ttl * 0.75:
            self._lost = True
        return not self._lost

    def _is_highest(self) -> bool:
        if _highest(self._store, self.name) != self.generation:
            self._lost = True
        return not self._lost

    def _put(self, holder: LockHolder) -> None:
        self._store.put(_key(self.name, self.generation), [_sealed(holder)])


@contextlib.contextmanager
def hold(store: Store, name: str, *, purpose: str, clock: Clock, ttl: timedelta = DEFAULT_TTL) -> Iterator[Lock]:
    """Hold the lock `name` of this store while the block runs; does not wait.

    Raises Locked, which names the holder, where somebody else has it; also another thread of this process.
    """
    check_name(name, "lock")
    lock = _acquire(store, name, purpose, clock, ttl)
    lock.start()
    try:
        yield lock
    finally:
        lock.release()


def _acquire(store: Store, name: str, purpose: str, clock: Clock, ttl: timedelta) -> Lock:
    for _ in range(_ATTEMPTS):
        highest = _highest(store, name)
        if highest:
            current = _read(store, name, highest)
            if current is None:
                continue  # somebody took the lock and removed this generation since we listed it
            if not current.is_free(clock.wall()):
                raise _locked(name, current)
        begun, holder = clock.monotonic(), _new_holder(purpose, clock.wall(), ttl)
        mine = highest + 1
        if not store.put_if_absent(_key(name, mine), [_sealed(holder)]):
            # A bucket's lost answer looks like somebody else's success.
            winner = _read(store, name, mine)
            if winner is None or winner.token != holder.token:
                continue
        generations = _generations(store, name)
        if generations[-1] == mine:
            for older in generations[:-1]:
                store.delete(_key(name, older))
            return Lock(store, name, mine, holder, clock, begun)
        # While this process slept, the lock was taken and given back, and what it saw was removed.
        store.delete(_key(name, mine))
    raise Locked(f"too many want the lock {name} at once", hint="try again")


def _locked(name: str, current: LockHolder) -> Locked:
    return Locked(
        f"the lock {name} is held by process {current.pid} on {current.host} since {format_moment(current.since)} "
        f"for: {current.purpose}",
        hint=f"wait until it has ended; if it was killed on another host, until {format_moment(current.expires_at)}",
    )


def _new_holder(purpose: str, now: datetime, ttl: timedelta) -> LockHolder:
    pid = os.getpid()
    _, started = _state_and_start(pid) or ("", "")
    return LockHolder(
        token=secrets.token_hex(16),
        purpose=purpose,
        host=socket.gethostname(),
        boot=_boot(),
        namespace=_namespace(),
        pid=pid,
        started=started,
        since=now,
        expires_at=now + ttl,
        ttl_seconds=ttl.total_seconds(),
    )


def _key(name: str, generation: int) -> str:
    return f"locks/{name}/{generation:08d}.json"


def _generations(store: Store, name: str) -> list[int]:
    stems = (entry.removesuffix(".json") for entry in store.names(f"locks/{name}"))
    return sorted(int(stem) for stem in stems if stem.isascii() and stem.isdigit())


def _highest(store: Store, name: str) -> int:
    return max(_generations(store, name), default=0)


def _sealed(holder: LockHolder) -> bytes:
    return seal(holder.model_dump(mode="json"))


def _read(store: Store, name: str, generation: int) -> LockHolder | None:
    key = _key(name, generation)
    try:
        return LockHolder.model_validate(unseal(store.get(key), what=f"the lock {name}"))
    except ObjectMissing:
        return None
    except (ObjectCorrupt, ValidationError) as error:
        _log.error("%s cannot be read: %s", key, error)
    info = store.info(key)
    if info is None:
        return None
    # Not for ever: a holder that lives rewrites it at its next renewal.
    return LockHolder(
        token="",
        purpose="unknown, what is stored of it is damaged",
        host="an unknown host",
        boot="",
        namespace="",
        pid=0,
        started="",
        since=info.modified,
        expires_at=info.modified + DEFAULT_TTL,
        ttl_seconds=DEFAULT_TTL.total_seconds(),
    )


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _state_and_start(pid: int) -> tuple[str, str] | None:
    """The state and the start time of a process as the kernel has them; None where it cannot be seen."""
    try:
        # The command's name, in parentheses, may itself hold blanks and parentheses.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], fields[19]
